//! One member of the mesh: packets in and out on one side, datagrams on the other.
//!
//! An [`Endpoint`] has no socket, no clock and no randomness of its own. Its owner passes packets
//! of the member to [`Endpoint::send_packet`] and datagrams of the network to
//! [`Endpoint::receive_datagram`]; after either, and after [`Endpoint::handle_deadline`], it takes
//! what [`Endpoint::poll_transmit`] and [`Endpoint::poll_packet`] have. `now_ns` never goes back.
//!
//! Nothing happens by itself while there is no traffic: no keepalive, no periodic timer. A deadline
//! exists only for a handshake under way (at most a minute) and for dropping a session's keys
//! (once, three minutes after its handshake).
//!
//! Memory is bounded whatever arrives: all queues have limits, and a datagram of a stranger leaves
//! no state behind.
//!
//! An endpoint is never copied, not even with the memory that it lies in: two copies of a session
//! would seal two packets with one counter.
//!
//! ```
//! use net_vdev::{CipherSupport, Config, Endpoint, Peer, PrivateKey};
//!
//! # fn main() -> Result<(), net_vdev::ConfigError> {
//! let (one, two) = (PrivateKey::new([1; 32]), PrivateKey::new([2; 32]));
//! let config = Config {
//!     peers: vec![Peer {
//!         key: two.public(),
//!         endpoint: Some(([192, 0, 2, 2], 7000).into()),
//!         addresses: Vec::new(),
//!     }],
//!     private_key: one,
//!     addresses: Vec::new(),
//!     rules: Vec::new(),
//!     ciphers: CipherSupport::detect(),
//!     unix_time_at_zero_ns: 1_700_000_000_000_000_000,
//! };
//! let mut endpoint = Endpoint::new(config, [3; 32])?;
//! # let packet = [];
//! endpoint.send_packet(0, &packet);
//! while let Some((to, datagram)) = endpoint.poll_transmit() {
//!     // socket.send_to(&datagram, to)
//!     # let _to = to;
//!     endpoint.recycle(datagram);
//! }
//! # Ok(())
//! # }
//! ```

mod config;
mod counters;
mod handshakes;
mod limit;
mod peer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

pub use config::{Config, ConfigError, Peer};
pub use counters::{Counters, DropReason, Occupancy};
use limit::{Bucket, SourceBuckets};
use peer::{PeerState, WAITING_MAX};

use crate::cookie::Secrets;
use crate::firewall::{Firewall, Packet, Verdict};
use crate::identity::{PrivateKey, PublicKey};
use crate::random::Generator;
use crate::session::handshake::CipherSupport;
use crate::session::{OpenError, Session};
use crate::wire::{self, DATA_HEADER_BYTES, DATAGRAM_BYTES_MAX, Datagram, MTU, MacKey};

/// How many datagrams wait for [`Endpoint::poll_transmit`] at most.
pub const TRANSMITS_MAX: usize = 256;
/// How many packets wait for [`Endpoint::poll_packet`] at most.
pub const PACKETS_MAX: usize = 256;
/// How many empty buffers are kept for reuse.
const BUFFERS_MAX: usize = 16;
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
    mac_key: MacKey,
    ciphers: CipherSupport,
    unix_time_at_zero_ns: u64,
    newest_initiation_unix_ns: u64,
    addresses: BTreeSet<IpAddr>,
    peers: Vec<PeerState>,
    by_key: BTreeMap<PublicKey, usize>,
    /// Which peer has an address: where packets go, and who may send from there.
    routes: BTreeMap<IpAddr, usize>,
    /// Which peer a session or a handshake under way belongs to, by this side's index.
    indices: BTreeMap<u32, usize>,
    timers: BTreeSet<(u64, usize)>,
    firewall: Firewall,
    random: Generator,
    /// Limits the initiations that are read from addresses of no peer.
    strangers: Bucket,
    /// Limits those of them that prove their address by a cookie, by address.
    proven_strangers: SourceBuckets,
    cookie_secrets: Secrets,
    /// Limits the cookies that are sent.
    cookies: Bucket,
    /// Limits the unknown-session notices that are sent.
    notices: Bucket,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    packets: VecDeque<Vec<u8>>,
    buffers: Vec<Vec<u8>>,
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
        let mut endpoint = Self {
            mac_key: MacKey::of(&key),
            key,
            identity: config.private_key,
            ciphers: config.ciphers,
            unix_time_at_zero_ns: config.unix_time_at_zero_ns,
            newest_initiation_unix_ns: 0,
            addresses: BTreeSet::new(),
            peers: Vec::new(),
            by_key: BTreeMap::new(),
            routes: BTreeMap::new(),
            indices: BTreeMap::new(),
            timers: BTreeSet::new(),
            firewall: Firewall::new(&config.rules, [random.u64(), random.u64()]),
            strangers: Bucket::new(20_000_000, 50),
            proven_strangers: SourceBuckets::new(random.seed(), Bucket::new(200_000_000, 10)),
            cookie_secrets: Secrets::new(&mut random),
            cookies: Bucket::new(COOKIE_INTERVAL_NS, COOKIE_BURST),
            random,
            notices: Bucket::new(20_000_000, 20),
            transmits: VecDeque::new(),
            packets: VecDeque::new(),
            buffers: Vec::new(),
            counters: Counters::default(),
        };
        for address in config.addresses.into_iter().chain([key.address().into()]) {
            check_address(address)?;
            endpoint.addresses.insert(address);
        }
        config.peers.into_iter().try_for_each(|peer| endpoint.add_peer(peer))?;
        Ok(endpoint)
    }

    fn add_peer(&mut self, peer: Peer) -> Result<(), ConfigError> {
        if peer.key == self.key {
            return Err(ConfigError::OwnKey(peer.key));
        }
        let index = self.peers.len();
        if self.by_key.insert(peer.key, index).is_some() {
            return Err(ConfigError::DuplicatePeer(peer.key));
        }
        let addresses = peer.addresses.into_iter().chain([peer.key.address().into()]);
        for address in addresses.collect::<BTreeSet<_>>() {
            check_address(address)?;
            let taken = self.addresses.contains(&address);
            if taken || self.routes.insert(address, index).is_some() {
                return Err(ConfigError::DuplicateAddress(address));
            }
        }
        self.peers.push(PeerState::new(peer.key, peer.endpoint));
        Ok(())
    }

    /// The member's public key.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.key
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
        Occupancy {
            indices: self.indices.len(),
            timers: self.timers.len(),
            waiting: self.peers.iter().map(|peer| peer.waiting.len()).sum(),
            transmits: self.transmits.len(),
            packets: self.packets.len(),
            flow_slots: self.firewall.flow_capacity(),
        }
    }

    /// Whether there is a session with `peer` to send on.
    #[must_use]
    pub fn is_connected(&self, peer: &PublicKey) -> bool {
        let peer = self.by_key.get(peer).and_then(|index| self.peers.get(*index));
        peer.is_some_and(|peer| peer.current.is_some())
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
        if !self.addresses.contains(&packet.source) {
            return Err(DropReason::OutboundSource);
        }
        let index = *self.routes.get(&packet.destination).ok_or(DropReason::OutboundNoRoute)?;
        let peer = self.peers.get(index).ok_or(DropReason::OutboundNoRoute)?;
        if self.firewall.outbound(now_ns, &peer.key, &packet) == Verdict::Deny {
            return Err(DropReason::OutboundDenied);
        }
        let mut datagram = self.buffer();
        datagram.resize(DATA_HEADER_BYTES, 0);
        datagram.extend_from_slice(bytes.get(..packet.len).unwrap_or_default());
        self.send_or_wait(now_ns, index, datagram)
    }

    /// Sends a packet (behind room for a header) on the peer's session, or keeps it until there is
    /// one.
    fn send_or_wait(
        &mut self,
        now_ns: u64,
        index: usize,
        datagram: Vec<u8>,
    ) -> Result<(), DropReason> {
        self.drop_dead_sessions(now_ns, index);
        let Some(peer) = self.peers.get_mut(index) else { return Ok(()) };
        if peer.current.is_some() {
            return self.send_sealed(now_ns, index, datagram);
        }
        if peer.endpoint.is_none() && peer.next.is_none() {
            self.recycle(datagram);
            return Err(DropReason::OutboundNoEndpoint);
        }
        peer.waiting.push_back(datagram);
        let overdue = peer.waiting.len() > WAITING_MAX;
        let oldest = if overdue { peer.waiting.pop_front() } else { None };
        self.begin_handshake(now_ns, index);
        if let Some(oldest) = oldest {
            self.recycle(oldest);
            return Err(DropReason::OutboundWaiting);
        }
        Ok(())
    }

    /// Seals a packet with the peer's current session and queues it; starts a new handshake when
    /// the session is old or the peer silent.
    fn send_sealed(
        &mut self,
        now_ns: u64,
        index: usize,
        mut datagram: Vec<u8>,
    ) -> Result<(), DropReason> {
        let Some(peer) = self.peers.get_mut(index) else { return Ok(()) };
        let (Some(to), Some(session)) = (peer.endpoint, peer.current.as_mut()) else {
            return Err(DropReason::OutboundNoEndpoint);
        };
        if self.transmits.len() >= TRANSMITS_MAX {
            self.recycle(datagram);
            return Err(DropReason::OutboundQueue);
        }
        let packet_bytes = datagram.len().saturating_sub(DATA_HEADER_BYTES);
        if !session.seal(&mut datagram) {
            self.recycle(datagram);
            return Err(DropReason::OutboundUnanswered);
        }
        let since_ns = *peer.unanswered_since_ns.get_or_insert(now_ns);
        let is_silent = now_ns.saturating_sub(since_ns) >= SILENCE_NS;
        if is_silent {
            peer.unanswered_since_ns = Some(now_ns);
        }
        let wants_handshake = is_silent || session.wants_rekey(now_ns);
        self.transmits.push_back((to, datagram));
        if packet_bytes > 0 {
            self.counters.packets_sent += 1;
            self.counters.bytes_sent += packet_bytes as u64;
        }
        if wants_handshake {
            self.begin_handshake(now_ns, index);
        }
        Ok(())
    }

    /// Takes a datagram that came `from` the network; its bytes are opened in place. What does not
    /// verify is dropped and counted.
    pub fn receive_datagram(&mut self, now_ns: u64, from: SocketAddr, bytes: &mut [u8]) {
        let outcome = match wire::parse(bytes) {
            Err(_) => Err(DropReason::Wire),
            Ok(Datagram::Data { receiver, counter }) => {
                self.receive_data(now_ns, from, (receiver, counter), bytes)
            }
            Ok(Datagram::Initiation(handshake)) => {
                self.receive_initiation(now_ns, from, &handshake)
            }
            Ok(Datagram::Response { receiver, handshake }) => {
                self.receive_response(now_ns, from, receiver, &handshake)
            }
            Ok(Datagram::Cookie(reply)) => self.receive_cookie(now_ns, &reply),
            Ok(Datagram::UnknownSession { index, counter }) => {
                self.receive_notice(now_ns, from, (index, counter))
            }
        };
        if let Err(reason) = outcome {
            self.counters.drop(reason);
        }
    }

    fn receive_data(
        &mut self,
        now_ns: u64,
        from: SocketAddr,
        (receiver, counter): (u32, u64),
        bytes: &mut [u8],
    ) -> Result<(), DropReason> {
        let index = self.indices.get(&receiver).copied();
        let index = index.filter(|index| {
            let session = self.peers.get_mut(*index).and_then(|peer| peer.session(receiver));
            session.is_some_and(|session| session.is_alive(now_ns))
        });
        let Some(index) = index else {
            self.send_notice(now_ns, from, (receiver, counter));
            return Err(DropReason::DataSession);
        };
        let Some(peer) = self.peers.get_mut(index) else { return Err(DropReason::DataSession) };
        let Some(session) = peer.session(receiver) else { return Err(DropReason::DataSession) };
        let (packet, is_newest) = session.open(counter, bytes).map_err(|error| match error {
            OpenError::Replayed => DropReason::DataReplayed,
            OpenError::Forged => DropReason::DataForged,
        })?;
        peer.unanswered_since_ns = None;
        // Only the newest datagram tells where the peer is: an old one may come from where it was.
        if is_newest && peer.endpoint != Some(from) {
            self.counters.roamed += u64::from(peer.endpoint.is_some());
            peer.endpoint = Some(from);
        }
        if peer.is_next(receiver) {
            self.confirm_next(now_ns, index);
        }
        if packet.is_empty() { Ok(()) } else { self.admit(now_ns, index, packet) }
    }

    /// Checks a packet that the session of peer `index` opened, and queues it for this member.
    fn admit(&mut self, now_ns: u64, index: usize, bytes: &[u8]) -> Result<(), DropReason> {
        let packet = Packet::parse(bytes).map_err(|_| DropReason::InboundMalformed)?;
        if self.routes.get(&packet.source) != Some(&index) {
            return Err(DropReason::InboundSource);
        }
        if !self.addresses.contains(&packet.destination) {
            return Err(DropReason::InboundDestination);
        }
        let peer = self.peers.get(index).ok_or(DropReason::InboundSource)?;
        if self.firewall.inbound(now_ns, &peer.key, &packet) == Verdict::Deny {
            return Err(DropReason::InboundDenied);
        }
        if self.packets.len() >= PACKETS_MAX {
            return Err(DropReason::InboundQueue);
        }
        let mut buffer = self.buffer();
        buffer.extend_from_slice(bytes.get(..packet.len).unwrap_or_default());
        self.packets.push_back(buffer);
        self.counters.packets_received += 1;
        self.counters.bytes_received += packet.len as u64;
        Ok(())
    }

    /// The next datagram to send, and where to. Give its buffer back with [`Endpoint::recycle`].
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next packet for this member. Give its buffer back with [`Endpoint::recycle`].
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front()
    }

    /// Takes a buffer back for reuse.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if self.buffers.len() < BUFFERS_MAX && buffer.capacity() >= DATAGRAM_BYTES_MAX {
            self.buffers.push(buffer);
        }
    }

    fn buffer(&mut self) -> Vec<u8> {
        let mut buffer =
            self.buffers.pop().unwrap_or_else(|| Vec::with_capacity(DATAGRAM_BYTES_MAX));
        buffer.clear();
        buffer
    }

    /// When [`Endpoint::handle_deadline`] is due, if ever.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|(deadline_ns, _)| *deadline_ns)
    }

    /// Does what is due: handshake retries, and dropping keys that have expired.
    pub fn handle_deadline(&mut self, now_ns: u64) {
        while let Some((_, index)) = self.timers.first().filter(|(due, _)| *due <= now_ns).copied()
        {
            self.timers.pop_first();
            if let Some(peer) = self.peers.get_mut(index) {
                peer.timer_ns = None;
            }
            self.drop_dead_sessions(now_ns, index);
            self.retry_handshake(now_ns, index);
            self.rearm(index);
        }
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
        while let Some(peer) = self.peers.get_mut(index) {
            let Some(dead) = peer.take_dead(now_ns) else { return };
            self.retire(Some(dead));
            self.rearm(index);
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
