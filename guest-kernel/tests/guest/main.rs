//! The guest library against the other side of its queues: devices in memory that reorder, tear,
//! fail and misbehave, driven by a seed. Time is a number that the tests advance.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails panics")]

mod block;
mod disk;
mod kv;
mod memory;
mod net;
mod random;
mod store;
mod store_crash;
mod wire;
mod world;
