use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use net_vdev::{Protocol, Rule};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::RecvError;
use spec::secret::{Public32, Secret32};

use super::*;
use crate::launch::GatewayPort;

const HOST_KEY: [u8; 32] = [7; 32];
const GUEST_KEY: [u8; 32] = [9; 32];
const OTHER_GUEST_KEY: [u8; 32] = [11; 32];
const GUEST_PORT: u16 = 80;
/// How many connections the guest takes at once: more than any test has, those that are not quite
/// over yet included.
const BACKLOG: usize = 48;

/// What the guest does with each connection.
#[derive(Debug, Clone, Copy)]
enum Program {
    /// Sends back what it gets, ends when the client ends.
    Echo,
    /// Counts what it gets until the client ends, then answers with the count and ends.
    Count,
    /// Sends so many bytes and ends.
    Send(usize),
    /// Reads nothing and says nothing.
    Idle,
    /// Does not listen.
    Absent,
}

/// A mesh member like a VM's, on a thread, with a program behind its port.
struct Guest {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    fn start(socket: &UdpSocket, program: Program) -> Self {
        Self::start_as(GUEST_KEY, socket, program)
    }

    fn start_as(key: [u8; 32], socket: &UdpSocket, program: Program) -> Self {
        let host = PrivateKey::new(HOST_KEY).public();
        let config = Config {
            peers: vec![Peer { key: host, endpoint: None, addresses: Vec::new() }],
            rules: vec![Rule { who: host.into(), protocol: Protocol::Tcp, port: Some(GUEST_PORT) }],
            ..Config::new(PrivateKey::new(key), unix_time_ns())
        };
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).expect("random bytes");
        let socket = socket.try_clone().expect("a second descriptor");
        let stack = Stack::new(config, seed, Wire::Network(socket)).expect("two members");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || serve(stack, program, &stopped));
        Self { stop, thread: Some(thread) }
    }
}

impl std::ops::Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the guest ends well");
        }
    }
}

struct Connection {
    handle: SocketHandle,
    received: usize,
    sent: usize,
}

fn listening(stack: &mut Stack) -> Connection {
    let mut socket = stack::new_socket();
    socket.listen(GUEST_PORT).expect("a port");
    Connection { handle: stack.add(socket), received: 0, sent: 0 }
}

fn serve(mut stack: Stack, program: Program, stop: &AtomicBool) {
    let count = if matches!(program, Program::Absent) { 0 } else { BACKLOG };
    let mut connections: Vec<_> = (0..count).map(|_| listening(&mut stack)).collect();
    while !stop.load(Ordering::Relaxed) {
        while stack.turn() {
            for connection in &mut connections {
                step(&mut stack, program, connection);
                if !stack.socket(connection.handle).is_open() {
                    stack.remove(connection.handle);
                    *connection = listening(&mut stack);
                }
            }
        }
        let pause = stack.timeout().unwrap_or(Duration::from_millis(5));
        let pause = Timespec::try_from(pause.min(Duration::from_millis(5))).expect("short");
        let mut fds = [PollFd::from_borrowed_fd(stack.wire(), PollFlags::IN)];
        poll(&mut fds, Some(&pause)).expect("poll");
    }
}

fn step(stack: &mut Stack, program: Program, connection: &mut Connection) {
    let socket = stack.socket(connection.handle);
    match program {
        Program::Echo => {
            while socket.can_send() && socket.can_recv() {
                let room = (socket.send_capacity() - socket.send_queue()).min(4096);
                let mut bytes = vec![0; room];
                let count = socket.recv_slice(&mut bytes).expect("can_recv");
                socket.send_slice(&bytes[..count]).expect("can_send");
            }
        }
        Program::Count => {
            while let Ok(count) = socket.recv(|bytes| (bytes.len(), bytes.len())) {
                connection.received += count;
                if count == 0 {
                    break;
                }
            }
        }
        Program::Send(total) => {
            while socket.can_send() && connection.sent < total {
                let (sent, left) = (connection.sent, total - connection.sent);
                let count = socket.send(|room| {
                    let count = room.len().min(left);
                    for (offset, byte) in room[..count].iter_mut().enumerate() {
                        *byte = pattern(sent + offset);
                    }
                    (count, count)
                });
                connection.sent += count.expect("can_send");
            }
            if connection.sent == total {
                socket.close();
            }
        }
        Program::Idle | Program::Absent => {}
    }
    let ended = matches!(socket.recv(|bytes| (0, bytes.len())), Err(RecvError::Finished));
    if ended && socket.may_send() && !matches!(program, Program::Idle) {
        if matches!(program, Program::Count) {
            let answer = connection.received.to_string();
            socket.send_slice(answer.as_bytes()).expect("an empty buffer");
        }
        socket.close();
    }
}

/// A byte that tells its place in a stream.
fn pattern(place: usize) -> u8 {
    u8::try_from((place ^ (place >> 8) ^ (place >> 16)) & 0xff).expect("a byte")
}

/// The host's side: a published port that leads to the member behind `guest`.
fn published(guest: &UdpSocket) -> (Ports, SocketAddr) {
    let listen = free_port();
    (Ports::open(gateway(guest, listen)).expect("published"), listen)
}

fn free_port() -> SocketAddr {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    free.local_addr().expect("bound")
}

fn gateway(guest: &UdpSocket, listen: SocketAddr) -> Gateway {
    let socket = bound();
    Gateway {
        network: "net".to_owned(),
        key: Secret32::new(HOST_KEY),
        endpoint: socket.local_addr().expect("bound"),
        socket,
        ports: vec![gateway_port(guest, listen, GUEST_KEY)],
    }
}

fn gateway_port(guest: &UdpSocket, listen: SocketAddr, key: [u8; 32]) -> GatewayPort {
    GatewayPort {
        workload: "web".to_owned(),
        listen,
        key: Public32(PrivateKey::new(key).public().0),
        endpoint: guest.local_addr().expect("bound"),
        target: GUEST_PORT,
    }
}

fn bound() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.set_nonblocking(true).expect("nonblocking");
    socket
}

fn connect(listen: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(listen).expect("the host listens");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    client
}

/// A guest with a program, and a client connected to its published port.
fn with(program: Program) -> (Guest, Ports, TcpStream) {
    let socket = bound();
    let guest = Guest::start(&socket, program);
    let (ports, listen) = published(&socket);
    (guest, ports, connect(listen))
}

#[test]
fn bytes_go_both_ways() {
    let (_guest, _ports, mut client) = with(Program::Echo);
    for text in ["hello", "again"] {
        client.write_all(text.as_bytes()).expect("sent");
        let mut answer = vec![0; text.len()];
        client.read_exact(&mut answer).expect("answered");
        assert_eq!(answer, text.as_bytes());
    }
}

#[test]
fn the_clients_end_reaches_the_guest_while_the_answer_still_comes() {
    let (_guest, _ports, mut client) = with(Program::Count);
    client.write_all(&[1; 10_000]).expect("sent");
    client.shutdown(Shutdown::Write).expect("half closed");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("answered");
    assert_eq!(answer, "10000");
}

#[test]
fn the_guests_end_reaches_the_client_after_all_its_bytes() {
    let total = 3 << 20;
    let (_guest, _ports, mut client) = with(Program::Send(total));
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).expect("all of it");
    assert_eq!(bytes.len(), total);
    assert!(bytes.iter().enumerate().all(|(place, byte)| *byte == pattern(place)));
}

#[test]
fn a_large_transfer_survives_an_echo() {
    let (_guest, _ports, client) = with(Program::Echo);
    let total = 4 << 20;
    let mut writer = client.try_clone().expect("a second descriptor");
    let sender = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..total).map(pattern).collect();
        writer.write_all(&bytes).expect("sent");
        writer.shutdown(Shutdown::Write).expect("half closed");
    });
    let (mut reader, mut bytes) = (client, Vec::new());
    reader.read_to_end(&mut bytes).expect("all of it");
    sender.join().expect("sent");
    assert_eq!(bytes.len(), total);
    assert!(bytes.iter().enumerate().all(|(place, byte)| *byte == pattern(place)));
}

#[test]
fn a_guest_that_reads_nothing_slows_its_client_down() {
    let (_guest, _ports, mut client) = with(Program::Idle);
    client.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    let piece = [0; 64 << 10];
    let mut taken = 0;
    let refused = loop {
        match client.write(&piece) {
            Ok(count) => taken += count,
            Err(error) => break error,
        }
        assert!(taken < 64 << 20, "nothing holds the client back");
    };
    assert!(matches!(refused.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{refused}");
}

#[test]
fn a_port_that_the_guest_does_not_serve_resets_the_client() {
    let (_guest, _ports, mut client) = with(Program::Absent);
    let refused = client.read(&mut [0]).expect_err("no clean end");
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn many_connections_share_one_port() {
    let socket = bound();
    let _guest = Guest::start(&socket, Program::Echo);
    let (_ports, listen) = published(&socket);
    for round in 0..10u8 {
        let mut clients: Vec<_> = (0..4).map(|_| connect(listen)).collect();
        for client in &mut clients {
            client.write_all(&[round]).expect("sent");
        }
        for client in &mut clients {
            let mut answer = [0];
            client.read_exact(&mut answer).expect("answered");
            assert_eq!(answer, [round]);
        }
    }
}

#[test]
fn a_guest_that_started_anew_is_reached_anew() {
    let socket = bound();
    let (_ports, listen) = published(&socket);
    let first = Guest::start(&socket, Program::Echo);
    let mut before = connect(listen);
    before.write_all(b"a").expect("sent");
    before.read_exact(&mut [0]).expect("answered");
    drop(first);
    let _second = Guest::start(&socket, Program::Echo);
    let mut after = connect(listen);
    after.write_all(b"b").expect("sent");
    after.read_exact(&mut [0]).expect("answered by the second");
    // The new guest knows nothing of the old connection, and says so.
    before.write_all(b"c").expect("sent");
    let outcome = before.read(&mut [0]);
    assert!(matches!(&outcome, Err(error) if error.kind() == ErrorKind::ConnectionReset));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let guest = bound();
    let (_ports, listen) = published(&guest);
    let gateway = gateway(&guest, listen);
    let refused = Ports::open(gateway).expect_err("taken").to_string();
    assert!(refused.contains(&format!("port {} of web", listen.port())), "{refused}");
}

#[test]
fn closing_the_ports_closes_their_connections() {
    let (_guest, ports, mut client) = with(Program::Echo);
    client.write_all(b"a").expect("sent");
    client.read_exact(&mut [0]).expect("answered");
    drop(ports);
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
}

/// A proxy that this thread drives.
struct Driven {
    proxy: Proxy,
    /// How far the connections' time is ahead of the stack's.
    ahead_ns: u64,
    _stop: UnixStream,
}

impl Driven {
    fn new(gateway: Gateway) -> Self {
        let (_stop, stopped) = UnixStream::pair().expect("a pair");
        Self { proxy: Proxy::open(gateway, stopped).expect("published"), ahead_ns: 0, _stop }
    }

    fn turn(&mut self) -> bool {
        let now_ns = self.proxy.stack.now_ns() + self.ahead_ns;
        self.proxy.turn(now_ns)
    }

    fn count(&self) -> usize {
        self.proxy.splices().count()
    }

    /// Turns until `done` or for ten seconds.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            while self.turn() {}
            if done(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("never {what}");
    }

    /// Turns until the guest has accepted the one connection, and its client has ended or not.
    fn until_connected(&mut self, half_closed: bool) {
        self.until("connected", |driven| {
            let handle = driven.proxy.splices().next().map(Splice::handle);
            handle.is_some_and(|handle| {
                let guest = driven.proxy.stack.socket_ref(handle);
                guest.may_recv() && guest.may_send() != half_closed
            })
        });
    }
}

#[test]
fn a_client_that_resets_frees_its_place() {
    let socket = bound();
    let _guest = Guest::start(&socket, Program::Idle);
    let listen = free_port();
    let mut driven = Driven::new(gateway(&socket, listen));
    // One resets in mid-stream, one after it had ended its own direction.
    for half_closed in [false, true] {
        let mut client = connect(listen);
        client.write_all(b"x").expect("sent");
        if half_closed {
            client.shutdown(Shutdown::Write).expect("half closed");
        }
        driven.until_connected(half_closed);
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("set");
        drop(client);
        driven.until("freed", |driven| driven.count() == 0);
    }
}

#[test]
fn a_connection_that_moves_nothing_is_reset_and_sooner_once_one_side_has_ended() {
    let socket = bound();
    // A guest that never ends, whatever its client does.
    let _guest = Guest::start(&socket, Program::Idle);
    let listen = free_port();
    let mut driven = Driven::new(gateway(&socket, listen));
    for (half_closed, limit_ns) in [(false, splice::IDLE_NS), (true, splice::HALF_IDLE_NS)] {
        let mut client = connect(listen);
        client.write_all(b"x").expect("sent");
        if half_closed {
            client.shutdown(Shutdown::Write).expect("half closed");
        }
        driven.until_connected(half_closed);
        // Half a minute is more than the test takes.
        driven.ahead_ns += limit_ns - 30_000_000_000;
        while driven.turn() {}
        assert_eq!(driven.count(), 1, "not idle for long enough");
        if !half_closed {
            client.write_all(b"y").expect("sent");
            driven.until("moved", |driven| {
                let deadline_ns = driven.proxy.splices().find_map(Splice::deadline_ns);
                deadline_ns.is_some_and(|at_ns| at_ns > driven.ahead_ns + limit_ns)
            });
            driven.ahead_ns += limit_ns - 30_000_000_000;
            while driven.turn() {}
            assert_eq!(driven.count(), 1, "a byte counts");
        }
        driven.ahead_ns += 30_000_000_000;
        driven.until("freed", |driven| driven.count() == 0);
        let reset = client.read(&mut [0]).expect_err("no clean end");
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn idle_clients_of_one_port_leave_the_others_reachable() {
    let (idle, echo) = (bound(), bound());
    let (listen_idle, listen_echo) = (free_port(), free_port());
    // Nobody answers behind the first port; a guest does behind the second.
    let mut gateway = gateway(&idle, listen_idle);
    gateway.ports.push(gateway_port(&echo, listen_echo, OTHER_GUEST_KEY));
    let _guest = Guest::start_as(OTHER_GUEST_KEY, &echo, Program::Echo);
    let _ports = Ports::open(gateway).expect("published");
    // As many as there are places in all: half of them wait in the kernel's backlog.
    let _idle: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect(listen_idle)).collect();
    let mut client = connect(listen_echo);
    client.write_all(b"a").expect("sent");
    client.read_exact(&mut [0]).expect("answered");
}

#[test]
fn every_port_has_a_place_however_many_there_are() {
    let socket = bound();
    for (ports, share) in [(1, 256), (3, 85), (4, 64), (300, 1)] {
        let mut gateway = gateway(&socket, ([127, 0, 0, 1], 0).into());
        let port = gateway.ports.remove(0);
        gateway.ports.extend(std::iter::repeat_n(port, ports));
        assert_eq!(Driven::new(gateway).proxy.share, share, "{ports} ports");
    }
}

#[test]
fn no_more_clients_are_taken_than_there_are_places() {
    let socket = bound();
    let listen = free_port();
    let mut driven = Driven::new(gateway(&socket, listen));
    // Nobody answers for the guest yet, so each of them stays. The kernel's backlog holds 128.
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS_MAX + 50 {
        clients.push(connect(listen));
        driven.turn();
    }
    driven.until("full", |driven| driven.count() == CONNECTIONS_MAX);
    while driven.turn() {}
    assert_eq!(driven.count(), CONNECTIONS_MAX);
    // Places become free when the guest refuses; the clients that waited are served then.
    let _guest = Guest::start(&socket, Program::Absent);
    driven.until("served", |driven| driven.count() == 0);
    for client in &mut clients {
        assert!(client.read(&mut [0]).is_err(), "each is refused in its turn");
    }
}
