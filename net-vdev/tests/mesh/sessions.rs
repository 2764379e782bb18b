//! How sessions start, change, move and end between two or three members.

use std::net::SocketAddr;

use net_vdev::{DropReason, Endpoint};

use crate::packets::{echo_reply, echo_request, udp};
use crate::world::{MS, ONE_WAY_NS, PORT, SECOND, World};

fn dropped(world: &World, member: usize, reason: DropReason) -> u64 {
    world.members[member].endpoint.counters().dropped(reason)
}

fn handshakes(world: &World, member: usize) -> u64 {
    world.members[member].endpoint.counters().handshakes
}

/// Loses everything that is sent in this call of `change`.
fn losing(world: &mut World, change: impl FnOnce(&mut World)) {
    world.faults.lose = 1000;
    change(world);
    world.faults.lose = 0;
}

#[test]
fn the_first_packet_arrives_after_one_round_trip_more() {
    let mut world = World::new(2, 1);
    let packet = world.send(0, 1);
    world.run(3 * ONE_WAY_NS - 1);
    assert!(world.members[1].got.is_empty());
    world.run(1);
    assert!(world.got_once(1, &packet));
    let answer = world.send(1, 0);
    world.run(ONE_WAY_NS);
    assert!(world.got_once(0, &answer));
    assert_eq!((handshakes(&world, 0), handshakes(&world, 1)), (1, 1));
}

#[test]
fn nothing_happens_while_there_is_no_traffic() {
    let mut world = World::new(2, 2);
    assert!(world.members.iter().all(|member| member.endpoint.next_deadline().is_none()));
    world.send(0, 1);
    world.run(SECOND);
    // One deadline is left: the one that drops the keys.
    let (datagrams, now_ns) = (world.seen.len(), world.now_ns);
    for member in &world.members {
        let deadline_ns = member.endpoint.next_deadline().unwrap();
        assert!((now_ns + 170 * SECOND..now_ns + 180 * SECOND).contains(&deadline_ns));
    }
    world.run(200 * SECOND);
    assert_eq!(world.seen.len(), datagrams, "nothing was sent");
    for member in &world.members {
        assert_eq!(member.endpoint.next_deadline(), None);
    }
    assert!(!world.members[0].endpoint.is_connected(&world.members[1].key()), "keys are dropped");
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &packet), "and traffic starts anew");
}

#[test]
fn lost_handshake_messages_are_sent_again() {
    for lost in 0..3 {
        let mut world = World::new(2, 3);
        let mut packets = Vec::new();
        if lost == 0 {
            losing(&mut world, |world| packets.push(world.send(0, 1)));
        } else {
            packets.push(world.send(0, 1));
            world.run(u64::from(lost == 2) * ONE_WAY_NS + ONE_WAY_NS - 1);
            losing(&mut world, |world| world.run(1));
        }
        world.run(SECOND);
        // With the first data lost the responder has an unconfirmed session: the next confirms it.
        packets.push(world.send(0, 1));
        packets.push(world.send(1, 0));
        world.run(SECOND);
        assert!(world.got_once(1, &packets[1]), "{lost}");
        assert!(world.got_once(0, &packets[2]), "{lost}");
        assert_eq!(world.got_once(1, &packets[0]), lost != 2, "only data itself is not repeated");
    }
}

#[test]
fn both_starting_at_once_end_with_one_session() {
    for seed in 0..8 {
        let mut world = World::new(2, seed);
        let (one, other) = (world.send(0, 1), world.send(1, 0));
        world.run(5 * ONE_WAY_NS);
        assert!(world.got_once(1, &one) && world.got_once(0, &other), "seed {seed}");
        assert_eq!((handshakes(&world, 0), handshakes(&world, 1)), (1, 1), "seed {seed}");
        let crossed = [0, 1].map(|member| dropped(&world, member, DropReason::HandshakeCrossed));
        assert_eq!(crossed.iter().sum::<u64>(), 1, "seed {seed}");
        let winner = usize::from(crossed[1] == 1);
        assert!(world.members[winner].key() < world.members[1 - winner].key(), "seed {seed}");
    }
}

#[test]
fn both_starting_at_once_survive_the_loss_of_either_initiation() {
    for lost in 0..2 {
        for seed in 0..4 {
            let mut world = World::new(2, seed);
            let mut packets = [Vec::new(), Vec::new()];
            losing(&mut world, |world| packets[lost] = world.send(lost, 1 - lost));
            packets[1 - lost] = world.send(1 - lost, lost);
            world.run(6 * ONE_WAY_NS);
            for (from, packet) in packets.iter().enumerate() {
                assert!(world.got_once(1 - from, packet), "seed {seed}, lost {lost}");
            }
        }
    }
}

#[test]
fn a_retry_rests_while_the_peer_s_own_handshake_is_under_way() {
    for seed in 0..16 {
        let mut world = World::new(2, seed);
        let winner = usize::from(world.members[1].key() < world.members[0].key());
        let mut first = Vec::new();
        losing(&mut world, |world| first = world.send(1 - winner, winner));
        // The winner's initiation arrives a moment before the other's retry is due.
        world.run(300 * MS - ONE_WAY_NS - 1);
        let packet = world.send(winner, 1 - winner);
        world.run(SECOND);
        assert!(world.got_once(winner, &first) && world.got_once(1 - winner, &packet));
        let sent = world.seen.iter().filter(|(_, _, bytes)| bytes[1] == 1).count();
        assert_eq!(sent, 2, "one initiation each, seed {seed}");
    }
}

#[test]
fn a_responder_awaits_the_first_data_before_it_starts_a_handshake_of_its_own() {
    let mut world = World::new(2, 18);
    world.send(0, 1);
    world.run(ONE_WAY_NS);
    let packet = world.send(1, 0);
    world.run(SECOND);
    assert!(world.got_once(0, &packet));
    assert_eq!(world.members[1].endpoint.counters().initiations_sent, 0);
    // If that data never comes, it does start one.
    let mut world = World::new(2, 18);
    world.send(0, 1);
    world.run(ONE_WAY_NS);
    let packet = world.send(1, 0);
    world.restart(0);
    world.run(SECOND);
    assert!(world.got_once(0, &packet));
}

#[test]
fn a_restarted_member_is_found_again_when_the_other_side_sends() {
    let mut world = World::new(2, 4);
    world.send(0, 1);
    world.run(SECOND);
    world.restart(1);
    let lost = world.send(0, 1);
    world.run(5 * ONE_WAY_NS);
    assert!(!world.got_once(1, &lost), "sealed for keys that are gone");
    let packet = world.send(0, 1);
    let answer = world.send(1, 0);
    world.run(ONE_WAY_NS);
    assert!(world.got_once(1, &packet) && world.got_once(0, &answer));
}

#[test]
fn a_restarted_member_that_sends_first_is_heard_after_one_handshake() {
    let mut world = World::new(2, 5);
    world.send(0, 1);
    world.run(SECOND);
    world.restart(1);
    let packet = world.send(1, 0);
    world.run(3 * ONE_WAY_NS);
    assert!(world.got_once(0, &packet));
    let answer = world.send(0, 1);
    world.run(ONE_WAY_NS);
    assert!(world.got_once(1, &answer));
}

#[test]
fn a_restart_is_noticed_even_if_no_notice_comes_through() {
    let mut world = World::new(2, 6);
    world.send(0, 1);
    world.run(SECOND);
    world.restart(1);
    world.faults.lose_kind = Some(5);
    for _ in 0..16 {
        world.send(0, 1);
        world.run(SECOND);
    }
    assert_eq!(handshakes(&world, 0), 2);
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &packet));
}

#[test]
fn a_session_is_renewed_under_traffic_without_losing_a_packet() {
    let mut world = World::new(2, 7);
    world.send(0, 1);
    world.run(SECOND);
    world.members.iter_mut().for_each(|member| member.got.clear());
    for _ in 0..6000 {
        world.send(0, 1);
        world.send(1, 0);
        world.run(100 * MS);
    }
    world.run(SECOND);
    assert_eq!(world.members.iter().map(|member| member.got.len()).sum::<usize>(), 12_000);
    for member in 0..2 {
        assert_eq!(handshakes(&world, member), 1 + 5, "one per 120 seconds of 601");
        assert_eq!(world.members[member].endpoint.counters().dropped_total(), 0);
    }
}

#[test]
fn one_way_traffic_from_the_responder_is_renewed_too() {
    let mut world = World::new(2, 8);
    world.send(0, 1);
    world.run(SECOND);
    world.members[0].got.clear();
    for _ in 0..600 {
        world.send(1, 0);
        world.run(SECOND);
    }
    assert_eq!(world.members[0].got.len(), 600);
}

#[test]
fn a_member_that_moves_is_followed_and_a_replay_from_elsewhere_is_not() {
    let mut world = World::new(2, 9);
    world.send(0, 1);
    world.run(SECOND);
    let elsewhere = SocketAddr::from(([203, 0, 113, 9], 4));
    world.members[0].place = elsewhere;
    world.send(0, 1);
    world.run(ONE_WAY_NS);
    let answer = world.send(1, 0);
    world.run(ONE_WAY_NS);
    assert!(world.got_once(0, &answer));
    assert_eq!(world.members[1].endpoint.counters().roamed, 1);
    // Whoever sends old datagrams again, from anywhere, moves nobody.
    let place = world.members[1].place;
    for (_, to, bytes) in world.seen.clone() {
        if to == place {
            world.inject(SocketAddr::from(([198, 51, 100, 1], 1)), place, bytes);
        }
    }
    let answer = world.send(1, 0);
    world.run(ONE_WAY_NS);
    assert!(world.got_once(0, &answer));
    assert_eq!(world.members[1].endpoint.counters().roamed, 1);
}

#[test]
fn a_late_datagram_from_the_old_place_does_not_move_a_member_back() {
    let mut world = World::new(2, 10);
    world.send(0, 1);
    world.run(SECOND);
    // The network holds this one back.
    let mut late = Vec::new();
    losing(&mut world, |world| late = world.send(0, 1));
    let (from, to, bytes) = world.seen.pop().unwrap();
    world.members[0].place = SocketAddr::from(([203, 0, 113, 9], 4));
    world.send(0, 1);
    world.run(ONE_WAY_NS);
    world.inject(from, to, bytes);
    assert!(world.got_once(1, &late));
    let answer = world.send(1, 0);
    world.run(ONE_WAY_NS);
    assert!(world.got_once(0, &answer), "sent to the new place");
}

#[test]
fn a_peer_without_an_endpoint_is_reachable_once_it_has_spoken() {
    let mut world = World::new(2, 11);
    let seed = world.dice.seed();
    let mut config = world.members[0].config.clone();
    config.peers[0].endpoint = None;
    world.members[0].endpoint = Endpoint::new(config, seed).unwrap();
    world.send(0, 1);
    world.run(SECOND);
    assert_eq!(dropped(&world, 0, DropReason::OutboundNoEndpoint), 1);
    world.send(1, 0);
    world.run(SECOND);
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &packet));
}

#[test]
fn an_absent_peer_is_tried_for_a_minute_and_then_left_alone() {
    let mut world = World::new(2, 12);
    world.faults.lose = 1000;
    for _ in 0..20 {
        world.send(0, 1);
    }
    assert_eq!(dropped(&world, 0, DropReason::OutboundWaiting), 12, "8 packets wait");
    world.run(120 * SECOND);
    let sent = world.members[0].endpoint.counters().initiations_sent;
    assert!((10..20).contains(&sent), "{sent} initiations");
    assert_eq!(dropped(&world, 0, DropReason::OutboundUnanswered), 8);
    assert_eq!(world.members[0].endpoint.next_deadline(), None);
    world.faults.lose = 0;
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &packet));
}

#[test]
fn a_peer_that_went_home_is_found_at_its_configured_endpoint() {
    let mut world = World::new(2, 13);
    let home = world.members[1].place;
    world.send(0, 1);
    world.run(SECOND);
    world.members[1].place = SocketAddr::from(([203, 0, 113, 9], 4));
    world.send(1, 0);
    world.run(SECOND);
    world.restart(1);
    world.members[1].place = home;
    world.run(200 * SECOND);
    let packet = world.send(0, 1);
    world.run(2 * SECOND);
    assert!(world.got_once(1, &packet), "member 0 had last heard it elsewhere");
}

#[test]
fn sources_are_checked_on_the_way_out_and_on_the_way_in() {
    let mut world = World::new(3, 14);
    let [one, two, three] = [0, 1, 2].map(|member| world.members[member].address());
    world.send_packet(0, &udp((three, PORT), (two, PORT), b"spoofed"));
    assert_eq!(dropped(&world, 0, DropReason::OutboundSource), 1);
    // A member whose own endpoint lets it lie: it claims the third member's address as its own.
    let seed = world.dice.seed();
    let mut config = world.members[0].config.clone();
    config.peers.retain(|peer| peer.key.address() != three);
    config.addresses.push(three);
    world.members[0].endpoint = Endpoint::new(config, seed).unwrap();
    world.send_packet(0, &udp((three, PORT), (two, PORT), b"spoofed"));
    world.send_packet(0, &udp((one, PORT), (two, PORT), b"honest"));
    world.run(SECOND);
    assert_eq!(dropped(&world, 1, DropReason::InboundSource), 1);
    assert_eq!(world.members[1].got, [udp((one, PORT), (two, PORT), b"honest")]);
}

#[test]
fn a_packet_for_somebody_else_is_not_taken() {
    let mut world = World::new(3, 15);
    let [one, three] = [0, 2].map(|member| world.members[member].address());
    // Member 0 believes that the third member's address is the second's.
    let seed = world.dice.seed();
    let mut config = world.members[0].config.clone();
    config.peers.retain(|peer| peer.key.address() != three);
    config.peers[0].addresses.push(three);
    world.members[0].endpoint = Endpoint::new(config, seed).unwrap();
    world.send_packet(0, &udp((one, PORT), (three, PORT), b"astray"));
    world.run(SECOND);
    assert_eq!(dropped(&world, 1, DropReason::InboundDestination), 1);
    assert!(world.members[1].got.is_empty());
}

#[test]
fn the_firewall_stands_behind_the_session() {
    let mut world = World::new(2, 16);
    let [one, two] = [0, 1].map(|member| world.members[member].address());
    world.send_packet(0, &udp((one, 9), (two, PORT + 1), b"no rule"));
    world.send_packet(0, &echo_request(one, two, 5));
    world.send_packet(0, &echo_reply(one, two, 5));
    world.run(SECOND);
    assert_eq!(world.members[1].got, [echo_request(one, two, 5)]);
    assert_eq!(dropped(&world, 1, DropReason::InboundDenied), 2);
    world.send_packet(1, &udp((two, PORT + 1), (one, PORT), b"opens"));
    world.run(SECOND);
    let answer = udp((one, PORT), (two, PORT + 1), b"answers");
    world.send_packet(0, &answer);
    world.run(SECOND);
    assert!(world.got_once(1, &answer));
}

#[test]
fn what_can_t_be_sent_is_counted_under_its_reason() {
    let mut world = World::new(2, 17);
    let [one, two] = [0, 1].map(|member| world.members[member].address());
    let nobody = "4ff::1".parse().unwrap();
    world.send_packet(0, &udp((one, 1), (nobody, 1), b""));
    world.send_packet(0, &udp((one, 1), (two, 1), &[0; 1400]));
    world.send_packet(0, &[0x60; 39]);
    world.send_packet(0, &crate::packets::icmp(one, two, (5, 135), &[0; 20]));
    for reason in [
        DropReason::OutboundNoRoute,
        DropReason::OutboundOversize,
        DropReason::OutboundMalformed,
        DropReason::OutboundDenied,
    ] {
        assert_eq!(dropped(&world, 0, reason), 1, "{reason:?}");
    }
    assert!(world.seen.is_empty());
    let largest = udp((one, 1), (two, PORT), &[0; 1352]);
    assert_eq!(largest.len(), 1400);
    world.send_packet(0, &largest);
    world.run(SECOND);
    assert!(world.got_once(1, &largest));
    assert!(world.seen.iter().all(|(_, _, bytes)| bytes.len() <= 1432));
}
