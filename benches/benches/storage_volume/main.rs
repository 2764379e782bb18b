//! Whole volumes, measured: bulk writes and reads over shard servers, repair, flushes, the NBD face
//! beside qemu-nbd, durable PUTs beside Redis, memory. Peers and ours take turns in one run.
//!
//! `storage_volume` runs all parts, `storage_volume PART…` those that are named: `stream`, `redis`,
//! `flush`, `nbd`, `put`, `memory`. A peer that is not installed is left out, with a word about it.
#![expect(clippy::unwrap_used, reason = "a benchmark that fails, fails")]
#![expect(clippy::disallowed_methods, reason = "benchmarks read the clock")]

mod cluster;
mod faces;
mod flush;
mod puts;
mod stream;
mod volume;

use std::path::PathBuf;

use cluster::Backend;

const PARTS: [&str; 6] = ["stream", "redis", "flush", "nbd", "put", "memory"];

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [role, rest @ ..] = arguments.as_slice()
        && role == faces::SERVE
    {
        return faces::serve(rest);
    }
    let folder = PathBuf::from(concat!(env!("CARGO_TARGET_TMPDIR"), "/storage_volume"));
    for part in PARTS {
        if !arguments.is_empty() && !arguments.iter().any(|argument| argument == part) {
            continue;
        }
        std::fs::remove_dir_all(&folder).ok();
        std::fs::create_dir_all(&folder).unwrap();
        match part {
            "stream" => stream::run(&folder, &[Backend::Directories]),
            "redis" => stream::run(
                &folder,
                &[Backend::Redis { fsync: "always" }, Backend::Redis { fsync: "everysec" }],
            ),
            "flush" => flush::run(&folder),
            "nbd" => faces::run(&folder),
            "put" => puts::run(&folder),
            _ => faces::memory(&folder),
        }
    }
    std::fs::remove_dir_all(&folder).ok();
}

/// Prints a heading, with what else this machine does.
fn heading(title: &str) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    println!("## {title}\n\nLoad average: {load}.\n");
}

/// Whether a program can be started; says so if not.
fn is_installed(program: &str) -> bool {
    let probe = std::process::Command::new(program)
        .arg("--version")
        .stdout(std::process::Stdio::null())
        .status();
    if probe.is_err() {
        println!("{program} is not installed and takes no part.\n");
    }
    probe.is_ok()
}
