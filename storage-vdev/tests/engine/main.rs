//! The volume engine over nodes in memory.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

mod basics;
mod clones;
mod crash;
mod full;
mod harness;
mod holders;
mod loss;
mod nodes;
mod nonces;
mod relocate;
mod space;
