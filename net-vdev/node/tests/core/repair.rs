//! What happens to traffic when something on the way stops working without a word.

use net_vdev::PublicKey;

use crate::world::{MS, ONE_WAY_NS, SECOND, World, place};

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

/// Cuts both wires of a node that died, of which the hosts nearby say so.
fn kill(world: &mut World, node: usize) {
    for neighbour in [0, 3] {
        world.wires.remove(&(neighbour, node));
        world.wires.remove(&(node, neighbour));
    }
}

/// The neighbours that a node's router may send frames to.
fn usable(world: &World, node: usize) -> Vec<PublicKey> {
    let neighbours = world.nodes[node].core.router().neighbours();
    neighbours.filter(|it| it.is_usable).map(|it| it.key).collect()
}

#[test]
fn what_a_host_says_about_a_dead_neighbour_repairs_at_once() {
    for seed in 0..20 {
        let mut world = flowing(3000 + seed);
        let middle = carrier(&world);
        kill(&mut world, middle);
        for end in [0, 3] {
            world.nodes[end].core.places_are_doubtful(world.now_ns, &[place(middle)].into());
            world.settle(end);
        }
        let payload = world.send(0, 3);
        world.run(2 * ONE_WAY_NS + MS);
        assert!(
            world.got_once(3, &payload),
            "seed {seed}: the very next packet takes the other way"
        );
        world.run(40 * MS);
        let key = world.nodes[middle].key;
        let is_up = usable(&world, 0).contains(&key) || usable(&world, 3).contains(&key);
        assert!(!is_up, "seed {seed}: and the link is given up soon");
    }
}

#[test]
fn lies_about_living_neighbours_lose_no_packet_and_no_link() {
    for seed in 0..6 {
        let mut world = flowing(4000 + seed);
        let mut payloads = Vec::new();
        for _ in 0..100 {
            // About both at once, as often as a flood of ICMP errors could tell.
            for node in [1, 2] {
                world.nodes[0].core.places_are_doubtful(world.now_ns, &[place(node)].into());
            }
            world.settle(0);
            payloads.push(world.send(0, 3));
            world.run(20 * MS);
            assert_eq!(usable(&world, 0).len(), 2, "seed {seed}");
        }
        world.run(100 * MS);
        let arrived = payloads.iter().filter(|payload| world.got_once(3, payload)).count();
        assert_eq!(arrived, payloads.len(), "seed {seed}");
    }
}

#[test]
fn a_host_that_loses_an_interface_has_its_neighbour_told_by_others() {
    for seed in 0..6 {
        let mut world = flowing(5000 + seed);
        let middle = carrier(&world);
        world.wires.remove(&(0, middle));
        world.wires.remove(&(middle, 0));
        world.nodes[0].core.place_refused(world.now_ns, place(middle));
        world.settle(0);
        // Through the other router and the far end; then the neighbour's probes go unanswered.
        world.run(3 * ONE_WAY_NS + 45 * MS);
        let key = world.nodes[0].key;
        assert!(!usable(&world, middle).contains(&key), "seed {seed}");
        // What the far end sends by its first choice is told in time, too.
        world.run(ONE_WAY_NS);
        let payload = world.send(3, 0);
        world.run(2 * ONE_WAY_NS + MS);
        assert!(world.got_once(0, &payload), "seed {seed}");
    }
}
