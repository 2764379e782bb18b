//! A virtio disk whose blocks are encrypted and erasure-coded over many stores.
//!
//! * [`Volume`]: blocks over k + m stores; any m may be lost, no flushed write ever is.
//! * [`BlockDevice`]: the virtio-blk device in front of it.
//! * [`DirStore`]: a store in a directory; [`sim`] has one in memory that crashes on purpose.
//!
//! `docs/storage-format.md` draws what is written, byte by byte.
//!
//! After [`open_directories`] the only system calls are `pread64`, `pwrite64`, `fdatasync` and
//! `fallocate`, on descriptors that are open by then (and what the allocator does).
#![deny(unsafe_code)]

pub mod audit;
mod blk;
pub mod codec;
mod dir;
pub mod dir_nodes;
pub mod disk;
pub mod engine;
pub mod extent_map;
mod fields;
pub mod files;
mod geometry;
pub mod journal;
mod keys;
mod map;
pub mod node;
mod overlay;
pub mod register;
pub mod segment;
pub mod service;
mod shards;
pub mod sim;
mod slot;
mod store;
mod superblock;
mod volume;
pub mod wire;

pub use blk::BlockDevice;
pub use dir::{DirError, DirStore, open_directories};
pub use geometry::{BLOCK_BYTES, Geometry, GeometryError, SECTOR_BYTES, SHARDS_MAX};
pub use geometry::{JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN};
pub use keys::{KeyRing, NotAuthentic, Opening, SegmentKeys, SequenceUsed, Uuid, VolumeKey};
pub use shards::{Fault, Operation};
pub use store::{Store, StoreFile};
pub use volume::{
    Completion, LostShard, OpenError, Options, Randomness, Reason, RequestError, RequestId,
    ShardState, Status, Step, Volume,
};
