//! Objects in a real Redis and in a 0-db, and in servers that lie.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod fake;
mod process;
mod store;
