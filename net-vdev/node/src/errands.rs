//! Orders that take more than one turn: a ping, a trace.

use std::net::Ipv6Addr;
use std::sync::mpsc::SyncSender;

use mesh_router::NextHop;
use net_vdev::PublicKey;
use net_vdev::endpoint::Path;

use crate::core::{Core, Outside, Target};
use crate::orders::{AliasStatus, Answer, Asked, Hop, Order};

/// How long a member may take to be found, and to answer.
const PATIENCE_NS: u64 = 3_000_000_000;
/// How long each router has to answer, and how many there may be.
const HOP_PATIENCE_NS: u64 = 1_000_000_000;
const HOPS_MAX: u8 = 32;
/// How many errands may be under way.
const ERRANDS_MAX: usize = 64;

/// An errand under way.
struct Errand {
    to: Ipv6Addr,
    /// Whose address that is, as soon as it is known.
    target: Option<Target>,
    until_ns: u64,
    sent: Option<Sent>,
    stage: Stage,
    reply: SyncSender<Answer>,
}

/// What was sent last: its number, and when.
#[derive(Clone, Copy)]
struct Sent {
    number: u64,
    at_ns: u64,
}

enum Stage {
    Ping,
    Trace { hop_limit: u8, hops: Vec<Option<Hop>> },
}

/// The errands of a node.
#[derive(Default)]
pub(crate) struct Errands {
    list: Vec<Errand>,
    next: u32,
}

impl Errands {
    /// Takes one on.
    pub(crate) fn begin(&mut self, now_ns: u64, asked: Asked) {
        let (to, stage) = match asked.order {
            Order::Ping { to } => (to, Stage::Ping),
            Order::Trace { to } => (to, Stage::Trace { hop_limit: 1, hops: Vec::new() }),
            Order::Status | Order::Rules { .. } | Order::Certificates { .. } => return,
        };
        if self.list.len() >= ERRANDS_MAX {
            return say(&asked.reply, failed("too many pings and traces are under way"));
        }
        let until_ns = now_ns.saturating_add(PATIENCE_NS);
        let reply = asked.reply;
        self.list.push(Errand { to, target: None, until_ns, sent: None, stage, reply });
    }

    /// Whether there is any: the node's turns then come often.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Goes on with all of them.
    pub(crate) fn proceed(&mut self, now_ns: u64, core: &mut Core, outside: &mut impl Outside) {
        let pongs = core.take_pongs();
        let traces = core.take_traces();
        let mut list = std::mem::take(&mut self.list);
        list.retain_mut(|errand| {
            let answer = match (find(now_ns, errand, core), &errand.stage) {
                (Err(reason), _) => Some(failed(&reason)),
                (Ok(None), _) => None,
                (Ok(Some(target)), Stage::Ping) => ping(now_ns, errand, &target, core, &pongs),
                (Ok(Some(target)), Stage::Trace { .. }) => {
                    self.trace(now_ns, (errand, &target), core, &traces, outside)
                }
            };
            let is_done = answer.is_some();
            if let Some(answer) = answer {
                say(&errand.reply, answer);
            }
            !is_done
        });
        self.list = list;
    }

    fn trace(
        &mut self,
        now_ns: u64,
        (errand, target): (&mut Errand, &Target),
        core: &mut Core,
        traces: &[(u32, Ipv6Addr)],
        outside: &mut impl Outside,
    ) -> Option<Answer> {
        let (to, alias) = (target.key.address(), target.alias.as_ref().map(AliasStatus::of));
        let Stage::Trace { hop_limit, hops } = &mut errand.stage else { return None };
        if let Some(sent) = errand.sent {
            let token = u32::try_from(sent.number).unwrap_or(0);
            let answer = traces.iter().find(|(found, _)| *found == token);
            let late = now_ns.saturating_sub(sent.at_ns) >= HOP_PATIENCE_NS;
            if answer.is_none() && !late {
                return None;
            }
            hops.push(answer.map(|(_, address)| Hop {
                address: *address,
                round_trip_us: now_ns.saturating_sub(sent.at_ns) / 1000,
            }));
            let is_there = answer.is_some_and(|(_, address)| *address == to);
            let is_lost = hops.len() >= 3 && hops.iter().rev().take(3).all(Option::is_none);
            if is_there || is_lost || *hop_limit >= HOPS_MAX {
                return Some(Answer::Trace { alias, hops: std::mem::take(hops) });
            }
            *hop_limit += 1;
            errand.sent = None;
        }
        match core.router_mut().next_hop(now_ns, &to, false) {
            NextHop::Local(_) => return Some(Answer::Trace { alias, hops: Vec::new() }),
            NextHop::Link(_) => {
                self.next = self.next.wrapping_add(1);
                let token = self.next;
                core.send_trace(now_ns, &to, *hop_limit, token, outside);
                errand.sent = Some(Sent { number: u64::from(token), at_ns: now_ns });
            }
            NextHop::Pending if now_ns < errand.until_ns => {}
            NextHop::Pending | NextHop::Unreachable => {
                return Some(failed(&no_way(now_ns, core, &errand.to)));
            }
        }
        None
    }
}

/// Whom an errand is for, or why that is nobody.
fn find(now_ns: u64, errand: &mut Errand, core: &mut Core) -> Result<Option<Target>, String> {
    if errand.target.is_none() {
        errand.target = core.target(now_ns, &errand.to)?;
    }
    if errand.target.is_none() && now_ns >= errand.until_ns {
        return Err(no_way(now_ns, core, &errand.to));
    }
    Ok(errand.target)
}

fn ping(
    now_ns: u64,
    errand: &mut Errand,
    target: &Target,
    core: &mut Core,
    pongs: &[(u64, PublicKey, Path)],
) -> Option<Answer> {
    let Some(sent) = errand.sent else {
        match core.ping(now_ns, &target.key) {
            Ok(Some(number)) => errand.sent = Some(Sent { number, at_ns: now_ns }),
            Ok(None) if now_ns < errand.until_ns => {}
            Ok(None) => return Some(failed(&no_way(now_ns, core, &errand.to))),
            Err(reason) => return Some(failed(&reason)),
        }
        return None;
    };
    let pong = pongs.iter().find(|(number, ..)| *number == sent.number);
    if let Some((_, key, path)) = pong {
        return Some(Answer::Pong {
            key: key.to_string(),
            alias: target.alias.as_ref().map(AliasStatus::of),
            round_trip_us: now_ns.saturating_sub(sent.at_ns) / 1000,
            path: path.to_string(),
        });
    }
    (now_ns >= errand.until_ns)
        .then(|| failed(&format!("{} did not answer within 3 seconds", errand.to)))
}

fn no_way(now_ns: u64, core: &Core, to: &Ipv6Addr) -> String {
    if let Some(why) = core.why_alone(now_ns) {
        return format!("there is no way to {to}: {why}");
    }
    match core.router().resolve(to).filter(|node| node.address() != *to) {
        Some(node) => format!("node {node}, in whose /64 {to} is, does not say whose alias it is"),
        None => format!("there is no way to {to}: no node announces it"),
    }
}

fn failed(reason: &str) -> Answer {
    Answer::Failed { reason: reason.to_owned() }
}

/// Answers whoever asked; who went away gets nothing.
fn say(reply: &SyncSender<Answer>, answer: Answer) {
    if reply.try_send(answer).is_err() {
        tracing::debug!("whoever asked is gone");
    }
}
