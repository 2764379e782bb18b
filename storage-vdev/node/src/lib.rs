//! What serves volumes and shards outside a VMM: shard servers with their back ends, healing of
//! volumes that nobody has open, and the faces for programs that are no guest of ours.
//!
//! The volume itself, the codec, the formats and the shard protocol are in `storage-vdev`.
#![deny(unsafe_code)]

pub mod etcd;
pub mod heal;
mod latency;
mod names;
pub mod nbd;
pub mod object_store;
pub mod orders;
pub mod redis;
pub mod served;
pub mod server;
mod socket_file;
pub mod thread_nodes;
pub mod uring;
pub mod vhost_user;
mod wait;

pub use socket_file::SocketFileError;
pub use wait::Stop;
