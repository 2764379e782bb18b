//! The journal: a ring of records, the same bytes on m + 1 stores, so that any m may be lost.
//!
//! ```text
//!            tail (anchor in the superblock)     head
//!   ┌──────────┬─────────┬─────────┬──────────────┬───────────────┐
//!   │ free     │ record  │ record  │ record       │ free          │
//!   └──────────┴─────────┴─────────┴──────────────┴───────────────┘
//! ```
//!
//! Writes gather in one pending record until a flush or until it is full: all flushes of a batch
//! cost one record and one fdatasync per copy. A record never wraps; where it would, a record that
//! says so fills the end of the file.
//!
//! **The pending record always fits.** The ring is asked for room before each block is added.

mod record;
pub(crate) mod replay;

use record::{ENTRIES_MAX, HEADER_BYTES, PAYLOAD_BLOCKS_MAX, seal_record};
pub use record::{Extent, Record, RecordError, parse_record};

use crate::geometry::{BLOCK_BYTES, Geometry, TAG_BYTES};
use crate::keys::{EpochKeys, Uuid};
use crate::shards::ShardSet;
use crate::store::{Store, StoreFile};
use crate::superblock::JournalAnchor;

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) offset: u64,
    pub(crate) sequence: u64,
    pub(crate) tag: [u8; TAG_BYTES],
    /// The bytes of the ring that were ever used up to here, counted since the open.
    pub(crate) total: u64,
}

impl Position {
    pub(crate) fn at(anchor: JournalAnchor) -> Self {
        let JournalAnchor { offset, sequence, tag } = anchor;
        Self { offset, sequence, tag, total: 0 }
    }

    pub(crate) fn anchor(&self) -> JournalAnchor {
        JournalAnchor { offset: self.offset, sequence: self.sequence, tag: self.tag }
    }

    pub(crate) fn advance(&mut self, bytes: u64, tag: [u8; TAG_BYTES]) {
        self.offset += bytes;
        self.total += bytes;
        self.sequence += 1;
        self.tag = tag;
    }

    /// Goes to the start of the file, past `waste` bytes at its end.
    pub(crate) fn wrap(&mut self, waste: u64) {
        self.offset = 0;
        self.total += waste;
    }
}

/// The ring and the record that is being gathered.
#[derive(Debug)]
pub(crate) struct Journal {
    capacity: u64,
    head: Position,
    tail_total: u64,
    /// The stores that hold a copy; those that fail are dropped by the shard set.
    copies: u32,
    batch_blocks: usize,
    extents: Vec<Extent>,
    /// Room for a header, then the pending payload.
    buffer: Vec<u8>,
    /// The bytes of records that were written and not yet synced.
    unsynced_bytes: u64,
}

impl Journal {
    /// The ring whose live part ends at `head`, kept on the shards in the mask `copies`.
    pub(crate) fn new(geometry: &Geometry, head: Position, copies: u32) -> Self {
        let capacity = geometry.journal_bytes();
        let quarter = (capacity / 4) as usize / BLOCK_BYTES;
        Self {
            capacity,
            head,
            tail_total: 0,
            copies,
            batch_blocks: quarter.saturating_sub(1).clamp(1, PAYLOAD_BLOCKS_MAX),
            extents: Vec::new(),
            buffer: vec![0; HEADER_BYTES],
            unsynced_bytes: 0,
        }
    }

    /// The shards that were to hold a copy when the volume was opened.
    pub(crate) fn copies(&self) -> u32 {
        self.copies
    }

    /// Where the next record goes.
    pub(crate) fn head(&self) -> Position {
        self.head
    }

    /// The bytes between tail and head.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.head.total - self.tail_total
    }

    /// The bytes of the ring.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The bytes of blocks in the pending record.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.buffer.len() - HEADER_BYTES
    }

    /// The bytes that a crash may lose.
    pub(crate) fn unflushed_bytes(&self) -> u64 {
        self.unsynced_bytes + self.pending_bytes() as u64
    }

    /// Whether nothing waits to be written or synced.
    pub(crate) fn is_clean(&self) -> bool {
        self.extents.is_empty() && self.unsynced_bytes == 0
    }

    /// Whether the pending record has room for one more block (or zeroed run).
    pub(crate) fn batch_is_full(&self) -> bool {
        self.extents.len() >= ENTRIES_MAX || self.pending_bytes() >= self.batch_blocks * BLOCK_BYTES
    }

    /// Whether the pending record with one more block fits the ring.
    pub(crate) fn has_room(&self) -> bool {
        let len = (self.buffer.len() + BLOCK_BYTES) as u64;
        let to_end = self.capacity - self.head.offset;
        let waste = if to_end < len { to_end } else { 0 };
        self.used_bytes() + waste + len <= self.capacity
    }

    /// Adds the content of a block to the pending record.
    pub(crate) fn add_block(&mut self, block: u64, content: &[u8; BLOCK_BYTES]) {
        self.buffer.extend_from_slice(content);
        if let Some(last) = self.extents.last_mut()
            && !last.zero
            && last.first_block + u64::from(last.count) == block
        {
            last.count += 1;
            return;
        }
        self.extents.push(Extent { first_block: block, count: 1, zero: false });
    }

    /// Adds a zeroed run to the pending record.
    pub(crate) fn add_zero(&mut self, first_block: u64, count: u32) {
        self.extents.push(Extent { first_block, count, zero: true });
    }

    /// Writes the pending record, if there is one, to all copies. It is not durable yet.
    pub(crate) fn seal<S: Store>(
        &mut self,
        shards: &mut ShardSet<S>,
        keys: &EpochKeys,
        uuid: Uuid,
    ) {
        if self.extents.is_empty() {
            return;
        }
        let len = self.buffer.len() as u64;
        let to_end = self.capacity - self.head.offset;
        if to_end < len {
            if to_end > 0 {
                let mut header = [0; HEADER_BYTES];
                let place = (self.head.sequence, self.head.tag);
                let tag = seal_record(&mut header, &[], place, keys, uuid);
                self.write(shards, &header);
                self.head.advance(HEADER_BYTES as u64, tag);
            }
            self.head.wrap(to_end.saturating_sub(HEADER_BYTES as u64));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let place = (self.head.sequence, self.head.tag);
        let tag = seal_record(&mut buffer, &self.extents, place, keys, uuid);
        self.write(shards, &buffer);
        self.head.advance(len, tag);
        buffer.truncate(HEADER_BYTES);
        self.buffer = buffer;
        self.extents.clear();
        self.unsynced_bytes += len;
    }

    fn write<S: Store>(&self, shards: &mut ShardSet<S>, bytes: &[u8]) {
        for shard in shards.usable_in(self.copies) {
            shards.write(shard, StoreFile::Journal, self.head.offset, bytes);
        }
    }

    /// Makes all records durable on all copies; those that fail are given up.
    pub(crate) fn sync<S: Store>(&mut self, shards: &mut ShardSet<S>) {
        if self.unsynced_bytes > 0 {
            shards.sync(self.copies, StoreFile::Journal);
            self.unsynced_bytes = 0;
        }
    }

    /// Frees everything before `tail`, which a durable superblock names as its anchor.
    pub(crate) fn trim(&mut self, tail: Position) {
        self.tail_total = tail.total;
    }
}
