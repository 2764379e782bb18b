//! Ten thousand nodes in a hundred zones, all started at once, then hurt.

use std::net::Ipv6Addr;

use mesh_router::NextHop;
use mesh_sim::topology;
use mesh_sim::world::{MS, S, Walk, World};

const ZONES: u16 = 100;
const NODES: usize = 100;

/// Walks after one event of so many.
const SAMPLE: u64 = 64;

fn run(world: &mut World, time_ns: u64) {
    let end_ns = world.now_ns + time_ns;
    let mut looped = None;
    world.run(end_ns, |world| {
        if world.events % SAMPLE == 0 && looped.is_none() {
            let zone = world.last / NODES;
            let to = zone * NODES + world.rng.index(NODES);
            let walk = world.walk(world.last, &world.nodes[to].address, false);
            looped = matches!(walk, Walk::Loop(_)).then_some((world.now_ns, to, walk));
        }
    });
    assert_eq!(looped, None, "seed {}: a loop", world.seed);
}

/// Pairs of a zone that reach each other, and pairs tried. Nodes that do not run are left out.
fn reached(world: &mut World, tries: usize) -> (usize, usize) {
    let (mut good, mut all) = (0, 0);
    for _ in 0..tries {
        let from = world.rng.index(world.nodes.len());
        let to = from / NODES * NODES + world.rng.index(NODES);
        let lives = |node: usize| world.nodes[node].router.is_some();
        if lives(from) && lives(to) {
            all += 1;
            let walk = world.walk(from, &world.nodes[to].address, false);
            good += usize::from(matches!(walk, Walk::Arrived { .. }));
        }
    }
    (good, all)
}

fn bytes(world: &World) -> u64 {
    world.nodes.iter().map(|it| it.sent_bytes).sum()
}

/// Looks up a node of another zone; how long until the first packet arrives, in ms.
fn look_up(world: &mut World) -> Option<u64> {
    let count = world.nodes.len();
    let (from, to) = (world.rng.index(count), world.rng.index(count));
    if world.nodes[from].router.is_none() || world.nodes[to].router.is_none() {
        return None;
    }
    let (start_ns, address): (u64, Ipv6Addr) = (world.now_ns, world.nodes[to].address);
    while world.now_ns < start_ns + 2 * S {
        let now_ns = world.now_ns;
        let hop = world.nodes[from].router.as_mut()?.next_hop(now_ns, &address, false);
        world.after(from);
        let walk = world.walk(from, &address, false);
        if matches!(hop, NextHop::Link(_) | NextHop::Local(_))
            && matches!(walk, Walk::Arrived { .. })
        {
            return Some((now_ns - start_ns) / MS);
        }
        world.run(now_ns + MS, |_| {});
    }
    panic!(
        "seed {}: {from} does not find {to}: {:?}",
        world.seed,
        world.walk(from, &address, false)
    );
}

#[test]
fn ten_thousand_nodes_find_each_other_and_stay_within_their_bounds() {
    let mut world = World::new(1);
    topology::zones(&mut world, ZONES, NODES, 6, 4);
    (0..world.nodes.len()).for_each(|node| world.start(node));
    run(&mut world, 4 * S);
    let (good, all) = reached(&mut world, 5000);
    assert_eq!(good, all, "seed {}: of so many pairs, so many are connected", world.seed);
    let start_up = bytes(&world) / world.nodes.len() as u64;

    let before = bytes(&world);
    run(&mut world, 2 * S);
    let quiet = (bytes(&world) - before) / 2 / world.nodes.len() as u64;
    assert!(quiet < 2048, "seed {}: a node sends {quiet} bytes per quiet second", world.seed);

    for _ in 0..200 {
        let wire = world.rng.index(world.wires.len());
        world.wires[wire].directions[0].is_cut = true;
        let node = world.rng.index(world.nodes.len());
        if world.rng.chance_ppm(250_000) {
            world.stop(node);
        }
    }
    run(&mut world, 8 * S);
    let (good, all) = reached(&mut world, 5000);
    // Some nodes hang on one wire only.
    assert!(good * 100 >= all * 97, "seed {}: {good} of {all} after the cuts", world.seed);

    let before = bytes(&world);
    let mut times: Vec<u64> = (0..20).filter_map(|_| look_up(&mut world)).collect();
    times.sort_unstable();
    let per_lookup = (bytes(&world) - before) / times.len() as u64;
    let full: Vec<_> =
        world.nodes.iter().filter_map(|it| Some(it.router.as_ref()?.occupancy())).collect();
    let most = full.iter().map(|it| it.destinations).max().unwrap_or_default();
    let memory: usize = full.iter().map(|it| it.bytes).sum();
    let known: usize = full.iter().map(|it| it.destinations).sum();
    assert!(most <= NODES + 200, "seed {}: a router knows {most} destinations", world.seed);
    println!(
        "{} nodes: {} events; {start_up} bytes sent per node to start, {quiet} per quiet second, \
         {per_lookup} by all nodes for a lookup across zones (median {} ms, worst {} ms); {} bytes per \
         known destination; {good} of {all} pairs after 200 cuts; trace {}",
        world.nodes.len(),
        world.events,
        times[times.len() / 2],
        times[times.len() - 1],
        memory / known,
        world.trace(),
    );
}
