//! Objects in a real Redis and in a 0-db, and in servers that lie.

mod fake;
mod process;
mod store;
