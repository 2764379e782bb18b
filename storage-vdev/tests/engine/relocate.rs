//! Moving a slot to another node on purpose: at no time is anything on fewer nodes than before.

use storage_vdev::engine::Command;

use crate::harness::{BLOCK, Bench, crashed, create, open, options, try_open};
use crate::nodes::{Mood, Rng, Shared, world};

const BLOCKS: usize = 400;
const NODES: usize = 7;
const MOVE: Command = Command::Replace { slot: 1, node: 6 };

fn filled(seed: u64) -> (Shared, Vec<u8>, Bench) {
    let world = world(NODES, seed);
    let mut bench = open(&world, options(NODES, Some(create(4, 2, BLOCKS))));
    let mut content = vec![0; BLOCKS * BLOCK];
    Rng(seed).fill(&mut content);
    bench.write(&world, 0, &content).unwrap().unwrap();
    bench.flush(&world).unwrap().unwrap();
    (world, content, bench)
}

#[test]
fn a_planned_move_keeps_full_redundancy_while_the_volume_is_written() {
    let (world, mut content, mut bench) = filled(1);
    world.borrow_mut().moods.fill(Mood::Slow(1_000_000));
    bench.volume.submit_command(1 << 40, MOVE);
    let mut rng = Rng(2);
    let (mut moved, mut written, mut looks) = (None, 0u64, 0);
    for turn in 0..200_000u64 {
        while let Some(done) = bench.volume.poll(bench.now_ns) {
            assert!(done.result.is_ok(), "{done:?}");
            if done.id == 1 << 40 {
                moved = Some(turn);
            } else {
                written -= 1;
            }
        }
        let status = bench.volume.status();
        assert_eq!((status.redundancy, status.segments_degraded), (Some(2), 0), "turn {turn}");
        looks += 1;
        if moved.is_some() && written == 0 {
            break;
        }
        if moved.is_none() && written < 3 && turn % 3 == 0 {
            let at = rng.below(BLOCKS as u64) as usize * BLOCK;
            rng.fill(&mut content[at..at + BLOCK]);
            bench.volume.submit_write((2 << 40) + turn, at as u64, &content[at..at + BLOCK]);
            written += 1;
        }
        bench.now_ns = bench.volume.deadline_ns().unwrap().max(bench.now_ns + 1);
    }
    assert!(moved.is_some() && looks > 50, "moved: {moved:?}, {looks} looks");
    let status = bench.volume.status();
    assert_eq!(status.nodes[6].slots, [1]);
    assert!(status.nodes.iter().all(|node| node.shards_missing == 0), "{status:?}");
    // Without what the old node has, and two others.
    world.borrow_mut().moods.fill(Mood::Fine);
    bench.flush(&world).unwrap().unwrap();
    drop(bench);
    let nodes = world.borrow().nodes.clone();
    for gone in [[0, 2], [3, 4], [0, 5]] {
        world.borrow_mut().nodes = nodes.clone();
        world.borrow_mut().nodes[1].objects.clear();
        world.borrow_mut().moods.fill(Mood::Fine);
        gone.iter().for_each(|node| world.borrow_mut().moods[*node] = Mood::Gone);
        let mut bench = open(&world, options(NODES, None));
        assert!(bench.read_all(&world).unwrap().unwrap() == content, "without {gone:?}");
    }
}

#[test]
fn a_crash_anywhere_in_a_planned_move_leaves_every_shard_where_it_is_looked_for() {
    let (base, content, bench) = filled(3);
    drop(bench);
    let mut rng = Rng(4);
    let mut crashes = 0;
    for at in (0..).step_by(5) {
        let world = world(NODES, at);
        world.borrow_mut().nodes = base.borrow().nodes.clone();
        let mut bench = open(&world, options(NODES, None));
        let now = world.borrow().operations;
        world.borrow_mut().crash_at = Some(now + at);
        let done = bench.run(&world, |volume, id| volume.submit_command(id, MOVE));
        let over = done.is_some() && !crashed(&world);
        drop(bench);
        world.borrow_mut().crash_at = None;
        let (one, two) = (rng.below(6) as usize, rng.below(6) as usize);
        let mut bench = try_open(&world, options(NODES, None), 0).unwrap().unwrap();
        bench.idle(5_000_000_000);
        drop(bench);
        for gone in [one, two] {
            world.borrow_mut().moods[gone] = Mood::Gone;
        }
        let mut bench = try_open(&world, options(NODES, None), 0).unwrap().unwrap();
        let read = bench.read_all(&world).unwrap().unwrap();
        assert!(read == content, "crash at {at}, without {one} and {two}");
        if over {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 10, "{crashes} crashes");
}
