//! What is outside of the mesh, through one peer and no other.

use std::net::IpAddr;

use net_vdev::DropReason;
use net_vdev::endpoint::Exits;

use crate::packets::udp;
use crate::world::{SECOND, World};

fn outside() -> IpAddr {
    "64:ff9b::198.51.100.7".parse().unwrap()
}

/// Member 0 goes out through member 1, which is an exit and a resolver; member 2 is neither.
fn world() -> World {
    let mut world = World::new(3, 1);
    let exit = world.members[1].key();
    let through = Exits { through: Some(exit), ..Exits::default() };
    world.members[0].endpoint.set_exits(through);
    let is_exit = Exits { through: None, is_exit: true, is_resolver: true };
    world.members[1].endpoint.set_exits(is_exit);
    world
}

fn send(world: &mut World, from: usize, packet: &[u8]) {
    world.send_packet(from, packet);
    world.run(SECOND);
}

#[test]
fn a_packet_for_the_outside_goes_to_the_exit_and_its_answer_comes_back() {
    let mut world = world();
    let member = world.members[0].address();
    let query = udp((member, 4000), (outside(), 99), b"out");
    send(&mut world, 0, &query);
    assert_eq!(world.members[1].got, [query]);
    let answer = udp((outside(), 99), (member, 4000), b"in");
    send(&mut world, 1, &answer);
    assert_eq!(world.members[0].got, [answer]);
}

#[test]
fn what_was_not_asked_for_does_not_come_in_from_outside() {
    let mut world = world();
    let member = world.members[0].address();
    send(&mut world, 1, &udp((outside(), 99), (member, 4000), b"unasked"));
    assert!(world.members[0].got.is_empty());
    assert_eq!(world.members[0].endpoint.counters().dropped(DropReason::InboundDenied), 1);
}

#[test]
fn nobody_but_the_exit_speaks_for_the_outside() {
    let mut world = world();
    let member = world.members[0].address();
    // Member 2 calls itself an exit, but member 0 does not go out through it.
    world.members[2].endpoint.set_exits(Exits { is_exit: true, ..Exits::default() });
    send(&mut world, 0, &udp((member, 4000), (outside(), 99), b"out"));
    send(&mut world, 2, &udp((outside(), 99), (member, 4000), b"forged"));
    assert!(world.members[0].got.is_empty());
    assert_eq!(world.members[0].endpoint.counters().dropped(DropReason::InboundSource), 1);
}

#[test]
fn a_member_that_is_no_exit_neither_takes_nor_says_what_is_outside() {
    let mut world = world();
    let (member, third) = (world.members[0].address(), world.members[2].key());
    world.members[0].endpoint.set_exits(Exits { through: Some(third), ..Exits::default() });
    send(&mut world, 0, &udp((member, 4000), (outside(), 99), b"out"));
    assert!(world.members[2].got.is_empty());
    let counters = world.members[2].endpoint.counters();
    assert_eq!(counters.dropped(DropReason::InboundDestination), 1);
    send(&mut world, 2, &udp((outside(), 99), (member, 4000), b"in"));
    let counters = world.members[2].endpoint.counters();
    assert_eq!(counters.dropped(DropReason::OutboundSource), 1);
}

#[test]
fn only_a_resolver_is_asked_without_a_rule() {
    let mut world = world();
    let member = world.members[0].address();
    for (to, taken) in [(1, 1), (2, 0)] {
        let query = udp((member, 4000), (world.members[to].address(), 53), b"query");
        send(&mut world, 0, &query);
        assert_eq!(world.members[to].got.len(), taken, "member {to}");
        let other = udp((member, 4000), (world.members[to].address(), 54), b"else");
        send(&mut world, 0, &other);
        assert_eq!(world.members[to].got.len(), taken, "member {to}");
    }
}
