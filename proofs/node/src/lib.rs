//! Proofs of capacity on a real machine: what `hypha-proofs` computes, with files, threads and sockets.
//!
//! * [`machine`]: what this machine has, measured before anything is claimed.
//! * [`filler`]: what disks hold while nobody reserves them.
//! * [`shards`]: what they hold for users of a shard server beside this node.
//! * [`chain`]: what the chain says, and what is sent to it.
//! * [`clock`]: where time and randomness are read.
#![forbid(unsafe_code)]

pub mod chain;
pub mod clock;
pub mod daemon;
mod direct;
pub mod filler;
pub mod kept;
pub mod machine;
pub mod memo;
pub mod metrics;
pub mod peers;
pub mod reading;
pub mod shards;
pub mod table;
pub mod work;
