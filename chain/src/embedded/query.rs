//! What the chain can be asked: accounts, blocks, transactions, receipts, logs.

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, Log, U256, keccak256};
use revm::Database;

use super::Chain;
use super::block::{BlockHeader, Genesis, StoredReceipt};
use super::store::StoreError;
use crate::transaction::Signed;

/// The most logs of one answer.
pub const LOGS_MAX: usize = 10_000;
/// The most blocks that a search without an address looks through.
const BLOCKS_MAX: u64 = 10_000;

/// Where a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The block's number.
    pub block: u64,
    /// The place in the block, from 0.
    pub index: u64,
}

/// A receipt with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The transaction.
    pub transaction: B256,
    /// The block's number.
    pub block: u64,
    /// The block's hash.
    pub block_hash: B256,
    /// The place in the block, from 0.
    pub index: u64,
    /// What became of it.
    pub stored: StoredReceipt,
    /// The gas of the block up to and with it.
    pub cumulative_gas: u64,
    /// The number of its first log in the block.
    pub first_log: u64,
}

/// Which logs are looked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The first block.
    pub from: u64,
    /// The last block.
    pub to: u64,
    /// Contracts; none for all.
    pub addresses: Vec<Address>,
    /// For each topic from the first on, the values that are wanted; none for any.
    pub topics: Vec<Vec<B256>>,
}

/// A log with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLog {
    /// The log.
    pub log: Log,
    /// The block's number.
    pub block: u64,
    /// The block's hash.
    pub block_hash: B256,
    /// The transaction.
    pub transaction: B256,
    /// The transaction's place in the block.
    pub transaction_index: u64,
    /// The log's place in the block.
    pub index: u64,
}

/// Why a search for logs has no answer.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// More than [`LOGS_MAX`] logs, or too many blocks.
    #[error("the search covers too much; ask for fewer blocks, or another endpoint")]
    TooMuch,
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Chain {
    /// The nonce and the wei of an account after the newest block.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn account(&mut self, address: Address) -> Result<(u64, U256), StoreError> {
        let info = self.state.basic(address).map_err(|error| error.0)?;
        Ok(info.map_or((0, U256::ZERO), |info| (info.nonce, info.balance)))
    }

    /// The next nonce of an account, what waits counted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn next_nonce(&mut self, address: Address) -> Result<u64, StoreError> {
        let (nonce, _) = self.account(address)?;
        Ok(self.pool.next_nonce(&address, nonce))
    }

    /// The code of an account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn code(&mut self, address: Address) -> Result<Bytes, StoreError> {
        let info = self.state.basic(address).map_err(|error| error.0)?;
        let hash = info.map_or(KECCAK256_EMPTY, |info| info.code_hash);
        let code = self.state.code_by_hash(hash).map_err(|error| error.0)?;
        Ok(code.original_bytes())
    }

    /// A storage slot of a contract.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn slot_of(&mut self, address: Address, slot: U256) -> Result<U256, StoreError> {
        self.state.storage(address, slot).map_err(|error| error.0)
    }

    /// What the chain was made with.
    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The newest block.
    #[must_use]
    pub fn head(&self) -> &BlockHeader {
        &self.head
    }

    /// The hash of the newest block.
    #[must_use]
    pub fn head_hash(&self) -> B256 {
        self.head_hash
    }

    /// How many transactions wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.pool.len()
    }

    /// A block's header.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn header(&self, number: u64) -> Result<Option<BlockHeader>, StoreError> {
        self.state.store().header(number)
    }

    /// The number of the block with this hash.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn number_of(&self, hash: &B256) -> Result<Option<u64>, StoreError> {
        self.state.store().number(hash)
    }

    /// The transactions of a block.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn body(&self, number: u64) -> Result<Vec<Signed>, StoreError> {
        let rotten = |_| StoreError::Rotten { table: "bodies".to_owned() };
        let body = self.state.store().body(number)?;
        body.iter().map(|raw| Signed::decode(raw).map_err(rotten)).collect()
    }

    /// A transaction, and where it is; `None` instead of a place if it waits.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn transaction(&self, hash: &B256) -> Result<Option<(Signed, Option<Place>)>, StoreError> {
        if let Some(signed) = self.pool.get(hash) {
            return Ok(Some((signed.clone(), None)));
        }
        let Some((block, index)) = self.state.store().place(hash)? else { return Ok(None) };
        let signed = self.body(block)?.into_iter().nth(index);
        Ok(signed.map(|signed| (signed, Some(Place { block, index: index as u64 }))))
    }

    /// What became of a transaction; `None` while it is in no block.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn receipt(&self, hash: &B256) -> Result<Option<Receipt>, StoreError> {
        let Some((block, index)) = self.state.store().place(hash)? else { return Ok(None) };
        let rotten = || StoreError::Rotten { table: "receipts".to_owned() };
        let receipts = self.state.store().receipts(block)?;
        let header = self.header(block)?.ok_or_else(rotten)?;
        let up_to = receipts.get(..=index).ok_or_else(rotten)?;
        let (last, before) = up_to.split_last().ok_or_else(rotten)?;
        Ok(Some(Receipt {
            transaction: *hash,
            block,
            block_hash: header.hash(),
            index: index as u64,
            stored: last.clone(),
            cumulative_gas: up_to.iter().map(|receipt| receipt.gas_used).sum(),
            first_log: before.iter().map(|receipt| receipt.logs.len() as u64).sum(),
        }))
    }

    /// The logs that a filter wants, in their order.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn logs(&self, filter: &Filter) -> Result<Vec<FoundLog>, FilterError> {
        let to = filter.to.min(self.head.number);
        let mut found = Vec::new();
        if filter.from > to {
            return Ok(found);
        }
        let blocks = self.blocks_to_search(filter, to)?;
        for number in blocks {
            self.logs_of(number, filter, &mut found)?;
            if found.len() > LOGS_MAX {
                return Err(FilterError::TooMuch);
            }
        }
        Ok(found)
    }

    fn blocks_to_search(&self, filter: &Filter, to: u64) -> Result<Vec<u64>, FilterError> {
        if filter.addresses.is_empty() {
            if to - filter.from >= BLOCKS_MAX {
                return Err(FilterError::TooMuch);
            }
            return Ok((filter.from..=to).collect());
        }
        let mut blocks = Vec::new();
        for address in &filter.addresses {
            let store = self.state.store();
            let more = store.blocks_with_logs(*address, filter.from, to, LOGS_MAX + 1)?;
            blocks.extend(more);
            if blocks.len() > LOGS_MAX {
                return Err(FilterError::TooMuch);
            }
        }
        blocks.sort_unstable();
        blocks.dedup();
        Ok(blocks)
    }

    fn logs_of(
        &self,
        number: u64,
        filter: &Filter,
        found: &mut Vec<FoundLog>,
    ) -> Result<(), StoreError> {
        let receipts = self.state.store().receipts(number)?;
        if receipts.is_empty() {
            return Ok(());
        }
        let rotten = || StoreError::Rotten { table: "bodies".to_owned() };
        let block_hash = self.header(number)?.ok_or_else(rotten)?.hash();
        let body = self.state.store().body(number)?;
        let mut index = 0;
        for (transaction_index, (receipt, raw)) in (0_u64..).zip(receipts.into_iter().zip(&body)) {
            for log in receipt.logs {
                if filter.wants(&log) {
                    let (block, transaction) = (number, keccak256(raw));
                    found.push(FoundLog {
                        log,
                        block,
                        block_hash,
                        transaction,
                        transaction_index,
                        index,
                    });
                }
                index += 1;
            }
        }
        Ok(())
    }
}

impl Filter {
    fn wants(&self, log: &Log) -> bool {
        let address = self.addresses.is_empty() || self.addresses.contains(&log.address);
        let topics = log.data.topics();
        let topic = |(at, wanted): (usize, &Vec<B256>)| {
            wanted.is_empty() || topics.get(at).is_some_and(|topic| wanted.contains(topic))
        };
        address && self.topics.iter().enumerate().all(topic)
    }
}
