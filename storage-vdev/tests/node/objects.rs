//! Objects: put, get, list, delete; a full disk; rot.

use bytes::Bytes;
use storage_vdev::disk::{DiskError, DiskOptions, DiskStore};
use storage_vdev::files::sim::{Faults, Rng, SimDisk, Which};
use storage_vdev::node::{NodeError, ObjectKey, Request, Response};
use storage_vdev::service::ShardStore;

use super::harness::{VOLUME, ask, bytes, get_all, identity, key, open, options, put};

#[test]
fn an_object_is_read_back_whole_and_in_ranges() {
    let (mut node, _) = open(&SimDisk::new(1)).unwrap();
    for (sequence, len) in [(1, 0), (2, 1), (3, 4096), (4, 4112), (5, 300_000)] {
        let content = bytes(sequence, len);
        assert_eq!(ask(&mut node, put(key(sequence), &content)), Ok(Response::Done));
        assert_eq!(get_all(&mut node, key(sequence)).unwrap(), content);
        let mut range = |offset: usize, len: usize| {
            let (offset, len) = (offset as u32, len as u32);
            ask(&mut node, Request::Get { key: key(sequence), offset, len })
        };
        for offset in [0, len / 2, len] {
            let expected = Bytes::copy_from_slice(&content[offset..]);
            assert_eq!(range(offset, len - offset), Ok(Response::Bytes(expected)));
        }
        assert_eq!(range(len, 1), Err(NodeError::Range));
        assert_eq!(range(len + 1, 0), Err(NodeError::Range));
    }
    assert_eq!(get_all(&mut node, key(9)), Err(NodeError::NotFound));
}

#[test]
fn the_same_bytes_again_are_a_success_and_others_are_refused() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let content = bytes(1, 5000);
    assert_eq!(ask(&mut node, put(key(1), &content)), Ok(Response::Done));
    assert_eq!(ask(&mut node, put(key(1), &content)), Ok(Response::Done));
    assert_eq!(ask(&mut node, put(key(1), &bytes(2, 5000))), Err(NodeError::Exists));
    assert_eq!(ask(&mut node, put(key(1), &bytes(1, 4999))), Err(NodeError::Exists));
    let (mut node, _) = open(&disk).unwrap();
    assert_eq!(ask(&mut node, put(key(1), &content)), Ok(Response::Done));
    assert_eq!(get_all(&mut node, key(1)).unwrap(), content);
}

#[test]
fn names_come_in_order_page_by_page_and_only_of_the_volume() {
    let (mut node, _) = open(&SimDisk::new(1)).unwrap();
    let mut keys = Vec::new();
    for (epoch, sequence, shard) in [(2, 1, 0), (1, 300, 1), (1, 300, 0), (1, 2, 255), (1, 256, 0)]
    {
        keys.push(ObjectKey { volume: VOLUME, epoch, sequence, shard });
    }
    for key in &keys {
        ask(&mut node, put(*key, b"content")).unwrap();
        ask(&mut node, put(ObjectKey { volume: [6; 16], ..*key }, b"content")).unwrap();
        ask(&mut node, put(ObjectKey { volume: [8; 16], ..*key }, b"content")).unwrap();
    }
    keys.sort();
    let mut listed = Vec::new();
    loop {
        let list = Request::List { volume: VOLUME, after: listed.last().copied(), limit: 2 };
        match ask(&mut node, list).unwrap() {
            Response::Keys(page) if page.is_empty() => break,
            Response::Keys(page) => listed.extend(page),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(listed, keys);
    let of_nobody = Request::List { volume: [1; 16], after: None, limit: 2 };
    assert_eq!(ask(&mut node, of_nobody), Ok(Response::Keys(Vec::new())));
}

#[test]
fn what_is_deleted_makes_room_and_stays_deleted() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let free = |node: &mut super::harness::Node| node.objects().capacity().unwrap().free_bytes;
    let empty = free(&mut node);
    ask(&mut node, put(key(1), &bytes(1, 1 << 20))).unwrap();
    ask(&mut node, put(key(2), &bytes(2, 1 << 20))).unwrap();
    assert_eq!(free(&mut node), empty - (2 << 20));
    let delete = Request::Delete { epoch: 1, keys: vec![key(1), key(2), key(3)] };
    assert_eq!(ask(&mut node, delete), Ok(Response::Done));
    assert_eq!(free(&mut node), empty);
    assert_eq!(get_all(&mut node, key(1)), Err(NodeError::NotFound));
    let (mut node, recovery) = open(&disk).unwrap();
    assert_eq!(recovery.objects, 0);
    assert_eq!(get_all(&mut node, key(1)), Err(NodeError::NotFound));
    assert_eq!(free(&mut node), empty);
}

#[test]
fn a_full_node_says_so_keeps_all_it_has_and_goes_on_when_there_is_room() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let mut stored = 0;
    let refused = loop {
        match ask(&mut node, put(key(stored), &bytes(stored, 300_000))) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((stored, refused), (13, NodeError::NoSpace), "4 MiB hold 13 of 74 blocks");
    for sequence in 0..stored {
        assert_eq!(get_all(&mut node, key(sequence)).unwrap(), bytes(sequence, 300_000));
    }
    // Room made in the same batch counts: the node syncs before it uses it again.
    node.handle(
        &storage_vdev::service::Grants::all(),
        Request::Delete { epoch: 1, keys: vec![key(4)] },
    );
    ask(&mut node, put(key(100), &bytes(100, 300_000))).unwrap();
    let (mut node, recovery) = open(&disk).unwrap();
    assert_eq!((recovery.objects, recovery.unfinished), (13, 0));
    assert_eq!(get_all(&mut node, key(100)).unwrap(), bytes(100, 300_000));
    // More capacity is more room.
    drop(node);
    let files = disk.files();
    let grown = DiskOptions { capacity_bytes: 8 << 20, create: None };
    let (mut store, _) = DiskStore::open(files.objects, &grown).unwrap();
    store.put(&key(101), &[Bytes::from(bytes(1, 300_000))]).unwrap();
}

#[test]
fn a_disk_that_is_full_at_any_operation_loses_nothing() {
    let content = |sequence| bytes(sequence, 70_000);
    let mut refused = 0;
    let count = |disk: &SimDisk| disk.operations();
    let whole = SimDisk::new(1);
    let (mut node, _) = open(&whole).unwrap();
    let first = count(&whole);
    (0..8).for_each(|sequence| drop(ask(&mut node, put(key(sequence), &content(sequence)))));
    for at in first..count(&whole) {
        let disk = SimDisk::new(1);
        let (mut node, _) = open(&disk).unwrap();
        disk.full_at(Some(at));
        let stored: Vec<bool> = (0..8)
            .map(|sequence| match ask(&mut node, put(key(sequence), &content(sequence))) {
                Ok(_) => true,
                Err(NodeError::NoSpace) => false,
                Err(error) => panic!("full at {at}: {error}"),
            })
            .collect();
        refused += stored.iter().filter(|stored| !**stored).count();
        disk.full_at(None);
        disk.crash(&mut Rng::new(at));
        let (mut node, _) = open(&disk).unwrap();
        for (sequence, stored) in (0..).zip(&stored) {
            match get_all(&mut node, key(sequence)) {
                Ok(bytes) => assert_eq!(bytes, content(sequence), "full at {at}"),
                Err(error) => assert!(!stored && error == NodeError::NotFound, "full at {at}"),
            }
        }
        ask(&mut node, put(key(50), &content(50))).unwrap();
    }
    assert!(refused > 0);
}

#[test]
fn rot_in_objects_is_found_by_reading_all_of_them_and_mended_by_putting_them_again() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let (mut node, _) = open(&disk).unwrap();
        for sequence in 0..20 {
            ask(&mut node, put(key(sequence), &bytes(sequence, 40_960))).unwrap();
        }
        let mut rng = Rng::new(seed);
        disk.rot(Which::Objects, &mut rng).unwrap();
        let mut damaged = Vec::new();
        let mut mended = 0;
        let mut after = None;
        loop {
            let step = node.disk().scrub(after, 100_000).unwrap();
            damaged.extend(step.damaged);
            mended += step.mended_slots;
            after = step.next;
            if after.is_none() {
                break;
            }
        }
        node.sync();
        assert!(damaged.len() as u64 + mended <= 1, "seed {seed}");
        for lost in &damaged {
            assert_eq!(get_all(&mut node, *lost), Err(NodeError::Corrupt), "seed {seed}");
            ask(&mut node, put(*lost, &bytes(lost.sequence, 40_960))).unwrap();
        }
        // Whatever rotted, the node starts again with all of it.
        let (mut node, recovery) = open(&disk).unwrap();
        assert_eq!(recovery.objects, 20, "seed {seed}: {recovery:?}");
        for sequence in 0..20 {
            let found = get_all(&mut node, key(sequence)).unwrap();
            assert_eq!(found, bytes(sequence, 40_960), "seed {seed}");
        }
    }
}

#[test]
fn lost_and_misdirected_writes_never_make_wrong_bytes_of_an_object() {
    let mut missing = 0;
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let (mut node, _) = open(&disk).unwrap();
        let faults = Faults { lost_write: 20_000, misdirected_write: 20_000, ..Faults::default() };
        disk.set_faults(faults);
        for sequence in 0..30 {
            ask(&mut node, put(key(sequence), &bytes(sequence, 9000))).unwrap();
            if sequence % 3 == 2 {
                let keys = vec![key(sequence - 1)];
                ask(&mut node, Request::Delete { epoch: 1, keys }).unwrap();
            }
        }
        disk.set_faults(Faults::default());
        disk.crash(&mut Rng::new(seed));
        // A write that went astray may have hit a header: then the node says so and serves nothing.
        let Ok((mut node, _)) = open(&disk) else { continue };
        for sequence in 0..30 {
            match get_all(&mut node, key(sequence)) {
                Ok(found) => assert_eq!(found, bytes(sequence, 9000), "seed {seed}"),
                Err(NodeError::NotFound | NodeError::Corrupt) => missing += 1,
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
    }
    assert!(missing > 60 * 10, "the faults did nothing");
}

#[test]
fn a_read_error_is_told_and_forgets_nothing() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, put(key(1), &bytes(1, 5000))).unwrap();
    disk.set_faults(Faults { read_error: 1_000_000, ..Faults::default() });
    assert_eq!(get_all(&mut node, key(1)), Err(NodeError::Failed));
    disk.set_faults(Faults::default());
    assert_eq!(get_all(&mut node, key(1)).unwrap(), bytes(1, 5000));
}

#[test]
fn after_a_failed_sync_nothing_is_written_until_the_node_is_opened_again() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, put(key(1), &bytes(1, 5000))).unwrap();
    disk.sync_error_at(Some(0));
    assert_eq!(ask(&mut node, put(key(2), &bytes(2, 5000))), Err(NodeError::Failed));
    assert_eq!(get_all(&mut node, key(2)), Err(NodeError::NotFound), "nobody knows whether it is");
    assert_eq!(ask(&mut node, put(key(3), &bytes(3, 5000))), Err(NodeError::Failed));
    let delete = Request::Delete { epoch: 1, keys: vec![key(1)] };
    assert_eq!(ask(&mut node, delete), Err(NodeError::Failed));
    let fence = Request::Fence { volume: VOLUME, epoch: 1, evidence: Vec::new() };
    assert_eq!(ask(&mut node, fence), Err(NodeError::Failed), "what it covers may vanish");
    assert_eq!(get_all(&mut node, key(1)).unwrap(), bytes(1, 5000));
}

#[test]
fn extents_are_used_again_without_harm_over_a_long_life() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let mut rng = Rng::new(5);
    let mut live = std::collections::BTreeMap::new();
    let mut refused = 0;
    for sequence in 0..1500 {
        let len = 1 + rng.below(120_000) as usize;
        match ask(&mut node, put(key(sequence), &bytes(sequence, len))) {
            Ok(_) => drop(live.insert(sequence, len)),
            Err(NodeError::NoSpace) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        while live.len() > 45 {
            let victim = *live.keys().nth(rng.below(live.len() as u64) as usize).unwrap();
            live.remove(&victim);
            ask(&mut node, Request::Delete { epoch: 1, keys: vec![key(victim)] }).unwrap();
        }
        if sequence % 300 == 0 {
            disk.crash(&mut rng);
            node = open(&disk).unwrap().0;
        }
    }
    for (sequence, len) in &live {
        assert_eq!(get_all(&mut node, key(*sequence)).unwrap(), bytes(*sequence, *len));
    }
    let step = node.disk().scrub(None, u64::MAX).unwrap();
    assert_eq!((step.objects, step.damaged.len()), (live.len() as u64, 0));
    // 45 objects of 60 kB in 4 MiB: two thirds full, at random sizes.
    assert!(refused < 30, "{refused} of 1500 refused: space is lost or too fragmented");
}

#[test]
fn an_object_store_that_is_missing_damaged_or_of_another_version_is_told_apart() {
    let existing = DiskOptions { capacity_bytes: 4 << 20, create: None };
    let error = |disk: &SimDisk| DiskStore::open(disk.files().objects, &existing).err().unwrap();
    let disk = SimDisk::new(1);
    assert!(matches!(error(&disk), DiskError::Missing));
    drop(open(&disk).unwrap());
    let superblock = disk.bytes(Which::Objects, 0, 512);
    disk.set_bytes(Which::Objects, 20, &[0xff]);
    assert!(matches!(error(&disk), DiskError::Damaged));
    let mut other = superblock[..508].to_vec();
    other[8] = 77;
    other.extend(crc32c::crc32c(&other).to_le_bytes());
    disk.set_bytes(Which::Objects, 0, &other);
    assert!(matches!(error(&disk), DiskError::Version(77)));
    let none = DiskOptions { capacity_bytes: 0, create: Some(identity().node) };
    let refused = DiskStore::open(SimDisk::new(1).files().objects, &none).err().unwrap();
    assert!(matches!(refused, DiskError::Capacity));
    assert!(options().create.is_some());
}
