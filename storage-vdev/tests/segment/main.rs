//! Segments, from sealing to what an enemy makes of their shards.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod fixture;
mod hostile;
mod liars;
mod rebuilt;
mod sample;
mod sealed;
