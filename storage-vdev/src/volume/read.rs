//! Reading: overlay first, then the one shard that has the block, then any k shards.

use super::{RequestError, Volume};
use crate::geometry::SLOT_HEADER_BYTES;
use crate::geometry::{BLOCK_BYTES, TAG_BYTES, UNIT_BLOCKS, UNIT_BYTES, UNIT_TAG_BYTES};
use crate::keys::BlockAddress;
use crate::map::Mapping;
use crate::overlay::Dirty;
use crate::slot::{SlotHeader, TAGS_OFFSET};
use crate::store::{Store, StoreFile};

/// A stripe whose data units were brought back from others: still encrypted.
#[derive(Debug)]
pub(super) struct Decoded {
    stripe: u64,
    sequence: u64,
    units: Vec<u8>,
}

/// How many units [`Volume::gather`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Enough to decode.
    Enough,
    /// All that there are.
    All,
}

impl<S: Store> Volume<S> {
    /// Reads whole sectors.
    pub(super) fn read(&mut self, mut offset: u64, buffer: &mut [u8]) -> Result<(), RequestError> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let (stripe, index) = self.geometry.locate(offset / BLOCK_BYTES as u64);
            let skip = (offset % BLOCK_BYTES as u64) as usize;
            let whole = rest.len() / BLOCK_BYTES;
            let len = if skip == 0 && whole > 0 {
                whole.min(self.geometry.stripe_blocks() - index) * BLOCK_BYTES
            } else {
                (BLOCK_BYTES - skip).min(rest.len())
            };
            let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
            if len.is_multiple_of(BLOCK_BYTES) {
                self.read_blocks(stripe, index, now)?;
            } else {
                let mut block = [0; BLOCK_BYTES];
                self.read_blocks(stripe, index, &mut block)?;
                now.copy_from_slice(block.get(skip..skip + len).unwrap_or_default());
            }
            offset += len as u64;
            rest = later;
        }
        Ok(())
    }

    /// Reads whole blocks of one stripe, from block `first` of it on.
    pub(super) fn read_blocks(
        &mut self,
        stripe: u64,
        first: usize,
        out: &mut [u8],
    ) -> Result<(), RequestError> {
        let mut index = first;
        let mut rest = out;
        while !rest.is_empty() {
            let dirty = self.overlay.get(stripe);
            let is_clean = |index| dirty.is_none_or(|dirty| *dirty.block(index) == Dirty::Clean);
            let unit_end = (index / UNIT_BLOCKS + 1) * UNIT_BLOCKS;
            let most = unit_end.min(index + rest.len() / BLOCK_BYTES);
            let clean = (index..most).take_while(|index| is_clean(*index)).count();
            let count = clean.max(1);
            let (now, later) = std::mem::take(&mut rest).split_at_mut(count * BLOCK_BYTES);
            match dirty.map(|dirty| dirty.block(index)) {
                Some(Dirty::Data(content)) => now.copy_from_slice(content.as_slice()),
                Some(Dirty::Zero) => now.fill(0),
                Some(Dirty::Clean) | None => self.read_stored(stripe, index, now)?,
            }
            index += count;
            rest = later;
        }
        Ok(())
    }

    /// Reads whole blocks of one unit from the stores.
    fn read_stored(
        &mut self,
        stripe: u64,
        first: usize,
        out: &mut [u8],
    ) -> Result<(), RequestError> {
        let Some(mapping) = self.map.get(stripe).filter(|mapping| !mapping.zero) else {
            out.fill(0);
            return Ok(());
        };
        let count = out.len() / BLOCK_BYTES;
        if (first..first + count).any(|index| self.map.lost(stripe) >> index & 1 == 1) {
            return Err(RequestError::Lost { stripe });
        }
        let shard = first / UNIT_BLOCKS;
        if mapping.present & self.shards.usable() & (1 << shard) != 0 {
            if self.read_unit(stripe, mapping, first, out) {
                return Ok(());
            }
            self.mark_missing(stripe, 1 << shard);
        }
        self.decode(stripe)?;
        let Some(decoded) = &self.decoded else { return Err(RequestError::Lost { stripe }) };
        let unit_start = shard * UNIT_BYTES;
        let inner = first % UNIT_BLOCKS;
        let tags_start = unit_start + inner * TAG_BYTES;
        let data_start = unit_start + UNIT_TAG_BYTES + inner * BLOCK_BYTES;
        let tags = decoded.units.get(tags_start..tags_start + count * TAG_BYTES);
        let data = decoded.units.get(data_start..data_start + out.len());
        let (Some(tags), Some(data)) = (tags, data) else {
            return Err(RequestError::Lost { stripe });
        };
        out.copy_from_slice(data);
        if self.open_blocks(stripe, mapping, first, tags, out) {
            Ok(())
        } else {
            Err(RequestError::Lost { stripe })
        }
    }

    /// Reads blocks from the shard that has them; false if that doesn't give authentic blocks.
    fn read_unit(&self, stripe: u64, mapping: Mapping, first: usize, out: &mut [u8]) -> bool {
        let shard = first / UNIT_BLOCKS;
        let inner = first % UNIT_BLOCKS;
        let mut tags = [0; UNIT_TAG_BYTES];
        let count = out.len() / BLOCK_BYTES;
        let Some(tags) = tags.get_mut(..count * TAG_BYTES) else { return false };
        let tags_at =
            self.geometry.header_offset(mapping.slot) + TAGS_OFFSET + (inner * TAG_BYTES) as u64;
        let data_at = self.geometry.data_offset(mapping.slot) + (inner * BLOCK_BYTES) as u64;
        self.shards.read(shard, StoreFile::Shard, tags_at, tags)
            && self.shards.read(shard, StoreFile::Shard, data_at, out)
            && self.open_blocks(stripe, mapping, first, tags, out)
    }

    fn open_blocks(
        &self,
        stripe: u64,
        mapping: Mapping,
        first: usize,
        tags: &[u8],
        blocks: &mut [u8],
    ) -> bool {
        let Some(keys) = self.keys.get(mapping.keys) else { return false };
        let tags = tags.as_chunks::<TAG_BYTES>().0;
        blocks.chunks_exact_mut(BLOCK_BYTES).zip(tags).enumerate().all(
            |(position, (block, tag))| {
                let index = first + position;
                let address = BlockAddress { stripe, sequence: mapping.sequence, index };
                keys.open_block(address, block, *tag).is_ok()
            },
        )
    }

    /// Brings the data units of a stripe into `self.decoded`.
    fn decode(&mut self, stripe: u64) -> Result<(), RequestError> {
        let mapping = self.map.get(stripe).ok_or(RequestError::Lost { stripe })?;
        let sequence = mapping.sequence;
        let cached = self.decoded.take();
        let mut units = match cached {
            Some(decoded) if (decoded.stripe, decoded.sequence) == (stripe, sequence) => {
                self.decoded = Some(decoded);
                return Ok(());
            }
            Some(decoded) => decoded.units,
            None => vec![0; self.codec.stripe_bytes()],
        };
        let good = self.gather(stripe, mapping, &mut units, Want::Enough);
        if !self.codec.reconstruct(&mut units, good, true) {
            self.lost.insert(stripe);
            return Err(RequestError::Lost { stripe });
        }
        self.decoded = Some(Decoded { stripe, sequence, units });
        Ok(())
    }

    /// Reads units of a stripe into their places in `units`; returns the mask of those that are
    /// whole and authentic. Those that aren't are marked as missing.
    pub(super) fn gather(
        &mut self,
        stripe: u64,
        mapping: Mapping,
        units: &mut [u8],
        want: Want,
    ) -> u32 {
        let mut good = 0u32;
        for shard in self.shards.usable_in(mapping.present) {
            if want == Want::Enough && good.count_ones() >= u32::from(self.geometry.data_shards()) {
                break;
            }
            let start = shard * UNIT_BYTES;
            let Some(unit) = units.get_mut(start..start + UNIT_BYTES) else { break };
            if self.gather_unit(stripe, mapping, shard, unit) {
                good |= 1 << shard;
            } else {
                self.mark_missing(stripe, 1 << shard);
            }
        }
        good
    }

    fn gather_unit(
        &mut self,
        stripe: u64,
        mapping: Mapping,
        shard: usize,
        unit: &mut [u8],
    ) -> bool {
        let mut header = [0; SLOT_HEADER_BYTES];
        let header_at = self.geometry.header_offset(mapping.slot);
        let data_at = self.geometry.data_offset(mapping.slot);
        let Some((tags, data)) = unit.split_at_mut_checked(UNIT_TAG_BYTES) else { return false };
        if !self.shards.read(shard, StoreFile::Shard, header_at, &mut header) {
            return false;
        }
        let place = (shard as u8, mapping.slot);
        let parsed = SlotHeader::parse(&header, place, &self.geometry, &mut self.keys);
        let Ok(Some((header, keys))) = parsed else { return false };
        let is_it = (header.stripe, header.sequence, header.zero, keys)
            == (stripe, mapping.sequence, mapping.zero, mapping.keys);
        if !is_it || mapping.zero {
            return is_it;
        }
        if !self.shards.read(shard, StoreFile::Shard, data_at, data) {
            return false;
        }
        tags.copy_from_slice(&header.tags);
        let Some(keys) = self.keys.get(keys) else { return false };
        crc32c::crc32c(unit) == header.unit_crc
            && keys.unit_mac(header.sequence, header.shard, unit) == header.unit_mac
    }

    /// Remembers that shards lack (or have a damaged) unit of a stripe.
    pub(super) fn mark_missing(&mut self, stripe: u64, shards: u32) {
        let Some(mapping) = self.map.get(stripe) else { return };
        // Not louder: a damaged store would fill the log. The status has the count.
        tracing::debug!(stripe, shards, "unit missing or damaged");
        self.map.set_present(stripe, mapping.present & !shards);
        self.degraded.insert(stripe);
        self.rebuild_wanted = true;
    }
}
