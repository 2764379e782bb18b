//! A whole shard, checked.

use bytes::Bytes;

use super::head::{FormatError, SegmentHeader, ShardHead};
use super::shape::{CHUNK_BYTES, HEAD_BYTES, UNIT_BYTES};
use super::table::{Entry, open_unit};
use crate::keys::SegmentKeys;

/// A shard whose head is intact and whose other checksums have been computed. It may have damaged
/// chunks: the others are still of use.
#[derive(Debug, Clone)]
pub struct Shard {
    head: ShardHead,
    bytes: Bytes,
    /// A bit for each chunk whose checksum fits.
    intact: u32,
    table_is_intact: bool,
}

/// What is wrong with a shard whose head is intact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A checksum of the units doesn't fit.
    #[error("chunk {chunk} is damaged")]
    Chunk {
        /// The first such chunk.
        chunk: usize,
    },
    /// The table's checksum doesn't fit.
    #[error("the entry table is damaged")]
    Table,
    /// Not what the key sealed, in spite of its checksum: somebody lies.
    #[error("block {index} is not what was written")]
    NotAuthentic {
        /// The block.
        index: u16,
    },
}

impl Shard {
    /// Reads a shard's object and computes its checksums.
    ///
    /// # Errors
    /// Its head is not intact, or its length is not what the head says.
    pub fn parse(bytes: Bytes) -> Result<Self, FormatError> {
        let head = ShardHead::parse(&bytes)?;
        let expected = head.segment.object_bytes();
        if bytes.len() != expected {
            return Err(FormatError::Length { found: bytes.len(), expected });
        }
        let mut shard = Self { head, bytes, intact: 0, table_is_intact: false };
        let chunks = shard.units().chunks(CHUNK_BYTES).enumerate();
        shard.intact = chunks
            .filter(|(chunk, bytes)| shard.head.chunk_is_intact(*chunk, bytes))
            .fold(0, |intact, (chunk, _)| intact | 1 << chunk);
        shard.table_is_intact = crc32c::crc32c(shard.table()) == shard.head.segment.table_crc;
        Ok(shard)
    }

    /// Its head.
    #[must_use]
    pub fn head(&self) -> &ShardHead {
        &self.head
    }

    /// The common part of its head.
    #[must_use]
    pub fn segment(&self) -> &SegmentHeader {
        &self.head.segment
    }

    /// The bytes of the object.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its units, one after the other.
    #[must_use]
    pub fn units(&self) -> &[u8] {
        let end = HEAD_BYTES + self.head.segment.units_bytes();
        self.bytes.get(HEAD_BYTES..end).unwrap_or_default()
    }

    /// The unit of row `row`, if there is one.
    #[must_use]
    pub fn unit(&self, row: u16) -> Option<&[u8]> {
        let start = usize::from(row) * UNIT_BYTES;
        self.units().get(start..start + UNIT_BYTES)
    }

    /// Its chunk `chunk`, if there is one and its checksum fits.
    #[must_use]
    pub fn intact_chunk(&self, chunk: usize) -> Option<&[u8]> {
        let bit = u32::try_from(chunk).ok().and_then(|chunk| 1u32.checked_shl(chunk))?;
        self.units().chunks(CHUNK_BYTES).nth(chunk).filter(|_| self.intact & bit != 0)
    }

    /// The encrypted table, damaged or not.
    #[must_use]
    pub fn table(&self) -> &[u8] {
        let start = HEAD_BYTES + self.head.segment.units_bytes();
        self.bytes.get(start..).unwrap_or_default()
    }

    /// The table as a part of an object, if its checksum fits.
    pub(super) fn intact_table(&self) -> Option<Bytes> {
        self.table_is_intact.then(|| self.bytes.slice_ref(self.table()))
    }

    /// Whether all its checksums fit.
    ///
    /// # Errors
    /// The first that doesn't.
    pub fn check(&self) -> Result<(), Fault> {
        let chunks = 0..self.head.segment.chunks();
        if let Some(chunk) = chunks.into_iter().find(|chunk| self.intact >> chunk & 1 == 0) {
            return Err(Fault::Chunk { chunk });
        }
        if self.table_is_intact { Ok(()) } else { Err(Fault::Table) }
    }

    /// Whether the blocks in it are those that `entries` (of the segment's table) say, beside the
    /// checksums. A parity shard has no blocks: once all data shards have passed, rebuild it from
    /// them and compare.
    ///
    /// # Errors
    /// The first checksum, or block, that doesn't fit.
    pub fn check_blocks(&self, keys: &SegmentKeys, entries: &[Entry]) -> Result<(), Fault> {
        self.check()?;
        let shape = self.head.segment.shape;
        let places = entries.iter().flat_map(|entry| (0..).map_while(|nth| entry.place(nth)));
        let mut unit = Vec::with_capacity(UNIT_BYTES);
        for (index, place) in (0..self.head.segment.blocks).zip(places) {
            if shape.unit_at(index).0 != self.head.shard {
                continue;
            }
            unit.clear();
            unit.extend_from_slice(
                self.unit(index / u16::from(shape.data_shards())).unwrap_or_default(),
            );
            open_unit(keys, (self.head.segment.sequence, index), place, &mut unit)
                .map_err(|_| Fault::NotAuthentic { index })?;
        }
        Ok(())
    }
}
