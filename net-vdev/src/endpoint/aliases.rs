//! Aliases: addresses that other nodes give their workloads. A packet for one goes to the workload's
//! key, at the workload's own address; what comes back in that flow has the alias in its source again.
//!
//! * An alias counts as long as a certificate does that the owner was shown and verified
//!   ([`Alias::verify`]); it names the whole key, and the session is with that key.
//! * On the wire there is no alias: what is sealed has the workload's own address, and a peer that
//!   writes an alias into a source is refused. So nothing is let in by one, and rules are about keys.
//! * Which flows are about an alias is in the firewall's table: they have it as their remote address.
//!   If two flows of one peer have the same ports, an answer is that of the flow without an alias.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::control::Control;
use super::{DropReason, Endpoint, Event};
use crate::certificate::{ALIAS_BYTES, Alias};
use crate::firewall::{Original, Packet, Transport};
use crate::identity::PublicKey;
use crate::signature::RANDOM_BYTES;

/// How long an alias holds that is signed now, in seconds.
pub const ALIAS_LIFE_S: u64 = 300;
/// So much earlier than now it begins, for those whose clocks are behind.
const BACKDATED_S: u64 = 60;
/// How many aliases are known at a time.
pub const ALIASES_MAX: usize = 256;
/// How many one workload may have here: when it moves, that of its former node ends.
const OF_ONE_MAX: usize = 4;
/// So many seconds before it expires an alias that is in use is asked for again.
pub const ALIAS_ASK_BEFORE_S: u64 = 100;
/// How often.
const ASK_PAUSE_NS: u64 = 5_000_000_000;

/// Where the addresses are in an IPv6 packet, and in one that an ICMP error quotes.
const SOURCE_AT: usize = 8;
const DESTINATION_AT: usize = 24;
const QUOTED_AT: usize = 48;

/// An alias and its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedAlias {
    /// What the certificate says.
    pub alias: Alias,
    /// Its bytes.
    pub certificate: [u8; ALIAS_BYTES],
}

/// The aliases that count now.
pub(super) struct Aliases {
    known: BTreeMap<Ipv6Addr, Known>,
    /// The same by the place of the workload among the peers.
    by_peer: BTreeSet<(usize, Ipv6Addr)>,
    /// When the first of them ends.
    first_end_ns: u64,
}

struct Known {
    /// The workload's place among the peers, and its own address.
    index: usize,
    workload: Ipv6Addr,
    ends_ns: u64,
    /// When it is asked for again if it is in use.
    ask_ns: u64,
}

impl Default for Aliases {
    fn default() -> Self {
        Self { known: BTreeMap::new(), by_peer: BTreeSet::new(), first_end_ns: u64::MAX }
    }
}

impl Aliases {
    fn insert(&mut self, alias: Ipv6Addr, known: Known) {
        self.remove(&alias);
        self.by_peer.insert((known.index, alias));
        self.first_end_ns = self.first_end_ns.min(known.ends_ns);
        self.known.insert(alias, known);
    }

    /// An alias counts no more.
    pub(super) fn remove(&mut self, alias: &Ipv6Addr) {
        if let Some(known) = self.known.remove(alias) {
            self.by_peer.remove(&(known.index, *alias));
        }
        if self.known.is_empty() {
            self.first_end_ns = u64::MAX;
        }
    }

    fn expire(&mut self, now_ns: u64) {
        if now_ns >= self.first_end_ns {
            let Self { known, by_peer, .. } = self;
            known.retain(|_, known| now_ns < known.ends_ns);
            by_peer.retain(|(_, alias)| known.contains_key(alias));
            let ends = known.values().map(|known| known.ends_ns);
            self.first_end_ns = ends.min().unwrap_or(u64::MAX);
        }
    }

    fn of_peer(&self, index: usize) -> impl Iterator<Item = Ipv6Addr> {
        let all = (index, Ipv6Addr::UNSPECIFIED)..=(index, Ipv6Addr::from_bits(u128::MAX));
        self.by_peer.range(all).map(|(_, alias)| *alias)
    }

    /// A peer is forgotten.
    pub(super) fn forget_peer(&mut self, index: usize) {
        let aliases: Vec<_> = self.of_peer(index).collect();
        aliases.iter().for_each(|alias| self.remove(alias));
    }

    /// The address of the workload that has this one as an alias.
    pub(super) fn workload(&self, address: &IpAddr) -> Option<Ipv6Addr> {
        let IpAddr::V6(address) = address else { return None };
        self.known.get(address).map(|known| known.workload)
    }
}

impl Endpoint {
    /// Signs that a workload has its alias on this member, which is a node, from now on for
    /// [`ALIAS_LIFE_S`]. `None` if the address is this member's own, which nobody will see.
    pub fn sign_alias(&mut self, now_ns: u64, workload: &PublicKey) -> Option<SignedAlias> {
        let unix_s = self.unix_s(now_ns);
        let held = unix_s.saturating_sub(BACKDATED_S)..unix_s.saturating_add(ALIAS_LIFE_S);
        let alias = Alias::new(self.key, *workload, held);
        let mut random = [0; RANDOM_BYTES];
        self.random.fill(&mut random);
        let certificate = alias.sign(&self.identity, &random).ok()?;
        Some(SignedAlias { alias, certificate: certificate.try_into().ok()? })
    }

    /// Asks a peer, a node, whose alias an address of its /64 is; an [`Event::Alias`] may follow.
    /// Returns whether there is a session to ask on.
    pub fn ask_alias(&mut self, node: &PublicKey, address: Ipv6Addr) -> bool {
        self.say(node, &Control::AskAlias(address))
    }

    /// Answers a peer that asked, or tells it that an alias is nobody's any more.
    pub fn tell_alias(
        &mut self,
        to: &PublicKey,
        address: Ipv6Addr,
        certificate: Option<&[u8; ALIAS_BYTES]>,
    ) -> bool {
        self.say(to, &Control::Alias { address, certificate })
    }

    fn say(&mut self, to: &PublicKey, message: &Control<'_>) -> bool {
        let Some(index) = self.by_key.get(to).copied() else { return false };
        let peer = self.peers.get(index).filter(|peer| peer.current.is_some());
        let Some(path) = peer.and_then(|peer| peer.paths.current()) else { return false };
        let sent = self.seal_control(index, path, message);
        sent.map_err(|reason| self.counters.drop(reason)).is_ok()
    }

    /// Takes an alias that a certificate gives a workload, if packets wait for it or go there. The
    /// certificate was verified of late.
    pub fn learn_alias(&mut self, now_ns: u64, alias: &Alias) {
        self.aliases.expire(now_ns);
        let is_known = self.aliases.known.contains_key(&alias.address);
        if !is_known && !self.unresolved.has(&alias.address) {
            return;
        }
        let own_ns = |unix_s: u64| {
            unix_s.saturating_mul(1_000_000_000).saturating_sub(self.unix_time_at_zero_ns)
        };
        let ends_ns = own_ns(alias.counts_until_unix_s());
        let ask_ns = own_ns(alias.expires_unix_s.saturating_sub(ALIAS_ASK_BEFORE_S));
        let has_room = is_known || self.aliases.known.len() < ALIASES_MAX;
        if now_ns >= ends_ns || !has_room || !self.learn(now_ns, &alias.workload, &[]) {
            return self.give_up(&alias.address);
        }
        let Some(index) = self.by_key.get(&alias.workload).copied() else { return };
        if !is_known && self.aliases.of_peer(index).count() >= OF_ONE_MAX {
            return self.give_up(&alias.address);
        }
        let workload = alias.workload.address();
        // By a clock that is ahead it is late as soon as it comes.
        let ask_ns = ask_ns.max(now_ns.saturating_add(ASK_PAUSE_NS));
        let known = Known { index, workload, ends_ns, ask_ns };
        self.aliases.insert(alias.address, known);
        for packet in self.unresolved.take(&alias.address) {
            self.send_packet(now_ns, &packet);
        }
    }

    /// The aliases that count now, and whose they are.
    pub fn aliases(&self, now_ns: u64) -> impl Iterator<Item = (Ipv6Addr, PublicKey)> {
        let living = self.aliases.known.iter().filter(move |(_, known)| now_ns < known.ends_ns);
        living.filter_map(|(address, it)| Some((*address, self.peers.get(it.index)?.key)))
    }

    /// A packet is about to go to an address: if that is an alias, it has not ended, and a new
    /// certificate is asked for in time.
    pub(super) fn use_alias(&mut self, now_ns: u64, address: &IpAddr) {
        self.aliases.expire(now_ns);
        let IpAddr::V6(address) = address else { return };
        let Some(known) = self.aliases.known.get_mut(address) else { return };
        if now_ns >= known.ask_ns {
            known.ask_ns = now_ns.saturating_add(ASK_PAUSE_NS);
            self.tell(Event::Resolve(*address));
        }
    }

    /// The packet as it goes to the peer: with the workload's own address in the place of an alias.
    pub(super) fn without_alias<'a>(&self, packet: &Packet, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let (Some(workload), IpAddr::V6(alias)) =
            (self.aliases.workload(&packet.destination), packet.destination)
        else {
            return Cow::Borrowed(bytes);
        };
        let mut copy = bytes.to_vec();
        put(&mut copy, DESTINATION_AT, &alias, &workload);
        if matches!(packet.transport, Transport::Error(_)) {
            put(&mut copy, QUOTED_AT + SOURCE_AT, &alias, &workload);
        }
        Cow::Owned(copy)
    }

    /// The packet as this member sees it: one of peer `index` that answers what went to an alias has
    /// that as its source. `None` for all others.
    pub(super) fn with_alias(
        &mut self,
        now_ns: u64,
        index: usize,
        packet: &Packet,
    ) -> Result<Option<Packet>, DropReason> {
        if self.aliases.known.is_empty() {
            return Ok(None);
        }
        self.aliases.expire(now_ns);
        if self.aliases.workload(&packet.source).is_some() {
            return Err(DropReason::InboundSource);
        }
        let Some(peer) = self.peers.get(index) else { return Ok(None) };
        let own = peer.key.address();
        let aliases = self.aliases.of_peer(index).filter(|_| packet.source == own);
        let mut aliased = aliases.map(|alias| from_alias(packet, alias, own)).peekable();
        if aliased.peek().is_none() || self.firewall.expects(now_ns, &peer.key, packet) {
            return Ok(None);
        }
        Ok(aliased.find(|packet| self.firewall.expects(now_ns, &peer.key, packet)))
    }
}

/// The packet with an alias in the place of the address of the workload that sent it.
fn from_alias(packet: &Packet, alias: Ipv6Addr, workload: Ipv6Addr) -> Packet {
    let quotes = |original: Original| {
        let is_meant = original.destination == IpAddr::V6(workload);
        let destination = if is_meant { alias.into() } else { original.destination };
        Original { destination, ..original }
    };
    let transport = match packet.transport {
        Transport::Error(original) => Transport::Error(original.map(quotes)),
        other => other,
    };
    Packet { source: alias.into(), transport, ..*packet }
}

/// The bytes of a packet as this member sees it: `aliased` is what [`Endpoint::with_alias`] made of
/// `packet`.
pub(super) fn restored(packet: &Packet, aliased: &Packet, bytes: &[u8]) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    if let (IpAddr::V6(workload), IpAddr::V6(alias)) = (packet.source, aliased.source) {
        put(&mut copy, SOURCE_AT, &workload, &alias);
        if matches!(packet.transport, Transport::Error(_)) {
            put(&mut copy, QUOTED_AT + DESTINATION_AT, &workload, &alias);
        }
    }
    copy
}

/// Puts an address in the place of another, if that is there. The checksum stays right: both have the
/// same sum.
fn put(bytes: &mut [u8], at: usize, old: &Ipv6Addr, new: &Ipv6Addr) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<16>())
        && *place == old.octets()
    {
        *place = new.octets();
    }
}
