//! Floods and forgeries from outside: bounded work, bounded memory, and members keep talking.

use std::net::SocketAddr;

use net_vdev::endpoint::{Control, TRANSMITS_MAX};
use net_vdev::session::handshake::{Offer, Timestamp, initiate};
use net_vdev::wire::{self, MacKey};
use net_vdev::{
    CipherSupport, Config, ConfigError, DropReason, Endpoint, Event, Peer, PostQuantum, PrivateKey,
    Transmit,
};
use proptest::prelude::*;

use crate::by_hand::{sealed, session};
use crate::packets::udp;
use crate::world::{ONE_WAY_NS, PORT, SECOND, World};

pub(crate) fn stranger(number: u64) -> SocketAddr {
    let [.., a, b, c, d] = number.to_be_bytes();
    SocketAddr::from(([a, b, c, d], 4000))
}

/// A true initiation to member `to` under `key`.
pub(crate) fn initiation(world: &mut World, to: usize, key: &PrivateKey, unix_ns: u64) -> Vec<u8> {
    let responder = world.members[to].key();
    let offer = Offer {
        ciphers: CipherSupport { aes_256_gcm: true },
        open_checksums: true,
        index: 5,
        timestamp: Timestamp::from_unix_ns(unix_ns),
    };
    let seed = world.dice.seed();
    let (_, message) = initiate(key, &responder, offer, PostQuantum::Upgrade, seed).unwrap();
    let mut datagram = Vec::new();
    wire::write_initiation(&mut datagram, &message, &MacKey::of(&responder));
    datagram
}

#[test]
fn strangers_get_cookies_at_most_leave_no_state_and_don_t_keep_peers_out() {
    let mut world = World::new(2, 21);
    let before = world.members[1].endpoint.occupancy();
    let key = PrivateKey::new([9; 32]);
    let flood = initiation(&mut world, 1, &key, u64::MAX);
    let place = world.members[1].place;
    for number in 0..300 {
        world.inject(stranger(number), place, flood.clone());
    }
    let counters = world.members[1].endpoint.counters();
    assert_eq!(counters.dropped(DropReason::HandshakeStranger), 50, "so many were read");
    assert_eq!(counters.dropped(DropReason::HandshakeRate), 250);
    assert_eq!(world.members[1].endpoint.occupancy(), before);
    assert!(world.seen.iter().all(|(_, _, bytes)| bytes[1] == 4));
    assert_eq!((world.seen.len() as u64, counters.cookies_sent), (100, 100));
    let packet = world.send(0, 1);
    world.run(3 * ONE_WAY_NS);
    assert!(world.got_once(1, &packet), "the peer's own allowance is untouched");
}

#[test]
fn a_message_for_another_member_costs_no_handshake() {
    let mut world = World::new(2, 22);
    let key = PrivateKey::new([9; 32]);
    let for_another = initiation(&mut world, 0, &key, 1);
    let place = world.members[1].place;
    world.inject(stranger(1), place, for_another);
    assert_eq!(world.members[1].endpoint.counters().dropped(DropReason::HandshakeMac), 1);
}

#[test]
fn a_true_peer_that_floods_with_initiations_is_answered_at_its_rate() {
    let mut world = World::new(2, 23);
    let key = world.members[0].config.private_key.clone();
    let (from, to) = (world.members[0].place, world.members[1].place);
    for number in 0..100 {
        let datagram = initiation(&mut world, 1, &key, 1_800_000_000 * SECOND + number);
        world.hand(1, from, datagram);
    }
    let held = world.members[1].endpoint.occupancy();
    assert_eq!((held.indices, held.timers), (1, 1), "{to}");
    let mut kinds = Vec::new();
    while let Some(Transmit { bytes, .. }) = world.members[1].endpoint.poll_transmit() {
        kinds.push(bytes[1]);
    }
    let count = |kind| kinds.iter().filter(|sent| **sent == kind).count();
    assert_eq!((count(8), count(4)), (10, 90), "the others are asked where they come from");
}

#[test]
fn forged_responses_are_read_at_a_bounded_rate_and_the_true_one_still_counts() {
    let mut world = World::new(2, 31);
    world.faults.lose_kind = Some(8);
    world.send(0, 1);
    world.run(ONE_WAY_NS);
    let (from, to, response) = world.seen.last().cloned().unwrap();
    assert_eq!((response[1], response.len()), (8, 1184));
    let index = u32::from_be_bytes(response[4..8].try_into().unwrap());
    let mac = MacKey::of(&world.members[0].key());
    for bit in 0..50 {
        let (mut noise, mut forged) = (response[8..1152].to_vec(), Vec::new());
        noise[1088 * usize::from(bit % 2 == 1) + 40] ^= 1 << (bit % 8);
        let (ciphertext, noise) = noise.split_first_chunk().unwrap();
        wire::write_response(&mut forged, index, Some(ciphertext), noise, &mac);
        world.inject(from, to, forged);
    }
    let counters = world.members[0].endpoint.counters();
    assert_eq!(counters.dropped(DropReason::HandshakeForged), 10);
    assert_eq!(counters.dropped(DropReason::HandshakeRate), 40);
    world.run(SECOND / 4);
    world.inject(from, to, response);
    assert!(world.members[0].endpoint.is_connected(&world.members[1].key()));
}

#[test]
fn an_old_initiation_is_not_answered_again() {
    let mut world = World::new(2, 24);
    world.send(0, 1);
    world.run(SECOND);
    let sent = world.seen.len();
    let initiations: Vec<_> =
        world.seen.iter().filter(|(_, _, bytes)| bytes[1] == 1).cloned().collect();
    assert_eq!(initiations.len(), 1);
    for (from, to, bytes) in initiations {
        world.inject(from, to, bytes.clone());
        world.inject(stranger(3), to, bytes);
    }
    assert_eq!(world.members[1].endpoint.counters().dropped(DropReason::HandshakeReplayed), 2);
    assert_eq!(world.seen.len(), sent);
}

#[test]
fn a_replay_to_a_restarted_member_confirms_nothing_and_moves_nobody() {
    let mut world = World::new(2, 25);
    world.send(0, 1);
    world.run(SECOND);
    let old = world.seen.clone();
    world.restart(1);
    for (_, to, bytes) in old {
        if to == world.members[1].place {
            world.inject(stranger(4), to, bytes);
        }
    }
    let peer = world.members[0].key();
    assert!(!world.members[1].endpoint.is_connected(&peer));
    let packet = world.send(1, 0);
    world.run(SECOND);
    assert!(world.got_once(0, &packet), "sent to the peer, not to the stranger");
}

#[test]
fn forged_notices_end_no_session_and_start_few_handshakes() {
    let mut world = World::new(2, 26);
    world.send(0, 1);
    world.run(SECOND);
    let (place, peer) = (world.members[0].place, world.members[1].place);
    let data = world.seen.iter().rev().find(|(from, _, bytes)| *from == place && bytes[1] == 3);
    let mut notice = data.unwrap().2[..16].to_vec();
    notice[1] = 5;
    let before = world.members[0].endpoint.counters().initiations_sent;
    for _ in 0..100 {
        world.inject(stranger(5), place, notice.clone());
    }
    assert_eq!(world.members[0].endpoint.counters().initiations_sent, before);
    // Somebody on the path answers each of its datagrams so.
    for _ in 0..100 {
        world.send(0, 1);
        let mut notice = world.seen.last().unwrap().2[..16].to_vec();
        notice[1] = 5;
        world.inject(peer, place, notice);
        world.run(SECOND / 100);
    }
    let started = world.members[0].endpoint.counters().initiations_sent - before;
    assert!((1..=3).contains(&started), "{started} handshakes in a second");
    let packet = world.send(0, 1);
    world.run(ONE_WAY_NS);
    assert!(world.got_once(1, &packet));
}

#[test]
fn data_of_no_session_is_answered_by_few_short_notices() {
    let mut world = World::new(2, 27);
    let place = world.members[0].place;
    for number in 0..1000 {
        let mut datagram = wire::data_header(number, 7).to_vec();
        datagram.extend_from_slice(&[0; 100]);
        world.inject(stranger(u64::from(number)), place, datagram);
    }
    assert_eq!(world.seen.len(), 20);
    assert!(world.seen.iter().all(|(_, _, bytes)| bytes.len() == 16));
}

#[test]
fn queues_that_nobody_empties_stay_bounded() {
    let mut world = World::new(2, 28);
    world.send(0, 1);
    world.run(SECOND);
    let now_ns = world.now_ns;
    let packet = world.send(0, 1);
    for _ in 0..TRANSMITS_MAX + 50 {
        world.members[0].endpoint.send_packet(now_ns, &packet);
    }
    assert_eq!(world.members[0].endpoint.occupancy().transmits, TRANSMITS_MAX);
    assert_eq!(world.members[0].endpoint.counters().dropped(DropReason::OutboundQueue), 50);
}

#[test]
fn a_peer_that_names_addresses_without_end_has_few_of_them_probed() {
    let mut world = World::routed(1, 33);
    let key = PrivateKey::new([9; 32]);
    let (from, to) = (stranger(1), world.members[0].place);
    let member = world.members[0].key();
    let mut session = session(&key, &member, true, |initiation| {
        world.inject(from, to, initiation);
        world.seen.last().unwrap().2.clone()
    });
    world.inject(from, to, sealed(&mut session, &[]));
    world.seen.clear();
    let mut named = 0u32;
    let mut name = |world: &mut World, count: u32| {
        for _ in 0..count {
            let places = (named * 6..named * 6 + 6).map(|number| {
                let [_, b, c, d] = number.to_be_bytes();
                SocketAddr::from(([198, 18 + b, c, d], 9))
            });
            named += 1;
            let mut message = Vec::new();
            Control::Candidates(places.collect()).write(&mut message);
            world.inject(from, to, sealed(&mut session, &message));
        }
    };
    let probes = |world: &World| world.seen.iter().filter(|(_, to, _)| to.port() == 9).count();
    name(&mut world, 1000);
    assert!((6..=4 * 6).contains(&probes(&world)), "{} at once", probes(&world));
    for _ in 0..100 {
        name(&mut world, 10);
        world.run(SECOND / 10);
    }
    // One message a second, eight probes for each address of it.
    assert!(probes(&world) <= (4 + 10) * 6 * 8, "{} in ten seconds", probes(&world));
    let refused = world.members[0].endpoint.counters().dropped(DropReason::InboundControl);
    assert!(refused >= 1980, "{refused}");
}

#[test]
fn a_flood_of_notices_keeps_the_member_from_asking_nothing() {
    let mut world = World::routed(1, 34);
    for number in 0..5000u32 {
        let mut notice = wire::data_header(number, 7);
        notice[1] = 5;
        world.hand(0, stranger(1), notice.to_vec());
    }
    let (source, wanted) = (world.members[0].address(), "402::9".parse().unwrap());
    let packet = udp((source, PORT), (wanted, PORT), b"?");
    world.members[0].endpoint.send_packet(world.now_ns, &packet);
    let mut events = Vec::new();
    while let Some(event) = world.members[0].endpoint.poll_event() {
        events.push(event);
    }
    assert!(matches!(events.pop(), Some(Event::Resolve(_))));
    let lost = world.members[0].endpoint.counters().events_lost;
    assert_eq!(events.len() as u64 + lost, 5000);
    assert!(events.iter().all(|event| matches!(event, Event::UnknownSession { .. })));
}

#[test]
fn a_configuration_that_confuses_members_is_refused() {
    let world = World::new(2, 29);
    let config = world.members[0].config.clone();
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = config.clone();
        change(&mut config);
        Endpoint::new(config, [0; 32]).map(|_| ()).unwrap_err()
    };
    let (own, peer) = (world.members[0].key(), world.members[1].key());
    assert_eq!(refused(&|config| config.peers[0].key = own), ConfigError::OwnKey(own));
    let twice = |config: &mut Config| config.peers.push(config.peers[0].clone());
    assert_eq!(refused(&twice), ConfigError::DuplicatePeer(peer));
    let address = own.address().into();
    assert_eq!(
        refused(&|config| config.peers[0].addresses.push(address)),
        ConfigError::DuplicateAddress(address)
    );
    let shared = "10.0.0.1".parse().unwrap();
    let shares = |config: &mut Config| {
        config.peers[0].addresses.push(shared);
        let key = PrivateKey::new([3; 32]).public();
        config.peers.push(Peer { key, endpoint: None, addresses: vec![shared] });
    };
    assert_eq!(refused(&shares), ConfigError::DuplicateAddress(shared));
    let loopback = "::1".parse().unwrap();
    assert_eq!(
        refused(&|config| config.addresses.push(loopback)),
        ConfigError::UnusableAddress(loopback)
    );
    assert!(refused(&twice).to_string().contains(&peer.to_string()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes, behind a plausible header or not, from a peer's place or not: nothing panics and
    /// the session goes on.
    #[test]
    fn any_datagrams_are_survived(
        datagrams in prop::collection::vec(
            (any::<bool>(), 0u8..10, prop::collection::vec(any::<u8>(), 0..200)), 1..40),
    ) {
        let mut world = World::new(2, 30);
        world.send(0, 1);
        world.run(SECOND);
        let (peer, place) = (world.members[0].place, world.members[1].place);
        for (from_peer, kind, mut bytes) in datagrams {
            if let [version, type_byte, high, low, ..] = bytes.as_mut_slice() {
                [*version, *type_byte, *high, *low] = [1, kind, 0, 0];
            }
            world.inject(if from_peer { peer } else { stranger(1) }, place, bytes);
        }
        world.run(SECOND);
        let packet = world.send(0, 1);
        world.run(SECOND);
        prop_assert!(world.got_once(1, &packet));
    }
}
