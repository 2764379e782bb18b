//! The kernel's sockets, on loopback, which is listed for it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use mesh_egress::host::HostSockets;
use mesh_egress::sockets::{Kind, Ready, SocketError, Sockets, Token};

/// Waits until the socket can do something; panics if it never can.
#[expect(clippy::disallowed_methods, reason = "a test's patience with real sockets")]
fn wait(sockets: &mut HostSockets, token: Token, wanted: impl Fn(&Ready) -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    let mut events = Vec::new();
    while Instant::now() < until {
        sockets.ready(&mut events);
        if events.iter().any(|ready| ready.token == token && wanted(ready)) {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("nothing happened at {token:?}: {events:?}");
}

fn read(sockets: &mut HostSockets, token: Token, count: usize) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 100]);
    while all.len() < count {
        match sockets.receive(token, &mut buffer) {
            Ok(0) => break,
            Ok(len) => all.extend_from_slice(&buffer[..len]),
            Err(SocketError::WouldBlock) => wait(sockets, token, |ready| ready.readable),
            Err(error) => panic!("{error}"),
        }
    }
    all
}

#[test]
fn a_connection_carries_bytes_and_their_end_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let (mut sockets, token) = (HostSockets::new().unwrap(), Token(1));
    sockets.open(token, Kind::Tcp, to).unwrap();
    wait(&mut sockets, token, |ready| ready.writable);
    assert_eq!(sockets.outcome(token), Ok(()));
    assert_eq!(sockets.send(token, b"hello"), Ok(5));
    assert_eq!(sockets.receive(token, &mut [0; 9]), Err(SocketError::WouldBlock));
    sockets.finish(token);
    assert_eq!(read(&mut sockets, token, 5), b"hello");
    assert_eq!(read(&mut sockets, token, 1), b"");
    server.join().unwrap();
    sockets.close(token);
    assert_eq!(sockets.send(token, b"a"), Err(SocketError::Broken));
}

#[test]
fn a_closed_port_refuses() {
    let to = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut sockets, token) = (HostSockets::new().unwrap(), Token(1));
    let outcome = match sockets.open(token, Kind::Tcp, to) {
        Ok(()) => {
            wait(&mut sockets, token, |ready| ready.writable);
            sockets.outcome(token)
        }
        refused => refused,
    };
    assert_eq!(outcome, Err(SocketError::Refused));
}

#[test]
fn flows_of_datagrams_share_a_port_and_hear_only_their_own() {
    let (one, two) = (UdpSocket::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
    let (one, two) = (one.unwrap(), two.unwrap());
    let mut sockets = HostSockets::new().unwrap();
    sockets.open(Token(1), Kind::Udp { port: None }, one.local_addr().unwrap()).unwrap();
    let port = sockets.port(Token(1)).unwrap();
    sockets.open(Token(2), Kind::Udp { port: Some(port) }, two.local_addr().unwrap()).unwrap();
    sockets.send(Token(1), b"one").unwrap();
    sockets.send(Token(2), b"two").unwrap();
    let mut buffer = [0; 9];
    let (len, from_one) = one.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"one");
    let (len, from_two) = two.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from_two), (&b"two"[..], from_one));
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other.send_to(b"spoofed", from_one).unwrap();
    two.send_to(b"answer", from_one).unwrap();
    wait(&mut sockets, Token(2), |ready| ready.readable);
    assert_eq!(read(&mut sockets, Token(2), 6), b"answer");
    assert_eq!(sockets.receive(Token(1), &mut buffer), Err(SocketError::WouldBlock));
}

#[test]
fn an_unreachable_port_of_udp_is_told() {
    let to = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut sockets, token) = (HostSockets::new().unwrap(), Token(1));
    sockets.open(token, Kind::Udp { port: None }, to).unwrap();
    sockets.send(token, b"a").unwrap();
    wait(&mut sockets, token, |ready| ready.readable);
    assert_eq!(sockets.receive(token, &mut [0; 9]), Err(SocketError::Refused));
}

#[test]
fn the_hosts_own_addresses_are_known() {
    let mut sockets = HostSockets::new().unwrap();
    assert!(sockets.is_own(Ipv4Addr::LOCALHOST));
    assert!(sockets.is_own(Ipv4Addr::UNSPECIFIED));
    let elsewhere = SocketAddr::from(([203, 0, 113, 77], 0));
    // Nobody has an address of the documentation's, unless the host lets sockets be bound to any.
    let nonlocal = std::fs::read_to_string("/proc/sys/net/ipv4/ip_nonlocal_bind").unwrap();
    assert_eq!(
        sockets.is_own(Ipv4Addr::new(203, 0, 113, 77)),
        nonlocal.trim() == "1",
        "{elsewhere}"
    );
}

#[test]
fn an_echo_comes_back_where_the_host_allows_ping_sockets() {
    let mut sockets = HostSockets::new().unwrap();
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    match sockets.open(Token(1), Kind::Echo, to) {
        Err(error) => assert_eq!(error, SocketError::Exhausted),
        Ok(()) => {
            sockets.send(Token(1), &[8, 0, 0, 0, 0, 0, 0, 7, b'a']).unwrap();
            let reply = read(&mut sockets, Token(1), 9);
            assert_eq!((reply[0], &reply[6..]), (0, &[0, 7, b'a'][..]));
        }
    }
}
