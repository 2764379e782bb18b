//! The daemon of a node: one thread that moves batches between UDP sockets, the TUN and the core.

mod links;
mod ready;

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_router::Router;
use net_vdev::announcement::{Announcement, Role, SignedAnnouncement};
use net_vdev::certificate;
use net_vdev::endpoint::{Endpoint, Path, Strangers};
use net_vdev::gather::Gather;
use net_vdev::offload::{Accepts, PACKET_BYTES_MAX, VirtioNetHeader};
use net_vdev::socket::{RECEIVE_BYTES, SendError, Socket};
use net_vdev::{ConfigError, PrivateKey, PublicKey, Rule, uplink};
use ring::rand::{SecureRandom, SystemRandom};

use crate::acl::AclEntry;
use crate::clock::{boot_ns, unix_ns};
use crate::core::{Core, Outside, Resolved};
use crate::discovery::Discovery;
use crate::errands::Errands;
use crate::exit::{Exit, ExitConfig};
use crate::interfaces::Interfaces;
use crate::orders::{self, Answer, Asked, Desk, NodeFacts, Order};
use crate::sequence::Sequence;
use crate::streams::Streams;
use crate::tun::{Tun, TunConfig, TunError};
use crate::uplinks::Uplinks;
use ready::{Ready, Source};

/// The largest packet that the host may send into the mesh.
const TUN_MTU: u16 = 1400;
/// How many packets a super-frame of the host stands for: what fits one batch, frames of relayed
/// paths included.
const SEGMENTS_MAX: u16 = 44;
/// The mesh: `400::/7`.
const MESH_PREFIX_BITS: u8 = 7;
/// How many batches are taken from one socket before the others have their turn.
const BATCHES_PER_TURN: usize = 8;
/// How long an announcement holds, and when it is made anew.
const ANNOUNCED_S: u64 = 3600;
const RENEW_NS: u64 = 1_200_000_000_000;
/// The least time between two announcements that others ask for: each is written to disk, signed,
/// and told to everybody.
const ANNOUNCE_PAUSE_NS: u64 = 2_000_000_000;

/// What a node is told at its start.
#[derive(Debug)]
pub struct NodeConfig {
    /// The node's key.
    pub key: PrivateKey,
    /// The folder of the node's state: its sequence number and its control socket.
    pub state: PathBuf,
    /// Where it listens for datagrams.
    pub listen: Vec<SocketAddr>,
    /// Where it takes TCP connections from neighbours that UDP does not reach.
    pub listen_tcp: Vec<SocketAddr>,
    /// Whether it looks for nodes on local networks, and lets them find it.
    pub discovers: bool,
    /// The neighbours that it keeps sessions with, and where they are if that is known.
    pub neighbours: Vec<(PublicKey, Option<SocketAddr>)>,
    /// The zone of its announcements.
    pub zone: u16,
    /// The name of the network interface for its host, if it is to have one.
    pub tun: Option<String>,
    /// Who may open flows to its host.
    pub rules: Vec<Rule>,
    /// The certificates of labels that it shows to its peers.
    pub certificates: Vec<Vec<u8>>,
    /// How many members that nobody configured may have sessions with it.
    pub strangers_max: usize,
    /// What it lets members reach outside of the mesh.
    pub exit: ExitConfig,
}

/// Why a node did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration is contradictory.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address to listen at is not to be had.
    #[error("can't listen for datagrams at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// An address to take connections at is not to be had.
    #[error("can't listen for TCP connections at {address}: {source}")]
    ListenTcp {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// No network interface.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The state can't be used.
    #[error("{path}: {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Another node runs with this state.
    #[error("a node already runs with this state: it holds {0}")]
    Busy(PathBuf),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Random,
    /// Waiting for sockets failed.
    #[error("waiting for sockets: {0}")]
    Poll(#[source] std::io::Error),
    /// No sockets for the way out.
    #[error("no way out of the mesh: {0}")]
    Exit(#[source] std::io::Error),
    /// Its own announcement is refused, which is a defect.
    #[error("the node's own announcement is refused: {0}")]
    Announcement(String),
}

/// A running node.
pub struct Daemon {
    core: Core,
    outside: Sockets,
    key: PrivateKey,
    zone: u16,
    sequence: Sequence,
    announced_ns: u64,
    /// The number that the next announcement is to have at least, if one was asked for.
    wanted: Option<u64>,
    /// Its certificates; those that have ended are not shown.
    certificates: Vec<Vec<u8>>,
    orders: Desk,
    uplinks: Uplinks,
    errands: Errands,
    /// What the kernel says about interfaces, if it does, and when that was last compared.
    interfaces: Option<Interfaces>,
    watched_ns: u64,
    discovery: Option<Discovery>,
    /// This node's newest announcement.
    announced: Option<SignedAnnouncement>,
    stop: Arc<AtomicBool>,
    buffer: Vec<u8>,
}

/// The sockets and the card.
struct Sockets {
    udp: Vec<Socket>,
    /// Small datagrams of this turn that wait for others.
    gather: Gather<SocketAddr>,
    streams: Streams,
    tun: Option<Tun>,
    exit: Option<Exit>,
    /// Whether the host was given something that it may answer at once.
    is_host_fed: bool,
    /// The time of this turn.
    now_ns: u64,
    counters: SocketCounters,
    /// Messages for the cards of attached members, until the end of the turn.
    for_cards: Vec<(PublicKey, Vec<u8>)>,
    /// Neighbours' places that the network refuses datagrams to, and those that are too large.
    refused: Vec<SocketAddr>,
    narrow: Vec<SocketAddr>,
}

/// What sockets and card dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketCounters {
    /// Batches that the kernel's queue had no room for.
    pub send_full: u64,
    /// Batches that the kernel refused.
    pub send_refused: u64,
    /// Batches of datagrams too large for the path.
    pub send_too_large: u64,
    /// Errors when receiving.
    pub receive_failed: u64,
    /// Frames that the host's card refused, in either direction.
    pub tun_refused: u64,
}

impl Sockets {
    fn new(
        now_ns: u64,
        udp: Vec<Socket>,
        streams: Streams,
        tun: Option<Tun>,
        exit: Option<Exit>,
    ) -> Self {
        Self {
            udp,
            gather: Gather::new(),
            streams,
            tun,
            exit,
            is_host_fed: false,
            now_ns,
            counters: SocketCounters::default(),
            for_cards: Vec::new(),
            refused: Vec::new(),
            narrow: Vec::new(),
        }
    }

    fn write_to_host(&mut self, header: &VirtioNetHeader, packet: &[u8]) {
        self.is_host_fed = true;
        if let Some(tun) = &self.tun
            && let Err(error) = tun.write(header, packet)
        {
            tracing::debug!(%error, "the host's card refused a frame");
            self.counters.tun_refused += 1;
        }
    }

    /// Lets small datagrams gather, or go.
    fn gathering(
        &mut self,
        act: impl FnOnce(&mut Gather<SocketAddr>, &mut dyn FnMut(SocketAddr, &[u8], usize)),
    ) {
        let mut gather = std::mem::take(&mut self.gather);
        act(&mut gather, &mut |to, datagrams, stride| self.send_now(to, datagrams, stride));
        self.gather = gather;
    }

    /// Sends the small datagrams that wait for others.
    fn send_gathered(&mut self) {
        self.gathering(|gather, send| gather.flush(send));
    }

    fn send_now(&mut self, to: SocketAddr, datagrams: &[u8], stride: usize) {
        let is_ipv6 = to.is_ipv6();
        let fitting = |socket: &&mut Socket| socket.is_ipv6() || !is_ipv6;
        let Some(socket) = self.udp.iter_mut().find(fitting) else {
            self.counters.send_refused += 1;
            return;
        };
        match socket.send_batch(to, datagrams, stride) {
            Ok(()) => {}
            Err(SendError::Full { .. }) => self.counters.send_full += 1,
            Err(SendError::TooLarge { .. }) => {
                self.counters.send_too_large += 1;
                self.narrow.push(to);
            }
            Err(SendError::Refused(error)) => {
                tracing::debug!(%to, %error, "sending");
                self.counters.send_refused += 1;
                self.refused.push(to);
            }
        }
    }
}

impl Outside for Sockets {
    fn send(&mut self, to: SocketAddr, datagrams: &[u8], stride: usize) {
        self.gathering(|gather, send| gather.add(to, datagrams, stride, send));
    }

    fn send_stream(&mut self, number: u32, datagrams: &[u8], stride: usize) {
        if !self.streams.send(number, datagrams, stride) {
            self.counters.send_full += 1;
        }
    }

    fn deliver(&mut self, header: &VirtioNetHeader, packet: &[u8]) {
        match &mut self.exit {
            Some(exit) if exit.takes(packet) => exit.receive(self.now_ns, header, packet),
            _ => self.write_to_host(header, packet),
        }
    }

    fn attached(&mut self, member: &PublicKey, frames: &[u8], stride: usize) {
        let most = (uplink::MESSAGE_BYTES_MAX - uplink::HEADER_BYTES) / stride.max(1);
        for part in frames.chunks((most * stride).max(1)) {
            let message = [uplink::frames_header(stride).as_slice(), part].concat();
            self.for_cards.push((*member, message));
        }
    }

    fn here(&mut self, member: &PublicKey, other: &PublicKey, is_here: bool) {
        let told = if is_here { uplink::here(other) } else { uplink::gone(other) };
        self.for_cards.push((*member, told));
    }

    fn resolved(&mut self, member: &PublicKey, address: &Ipv6Addr, whose: Resolved<'_>) {
        let answer = match whose {
            Resolved::Key(key) => uplink::resolved(key),
            Resolved::Alias(certificate) => uplink::alias(certificate),
            Resolved::Nobody => uplink::unknown(address),
        };
        self.for_cards.push((*member, answer));
    }
}

impl Daemon {
    /// Opens everything that a node needs. It answers from now on when [`Daemon::run`] is called.
    ///
    /// # Errors
    /// A [`NodeError`].
    pub fn start(config: NodeConfig, stop: Arc<AtomicBool>) -> Result<Self, NodeError> {
        let sequence = Sequence::open(&config.state.join("sequence"))?;
        let orders = Desk::open(&config.state.join("socket"))?;
        let uplinks = Uplinks::open(&config.state.join("uplink"), config.key.public())?;
        let now_ns = boot_ns();
        let unix_time_at_zero_ns = unix_ns().saturating_sub(now_ns);
        let udp = config.listen.iter().map(|it| listen(*it)).collect::<Result<Vec<_>, _>>()?;
        let public = config.key.public();
        let tun = config.tun.map(|name| {
            let addresses = vec![(public.address(), MESH_PREFIX_BITS)];
            let (mtu, routes) = (TUN_MTU, config.exit.routes());
            Tun::open(&TunConfig { name, mtu, addresses, routes, segments_max: SEGMENTS_MAX })
        });
        let tun = tun.transpose()?;
        let (exits, is_exit) = (config.exit.exits(), config.exit.is_needed());
        let exit = is_exit.then(|| {
            let key = config.key.clone();
            Exit::open(config.exit, key, unix_time_at_zero_ns, seed()?).map_err(NodeError::Exit)
        });
        let exit = exit.transpose()?;
        let member = net_vdev::Config {
            rules: config.rules,
            strangers: Strangers::Welcome { at_most: config.strangers_max },
            is_routed: true,
            exits,
            ..net_vdev::Config::new(config.key.clone(), unix_time_at_zero_ns)
        };
        let (member_seed, router_seed) = (seed()?, seed()?);
        let endpoint = Endpoint::new(member, member_seed)?;
        let mut routing = mesh_router::Config::new(public, config.zone);
        routing.unix_time_at_zero_ns = unix_time_at_zero_ns;
        let [a, b, c, d, e, f, g, h, ..] = router_seed;
        let router = Router::new(routing, u64::from_be_bytes([a, b, c, d, e, f, g, h]));
        let accepts = tun.as_ref().map_or_else(Accepts::default, Tun::accepts);
        let mut core = Core::new(endpoint, router, accepts);
        add_neighbours(now_ns, &mut core, &config.neighbours)?;
        let discovery = config.discovers.then(|| links::discovery(&udp)).flatten();
        let streams = links::listen_tcp(&config.listen_tcp)?;
        let outside = Sockets::new(now_ns, udp, streams, tun, exit);
        let mut daemon = Self {
            core,
            outside,
            key: config.key,
            zone: config.zone,
            sequence,
            announced_ns: now_ns,
            wanted: None,
            certificates: config.certificates,
            orders,
            uplinks,
            errands: Errands::default(),
            interfaces: links::interfaces(),
            watched_ns: 0,
            discovery,
            announced: None,
            stop,
            buffer: vec![0; RECEIVE_BYTES.max(PACKET_BYTES_MAX)],
        };
        daemon.announce(now_ns, 0)?;
        daemon.tell_candidates();
        Ok(daemon)
    }

    /// Tells its own member, and those attached to it, where this host may be reached.
    fn tell_candidates(&mut self) {
        let candidates = self.candidates();
        self.uplinks.set_addresses(candidates.iter().map(SocketAddr::ip).collect());
        self.core.set_candidates(candidates);
    }

    /// The node's key.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.core.endpoint().key()
    }

    /// Where it listens.
    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.outside.udp.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Where it takes TCP connections.
    #[must_use]
    pub fn listening_tcp(&self) -> Vec<SocketAddr> {
        self.outside.streams.listening().collect()
    }

    /// Runs until `stop` is set.
    ///
    /// # Errors
    /// A [`NodeError`] that it can't go on after.
    pub fn run(&mut self) -> Result<(), NodeError> {
        while !self.stop.load(Ordering::Relaxed) {
            let ready = self.wait()?;
            self.turn(&ready)?;
        }
        Ok(())
    }

    fn turn(&mut self, ready: &Ready) -> Result<(), NodeError> {
        let now_ns = boot_ns();
        self.outside.now_ns = now_ns;
        if ready.has(Source::Network) {
            self.receive(now_ns);
        }
        if ready.has(Source::Stream) {
            self.receive_streams(now_ns);
        }
        self.outside.send_gathered();
        self.heed_kernel(now_ns, ready);
        self.core.finish_turn(now_ns, &mut self.outside);
        // What the host was just given may have made it answer.
        if ready.has(Source::Card) || self.outside.is_host_fed {
            self.outside.is_host_fed = false;
            self.send(now_ns);
        }
        if ready.has(Source::Uplink) {
            self.uplinks.turn(now_ns, &mut self.core, &mut self.outside);
        }
        self.uplinks.renew(now_ns);
        self.bring_in(now_ns, ready.has(Source::Exit));
        self.core.finish_turn(now_ns, &mut self.outside);
        for (member, message) in self.outside.for_cards.drain(..) {
            self.uplinks.send(&member, &message);
        }
        self.outside.send_gathered();
        self.heed_refusals(now_ns);
        if ready.has(Source::Orders) {
            for asked in self.orders.take() {
                self.answer(now_ns, asked);
            }
        }
        if !self.errands.is_empty() {
            self.errands.proceed(now_ns, &mut self.core, &mut self.outside);
            self.core.finish_turn(now_ns, &mut self.outside);
            self.outside.send_gathered();
        }
        self.flush_streams(now_ns);
        self.announce_if_due(now_ns)
    }

    /// Announces this node anew if that is due, or somebody wants a larger number; has others asked
    /// for theirs.
    fn announce_if_due(&mut self, now_ns: u64) -> Result<(), NodeError> {
        let key = self.key();
        for (wanted, number) in self.core.take_wanted() {
            if wanted == key {
                self.wanted = self.wanted.max(Some(number));
            } else {
                self.uplinks.ask_for(now_ns, &wanted, number);
            }
        }
        let is_asked = self.wanted.is_some() && now_ns >= self.announced_ns + ANNOUNCE_PAUSE_NS;
        if is_asked || now_ns >= self.announced_ns.saturating_add(RENEW_NS) {
            let wanted = self.wanted.take();
            self.announce(now_ns, wanted.unwrap_or(0))?;
        }
        Ok(())
    }

    /// Takes what the network has.
    fn receive(&mut self, now_ns: u64) {
        for index in 0..self.outside.udp.len() {
            for _ in 0..BATCHES_PER_TURN {
                let Some(socket) = self.outside.udp.get(index) else { break };
                match socket.receive_batch(&mut self.buffer) {
                    Ok(Some(received)) => {
                        let batch = self.buffer.get_mut(..received.len).unwrap_or_default();
                        let from = Path::Direct(received.from);
                        self.core.receive(now_ns, from, batch, received.stride, &mut self.outside);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "receiving");
                        self.outside.counters.receive_failed += 1;
                    }
                }
            }
        }
    }

    /// Takes what the host sends.
    fn send(&mut self, now_ns: u64) {
        for _ in 0..BATCHES_PER_TURN {
            let Some(tun) = &self.outside.tun else { return };
            match tun.read(&mut self.buffer) {
                Ok(Some((header, len))) => {
                    let packet = self.buffer.get(..len).unwrap_or_default();
                    if let Some(exit) = &mut self.outside.exit
                        && exit.takes(packet)
                    {
                        exit.receive_own(now_ns, &header, packet);
                        continue;
                    }
                    self.core.send(now_ns, &header, packet);
                    self.core.transmit(now_ns, &mut self.outside);
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "reading from the host's card");
                    self.outside.counters.tun_refused += 1;
                    return;
                }
            }
        }
    }

    /// Passes on what the way out has for members; `is_ready` tells whether its sockets have anything.
    fn bring_in(&mut self, now_ns: u64, is_ready: bool) {
        // It is lent out: what it has goes through the core to the sockets.
        let Some(mut exit) = self.outside.exit.take() else { return };
        exit.set_attached(self.core.attached());
        exit.set_machines(self.uplinks.named());
        exit.sign_names(now_ns, || {
            let mut random = [0; 64];
            SystemRandom::new().fill(&mut random).ok().map(|()| random)
        });
        if !is_ready && !exit.has_work(now_ns) {
            self.outside.exit = Some(exit);
            return;
        }
        let own = self.key();
        let (core, outside) = (&mut self.core, &mut self.outside);
        exit.flush(now_ns, &mut |member, header, packet| {
            if *member == own {
                outside.write_to_host(header, packet);
            } else {
                core.send(now_ns, header, packet);
                core.transmit(now_ns, outside);
            }
        });
        while let Some(packet) = exit.poll_packet() {
            core.send(now_ns, &VirtioNetHeader::default(), &packet);
            core.transmit(now_ns, outside);
        }
        self.outside.exit = Some(exit);
    }

    /// What the network refused tells about its paths.
    fn heed_refusals(&mut self, now_ns: u64) {
        for place in std::mem::take(&mut self.outside.refused) {
            self.core.place_refused(now_ns, place);
        }
        for place in std::mem::take(&mut self.outside.narrow) {
            self.core.place_is_narrow(place);
        }
    }

    fn answer(&mut self, now_ns: u64, asked: Asked) {
        let answer = match &asked.order {
            Order::Ping { .. } | Order::Trace { .. } => return self.errands.begin(now_ns, asked),
            Order::Status => self.status(),
            Order::Certificates { certificates } => {
                let bytes = certificates.iter().filter_map(|text| certificate::from_hex(text));
                self.certificates = bytes.collect();
                self.core.set_certificates(now_ns, &self.certificates);
                Answer::Done
            }
            Order::Rules { rules } => {
                let rules: Vec<_> = rules.iter().map(AclEntry::rule).collect();
                self.core.set_rules(&rules);
                Answer::Done
            }
        };
        if asked.reply.try_send(answer).is_err() {
            tracing::debug!("whoever asked is gone");
        }
    }

    fn status(&self) -> Answer {
        let facts = NodeFacts {
            now_ns: boot_ns(),
            listening: self.listening(),
            listening_tcp: self.listening_tcp(),
            streams: self.outside.streams.remotes(),
            tun: self.outside.tun.as_ref().map(|tun| tun.name().to_owned()),
            zone: self.zone,
            sockets: self.outside.counters,
            uplinks: self.uplinks.counters(),
            named: self.uplinks.named(),
            exit: self.outside.exit.as_ref().map(Exit::counters).unwrap_or_default(),
        };
        orders::status(&self.core, facts)
    }

    /// Says to the mesh that this node is here, under a number larger than all before and at least
    /// `wanted`.
    fn announce(&mut self, now_ns: u64, wanted: u64) -> Result<(), NodeError> {
        let sequence = self.sequence.next(wanted)?;
        let announcement = Announcement {
            key: self.key(),
            sequence,
            expires_unix_s: unix_ns() / 1_000_000_000 + ANNOUNCED_S,
            role: Role::Node { zone: self.zone },
        };
        let mut random = [0; 64];
        SystemRandom::new().fill(&mut random).map_err(|_| NodeError::Random)?;
        let signed = SignedAnnouncement::sign(announcement, &self.key, &random);
        self.announced_ns = now_ns;
        self.announced = Some(signed);
        self.core.set_certificates(now_ns, &self.certificates);
        let outcome = self.core.originate(now_ns, &signed);
        outcome.map_err(|error| NodeError::Announcement(error.to_string()))
    }

    /// Where this node may be reached from elsewhere, as far as its own sockets tell.
    fn candidates(&self) -> Vec<SocketAddr> {
        let usable = |ip: &std::net::IpAddr| !ip.is_unspecified() && !ip.is_loopback();
        self.listening().into_iter().filter(|address| usable(&address.ip())).collect()
    }
}

fn add_neighbours(
    now_ns: u64,
    core: &mut Core,
    neighbours: &[(PublicKey, Option<SocketAddr>)],
) -> Result<(), NodeError> {
    for (key, at) in neighbours {
        if *key == core.endpoint().key() {
            return Err(ConfigError::OwnKey(*key).into());
        }
        if !core.add_neighbour(now_ns, *key, *at) {
            return Err(ConfigError::DuplicatePeer(*key).into());
        }
    }
    Ok(())
}

fn listen(address: SocketAddr) -> Result<Socket, NodeError> {
    let failed = |source| NodeError::Listen { address, source };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    let mut socket = Socket::new(socket).map_err(failed)?;
    if let Err(error) = socket.hear_errors() {
        tracing::debug!(%error, "dead neighbours are found by probes alone");
    }
    Ok(socket)
}

fn seed() -> Result<[u8; 32], NodeError> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| NodeError::Random)?;
    Ok(seed)
}
