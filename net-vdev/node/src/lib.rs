//! A node's mesh daemon: sockets, TUN, uplinks of VMs, control socket.
//!
//! * [`acl`]: a rule about who may reach the host.
//! * [`core`]: a node without any of these: its member, its router, and frames of others.
//! * [`daemon`]: the thread that moves batches between sockets, the TUN and the core.
//! * [`discovery`]: nodes of one local network find each other.
//! * [`exit`]: the way out of the mesh, for those who may.
//! * [`framing`]: datagrams on a connection, where UDP is dropped.
//! * [`orders`]: what the control socket is asked, and answers.
//! * [`tun`]: the host's network interface.
#![deny(unsafe_code)]

pub mod acl;
mod clock;
pub mod core;
mod counters;
pub mod daemon;
pub mod discovery;
mod errands;
pub mod exit;
pub mod framing;
mod interfaces;
mod netlink;
pub mod orders;
mod sequence;
mod streams;
pub mod tun;
pub mod uplinks;

pub use counters::CoreCounters;
pub use daemon::{Daemon, NodeConfig, NodeError};
