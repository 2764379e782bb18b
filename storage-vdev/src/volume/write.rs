//! Writing: into the pending journal record and the overlay; a flush makes it durable.

use super::{RequestError, Volume};
use crate::geometry::BLOCK_BYTES;
use crate::journal::{Extent, Record};
use crate::store::Store;

/// How many stripes a write checkpoints once the journal is half full, so that it never has to
/// stop for all of them.
const PACE_STRIPES: usize = 4;
/// How many stripes one journal entry zeroes at most, and how many are checkpointed at once when
/// there are too many changed ones.
const ZERO_STRIPES: usize = 256;

impl<S: Store> Volume<S> {
    /// Writes whole sectors.
    pub(super) fn write(&mut self, mut offset: u64, data: &[u8]) -> Result<(), RequestError> {
        let mut rest = data;
        while !rest.is_empty() {
            let block = offset / BLOCK_BYTES as u64;
            let skip = (offset % BLOCK_BYTES as u64) as usize;
            let len = (BLOCK_BYTES - skip).min(rest.len());
            let (now, later) = rest.split_at(len);
            let mut content = Box::new([0; BLOCK_BYTES]);
            if len < BLOCK_BYTES {
                let (stripe, index) = self.geometry.locate(block);
                self.read_blocks(stripe, index, content.as_mut_slice())?;
            }
            if let Some(target) = content.get_mut(skip..skip + len) {
                target.copy_from_slice(now);
            }
            self.make_room()?;
            self.journal.add_block(block, &content);
            let (stripe, index) = self.geometry.locate(block);
            self.overlay.put(stripe, index, content);
            offset += len as u64;
            rest = later;
        }
        self.pace()
    }

    /// Zeroes whole sectors: parts of blocks by writing, runs of blocks in the overlay.
    pub(super) fn zero(&mut self, offset: u64, len: u64) -> Result<(), RequestError> {
        const BLOCK: u64 = BLOCK_BYTES as u64;
        const ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
        let end = offset + len;
        let first = offset.next_multiple_of(BLOCK).min(end);
        let last = (end / BLOCK * BLOCK).max(first);
        for (from, to) in [(offset, first), (last, end)] {
            self.write(from, ZEROES.get(..(to - from) as usize).unwrap_or_default())?;
        }
        let mut block = first / BLOCK;
        let most = (ZERO_STRIPES * self.geometry.stripe_blocks()) as u64;
        while block < last / BLOCK {
            let count = (last / BLOCK - block).min(most);
            self.make_room()?;
            self.journal.add_zero(block, count as u32);
            self.zero_blocks(block, count);
            self.limit_dirty()?;
            block += count;
        }
        self.pace()
    }

    /// Keeps the changed stripes to about as many as the journal has blocks. Writes can't make more;
    /// discards can, as one of a single block costs 16 bytes of journal, and one of a whole volume
    /// no more. So memory, and the longest checkpoint, follow the journal's size.
    fn limit_dirty(&mut self) -> Result<(), RequestError> {
        let most = (self.journal.capacity() / BLOCK_BYTES as u64 / 2) as usize;
        while self.overlay.len() > most {
            self.checkpoint_step(ZERO_STRIPES)?;
        }
        Ok(())
    }

    /// Makes everything written so far durable on all journal copies that are left.
    pub(super) fn flush(&mut self) -> Result<(), RequestError> {
        if self.stopped {
            return Err(RequestError::Stopped);
        }
        if !self.journal.is_clean() {
            self.seal();
            self.journal.sync(&mut self.shards);
            self.check_stores()?;
        }
        self.settle_members()
    }

    /// Writes the pending record.
    pub(super) fn seal(&mut self) {
        let keys = Self::own_keys(&self.keys, self.opening);
        self.journal.seal(&mut self.shards, keys, self.keys.uuid());
    }

    /// Puts a record that a crash left in the journal back into the overlay.
    pub(super) fn replay(&mut self, record: &Record) {
        let (blocks, _) = record.payload.as_chunks::<BLOCK_BYTES>();
        let mut blocks = blocks.iter();
        for Extent { first_block, count, zero } in &record.extents {
            if *zero {
                self.zero_blocks(*first_block, u64::from(*count));
                continue;
            }
            for (block, content) in (*first_block..).zip(blocks.by_ref().take(*count as usize)) {
                let (stripe, index) = self.geometry.locate(block);
                self.overlay.put(stripe, index, Box::new(*content));
            }
        }
    }

    /// Zeroes blocks in the overlay. Stripes that were never written are zero already.
    fn zero_blocks(&mut self, first: u64, count: u64) {
        let last = (first.saturating_add(count)).min(self.geometry.blocks());
        if first >= last {
            return;
        }
        let (first_stripe, _) = self.geometry.locate(first);
        let (last_stripe, _) = self.geometry.locate(last - 1);
        let mapped = self.map.range(first_stripe, last_stripe);
        let mut stripes: Vec<u64> =
            mapped.filter(|(_, mapping)| !mapping.zero).map(|(stripe, _)| stripe).collect();
        stripes.extend(self.overlay.range(first_stripe, last_stripe));
        let per_stripe = self.geometry.stripe_blocks() as u64;
        for stripe in stripes {
            let start = stripe * per_stripe;
            let from = first.saturating_sub(start);
            // The last stripe may reach beyond the volume's end: nobody sees that part.
            let to = if last == self.geometry.blocks() { per_stripe } else { last - start };
            self.overlay.zero(stripe, from as usize, to.min(per_stripe) as usize);
        }
    }

    /// Makes sure that one more block fits the pending record, and the record the ring.
    fn make_room(&mut self) -> Result<(), RequestError> {
        if self.journal.batch_is_full() {
            self.seal();
            self.check_stores()?;
        }
        if !self.journal.has_room() {
            self.seal();
            self.checkpoint_all()?;
        }
        Ok(())
    }

    /// Checkpoints a little while the journal is more than half full.
    fn pace(&mut self) -> Result<(), RequestError> {
        if self.journal.used_bytes() > self.journal.capacity() / 2 {
            self.checkpoint_step(PACE_STRIPES)?;
        }
        Ok(())
    }
}
