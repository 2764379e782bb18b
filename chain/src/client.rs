//! What the rest of Hypha asks of a chain, whichever it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy_primitives::{Address, B256, Bytes, Log, TxKind, U256};
use alloy_sol_types::SolCall;
use revm::context::transaction::AccessList;

use crate::contracts;
use crate::embedded::{
    Call, Chain, ChainError, Filter, FilterError, FoundLog, PoolError, StoreError, SubmitError,
    TRANSACTION_GAS_MAX,
};
use crate::key::Key;
use crate::remote::{Remote, RemoteError};
use crate::transaction::Transaction;

/// The most searches that one question for logs may become.
pub const SEARCHES_MAX: usize = 4096;

/// A chain that can be asked and sent to.
#[derive(Clone)]
pub enum Client {
    /// The chain in this process. Somebody calls its `tick`.
    Embedded(Arc<Mutex<Chain>>),
    /// A node that speaks JSON-RPC.
    Remote(Arc<Remote>),
}

/// The newest block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its time, in seconds since 1970.
    pub timestamp: u64,
    /// Its hash.
    pub hash: B256,
}

/// A block, as far as pulses follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// The hash of the block before.
    pub parent: B256,
    /// Its time, in seconds since 1970.
    pub timestamp: u64,
    /// What nobody but a producer knew before.
    pub prevrandao: B256,
}

/// What became of a transaction, as both kinds of chain tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The transaction.
    pub transaction: B256,
    /// The block's number.
    pub block: u64,
    /// The block's hash: another one later means that the chain was reorganised.
    pub block_hash: B256,
    /// Whether it did what was asked.
    pub succeeded: bool,
    /// The gas that it used.
    pub gas_used: u64,
    /// The contract that it made.
    pub contract: Option<Address>,
    /// What it logged.
    pub logs: Vec<Log>,
}

/// Why a chain did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A contract refused, and said why.
    #[error("the contract refused: {}", contracts::explain(.0))]
    Reverted(Bytes),
    /// The call cannot even begin.
    #[error("the call cannot be executed: {0}")]
    Invalid(String),
    /// A transaction is not taken.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The embedded chain failed.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A search for logs.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The node did not answer, or not to the question.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A search for logs took too long.
    #[error(
        "the search for events was given up after {searches} questions: the chain refuses wide ones, or \
         is slow"
    )]
    GivenUp {
        /// How often it was asked.
        searches: usize,
    },
    /// A contract returned something that its ABI does not have.
    #[error("the contract returned something else than its interface says")]
    Output,
}

impl From<StoreError> for ClientError {
    fn from(error: StoreError) -> Self {
        Self::Chain(error.into())
    }
}

impl ClientError {
    /// Whether the account can't pay for the gas of a transaction. Nodes have no code for it, but the same
    /// words.
    #[must_use]
    pub fn lacks_gas(&self) -> bool {
        match self {
            Self::Submit(SubmitError::Funds { .. }) => true,
            other => other.says_of_sending(&["insufficient funds"]),
        }
    }

    /// Whether another transaction of the account has taken the nonce. Nodes have no code for it either.
    #[must_use]
    pub fn lacks_nonce(&self) -> bool {
        match self {
            Self::Submit(SubmitError::NonceUsed { .. })
            | Self::Submit(SubmitError::Pool(PoolError::NonceTaken { .. })) => true,
            other => other.says_of_sending(&["nonce", "underpriced"]),
        }
    }

    /// Whether a node refuses a transaction with one of these words.
    fn says_of_sending(&self, words: &[&str]) -> bool {
        let Self::Remote(RemoteError::Refused { method, message, .. }) = self else { return false };
        let is_of_sending = matches!(*method, "eth_sendRawTransaction" | "eth_estimateGas");
        let message = message.to_lowercase();
        is_of_sending && words.iter().any(|word| message.contains(word))
    }
}

impl Client {
    /// The chain's number, which is in every signature.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn chain_id(&self) -> Result<u64, ClientError> {
        match self {
            Self::Embedded(chain) => Ok(locked(chain).genesis().chain_id),
            Self::Remote(remote) => Ok(remote.chain_id()),
        }
    }

    /// The newest block.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn head(&self) -> Result<Head, ClientError> {
        match self {
            Self::Embedded(chain) => {
                let chain = locked(chain);
                let (number, timestamp) = (chain.head().number, chain.head().timestamp);
                Ok(Head { number, timestamp, hash: chain.head_hash() })
            }
            Self::Remote(remote) => Ok(remote.head()?),
        }
    }

    /// A block; `None` if there is none of that number yet.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn block(&self, number: u64) -> Result<Option<Block>, ClientError> {
        match self {
            Self::Embedded(chain) => Ok(locked(chain).header(number)?.map(|header| Block {
                number,
                hash: header.hash(),
                parent: header.parent,
                timestamp: header.timestamp,
                prevrandao: header.prevrandao,
            })),
            Self::Remote(remote) => Ok(remote.block(number)?),
        }
    }

    /// The next nonce of an account, what waits counted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn nonce(&self, address: Address) -> Result<u64, ClientError> {
        match self {
            Self::Embedded(chain) => Ok(locked(chain).next_nonce(address)?),
            Self::Remote(remote) => Ok(remote.nonce(address)?),
        }
    }

    /// The nonce of an account in the newest block, what waits not counted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn settled_nonce(&self, address: Address) -> Result<u64, ClientError> {
        match self {
            Self::Embedded(chain) => Ok(locked(chain).account(address)?.0),
            Self::Remote(remote) => Ok(remote.settled_nonce(address)?),
        }
    }

    /// The wei of an account.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn balance(&self, address: Address) -> Result<U256, ClientError> {
        match self {
            Self::Embedded(chain) => Ok(locked(chain).account(address)?.1),
            Self::Remote(remote) => Ok(remote.balance(address)?),
        }
    }

    /// Calls a contract without changing anything, and returns what it returned.
    ///
    /// # Errors
    /// [`ClientError::Reverted`] with what the contract said, and others.
    pub fn call(&self, call: &Call) -> Result<Bytes, ClientError> {
        match self {
            Self::Embedded(chain) => {
                let outcome = locked(chain).call(call)?.map_err(ClientError::Invalid)?;
                if outcome.succeeded {
                    Ok(outcome.output)
                } else {
                    Err(ClientError::Reverted(outcome.output))
                }
            }
            Self::Remote(remote) => remote.call(call),
        }
    }

    /// Calls a function of a contract without changing anything.
    ///
    /// # Errors
    /// As [`Client::call`], and [`ClientError::Output`].
    pub fn view<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, ClientError> {
        let data = call.abi_encode().into();
        let output = self.call(&Call { to: Some(to), data, ..Call::default() })?;
        C::abi_decode_returns_validate(&output).map_err(|_| ClientError::Output)
    }

    /// The gas that a call would need as a transaction, now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn estimate(&self, call: &Call) -> Result<u64, ClientError> {
        match self {
            Self::Embedded(chain) => {
                let outcome = locked(chain).call(call)?.map_err(ClientError::Invalid)?;
                if outcome.succeeded {
                    Ok(with_reserve(outcome.gas_used))
                } else {
                    Err(ClientError::Reverted(outcome.output))
                }
            }
            Self::Remote(remote) => remote.estimate(call),
        }
    }

    /// Sends a signed transaction. It is done when it has a receipt, and not before.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn send(&self, raw: &[u8]) -> Result<B256, ClientError> {
        match self {
            Self::Embedded(chain) => Ok(locked(chain).submit(raw)?),
            Self::Remote(remote) => Ok(remote.send(raw)?),
        }
    }

    /// Signs and sends a call of a contract (or a creation, to nobody), if it would succeed now.
    ///
    /// # Errors
    /// [`ClientError::Reverted`] if it would not; then nothing was sent. And others.
    pub fn transact(
        &self,
        key: &Key,
        to: Option<Address>,
        data: Bytes,
    ) -> Result<B256, ClientError> {
        self.send(self.prepare(key.address(), to, data)?.sign(key).raw())
    }

    /// A call of a contract (or a creation, to nobody) as a transaction to be signed, if it would
    /// succeed now.
    ///
    /// # Errors
    /// [`ClientError::Reverted`] if it would not, and others.
    pub fn prepare(
        &self,
        from: Address,
        to: Option<Address>,
        data: Bytes,
    ) -> Result<Transaction, ClientError> {
        let call = Call { from, to, data, ..Call::default() };
        let gas_limit = self.estimate(&call)?;
        let (max_fee, max_priority_fee) = self.fees()?;
        Ok(Transaction {
            chain_id: self.chain_id()?,
            nonce: self.nonce(call.from)?,
            max_priority_fee,
            max_fee,
            gas_limit,
            to: to.map_or(TxKind::Create, TxKind::Call),
            value: U256::ZERO,
            data: call.data,
            access_list: AccessList::default(),
        })
    }

    /// The most to pay per gas now, and the tip, in wei.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn fees(&self) -> Result<(u128, u128), ClientError> {
        match self {
            Self::Embedded(chain) => Ok((u128::from(locked(chain).genesis().base_fee), 0)),
            Self::Remote(remote) => Ok(remote.fees()?),
        }
    }

    /// What became of a transaction; `None` while it is in no block.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn receipt(&self, hash: &B256) -> Result<Option<Receipt>, ClientError> {
        match self {
            Self::Embedded(chain) => {
                let found = locked(chain).receipt(hash)?;
                Ok(found.map(|found| Receipt {
                    transaction: found.transaction,
                    block: found.block,
                    block_hash: found.block_hash,
                    succeeded: found.stored.succeeded,
                    gas_used: found.stored.gas_used,
                    contract: Some(found.stored.contract).filter(|address| !address.is_zero()),
                    logs: found.stored.logs,
                }))
            }
            Self::Remote(remote) => Ok(remote.receipt(hash)?),
        }
    }

    /// The logs that a filter wants, in their order. A chain that refuses a wide search is asked for its
    /// halves, with [`SEARCHES_MAX`] questions at most. `stops` is asked before each: a node may take its
    /// time to refuse.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::GivenUp`] if that was not enough, or `stops` said so.
    pub fn logs(
        &self,
        filter: &Filter,
        stops: impl Fn() -> bool,
    ) -> Result<Vec<FoundLog>, ClientError> {
        let (mut ranges, mut found) = (vec![(filter.from, filter.to)], Vec::new());
        for searches in 0..SEARCHES_MAX {
            let Some((from, to)) = ranges.pop() else { return Ok(found) };
            if stops() {
                return Err(ClientError::GivenUp { searches });
            }
            match self.search(&Filter { from, to, ..filter.clone() }) {
                Ok(more) => found.extend(more),
                Err(
                    ClientError::Filter(FilterError::TooMuch)
                    | ClientError::Remote(RemoteError::Refused { .. }),
                ) if from < to => {
                    let middle = from + (to - from) / 2;
                    ranges.extend([(middle + 1, to), (from, middle)]);
                }
                Err(error) => return Err(error),
            }
        }
        Err(ClientError::GivenUp { searches: SEARCHES_MAX })
    }

    fn search(&self, filter: &Filter) -> Result<Vec<FoundLog>, ClientError> {
        match self {
            Self::Embedded(chain) => Ok(locked(chain).logs(filter)?),
            Self::Remote(remote) => Ok(remote.logs(filter)?),
        }
    }
}

/// Gas with room for what changes until it is executed, such as a slot that is fresh by then.
pub(crate) fn with_reserve(gas: u64) -> u64 {
    // Refunds come at the end: up to a fifth of what was needed is not in what was used.
    (gas + gas / 2 + 50_000).min(TRANSACTION_GAS_MAX)
}

/// What one had who panicked is whole: a chain is as its last block left it, since `tick` discards what
/// failed, and whatever else has a lock in this crate changes in one step.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
