//! `hypha farm`, `node`, `offers`, `reserve` and their like, through the real binary, on a chain whose time
//! the tests move: the embedded one over loopback, or (if `HYPHA_ANVIL` names its program) anvil.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

#[path = "../../../chain/tests/suite/anvil.rs"]
mod anvil;
mod between;
mod kills;
mod own;
mod owners;
mod refusals;
mod story;
mod world;
