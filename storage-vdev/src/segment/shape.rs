//! How a segment's blocks lie in its shards.

use crate::codec::CODE_SHARDS_MAX;
use crate::geometry::BLOCK_BYTES;

/// The bytes of the authentication tag behind each block.
pub const UNIT_TAG_BYTES: usize = 16;

/// The bytes of a unit: a block's ciphertext and its tag.
pub const UNIT_BYTES: usize = BLOCK_BYTES + UNIT_TAG_BYTES;

/// The bytes of a shard's head; its units start here.
pub const HEAD_BYTES: usize = 512;

/// The units that one checksum covers: the last chunk of a shard may have fewer.
pub const CHUNK_UNITS: usize = 16;

/// The bytes that one checksum covers.
pub const CHUNK_BYTES: usize = CHUNK_UNITS * UNIT_BYTES;

/// The most units of a shard.
pub const ROWS_MAX: usize = 512;

/// The most checksums of a shard.
pub(super) const CHUNKS_MAX: usize = ROWS_MAX / CHUNK_UNITS;

/// How many shards a segment has. A *row* is one unit of each; block `j` is in row `j / k`, in data
/// shard `j % k`, so one block is read from one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    data_shards: u8,
    parity_shards: u8,
}

/// A shape that this code doesn't have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{data_shards}+{parity_shards} shards: at least one must carry data, and 32 are the most")]
pub struct ShapeError {
    /// k.
    pub data_shards: u8,
    /// m.
    pub parity_shards: u8,
}

impl Shape {
    /// `data_shards` (k, at least 1) and `parity_shards` (m), together at most 32.
    ///
    /// # Errors
    /// There is no such code.
    pub fn new(data_shards: u8, parity_shards: u8) -> Result<Self, ShapeError> {
        let shards = usize::from(data_shards) + usize::from(parity_shards);
        if data_shards == 0 || shards > CODE_SHARDS_MAX {
            return Err(ShapeError { data_shards, parity_shards });
        }
        Ok(Self { data_shards, parity_shards })
    }

    /// k: how many shards bring back the segment.
    #[must_use]
    pub fn data_shards(self) -> u8 {
        self.data_shards
    }

    /// m: how many may be lost.
    #[must_use]
    pub fn parity_shards(self) -> u8 {
        self.parity_shards
    }

    /// k + m.
    #[must_use]
    pub fn shards(self) -> u8 {
        self.data_shards + self.parity_shards
    }

    /// The most blocks of a segment: whole rows, at most 1024 blocks up to k = 8 and 4096 above,
    /// and no shard above [`ROWS_MAX`] units.
    #[must_use]
    pub fn blocks_max(self) -> u16 {
        let k = u16::from(self.data_shards);
        let blocks: u16 = if k <= 8 { 1024 } else { 4096 };
        (blocks / k).min(ROWS_MAX as u16) * k
    }

    /// How many units each shard of a segment with `blocks` blocks has.
    #[must_use]
    pub fn rows(self, blocks: u16) -> u16 {
        blocks.div_ceil(u16::from(self.data_shards))
    }

    /// Where the unit of block `index` is: the shard, and the offset in the shard's object. A unit
    /// has [`UNIT_BYTES`].
    #[must_use]
    pub fn unit_at(self, index: u16) -> (u8, u32) {
        let k = u16::from(self.data_shards);
        let shard = (index % k) as u8;
        (shard, self.row_offset(index / k))
    }

    /// Where the units of row `row` are in each shard's object.
    #[must_use]
    pub fn row_offset(self, row: u16) -> u32 {
        (HEAD_BYTES + usize::from(row) * UNIT_BYTES) as u32
    }

    /// The slot (place in the volume's list of nodes) that keeps shard `shard` of segment
    /// `sequence`. It turns with the sequence, so that reads load all nodes alike: parity shards
    /// are read only when something is lost.
    #[must_use]
    pub fn slot_of(self, sequence: u64, shard: u8) -> u8 {
        let shards = u64::from(self.shards());
        ((sequence % shards + u64::from(shard)) % shards) as u8
    }

    /// The shard of segment `sequence` that slot `slot` keeps: the inverse of [`Shape::slot_of`].
    #[must_use]
    pub fn shard_in(self, sequence: u64, slot: u8) -> u8 {
        let shards = u64::from(self.shards());
        ((u64::from(slot) % shards + shards - sequence % shards) % shards) as u8
    }
}
