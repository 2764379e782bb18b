//! Checkpoints: changed stripes go to free slots, then one superblock commits them all.

use super::{RequestError, Volume};
use crate::geometry::{
    BLOCK_BYTES, Geometry, TAG_BYTES, UNIT_BLOCKS, UNIT_BYTES, UNIT_DATA_BYTES, UNIT_TAG_BYTES,
};
use crate::journal::Position;
use crate::keys::BlockAddress;
use crate::map::Mapping;
use crate::slot::SlotHeader;
use crate::store::{Store, StoreFile};
use crate::superblock::{JournalAnchor, Superblock};

/// A checkpoint that is under way.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// The stripes that are still to be written, last one first.
    todo: Vec<u64>,
    /// What was journaled before this place is in stripes once all of them are written.
    tail: Position,
}

/// A slot whose content is obsolete once the next superblock is durable.
#[derive(Debug)]
pub(super) struct Retired {
    slot: u32,
    /// The stripe was discarded: give the space back.
    punch: bool,
}

impl<S: Store> Volume<S> {
    /// Writes up to `stripes` changed stripes and commits when all are written; returns whether
    /// more is to do.
    pub(super) fn checkpoint_step(&mut self, stripes: usize) -> Result<bool, RequestError> {
        let mut checkpoint = match self.checkpoint.take() {
            Some(checkpoint) => checkpoint,
            None if !self.is_dirty() => return Ok(false),
            None => {
                self.seal();
                Checkpoint {
                    todo: self.overlay.stripes().rev().collect(),
                    tail: self.journal.head(),
                }
            }
        };
        for _ in 0..stripes {
            let Some(stripe) = checkpoint.todo.pop() else { break };
            self.checkpoint_stripe(stripe)?;
        }
        if checkpoint.todo.is_empty() {
            self.commit(checkpoint.tail.anchor())?;
            self.journal.trim(checkpoint.tail);
        } else {
            self.checkpoint = Some(checkpoint);
        }
        Ok(self.is_dirty())
    }

    /// Empties the journal.
    pub(super) fn checkpoint_all(&mut self) -> Result<(), RequestError> {
        self.check_stores()?;
        while self.checkpoint_step(usize::MAX)? {}
        Ok(())
    }

    /// Whether a checkpoint would do anything.
    pub(super) fn is_dirty(&self) -> bool {
        self.checkpoint.is_some()
            || !self.overlay.is_empty()
            || !self.journal.is_clean()
            || self.journal.used_bytes() > 0
    }

    /// Writes the newest version of a stripe to a free slot.
    fn checkpoint_stripe(&mut self, stripe: u64) -> Result<(), RequestError> {
        let old = self.map.get(stripe);
        let reads_zero = old.is_none_or(|old| old.zero);
        let Some(dirty) = self.overlay.get(stripe) else { return Ok(()) };
        let zero = dirty.is_zero(reads_zero);
        if zero && reads_zero {
            self.overlay.remove(stripe);
            return Ok(());
        }
        let slot = match self.map.take_slot() {
            Some(slot) => slot,
            None => {
                self.commit(self.superblock.journal)?;
                // See Geometry::slots: the commit freed at least one.
                self.map.take_slot().ok_or(RequestError::Stopped)?
            }
        };
        let mut units = std::mem::take(&mut self.units);
        units.resize(self.codec.stripe_bytes(), 0);
        let lost = if zero { 0 } else { self.fill_stripe(stripe, &mut units) };
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let mut mapping = Mapping { sequence, slot, keys: self.opening, present: 0, zero };
        if !zero {
            self.seal_stripe(stripe, sequence, &mut units);
        }
        let usable = self.shards.usable();
        mapping.present = self.write_units(stripe, mapping, lost, &units, usable);
        self.units = units;
        self.check_stores()?;
        if let Some(old) = self.map.set(stripe, mapping, lost, &self.keys) {
            self.retired.push(Retired { slot: old.slot, punch: zero });
        }
        self.overlay.remove(stripe);
        self.lost.remove(&stripe);
        if mapping.present == self.geometry.all_shards() {
            self.degraded.remove(&stripe);
        } else {
            self.degraded.insert(stripe);
        }
        Ok(())
    }

    /// Fills the data units with the stripe's plain blocks; returns the mask of the lost ones.
    fn fill_stripe(&mut self, stripe: u64, units: &mut [u8]) -> u128 {
        let mut lost = 0u128;
        let data_units = units.chunks_exact_mut(UNIT_BYTES).enumerate();
        for (shard, unit) in data_units.take(usize::from(self.geometry.data_shards())) {
            let Some(unit) = unit.get_mut(UNIT_TAG_BYTES..) else { continue };
            let first = shard * UNIT_BLOCKS;
            if self.read_blocks(stripe, first, unit).is_ok() {
                continue;
            }
            // Some block is lost: keep the others, and say which it was.
            for (inner, block) in unit.chunks_exact_mut(BLOCK_BYTES).enumerate() {
                let index = first + inner;
                if self.read_blocks(stripe, index, block).is_err() {
                    block.fill(0);
                    lost |= 1 << index;
                }
            }
        }
        lost
    }

    /// Encrypts the data units in place and computes the parity units.
    fn seal_stripe(&self, stripe: u64, sequence: u64, units: &mut [u8]) {
        let keys = Self::own_keys(&self.keys, self.opening);
        let data_units = units.chunks_exact_mut(UNIT_BYTES).enumerate();
        for (shard, unit) in data_units.take(usize::from(self.geometry.data_shards())) {
            let (tags, blocks) = unit.split_at_mut(UNIT_TAG_BYTES);
            let tags = tags.chunks_exact_mut(TAG_BYTES);
            for (inner, (block, tag)) in blocks.chunks_exact_mut(BLOCK_BYTES).zip(tags).enumerate()
            {
                let index = shard * UNIT_BLOCKS + inner;
                let address = BlockAddress { stripe, sequence, index };
                tag.copy_from_slice(&keys.seal_block(address, block));
            }
        }
        self.codec.encode(units);
    }

    /// Writes units and headers of one version to the shards `targets`; returns those that took it.
    fn write_units(
        &mut self,
        stripe: u64,
        mapping: Mapping,
        lost: u128,
        units: &[u8],
        targets: u32,
    ) -> u32 {
        let mut present = 0;
        for shard in self.shards.usable_in(targets) {
            let Some(unit) = units.get(shard * UNIT_BYTES..(shard + 1) * UNIT_BYTES) else {
                break;
            };
            let header = self.unit_header(stripe, mapping, lost, shard, unit);
            if self.write_data(shard, mapping, unit) && self.write_header(shard, mapping, &header) {
                present |= 1 << shard;
            }
        }
        present
    }

    /// The header of one unit; the same unit always gets the same header.
    pub(super) fn unit_header(
        &self,
        stripe: u64,
        mapping: Mapping,
        lost: u128,
        shard: usize,
        unit: &[u8],
    ) -> Vec<u8> {
        let Mapping { sequence, slot, zero, .. } = mapping;
        let keys = Self::own_keys(&self.keys, mapping.keys);
        let (unit_crc, unit_mac, tags) = if zero {
            (0, [0; TAG_BYTES], [0; UNIT_TAG_BYTES])
        } else {
            let tags = unit.first_chunk().copied().unwrap_or([0; UNIT_TAG_BYTES]);
            (crc32c::crc32c(unit), keys.unit_mac(sequence, shard as u8, unit), tags)
        };
        let shard = shard as u8;
        let header =
            SlotHeader { shard, slot, stripe, sequence, zero, lost, unit_crc, unit_mac, tags };
        header.encode(&self.geometry, self.keys.uuid(), keys).to_vec()
    }

    pub(super) fn write_data(&mut self, shard: usize, mapping: Mapping, unit: &[u8]) -> bool {
        let data = unit.get(UNIT_TAG_BYTES..).unwrap_or_default();
        let offset = self.geometry.data_offset(mapping.slot);
        mapping.zero || self.shards.write(shard, StoreFile::Shard, offset, data)
    }

    pub(super) fn write_header(&mut self, shard: usize, mapping: Mapping, header: &[u8]) -> bool {
        let offset = self.geometry.header_offset(mapping.slot);
        self.shards.write(shard, StoreFile::Shard, offset, header)
    }

    /// Makes all stripes that were written so far, and `journal` as the start of the journal,
    /// what the volume is after a crash.
    ///
    /// The journal is made durable first: what a stripe contains must not become durable before
    /// an older write that is only in the journal.
    fn commit(&mut self, journal: JournalAnchor) -> Result<(), RequestError> {
        self.seal();
        self.journal.sync(&mut self.shards);
        self.shards.sync(u32::MAX, StoreFile::Shard);
        self.check_stores()?;
        self.superblock = Superblock {
            generation: self.superblock.generation + 1,
            committed: self.next_sequence - 1,
            mapped: self.map.mapped(),
            map_sum: self.map.sum(),
            journal,
            members: self.shards.usable(),
            ..self.superblock
        };
        self.write_superblocks(u32::MAX);
        self.check_stores()?;
        for Retired { slot, punch } in std::mem::take(&mut self.retired) {
            if punch {
                let offset = self.geometry.data_offset(slot);
                self.shards.punch(StoreFile::Shard, offset, UNIT_DATA_BYTES as u64);
            }
            self.map.release(slot);
        }
        Ok(())
    }

    /// Makes it durable that stores were given up, if any were since the last superblock.
    ///
    /// Before this, a store that comes back counts as whole, and what was written without it may be
    /// lost with fewer than *m* others: no flush is acknowledged before.
    pub(super) fn settle_members(&mut self) -> Result<(), RequestError> {
        loop {
            let usable = self.shards.usable();
            if self.superblock.members & !usable == 0 {
                return Ok(());
            }
            // The stripes of a checkpoint that is under way stay uncommitted.
            self.superblock = Superblock {
                generation: self.superblock.generation + 1,
                members: usable,
                ..self.superblock
            };
            self.write_superblocks(u32::MAX);
            self.check_stores()?;
        }
    }

    /// Makes the superblock durable on the shards of `mask`.
    pub(super) fn write_superblocks(&mut self, mask: u32) {
        let offset = Geometry::superblock_offset(self.superblock.generation);
        for shard in self.shards.usable_in(mask) {
            let superblock = Superblock { shard: shard as u8, ..self.superblock };
            let bytes = superblock.encode(self.keys.volume_key());
            self.shards.write(shard, StoreFile::Shard, offset, &bytes);
        }
        self.shards.sync(mask, StoreFile::Shard);
    }
}
