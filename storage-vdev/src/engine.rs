//! The volume engine: a log-structured block store over [`crate::node::Nodes`].
//!
//! ```text
//! write ─► overlay (memory)                                     completion at once
//! flush ─► what is in no segment yet ─► journal heads           (durable under the policy)
//! full  ─► segment: encrypted, k + m shards ─► PUT on all slots (durable)
//!          in order of sequence ─► map, overlay entry dropped, journal trimmed
//! ```
//!
//! Invariants:
//! * Segments are committed in the order of their sequence numbers, and no write of a segment is
//!   newer than any of the next: after a crash the volume is as it was after some write since the
//!   last flush, and all before it.
//! * What is in no committed segment is in the overlay, which reads see first.
//! * No object is deleted before a durable superblock says so.
//! * Every byte that is returned was authenticated under a key of this volume.
//!
//! The engine does no I/O and reads no clock: it asks [`crate::node::Nodes`], and is told the time.

mod allocation;
mod cache;
mod checkpoint;
mod clone;
mod command;
mod commit;
mod executor;
mod fetch;
mod find;
mod flush;
mod free;
mod gc;
mod heads;
mod holder;
mod log;
mod nodes;
mod open;
mod openings;
mod options;
mod outline;
mod overlay;
mod place;
mod read;
mod record;
mod recover;
mod relocate;
mod repair;
mod request;
mod snapshot;
mod state;
mod status;
mod superblock;
mod sweep;
mod take;
mod tasks;
mod upkeep;
mod volume;
mod write;

pub use options::{
    CloneOf, Create, Holder, JOURNAL_BYTES_MIN, Limits, NodeInfo, OpenError, OpenOptions, Policy,
    Randomness, TakeOver,
};
pub use outline::Outline;
pub use request::{
    Command, Completion, Extent, Output, Report, RequestError, RequestId, SnapshotInfo,
};
pub use status::{Counters, NodeState, NodeStatus, Progress, Status};
pub use volume::{Opening, Volume};
