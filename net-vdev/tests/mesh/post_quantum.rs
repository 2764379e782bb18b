//! The post-quantum half of handshakes: on paths that can't carry it whole, and with peers that
//! don't have it.

use net_vdev::reassembly::BYTES_MAX;
use net_vdev::session::handshake::{NOISE_NAME, PROLOGUE};
use net_vdev::wire::{self, MacKey};
use net_vdev::{DropReason, Endpoint, PostQuantum};
use noise_ring::Primitives;

use crate::hostile::stranger;
use crate::world::{Dice, SECOND, World};

/// What a path of 1280 bytes leaves for a datagram: IPv6 and UDP headers take the rest.
const NARROW: usize = 1280 - 48;

#[test]
fn every_handshake_between_members_has_the_post_quantum_half() {
    let mut world = World::new(2, 51);
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &packet));
    let handshakes: Vec<_> = world.seen.iter().filter(|(_, _, bytes)| bytes[1] != 3).collect();
    let sizes: Vec<_> = handshakes.iter().map(|(_, _, bytes)| (bytes[1], bytes.len())).collect();
    assert_eq!(sizes, [(1, 1344), (8, 1184)]);
}

#[test]
fn a_path_too_narrow_for_an_initiation_carries_it_in_two_pieces_at_the_second_try() {
    for (sender, reader) in [(0, 1), (1, 0)] {
        let mut world = World::new(2, 52);
        world.faults.lose_longer = Some(NARROW);
        let packet = world.send(sender, reader);
        world.run(2 * SECOND);
        assert!(world.got_once(reader, &packet));
        let kinds: Vec<_> = world.seen.iter().map(|(_, _, bytes)| bytes[1]).collect();
        assert_eq!(kinds, [1, 7, 7, 8, 3]);
        assert_eq!(world.members[sender].endpoint.counters().initiations_sent, 2);
        let held = world.members[reader].endpoint.occupancy();
        assert!(held.piece_bytes <= BYTES_MAX);
    }
}

#[test]
fn a_narrow_path_that_loses_much_delays_a_handshake_and_no_more() {
    for seed in 0..20 {
        let mut world = World::new(2, seed);
        world.faults.lose_longer = Some(NARROW);
        world.faults.lose = 150;
        world.faults.repeat = 150;
        world.send(0, 1);
        world.run(60 * SECOND);
        let peer = world.members[1].key();
        assert!(world.members[0].endpoint.is_connected(&peer), "seed {seed}");
    }
}

#[test]
fn a_narrow_path_in_a_flood_carries_the_cookie_round_too() {
    let mut world = World::new(2, 53);
    world.faults.lose_longer = Some(NARROW);
    let (from, to) = (world.members[0].place, world.members[1].place);
    let key = world.members[0].config.private_key.clone();
    let packet = world.send(0, 1);
    world.run(SECOND / 4);
    for number in 0..20 {
        // Somebody at the peer's address uses up what is read without a cookie.
        let noise = crate::hostile::initiation(&mut world, 1, &key, number);
        world.inject(from, to, noise);
    }
    world.seen.clear();
    world.run(SECOND / 4);
    let answered = world.seen.iter().any(|(_, to, bytes)| *to == from && bytes[1] == 4);
    assert!(answered, "the initiation in pieces was answered with a cookie");
    world.run(10 * SECOND);
    assert!(world.got_once(1, &packet));
}

#[test]
fn a_flood_of_pieces_leaves_a_bounded_trace_and_gets_no_answer() {
    let mut world = World::new(2, 54);
    let to = world.members[1].place;
    for number in 0..5000 {
        let [first, second] = wire::fragments(&[7; 1344], number as u32);
        let piece = if number % 2 == 0 { first } else { second };
        world.inject(stranger(number), to, piece);
    }
    let member = &world.members[1].endpoint;
    assert!(member.occupancy().piece_bytes <= BYTES_MAX);
    assert!(member.counters().dropped(DropReason::HandshakePiece) > 4000);
    assert!(world.seen.is_empty());
    // What comes in two pieces has to be a handshake message, whatever else it would be.
    for whole in [wire::data_header(1, 2).repeat(20), wire::fragments(&[7; 90], 1)[0].clone()] {
        for piece in wire::fragments(&whole, 9) {
            world.inject(stranger(1), to, piece);
        }
    }
    assert_eq!(world.members[1].endpoint.counters().dropped(DropReason::Wire), 2);
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &packet));
}

/// An initiation of member 0 to member 1 as a build without the post-quantum half would make it.
fn classical_initiation(world: &World, private_key: &[u8; 32]) -> Vec<u8> {
    let responder = world.members[1].key();
    let mut state = snow::Builder::with_resolver(
        NOISE_NAME.parse().unwrap(),
        Box::new(Primitives::new([9; 32])),
    )
    .psk(2, &[0; 32])
    .unwrap()
    .prologue(PROLOGUE)
    .unwrap()
    .local_private_key(private_key)
    .unwrap()
    .remote_public_key(&responder.0)
    .unwrap()
    .build_initiator()
    .unwrap();
    let mut offer = vec![1, 0b110, 0, 0, 0, 0, 0, 5];
    offer.extend_from_slice(&timestamp());
    let mut noise = [0; 116];
    assert_eq!(state.write_message(&offer, &mut noise).unwrap(), 116);
    let mut datagram = Vec::new();
    wire::write_initiation(&mut datagram, &noise, &MacKey::of(&responder));
    datagram
}

fn timestamp() -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&((1u64 << 62) + 1_800_000_000).to_be_bytes());
    bytes
}

#[test]
fn a_peer_without_it_gets_a_session_only_from_a_member_that_does_not_require_it() {
    for (post_quantum, answers) in [(PostQuantum::Upgrade, 1), (PostQuantum::Required, 0)] {
        let mut world = World::new(2, 55);
        let mut config = world.members[1].config.clone();
        config.post_quantum = post_quantum;
        world.members[1].endpoint = Endpoint::new(config, [5; 32]).unwrap();
        // The key that the world gave member 0: the first that it drew.
        let datagram = classical_initiation(&world, &Dice(55).seed());
        let (from, to) = (world.members[0].place, world.members[1].place);
        world.inject(from, to, datagram);
        let counters = world.members[1].endpoint.counters();
        assert_eq!(counters.dropped(DropReason::HandshakePostQuantum), 1 - answers);
        let classical = world.seen.iter().filter(|(_, _, bytes)| bytes[1] == 2).count();
        assert_eq!(classical as u64, answers);
        assert_eq!(world.members[1].endpoint.occupancy().indices as u64, answers);
    }
}
