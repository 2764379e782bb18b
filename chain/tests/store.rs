//! The embedded chain and its file: blocks, waiting transactions, refusals, and what a kill leaves.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use hypha_chain::embedded::{
    Allocation, Call, Chain, ChainError, Filter, Parameters, PoolError, StoreError, SubmitError,
};
use hypha_chain::key::Key;
use hypha_chain::transaction::Transaction;
use hypha_chain::{Address, B256, Bytes, TxKind, U256, keccak256};

const CHAIN_ID: u64 = 5;
const GENESIS: u64 = 1000;
const SEED: [u8; 32] = [9; 32];
/// Set in the process that is killed: where its chain is.
const CHILD: &str = "HYPHA_CHAIN_CHILD";

fn key(number: u8) -> Key {
    let mut bytes = [0x33; 32];
    bytes[31] = number;
    Key::from_bytes(&bytes).unwrap()
}

fn parameters() -> Parameters {
    let balance = U256::from(1_000_000_000_u64);
    Parameters {
        chain_id: CHAIN_ID,
        timestamp: GENESIS,
        cadence_secs: 2,
        balances: vec![Allocation { account: key(1).address(), balance }],
    }
}

/// Wei from key 1 to somebody.
fn payment(nonce: u64, to: Address, value: u64) -> Transaction {
    Transaction {
        chain_id: CHAIN_ID,
        nonce,
        max_priority_fee: 0,
        max_fee: 0,
        gas_limit: 21_000,
        to: TxKind::Call(to),
        value: U256::from(value),
        data: Bytes::new(),
        access_list: Default::default(),
    }
}

fn pay(chain: &mut Chain, nonce: u64, to: Address, value: u64) -> Result<B256, SubmitError> {
    chain.submit(payment(nonce, to, value).sign(&key(1)).raw())
}

/// The contract that keeps its call data's first word at slot 0, and logs it.
fn keeper() -> Bytes {
    // PUSH0 CALLDATALOAD DUP1 PUSH0 SSTORE PUSH0 MSTORE PUSH1 32 PUSH0 LOG0 STOP
    let code = alloy_primitives::hex!("5f35805f555f5260205fa000");
    let len = code.len() as u8;
    // PUSH1 len DUP1 PUSH1 9 PUSH0 CODECOPY PUSH0 RETURN
    let init = [0x60, len, 0x80, 0x60, 0x09, 0x5f, 0x39, 0x5f, 0xf3];
    [init.as_slice(), &code].concat().into()
}

#[test]
fn a_slot_has_one_block_also_without_transactions() {
    let mut chain = Chain::in_memory(parameters(), SEED).unwrap();
    assert_eq!(chain.tick(GENESIS).unwrap(), None);
    assert_eq!(chain.tick(GENESIS + 1).unwrap(), None);
    let first = chain.tick(GENESIS + 3).unwrap().unwrap();
    assert_eq!((first.number, first.timestamp), (1, GENESIS + 2));
    assert_eq!(chain.tick(GENESIS + 3).unwrap(), None);
    // Slots in which nobody ticked have no block; a clock that goes back makes none.
    let second = chain.tick(GENESIS + 100).unwrap().unwrap();
    assert_eq!((second.number, second.timestamp), (2, GENESIS + 100));
    assert_eq!(second.parent, first.hash());
    assert_eq!(chain.tick(GENESIS + 50).unwrap(), None);
    assert_eq!(chain.tick(0).unwrap(), None);
    assert_ne!(first.prevrandao, second.prevrandao);
    assert_eq!(keccak256(second.prevrandao), first.prevrandao);
    assert_eq!(keccak256(first.prevrandao), chain.genesis().anchor);
}

#[test]
fn transactions_that_came_in_any_order_are_executed_in_the_order_of_nonces() {
    let mut chain = Chain::in_memory(parameters(), SEED).unwrap();
    let to = key(2).address();
    for nonce in [3, 1, 0, 2, 5] {
        pay(&mut chain, nonce, to, 10).unwrap();
    }
    assert_eq!(chain.next_nonce(key(1).address()).unwrap(), 4);
    chain.tick(GENESIS + 2).unwrap();
    assert_eq!(chain.account(to).unwrap(), (0, U256::from(40)));
    assert_eq!(chain.waiting(), 1);
    pay(&mut chain, 4, to, 10).unwrap();
    chain.tick(GENESIS + 4).unwrap();
    assert_eq!(chain.account(to).unwrap().1, U256::from(60));
    assert_eq!(chain.waiting(), 0);
}

#[test]
fn what_cannot_be_executed_is_refused_for_its_reason() {
    let mut chain = Chain::in_memory(parameters(), SEED).unwrap();
    let to = key(2).address();
    let hash = pay(&mut chain, 0, to, 10).unwrap();
    let known = pay(&mut chain, 0, to, 10).unwrap_err();
    assert!(matches!(known, SubmitError::Pool(PoolError::Known)));
    let taken = pay(&mut chain, 0, to, 11).unwrap_err();
    assert!(matches!(taken, SubmitError::Pool(PoolError::NonceTaken { nonce: 0, .. })));
    chain.tick(GENESIS + 2).unwrap();
    assert!(chain.receipt(&hash).unwrap().unwrap().stored.succeeded);
    let used = pay(&mut chain, 0, to, 10).unwrap_err();
    assert_eq!(used.to_string(), "nonce 0 is used already; the next one is 1");
    let poor = pay(&mut chain, 1, to, 2_000_000_000).unwrap_err();
    assert!(matches!(poor, SubmitError::Funds { .. }), "{poor}");
    let mut other = payment(1, to, 1);
    other.chain_id = 6;
    let other = chain.submit(other.sign(&key(1)).raw()).unwrap_err();
    assert_eq!(other.to_string(), "the transaction is for chain 6; this is chain 5");
    let mut greedy = payment(1, to, 1);
    greedy.gas_limit = 1 << 25;
    let greedy = chain.submit(greedy.sign(&key(1)).raw()).unwrap_err();
    assert!(matches!(greedy, SubmitError::Invalid(_)), "{greedy}");
    for nonce in 1..65 {
        pay(&mut chain, nonce, to, 1).unwrap();
    }
    let full = pay(&mut chain, 65, to, 1).unwrap_err();
    assert!(matches!(full, SubmitError::Pool(PoolError::Full)), "{full}");
}

#[test]
fn a_block_takes_no_more_gas_than_it_may() {
    let mut chain = Chain::in_memory(parameters(), SEED).unwrap();
    // JUMPDEST PUSH0 JUMP, made by initialisation that copies its last three bytes.
    let init = alloy_primitives::hex!("6003600a5f3960035ff300").to_vec();
    let mut create = payment(0, Address::ZERO, 0);
    create.data = [&init[..10], &[0x5b, 0x5f, 0x56]].concat().into();
    (create.to, create.gas_limit) = (TxKind::Create, 200_000);
    let created = chain.submit(create.sign(&key(1)).raw()).unwrap();
    chain.tick(GENESIS + 2).unwrap();
    let endless = chain.receipt(&created).unwrap().unwrap().stored.contract;
    assert_eq!(chain.code(endless).unwrap().len(), 3);
    for nonce in 1..7 {
        let mut transaction = payment(nonce, endless, 0);
        transaction.gas_limit = 1 << 24;
        chain.submit(transaction.sign(&key(1)).raw()).unwrap();
    }
    let header = chain.tick(GENESIS + 4).unwrap().unwrap();
    assert_eq!((header.gas_used, chain.waiting()), (1 << 26, 2));
    let header = chain.tick(GENESIS + 6).unwrap().unwrap();
    assert_eq!((header.gas_used, chain.waiting()), (1 << 25, 0));
}

#[test]
fn a_reopened_chain_is_the_same_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chain");
    let mut chain = Chain::create(&path, parameters(), SEED).unwrap();
    let mut create = payment(0, Address::ZERO, 0);
    (create.to, create.data, create.gas_limit) = (TxKind::Create, keeper(), 200_000);
    let created = chain.submit(create.sign(&key(1)).raw()).unwrap();
    chain.tick(GENESIS + 2).unwrap();
    let contract = chain.receipt(&created).unwrap().unwrap().stored.contract;
    let mut call = payment(1, contract, 0);
    (call.data, call.gas_limit) = (B256::repeat_byte(0x42).to_vec().into(), 100_000);
    let called = chain.submit(call.sign(&key(1)).raw()).unwrap();
    let head = chain.tick(GENESIS + 4).unwrap().unwrap();
    let receipt = chain.receipt(&called).unwrap().unwrap();
    drop(chain);

    let mut chain = Chain::open(&path, SEED).unwrap();
    assert_eq!(chain.head(), &head);
    assert_eq!(chain.receipt(&called).unwrap().unwrap(), receipt);
    let value = U256::from_be_bytes([0x42; 32]);
    assert_eq!(chain.slot_of(contract, U256::ZERO).unwrap(), value);
    assert_eq!(chain.code(contract).unwrap().len(), 12);
    let filter = Filter { to: 99, addresses: vec![contract], ..Filter::default() };
    let logs = chain.logs(&filter).unwrap();
    assert_eq!((logs.len(), logs[0].transaction, logs[0].block), (1, called, 2));
    assert_eq!(chain.logs(&Filter { to: 99, ..Filter::default() }).unwrap(), logs);
    assert_eq!(chain.account(key(1).address()).unwrap().0, 2);
    let next = chain.tick(GENESIS + 6).unwrap().unwrap();
    assert_eq!((next.number, next.parent), (3, head.hash()));
    let (signed, place) = chain.transaction(&called).unwrap().unwrap();
    assert_eq!((signed.hash(), place.unwrap().block), (called, 2));
}

#[test]
fn the_same_inputs_make_the_same_chain() {
    let make = || {
        let mut chain = Chain::in_memory(parameters(), SEED).unwrap();
        for nonce in 0..20 {
            pay(&mut chain, nonce, Address::repeat_byte(nonce as u8), nonce).unwrap();
            chain.tick(GENESIS + 2 * (nonce + 1)).unwrap();
        }
        chain.head_hash()
    };
    assert_eq!(make(), make());
}

#[test]
fn another_seed_a_second_genesis_and_a_foreign_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chain");
    drop(Chain::create(&path, parameters(), SEED).unwrap());
    assert!(matches!(Chain::open(&path, [8; 32]), Err(ChainError::Seed)));
    let again = Chain::create(&path, parameters(), SEED);
    assert!(matches!(again, Err(ChainError::Store(StoreError::NotEmpty))));
    let other = folder.path().join("other");
    std::fs::write(&other, [7; 5000]).unwrap();
    let foreign = Chain::open(&other, SEED);
    assert!(matches!(foreign, Err(ChainError::Store(StoreError::Database(_)))));
    let empty = Chain::open(&folder.path().join("none"), SEED);
    assert!(matches!(empty, Err(ChainError::Store(StoreError::Empty))));
    // Two processes cannot have it at once.
    let _first = Chain::open(&path, SEED).unwrap();
    assert!(matches!(Chain::open(&path, SEED), Err(ChainError::Store(StoreError::InUse))));
}

#[test]
fn a_call_changes_nothing() {
    let mut chain = Chain::in_memory(parameters(), SEED).unwrap();
    let call = Call { data: keeper(), ..Call::default() };
    let outcome = chain.call(&call).unwrap().unwrap();
    assert!(outcome.succeeded && outcome.contract.is_some());
    let contract = outcome.contract.unwrap();
    assert!(chain.code(contract).unwrap().is_empty());
    let before = chain.head().state;
    let after = chain.tick(GENESIS + 2).unwrap().unwrap();
    assert_eq!(after.state, keccak256(before));
    let poor = Call { value: U256::from(1), ..Call::default() };
    assert!(chain.call(&poor).unwrap().is_err());
}

/// A byte of the file changed, anywhere: never other data, at worst an error.
#[test]
fn a_rotten_byte_is_never_taken_for_data() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chain");
    let mut chain = Chain::create(&path, parameters(), SEED).unwrap();
    for nonce in 0..30 {
        pay(&mut chain, nonce, key(2).address(), 1).unwrap();
        chain.tick(GENESIS + 2 * (nonce + 1)).unwrap();
    }
    let right = (chain.head_hash(), chain.account(key(2).address()).unwrap());
    drop(chain);
    let bytes = std::fs::read(&path).unwrap();
    let seed = 77;
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut refused, mut same) = (0, 0);
    for _ in 0..300 {
        let at = random.usize(0..bytes.len());
        let mut rotten = bytes.clone();
        rotten[at] ^= 1 << random.u8(0..8);
        let copy = folder.path().join("rotten");
        std::fs::write(&copy, rotten).unwrap();
        // redb asserts on some broken pages: in a process of its own that would be an abort.
        let read = std::panic::catch_unwind(|| {
            let mut chain = Chain::open(&copy, SEED).ok()?;
            let account = chain.account(key(2).address()).ok()?;
            Some((chain.head_hash(), account))
        });
        match read.ok().flatten() {
            None => refused += 1,
            Some(read) if read == right => same += 1,
            Some(read) => panic!("seed {seed}, byte {at}: {read:?} instead of {right:?}"),
        }
    }
    assert!(refused > 0 && same > 0, "seed {seed}: {refused} refused, {same} the same");
}

/// Makes blocks until it is killed; says after each what is in it.
#[test]
fn child_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mut chain = Chain::open(Path::new(&path), SEED).unwrap();
    let mut out = std::io::stdout();
    loop {
        let (nonce, _) = chain.account(key(1).address()).unwrap();
        pay(&mut chain, nonce, key(2).address(), 1).unwrap();
        let now = chain.head().timestamp + 2;
        let header = chain.tick(now).unwrap().unwrap();
        writeln!(out, "block {} {}", header.number, header.hash()).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn after_a_kill_at_any_instant_every_block_that_was_told_of_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chain");
    drop(Chain::create(&path, parameters(), SEED).unwrap());
    let seed = std::env::var("HYPHA_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut before = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture", "--test-threads", "1"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = random.usize(1..20);
        let mut told = lines
            .by_ref()
            .map_while(Result::ok)
            .filter_map(|line| line.split_once("block ").map(|(_, rest)| rest.to_owned()))
            .take(wanted)
            .last();
        std::thread::sleep(std::time::Duration::from_micros(random.u64(0..8000)));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died, and was not read yet.
        let rest = lines.map_while(Result::ok);
        told = rest
            .filter_map(|line| line.split_once("block ").map(|(_, rest)| rest.to_owned()))
            .last()
            .or(told);
        let told = told.unwrap_or_else(|| panic!("seed {seed}, round {round}: no block at all"));
        let (number, hash) = told.split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();

        let mut chain = Chain::open(&path, SEED).unwrap();
        let there = chain.head().number;
        assert!(there >= number, "seed {seed}, round {round}: {number} told, {there} there");
        assert_eq!(chain.header(number).unwrap().unwrap().hash().to_string(), hash);
        chain.verify(0, there).unwrap();
        // One payment in each block: the state is that of the newest one.
        let received = chain.account(key(2).address()).unwrap().1;
        assert_eq!(received, U256::from(there), "seed {seed}, round {round}");
        assert_eq!(chain.account(key(1).address()).unwrap().0, there);
        assert!(there > before, "seed {seed}, round {round}");
        before = there;
    }
}
