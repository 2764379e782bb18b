//! The contracts, as they are checked in, on the embedded chain: what each function does and refuses,
//! what always holds, what it costs, and that Rust and Solidity agree on every tree and message.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

mod anvil;
mod appeals;
mod backend;
mod capacity;
mod credits;
mod directory;
mod disputes;
mod drand;
mod gas;
mod golden;
mod grid;
mod hostile;
mod invariants;
mod lock;
mod registry;
mod reservations;
mod rewards;
mod token;
mod weights;
