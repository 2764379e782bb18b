//! Nodes of this host: each with a thread, and over io_uring.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use storage_node::thread_nodes::ThreadNodes;
use storage_node::uring::{FLYING_BYTES_MAX, UringFile};
use storage_vdev::dir_nodes::{DirNodesError, LocalNode};
use storage_vdev::files::sim::{Rng, SimDisk};
use storage_vdev::files::{NodeFile, open_directory};
use storage_vdev::node::{NodeCompletion, NodeError, Nodes, ObjectKey, Request, Response};
use storage_vdev::service::{NodeIdentity, NodeOptions};
use tempfile::TempDir;

const VOLUME: [u8; 16] = [7; 16];

fn options(index: usize) -> NodeOptions {
    let identity =
        NodeIdentity { node: [index as u8 + 1; 16], acceptor_seed: [index as u8; 32].into() };
    NodeOptions { capacity_bytes: 256 << 20, create: Some(identity) }
}

fn key(sequence: u64) -> ObjectKey {
    ObjectKey { volume: VOLUME, epoch: 1, sequence, shard: 0 }
}

fn bytes(seed: u64, len: usize) -> Bytes {
    let mut content = vec![0; len];
    Rng::new(seed).fill(&mut content);
    content.into()
}

fn put(sequence: u64, len: usize) -> Request {
    let content = bytes(sequence, len);
    let parts = vec![content.slice(..len / 3), content.slice(len / 3..)];
    Request::Put { key: key(sequence), parts }
}

fn get(sequence: u64) -> Request {
    Request::Get { key: key(sequence), offset: 0, len: u32::MAX }
}

/// Waits for `count` completions as an event loop does.
fn wait(nodes: &mut ThreadNodes, count: usize) -> BTreeMap<u64, Result<Response, NodeError>> {
    let mut done = BTreeMap::new();
    while done.len() < count {
        while let Some(NodeCompletion { tag, result }) = nodes.poll(0) {
            assert!(done.insert(tag, result).is_none(), "{tag} completes twice");
        }
        if done.len() < count {
            let ready = nodes.ready_fd().unwrap();
            poll(&mut [PollFd::new(&ready, PollFlags::IN)], None).unwrap();
        }
    }
    done
}

#[test]
fn each_request_to_each_thread_completes_once_and_is_announced() {
    let parent = TempDir::new().unwrap();
    let paths: Vec<_> = (0..3).map(|index| parent.path().join(index.to_string())).collect();
    let mut nodes = ThreadNodes::open(&paths, options).unwrap();
    assert_eq!((nodes.count(), nodes.identity(1)), (3, Some([2; 16])));
    for tag in 0..60 {
        nodes.submit((tag % 3) as u8, tag, put(tag, 50_000));
    }
    nodes.submit(3, 60, Request::Capacity);
    let done = wait(&mut nodes, 61);
    assert_eq!(done[&60], Err(NodeError::Unavailable));
    assert!(done.iter().take(60).all(|(_, result)| *result == Ok(Response::Done)));
    for tag in 0..60 {
        nodes.submit((tag % 3) as u8, tag, get(tag));
    }
    for (tag, result) in wait(&mut nodes, 60) {
        assert_eq!(result, Ok(Response::Bytes(bytes(tag, 50_000))));
    }
    assert!(nodes.poll(0).is_none());
    // What is asked for last is carried out before the directories are free again.
    nodes.submit(0, 99, put(99, 50_000));
    let again = ThreadNodes::open(&paths, options).err().unwrap();
    assert!(matches!(again, DirNodesError::Directory(_)), "{again}");
    drop(nodes);
    let mut nodes = ThreadNodes::open(&paths, options).unwrap();
    nodes.submit(0, 1, get(99));
    assert_eq!(wait(&mut nodes, 1)[&1], Ok(Response::Bytes(bytes(99, 50_000))));
}

#[test]
fn a_node_that_is_gone_answers_and_the_others_go_on() {
    let parent = TempDir::new().unwrap();
    let paths: Vec<_> = (0..2).map(|index| parent.path().join(index.to_string())).collect();
    drop(ThreadNodes::open(&paths[1..], options).unwrap());
    let existing = |index| NodeOptions { create: None, ..options(index) };
    let mut nodes = ThreadNodes::open(&paths, existing).unwrap();
    assert_eq!(nodes.unavailable().collect::<Vec<_>>(), [0]);
    nodes.submit(0, 0, put(1, 10));
    nodes.submit(1, 1, put(1, 10));
    let done = wait(&mut nodes, 2);
    assert_eq!((&done[&0], &done[&1]), (&Err(NodeError::Unavailable), &Ok(Response::Done)));
}

fn uring_file(path: &Path) -> UringFile {
    let file = UringFile::of_node(open_directory(path, true).unwrap()).objects;
    if !file.is_direct() {
        eprintln!("io_uring or direct I/O is denied here: only the way without it is tested");
    }
    file
}

#[test]
fn a_file_over_io_uring_reads_what_was_written_in_whatever_order_and_size() {
    let directory = TempDir::new().unwrap();
    let mut file = uring_file(directory.path());
    // The file in memory is the oracle.
    let mut oracle = SimDisk::new(0).files().objects;
    let mut rng = Rng::new(1);
    const SPAN: u64 = 1 << 20;
    file.allocate(0, SPAN).unwrap();
    oracle.allocate(0, SPAN).unwrap();
    for round in 0..3000 {
        let page = 4096;
        let (offset, len) = match rng.below(3) {
            0 => (rng.below(SPAN / 64) * 64, 64),
            1 => (rng.below(200) * page, (1 + rng.below(40)) * page),
            _ => (rng.below(SPAN - 9000), 1 + rng.below(9000)),
        };
        match rng.below(8) {
            0 => file.sync().unwrap(),
            1..5 => {
                let content = bytes(round, len as usize);
                file.write_at(offset, &content).unwrap();
                oracle.write_at(offset, &content).unwrap();
            }
            _ => {
                let (mut found, mut expected) = (vec![0; len as usize], vec![0; len as usize]);
                file.read_at(offset, &mut found).unwrap();
                oracle.read_at(offset, &mut expected).unwrap();
                assert!(found == expected, "round {round}, {len} bytes at {offset}");
            }
        }
    }
    file.sync().unwrap();
    drop(file);
    let mut plain = open_directory(directory.path(), false).unwrap().objects;
    let (mut found, mut expected) = (vec![0; SPAN as usize], vec![0; SPAN as usize]);
    plain.read_at(0, &mut found).unwrap();
    oracle.read_at(0, &mut expected).unwrap();
    assert!(found == expected, "another process reads the same");
}

#[test]
fn more_bytes_than_may_be_on_their_way_wait_for_earlier_ones() {
    let directory = TempDir::new().unwrap();
    let mut file = uring_file(directory.path());
    let piece = bytes(1, 1 << 20);
    let count = 2 * (FLYING_BYTES_MAX as u64 >> 20) + 3;
    for index in 0..count {
        file.write_at(index << 20, &piece).unwrap();
    }
    file.sync().unwrap();
    let mut found = vec![0; 1 << 20];
    for index in 0..count {
        file.read_at(index << 20, &mut found).unwrap();
        assert!(found == piece);
    }
    // Dropped with writes on their way: it waits for them.
    file.write_at(0, &bytes(2, 1 << 20)).unwrap();
    drop(file);
    let mut plain = open_directory(directory.path(), false).unwrap().objects;
    plain.read_at(0, &mut found).unwrap();
    assert!(found == bytes(2, 1 << 20) || found == piece, "not synced: either");
}

#[test]
fn a_node_over_io_uring_is_the_same_node_without_it() {
    let directory = TempDir::new().unwrap();
    let files = UringFile::of_node(open_directory(directory.path(), true).unwrap());
    let node = LocalNode::open("over io_uring".into(), files, &options(0)).unwrap();
    let mut nodes = ThreadNodes::start(vec![node]).unwrap();
    for sequence in 0..40 {
        nodes.submit(0, sequence, put(sequence, 1 + 9000 * sequence as usize));
    }
    nodes.submit(0, 40, Request::Delete { epoch: 1, keys: vec![key(3)] });
    assert!(wait(&mut nodes, 41).values().all(|result| *result == Ok(Response::Done)));
    drop(nodes);
    let paths = [directory.path().to_path_buf()];
    let mut nodes = ThreadNodes::open(&paths, options).unwrap();
    for sequence in 0..40 {
        nodes.submit(0, sequence, get(sequence));
    }
    for (sequence, result) in wait(&mut nodes, 40) {
        let expected = match sequence {
            3 => Err(NodeError::NotFound),
            _ => Ok(Response::Bytes(bytes(sequence, 1 + 9000 * sequence as usize))),
        };
        assert_eq!(result, expected);
    }
}
