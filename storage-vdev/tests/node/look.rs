//! A store seen from the side, while it is open and written to.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use bytes::Bytes;
use storage_vdev::disk::{DiskError, DiskOptions, DiskStore, LOOK_SLOTS, Look, Seen};
use storage_vdev::files::{RealFile, open_directory};
use storage_vdev::service::ShardStore;
use tempfile::TempDir;

use super::harness::{bytes, key};

fn open(directory: &Path) -> DiskStore<RealFile> {
    let files = open_directory(directory, true).unwrap();
    let options = DiskOptions { capacity_bytes: 64 << 20, create: Some([5; 16]) };
    DiskStore::open(files.objects, &options).unwrap().0
}

fn seen(directory: &Path) -> Vec<Seen> {
    let look = Look::open(directory).unwrap();
    assert_eq!(look.node(), [5; 16]);
    let step = look.step(0).unwrap().unwrap_or_default();
    assert!(look.step(LOOK_SLOTS).unwrap().is_none());
    step.into_iter().flatten().collect()
}

#[test]
fn objects_are_seen_where_they_lie_while_the_store_is_open() {
    let parent = TempDir::new().unwrap();
    let mut store = open(parent.path());
    assert!(seen(parent.path()).is_empty());
    for number in 0..20 {
        store.put(&key(number), &[Bytes::from(bytes(number, 5000))]).unwrap();
    }
    store.sync().unwrap();
    store.delete(&key(3)).unwrap();
    store.sync().unwrap();
    let all = seen(parent.path());
    let names: Vec<u64> = all.iter().map(|it| it.key.sequence).collect();
    assert_eq!(names, (0..20).filter(|number| *number != 3).collect::<Vec<_>>());
    let file = File::open(parent.path().join("objects")).unwrap();
    for it in all {
        let mut found = vec![0; it.len as usize];
        file.read_exact_at(&mut found, Seen::offset_of(it.block)).unwrap();
        assert_eq!(found, bytes(it.key.sequence, 5000));
        assert_eq!(crc32c::crc32c(&found), it.crc);
    }
}

#[test]
fn what_is_no_store_is_not_looked_into() {
    let parent = TempDir::new().unwrap();
    let missing = |path: &Path| matches!(Look::open(path), Err(DiskError::Missing));
    assert!(missing(parent.path()) && missing(&parent.path().join("none")));
    let objects = parent.path().join("objects");
    fs::write(&objects, []).unwrap();
    assert!(missing(parent.path()), "an empty file");
    assert!(missing(&objects), "a file is no directory");
    fs::write(&objects, vec![7; 9000]).unwrap();
    assert!(matches!(Look::open(parent.path()), Err(DiskError::Damaged)));
    let store = TempDir::new().unwrap();
    drop(open(store.path()));
    fs::remove_file(&objects).unwrap();
    symlink(store.path().join("objects"), &objects).unwrap();
    assert!(missing(parent.path()), "a link");
    fs::remove_file(&objects).unwrap();
    fs::create_dir(&objects).unwrap();
    assert!(missing(parent.path()), "a directory");
}

#[test]
fn no_index_whatever_is_in_it_leads_outside_of_the_store() {
    let parent = TempDir::new().unwrap();
    let mut store = open(parent.path());
    store.put(&key(1), &[Bytes::from(bytes(1, 5000))]).unwrap();
    store.sync().unwrap();
    drop(store);
    let file = File::options().read(true).write(true).open(parent.path().join("objects")).unwrap();
    let mut slot = [0; 64];
    file.read_exact_at(&mut slot, 8192).unwrap();
    for at in 0..64 {
        let mut bad = slot;
        bad[at] ^= 0x55;
        file.write_all_at(&bad, 8192).unwrap();
        assert!(seen(parent.path()).is_empty(), "byte {at}");
    }
    // A checksum that fits, over an extent behind the end and over one without end.
    for (block, len) in [(u32::MAX, 5000_u32), (0, u32::MAX), ((64 << 8) - 1, 5000)] {
        let mut bad = slot;
        bad[40..44].copy_from_slice(&block.to_le_bytes());
        bad[44..48].copy_from_slice(&len.to_le_bytes());
        let sum = crc32c::crc32c(&[5; 16]);
        let sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, &[0; 4]), &bad[..60]);
        bad[60..].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&bad, 8192).unwrap();
        assert!(seen(parent.path()).is_empty(), "block {block}, {len} bytes");
    }
}
