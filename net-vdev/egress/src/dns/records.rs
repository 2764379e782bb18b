//! Names of workloads on other nodes: `<workload>.<node>.mesh`.
//!
//! ```text
//!  query of a member ──► node known by key or nickname ──► asked over the mesh, port 53 of its address
//!                        ◄── certificate of the name, signed by the node ── checked, then answered
//! ```
//!
//! A node is asked in a session with its key, and what it says is signed with that key and expires,
//! so that an answer counts wherever it was kept. A record that is not signed by the node, is about
//! another name, or has expired is none: the query fails.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use net_vdev::PublicKey;
use net_vdev::certificate::{HostName, NameRecord};
use net_vdev::firewall::{Packet, Transport};
use net_vdev::random::Generator;

use super::Asker;
use super::message::{
    AAAA, IN, NAME_ERROR, NAME_RECORD, NO_ERROR, Query, Question, Record, Response, SERVER_FAILURE,
    write_query,
};
use super::name::Name;
use crate::names::key_label;
use crate::packet::{IPV6_BYTES, UDP_BYTES, udp};

/// How many questions are under way, how many members wait for one answer, and how many answers are
/// kept.
const ASKED_MAX: usize = 64;
const WAITING_MAX: usize = 16;
const KNOWN_MAX: usize = 1024;
/// How often a node is asked, and how long it may take each time: the first time a session is made.
const TRIES_MAX: u32 = 4;
const PATIENCE_NS: u64 = 1_500_000_000;
/// How long an answer is kept; that there is no such workload for less.
const TTL_S: u32 = 60;
const NOBODY_S: u32 = 10;
/// For how long the number of a record is remembered when its node has taken the name away.
const KEPT_S: u64 = 3600;
const SECOND_NS: u64 = 1_000_000_000;
const DNS_PORT: u16 = 53;
/// The ports of questions; the host's programs that use one of them too lose answers of port 53.
const PORT_FIRST: u16 = 0xc000;

/// A workload's name on a node.
pub(super) type WorkloadName = (PublicKey, HostName);
type Waiting = (Asker, Query);

/// What this node asks others, and what they said.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// By the port that the answer comes to.
    asked: BTreeMap<u16, Asked>,
    known: BTreeMap<WorkloadName, Known>,
    packets: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Asked {
    name: WorkloadName,
    id: u16,
    tries: u32,
    due_ns: u64,
    waiting: Vec<Waiting>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    /// Whose name it is; nobody's if there is none.
    workload: Option<PublicKey>,
    until_ns: u64,
    /// Of the record that said so: its number, and when it ends. No older one counts until then.
    sequence: u64,
    expires_unix_s: u64,
}

impl Records {
    /// Answers from what is known, or asks the node, from `own`.
    pub(super) fn query(
        &mut self,
        now_ns: u64,
        (own, random): (Ipv6Addr, &mut Generator),
        name: WorkloadName,
        (asker, query): Waiting,
    ) -> Option<(Asker, Vec<u8>)> {
        if let Some(known) = self.known.get(&name).filter(|known| now_ns < known.until_ns) {
            return Some((asker, answer(now_ns, &query, *known)));
        }
        if let Some(asked) = self.asked.values_mut().find(|asked| asked.name == name) {
            if asked.waiting.len() < WAITING_MAX {
                asked.waiting.push((asker, query));
            }
            return None;
        }
        if self.asked.len() >= ASKED_MAX {
            return Some((asker, failure(&query)));
        }
        // There are far more ports than questions.
        let port = std::iter::repeat_with(|| PORT_FIRST | random.u32() as u16)
            .take(ASKED_MAX)
            .find(|port| !self.asked.contains_key(port));
        let Some(port) = port else { return Some((asker, failure(&query))) };
        let asked = Asked {
            name,
            id: random.u32() as u16,
            tries: 0,
            due_ns: now_ns,
            waiting: vec![(asker, query)],
        };
        self.asked.insert(port, asked);
        self.ask(now_ns, own, port);
        None
    }

    /// Asks (again); the packet is for the mesh.
    fn ask(&mut self, now_ns: u64, own: Ipv6Addr, port: u16) {
        let Some(asked) = self.asked.get_mut(&port) else { return };
        asked.tries += 1;
        asked.due_ns = now_ns.saturating_add(PATIENCE_NS);
        let Some(question) = question(&asked.name) else { return };
        let message = write_query(asked.id, &question);
        let to = (asked.name.0.address(), DNS_PORT).into();
        self.packets.extend(udp((own, port).into(), to, &message));
    }

    /// The next packet for the mesh.
    pub(super) fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front()
    }

    /// Whether a packet for this node comes from a node that was asked, to where it was asked from.
    pub(super) fn takes(&self, bytes: &[u8]) -> bool {
        self.port_of(bytes).is_some()
    }

    fn port_of(&self, bytes: &[u8]) -> Option<(u16, Packet)> {
        let packet = Packet::parse(bytes).ok()?;
        let Transport::Udp(ports) = packet.transport else { return None };
        let asked = self.asked.get(&ports.destination)?;
        let is_answer =
            ports.source == DNS_PORT && packet.source == IpAddr::V6(asked.name.0.address());
        is_answer.then_some((ports.destination, packet))
    }

    /// Takes a packet that [`Records::takes`] is for; returns answers for members.
    pub(super) fn receive(
        &mut self,
        now_ns: u64,
        unix_s: u64,
        bytes: &[u8],
    ) -> Vec<(Asker, Vec<u8>)> {
        let Some((port, packet)) = self.port_of(bytes) else { return Vec::new() };
        let message = bytes.get(IPV6_BYTES + UDP_BYTES..packet.len).unwrap_or_default();
        let Some(asked) = self.asked.get(&port) else { return Vec::new() };
        let response = Response::parse(message).filter(|response| {
            response.id == asked.id && Some(&response.question) == question(&asked.name).as_ref()
        });
        // Anything else on this port is not the answer; the node may be asked again.
        let Some(response) = response else { return Vec::new() };
        let newest = self.known.get(&asked.name).filter(|known| unix_s < known.expires_unix_s);
        let least = newest.map_or(0, |known| known.sequence);
        let known = read(now_ns, unix_s, &asked.name, &response);
        let known = known.filter(|known| known.workload.is_none() || known.sequence >= least);
        let Some(asked) = self.asked.remove(&port) else { return Vec::new() };
        if let Some(mut known) = known {
            if known.workload.is_none() {
                (known.sequence, known.expires_unix_s) = (least, unix_s.saturating_add(KEPT_S));
            }
            self.keep(now_ns, asked.name, known);
        }
        let answer = |(asker, query): Waiting| {
            let message = known.map_or_else(|| failure(&query), |it| answer(now_ns, &query, it));
            (asker, message)
        };
        asked.waiting.into_iter().map(answer).collect()
    }

    fn keep(&mut self, now_ns: u64, name: WorkloadName, known: Known) {
        if self.known.len() >= KNOWN_MAX {
            self.known.retain(|_, known| now_ns < known.until_ns);
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.pop_first();
        }
        self.known.insert(name, known);
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.asked.values().map(|asked| asked.due_ns).min()
    }

    /// Asks again, or gives up; returns answers for members.
    pub(super) fn handle_deadline(&mut self, now_ns: u64, own: Ipv6Addr) -> Vec<(Asker, Vec<u8>)> {
        let due = self.asked.iter().filter(|(_, asked)| asked.due_ns <= now_ns);
        let due: Vec<(u16, u32)> = due.map(|(port, asked)| (*port, asked.tries)).collect();
        let mut answers = Vec::new();
        for (port, tries) in due {
            if tries < TRIES_MAX {
                self.ask(now_ns, own, port);
            } else if let Some(asked) = self.asked.remove(&port) {
                let waiting = asked.waiting.into_iter();
                answers.extend(waiting.map(|(asker, query)| (asker, failure(&query))));
            }
        }
        answers
    }
}

/// What a node is asked about a name of its own.
fn question((node, name): &WorkloadName) -> Option<Question> {
    let label = key_label(node);
    let labels = [name.as_str().as_bytes(), label.as_bytes(), b"mesh"];
    Some(Question { name: Name::of(&labels)?, kind: NAME_RECORD, class: IN })
}

/// What a node's answer says, if it counts.
fn read(now_ns: u64, unix_s: u64, name: &WorkloadName, response: &Response) -> Option<Known> {
    let until = |ttl_s: u64| now_ns.saturating_add(ttl_s.saturating_mul(SECOND_NS));
    if response.code == NAME_ERROR {
        let until_ns = until(u64::from(NOBODY_S));
        return Some(Known { workload: None, until_ns, sequence: 0, expires_unix_s: 0 });
    }
    let record = response.answers.iter().find(|record| record.kind == NAME_RECORD)?;
    let record = NameRecord::verify(&record.data, unix_s).ok()?;
    let is_asked = (record.node, record.name) == *name && response.code == NO_ERROR;
    let left_s = record.expires_unix_s.saturating_sub(unix_s).min(u64::from(TTL_S));
    is_asked.then(|| Known {
        workload: Some(record.workload),
        until_ns: until(left_s),
        sequence: record.sequence,
        expires_unix_s: record.expires_unix_s,
    })
}

/// The answer to a member.
fn answer(now_ns: u64, query: &Query, known: Known) -> Vec<u8> {
    let left_s = known.until_ns.saturating_sub(now_ns).div_ceil(SECOND_NS);
    let record = |workload: PublicKey| Record {
        name: query.question.name.clone(),
        kind: AAAA,
        class: IN,
        ttl_s: u32::try_from(left_s).unwrap_or(TTL_S),
        data: workload.address().octets().to_vec(),
    };
    let code = if known.workload.is_some() { NO_ERROR } else { NAME_ERROR };
    let workload = known.workload.filter(|_| query.question.kind == AAAA);
    Response::to(query, code, workload.map(record).into_iter().collect()).write(query)
}

fn failure(query: &Query) -> Vec<u8> {
    Response::to(query, SERVER_FAILURE, Vec::new()).write(query)
}
