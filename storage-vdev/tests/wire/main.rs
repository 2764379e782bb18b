//! The shard protocol: its messages, its frames, its capabilities, and both ends against an other
//! end that lies.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod capabilities;
mod channels;
mod messages;
mod sessions;
mod world;
