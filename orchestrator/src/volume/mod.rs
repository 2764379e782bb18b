//! `hypha volume`: volumes without a VM, and what any process needs to open one.
//!
//! * [`arguments`]: the verbs and options; [`verbs`]: what they do.
//! * [`manifest`], [`node_spec`]: what a host knows of a volume. [`host`]: from that to nodes.
//! * [`session`]: an open volume driven by one thread. [`control`]: orders to another process.
//! * [`show`]: how a volume's state is told.

pub mod arguments;
pub mod control;
pub mod host;
pub mod manifest;
pub mod node_spec;
mod recovery;
mod remove;
pub mod session;
pub mod show;
pub mod verbs;
