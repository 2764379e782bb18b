//! Transactions of one key, one after the other, each until it is in a block.

use std::time::Duration;

use hypha_chain::client::{Client, ClientError, Receipt};
use hypha_chain::key::Key;
use hypha_chain::{Address, B256, Bytes};

use crate::clock::monotonic_ns;

/// How often the chain is asked whether a transaction is in a block.
const POLL: Duration = Duration::from_millis(200);

/// Why a transaction has not done what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It was not sent, or nobody knows: it can be sent again.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The contract refused it in its block.
    #[error("transaction {0:#x} failed in its block")]
    Failed(B256),
    /// It is in no block yet.
    #[error("transaction {hash:#x} is in no block after {secs} s")]
    Waiting {
        /// The transaction.
        hash: B256,
        /// How long it was waited for.
        secs: u64,
    },
}

impl SendError {
    /// Whether the account can't pay for the transaction's gas.
    #[must_use]
    pub fn lacks_gas(&self) -> bool {
        matches!(self, Self::Client(error) if error.lacks_gas())
    }
}

/// Sends for one key.
pub struct Desk<'a> {
    /// The chain.
    pub client: &'a Client,
    /// Whose transactions.
    pub key: &'a Key,
    /// How long a transaction is waited for.
    pub patience: Duration,
}

impl Desk<'_> {
    /// Sends a call, if it would succeed now, and returns when it has. `stops` ends the waiting.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(
        &self,
        to: Address,
        call: Bytes,
        stops: impl Fn() -> bool,
    ) -> Result<Receipt, SendError> {
        let hash = self.client.transact(self.key, Some(to), call)?;
        let until = monotonic_ns().saturating_add(self.patience.as_nanos() as u64);
        loop {
            match self.client.receipt(&hash) {
                Ok(Some(receipt)) if receipt.succeeded => return Ok(receipt),
                Ok(Some(_)) => return Err(SendError::Failed(hash)),
                // An endpoint that is away for a moment: the transaction may be done meanwhile.
                Ok(None) | Err(ClientError::Remote(_)) => {}
                Err(error) => return Err(error.into()),
            }
            if stops() || monotonic_ns() >= until {
                return Err(SendError::Waiting { hash, secs: self.patience.as_secs() });
            }
            std::thread::sleep(POLL);
        }
    }
}
