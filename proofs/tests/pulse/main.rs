//! Pulses: an honest node, and cheaters that answer the real verifier.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod cheaters;
mod contracts;
mod golden;
mod honest;
mod node;
