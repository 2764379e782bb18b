//! What a node learns from the chain, and what it sends to it.
//!
//! ```text
//!   follower   blocks one after the other: epochs, days, pulses, and what is about this node
//!      └── book   all nodes, farms and reservations, from the contracts' events
//!   desk       transactions of one key, one after the other, each until it is in a block
//! ```

pub mod book;
pub mod desk;
pub mod follower;
