//! A guest that knows IPv4 only, with a stack that knows nothing of the mesh: it gets an address by
//! DHCP, and reaches servers of the host's network through card, session and NAT64.
#![expect(clippy::unwrap_used, reason = "what fails in a test ends it")]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use mesh_egress::address::Destinations;
use mesh_egress::host::HostSockets;
use mesh_egress::limits::NatConfig;
use mesh_egress::{Egress, EgressConfig};
use net_vdev::endpoint::{Endpoint, Exits, Path, Transmit};
use net_vdev::nic::ipv4::{GUEST, IPV4_MTU, ROUTER};
use net_vdev::nic::{Link, VIRTIO_HEADER_BYTES};
use net_vdev::{Config, Peer, PrivateKey};
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint, Ipv4Cidr};

const UNIX_NS: u64 = 1_700_000_000_000_000_000;
/// A turn of the test's clock. Real sockets take their own time: there are many turns.
const TURN_NS: u64 = 1_000_000;
const TURNS_MAX: usize = 60_000;

/// A node that is an exit: its member, and what is outside of it.
struct Exit {
    endpoint: Endpoint,
    egress: Egress<HostSockets>,
}

/// The guest's wire, and all that is behind it.
struct World {
    link: Link,
    exit: Exit,
    now_ns: u64,
    /// Frames of the guest, and for it.
    sent: VecDeque<Vec<u8>>,
    received: VecDeque<Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let keys = [PrivateKey::new([1; 32]), PrivateKey::new([2; 32])];
        let [guest, exit] = keys.each_ref().map(PrivateKey::public);
        let [guest_key, exit_key] = keys;
        let peer = |key, port| Peer {
            key,
            endpoint: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            addresses: Vec::new(),
        };
        let config = Config {
            peers: vec![peer(exit, 2)],
            exits: Exits { through: Some(exit), ..Exits::default() },
            ..Config::new(guest_key, UNIX_NS)
        };
        let link = Link::new(Endpoint::new(config, [3; 32]).unwrap());
        let config = Config {
            peers: vec![peer(guest, 1)],
            exits: Exits { through: None, is_exit: true, is_resolver: true },
            ..Config::new(exit_key, UNIX_NS)
        };
        let endpoint = Endpoint::new(config, [4; 32]).unwrap();
        let loopback = vec!["127.0.0.1".parse().unwrap()];
        let nat = NatConfig { destinations: Destinations::new(loopback), ..NatConfig::default() };
        let config = EgressConfig {
            nat: Some(nat),
            resolver_addresses: vec![endpoint.key().address()],
            ..EgressConfig::default()
        };
        let egress = Egress::new(config, HostSockets::new().unwrap(), [5; 32]);
        let (sent, received) = (VecDeque::new(), VecDeque::new());
        Self { link, exit: Exit { endpoint, egress }, now_ns: 1, sent, received }
    }

    /// Passes on what waits, on a network that loses nothing.
    fn turn(&mut self) {
        self.now_ns += TURN_NS;
        let now_ns = self.now_ns;
        while let Some(frame) = self.sent.pop_front() {
            let bytes = [&[0; VIRTIO_HEADER_BYTES][..], &frame].concat();
            self.link.send(now_ns, &bytes);
        }
        let guest = self.link.endpoint.key();
        let Exit { endpoint, egress } = &mut self.exit;
        for _ in 0..4 {
            while let Some(Transmit { mut bytes, stride, .. }) = self.link.endpoint.poll_transmit()
            {
                let from = Path::Direct(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
                endpoint.receive(now_ns, from, &mut bytes, stride, &mut |header, packet| {
                    assert!(egress.takes(packet));
                    egress.receive(now_ns, (&guest, None), header, packet);
                });
            }
            egress.flush(now_ns, &mut |_, header, packet| {
                endpoint.send_frame(now_ns, header, packet);
            });
            while let Some(Transmit { mut bytes, stride, .. }) = endpoint.poll_transmit() {
                let from = Path::Direct(SocketAddr::from((Ipv4Addr::LOCALHOST, 2)));
                self.link.receive(now_ns, from, &mut bytes, stride);
            }
        }
        while let Some(frame) = self.link.take(now_ns) {
            let frame = [&frame.headers[VIRTIO_HEADER_BYTES..], &frame.payload].concat();
            self.received.push_back(frame);
        }
        // The sockets' far ends are real, and on other threads.
        thread::yield_now();
    }
}

struct Received(Vec<u8>);
struct Sender<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for World {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sender(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(IPV4_MTU) + 14;
        capabilities
    }
}

/// The guest's stack.
struct Guest {
    world: World,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Guest {
    fn new() -> Self {
        let mut world = World::new();
        let mac = HardwareAddress::Ethernet(EthernetAddress(world.link.mac()));
        let interface = Interface::new(InterfaceConfig::new(mac), &mut world, Instant::ZERO);
        Self { world, interface, sockets: SocketSet::new(Vec::new()) }
    }

    fn turn(&mut self) {
        self.world.turn();
        let now = Instant::from_micros((self.world.now_ns / 1000) as i64);
        self.interface.poll(now, &mut self.world, &mut self.sockets);
    }

    /// Asks for an address, and takes it.
    fn configure(&mut self) {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        for _ in 0..TURNS_MAX {
            self.turn();
            let event = self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll();
            let Some(dhcpv4::Event::Configured(config)) = event else { continue };
            assert_eq!(config.address, Ipv4Cidr::new(GUEST, 29));
            assert_eq!(config.router, Some(ROUTER));
            assert_eq!(config.dns_servers[..], [ROUTER]);
            self.interface.update_ip_addrs(|addresses| {
                addresses.push(IpCidr::Ipv4(config.address)).unwrap();
            });
            self.interface.routes_mut().add_default_ipv4_route(ROUTER).unwrap();
            return;
        }
        panic!("no lease");
    }
}

#[test]
fn a_guest_that_asks_by_dhcp_reaches_a_server_in_ipv4() {
    const BYTES: usize = 300_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let mut guest = Guest::new();
    guest.configure();
    let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 16]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.connect(guest.interface.context(), IpEndpoint::from(to), 50_000).unwrap();
    let handle = guest.sockets.add(socket);
    let byte = |at: usize| (at % 251) as u8;
    let (mut sent, mut received) = (0, Vec::new());
    for _ in 0..TURNS_MAX {
        guest.turn();
        let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if sent < BYTES && socket.can_send() {
            let bytes: Vec<u8> = (sent..BYTES.min(sent + 40_000)).map(byte).collect();
            sent += socket.send_slice(&bytes).unwrap();
            if sent == BYTES {
                socket.close();
            }
        }
        while socket.can_recv() {
            let mut bytes = vec![0; 1 << 16];
            let len = socket.recv_slice(&mut bytes).unwrap();
            received.extend_from_slice(&bytes[..len]);
        }
        if received.len() == BYTES {
            break;
        }
    }
    assert!(received.into_iter().eq((0..BYTES).map(byte)), "what was sent came back");
    server.join().unwrap();
}

#[test]
fn datagrams_reach_a_server_and_its_answers_the_guest() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let to = IpEndpoint::from(server.local_addr().unwrap());
    let mut guest = Guest::new();
    guest.configure();
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 1 << 13]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(50_001).unwrap();
    let handle = guest.sockets.add(socket);
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(b"question", to).unwrap();
    for _ in 0..TURNS_MAX {
        guest.turn();
        let mut bytes = [0; 100];
        if let Ok((len, from)) = server.recv_from(&mut bytes) {
            assert_eq!(&bytes[..len], b"question");
            server.send_to(b"answer", from).unwrap();
        }
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        if let Ok((answer, from)) = socket.recv() {
            assert_eq!((answer, from.endpoint), (&b"answer"[..], to));
            return;
        }
    }
    panic!("no answer");
}

#[test]
fn the_router_is_the_resolver_too() {
    let mut guest = Guest::new();
    guest.configure();
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 1 << 13]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(50_002).unwrap();
    let handle = guest.sockets.add(socket);
    // A question for the addresses of ipv4only.arpa, which the resolver knows by itself.
    let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x08ipv4only\x04arpa\0\0\x01\0\x01";
    let to = IpEndpoint::from((ROUTER, 53));
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(query, to).unwrap();
    for _ in 0..TURNS_MAX {
        guest.turn();
        if let Ok((answer, _)) = guest.sockets.get_mut::<udp::Socket<'_>>(handle).recv() {
            assert_eq!(answer[..2], query[..2]);
            assert!(answer.windows(4).any(|bytes| bytes == [192, 0, 0, 170]));
            return;
        }
    }
    panic!("no answer");
}

#[test]
fn the_resolver_answers_on_connections_too_one_question_after_the_other() {
    let mut guest = Guest::new();
    guest.configure();
    let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 13]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    let to = IpEndpoint::from((ROUTER, 53));
    socket.connect(guest.interface.context(), to, 50_003).unwrap();
    let handle = guest.sockets.add(socket);
    let mut wanted = Vec::new();
    for id in 0..40_u8 {
        let query = [&[0, id][..], b"\x01\0\0\x01\0\0\0\0\0\0\x08ipv4only\x04arpa\0\0\x01\0\x01"];
        let query = query.concat();
        wanted.extend_from_slice(&(query.len() as u16).to_be_bytes());
        wanted.extend_from_slice(&query);
    }
    let (mut sent, mut received) = (0, Vec::new());
    for _ in 0..TURNS_MAX {
        guest.turn();
        let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.can_send() && sent < wanted.len() {
            sent += socket.send_slice(&wanted[sent..]).unwrap();
            if sent == wanted.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            let mut bytes = [0; 4096];
            let len = socket.recv_slice(&mut bytes).unwrap();
            received.extend_from_slice(&bytes[..len]);
        }
        if !socket.may_recv() && sent == wanted.len() {
            break;
        }
    }
    let (mut rest, mut ids) = (received.as_slice(), Vec::new());
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let (message, after) = after.split_at(usize::from(u16::from_be_bytes(*len)));
        assert!(message.windows(4).any(|bytes| bytes == [192, 0, 0, 171]));
        ids.push(message[1]);
        rest = after;
    }
    assert_eq!(ids, (0..40).collect::<Vec<u8>>(), "all answers, and the end");
}
