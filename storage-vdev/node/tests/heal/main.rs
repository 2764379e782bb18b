//! Passes of the healer over nodes in memory that lose, damage, lie and go away.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod losses;
mod manifest;
mod races;
mod volume;
mod world;
