//! The shard protocol: what a volume and a node's server say to each other over a socket.
//!
//! * [`handshake`]: Noise IK; the client pins the node's key and names a store.
//! * [`channel`]: sealed frames over the stream that follows.
//! * [`message`]: every request, answer and error as bytes.
//! * [`authorise`]: capabilities, signed by a volume's writer key.
//! * [`client`], [`server`]: both ends as state machines, bytes in and bytes out.
//! * [`sockets`]: [`SocketNodes`], a volume's nodes behind connected sockets.
//! * [`courier`]: how a confined process comes by new sockets.
//!
//! `docs/shard-protocol.md` draws it byte by byte.

pub mod authorise;
pub mod channel;
pub mod client;
pub mod courier;
pub mod handshake;
pub mod message;
pub mod server;
pub mod sockets;

pub use authorise::{Authorise, Delegation, VolumeCard, VolumeSigner};
pub use client::{Client, ClientConfig, Credential};
pub use courier::Courier;
pub use handshake::{NodeKey, NodePublicKey};
pub use server::ServerSession;
pub use sockets::{SocketNode, SocketNodes};
