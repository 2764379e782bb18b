//! The embedded chain: revm over redb, one producer, blocks at a fixed cadence.
//!
//! [`Chain::tick`] makes at most one block per slot of the cadence, an empty one too; slots in which the
//! process does not run have none. A block is durable before `tick` returns: a receipt is the
//! acknowledgement, a hash from [`Chain::submit`] is not. After a kill at any instant the file holds
//! some prefix of the blocks, with all that was acknowledged.
//!
//! The rules are Ethereum's as of Osaka, pinned. The chain's own: headers are not Ethereum's (the state
//! has a digest instead of a Patricia root), the base fee is constant, and `prevrandao` comes from a hash
//! chain that genesis commits to (`randao.rs`).

mod block;
mod execution;
mod pool;
mod query;
mod randao;
mod state;
mod store;

use std::path::Path;

use alloy_primitives::{Address, B256, U256};

pub use block::{Allocation, BlockHeader, Genesis, StoredReceipt};
pub use execution::{Call, Outcome};
pub use pool::PoolError;
pub use query::{Filter, FilterError, FoundLog, LOGS_MAX, Place, Receipt};
pub use store::StoreError;

use crate::transaction::{Signed, TransactionError};
use execution::Verdict;
use pool::Pool;
use randao::Randao;
use state::{Changes, State};
use store::{NewBlock, Store};

/// The most gas of one transaction (EIP-7825).
pub const TRANSACTION_GAS_MAX: u64 = 1 << 24;
/// Headers that are checked when a chain is opened.
const CHECKED: u64 = 256;

/// An EVM chain in this process.
pub struct Chain {
    state: State,
    genesis: Genesis,
    randao: Randao,
    head: BlockHeader,
    head_hash: B256,
    pool: Pool,
}

/// What a chain is made with; the rest of its genesis follows from the seed.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Which chain this is, in every signature.
    pub chain_id: u64,
    /// The time of block 0, in seconds since 1970.
    pub timestamp: u64,
    /// Seconds from block to block.
    pub cadence_secs: u64,
    /// Who has how many wei.
    pub balances: Vec<Allocation>,
}

/// Why a chain cannot be made or opened, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A cadence of zero, or an account named twice.
    #[error("the chain's parameters are out of range: {0}")]
    Parameters(&'static str),
    /// The seed is of another chain.
    #[error("this seed is not the one that the chain's genesis commits to")]
    Seed,
    /// Headers do not follow from each other.
    #[error("block {number} does not follow from the one before it")]
    Broken {
        /// Which block.
        number: u64,
    },
    /// The EVM itself failed.
    #[error("the EVM failed: {0}")]
    Evm(String),
}

/// Why a transaction is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It is none.
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    /// It is for another chain.
    #[error("the transaction is for chain {theirs}; this is chain {ours}")]
    ChainId {
        /// The chain that it names.
        theirs: u64,
        /// This one.
        ours: u64,
    },
    /// Its nonce is used.
    #[error("nonce {nonce} is used already; the next one is {next}")]
    NonceUsed {
        /// The transaction's.
        nonce: u64,
        /// The account's.
        next: u64,
    },
    /// Its sender cannot pay.
    #[error("{sender} has {has} wei; the transaction may cost {needs}")]
    Funds {
        /// Who.
        sender: Address,
        /// What there is.
        has: U256,
        /// What it may cost.
        needs: U256,
    },
    /// Too much gas, or less than its bytes alone cost, or a fee below the chain's.
    #[error("the transaction cannot be executed: {0}")]
    Invalid(String),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Hash and encoding of each transaction of a block, and what became of it.
type Executed = (Vec<(B256, Vec<u8>)>, Vec<StoredReceipt>);

impl Chain {
    /// Makes a chain in a new file. `seed` is the producer's secret: 32 random bytes that it must keep.
    ///
    /// # Errors
    /// [`ChainError`]; an existing chain is left as it is.
    pub fn create(path: &Path, parameters: Parameters, seed: [u8; 32]) -> Result<Self, ChainError> {
        Self::create_in(Store::open(path)?, parameters, seed)
    }

    /// A chain that is gone when it is dropped.
    ///
    /// # Errors
    /// [`ChainError::Parameters`].
    pub fn in_memory(parameters: Parameters, seed: [u8; 32]) -> Result<Self, ChainError> {
        Self::create_in(Store::in_memory()?, parameters, seed)
    }

    fn create_in(store: Store, parameters: Parameters, seed: [u8; 32]) -> Result<Self, ChainError> {
        if parameters.cadence_secs == 0 {
            return Err(ChainError::Parameters("blocks need at least a second each"));
        }
        let genesis = Genesis {
            chain_id: parameters.chain_id,
            timestamp: parameters.timestamp,
            cadence_secs: parameters.cadence_secs,
            gas_limit: 4 * TRANSACTION_GAS_MAX,
            base_fee: 0,
            balances: parameters.balances,
            anchor: Randao::new(seed).anchor(0),
        };
        let changes = Changes::of_genesis(&genesis);
        if changes.accounts.len() != genesis.balances.len() {
            return Err(ChainError::Parameters("an account has two balances"));
        }
        store.create(&genesis, &changes)?;
        Self::open_in(store, seed)
    }

    /// Opens a chain. Its newest headers are checked against each other and against the seed.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn open(path: &Path, seed: [u8; 32]) -> Result<Self, ChainError> {
        Self::open_in(Store::open(path)?, seed)
    }

    fn open_in(store: Store, seed: [u8; 32]) -> Result<Self, ChainError> {
        let genesis = store.genesis()?;
        let randao = Randao::new(seed);
        if randao.anchor(0) != genesis.anchor {
            return Err(ChainError::Seed);
        }
        let number = store.head()?;
        let head = store.header(number)?.ok_or(ChainError::Broken { number })?;
        let head_hash = head.hash();
        let state = State::new(store, number);
        let mut chain = Self { state, genesis, randao, head, head_hash, pool: Pool::default() };
        let first = number.saturating_sub(CHECKED);
        chain.verify(first, number)?;
        Ok(chain)
    }

    /// Checks that the blocks from `first` to `last` follow from each other, and each revealed value
    /// from the seed.
    ///
    /// # Errors
    /// [`ChainError::Broken`] with the first block that does not.
    pub fn verify(&mut self, first: u64, last: u64) -> Result<(), ChainError> {
        let mut parent: Option<B256> = None;
        for number in first..=last {
            let broken = || ChainError::Broken { number };
            let header = self.state.store().header(number)?.ok_or_else(broken)?;
            let linked = parent.is_none_or(|parent| parent == header.parent);
            let rooted = match number {
                0 => header == self.genesis.block(),
                _ => header.prevrandao == self.randao.reveal(number),
            };
            let named = self.state.store().number(&header.hash())? == Some(number);
            if header.number != number || !linked || !rooted || !named {
                return Err(broken());
            }
            parent = Some(header.hash());
        }
        Ok(())
    }

    /// Takes a transaction into the pool. It is not durable before it has a receipt.
    ///
    /// # Errors
    /// [`SubmitError`] in words for its sender.
    pub fn submit(&mut self, raw: &[u8]) -> Result<B256, SubmitError> {
        let signed = Signed::decode(raw)?;
        let transaction = signed.transaction();
        if transaction.chain_id != self.genesis.chain_id {
            let (theirs, ours) = (transaction.chain_id, self.genesis.chain_id);
            return Err(SubmitError::ChainId { theirs, ours });
        }
        let sender = signed.sender();
        let (next, has) = self.account(sender)?;
        if transaction.nonce < next {
            return Err(SubmitError::NonceUsed { nonce: transaction.nonce, next });
        }
        if transaction.gas_limit > TRANSACTION_GAS_MAX {
            let reason = format!("it asks for more than {TRANSACTION_GAS_MAX} gas");
            return Err(SubmitError::Invalid(reason));
        }
        let gas = U256::from(transaction.gas_limit);
        let needs = gas.saturating_mul(U256::from(transaction.max_fee));
        let needs = needs.saturating_add(transaction.value);
        if needs > has {
            return Err(SubmitError::Funds { sender, has, needs });
        }
        let hash = signed.hash();
        self.pool.add(signed)?;
        Ok(hash)
    }

    /// Makes the block of the slot that `now_secs` is in, unless it has one. What waits goes into it, as
    /// far as it fits. On an error nothing of the block stays, and what waited is lost with it.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn tick(&mut self, now_secs: u64) -> Result<Option<BlockHeader>, ChainError> {
        let Some(slot) = self.slot(now_secs) else { return Ok(None) };
        let made = self.make_block(slot);
        if made.is_err() {
            self.state.discard();
        }
        made.map(Some)
    }

    /// The time of the slot that is due, in seconds since 1970; `None` if none is.
    fn slot(&self, now_secs: u64) -> Option<u64> {
        let since = now_secs.checked_sub(self.genesis.timestamp)?;
        let slot = now_secs - since % self.genesis.cadence_secs;
        (slot > self.head.timestamp).then_some(slot)
    }

    fn make_block(&mut self, timestamp: u64) -> Result<BlockHeader, ChainError> {
        let number = self.head.number + 1;
        let (chain, link) = randao::place(number);
        let next_anchor = if link == 0 { self.randao.anchor(chain + 1) } else { B256::ZERO };
        let mut header = BlockHeader {
            number,
            parent: self.head_hash,
            timestamp,
            prevrandao: self.randao.reveal(number),
            next_anchor,
            transactions: B256::ZERO,
            receipts: B256::ZERO,
            state: B256::ZERO,
            gas_used: 0,
        };
        let (transactions, receipts) = self.execute_waiting(&mut header)?;
        header.transactions = root(transactions.iter().map(|(hash, _)| hash.to_vec()));
        header.receipts = root(receipts.iter().map(block::encoded));
        header.state = self.state.changes().digest(&self.head.state);
        self.state.store().append(&NewBlock {
            header: &header,
            transactions: &transactions,
            receipts: &receipts,
            changes: self.state.changes(),
        })?;
        self.state.settled(number);
        self.head_hash = header.hash();
        self.head = header.clone();
        Ok(header)
    }

    /// Executes what waits and can be executed now; the rest waits on.
    fn execute_waiting(&mut self, header: &mut BlockHeader) -> Result<Executed, ChainError> {
        let (mut transactions, mut receipts) = (Vec::new(), Vec::new());
        let mut waiting = self.pool.take();
        // Nonces may have come in any order; each round executes at least one or is the last.
        loop {
            let mut later = std::collections::VecDeque::new();
            let before = transactions.len();
            for signed in waiting {
                let gas_left = self.genesis.gas_limit - header.gas_used;
                match self.execute(&signed, header, gas_left)? {
                    Verdict::Executed(receipt) => {
                        header.gas_used += receipt.gas_used;
                        transactions.push((signed.hash(), signed.raw().to_vec()));
                        receipts.push(receipt);
                    }
                    Verdict::Later => later.push_back(signed),
                    Verdict::Never => {}
                }
            }
            waiting = later;
            if transactions.len() == before || waiting.is_empty() {
                break;
            }
        }
        for signed in waiting {
            // The pool had room for all of them a moment ago, and each was there once.
            if let Err(error) = self.pool.add(signed) {
                unreachable!("a transaction that waited may wait on: {error}");
            }
        }
        Ok((transactions, receipts))
    }
}

fn root(leaves: impl Iterator<Item = Vec<u8>>) -> B256 {
    let leaves: Vec<Vec<u8>> = leaves.collect();
    let tree = crate::tree::Tree::new(leaves.iter().map(Vec::as_slice));
    tree.map(|tree| tree.root()).unwrap_or_default()
}
