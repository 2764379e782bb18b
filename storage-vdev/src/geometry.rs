//! The shape of a volume: how many shards its segments have, how large it is, and its journal.

use crate::extent_map::BLOCKS_MAX;

/// The bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// The bytes of a sector: the granularity of requests (virtio 1.2 §5.2.2).
pub const SECTOR_BYTES: u64 = 512;

/// The most shards, data and parity together, that a volume may have.
pub const SHARDS_MAX: u8 = 32;

/// The least bytes of journal.
pub const JOURNAL_BYTES_MIN: u64 = crate::engine::JOURNAL_BYTES_MIN;

/// The most bytes of journal.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 30;

/// The bytes of a GCM tag.
pub(crate) const TAG_BYTES: usize = 16;

const JOURNAL_BYTES_DEFAULT: u64 = 8 << 20;

/// The shape of a volume; all of it is fixed when the volume is created, but for
/// its size, which can grow.
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
    /// The volume has more blocks than a map can index.
    #[error("a volume of {size_bytes} bytes is too large: {limit_bytes} is the most")]
    TooLarge {
        /// The size that was asked for.
        size_bytes: u64,
        /// The most.
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
        let limit_bytes = BLOCKS_MAX.saturating_mul(BLOCK_BYTES as u64);
        if size_bytes > limit_bytes {
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
        let small = Geometry::new(4, 2, 1 << 20).unwrap();
        assert!(matches!(small.with_journal_bytes(4096), Err(GeometryError::Journal { .. })));
        assert!(matches!(small.with_journal_bytes(70_000), Err(GeometryError::Journal { .. })));
    }
}
