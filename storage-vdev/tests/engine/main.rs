//! The volume engine over nodes in memory.

mod basics;
mod crash;
mod harness;
mod nodes;
mod space;
