//! The task that writes: batches of changes, and the compaction that makes room for them.
//!
//! ```text
//! changes ──► admit ──► room in the region? ── no ──► compact into the other region ─┐
//!                             │ yes                                                  │
//!                             ▼                                                      │
//!               write batch + flush ──► index, cache ──► replies      ◄──────────────┘
//! ```
//!
//! A failed write leaves unknown bytes behind the tail. Before the next batch a new epoch is made
//! durable, so that none of them can ever be taken for a part of the log.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

use super::format::{BATCH_BYTES_MAX, Batch, RECORD_BYTES_MAX, Superblock, record_bytes};
use super::index::{Index, Place};
use super::recover::{Reader, Tail};
use super::store::{Change, Operation, State, Store, StoreError, write_superblock};
use crate::block::BlockError;
use crate::dma::DmaBuffer;
use crate::task::yield_now;

/// The share of a region that live records may fill, in eighths: the rest is what a compaction
/// gains, and what a deletion on a full store needs.
const LIVE_EIGHTHS_MAX: u64 = 7;

impl Store {
    /// Writes what the others ask for, for ever. Exactly one task runs this.
    pub async fn run(self) {
        loop {
            self.shared.work.notified().await;
            // The tasks that the same wait has woken put their changes into the same batch.
            yield_now().await;
            loop {
                let operations = self.take_batch();
                if operations.is_empty() {
                    break;
                }
                self.commit(operations).await;
            }
        }
    }

    /// As many pending changes as one batch holds.
    fn take_batch(&self) -> Vec<Operation> {
        let mut pending = self.shared.pending.borrow_mut();
        let mut bytes = 0;
        let count = pending
            .iter()
            .take_while(|operation| {
                bytes += operation.record_bytes();
                bytes <= BATCH_BYTES_MAX
            })
            .count();
        pending.drain(..count).collect()
    }

    async fn commit(&self, operations: Vec<Operation>) {
        let mut operations = self.admit(operations);
        if operations.is_empty() {
            return;
        }
        let result = self.write(&mut operations).await;
        let mut state = self.shared.state.borrow_mut();
        match result {
            Ok(places) => {
                for (operation, place) in operations.into_iter().zip(places) {
                    let change = state.apply(&operation, place);
                    operation.answer(Ok(change));
                }
            }
            Err(error) => {
                for operation in operations {
                    operation.answer(Err(error));
                }
            }
        }
    }

    /// Answers the changes that need no record or have no room; gives back the others.
    fn admit(&self, operations: Vec<Operation>) -> Vec<Operation> {
        let state = self.shared.state.borrow();
        let live_bytes_max = state.live_bytes_max();
        let (mut live, mut key_bytes) = (state.index.live_bytes(), state.index.key_bytes());
        // What the earlier changes of this batch leave: the record's size, or none.
        let mut overlay: BTreeMap<Rc<[u8]>, Option<u64>> = BTreeMap::new();
        let mut admitted = Vec::with_capacity(operations.len());
        for operation in operations {
            let key = &operation.key;
            let old = overlay.get(key).copied().unwrap_or_else(|| {
                let place = state.index.place(key)?;
                Some(record_bytes(key.len(), place.value_len) as u64)
            });
            let new = operation.value.is_some().then(|| operation.record_bytes() as u64);
            if old.is_none() && new.is_none() {
                operation.answer(Ok(Change::Absent));
                continue;
            }
            let live_after = live - old.unwrap_or(0) + new.unwrap_or(0);
            let key_after = match (old, new) {
                (None, Some(_)) => key_bytes + Index::key_cost(key),
                (Some(_), None) => key_bytes - Index::key_cost(key),
                _ => key_bytes,
            };
            let grows = new.unwrap_or(0) > old.unwrap_or(0);
            if grows
                && (live_after > live_bytes_max || key_after > self.shared.limits.index_bytes_max)
            {
                operation.answer(Err(StoreError::Full));
                continue;
            }
            (live, key_bytes) = (live_after, key_after);
            overlay.insert(Rc::clone(key), new);
            admitted.push(operation);
        }
        admitted
    }

    /// Makes a batch of `operations` durable; returns each one's place. Those for which there is
    /// no room even after a compaction are answered and taken out.
    async fn write(&self, operations: &mut Vec<Operation>) -> Result<Vec<Place>, StoreError> {
        if self.shared.state.borrow().uncertain {
            self.begin_epoch().await?;
        }
        if !self.shared.state.borrow().has_room(operations) {
            self.compact().await?;
            let state = self.shared.state.borrow();
            // A deletion always fits: the values that came last have to go.
            while !state.has_room(operations) {
                let last = operations.iter().rposition(|operation| operation.value.is_some());
                let Some(last) = last else { break };
                operations.remove(last).answer(Err(StoreError::Full));
            }
        }
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        let (superblock, tail) = self.position();
        let mut batch = Batch::new(&superblock, tail.sequence);
        let places = operations
            .iter()
            .map(|operation| {
                let (at, sequence) = batch.push(&operation.key, operation.value.as_deref());
                let value_len = operation.value.as_ref().map_or(0, |value| value.len());
                Place { offset: tail.offset + at as u64, sequence, value_len }
            })
            .collect();
        let count = u64::from(batch.len());
        let bytes = batch.finish(superblock.block_bytes);
        let offset = superblock.region_offset(superblock.active_region) + tail.offset;
        let write = (offset, DmaBuffer::copy_of(&bytes));
        self.certain(self.shared.disk.write_durable(alloc::vec![write]).await)?;
        let mut state = self.shared.state.borrow_mut();
        state.tail.offset += bytes.len() as u64;
        state.tail.sequence += count;
        Ok(places)
    }

    /// Copies every live record to the other region and makes that one the log.
    async fn compact(&self) -> Result<(), StoreError> {
        let (old, tail) = self.position();
        let new = Superblock {
            generation: old.generation + 1,
            epoch: old.epoch + 1,
            active_region: 1 - old.active_region,
            first_sequence: tail.sequence,
            ..old
        };
        let live = self.shared.state.borrow().index.by_offset();
        let copied = self.copy(&old, &new, &live).await;
        let (places, tail) = self.certain_or(copied)?;
        self.certain(self.shared.disk.flush().await)?;
        self.certain(write_superblock(&self.shared.disk, &new).await)?;

        let mut state = self.shared.state.borrow_mut();
        state.superblock = new;
        state.tail = tail;
        for ((key, _), place) in live.iter().zip(places) {
            state.index.relocate(key, place);
        }
        Ok(())
    }

    /// Writes the records of `live` (in the order of their offsets) to `new`'s region.
    async fn copy(
        &self,
        old: &Superblock,
        new: &Superblock,
        live: &[(Rc<[u8]>, Place)],
    ) -> Result<(Vec<Place>, Tail), StoreError> {
        let mut reader = Reader::new(self.shared.disk.clone(), old);
        let mut places = Vec::with_capacity(live.len());
        let mut tail = Tail { offset: 0, sequence: new.first_sequence };
        let mut batch = Batch::new(new, tail.sequence);
        for (key, place) in live {
            let size = record_bytes(key.len(), place.value_len);
            if batch.bytes_len() + size > BATCH_BYTES_MAX {
                let full = core::mem::replace(&mut batch, Batch::new(new, tail.sequence));
                tail.offset += self.append(new, tail.offset, full).await?;
            }
            let value = reader.record_at(*place, key).await?.ok_or(StoreError::Corrupt)?;
            let (at, sequence) = batch.push(key, Some(value));
            tail.sequence = sequence + 1;
            let offset = tail.offset + at as u64;
            places.push(Place { offset, sequence, value_len: place.value_len });
        }
        tail.offset += self.append(new, tail.offset, batch).await?;
        Ok((places, tail))
    }

    async fn append(
        &self,
        superblock: &Superblock,
        offset: u64,
        batch: Batch,
    ) -> Result<u64, StoreError> {
        if batch.is_empty() {
            return Ok(0);
        }
        let bytes = batch.finish(superblock.block_bytes);
        let at = superblock.region_offset(superblock.active_region) + offset;
        self.shared.disk.write(at, DmaBuffer::copy_of(&bytes)).await?;
        Ok(bytes.len() as u64)
    }

    /// Makes a new epoch durable: whatever lies behind the tail belongs to an older one.
    async fn begin_epoch(&self) -> Result<(), StoreError> {
        let mut superblock = self.position().0;
        superblock.generation += 1;
        superblock.epoch += 1;
        write_superblock(&self.shared.disk, &superblock).await?;
        let mut state = self.shared.state.borrow_mut();
        state.superblock = superblock;
        state.uncertain = false;
        Ok(())
    }

    fn position(&self) -> (Superblock, Tail) {
        let state = self.shared.state.borrow();
        (state.superblock, state.tail)
    }

    fn certain(&self, result: Result<(), BlockError>) -> Result<(), StoreError> {
        self.certain_or(result.map_err(StoreError::Disk))
    }

    fn certain_or<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_err() {
            self.shared.state.borrow_mut().uncertain = true;
        }
        result
    }
}

impl State {
    /// How many bytes of live records the store takes.
    pub(super) fn live_bytes_max(&self) -> u64 {
        let region = self.superblock.region_bytes / 8 * LIVE_EIGHTHS_MAX;
        // A compaction writes batches that are at least this full, and pads each to a block.
        let batch_bytes_min = (BATCH_BYTES_MAX - RECORD_BYTES_MAX) as u64;
        let batches = region / batch_bytes_min + 1;
        region.saturating_sub(batches * u64::from(self.superblock.block_bytes))
    }

    fn has_room(&self, operations: &[Operation]) -> bool {
        let bytes: usize = operations.iter().map(Operation::record_bytes).sum();
        let padded = (bytes as u64).next_multiple_of(u64::from(self.superblock.block_bytes));
        self.tail.offset + padded <= self.superblock.region_bytes
    }

    fn apply(&mut self, operation: &Operation, place: Place) -> Change {
        let Some(value) = &operation.value else {
            let removed = self.index.remove(&operation.key);
            return if removed { Change::Deleted } else { Change::Absent };
        };
        let created = self.index.put(&operation.key, place);
        self.index.cache(&operation.key, place, value);
        if created { Change::Created } else { Change::Replaced }
    }
}

impl Operation {
    fn record_bytes(&self) -> usize {
        record_bytes(self.key.len(), self.value.as_ref().map_or(0, |value| value.len()))
    }

    fn answer(self, result: Result<Change, StoreError>) {
        self.reply.result.set(Some(result));
        self.reply.done.notify();
    }
}
