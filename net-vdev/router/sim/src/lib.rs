//! Thousands of routers in one process, on links that fail: a seeded simulation.
//!
//! The routers are the real ones (`mesh-router`); only wires, clock and randomness are simulated.
//! One seed decides everything: the same seed gives the same trace, which a test compares.
//!
//! * [`world`]: nodes, wires and the order of events; how a packet would go.
//! * [`wire`]: delay, loss, bandwidth and a queue, cuts of one direction or both.
//! * [`liar`]: nodes that lie about distances, forge, replay and flood.
//! * [`topology`]: who is connected to whom.
//! * [`campaign`]: a seed's faults, and what must hold after every event and in the end.
//! * [`convergence`]: how long packets are lost after a failure, as a table and a plot.
#![forbid(unsafe_code)]

pub mod campaign;
pub mod convergence;
pub mod identity;
pub mod liar;
pub mod rng;
pub mod topology;
pub mod wire;
pub mod world;
