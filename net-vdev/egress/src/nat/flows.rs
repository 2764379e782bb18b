//! The tables of a NAT: flows, the members that have them, and their shares of the limits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use net_vdev::PublicKey;
use slab::Slab;

use crate::counters::DropReason;
use crate::limits::{Bucket, Limits};
use crate::sockets::Token;
use crate::tcp::Stream;

/// The most members with a state here; one without flows gives way to the next.
const MEMBERS_MAX: usize = 8192;
/// A socket's token is the flow's place and how many flows there were before it.
const PLACE_BITS: u32 = 24;

/// What tells flows apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ends {
    pub(super) member: usize,
    /// The number of the transport; ICMP's for echo, whichever the family.
    pub(super) protocol: u8,
    /// The member's end. Of an echo the port is the identifier.
    pub(super) inner: SocketAddr,
    /// The other end as the member knows it.
    pub(super) outer: SocketAddr,
}

/// What a flow carries.
#[derive(Debug)]
pub(super) enum Carried {
    Tcp(Box<Stream>),
    Udp,
    Echo,
}

/// A flow and its socket.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) ends: Ends,
    pub(super) token: Token,
    pub(super) carried: Carried,
    pub(super) is_readable: bool,
    pub(super) is_writable: bool,
    /// When something went through last.
    pub(super) touched_ns: u64,
    /// What it has of the buffers' budget.
    budget_bytes: usize,
    armed_ns: Option<u64>,
    is_dirty: bool,
}

/// What a member has.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) key: PublicKey,
    connections: usize,
    udp_flows: usize,
    echo_flows: usize,
    buffer_bytes: usize,
    opens: Bucket,
    /// What it sends, and what is sent to it.
    pub(super) out: Caps,
    pub(super) into: Caps,
}

/// Caps in one direction.
#[derive(Debug)]
pub(super) struct Caps {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Caps {
    fn new(now_ns: u64, limits: &Limits) -> Self {
        // A second's worth may come at once: less would hurt TCP, which sends in bursts.
        let bucket = |per_s: Option<u64>| per_s.map(|per_s| Bucket::new(now_ns, per_s, per_s));
        Self { bytes: bucket(limits.bytes_per_s), packets: bucket(limits.packets_per_s) }
    }

    pub(super) fn take(&mut self, now_ns: u64, bytes: usize, packets: usize) -> bool {
        let take = |bucket: &mut Option<Bucket>, count: usize| {
            bucket.as_mut().is_none_or(|bucket| bucket.take(now_ns, count as u64))
        };
        take(&mut self.packets, packets) && take(&mut self.bytes, bytes)
    }
}

/// All flows.
#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    flows: Slab<Flow>,
    by_ends: BTreeMap<Ends, usize>,
    members: Slab<Member>,
    by_key: BTreeMap<PublicKey, usize>,
    /// The host's port that a member's UDP port has, and how many flows use it.
    ports: BTreeMap<(usize, SocketAddr), (u16, usize)>,
    timers: BTreeSet<(u64, usize)>,
    dirty: Vec<usize>,
    buffer_bytes: usize,
    opened: u64,
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            flows: Slab::new(),
            by_ends: BTreeMap::new(),
            members: Slab::new(),
            by_key: BTreeMap::new(),
            ports: BTreeMap::new(),
            timers: BTreeSet::new(),
            dirty: Vec::new(),
            buffer_bytes: 0,
            opened: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    pub(super) fn get(&self, place: usize) -> Option<&Flow> {
        self.flows.get(place)
    }

    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut Flow> {
        self.flows.get_mut(place)
    }

    pub(super) fn find(&self, ends: &Ends) -> Option<usize> {
        self.by_ends.get(ends).copied()
    }

    /// The flow whose socket it is, unless that is gone.
    pub(super) fn place_of(&self, token: Token) -> Option<usize> {
        let place = usize::try_from(token.0 & ((1 << PLACE_BITS) - 1)).ok()?;
        self.flows.get(place).filter(|flow| flow.token == token).map(|_| place)
    }

    pub(super) fn member(&mut self, place: usize) -> Option<&mut Member> {
        self.members.get_mut(place)
    }

    pub(super) fn key_of(&self, place: usize) -> Option<PublicKey> {
        self.members.get(place).map(|member| member.key)
    }

    pub(super) fn member_place(&self, key: &PublicKey) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// The place of a member, which it gets with its first packet.
    pub(super) fn enter(&mut self, now_ns: u64, key: &PublicKey) -> Option<usize> {
        if let Some(place) = self.by_key.get(key) {
            return Some(*place);
        }
        if self.members.len() >= MEMBERS_MAX {
            let is_idle =
                |member: &Member| member.connections + member.udp_flows + member.echo_flows == 0;
            let idle = self.members.iter().find(|(_, member)| is_idle(member));
            let (idle, idle_key) = idle.map(|(place, member)| (place, member.key))?;
            self.members.remove(idle);
            self.by_key.remove(&idle_key);
        }
        let opens = u64::from(self.limits.opens_per_s);
        let place = self.members.insert(Member {
            key: *key,
            connections: 0,
            udp_flows: 0,
            echo_flows: 0,
            buffer_bytes: 0,
            opens: Bucket::new(now_ns, opens, 10 * opens),
            out: Caps::new(now_ns, &self.limits),
            into: Caps::new(now_ns, &self.limits),
        });
        self.by_key.insert(*key, place);
        Some(place)
    }

    /// Whether the member may have one more flow that takes so much of the buffers. Of datagrams
    /// the flow that was silent for longest gives way; returns its place, to be closed.
    pub(super) fn admit(
        &mut self,
        now_ns: u64,
        ends: &Ends,
        budget_bytes: usize,
    ) -> Result<Option<usize>, DropReason> {
        let limits = &self.limits;
        let member = self.members.get_mut(ends.member).ok_or(DropReason::TooMany)?;
        if !member.opens.take(now_ns, 1) {
            return Err(DropReason::TooFast);
        }
        let (has, most) = match ends.protocol {
            crate::packet::TCP => (member.connections, limits.connections_max),
            crate::packet::UDP => (member.udp_flows, limits.udp_flows_max),
            _ => (member.echo_flows, limits.echo_flows_max),
        };
        let is_full = has >= most;
        if is_full && ends.protocol == crate::packet::TCP {
            return Err(DropReason::TooMany);
        }
        let over = member.buffer_bytes + budget_bytes > limits.buffer_bytes_per_member
            || self.buffer_bytes + budget_bytes > limits.buffer_bytes;
        if over {
            return Err(DropReason::NoBuffers);
        }
        if !is_full {
            let has_room = self.flows.len() < limits.flows_max.min(1 << PLACE_BITS);
            return if has_room { Ok(None) } else { Err(DropReason::TooMany) };
        }
        let same = |flow: &(usize, &Flow)| {
            flow.1.ends.member == ends.member && flow.1.ends.protocol == ends.protocol
        };
        let oldest = self.flows.iter().filter(same).min_by_key(|(_, flow)| flow.touched_ns);
        oldest.map(|(place, _)| Some(place)).ok_or(DropReason::TooMany)
    }

    /// The token for the socket of the next flow.
    pub(super) fn next_token(&mut self) -> Token {
        self.opened += 1;
        Token(self.opened << PLACE_BITS | self.flows.vacant_key() as u64)
    }

    /// Adds a flow whose socket has the token of [`Table::next_token`].
    pub(super) fn insert(
        &mut self,
        now_ns: u64,
        ends: Ends,
        token: Token,
        carried: Carried,
    ) -> usize {
        let place = self.flows.insert(Flow {
            ends,
            token,
            carried,
            is_readable: false,
            is_writable: false,
            touched_ns: now_ns,
            budget_bytes: 0,
            armed_ns: None,
            is_dirty: false,
        });
        self.by_ends.insert(ends, place);
        if let Some(member) = self.members.get_mut(ends.member) {
            *member.count(ends.protocol) += 1;
        }
        self.charge(place);
        place
    }

    /// Brings the budget up to what the flow may fill now.
    pub(super) fn charge(&mut self, place: usize) {
        let Some(flow) = self.flows.get_mut(place) else { return };
        let Carried::Tcp(stream) = &flow.carried else { return };
        let old = std::mem::replace(&mut flow.budget_bytes, stream.budget_bytes());
        let member = self.members.get_mut(flow.ends.member);
        let counts = member.map(|member| &mut member.buffer_bytes).into_iter();
        for count in counts.chain([&mut self.buffer_bytes]) {
            *count = (*count + flow.budget_bytes).saturating_sub(old);
        }
    }

    /// Whether so much more of the buffers may be taken for a flow.
    pub(super) fn affords(&self, place: usize, bytes: usize) -> bool {
        let member = self.flows.get(place).and_then(|flow| self.members.get(flow.ends.member));
        member.is_some_and(|member| {
            // A quarter is left for new connections: growth is a comfort, a connection is none.
            member.buffer_bytes + bytes <= self.limits.buffer_bytes_per_member / 4 * 3
                && self.buffer_bytes + bytes <= self.limits.buffer_bytes / 4 * 3
        })
    }

    /// Takes a flow out; its socket is to be closed.
    pub(super) fn remove(&mut self, place: usize) -> Option<Flow> {
        let flow = self.flows.try_remove(place)?;
        if self.by_ends.get(&flow.ends) == Some(&place) {
            self.by_ends.remove(&flow.ends);
        }
        if let Some(due_ns) = flow.armed_ns {
            self.timers.remove(&(due_ns, place));
        }
        self.buffer_bytes = self.buffer_bytes.saturating_sub(flow.budget_bytes);
        if let Some(member) = self.members.get_mut(flow.ends.member) {
            let count = member.count(flow.ends.protocol);
            *count = count.saturating_sub(1);
            member.buffer_bytes = member.buffer_bytes.saturating_sub(flow.budget_bytes);
        }
        let port = (flow.ends.member, flow.ends.inner);
        if flow.ends.protocol == crate::packet::UDP
            && let Some((_, users)) = self.ports.get_mut(&port)
        {
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.ports.remove(&port);
            }
        }
        Some(flow)
    }

    /// The places of all flows of a member.
    pub(super) fn flows_of(&self, member: usize) -> Vec<usize> {
        let own = self.flows.iter().filter(|(_, flow)| flow.ends.member == member);
        own.map(|(place, _)| place).collect()
    }

    /// The host's port of a member's UDP port, if it has one.
    pub(super) fn port(&self, ends: &Ends) -> Option<u16> {
        self.ports.get(&(ends.member, ends.inner)).map(|(port, _)| *port)
    }

    /// One more flow uses a port of the host.
    pub(super) fn use_port(&mut self, ends: &Ends, port: u16) {
        self.ports.entry((ends.member, ends.inner)).or_insert((port, 0)).1 += 1;
    }

    /// Looks at a flow at this time, if not earlier.
    pub(super) fn arm(&mut self, place: usize, due_ns: u64) {
        let Some(flow) = self.flows.get_mut(place) else { return };
        // A timer that goes off too early is cheaper than moving it with each packet.
        if flow.armed_ns.is_some_and(|armed_ns| armed_ns <= due_ns) {
            return;
        }
        if let Some(armed_ns) = flow.armed_ns.replace(due_ns) {
            self.timers.remove(&(armed_ns, place));
        }
        self.timers.insert((due_ns, place));
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|(due_ns, _)| *due_ns)
    }

    /// A flow that is to be looked at.
    pub(super) fn pop_due(&mut self, now_ns: u64) -> Option<usize> {
        let (_, place) = self.timers.first().filter(|(due_ns, _)| *due_ns <= now_ns).copied()?;
        self.timers.pop_first();
        if let Some(flow) = self.flows.get_mut(place) {
            flow.armed_ns = None;
        }
        Some(place)
    }

    /// Something happened to a flow: it is looked at at the end of the turn.
    pub(super) fn mark(&mut self, place: usize) {
        if let Some(flow) = self.flows.get_mut(place)
            && !std::mem::replace(&mut flow.is_dirty, true)
        {
            self.dirty.push(place);
        }
    }

    pub(super) fn has_marked(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The flows that something happened to.
    pub(super) fn take_marked(&mut self) -> Vec<usize> {
        let marked = std::mem::take(&mut self.dirty);
        for place in &marked {
            if let Some(flow) = self.flows.get_mut(*place) {
                flow.is_dirty = false;
            }
        }
        marked
    }
}

impl Member {
    fn count(&mut self, protocol: u8) -> &mut usize {
        match protocol {
            crate::packet::TCP => &mut self.connections,
            crate::packet::UDP => &mut self.udp_flows,
            _ => &mut self.echo_flows,
        }
    }
}
