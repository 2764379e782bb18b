//! Members that mean no good.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_egress::address::embed;
use mesh_egress::counters::DropReason;
use mesh_egress::limits::Limits;
use net_vdev::PublicKey;
use proptest::prelude::*;

use crate::world::{MEMBER, SECOND_NS, Server, World, ipv6, outside, udp};

const SITE: [u8; 4] = [198, 51, 100, 7];

/// A segment of a member's, without options.
fn segment(port: u16, flags: u8, sequence: u32, ack: u32) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend_from_slice(&port.to_be_bytes());
    header.extend_from_slice(&80_u16.to_be_bytes());
    header.extend_from_slice(&sequence.to_be_bytes());
    header.extend_from_slice(&ack.to_be_bytes());
    header.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    ipv6(MEMBER.address(), embed(SITE.into()), 6, 16, header)
}

#[test]
fn a_source_that_is_not_the_members_goes_nowhere() {
    let mut world = World::new(&[]);
    let other = PublicKey([8; 32]);
    world.send_as(&other, &udp((&MEMBER, 4000), outside(SITE, 7), b"a"));
    assert_eq!(world.dropped(DropReason::Source), 1);
    assert_eq!(world.outside().opened, 0);
    assert!(world.turn().is_empty());
}

#[test]
fn the_host_and_its_neighbours_are_out_of_reach() {
    let mut world = World::new(&[]);
    let own = Ipv4Addr::new(203, 0, 113, 5);
    world.outside().own.insert(own);
    let inside =
        ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.0.1", "100.64.0.1", "224.0.0.1"];
    for address in inside.into_iter().map(|text| text.parse().unwrap()).chain([own]) {
        world.send(&udp((&MEMBER, 4000), outside(address.octets(), 7), b"a"));
        let notices = world.turn();
        // Administratively prohibited.
        assert_eq!(notices[0][40..42], [1, 1], "{address}");
    }
    assert_eq!((world.outside().opened, world.dropped(DropReason::Forbidden)), (0, 7));
}

#[test]
fn a_flood_of_syns_is_bounded_in_sockets_and_in_pace() {
    let mut world = World::new(&[(80, Server::Silent)]);
    for port in 1..=20_000 {
        world.send(&segment(port, 0x02, 1, 0));
    }
    world.turn();
    let limits = Limits::default();
    assert_eq!(world.outside().sockets.len(), limits.connections_max);
    assert!(world.dropped(DropReason::TooFast) > 10_000);
    let (flows, bytes) = world.egress.occupancy();
    assert!(flows <= 512 && bytes <= limits.buffer_bytes_per_member, "{flows} {bytes}");
    world.now_ns += 241 * SECOND_NS;
    world.turns(2);
    assert_eq!((world.egress.occupancy(), world.outside().sockets.len()), ((0, 0), 0));
}

#[test]
fn a_connection_that_is_never_confirmed_ends() {
    let mut world = World::new(&[(80, Server::Takes)]);
    world.send(&segment(9, 0x02, 1, 0));
    let mut answers = 0;
    for _ in 0..80 {
        answers += world.turn().len();
        world.now_ns += SECOND_NS;
    }
    assert_eq!(world.egress.occupancy().0, 0);
    // SYN-ACK five times, and a reset.
    assert_eq!(answers, 6);
}

#[test]
fn a_segment_of_no_connection_is_refused() {
    let mut world = World::new(&[]);
    world.send(&segment(9, 0x10, 1, 77));
    let packets = world.turn();
    assert_eq!((packets[0][53], &packets[0][44..48]), (0x04, &77_u32.to_be_bytes()[..]));
    world.send(&segment(9, 0x04, 1, 77));
    assert!(world.turn().is_empty(), "a reset is answered by nothing");
}

#[test]
fn a_member_that_goes_away_takes_its_flows_along() {
    let mut world = World::new(&[(80, Server::Takes)]);
    world.send(&segment(9, 0x02, 1, 0));
    world.send(&udp((&MEMBER, 4000), outside(SITE, 7), b"a"));
    world.turn();
    assert_eq!(world.egress.occupancy().0, 2);
    world.egress.forget(&MEMBER);
    assert_eq!((world.egress.occupancy(), world.outside().sockets.len()), ((0, 0), 0));
}

#[test]
fn a_host_without_sockets_is_counted_and_not_an_end() {
    let mut world = World::new(&[]);
    world.outside().sockets_max = Some(1);
    (0..3).for_each(|at| world.send(&udp((&MEMBER, 4000 + at), outside(SITE, 7), b"a")));
    assert_eq!(world.dropped(DropReason::NoSocket), 2);
    assert_eq!(world.egress.occupancy().0, 1);
}

proptest! {
    #[test]
    fn any_packet_is_taken_or_dropped(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..20),
    ) {
        let mut world = World::new(&[(80, Server::Echoes)]);
        for mut packet in packets {
            // Most of them get as far as the transport.
            if let Some(first) = packet.first_mut() {
                *first = 0x60 | *first & 0x0f;
            }
            if packet.len() >= 40 {
                let len = (packet.len() - 40) as u16;
                packet[4..6].copy_from_slice(&len.to_be_bytes());
                packet[6] = [6, 17, 58][usize::from(packet[6]) % 3];
                packet[8..24].copy_from_slice(&MEMBER.address().octets());
                packet[24..40].copy_from_slice(&embed(SITE.into()).octets());
            }
            world.send(&packet);
            world.turn();
        }
        prop_assert!(world.egress.occupancy().0 <= 20);
    }

    /// Segments with right checksums and any numbers, on one connection.
    #[test]
    fn any_segments_end_in_bounded_memory(
        steps in prop::collection::vec((0_u8..64, any::<(u32, u32)>(), 0_u32..3), 1..40),
    ) {
        let mut world = World::new(&[(80, Server::Echoes)]);
        world.send(&segment(9, 0x02, 99, 0));
        let packets = world.turns(2);
        let first = packets.first().map_or(0, |packet| {
            u32::from_be_bytes(packet[44..48].try_into().unwrap())
        });
        for (flags, (sequence, ack), near) in steps {
            let (sequence, ack) = match near {
                0 => (sequence, ack),
                1 => (100, first.wrapping_add(1)),
                _ => (100 + sequence % 70_000, first.wrapping_add(ack % 9)),
            };
            world.send(&segment(9, flags, sequence, ack));
            world.turn();
            world.now_ns += u64::from(ack) % (3 * SECOND_NS);
        }
        prop_assert!(world.egress.occupancy().1 <= 4 << 20);
    }
}

#[test]
fn ipv4_of_nobody_and_addresses_of_the_mesh_go_nowhere() {
    let mut world = World::new(&[]);
    let to: Ipv6Addr = "400::9".parse().unwrap();
    let packet = udp((&MEMBER, 1), (IpAddr::V6(to), 7).into(), b"a");
    assert!(!world.egress.takes(&packet));
    world.send(&packet);
    assert_eq!(world.dropped(DropReason::Destination), 1);
}
