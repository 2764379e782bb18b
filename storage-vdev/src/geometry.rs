//! The shape of a volume: how many shards, how many stripes, and where in a shard file they lie.
//!
//! ```text
//! block   4 KiB, the unit of encryption and of a read
//! unit    4 blocks of one stripe on one shard
//! stripe  k units of data and m of parity, written as one and never in place
//! ```

/// The bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// The bytes of a sector: the granularity of requests (virtio 1.2 §5.2.2).
pub const SECTOR_BYTES: u64 = 512;

/// The most shards, data and parity together, that a volume may have.
pub const SHARDS_MAX: u8 = 32;

/// The least bytes of journal.
pub const JOURNAL_BYTES_MIN: u64 = 64 << 10;

/// The most bytes of journal; blocks that are only in the journal are also kept in memory.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 30;

/// How many blocks of a stripe lie on one data shard.
pub(crate) const UNIT_BLOCKS: usize = 4;
/// The bytes of a GCM tag.
pub(crate) const TAG_BYTES: usize = 16;
/// The bytes of a unit's GCM tags, which come first in a unit.
pub(crate) const UNIT_TAG_BYTES: usize = UNIT_BLOCKS * TAG_BYTES;
/// The bytes of a unit's ciphertext.
pub(crate) const UNIT_DATA_BYTES: usize = UNIT_BLOCKS * BLOCK_BYTES;
/// The bytes that are erasure-coded together: a unit's tags and ciphertext.
pub(crate) const UNIT_BYTES: usize = UNIT_TAG_BYTES + UNIT_DATA_BYTES;
/// The bytes of a superblock; a shard file starts with two.
pub(crate) const SUPERBLOCK_BYTES: usize = 4096;
/// The bytes of a slot's header. Two share a sector, which a disk writes as a whole.
pub(crate) const SLOT_HEADER_BYTES: usize = 256;

const JOURNAL_BYTES_DEFAULT: u64 = 8 << 20;
const STRIPES_MAX: u64 = 1 << 24;
const TABLE_OFFSET: u64 = 2 * SUPERBLOCK_BYTES as u64;

/// The shape of a volume; all of it is fixed when the volume is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    data_shards: u8,
    parity_shards: u8,
    size_bytes: u64,
    journal_bytes: u64,
}

/// Why a shape is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// No data shards, or more shards than [`SHARDS_MAX`].
    #[error(
        "{data} data and {parity} parity shards: at least 1 and 0 are needed, and at most \
         {SHARDS_MAX} together"
    )]
    Shards {
        /// Data shards (*k*).
        data: u8,
        /// Parity shards (*m*).
        parity: u8,
    },
    /// The size is zero or no multiple of [`BLOCK_BYTES`].
    #[error("a volume of {size_bytes} bytes: the size must be a multiple of {BLOCK_BYTES}")]
    Size {
        /// The size that was asked for.
        size_bytes: u64,
    },
    /// The volume has more stripes than this form can index.
    #[error("a volume of {size_bytes} bytes is too large: {limit_bytes} is the most")]
    TooLarge {
        /// The size that was asked for.
        size_bytes: u64,
        /// The most for this number of data shards.
        limit_bytes: u64,
    },
    /// The journal's size is out of range or no multiple of [`BLOCK_BYTES`].
    #[error(
        "a journal of {journal_bytes} bytes: it must be a multiple of {BLOCK_BYTES} from \
         {JOURNAL_BYTES_MIN} to {JOURNAL_BYTES_MAX}"
    )]
    Journal {
        /// The size that was asked for.
        journal_bytes: u64,
    },
}

impl Geometry {
    /// A volume of `size_bytes` over `data_shards` + `parity_shards` stores, with the usual
    /// journal.
    ///
    /// # Errors
    /// [`GeometryError`] if a number is out of range.
    pub fn new(data_shards: u8, parity_shards: u8, size_bytes: u64) -> Result<Self, GeometryError> {
        let geometry =
            Self { data_shards, parity_shards, size_bytes, journal_bytes: JOURNAL_BYTES_DEFAULT };
        geometry.checked()
    }

    /// The same with `journal_bytes` of journal. A smaller journal uses less memory and is
    /// checkpointed more often.
    ///
    /// # Errors
    /// [`GeometryError::Journal`] if the number is out of range.
    pub fn with_journal_bytes(self, journal_bytes: u64) -> Result<Self, GeometryError> {
        Self { journal_bytes, ..self }.checked()
    }

    fn checked(self) -> Result<Self, GeometryError> {
        let Self { data_shards: data, parity_shards: parity, size_bytes, journal_bytes } = self;
        if data == 0 || u16::from(data) + u16::from(parity) > u16::from(SHARDS_MAX) {
            return Err(GeometryError::Shards { data, parity });
        }
        if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(GeometryError::Size { size_bytes });
        }
        if self.stripes() > STRIPES_MAX {
            let limit_bytes = STRIPES_MAX * (self.stripe_blocks() * BLOCK_BYTES) as u64;
            return Err(GeometryError::TooLarge { size_bytes, limit_bytes });
        }
        let in_range = (JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&journal_bytes);
        if !in_range || !journal_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(GeometryError::Journal { journal_bytes });
        }
        Ok(self)
    }

    /// How many shards hold data (*k*).
    #[must_use]
    pub fn data_shards(&self) -> u8 {
        self.data_shards
    }

    /// How many shards hold parity (*m*): so many stores may be lost.
    #[must_use]
    pub fn parity_shards(&self) -> u8 {
        self.parity_shards
    }

    /// The volume's size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The bytes of each journal copy.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        self.journal_bytes
    }

    /// How many shards there are (*k + m*).
    #[must_use]
    pub fn shards(&self) -> usize {
        usize::from(self.data_shards) + usize::from(self.parity_shards)
    }

    /// How many blocks the volume has.
    pub(crate) fn blocks(&self) -> u64 {
        self.size_bytes / BLOCK_BYTES as u64
    }

    /// How many blocks of the volume a stripe holds.
    pub(crate) fn stripe_blocks(&self) -> usize {
        usize::from(self.data_shards) * UNIT_BLOCKS
    }

    /// How many stripes the volume has.
    pub(crate) fn stripes(&self) -> u64 {
        self.blocks().div_ceil(self.stripe_blocks() as u64)
    }

    /// The stripe of a block, and the block's index in it.
    pub(crate) fn locate(&self, block: u64) -> (u64, usize) {
        let per_stripe = self.stripe_blocks() as u64;
        (block / per_stripe, (block % per_stripe) as usize)
    }

    /// How many slots a shard file has: one for each stripe, and spare ones.
    ///
    /// **A free slot is always found.** A committed stripe holds one slot, so before a checkpoint
    /// at least the spare ones (never fewer than 16) are free. A checkpoint takes a free slot for
    /// each stripe that it writes and keeps the old one until it commits; when no free slot is
    /// left it commits early, which frees as many old slots as it has taken.
    pub(crate) fn slots(&self) -> u32 {
        let stripes = self.stripes();
        u32::try_from(stripes + 16 + (stripes / 8).min(2048)).unwrap_or(u32::MAX)
    }

    /// The bytes of the slot header table.
    pub(crate) fn table_bytes(&self) -> u64 {
        u64::from(self.slots()) * SLOT_HEADER_BYTES as u64
    }

    /// Where the header of `slot` lies in a shard file.
    pub(crate) fn header_offset(&self, slot: u32) -> u64 {
        TABLE_OFFSET + u64::from(slot) * SLOT_HEADER_BYTES as u64
    }

    /// Where the ciphertext of `slot` lies in a shard file.
    pub(crate) fn data_offset(&self, slot: u32) -> u64 {
        let data = TABLE_OFFSET + self.table_bytes().next_multiple_of(BLOCK_BYTES as u64);
        data + u64::from(slot) * UNIT_DATA_BYTES as u64
    }

    /// The bytes of a shard file.
    pub(crate) fn shard_file_bytes(&self) -> u64 {
        self.data_offset(self.slots())
    }

    /// Where the superblock of `generation` lies: the two places alternate.
    pub(crate) fn superblock_offset(generation: u64) -> u64 {
        (generation & 1) * SUPERBLOCK_BYTES as u64
    }

    /// The mask of all shards.
    pub(crate) fn all_shards(&self) -> u32 {
        u32::MAX >> (32 - self.shards().clamp(1, 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_shapes_are_refused_with_their_own_error() {
        assert!(matches!(Geometry::new(0, 2, 1 << 20), Err(GeometryError::Shards { .. })));
        assert!(matches!(Geometry::new(31, 2, 1 << 20), Err(GeometryError::Shards { .. })));
        assert!(matches!(Geometry::new(255, 255, 1 << 20), Err(GeometryError::Shards { .. })));
        assert!(matches!(Geometry::new(4, 2, 0), Err(GeometryError::Size { .. })));
        assert!(matches!(Geometry::new(4, 2, 4097), Err(GeometryError::Size { .. })));
        let huge = u64::MAX - 4095;
        assert!(matches!(Geometry::new(4, 2, huge), Err(GeometryError::TooLarge { .. })));
        let small = Geometry::new(4, 2, 1 << 20).unwrap();
        assert!(matches!(small.with_journal_bytes(4096), Err(GeometryError::Journal { .. })));
        assert!(matches!(small.with_journal_bytes(70_000), Err(GeometryError::Journal { .. })));
    }

    #[test]
    fn the_parts_of_a_shard_file_do_not_overlap() {
        for (data, parity, size) in [(1, 0, 4096), (4, 2, 1 << 30), (16, 4, 1 << 24), (28, 4, 8192)]
        {
            let geometry = Geometry::new(data, parity, size).unwrap();
            let last = geometry.slots() - 1;
            assert!(geometry.header_offset(0) >= 2 * SUPERBLOCK_BYTES as u64);
            let table_end = geometry.header_offset(last) + SLOT_HEADER_BYTES as u64;
            assert!(table_end <= geometry.data_offset(0));
            assert!(geometry.data_offset(0).is_multiple_of(BLOCK_BYTES as u64));
            assert!(u64::from(geometry.slots()) >= geometry.stripes() + 16);
        }
    }
}
