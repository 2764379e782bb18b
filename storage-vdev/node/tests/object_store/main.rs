//! Objects in a directory, in memory, and in a bucket of a server with a script.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod bucket;

use bytes::Bytes;
use storage_node::object_store::ObjectShards;
use storage_vdev::node::{NodeError, OBJECT_BYTES_MAX, ObjectKey};
use storage_vdev::service::ShardStore;

const VOLUME: [u8; 16] = [0xa5; 16];

fn key(sequence: u64) -> ObjectKey {
    ObjectKey { volume: VOLUME, epoch: 3, sequence, shard: 1 }
}

fn with_both(test: impl Fn(ObjectShards)) {
    test(ObjectShards::memory().unwrap());
    let folder = tempfile::tempdir().unwrap();
    test(ObjectShards::directory(folder.path()).unwrap());
}

#[test]
fn objects_are_kept_once_and_read_in_ranges() {
    with_both(|mut store| {
        let parts = [Bytes::from_static(b"head"), Bytes::from(vec![7; 100_000])];
        store.put(&key(1), &parts).unwrap();
        store.put(&key(1), &parts).unwrap();
        assert_eq!(store.put(&key(1), &parts[..1]), Err(NodeError::Exists));
        store.sync().unwrap();
        assert_eq!(store.get(&key(1), 0, u32::MAX).unwrap(), parts.concat());
        assert_eq!(&store.get(&key(1), 2, 4).unwrap()[..], b"ad\x07\x07");
        assert_eq!(store.get(&key(1), 4, u32::MAX).unwrap().len(), 100_000);
        assert_eq!(store.get(&key(1), 100_004, u32::MAX).unwrap().len(), 0);
        assert_eq!(store.get(&key(1), 100_004, 0).unwrap().len(), 0);
        assert_eq!(store.get(&key(1), 100_005, 0), Err(NodeError::Range));
        assert_eq!(store.get(&key(1), 100_005, u32::MAX), Err(NodeError::Range));
        assert_eq!(store.get(&key(1), 100_000, 5), Err(NodeError::Range));
        assert_eq!(store.get(&key(2), 0, 1), Err(NodeError::NotFound));
        store.delete(&key(1)).unwrap();
        store.delete(&key(1)).unwrap();
        store.sync().unwrap();
        assert_eq!(store.get(&key(1), 0, u32::MAX), Err(NodeError::NotFound));
    });
}

#[test]
fn names_come_in_order_page_by_page() {
    with_both(|mut store| {
        let mut expected: Vec<ObjectKey> = (0..120).map(key).collect();
        for key in expected.iter().rev() {
            store.put(key, &[Bytes::from_static(b"x")]).unwrap();
        }
        let other = ObjectKey { volume: [1; 16], ..key(1) };
        store.put(&other, &[Bytes::from_static(b"x")]).unwrap();
        let mut listed = store.list(&VOLUME, None, 50).unwrap();
        store.delete(&key(100)).unwrap();
        store.put(&key(9000), &[Bytes::from_static(b"x")]).unwrap();
        expected.remove(100);
        expected.push(key(9000));
        loop {
            let page = store.list(&VOLUME, listed.last(), 50).unwrap();
            if page.is_empty() {
                break;
            }
            listed.extend(page);
        }
        assert_eq!(listed, expected);
        assert_eq!(store.list(&[2; 16], None, 9).unwrap(), []);
    });
}

#[test]
fn a_directory_is_durable_and_memory_is_not() {
    assert!(!ObjectShards::memory().unwrap().capabilities().durable);
    let folder = tempfile::tempdir().unwrap();
    let mut store = ObjectShards::directory(folder.path()).unwrap();
    assert!(store.capabilities().durable);
    let capacity = store.capacity().unwrap();
    assert!(0 < capacity.free_bytes && capacity.free_bytes <= capacity.total_bytes);
    store.put(&key(1), &[Bytes::from_static(b"kept")]).unwrap();
    drop(store);
    let mut store = ObjectShards::directory(folder.path()).unwrap();
    assert_eq!(&store.get(&key(1), 0, u32::MAX).unwrap()[..], b"kept");
}

#[test]
fn what_no_volume_stores_is_refused() {
    with_both(|mut store| {
        let parts = [Bytes::from(vec![0; OBJECT_BYTES_MAX]), Bytes::from_static(b"x")];
        assert_eq!(store.put(&key(1), &parts), Err(NodeError::Unsupported));
    });
    let folder = tempfile::tempdir().unwrap();
    let mut store = ObjectShards::directory(folder.path()).unwrap();
    store.put(&key(1), &[Bytes::from_static(b"x")]).unwrap();
    let file = folder.path().join(key(1).to_string());
    std::fs::write(file, vec![0; OBJECT_BYTES_MAX + 1]).unwrap();
    assert!(store.get(&key(1), 0, u32::MAX).is_err(), "more than an object can have");
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(ObjectShards::directory(&folder.path().join("absent")).is_err());
}
