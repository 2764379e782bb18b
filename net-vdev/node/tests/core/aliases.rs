//! Aliases: addresses in a node's /64 that lead to the workloads of its host, for as long as it says so.

use std::net::Ipv6Addr;

use net_vdev::certificate::{ALIAS_BYTES, Alias};
use net_vdev::offload::VirtioNetHeader;
use net_vdev::{PrivateKey, PublicKey};

use crate::attached::{Vm, announcement, carry, run, vm};
use crate::world::{MS, Node, SECOND, UNIX_NS, World, udp};

pub(crate) fn unix_s(world: &World) -> u64 {
    (UNIX_NS + world.now_ns) / SECOND
}

/// Runs for longer than [`run`] can: everybody has a turn each 20 ms.
fn run_long(world: &mut World, vms: &mut [Vm], seconds: u64) {
    for _ in 0..seconds * SECOND / (20 * MS) {
        carry(world, vms);
        world.run(20 * MS);
    }
}

/// The host of a node sends; the packet.
fn host_sends(world: &mut World, node: usize, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let packet = udp(world.address(node), to, payload);
    let header = VirtioNetHeader::default();
    world.nodes[node].core.send(world.now_ns, &header, &packet);
    world.settle(node);
    packet
}

/// Three nodes in a row, and a workload on the last that lets the first in.
pub(crate) fn world() -> (World, [Vm; 1], Ipv6Addr) {
    let mut world = World::new(3, &[(0, 1), (2, 1)], 11);
    world.run(SECOND);
    let asker = world.nodes[0].key;
    let workload = vm(&mut world, 2, 2, &[asker]);
    let alias = Alias::address_of(&world.nodes[2].key, &workload.key);
    (world, [workload], alias)
}

/// Whether what the first host sends to `to` arrives at the workload's own address meanwhile.
pub(crate) fn reaches(
    world: &mut World,
    vms: &mut [Vm],
    to: Ipv6Addr,
    meanwhile: impl FnOnce(&mut World, &mut [Vm]),
) -> bool {
    let payload = world.dice.next().to_be_bytes();
    host_sends(world, 0, to, &payload);
    meanwhile(world, vms);
    let workload = vms[0].key;
    let sent = udp(world.address(0), workload.address(), &payload);
    vms[0].got.contains(&sent)
}

fn is_reached(world: &mut World, vms: &mut [Vm], to: Ipv6Addr) -> bool {
    reaches(world, vms, to, |world, vms| run(world, vms, 200 * MS))
}

#[test]
fn a_host_reaches_a_workload_elsewhere_by_its_alias_and_is_answered_from_it() {
    let (mut world, mut vms, alias) = world();
    assert!(is_reached(&mut world, &mut vms, alias));
    let answer = |from| udp(from, world.address(0), b"answer");
    let (own, expected) = (answer(vms[0].key.address()), answer(alias));
    vms[0].endpoint.send_packet(world.now_ns, &own);
    run(&mut world, &mut vms, 100 * MS);
    let delivered: Vec<_> = world.nodes[0].wire.delivered.iter().map(|(_, it)| it).collect();
    assert_eq!(delivered, [&expected]);
    let now_ns = world.now_ns;
    let known: Vec<_> = world.nodes[0].core.known_aliases(now_ns).copied().collect();
    assert_eq!((known.len(), known[0].workload, known[0].address), (1, vms[0].key, alias));
    let own: Vec<_> = world.nodes[2].core.own_aliases().copied().collect();
    assert_eq!(own, known);
    // The router of the first node has a session with the workload, under its key.
    assert!(world.nodes[0].core.endpoint().is_connected(&vms[0].key));
}

#[test]
fn workloads_reach_each_other_by_alias_there_and_on_the_same_node() {
    for nodes in [(0, 2), (1, 1)] {
        let mut world = World::new(3, &[(0, 1), (2, 1)], 12);
        world.run(SECOND);
        let keys = [1u8, 2].map(|number| PrivateKey::new([number; 32]).public());
        let asker = vm(&mut world, nodes.0, 1, &[]);
        let workload = vm(&mut world, nodes.1, 2, &keys[..1]);
        let alias = Alias::address_of(&world.nodes[nodes.1].key, &keys[1]);
        let mut vms = [asker, workload];
        let packet = |to| udp(keys[0].address(), to, b"hello");
        vms[0].endpoint.send_packet(world.now_ns, &packet(alias));
        run(&mut world, &mut vms, 200 * MS);
        assert_eq!(vms[1].got, [packet(keys[1].address())], "nodes {nodes:?}");
        let answer = |from| udp(from, keys[0].address(), b"hello yourself");
        vms[1].endpoint.send_packet(world.now_ns, &answer(keys[1].address()));
        run(&mut world, &mut vms, 50 * MS);
        assert_eq!(vms[0].got, [answer(alias)], "nodes {nodes:?}");
        // Its node says when it leaves, and the asker goes by that.
        let Node { core, wire, .. } = &mut world.nodes[nodes.1];
        core.detach(world.now_ns, &keys[1], wire);
        world.settle(nodes.1);
        run(&mut world, &mut vms, 50 * MS);
        assert_eq!(vms[0].endpoint.aliases(world.now_ns).count(), 0, "nodes {nodes:?}");
    }
}

#[test]
fn an_alias_stops_when_its_workload_moves_and_the_new_node_gives_another() {
    let (mut world, mut vms, alias) = world();
    assert!(is_reached(&mut world, &mut vms, alias));
    let workload = PrivateKey::new([2; 32]);
    let certificate = {
        let now_ns = world.now_ns;
        let alias = world.nodes[0].core.known_aliases(now_ns).next().copied().unwrap();
        alias.sign(&world_key(&world, 2), &[3; 64]).unwrap()
    };
    let now_ns = world.now_ns;
    let Node { core, wire, .. } = &mut world.nodes[2];
    core.detach(now_ns, &workload.public(), wire);
    world.settle(2);
    let signed = announcement(&workload, 2);
    world.nodes[1].core.attach(now_ns, &signed).unwrap();
    world.settle(1);
    vms[0].node = 1;
    run(&mut world, &mut vms, 100 * MS);
    assert!(!is_reached(&mut world, &mut vms, alias), "it has no alias there any more");
    assert!(
        is_reached(&mut world, &mut vms, workload.public().address()),
        "it is at its own address"
    );
    let there = Alias::address_of(&world.nodes[1].key, &workload.public());
    assert!(is_reached(&mut world, &mut vms, there));
    // The certificate holds still; shown again by the workload or by its new node it is worth nothing.
    assert!(Alias::verify(&certificate, unix_s(&world)).is_ok());
    let before = world.nodes[0].core.counters().aliases_refused;
    let replayed: [u8; ALIAS_BYTES] = certificate.try_into().unwrap();
    let asker = world.nodes[0].key;
    assert!(vms[0].endpoint.tell_alias(&asker, alias, Some(&replayed)));
    run(&mut world, &mut vms, 100 * MS);
    assert_eq!(world.nodes[0].core.counters().aliases_refused, before + 1);
    assert!(!is_reached(&mut world, &mut vms, alias));
}

/// The private key of a node, which the world drew first of all.
pub(crate) fn world_key(world: &World, node: usize) -> PrivateKey {
    let mut dice = crate::world::Dice(11);
    let keys: Vec<_> = (0..world.nodes.len()).map(|_| PrivateKey::new(dice.seed())).collect();
    assert_eq!(keys[node].public(), world.nodes[node].key);
    keys[node].clone()
}

#[test]
fn an_alias_of_a_node_that_fell_silent_stops_five_minutes_after_its_certificate_ends() {
    let (mut world, mut vms, alias) = world();
    assert!(is_reached(&mut world, &mut vms, alias));
    // The node is gone without a word; the workload goes on elsewhere.
    world.wires.retain(|(from, to)| *from != 2 && *to != 2);
    let workload = PrivateKey::new([2; 32]);
    let signed = announcement(&workload, 2);
    world.nodes[1].core.attach(world.now_ns, &signed).unwrap();
    world.settle(1);
    vms[0].node = 1;
    run_long(&mut world, &mut vms, 10);
    assert!(is_reached(&mut world, &mut vms, alias), "the certificate counts");
    run_long(&mut world, &mut vms, 580);
    assert!(is_reached(&mut world, &mut vms, alias), "by a clock that may be off it counts still");
    run_long(&mut world, &mut vms, 20);
    assert!(!is_reached(&mut world, &mut vms, alias), "it has ended");
    assert!(is_reached(&mut world, &mut vms, workload.public().address()));
    assert_eq!(world.nodes[0].core.known_aliases(world.now_ns).count(), 0);
}

#[test]
fn an_alias_in_use_outlives_its_certificates() {
    let (mut world, mut vms, alias) = world();
    for _ in 0..70 {
        // A packet may get lost while a router on the way looks for the workload again.
        let arrives = (0..2).any(|_| is_reached(&mut world, &mut vms, alias));
        assert!(arrives, "after {} s", world.now_ns / SECOND);
        run_long(&mut world, &mut vms, 10);
    }
    assert!(world.now_ns > 2 * 300 * SECOND);
    assert_eq!(world.nodes[0].core.counters().aliases_refused, 0);
}

#[test]
fn by_a_clock_that_is_minutes_off_an_alias_counts_and_goes_on_to_count() {
    for (ahead_s, counts) in [(-350, true), (490, true), (-400, false), (700, false)] {
        let clock = |node| if node == 0 { ahead_s } else { 0 };
        let mut world = World::with_clocks(3, &[(0, 1), (2, 1)], 11, clock);
        world.run(SECOND);
        let asker = world.nodes[0].key;
        let mut vms = [vm(&mut world, 2, 2, &[asker])];
        let alias = Alias::address_of(&world.nodes[2].key, &vms[0].key);
        assert_eq!(is_reached(&mut world, &mut vms, alias), counts, "{ahead_s} s ahead");
        let refused = world.nodes[0].core.counters().aliases_refused;
        assert_eq!(refused > 0, !counts, "{ahead_s} s ahead");
        let rounds = if counts { 40 } else { 0 };
        for round in 0..rounds {
            run_long(&mut world, &mut vms, 10);
            let arrives = (0..2).any(|_| is_reached(&mut world, &mut vms, alias));
            assert!(arrives, "{ahead_s} s ahead, after {} s", 10 * round);
        }
    }
}

#[test]
fn who_asks_for_addresses_that_are_nobody_s_keeps_no_one_else_from_an_alias() {
    let (mut world, [workload], alias) = world();
    let greedy = vm(&mut world, 0, 7, &[]);
    let mut vms = [workload, greedy];
    let prefix = alias.to_bits() >> 64 << 64;
    for number in 0..5000u16 {
        let nobody = Ipv6Addr::from_bits(prefix | u128::from(number) << 16);
        let Node { core, wire, .. } = &mut world.nodes[0];
        core.resolve_for(world.now_ns, &vms[1].key, &nobody, wire);
    }
    assert!(is_reached(&mut world, &mut vms, alias));
    run_long(&mut world, &mut vms, 5);
    assert!(is_reached(&mut world, &mut vms, alias));
    // Nobody waits for ever: what was not answered was answered with "nobody".
    let of_greedy = |it: &&(PublicKey, Ipv6Addr, _)| it.0 == vms[1].key;
    assert_eq!(world.nodes[0].wire.resolved.iter().filter(of_greedy).count(), 0, "all were taken");
}
