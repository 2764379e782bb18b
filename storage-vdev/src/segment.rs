//! Segments: what a volume's log is made of, and the shards that a node keeps of them.
//!
//! A segment is up to [`Shape::blocks_max`] encrypted blocks and a table that says what they are,
//! cut into k + m shards of which any k are enough. It is written once and never changed. Each
//! shard describes itself: without any key, whoever holds it can check its checksums, and whoever
//! holds k of them can rebuild the others. What is in the blocks, and where in the volume they
//! belong, needs the volume's key.
//!
//! Everything here is a pure function of its arguments. `docs/storage-segment.md` draws the format.

mod buffers;
mod builder;
mod head;
mod layout;
mod liar;
mod rebuild;
mod shape;
mod shard;
mod table;

pub use buffers::Buffers;
pub use builder::{PushError, Sealed, SegmentBuilder};
pub use head::{FormatError, Link, SegmentHeader, ShardHead};
pub use liar::{Recovered, RowError, find_liars, recover_unit};
pub use rebuild::{RebuildError, rebuild_shard};
pub use shape::{
    CHUNK_BYTES, CHUNK_UNITS, HEAD_BYTES, ROWS_MAX, Shape, ShapeError, UNIT_BYTES, UNIT_TAG_BYTES,
};
pub use shard::{Fault, Shard};
pub use table::{ADDRESS_MAX, Entry, Place, TABLE_BYTES_MAX, open_unit, open_unit_into};
