//! Against real servers.

use bytes::Bytes;
use storage_node::redis::RedisStore;
use storage_vdev::node::{NodeError, ObjectKey};
use storage_vdev::service::ShardStore;

use crate::process::{Kind, Server, start};

const VOLUME: [u8; 16] = [0xa5; 16];

fn key(sequence: u64) -> ObjectKey {
    ObjectKey { volume: VOLUME, epoch: 3, sequence, shard: 1 }
}

fn parts(byte: u8, len: usize) -> Vec<Bytes> {
    vec![Bytes::from_static(b"head"), Bytes::from(vec![byte; len])]
}

fn with_server(kind: Kind, test: impl FnOnce(&mut Server, RedisStore)) {
    let folder = tempfile::tempdir().unwrap();
    if let Some(mut server) = start(kind, folder.path()) {
        let store = server.connect();
        test(&mut server, store);
    }
}

fn objects_are_kept_once_and_read_in_ranges(mut store: RedisStore) {
    store.put(&key(1), &parts(7, 100_000)).unwrap();
    store.put(&key(1), &parts(7, 100_000)).unwrap();
    assert_eq!(store.put(&key(1), &parts(8, 100_000)), Err(NodeError::Exists));
    assert_eq!(store.put(&key(1), &parts(7, 99_999)), Err(NodeError::Exists));
    store.sync().unwrap();
    assert_eq!(&store.get(&key(1), 0, u32::MAX).unwrap()[..6], b"head\x07\x07");
    assert_eq!(&store.get(&key(1), 2, 4).unwrap()[..], b"ad\x07\x07");
    assert_eq!(store.get(&key(1), 4, u32::MAX).unwrap().len(), 100_000);
    assert_eq!(store.get(&key(1), 100_004, u32::MAX).unwrap().len(), 0);
    assert_eq!(store.get(&key(1), 100_004, 0).unwrap().len(), 0);
    assert_eq!(store.get(&key(1), 100_005, 0), Err(NodeError::Range));
    assert_eq!(store.get(&key(1), 100_000, 5), Err(NodeError::Range));
    assert_eq!(store.get(&key(2), 0, 1), Err(NodeError::NotFound));
    assert_eq!(store.get(&key(2), 0, u32::MAX), Err(NodeError::NotFound));
    store.delete(&key(1)).unwrap();
    store.delete(&key(1)).unwrap();
    assert_eq!(store.get(&key(1), 0, 1), Err(NodeError::NotFound));
    // Every byte there is.
    let all: Vec<u8> = (0..=255).cycle().take(4000).collect();
    store.put(&key(3), &[Bytes::from(all.clone())]).unwrap();
    assert_eq!(store.get(&key(3), 0, u32::MAX).unwrap(), all);
}

fn names_come_in_order_page_by_page(mut store: RedisStore) {
    let mut expected: Vec<ObjectKey> = (0..2500).map(key).collect();
    for key in expected.iter().rev() {
        store.put(key, &[Bytes::from_static(b"x")]).unwrap();
    }
    let other = ObjectKey { volume: [1; 16], ..key(1) };
    store.put(&other, &[Bytes::from_static(b"x")]).unwrap();
    let mut listed = vec![];
    loop {
        let page = store.list(&VOLUME, listed.last(), 1000).unwrap();
        if page.is_empty() {
            break;
        }
        listed.extend(page);
        // What changes between the pages is seen by those that follow.
        if listed.len() == 1000 {
            store.delete(&key(2000)).unwrap();
            store.put(&key(9000), &[Bytes::from_static(b"x")]).unwrap();
            expected.remove(2000);
            expected.push(key(9000));
        }
    }
    assert_eq!(listed, expected);
    assert_eq!(store.list(&[1; 16], None, 9).unwrap(), [other]);
    assert_eq!(store.list(&[2; 16], None, 9).unwrap(), []);
}

fn acknowledged_objects_outlive_kill_9(server: &mut Server, mut store: RedisStore) {
    for round in 0..5 {
        for object in 0..20 {
            store.put(&key(round * 20 + object), &parts(object as u8, 50_000)).unwrap();
        }
        store.sync().unwrap();
        server.kill();
        assert_eq!(store.put(&key(9999), &parts(1, 10)), Err(NodeError::Unavailable));
        server.run();
        drop(server.connect());
        for object in 0..(round + 1) * 20 {
            let stored = store.get(&key(object), 4, u32::MAX).unwrap();
            assert_eq!(stored, vec![(object % 20) as u8; 50_000]);
        }
    }
}

#[test]
fn redis_keeps_objects_once_and_reads_ranges() {
    with_server(Kind::Redis, |_, store| objects_are_kept_once_and_read_in_ranges(store));
}

#[test]
fn redis_lists_names_in_order() {
    with_server(Kind::Redis, |_, store| names_come_in_order_page_by_page(store));
}

#[test]
fn a_durable_redis_keeps_what_it_acknowledged_over_kill_9() {
    with_server(Kind::Redis, |server, store| {
        assert!(store.capabilities().durable && store.warning().is_none());
        acknowledged_objects_outlive_kill_9(server, store);
    });
}

#[test]
fn a_redis_that_may_forget_says_so_and_does_not_claim_a_sync() {
    with_server(Kind::Forgetful, |server, mut store| {
        assert!(!store.capabilities().durable);
        let warning = store.warning().unwrap();
        assert!(warning.contains("appendonly is no, not yes"), "{warning}");
        store.put(&key(1), &parts(1, 10)).unwrap();
        store.sync().unwrap();
        store.put(&key(2), &parts(1, 10)).unwrap();
        server.kill();
        server.run();
        drop(server.connect());
        // The first call finds the old connection broken.
        assert_eq!(store.sync(), Err(NodeError::Unavailable));
        assert_eq!(store.sync(), Err(NodeError::Failed));
        assert_eq!(store.get(&key(2), 0, 1), Err(NodeError::NotFound));
        assert_eq!(store.sync(), Ok(()));
    });
}

/// Once its names are known, objects are set without waiting for the server.
#[test]
fn what_a_redis_was_not_waited_for_is_told_by_the_sync() {
    with_server(Kind::Redis, |server, mut store| {
        assert_eq!(store.list(&VOLUME, None, 10).unwrap(), []);
        for object in 0..600 {
            store.put(&key(object), &parts(object as u8, 20_000)).unwrap();
        }
        assert_eq!(store.get(&key(599), 4, 4).unwrap(), [599_u64 as u8; 4][..]);
        store.sync().unwrap();
        assert_eq!(store.put(&key(5), &parts(6, 20_000)), Err(NodeError::Exists));

        // Somebody else puts an object under a name that ours is taken not to have.
        server.connect().put(&key(700), &parts(1, 10)).unwrap();
        store.put(&key(700), &parts(2, 10)).unwrap();
        assert_eq!(store.sync(), Err(NodeError::Failed));
        assert_eq!(store.sync(), Ok(()), "it was told");
        assert_eq!(store.put(&key(700), &parts(2, 10)), Err(NodeError::Exists));
        store.put(&key(700), &parts(1, 10)).unwrap();
        store.sync().unwrap();

        assert_eq!(store.list(&VOLUME, None, 1000).unwrap().len(), 601);
        store.put(&key(800), &parts(3, 10)).unwrap();
        server.kill();
        // It may have answered before it was killed.
        let told = store.sync();
        server.run();
        drop(server.connect());
        match told {
            Ok(()) => assert!(store.get(&key(800), 0, u32::MAX).is_ok()),
            Err(error) => assert_eq!(error, NodeError::Unavailable),
        }
        store.put(&key(800), &parts(3, 10)).unwrap();
        assert_eq!(store.sync(), Ok(()));
        assert_eq!(store.get(&key(800), 4, u32::MAX).unwrap(), [3; 10][..]);
    });
}

#[test]
fn redis_says_how_full_it_is() {
    with_server(Kind::Redis, |_, mut store| {
        let capacity = store.capacity().unwrap();
        assert!(0 < capacity.free_bytes && capacity.free_bytes < capacity.total_bytes);
    });
}

#[test]
fn a_zero_db_keeps_objects_once_and_reads_ranges() {
    with_server(Kind::ZeroDb, |_, store| objects_are_kept_once_and_read_in_ranges(store));
}

#[test]
fn a_zero_db_lists_names_in_order() {
    with_server(Kind::ZeroDb, |_, store| names_come_in_order_page_by_page(store));
}

#[test]
fn a_zero_db_keeps_what_it_acknowledged_over_kill_9() {
    with_server(Kind::ZeroDb, acknowledged_objects_outlive_kill_9);
}
