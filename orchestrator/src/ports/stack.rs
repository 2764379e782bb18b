//! A TCP/IP stack (smoltcp) whose link is a mesh member: packets go to sealed sessions over UDP.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use net_vdev::endpoint::Event;
use net_vdev::offload::each_packet;
use net_vdev::wire::{DATAGRAM_BYTES_MAX, MTU};
use net_vdev::{Config, ConfigError, Endpoint, Path, Transmit};
use smoltcp::iface::{Config as InterfaceConfig, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{AnySocket, tcp};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::BUFFER_BYTES;
use crate::clock::Clock;
use crate::gateway::uplink::Uplink;

/// How many packets the stack may hand to the endpoint before they are sent: fewer than its queue
/// has room for.
const PACKETS_PER_TURN: usize = 64;

/// How many packets wait for the stack at most; more are left to the kernel's buffer.
const RECEIVED_MAX: usize = 256;

/// The local ports of connections to guests.
const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 16384..=65535;

/// How long a guest may leave data or a greeting unanswered.
const ANSWER_MAX: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);

/// How long a connection may be silent before the guest is asked whether it is still there.
const SILENCE_MAX: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);

/// One mesh member with a TCP/IP stack of its own.
pub(crate) struct Stack {
    link: Link,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    clock: Clock,
    /// A datagram that the kernel had no room for.
    blocked: Option<Transmit>,
    next_port: u16,
}

impl Stack {
    /// Builds the member; `seed` is fresh random bytes, never used before.
    pub(crate) fn new(config: Config, seed: [u8; 32], wire: Wire) -> Result<Self, ConfigError> {
        let address = config.private_key.public().address();
        let [a, b, c, d, e, f, g, h, ..] = seed.map(|byte| byte ^ 0x5a);
        let mut link = Link {
            endpoint: Endpoint::new(config, seed)?,
            received: VecDeque::new(),
            cut: Vec::new(),
            datagrams: VecDeque::new(),
            now_ns: 0,
            handed: 0,
        };
        let mut interface_config = InterfaceConfig::new(HardwareAddress::Ip);
        // Initial sequence numbers follow from it; the endpoint's own bytes stay with the endpoint.
        interface_config.random_seed = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let zero = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(interface_config, &mut link, zero);
        interface.update_ip_addrs(|addresses| {
            // All of the mesh's 400::/7 is on this link.
            let added = addresses.push(IpCidr::new(IpAddress::Ipv6(address), 7));
            assert!(added.is_ok(), "an interface has room for one address");
        });
        Ok(Self {
            link,
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            clock: Clock::start(),
            blocked: None,
            next_port: *LOCAL_PORTS.start() | (u16::from(a) << 6),
        })
    }

    /// Opens a connection to a guest.
    pub(crate) fn connect(&mut self, (ip, port): (IpAddr, u16)) -> Option<SocketHandle> {
        let mut socket = new_socket();
        let local = self.local_port()?;
        let remote = (IpAddress::from(ip), port);
        socket.connect(self.interface.context(), remote, local).ok()?;
        Some(self.add(socket))
    }

    /// Takes a socket in.
    pub(crate) fn add(&mut self, socket: tcp::Socket<'static>) -> SocketHandle {
        self.sockets.add(socket)
    }

    /// The next local port that no connection has: each is used as seldom as can be, for the guest
    /// may remember its last use.
    fn local_port(&mut self) -> Option<u16> {
        let used = |port: u16, sockets: &SocketSet<'_>| {
            // Other kinds of sockets exist where another crate of the build asks for them.
            let mut connections =
                sockets.iter().filter_map(|(_, socket)| <tcp::Socket<'_>>::downcast(socket));
            connections.any(|socket| socket.local_endpoint().is_some_and(|it| it.port == port))
        };
        for _ in LOCAL_PORTS {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(*LOCAL_PORTS.start());
            if !used(port, &self.sockets) {
                return Some(port);
            }
        }
        None
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn socket_ref(&self, handle: SocketHandle) -> &tcp::Socket<'static> {
        self.sockets.get(handle)
    }

    pub(crate) fn remove(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    /// What to wait for.
    pub(crate) fn wire(&self) -> BorrowedFd<'_> {
        match &self.wire {
            Wire::Network(udp) => udp.as_fd(),
            Wire::Node(uplink) => uplink.as_fd(),
        }
    }

    /// Sends a packet past the stack: a datagram of UDP, which it has no part in.
    pub(crate) fn send_packet(&mut self, packet: &[u8]) {
        let now_ns = self.clock.now_ns();
        self.link.endpoint.send_packet(now_ns, packet);
    }

    /// The next packet of UDP that came in.
    pub(crate) fn next_datagram(&mut self) -> Option<Vec<u8>> {
        self.link.datagrams.pop_front()
    }

    /// The time that the stack goes by.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Whether a datagram waits for room in the kernel.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Receives, lets the stack work, and sends; whether anything changed for a socket.
    pub(crate) fn turn(&mut self) -> bool {
        let now_ns = self.clock.now_ns();
        self.link.now_ns = now_ns;
        let received = self.receive(now_ns);
        if self.link.endpoint.next_deadline().is_some_and(|due_ns| due_ns <= now_ns) {
            self.link.endpoint.handle_deadline(now_ns);
        }
        self.link.handed = 0;
        let now = Self::smoltcp_time(now_ns);
        let polled = self.interface.poll(now, &mut self.link, &mut self.sockets);
        let was_full = self.link.handed >= PACKETS_PER_TURN && !self.is_blocked();
        self.send();
        received || was_full || polled == PollResult::SocketStateChanged
    }

    fn receive(&mut self, now_ns: u64) -> bool {
        for count in 0..PACKETS_PER_TURN {
            if self.link.received.len() >= RECEIVED_MAX {
                return true;
            }
            match self.receive_one(now_ns) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return count > 0,
                Err(error) => {
                    tracing::debug!(%error, "receiving a datagram");
                    return count > 0;
                }
            }
        }
        true
    }

    fn receive_one(&mut self, now_ns: u64) -> io::Result<()> {
        let Link { endpoint, received, datagrams, cut, .. } = &mut self.link;
        match &mut self.wire {
            Wire::Network(udp) => {
                // A byte more than any datagram of ours: a longer one is cut and won't verify.
                let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
                let (len, from) = udp.recv_from(&mut buffer)?;
                let bytes = buffer.get_mut(..len).unwrap_or_default();
                endpoint.receive(now_ns, Path::Direct(from), bytes, len, &mut |header, packet| {
                    each_packet(header, packet, MTU, cut, |packet| {
                        received.push_back(packet.to_vec());
                    });
                });
                Ok(())
            }
            Wire::Node(uplink) => uplink.receive(now_ns, endpoint, &mut |packet| {
                let queue = if is_udp(packet) { &mut *datagrams } else { &mut *received };
                if queue.len() < RECEIVED_MAX {
                    queue.push_back(packet.to_vec());
                }
            }),
        }
    }

    fn send(&mut self) {
        if let Wire::Node(uplink) = &self.wire {
            while let Some(event) = self.link.endpoint.poll_event() {
                if let Event::Resolve(address) = event {
                    uplink.resolve(&address);
                }
            }
        }
        let stashed = self.blocked.take();
        let mut next = stashed.or_else(|| self.link.endpoint.poll_transmit());
        while let Some(transmit) = next {
            let sent = match (&self.wire, transmit.to) {
                (Wire::Network(udp), Path::Direct(to)) => {
                    udp.send_to(&transmit.bytes, to).map(|_| ())
                }
                (Wire::Node(uplink), Path::Relayed { .. } | Path::Local(_)) => {
                    uplink.send(&transmit)
                }
                // The machines of a deployment have no router between them, and who is attached to
                // one has nothing else.
                _ => Ok(()),
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = Some(transmit);
                    return;
                }
                // A datagram may get lost anywhere; TCP sends it again.
                Err(error) => tracing::debug!(%error, "sending a datagram"),
                Ok(()) => {}
            }
            self.link.endpoint.recycle(transmit.bytes);
            next = self.link.endpoint.poll_transmit();
        }
    }

    /// How long nothing is due; `None` for as long as nothing comes.
    pub(crate) fn timeout(&mut self) -> Option<Duration> {
        let now_ns = self.clock.now_ns();
        let now = Self::smoltcp_time(now_ns);
        let stack = self.interface.poll_delay(now, &self.sockets);
        let stack = stack.map(|left| Duration::from_micros(left.total_micros()));
        let endpoint = self.link.endpoint.next_deadline();
        let endpoint = endpoint.map(|at_ns| Duration::from_nanos(at_ns.saturating_sub(now_ns)));
        // A poll that returns a hair early would only spin.
        let soonest = stack.into_iter().chain(endpoint).min()?;
        Some(soonest.max(Duration::from_micros(100)))
    }

    fn smoltcp_time(now_ns: u64) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX))
    }
}

/// A socket with our buffers, timeouts and habits.
pub(crate) fn new_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_timeout(Some(ANSWER_MAX));
    socket.set_keep_alive(Some(SILENCE_MAX));
    socket.set_nagle_enabled(false);
    // The link loses nothing by itself, and a prompt answer is worth more than a saved packet.
    socket.set_ack_delay(None);
    socket
}

/// What is between the member and all others.
pub(crate) enum Wire {
    /// A socket of its own.
    Network(UdpSocket),
    /// The router of a node.
    Node(Uplink),
}

fn is_udp(packet: &[u8]) -> bool {
    matches!(packet, [first, _, _, _, _, _, 17, ..] if first >> 4 == 6)
}

/// The endpoint as smoltcp's device.
struct Link {
    endpoint: Endpoint,
    /// What came in for the stack in this turn.
    received: VecDeque<Vec<u8>>,
    /// Room for a packet whose checksum is to be computed.
    cut: Vec<u8>,
    /// Packets of UDP, which are none of the stack's where there is a gateway.
    datagrams: VecDeque<Vec<u8>>,
    now_ns: u64,
    /// How many packets the stack has handed over in this turn.
    handed: usize,
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, timestamp: smoltcp::time::Instant) -> Option<(Received, Sender<'_>)> {
        if self.handed >= PACKETS_PER_TURN {
            return None;
        }
        let packet = self.received.pop_front()?;
        Some((Received(packet), self.transmit(timestamp)?))
    }

    fn transmit(&mut self, _timestamp: smoltcp::time::Instant) -> Option<Sender<'_>> {
        (self.handed < PACKETS_PER_TURN).then_some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

/// A packet that a session opened.
struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Room for a packet to seal.
struct Sender<'a>(&'a mut Link);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.handed += 1;
        self.0.endpoint.send_packet(self.0.now_ns, &packet);
        result
    }
}
