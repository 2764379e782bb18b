//! The chain on disk: one redb file. A block and all that it changes are written in one transaction
//! that is durable before anyone hears of it. Each value ends with a CRC-32C over its key and itself.

use std::collections::BTreeSet;
use std::path::Path;

use alloy_primitives::{Address, B256, U256};
use redb::{Database, Durability, ReadableDatabase, TableDefinition, WriteTransaction};

use super::block::{BlockHeader, Genesis, StoredReceipt, decoded, encoded};
use super::state::Changes;

/// The version of what is stored (docs/chain.md, "Store").
const VERSION: u8 = 1;

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

const META: Table = TableDefinition::new("meta");
const HEADERS: Table = TableDefinition::new("headers");
const HASHES: Table = TableDefinition::new("hashes");
const BODIES: Table = TableDefinition::new("bodies");
const RECEIPTS: Table = TableDefinition::new("receipts");
const TRANSACTIONS: Table = TableDefinition::new("transactions");
const EMITTERS: Table = TableDefinition::new("emitters");
const ACCOUNTS: Table = TableDefinition::new("accounts");
const SLOTS: Table = TableDefinition::new("slots");
const CODES: Table = TableDefinition::new("codes");

const TABLES: [Table; 10] =
    [META, HEADERS, HASHES, BODIES, RECEIPTS, TRANSACTIONS, EMITTERS, ACCOUNTS, SLOTS, CODES];

const META_VERSION: &[u8] = b"version";
const META_GENESIS: &[u8] = b"genesis";
const META_HEAD: &[u8] = b"head";

/// Why the chain's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database says no: the disk, a file that is something else.
    #[error("the chain's database failed: {0}")]
    Database(#[source] Box<redb::Error>),
    /// Another process has the file.
    #[error("another process has the chain's file open")]
    InUse,
    /// A value that is not what was written.
    #[error("the chain's table {table} holds a value that is not what was written")]
    Rotten {
        /// Which table.
        table: String,
    },
    /// Another version of the format.
    #[error("the chain was written in format {found}; this build reads format {VERSION}")]
    Version {
        /// What is there.
        found: u8,
    },
    /// No genesis is in it.
    #[error("the chain's file has no genesis block")]
    Empty,
    /// A genesis is in it already.
    #[error("the chain's file has a genesis block already")]
    NotEmpty,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            error => Self::Database(Box::new(error)),
        }
    }
}

/// An account as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, alloy_rlp::RlpEncodable, alloy_rlp::RlpDecodable)]
pub(super) struct StoredAccount {
    pub(super) nonce: u64,
    pub(super) balance: U256,
    pub(super) code_hash: B256,
}

/// A block with all that it changes.
pub(super) struct NewBlock<'a> {
    pub(super) header: &'a BlockHeader,
    /// Hash and encoding of each transaction.
    pub(super) transactions: &'a [(B256, Vec<u8>)],
    pub(super) receipts: &'a [StoredReceipt],
    pub(super) changes: &'a Changes,
}

/// The file.
pub(super) struct Store {
    database: Database,
}

impl Store {
    /// Opens a file, or makes an empty one.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path)?;
        Self::with(database)
    }

    /// A store that is gone when it is dropped.
    pub(super) fn in_memory() -> Result<Self, StoreError> {
        let backend = redb::backends::InMemoryBackend::new();
        Self::with(Database::builder().create_with_backend(backend)?)
    }

    fn with(database: Database) -> Result<Self, StoreError> {
        let store = Self { database };
        if let Some(version) = store.get_if_there(META, META_VERSION)? {
            let found = version.first().copied().unwrap_or_default();
            if found != VERSION {
                return Err(StoreError::Version { found });
            }
        }
        Ok(store)
    }

    /// Writes the first block into an empty file.
    pub(super) fn create(&self, genesis: &Genesis, changes: &Changes) -> Result<(), StoreError> {
        if self.get_if_there(META, META_VERSION)?.is_some() {
            return Err(StoreError::NotEmpty);
        }
        let transaction = self.begin()?;
        for table in TABLES {
            transaction.open_table(table)?;
        }
        put(&transaction, META, META_VERSION, &[VERSION])?;
        put(&transaction, META, META_GENESIS, &encoded(genesis))?;
        let header = genesis.block();
        let block = NewBlock { header: &header, transactions: &[], receipts: &[], changes };
        write_block(&transaction, &block)?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes a block; when this returns, it survives the loss of power.
    pub(super) fn append(&self, block: &NewBlock<'_>) -> Result<(), StoreError> {
        let transaction = self.begin()?;
        write_block(&transaction, block)?;
        transaction.commit()?;
        Ok(())
    }

    fn begin(&self) -> Result<WriteTransaction, StoreError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        Ok(transaction)
    }

    pub(super) fn genesis(&self) -> Result<Genesis, StoreError> {
        let bytes = self.get_if_there(META, META_GENESIS)?.ok_or(StoreError::Empty)?;
        decoded(&bytes).ok_or_else(|| rotten(META))
    }

    pub(super) fn head(&self) -> Result<u64, StoreError> {
        let bytes = self.get_if_there(META, META_HEAD)?.ok_or(StoreError::Empty)?;
        number_of(&bytes).ok_or_else(|| rotten(META))
    }

    pub(super) fn header(&self, number: u64) -> Result<Option<BlockHeader>, StoreError> {
        self.get_rlp(HEADERS, &number.to_be_bytes())
    }

    /// The number of the block with this hash.
    pub(super) fn number(&self, hash: &B256) -> Result<Option<u64>, StoreError> {
        let bytes = self.get(HASHES, hash.as_slice())?;
        bytes.map(|bytes| number_of(&bytes).ok_or_else(|| rotten(HASHES))).transpose()
    }

    /// The encodings of a block's transactions.
    pub(super) fn body(&self, number: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let raw: Option<Vec<alloy_primitives::Bytes>> =
            self.get_rlp(BODIES, &number.to_be_bytes())?;
        Ok(raw.unwrap_or_default().into_iter().map(|bytes| bytes.to_vec()).collect())
    }

    pub(super) fn receipts(&self, number: u64) -> Result<Vec<StoredReceipt>, StoreError> {
        Ok(self.get_rlp(RECEIPTS, &number.to_be_bytes())?.unwrap_or_default())
    }

    /// The block of a transaction, and its place there.
    pub(super) fn place(&self, hash: &B256) -> Result<Option<(u64, usize)>, StoreError> {
        let Some(bytes) = self.get(TRANSACTIONS, hash.as_slice())? else { return Ok(None) };
        let (block, index) = bytes.split_at_checked(8).ok_or_else(|| rotten(TRANSACTIONS))?;
        let place = number_of(block).zip(number_of(index));
        let (block, index) = place.ok_or_else(|| rotten(TRANSACTIONS))?;
        Ok(Some((block, usize::try_from(index).unwrap_or(usize::MAX))))
    }

    /// The blocks from `from` to `to` in which a contract logged something, at most `count`.
    pub(super) fn blocks_with_logs(
        &self,
        of: Address,
        from: u64,
        to: u64,
        count: usize,
    ) -> Result<Vec<u64>, StoreError> {
        let key = |number: u64| [of.as_slice(), &number.to_be_bytes()].concat();
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(EMITTERS)?;
        let (first, last) = (key(from), key(to));
        let mut blocks = Vec::new();
        for entry in table.range(first.as_slice()..=last.as_slice())?.take(count) {
            let (key, _) = entry?;
            let number = key.value().get(20..).and_then(number_of);
            blocks.push(number.ok_or_else(|| rotten(EMITTERS))?);
        }
        Ok(blocks)
    }

    pub(super) fn account(&self, address: &Address) -> Result<Option<StoredAccount>, StoreError> {
        self.get_rlp(ACCOUNTS, address.as_slice())
    }

    pub(super) fn slot(&self, address: &Address, slot: &U256) -> Result<U256, StoreError> {
        let key = slot_key(address, slot);
        Ok(self.get_rlp(SLOTS, &key)?.unwrap_or_default())
    }

    pub(super) fn code(&self, hash: &B256) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(CODES, hash.as_slice())
    }

    fn get_rlp<T: alloy_rlp::Decodable>(
        &self,
        table: Table,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        let bytes = self.get(table, key)?;
        bytes.map(|bytes| decoded(&bytes).ok_or_else(|| rotten(table))).transpose()
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table_open = transaction.open_table(table)?;
        let Some(value) = table_open.get(key)? else { return Ok(None) };
        checked(key, value.value()).map(Some).ok_or_else(|| rotten(table))
    }

    /// As `get`, also of a file in which no table is yet.
    fn get_if_there(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read()?;
        match transaction.open_table(table) {
            Ok(_) => self.get(table, key),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn write_block(transaction: &WriteTransaction, block: &NewBlock<'_>) -> Result<(), StoreError> {
    let header = block.header;
    let number = header.number.to_be_bytes();
    put(transaction, HEADERS, &number, &encoded(header))?;
    put(transaction, HASHES, header.hash().as_slice(), &number)?;
    if !block.transactions.is_empty() {
        let raw: Vec<alloy_primitives::Bytes> =
            block.transactions.iter().map(|(_, raw)| raw.clone().into()).collect();
        put(transaction, BODIES, &number, &encoded(&raw))?;
        put(transaction, RECEIPTS, &number, &encoded(&block.receipts.to_vec()))?;
    }
    write_places(transaction, block, number)?;
    write_changes(transaction, block.changes)?;
    put(transaction, META, META_HEAD, &number)
}

/// Where each transaction is, and which contracts have logs in the block.
fn write_places(
    transaction: &WriteTransaction,
    block: &NewBlock<'_>,
    number: [u8; 8],
) -> Result<(), StoreError> {
    let mut places = transaction.open_table(TRANSACTIONS)?;
    for (index, (hash, _)) in (0_u64..).zip(block.transactions) {
        let place = [number, index.to_be_bytes()].concat();
        places.insert(hash.as_slice(), sealed(hash.as_slice(), &place).as_slice())?;
    }
    let mut emitters = transaction.open_table(EMITTERS)?;
    let logs = block.receipts.iter().flat_map(|receipt| &receipt.logs);
    let addresses: BTreeSet<Address> = logs.map(|log| log.address).collect();
    for address in addresses {
        let key = [address.as_slice(), &number].concat();
        emitters.insert(key.as_slice(), sealed(&key, &[]).as_slice())?;
    }
    Ok(())
}

fn write_changes(transaction: &WriteTransaction, changes: &Changes) -> Result<(), StoreError> {
    let mut accounts = transaction.open_table(ACCOUNTS)?;
    for (address, account) in &changes.accounts {
        match account {
            Some(account) => {
                let value = sealed(address.as_slice(), &encoded(account));
                accounts.insert(address.as_slice(), value.as_slice())?;
            }
            None => {
                accounts.remove(address.as_slice())?;
            }
        }
    }
    let mut slots = transaction.open_table(SLOTS)?;
    for ((address, slot), value) in &changes.slots {
        let key = slot_key(address, slot);
        if value.is_zero() {
            slots.remove(key.as_slice())?;
        } else {
            let value = sealed(&key, &encoded(value));
            slots.insert(key.as_slice(), value.as_slice())?;
        }
    }
    for (hash, code) in &changes.codes {
        put(transaction, CODES, hash.as_slice(), code)?;
    }
    Ok(())
}

fn put(
    transaction: &WriteTransaction,
    table: Table,
    key: &[u8],
    value: &[u8],
) -> Result<(), StoreError> {
    transaction.open_table(table)?.insert(key, sealed(key, value).as_slice())?;
    Ok(())
}

fn sealed(key: &[u8], value: &[u8]) -> Vec<u8> {
    let sum = crc32c::crc32c_append(crc32c::crc32c(key), value);
    [value, &sum.to_be_bytes()].concat()
}

fn checked(key: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
    let (value, sum) = stored.split_last_chunk::<4>()?;
    let right = crc32c::crc32c_append(crc32c::crc32c(key), value);
    (u32::from_be_bytes(*sum) == right).then(|| value.to_vec())
}

fn slot_key(address: &Address, slot: &U256) -> [u8; 52] {
    let mut key = [0; 52];
    let bytes = slot.to_be_bytes::<32>();
    for (to, from) in key.iter_mut().zip(address.iter().chain(bytes.iter())) {
        *to = *from;
    }
    key
}

fn number_of(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

fn rotten(table: Table) -> StoreError {
    StoreError::Rotten { table: redb::TableHandle::name(&table).to_owned() }
}
