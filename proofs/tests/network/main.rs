//! Many nodes among each other: drawing, gossip, measurements, and what epochs come to.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed test is a panic")]

mod audit;
mod chain;
mod drawing;
mod golden;
mod judge;
mod ledger;
mod pulses;
#[path = "../../sim/src/queue.rs"]
mod queue;
mod world;
