//! A chain that is served, and nodes before it, each with a state, a farm and a process of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use hypha_chain::client::{Client, Receipt};
use hypha_chain::contracts::GridToken;
use hypha_chain::deploy::Suite;
use hypha_chain::key::Key;
use hypha_chain::remote::{Endpoints, Remote};
use hypha_chain::{Address, SolCall, U256};
use hypha_proofs::network::epoch::EpochData;
use proof_node::kept;
use serde_json::{Value, json};

use crate::nbd::Nbd;

const CHAIN_ID: u64 = 7_499;
pub(crate) const TOKEN: u64 = 1_000_000_000_000_000_000;
/// How much faster than the world's the chain's time goes: an epoch takes half a minute.
const SPEED: u64 = 120;
/// A block is a tenth of a second.
const CADENCE: &str = "12";
/// How long anything may take on a machine that does much else. Nothing asserts a time.
const PATIENCE: Duration = Duration::from_secs(400);

/// A process that tells events.
pub(crate) struct Process {
    child: Child,
    events: Arc<(Mutex<Vec<Value>>, Condvar)>,
}

/// The chain and its nodes.
pub(crate) struct Village {
    folder: tempfile::TempDir,
    chain: Option<Process>,
    pub(crate) client: Client,
    pub(crate) suite: Suite,
    account: Key,
    url: String,
    ports: Vec<SocketAddr>,
    /// Shard servers' folders, by the node beside them.
    shards: BTreeMap<usize, Vec<PathBuf>>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let events = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                told.0.lock().unwrap().push(serde_json::from_str(&line).unwrap());
                told.1.notify_all();
            }
            told.0.lock().unwrap().push(json!({"event": "ended"}));
            told.1.notify_all();
        });
        Self { child, events }
    }

    /// How many events there were.
    pub(crate) fn count(&self) -> usize {
        self.events.0.lock().unwrap().len()
    }

    /// All events of a kind.
    pub(crate) fn all(&self, kind: &str) -> Vec<Value> {
        let events = self.events.0.lock().unwrap();
        events.iter().filter(|event| event["event"] == kind).cloned().collect()
    }

    /// The first event after the first `from` that is wanted.
    pub(crate) fn wait(&self, from: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let events = self.events.0.lock().unwrap();
        let found = |events: &Vec<Value>| {
            let mut after = events.iter().skip(from);
            after.find(|it| wanted(it) || it["event"] == "ended").cloned()
        };
        let (events, _) = self
            .events
            .1
            .wait_timeout_while(events, PATIENCE, |events| found(events).is_none())
            .unwrap();
        let found = found(&events).filter(|event| wanted(event));
        found.unwrap_or_else(|| panic!("{what} did not come: {events:#?}"))
    }

    /// Ends it in good order.
    pub(crate) fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    /// Ends it as a power loss would.
    pub(crate) fn kill(mut self) -> Vec<Value> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.events.0.lock().unwrap().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Village {
    /// A chain, and so many nodes, each of a farm of its own.
    pub(crate) fn new(nodes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let chain = folder.path().join("chain");
        let init = ["chain", "init", "--cadence", CADENCE, "--chain-id", &CHAIN_ID.to_string()];
        let output = command(&chain, &init).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let (chain, url) = serve(&chain, SPEED);
        let endpoints = Endpoints { urls: vec![url.clone()], agreement: 1, confirmations: 0 };
        let client = Client::Remote(Arc::new(Remote::connect(endpoints, CHAIN_ID).unwrap()));
        let secret = std::fs::read(folder.path().join("chain/chain/account/key")).unwrap();
        let account = Key::from_bytes(&secret.try_into().unwrap()).unwrap();
        let suite = Suite::at(account.address(), 0);
        let network = json!({"version": 1, "speed": SPEED, "pulse_mean_secs": 600,
            "pulse_quiet_secs": 600, "measured_per_mille": 300,
            "rules": {"segments": 50, "walk_steps": 1000, "cpu_draws": 4, "walk_draws": 2,
                "disk_draws": 16, "commit_ms": 4000, "open_ms": 4000, "filler_bytes": 262_144,
                "block_bytes": 1_048_576}});
        std::fs::write(folder.path().join("network.json"), network.to_string()).unwrap();
        // Ports that were free a moment ago.
        let listeners: Vec<TcpListener> =
            (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
        let chain = Some(chain);
        let shards = BTreeMap::new();
        let village = Self { folder, chain, client, suite, account, url, ports, shards };
        for node in 1..=nodes {
            let name = node.to_string();
            village.account(&name, "farmer", 2000);
            village.json(&name, &["farm", "create", "--key", "farmer"]);
            let register = ["node", "register", "--cores", "1", "--memory", "2MiB"];
            let rest = ["--ssd", "4MiB", "--mbps", "100", "--key", "farmer"];
            let registered = village.json(&name, &[register.as_slice(), &rest].concat());
            assert_eq!(registered["node"].as_u64(), Some(node as u64));
        }
        village
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A key in a state, with tokens.
    pub(crate) fn account(&self, state: &str, name: &str, tokens: u64) -> Address {
        let create = ["key", "create", name, "--json"];
        let output = command(&self.path(state), &create).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        let to: Address = made["address"].as_str().unwrap().parse().unwrap();
        let amount = U256::from(tokens) * U256::from(TOKEN);
        self.execute(self.suite.token, &GridToken::transferCall { to, amount });
        to
    }

    /// A transaction of the account that has all tokens.
    pub(crate) fn execute(&self, to: Address, call: &impl SolCall) -> Receipt {
        self.execute_by(&self.account, to, call)
    }

    /// A transaction of any account.
    pub(crate) fn execute_by(&self, key: &Key, to: Address, call: &impl SolCall) -> Receipt {
        let data = call.abi_encode().into();
        let hash = self.client.transact(key, Some(to), data).unwrap();
        for _ in 0..600 {
            if let Some(receipt) = self.client.receipt(&hash).unwrap() {
                assert!(receipt.succeeded);
                return receipt;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("no block has the transaction");
    }

    /// A verb that ends well, and its one line of JSON.
    pub(crate) fn json(&self, state: &str, arguments: &[&str]) -> Value {
        let output = self.at(command(&self.path(state), arguments)).arg("--json").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a verb that ends well says to people.
    pub(crate) fn text(&self, state: &str, arguments: &[&str]) -> String {
        let output = self.at(command(&self.path(state), arguments)).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// A verb without a chain that ends well.
    pub(crate) fn hypha(&self, state: &str, arguments: &[&str]) {
        let output = command(&self.path(state), arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    }

    /// Where a node listens.
    pub(crate) fn port(&self, node: u32) -> SocketAddr {
        self.ports[node as usize - 1]
    }

    /// Starts a node; the first posts epochs too, and the second appeals.
    pub(crate) fn prove(&self, node: usize) -> Process {
        let listen = self.ports[node - 1].to_string();
        let network = self.path("network.json");
        let prove = ["node", "prove", "--json", "--listen", &listen];
        let mut command = self.at(command(&self.path(&node.to_string()), &prove));
        command.arg("--network").arg(network).args(["--keep-free", "1MiB"]);
        for folder in self.shards.get(&node).into_iter().flatten() {
            command.arg("--shards").arg(format!("{}=1", folder.display()));
        }
        for (number, port) in (1..).zip(&self.ports) {
            command.args(["--peer", &format!("{number}={port}")]);
        }
        if node == 1 {
            command.arg("--aggregate").arg(self.path("chain/chain/account/key"));
        }
        if node == 2 {
            command.args(["--appeal", "farmer"]);
        }
        Process::start(command)
    }

    /// A shard server beside a node, and on its three stores a tenant's volume with these bytes, closed.
    pub(crate) fn keep_shards(&mut self, node: usize, data: &[u8]) -> Process {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let names = ["a", "b", "c"];
        let mut serve = command(&self.path("server"), &["storage", "serve", "--json"]);
        serve.args(["--listen", &format!("unix:{}", at("server.sock"))]);
        serve.args(names.iter().flat_map(|it| ["--store".to_owned(), format!("{it}={}", at(it))]));
        let server = Process::start(serve);
        let serves = |name| move |it: &Value| it["store"] == name && it["event"] == "serving";
        let nodes = names.map(|name| {
            let told = server.wait(0, "a store", serves(name));
            format!("{},domain={name}", told["node"].as_str().unwrap())
        });
        let create = ["volume", "create", "db", "--size", "64MiB", "--code", "2+1", "--nodes"];
        self.hypha("tenant", &[create.as_slice(), &nodes.each_ref().map(String::as_str)].concat());
        let nbd = format!("unix:{}", at("db.sock"));
        let volume = ["volume", "serve", "db", "--json", "--nbd", &nbd];
        let volume = Process::start(command(&self.path("tenant"), &volume));
        volume.wait(0, "the volume", |_| true);
        let mut client = Nbd::connect(&self.path("db.sock"));
        assert_eq!(client.size_bytes, 64 << 20);
        client.keep(0, data);
        assert_eq!(client.read(0, 4096), data[..4096]);
        volume.stop();
        self.shards.insert(node, names.map(|name| self.path(name)).to_vec());
        server
    }

    fn at(&self, mut command: Command) -> Command {
        let contracts = self.path("chain/chain/chain.json");
        command.args(["--at", &self.url, "--max-skew", "4000000000", "--contracts"]).arg(contracts);
        command
    }

    /// The data of all epochs that the first node has posted, or found true.
    pub(crate) fn epochs(&self) -> BTreeMap<u32, EpochData> {
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            // One that is being written has another name in a moment.
            let closed = kept::decode(&std::fs::read(entry.unwrap().path()).ok()?)?;
            Some((closed.data.epoch, closed.data))
        };
        std::fs::read_dir(self.path("1/node/epochs")).unwrap().filter_map(read).collect()
    }

    /// Ends the chain, and serves it again at the same address when `meanwhile` is done.
    pub(crate) fn interrupt_chain(&mut self, meanwhile: impl Fn()) {
        self.chain.take().unwrap().stop();
        meanwhile();
        let at = self.url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        self.chain = Some(serve_at(&self.path("chain"), &at, SPEED).0);
    }

    /// Lets the chain go on faster until it has come so far.
    pub(crate) fn hasten(&mut self, until_secs: u64) {
        self.chain.take().unwrap().stop();
        let (chain, url) = serve(&self.path("chain"), 3600);
        self.chain = Some(chain);
        let endpoints = Endpoints { urls: vec![url.clone()], agreement: 1, confirmations: 0 };
        self.client = Client::Remote(Arc::new(Remote::connect(endpoints, CHAIN_ID).unwrap()));
        self.url = url;
        for _ in 0..1000 {
            if self.client.head().unwrap().timestamp >= until_secs {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the chain did not come so far");
    }
}

fn serve(state: &std::path::Path, speed: u64) -> (Process, String) {
    serve_at(state, "127.0.0.1:0", speed)
}

fn serve_at(state: &std::path::Path, at: &str, speed: u64) -> (Process, String) {
    let speed = speed.to_string();
    let serve = ["chain", "serve", "--json", "--listen", at, "--speed", &speed];
    let chain = Process::start(command(state, &serve));
    let serving = chain.wait(0, "the chain", |event| event["event"] == "serving");
    (chain, format!("http://{}/", serving["at"].as_str().unwrap()))
}

fn command(state: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hypha"));
    command.env("HYPHA_STATE", state).args(arguments).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
