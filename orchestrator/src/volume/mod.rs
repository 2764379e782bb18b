//! `hypha volume`: volumes without a VM, and what any process needs to open one.
//!
//! * [`arguments`]: the verbs and options; [`verbs`]: what they do.
//! * [`manifest`]: what a host knows of a volume; [`spec::node`]: how a node is named. [`host`]: from that to nodes.
//! * [`session`]: an open volume driven by one thread. [`control`]: orders to another process.
//! * [`show`]: how a volume's state is told.

pub mod arguments;
mod clone;
pub mod control;
mod delegate;
pub mod host;
pub mod manifest;
mod recovery;
mod remove;
mod serve;
pub mod session;
pub mod show;
pub mod verbs;
