//! The shard server over real sockets, with real nodes behind it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod hostile;
mod kill;
mod serving;
mod world;
