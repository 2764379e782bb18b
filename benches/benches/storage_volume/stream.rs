//! Much data through the whole stack: stored, read back, read back with two servers dead, repaired.

use std::path::Path;
use std::time::Instant;

use benches::{Distribution, table};
use storage_vdev::engine::{Command, Policy};

use crate::cluster::{Backend, Cluster};
use crate::volume::{Driven, Unique, options};

/// A request.
const PIECE: usize = 1 << 20;
const PIECES: u64 = 256;
const DEPTH: u64 = 16;
/// Less than a quarter of what is read.
const CACHE: usize = 16 << 20;
const ROUNDS: usize = 3;
/// The servers that die.
const DEAD: [u8; 2] = [0, 1];

/// MB/s of storing, reading and reading with two dead; seconds of repair.
type Figures = [f64; 4];

pub(crate) fn run(folder: &Path, backends: &[Backend]) {
    let redis = backends.iter().any(|backend| matches!(backend, Backend::Redis { .. }));
    if redis && !crate::is_installed("redis-server") {
        return;
    }
    crate::heading("256 MiB of unique bytes at 4+2 over six shard servers");
    println!(
        "1 MiB requests, {DEPTH} at a time; stored and flushed; read by a volume opened anew, with a \
         cache of 16 MiB (directories are written past the page cache, so from the disk); two servers \
         dead; those two replaced by empty ones, from opening to the end of the repair. Median of \
         {ROUNDS}. In italics: 0-stor_v2 over six 0-dbs without --sync, as measured on another \
         machine.\n"
    );
    let mut rows = Vec::new();
    for backend in backends {
        let rounds: Vec<Figures> = (0..ROUNDS)
            .map(|round| measure(&folder.join(format!("round{round}")), *backend))
            .collect();
        let median = |figure: usize| {
            Distribution::new(rounds.iter().map(|round| round[figure]).collect()).percentile(50)
        };
        let [store, read, degraded, repair] = [0, 1, 2, 3].map(median);
        rows.push(vec![
            backend.name(),
            format!("{store:.0}"),
            format!("{read:.0}"),
            format!("{degraded:.0}"),
            format!("{:.0} %", degraded / read * 100.0),
            format!("{repair:.2}"),
        ]);
    }
    let quoted = ["*0-stor_v2*", "*106*", "*147*", "*27–46*", "*18–31 %*", "*3.6–6.1*"];
    rows.push(quoted.map(str::to_owned).to_vec());
    let header =
        ["", "store MB/s", "read MB/s", "read, two dead, MB/s", "of whole", "repair of two, s"];
    table(&header, &rows);
}

fn measure(folder: &Path, backend: Backend) -> Figures {
    let mut cluster = Cluster::start(folder, backend);
    let size_and_policy = (1 << 30, Policy::Quorum);
    let open = |cluster: &Cluster| {
        Driven::open(cluster.connect(), options(size_and_policy, &cluster.ids(), false, CACHE))
    };
    let mut unique = Unique::new(PIECE);
    let bytes = (PIECES * PIECE as u64) as f64 / 1e6;

    let mut volume = open(&cluster);
    let start = Instant::now();
    volume.keep(
        (PIECES, DEPTH),
        |volume, id, _| volume.submit_write(id, id * PIECE as u64, unique.piece(id)),
        |_, _| (),
    );
    volume.flush();
    let store = bytes / start.elapsed().as_secs_f64();
    volume.close();

    let mut read = |cluster: &Cluster| {
        let mut volume = open(cluster);
        let seconds = volume.keep(
            (PIECES, DEPTH),
            |volume, id, mut buffer| {
                buffer.resize(PIECE, 0);
                volume.submit_read(id, id * PIECE as u64, buffer);
            },
            |id, buffer| unique.check(id, buffer),
        );
        bytes / seconds
    };
    let whole = read(&cluster);
    DEAD.into_iter().for_each(|node| cluster.stop(node));
    let degraded = read(&cluster);
    DEAD.into_iter().for_each(|node| cluster.replace(node));
    let start = Instant::now();
    let mut volume = open(&cluster);
    volume.volume.submit_command(0, Command::Repair);
    volume.wait();
    let repair = start.elapsed().as_secs_f64();
    let left = volume.volume.status().shards_to_repair;
    assert_eq!(left, 0, "the repair made everything");
    // Any two of the others may go now.
    (2..4).for_each(|node| cluster.stop(node));
    drop(volume);
    read(&cluster);
    [store, whole, degraded, repair]
}
