//! Crashes of the store: directed ones, each at the one moment that a rule of the format exists
//! for, and random ones.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use guest_kernel::programs::kv::store::{Store, StoreError};

use crate::block::Machine;
use crate::disk::{Faults, Platters, SECTOR};
use crate::random::Random;
use crate::store::{LIMITS, STORE_ID, get, key, open, put};

/// The first byte of the log in region 0.
const LOG: usize = 8192;
/// A value whose record fills one sector, if its key has one byte.
const SECTOR_VALUE: [u8; SECTOR - 41] = [7; SECTOR - 41];

/// Puts several keys as one batch; the disk does with it what it's set to.
fn put_together(machine: &mut Machine, store: &Store, keys: &[&str]) -> bool {
    let tasks: Vec<_> = keys
        .iter()
        .map(|name| {
            let (store, name) = (store.clone(), key(name));
            machine
                .executor
                .spawn(async move { store.put(name, Rc::from(&SECTOR_VALUE[..])).await })
        })
        .collect();
    let results: Vec<_> = tasks.iter().map(|task| machine.finish(task)).collect();
    results.iter().all(Result::is_ok)
}

/// The same, but power fails before the batch is acknowledged: of its sectors only `kept` survives.
fn put_and_lose(machine: &mut Machine, store: &Store, keys: &[&str], kept: usize) -> Platters {
    for name in keys {
        let (store, name) = (store.clone(), key(name));
        drop(
            machine
                .executor
                .spawn(async move { store.put(name, Rc::from(&SECTOR_VALUE[..])).await }),
        );
    }
    machine.runtime.turn();
    assert_eq!(machine.disk.serve(1, &mut machine.random), 1, "the write, not its flush");
    let mut platters = machine.disk.platters.clone();
    platters.crash_keeping(|offset| offset == kept);
    platters
}

#[test]
fn a_torn_batch_is_not_completed_by_what_an_earlier_one_left() {
    let (mut machine, store) = open(Platters::blank(1 << 20), 1);
    put_together(&mut machine, &store, &["a"]);
    // The second record of the batch reaches the disk, the first doesn't.
    let platters = put_and_lose(&mut machine, &store, &["x", "y"], LOG + 2 * SECTOR);
    let (mut machine, store) = open(platters, 2);
    assert_eq!(get(&mut machine, &store, "y"), Ok(None));
    // Now the first reaches it: together they would look like one whole batch.
    let platters = put_and_lose(&mut machine, &store, &["v", "w"], LOG + SECTOR);
    let (mut machine, store) = open(platters, 3);
    assert_eq!(store.list(b"", None, 9), [key("a")]);
    assert!(put(&mut machine, &store, "b", b"goes on").is_ok());
}

#[test]
fn a_torn_batch_is_not_completed_by_what_a_failed_write_left() {
    let (mut machine, store) = open(Platters::blank(1 << 20), 1);
    put_together(&mut machine, &store, &["a"]);
    machine.disk.faults = Faults { error_one_in: 1, errors_lie: true };
    assert!(!put_together(&mut machine, &store, &["x", "y"]));
    machine.disk.faults = Faults::default();
    machine.disk.platters.flush();
    // The next batch begins with a new epoch: two durable superblocks, then the batch.
    for name in ["v", "w"] {
        let (store, name) = (store.clone(), key(name));
        drop(
            machine
                .executor
                .spawn(async move { store.put(name, Rc::from(&SECTOR_VALUE[..])).await }),
        );
    }
    for _ in 0..2 {
        machine.runtime.turn();
        assert_eq!(machine.disk.serve(2, &mut machine.random), 2, "a superblock and its flush");
    }
    machine.runtime.turn();
    assert_eq!(machine.disk.serve(1, &mut machine.random), 1);
    let mut platters = machine.disk.platters.clone();
    platters.crash_keeping(|offset| offset == LOG + SECTOR);
    let (_, store) = open(platters, 2);
    assert_eq!(store.list(b"", None, 9), [key("a")]);
}

/// Fills a small store until it compacts, and stops after every single request in turn; what isn't
/// flushed is lost, once all of it, once all but the superblocks, once the superblocks only.
#[test]
fn a_compaction_can_be_interrupted_at_every_request() {
    let keeps: [fn(usize) -> bool; 4] =
        [|_| false, |_| true, |offset| offset < LOG, |offset| offset >= LOG];
    let mut compactions = 0;
    for stop in 0..400 {
        let (mut machine, store) = open(Platters::blank(144 << 10), 1);
        let acknowledged = Rc::new(RefCell::new(BTreeMap::new()));
        let (writer, ledger) = (store.clone(), Rc::clone(&acknowledged));
        drop(machine.executor.spawn(async move {
            for i in 0u32.. {
                let name = (i % 7) as u8;
                let value = i.to_le_bytes().repeat(500);
                ledger.borrow_mut().entry(name).or_insert((None, None)).1 = Some(value.clone());
                writer.put(Rc::from(&[name][..]), Rc::from(&value[..])).await.unwrap();
                ledger.borrow_mut().insert(name, (Some(value), None));
            }
        }));
        for _ in 0..stop {
            machine.runtime.turn();
            machine.disk.serve(1, &mut machine.random);
        }
        let regions = machine.disk.platters.bytes()[56];
        compactions += usize::from(regions == 1);
        for keeps in keeps {
            let mut platters = machine.disk.platters.clone();
            platters.crash_keeping(keeps);
            let (mut machine, store) = open(platters, 2);
            for (name, (acknowledged, in_doubt)) in acknowledged.borrow().iter() {
                let store = store.clone();
                let name = *name;
                let found = machine.run(async move { store.get(&[name]).await }).unwrap();
                let found = found.map(|value| value.to_vec());
                assert!(
                    found == *acknowledged || (found.is_some() && found == *in_doubt),
                    "stopped after {stop} requests: key {name}"
                );
            }
        }
    }
    assert!(compactions > 10, "{compactions}");
}

/// What a key may hold: the last acknowledged value, or that of a change whose fate is unknown.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeMap<u8, Option<Vec<u8>>>,
    in_doubt: BTreeMap<u8, Vec<Option<Vec<u8>>>>,
}

impl Ledger {
    fn begin(&mut self, key: u8, value: Option<Vec<u8>>) {
        self.in_doubt.entry(key).or_default().push(value);
    }

    fn acknowledge(&mut self, key: u8, value: Option<Vec<u8>>) {
        self.in_doubt.remove(&key);
        self.acknowledged.insert(key, value);
    }

    /// The change certainly did not happen.
    fn refuse(&mut self, key: u8) {
        if let Some(values) = self.in_doubt.get_mut(&key) {
            values.pop();
        }
    }

    fn check(&mut self, key: u8, found: Option<Vec<u8>>, context: &str) {
        let acknowledged = self.acknowledged.get(&key).cloned().flatten();
        let doubts = self.in_doubt.remove(&key).unwrap_or_default();
        assert!(
            found == acknowledged || doubts.contains(&found),
            "{context}: key {key} holds {:?}, acknowledged was {:?}",
            found.map(|value| value.len()),
            acknowledged.map(|value| value.len()),
        );
        self.acknowledged.insert(key, found);
    }
}

const CLIENTS: u8 = 4;
const KEYS: u8 = 24;

/// One client changes and reads its own keys for ever.
async fn client(store: Store, ledger: Rc<RefCell<Ledger>>, number: u8, seed: u64) {
    let mut random = Random(seed);
    loop {
        let key = (random.below(usize::from(KEYS / CLIENTS)) as u8) * CLIENTS + number;
        let name: Rc<[u8]> = Rc::from(&[key; 3][..]);
        let value = match random.below(8) {
            0 => None,
            1 => {
                // Only settled keys can be compared in mid-run.
                let settled = !ledger.borrow().in_doubt.contains_key(&key);
                let found = store.get(&name).await.unwrap().map(|value| value.to_vec());
                if settled {
                    ledger.borrow_mut().check(key, found, "a read");
                }
                continue;
            }
            2 => Some(random.below(12_000)),
            3 => Some(random.below(900)),
            // Records of one sector, so that what a crash leaves lines up with what comes next.
            _ => Some(SECTOR - 43),
        };
        let value = value.map(|len| random.bytes(len));
        ledger.borrow_mut().begin(key, value.clone());
        let result = match &value {
            Some(value) => store.put(name, Rc::from(&value[..])).await,
            None => store.delete(name).await,
        };
        match result {
            Ok(_) => ledger.borrow_mut().acknowledge(key, value),
            Err(StoreError::Full) => ledger.borrow_mut().refuse(key),
            Err(StoreError::Disk(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Formats, serves, crashes and recovers, several times over, at random moments.
fn crash_and_recover(seed: u64, faults: Faults) {
    let mut random = Random(seed);
    let block_bytes = [512, 4096][random.below(2)];
    let mut platters = Platters::blank((136 + 8 * random.below(8)) << 10);
    let ledger = Rc::new(RefCell::new(Ledger::default()));
    for life in 0..12 {
        let context = format!("seed {seed}, life {life}");
        let mut machine = Machine::new(platters, 64, block_bytes, random.next());
        let (block, check) = (machine.block.clone(), Rc::clone(&ledger));
        let (clients, seeds) = (machine.executor.clone(), random.next());
        let note = context.clone();
        drop(machine.executor.spawn(async move {
            let store = match Store::open(block, LIMITS, STORE_ID).await {
                Ok(store) => store,
                Err(error) => panic!("{note}: {error}"),
            };
            for key in 0..KEYS {
                let found = store.get(&[key; 3]).await.unwrap();
                check.borrow_mut().check(key, found.map(|value| value.to_vec()), &note);
            }
            drop(clients.spawn(store.clone().run()));
            for number in 0..CLIENTS {
                let seed = seeds ^ u64::from(number);
                drop(clients.spawn(client(store.clone(), Rc::clone(&check), number, seed)));
            }
        }));
        let steps = random.below(200);
        for step in 0..steps {
            machine.runtime.turn();
            // The open itself is not to fail: a node whose disk fails then is restarted.
            machine.disk.faults = if step > 60 { faults } else { Faults::default() };
            let count = random.below(6);
            machine.disk.serve(count, &mut random);
        }
        platters = machine.disk.platters.clone();
        platters.crash(&mut random);
    }
}

/// Fixed seeds; `HYPHA_TEST_SEEDS=from..to` tries others.
fn seeds() -> std::ops::Range<u64> {
    let range = std::env::var("HYPHA_TEST_SEEDS").ok();
    let range = range.as_deref().and_then(|range| {
        let (from, to) = range.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    range.unwrap_or(0..20)
}

#[test]
fn no_acknowledged_change_is_lost_in_a_crash() {
    for seed in seeds() {
        crash_and_recover(seed, Faults::default());
    }
}

#[test]
fn no_acknowledged_change_is_lost_when_writes_fail_as_well() {
    for seed in seeds() {
        crash_and_recover(seed, Faults { error_one_in: 20, errors_lie: seed % 2 == 0 });
    }
}
