//! Members that are attached to the same router: their packets go as they are, under the same rules.

use std::num::NonZeroU64;

use net_vdev::announcement::verify;
use net_vdev::offload::{ChecksumField, Segmentation, SegmentationKind, VirtioNetHeader};
use net_vdev::uplink::{Challenge, Local, Up};
use net_vdev::{Caps, Config, DropReason, PublicKey};

use crate::packets::{ACK, tcp, udp};
use crate::world::{MS, Member, PORT, SECOND, UNIX_NS, World};

/// Two members with a session that were told that the other is here.
fn neighbours() -> World {
    neighbours_with(Caps::default())
}

/// The same; member 1 has caps.
fn neighbours_with(caps: Caps) -> World {
    let mut world = World::routed(2, 9);
    let config = Config { caps, ..world.members[1].config.clone() };
    world.members[1] = Member::new(config, world.members[1].place, [3; 32]);
    world.send(0, 1);
    world.resolve();
    world.run(SECOND);
    introduce(&mut world, true);
    world
}

fn introduce(world: &mut World, are_here: bool) {
    for (index, other) in [(0, 1), (1, 0)] {
        let key = world.members[other].key();
        world.members[index].endpoint.set_here(&key, are_here);
    }
}

/// A super-frame of TCP from member 0 to member 1, for the port that is open: header and packet.
fn super_frame(world: &World, payload_bytes: usize) -> (VirtioNetHeader, Vec<u8>) {
    let [from, to] = [0, 1].map(|index| world.members[index].address());
    let mut packet = tcp((from, 4000), (to, PORT), ACK);
    packet.resize(packet.len() + payload_bytes, 0x55);
    let len = u16::try_from(packet.len() - 40).unwrap();
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    let segmentation = Segmentation {
        kind: SegmentationKind::TcpV6,
        ecn: false,
        payload_bytes: 1200,
        headers_bytes: 60,
    };
    let checksum = Some(ChecksumField { start: 40, offset: 16 });
    (VirtioNetHeader { checksum, segmentation: Some(segmentation) }, packet)
}

#[test]
fn packets_for_a_member_that_is_here_go_as_they_are_and_both_ways() {
    let mut world = neighbours();
    let sealed = world.members[0].endpoint.counters();
    for (from, to) in [(0, 1), (1, 0), (0, 1)] {
        let packet = world.send(from, to);
        assert!(world.got_once(to, &packet), "at once");
    }
    assert_eq!(world.passed_on, 3);
    let counters = world.members[0].endpoint.counters();
    assert_eq!(counters.packets_local, 2);
    assert_eq!(counters.packets_sent, sealed.packets_sent + 2);
    introduce(&mut world, false);
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &packet), "through the router, sealed");
    assert_eq!(world.passed_on, 3);
}

#[test]
fn a_super_frame_arrives_whole_and_one_that_is_not_what_it_says_not_at_all() {
    let mut world = neighbours();
    // The rules open UDP: member 1 begins the flow.
    let (header, packet) = super_frame(&world, 30_000);
    let [from, to] = [0, 1].map(|index| world.members[index].address());
    let opening = tcp((to, PORT), (from, 4000), crate::packets::SYN);
    world.send_packet(1, &opening);
    let denied = world.members[1].endpoint.counters().dropped(DropReason::InboundDenied);
    world.members[0].endpoint.send_frame(world.now_ns, &header, &packet);
    world.settle(0);
    assert!(world.got_once(1, &packet), "an answer to what member 1 sent");
    assert_eq!(world.members[1].endpoint.counters().dropped(DropReason::InboundDenied), denied);

    let member = world.members[0].key();
    let now_ns = world.now_ns;
    let endpoint = &mut world.members[1].endpoint;
    let checksum = Some(ChecksumField { start: 40, offset: 16 });
    let elsewhere = Some(ChecksumField { start: 0, offset: 2 });
    let as_udp = header.segmentation.map(|it| Segmentation { kind: SegmentationKind::Udp, ..it });
    for header in [
        VirtioNetHeader { checksum: elsewhere, ..header },
        VirtioNetHeader { checksum, segmentation: as_udp },
        VirtioNetHeader { checksum, segmentation: None },
        VirtioNetHeader::default(),
    ] {
        let before = endpoint.counters().dropped(DropReason::InboundMalformed);
        let local = Local { member, header, packet: &mut packet.clone() };
        endpoint.receive_local(now_ns, &local, &mut |_, _| panic!("{header:?} came through"));
        assert_eq!(endpoint.counters().dropped(DropReason::InboundMalformed), before + 1);
    }
}

#[test]
fn a_super_frame_counts_for_what_it_stands_for_and_one_of_too_many_packets_for_nothing() {
    let caps = Caps { packets_per_s: NonZeroU64::new(100), bytes_per_s: None };
    let mut world = neighbours_with(caps);
    world.now_ns += SECOND;
    let (header, packet) = super_frame(&world, 60_000);
    let [from, to] = [0, 1].map(|index| world.members[index].address());
    world.send_packet(1, &tcp((to, PORT), (from, 4000), crate::packets::SYN));
    let (member, now_ns) = (world.members[0].key(), world.now_ns);
    let endpoint = &mut world.members[1].endpoint;
    let tiny = header.segmentation.map(|it| Segmentation { payload_bytes: 1, ..it });
    let tiny = VirtioNetHeader { segmentation: tiny, ..header };
    let local = Local { member, header: tiny, packet: &mut packet.clone() };
    endpoint.receive_local(now_ns, &local, &mut |_, _| panic!("60,000 packets came through"));
    assert_eq!(endpoint.counters().dropped(DropReason::InboundMalformed), 1);
    let mut taken = 0;
    for _ in 0..10 {
        let local = Local { member, header, packet: &mut packet.clone() };
        endpoint.receive_local(now_ns, &local, &mut |_, _| taken += 1);
    }
    assert_eq!(taken, 2, "of 50 packets each: 128 may come at once");
    assert_eq!(endpoint.counters().dropped(DropReason::InboundCap), 8);
}

#[test]
fn the_length_of_a_super_frame_s_headers_is_not_the_sender_s_word() {
    let mut world = neighbours();
    let (mut header, mut packet) = super_frame(&world, 3000);
    let [from, to] = [0, 1].map(|index| world.members[index].address());
    world.send_packet(1, &tcp((to, PORT), (from, 4000), crate::packets::SYN));
    header.segmentation = header.segmentation.map(|it| Segmentation { headers_bytes: 9999, ..it });
    let member = world.members[0].key();
    let now_ns = world.now_ns;
    let mut told = None;
    let local = Local { member, header, packet: &mut packet };
    let endpoint = &mut world.members[1].endpoint;
    endpoint.receive_local(now_ns, &local, &mut |header, _| told = header.segmentation);
    assert_eq!(told.unwrap().headers_bytes, 60);
}

#[test]
fn the_firewall_and_the_check_of_sources_hold_as_ever() {
    let mut world = neighbours();
    let [from, to] = [0, 1].map(|index| world.members[index].address());
    let closed = udp((from, 4000), (to, PORT + 1), b"closed");
    world.send_packet(0, &closed);
    assert!(!world.got_once(1, &closed));
    assert_eq!(world.members[1].endpoint.counters().dropped(DropReason::InboundDenied), 1);
    let member = world.members[0].key();
    let mut forged = udp((to, 4000), (to, PORT), b"forged");
    let now_ns = world.now_ns;
    let endpoint = &mut world.members[1].endpoint;
    let mut give = |member: PublicKey, packet: &mut [u8]| {
        let local = Local { member, header: VirtioNetHeader::default(), packet };
        endpoint.receive_local(now_ns, &local, &mut |_, _| panic!("it came through"));
    };
    give(member, &mut forged);
    // Under the right source, but a key that there is no session with.
    give(PublicKey([5; 32]), &mut udp((from, 4000), (to, PORT), b"stranger"));
    let counters = world.members[1].endpoint.counters();
    assert_eq!(counters.dropped(DropReason::InboundSource), 1);
    assert_eq!(counters.dropped(DropReason::LocalStranger), 1);
}

#[test]
fn when_the_router_dies_data_takes_the_session_on_another_way() {
    let mut world = neighbours();
    for (index, other) in [(0, 1), (1, 0)] {
        let (key, place) = (world.members[other].key(), world.members[other].place);
        let now_ns = world.now_ns;
        world.members[index].endpoint.learn(now_ns, &key, &[place]);
    }
    assert!(world.longest_gap_ns((0, 1), 10 * MS, 2 * SECOND) < 50 * MS);
    let passed_on = world.passed_on;
    world.relays.are_up = [false; 2];
    let gap_ns = world.longest_gap_ns((0, 1), 10 * MS, 5 * SECOND);
    assert!(gap_ns < SECOND, "{gap_ns} ns");
    assert_eq!(world.passed_on, passed_on);
}

#[test]
fn a_member_proves_who_it_is_and_its_numbers_only_grow() {
    let mut world = World::routed(1, 4);
    let node = PublicKey([7; 32]);
    let mut last = 0;
    for (sequence, nonce) in [(0, 1), (0, 2), (UNIX_NS, 3), (5, 4)] {
        let challenge = Challenge { node, nonce: [nonce; 32], sequence };
        let now_ns = world.now_ns;
        let mut answer = world.members[0].endpoint.answer_challenge(now_ns, &challenge);
        let Some(Up::Attach(attach)) = Up::parse(&mut answer) else { panic!("no answer") };
        let (signed, signature) = *attach;
        let key = world.members[0].key();
        assert!(challenge.is_answered(&key, &signature));
        assert_eq!(signed.announcement.key, key);
        assert!(verify(&key, &signed.announcement.encode(), &signed.signature));
        let number = signed.announcement.sequence;
        assert!(number > last && number >= sequence, "{number} after {last}");
        assert!(number >= (UNIX_NS + now_ns) / MS);
        last = number;
    }
}
