//! Genesis, headers and receipts, as they are stored and hashed (docs/chain.md, "Blocks").

use alloy_primitives::{Address, B256, Bytes, Log, U256, keccak256};
use alloy_rlp::{Decodable, Encodable, RlpDecodable, RlpEncodable};

/// What a chain starts with. Its hash is the hash of block 0.
#[derive(Debug, Clone, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct Genesis {
    /// Which chain this is, in every signature.
    pub chain_id: u64,
    /// The time of block 0, in seconds since 1970.
    pub timestamp: u64,
    /// Seconds from block to block, at least 1.
    pub cadence_secs: u64,
    /// The most gas of a block.
    pub gas_limit: u64,
    /// The fee that is burned, in wei per gas. It never changes.
    pub base_fee: u64,
    /// Who has how many wei.
    pub balances: Vec<Allocation>,
    /// What the first hash chain of `prevrandao` is committed to with.
    pub anchor: B256,
}

/// Wei that an account starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct Allocation {
    /// The account.
    pub account: Address,
    /// Its wei.
    pub balance: U256,
}

/// A block's header.
#[derive(Debug, Clone, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct BlockHeader {
    /// From 0.
    pub number: u64,
    /// The hash of the header before; zero in block 0.
    pub parent: B256,
    /// A multiple of the cadence after genesis, in seconds since 1970.
    pub timestamp: u64,
    /// What the block reveals of its hash chain.
    pub prevrandao: B256,
    /// The anchor of the next hash chain, in the first block of each.
    pub next_anchor: B256,
    /// Keccak tree over the hashes of its transactions; zero without any.
    pub transactions: B256,
    /// Keccak tree over its receipts; zero without any.
    pub receipts: B256,
    /// A digest over all changes of the state since genesis. It is no Merkle-Patricia root.
    pub state: B256,
    /// The gas of all its transactions.
    pub gas_used: u64,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, RlpEncodable, RlpDecodable)]
pub struct StoredReceipt {
    /// Whether it did what was asked.
    pub succeeded: bool,
    /// The gas that it used.
    pub gas_used: u64,
    /// Who sent it.
    pub sender: Address,
    /// The contract that it made; the zero address for none.
    pub contract: Address,
    /// What it returned, or why it reverted, as contracts encode it: at most 4 KiB of it.
    pub output: Bytes,
    /// What it logged.
    pub logs: Vec<Log>,
}

impl Genesis {
    /// The hash that block 0 has as its state.
    #[must_use]
    pub fn hash(&self) -> B256 {
        keccak256(encoded(self))
    }

    /// Block 0.
    #[must_use]
    pub fn block(&self) -> BlockHeader {
        BlockHeader {
            number: 0,
            parent: B256::ZERO,
            timestamp: self.timestamp,
            prevrandao: B256::ZERO,
            next_anchor: self.anchor,
            transactions: B256::ZERO,
            receipts: B256::ZERO,
            state: self.hash(),
            gas_used: 0,
        }
    }
}

impl BlockHeader {
    /// The block's name.
    #[must_use]
    pub fn hash(&self) -> B256 {
        keccak256(encoded(self))
    }
}

/// A value's RLP.
pub(super) fn encoded(value: &impl Encodable) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.length());
    value.encode(&mut out);
    out
}

/// A value from all of `bytes`; `None` if they are anything else.
pub(super) fn decoded<T: Decodable>(mut bytes: &[u8]) -> Option<T> {
    let value = T::decode(&mut bytes).ok()?;
    bytes.is_empty().then_some(value)
}
