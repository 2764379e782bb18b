//! An aggregator that cheats: it posts an epoch that pays a farm more than it has earned, and serves its
//! data in the name of a node whose key it has.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hypha_chain::contracts::{Capacity, GridToken, Registry};
use hypha_chain::key::Key;
use hypha_chain::{B256, SolCall, U256, keccak256};
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::message::{CHUNK_BYTES, Message};
use proof_node::peers::link::Identity;
use proof_node::peers::{Contact, Incoming, Peers};

use crate::village::{TOKEN, Village};

/// Bytes by their keccak-256.
type Served = Arc<Mutex<BTreeMap<B256, Vec<u8>>>>;

/// A node that serves false data, and an account with a bond.
pub(crate) struct Cheater {
    account: Key,
    served: Served,
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Cheater {
    /// Takes the place of a node that was stopped.
    pub(crate) fn instead_of(village: &Village, node: u32) -> Self {
        let key = |path: &str| {
            // A key file that is open: docs/keys.md.
            let bytes = std::fs::read(village.path(path)).unwrap();
            Key::from_bytes(bytes[30..62].try_into().unwrap()).unwrap()
        };
        village.account("cheater", "cheater", 2000);
        let account = key("cheater/keys/cheater");
        let (token, spender) = (village.suite.token, village.suite.capacity);
        let amount = U256::from(1000) * U256::from(TOKEN);
        village.execute_by(&account, token, &GridToken::approveCall { spender, amount });
        village.execute_by(&account, spender, &Capacity::joinCall {});
        let served = Served::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (inbox, messages) = sync_channel::<Incoming>(64);
        let identity = Identity {
            chain_id: village.client.chain_id().unwrap(),
            registry: village.suite.registry,
            node,
        };
        let deliver = Box::new(move |message| inbox.send(message).is_ok());
        let own = Arc::new(key(&format!("{node}/keys/node")));
        let peers = Peers::start(village.port(node), identity, own, deliver).unwrap();
        let contacts = (1..node).map(|node| {
            let call = Registry::nodeAtCall { node };
            let signer = village.client.view(village.suite.registry, &call).unwrap().signer;
            (node, Contact { signer, address: Some(village.port(node)) })
        });
        peers.know(contacts.collect());
        let (blobs, stopped) = (Arc::clone(&served), Arc::clone(&stop));
        let serving = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let Ok(it) = messages.recv_timeout(Duration::from_millis(200)) else { continue };
                let Ok(Message::WantPiece { hash, offset }) = Message::decode(&it.bytes) else {
                    continue;
                };
                if let Some(bytes) = blobs.lock().unwrap().get(&hash) {
                    let rest = &bytes[offset as usize..];
                    let (total, len) = (bytes.len() as u32, rest.len().min(CHUNK_BYTES));
                    let bytes = rest[..len].to_vec();
                    let piece = Message::Piece { hash, offset, total, bytes };
                    peers.send(it.from, piece.encode());
                }
            }
        });
        Self { account, served, stop, serving: Some(serving) }
    }

    /// Posts the first epoch that it is in time for: what the one before says, and more for a farm.
    /// Returns the epoch.
    pub(crate) fn post(&self, village: &Village, farm: usize) -> u32 {
        let capacity = village.suite.capacity;
        loop {
            let head = village.client.head().unwrap().timestamp;
            let start = village.client.view(capacity, &Capacity::startCall {}).unwrap();
            let epoch = ((head - start) / 3600) as u32;
            while village.client.head().unwrap().timestamp < start + 3600 * (u64::from(epoch) + 1) {
                thread::sleep(Duration::from_millis(20));
            }
            let (_, mut data) = village.epochs().pop_last().unwrap();
            data.epoch = epoch;
            data.statements = keccak256([]);
            data.rewards[farm - 1].cumulative += 1_000_000 * TOKEN as u128;
            self.serve(&data);
            let call = data.post().unwrap().abi_encode().into();
            // Somebody else may have been faster.
            if village.client.transact(&self.account, Some(capacity), call).is_ok() {
                return epoch;
            }
        }
    }

    /// What is left of its bond.
    pub(crate) fn bond(&self, village: &Village) -> u128 {
        let call = Capacity::aggregatorsCall(self.account.address());
        village.client.view(village.suite.capacity, &call).unwrap().bond
    }

    fn serve(&self, data: &EpochData) {
        self.served.lock().unwrap().insert(data.hash(), data.encode());
    }
}

impl Drop for Cheater {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(serving) = self.serving.take() {
            // One that panicked has printed why.
            serving.join().ok();
        }
    }
}
