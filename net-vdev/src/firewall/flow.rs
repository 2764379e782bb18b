//! The flows that pass the firewall now: a table with a hard limit, which forgets what is over.
//!
//! The table is a list of sets of eight; a flow's set follows from a hash under a secret key, so
//! that nobody outside can aim at a set. A set that is full of living flows makes the table double;
//! at [`FLOWS_MAX`] a flow gives way: one of the peer that has most of the set's flows, the new one
//! counted, and of those the least worthy. So a peer pushes out flows of others only until it has as
//! many as they, whoever opened them: fewer than eight peers together can't take the last flow in a
//! set from another.

use std::net::IpAddr;

use super::packet::{Protocol, TcpFlags};
use crate::identity::PublicKey;

/// The most flows that a table holds.
pub const FLOWS_MAX: usize = 16_384;

const SET_SIZE: usize = 8;
const SETS_MIN: usize = 8;
const SETS_MAX: usize = FLOWS_MAX / SET_SIZE;

const SECOND_NS: u64 = 1_000_000_000;

/// One conversation, seen from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FlowKey {
    /// The whole key of the member on the other side.
    pub(super) peer: PublicKey,
    /// The protocol.
    pub(super) protocol: Protocol,
    /// This side's address.
    pub(super) local: IpAddr,
    /// The other side's address.
    pub(super) remote: IpAddr,
    /// This side's port; the identifier of an echo.
    pub(super) local_port: u16,
    /// The other side's port; the identifier of an echo.
    pub(super) remote_port: u16,
}

/// Who sent a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// This member.
    Local,
    /// The peer.
    Peer,
}

/// How a flow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its packets pass; who opened it.
    Open(Side),
    /// What allowed it ended; who opened it.
    Revoked(Side),
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    key: FlowKey,
    opened_by: Side,
    /// Whether the rule that let it be opened no longer does. It is kept until it expires, so that
    /// packets of the other direction don't open it again.
    is_revoked: bool,
    /// Who was heard, and who has finished: bits of [`seen`] and [`finished`].
    progress: u8,
    expires_ns: u64,
}

const RESET: u8 = 0x10;

fn seen(side: Side) -> u8 {
    if side == Side::Local { 0x01 } else { 0x02 }
}

fn finished(side: Side) -> u8 {
    if side == Side::Local { 0x04 } else { 0x08 }
}

impl Flow {
    fn new(key: FlowKey, opened_by: Side) -> Self {
        Self { key, opened_by, is_revoked: false, progress: 0, expires_ns: 0 }
    }

    /// Takes note of a packet. The times are RFC 5382 §5 for TCP, RFC 4787 §4.3 for UDP and
    /// RFC 5508 §3.2 for ICMP, or longer.
    fn touch(&mut self, now_ns: u64, from: Side, flags: Option<TcpFlags>) {
        self.progress |= seen(from);
        if let Some(flags) = flags {
            if flags.opens() && from == self.opened_by {
                self.progress = seen(from);
            }
            self.progress |= if flags.finishes() { finished(from) } else { 0 };
            self.progress |= if flags.resets() { RESET } else { 0 };
        }
        let seconds = match self.key.protocol {
            Protocol::Tcp if self.is_over() => 120,
            Protocol::Tcp if self.is_established() => 7440,
            Protocol::Tcp => 240,
            Protocol::Udp => 300,
            Protocol::Icmp => 60,
        };
        self.expires_ns = now_ns.saturating_add(seconds * SECOND_NS);
    }

    fn standing(&self) -> Standing {
        if self.is_revoked {
            Standing::Revoked(self.opened_by)
        } else {
            Standing::Open(self.opened_by)
        }
    }

    fn is_established(&self) -> bool {
        self.progress & 0x03 == 0x03
    }

    fn is_over(&self) -> bool {
        self.progress & 0x0c == 0x0c || self.progress & RESET != 0
    }

    /// What is kept rather than given up: flows that this side opened before flows that a rule
    /// would let in again anyway, established ones before others, then the one used last.
    fn worth(&self) -> (bool, bool, bool, u64) {
        let ours = self.opened_by == Side::Local;
        (ours, !self.is_over(), self.is_established(), self.expires_ns)
    }
}

/// The table.
pub(super) struct FlowTable {
    keys: [u64; 2],
    slots: Vec<Option<Flow>>,
}

impl FlowTable {
    pub(super) fn new(keys: [u64; 2]) -> Self {
        Self { keys, slots: vec![None; SETS_MIN * SET_SIZE] }
    }

    /// Takes note of a packet of a flow that is open; returns how the flow stands, if it lives.
    pub(super) fn touch(
        &mut self,
        now_ns: u64,
        key: &FlowKey,
        from: Side,
        flags: Option<TcpFlags>,
    ) -> Option<Standing> {
        let flow = self.find(now_ns, key)?;
        if !flow.is_revoked {
            flow.touch(now_ns, from, flags);
        }
        Some(flow.standing())
    }

    /// How this flow stands, if it lives.
    pub(super) fn standing(&mut self, now_ns: u64, key: &FlowKey) -> Option<Standing> {
        self.find(now_ns, key).map(|flow| flow.standing())
    }

    /// Stops the flows with `peer` that are not allowed any more, by who opened them.
    pub(super) fn revoke(&mut self, peer: &PublicKey, is_allowed: impl Fn(Side, &FlowKey) -> bool) {
        for flow in self.slots.iter_mut().flatten().filter(|flow| flow.key.peer == *peer) {
            flow.is_revoked = !is_allowed(flow.opened_by, &flow.key);
        }
    }

    /// Starts (or starts over) a flow with a packet of `opened_by`; true if a living flow had to
    /// give way.
    pub(super) fn insert(
        &mut self,
        now_ns: u64,
        key: &FlowKey,
        opened_by: Side,
        flags: Option<TcpFlags>,
    ) -> bool {
        let mut flow = Flow::new(*key, opened_by);
        flow.touch(now_ns, opened_by, flags);
        loop {
            let room = |slot: &&mut Option<Flow>| {
                slot.as_ref().is_none_or(|old| old.expires_ns <= now_ns || old.key == *key)
            };
            if let Some(slot) = self.set(key).iter_mut().find(room) {
                *slot = Some(flow);
                return false;
            }
            if self.slots.len() >= SETS_MAX * SET_SIZE {
                break;
            }
            self.double(now_ns);
        }
        give_way(self.set(key), flow);
        true
    }

    /// How many slots are in memory.
    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn find(&mut self, now_ns: u64, key: &FlowKey) -> Option<&mut Flow> {
        let flows = self.set(key).iter_mut().flatten();
        flows.into_iter().find(|flow| flow.key == *key && flow.expires_ns > now_ns)
    }

    fn set(&mut self, key: &FlowKey) -> &mut [Option<Flow>] {
        let sets = self.slots.len() / SET_SIZE;
        // The number of sets is a power of two.
        let first = (hash(self.keys, key) as usize & (sets - 1)) * SET_SIZE;
        self.slots.get_mut(first..first + SET_SIZE).unwrap_or_default()
    }

    /// Twice as many sets: each set's flows part between two sets, so that none overflows.
    fn double(&mut self, now_ns: u64) {
        let doubled = vec![None; self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, doubled);
        for flow in old.into_iter().flatten().filter(|flow| flow.expires_ns > now_ns) {
            if let Some(slot) = self.set(&flow.key).iter_mut().find(|slot| slot.is_none()) {
                *slot = Some(flow);
            }
        }
    }
}

/// Puts a flow in the place of another one of a full set: see the module.
fn give_way(set: &mut [Option<Flow>], flow: Flow) {
    let share = |of: &Flow| {
        let others = set.iter().flatten().filter(|other| other.key.peer == of.key.peer).count();
        others + usize::from(of.key.peer == flow.key.peer)
    };
    // Between peers with equally many, the new flow's own.
    let rank = |of: &Flow| {
        let is_another_s = of.key.peer != flow.key.peer;
        (std::cmp::Reverse(share(of)), is_another_s, of.worth())
    };
    let ranks = set.iter().map(|slot| slot.as_ref().map(rank));
    let loser = ranks.enumerate().min_by_key(|(_, rank)| *rank).map(|(place, _)| place);
    if let Some(slot) = loser.and_then(|place| set.get_mut(place)) {
        *slot = Some(flow);
    }
}

/// A hash under a secret key: multiply and fold, eight bytes at a time. It need not be collision
/// resistant: whoever finds colliding flows without the key wins an eviction among own flows.
fn hash(keys: [u64; 2], key: &FlowKey) -> u64 {
    let [seed, secret] = keys;
    let fold = |state: u64, word: u64| {
        let product = u128::from(state ^ word) * u128::from(secret | 1);
        (product as u64) ^ (product >> 64) as u64
    };
    let address = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let (local, remote) = (address(key.local), address(key.remote));
    let ports = u64::from(key.local_port) << 16 | u64::from(key.remote_port);
    let words = [
        local as u64,
        (local >> 64) as u64,
        remote as u64,
        (remote >> 64) as u64,
        ports | (key.protocol as u64) << 32,
    ];
    let peer = key.peer.0.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    peer.chain(words).fold(seed, fold)
}
