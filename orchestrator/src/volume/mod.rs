//! `hypha volume`: volumes without a VM, and what any process needs to open one.
//!
//! * [`arguments`]: the verbs and options; [`verbs`]: what they do. [`error`]: why they fail.
//! * [`manifest`]: what a host knows of a volume; [`spec::node`]: how a node is named. [`host`]: from that to nodes.
//! * [`session`]: an open volume driven by one thread. [`control`]: orders to another process.
//! * [`show`]: how a volume's state is told.

pub mod arguments;
mod clone;
pub mod control;
mod create;
mod delegate;
pub mod error;
pub mod host;
pub mod manifest;
mod meter;
mod open;
mod orders;
mod patient;
mod recovery;
mod remove;
mod serve;
pub mod session;
mod shared;
pub mod show;
pub mod verbs;
