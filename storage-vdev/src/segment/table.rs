//! The entry table: what the blocks of a segment are, and which ranges it makes zero.
//!
//! A table is a list of 64-bit words. The top four bits of an entry's first word are its kind, the
//! next eight are a count less one, the low 52 an address.

use super::head::FormatError;
use super::shape::{UNIT_BYTES, UNIT_TAG_BYTES};
use crate::geometry::BLOCK_BYTES;
use crate::keys::{NotAuthentic, SegmentKeys};

/// Block addresses are below this: 16 EiB in blocks of 4 KiB.
pub const ADDRESS_MAX: u64 = 1 << 52;

/// The most bytes of a segment's table.
pub const TABLE_BYTES_MAX: usize = 128 << 10;

const WORD_BYTES: usize = 8;
const KIND_SHIFT: u32 = 60;
const COUNT_SHIFT: u32 = 52;
const RUN_MAX: u32 = 256;
const KIND_DATA: u64 = 1;
const KIND_MOVED: u64 = 2;
const KIND_ZERO: u64 = 3;
const KIND_META: u64 = 4;

/// What a block is in the volume. Its seal is bound to it, so it opens as nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The block of this address.
    Block(u64),
    /// A page of the volume's own maps.
    Meta(u64),
}

impl Place {
    /// What goes into the authenticated data: a byte for the namespace, then the address.
    pub(super) fn bytes(self) -> [u8; 9] {
        let (space, address) = match self {
            Self::Block(address) => (0, address),
            Self::Meta(address) => (1, address),
        };
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        [space, a, b, c, d, e, f, g, h]
    }
}

/// One entry. Entries apply in their order; those with blocks take the next block indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The next `count` blocks (1 to 256) are those from `address` on.
    Data {
        /// The first block's address.
        address: u64,
        /// How many.
        count: u32,
    },
    /// The next block is that of `address`, if the map still says that it is at `from`.
    Moved {
        /// The address.
        address: u64,
        /// The location that it was copied from.
        from: u64,
    },
    /// `count` blocks from `address` on are zero from now on. Takes no block.
    Zero {
        /// The first block's address.
        address: u64,
        /// How many, at least one.
        count: u64,
    },
    /// The next block is a page of the volume's own maps.
    Meta {
        /// The page's address, in a namespace of its own.
        address: u64,
    },
}

impl Entry {
    /// How many blocks of the segment it takes.
    #[must_use]
    pub fn blocks(self) -> u32 {
        match self {
            Self::Data { count, .. } => count,
            Self::Moved { .. } | Self::Meta { .. } => 1,
            Self::Zero { .. } => 0,
        }
    }

    /// What the `nth` of its blocks is, if it has so many.
    #[must_use]
    pub fn place(self, nth: u32) -> Option<Place> {
        match self {
            Self::Data { address, .. } => Some(Place::Block(address + u64::from(nth))),
            Self::Moved { address, .. } => Some(Place::Block(address)),
            Self::Meta { address } => Some(Place::Meta(address)),
            Self::Zero { .. } => None,
        }
        .filter(|_| nth < self.blocks())
    }
}

/// A table that grows.
#[derive(Debug, Default)]
pub(super) struct TableWriter {
    words: Vec<u64>,
    /// The last entry if it is data, which the next one may continue.
    open_run: Option<Entry>,
}

impl TableWriter {
    /// Whether an entry still fits.
    pub(super) fn has_room(&self) -> bool {
        (self.words.len() + 2) * WORD_BYTES <= TABLE_BYTES_MAX
    }

    /// Appends a block of data.
    pub(super) fn push_data(&mut self, address: u64) {
        if let Some(Entry::Data { address: first, count }) = self.open_run
            && count < RUN_MAX
            && first + u64::from(count) == address
            && let Some(word) = self.words.last_mut()
        {
            *word += 1 << COUNT_SHIFT;
            self.open_run = Some(Entry::Data { address: first, count: count + 1 });
            return;
        }
        self.words.push(KIND_DATA << KIND_SHIFT | address);
        self.open_run = Some(Entry::Data { address, count: 1 });
    }

    pub(super) fn push_moved(&mut self, address: u64, from: u64) {
        self.push_pair(KIND_MOVED << KIND_SHIFT | address, from);
    }

    pub(super) fn push_zero(&mut self, address: u64, count: u64) {
        self.push_pair(KIND_ZERO << KIND_SHIFT | address, count);
    }

    pub(super) fn push_meta(&mut self, address: u64) {
        self.push_pair(KIND_META << KIND_SHIFT, address);
    }

    fn push_pair(&mut self, first: u64, second: u64) {
        self.open_run = None;
        self.words.extend([first, second]);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// Reads a table that must describe exactly `blocks` blocks. Whoever calls this has checked its
/// authenticity, and still nothing in it is believed.
pub(super) fn parse(bytes: &[u8], blocks: u16) -> Result<Vec<Entry>, FormatError> {
    let (words, []) = bytes.as_chunks::<WORD_BYTES>() else { return Err(FormatError::Table) };
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    let mut entries = Vec::with_capacity(words.len());
    let mut left = u32::from(blocks);
    while let Some(word) = words.next() {
        let entry = parse_entry(word, &mut words).ok_or(FormatError::Table)?;
        left = left.checked_sub(entry.blocks()).ok_or(FormatError::Table)?;
        entries.push(entry);
    }
    if left == 0 { Ok(entries) } else { Err(FormatError::Table) }
}

fn parse_entry(word: u64, words: &mut impl Iterator<Item = u64>) -> Option<Entry> {
    let address = word % ADDRESS_MAX;
    let run = (word >> COUNT_SHIFT) as u32 % RUN_MAX;
    let fits = |count: u64| count <= ADDRESS_MAX - address;
    match word >> KIND_SHIFT {
        KIND_DATA => {
            let count = run + 1;
            fits(count.into()).then_some(Entry::Data { address, count })
        }
        _ if run != 0 => None,
        KIND_MOVED => words.next().map(|from| Entry::Moved { address, from }),
        KIND_ZERO => words
            .next()
            .filter(|count| *count > 0 && fits(*count))
            .map(|count| Entry::Zero { address, count }),
        KIND_META if address == 0 => words.next().map(|address| Entry::Meta { address }),
        _ => None,
    }
}

/// As [`open_unit`], from a unit that stays as it is into `block`.
///
/// # Errors
/// As [`open_unit`]; `block` is garbage then. Also if `block` is not a block long.
pub fn open_unit_into(
    keys: &SegmentKeys,
    at: (u64, u16),
    place: Place,
    unit: &[u8],
    block: &mut [u8],
) -> Result<(), NotAuthentic> {
    let (sealed, tag) = unit.split_last_chunk::<UNIT_TAG_BYTES>().ok_or(NotAuthentic)?;
    if sealed.len() != BLOCK_BYTES || block.len() != BLOCK_BYTES {
        return Err(NotAuthentic);
    }
    block.copy_from_slice(sealed);
    keys.open_block(at, place.bytes(), block, *tag)
}

/// Opens the unit of block `index` of segment `sequence`, which must be `place`, and leaves the
/// block's [`BLOCK_BYTES`] in `unit`.
///
/// # Errors
/// These are not the bytes that were sealed there (`unit` is garbage then), or not a whole unit.
pub fn open_unit(
    keys: &SegmentKeys,
    (sequence, index): (u64, u16),
    place: Place,
    unit: &mut Vec<u8>,
) -> Result<(), NotAuthentic> {
    if unit.len() != UNIT_BYTES {
        return Err(NotAuthentic);
    }
    let (block, tag) = unit.split_at_mut(BLOCK_BYTES);
    let tag = tag.first_chunk::<UNIT_TAG_BYTES>().ok_or(NotAuthentic)?;
    keys.open_block((sequence, index), place.bytes(), block, *tag)?;
    unit.truncate(BLOCK_BYTES);
    Ok(())
}
