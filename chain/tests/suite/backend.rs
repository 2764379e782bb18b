//! The chain under the suite: ours, or (if `HYPHA_ANVIL` names its program) anvil. The same tests run on
//! both and pin the same results.

use std::sync::{Arc, Mutex};

use hypha_chain::client::{Client, ClientError};
use hypha_chain::embedded::{Call, Chain, Parameters};
use hypha_chain::remote::{Endpoints, Remote};

use crate::anvil::Anvil;
use crate::grid::{CHAIN_ID, GENESIS};

/// Where blocks come from.
pub(crate) enum Backend {
    Embedded(Arc<Mutex<Chain>>),
    Anvil(Anvil),
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
            Self::Anvil(anvil) => anvil.mine(now),
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
    let anvil = Anvil::start(program, CHAIN_ID, GENESIS);
    let endpoints = Endpoints { urls: vec![anvil.url.clone()], agreement: 1, confirmations: 0 };
    let remote = Remote::connect(endpoints, CHAIN_ID).unwrap();
    (Backend::Anvil(anvil), Client::Remote(Arc::new(remote)))
}

/// Why a transaction that failed in the newest block was refused: the same call, on its state.
pub(crate) fn reason(client: &Client, call: &Call) -> String {
    match client.call(call) {
        Err(ClientError::Reverted(output)) => hypha_chain::contracts::explain(&output),
        Err(error) => error.to_string(),
        Ok(_) => "a reason that does not hold any more".to_owned(),
    }
}
