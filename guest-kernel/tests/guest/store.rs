use std::rc::Rc;

use guest_kernel::programs::kv::format::{Batch, Slot, Superblock};
use guest_kernel::programs::kv::recover::ReplayError;
use guest_kernel::programs::kv::store::{Change, Limits, OpenError, Store, StoreError};

use crate::block::Machine;
use crate::disk::Platters;
use crate::random::Random;

pub(crate) const LIMITS: Limits = Limits { index_bytes_max: 1 << 20, cache_bytes_max: 8 << 10 };
pub(crate) const STORE_ID: u64 = 0x5eed_0000_1234_5678;

pub(crate) fn boot(
    platters: Platters,
    block_bytes: u32,
    seed: u64,
) -> (Machine, Result<Store, OpenError>) {
    let mut machine = Machine::new(platters, 64, block_bytes, seed);
    let block = machine.block.clone();
    let store = machine.run(async move { Store::open(block, LIMITS, STORE_ID).await });
    if let Ok(store) = &store {
        drop(machine.executor.spawn(store.clone().run()));
    }
    (machine, store)
}

pub(crate) fn open(platters: Platters, seed: u64) -> (Machine, Store) {
    let (machine, store) = boot(platters, 512, seed);
    (machine, store.unwrap_or_else(|error| panic!("seed {seed}: {error}")))
}

pub(crate) fn key(text: &str) -> Rc<[u8]> {
    Rc::from(text.as_bytes())
}

pub(crate) fn put(
    machine: &mut Machine,
    store: &Store,
    name: &str,
    value: &[u8],
) -> Result<Change, StoreError> {
    let (store, name, value) = (store.clone(), key(name), Rc::from(value));
    machine.run(async move { store.put(name, value).await })
}

pub(crate) fn delete(
    machine: &mut Machine,
    store: &Store,
    name: &str,
) -> Result<Change, StoreError> {
    let (store, name) = (store.clone(), key(name));
    machine.run(async move { store.delete(name).await })
}

pub(crate) fn get(
    machine: &mut Machine,
    store: &Store,
    name: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    let (store, name) = (store.clone(), key(name));
    machine
        .run(async move { store.get(&name).await.map(|value| value.map(|value| value.to_vec())) })
}

#[test]
fn values_survive_a_restart() {
    let (mut machine, store) = open(Platters::blank(1 << 20), 1);
    assert_eq!(put(&mut machine, &store, "a", b"one"), Ok(Change::Created));
    assert_eq!(put(&mut machine, &store, "a", b"two"), Ok(Change::Replaced));
    assert_eq!(put(&mut machine, &store, "b", b""), Ok(Change::Created));
    assert_eq!(put(&mut machine, &store, "c", b"gone"), Ok(Change::Created));
    assert_eq!(delete(&mut machine, &store, "c"), Ok(Change::Deleted));
    assert_eq!(delete(&mut machine, &store, "c"), Ok(Change::Absent));
    let mut platters = machine.disk.platters.clone();
    platters.crash(&mut Random(1));
    let (mut machine, store) = open(platters, 2);
    assert_eq!(get(&mut machine, &store, "a"), Ok(Some(b"two".to_vec())));
    assert_eq!(get(&mut machine, &store, "b"), Ok(Some(Vec::new())));
    assert_eq!(get(&mut machine, &store, "c"), Ok(None));
    assert_eq!(store.list(b"", None, 10), [key("a"), key("b")]);
}

#[test]
fn a_put_is_one_exit_and_concurrent_puts_share_it() {
    let (mut machine, store) = open(Platters::blank(1 << 20), 1);
    let before = machine.waits;
    put(&mut machine, &store, "a", b"value").unwrap();
    assert_eq!(machine.waits - before, 1);
    let before = machine.waits;
    let tasks: Vec<_> = (0..32)
        .map(|i| {
            let (store, name) = (store.clone(), key(&format!("k{i}")));
            machine.executor.spawn(async move { store.put(name, Rc::from(&b"v"[..])).await })
        })
        .collect();
    for task in &tasks {
        assert_eq!(machine.finish(task), Ok(Change::Created));
    }
    assert_eq!(machine.waits - before, 1);
}

#[test]
fn a_full_store_refuses_and_loses_nothing_and_can_still_delete() {
    let (mut machine, store) = open(Platters::blank(160 << 10), 1);
    let value = vec![7; 4000];
    let mut stored = 0;
    while put(&mut machine, &store, &format!("k{stored}"), &value) == Ok(Change::Created) {
        stored += 1;
    }
    assert!(stored >= 14, "{stored} of 4000 bytes in a region of 72 KiB");
    assert_eq!(put(&mut machine, &store, "one more", &value), Err(StoreError::Full));
    assert_eq!(put(&mut machine, &store, "k0", &value), Ok(Change::Replaced), "no growth");
    assert_eq!(put(&mut machine, &store, "k0", &[8; 9000]), Err(StoreError::Full), "growth");
    for i in 0..stored {
        assert_eq!(get(&mut machine, &store, &format!("k{i}")), Ok(Some(value.clone())));
    }
    for _ in 0..100 {
        // Tombstones alone must not fill it either.
        assert_eq!(delete(&mut machine, &store, "k1"), Ok(Change::Deleted));
        assert_eq!(put(&mut machine, &store, "k1", &value), Ok(Change::Created));
    }
    let (mut machine, store) = open(machine.disk.platters.clone(), 2);
    assert_eq!(store.usage().keys, stored);
    for i in 0..stored {
        assert_eq!(get(&mut machine, &store, &format!("k{i}")), Ok(Some(value.clone())));
    }
}

#[test]
fn a_disk_that_holds_something_else_is_left_alone() {
    let mut bytes = vec![0; 1 << 20];
    bytes[1024..2048].fill(0x55);
    bytes[4096..8192].fill(0x66);
    let (machine, store) = boot(Platters::holding(bytes.clone()), 512, 1);
    assert_eq!(store.err(), Some(OpenError::NotAStore));
    assert_eq!(machine.disk.platters.bytes(), bytes);
    let (_, store) = boot(Platters::blank(100 << 10), 512, 1);
    assert_eq!(store.err(), Some(OpenError::TooSmall { capacity_bytes: 100 << 10 }));
}

#[test]
fn one_damaged_superblock_is_survived_and_two_are_reported() {
    let (mut machine, store) = open(Platters::blank(1 << 20), 1);
    put(&mut machine, &store, "a", b"one").unwrap();
    let bytes = machine.disk.platters.bytes();
    for slot in [0, 4096] {
        let mut damaged = bytes.clone();
        damaged[slot + 20] ^= 1;
        let (mut machine, store) = open(Platters::holding(damaged), 2);
        assert_eq!(get(&mut machine, &store, "a"), Ok(Some(b"one".to_vec())));
    }
    let mut damaged = bytes;
    damaged[20] ^= 1;
    damaged[4096 + 20] ^= 1;
    let (_, store) = boot(Platters::holding(damaged), 512, 1);
    assert_eq!(store.err(), Some(OpenError::NoSuperblock));
}

#[test]
fn a_damaged_record_in_the_middle_of_the_log_is_not_taken_for_its_end() {
    let (mut machine, store) = open(Platters::blank(1 << 20), 1);
    for name in ["a", "b", "c"] {
        put(&mut machine, &store, name, &[1; 100]).unwrap();
    }
    let mut bytes = machine.disk.platters.bytes();
    let second = 8192 + 512;
    bytes[second + 60] ^= 1;
    assert_eq!(get(&mut machine, &store, "b"), Ok(Some(vec![1; 100])), "from the cache");
    let (_, store) = boot(Platters::holding(bytes.clone()), 512, 2);
    assert_eq!(store.err(), Some(OpenError::Replay(ReplayError::Damaged { offset: 512 })));
    // The last record is another matter: it may never have been acknowledged.
    bytes[second + 60] ^= 1;
    bytes[second + 512 + 60] ^= 1;
    let (_, store) = open(Platters::holding(bytes), 3);
    assert_eq!(store.list(b"", None, 9), [key("a"), key("b")]);
}

#[test]
fn a_value_that_rots_on_the_disk_is_reported_not_returned() {
    let (mut machine, store) = open(Platters::blank(1 << 20), 1);
    put(&mut machine, &store, "big", &[3; 5000]).unwrap();
    let mut bytes = machine.disk.platters.bytes();
    bytes[8192 + 3000] ^= 4;
    machine.disk.platters = Platters::holding(bytes);
    assert_eq!(get(&mut machine, &store, "big"), Err(StoreError::Corrupt));
}

#[test]
fn a_value_that_looks_like_the_log_is_not_taken_for_it() {
    let (mut machine, store) = open(Platters::blank(1 << 20), 1);
    // Everything but the store's id is right: the attacker counts along.
    let Slot::Valid(superblock) = Superblock::parse(&machine.disk.platters.bytes()[..512]) else {
        panic!("a superblock")
    };
    let forged = Superblock { store_id: STORE_ID ^ 1, ..superblock };
    let mut value = vec![0; 512 - 41];
    for sequence in 2..40 {
        let mut batch = Batch::new(&forged, sequence);
        batch.push(b"forged", Some(b"!"));
        value.extend(batch.finish(512));
    }
    put(&mut machine, &store, "a", &value).unwrap();
    let mut bytes = machine.disk.platters.bytes();
    // The acknowledged record stays; a crash tears the next one away and shows the old bytes.
    bytes.copy_within(
        8192 + 512..8192 + 512 + 38 * 512,
        8192 + value.len().next_multiple_of(512) + 512,
    );
    let (_, store) = open(Platters::holding(bytes), 2);
    assert_eq!(store.list(b"", None, 9), [key("a")]);
}
