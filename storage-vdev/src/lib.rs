//! Dispersed volumes: blocks that are encrypted, erasure-coded and kept on many nodes.
//!
//! * [`engine`]: the volume, a log-structured block store over [`node::Nodes`]; any m nodes may be
//!   lost, no flushed write ever is.
//! * [`BlockDevice`]: the virtio-blk device in front of it.
//! * [`service`]: what a node is; [`dir_nodes`]: directories of this host as nodes;
//!   [`mixed_nodes`]: those and shard servers as the nodes of one volume.
//! * [`segment`], [`codec`], [`extent_map`], [`register`], [`wire`], [`audit`]: the parts.
//!
//! `docs/storage-format.md` draws what is written, byte by byte.
//!
//! After [`open_directories`] the only system calls are `pread64`, `pwrite64`, `fdatasync` and
//! `fallocate`, on descriptors that are open by then (and what the allocator does); shard servers
//! add those that [`wire::sockets`] and [`wire::courier`] name.
#![deny(unsafe_code)]

pub mod audit;
mod blk;
pub mod codec;
pub mod dir_nodes;
mod directories;
pub mod disk;
pub mod engine;
pub mod extent_map;
mod fields;
pub mod files;
mod geometry;
mod keys;
pub mod mixed_nodes;
pub mod node;
pub mod register;
pub mod segment;
pub mod service;
pub mod sim_nodes;
pub mod wire;

pub use blk::BlockDevice;
pub use directories::{DirectoriesError, Options, node_capacity, open_directories};
pub use geometry::{BLOCK_BYTES, Geometry, GeometryError, SECTOR_BYTES, SHARDS_MAX};
pub use geometry::{JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN};
pub use keys::{NotAuthentic, Opening, SegmentKeys, SequenceUsed, Uuid, VolumeKey};
