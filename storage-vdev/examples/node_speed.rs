//! Measures one node in a real directory: `node_speed DIRECTORY` (build with --release).
//!
//! Prints the rates of durable puts by 1 and 8 clients with group commit, of 4 KiB journal appends
//! with a sync each, and of 4112-byte gets (of the page cache), beside the same writes without a
//! node: `pwrite` and `fdatasync` over a file that was written through before. Figures depend on
//! the file system and on what else the machine does: run it several times.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use storage_vdev::dir_nodes::DirNodes;
use storage_vdev::files::sim::Rng;
use storage_vdev::node::{Nodes, ObjectKey, Request};
use storage_vdev::service::{NodeIdentity, NodeOptions};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const VOLUME: [u8; 16] = [7; 16];
const OBJECTS: u64 = 2000;
const APPENDS: u64 = 4000;
const PUT: usize = 64 << 10;
const ROUNDS: u64 = 3;

fn main() -> Result<()> {
    let directory = std::env::args().nth(1).ok_or("usage: node_speed DIRECTORY")?;
    let directory = PathBuf::from(directory).join("node");
    let create = |_| NodeOptions {
        capacity_bytes: 1 << 30,
        create: Some(NodeIdentity { node: [1; 16], acceptor_seed: [1; 32].into() }),
    };
    let mut nodes = DirNodes::open(&[directory.clone()], create)?;
    let mut sequence = 0;
    for round in 1..=ROUNDS {
        println!("round {round}");
        for clients in [1, 8] {
            puts(&mut nodes, clients, &mut sequence)?;
            raw(
                &directory,
                &format!("  raw: {clients} x 64 KiB, fdatasync"),
                clients as usize * PUT,
            )?;
        }
        appends(&mut nodes)?;
        raw(&directory, "  raw: 4 KiB, fdatasync", 4096)?;
        gets(&mut nodes, sequence)?;
        // From the second round on the puts go to space that was used before.
        remove(&mut nodes, sequence)?;
    }
    drop(nodes);
    let start = Instant::now();
    drop(DirNodes::open(&[directory.clone()], create)?);
    println!("open again                        {:8.2} ms", start.elapsed().as_secs_f64() * 1e3);
    std::fs::remove_dir_all(directory)?;
    Ok(())
}

fn key(sequence: u64) -> ObjectKey {
    ObjectKey { volume: VOLUME, epoch: 1, sequence, shard: 0 }
}

fn drain(nodes: &mut DirNodes) -> Result<()> {
    while let Some(done) = nodes.poll(0) {
        done.result?;
    }
    Ok(())
}

fn report(name: &str, start: Instant, count: u64, bytes: u64) {
    let seconds = start.elapsed().as_secs_f64();
    let (rate, megabytes) = (count as f64 / seconds, bytes as f64 / 1e6 / seconds);
    println!("{name:33} {rate:8.0} /s  {megabytes:6.0} MB/s");
}

fn puts(nodes: &mut DirNodes, clients: u64, sequence: &mut u64) -> Result<()> {
    let mut content = vec![0; PUT];
    Rng::new(1).fill(&mut content);
    let content = Bytes::from(content);
    let start = Instant::now();
    for _ in 0..OBJECTS / clients {
        for tag in 0..clients {
            let parts = vec![content.slice(..4096), content.slice(4096..)];
            nodes.submit(0, tag, Request::Put { key: key(*sequence), parts });
            *sequence += 1;
        }
        drain(nodes)?;
    }
    let name = format!("64 KiB put, {clients} client(s)");
    report(&name, start, OBJECTS / clients * clients, OBJECTS * PUT as u64);
    Ok(())
}

fn remove(nodes: &mut DirNodes, end: u64) -> Result<()> {
    for first in (0..end).step_by(500) {
        let keys = (first..end.min(first + 500)).map(key).collect();
        nodes.submit(0, 0, Request::Delete { epoch: 1, keys });
        drain(nodes)?;
    }
    Ok(())
}

fn appends(nodes: &mut DirNodes) -> Result<()> {
    let (volume, epoch) = (VOLUME, 1);
    nodes.submit(0, 0, Request::JournalOpen { volume, epoch, capacity: 32 << 20 });
    let state = nodes.poll(0).ok_or("no answer")?.result?;
    let storage_vdev::node::Response::Journal { end: mut position, .. } = state else {
        return Err("not a journal".into());
    };
    let content = Bytes::from(vec![0x5a; 4096]);
    let start = Instant::now();
    for _ in 0..APPENDS {
        let parts = vec![content.clone()];
        nodes.submit(0, 0, Request::JournalAppend { volume, epoch, position, parts });
        drain(nodes)?;
        position += 4096;
        if position % (1 << 20) == 0 {
            nodes.submit(0, 0, Request::JournalTrim { volume, epoch, start: position });
            drain(nodes)?;
        }
    }
    report("4 KiB journal append", start, APPENDS, APPENDS * 4096);
    Ok(())
}

fn gets(nodes: &mut DirNodes, end: u64) -> Result<()> {
    const GETS: u64 = 200_000;
    let mut rng = Rng::new(2);
    let start = Instant::now();
    for tag in 0..GETS {
        let key = key(end - 1 - rng.below(OBJECTS));
        nodes.submit(0, tag, Request::Get { key, offset: 4096, len: 4112 });
        drain(nodes)?;
    }
    report("4112 B get, cached", start, GETS, GETS * 4112);
    Ok(())
}

fn raw(directory: &Path, name: &str, bytes: usize) -> Result<()> {
    const SPAN: u64 = 64 << 20;
    let path = directory.join("raw");
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
    let zeroes = vec![0; 1 << 20];
    for offset in (0..SPAN).step_by(zeroes.len()) {
        file.write_all_at(&zeroes, offset)?;
    }
    file.sync_all()?;
    let mut content = vec![0; bytes];
    Rng::new(3).fill(&mut content);
    let start = Instant::now();
    let count = if bytes > 4096 { 250 } else { APPENDS };
    for round in 0..count {
        file.write_all_at(&content, round * bytes as u64 % (SPAN - bytes as u64))?;
        file.sync_data()?;
    }
    report(name, start, count, count * bytes as u64);
    std::fs::remove_file(path)?;
    Ok(())
}
