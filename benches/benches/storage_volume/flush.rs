//! How long a flush takes inside this process: six directories of one disk, a thread each.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use benches::{Distribution, table};
use storage_node::thread_nodes::ThreadNodes;
use storage_vdev::engine::Policy;
use storage_vdev::service::{NodeIdentity, NodeOptions};
use zeroize::Zeroizing;

use crate::volume::{Driven, IDS, NODES, Unique, options, random};

const FLUSHES: u64 = 400;
const ROUNDS: usize = 3;
const SIZE: u64 = 64 << 20;

/// Writes at an offset and makes it durable.
type Step<'a> = Box<dyn FnMut(u64, &[u8]) + 'a>;

/// Six directories as nodes, made if they aren't there.
pub(crate) fn directories(folder: &Path, capacity_bytes: u64) -> ThreadNodes {
    std::fs::create_dir_all(folder).unwrap();
    let paths: Vec<PathBuf> = (0..NODES).map(|node| folder.join(node.to_string())).collect();
    let identity = |_| {
        let create = NodeIdentity { node: random(), acceptor_seed: Zeroizing::new(random()) };
        NodeOptions { capacity_bytes, create: Some(create) }
    };
    ThreadNodes::open(&paths, identity).unwrap()
}

pub(crate) fn run(folder: &Path) {
    crate::heading("4 KiB write and flush, one after the other, in process");
    println!(
        "4+2 over six directories of one disk; `local` waits for one journal head, `quorum` for three. \
         Beside them a file that is there already, `pwrite` and `fdatasync`. Median of {ROUNDS} times \
         {FLUSHES}; microseconds: the median of all and the 99th percentile.\n"
    );
    let names = ["pwrite + fdatasync", "local", "quorum, m = 2"];
    let mut latencies: [Vec<f64>; 3] = Default::default();
    let mut rates: [Vec<f64>; 3] = Default::default();
    let mut volumes =
        [("local", Policy::Local), ("quorum", Policy::Quorum)].map(|(name, policy)| {
            let nodes = directories(&folder.join(name), 256 << 20);
            Driven::open(nodes, options((SIZE, policy), &IDS, true, 0))
        });
    let file = plain_file(&folder.join("plain"), SIZE);
    for _ in 0..ROUNDS {
        let mut unique = Unique::new(4096);
        let mut take = |which: usize, mut step: Step<'_>| {
            let start = Instant::now();
            for number in 0..FLUSHES {
                let one = Instant::now();
                step(number * 3 * 4096 % SIZE, unique.piece(number));
                latencies[which].push(one.elapsed().as_secs_f64() * 1e6);
            }
            rates[which].push(FLUSHES as f64 / start.elapsed().as_secs_f64());
        };
        take(
            0,
            Box::new(|offset, data| {
                file.write_all_at(data, offset).unwrap();
                file.sync_data().unwrap();
            }),
        );
        for (volume, which) in volumes.iter_mut().zip(1..) {
            let step = |offset, data: &[u8]| {
                volume.volume.submit_write(0, offset, data);
                volume.volume.submit_flush(1);
                volume.wait();
                volume.wait();
            };
            take(which, Box::new(step));
        }
    }
    let rows = names.iter().zip(latencies).zip(rates).map(|((name, latencies), rates)| {
        let latencies = Distribution::new(latencies);
        let figures = [
            Distribution::new(rates).percentile(50),
            latencies.percentile(50),
            latencies.percentile(99),
        ];
        let figures = figures.map(|figure| format!("{figure:.0}"));
        [vec![(*name).to_owned()], figures.to_vec()].concat()
    });
    table(&["", "per second", "median, µs", "99 %, µs"], &rows.collect::<Vec<_>>());
}

/// A file that was written once, so that its blocks are allocated.
pub(crate) fn plain_file(path: &Path, bytes: u64) -> std::fs::File {
    let file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut unique = Unique::new(1 << 20);
    for number in 0..bytes >> 20 {
        file.write_all_at(unique.piece(number), number << 20).unwrap();
    }
    file.sync_all().unwrap();
    file
}
