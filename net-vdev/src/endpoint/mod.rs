//! One member of the mesh: packets in and out on one side, datagrams on the other.
//!
//! An [`Endpoint`] has no socket, no clock and no randomness of its own. Its owner passes packets
//! of the member to [`Endpoint::send_packet`] and datagrams of the network to
//! [`Endpoint::receive`], which hands packets for the member to a function; after either, and after
//! [`Endpoint::handle_deadline`], it takes what [`Endpoint::poll_transmit`] and
//! [`Endpoint::poll_event`] have. `now_ns` never goes back.
//!
//! Nothing happens by itself while there is no traffic: no keepalive, no periodic timer. A deadline
//! exists only for a handshake under way (at most a minute), for dropping a session's keys (once,
//! three minutes after its handshake), and for probing the ways to a peer that has several and was
//! sent to in the last two seconds.
//!
//! Memory is bounded whatever arrives: all queues have limits, and a datagram of a stranger leaves
//! no state behind.
//!
//! An endpoint is never copied, not even with the memory that it lies in: two copies of a session
//! would seal two packets with one counter.
//!
//! ```
//! use net_vdev::{Config, Endpoint, Peer, PrivateKey};
//!
//! # fn main() -> Result<(), net_vdev::ConfigError> {
//! let (one, two) = (PrivateKey::new([1; 32]), PrivateKey::new([2; 32]));
//! let mut config = Config::new(one, 1_700_000_000_000_000_000);
//! config.peers.push(Peer {
//!     key: two.public(),
//!     endpoint: Some(([192, 0, 2, 2], 7000).into()),
//!     addresses: Vec::new(),
//! });
//! let mut endpoint = Endpoint::new(config, [3; 32])?;
//! # let packet = [];
//! endpoint.send_packet(0, &packet);
//! while let Some(transmit) = endpoint.poll_transmit() {
//!     // socket.send_to(&transmit.bytes, transmit.to)
//!     endpoint.recycle(transmit.bytes);
//! }
//! # Ok(())
//! # }
//! ```

mod aliases;
mod certificates;
mod config;
mod control;
mod counters;
mod events;
mod exit;
mod fragments;
mod handshakes;
mod limit;
mod local;
mod paths;
mod peer;
mod probing;
mod relay;
mod resolve;
mod roster;
mod streak;
mod streams;
mod superframe;
mod transmit;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

pub use aliases::{ALIAS_ASK_BEFORE_S, ALIAS_LIFE_S, ALIASES_MAX, SignedAlias};
use aliases::{Aliases, restored};
pub use certificates::LABELS_MAX;
pub use config::{Config, ConfigError, Peer, Strangers};
pub use control::{CANDIDATES_MAX, Control};
pub use counters::{Counters, DropReason, Occupancy};
pub use events::{EVENTS_MAX, Event};
pub use exit::Exits;
pub(crate) use exit::OUTSIDE_PREFIX;
use limit::{Bucket, SourceBuckets};
pub use local::OddMessage;
pub use paths::{PATHS_MAX, Path, PathView};
use peer::{PeerState, WAITING_MAX};
pub use relay::Hop;
use resolve::Unresolved;
pub use roster::PeerView;
use slab::Slab;
use streak::Streak;
pub use transmit::Transmit;
use transmit::Transmits;

use crate::cookie::Secrets;
use crate::firewall::{Firewall, Packet, Policy, Rule};
use crate::identity::{PrivateKey, PublicKey};
use crate::offload::VirtioNetHeader;
use crate::random::Generator;
use crate::reassembly::Reassembly;
use crate::session::handshake::CipherSupport;
use crate::session::{OpenError, PostQuantum, Session};
use crate::wire::{self, Datagram, MTU, MacKey, OPEN_CHECKSUM};

pub use transmit::TRANSMITS_MAX;
/// If a peer was sent to for so long and nothing came back, a handshake finds out whether it still
/// has the session: the notice that it would send may not come through.
const SILENCE_NS: u64 = 15_000_000_000;
/// How often a cookie may be sent, and how many at once. A cookie costs a few microseconds and is
/// shorter than what it answers, and one that is not sent may be that of a true peer: this only
/// keeps a flood from taking all of the processor.
const COOKIE_INTERVAL_NS: u64 = 250_000;
const COOKIE_BURST: u64 = 100;

/// One member of the mesh.
pub struct Endpoint {
    identity: PrivateKey,
    key: PublicKey,
    /// The address that follows from the key: to compute it takes as long as to seal a packet.
    address: Ipv6Addr,
    mac_key: MacKey,
    ciphers: CipherSupport,
    strangers_welcome: Strangers,
    is_routed: bool,
    exits: Exits,
    /// The address of the exit that this member goes out through.
    exit_address: Option<IpAddr>,
    post_quantum: PostQuantum,
    unix_time_at_zero_ns: u64,
    newest_initiation_unix_ns: u64,
    /// The number of this member's last announcement.
    announced: u64,
    addresses: BTreeSet<IpAddr>,
    peers: Slab<PeerState>,
    by_key: BTreeMap<PublicKey, usize>,
    /// Which peer has an address: where packets go, and who may send from there.
    routes: BTreeMap<IpAddr, usize>,
    /// Which peer a session or a handshake under way belongs to, by this side's index.
    indices: BTreeMap<u32, usize>,
    timers: BTreeSet<(u64, usize)>,
    /// Packets for members whose key is not known yet.
    unresolved: Unresolved,
    aliases: Aliases,
    firewall: Firewall,
    /// What the last packet of this batch was let in as.
    streak: Option<Streak>,
    /// This member's certificates, as it shows them.
    certificates: Vec<u8>,
    random: Generator,
    /// Where this member may be reached: as its owner says, and as peers saw it.
    candidates: Vec<SocketAddr>,
    observed: VecDeque<SocketAddr>,
    /// How many pings were sent.
    pings: u64,
    /// Limits the initiations that are read from addresses of no peer.
    strangers: Bucket,
    /// Limits those of them that prove their address by a cookie, by address.
    proven_strangers: SourceBuckets,
    cookie_secrets: Secrets,
    /// Limits the cookies that are sent.
    cookies: Bucket,
    /// Handshake datagrams that came in pieces.
    pieces: Reassembly,
    /// Limits the unknown-session notices that are sent.
    notices: Bucket,
    transmits: Transmits,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Endpoint {
    /// Builds a member. `seed` is fresh random bytes, never used before: ephemeral keys follow
    /// from it.
    ///
    /// # Errors
    /// A [`ConfigError`] if two members would be confused.
    pub fn new(config: Config, seed: [u8; 32]) -> Result<Self, ConfigError> {
        let mut random = Generator::new(seed);
        let key = config.private_key.public();
        let policy = Policy { ingress: config.rules, egress: config.egress, caps: config.caps };
        let mut endpoint = Self {
            mac_key: MacKey::of(&key),
            key,
            address: key.address(),
            identity: config.private_key,
            ciphers: config.ciphers,
            strangers_welcome: config.strangers,
            is_routed: config.is_routed,
            exits: config.exits,
            exit_address: config.exits.address(),
            post_quantum: config.post_quantum,
            unix_time_at_zero_ns: config.unix_time_at_zero_ns,
            newest_initiation_unix_ns: 0,
            announced: 0,
            addresses: BTreeSet::new(),
            peers: Slab::new(),
            by_key: BTreeMap::new(),
            routes: BTreeMap::new(),
            indices: BTreeMap::new(),
            timers: BTreeSet::new(),
            unresolved: Unresolved::default(),
            aliases: Aliases::default(),
            firewall: Firewall::new(&policy, [random.u64(), random.u64()]),
            streak: None,
            certificates: Vec::new(),
            candidates: Vec::new(),
            observed: VecDeque::new(),
            pings: 0,
            strangers: Bucket::new(20_000_000, 50),
            proven_strangers: SourceBuckets::new(random.seed(), Bucket::new(200_000_000, 10)),
            cookie_secrets: Secrets::new(&mut random),
            cookies: Bucket::new(COOKIE_INTERVAL_NS, COOKIE_BURST),
            pieces: Reassembly::new(random.seed()),
            random,
            notices: Bucket::new(20_000_000, 20),
            transmits: Transmits::default(),
            events: VecDeque::new(),
            counters: Counters::default(),
        };
        for address in config.addresses.into_iter().chain([endpoint.address.into()]) {
            check_address(address)?;
            endpoint.addresses.insert(address);
        }
        config.peers.into_iter().try_for_each(|peer| endpoint.list(peer))?;
        Ok(endpoint)
    }

    /// The member's public key.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// The address that follows from the member's key.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// The member's own addresses.
    #[must_use]
    pub fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.addresses
    }

    /// What the endpoint has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { flows_evicted: self.firewall.evictions(), ..self.counters }
    }

    /// What the endpoint holds now.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let waiting = |(_, peer): (usize, &PeerState)| peer.waiting.len() + peer.halves.len();
        Occupancy {
            peers: self.peers.len(),
            indices: self.indices.len(),
            timers: self.timers.len(),
            waiting: self.peers.iter().map(waiting).sum::<usize>() + self.unresolved.len(),
            transmits: self.transmits.len(),
            events: self.events.len(),
            piece_bytes: self.pieces.bytes(),
            flow_slots: self.firewall.flow_capacity(),
        }
    }

    /// Goes by these rules from now on; flows that are open go on.
    pub fn set_rules(&mut self, rules: &[Rule]) {
        self.firewall.set_rules(rules);
    }

    /// Sends an IP packet of this member. What may not or can't be sent is dropped and counted.
    pub fn send_packet(&mut self, now_ns: u64, bytes: &[u8]) {
        if let Err(reason) = self.try_send(now_ns, bytes) {
            self.counters.drop(reason);
        }
    }

    fn try_send(&mut self, now_ns: u64, bytes: &[u8]) -> Result<(), DropReason> {
        let packet = Packet::parse(bytes).map_err(|_| DropReason::OutboundMalformed)?;
        if packet.len > MTU {
            return Err(DropReason::OutboundOversize);
        }
        if !self.has(&packet.source) {
            return Err(DropReason::OutboundSource);
        }
        let bytes = bytes.get(..packet.len).unwrap_or_default();
        self.use_alias(now_ns, &packet.destination);
        let destination = self.through(packet.destination);
        let Some(index) = self.routes.get(&destination).copied() else {
            return self.ask_for(now_ns, destination, bytes);
        };
        self.ask_to_send(now_ns, index, &packet, 1)?;
        let bytes = &*self.without_alias(&packet, bytes);
        if self.takes_local(index, 1) {
            return self.send_local(now_ns, index, &VirtioNetHeader::default(), bytes);
        }
        self.send_or_wait(now_ns, index, bytes)
    }

    /// Sends a packet on the peer's session, or keeps it until there is one.
    fn send_or_wait(&mut self, now_ns: u64, index: usize, packet: &[u8]) -> Result<(), DropReason> {
        self.drop_dead_sessions(now_ns, index);
        let Some(peer) = self.peers.get_mut(index) else { return Ok(()) };
        if peer.current.is_some() {
            return self.send_sealed(now_ns, index, packet);
        }
        if peer.paths.current().is_none() && peer.next.is_none() {
            return Err(DropReason::OutboundNoEndpoint);
        }
        peer.waiting.push_back(packet.to_vec());
        let overdue = peer.waiting.len() > WAITING_MAX;
        let oldest = if overdue { peer.waiting.pop_front() } else { None };
        self.begin_handshake(now_ns, index);
        if oldest.is_some() { Err(DropReason::OutboundWaiting) } else { Ok(()) }
    }

    /// Seals a packet with the peer's current session and queues it. An empty packet confirms a
    /// session.
    fn send_sealed(&mut self, now_ns: u64, index: usize, packet: &[u8]) -> Result<(), DropReason> {
        self.wake(now_ns, index);
        let Some(peer) = self.peers.get_mut(index) else { return Ok(()) };
        let Some(path) = peer.paths.current() else {
            return Err(DropReason::OutboundNoEndpoint);
        };
        self.seal_packet(now_ns, index, path, packet)?;
        self.after_sending(now_ns, index);
        Ok(())
    }

    /// Something was sent to the peer: shows it certificates if that is due, and starts a handshake if
    /// its session is old or it is silent.
    fn after_sending(&mut self, now_ns: u64, index: usize) {
        self.show_again(now_ns, index);
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(session) = peer.current.as_ref() else { return };
        let since_ns = *peer.unanswered_since_ns.get_or_insert(now_ns);
        let is_silent = now_ns.saturating_sub(since_ns) >= SILENCE_NS;
        if is_silent {
            peer.unanswered_since_ns = Some(now_ns);
        }
        if is_silent || session.wants_rekey(now_ns) {
            self.begin_handshake(now_ns, index);
        }
    }

    /// Starts a handshake with a peer whose session is old.
    fn renew_if_old(&mut self, now_ns: u64, index: usize) {
        let session = self.peers.get(index).and_then(|peer| peer.current.as_ref());
        if session.is_some_and(|session| session.wants_rekey(now_ns)) {
            self.begin_handshake(now_ns, index);
        }
    }

    /// Takes datagrams of `stride` bytes each that came on a path from outside, the last perhaps
    /// shorter; their bytes are opened in place, and `deliver` gets each packet for this member, with
    /// the checksum that its sender left open, if any. What does not verify is dropped and counted.
    pub fn receive(
        &mut self,
        now_ns: u64,
        from: Path,
        batch: &mut [u8],
        stride: usize,
        deliver: &mut dyn FnMut(&VirtioNetHeader, &[u8]),
    ) {
        self.begin_batch();
        for datagram in batch.chunks_mut(stride.max(1)) {
            self.receive_next(now_ns, from, datagram, deliver);
        }
    }

    /// What is received from now on is of another batch.
    pub fn begin_batch(&mut self) {
        self.streak = None;
    }

    /// Takes the next datagram of a batch that its owner takes apart, as [`Endpoint::receive`] takes
    /// each of a whole one. Between two of them of one batch nothing changes that a packet is judged by.
    pub fn receive_next(
        &mut self,
        now_ns: u64,
        from: Path,
        bytes: &mut [u8],
        deliver: &mut dyn FnMut(&VirtioNetHeader, &[u8]),
    ) {
        let datagram = wire::parse(bytes);
        if !matches!(datagram, Ok(Datagram::Data { .. })) {
            self.streak = None;
        }
        let outcome = match datagram {
            Err(_) => Err(DropReason::Wire),
            Ok(Datagram::Data { receiver, counter }) => {
                self.receive_data(now_ns, from, (receiver, counter), bytes, deliver)
            }
            Ok(Datagram::Initiation(handshake)) => {
                self.receive_initiation(now_ns, from, &handshake)
            }
            Ok(Datagram::Response { receiver, ciphertext, handshake }) => {
                self.receive_response(now_ns, from, receiver, (ciphertext, &handshake))
            }
            Ok(Datagram::Fragment(fragment)) => self.receive_piece(now_ns, from, &fragment),
            Ok(Datagram::Cookie(reply)) => self.receive_cookie(now_ns, &reply),
            Ok(Datagram::UnknownSession { index, counter }) => {
                self.receive_notice(now_ns, from, (index, counter))
            }
            Ok(Datagram::Expired { index, router }) => {
                self.tell(Event::Expired { index, router });
                Ok(())
            }
            // The owner is no router, or took it for a datagram of this member's.
            Ok(Datagram::Relayed(_)) => Err(DropReason::HopUnexpected),
        };
        if let Err(reason) = outcome {
            self.counters.drop(reason);
        }
    }

    fn receive_data(
        &mut self,
        now_ns: u64,
        from: Path,
        (receiver, counter): (u32, u64),
        bytes: &mut [u8],
        deliver: &mut dyn FnMut(&VirtioNetHeader, &[u8]),
    ) -> Result<(), DropReason> {
        let index = self.indices.get(&receiver).copied();
        let named = index.and_then(|index| {
            let peer = self.peers.get_mut(index)?;
            peer.session(receiver).filter(|session| session.is_alive(now_ns))?;
            Some((index, peer))
        });
        let Some((index, peer)) = named else {
            self.send_notice(now_ns, from, (receiver, counter));
            return Err(DropReason::DataSession);
        };
        let Some(session) = peer.session(receiver) else { return Err(DropReason::DataSession) };
        let takes_open_checksums = session.open_checksums;
        let (packet, is_newest) = session.open(counter, bytes).map_err(|error| match error {
            OpenError::Replayed => DropReason::DataReplayed,
            OpenError::Forged => DropReason::DataForged,
        })?;
        peer.unanswered_since_ns = None;
        peer.heard_ns = now_ns;
        // Only the newest datagram tells where the peer is: an old one may come from where it was.
        if is_newest {
            self.counters.roamed += u64::from(peer.paths.heard(now_ns, from));
        }
        if peer.is_next(receiver) {
            self.confirm_next(now_ns, index);
        }
        match packet.first().map(|first| first >> 4) {
            None => Ok(()),
            Some(1) => {
                self.streak = None;
                self.receive_control(now_ns, index, from, packet, deliver)
            }
            // Only what the two agreed on in the handshake.
            Some(8..) if !takes_open_checksums => Err(DropReason::InboundMalformed),
            Some(8..) => {
                packet.first_mut().into_iter().for_each(|first| *first &= !OPEN_CHECKSUM);
                self.admit(now_ns, index, packet, true, deliver)
            }
            Some(_) => self.admit(now_ns, index, packet, false, deliver),
        }
    }

    /// Checks a packet that the session of peer `index` opened, and hands it to this member. `is_open`
    /// tells whether its checksum is.
    fn admit(
        &mut self,
        now_ns: u64,
        index: usize,
        bytes: &[u8],
        is_open: bool,
        deliver: &mut dyn FnMut(&VirtioNetHeader, &[u8]),
    ) -> Result<(), DropReason> {
        let sent = Packet::parse(bytes).map_err(|_| DropReason::InboundMalformed)?;
        let checksum = match is_open {
            true => Some(sent.checksum_field(bytes).ok_or(DropReason::InboundMalformed)?),
            false => None,
        };
        let header = VirtioNetHeader { checksum, segmentation: None };
        let aliased = self.with_alias(now_ns, index, &sent)?;
        let packet = aliased.unwrap_or(sent);
        match self.streak.filter(|streak| streak.has(index, &packet)) {
            Some(streak) => self.admit_more(now_ns, streak, packet.len)?,
            None => {
                self.streak = None;
                self.check_inbound(now_ns, index, &packet, 1)?;
                let is_metered = !self.is_of_exit(&packet);
                self.streak = Streak::of(index, &packet, is_metered);
            }
        }
        let bytes = bytes.get(..packet.len).unwrap_or_default();
        match aliased {
            None => deliver(&header, bytes),
            // An alias has the sum of the address in whose place it stands.
            Some(_) => deliver(&header, &restored(&sent, &packet, bytes)),
        }
        Ok(())
    }

    /// Whether a packet of peer `index` is for this member, and let in; it is counted if so.
    fn check_inbound(
        &mut self,
        now_ns: u64,
        index: usize,
        packet: &Packet,
        packets: usize,
    ) -> Result<(), DropReason> {
        if self.routes.get(&self.through(packet.source)) != Some(&index) {
            return Err(DropReason::InboundSource);
        }
        if !self.has(&packet.destination) {
            return Err(DropReason::InboundDestination);
        }
        self.ask_to_admit(now_ns, index, packet, packets)?;
        self.count_inbound(index, packet.len);
        Ok(())
    }

    fn count_inbound(&mut self, index: usize, bytes: usize) {
        if let Some(peer) = self.peers.get_mut(index) {
            peer.bytes_received += bytes as u64;
        }
        self.counters.packets_received += 1;
        self.counters.bytes_received += bytes as u64;
    }

    /// The next datagrams to send. Give their buffer back with [`Endpoint::recycle`].
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop()
    }

    /// What the owner has to know or to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes a buffer back for reuse.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.transmits.recycle(buffer);
    }

    /// When [`Endpoint::handle_deadline`] is due, if ever.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let peers_ns = self.timers.first().map(|(deadline_ns, _)| *deadline_ns);
        [peers_ns, self.unresolved.deadline_ns()].into_iter().flatten().min()
    }

    /// Does what is due: handshake retries, probes, and dropping keys that have expired.
    pub fn handle_deadline(&mut self, now_ns: u64) {
        while let Some((_, index)) = self.timers.first().filter(|(due, _)| *due <= now_ns).copied()
        {
            self.timers.pop_first();
            if let Some(peer) = self.peers.get_mut(index) {
                peer.timer_ns = None;
            }
            self.drop_dead_sessions(now_ns, index);
            self.retry_handshake(now_ns, index);
            self.probe(now_ns, index);
            self.rearm(index);
        }
        let given_up = self.unresolved.expire(now_ns);
        self.counters.drop_many(DropReason::OutboundNoRoute, given_up as u64);
    }

    /// Brings the peer's entry among the timers up to date.
    fn rearm(&mut self, index: usize) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let deadline_ns = peer.deadline_ns();
        if deadline_ns == peer.timer_ns {
            return;
        }
        let old = std::mem::replace(&mut peer.timer_ns, deadline_ns);
        if let Some(old) = old {
            self.timers.remove(&(old, index));
        }
        if let Some(deadline_ns) = deadline_ns {
            self.timers.insert((deadline_ns, index));
        }
    }

    fn drop_dead_sessions(&mut self, now_ns: u64, index: usize) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let key = peer.key;
        let (is_down, dead) = peer.stop_sending(now_ns);
        self.retire(dead);
        let mut is_changed = is_down;
        while let Some(dead) = self.peers.get_mut(index).and_then(|peer| peer.take_dead(now_ns)) {
            self.retire(Some(dead));
            is_changed = true;
        }
        // This is asked for each packet.
        if is_changed {
            self.rearm(index);
        }
        if is_down {
            self.tell(Event::Down(key));
        }
    }

    /// Forgets a session's index and drops its keys.
    fn retire(&mut self, session: Option<Session>) {
        if let Some(session) = session {
            self.indices.remove(&session.local);
        }
    }
}

fn check_address(address: IpAddr) -> Result<(), ConfigError> {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(ConfigError::UnusableAddress(address));
    }
    Ok(())
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("key", &self.key).finish_non_exhaustive()
    }
}
