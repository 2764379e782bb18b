//! Measures one local node in a real directory: `local_speed DIRECTORY` (build with --release).
//!
//! Prints, for files as they are and over io_uring, the rates of durable puts of 64 KiB by 1 and 8
//! clients with group commit, of 4 KiB journal appends with a sync each, and of 4112-byte gets (of
//! the page cache); beside them the same writes without a node: `pwrite` and `fdatasync` over a
//! file that was written through before. Figures depend on the file system and on what else the
//! machine does: run it several times.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use storage_node::uring::UringFile;
use storage_vdev::dir_nodes::LocalNode;
use storage_vdev::files::sim::Rng;
use storage_vdev::files::{NodeFile, open_directory};
use storage_vdev::node::{NodeCompletion, ObjectKey, Request, Response};
use storage_vdev::service::{NodeIdentity, NodeOptions};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const VOLUME: [u8; 16] = [7; 16];
const OBJECTS: u64 = 2000;
const APPENDS: u64 = 2000;
const PUT: usize = 64 << 10;
const ROUNDS: u64 = 2;

fn main() -> Result<()> {
    let parent = std::env::args().nth(1).ok_or("usage: local_speed DIRECTORY")?;
    let parent = PathBuf::from(parent);
    let (plain, ring) = (parent.join("plain"), parent.join("ring"));
    let open = |name: &str| open_directory(&parent.join(name), true);
    let mut plain_node = LocalNode::open("plain".into(), open("plain")?, &options())?;
    let files = UringFile::of_node(open("ring")?);
    println!("io_uring: {}", files.objects.is_direct());
    let mut ring_node = LocalNode::open("ring".into(), files, &options())?;
    // From the second round on the puts go to space that was used before.
    for round in 1..=ROUNDS {
        println!("round {round}: files as they are");
        measure(&mut plain_node)?;
        println!("round {round}: over io_uring");
        measure(&mut ring_node)?;
        println!("round {round}: without a node");
        raw(&parent, "1 x 64 KiB, fdatasync", PUT)?;
        raw(&parent, "8 x 64 KiB, fdatasync", 8 * PUT)?;
        raw(&parent, "4 KiB, fdatasync", 4096)?;
    }
    drop(plain_node);
    let start = Instant::now();
    drop(LocalNode::open("plain".into(), open("plain")?, &options())?);
    println!("open again: {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    drop(ring_node);
    std::fs::remove_dir_all(plain)?;
    std::fs::remove_dir_all(ring)?;
    Ok(())
}

fn options() -> NodeOptions {
    let identity = NodeIdentity { node: [1; 16], acceptor_seed: [1; 32].into() };
    NodeOptions { capacity_bytes: 1 << 30, create: Some(identity) }
}

fn measure<F: NodeFile>(node: &mut LocalNode<F>) -> Result<()> {
    puts(node, 1, 0)?;
    puts(node, 8, OBJECTS)?;
    appends(node)?;
    gets(node)?;
    for first in (0..2 * OBJECTS).step_by(500) {
        let keys = (first..first + 500).map(key).collect();
        ask(node, Request::Delete { epoch: 1, keys })?;
    }
    Ok(())
}

fn key(sequence: u64) -> ObjectKey {
    ObjectKey { volume: VOLUME, epoch: 1, sequence, shard: 0 }
}

/// Carries out what is queued; the last answer.
fn run<F: NodeFile>(node: &mut LocalNode<F>) -> Result<Response> {
    let mut last = Ok(Response::Done);
    node.run(|NodeCompletion { result, .. }| {
        if last.is_ok() {
            last = result;
        }
    });
    Ok(last?)
}

fn ask<F: NodeFile>(node: &mut LocalNode<F>, request: Request) -> Result<Response> {
    node.submit(0, request);
    run(node)
}

fn report(name: &str, start: Instant, count: u64, bytes: u64) {
    let seconds = start.elapsed().as_secs_f64();
    let (rate, megabytes) = (count as f64 / seconds, bytes as f64 / 1e6 / seconds);
    println!("  {name:28} {rate:8.0} /s  {megabytes:6.0} MB/s");
}

fn puts<F: NodeFile>(node: &mut LocalNode<F>, clients: u64, first: u64) -> Result<()> {
    let mut content = vec![0; PUT];
    Rng::new(1).fill(&mut content);
    let content = Bytes::from(content);
    let start = Instant::now();
    for batch in 0..OBJECTS / clients {
        for client in 0..clients {
            // As a shard comes: its head, then its units.
            let parts = vec![content.slice(..4096), content.slice(4096..)];
            let key = key(first + batch * clients + client);
            node.submit(client, Request::Put { key, parts });
        }
        run(node)?;
    }
    let name = format!("64 KiB put, {clients} client(s)");
    report(&name, start, OBJECTS, OBJECTS * PUT as u64);
    Ok(())
}

fn appends<F: NodeFile>(node: &mut LocalNode<F>) -> Result<()> {
    let (volume, epoch) = (VOLUME, 1);
    let state = ask(node, Request::JournalOpen { volume, epoch, capacity: 8 << 20 })?;
    let Response::Journal { end: mut position, .. } = state else {
        return Err("not a journal".into());
    };
    let content = Bytes::from(vec![0x5a; 4096]);
    let start = Instant::now();
    for _ in 0..APPENDS {
        let parts = vec![content.clone()];
        ask(node, Request::JournalAppend { volume, epoch, position, parts })?;
        position += 4096;
        if position % (1 << 20) == 0 {
            ask(node, Request::JournalTrim { volume, epoch, start: position })?;
        }
    }
    report("4 KiB journal append", start, APPENDS, APPENDS * 4096);
    Ok(())
}

fn gets<F: NodeFile>(node: &mut LocalNode<F>) -> Result<()> {
    const GETS: u64 = 100_000;
    let mut rng = Rng::new(2);
    let start = Instant::now();
    for _ in 0..GETS {
        let key = key(rng.below(OBJECTS));
        ask(node, Request::Get { key, offset: 4096, len: 4112 })?;
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
