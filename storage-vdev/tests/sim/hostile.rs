//! Stores that hide what they were given, and bring it back at the worst moment: what an
//! acknowledged flush promised outlives up to m of them.

use storage_vdev::sim::{Image, Rng, SimDisk};
use storage_vdev::{BLOCK_BYTES, Geometry, OpenError, StoreFile};

use crate::harness::{SimVolume, flush, geometry, open, read, repair, write};

/// A generator that has [`SimDisk::crash`] drop all that was not synced.
fn dropper() -> Rng {
    (0..).map(Rng::new).find(|rng| rng.clone().below(4) == 0).unwrap()
}

/// Writes one byte all over a block.
fn put(volume: &mut SimVolume, block: u64, byte: u8) {
    write(volume, block * BLOCK_BYTES as u64, &[byte; BLOCK_BYTES]).unwrap();
}

/// The byte that a block is full of.
fn get(volume: &mut SimVolume, block: u64) -> u8 {
    let found = read(volume, block * BLOCK_BYTES as u64, BLOCK_BYTES).unwrap();
    assert!(found.iter().all(|byte| *byte == found[0]), "block {block} is a mixture");
    found[0]
}

fn file(disk: &SimDisk, store: usize, file: StoreFile) -> Vec<u8> {
    disk.image(store).file_mut(file).unwrap().clone()
}

fn set_file(disk: &SimDisk, store: usize, file: StoreFile, content: Vec<u8>) {
    let mut image = disk.image(store);
    image.set_file(file, content);
    disk.set_image(store, image);
}

/// Everything of a shard file but its superblocks is what it was in `kept`.
fn put_back_slots(disk: &SimDisk, store: usize, kept: &[u8]) {
    let mut now = file(disk, store, StoreFile::Shard);
    now[8192..].copy_from_slice(&kept[8192..]);
    set_file(disk, store, StoreFile::Shard, now);
}

/// `hostile` keeps the record of a flush that nobody acknowledged; the volume goes on and
/// acknowledges another record in its place.
fn forked_journal(disk: &SimDisk, geometry: Geometry, rng: &mut Rng, hostile: usize) -> Vec<u8> {
    let mut volume = open(disk, geometry, rng).unwrap();
    put(&mut volume, 0, 0xa);
    flush(&mut volume).unwrap();
    put(&mut volume, 1, 0xb);
    // Only the copies up to the hostile one get the record.
    disk.crash_at(Some(disk.operations() + 1 + hostile as u64));
    assert!(flush(&mut volume).is_err() || disk.has_crashed());
    drop(volume);
    let kept = file(disk, hostile, StoreFile::Journal);
    disk.crash(&mut dropper());
    let mut volume = open(disk, geometry, rng).unwrap();
    put(&mut volume, 1, 0xc);
    flush(&mut volume).unwrap();
    kept
}

#[test]
fn a_hidden_journal_record_never_replaces_the_one_that_was_acknowledged() {
    for (data, parity) in [(1, 1), (4, 2)] {
        for hostile in 0..=usize::from(parity) {
            for openings in 0..4 {
                let context = format!("{data}+{parity}, store {hostile}, {openings} openings");
                let rng = &mut Rng::new(9);
                let geometry = geometry(data, parity, 64);
                let disk = SimDisk::new(geometry.shards());
                let kept = forked_journal(&disk, geometry, rng, hostile);
                for opening in 0..openings {
                    let mut volume = open(&disk, geometry, rng).unwrap();
                    assert_eq!(get(&mut volume, 1), 0xc, "{context}");
                    put(&mut volume, 2, opening);
                    flush(&mut volume).unwrap();
                }
                set_file(&disk, hostile, StoreFile::Journal, kept);
                let mut volume =
                    open(&disk, geometry, rng).unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_eq!(get(&mut volume, 1), 0xc, "{context}: the fork came back");
                assert_eq!(get(&mut volume, 0), 0xa, "{context}");
                if openings > 0 {
                    assert_eq!(get(&mut volume, 2), openings - 1, "{context}");
                }
            }
        }
    }
}

#[test]
fn a_fork_is_not_followed_even_where_nothing_else_is_left() {
    let rng = &mut Rng::new(9);
    let geometry = geometry(2, 1, 64);
    let disk = SimDisk::new(3);
    let kept = forked_journal(&disk, geometry, rng, 0);
    drop(open(&disk, geometry, rng).unwrap());
    let wiped = vec![0; kept.len()];
    set_file(&disk, 0, StoreFile::Journal, kept);
    set_file(&disk, 1, StoreFile::Journal, wiped);
    let error = open(&disk, geometry, rng).unwrap_err();
    assert!(matches!(error, OpenError::JournalLost), "{error}");
}

/// Writes 2 over 1 in block 0, stops the checkpoint before its first sync, lets `hostile` keep what
/// it was given, and goes on: 3 is flushed and in a stripe. Then the hostile store puts back all its
/// headers and units.
fn stale_stripe(disk: &SimDisk, geometry: Geometry, rng: &mut Rng, hostile: &[usize]) {
    let all = |volume: &mut SimVolume, byte: u8| {
        (0..u64::from(geometry.data_shards()) * 4).for_each(|block| put(volume, block, byte));
        flush(volume).unwrap();
    };
    let mut volume = open(disk, geometry, rng).unwrap();
    all(&mut volume, 1);
    repair(&mut volume);
    all(&mut volume, 2);
    disk.crash_at(Some(disk.operations() + 2 * geometry.shards() as u64));
    volume.repair_step();
    drop(volume);
    let kept: Vec<_> = hostile.iter().map(|store| file(disk, *store, StoreFile::Shard)).collect();
    disk.crash(&mut dropper());
    let mut volume = open(disk, geometry, rng).unwrap();
    assert_eq!(get(&mut volume, 0), 2);
    all(&mut volume, 3);
    repair(&mut volume);
    volume.close().unwrap();
    hostile.iter().zip(&kept).for_each(|(store, kept)| put_back_slots(disk, *store, kept));
}

#[test]
fn a_stripe_version_that_was_never_committed_is_not_read_and_ruins_nothing() {
    for (data, parity, hostile) in [
        (1, 1, vec![0]),
        (1, 1, vec![1]),
        (2, 1, vec![0]),
        (2, 2, vec![0, 1]),
        (4, 2, vec![0]),
        (4, 2, vec![1]),
        (4, 2, vec![5]),
        (4, 2, vec![0, 5]),
    ] {
        let context = format!("{data}+{parity}, stores {hostile:?}");
        let rng = &mut Rng::new(7);
        let geometry = geometry(data, parity, 64).with_journal_bytes(1 << 20).unwrap();
        let disk = SimDisk::new(geometry.shards());
        stale_stripe(&disk, geometry, rng, &hostile);
        let mut volume =
            open(&disk, geometry, rng).unwrap_or_else(|error| panic!("{context}: {error}"));
        let blocks = u64::from(data) * 4;
        for block in 0..blocks {
            assert_eq!(get(&mut volume, block), 3, "{context}, block {block}");
        }
        put(&mut volume, 0, 9);
        flush(&mut volume).unwrap();
        repair(&mut volume);
        assert_eq!(volume.status().redundancy, Some(u32::from(parity)), "{context}");
        volume.close().unwrap();
        hostile.iter().for_each(|store| disk.set_image(*store, Image::default()));
        let mut volume = open(&disk, geometry, rng).unwrap();
        assert_eq!(get(&mut volume, 0), 9, "{context}");
        for block in 1..blocks {
            assert_eq!(get(&mut volume, block), 3, "{context}, block {block}, stores gone");
        }
    }
}

#[test]
fn an_uncommitted_header_that_comes_back_costs_its_store_and_nothing_else() {
    for hostile in [vec![0], vec![3], vec![1, 4]] {
        let rng = &mut Rng::new(7);
        let geometry = geometry(4, 2, 64);
        let disk = SimDisk::new(6);
        let mut volume = open(&disk, geometry, rng).unwrap();
        put(&mut volume, 0, 1);
        flush(&mut volume).unwrap();
        repair(&mut volume);
        // Not flushed: the crash may take it, and takes it.
        put(&mut volume, 0, 2);
        disk.crash_at(Some(disk.operations() + 3 + 12));
        volume.repair_step();
        drop(volume);
        let kept: Vec<_> = hostile.iter().map(|s| file(&disk, *s, StoreFile::Shard)).collect();
        disk.crash(&mut dropper());
        let mut volume = open(&disk, geometry, rng).unwrap();
        put(&mut volume, 32, 5);
        flush(&mut volume).unwrap();
        repair(&mut volume);
        volume.close().unwrap();
        for (store, kept) in hostile.iter().zip(kept) {
            let mut now = file(&disk, *store, StoreFile::Shard);
            let headers = now[8192..16384].chunks_mut(256).zip(kept[8192..16384].chunks(256));
            // A header of stripe 0; the one that is there now is another one's, or none.
            for (header, old) in headers.filter(|(_, old)| old[..4] == *b"HSLT" && old[32] == 0) {
                header.copy_from_slice(old);
            }
            set_file(&disk, *store, StoreFile::Shard, now);
        }
        let mut volume = open(&disk, geometry, rng).unwrap();
        let left = 2 - hostile.len() as u32;
        assert_eq!(volume.status().redundancy, Some(left), "stores {hostile:?} are lost");
        assert_eq!((get(&mut volume, 0), get(&mut volume, 32)), (1, 5), "stores {hostile:?}");
        repair(&mut volume);
        assert_eq!(volume.status().redundancy, Some(2));
        assert_eq!((get(&mut volume, 0), get(&mut volume, 32)), (1, 5), "stores {hostile:?}");
    }
}

/// Has a store say, without any key, that it is of a later version of the format.
fn claim_version_2(disk: &SimDisk, store: usize) {
    let mut shard = file(disk, store, StoreFile::Shard);
    for superblock in shard[..8192].chunks_mut(4096) {
        superblock[..8].copy_from_slice(b"HYPHAVOL");
        superblock[8] = 2;
        let sum = crc32c::crc32c(&superblock[..4092]).to_le_bytes();
        superblock[4092..].copy_from_slice(&sum);
    }
    set_file(disk, store, StoreFile::Shard, shard);
}

#[test]
fn stores_that_claim_another_version_stop_the_volume_only_if_they_are_more_than_m() {
    let rng = &mut Rng::new(11);
    let geometry = geometry(4, 2, 64);
    let disk = SimDisk::new(6);
    let mut volume = open(&disk, geometry, rng).unwrap();
    put(&mut volume, 0, 1);
    volume.close().unwrap();
    for store in [5, 0] {
        claim_version_2(&disk, store);
    }
    let mut volume = open(&disk, geometry, rng).unwrap();
    assert_eq!(get(&mut volume, 0), 1);
    assert_eq!(volume.status().redundancy, Some(0));
    repair(&mut volume);
    assert_eq!(volume.status().redundancy, Some(2));
    volume.close().unwrap();
    for store in [5, 0, 3] {
        claim_version_2(&disk, store);
    }
    let error = open(&disk, geometry, rng).unwrap_err();
    assert!(matches!(error, OpenError::Version { version: 2, .. }), "{error}");
}

#[test]
fn stores_that_were_given_up_and_came_back_are_not_believed() {
    for lost in 2..6 {
        let rng = &mut Rng::new(11);
        let geometry = geometry(4, 2, 64);
        let disk = SimDisk::new(6);
        let mut volume = open(&disk, geometry, rng).unwrap();
        put(&mut volume, 0, 1);
        flush(&mut volume).unwrap();
        repair(&mut volume);
        // Two journal copies fail once each; the volume goes on without them.
        disk.break_stores(0b011);
        put(&mut volume, 0, 2);
        flush(&mut volume).unwrap();
        disk.break_stores(0);
        put(&mut volume, 1, 3);
        flush(&mut volume).unwrap();
        drop(volume);
        disk.crash(&mut dropper());
        // All m that may be lost are lost already: without a third one nothing can be promised.
        let kept = disk.image(lost);
        disk.set_image(lost, Image::default());
        let error = open(&disk, geometry, rng).unwrap_err();
        assert!(matches!(error, OpenError::TooManyLost { .. }), "store {lost}: {error}");
        disk.set_image(lost, kept);
        let mut volume = open(&disk, geometry, rng).unwrap();
        assert_eq!((get(&mut volume, 0), get(&mut volume, 1)), (2, 3));
        assert_eq!(volume.status().redundancy, Some(0));
    }
}

/// The machine stops at each operation of the first flush after a store was given up.
#[test]
fn a_flush_without_a_store_is_acknowledged_only_when_that_store_no_longer_counts() {
    for given_up in [0, 1, 5] {
        let (mut later, mut acknowledged) = (0, 0);
        while acknowledged < 3 {
            let context = format!("store {given_up} given up, crash after {later} operations");
            let rng = &mut Rng::new(12);
            let geometry = geometry(4, 2, 64);
            let disk = SimDisk::new(6);
            let mut volume = open(&disk, geometry, rng).unwrap();
            put(&mut volume, 0, 1);
            flush(&mut volume).unwrap();
            repair(&mut volume);
            put(&mut volume, 0, 2);
            disk.break_stores(1 << given_up);
            // A checkpoint notices it on any store.
            volume.repair_step();
            put(&mut volume, 0, 3);
            disk.crash_at(Some(disk.operations() + later));
            let promised = flush(&mut volume).is_ok() && !disk.has_crashed();
            drop(volume);
            disk.break_stores(0);
            disk.crash(&mut dropper());
            let others = (0..6).filter(|store| *store != given_up);
            for lost in others {
                let copy = SimDisk::new(6);
                (0..6).filter(|s| *s != lost).for_each(|s| copy.set_image(s, disk.image(s)));
                let mut volume = open(&copy, geometry, rng)
                    .unwrap_or_else(|error| panic!("{context}, store {lost} lost: {error}"));
                let found = get(&mut volume, 0);
                let right = if promised { found == 3 } else { (1..=3).contains(&found) };
                assert!(right, "{context}, store {lost} lost: {found}");
            }
            acknowledged += u32::from(promised);
            later += 1;
        }
    }
}

/// Two openings crash, each with its superblock on one store that the other opening doesn't see.
#[test]
fn openings_that_crashed_on_different_stores_do_not_stop_the_volume() {
    for (data, parity) in [(1, 1), (2, 1)] {
        let rng = &mut Rng::new(13);
        let geometry = geometry(data, parity, 64);
        let stores = geometry.shards();
        let disk = SimDisk::new(stores);
        let mut volume = open(&disk, geometry, rng).unwrap();
        put(&mut volume, 0, 1);
        flush(&mut volume).unwrap();
        repair(&mut volume);
        put(&mut volume, 1, 2);
        flush(&mut volume).unwrap();
        drop(volume);
        let mut crashed = |after: u64| {
            let copy = SimDisk::new(stores);
            (0..stores).for_each(|store| copy.set_image(store, disk.image(store)));
            copy.crash_at(Some(after));
            let whole = open(&copy, geometry, rng).is_ok() && !copy.has_crashed();
            copy.crash(&mut dropper());
            (copy, whole)
        };
        let (mut states, mut after) = (Vec::new(), 0);
        loop {
            let (copy, whole) = crashed(after);
            let (other, _) = crashed(after);
            if whole {
                break;
            }
            states.push((copy, other));
            after += 1;
        }
        for (first, (one, _)) in states.iter().enumerate() {
            for (second, (_, other)) in states.iter().enumerate() {
                let both = SimDisk::new(stores);
                (0..stores).for_each(|store| both.set_image(store, disk.image(store)));
                both.set_image(0, one.image(0));
                both.set_image(stores - 1, other.image(stores - 1));
                let context = format!("{data}+{parity}, crashes after {first} and {second}");
                let mut volume =
                    open(&both, geometry, rng).unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_eq!((get(&mut volume, 0), get(&mut volume, 1)), (1, 2), "{context}");
                assert_eq!(volume.status().redundancy, Some(u32::from(parity)), "{context}");
            }
        }
    }
}
