//! Transactions that wait for a block, in the order in which they came.

use std::collections::{HashMap, HashSet, VecDeque};

use alloy_primitives::{Address, B256};

use crate::transaction::Signed;

/// How many may wait in all, and of one sender.
const COUNT_MAX: usize = 4096;
const OF_ONE_MAX: usize = 64;

/// Why a transaction may not wait.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PoolError {
    /// It waits already.
    #[error("the transaction is waiting already")]
    Known,
    /// Another one with its nonce waits.
    #[error("a transaction of {sender} with nonce {nonce} is waiting already")]
    NonceTaken {
        /// Whose.
        sender: Address,
        /// Which nonce.
        nonce: u64,
    },
    /// Too many wait.
    #[error("too many transactions are waiting; try again after the next block")]
    Full,
}

/// The waiting ones.
#[derive(Default)]
pub(super) struct Pool {
    queue: VecDeque<Signed>,
    hashes: HashSet<B256>,
    nonces: HashMap<Address, HashSet<u64>>,
}

impl Pool {
    pub(super) fn add(&mut self, signed: Signed) -> Result<(), PoolError> {
        if self.hashes.contains(&signed.hash()) {
            return Err(PoolError::Known);
        }
        let (sender, nonce) = (signed.sender(), signed.transaction().nonce);
        let of_one = self.nonces.get(&sender);
        if of_one.is_some_and(|nonces| nonces.contains(&nonce)) {
            return Err(PoolError::NonceTaken { sender, nonce });
        }
        let count = of_one.map_or(0, HashSet::len);
        if self.queue.len() >= COUNT_MAX || count >= OF_ONE_MAX {
            return Err(PoolError::Full);
        }
        self.hashes.insert(signed.hash());
        self.nonces.entry(sender).or_default().insert(nonce);
        self.queue.push_back(signed);
        Ok(())
    }

    /// Takes all that wait, the oldest first.
    pub(super) fn take(&mut self) -> VecDeque<Signed> {
        self.hashes.clear();
        self.nonces.clear();
        std::mem::take(&mut self.queue)
    }

    /// The next nonce of a sender, counting what waits in an unbroken row from `next` on.
    pub(super) fn next_nonce(&self, sender: &Address, mut next: u64) -> u64 {
        let waiting = self.nonces.get(sender);
        while waiting.is_some_and(|nonces| nonces.contains(&next)) {
            next += 1;
        }
        next
    }

    pub(super) fn get(&self, hash: &B256) -> Option<&Signed> {
        self.queue.iter().find(|signed| signed.hash() == *hash)
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}
