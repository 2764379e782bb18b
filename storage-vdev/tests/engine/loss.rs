//! Nodes that are dead, damaged, slow or stale, in every combination that a volume must survive.

use std::collections::BTreeMap;

use bytes::Bytes;
use storage_vdev::engine::{Command, NodeState, Output, Policy, RequestError};
use storage_vdev::node::ObjectKey;

use crate::harness::{BLOCK, Bench, create, open, options, try_open};
use crate::nodes::{Mood, Rng, Shared, world};

const BLOCKS: usize = 200;

/// A volume with content in several segments and in the journal, closed by a crash.
fn filled(k: u8, m: u8, spares: usize, seed: u64) -> (Shared, Vec<u8>) {
    let nodes = usize::from(k + m) + spares;
    let world = world(nodes, seed);
    let mut bench = open(&world, options(nodes, Some(create(k, m, BLOCKS))));
    let mut content = vec![0; BLOCKS * BLOCK];
    let mut rng = Rng(seed);
    rng.fill(&mut content[..150 * BLOCK]);
    bench.write(&world, 0, &content[..150 * BLOCK]).unwrap().unwrap();
    bench.flush(&world).unwrap().unwrap();
    rng.fill(&mut content[30 * BLOCK..33 * BLOCK]);
    let data = content[30 * BLOCK..33 * BLOCK].to_vec();
    bench.write(&world, 30 * BLOCK, &data).unwrap().unwrap();
    bench.flush(&world).unwrap().unwrap();
    (world, content)
}

/// All sets of `count` of `of`.
fn subsets(of: usize, count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for last in count - 1..of {
        for mut set in subsets(last, count - 1) {
            set.push(last);
            all.push(set);
        }
    }
    all
}

/// Damages every object of a node, a bit somewhere in each.
fn damage(objects: &mut BTreeMap<ObjectKey, Bytes>, rng: &mut Rng) {
    for bytes in objects.values_mut() {
        let mut copy = bytes.to_vec();
        for _ in 0..4 {
            let at = rng.below(copy.len() as u64) as usize;
            copy[at] ^= 1 << rng.below(8);
        }
        *bytes = Bytes::from(copy);
    }
}

#[test]
fn any_m_dead_nodes_of_4_2_and_3_3_lose_nothing() {
    for (k, m) in [(4, 2), (3, 3)] {
        let (base, content) = filled(k, m, 0, 1);
        let nodes = usize::from(k + m);
        for lost in subsets(nodes, m.into()) {
            let world = world(nodes, 2);
            world.borrow_mut().nodes = base.borrow().nodes.clone();
            lost.iter().for_each(|node| world.borrow_mut().moods[*node] = Mood::Gone);
            let mut bench = open(&world, options(nodes, None));
            assert!(bench.read_all(&world).unwrap().unwrap() == content, "{lost:?}");
            assert_eq!(bench.volume.status().redundancy, Some(0), "{lost:?}");
            // And it goes on: what is written now survives too.
            bench.write(&world, 0, &[7; BLOCK]).unwrap().unwrap();
            bench.flush(&world).unwrap().unwrap();
            drop(bench);
            let mut bench = open(&world, options(nodes, None));
            assert!(bench.read(&world, 0, BLOCK).unwrap().unwrap() == [7; BLOCK]);
        }
    }
}

#[test]
fn damage_slowness_and_death_mixed_are_read_round_and_mended() {
    let moods = ["dead", "slow", "silent", "damaged", "emptied"];
    for seed in 0..30u64 {
        let (world, content) = filled(4, 2, 0, seed);
        let mut rng = Rng(seed ^ 77);
        let sets = subsets(6, 2);
        let lost = &sets[rng.below(sets.len() as u64) as usize];
        let mut bench = open(&world, options(6, None));
        let mut story = Vec::new();
        for node in lost {
            let mood = moods[rng.below(5) as usize];
            story.push((node, mood));
            let mut world = world.borrow_mut();
            match mood {
                "dead" => world.moods[*node] = Mood::Gone,
                "slow" => world.moods[*node] = Mood::Slow(60_000_000_000),
                "silent" => world.moods[*node] = Mood::Silent,
                "damaged" => damage(&mut world.nodes[*node].objects, &mut rng),
                _ => world.nodes[*node].objects.clear(),
            }
        }
        let context = format!("seed {seed}: {story:?}");
        let before = bench.now_ns;
        assert!(bench.read_all(&world).unwrap().unwrap() == content, "{context}");
        let waited = bench.now_ns - before;
        assert!(waited < 2_000_000_000, "{context}: a read waited {waited} ns");
        world.borrow_mut().moods.fill(Mood::Fine);
        bench.idle(120_000_000_000);
        let done = bench.run(&world, |volume, id| volume.submit_command(id, Command::Scrub));
        assert!(matches!(done.unwrap().0, Ok(Output::Report(_))), "{context}");
        let status = bench.volume.status();
        assert_eq!(status.redundancy, Some(2), "{context}: {status:?}");
        assert!(bench.read_all(&world).unwrap().unwrap() == content, "{context}");
    }
}

#[test]
fn more_than_m_dead_nodes_give_an_error_and_never_wrong_bytes() {
    let (world, content) = filled(4, 2, 0, 5);
    let mut bench = open(&world, options(6, None));
    for node in 0..3 {
        world.borrow_mut().nodes[node].objects.clear();
    }
    let mut lost = 0;
    for block in 0..BLOCKS {
        match bench.read(&world, block * BLOCK, BLOCK).unwrap() {
            Ok(found) => assert!(found == content[block * BLOCK..(block + 1) * BLOCK]),
            Err(error) => {
                assert!(matches!(error, RequestError::Lost { .. }), "{error}");
                lost += 1;
            }
        }
    }
    assert!(lost > 0, "three of six nodes are empty and nothing is lost");
    assert_eq!(bench.volume.status().redundancy, None);
}

#[test]
fn too_few_nodes_refuse_the_opening_in_words() {
    let (world, _) = filled(4, 2, 0, 6);
    (0..3).for_each(|node| world.borrow_mut().moods[node] = Mood::Gone);
    let error = try_open(&world, options(6, None), 0).unwrap().err().unwrap();
    assert_eq!(error.to_string(), "3 of 6 nodes answer and 4 must (the node can't be reached)");
}

#[test]
fn a_node_that_comes_back_is_filled_with_what_it_missed() {
    let (world, mut content) = filled(2, 1, 0, 7);
    let mut bench = open(&world, options(3, None));
    world.borrow_mut().moods[1] = Mood::Gone;
    let mut rng = Rng(3);
    rng.fill(&mut content[..100 * BLOCK]);
    let data = content[..100 * BLOCK].to_vec();
    bench.write(&world, 0, &data).unwrap().unwrap();
    bench.flush(&world).unwrap().unwrap();
    let status = bench.volume.status();
    assert!(matches!(status.nodes[1].state, NodeState::Down(_)));
    assert!(status.segments_degraded > 0 && status.redundancy == Some(0), "{status:?}");
    world.borrow_mut().moods[1] = Mood::Fine;
    bench.idle(60_000_000_000);
    let status = bench.volume.status();
    assert_eq!((status.segments_degraded, status.redundancy), (0, Some(1)), "{status:?}");
    // Any other one may go now.
    world.borrow_mut().moods[0] = Mood::Gone;
    assert!(bench.read_all(&world).unwrap().unwrap() == content);
}

#[test]
fn a_spare_takes_the_slot_of_a_node_that_stays_away() {
    let (world, content) = filled(4, 2, 1, 8);
    let mut bench = open(&world, options(7, None));
    world.borrow_mut().moods[2] = Mood::Gone;
    assert!(bench.read_all(&world).unwrap().unwrap() == content);
    bench.idle(3_600_000_000_000);
    let status = bench.volume.status();
    assert!(status.nodes[2].slots.is_empty(), "{status:?}");
    assert_eq!(status.nodes[6].slots, [2]);
    assert_eq!((status.segments_degraded, status.redundancy), (0, Some(2)), "{status:?}");
    drop(bench);
    // The old node returns with what it had, and means nothing any more.
    let image = world.borrow().nodes.clone();
    for lost in subsets(6, 2) {
        world.borrow_mut().nodes = image.clone();
        world.borrow_mut().moods.fill(Mood::Fine);
        let others: Vec<usize> = lost.iter().map(|at| [0, 1, 3, 4, 5, 6][*at]).collect();
        others.iter().for_each(|node| world.borrow_mut().moods[*node] = Mood::Gone);
        let mut bench: Bench = open(&world, options(7, None));
        assert!(bench.read_all(&world).unwrap().unwrap() == content, "{others:?}");
    }
}

#[test]
fn a_flush_does_not_hang_on_a_dead_or_silent_head() {
    for mood in [Mood::Gone, Mood::Silent, Mood::Broken] {
        let (world, _) = filled(4, 2, 0, 9);
        let mut bench = open(&world, options(6, None));
        let heads = bench.volume.status().nodes;
        let head = heads.iter().position(|node| node.is_head).unwrap();
        world.borrow_mut().moods[head] = mood;
        let before = bench.now_ns;
        bench.write(&world, 0, &[9; BLOCK]).unwrap().unwrap();
        bench.flush(&world).unwrap().unwrap();
        let waited = bench.now_ns - before;
        assert!(waited < 20_000_000_000, "{mood:?}: {waited} ns");
        bench.idle(60_000_000_000);
        let status = bench.volume.status();
        assert!(!status.nodes[head].is_head, "{mood:?}: {status:?}");
        let heads = status.nodes.iter().filter(|node| node.is_head).count();
        assert_eq!((heads, status.policy_degraded), (3, false), "{mood:?}");
        // The new heads serve.
        let sealed = status.counters.segments_sealed;
        bench.write(&world, 0, &[10; BLOCK]).unwrap().unwrap();
        bench.flush(&world).unwrap().unwrap();
        assert_eq!(bench.volume.status().counters.segments_sealed, sealed, "{mood:?}");
        drop(bench);
        let mut bench = open(&world, options(6, None));
        assert!(bench.read(&world, 0, BLOCK).unwrap().unwrap() == [10; BLOCK], "{mood:?}");
    }
}

#[test]
fn full_nodes_give_enospc_lose_nothing_and_serve_again_when_there_is_room() {
    let world = world(3, 10);
    world.borrow_mut().nodes.iter_mut().for_each(|node| node.capacity = 600 << 10);
    let mut bench = open(&world, options(3, Some(create(2, 1, 1000))));
    let mut content = vec![0; 1000 * BLOCK];
    let mut refused = 0;
    for block in 0..1000 {
        let value = 1 + (block % 255) as u8;
        match bench.write(&world, block * BLOCK, &[value; BLOCK]).unwrap() {
            Ok(_) => content[block * BLOCK..(block + 1) * BLOCK].fill(value),
            Err(error) => {
                assert_eq!(error, RequestError::NoSpace);
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    let flushed = bench.flush(&world).unwrap();
    assert!(flushed.is_ok(), "what was taken has room: {flushed:?}");
    assert!(bench.read_all(&world).unwrap().unwrap() == content);
    drop(bench);
    let mut bench = open(&world, options(3, None));
    assert!(bench.read_all(&world).unwrap().unwrap() == content);
    // Discarding makes room again, on its own.
    bench.zero(&world, 0, 600 * BLOCK).unwrap().unwrap();
    content[..600 * BLOCK].fill(0);
    bench.flush(&world).unwrap().unwrap();
    bench.idle(600_000_000_000);
    bench.write(&world, 0, &[1; 20 * BLOCK]).unwrap().unwrap();
    content[..20 * BLOCK].fill(1);
    bench.flush(&world).unwrap().unwrap();
    assert!(bench.read_all(&world).unwrap().unwrap() == content);
}

#[test]
fn a_volume_with_too_few_heads_is_refused_or_degraded_as_it_was_asked() {
    let world = world(3, 11);
    let mut few = options(3, Some(create(2, 1, 64)));
    few.nodes.iter_mut().skip(1).for_each(|node| node.journal = false);
    let error = try_open(&world, few.clone(), 0).unwrap().err().unwrap();
    let words = "the policy wants 2 journal heads in different failure domains: there are 1";
    assert_eq!(error.to_string(), words);
    let degraded = few.create.as_mut().unwrap();
    degraded.allow_degraded = true;
    assert_eq!(degraded.policy, Policy::Quorum);
    let bench = open(&world, few);
    assert!(bench.volume.status().policy_degraded);
}
