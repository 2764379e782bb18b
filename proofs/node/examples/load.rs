//! What proving costs an honest node: `cargo run --release -p proof-node --example load [THREADS]`.
//! Plots three extents of 64 MiB on the disk of the temporary folder, makes a table of 256 MiB, and does
//! the work of one standard pulse for each number of threads up to the given one.
#![expect(clippy::unwrap_used, reason = "a failed unwrap ends the measurement")]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;

use hypha_chain::key::Key;
use hypha_chain::{Address, B256};
use hypha_proofs::binding::Binding;
use hypha_proofs::ram::BLOCK_LABELS;
use hypha_proofs::store::Store;
use hypha_proofs::verifier::Claim;
use hypha_proofs::{Challenge, Rules};
use proof_node::clock::{monotonic_ns, process_cpu_ns};
use proof_node::filler::plotter::{Pace, Plotter};
use proof_node::filler::{Filler, Place};
use proof_node::reading::Reading;
use proof_node::shards;
use proof_node::table::Recipe;
use proof_node::work::{Outcome, Task, run};

const EXTENT: u64 = 64 << 20;
const EXTENTS: u64 = 3;

fn main() {
    let most = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let address = Address::repeat_byte(1);
    let binding =
        Binding { chain_id: 1, registry: address, capacity: address, disputes: address, node: 1 };
    let folder = tempfile::tempdir().unwrap();
    let places =
        vec![Place { folder: folder.path().to_owned(), bytes_max: u64::MAX, keep_free: 0 }];
    let (filler, _) = Filler::open(places, (&binding, &B256::ZERO), EXTENT, || 1).unwrap();
    let (start, cpu) = (monotonic_ns(), process_cpu_ns());
    let pace = Pace { threads: 1, compare_ns: u64::MAX };
    let (tell, grown) = channel();
    let plotter = Plotter::start(filler, pace, move |event| _ = tell.send(event)).unwrap();
    plotter.want(EXTENTS * EXTENT, &|_| {});
    for _ in 0..EXTENTS {
        grown.recv().unwrap();
    }
    let mib = ((EXTENTS * EXTENT) >> 20) as f64;
    let per_second = |from_ns: u64, to_ns: u64| mib * 1e9 / (to_ns - from_ns) as f64;
    println!(
        "filler, four layers, its hashes, written and synced: {:.1} MiB/s, {:.1} MiB per second of processor",
        per_second(start, monotonic_ns()),
        per_second(cpu, process_cpu_ns())
    );
    let (go, on) = (AtomicBool::new(false), AtomicBool::new(false));
    let recipe =
        Recipe { binding, day: 1, salt: B256::ZERO, blocks: 4, block_labels: BLOCK_LABELS };
    let cpu = process_cpu_ns();
    let table = Arc::new(recipe.make(1, &go, &on).unwrap());
    println!("a table of 256 MiB: {:.1} s of processor", (process_cpu_ns() - cpu) as f64 / 1e9);
    let extents = plotter.filler().listed();
    let filler = plotter.filler().reading();
    let reading = Reading { filler, shards: shards::Reading::default() };
    let plot = Store::listed(extents.clone()).unwrap().record();
    for threads in 1..=most {
        let key = Arc::new(Key::from_bytes(&[7; 32]).unwrap());
        let task = Task {
            challenge: Challenge { pulse: threads.into(), seed: B256::repeat_byte(3) },
            claim: Claim {
                binding,
                signer: key.address(),
                threads,
                table: Some(table.record()),
                plot: Some(plot),
            },
            rules: Rules { commit_ns: 60_000_000_000, open_ns: 100_000_000, ..Rules::STANDARD },
            began_ns: monotonic_ns(),
            table: Some(Arc::clone(&table)),
            extents: Some(extents.clone()),
            reading: reading.clone(),
            key,
        };
        let (_draws, drawn) = channel();
        run(&task, &drawn, |outcome| match outcome {
            Outcome::Committed { took_ns, lost, .. } => {
                assert!(lost.is_empty(), "{lost:?}");
                println!("a pulse of {threads} threads: {:.2} s", took_ns as f64 / 1e9);
            }
            Outcome::Over { cpu_ns, .. } => {
                let seconds = cpu_ns as f64 / 1e9;
                let share = seconds / f64::from(threads) / 36.0;
                println!(
                    "  {seconds:.2} s of processor, {share:.3} % of each thread at one an hour"
                );
            }
            Outcome::Opened { .. } => {}
        });
    }
}
