//! Frames that nobody honest sends.

use net_vdev::wire::{HOP_LIMIT, RelayHeader};

use crate::world::{MS, SECOND, World, place};

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
