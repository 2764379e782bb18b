//! Nodes that prove, as processes of the real `hypha`, on a chain whose time goes faster.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod cheater;
mod commands;
#[path = "../volumes/nbd.rs"]
mod nbd;
mod network;
mod village;
