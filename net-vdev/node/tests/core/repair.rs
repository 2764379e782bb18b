//! What happens to traffic when something on the way stops working without a word.

use crate::world::{MS, SECOND, World};

/// Two ways from node 0 to node 3: through 1 and through 2.
const DIAMOND: [(usize, usize); 4] = [(0, 1), (0, 2), (3, 1), (3, 2)];

/// The node between that carries the traffic from 0 to 3.
fn carrier(world: &World) -> usize {
    let carried = |node: usize| world.nodes[node].core.counters().frames_forwarded;
    if carried(1) > carried(2) { 1 } else { 2 }
}

fn flowing(seed: u64) -> World {
    let mut world = World::new(4, &DIAMOND, seed);
    world.run(2 * SECOND);
    assert!(world.longest_gap_ns(0, 3, SECOND) <= 100 * MS, "seed {seed}");
    world
}

#[test]
fn a_link_that_falls_silent_is_gone_round_in_half_a_second_whatever_its_direction() {
    for seed in 0..6 {
        for (far, direction) in
            [(false, 0), (false, 1), (false, 2), (true, 0), (true, 1), (true, 2)]
        {
            let mut world = flowing(1000 + seed);
            let middle = carrier(&world);
            let phase_ns = 20 * MS * world.dice.below(20) + 20 * MS;
            world.longest_gap_ns(0, 3, phase_ns);
            let (one, two) = if far { (middle, 3) } else { (0, middle) };
            if direction != 1 {
                world.wires.remove(&(one, two));
            }
            if direction != 0 {
                world.wires.remove(&(two, one));
            }
            let gap_ns = world.longest_gap_ns(0, 3, 2 * SECOND);
            let case = format!("seed {seed}, far {far}, direction {direction}");
            assert!(gap_ns < 700 * MS, "{case}: {} ms", gap_ns / MS);
        }
    }
}

#[test]
fn a_node_that_takes_everything_and_passes_nothing_on_is_gone_round() {
    for seed in 0..6 {
        let mut world = flowing(2000 + seed);
        let middle = carrier(&world);
        // It hears and answers its neighbours; only what it should pass on is lost.
        world.swallows_frames = Some(middle);
        let gap_ns = world.longest_gap_ns(0, 3, 3 * SECOND);
        assert!(gap_ns < 800 * MS, "seed {seed}: {} ms", gap_ns / MS);
    }
}
