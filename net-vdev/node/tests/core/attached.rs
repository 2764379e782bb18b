//! Members that are attached to nodes: VMs with keys and sessions of their own.

use std::net::Ipv6Addr;

use mesh_node::CoreCounters;
use mesh_node::core::AttachError;
use net_vdev::announcement::{Announcement, Role, SignedAnnouncement};
use net_vdev::endpoint::{Endpoint, Event, Path, Strangers, Transmit};
use net_vdev::offload::VirtioNetHeader;
use net_vdev::wire::{RELAY_HEADER_BYTES, RelayHeader};
use net_vdev::{Config, PrivateKey, Protocol, PublicKey, Rule, uplink};

use crate::world::{Answer, Node, SECOND, UNIX_NS, World, udp};

const MS: u64 = 1_000_000;

/// A member and the node that it is attached to.
pub(crate) struct Vm {
    pub(crate) node: usize,
    pub(crate) key: PublicKey,
    pub(crate) endpoint: Endpoint,
    pub(crate) got: Vec<Vec<u8>>,
}

pub(crate) fn announcement(key: &PrivateKey, sequence: u64) -> SignedAnnouncement {
    let expires_unix_s = UNIX_NS / SECOND + 3600;
    let role = Role::Workload;
    let announcement = Announcement { key: key.public(), sequence, expires_unix_s, role };
    SignedAnnouncement::sign(announcement, key, &[9; 64])
}

pub(crate) fn vm(world: &mut World, node: usize, number: u8, peers: &[PublicKey]) -> Vm {
    let key = PrivateKey::new([number; 32]);
    let rules =
        peers.iter().map(|from| Rule { who: (*from).into(), protocol: Protocol::Udp, port: None });
    let config = Config {
        rules: rules.collect(),
        strangers: Strangers::Welcome { at_most: 8 },
        is_routed: true,
        ..Config::new(key.clone(), UNIX_NS)
    };
    let endpoint = Endpoint::new(config, [number + 100; 32]).unwrap();
    let signed = announcement(&key, 1);
    assert_eq!(world.nodes[node].core.attach(world.now_ns, &signed), Ok(key.public()));
    world.settle(node);
    Vm { node, key: key.public(), endpoint, got: Vec::new() }
}

/// Carries what waits between cards and nodes, both ways.
pub(crate) fn carry(world: &mut World, vms: &mut [Vm]) {
    for vm in vms.iter_mut() {
        let now_ns = world.now_ns;
        if vm.endpoint.next_deadline().is_some_and(|due_ns| due_ns <= now_ns) {
            vm.endpoint.handle_deadline(now_ns);
        }
        let Node { core, wire, .. } = &mut world.nodes[vm.node];
        for (_, address, key) in wire.resolved.extract_if(.., |(member, ..)| *member == vm.key) {
            match key {
                Answer::Key(key) => assert!(vm.endpoint.learn(now_ns, &key, &[])),
                Answer::Alias(certificate) => {
                    let message = &mut uplink::alias(&certificate);
                    let nobody = &mut |_: &VirtioNetHeader, _: &[u8]| panic!("no packet");
                    let taken = vm.endpoint.receive_from_router(now_ns, message, None, nobody);
                    assert_eq!(taken, Ok(None));
                }
                Answer::Nobody => vm.endpoint.give_up(&address),
            }
        }
        for (_, mut frame) in wire.attached.extract_if(.., |(member, _)| *member == vm.key) {
            let header = RelayHeader::parse(&frame).unwrap();
            assert_eq!(header.destination, vm.key.address());
            let from = Path::Relayed { member: header.source, is_alternate: false };
            let got = &mut vm.got;
            let datagram = &mut frame[RELAY_HEADER_BYTES..];
            let (stride, deliver) =
                (datagram.len(), &mut |_: &_, packet: &[u8]| got.push(packet.to_vec()));
            vm.endpoint.receive(now_ns, from, datagram, stride, deliver);
        }
        while let Some(event) = vm.endpoint.poll_event() {
            if let Event::Resolve(address) = event {
                core.resolve_for(now_ns, &vm.key, &address, wire);
            }
        }
        while let Some(Transmit { bytes, stride, .. }) = vm.endpoint.poll_transmit() {
            for frame in bytes.chunks(stride) {
                core.receive_attached(now_ns, &vm.key, &mut frame.to_vec(), wire);
            }
        }
        world.settle(vm.node);
    }
}

pub(crate) fn run(world: &mut World, vms: &mut [Vm], duration_ns: u64) {
    for _ in 0..duration_ns / MS {
        carry(world, vms);
        world.run(MS);
    }
}

pub(crate) fn send(world: &World, vm: &mut Vm, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let packet = udp(vm.key.address(), to, payload);
    vm.endpoint.send_packet(world.now_ns, &packet);
    packet
}

#[test]
fn members_on_different_nodes_and_on_the_same_one_find_each_other_by_address() {
    for nodes in [(0, 2), (1, 1)] {
        let mut world = World::new(3, &[(0, 1), (2, 1)], 1);
        world.run(SECOND);
        let keys = [1u8, 2].map(|number| PrivateKey::new([number; 32]).public());
        let one = vm(&mut world, nodes.0, 1, &[]);
        let two = vm(&mut world, nodes.1, 2, &keys[..1]);
        let mut vms = [one, two];
        let packet = send(&world, &mut vms[0], keys[1].address(), b"hello");
        run(&mut world, &mut vms, 100 * MS);
        assert_eq!(vms[1].got, [packet], "nodes {nodes:?}");
        let answer = send(&world, &mut vms[1], keys[0].address(), b"hello yourself");
        run(&mut world, &mut vms, 50 * MS);
        assert_eq!(vms[0].got, [answer], "nodes {nodes:?}");
    }
}

#[test]
fn a_member_that_moves_to_another_node_is_found_there() {
    let mut world = World::new(3, &[(0, 1), (2, 1)], 2);
    world.run(SECOND);
    let one = vm(&mut world, 0, 1, &[]);
    let two = vm(&mut world, 2, 2, &[one.key]);
    let (to, moving) = (two.key.address(), PrivateKey::new([2; 32]));
    let mut vms = [one, two];
    send(&world, &mut vms[0], to, b"there?");
    run(&mut world, &mut vms, 100 * MS);
    assert_eq!(vms[1].got.len(), 1);
    let now_ns = world.now_ns;
    let Node { core, wire, .. } = &mut world.nodes[2];
    core.detach(now_ns, &moving.public(), wire);
    world.settle(2);
    let attached = world.nodes[1].core.attach(now_ns, &announcement(&moving, 2));
    assert_eq!(attached, Ok(moving.public()));
    world.settle(1);
    vms[1].node = 1;
    for _ in 0..20 {
        send(&world, &mut vms[0], to, b"still there?");
        run(&mut world, &mut vms, 50 * MS);
    }
    assert!(vms[1].got.len() > 10, "{} arrived", vms[1].got.len());
}

#[test]
fn a_member_can_t_be_another_or_attach_with_what_it_did_not_sign() {
    let mut world = World::new(2, &[(0, 1)], 3);
    world.run(SECOND);
    let one = vm(&mut world, 0, 1, &[]);
    let header = RelayHeader {
        hop_limit: 9,
        is_alternate: false,
        receiver: 0,
        counter: 0,
        destination: world.address(1),
        source: PrivateKey::new([2; 32]).public().address(),
    };
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(&[1, 3, 0, 0, 0, 0, 0, 0]);
    let Node { core, wire, .. } = &mut world.nodes[0];
    let before = core.counters();
    core.receive_attached(world.now_ns, &one.key, &mut frame, wire);
    assert_eq!(core.counters(), CoreCounters { frames_odd: before.frames_odd + 1, ..before });
    let mut forged = announcement(&PrivateKey::new([3; 32]), 1);
    forged.announcement.sequence = 7;
    assert!(matches!(core.attach(world.now_ns, &forged), Err(AttachError::Announcement(_))));
    let again = announcement(&PrivateKey::new([1; 32]), 2);
    assert_eq!(core.attach(world.now_ns, &again), Ok(one.key), "a newer announcement");
}

#[test]
fn a_member_that_asks_for_nobody_s_addresses_does_not_keep_others_from_being_found() {
    for asks in [true, false] {
        let mut world = World::new(3, &[(0, 1), (2, 1)], 5);
        world.run(SECOND);
        let greedy = vm(&mut world, 0, 1, &[]);
        let one = vm(&mut world, 0, 2, &[]);
        let two = vm(&mut world, 2, 3, &[one.key]);
        let to = two.key.address();
        let Node { core, wire, .. } = &mut world.nodes[0];
        for number in 0..5000u16 {
            let nobody = Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 1, number);
            if asks {
                core.resolve_for(world.now_ns, &greedy.key, &nobody, wire);
            } else {
                let header = RelayHeader {
                    hop_limit: 9,
                    is_alternate: false,
                    receiver: 0,
                    counter: 0,
                    destination: nobody,
                    source: greedy.key.address(),
                };
                core.receive_attached(world.now_ns, &greedy.key, &mut header.to_bytes(), wire);
            }
        }
        let mut vms = [one, two];
        let packet = send(&world, &mut vms[0], to, b"hello");
        run(&mut world, &mut vms, 200 * MS);
        assert_eq!(vms[1].got, [packet], "by questions: {asks}");
    }
}

#[test]
fn the_largest_number_of_all_is_a_number() {
    let mut world = World::new(2, &[(0, 1)], 6);
    world.run(SECOND);
    let key = PrivateKey::new([1; 32]);
    for (node, number) in [(0, 1), (1, 2), (0, u64::MAX)] {
        let signed = announcement(&key, number);
        assert_eq!(world.nodes[node].core.attach(world.now_ns, &signed), Ok(key.public()));
        world.settle(node);
        let Node { core, wire, .. } = &mut world.nodes[1];
        core.resolve_for(world.now_ns, &key.public(), &key.public().address(), wire);
        world.run(SECOND / 2);
    }
    let wanted = world.nodes[1].core.take_wanted();
    assert!(wanted.contains(&(key.public(), u64::MAX)), "{wanted:?}");
}
