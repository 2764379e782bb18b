//! Random histories.

use storage_vdev::extent_map::{Location, PAGES_MIN};

use crate::model::{Bench, Change};

/// Numbers from a seed (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Says which seed it was if the test fails.
pub(crate) struct Seed(pub(crate) u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// A range with something like locality: mostly among a few hundred leaves.
fn range(random: &mut Random, bench: &Bench, most: u64) -> (u64, u64) {
    let blocks = bench.map.blocks();
    let near = (random.below(300) * 512 + random.below(512)) % blocks;
    let first = if random.below(4) == 0 { random.below(blocks) } else { near };
    (first, (1 + random.below(most)).min(blocks - first))
}

fn step(random: &mut Random, bench: &mut Bench) {
    match random.below(100) {
        0..40 => {
            let most = if random.below(3) == 0 { 700 } else { 3 };
            let (first, count) = range(random, bench, most);
            let location = bench.room(count as u16);
            bench.change(Change::Set { first, count, location });
        }
        40..50 => {
            let (first, count) = range(random, bench, 200);
            bench.change(Change::Zero { first, count });
        }
        50..53 => {
            let most = bench.map.blocks();
            let (first, count) = range(random, bench, most);
            bench.change(Change::Zero { first, count });
        }
        53..65 => move_block(random, bench),
        65..85 => {
            let (first, count) = range(random, bench, 5000);
            bench.check(first, count);
        }
        85..93 => advance(random, bench),
        93 => {
            let blocks = bench.map.blocks();
            if blocks < 1 << 30 {
                bench.change(Change::Grow { blocks: blocks + 1 + random.below(blocks / 2 + 1) });
            }
        }
        94 | 95 => bench.crash(),
        96 | 97 => {
            if bench.snapshots.len() < 4 && bench.under_way.is_none() {
                bench.checkpoint();
                bench.snapshots.push(bench.durable.clone());
            }
        }
        98 => {
            if !bench.snapshots.is_empty() {
                let nth = random.below(bench.snapshots.len() as u64) as usize;
                bench.snapshots.swap_remove(nth);
            }
        }
        _ => {
            if random.below(4) == 0 && !bench.snapshots.is_empty() {
                let nth = random.below(bench.snapshots.len() as u64) as usize;
                bench.roll_back(nth);
            }
        }
    }
    if !bench.snapshots.is_empty() && random.below(10) == 0 {
        let nth = random.below(bench.snapshots.len() as u64) as usize;
        let kept = bench.snapshots[nth].clone();
        let (first, count) = range(random, bench, 50_000);
        bench.check_snapshot(&kept, first, count);
    }
}

/// Moves a block, now and then one that has moved away meanwhile.
fn move_block(random: &mut Random, bench: &mut Bench) {
    let (at, _) = range(random, bench, 1);
    let found = bench.model.range(at..).next().map(|(block, location)| (*block, *location));
    let Some((block, mut from)) = found else { return };
    if random.below(4) == 0 {
        from = Location::new(from.sequence() + 1, from.index()).unwrap();
    }
    let to = bench.room(1);
    bench.change(Change::Move { block, from, to });
}

/// A checkpoint goes on by a few pages, begins, ends or is given up.
fn advance(random: &mut Random, bench: &mut Bench) {
    if bench.under_way.is_none() {
        bench.freeze();
    }
    match random.below(10) {
        0 => bench.abort(),
        1..4 => bench.finish(),
        _ => {
            for _ in 0..random.below(40) {
                if !bench.store_page() {
                    bench.finish();
                    return;
                }
            }
        }
    }
}

fn history(seed: u64, blocks: u64, steps: usize) {
    let print = Seed(seed);
    let mut random = Random(seed);
    let mut bench = Bench::new(blocks, 0);
    for _ in 0..steps {
        step(&mut random, &mut bench);
    }
    bench.abort();
    bench.checkpoint();
    bench.check_counts();
    let blocks = bench.map.blocks();
    bench.check(0, blocks);
    for kept in bench.snapshots.clone() {
        bench.check_snapshot(&kept, 0, kept.root.blocks);
    }
    bench.crash();
    bench.check(0, blocks);
    assert!(bench.map.resident_pages() <= 4 * PAGES_MIN, "the memory is bounded");
    drop(print);
}

#[test]
fn a_map_of_three_levels_says_what_a_model_says() {
    for seed in 0..16 {
        history(seed, 3 * 512 * 512 + 77, 500);
    }
}

#[test]
fn a_map_that_begins_with_one_leaf_says_what_a_model_says() {
    for seed in 1000..1030 {
        history(seed, 1 + seed % 7, 300);
    }
}

#[test]
fn a_map_of_a_pebibyte_says_what_a_model_says() {
    for seed in 2000..2010 {
        history(seed, 1 << 38, 300);
    }
}
