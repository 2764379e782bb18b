//! Accounts and storage as the EVM sees them: what is cached, what the block under way has changed,
//! and the store below.

use std::collections::{BTreeMap, HashMap};

use alloy_primitives::{Address, B256, KECCAK256_EMPTY, U256, keccak256};
use revm::bytecode::Bytecode;
use revm::database_interface::DBErrorMarker;
use revm::primitives::AddressMap;
use revm::state::{Account, AccountInfo};
use revm::{Database, DatabaseCommit};

use super::block::{Genesis, encoded};
use super::store::{Store, StoreError, StoredAccount};

/// Cached entries above which the cache is emptied, after a block is durable.
const CACHE_MAX: usize = 500_000;
/// How many blocks back BLOCKHASH looks.
const HASHES: u64 = 256;

/// What a block has changed, in an order that does not depend on anything.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Changes {
    /// `None`: the account is gone.
    pub(super) accounts: BTreeMap<Address, Option<StoredAccount>>,
    pub(super) slots: BTreeMap<(Address, U256), U256>,
    pub(super) codes: BTreeMap<B256, Vec<u8>>,
}

/// The state.
pub(super) struct State {
    store: Store,
    accounts: HashMap<Address, Option<AccountInfo>>,
    slots: HashMap<(Address, U256), U256>,
    codes: HashMap<B256, Bytecode>,
    changes: Changes,
    head: u64,
}

/// Why the EVM could not read the state.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct StateError(#[from] pub(super) StoreError);

impl DBErrorMarker for StateError {}

impl Changes {
    /// The balances of a genesis.
    pub(super) fn of_genesis(genesis: &Genesis) -> Self {
        let account = |balance| StoredAccount { nonce: 0, balance, code_hash: KECCAK256_EMPTY };
        let accounts = genesis
            .balances
            .iter()
            .map(|allocation| (allocation.account, Some(account(allocation.balance))));
        Self { accounts: accounts.collect(), ..Self::default() }
    }

    /// The digest of the state after these changes.
    pub(super) fn digest(&self, before: &B256) -> B256 {
        let mut bytes = before.to_vec();
        for (address, account) in &self.accounts {
            bytes.push(0);
            bytes.extend(address);
            match account {
                Some(account) => bytes.extend(encoded(account)),
                None => bytes.push(0),
            }
        }
        for ((address, slot), value) in &self.slots {
            bytes.push(1);
            bytes.extend(address);
            bytes.extend(slot.to_be_bytes::<32>());
            bytes.extend(value.to_be_bytes::<32>());
        }
        keccak256(bytes)
    }
}

impl State {
    pub(super) fn new(store: Store, head: u64) -> Self {
        Self {
            store,
            accounts: HashMap::new(),
            slots: HashMap::new(),
            codes: HashMap::new(),
            changes: Changes::default(),
            head,
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// What the block under way has changed so far.
    pub(super) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The block under way is durable.
    pub(super) fn settled(&mut self, head: u64) {
        self.changes = Changes::default();
        self.head = head;
        if self.accounts.len() + self.slots.len() > CACHE_MAX {
            self.forget();
        }
    }

    /// The block under way is given up: all is as the store has it.
    pub(super) fn discard(&mut self) {
        self.changes = Changes::default();
        self.forget();
    }

    fn forget(&mut self) {
        self.accounts.clear();
        self.slots.clear();
        self.codes.clear();
    }

    fn commit_account(&mut self, address: Address, account: &Account) {
        if account.is_selfdestructed() || account.is_empty() {
            // Only what was made in the same transaction is destroyed, or what never was: no storage.
            self.accounts.insert(address, None);
            self.changes.accounts.insert(address, None);
            return;
        }
        let info = &account.info;
        if let Some(code) = info.code.as_ref().filter(|code| !code.is_empty()) {
            self.codes.entry(info.code_hash).or_insert_with(|| code.clone());
            if account.is_created() {
                self.changes.codes.insert(info.code_hash, code.original_byte_slice().to_vec());
            }
        }
        let stored =
            StoredAccount { nonce: info.nonce, balance: info.balance, code_hash: info.code_hash };
        self.changes.accounts.insert(address, Some(stored));
        self.accounts.insert(address, Some(info.clone()));
        for (slot, value) in account.changed_storage_slots() {
            self.slots.insert((address, *slot), value.present_value);
            self.changes.slots.insert((address, *slot), value.present_value);
        }
    }
}

impl Database for State {
    type Error = StateError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        if let Some(info) = self.accounts.get(&address) {
            return Ok(info.clone());
        }
        let info = match self.store.account(&address)? {
            None => None,
            Some(stored) => {
                let code = self.code_by_hash(stored.code_hash)?;
                Some(AccountInfo {
                    balance: stored.balance,
                    nonce: stored.nonce,
                    code_hash: stored.code_hash,
                    account_id: None,
                    code: Some(code),
                })
            }
        };
        self.accounts.insert(address, info.clone());
        Ok(info)
    }

    fn code_by_hash(&mut self, hash: B256) -> Result<Bytecode, StateError> {
        if hash == KECCAK256_EMPTY {
            return Ok(Bytecode::default());
        }
        if let Some(code) = self.codes.get(&hash) {
            return Ok(code.clone());
        }
        let missing = || StoreError::Rotten { table: "codes".to_owned() };
        let bytes = self.store.code(&hash)?.ok_or_else(missing)?;
        let code = Bytecode::new_raw_checked(bytes.into()).map_err(|_| missing())?;
        self.codes.insert(hash, code.clone());
        Ok(code)
    }

    fn storage(&mut self, address: Address, slot: U256) -> Result<U256, StateError> {
        if let Some(value) = self.slots.get(&(address, slot)) {
            return Ok(*value);
        }
        let value = self.store.slot(&address, &slot)?;
        self.slots.insert((address, slot), value);
        Ok(value)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StateError> {
        if number > self.head || self.head - number >= HASHES {
            return Ok(B256::ZERO);
        }
        Ok(self.store.header(number)?.map(|header| header.hash()).unwrap_or_default())
    }
}

impl DatabaseCommit for State {
    fn commit(&mut self, changes: AddressMap<Account>) {
        for (address, account) in changes {
            if account.is_touched() {
                self.commit_account(address, &account);
            }
        }
    }
}
