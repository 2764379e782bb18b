//! A node's mesh daemon: sockets, TUN, uplinks of VMs, control socket.
#![forbid(unsafe_code)]

pub mod core;
mod counters;

pub use counters::CoreCounters;
