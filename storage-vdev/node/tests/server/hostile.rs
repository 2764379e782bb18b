//! Clients that mean harm, and those that are merely slow.

use std::io::{Read, Write};
use std::sync::Arc;

use storage_node::server::Limits;
use storage_vdev::node::{NodeError, Nodes, Response};
use storage_vdev::wire::Client;
use storage_vdev::wire::handshake::{HandshakeError, HelloReader, hello};

use crate::world::{Served, config, content, get, node_key, now_ns, owner, put, serve};

/// Whether the server closes the connection, having sent no more than a few bytes.
fn is_closed(stream: &mut impl Read) -> bool {
    let mut bytes = Vec::new();
    // A reset counts: the server closed with something unread.
    stream.read_to_end(&mut bytes).map_or(true, |count| count < 1000)
}

/// The server still serves others.
fn assert_serves(served: &Served) {
    let mut volume = served.volume(vec![owner()]);
    assert_eq!(volume.ask(put(99, b"works")), Ok(Response::Done));
    assert_eq!(volume.ask(get(99)), Ok(Response::Bytes("works".into())));
}

/// A session that stands, with its socket and both ends' state in hand.
fn session(served: &Served) -> (std::os::unix::net::UnixStream, Client) {
    let mut stream = served.unix();
    let config = Arc::new(config("disk0", node_key().public(), vec![owner()]));
    let mut client = Client::new(config, [7; 32]).unwrap();
    send(&mut stream, &mut client);
    let mut answer = [0; 8 + 32 + 16 + 16];
    stream.read_exact(&mut answer).unwrap();
    client.read_buffer().extend_from_slice(&answer);
    client.receive();
    assert!(client.is_open());
    (stream, client)
}

fn take(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !client.outgoing().is_empty() {
        let count = client.outgoing().len();
        bytes.extend_from_slice(client.outgoing());
        client.sent(count);
    }
    bytes
}

fn send(stream: &mut impl Write, client: &mut Client) {
    stream.write_all(&take(client)).unwrap();
}

#[test]
fn whoever_speaks_another_protocol_is_sent_away() {
    let served = serve(Limits::default());
    for greeting in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 300], &[0xff; 8]] {
        let mut stream = served.unix();
        stream.write_all(greeting).unwrap();
        assert!(is_closed(&mut stream), "{greeting:?}");
    }
    assert_serves(&served);
}

#[test]
fn another_version_is_told_this_one() {
    let served = serve(Limits::default());
    let mut stream = served.unix();
    let mut newer = hello(96);
    newer[4] = 9;
    stream.write_all(&newer).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, hello(0));
    let mut reader = HelloReader::default();
    reader.push(&newer);
    assert_eq!(reader.message(), Err(HandshakeError::Version(9)));
}

#[test]
fn a_hello_that_does_not_verify_is_sent_away() {
    let served = serve(Limits::default());
    let mut stream = served.unix();
    stream.write_all(&[&hello(101)[..], &[5; 101]].concat()).unwrap();
    assert!(is_closed(&mut stream));
    assert_eq!(served.metric("hypha_shard_handshakes_failed_total"), 1);
    assert_serves(&served);
}

#[test]
fn a_replayed_session_gets_nothing() {
    let served = serve(Limits::default());
    let (mut stream, mut client) = session(&served);
    client.submit(1, put(1, b"mine"));
    let recorded = take(&mut client);
    stream.write_all(&recorded).unwrap();
    let mut first = served.unix();
    // The recorded hello is taken, but what follows was sealed for another answer.
    let config = Arc::new(config("disk0", node_key().public(), vec![owner()]));
    let replayed_hello = take(&mut Client::new(config, [7; 32]).unwrap());
    first.write_all(&replayed_hello).unwrap();
    first.read_exact(&mut [0; 72]).unwrap();
    first.write_all(&recorded).unwrap();
    assert!(is_closed(&mut first));
    assert_serves(&served);
}

#[test]
fn a_frame_that_is_sent_twice_ends_the_session() {
    let served = serve(Limits::default());
    let (mut stream, mut client) = session(&served);
    let authorise = take(&mut client);
    stream.write_all(&authorise).unwrap();
    stream.write_all(&authorise).unwrap();
    assert!(is_closed(&mut stream));
    assert_serves(&served);
    assert_eq!(served.metric("hypha_shard_sessions_broken_total{store=\"disk0\"}"), 1);
}

#[test]
fn a_length_beyond_the_limit_ends_the_session_at_once() {
    let served = serve(Limits::default());
    for length in [u32::MAX, 5 << 20, 3] {
        let (mut stream, mut client) = session(&served);
        send(&mut stream, &mut client);
        stream.write_all(&length.to_le_bytes()).unwrap();
        assert!(is_closed(&mut stream), "{length}");
    }
    assert_serves(&served);
}

#[test]
fn a_slow_handshake_ends() {
    let served = serve(Limits { handshake_ns: 200_000_000, ..Limits::default() });
    let mut stream = served.unix();
    stream.write_all(b"HY").unwrap();
    assert!(is_closed(&mut stream));
    assert_serves(&served);
    assert_eq!(served.metric("hypha_shard_handshakes_failed_total"), 1);
}

#[test]
fn a_session_that_brings_no_whole_message_ends() {
    let served = serve(Limits { idle_ns: 300_000_000, ..Limits::default() });
    let (mut stream, mut client) = session(&served);
    client.submit(1, put(1, &content(1, 100_000)));
    let bytes = take(&mut client);
    // A byte now and then is no message.
    let mut sent = 0;
    let ended = bytes.chunks(1).take(400).any(|byte| {
        sent += 1;
        std::thread::sleep(std::time::Duration::from_millis(10));
        stream.write_all(byte).is_err()
    });
    assert!(ended || is_closed(&mut stream), "after {sent} bytes");
    assert_eq!(served.metric("hypha_shard_sessions_idle_total{store=\"disk0\"}"), 1);
    assert_serves(&served);
}

#[test]
fn whoever_takes_no_answers_hurts_nobody_else_and_is_parted_with() {
    // Long beside what an answer takes on a busy machine.
    let limits = Limits { idle_ns: 20_000_000_000, unsent_bytes: 1 << 20, ..Limits::default() };
    let served = serve(limits);
    let big = content(1, 1 << 20);
    assert_eq!(served.volume(vec![owner()]).ask(put(1, &big)), Ok(Response::Done));
    let (mut stream, mut client) = session(&served);
    stream.set_nonblocking(true).unwrap();
    (0..2_000).for_each(|tag| client.submit(tag, get(1)));
    let requests = take(&mut client);
    // What the server doesn't read is not our loss.
    let taken = stream.write(&requests).unwrap();
    assert!(taken > 1000);
    let mut volume = served.volume(vec![owner()]);
    for _ in 0..20 {
        match volume.ask(get(1)) {
            Ok(Response::Bytes(bytes)) => assert!(*bytes == *big, "not what was put"),
            other => panic!("{other:?}"),
        }
    }
    let sent = served.metric("hypha_shard_sent_bytes_total{store=\"disk0\"}");
    assert!(sent < 40 << 20, "{sent} bytes went to somebody who reads nothing");
    let until = now_ns() + 120_000_000_000;
    let idle = "hypha_shard_sessions_idle_total{store=\"disk0\"}";
    while served.metric(idle) == 0 {
        assert!(now_ns() < until, "still there");
        std::thread::sleep(std::time::Duration::from_millis(20));
        volume.nodes.poll(now_ns());
    }
}

#[test]
fn more_connections_than_the_limit_are_sent_away() {
    let served = serve(Limits { connections: 3, ..Limits::default() });
    let (_first, _second) = (session(&served), session(&served));
    let third = session(&served);
    assert!(is_closed(&mut served.unix()));
    drop(third);
    let until = now_ns() + 10_000_000_000;
    while served.metric("hypha_shard_connections") > 2 {
        assert!(now_ns() < until, "a closed connection still counts");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_serves(&served);
}

#[test]
fn handshakes_are_rationed() {
    let served = serve(Limits { handshakes_per_second: 1, ..Limits::default() });
    let mut served_count = 0;
    for seed in 0..5 {
        let mut stream = served.unix();
        let config = Arc::new(config("disk0", node_key().public(), Vec::new()));
        send(&mut stream, &mut Client::new(config, [seed; 32]).unwrap());
        served_count += u32::from(stream.read_exact(&mut [0; 72]).is_ok());
    }
    assert!((1..5).contains(&served_count), "{served_count}");
}

#[test]
fn a_client_that_goes_in_the_middle_of_a_put_leaves_nothing() {
    let served = serve(Limits::default());
    let (mut stream, mut client) = session(&served);
    client.submit(1, put(1, &content(1, 1 << 20)));
    let bytes = take(&mut client);
    stream.write_all(&bytes[..bytes.len() - 1]).unwrap();
    drop(stream);
    let mut volume = served.volume(vec![owner()]);
    assert_eq!(volume.ask(get(1)), Err(NodeError::NotFound));
}
