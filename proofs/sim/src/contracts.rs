//! The real contracts in an EVM: what posts, challenges, answers, disputes and claims cost, and what
//! becomes of those who cheat there.

use std::sync::{Arc, Mutex, PoisonError};

use alloy_sol_types::SolEvent;
use hypha_chain::client::{Client, ClientError, Receipt};
use hypha_chain::contracts::{Capacity, GridToken, Registry};
use hypha_chain::deploy::{BeaconKind, Suite, Terms, creations};
use hypha_chain::embedded::{Chain, ChainError, Parameters};
use hypha_chain::key::Key;
use hypha_chain::message::{NodeKey, Reader, sign};
use hypha_chain::transaction::Transaction;
use hypha_chain::{Address, B256, Bytes, SolCall, TxKind, U256};
use hypha_proofs::store::{GROUP_BYTES, ShownLeaf, Store};

use crate::machine::{CHAIN_ID, key_of, suite};
use crate::network::{EMISSION, TOKEN};

/// When the chain begins.
const GENESIS: u64 = 1_800_000_000;
/// How long an epoch can be disputed, as `hypha chain init` has it.
pub const WINDOW_SECS: u64 = 6 * 3600;
/// Gas that no transaction needs more of.
const GAS_LIMIT: u64 = 16_000_000;

/// Why the chain did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GridError {
    /// The chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A transaction.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A contract refused.
    #[error("{0} was refused")]
    Refused(&'static str),
    /// A contract did not say what it always says.
    #[error("there is no {0} in the receipt")]
    Event(&'static str),
    /// Something that the simulation itself has made is not there.
    #[error("the simulation has no {0}")]
    Missing(&'static str),
}

/// A chain with the suite on it, and people who use it.
pub struct Grid {
    chain: Arc<Mutex<Chain>>,
    client: Client,
    /// Where the contracts are.
    pub suite: Suite,
    now_secs: u64,
}

/// Who deploys, has all tokens and owns all farms.
#[must_use]
pub fn holder() -> Key {
    key_of(0)
}

impl Grid {
    /// The suite with the default terms.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn new() -> Result<Self, GridError> {
        let parameters = Parameters {
            chain_id: CHAIN_ID,
            timestamp: GENESIS,
            cadence_secs: 1,
            balances: Vec::new(),
        };
        let chain = Arc::new(Mutex::new(Chain::in_memory(parameters, [3; 32])?));
        let client = Client::Embedded(Arc::clone(&chain));
        let mut grid = Self { chain, client, suite: suite(), now_secs: GENESIS };
        let terms = Terms {
            governor: holder().address(),
            holder: holder().address(),
            genesis_supply: 1_000_000_000 * TOKEN,
            emission_per_hour: U256::from(EMISSION),
            emission_cap: U256::from(2_000_000_000 * TOKEN),
            dispute_window_secs: WINDOW_SECS,
            beacon: BeaconKind::Prevrandao,
        };
        for init in creations(&grid.suite, &terms) {
            grid.execute(&holder(), None, init, "a contract")?;
        }
        let suite = grid.suite;
        for spender in [suite.registry, suite.capacity, suite.disputes] {
            let call = GridToken::approveCall { spender, amount: U256::MAX };
            grid.send(&holder(), suite.token, &call)?;
        }
        Ok(grid)
    }

    /// Time goes on, and there is a block then.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn advance(&mut self, secs: u64) -> Result<(), GridError> {
        self.now_secs += secs.max(1);
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).tick(self.now_secs)?;
        Ok(())
    }

    /// Goes to the end of an epoch, if it is not over.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn end_of(&mut self, epoch: u32) -> Result<u64, GridError> {
        let start = self.client.view(self.suite.capacity, &Capacity::startCall {})?;
        let ends = start + (u64::from(epoch) + 1) * 3600;
        if self.now_secs < ends {
            self.advance(ends - self.now_secs)?;
        }
        Ok(ends)
    }

    /// Calls a function in a transaction.
    ///
    /// # Errors
    /// [`GridError::Refused`], and others.
    pub fn send<C: SolCall>(
        &mut self,
        key: &Key,
        to: Address,
        call: &C,
    ) -> Result<Receipt, GridError> {
        self.execute(key, Some(to), call.abi_encode().into(), C::SIGNATURE)
    }

    fn execute(
        &mut self,
        key: &Key,
        to: Option<Address>,
        data: Bytes,
        what: &'static str,
    ) -> Result<Receipt, GridError> {
        let transaction = Transaction {
            chain_id: CHAIN_ID,
            nonce: self.client.nonce(key.address())?,
            max_priority_fee: 0,
            max_fee: 0,
            gas_limit: GAS_LIMIT,
            to: to.map_or(TxKind::Create, TxKind::Call),
            value: U256::ZERO,
            data,
            access_list: Default::default(),
        };
        let hash = self.client.send(transaction.sign(key).raw())?;
        self.advance(1)?;
        let receipt = self.client.receipt(&hash)?;
        receipt.filter(|it| it.succeeded).ok_or(GridError::Refused(what))
    }

    /// What an account has, in tokens.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn tokens(&self, account: Address) -> Result<f64, GridError> {
        let balance = self.client.view(self.suite.token, &GridToken::balanceOfCall(account))?;
        Ok(u128::try_from(balance).unwrap_or(u128::MAX) as f64 / TOKEN as f64)
    }

    /// What a node has at stake, in tokens.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn stake(&self, node: u32) -> Result<f64, GridError> {
        let stake = self.client.view(self.suite.registry, &Registry::stakeOfCall { node })?;
        Ok(u128::try_from(U256::from(stake)).unwrap_or(u128::MAX) as f64 / TOKEN as f64)
    }

    /// The seats of a node in an appeal's jury.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn seats(&self, it: &Capacity::Demand, node: u32) -> Result<u128, GridError> {
        let call = Capacity::seatsOfCall { it: it.clone(), node };
        let seats = self.client.view(self.suite.capacity, &call)?;
        Ok(u128::try_from(seats).unwrap_or(u128::MAX))
    }

    /// A farm of the holder's, paid to an address.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn farm(&mut self, payout: Address) -> Result<u32, GridError> {
        let call = Registry::addFarmCall { payout, meta: B256::repeat_byte(7) };
        let receipt = self.send(&holder(), self.suite.registry, &call)?;
        Ok(event::<Registry::FarmAdded>(&receipt)?.farm)
    }

    /// A node with a simulated node's key and a stake; it must get that one's number.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn node(&mut self, farm: u32, number: u32, stake: U256) -> Result<(), GridError> {
        let mesh_key = B256::repeat_byte(0x4d);
        let domain = Reader::Registry.domain(CHAIN_ID, self.suite.registry);
        let signature = sign(&NodeKey { farm, meshKey: mesh_key }, &domain, &key_of(number));
        let call = Registry::addNodeCall {
            farm,
            caps: Registry::Caps { cores: 16, memMiB: 65_536, ssdMiB: 0, hddMiB: 4 << 20, mbps: 0 },
            stake,
            mesh: Registry::MeshKey {
                key: mesh_key,
                signatureR: B256::repeat_byte(1),
                signatureS: B256::repeat_byte(2),
            },
            signature: signature.to_bytes().into(),
        };
        let receipt = self.send(&holder(), self.suite.registry, &call)?;
        let node = event::<Registry::NodeAdded>(&receipt)?.node;
        if node == number { Ok(()) } else { Err(GridError::Missing("such node")) }
    }

    /// Commits to a node's plot.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn plot(&mut self, key: &Key, node: u32, store: &Store) -> Result<Receipt, GridError> {
        let (capacity, record) = (self.suite.capacity, store.record());
        self.send(key, capacity, &Capacity::drawSaltCall { node })?;
        let call = Capacity::commitPlotCall { node, root: record.root, bytesLen: record.bytes_len };
        self.send(key, capacity, &call)
    }

    /// Challenges a node.
    ///
    /// # Errors
    /// [`GridError`].
    pub fn challenge(&mut self, node: u32) -> Result<(Capacity::Challenge, u64), GridError> {
        let call = Capacity::challengeCall { node };
        let receipt = self.send(&holder(), self.suite.capacity, &call)?;
        Ok((event::<Capacity::Challenged>(&receipt)?.challenge, receipt.gas_used))
    }
}

/// The first event of a kind in a receipt.
///
/// # Errors
/// [`GridError::Event`].
pub fn event<E: SolEvent>(receipt: &Receipt) -> Result<E, GridError> {
    let found = receipt.logs.iter().find_map(|log| E::decode_log(log).ok());
    found.map(|log| log.data).ok_or(GridError::Event(E::SIGNATURE))
}

/// The leaf around a byte of a plot whose extents all have the same bytes.
///
/// # Errors
/// [`GridError::Missing`].
pub fn leaf_at(store: &Store, extent: &[u8], offset: u64) -> Result<ShownLeaf, GridError> {
    let read = store.locate(offset).ok_or(GridError::Missing("such byte"))?;
    let start = read.range.start as usize;
    let end = (start + GROUP_BYTES).min(extent.len());
    let group = extent.get(start..end).unwrap_or_default();
    store.open(offset, group).map_err(|_| GridError::Missing("such leaf"))
}
