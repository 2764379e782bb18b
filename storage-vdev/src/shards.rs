//! The stores of a volume, and which of them still count.
//!
//! A store that fails to write or to sync is given up until the volume is opened again: after a
//! failed fsync nobody knows what is on it, and asking again may succeed without having written.

use std::io;

use crate::store::{Store, StoreFile};

/// What a store was asked to do when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Open or make its files.
    Open,
    /// Write.
    Write,
    /// Make written data durable.
    Sync,
}

/// Why a store was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What failed.
    pub operation: Operation,
    /// How.
    pub kind: io::ErrorKind,
}

#[derive(Debug)]
struct Shard<S> {
    store: S,
    fault: Option<Fault>,
}

/// The stores in shard order.
#[derive(Debug)]
pub(crate) struct ShardSet<S> {
    shards: Vec<Shard<S>>,
}

impl<S: Store> ShardSet<S> {
    pub(crate) fn new(stores: Vec<S>) -> Self {
        let shards = stores.into_iter().map(|store| Shard { store, fault: None }).collect();
        Self { shards }
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.len()
    }

    pub(crate) fn name(&self, shard: usize) -> String {
        self.shards.get(shard).map(|shard| shard.store.name()).unwrap_or_default()
    }

    pub(crate) fn fault(&self, shard: usize) -> Option<Fault> {
        self.shards.get(shard).and_then(|shard| shard.fault)
    }

    /// The mask of the stores that have not been given up.
    pub(crate) fn usable(&self) -> u32 {
        self.usable_in(u32::MAX).fold(0, |mask, shard| mask | 1 << shard)
    }

    /// The usable shards of a mask, lowest first.
    pub(crate) fn usable_in(&self, mask: u32) -> impl Iterator<Item = usize> + use<S> {
        let usable: u32 = self
            .shards
            .iter()
            .enumerate()
            .filter(|(_, shard)| shard.fault.is_none())
            .fold(0, |mask, (index, _)| mask | 1 << index);
        (0..self.shards.len()).filter(move |shard| (mask & usable) >> shard & 1 == 1)
    }

    pub(crate) fn file_len(&self, shard: usize, file: StoreFile) -> io::Result<Option<u64>> {
        match self.shards.get(shard) {
            Some(shard) => shard.store.len(file),
            None => Ok(None),
        }
    }

    /// Reads from a store whether it counts or not; false if the bytes could not all be read.
    pub(crate) fn read(
        &self,
        shard: usize,
        file: StoreFile,
        offset: u64,
        buffer: &mut [u8],
    ) -> bool {
        let Some(shard) = self.shards.get(shard) else { return false };
        shard.store.read_at(file, offset, buffer).is_ok()
    }

    /// Writes to a store, or gives it up; false if it is given up.
    pub(crate) fn write(
        &mut self,
        shard: usize,
        file: StoreFile,
        offset: u64,
        bytes: &[u8],
    ) -> bool {
        self.run(shard, Operation::Write, |store| store.write_at(file, offset, bytes))
    }

    /// Makes a file durable on each store of `mask`, or gives the store up.
    pub(crate) fn sync(&mut self, mask: u32, file: StoreFile) {
        for shard in self.usable_in(mask) {
            self.run(shard, Operation::Sync, |store| store.sync(file));
        }
    }

    /// Makes a file, or gives the store up.
    pub(crate) fn create(&mut self, shard: usize, file: StoreFile, len: u64, head: &[u8]) -> bool {
        self.run(shard, Operation::Open, |store| store.create(file, len, head))
    }

    /// Moves files of another volume out of the way, or gives the store up.
    pub(crate) fn set_aside(&mut self, shard: usize) -> bool {
        self.run(shard, Operation::Open, S::set_aside)
    }

    /// Gives space back where the store can.
    pub(crate) fn punch(&mut self, file: StoreFile, offset: u64, len: u64) {
        for shard in self.usable_in(u32::MAX) {
            if let Some(shard) = self.shards.get_mut(shard)
                && shard.store.punch(file, offset, len).is_err()
            {
                tracing::debug!(store = %shard.store.name(), "space could not be given back");
            }
        }
    }

    /// Gives a store up for a reason that was found outside.
    pub(crate) fn give_up(&mut self, shard: usize, fault: Fault) {
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.fault.get_or_insert(fault);
        }
    }

    fn run(
        &mut self,
        shard: usize,
        operation: Operation,
        action: impl FnOnce(&mut S) -> io::Result<()>,
    ) -> bool {
        let Some(shard) = self.shards.get_mut(shard) else { return false };
        if shard.fault.is_some() {
            return false;
        }
        let Err(error) = action(&mut shard.store) else { return true };
        tracing::warn!(store = %shard.store.name(), ?operation, %error, "store given up");
        shard.fault = Some(Fault { operation, kind: error.kind() });
        false
    }
}
