//! Frames that nobody honest sends.

use mesh_node::core::Core;
use mesh_router::Router;
use net_vdev::endpoint::{Endpoint, Path, Strangers};
use net_vdev::offload::{Accepts, VirtioNetHeader};
use net_vdev::wire::{HOP_LIMIT, RelayHeader};
use net_vdev::{Config, Peer, PrivateKey, PublicKey};

use crate::world::{MS, SECOND, UNIX_NS, Wire, World, place};

fn header(world: &World, from: usize, to: usize) -> RelayHeader {
    RelayHeader {
        hop_limit: HOP_LIMIT,
        is_alternate: false,
        receiver: 0,
        counter: 0,
        destination: world.address(to),
        source: world.address(from),
    }
}

#[test]
fn frames_without_a_neighbour_s_tag_go_nowhere() {
    let mut world = World::new(3, &[(0, 1), (2, 1)], 1);
    world.run(SECOND);
    let before = world.nodes[1].core.counters();
    for receiver in 0..1000u32 {
        let header = RelayHeader { receiver, ..header(&world, 0, 2) };
        let mut frame = header.to_bytes().to_vec();
        frame.extend_from_slice(&[1, 3, 0, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&[0; 24]);
        world.inject(place(0), 1, frame);
    }
    assert_eq!(world.nodes[1].core.counters(), before, "not even counted as a frame");
    let dropped = world.nodes[1].core.endpoint().counters().dropped_total();
    assert!(dropped >= 1000);
    let payload = world.send(0, 2);
    world.run(100 * MS);
    assert!(world.got_once(2, &payload));
}

#[test]
fn whatever_arrives_nothing_panics_and_memory_stays_bounded() {
    let mut world = World::new(3, &[(0, 1), (2, 1)], 2);
    world.run(SECOND);
    world.send(0, 2);
    world.run(SECOND);
    for round in 0..20_000u64 {
        let len = world.dice.below(200) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| world.dice.next() as u8).collect();
        if let [version, kind, ..] = bytes.as_mut_slice() {
            *version = 1;
            *kind = (round % 11) as u8;
        }
        let from = place((round % 3) as usize);
        world.inject(from, 1, bytes);
    }
    let held = world.nodes[1].core.endpoint().occupancy();
    assert!(held.peers <= 64 + 2 && held.indices <= 4 * held.peers, "{held:?}");
    let payload = world.send(0, 2);
    world.run(SECOND);
    assert!(world.got_once(2, &payload));
}

/// A node with room for four links, and members that speak with it, each at its place.
struct Hub {
    core: Core,
    wire: Wire,
    members: Vec<Endpoint>,
    now_ns: u64,
}

impl Hub {
    fn new(members: u8) -> Self {
        let key = PrivateKey::new([200; 32]);
        let config = Config {
            strangers: Strangers::Welcome { at_most: 64 },
            is_routed: true,
            ..Config::new(key.clone(), UNIX_NS)
        };
        let mut routing = mesh_router::Config::new(key.public(), 0);
        routing.unix_time_at_zero_ns = UNIX_NS;
        routing.neighbours_max = 4;
        let endpoint = Endpoint::new(config, [1; 32]).unwrap();
        let core = Core::new(endpoint, Router::new(routing, 1), Accepts::default());
        let member = |number: u8| {
            let hub = Peer { key: key.public(), endpoint: Some(place(0)), addresses: Vec::new() };
            let config =
                Config { peers: vec![hub], ..Config::new(PrivateKey::new([number; 32]), UNIX_NS) };
            Endpoint::new(config, [number + 100; 32]).unwrap()
        };
        let members = (1..=members).map(member).collect();
        Self { core, wire: Wire::default(), members, now_ns: SECOND }
    }

    /// Carries what everybody has to say, for a second.
    fn settle(&mut self) {
        for _ in 0..20 {
            self.now_ns += 50 * MS;
            let now_ns = self.now_ns;
            self.core.finish_turn(now_ns, &mut self.wire);
            for (to, mut bytes, stride) in std::mem::take(&mut self.wire.sent) {
                let member = (0..self.members.len()).find(|index| place(index + 1) == to);
                let Some(index) = member else { continue };
                let nobody = &mut |_: &VirtioNetHeader, _: &[u8]| panic!("no packet");
                let from = Path::Direct(place(0));
                self.members[index].receive(now_ns, from, &mut bytes, stride, nobody);
            }
            for (index, member) in self.members.iter_mut().enumerate() {
                member.handle_deadline(now_ns);
                while let Some(mut sent) = member.poll_transmit() {
                    let (from, core) = (Path::Direct(place(index + 1)), &mut self.core);
                    core.receive(now_ns, from, &mut sent.bytes, sent.stride, &mut self.wire);
                }
            }
        }
    }

    /// A member starts a session if it has none, and says a router's word, which makes it a neighbour.
    fn speak(&mut self, index: usize) {
        let hub = self.core.endpoint().key();
        self.members[index].connect(self.now_ns, &hub);
        self.settle();
        assert!(self.members[index].send_router_message(self.now_ns, &hub, &[1, 1]));
        self.settle();
    }

    fn neighbours(&self) -> Vec<PublicKey> {
        self.core.router().neighbours().map(|neighbour| neighbour.key).collect()
    }
}

#[test]
fn whoever_takes_all_links_keeps_no_neighbour_out_that_the_operator_named() {
    let mut hub = Hub::new(9);
    for stranger in 0..6 {
        hub.speak(stranger);
    }
    assert_eq!(hub.neighbours().len(), 4);
    assert_eq!(hub.core.counters().links_refused, 2);
    // Neighbours that were named, one that says on a local network that it is there, and all the
    // strangers once more.
    let [found, named, other] = [6, 7, 8].map(|index| hub.members[index].key());
    hub.core.found(hub.now_ns, found, place(7));
    hub.settle();
    assert!(hub.neighbours().contains(&found));
    for (index, key) in [(7, named), (8, other)] {
        assert!(hub.core.add_neighbour(hub.now_ns, key, Some(place(index + 1))));
        hub.settle();
        assert!(hub.neighbours().contains(&key));
    }
    for member in 0..9 {
        hub.speak(member);
    }
    let neighbours = hub.neighbours();
    assert_eq!(neighbours.len(), 4);
    assert!([found, named, other].iter().all(|key| neighbours.contains(key)));
    // Who was found gives way to the last of those that were named, and these to nobody.
    for index in [0, 1, 2] {
        let key = hub.members[index].key();
        assert!(hub.core.add_neighbour(hub.now_ns, key, Some(place(index + 1))));
        hub.speak(index);
    }
    let neighbours = hub.neighbours();
    assert_eq!(neighbours.len(), 4);
    assert!(!neighbours.contains(&found) && neighbours.contains(&named));
}
