//! The code of a volume's shards beside its peers, one core: encode, reconstruct, and what else a
//! segment goes through. Peers and ours take turns in one run; parity is compared byte by byte.
//!
//! With the feature `isal` ISA-L takes part; it needs nasm, autoconf, automake, libtool and make.
#![expect(clippy::unwrap_used, reason = "a benchmark whose peers fail, fails")]

mod contest;
#[cfg(feature = "isal")]
mod isal;
mod pipeline;

use benches::table;
use contest::{Cell, ISAL, SIMD, names};

const CODES: [(usize, usize); 4] = [(4, 2), (10, 4), (16, 4), (20, 10)];
/// The last one is a whole shard of a volume: 256 units of 4112 bytes.
const LENGTHS: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 256 * 4112];

fn main() {
    #[cfg(feature = "isal")]
    println!("ISA-L 2.31.0, its GFNI kernels chosen: {}\n", isal::Tables::are_for_gfni());
    #[cfg(not(feature = "isal"))]
    println!("Without ISA-L: it takes part with --features isal\n");
    contest("Encode", Cell::encode);
    contest("Reconstruct m lost data shards, matrix cached", Cell::reconstruct);
    println!("## What a segment goes through, GB/s of data on one core\n");
    table(
        &[
            "code",
            "copy + AES-256-GCM",
            "encode",
            "crc32c of all shards",
            "all",
            "sum of steps",
            "the volume's segment builder",
        ],
        &[pipeline::seal(4, 2, 1024), pipeline::seal(16, 4, 4096)],
    );
    println!("## The audit tree of a 1 MiB shard, GB/s on one core\n");
    let rates = [pipeline::sha256(1 << 20), pipeline::audit(1 << 20)];
    table(
        &["SHA-256 of the library, at once", "tree"],
        &[rates.map(|rate| format!("{rate:.2}")).to_vec()],
    );
}

/// Prints the rates of all contestants for all codes and lengths.
fn contest(title: &str, rates: fn(&Cell) -> Vec<f64>) {
    println!("## {title}: GB/s of data on one core, best of some turns\n");
    let names = names();
    let mut header = vec!["code", "shard"];
    header.extend(names.iter().map(String::as_str));
    let ours = 1;
    let peers: Vec<(usize, String)> = [ISAL, SIMD]
        .iter()
        .filter_map(|peer| Some((names.iter().position(|n| n == peer)?, format!("÷ {peer}"))))
        .collect();
    header.extend(peers.iter().map(|(_, title)| title.as_str()));
    let mut rows = Vec::new();
    for (data, parity) in CODES {
        for len in LENGTHS {
            let cell = Cell::new(data, parity, len);
            let rates = rates(&cell);
            let mut row = cell.labels();
            row.extend(rates.iter().map(|rate| format!("{rate:.2}")));
            row.extend(peers.iter().map(|(peer, _)| format!("{:.2}", rates[ours] / rates[*peer])));
            rows.push(row);
        }
    }
    table(&header, &rows);
}
