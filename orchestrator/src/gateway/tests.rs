//! A gateway, a node and a workload, each on a thread of its own, and clients on loopback.

use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use mesh_egress::udp_packet;
use mesh_node::exit::ExitConfig;
use mesh_node::{Daemon, NodeConfig};
use net_vdev::firewall::{Packet, Transport};
use net_vdev::{Protocol, Rule};
use smoltcp::iface::SocketHandle;
use spec::secret::Public32;

use super::*;
use crate::ports::stack::new_socket;

const NODE: [u8; 32] = [1; 32];
const WORKLOAD: [u8; 32] = [2; 32];
const GATEWAY: [u8; 32] = [3; 32];
const PORT: u16 = 80;
/// How many connections the workload takes at once.
const BACKLOG: usize = 8;

/// What ends with the test.
struct World {
    folder: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    reload: Arc<AtomicBool>,
    gateway: Option<Gateway>,
}

impl World {
    /// A workload that lets the gateway in, or does not, and a gateway with these routes.
    fn start(lets_in: bool, routes: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let config = NodeConfig {
            listen_tcp: Vec::new(),
            discovers: false,
            key: PrivateKey::new(NODE),
            state: folder.path().to_owned(),
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            neighbours: Vec::new(),
            zone: 0,
            tun: None,
            rules: Vec::new(),
            certificates: Vec::new(),
            strangers_max: 16,
            exit: ExitConfig::default(),
        };
        let (stopped, (ready, is_ready)) = (Arc::clone(&stop), std::sync::mpsc::channel());
        let node = std::thread::spawn(move || {
            let mut daemon = Daemon::start(config, stopped).unwrap();
            ready.send(()).unwrap();
            daemon.run().unwrap();
        });
        is_ready.recv().unwrap();
        let (stopped, uplink) = (Arc::clone(&stop), folder.path().join("uplink"));
        let workload = std::thread::spawn(move || serve(lets_in, &uplink, &stopped));
        let mut world = Self {
            folder,
            stop,
            threads: vec![node, workload],
            reload: Arc::new(AtomicBool::new(false)),
            gateway: None,
        };
        world.write(routes);
        world.gateway = Some(Gateway::open(world.config(GATEWAY)).unwrap());
        world
    }

    fn config(&self, key: [u8; 32]) -> GatewayConfig {
        GatewayConfig {
            key: PrivateKey::new(key),
            file: self.folder.path().join("gateway.json"),
            uplink: self.folder.path().join("uplink"),
            reload: Arc::clone(&self.reload),
        }
    }

    fn write(&self, routes: &str) {
        std::fs::write(self.folder.path().join("gateway.json"), routes).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.gateway.take());
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || std::thread::panicking(), "a thread had panicked");
        }
    }
}

fn listening(stack: &mut Stack) -> SocketHandle {
    let mut socket = new_socket();
    socket.listen(PORT).unwrap();
    stack.add(socket)
}

/// A workload that sends back what it gets, over TCP and UDP.
fn serve(lets_in: bool, uplink: &Path, stop: &AtomicBool) {
    let key = PrivateKey::new(WORKLOAD);
    let uplink = Uplink::open(uplink).unwrap();
    let own = key.public().address();
    let rule = |protocol| Rule {
        who: PrivateKey::new(GATEWAY).public().into(),
        protocol,
        port: Some(PORT),
    };
    let member = Config {
        strangers: Strangers::Welcome { at_most: 16 },
        is_routed: true,
        rules: if lets_in { vec![rule(Protocol::Tcp), rule(Protocol::Udp)] } else { Vec::new() },
        ..Config::new(key, unix_time_ns())
    };
    let mut stack = Stack::new(member, [7; 32], Wire::Node(uplink)).unwrap();
    let mut sockets: Vec<_> = (0..BACKLOG).map(|_| listening(&mut stack)).collect();
    while !stop.load(Ordering::Relaxed) {
        while stack.turn() {
            for handle in &mut sockets {
                let socket = stack.socket(*handle);
                while socket.can_send() && socket.can_recv() {
                    let mut bytes = [0; 4096];
                    let room = (socket.send_capacity() - socket.send_queue()).min(bytes.len());
                    let count = socket.recv_slice(&mut bytes[..room]).unwrap();
                    socket.send_slice(&bytes[..count]).unwrap();
                }
                if !socket.may_recv() && socket.may_send() && !socket.can_recv() {
                    socket.close();
                }
                if !socket.is_open() {
                    stack.remove(*handle);
                    *handle = listening(&mut stack);
                }
            }
        }
        while let Some(bytes) = stack.next_datagram() {
            let packet = Packet::parse(&bytes).unwrap();
            let Transport::Udp(ports) = packet.transport else { panic!("{packet:?}") };
            let to = SocketAddr::new(packet.source, ports.source);
            let from = SocketAddr::from((own, ports.destination));
            stack.send_packet(&udp_packet(from, to, &bytes[48..packet.len]).unwrap());
        }
        let pause = stack.timeout().unwrap_or(TICK).min(Duration::from_millis(5));
        let pause = Timespec::try_from(pause).unwrap();
        let mut fds = [PollFd::from_borrowed_fd(stack.wire(), PollFlags::IN)];
        poll(&mut fds, Some(&pause)).unwrap();
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn route(listen: SocketAddr, rest: &str) -> String {
    let key = Public32(PrivateKey::new(WORKLOAD).public().0);
    format!("{{\"listen\": \"{listen}\", \"key\": \"{key}\", \"port\": {PORT}{rest}}}")
}

/// What comes back for `bytes`, to its end; `None` if the connection breaks.
fn ask(at: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut client = TcpStream::connect(at).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.write_all(bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).ok().map(|_| all)
}

/// The first message of a TLS client that means this server.
fn hello(name: &str) -> Vec<u8> {
    let counted = |bytes: &[u8], len_bytes: usize| {
        [&(bytes.len() as u32).to_be_bytes()[4 - len_bytes..], bytes].concat()
    };
    let entry = [&[0][..], &counted(name.as_bytes(), 2)].concat();
    let extension = [&[0, 0][..], &counted(&counted(&entry, 2), 2)].concat();
    let body = [&[3, 3][..], &[9; 32], &[0, 0, 2, 0x13, 1, 1, 0], &counted(&extension, 2)].concat();
    let message = [&[1][..], &counted(&body, 3)].concat();
    [&[22, 3, 1][..], &counted(&message, 2)].concat()
}

#[test]
fn bytes_reach_a_workload_and_come_back_and_it_is_told_whose_they_are() {
    let (plain, told) = (free_port(), free_port());
    let routes = [route(plain, ""), route(told, ", \"proxy_protocol\": true")].join(",");
    let _world = World::start(true, &format!("[{routes}]"));
    let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    assert!(ask(plain, &bytes).unwrap() == bytes);
    let answer = ask(told, b"hello").unwrap();
    assert_eq!(answer[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
    assert_eq!(
        (&answer[16..24], &answer[28..]),
        (&[127, 0, 0, 1, 127, 0, 0, 1][..], &b"hello"[..])
    );
}

#[test]
fn a_client_of_tls_goes_where_it_says_or_is_told_that_nobody_is_there() {
    let at = free_port();
    let routes = route(at, ", \"names\": [\"a.example.org\"]");
    let _world = World::start(true, &format!("[{routes}]"));
    let right = [&hello("A.example.org")[..], b"and more"].concat();
    assert_eq!(ask(at, &right).unwrap(), right);
    assert_eq!(ask(at, &hello("b.example.org")).unwrap(), ALERT);
    // Whoever speaks no TLS is not answered.
    assert_eq!(ask(at, b"GET / HTTP/1.1\r\n\r\n").unwrap_or_default(), b"");
}

#[test]
fn datagrams_reach_a_workload_and_its_answers_the_client() {
    let at = free_port();
    let world = World::start(true, &format!("[{}]", route(at, ", \"protocol\": \"udp\"")));
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut answer = [0; 100];
    // The first may come before the gateway is attached, and datagrams may get lost.
    let answered = (0..50).find_map(|_| {
        client.send_to(b"question", at).unwrap();
        client.recv_from(&mut answer).ok()
    });
    assert_eq!(answered, Some((8, at)));
    assert_eq!(&answer[..8], b"question");
    drop(world);
}

#[test]
fn a_workload_that_does_not_let_it_in_is_not_reached() {
    let at = free_port();
    let _world = World::start(false, &format!("[{}]", route(at, ", \"protocol\": \"udp\"")));
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    for _ in 0..10 {
        client.send_to(b"question", at).unwrap();
        assert!(client.recv_from(&mut [0; 9]).is_err());
    }
}

#[test]
fn new_routes_count_at_once_and_wrong_ones_never() {
    let (old, new) = (free_port(), free_port());
    let world = World::start(true, &format!("[{}]", route(old, "")));
    assert_eq!(ask(old, b"a").unwrap(), b"a");
    world.write("no JSON");
    world.reload.store(true, Ordering::Relaxed);
    std::thread::sleep(2 * TICK);
    assert_eq!(ask(old, b"b").unwrap(), b"b", "a wrong file changes nothing");
    world.write(&format!("[{}]", route(new, "")));
    world.reload.store(true, Ordering::Relaxed);
    let is_new = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        TcpStream::connect(new).is_ok()
    });
    assert!(is_new, "nobody listens at the new address");
    assert_eq!(ask(new, b"c").unwrap(), b"c");
    assert!(TcpStream::connect(old).is_err(), "the old address is closed");
}

#[test]
fn clients_that_say_nothing_leave_the_other_doors_open() {
    let (named, plain) = (free_port(), free_port());
    let routes = [route(named, ", \"names\": [\"a.example.org\"]"), route(plain, "")].join(",");
    let _world = World::start(true, &format!("[{routes}]"));
    let idle: Vec<_> = (0..OF_ONE_MAX - 8).map(|_| TcpStream::connect(named).unwrap()).collect();
    assert_eq!(ask(plain, b"hello").unwrap(), b"hello");
    drop(idle);
    let hello = hello("a.example.org");
    assert_eq!(ask(named, &hello).unwrap(), hello, "whoever left made room");
}
