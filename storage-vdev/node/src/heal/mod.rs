//! Healing without a key: a daemon mends what nodes have lost, whether the volume is open or not.
//!
//! A [`Healer`] makes one pass over one volume: it lists what the nodes have, reads the newest
//! superblock, and rebuilds shards that are missing or damaged from k others. It encrypts nothing,
//! deletes nothing, and touches no segment that the superblock doesn't contain yet: those belong to
//! who has the volume open. It does no I/O and reads no clock; [`run()`] carries out what it asks.
//!
//! What it can't know without the key: whether k shards that agree tell the truth (with more at
//! hand it compares them, see `storage_vdev::segment::find_liars`), and whether a superblock that
//! enough nodes show is genuine. A node that lies can hold up healing, or spread a shard that is
//! wrong under good checksums; it can't make a reader take it for right.

mod bucket;
mod healer;
mod manifest;
mod pass;
mod repair;
mod report;
mod run;
mod search;
mod survey;

pub use healer::{Asked, Healer};
pub use manifest::{Manifest, ManifestError, ManifestNode};
pub use pass::Policy;
pub use report::{Progress, Report, SpareShard, Verdict};
pub use run::run;
