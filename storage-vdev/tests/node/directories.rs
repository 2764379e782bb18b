//! Nodes in real directories: locks, names, modes, lost ones.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use storage_vdev::dir_nodes::{DirNodes, DirNodesError};
use storage_vdev::files::{DirectoryError, FILE_NAMES, open_directory};
use storage_vdev::node::{NodeCompletion, NodeError, Nodes, Request, Response};
use storage_vdev::service::{NodeIdentity, NodeOptions, NodeService};
use tempfile::TempDir;

use super::harness::{JOURNAL, VOLUME, append, ask, bytes, journal_open, key, put};

fn paths(parent: &Path, count: u8) -> Vec<PathBuf> {
    (0..count).map(|index| parent.join(format!("node-{index}"))).collect()
}

fn options(index: usize) -> NodeOptions {
    let identity =
        NodeIdentity { node: [index as u8; 16], acceptor_seed: [index as u8; 32].into() };
    NodeOptions { capacity_bytes: 64 << 20, create: Some(identity) }
}

fn existing(index: usize) -> NodeOptions {
    NodeOptions { create: None, ..options(index) }
}

fn all(nodes: &mut DirNodes) -> Vec<NodeCompletion> {
    std::iter::from_fn(|| nodes.poll(0)).collect()
}

fn one(nodes: &mut DirNodes, node: u8, request: Request) -> Result<Response, NodeError> {
    nodes.submit(node, 1, request);
    let [done] = all(nodes).try_into().unwrap();
    assert_eq!(done.tag, 1);
    done.result
}

#[test]
fn each_request_to_each_directory_completes_once_and_survives() {
    let parent = TempDir::new().unwrap();
    let paths = paths(parent.path(), 3);
    let mut nodes = DirNodes::open(&paths, options).unwrap();
    assert_eq!((nodes.count(), nodes.ready_fd().is_none(), nodes.deadline_ns()), (3, true, None));
    for node in 0..3 {
        for sequence in 0..5 {
            let tag = u64::from(node) * 10 + sequence;
            nodes.submit(node, tag, put(key(sequence), &bytes(tag, 70_000)));
        }
        nodes.submit(node, 100 + u64::from(node), journal_open(JOURNAL));
        nodes.submit(node, 200 + u64::from(node), append(0, &bytes(9, 5000)));
    }
    let mut done = all(&mut nodes);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    done.sort_by_key(|done| done.tag);
    done.dedup_by_key(|done| done.tag);
    assert_eq!(done.len(), 21);
    assert_eq!(one(&mut nodes, 3, Request::Capacity), Err(NodeError::Unavailable));
    drop(nodes);
    let mut nodes = DirNodes::open(&paths, existing).unwrap();
    for node in 0..3 {
        let read = Request::JournalRead { volume: VOLUME, position: 0, len: u32::MAX };
        assert_eq!(one(&mut nodes, node, read), Ok(Response::Bytes(bytes(9, 5000).into())));
        for sequence in 0..5 {
            let content = bytes(u64::from(node) * 10 + sequence, 70_000);
            let get = Request::Get { key: key(sequence), offset: 4112, len: 4112 };
            let expected = content[4112..8224].to_vec();
            assert_eq!(one(&mut nodes, node, get), Ok(Response::Bytes(expected.into())));
        }
    }
}

#[test]
fn a_directory_belongs_to_one_process_and_its_files_to_one_user() {
    let parent = TempDir::new().unwrap();
    let paths = paths(parent.path(), 2);
    let nodes = DirNodes::open(&paths, options).unwrap();
    let again = DirNodes::open(&paths[1..], existing).err().unwrap();
    assert!(matches!(
        again,
        DirNodesError::Directory(DirectoryError::InUse { path }) if path == paths[1]
    ));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&paths[0]), 0o700);
    for name in FILE_NAMES {
        assert_eq!(mode(&paths[0].join(name)), 0o600);
    }
    drop(nodes);
    drop(DirNodes::open(&paths, existing).unwrap());
}

#[test]
fn one_directory_under_two_names_is_refused() {
    let parent = TempDir::new().unwrap();
    let real = parent.path().join("real");
    let link = parent.path().join("link");
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    let refused = DirNodes::open(&[real.clone(), link], options).err().unwrap();
    assert!(matches!(refused, DirNodesError::Same { first, .. } if first == real));
    let unmade = parent.path().join("unmade");
    let twice = [unmade.clone(), parent.path().join("./unmade")];
    assert!(matches!(DirNodes::open(&twice, options), Err(DirNodesError::Same { .. })));
    assert!(!unmade.exists());
}

#[test]
fn a_node_that_is_missing_or_broken_is_unavailable_and_the_others_go_on() {
    let parent = TempDir::new().unwrap();
    let paths = paths(parent.path(), 4);
    drop(DirNodes::open(&paths[1..], options).unwrap());
    // Missing; a link in place of a file; a file in place of a directory.
    fs::rename(paths[1].join("objects"), parent.path().join("elsewhere")).unwrap();
    symlink(parent.path().join("elsewhere"), paths[1].join("objects")).unwrap();
    fs::remove_dir_all(&paths[2]).unwrap();
    fs::write(&paths[2], b"").unwrap();
    let mut nodes = DirNodes::open(&paths, existing).unwrap();
    assert_eq!(nodes.unavailable().collect::<Vec<_>>(), [0, 1, 2]);
    for node in 0..3 {
        let refused = one(&mut nodes, node, Request::Capacity);
        assert_eq!(refused, Err(NodeError::Unavailable));
    }
    assert_eq!(one(&mut nodes, 3, put(key(1), b"x")), Ok(Response::Done));
    assert!(!paths[0].exists(), "nothing is made without being asked for");
    assert_eq!(nodes.name(3), paths[3].display().to_string());
}

#[test]
fn the_room_of_deleted_objects_goes_back_to_the_file_system_and_can_be_had_again() {
    const OBJECTS: u64 = 100;
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("node");
    let options = NodeOptions { capacity_bytes: 256 << 20, ..options(0) };
    let files = open_directory(&path, true).unwrap();
    let (mut node, _) = NodeService::open(files, &options).unwrap();
    let content = bytes(1, 1 << 20);
    let taken = || fs::metadata(path.join("objects")).unwrap().blocks() * 512;
    for round in 0..2 {
        for object in 0..OBJECTS {
            ask(&mut node, put(key(round * OBJECTS + object), &content)).unwrap();
        }
        assert!(taken() > OBJECTS << 20);
        // Some stay, between those that go.
        let gone = (0..OBJECTS).filter(|object| object % 10 != 0);
        let keys: Vec<_> = gone.map(|object| key(round * OBJECTS + object)).collect();
        ask(&mut node, Request::Delete { epoch: u64::MAX, keys }).unwrap();
        let mut pieces = 0;
        while node.tidy() {
            pieces += 1;
            assert!(pieces < 100, "it comes to an end");
        }
        let kept = (round + 1) * OBJECTS / 10;
        let most = (kept + 64 + 16 + 2) << 20;
        assert!(pieces > 0 && taken() < most, "{pieces} pieces, {} bytes are left", taken());
        for object in (0..(round + 1) * OBJECTS).step_by(10) {
            let get = Request::Get { key: key(object), offset: 0, len: u32::MAX };
            let Ok(Response::Bytes(found)) = ask(&mut node, get) else { panic!("{object}") };
            assert!(found == content, "{object}");
        }
    }
}
