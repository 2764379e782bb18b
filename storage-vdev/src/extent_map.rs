//! Where each block of a volume lies in its log, and how much of each segment is still needed.
//!
//! * [`Map`]: a radix tree from block addresses to [`Location`]s, in pages of 512, of which a
//!   bounded number is in memory, and the table of segments ([`Usage`]).
//! * A *checkpoint* turns both into pages that are stored as blocks of segments, and into a
//!   [`Root`] that finds them again. While it is under way, the map goes on.
//! * A root that is kept is a snapshot: [`Map::from_root`] reads it, [`Pins`] says which segments
//!   it needs.
//!
//! Nothing here does I/O. What needs a page that isn't in memory ends with [`MapError::Missing`]
//! and has changed nothing that its repetition would change again; the caller reads the pages, hands
//! them to [`Map::insert_page`] and repeats the call.
//!
//! Memory: the pages of the cache, 4 KiB each, and about 40 bytes for each segment of the log:
//! with segments of 1024 blocks that are three quarters full, 14 MiB per TiB of data (and with
//! those of 4096 blocks, 3.5 MiB). `docs/storage-map.md` draws the pages.

mod checkpoint;
mod location;
mod map;
mod pages;
mod pins;
mod root;
mod tree;
mod usage;
mod usage_pages;

#[cfg(test)]
mod tests;

pub use location::{Location, PageAddress};
pub use map::{Map, Run};
pub use pages::Page;
pub use pins::Pins;
pub use root::{ROOT_BYTES, Root, RootError};
pub use tree::LOOKUP_PAGES_MAX;
pub use usage::{Segment, Usage};

/// The bytes of a page: one block.
pub const PAGE_BYTES: usize = crate::geometry::BLOCK_BYTES;

/// The least pages that a map keeps in memory.
pub const PAGES_MIN: usize = 64;

/// The most blocks of a volume: 16 EiB.
pub const BLOCKS_MAX: u64 = 1 << 52;

/// Why a map can't do what it is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// These pages are not in memory. Read them, insert them, ask again.
    #[error("{} map pages are not in memory", .0.len())]
    Missing(Vec<(PageAddress, Location)>),
    /// The blocks are not all inside the volume, or not all inside one segment.
    #[error("blocks {first}+{count} are out of range")]
    OutOfRange {
        /// The first block.
        first: u64,
        /// How many.
        count: u64,
    },
    /// A stored page says what no page can say.
    #[error("map page {address} is malformed")]
    Malformed {
        /// The page.
        address: PageAddress,
    },
    /// There is a checkpoint under way already, or none.
    #[error("a checkpoint is under way, or none is")]
    Checkpoint,
}
