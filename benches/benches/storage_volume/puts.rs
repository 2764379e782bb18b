//! Durable PUTs of 64 KiB, eight at a time, to one server.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use benches::{Distribution, table};
use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use storage_vdev::node::{Nodes, ObjectKey, Request};

use crate::cluster::{Backend, Cluster, Redis};
use crate::volume::{UUID, Unique, now_ns};

const PUTS: u64 = 2000;
const CLIENTS: u64 = 8;
const BYTES: usize = 64 << 10;
const ROUNDS: u64 = 3;

pub(crate) fn run(folder: &Path) {
    crate::heading("Durable PUTs of 64 KiB, eight at a time, one server");
    println!(
        "Each is on disk when it is answered. Redis: appendfsync always, redis-benchmark over a unix \
         socket, unique keys. Median of {ROUNDS} times {PUTS}.\n"
    );
    let cluster = Cluster::start(&folder.join("puts"), Backend::Directories);
    let redis = crate::is_installed("redis-benchmark")
        .then(|| Redis::start(&folder.join("peer"), "always"));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        ours.push(put(&cluster, round));
        theirs.extend(redis.as_ref().map(redis_benchmark));
    }
    let row = |name: &str, rates: Vec<f64>| {
        let rate = Distribution::new(rates).percentile(50);
        let megabytes = rate * BYTES as f64 / 1e6;
        vec![name.to_owned(), format!("{rate:.0}"), format!("{megabytes:.0}")]
    };
    let mut rows = vec![row("our server, a directory", ours)];
    if redis.is_some() {
        rows.push(row("redis-server", theirs));
    }
    table(&["", "PUT/s", "MB/s"], &rows);
}

/// PUTs per second over one session.
fn put(cluster: &Cluster, round: u64) -> f64 {
    let mut nodes = cluster.connect();
    let content = Bytes::copy_from_slice(Unique::new(BYTES).piece(round));
    let start = Instant::now();
    let (mut sent, mut done) = (0, 0);
    while done < PUTS {
        while sent < PUTS && sent - done < CLIENTS {
            let sequence = round * PUTS + sent + 1;
            let key = ObjectKey { volume: UUID, epoch: 1, sequence, shard: 0 };
            nodes.submit(0, sent, Request::Put { key, parts: vec![content.clone()] });
            sent += 1;
        }
        match nodes.poll(now_ns()) {
            Some(completion) => {
                completion.result.unwrap();
                done += 1;
            }
            None => {
                let fd = nodes.ready_fd().unwrap();
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
            }
        }
    }
    PUTS as f64 / start.elapsed().as_secs_f64()
}

fn redis_benchmark(redis: &Redis) -> f64 {
    let output = Command::new("redis-benchmark")
        .arg("-s")
        .arg(&redis.socket)
        .args(["-t", "set", "--csv", "-r", "1000000000"])
        .args(["-c", &CLIENTS.to_string(), "-n", &PUTS.to_string(), "-d", &BYTES.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("\"SET\""));
    let rate = line.and_then(|line| line.split('"').nth(3));
    rate.unwrap_or_else(|| panic!("no rate in {text}")).parse().unwrap()
}
