//! Two links of ours on a simulated TCP connection.

use mesh_edge::{Event, External, Link, LinkError, SendError};

use crate::{link, output, packet, public};

const SECOND: u64 = 1_000_000_000;

/// Moves what both have to send, in pieces whose sizes follow from the seed, until both are quiet.
fn settle(now_ns: u64, one: &mut Link, two: &mut Link, seed: &mut u64) {
    for _ in 0..100 {
        let (forth, back) = (output(one), output(two));
        if forth.is_empty() && back.is_empty() {
            return;
        }
        deliver(now_ns, two, &forth, seed);
        deliver(now_ns, one, &back, seed);
    }
    panic!("two links never stop talking; seed {seed}");
}

fn deliver(now_ns: u64, to: &mut Link, mut bytes: &[u8], seed: &mut u64) {
    while !bytes.is_empty() {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let size = usize::try_from(*seed >> 58).unwrap() + 1;
        let (piece, rest) = bytes.split_at(size.min(bytes.len()));
        to.receive(now_ns, piece).unwrap();
        bytes = rest;
    }
}

fn external(byte: u8, packet: &[u8]) -> Event {
    Event::Packet(External { from: public(byte), packet: packet.to_vec() })
}

#[test]
fn packets_go_both_ways_and_are_marked_with_their_senders_key() {
    for first_seed in 0..50 {
        let mut seed = first_seed;
        let (mut one, mut two) = (link(1), link(2));
        settle(0, &mut one, &mut two, &mut seed);
        assert_eq!((one.routes(), two.routes()), (1, 1), "seed {first_seed}");
        let forth = packet(one.address(), two.address(), 1360);
        let back = packet(two.address(), one.address(), 0);
        one.send(1, &forth, [1; 12]).unwrap();
        two.send(1, &back, [2; 12]).unwrap();
        settle(1, &mut one, &mut two, &mut seed);
        assert_eq!(two.poll_event(), Some(external(1, &forth)), "seed {first_seed}");
        assert_eq!(one.poll_event(), Some(external(2, &back)), "seed {first_seed}");
        assert_eq!((one.poll_event(), two.poll_event()), (None, None), "seed {first_seed}");
        assert_eq!((one.counters().sent, one.counters().delivered), (1, 1));
    }
}

#[test]
fn an_hour_of_hellos_keeps_the_link_and_the_routes() {
    let (mut one, mut two, mut seed) = (link(1), link(2), 3);
    let mut now = 0;
    while now < 3600 * SECOND {
        settle(now, &mut one, &mut two, &mut seed);
        now = one.next_deadline().min(two.next_deadline());
        one.handle_deadline(now).unwrap();
        two.handle_deadline(now).unwrap();
        assert_eq!((one.routes(), two.routes()), (1, 1), "after {} s", now / SECOND);
    }
    let forth = packet(one.address(), two.address(), 8);
    one.send(now, &forth, [1; 12]).unwrap();
    settle(now, &mut one, &mut two, &mut seed);
    assert_eq!(two.poll_event(), Some(external(1, &forth)));
    assert_eq!(one.counters().over_limit + two.counters().over_limit, 0);
}

#[test]
fn a_silent_peer_ends_the_link_after_seventy_seconds() {
    let mut one = link(1);
    let mut now = 0;
    let ended = (0..100).find_map(|_| {
        now = one.next_deadline();
        one.handle_deadline(now).err()
    });
    assert_eq!((ended, now), (Some(LinkError::Silent), 70 * SECOND));
}

#[test]
fn a_destination_without_a_route_is_asked_for_and_then_given_up() {
    let (mut one, mut two, mut seed) = (link(1), link(2), 5);
    settle(0, &mut one, &mut two, &mut seed);
    let nowhere = public(3).address();
    let lost = packet(one.address(), nowhere, 8);
    assert_eq!(one.send(0, &lost, [1; 12]), Err(SendError::Pending));
    assert_eq!(one.send(0, &lost, [2; 12]), Err(SendError::Pending));
    let mut requests = usize::from(!output(&mut one).is_empty());
    let mut now = 0;
    while now < 15 * SECOND {
        assert_eq!(one.poll_event(), None, "after {now} ns");
        now = one.next_deadline();
        one.handle_deadline(now).unwrap();
        requests += usize::from(!output(&mut one).is_empty());
    }
    assert_eq!(one.poll_event(), Some(Event::Unreachable(nowhere)));
    assert_eq!((requests, now), (5, 15 * SECOND), "asked at 0, 3, 6, 9 and 12 s");
}

#[test]
fn a_route_request_is_answered_although_the_announcement_was_lost() {
    let (mut one, mut two, mut seed) = (link(1), link(2), 7);
    // What the other said at first never arrives: it has been told to somebody else, say.
    output(&mut two);
    let forth = packet(one.address(), two.address(), 8);
    assert_eq!(one.send(0, &forth, [1; 12]), Err(SendError::Pending));
    settle(0, &mut one, &mut two, &mut seed);
    assert_eq!(one.poll_event(), Some(Event::Reachable(two.address())));
    one.send(0, &forth, [1; 12]).unwrap();
    settle(0, &mut one, &mut two, &mut seed);
    assert_eq!(two.poll_event(), Some(external(1, &forth)));
}

#[test]
fn only_the_edges_own_packets_go_out() {
    let (mut one, mut two, mut seed) = (link(1), link(2), 9);
    settle(0, &mut one, &mut two, &mut seed);
    let (own, other) = (one.address(), two.address());
    let native = public(9).address();
    let mut send = |packet: &[u8]| one.send(0, packet, [1; 12]);
    assert_eq!(send(&packet(native, other, 8)), Err(SendError::NotOurs));
    assert_eq!(send(&packet(own, own, 8)), Err(SendError::NotOurs));
    assert_eq!(send(&packet(own, other, 1361)), Err(SendError::NoPacket));
    assert_eq!(send(&packet(own, other, 8)[..47]), Err(SendError::NoPacket));
    let mut tired = packet(own, other, 8);
    tired[7] = 1;
    assert_eq!(send(&tired), Err(SendError::NoPacket));
    assert_eq!(send(&[]), Err(SendError::NoPacket));
    assert_eq!(output(&mut one), []);
}
