//! A virtio network card that is a member of an end-to-end encrypted mesh.
//!
//! * [`identity`]: an X25519 key is a member's name; its IPv6 address follows from it.
//! * [`signature`]: what a member signs under that same key.
//! * [`announcement`]: what a member says about itself to all, under its signature.
//! * [`certificate`]: what one key says about another: addresses, labels, names.
//! * [`wire`]: the bytes of a datagram (`docs/mesh-wire.md` draws them).
//! * [`reassembly`]: handshake datagrams that a path carried in two pieces.
//! * [`cookie`]: proof that an initiation's source address is no lie, asked for in a flood.
//! * [`session`]: the Noise handshake, and the keys, counters and replay window of a session.
//! * [`firewall`]: who may open flows to a member; everybody else is dropped.
//! * [`endpoint`]: one member of the mesh, without sockets, clock or randomness of its own.
//! * [`nic`]: the endpoint behind a virtio-net card and a UDP socket.
//! * [`random`]: random bytes from a given seed.
//! * [`offload`]: super-frames to packets and back.
//! * [`socket`]: a UDP socket that takes a batch of datagrams for one system call.
//! * [`source`]: who counts as one where senders are limited.
//! * [`codel`]: a bounded queue that doesn't add delay.
//!
//! A packet's way out: virtqueue → [`nic`] strips the Ethernet header → [`endpoint`] checks its
//! source, finds the peer by its destination, asks the [`firewall`] to remember the flow, seals it
//! to the peer's key → socket. The way in is the same backwards; the inner source must be one of
//! the addresses of the very peer whose session opened the packet.
#![forbid(unsafe_code)]

pub mod announcement;
pub mod certificate;
pub mod codel;
pub mod cookie;
pub mod endpoint;
pub mod firewall;
pub mod gather;
pub mod identity;
pub mod nic;
pub mod offload;
pub mod random;
pub mod reassembly;
pub mod session;
pub mod signature;
pub mod socket;
pub mod source;
pub mod uplink;
pub mod wire;

pub use endpoint::{
    Config, ConfigError, Counters, DropReason, Endpoint, Event, Occupancy, Path, Peer, Strangers,
    Transmit,
};
pub use firewall::{Caps, Protocol, Rule, Who};
pub use identity::{PrivateKey, PublicKey};
pub use nic::NetDevice;
pub use session::{CipherSupport, PostQuantum};
