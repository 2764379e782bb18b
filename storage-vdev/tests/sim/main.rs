//! The volume over simulated stores: against a model, through crashes, losses and lies.
//!
//! Every run has a seed and prints it when it fails; `HYPHA_SEEDS=n` runs n of each instead of the
//! usual number.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod crash;
mod harness;
mod hostile;
mod loss;
mod model;
mod nonces;
mod rewind;
