//! Where a block is stored, and the names of the map's own pages.

use std::fmt;
use std::num::NonZeroU64;

const INDEX_BITS: u32 = 12;

/// A block's place in the log: a segment's sequence number (1 to 2^52 - 1) and the block's index in
/// it (0 to 4095). An `Option<Location>` takes no more room than a `Location`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location(NonZeroU64);

impl Location {
    /// The block `index` of segment `sequence`; `None` if either is out of range.
    #[must_use]
    pub fn new(sequence: u64, index: u16) -> Option<Self> {
        if sequence == 0 || sequence >> (64 - INDEX_BITS) != 0 || index >> INDEX_BITS != 0 {
            return None;
        }
        NonZeroU64::new(sequence << INDEX_BITS | u64::from(index)).map(Self)
    }

    /// The location that a stored word means. 0 is none; so is a block of segment 0.
    #[must_use]
    pub fn from_word(word: u64) -> Option<Self> {
        NonZeroU64::new(word).filter(|word| word.get() >> INDEX_BITS != 0).map(Self)
    }

    /// The word that is stored.
    #[must_use]
    pub fn word(self) -> u64 {
        self.0.get()
    }

    /// The segment.
    #[must_use]
    pub fn sequence(self) -> u64 {
        self.word() >> INDEX_BITS
    }

    /// The block's index in the segment.
    #[must_use]
    pub fn index(self) -> u16 {
        (self.word() % (1 << INDEX_BITS)) as u16
    }

    /// The location `blocks` further in the same segment.
    #[must_use]
    pub fn after(self, blocks: u64) -> Option<Self> {
        let index = u64::from(self.index()).checked_add(blocks)?;
        Self::new(self.sequence(), u16::try_from(index).ok()?)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence(), self.index())
    }
}

const LEVEL_SHIFT: u32 = 52;
const KIND_SHIFT: u32 = 60;
const KIND_USAGE: u64 = 1;

/// The name of a page of the map: its kind, its level and its index there. It is what a segment's
/// table calls the address of a `Meta` block. Pages sort by kind, then by level from the leaves up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageAddress(u64);

impl PageAddress {
    /// Page `index` of `level` of the tree of blocks (0: leaves).
    pub(super) fn map(level: u8, index: u64) -> Self {
        Self(u64::from(level) << LEVEL_SHIFT | index)
    }

    /// Page `index` of `level` of the table of segments.
    pub(super) fn usage(level: u8, index: u64) -> Self {
        Self(KIND_USAGE << KIND_SHIFT | u64::from(level) << LEVEL_SHIFT | index)
    }

    /// The page with this address in a segment's table. Any word names a page, if one that no map
    /// has.
    #[must_use]
    pub fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Its address in a segment's table.
    #[must_use]
    pub fn word(self) -> u64 {
        self.0
    }

    pub(crate) fn is_map(self) -> bool {
        self.0 >> KIND_SHIFT == 0
    }

    pub(super) fn is_usage(self) -> bool {
        self.0 >> KIND_SHIFT == KIND_USAGE
    }

    pub(super) fn level(self) -> u8 {
        (self.0 >> LEVEL_SHIFT) as u8 & 0xf
    }

    pub(super) fn index(self) -> u64 {
        self.0 % (1 << LEVEL_SHIFT)
    }
}

impl fmt::Debug for PageAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_map() { "map" } else { "usage" };
        write!(f, "{kind}/{}/{}", self.level(), self.index())
    }
}

impl fmt::Display for PageAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
