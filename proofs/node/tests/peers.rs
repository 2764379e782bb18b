//! Connections over loopback: both call at once, one goes away, one sends too much.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use hypha_chain::Address;
use hypha_chain::key::Key;
use proof_node::peers::link::Identity;
use proof_node::peers::{Contact, Incoming, Peers};

fn key(node: u32) -> Key {
    Key::from_bytes(&[node as u8; 32]).unwrap()
}

fn start(node: u32, at: &str) -> (Peers, Receiver<Incoming>) {
    let (inbox, messages) = sync_channel(64);
    let identity = Identity { chain_id: 5, registry: Address::repeat_byte(1), node };
    let deliver = Box::new(move |message| inbox.send(message).is_ok());
    let peers = Peers::start(at.parse().unwrap(), identity, Arc::new(key(node)), deliver).unwrap();
    (peers, messages)
}

fn contacts(of: &[(u32, Option<SocketAddr>)]) -> BTreeMap<u32, Contact> {
    let contact = |address: &Option<SocketAddr>, node: u32| Contact {
        signer: key(node).address(),
        address: *address,
    };
    of.iter().map(|(node, address)| (*node, contact(address, *node))).collect()
}

/// Sends until it arrives: what is sent before there is a connection may be lost.
fn arrives(from: &Peers, to: (u32, &Receiver<Incoming>), bytes: &[u8]) -> Incoming {
    for _ in 0..200 {
        from.send(to.0, bytes.to_vec());
        if let Ok(message) = to.1.recv_timeout(Duration::from_millis(100)) {
            return message;
        }
    }
    panic!("nothing arrives");
}

#[test]
fn who_calls_at_the_same_time_ends_up_with_one_connection() {
    let (one, to_one) = start(1, "127.0.0.1:0");
    let (two, to_two) = start(2, "127.0.0.1:0");
    let all = contacts(&[(1, Some(one.address())), (2, Some(two.address()))]);
    one.know(all.clone());
    two.know(all);
    for round in 0..50_u32 {
        one.send(2, round.to_be_bytes().to_vec());
        two.send(1, round.to_be_bytes().to_vec());
    }
    // All of these may be on the line that is given up: what is said is said again.
    assert_eq!(arrives(&one, (2, &to_two), b"again").from, 1);
    assert_eq!(arrives(&two, (1, &to_one), b"again").from, 2);
    let settled = |peers: &Peers| peers.links() == 1;
    for _ in 0..100 {
        if settled(&one) && settled(&two) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(settled(&one) && settled(&two), "{} and {}", one.links(), two.links());
    while to_two.try_recv().is_ok() {}
    let message = arrives(&one, (2, &to_two), b"after that");
    assert_eq!(message.from, 1);
}

#[test]
fn a_node_that_was_away_is_found_again_and_one_without_an_address_calls() {
    let (one, to_one) = start(1, "127.0.0.1:0");
    let (two, to_two) = start(2, "127.0.0.1:0");
    let at = two.address();
    one.know(contacts(&[(2, Some(at))]));
    // Node 2 does not know where node 1 is.
    two.know(contacts(&[(1, None)]));
    two.send(1, b"nowhere".to_vec());
    assert_eq!(two.counters().dropped.load(Ordering::Relaxed), 1);
    arrives(&one, (2, &to_two), b"hello");
    arrives(&two, (1, &to_one), b"and back on the same line");
    drop(two);
    drop(to_two);
    let (two, to_two) = start(2, &at.to_string());
    two.know(contacts(&[(1, None)]));
    arrives(&one, (2, &to_two), b"again");
}

#[test]
fn strangers_and_unknown_nodes_get_nothing_through() {
    let (one, to_one) = start(1, "127.0.0.1:0");
    one.know(contacts(&[(2, None)]));
    let (three, _) = start(3, "127.0.0.1:0");
    three.know(contacts(&[(1, Some(one.address()))]));
    three.send(1, b"I am not known".to_vec());
    let mut noise = TcpStream::connect(one.address()).unwrap();
    noise.write_all(&[7; 4096]).unwrap();
    let mut answer = Vec::new();
    // It says who it is, and then closes.
    _ = noise.read_to_end(&mut answer);
    assert!(answer.len() <= 80, "{}", answer.len());
    assert!(to_one.recv_timeout(Duration::from_secs(1)).is_err());
    assert!(one.counters().refused.load(Ordering::Relaxed) >= 1);
    one.send(9, b"unknown".to_vec());
    assert_eq!(one.counters().dropped.load(Ordering::Relaxed), 1);
}

/// Connections that never say who they are, each byte just in time: the node calls and is called as before.
#[test]
fn strangers_who_dawdle_keep_nobody_from_anybody() {
    let (one, to_one) = start(1, "127.0.0.1:0");
    let (two, to_two) = start(2, "127.0.0.1:0");
    let (three, _) = start(3, "127.0.0.1:0");
    let over = Arc::new(AtomicBool::new(false));
    let (at, ends) = (one.address(), Arc::clone(&over));
    let (filled, is_filled) = sync_channel(1);
    let dawdling = std::thread::spawn(move || {
        let connect = || TcpStream::connect(at).ok();
        let mut lines: Vec<Option<TcpStream>> = (0..200).map(|_| connect()).collect();
        filled.send(()).unwrap();
        let greeting = *b"hypha peer 1";
        for byte in greeting.iter().cycle() {
            for line in &mut lines {
                let fails = line.as_mut().is_none_or(|it| it.write_all(&[*byte]).is_err());
                if fails {
                    *line = connect();
                }
            }
            if ends.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    is_filled.recv().unwrap();
    one.know(contacts(&[(2, Some(two.address())), (3, None)]));
    two.know(contacts(&[(1, None)]));
    three.know(contacts(&[(1, Some(one.address()))]));
    arrives(&one, (2, &to_two), b"out");
    assert_eq!(arrives(&three, (1, &to_one), b"in").from, 3);
    over.store(true, Ordering::Release);
    dawdling.join().unwrap();
}

#[test]
fn a_reader_that_does_not_read_costs_a_bounded_queue_and_no_time() {
    let (one, _to_one) = start(1, "127.0.0.1:0");
    let (two, to_two) = start(2, "127.0.0.1:0");
    one.know(contacts(&[(2, Some(two.address()))]));
    two.know(contacts(&[(1, None)]));
    arrives(&one, (2, &to_two), b"hello");
    // Nobody takes these out of node 2's inbox, so its reader stops, and node 1's queue fills.
    for _ in 0..200 {
        one.send(2, vec![0; 1 << 20]);
    }
    assert!(one.counters().dropped.load(Ordering::Relaxed) > 50);
}
