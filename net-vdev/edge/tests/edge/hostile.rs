//! What a mycelium node, or anybody beyond it, may try.

use std::net::Ipv6Addr;

use mesh_edge::wire::{Control, Data, INFINITY, Packet, Prefix, RouterId, parse};
use mesh_edge::{EdgeKey, Event, Link, SendError};
use net_vdev::PublicKey;

use crate::{key, link, output, packet, public};

const SECOND: u64 = 1_000_000_000;

fn update(key: PublicKey, prefix: Prefix, metric: u16) -> Vec<u8> {
    let router = RouterId { key, zone: 0, incarnation: [0; 6] };
    let mut bytes = Vec::new();
    Control::Update { interval: 30_000, seqno: 0, metric, prefix, router }.write(&mut bytes);
    bytes
}

fn own_update(key: PublicKey) -> Vec<u8> {
    update(key, Prefix::of(key.address(), 64), 10)
}

/// A data packet with these outer addresses whose body `sealer` made for `to`.
fn sealed(sealer: &EdgeKey, to: &Link, outer: (Ipv6Addr, Ipv6Addr), inner: &[u8]) -> Vec<u8> {
    let reader = [1, 2, 3].into_iter().map(public).find(|it| it.address() == to.address());
    let body = sealer.agree(&reader.unwrap()).unwrap().seal(inner, [9; 12]).unwrap();
    let mut bytes = Vec::new();
    let data = Data { hop_limit: 3, source: outer.0, destination: outer.1, body: &body };
    data.write(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_packet_that_claims_anothers_address_inside_is_dropped() {
    let mut edge = link(1);
    let (own, liar) = (edge.address(), public(2).address());
    edge.receive(0, &own_update(public(2))).unwrap();
    for (source, destination) in
        [(public(3).address(), own), (own, own), (liar, public(3).address())]
    {
        let bytes = sealed(&key(2), &edge, (liar, own), &packet(source, destination, 8));
        edge.receive(0, &bytes).unwrap();
    }
    // Another address of the sender's own /64 is no address of its key either.
    let neighbour = Ipv6Addr::from_bits(liar.to_bits() ^ 1);
    let bytes = sealed(&key(2), &edge, (liar, own), &packet(neighbour, own, 8));
    edge.receive(0, &bytes).unwrap();
    assert_eq!(edge.poll_event(), None);
    assert_eq!((edge.counters().spoofed, edge.counters().delivered), (4, 0));
}

#[test]
fn a_packet_that_claims_anothers_address_outside_is_dropped() {
    let mut edge = link(1);
    let own = edge.address();
    let victim = public(3).address();
    edge.receive(0, &own_update(public(2))).unwrap();
    edge.receive(0, &own_update(public(3))).unwrap();
    let bytes = sealed(&key(2), &edge, (victim, own), &packet(victim, own, 8));
    edge.receive(0, &bytes).unwrap();
    assert_eq!(edge.poll_event(), None);
    assert_eq!(edge.counters().forged, 1);
}

#[test]
fn nothing_is_forwarded_and_nobody_elses_route_is_told() {
    let mut edge = link(1);
    output(&mut edge);
    edge.receive(0, &own_update(public(2))).unwrap();
    edge.receive(0, &own_update(public(3))).unwrap();
    let (from, to) = (public(2).address(), public(3).address());
    let transit = sealed(&key(2), &edge, (from, to), &packet(from, to, 8));
    edge.receive(0, &transit).unwrap();
    let mut request = Vec::new();
    let prefix = Some(Prefix::of(to, 64));
    Control::RouteRequest { generation: 0, prefix }.write(&mut request);
    edge.receive(0, &request).unwrap();
    assert_eq!((output(&mut edge), edge.poll_event()), (vec![], None));
    assert_eq!(edge.counters().not_ours, 1);

    // "Tell me all" gets the edge's own route.
    let mut request = Vec::new();
    Control::RouteRequest { generation: 0, prefix: None }.write(&mut request);
    edge.receive(0, &request).unwrap();
    let answer = output(&mut edge);
    let Ok(Some((Packet::Control(Control::Update { prefix, router, .. }), taken))) = parse(&answer)
    else {
        panic!("{answer:02x?}")
    };
    assert_eq!((prefix, router.key), (Prefix::of(edge.address(), 64), public(1)));
    assert_eq!(taken, answer.len());
}

#[test]
fn updates_that_break_mycelium_rules_are_refused() {
    let mut edge = link(1);
    let other = public(2);
    let foreign = Prefix::of(public(3).address(), 64);
    let wide = Prefix::of(other.address(), 63);
    let outside = Prefix::of(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 64);
    for prefix in [foreign, wide, outside, Prefix::of(Ipv6Addr::UNSPECIFIED, 0)] {
        edge.receive(0, &update(other, prefix, 1)).unwrap();
        assert_eq!(edge.routes(), 0, "{prefix:?}");
    }
    edge.receive(0, &own_update(public(1))).unwrap();
    assert_eq!(edge.routes(), 0, "a peer tells the edge where the edge is");
    assert_eq!(edge.counters().refused_updates, 5);
    edge.receive(0, &update(other, Prefix::of(other.address(), 128), 1)).unwrap();
    assert_eq!(edge.routes(), 1);
    edge.receive(0, &update(other, Prefix::of(other.address(), 128), INFINITY)).unwrap();
    assert_eq!(edge.routes(), 0);
}

#[test]
fn a_route_that_is_not_told_again_ends() {
    let mut edge = link(1);
    edge.receive(0, &own_update(public(2))).unwrap();
    let to = packet(edge.address(), public(2).address(), 8);
    edge.send(1049 * SECOND, &to, [1; 12]).unwrap();
    assert_eq!(edge.send(1050 * SECOND, &to, [2; 12]), Err(SendError::Pending));
}

#[test]
fn a_key_of_small_order_gets_nothing_sent_and_nothing_in() {
    let mut edge = link(1);
    let weak = PublicKey([0; 32]);
    edge.receive(0, &own_update(weak)).unwrap();
    let to = packet(edge.address(), weak.address(), 8);
    assert!(matches!(edge.send(0, &to, [1; 12]), Err(SendError::Seal(_))));
    let mut bytes = Vec::new();
    let (source, destination) = (weak.address(), edge.address());
    let data = Data { hop_limit: 3, source, destination, body: &[0; 80] };
    data.write(&mut bytes).unwrap();
    edge.receive(0, &bytes).unwrap();
    assert_eq!((edge.counters().forged, edge.poll_event()), (1, None));
}

#[test]
fn a_flood_of_keys_is_bounded_and_does_not_displace_what_is_used() {
    let mut edge = link(1);
    edge.receive(0, &own_update(public(2))).unwrap();
    let used = packet(edge.address(), public(2).address(), 8);
    edge.send(1, &used, [1; 12]).unwrap();
    for number in 0u32..3000 {
        let mut bytes = [0x55; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        // Slow enough for the rate, so that only the table's bound holds.
        let now = u64::from(number) * SECOND / 100;
        edge.receive(now, &own_update(PublicKey(bytes))).unwrap();
    }
    assert_eq!(edge.routes(), 1024);
    assert_eq!(edge.counters().over_limit, 0);
    assert_eq!(edge.counters().refused_updates, 3001 - 1024);
    let now = 30 * SECOND;
    edge.send(now, &used, [2; 12]).unwrap();

    // What somebody here asks for gets in, and only an idle route goes.
    let wanted = packet(edge.address(), public(3).address(), 8);
    assert_eq!(edge.send(now, &wanted, [3; 12]), Err(SendError::Pending));
    edge.receive(now, &own_update(public(3))).unwrap();
    assert_eq!(edge.poll_event(), Some(Event::Reachable(public(3).address())));
    edge.send(now, &wanted, [4; 12]).unwrap();
    edge.send(now, &used, [5; 12]).unwrap();
    assert_eq!(edge.routes(), 1024);
}

#[test]
fn a_flood_of_questions_gets_a_bounded_number_of_answers() {
    let mut edge = link(1);
    output(&mut edge);
    let mut hello = Vec::new();
    Control::Hello { unicast: true, seqno: 0, interval: 2000 }.write(&mut hello);
    edge.receive(0, &hello.repeat(10_000)).unwrap();
    let answers = output(&mut edge).len() / hello.len();
    assert_eq!(answers, 40, "the burst");
    assert_eq!(edge.counters().over_limit, 10_000 - 40);
}

#[test]
fn strangers_packets_cause_a_bounded_number_of_questions_and_leave_room_for_ours() {
    let mut edge = link(1);
    output(&mut edge);
    for number in 0..10_000u128 {
        let source = Ipv6Addr::from_bits(0x0400 << 112 | number << 64);
        let mut bytes = Vec::new();
        let data = Data { hop_limit: 3, source, destination: edge.address(), body: &[0; 80] };
        data.write(&mut bytes).unwrap();
        edge.receive(0, &bytes).unwrap();
    }
    let questions: Vec<Vec<u8>> = std::iter::from_fn(|| edge.poll_transmit()).collect();
    assert_eq!(questions.len(), 32);
    let ours = packet(edge.address(), public(2).address(), 8);
    assert_eq!(edge.send(0, &ours, [1; 12]), Err(SendError::Pending));
    assert_eq!(edge.counters().unknown_sender, 10_000);
}

#[test]
fn a_connection_that_does_not_drain_holds_a_bounded_output() {
    let mut edge = link(1);
    edge.receive(0, &own_update(public(2))).unwrap();
    let big = packet(edge.address(), public(2).address(), 1360);
    let sent = (0..2000).take_while(|_| edge.send(0, &big, [1; 12]).is_ok()).count();
    assert_eq!(edge.send(0, &big, [1; 12]), Err(SendError::Full));
    let bytes = output(&mut edge).len();
    assert!(sent > 600 && bytes <= 1 << 20, "{sent} packets, {bytes} bytes");
    edge.send(0, &big, [1; 12]).unwrap();
}

#[test]
fn a_caller_that_takes_no_events_holds_bounded_memory() {
    let mut edge = link(1);
    edge.receive(0, &own_update(public(2))).unwrap();
    let addresses = (public(2).address(), edge.address());
    let bytes = sealed(&key(2), &edge, addresses, &packet(addresses.0, addresses.1, 1360));
    for _ in 0..2000 {
        edge.receive(0, &bytes).unwrap();
    }
    let held = std::iter::from_fn(|| edge.poll_event()).count();
    assert_eq!(held, (1 << 20) / 1400);
    assert_eq!(edge.counters().over_limit, 2000 - u64::try_from(held).unwrap());
}

#[test]
fn only_a_newer_number_raises_ours_and_not_more_often_than_allowed() {
    let mut edge = link(1);
    output(&mut edge);
    let router = RouterId { key: public(1), zone: 0, incarnation: [1; 6] };
    let prefix = Prefix::of(edge.address(), 64);
    let mut ask = |now, seqno, router| {
        let mut bytes = Vec::new();
        Control::SeqnoRequest { seqno, hops: 1, router, prefix }.write(&mut bytes);
        edge.receive(now, &bytes).unwrap();
        let answer = output(&mut edge);
        match parse(&answer) {
            Ok(Some((Packet::Control(Control::Update { seqno, .. }), _))) => seqno,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(0, 0, router), 0, "it has that number");
    assert_eq!(ask(0, 0xffff, router), 0, "an older one");
    assert_eq!(ask(0, 1, RouterId { incarnation: [2; 6], ..router }), 0, "an earlier life's");
    assert_eq!(ask(0, 1, router), 1);
    let raised: Vec<u16> = (0..6).map(|_| ask(0, 100, router)).collect();
    assert_eq!(raised, [2, 3, 4, 4, 4, 4], "four at once");
    assert_eq!(ask(SECOND, 100, router), 5, "then one per second");
}
