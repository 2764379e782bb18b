//! Anvil in a process of its own, for the tests of the contracts and of the command.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// A chain of anvil's, where nothing costs gas and blocks are made when they are asked for. It ends when
/// this is dropped.
pub(crate) struct Anvil {
    child: Child,
    /// Where it is asked.
    pub(crate) url: String,
}

impl Anvil {
    /// Starts the program; `timestamp` is its first block's, in seconds.
    pub(crate) fn start(program: &OsStr, chain_id: u64, timestamp: u64) -> Self {
        let (chain_id, timestamp) = (chain_id.to_string(), timestamp.to_string());
        let mut child = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", "0", "--no-mining", "--hardfork", "osaka"])
            .args(["--chain-id", &chain_id, "--timestamp", &timestamp, "--gas-limit", "67108864"])
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
        let anvil = Self { child, url };
        anvil.ask("anvil_setNextBlockBaseFeePerGas", &json!(["0x0"]));
        anvil
    }

    /// A block at this time, with all that waits.
    pub(crate) fn mine(&self, now: u64) {
        self.ask("evm_setNextBlockTimestamp", &json!([now]));
        self.ask("evm_mine", &json!([]));
    }

    fn ask(&self, method: &str, parameters: &Value) {
        let question = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": parameters });
        let request = ureq::post(&self.url).content_type("application/json");
        let mut answer = request.send(question.to_string()).unwrap();
        let answer = answer.body_mut().read_to_vec().unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert!(answer.get("error").is_none(), "{method}: {answer}");
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
