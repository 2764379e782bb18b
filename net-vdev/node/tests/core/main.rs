//! Nodes with their real sessions and routers on a simulated network.
#![expect(clippy::unwrap_used, reason = "tests")]

mod aliases;
mod attached;
mod forwarding;
mod hostile;
mod liar;
mod long;
mod repair;
mod world;
