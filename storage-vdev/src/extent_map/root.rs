//! What a superblock holds of a map.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::BLOCKS_MAX;
use super::location::Location;

/// The bytes of a root as it is stored.
pub const ROOT_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"HYmp";
const VERSION: u32 = 2;

/// Far more levels than 2^52 segments need.
const USAGE_LEVEL_MAX: u8 = 8;

/// Where a map's topmost pages lie: the whole state of a volume's blocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// The volume's size in blocks.
    pub blocks: u64,
    /// The topmost page of the tree of blocks; `None` if no block is mapped.
    pub map: Option<Location>,
    /// The topmost page of the table of segments; `None` if there was no segment.
    pub usage: Option<Location>,
    /// That page's level; 0 if there is none.
    pub usage_level: u8,
    /// How many blocks are mapped.
    pub mapped: u64,
    /// How many segments the table has.
    pub segments: u64,
}

/// A root that no map has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the map's root is malformed")]
pub struct RootError;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Layout {
    magic: [u8; 4],
    version: U32,
    blocks: U64,
    map: U64,
    usage: U64,
    mapped: U64,
    segments: U64,
    usage_level: u8,
    zero: [u8; 15],
}

const _: () = assert!(size_of::<Layout>() == ROOT_BYTES);

impl Root {
    /// The root of a map of `blocks` blocks that are all zero.
    #[must_use]
    pub fn empty(blocks: u64) -> Self {
        Self { blocks, map: None, usage: None, usage_level: 0, mapped: 0, segments: 0 }
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ROOT_BYTES] {
        let word = |location: Option<Location>| U64::new(location.map_or(0, Location::word));
        zerocopy::transmute!(Layout {
            magic: MAGIC,
            version: U32::new(VERSION),
            blocks: U64::new(self.blocks),
            map: word(self.map),
            usage: word(self.usage),
            mapped: U64::new(self.mapped),
            segments: U64::new(self.segments),
            usage_level: self.usage_level,
            zero: [0; 15],
        })
    }

    /// Reads a root.
    ///
    /// # Errors
    /// These are not a root's bytes.
    pub fn from_bytes(bytes: &[u8; ROOT_BYTES]) -> Result<Self, RootError> {
        let layout: Layout = zerocopy::transmute!(*bytes);
        let location = |word: U64| match (word.get(), Location::from_word(word.get())) {
            (0, _) => Ok(None),
            (_, Some(location)) => Ok(Some(location)),
            (_, None) => Err(RootError),
        };
        let root = Self {
            blocks: layout.blocks.get(),
            map: location(layout.map)?,
            usage: location(layout.usage)?,
            usage_level: layout.usage_level,
            mapped: layout.mapped.get(),
            segments: layout.segments.get(),
        };
        let known = layout.magic == MAGIC && layout.version.get() == VERSION;
        let sound = root.blocks <= BLOCKS_MAX
            && root.mapped <= root.blocks
            && root.usage.is_some() == (root.segments > 0)
            && root.usage.is_some() == (root.usage_level > 0)
            && root.usage_level <= USAGE_LEVEL_MAX
            && layout.zero == [0; 15];
        if known && sound { Ok(root) } else { Err(RootError) }
    }
}
