//! What a pulse costs: `cargo run --release -p hypha-proofs --example figures`.
//!
//! Standard work of 8 threads, a table of 256 MiB, a plot of 1 GiB filler extents (one is really
//! made, the others stand for as many of its kind). All on one core, one after the other.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "it measures")]
#![expect(clippy::unwrap_used, reason = "an example ends at its first error")]

use std::hint::black_box;
use std::time::Instant;

use hypha_chain::key::Key;
use hypha_chain::tree::ExtentKind;
use hypha_chain::{Address, B256, keccak256};
use hypha_proofs::binding::Binding;
use hypha_proofs::label::{FILLER_LAYERS, LABEL_BYTES, TABLE_LAYERS, fill};
use hypha_proofs::prover::Prover;
use hypha_proofs::ram::{BLOCK_LABELS, Table};
use hypha_proofs::store::{ExtentTree, Store};
use hypha_proofs::verifier::{Claim, Verifier};
use hypha_proofs::{Challenge, Rules};

/// 64 MiB: a sixteenth of an extent, which takes minutes.
const EXTENT_LABELS: u64 = 1 << 21;
const THREADS: u16 = 8;

/// The standard ones, for such an extent.
fn rules() -> Rules {
    Rules { filler_bytes: EXTENT_LABELS * LABEL_BYTES as u64, ..Rules::STANDARD }
}

/// How long something takes, printed.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let made = work();
    println!("{what:<58} {:>10.2} ms", start.elapsed().as_secs_f64() * 1e3);
    made
}

fn main() {
    let address = Address::repeat_byte;
    let binding = Binding {
        chain_id: 31337,
        registry: address(1),
        capacity: address(2),
        disputes: address(3),
        node: 7,
    };
    let (salt, rules) = (keccak256("salt"), rules());
    let start = Instant::now();
    let extent = fill(binding.filler(0, 0, &salt), FILLER_LAYERS, EXTENT_LABELS).unwrap();
    let mib_per_second = (extent.len() >> 20) as f64 / start.elapsed().as_secs_f64();
    println!("{:<58} {mib_per_second:>8.1} MiB/s", "plotting filler, four layers, one core");
    let start = Instant::now();
    let block = |block| fill(binding.table(1, block, &salt), TABLE_LAYERS, BLOCK_LABELS).unwrap();
    let table = Table::new((0..4).map(block).collect()).unwrap();
    let mib_per_second = 256.0 / start.elapsed().as_secs_f64();
    println!("{:<58} {mib_per_second:>8.1} MiB/s", "a table, two layers and its trees, one core");
    let tree = timed("the audit tree of 64 MiB", || ExtentTree::of(&extent));
    let extents = (0..1024).map(|id| (ExtentKind::Filler, id, tree.clone()));
    let store = Store::new(extents.collect()).unwrap();
    pulse(binding, rules, &extent, (&table, &store));
    chances();
}

fn pulse(binding: Binding, rules: Rules, extent: &[u8], has: (&Table, &Store)) {
    let (table, store) = has;
    let key = Key::from_bytes(&[9; 32]).unwrap();
    let challenge = Challenge { pulse: 1, seed: keccak256("seed") };
    let (has_table, has_store) = (Some(table), Some(store));
    let prover = Prover { binding, rules, threads: THREADS, table: has_table, store: has_store };
    let mut work = prover.begin(&challenge).unwrap();
    let mut chains = work.chains.iter_mut();
    let first = chains.next().unwrap();
    timed("one thread's chain, 25 million hashes", || first.advance(u64::MAX));
    // The other threads would run at the same time.
    chains.for_each(|chain| {
        chain.advance(u64::MAX);
    });
    let walk = work.walk.as_mut().unwrap();
    timed("the walk, 2^22 steps over 256 MiB", || walk.advance(table, u64::MAX));
    let groups: Vec<Vec<u8>> = work
        .reads
        .iter()
        .map(|read| extent[read.range.start as usize..read.range.end as usize].to_vec())
        .collect();
    let answer = timed("trees over chains and walk, leaves opened", || {
        prover.commit(&challenge, work, &groups).unwrap()
    });
    let claim = Claim {
        binding,
        signer: key.address(),
        threads: THREADS,
        table: Some(table.record()),
        plot: Some(store.record()),
    };
    let mut verifier = Verifier::new(rules, claim, challenge, 0);
    let commitment = answer.commitment(&key).encode();
    let draw = verifier.on_commitment(&commitment, 1, B256::repeat_byte(4)).unwrap();
    let opening = timed("the opening: 32 segments signed", || answer.open(&draw, &key).unwrap());
    let bytes = opening.encode();
    println!("{:<58} {:>10} B", "commitment, sent before the deadline", commitment.len());
    println!("{:<58} {:>10} B", "opening, to each witness", bytes.len());
    let parts = [
        ("  of it 32 segments", {
            let mut o = opening.clone();
            o.steps.clear();
            o.leaves.clear();
            o
        }),
        ("  of it 8 steps of the walk", {
            let mut o = opening.clone();
            o.segments.clear();
            o.leaves.clear();
            o
        }),
        ("  of it 64 leaves of the plot", {
            let mut o = opening.clone();
            o.segments.clear();
            o.steps.clear();
            o
        }),
    ];
    for (name, part) in parts {
        println!("{name:<58} {:>10} B", part.encode().len() - 6);
    }
    let mut best_ms = f64::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        let mut verifier = Verifier::new(rules, claim, challenge, 0);
        verifier.on_commitment(&commitment, 1, draw).unwrap();
        let outcome = black_box(verifier.on_opening(&bytes, 2).unwrap());
        best_ms = best_ms.min(start.elapsed().as_secs_f64() * 1e3);
        assert!(outcome.faults.is_empty(), "{:?}", outcome.faults);
    }
    println!("{:<58} {best_ms:>10.2} ms", "verifying all of it, best of 10");
}

/// A node without 1 % of its leaves: simulated draws, and what the formula says.
fn chances() {
    let rules = rules();
    let (pulses, leaves) = (20_000_u64, 1_u64 << 30);
    let missing = |offset: u64| (offset / 1024).is_multiple_of(100);
    let caught = (0..pulses).filter(|pulse| {
        let seed = keccak256(pulse.to_be_bytes());
        hypha_proofs::disk::offsets(&seed, &rules, leaves * 1024).into_iter().any(missing)
    });
    let rate = caught.count() as f64 / pulses as f64;
    let formula = 1.0 - 0.99_f64.powi(64);
    println!("1 % missing: caught by one pulse {rate:.4} (of {pulses}; formula {formula:.4})");
    println!("1 % missing: caught in a day of 24 pulses 1 - {:.1e}", (1.0 - formula).powi(24));
}
