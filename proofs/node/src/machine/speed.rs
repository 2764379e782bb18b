//! How fast the processors do what pulses and filler are made of.

use std::sync::Barrier;
use std::thread;

use hypha_chain::B256;
use hypha_proofs::Rules;
use hypha_proofs::cpu::{self, ChainRun, Pace, SEGMENT_STEPS};
use hypha_proofs::label::{FILLER_LAYERS, Fill, LABEL_BYTES, TABLE_LAYERS};
use hypha_proofs::ram::{Table, WalkRun};

use crate::clock::monotonic_ns;

/// How long each thing is measured.
const TIME_NS: u64 = 400_000_000;
/// How long all threads are measured together: about as long as a pulse keeps them busy, since many
/// processors are faster in their first moments.
const TOGETHER_NS: u64 = 3_000_000_000;
/// Segments of the chains that are measured, so that their trees are measured too.
const SEGMENTS: u64 = 40;
/// Labels of the extent that is begun: enough that the processor's caches don't hold it.
const FILL_LABELS: u64 = 1 << 20;
/// The table that is walked over is at most as large.
const TABLE_BYTES: u64 = 256 << 20;
/// Threads that are measured at the same time at most.
const THREADS_MAX: u16 = 256;

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
        let alone = hashes(1, TIME_NS);
        let all = if threads == 1 { alone.clone() } else { hashes(threads, TOGETHER_NS) };
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

    /// How many units it should claim: chains that all threads together end well in time, with a walk over
    /// memory beside them ([`cpu::units`]). Threads that share a core are worth what they do together.
    #[must_use]
    pub fn units(&self, rules: &Rules) -> u16 {
        let (threads, alone_ns, together_ns) = (self.threads, self.hash_ns, self.hash_ns_together);
        cpu::units(rules, &Pace { threads, alone_ns, together_ns }, self.walk_time_ns(rules))
    }

    /// How long the walk of a pulse takes over a table like the measured one, in nanoseconds.
    #[must_use]
    pub fn walk_time_ns(&self, rules: &Rules) -> u64 {
        (self.walk_ns * rules.walk_steps as f64) as u64
    }
}

/// Nanoseconds per hash of so many chains that are computed at the same time.
fn hashes(threads: u16, time_ns: u64) -> Vec<f64> {
    let barrier = Barrier::new(usize::from(threads));
    let one = |thread: u16| {
        barrier.wait();
        let start = monotonic_ns();
        let mut segments = 0;
        while monotonic_ns() - start < time_ns {
            ChainRun::new(B256::repeat_byte(1), thread, SEGMENTS).advance(SEGMENTS);
            segments += SEGMENTS;
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

    fn speed(threads: u16, alone: f64, together: f64) -> Speed {
        Speed {
            threads,
            hash_ns: alone,
            hash_ns_slowest: together * f64::from(threads),
            hash_ns_together: together,
            filler_per_s: 1,
            table_per_s: 1,
            walk_ns: 250.0,
            walk_bytes: 1,
        }
    }

    #[test]
    fn units_are_what_all_threads_do_together_and_not_how_many_they_are() {
        let rules = Rules::STANDARD;
        // 3.6 s of four threads, less a walk of 1.05 s on one of them: 13.35 s. A chain takes 2.5 s at 100 ns.
        assert_eq!(speed(4, 100.0, 25.0).units(&rules), 5);
        assert_eq!(speed(4, 59.0, 14.75).units(&rules), 9);
        // Eight threads on the same four cores, which do a quarter more.
        assert_eq!(speed(8, 59.0, 11.8).units(&rules), 11);
        // Two cores that four threads pose as.
        assert_eq!(speed(4, 100.0, 50.0).units(&rules), 2);
        assert_eq!(speed(2, 100.0, 50.0).units(&rules), 2);
        assert_eq!(speed(512, 59.0, 0.1).units(&rules), 256, "more than an answer can have");
        // A chain that takes 4.25 s alone does not count in full, on however many cores.
        assert_eq!(speed(64, 170.0, 3.0).units(&rules), 0);
    }

    #[test]
    fn a_walk_of_four_million_steps_takes_as_long_as_they_do() {
        assert_eq!(speed(1, 1.0, 1.0).walk_time_ns(&Rules::STANDARD) / 1_000_000, 1048);
    }
}
