//! The chain under the suite: ours, or (if `HYPHA_ANVIL` names its program) anvil. The same tests run on
//! both and pin the same results.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use hypha_chain::client::{Client, ClientError};
use hypha_chain::embedded::{Call, Chain, Parameters};
use hypha_chain::remote::{Endpoints, Remote};
use serde_json::{Value, json};

use crate::grid::{CHAIN_ID, GENESIS};

/// Where blocks come from.
pub(crate) enum Backend {
    Embedded(Arc<Mutex<Chain>>),
    Anvil { child: Child, url: String },
}

impl Backend {
    pub(crate) fn start() -> (Self, Client) {
        match std::env::var_os("HYPHA_ANVIL") {
            Some(program) => anvil(&program),
            None => embedded(),
        }
    }

    /// A block at this time, with all that waits.
    pub(crate) fn mine(&self, now: u64) {
        match self {
            Self::Embedded(chain) => {
                let made = chain.lock().unwrap().tick(now).unwrap();
                assert!(made.is_some(), "each second has a block");
            }
            Self::Anvil { url, .. } => {
                ask(url, "evm_setNextBlockTimestamp", &json!([now]));
                ask(url, "evm_mine", &json!([]));
            }
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Self::Anvil { child, .. } = self {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn embedded() -> (Backend, Client) {
    let parameters = Parameters {
        chain_id: CHAIN_ID,
        timestamp: GENESIS,
        cadence_secs: 1,
        balances: Vec::new(),
    };
    let chain = Arc::new(Mutex::new(Chain::in_memory(parameters, [3; 32]).unwrap()));
    (Backend::Embedded(Arc::clone(&chain)), Client::Embedded(chain))
}

fn anvil(program: &std::ffi::OsStr) -> (Backend, Client) {
    let (chain_id, genesis) = (CHAIN_ID.to_string(), GENESIS.to_string());
    let mut child = Command::new(program)
        .args(["--host", "127.0.0.1", "--port", "0", "--no-mining", "--hardfork", "osaka"])
        .args(["--chain-id", &chain_id, "--timestamp", &genesis, "--gas-limit", "67108864"])
        .args(["--block-base-fee-per-gas", "0", "--gas-price", "0"])
        .args(["--disable-min-priority-fee", "--accounts", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = loop {
        let line = lines.next().expect("anvil says where it listens").unwrap();
        if let Some(address) = line.strip_prefix("Listening on ") {
            break format!("http://{address}/");
        }
    };
    // Its log must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    ask(&url, "anvil_setNextBlockBaseFeePerGas", &json!(["0x0"]));
    let endpoints = Endpoints { urls: vec![url.clone()], agreement: 1, confirmations: 0 };
    let remote = Remote::connect(endpoints, CHAIN_ID).unwrap();
    (Backend::Anvil { child, url }, Client::Remote(Arc::new(remote)))
}

fn ask(url: &str, method: &str, parameters: &Value) -> Value {
    let question = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": parameters });
    let mut answer =
        ureq::post(url).content_type("application/json").send(question.to_string()).unwrap();
    let answer: Value = serde_json::from_slice(&answer.body_mut().read_to_vec().unwrap()).unwrap();
    assert!(answer.get("error").is_none(), "{method}: {answer}");
    answer["result"].clone()
}

/// Why a transaction that failed in the newest block was refused: the same call, on its state.
pub(crate) fn reason(client: &Client, call: &Call) -> String {
    match client.call(call) {
        Err(ClientError::Reverted(output)) => hypha_chain::contracts::explain(&output),
        Err(error) => error.to_string(),
        Ok(_) => "a reason that does not hold any more".to_owned(),
    }
}
