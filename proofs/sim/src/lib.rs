//! Networks of up to 100,000 nodes, honest ones and cheaters, from a seed.
//!
//! * [`strategy`]: every cheater, as code that answers the real verifier; [`liar`] is what they lie with,
//!   [`machine`] what they have committed to, [`hardware`] how long work takes.
//! * [`arena`]: one node, seven real witnesses, lines that lose.
//! * [`world`]: some tens of real participants with everything on the wire.
//! * [`network`]: days of many nodes: real drawing, real ledger, pulses out of the arena.
//! * [`mod@line`]: a node's bandwidth, measured by real challengers.
//! * [`jury`]: who prevails in juries that the real draw makes.
//! * [`court`]: cheaters before the real contracts, which [`contracts`] runs.
//! * [`graph`]: what it takes to make a label of filler again.
//! * [`study`] does all of it, [`report`] writes it down.
#![forbid(unsafe_code)]

pub mod arena;
pub mod contracts;
pub mod court;
pub mod graph;
pub mod hardware;
pub mod jury;
pub mod liar;
pub mod line;
pub mod machine;
pub mod network;
mod queue;
pub mod report;
pub mod strategy;
pub mod study;
pub mod world;
