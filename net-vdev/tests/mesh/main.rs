//! The mesh through its public interface: the firewall's table, sessions between endpoints on a
//! simulated network, and the card on real loopback sockets.
#![expect(clippy::unwrap_used, reason = "a helper that fails ends its test")]

mod aliases;
mod batches;
mod by_hand;
mod cookies;
mod exits;
mod firewall;
mod hostile;
mod labels;
mod local;
mod nic;
mod open_checksums;
mod packets;
mod paths;
mod post_quantum;
mod sessions;
mod simulation;
mod world;
