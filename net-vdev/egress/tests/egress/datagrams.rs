//! UDP and ICMP echo through NAT64.

use mesh_egress::address::embed;
use mesh_egress::counters::DropReason;
use mesh_egress::limits::Limits;
use mesh_egress::sockets::{Kind, SocketError};
use net_vdev::firewall::{Packet, Transport};

use crate::world::{MEMBER, SECOND_NS, World, ipv6, outside, udp};

const SITE: [u8; 4] = [198, 51, 100, 7];

#[test]
fn a_datagram_goes_out_and_its_answer_comes_back() {
    let mut world = World::new(&[]);
    world.send(&udp((&MEMBER, 4000), outside(SITE, 7), b"ping"));
    assert_eq!(world.outside().socket("198.51.100.7:7").datagrams, [b"ping"]);
    world.outside().answer("198.51.100.7:7", b"pong");
    let packets = world.turn();
    let packet = Packet::parse(&packets[0]).unwrap();
    assert_eq!(
        (packet.source, packet.destination),
        (outside(SITE, 7).ip(), MEMBER.address().into())
    );
    assert_eq!(&packets[0][48..], b"pong");
    assert_eq!(packets.len(), 1);
}

#[test]
fn one_port_of_a_member_is_one_port_of_the_host() {
    let mut world = World::new(&[]);
    world.send(&udp((&MEMBER, 4000), outside(SITE, 7), b"a"));
    world.send(&udp((&MEMBER, 4000), outside([198, 51, 100, 8], 9), b"b"));
    world.send(&udp((&MEMBER, 4001), outside(SITE, 7), b"c"));
    let kinds: Vec<Kind> = world.outside().sockets.values().map(|socket| socket.kind).collect();
    let [Kind::Udp { port: None }, Kind::Udp { port: Some(_) }, Kind::Udp { port: None }] =
        kinds[..]
    else {
        panic!("{kinds:?}");
    };
}

#[test]
fn a_closed_port_is_told_to_the_member() {
    let mut world = World::new(&[]);
    world.send(&udp((&MEMBER, 4000), outside(SITE, 7), b"ping"));
    world.outside().fail("198.51.100.7:7", SocketError::Refused);
    let packets = world.turn();
    let packet = Packet::parse(&packets[0]).unwrap();
    let Transport::Error(Some(original)) = packet.transport else { panic!("{packet:?}") };
    assert_eq!((original.ports.source, original.ports.destination), (4000, 7));
    assert_eq!(packets[0][40..42], [1, 4]);
}

#[test]
fn silent_flows_end_and_the_oldest_gives_way() {
    let limits = Limits { udp_flows_max: 4, ..Limits::default() };
    let mut world = World::with(&[], limits);
    for port in 0..6 {
        world.now_ns += SECOND_NS;
        world.send(&udp((&MEMBER, 4000 + port), outside(SITE, 7), b"a"));
    }
    assert_eq!((world.egress.occupancy().0, world.outside().sockets.len()), (4, 4));
    world.now_ns += 301 * SECOND_NS;
    world.turns(2);
    assert_eq!((world.egress.occupancy().0, world.outside().sockets.len()), (0, 0));
    assert_eq!(world.dropped(DropReason::TooMany), 0);
}

#[test]
fn an_answer_that_the_mesh_cannot_carry_is_counted() {
    let mut world = World::new(&[]);
    world.send(&udp((&MEMBER, 4000), outside(SITE, 7), b"ping"));
    world.outside().answer("198.51.100.7:7", &[0; 1353]);
    world.outside().answer("198.51.100.7:7", &[0; 1352]);
    assert_eq!(world.turn().iter().map(Vec::len).collect::<Vec<_>>(), [1400]);
    assert_eq!(world.dropped(DropReason::TooLarge), 1);
}

#[test]
fn an_echo_keeps_the_members_identifier() {
    let mut world = World::new(&[]);
    let request = vec![128, 0, 0, 0, 0x12, 0x34, 0, 5, b'd', b'a', b't', b'a'];
    let to = embed(SITE.into());
    world.send(&ipv6(MEMBER.address(), to, 58, 2, request));
    assert_eq!(world.outside().socket("198.51.100.7:0").kind, Kind::Echo);
    let sent = world.outside().socket("198.51.100.7:0").datagrams[0].clone();
    assert_eq!((sent[0], &sent[6..]), (8, &[0, 5, b'd', b'a', b't', b'a'][..]));
    // The kernel's identifier is another.
    world
        .outside()
        .answer("198.51.100.7:0", &[0, 0, 0, 0, 0x99, 0x99, 0, 5, b'd', b'a', b't', b'a']);
    let packets = world.turn();
    let packet = Packet::parse(&packets[0]).unwrap();
    assert_eq!(packet.transport, Transport::EchoReply(0x1234));
    assert_eq!(packets[0][46..], [0, 5, b'd', b'a', b't', b'a']);
}
