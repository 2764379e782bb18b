//! Campaigns: many seeds of one kind of run.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use storage_vdev::engine::Policy;
use storage_vdev::sim_nodes::Network;

use crate::faults::Climate;
use crate::host::Shape;
use crate::run::{Outcome, Plan, Report, Run};

/// A campaign stops after so many seeds that fail.
const FAILURES_MAX: usize = 5;

/// The seeds to run: those that the environment names, or the first so many.
pub(crate) fn seeds(usual: u64) -> Range<u64> {
    if let Some(seed) = number("HYPHA_SEED") {
        return seed..seed + 1;
    }
    let range = std::env::var("HYPHA_SEEDS").ok();
    let range = range.as_deref().and_then(|range| range.split_once(".."));
    match range.map(|(first, end)| (first.parse(), end.parse())) {
        Some((Ok(first), Ok(end))) => first..end,
        Some(_) => panic!("HYPHA_SEEDS is FIRST..END"),
        None => 0..usual,
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs every seed, and fails with the list of those that did.
pub(crate) fn campaign(name: &str, seeds: Range<u64>, one: impl Fn(u64) -> Outcome + Sync) {
    let state = Mutex::new((seeds.start, Vec::new(), Outcome::default(), 0u64));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = {
                        let mut state = state.lock().unwrap();
                        if state.0 >= seeds.end || state.1.len() >= FAILURES_MAX {
                            return;
                        }
                        state.0 += 1;
                        state.0 - 1
                    };
                    let result = catch_unwind(AssertUnwindSafe(|| one(seed)));
                    let mut state = state.lock().unwrap();
                    match result {
                        Ok(outcome) => {
                            state.2.add(&outcome);
                            state.3 += 1;
                        }
                        Err(_) => state.1.push(seed),
                    }
                }
            });
        }
    });
    let (_, mut failed, total, passed) = state.into_inner().unwrap();
    failed.sort_unstable();
    println!(
        "{name}: {passed} seeds: {} openings, {} host crashes, {} mends, {} requests, {} faults \
         of nodes, {} ciphertexts",
        total.openings, total.host_crashes, total.mends, total.requests, total.faults, total.seals
    );
    assert!(failed.is_empty(), "{name}: these seeds fail: {failed:?} (HYPHA_SEED=N shows one)");
}

impl Outcome {
    fn add(&mut self, other: &Self) {
        self.trace ^= other.trace;
        self.openings += other.openings;
        self.host_crashes += other.host_crashes;
        self.mends += other.mends;
        self.requests += other.requests;
        self.faults += other.faults;
        self.seals += other.seals;
    }
}

const SHAPES: [(u8, u8, u8); 6] =
    [(2, 1, 0), (4, 2, 0), (2, 1, 1), (1, 1, 0), (2, 2, 1), (3, 2, 0)];

fn plan(seed: u64, climate: Climate) -> Plan {
    let (k, m, spares) = SHAPES[(seed % 6) as usize];
    let policy = match seed / 6 % 8 {
        3 | 7 => Policy::Sealed,
        5 => Policy::Local,
        _ => Policy::Quorum,
    };
    // A register needs more acceptors than twice what may be lost.
    let register = usize::from(k + spares) > usize::from(m) && seed / 48 % 3 == 2;
    let shape = Shape { k, m, spares, blocks: 64, policy, register };
    let network = if (seed / 24).is_multiple_of(2) { Network::CALM } else { Network::ROUGH };
    Plan { shape, network, climate, budget: usize::from(m), rounds: 5, bursts: 25 }
}

fn run(seed: u64, plan: Plan) -> Outcome {
    let mut run = Run::new(seed, plan);
    let _report = Report::new(&run.world, format!("seed {seed}: {plan:?}"));
    run.go();
    run.outcome
}

#[test]
fn a_host_that_crashes_anywhere_loses_nothing_that_was_flushed() {
    let climate = Climate { fault: 0, host_crash: 1_000, full: 0, losses: false };
    campaign("host crashes", seeds(1000), |seed| run(seed, plan(seed, climate)));
}

#[test]
fn nodes_that_crash_and_vanish_within_the_budget_lose_nothing() {
    let climate = Climate { fault: 8_000, host_crash: 500, full: 0, losses: false };
    campaign("node crashes", seeds(1000), |seed| run(seed, plan(seed, climate)));
}

#[test]
fn nodes_that_lose_and_damage_data_within_the_budget_lose_nothing() {
    let climate = Climate { fault: 6_000, host_crash: 500, full: 0, losses: true };
    campaign("node losses", seeds(1000), |seed| run(seed, plan(seed, climate)));
}

/// Seeds that a soak found, as the campaigns are now; `docs/reliability.md` says what each was.
#[test]
fn seeds_that_have_failed_once_pass() {
    let climate = Climate { fault: 8_000, host_crash: 500, full: 0, losses: false };
    for seed in [275, 12_417] {
        run(seed, plan(seed, climate));
    }
}

#[test]
fn nodes_that_are_full_for_a_while_lose_nothing_and_say_so() {
    let climate = Climate { fault: 3_000, host_crash: 500, full: 3_000, losses: false };
    campaign("full nodes", seeds(400), |seed| run(seed, plan(seed, climate)));
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    let climate = Climate { fault: 2_000, host_crash: 500, full: 0, losses: true };
    for seed in 0..6 {
        let traces = [0; 2].map(|_| run(seed, plan(seed, climate)).trace);
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}
