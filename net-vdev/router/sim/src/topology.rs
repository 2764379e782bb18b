//! Who is connected to whom.

use crate::rng::Rng;
use crate::world::{MS, World};

/// Delays between neighbours, in ns: within a house, a city, a continent.
fn delay_ns(rng: &mut Rng) -> u64 {
    match rng.range(0, 4) {
        0 => rng.range(MS / 10, MS),
        1 | 2 => rng.range(MS, 10 * MS),
        _ => rng.range(10 * MS, 60 * MS),
    }
}

/// `count` nodes of one zone in a row.
pub fn line(world: &mut World, count: usize, delay_ns: u64) {
    let first = world.nodes.len();
    for node in first..first + count {
        world.add_node(1);
        if node > first {
            world.connect(node - 1, node, delay_ns);
        }
    }
}

/// Four nodes: 0 to 3 by way of 1 or 2. The wires: 0-1, 1-3, 0-2, 2-3.
pub fn diamond(world: &mut World, delay_ns: u64) {
    for _ in 0..4 {
        world.add_node(1);
    }
    for (a, b) in [(0, 1), (1, 3), (0, 2), (2, 3)] {
        world.connect(a, b, delay_ns);
    }
}

/// `count` nodes of a zone, connected, with about `degree` wires each.
pub fn random_zone(world: &mut World, zone: u16, count: usize, degree: usize) {
    let first = world.nodes.len();
    for node in first..first + count {
        world.add_node(zone);
        if node > first {
            // A tree first, so that all are connected.
            let other = first + world.rng.index(node - first);
            let delay_ns = delay_ns(&mut world.rng);
            world.connect(other, node, delay_ns);
        }
    }
    let more = count * degree.saturating_sub(2) / 2;
    for _ in 0..more {
        let (a, b) = (first + world.rng.index(count), first + world.rng.index(count));
        connect_if_new(world, a, b);
    }
}

/// Connects two nodes unless they are the same or connected.
pub fn connect_if_new(world: &mut World, a: usize, b: usize) {
    let is_connected =
        |world: &World| (0..world.nodes[a].ports.len()).any(|port| world.neighbour(a, port).0 == b);
    if a != b && !is_connected(world) {
        let delay_ns = delay_ns(&mut world.rng);
        world.connect(a, b, delay_ns);
    }
}

/// Several zones of random nodes, each connected to the next and to some others by `borders` wires.
pub fn zones(world: &mut World, zones: u16, nodes: usize, degree: usize, borders: usize) {
    for zone in 1..=zones {
        random_zone(world, zone, nodes, degree);
        if zone > 1 {
            for _ in 0..borders {
                let from = world.rng.index(nodes * usize::from(zone - 1));
                let to = nodes * usize::from(zone - 1) + world.rng.index(nodes);
                connect_if_new(world, from, to);
            }
        }
    }
}
