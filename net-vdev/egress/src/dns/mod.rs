//! A resolver for members, with DNS64 (RFC 6147).
//!
//! ```text
//!   query of a member ──► mesh, ipv4only.arpa ──► answered here
//!                     ──► cache ──► answered
//!                     ──► upstream over UDP (own port and id each) ──► truncated: TCP
//! ```
//!
//! Members reach the outside through NAT64 only, so *every* AAAA record of the outside is one to
//! leave out (RFC 6147 §5.1.4): a question for AAAA is asked as one for A, and the answer's addresses
//! are written in `64:ff9b::/96`. All other questions pass as they are. What lies in `mesh.`, and the
//! reverse names of the mesh's addresses, are never asked of anybody.
//!
//! An answer counts only from the server that was asked, on the very socket, with the same id and the
//! same question. Signatures are not checked, and none are asked for.

mod cache;
mod message;
mod name;
mod records;
pub(crate) mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use cache::Cache;
use message::{
    A, AAAA, IN, NAME_ERROR, NAME_RECORD, NO_ERROR, Query, Question, REFUSED, Record, Response,
    SERVER_FAILURE, write_query,
};
use net_vdev::PublicKey;
use net_vdev::random::Generator;
use records::Records;
use slab::Slab;

use crate::address::embed;
use crate::names::{Names, Whose};
use crate::sockets::{Kind, Ready, SocketError, Sockets, Token};

/// How many questions are asked at a time, how many members wait for one answer, and for how many a
/// single member waits.
const PENDING_MAX: usize = 512;
const WAITING_MAX: usize = 32;
const WAITING_PER_MEMBER_MAX: usize = 64;
/// How often a question is asked, each time of the next server, and how long each may take.
const TRIES_MAX: u32 = 4;
const PATIENCE_NS: u64 = 2_000_000_000;
/// What an answer over TCP may have.
const STREAM_BYTES_MAX: usize = 16 * 1024;
/// How long the names of the mesh hold elsewhere.
const MESH_TTL_S: u32 = 60;
/// The tokens of this module's sockets; those of flows are smaller.
const TOKENS: u64 = 1 << 63;
const PLACE_BITS: u32 = 16;

/// RFC 7050 §2.2: how members find out about NAT64.
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The member.
    pub member: PublicKey,
    /// Where its answer goes.
    pub from: SocketAddr,
    /// Whom it asked.
    pub to: SocketAddr,
    /// On which connection, if not by a datagram.
    pub stream: Option<Token>,
}

/// What the resolver did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResolverCounters {
    /// Queries of members.
    pub queries: u64,
    /// Queries that were no such thing, or that nobody owes an answer.
    pub refused: u64,
    /// Answers from the cache.
    pub cached: u64,
    /// Answers about the mesh.
    pub local: u64,
    /// Questions asked of other servers, and how often over TCP.
    pub asked: u64,
    /// See [`ResolverCounters::asked`].
    pub asked_over_tcp: u64,
    /// Answers of other servers to another question, or that make no sense.
    pub odd: u64,
    /// Questions that nobody answered in time.
    pub unanswered: u64,
    /// Queries dropped since too many wait.
    pub too_many: u64,
}

/// The resolver of a node.
#[derive(Debug)]
pub struct Resolver {
    upstreams: Vec<SocketAddr>,
    random: Generator,
    cache: Cache,
    pending: Slab<Pending>,
    by_question: BTreeMap<Question, usize>,
    opened: u64,
    answers: VecDeque<(Asker, Vec<u8>)>,
    /// Where other nodes are asked from, if there is such an address.
    own: Option<Ipv6Addr>,
    records: Records,
    counters: ResolverCounters,
    buffer: Vec<u8>,
}

/// A question under way.
#[derive(Debug)]
struct Pending {
    question: Question,
    waiting: Vec<(Asker, Query)>,
    id: u16,
    token: Token,
    tries: u32,
    due_ns: u64,
    /// Over TCP: what is yet to be sent, and what came in.
    stream: Option<(Vec<u8>, Vec<u8>)>,
}

impl Resolver {
    /// A resolver that asks `upstreams`, one after the other. `seed` is fresh random bytes.
    #[must_use]
    pub fn new(upstreams: Vec<SocketAddr>, seed: [u8; 32]) -> Self {
        Self {
            upstreams,
            random: Generator::new(seed),
            cache: Cache::default(),
            pending: Slab::new(),
            by_question: BTreeMap::new(),
            opened: 0,
            answers: VecDeque::new(),
            own: None,
            records: Records::default(),
            counters: ResolverCounters::default(),
            buffer: vec![0; STREAM_BYTES_MAX],
        }
    }

    /// Asks other nodes about their workloads from now on, from this address.
    pub fn ask_nodes_from(&mut self, own: Ipv6Addr) {
        self.own = Some(own);
    }

    /// What was done.
    #[must_use]
    pub fn counters(&self) -> ResolverCounters {
        self.counters
    }

    /// Whether a socket is one of the resolver's.
    #[must_use]
    pub fn owns(token: Token) -> bool {
        token.0 & TOKENS != 0
    }

    /// The next answer, and whom it is for.
    pub fn poll_answer(&mut self) -> Option<(Asker, Vec<u8>)> {
        self.answers.pop_front()
    }

    /// Takes a member's query, the payload of a datagram.
    pub fn query(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        names: &Names,
        asker: Asker,
        message: &[u8],
    ) {
        self.counters.queries += 1;
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(refusal) => {
                self.counters.refused += 1;
                if let Some(refusal) = refusal {
                    self.answers.push_back((asker, refusal.write()));
                }
                return;
            }
        };
        let query = match asker.stream {
            Some(_) => Query { bytes_max: usize::from(u16::MAX), ..query },
            None => query,
        };
        if let (Some(Whose::Elsewhere(node, name)), Some(own)) = (whose(names, &query), self.own) {
            self.counters.local += 1;
            let asking = (own, &mut self.random);
            let answer = self.records.query(now_ns, asking, (node, name), (asker, query));
            self.answers.extend(answer);
            return;
        }
        if let Some(response) = local(names, &query) {
            self.counters.local += 1;
            self.answers.push_back((asker, response.write(&query)));
            return;
        }
        let kind = if query.question.kind == AAAA { A } else { query.question.kind };
        let question = Question { kind, ..query.question.clone() };
        if let Some(response) = self.cache.get(now_ns, &question) {
            self.counters.cached += 1;
            self.answer(asker, &query, &response);
            return;
        }
        self.wait(now_ns, sockets, question, (asker, query));
    }

    /// Takes the query of somebody who may ask this node for certificates of its own names and for
    /// nothing else; returns what answers it.
    #[must_use]
    pub fn query_of_stranger(&mut self, names: &Names, message: &[u8]) -> Option<Vec<u8>> {
        let query = Query::parse(message).ok()?;
        let is_for_here = query.question.kind == NAME_RECORD
            && matches!(whose(names, &query), Some(Whose::Own(..) | Whose::Nobody));
        let response = local(names, &query).filter(|_| is_for_here)?;
        self.counters.local += 1;
        Some(response.write(&query))
    }

    /// The next packet of this node's own for the mesh: a question to another node.
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.records.poll_packet()
    }

    /// Whether a packet of the mesh for this node answers a question to another node.
    #[must_use]
    pub fn takes(&self, packet: &[u8]) -> bool {
        self.records.takes(packet)
    }

    /// Takes such a packet. `unix_s` is the time by which certificates end.
    pub fn receive(&mut self, now_ns: u64, unix_s: u64, packet: &[u8]) {
        let answers = self.records.receive(now_ns, unix_s, packet);
        self.answers.extend(answers);
    }

    /// Has a query wait for the answer to a question, which is asked if nobody has yet.
    fn wait(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        question: Question,
        waiting: (Asker, Query),
    ) {
        if self.upstreams.is_empty() {
            let response = Response::to(&waiting.1, REFUSED, Vec::new());
            return self.answer(waiting.0, &waiting.1, &response);
        }
        let member = waiting.0.member;
        let all = self.pending.iter().flat_map(|(_, pending)| &pending.waiting);
        let of_member = all.filter(|(asker, _)| asker.member == member).count();
        if of_member >= WAITING_PER_MEMBER_MAX {
            self.counters.too_many += 1;
            return;
        }
        if let Some(pending) =
            self.by_question.get(&question).and_then(|place| self.pending.get_mut(*place))
        {
            if pending.waiting.len() < WAITING_MAX {
                pending.waiting.push(waiting);
            } else {
                self.counters.too_many += 1;
            }
            return;
        }
        if self.pending.len() >= PENDING_MAX {
            self.counters.too_many += 1;
            return;
        }
        let place = self.pending.insert(Pending {
            question: question.clone(),
            waiting: vec![waiting],
            id: 0,
            token: Token(TOKENS),
            tries: 0,
            due_ns: now_ns,
            stream: None,
        });
        self.by_question.insert(question, place);
        self.ask(now_ns, sockets, place);
    }

    /// Asks the next server, on a socket of its own: the port that the kernel picks and the id are
    /// what an answer has to guess.
    fn ask(&mut self, now_ns: u64, sockets: &mut impl Sockets, place: usize) {
        loop {
            let (token, id) = (self.next_token(place), self.random.u32() as u16);
            let Some(pending) = self.pending.get_mut(place) else { return };
            sockets.close(pending.token);
            if pending.tries >= TRIES_MAX {
                self.counters.unanswered += 1;
                return self.fail(sockets, place);
            }
            let index = pending.tries as usize % self.upstreams.len().max(1);
            let Some(upstream) = self.upstreams.get(index).copied() else { return };
            pending.tries += 1;
            (pending.token, pending.id, pending.stream) = (token, id, None);
            pending.due_ns = now_ns.saturating_add(PATIENCE_NS);
            let message = write_query(id, &pending.question);
            self.counters.asked += 1;
            let asked = sockets
                .open(token, Kind::Udp { port: None }, upstream)
                .and_then(|()| sockets.send(token, &message));
            if asked.is_ok() {
                return;
            }
        }
    }

    /// The answer does not fit a datagram: asks the same server over TCP.
    fn ask_over_tcp(&mut self, now_ns: u64, sockets: &mut impl Sockets, place: usize) {
        let (token, id) = (self.next_token(place), self.random.u32() as u16);
        let Some(pending) = self.pending.get_mut(place) else { return };
        sockets.close(pending.token);
        let index = pending.tries.saturating_sub(1) as usize % self.upstreams.len().max(1);
        let Some(upstream) = self.upstreams.get(index).copied() else { return };
        (pending.token, pending.id) = (token, id);
        pending.due_ns = now_ns.saturating_add(2 * PATIENCE_NS);
        let message = write_query(id, &pending.question);
        let len = u16::try_from(message.len()).unwrap_or(0).to_be_bytes();
        pending.stream = Some(([&len[..], &message].concat(), Vec::new()));
        self.counters.asked_over_tcp += 1;
        if sockets.open(token, Kind::Tcp, upstream).is_err() {
            self.ask(now_ns, sockets, place);
        }
    }

    fn next_token(&mut self, place: usize) -> Token {
        self.opened += 1;
        Token(TOKENS | (self.opened << PLACE_BITS & !TOKENS) | place as u64)
    }

    /// A socket of the resolver's can do something.
    pub fn ready(&mut self, now_ns: u64, sockets: &mut impl Sockets, ready: Ready) {
        let place = (ready.token.0 & ((1 << PLACE_BITS) - 1)) as usize;
        let Some(pending) = self.pending.get_mut(place) else { return };
        if pending.token != ready.token {
            return;
        }
        if pending.stream.is_some() {
            return self.ready_stream(now_ns, sockets, place);
        }
        if !ready.readable {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        // More than one datagram at a socket for one answer: all but the right one are odd.
        for _ in 0..8 {
            match sockets.receive(ready.token, &mut buffer) {
                Ok(len) => {
                    let message = buffer.get(..len).unwrap_or_default();
                    if self.take_message(now_ns, sockets, place, message) {
                        break;
                    }
                }
                Err(SocketError::WouldBlock) => break,
                Err(_) => {
                    self.ask(now_ns, sockets, place);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Sends the question over TCP, and reads the answer.
    fn ready_stream(&mut self, now_ns: u64, sockets: &mut impl Sockets, place: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome =
            self.pending.get_mut(place).map(|pending| pending.exchange(sockets, &mut buffer));
        self.buffer = buffer;
        match outcome {
            None | Some(Exchange::GoesOn) => {}
            Some(Exchange::Failed) => self.ask(now_ns, sockets, place),
            Some(Exchange::Message(message)) => {
                if !self.take_message(now_ns, sockets, place, &message) {
                    self.ask(now_ns, sockets, place);
                }
            }
        }
    }

    /// Takes what may be the answer; whether the question is settled or asked anew.
    fn take_message(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        place: usize,
        message: &[u8],
    ) -> bool {
        let Some(pending) = self.pending.get(place) else { return true };
        let response = Response::parse(message);
        let response = response
            .filter(|response| response.id == pending.id && response.question == pending.question);
        let Some(response) = response else {
            self.counters.odd += 1;
            return false;
        };
        if response.is_truncated {
            if pending.stream.is_some() {
                return false;
            }
            self.ask_over_tcp(now_ns, sockets, place);
            return true;
        }
        let is_answer = matches!(response.code, NO_ERROR | NAME_ERROR);
        if !is_answer && pending.tries < TRIES_MAX {
            self.ask(now_ns, sockets, place);
            return true;
        }
        self.cache.put(now_ns, &response);
        self.settle(sockets, place, &response);
        true
    }

    fn fail(&mut self, sockets: &mut impl Sockets, place: usize) {
        let Some(pending) = self.pending.get(place) else { return };
        let response = Response {
            id: 0,
            code: SERVER_FAILURE,
            is_truncated: false,
            question: pending.question.clone(),
            answers: Vec::new(),
            authorities: Vec::new(),
        };
        self.settle(sockets, place, &response);
    }

    /// Tells all who wait.
    fn settle(&mut self, sockets: &mut impl Sockets, place: usize, response: &Response) {
        let Some(pending) = self.pending.try_remove(place) else { return };
        self.by_question.remove(&pending.question);
        sockets.close(pending.token);
        for (asker, query) in pending.waiting {
            self.answer(asker, &query, response);
        }
    }

    /// Answers a query with what another server said, in the family that was asked for.
    fn answer(&mut self, asker: Asker, query: &Query, response: &Response) {
        let mut answers = response.answers.clone();
        if query.question.kind == AAAA {
            answers.iter_mut().for_each(synthesise);
        }
        let response = Response {
            id: query.id,
            question: query.question.clone(),
            answers,
            ..response.clone()
        };
        self.answers.push_back((asker, response.write(query)));
    }

    /// When [`Resolver::handle_deadline`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let pending = self.pending.iter().map(|(_, pending)| pending.due_ns);
        pending.chain(self.records.next_deadline()).min()
    }

    /// Asks again what was not answered in time.
    pub fn handle_deadline(&mut self, now_ns: u64, sockets: &mut impl Sockets) {
        if let Some(own) = self.own {
            let answers = self.records.handle_deadline(now_ns, own);
            self.answers.extend(answers);
        }
        let due = self.pending.iter().filter(|(_, pending)| pending.due_ns <= now_ns);
        let due: Vec<usize> = due.map(|(place, _)| place).collect();
        for place in due {
            self.ask(now_ns, sockets, place);
        }
    }
}

/// How far an exchange over TCP is.
enum Exchange {
    GoesOn,
    Failed,
    Message(Vec<u8>),
}

impl Pending {
    fn exchange(&mut self, sockets: &mut impl Sockets, buffer: &mut [u8]) -> Exchange {
        let Some((to_send, received)) = &mut self.stream else { return Exchange::Failed };
        match sockets.outcome(self.token) {
            Ok(()) => {}
            Err(SocketError::WouldBlock) => return Exchange::GoesOn,
            Err(_) => return Exchange::Failed,
        }
        while !to_send.is_empty() {
            match sockets.send(self.token, to_send) {
                Ok(sent) => drop(to_send.drain(..sent.min(to_send.len()))),
                Err(SocketError::WouldBlock) => break,
                Err(_) => return Exchange::Failed,
            }
        }
        loop {
            match sockets.receive(self.token, buffer) {
                Ok(0) => return Exchange::Failed,
                Ok(len) => received.extend_from_slice(buffer.get(..len).unwrap_or_default()),
                Err(SocketError::WouldBlock) => return Exchange::GoesOn,
                Err(_) => return Exchange::Failed,
            }
            if let Some((len, message)) = received.split_first_chunk::<2>() {
                let len = usize::from(u16::from_be_bytes(*len));
                if let Some(message) = message.get(..len) {
                    return Exchange::Message(message.to_vec());
                }
            }
            if received.len() > STREAM_BYTES_MAX {
                return Exchange::Failed;
            }
        }
    }
}

/// Writes an IPv4 address of an answer in the prefix; other records stay.
fn synthesise(record: &mut Record) {
    if record.kind == A
        && let Ok(address) = <[u8; 4]>::try_from(record.data.as_slice())
    {
        record.kind = AAAA;
        record.data = embed(Ipv4Addr::from(address)).octets().to_vec();
    }
}

/// Whose name a query asks for, if it is one of the mesh.
fn whose<'a>(names: &'a Names, query: &Query) -> Option<Whose<'a>> {
    let labels: Vec<&[u8]> = query.question.name.labels().collect();
    let (last, rest) = labels.split_last()?;
    (*last == b"mesh").then(|| names.resolve(rest))
}

/// The answer to what is never asked of another server.
fn local(names: &Names, query: &Query) -> Option<Response> {
    let question = &query.question;
    let record = |kind, ttl_s, data: &[u8]| Record {
        name: question.name.clone(),
        kind,
        class: IN,
        ttl_s,
        data: data.to_vec(),
    };
    let labels: Vec<&[u8]> = question.name.labels().collect();
    if let Some(whose) = whose(names, query) {
        let is_mesh_itself = labels.len() == 1;
        let (code, data) = match (whose, question.kind) {
            (Whose::Member(key) | Whose::Own(key, _), AAAA) => {
                (NO_ERROR, Some(key.address().octets().to_vec()))
            }
            (Whose::Own(_, certificate), NAME_RECORD) => (NO_ERROR, Some(certificate.to_vec())),
            (Whose::Member(_) | Whose::Own(..), _) => (NO_ERROR, None),
            (Whose::Nobody, _) if is_mesh_itself => (NO_ERROR, None),
            (Whose::Nobody, _) => (NAME_ERROR, None),
            // Nobody can be asked.
            (Whose::Elsewhere(..), _) => (SERVER_FAILURE, None),
        };
        let records = data.map(|data| record(question.kind, MESH_TTL_S, &data));
        return Some(Response::to(query, code, records.into_iter().collect()));
    }
    // The reverse names of 400::/7 would tell others which members are talked to.
    if [b"4", b"5"].iter().any(|digit| question.name.is_within(&[*digit, b"0", b"ip6", b"arpa"])) {
        return Some(Response::to(query, NAME_ERROR, Vec::new()));
    }
    if question.name.is_within(&[b"ipv4only", b"arpa"]) && labels.len() == 2 {
        let addresses = WELL_KNOWN.iter();
        let records = addresses.filter_map(|address| match question.kind {
            A => Some(record(A, MESH_TTL_S, &address.octets())),
            AAAA => Some(record(AAAA, MESH_TTL_S, &embed(*address).octets())),
            _ => None,
        });
        return Some(Response::to(query, NO_ERROR, records.collect()));
    }
    None
}

/// The servers that a `resolv.conf` names (man 5 resolv.conf), three at most.
#[must_use]
pub fn upstreams_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        // A link-local address with a scope needs an interface's number, which is not here.
        words.next().filter(|_| is_server)?.parse().ok().map(|ip| SocketAddr::new(ip, 53))
    });
    servers.take(3).collect()
}

#[cfg(test)]
mod tests;
