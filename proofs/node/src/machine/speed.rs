//! How fast the processors do what pulses and filler are made of.

use std::sync::Barrier;
use std::thread;

use hypha_chain::B256;
use hypha_proofs::Rules;
use hypha_proofs::cpu::{ChainRun, SEGMENT_STEPS};
use hypha_proofs::label::{FILLER_LAYERS, Fill, LABEL_BYTES, TABLE_LAYERS};
use hypha_proofs::ram::{Table, WalkRun};

use crate::clock::monotonic_ns;

/// How long each thing is measured.
const TIME_NS: u64 = 400_000_000;
/// Labels of the extent that is begun: enough that the processor's caches don't hold it.
const FILL_LABELS: u64 = 1 << 20;
/// The table that is walked over is at most as large.
const TABLE_BYTES: u64 = 256 << 20;
/// Threads that are measured at the same time at most.
const THREADS_MAX: u16 = 256;
/// Of the time that a pulse allows, this part is counted on: the rest is for trees and the line.
const SHARE_OF_TIME: (u64, u64) = (4, 5);

/// What was measured of the processors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Threads that were measured at the same time.
    pub threads: u16,
    /// Nanoseconds of one hash of a chain, on one thread while the others rest.
    pub hash_ns: f64,
    /// The same with all threads at work: of the slowest.
    pub hash_ns_slowest: f64,
    /// The same, of all threads together: nanoseconds per hash of whichever thread.
    pub hash_ns_together: f64,
    /// Bytes of filler that one thread makes in a second.
    pub filler_per_s: u64,
    /// Bytes of a memory table that one thread makes in a second, without its trees.
    pub table_per_s: u64,
    /// Nanoseconds of one step of a walk over [`Speed::walk_bytes`].
    pub walk_ns: f64,
    /// The table that was walked over.
    pub walk_bytes: u64,
}

impl Speed {
    /// Measures with so many threads; `memory` is what may be taken for it.
    #[must_use]
    pub fn measure(threads: u16, memory: u64) -> Self {
        let threads = threads.clamp(1, THREADS_MAX);
        let alone = hashes(1);
        let all = if threads == 1 { alone.clone() } else { hashes(threads) };
        let slowest = all.iter().copied().fold(0.0, f64::max);
        let together: f64 = all.iter().map(|ns| 1.0 / ns).sum();
        let walk_bytes = TABLE_BYTES.min(memory / 8) / LABEL_BYTES as u64 * LABEL_BYTES as u64;
        Self {
            threads,
            hash_ns: alone.first().copied().unwrap_or_default(),
            hash_ns_slowest: slowest,
            hash_ns_together: 1.0 / together,
            filler_per_s: labels(FILLER_LAYERS),
            table_per_s: labels(TABLE_LAYERS),
            walk_ns: walk(walk_bytes),
            walk_bytes,
        }
    }

    /// How many of the threads end their chains in time if all of `claimed` compute at once.
    #[must_use]
    pub fn threads_in_time(&self, rules: &Rules, claimed: u16) -> u16 {
        let hashes = rules.segments as f64 * f64::from(SEGMENT_STEPS);
        let (part, whole) = SHARE_OF_TIME;
        let time_ns = (rules.commit_ns / whole * part) as f64;
        if hashes * self.hash_ns_slowest <= time_ns {
            return claimed;
        }
        // More threads than silicon: what all do together is shared among fewer.
        let fits = time_ns / (hashes * self.hash_ns_together);
        claimed.min(fits as u16)
    }

    /// How long the walk of a pulse takes over a table like the measured one, in nanoseconds.
    #[must_use]
    pub fn walk_time_ns(&self, rules: &Rules) -> u64 {
        (self.walk_ns * rules.walk_steps as f64) as u64
    }
}

/// Nanoseconds per hash of so many chains that are computed at the same time.
fn hashes(threads: u16) -> Vec<f64> {
    let barrier = Barrier::new(usize::from(threads));
    let one = |thread: u16| {
        let mut run = ChainRun::new(B256::repeat_byte(1), thread, u64::MAX / 2);
        barrier.wait();
        let start = monotonic_ns();
        let mut segments = 0;
        while monotonic_ns() - start < TIME_NS {
            run.advance(20);
            segments += 20;
        }
        (monotonic_ns() - start) as f64 / (segments * u64::from(SEGMENT_STEPS)) as f64
    };
    thread::scope(|scope| {
        let one = &one;
        let runs: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
        // A thread that panicked has measured nothing.
        runs.into_iter().filter_map(|run| run.join().ok()).collect()
    })
}

/// Bytes of labels in a second, over all layers.
fn labels(layers: u8) -> u64 {
    let Ok(mut fill) = Fill::new(B256::repeat_byte(2), layers, FILL_LABELS) else { return 0 };
    let all = u64::from(layers) * FILL_LABELS;
    let start = monotonic_ns();
    let mut left = all;
    while left > 0 && monotonic_ns() - start < TIME_NS {
        left = fill.advance(4096);
    }
    let bytes = u128::from(all - left) * LABEL_BYTES as u128 / u128::from(layers);
    (bytes * 1_000_000_000 / u128::from((monotonic_ns() - start).max(1))) as u64
}

/// Nanoseconds of a step over a table of zeros: what is in it makes no difference.
fn walk(bytes: u64) -> f64 {
    let Some(table) = Table::new(vec![vec![0; bytes as usize]]) else { return 0.0 };
    let mut run = WalkRun::new(B256::repeat_byte(3), u64::from(u32::MAX));
    let start = monotonic_ns();
    let mut steps = 0_u32;
    while monotonic_ns() - start < TIME_NS {
        run.advance(&table, 4096);
        steps += 4096;
    }
    (monotonic_ns() - start) as f64 / f64::from(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(slowest: f64, together: f64) -> Speed {
        Speed {
            threads: 4,
            hash_ns: 60.0,
            hash_ns_slowest: slowest,
            hash_ns_together: together,
            filler_per_s: 1,
            table_per_s: 1,
            walk_ns: 500.0,
            walk_bytes: 1,
        }
    }

    #[test]
    fn threads_that_are_too_slow_together_are_not_claimed() {
        let rules = Rules::STANDARD;
        // 25 million hashes at 100 ns are 2.5 s of the 4 s that are counted on.
        assert_eq!(speed(100.0, 25.0).threads_in_time(&rules, 4), 4);
        // At 320 ns they are 8 s; all four together do 12.5 hashes in a microsecond: two chains.
        assert_eq!(speed(320.0, 80.0).threads_in_time(&rules, 4), 2);
        assert_eq!(speed(10_000.0, 10_000.0).threads_in_time(&rules, 4), 0);
    }

    #[test]
    fn a_walk_of_two_million_steps_takes_as_long_as_they_do() {
        assert_eq!(speed(1.0, 1.0).walk_time_ns(&Rules::STANDARD) / 1_000_000, 1048);
    }
}
