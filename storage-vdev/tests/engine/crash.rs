//! Crashes: at any request to a node, while serving and while opening, over and over.
//!
//! The oracle knows every block that was written, in order. After a crash the volume must be as it
//! was after one of these steps, not before the last acknowledged flush.

use storage_vdev::engine::{Create, Policy};

use crate::harness::{BLOCK, Bench, crashed, create, open, options, try_open};
use crate::nodes::{Mood, Rng, Shared, world};

const BLOCKS: usize = 48;

/// All contents that the volume may have, oldest first.
struct Oracle {
    states: Vec<Vec<u8>>,
}

impl Oracle {
    fn new() -> Self {
        // One byte stands for a block: blocks are filled with their step's number.
        Self { states: vec![vec![0; BLOCKS]] }
    }

    fn step(&mut self, block: usize, value: u8) {
        let mut next = self.states.last().unwrap().clone();
        next[block] = value;
        self.states.push(next);
    }

    fn flushed(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }

    fn check(&mut self, content: &[u8], context: &str) {
        let blocks = content.chunks(BLOCK);
        let found: Vec<u8> = blocks
            .map(|block| {
                assert!(block.iter().all(|byte| *byte == block[0]), "{context}: a torn block");
                block[0]
            })
            .collect();
        let position = self.states.iter().rposition(|state| *state == found);
        assert!(position.is_some(), "{context}: found {found:?}, newest {:?}", self.states.last());
        self.states = vec![found];
    }
}

/// One change; `None` if the nodes crashed.
fn change(bench: &mut Bench, world: &Shared, oracle: &mut Oracle, rng: &mut Rng) -> Option<()> {
    let first = rng.below(BLOCKS as u64) as usize;
    let longest = if rng.below(6) == 0 { 30 } else { 4 };
    let count = 1 + rng.below(longest.min((BLOCKS - first) as u64)) as usize;
    match rng.below(10) {
        0..=5 => {
            let mut data = Vec::new();
            for block in first..first + count {
                let value = 1 + rng.below(255) as u8;
                data.extend_from_slice(&[value; BLOCK]);
                oracle.step(block, value);
            }
            bench.write(world, first * BLOCK, &data)?.unwrap();
        }
        6 => {
            // A zeroing is one step: it is never cut.
            let mut next = oracle.states.last().unwrap().clone();
            next[first..first + count].fill(0);
            oracle.states.push(next);
            bench.zero(world, first * BLOCK, count * BLOCK)?.unwrap();
        }
        7..=8 => {
            bench.flush(world)?.unwrap();
            oracle.flushed();
        }
        _ => bench.idle(rng.below(1_500_000_000)),
    }
    Some(())
}

fn run(seed: u64, policy: Policy, (k, m): (u8, u8), rounds: usize) {
    let nodes = usize::from(k + m);
    let world = world(nodes, seed);
    let mut rng = Rng(seed ^ 0x5555);
    let context = format!("seed {seed}, {policy:?}, {k}+{m}");
    let wanted = Create { policy, ..create(k, m, BLOCKS) };
    drop(open(&world, options(nodes, Some(wanted))));
    let mut oracle = Oracle::new();
    for round in 0..rounds {
        let context = format!("{context}, round {round}");
        let now = world.borrow().operations;
        world.borrow_mut().crash_at = Some(now + 1 + rng.below(400));
        let opened = try_open(&world, options(nodes, None), 0);
        if let Some(opened) = opened {
            let mut bench = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
            if let Some(content) = bench.read_all(&world) {
                oracle.check(&content.unwrap(), &context);
                while change(&mut bench, &world, &mut oracle, &mut rng).is_some() {}
            }
        }
        assert!(crashed(&world));
        world.borrow_mut().crash_at = None;
        if round % 3 == 2 {
            // Any m nodes are lost at the same moment, with all that they had.
            let first = rng.below(nodes as u64) as usize;
            for lost in 0..usize::from(m) {
                world.borrow_mut().moods[(first + lost) % nodes] = Mood::Gone;
            }
            if policy != Policy::Local {
                let mut bench = open(&world, options(nodes, None));
                oracle.check(&bench.read_all(&world).unwrap().unwrap(), &context);
            }
            world.borrow_mut().moods.fill(Mood::Fine);
        }
        let mut bench = open(&world, options(nodes, None));
        oracle.check(&bench.read_all(&world).unwrap().unwrap(), &context);
    }
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let count = std::env::var("HYPHA_SEEDS").ok().and_then(|count| count.parse().ok());
    0..count.unwrap_or(usual)
}

#[test]
fn a_volume_is_as_it_was_after_some_write_since_the_last_flush() {
    for seed in seeds(40) {
        let policy = [Policy::Quorum, Policy::Sealed, Policy::Local][(seed % 3) as usize];
        let shape = [(4, 2), (2, 1), (1, 1), (3, 0), (2, 2)][(seed % 5) as usize];
        run(seed, policy, shape, 6);
    }
}
