//! A chain with the contracts on it, blocks as long as a test lets them be made, and `hypha` before it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hypha_chain::client::{Client, Receipt};
use hypha_chain::contracts::{Capacity, GridToken};
use hypha_chain::deploy::{BeaconKind, Suite, Terms, creations};
use hypha_chain::embedded::{Chain, Parameters};
use hypha_chain::key::Key;
use hypha_chain::remote::{Endpoints, Remote};
use hypha_chain::rpc::server::Server;
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{Address, B256, Bytes, SolCall, U256};
use hypha_proofs::network::epoch::{EpochData, RewardLeaf, VerdictLeaf};
use hypha_proofs::network::judge::Closed;
use hypha_proofs::network::ledger::Ledger;
use proof_node::kept;
use serde_json::{Value, json};

use crate::anvil::Anvil;

pub(crate) const CHAIN_ID: u64 = 31_007;
pub(crate) const TOKEN: u128 = 1_000_000_000_000_000_000;
pub(crate) const SUPPLY: u128 = 1_000_000 * TOKEN;
pub(crate) const EMISSION: u128 = 10 * TOKEN;
pub(crate) const WINDOW: u64 = 6 * 3600;
/// How long a block takes here; each is a second of the chain's time.
const BLOCK: Duration = Duration::from_millis(100);

/// Where blocks come from.
enum Backend {
    Embedded(Arc<Mutex<Chain>>, #[expect(dead_code, reason = "serves until it is dropped")] Server),
    Anvil(Anvil),
}

/// The chain's time, and whether it goes on by itself.
struct Clock {
    now: u64,
    runs: bool,
}

/// All that a test needs.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) client: Client,
    pub(crate) suite: Suite,
    pub(crate) url: String,
    backend: Arc<Mutex<Backend>>,
    clock: Arc<Mutex<Clock>>,
    ends: Arc<AtomicBool>,
    ticker: Option<JoinHandle<()>>,
}

/// Who deploys, and has all tokens.
pub(crate) fn holder() -> Key {
    Key::from_bytes(&[0x21; 32]).unwrap()
}

pub(crate) fn tokens(text: &str) -> U256 {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{rest:0<18}").parse().unwrap()
}

/// Units in JSON.
pub(crate) fn units(value: &Value) -> U256 {
    value.as_str().unwrap_or_else(|| panic!("{value} is an amount")).parse().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

impl Backend {
    fn mine(&self, now: u64) {
        match self {
            Self::Embedded(chain, _) => {
                chain.lock().unwrap().tick(now).unwrap();
            }
            Self::Anvil(anvil) => anvil.mine(now),
        }
    }
}

impl World {
    /// A chain with the contracts, blocks being made.
    pub(crate) fn new() -> Self {
        let bare = Self::bare();
        let holder = holder().address();
        let terms = Terms {
            governor: holder,
            holder,
            genesis_supply: SUPPLY,
            emission_per_hour: U256::from(EMISSION),
            emission_cap: U256::from(SUPPLY),
            dispute_window_secs: WINDOW,
            beacon: BeaconKind::Prevrandao,
        };
        for init in creations(&bare.suite, &terms) {
            assert!(bare.execute(None, init).contract.is_some());
        }
        bare.import("holder", 0x21);
        bare.make_blocks(true);
        bare
    }

    /// A chain with nothing on it, and no blocks but those that a test makes.
    pub(crate) fn bare() -> Self {
        let genesis = orchestrator::clock::unix_time_ns() / 1_000_000_000;
        let (backend, url) = match std::env::var_os("HYPHA_ANVIL") {
            Some(program) => {
                let anvil = Anvil::start(&program, CHAIN_ID, genesis);
                let url = anvil.url.clone();
                (Backend::Anvil(anvil), url)
            }
            None => embedded(genesis),
        };
        let endpoints = Endpoints { urls: vec![url.clone()], agreement: 1, confirmations: 0 };
        let client = Client::Remote(Arc::new(Remote::connect(endpoints, CHAIN_ID).unwrap()));
        let suite = Suite::at(holder().address(), 0);
        let folder = tempfile::tempdir().unwrap();
        let contracts = json!({"version": 1, "chain_id": CHAIN_ID, "deployer": holder().address()});
        std::fs::write(folder.path().join("contracts.json"), contracts.to_string()).unwrap();
        let backend = Arc::new(Mutex::new(backend));
        let clock = Arc::new(Mutex::new(Clock { now: genesis, runs: false }));
        let ends = Arc::new(AtomicBool::new(false));
        let ticker = {
            let (backend, clock, ends) =
                (Arc::clone(&backend), Arc::clone(&clock), Arc::clone(&ends));
            std::thread::spawn(move || {
                while !ends.load(Ordering::Acquire) {
                    let mut clock = clock.lock().unwrap();
                    if clock.runs {
                        clock.now += 1;
                        backend.lock().unwrap().mine(clock.now);
                    }
                    drop(clock);
                    std::thread::sleep(BLOCK);
                }
            })
        };
        Self { folder, client, suite, url, backend, clock, ends, ticker: Some(ticker) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Lets time pass, and makes a block then.
    pub(crate) fn advance(&self, secs: u64) {
        let mut clock = self.clock.lock().unwrap();
        clock.now += secs;
        self.backend.lock().unwrap().mine(clock.now);
    }

    /// Makes no block any more, or goes on.
    pub(crate) fn make_blocks(&self, are_made: bool) {
        self.clock.lock().unwrap().runs = are_made;
    }

    /// A transaction of the holder, in a block.
    pub(crate) fn execute(&self, to: Option<Address>, data: Bytes) -> Receipt {
        let hash = self.client.transact(&holder(), to, data).unwrap();
        for _ in 0..1000 {
            if let Some(receipt) = self.client.receipt(&hash).unwrap() {
                assert!(receipt.succeeded, "a transaction of the holder");
                return receipt;
            }
            self.advance(1);
        }
        panic!("no block has the transaction");
    }

    pub(crate) fn view<C: SolCall>(&self, to: Address, call: &C) -> C::Return {
        self.client.view(to, call).unwrap()
    }

    pub(crate) fn balance(&self, account: Address) -> U256 {
        self.view(self.suite.token, &GridToken::balanceOfCall(account))
    }

    /// `hypha` with this state.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hypha"));
        command.env("HYPHA_STATE", self.path("state")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Where the chain is, for verbs that need one.
    pub(crate) fn at(&self) -> Vec<OsString> {
        let contracts = self.path("contracts.json");
        let texts = ["--at", &self.url, "--max-skew", "4000000000", "--contracts"];
        texts.into_iter().map(OsString::from).chain([contracts.into_os_string()]).collect()
    }

    pub(crate) fn hypha(&self, arguments: &[&str]) -> Output {
        self.command(arguments).args(self.at()).output().unwrap()
    }

    /// What a verb that ends well says in JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let lines = self.lines(arguments);
        assert_eq!(lines.len(), 1, "{arguments:?}: {lines:?}");
        lines.into_iter().next().unwrap()
    }

    pub(crate) fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.command(arguments).args(self.at()).arg("--json").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Makes a key in the state, and gives its account tokens.
    pub(crate) fn account(&self, name: &str, count: &str) -> Address {
        let output = self.command(&["key", "create", name, "--json"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        let address: Address = made["address"].as_str().unwrap().parse().unwrap();
        let call = GridToken::transferCall { to: address, amount: tokens(count) };
        self.execute(Some(self.suite.token), call.abi_encode().into());
        address
    }

    fn import(&self, name: &str, byte: u8) {
        let digits = self.path("digits");
        std::fs::write(&digits, format!("{byte:02x}").repeat(32)).unwrap();
        let digits = digits.to_str().unwrap();
        let output = self.command(&["key", "import", name, digits]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }

    /// Has an account post the newest epoch that is over: nodes and farms with these leaves. The data is
    /// in the file, and the epoch can be disputed no more.
    pub(crate) fn post_epoch(&self, file: &str, node: u32, earned: u128) -> u64 {
        self.post_verdicts(file, node, earned, |_| ())
    }

    /// The same, with verdicts that are changed before.
    pub(crate) fn post_verdicts(
        &self,
        file: &str,
        node: u32,
        earned: u128,
        change: impl Fn(&mut VerdictLeaf),
    ) -> u64 {
        let capacity = self.suite.capacity;
        let head = self.client.head().unwrap().timestamp;
        let end = |epoch: u32| self.view(capacity, &Capacity::epochEndCall { epoch }).to::<u64>();
        let epoch = (0..10_000).take_while(|epoch| end(*epoch) <= head).last().unwrap();
        let caps = hypha_proofs::network::roster::Caps::default();
        let leaf = |node| {
            let mut leaf =
                VerdictLeaf { node, proven_until: end(epoch), pulses: 1, answered: 1, caps };
            change(&mut leaf);
            leaf
        };
        let data = EpochData {
            epoch,
            verdicts: (1..=node).map(leaf).collect(),
            rewards: vec![RewardLeaf { farm: 1, cumulative: earned }],
            statements: B256::ZERO,
            ledger: Ledger::default(),
        };
        let aggregator = Capacity::aggregatorsCall(holder().address());
        if self.view(capacity, &aggregator).bond == 0 {
            let amount = U256::from(1000 * TOKEN);
            let call = GridToken::approveCall { spender: capacity, amount };
            self.execute(Some(self.suite.token), call.abi_encode().into());
            self.execute(Some(capacity), Capacity::joinCall {}.abi_encode().into());
        }
        let receipt = self.execute(Some(capacity), data.post().unwrap().abi_encode().into());
        assert!(receipt.logs.iter().any(|log| Capacity::EpochPosted::decode_log(log).is_ok()));
        let closed = Closed { before: B256::ZERO, data, numbers: Vec::new() };
        kept::write(&self.path(""), &closed).unwrap();
        std::fs::rename(self.path(&epoch.to_string()), self.path(file)).unwrap();
        self.advance(WINDOW);
        end(epoch)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(ticker) = self.ticker.take() {
            ticker.join().ok();
        }
    }
}

fn embedded(timestamp: u64) -> (Backend, String) {
    let balances = Vec::new();
    let parameters = Parameters { chain_id: CHAIN_ID, timestamp, cadence_secs: 1, balances };
    let chain = Arc::new(Mutex::new(Chain::in_memory(parameters, [3; 32]).unwrap()));
    let server = Server::start(Arc::clone(&chain), "127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/", server.address());
    (Backend::Embedded(chain, server), url)
}
