//! Shards of a real store, while its owner writes, deletes, damages, moves and replaces it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use hypha_chain::tree::{Extent, ExtentKind};
use hypha_proofs::store::{ExtentTree, OpenError, PlotRecord, Store};
use proof_node::shards::{Event, Folder, Keeper, Pace, Reading, ShardsError, check};
use storage_vdev::disk::{DiskOptions, DiskStore, Look, Seen};
use storage_vdev::files::{RealFile, open_directory};
use storage_vdev::node::ObjectKey;
use storage_vdev::service::ShardStore;
use tempfile::TempDir;

const RESERVATION: u64 = 12;
const BUNDLE: u64 = 256 * 1024;
const PACE: Pace = Pace {
    pass_ns: 1_000_000,
    settle_ns: 0,
    partial_ns: 0,
    compare_ns: u64::MAX,
    keep_ns: u64::MAX,
    bundle_bytes: BUNDLE,
};

fn key(sequence: u64) -> ObjectKey {
    ObjectKey { volume: [7; 16], epoch: 1, sequence, shard: 0 }
}

/// Bytes that are others for each number.
fn content(number: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(number);
    (0..len).map(|_| rng.u8(..)).collect()
}

/// A shard server's store, open.
struct Server {
    folder: PathBuf,
    store: DiskStore<RealFile>,
}

impl Server {
    fn open(folder: &Path, node: u8) -> Self {
        let files = open_directory(folder, true).unwrap();
        let options = DiskOptions { capacity_bytes: 64 << 20, create: Some([node; 16]) };
        let (store, _) = DiskStore::open(files.objects, &options).unwrap();
        Self { folder: folder.to_owned(), store }
    }

    fn put(&mut self, number: u64, bytes: Vec<u8>) {
        self.store.put(&key(number), &[bytes.into()]).unwrap();
        self.store.sync().unwrap();
    }

    fn delete(&mut self, number: u64) {
        self.store.delete(&key(number)).unwrap();
        self.store.sync().unwrap();
    }

    /// Where an object lies.
    fn place(&self, number: u64) -> (u64, usize) {
        let step = Look::open(&self.folder).unwrap().step(0).unwrap().unwrap();
        let it = step.into_iter().flatten().find(|seen| seen.key == key(number)).unwrap();
        (Seen::offset_of(it.block), it.len as usize)
    }

    /// Flips a bit of an object, as a disk does.
    fn rot(&self, number: u64, at: u64) {
        let file = File::options().read(true).write(true).open(self.folder.join("objects"));
        let (file, offset) = (file.unwrap(), self.place(number).0 + at);
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }
}

struct Node {
    keeper: Keeper,
    events: Receiver<Event>,
    lost: Cell<u64>,
}

impl Node {
    fn start(folders: &[&Path], cache: &Path, pace: Pace) -> Self {
        let folders = folders
            .iter()
            .map(|path| Folder { path: (*path).to_owned(), reservation: RESERVATION });
        let (tell, events) = channel();
        let tell = move |event| _ = tell.send(event);
        let keeper = Keeper::start(folders.collect(), cache.to_owned(), pace, tell).unwrap();
        Self { keeper, events, lost: Cell::new(0) }
    }

    fn event(&self) -> Event {
        let event = self.events.recv().unwrap();
        if let Event::Changed { lost, .. } = event {
            self.lost.set(self.lost.get() + lost);
        }
        event
    }

    /// Waits until so many bytes are proven.
    fn until(&self, bytes: u64) {
        loop {
            let progress = self.keeper.progress();
            if progress.is_ready && progress.proven == bytes {
                return;
            }
            self.event();
        }
    }

    /// Waits until so many bytes that were proven are gone.
    fn until_lost(&self, bytes: u64) {
        while self.lost.get() < bytes {
            self.event();
        }
        assert_eq!(self.lost.get(), bytes);
    }

    fn until_told(&self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.event();
            if wanted(&event) {
                return event;
            }
        }
    }
}

/// A shard server with so many shards of 60,000 bytes.
fn stored(shards: u64) -> (TempDir, Server) {
    let parent = tempfile::tempdir().unwrap();
    let mut server = Server::open(&parent.path().join("disk"), 5);
    (0..shards).for_each(|number| server.put(number, content(number, 60_000)));
    (parent, server)
}

/// The node beside it.
fn beside(parent: &TempDir, pace: Pace) -> Node {
    Node::start(&[&parent.path().join("disk")], &parent.path().join("cache"), pace)
}

/// Such a server with a node that proves all of it.
fn host(shards: u64) -> (TempDir, Server, Node) {
    let (parent, server) = stored(shards);
    let node = beside(&parent, PACE);
    node.until(60_000 * shards);
    (parent, server, node)
}

/// Shows a leaf around each `step`th byte of a plot; how many could not be shown.
fn show(extents: &[Extent], reading: &Reading, step: usize) -> usize {
    let mut store = Store::listed(extents.to_vec()).unwrap();
    let record = store.record();
    let mut lost = 0;
    for (number, extent) in extents.iter().enumerate() {
        assert!(store.load(number, reading.tree(&extent.root).unwrap()));
    }
    for offset in (0..record.bytes_len).step_by(step).chain([record.bytes_len - 1]) {
        let read = store.locate(offset).unwrap();
        let extent = extents[read.extent];
        match reading.read(&extent.root, &read.range).map(|group| store.open(offset, &group)) {
            Ok(Ok(shown)) => assert!(shown.check(&record, offset).is_ok()),
            Ok(Err(error)) => {
                assert_eq!(error, OpenError::Changed(offset));
                lost += 1;
            }
            Err(_) => lost += 1,
        }
    }
    lost
}

fn bytes_of(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.bytes_len).sum()
}

#[test]
fn shards_are_proven_leaf_by_leaf_and_again_after_a_restart_without_being_read() {
    let (parent, mut server) = stored(0);
    let lens = [70_000, 1, 65_536, 4096, 200_001, 0, 131_072, 1025];
    for (number, len) in (0..).zip(lens) {
        server.put(number, content(number, len));
    }
    let sum = lens.iter().sum::<usize>() as u64;
    let node = beside(&parent, PACE);
    node.until(sum);
    let listed = node.keeper.listed();
    assert!(listed.len() > 1);
    for extent in &listed {
        assert_eq!((extent.kind, extent.id), (ExtentKind::User, RESERVATION));
        assert!(extent.bytes_len <= BUNDLE);
    }
    assert_eq!(show(&listed, &node.keeper.reading(), 509), 0);
    assert_eq!(node.keeper.progress().hashed, sum);
    drop(node);
    // The server is away: its folder is not.
    drop(server);
    let node = beside(&parent, PACE);
    node.until(sum);
    let progress = node.keeper.progress();
    assert_eq!((progress.hashed, progress.proven, progress.is_ready), (0, sum, true));
    assert_eq!(node.keeper.listed(), listed);
    assert_eq!(show(&listed, &node.keeper.reading(), 4099), 0);
    // And back.
    let mut server = Server::open(&parent.path().join("disk"), 5);
    server.put(9, content(9, 50_000));
    node.until(sum + 50_000);
    assert_eq!(show(&node.keeper.listed(), &node.keeper.reading(), 4099), 0);
}

#[test]
fn a_deleted_shard_is_not_shown_and_its_neighbours_are_in_the_old_plot_and_the_next() {
    let (parent, mut server, node) = host(9);
    let before = node.keeper.listed();
    server.delete(4);
    // Its room is another's at once.
    server.put(20, content(20, 60_000));
    node.until_lost(60_000);
    node.until(540_000);
    let after = node.keeper.listed();
    let reading = node.keeper.reading();
    assert_eq!(show(&after, &reading, 509), 0);
    // Of the plot that may still be asked for, all but what is gone: 59 leaves or so of 528.
    let roots: BTreeSet<_> = after.iter().map(|extent| extent.root).collect();
    assert!(before.iter().any(|extent| !roots.contains(&extent.root)));
    let gone = show(&before, &reading, 1024);
    assert!((59..=190).contains(&gone), "{gone}: the shard and the 64 KiB that it has a part of");
    // So too when the node was started anew meanwhile.
    drop(node);
    server.delete(7);
    let node = beside(&parent, PACE);
    node.until(480_000);
    assert_eq!(show(&node.keeper.listed(), &node.keeper.reading(), 509), 0);
}

#[test]
fn a_rotten_shard_is_told_left_out_and_taken_again_when_it_is_made_good() {
    let (parent, mut server) = stored(3);
    server.rot(1, 31_000);
    let node = beside(&parent, PACE);
    let is_rotten = |event: &Event| matches!(event, Event::Rotten { .. });
    let Event::Rotten { folder: at, shard } = node.until_told(is_rotten) else {
        panic!("another event")
    };
    assert_eq!(at, server.folder);
    assert!(shard.ends_with("epoch 1, segment 1, 0"), "{shard}");
    drop(node);
    // One that rots later is found by comparing, or by a draw that fails.
    let node = beside(&parent, PACE);
    node.until(120_000);
    server.rot(2, 7);
    let listed = node.keeper.listed();
    assert!(show(&listed, &node.keeper.reading(), 1024) > 0);
    node.keeper.reading().doubt(&listed[0].root);
    node.until_told(
        |event| matches!(event, Event::Rotten { shard, .. } if shard.ends_with("segment 2, 0")),
    );
    node.until(60_000);
    assert_eq!(show(&node.keeper.listed(), &node.keeper.reading(), 509), 0);
    // Its healer puts it again.
    server.put(2, content(2, 60_000));
    node.until(120_000);
    drop(node);
    let node = beside(&parent, Pace { compare_ns: 1, ..PACE });
    node.until(120_000);
    server.rot(0, 59_999);
    node.until_told(
        |event| matches!(event, Event::Rotten { shard, .. } if shard.ends_with("segment 0, 0")),
    );
}

#[test]
fn equal_bytes_are_in_a_plot_once() {
    let parent = tempfile::tempdir().unwrap();
    let folders = ["a", "b"].map(|name| parent.path().join(name));
    let mut servers = [Server::open(&folders[0], 5), Server::open(&folders[1], 6)];
    // Whole bundles of the same, in one store and in two.
    for server in &mut servers {
        (0..8).for_each(|number| server.put(number, vec![9; BUNDLE as usize / 2]));
    }
    let cache = parent.path().join("cache");
    let node = Node::start(&[&folders[0], &folders[1]], &cache, PACE);
    node.until(BUNDLE);
    let listed = node.keeper.listed();
    assert_eq!(listed.len(), 1, "one root at two places of a plot costs all stake");
    assert_eq!(show(&listed, &node.keeper.reading(), 4096), 0);
    assert_eq!(node.keeper.progress().stored, 8 * BUNDLE);
    // The one that is left takes its place.
    (0..8).for_each(|number| servers[0].delete(number));
    servers[0].put(9, content(9, 5000));
    node.until(BUNDLE + 5000);
    assert_eq!(show(&node.keeper.listed(), &node.keeper.reading(), 4096), 0);
}

#[test]
fn a_folder_that_goes_and_comes_is_told_and_nothing_is_read_twice() {
    let (parent, server, node) = host(4);
    let (listed, hashed) = (node.keeper.listed(), node.keeper.progress().hashed);
    let (folder, away) = (server.folder.clone(), parent.path().join("away"));
    fs::rename(&folder, &away).unwrap();
    node.until(0);
    node.until_lost(240_000);
    assert!(node.keeper.reading().read(&listed[0].root, &(0..5)).is_err());
    fs::rename(&away, &folder).unwrap();
    node.until_told(|event| matches!(event, Event::Back { .. }));
    node.until(240_000);
    assert_eq!((node.keeper.listed(), node.keeper.progress().hashed), (listed, hashed));
    // Another server is made in its place.
    drop(server);
    fs::rename(&folder, &away).unwrap();
    node.until(0);
    let mut server = Server::open(&folder, 6);
    server.put(1, content(8, 7000));
    node.until(7000);
    assert_eq!(show(&node.keeper.listed(), &node.keeper.reading(), 509), 0);
}

#[test]
fn a_cache_that_is_damaged_is_made_again() {
    let (parent, _server, node) = host(9);
    drop(node);
    let files = parent.path().join("cache").join("05".repeat(16));
    let mut names: Vec<PathBuf> =
        fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let mut bytes = fs::read(&names[0]).unwrap();
    bytes[60] ^= 1;
    fs::write(&names[0], bytes).unwrap();
    fs::write(files.join("0000000099.part"), [1, 2, 3]).unwrap();
    fs::write(files.join("notes"), [1, 2, 3]).unwrap();
    // As long as anything but a bundle's file, and named as one.
    fs::write(files.join("0000000050"), vec![0; 3 << 20]).unwrap();
    let node = beside(&parent, PACE);
    node.until(540_000);
    assert!((1..540_000).contains(&node.keeper.progress().hashed));
    assert_eq!(show(&node.keeper.listed(), &node.keeper.reading(), 509), 0);
    assert!(!files.join("0000000099.part").exists() && files.join("notes").exists());
}

#[test]
fn folders_that_are_no_servers_or_the_same_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| Folder { path: parent.path().join(name), reservation: 0 };
    drop(Server::open(&at("a").path, 5));
    drop(Server::open(&at("b").path, 6));
    fs::create_dir(at("c").path).unwrap();
    assert!(check(&[at("a"), at("b")]).is_ok());
    for name in ["c", "none", "a/objects"] {
        let error = check(&[at("a"), at(name)]).unwrap_err();
        assert!(matches!(&error, ShardsError::Folder { path, .. } if *path == at(name).path));
        assert!(error.to_string().contains("no folder of a shard server"), "{error}");
    }
    assert!(matches!(check(&[at("a"), at("a")]), Err(ShardsError::Twice { .. })));
    fs::copy(at("a").path.join("objects"), at("c").path.join("objects")).unwrap();
    let error = check(&[at("a"), at("c")]).unwrap_err();
    assert!(matches!(error, ShardsError::Twice { .. }), "{error}");
}

/// Shards come and go at random, and filler lies beside them: what is listed is always shown, and adds up.
#[test]
fn plots_of_both_kinds_are_shown_whatever_comes_and_goes() {
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let (parent, mut server) = stored(0);
    let node = beside(&parent, PACE);
    let mut there: Vec<(u64, usize)> = Vec::new();
    let filler = content(1 << 40, 100_000);
    let filler_tree = ExtentTree::of(&filler);
    for round in 0..12 {
        for _ in 0..rng.usize(1..6) {
            let (number, len) = (rng.u64(..1 << 30), rng.usize(1..150_000));
            server.put(number, content(number, len));
            there.push((number, len));
        }
        for _ in 0..rng.usize(..4).min(there.len() - 1) {
            let (number, _) = there.swap_remove(rng.usize(..there.len()));
            server.delete(number);
        }
        let sum = there.iter().map(|(_, len)| *len as u64).sum::<u64>();
        if node.keeper.progress().proven != sum {
            node.until(sum);
        }
        let shards = node.keeper.listed();
        assert_eq!(bytes_of(&shards), sum, "seed {seed}, round {round}");
        let kept = Extent {
            kind: ExtentKind::Filler,
            id: 1 << 32,
            bytes_len: filler.len() as u64,
            root: filler_tree.root(),
        };
        let mut extents = shards.clone();
        extents.insert(rng.usize(..=shards.len()), kept);
        let mut store = Store::listed(extents.clone()).unwrap();
        let record: PlotRecord = store.record();
        for _ in 0..64 {
            let offset = rng.u64(..record.bytes_len);
            let read = store.locate(offset).unwrap();
            let extent = extents[read.extent];
            let (tree, group) = if extent.kind == ExtentKind::Filler {
                let range = read.range.start as usize..read.range.end as usize;
                (filler_tree.clone(), filler[range].to_vec())
            } else {
                let reading = node.keeper.reading();
                let tree = reading.tree(&extent.root).unwrap();
                (tree, reading.read(&extent.root, &read.range).unwrap())
            };
            assert!(store.load(read.extent, tree), "seed {seed}, round {round}");
            let shown = store.open(offset, &group).unwrap();
            assert!(shown.check(&record, offset).is_ok(), "seed {seed}, round {round}");
            assert_eq!(shown.way.extent.kind, extent.kind);
        }
    }
}
