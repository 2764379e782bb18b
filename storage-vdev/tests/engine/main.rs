//! The volume engine over nodes in memory.

mod basics;
mod harness;
mod nodes;
