//! `hypha mesh edge`: a link to a node of mycelium, in a process of its own.
//!
//! ```text
//!  host ──TUN── firewall ── mesh_edge::Link ──TCP── a mycelium node
//! ```
//!
//! It shares nothing with the node of this host: neither its key nor its routes. Only what `--route`
//! and `--allow` list is routed to its interface, so the rest of 400::/7 stays native. Everything
//! that comes in is a stranger's: a firewall lets in what `--allow` says, and answers.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_edge::{EdgeKey, Event, External, Link, SendError, link};
use mesh_node::NodeError;
use mesh_node::acl::{AclEntry, AclFrom};
use mesh_node::tun::{ReadError, Tun, TunConfig};
use net_vdev::PublicKey;
use net_vdev::firewall::{Firewall, Packet, Party, Policy, Verdict};
use net_vdev::offload::{PACKET_BYTES_MAX, VirtioNetHeader, each_packet};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::arguments::Edge as Arguments;
use super::{MeshError, folder, print};
use crate::clock::Clock;
use crate::state;

/// The folder of the edge's key, in the node's.
const FOLDER: &str = "edge";
/// How long a connection may take to come about. Nothing else waits for that.
const CONNECT: Duration = Duration::from_secs(2);
/// How long to wait before the peer is called again: doubled each time, until a link has lived for
/// as long as the longest wait.
const BACK_OFF_NS_MIN: u64 = 1_000_000_000;
const BACK_OFF_NS_MAX: u64 = 60_000_000_000;
/// The longest wait for anything, so that signals are heeded.
const TICK_NS: u64 = 250_000_000;
/// How much each side may bring before the other has its turn.
const READS_PER_TURN: usize = 16;
const READ_BYTES: usize = 64 << 10;
const FRAMES_PER_TURN: usize = 16;

/// Runs the link until SIGINT or SIGTERM.
pub(super) fn run(arguments: &Arguments) -> Result<i32, MeshError> {
    let folder = folder(&arguments.common)?.join(FOLDER);
    let secret = state::key(&folder)?;
    let key = || EdgeKey::new(*secret.expose());
    let own = key().public();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&stop))?;
    }
    let mut host = Host::open(arguments, own.address())?;
    tell(arguments, &own)?;
    let clock = Clock::start();
    let (mut retry_ns, mut back_off_ns) = (0, BACK_OFF_NS_MIN);
    while !stop.load(Ordering::Relaxed) {
        if let Some(error) = host.failure.take() {
            return Err(error.into());
        }
        let now_ns = clock.now_ns();
        if now_ns < retry_ns {
            host.discard(TICK_NS.min(retry_ns - now_ns))?;
            continue;
        }
        let outcome = connect(&arguments.peer).and_then(|stream| {
            tracing::info!(peer = arguments.peer, "connected to mycelium");
            let link = Link::new(clock.now_ns(), key(), random()?);
            Connection { stream, link, unsent: Vec::new() }.run(&clock, &mut host, &stop)
        });
        let Err(error) = outcome else { continue };
        let ended_ns = clock.now_ns();
        if ended_ns.saturating_sub(now_ns) >= BACK_OFF_NS_MAX {
            back_off_ns = BACK_OFF_NS_MIN;
        }
        let seconds = back_off_ns / 1_000_000_000;
        tracing::warn!(peer = arguments.peer, %error, "no link to mycelium; again in {seconds} s");
        retry_ns = ended_ns.saturating_add(back_off_ns);
        back_off_ns = (2 * back_off_ns).min(BACK_OFF_NS_MAX);
    }
    Ok(0)
}

fn tell(arguments: &Arguments, own: &PublicKey) -> Result<i32, MeshError> {
    let (peer, tun, address) = (&arguments.peer, &arguments.tun, own.address());
    if arguments.common.json {
        let event = json!({"event": "up", "external": true, "forward_secrecy": false,
            "key": own.to_string(), "address": address, "tun": tun, "peer": peer});
        return print(&format!("{event}\n"));
    }
    print(&format!(
        "EXTERNAL: a link to mycelium at {peer}, without forward secrecy and without protection \
         from replay\nedge    {own}\naddress {address}, interface {tun}\n"
    ))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let failed = |_| io::Error::other("the kernel gives no random bytes");
    SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Calls the peer at each of its addresses.
fn connect(peer: &str) -> io::Result<TcpStream> {
    let mut outcome = Err(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
    for address in peer.to_socket_addrs()? {
        outcome = TcpStream::connect_timeout(&address, CONNECT);
        if outcome.is_ok() {
            break;
        }
    }
    let stream = outcome?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The host's side: its interface, and who may reach what.
struct Host {
    tun: Tun,
    firewall: Firewall,
    /// What the host reaches over the link.
    reached: BTreeSet<Ipv6Addr>,
    frame: Vec<u8>,
    room: Vec<u8>,
    /// The interface is gone.
    failure: Option<io::Error>,
}

impl Host {
    fn open(arguments: &Arguments, own: Ipv6Addr) -> Result<Self, MeshError> {
        let reached = reached(&arguments.allow, arguments.routes.iter().map(|it| it.0), own);
        let tun = Tun::open(&TunConfig {
            name: arguments.tun.clone(),
            mtu: u16::try_from(link::MTU).unwrap_or(u16::MAX),
            addresses: vec![(own, 128)],
            routes: reached.iter().map(|address| (*address, 128)).collect(),
            segments_max: 64,
        });
        let ingress = arguments.allow.iter().map(AclEntry::rule).collect();
        let policy = Policy { ingress, ..Policy::default() };
        let [one, other]: [[u8; 8]; 2] = [random()?, random()?];
        let keys = [one, other].map(u64::from_ne_bytes);
        Ok(Self {
            tun: tun.map_err(NodeError::from)?,
            firewall: Firewall::new(&policy, keys),
            reached,
            frame: vec![0; PACKET_BYTES_MAX],
            room: Vec::new(),
            failure: None,
        })
    }

    /// Drops what the host sends while there is no link, for so long.
    fn discard(&mut self, wait_ns: u64) -> io::Result<()> {
        wait(&mut [PollFd::new(&self.tun, PollFlags::IN)], wait_ns)?;
        for _ in 0..FRAMES_PER_TURN {
            if self.read().is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Reads a frame of the host's.
    fn read(&mut self) -> Option<(VirtioNetHeader, usize)> {
        match self.tun.read(&mut self.frame) {
            Ok(frame) => frame,
            Err(ReadError::Io(error)) => {
                self.failure = Some(error.into());
                None
            }
            Err(error) => {
                tracing::debug!(%error, "a frame of the host is lost");
                None
            }
        }
    }

    /// Sends what the host has for others.
    fn send(&mut self, now_ns: u64, link: &mut Link) {
        for _ in 0..FRAMES_PER_TURN {
            let Some((header, len)) = self.read() else { break };
            let frame = self.frame.get(..len).unwrap_or_default();
            let (firewall, reached) = (&mut self.firewall, &self.reached);
            each_packet(&header, frame, link::MTU, &mut self.room, |packet| {
                if let Err(reason) = send(now_ns, link, firewall, reached, packet) {
                    tracing::trace!(reason, "a packet for mycelium is dropped");
                }
            });
        }
    }

    /// Hands a stranger's packet to the host if it may.
    fn deliver(&mut self, now_ns: u64, external: &External) {
        let from = Party { key: &external.from, labels: &[] };
        let Ok(packet) = Packet::parse(&external.packet) else { return };
        if self.firewall.inbound(now_ns, from, &packet) != Verdict::Pass {
            return;
        }
        if let Err(error) = self.tun.write(&VirtioNetHeader::default(), &external.packet) {
            tracing::debug!(%error, "the host does not take a packet");
        }
    }
}

/// What the host reaches: what it is told to, and whom it lets in, who would get no answer else.
fn reached(
    allow: &[AclEntry],
    routes: impl Iterator<Item = Ipv6Addr>,
    own: Ipv6Addr,
) -> BTreeSet<Ipv6Addr> {
    let allowed = allow.iter().filter_map(|entry| match entry.from() {
        AclFrom::Key(key) => Some(PublicKey(key.0).address()),
        AclFrom::Label(_) => None,
    });
    allowed.chain(routes).filter(|address| *address != own).collect()
}

/// Sends a packet of the host's, or says why not.
fn send(
    now_ns: u64,
    link: &mut Link,
    firewall: &mut Firewall,
    reached: &BTreeSet<Ipv6Addr>,
    bytes: &[u8],
) -> Result<(), &'static str> {
    let packet = Packet::parse(bytes).map_err(|_| "no packet that a firewall can judge")?;
    let IpAddr::V6(to) = packet.destination else { return Err("not of IPv6") };
    if !reached.contains(&to) {
        return Err("not for anybody who is reached here");
    }
    // Without a key there is no route, and sending only asks for one.
    if let Some(key) = link.key_of(now_ns, &to) {
        let party = Party { key: &key, labels: &[] };
        if firewall.outbound(now_ns, party, &packet) != Verdict::Pass {
            return Err("denied");
        }
    }
    let nonce = random().map_err(|_| "no random bytes")?;
    link.send(now_ns, bytes, nonce).map_err(|error| match error {
        SendError::NoPacket => "a hop limit that is used up, or too long",
        SendError::NotOurs => "not from this edge",
        SendError::Pending => "the route is being asked for",
        SendError::Full => "the link is overloaded",
        SendError::Seal(_) => "it could not be sealed",
    })
}

/// One connection to the peer.
struct Connection {
    stream: TcpStream,
    link: Link,
    /// What the socket has no room for yet: the rest of one message.
    unsent: Vec<u8>,
}

impl Connection {
    /// Serves the link until it breaks, or until the command is to stop.
    fn run(mut self, clock: &Clock, host: &mut Host, stop: &AtomicBool) -> io::Result<()> {
        while !stop.load(Ordering::Relaxed) && host.failure.is_none() {
            let now_ns = clock.now_ns();
            if self.link.next_deadline() <= now_ns {
                self.link.handle_deadline(now_ns).map_err(io::Error::other)?;
            }
            self.receive(now_ns)?;
            while let Some(event) = self.link.poll_event() {
                match event {
                    Event::Packet(external) => host.deliver(now_ns, &external),
                    Event::Reachable(address) => tracing::info!(%address, "reached by mycelium"),
                    Event::Unreachable(address) => tracing::info!(%address, "nobody in mycelium"),
                }
            }
            host.send(now_ns, &mut self.link);
            self.transmit()?;
            let is_full = !self.unsent.is_empty();
            let stream = if is_full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let wait_ns = self.link.next_deadline().saturating_sub(now_ns).min(TICK_NS);
            let fds =
                &mut [PollFd::new(&self.stream, stream), PollFd::new(&host.tun, PollFlags::IN)];
            wait(fds, wait_ns)?;
        }
        Ok(())
    }

    fn receive(&mut self, now_ns: u64) -> io::Result<()> {
        let mut bytes = vec![0; READ_BYTES];
        for _ in 0..READS_PER_TURN {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    let bytes = bytes.get(..len).unwrap_or_default();
                    self.link.receive(now_ns, bytes).map_err(io::Error::other)?;
                }
                Err(error) if is_passing(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn transmit(&mut self) -> io::Result<()> {
        loop {
            if self.unsent.is_empty() {
                let Some(message) = self.link.poll_transmit() else { return Ok(()) };
                self.unsent = message;
            }
            match self.stream.write(&self.unsent) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if is_passing(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Waits until one of these is ready, at most so long.
fn wait(fds: &mut [PollFd<'_>], wait_ns: u64) -> io::Result<()> {
    // Less than a second.
    let tv_nsec = i64::try_from(wait_ns.min(TICK_NS)).unwrap_or(0);
    match poll(fds, Some(&Timespec { tv_sec: 0, tv_nsec })) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
