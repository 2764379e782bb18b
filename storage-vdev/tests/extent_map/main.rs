//! The map against a model that keeps everything in memory: with few pages in memory, checkpoints
//! under way while it changes, openings from stored roots, snapshots, and segments that are deleted
//! as soon as nothing needs them.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

mod hostile;
mod memory;
mod model;
mod random;
mod small;
