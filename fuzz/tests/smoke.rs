//! Every fuzz target on stable: its seed corpus, and mutations of it from a fixed seed.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use fastrand::Rng;
use fuzz::mutate::mutate;
use fuzz::{TARGETS, Target};

/// Mutated inputs for each target. `HYPHA_FUZZ_RUNS` asks for another number.
const RUNS: u64 = 5000;

/// The seed of the first mutation; each further one adds 1. `HYPHA_FUZZ_SEED` chooses another.
const SEED: u64 = 20_261_120;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|_| panic!("no {}", folder.display()));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no corpus", target.name);
    files
}

fn run(target: &Target, input: &[u8], origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.check)(input))).is_err() {
        panic!("{}: {origin} breaks a promise; the input: {input:02x?}", target.name);
    }
}

fn smoke(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus(target);
    for (file, input) in &corpus {
        run(target, input, &format!("corpus file {file}"));
    }
    let (seed, runs) = (number("HYPHA_FUZZ_SEED", SEED), number("HYPHA_FUZZ_RUNS", RUNS));
    println!("{name}: {} seed inputs, {runs} mutations from seed {seed}", corpus.len());
    for seed in seed..seed + runs {
        let mut rng = Rng::with_seed(seed);
        let (_, input) = rng.choice(&corpus).unwrap();
        let (_, other) = rng.choice(&corpus).unwrap();
        let input = mutate(input, other, &mut rng);
        run(target, &input, &format!("HYPHA_FUZZ_SEED={seed} HYPHA_FUZZ_RUNS=1"));
    }
}

#[test]
fn a_virtqueue_withstands_any_driver() {
    smoke("virtqueue");
}

#[test]
fn every_target_has_a_program_for_cargo_fuzz_and_a_corpus() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets");
    let mut programs: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    programs.sort();
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    assert_eq!(programs, names);
    for target in TARGETS {
        corpus(target);
    }
}
