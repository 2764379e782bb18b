//! The volume engine over nodes in memory.

mod basics;
mod clones;
mod crash;
mod harness;
mod nodes;
mod space;
