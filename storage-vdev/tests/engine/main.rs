//! The volume engine over nodes in memory.

mod basics;
mod clones;
mod crash;
mod full;
mod harness;
mod holders;
mod loss;
mod nodes;
mod nonces;
mod space;
