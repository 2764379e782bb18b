//! A node over a disk that forgets, tears, lies, rots, fills up and fails.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crash;
mod directories;
mod fixtures;
mod harness;
mod journal;
mod look;
mod objects;
mod promises;
mod rights;
