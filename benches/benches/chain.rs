//! The embedded chain, measured: a view, a transaction in a block, a durable block, taking a
//! transaction in, opening. The contract is GridToken; the file lies in the target folder.
#![expect(clippy::unwrap_used, reason = "a benchmark that fails, fails")]
#![expect(clippy::disallowed_methods, reason = "benchmarks read the clock")]

use std::path::PathBuf;
use std::time::Instant;

use benches::{Distribution, milliseconds, table};
use hypha_chain::contracts::{Capacity, GridToken};
use hypha_chain::deploy::{BeaconKind, Suite, Terms, creations};
use hypha_chain::embedded::{Call, Chain, Parameters};
use hypha_chain::key::Key;
use hypha_chain::transaction::Transaction;
use hypha_chain::{Address, Bytes, SolCall, TxKind, U256};

const CHAIN_ID: u64 = 7;
const GENESIS: u64 = 1_800_000_000;
const SENDERS: u8 = 16;
const OF_EACH: u64 = 60;

fn main() {
    let mut rows = Vec::new();
    let mut memory = Bed::new(Chain::in_memory(parameters(), [1; 32]).unwrap());
    memory.views(&mut rows);
    memory.full_blocks(&mut rows);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chain");
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("chain.redb");
    let mut disk = Bed::new(Chain::create(&path, parameters(), [1; 32]).unwrap());
    disk.durable_blocks(&mut rows);
    drop(disk);
    let open = milliseconds(20, || drop(Chain::open(&path, [1; 32]).unwrap()));
    rows.push(vec!["open the chain, ms".to_owned(), open.cell()]);
    table(&["operation", "median (p10 to p90)"], &rows);
}

fn parameters() -> Parameters {
    Parameters { chain_id: CHAIN_ID, timestamp: GENESIS, cadence_secs: 1, balances: Vec::new() }
}

fn key(number: u8) -> Key {
    let mut bytes = [0x22; 32];
    if let Some(last) = bytes.last_mut() {
        *last = number;
    }
    Key::from_bytes(&bytes).unwrap()
}

/// A chain with the suite on it.
struct Bed {
    chain: Chain,
    suite: Suite,
    now: u64,
}

impl Bed {
    fn new(chain: Chain) -> Self {
        let holder = key(0).address();
        let suite = Suite::at(holder, 0);
        let mut bed = Self { chain, suite, now: GENESIS };
        let terms = Terms {
            governor: holder,
            holder,
            genesis_supply: 1 << 100,
            emission_per_hour: U256::from(1),
            emission_cap: U256::from(1),
            dispute_window_secs: 3600,
            beacon: BeaconKind::Prevrandao,
        };
        for (nonce, init) in (0..).zip(creations(&suite, &terms)) {
            bed.submit(&key(0), nonce, TxKind::Create, init);
            bed.tick();
        }
        for (nonce, sender) in (12..).zip(1..=SENDERS) {
            let to = key(sender).address();
            bed.transfer(0, nonce, to);
        }
        bed.tick();
        bed
    }

    fn submit(&mut self, key: &Key, nonce: u64, to: TxKind, data: Bytes) {
        let raw = signed(key, nonce, to, data);
        self.chain.submit(&raw).unwrap();
    }

    fn transfer(&mut self, sender: u8, nonce: u64, to: Address) {
        let call = GridToken::transferCall { to, amount: U256::from(1_000_000) };
        let token = TxKind::Call(self.suite.token);
        self.submit(&key(sender), nonce, token, call.abi_encode().into());
    }

    fn tick(&mut self) {
        self.now += 1;
        self.chain.tick(self.now).unwrap();
    }

    fn views(&mut self, rows: &mut Vec<Vec<String>>) {
        let balance = GridToken::balanceOfCall(key(1).address()).abi_encode();
        let start = Capacity::epochEndCall { epoch: 5 }.abi_encode();
        let cases =
            [("balanceOf", self.suite.token, balance), ("epochEnd", self.suite.capacity, start)];
        for (name, to, data) in cases {
            let call = Call { to: Some(to), data: data.into(), ..Call::default() };
            let samples = (0..200).map(|_| {
                let start = Instant::now();
                for _ in 0..100 {
                    assert!(self.chain.call(&call).unwrap().unwrap().succeeded);
                }
                start.elapsed().as_secs_f64() * 1e6 / 100.0
            });
            let cell = Distribution::new(samples.collect()).cell();
            rows.push(vec![format!("view {name}, us"), cell]);
        }
    }

    fn full_blocks(&mut self, rows: &mut Vec<Vec<String>>) {
        let (mut taking, mut making) = (Vec::new(), Vec::new());
        let count = f64::from(SENDERS) * OF_EACH as f64;
        for round in 0..20 {
            let token = TxKind::Call(self.suite.token);
            let mut raws = Vec::new();
            for sender in 1..=SENDERS {
                for at in 0..OF_EACH {
                    let to = key(sender % SENDERS + 1).address();
                    let call = GridToken::transferCall { to, amount: U256::from(1) };
                    let data = call.abi_encode().into();
                    raws.push(signed(&key(sender), round * OF_EACH + at, token, data));
                }
            }
            let start = Instant::now();
            for raw in &raws {
                self.chain.submit(raw).unwrap();
            }
            taking.push(start.elapsed().as_secs_f64() * 1e6 / count);
            let start = Instant::now();
            self.tick();
            making.push(start.elapsed().as_secs_f64() * 1e6 / count);
            assert_eq!(self.chain.waiting(), 0);
        }
        let name = "take a transaction in (decode, recover the sender), us".to_owned();
        rows.push(vec![name, Distribution::new(taking).cell()]);
        let name = "a transfer in a block of 960, all of it but the disk, us".to_owned();
        rows.push(vec![name, Distribution::new(making).cell()]);
    }

    fn durable_blocks(&mut self, rows: &mut Vec<Vec<String>>) {
        let empty = milliseconds(200, || self.tick());
        rows.push(vec!["durable block, empty, ms".to_owned(), empty.cell()]);
        let mut nonce = 0;
        let one = milliseconds(200, || {
            self.transfer(1, nonce, key(2).address());
            nonce += 1;
            self.tick();
        });
        rows.push(vec!["durable block, one transfer, ms".to_owned(), one.cell()]);
    }
}

fn signed(key: &Key, nonce: u64, to: TxKind, data: Bytes) -> Bytes {
    let transaction = Transaction {
        chain_id: CHAIN_ID,
        nonce,
        max_priority_fee: 0,
        max_fee: 0,
        gas_limit: if to.is_create() { 12_000_000 } else { 60_000 },
        to,
        value: U256::ZERO,
        data,
        access_list: Default::default(),
    };
    transaction.sign(key).raw().clone()
}
