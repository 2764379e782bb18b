//! What an endpoint is built from.

use std::net::{IpAddr, SocketAddr};

use crate::firewall::Rule;
use crate::identity::{PrivateKey, PublicKey};
use crate::session::CipherSupport;

/// One member of the mesh and the peers that it may have sessions with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The member's key.
    pub private_key: PrivateKey,
    /// The member's addresses besides the one of its key.
    pub addresses: Vec<IpAddr>,
    /// Its peers.
    pub peers: Vec<Peer>,
    /// Who may open flows to it. A rule for a key that is no peer's has no effect.
    pub rules: Vec<Rule>,
    /// The transport ciphers that it takes.
    pub ciphers: CipherSupport,
    /// The nanoseconds since 1970 when `now_ns` was 0 (CLOCK_REALTIME minus CLOCK_BOOTTIME). Only
    /// the timestamp of message 1 uses it: it must not fall behind between two starts of a member,
    /// or peers that were not restarted refuse its handshakes until it has caught up.
    pub unix_time_at_zero_ns: u64,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its key.
    pub key: PublicKey,
    /// Where it is; learned from its first datagram that verifies if absent.
    pub endpoint: Option<SocketAddr>,
    /// The addresses that it may use inside the mesh besides the one of its key.
    pub addresses: Vec<IpAddr>,
}

/// Why an endpoint can't be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A member can't be its own peer.
    #[error("peer {0} has the member's own key")]
    OwnKey(PublicKey),
    /// Two peers have the same key.
    #[error("peer {0} is listed twice")]
    DuplicatePeer(PublicKey),
    /// Two members have the same address, so that a packet's source would prove nothing.
    #[error("address {0} belongs to two members")]
    DuplicateAddress(IpAddr),
    /// An address that no member can have.
    #[error("address {0} is unspecified, loopback or multicast")]
    UnusableAddress(IpAddr),
}
