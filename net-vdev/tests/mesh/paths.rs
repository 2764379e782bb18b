//! Members that reach each other through routers, and find better ways.

use std::net::SocketAddr;

use net_vdev::endpoint::{PATHS_MAX, Strangers};
use net_vdev::{Config, DropReason, Event, Path, PrivateKey};

use crate::packets::udp;
use crate::world::{MS, Member, ONE_WAY_NS, PORT, SECOND, World};

/// Two members behind routers that have a session.
fn acquainted(seed: u64) -> World {
    let mut world = World::routed(2, seed);
    world.send(0, 1);
    world.resolve();
    world.run(SECOND);
    assert_eq!(world.members[1].got.len(), 1);
    world
}

/// The same, after they told each other where they are.
fn met(seed: u64) -> World {
    let mut world = World::routed(2, seed);
    for member in &mut world.members {
        member.endpoint.set_candidates(vec![member.place]);
    }
    world.send(0, 1);
    world.resolve();
    world.longest_gap_ns((0, 1), 50 * MS, 2 * SECOND);
    assert!(world.path(0, 1).is_direct() && world.path(1, 0).is_direct());
    world
}

fn relayed(world: &World, to: usize, is_alternate: bool) -> Path {
    Path::Relayed { member: world.members[to].key().address(), is_alternate }
}

fn large(world: &World, len: usize) -> Vec<u8> {
    let (from, to) = (world.members[0].address(), world.members[1].address());
    udp((from, PORT), (to, PORT), &vec![7; len - 48])
}

#[test]
fn the_first_packet_to_an_address_waits_for_its_key_and_goes_through_routers() {
    let mut world = World::routed(2, 1);
    let packet = world.send(0, 1);
    let address = world.members[1].key().address();
    assert_eq!(world.members[0].events, [Event::Resolve(address)]);
    let second = world.send(0, 1);
    assert_eq!(world.members[0].events.len(), 1, "asked once");
    world.resolve();
    world.run(3 * world.relays.one_way_ns);
    assert!(world.got_once(1, &packet) && world.got_once(1, &second));
    let answer = world.send(1, 0);
    world.run(world.relays.one_way_ns);
    assert!(world.got_once(0, &answer));
    assert_eq!(world.path(0, 1), relayed(&world, 1, false));
}

#[test]
fn a_member_whose_place_is_told_is_called_there_and_one_with_a_session_is_not_moved_by_that() {
    let mut world = World::routed(3, 1);
    world.relays.are_up = [false; 2];
    let (key, place) = (world.members[1].key(), world.members[1].place);
    assert!(world.members[0].endpoint.learn(world.now_ns, &key, &[place]));
    let packet = world.send(0, 1);
    world.run(3 * ONE_WAY_NS);
    assert!(world.got_once(1, &packet), "after a round trip");
    // The other side has not tried its way itself, and keeps to it all the same.
    let before = world.path(1, 0);
    let (key, wrong) = (world.members[0].key(), world.members[2].place);
    world.members[1].endpoint.learn(world.now_ns, &key, &[wrong]);
    assert_eq!(world.path(1, 0), before);
}

#[test]
fn an_address_that_nobody_has_costs_its_packets_and_no_more() {
    let mut world = World::routed(2, 2);
    let stranger = PrivateKey::new([9; 32]).public().address();
    let from = (world.members[0].address(), PORT);
    let packet = udp(from, (stranger.into(), PORT), &[1]);
    world.send_packet(0, &packet);
    assert_eq!(world.members[0].endpoint.occupancy().waiting, 1);
    world.members[0].endpoint.give_up(&stranger);
    assert_eq!(world.members[0].endpoint.occupancy().waiting, 0);
    world.send_packet(0, &packet);
    world.run(6 * SECOND);
    let endpoint = &world.members[0].endpoint;
    assert_eq!(endpoint.counters().dropped(DropReason::OutboundNoRoute), 2);
    assert_eq!((endpoint.occupancy().waiting, endpoint.next_deadline()), (0, None));
    // Whoever asks for ever new addresses has 64 of them.
    for number in 0..1000u16 {
        let address = std::net::Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, number);
        world.send_packet(0, &udp(from, (address.into(), PORT), &[1]));
    }
    assert_eq!(world.members[0].endpoint.occupancy().waiting, 64);
}

#[test]
fn members_that_know_their_addresses_move_to_the_direct_way_and_lose_nothing() {
    let mut world = World::routed(2, 3);
    for member in &mut world.members {
        member.endpoint.set_candidates(vec![member.place]);
    }
    let mut packets = vec![world.send(0, 1)];
    world.resolve();
    for _ in 0..20 {
        world.run(50 * MS);
        packets.push(world.send(0, 1));
    }
    world.run(SECOND);
    assert!(packets.iter().all(|packet| world.got_once(1, packet)));
    assert_eq!(world.path(0, 1), Path::Direct(world.members[1].place));
    assert_eq!(world.path(1, 0), Path::Direct(world.members[0].place));
}

#[test]
fn a_member_learns_its_own_address_from_those_that_see_it() {
    let mut world = met(4);
    // Member 1 was moved by a NAT; member 0 sees it.
    let outside = SocketAddr::from(([203, 0, 113, 7], 4000));
    world.members[1].place = outside;
    world.longest_gap_ns((1, 0), 50 * MS, SECOND);
    assert!(world.members[1].endpoint.observed().any(|address| address == outside));
}

#[test]
fn a_way_that_is_cut_in_either_direction_is_left_within_half_a_second() {
    for direction in 0..2 {
        for seed in 0..10 {
            let mut world = met(100 + seed);
            let (one, two) = (world.members[0].place, world.members[1].place);
            // The cut comes at any phase of the probes.
            let phase_ns = world.dice.below(400 * MS);
            world.longest_gap_ns((0, 1), 20 * MS, phase_ns);
            world.cut = vec![[(one, two), (two, one)][direction]];
            let gap_ns = world.longest_gap_ns((0, 1), 20 * MS, 2 * SECOND);
            assert!(gap_ns < 500 * MS, "seed {seed}, direction {direction}: {gap_ns} ns");
            let path = Path::Direct(two);
            let peer = world.members[1].key();
            if direction == 0 {
                assert!(world.members[0].events.contains(&Event::PathDied { peer, path }));
            }
            assert!(!world.path(0, 1).is_direct());
            world.cut.clear();
            world.longest_gap_ns((0, 1), 50 * MS, 3 * SECOND);
            assert!(world.path(0, 1).is_direct(), "seed {seed}: back on the direct way");
        }
    }
}

#[test]
fn a_router_that_drops_everything_is_gone_round() {
    let mut world = acquainted(6);
    world.longest_gap_ns((0, 1), 20 * MS, SECOND);
    world.relays.are_up[0] = false;
    let gap_ns = world.longest_gap_ns((0, 1), 20 * MS, 2 * SECOND);
    // A pause between probes, three that wait for three round trips of 40 ms, and some.
    assert!(gap_ns < 700 * MS, "{gap_ns} ns");
    assert_eq!(world.path(0, 1), relayed(&world, 1, true));
    world.relays.are_up[0] = true;
    world.longest_gap_ns((0, 1), 20 * MS, 3 * SECOND);
    world.relays.are_up[1] = false;
    let gap_ns = world.longest_gap_ns((0, 1), 20 * MS, 2 * SECOND);
    // A pause between probes, three that wait for three round trips of 40 ms, and some.
    assert!(gap_ns < 700 * MS, "{gap_ns} ns");
}

#[test]
fn a_packet_that_is_too_large_for_the_routers_goes_in_two_halves() {
    let mut world = acquainted(7);
    for len in [1356, 1357, 1400] {
        let packet = large(&world, len);
        world.send_packet(0, &packet);
        world.run(SECOND);
        assert!(world.got_once(1, &packet), "{len} bytes");
    }
    assert_eq!(world.members[0].endpoint.counters().packets_split, 2);
}

#[test]
fn a_way_that_takes_small_datagrams_only_is_found_out_and_used_all_the_same() {
    let mut world = acquainted(8);
    world.relays.frame_bytes_max = 1232;
    world.longest_gap_ns((0, 1), 50 * MS, 3 * SECOND);
    let packet = large(&world, 1400);
    world.send_packet(0, &packet);
    world.run(SECOND);
    assert!(world.got_once(1, &packet));
    assert_eq!(world.path(0, 1), relayed(&world, 1, false), "the way was never thought dead");
    // And when it takes large ones again, they go whole.
    world.relays.frame_bytes_max = 1452;
    world.longest_gap_ns((0, 1), 50 * MS, 5 * SECOND);
    let split = world.members[0].endpoint.counters().packets_split;
    let packet = large(&world, 1356);
    world.send_packet(0, &packet);
    world.run(SECOND);
    assert!(world.got_once(1, &packet));
    assert_eq!(world.members[0].endpoint.counters().packets_split, split);
}

#[test]
fn members_that_rest_are_silent() {
    let mut world = met(9);
    world.run(3 * SECOND);
    let sent = world.seen.len();
    world.run(60 * SECOND);
    assert_eq!(world.seen.len(), sent);
    let gap_ns = world.longest_gap_ns((0, 1), 20 * MS, SECOND);
    assert!(gap_ns <= 100 * MS, "and traffic starts anew: {gap_ns}");
}

#[test]
fn a_host_that_slept_while_probes_were_under_way_goes_on() {
    let mut world = met(12);
    world.send(0, 1);
    world.run(50 * MS);
    // Nobody calls anybody for a minute; then everything is due at once.
    world.now_ns += 60 * SECOND;
    for member in &mut world.members {
        member.endpoint.handle_deadline(world.now_ns);
        assert!(member.endpoint.next_deadline().is_none_or(|due_ns| due_ns > world.now_ns));
    }
    let gap_ns = world.longest_gap_ns((0, 1), 20 * MS, SECOND);
    assert!(gap_ns <= 200 * MS, "{gap_ns}");
}

#[test]
fn strangers_give_way_to_each_other_but_not_while_they_are_active() {
    let mut world = World::routed(6, 10);
    let config =
        Config { strangers: Strangers::Welcome { at_most: 3 }, ..world.members[0].config.clone() };
    world.members[0] = Member::new(config, world.members[0].place, [7; 32]);
    for from in 1..6 {
        world.send(from, 0);
        world.resolve();
        world.run(100 * MS);
    }
    let keys = |world: &World| world.members[0].endpoint.peers().count();
    assert_eq!((keys(&world), world.members[0].got.len()), (3, 3));
    let refused = world.members[0].endpoint.counters().dropped(DropReason::HandshakeStranger);
    assert!(refused >= 2, "{refused}");
    world.run(60 * SECOND);
    for from in 4..6 {
        let packet = world.send(from, 0);
        world.run(5 * SECOND);
        assert!(world.got_once(0, &packet), "member {from}");
    }
    assert_eq!(keys(&world), 3);
}

#[test]
fn whoever_comes_in_under_many_keys_does_not_keep_a_member_from_whom_it_looks_for() {
    let mut world = World::routed(7, 12);
    let config =
        Config { strangers: Strangers::Welcome { at_most: 4 }, ..world.members[0].config.clone() };
    world.members[0] = Member::new(config, world.members[0].place, [7; 32]);
    for from in 1..6 {
        world.send(from, 0);
        world.resolve();
        world.run(100 * MS);
    }
    assert_eq!(world.members[0].endpoint.peers().count(), 3);
    let packet = world.send(0, 6);
    world.resolve();
    world.run(SECOND);
    assert!(world.got_once(6, &packet));
}

#[test]
fn a_peer_that_names_many_addresses_makes_few_datagrams() {
    let mut world = met(11);
    let before = world.seen.len();
    for round in 0..50u8 {
        let places = (0..6).map(|number| SocketAddr::from(([198, 51, 100, round], 1000 + number)));
        world.members[1].endpoint.set_candidates(places.collect());
        world.longest_gap_ns((0, 1), 100 * MS, SECOND);
    }
    let victims = world.seen[before..]
        .iter()
        .filter(|(from, to, _)| *from == world.members[0].place && *to != world.members[1].place);
    let victims = victims.count();
    assert!(victims <= 10 * PATHS_MAX * 8, "{victims} probes to addresses that a peer named");
    let key = world.members[1].key();
    let peer = world.members[0].endpoint.peers().find(|peer| peer.key == key).unwrap();
    assert!(peer.paths.len() <= PATHS_MAX);
    let packet = world.send(0, 1);
    world.run(2 * ONE_WAY_NS);
    assert!(world.got_once(1, &packet));
}
