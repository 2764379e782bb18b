//! What an endpoint is built from.

use std::net::{IpAddr, SocketAddr};

use super::Exits;
use crate::firewall::{Caps, Rule};
use crate::identity::{PrivateKey, PublicKey};
use crate::session::{CipherSupport, PostQuantum};

/// One member of the mesh and the peers that it may have sessions with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The member's key.
    pub private_key: PrivateKey,
    /// The member's addresses besides the one of its key.
    pub addresses: Vec<IpAddr>,
    /// The peers that it knows from the start, and never forgets.
    pub peers: Vec<Peer>,
    /// Who may open flows to it. A rule for a key that is no peer's has no effect.
    pub rules: Vec<Rule>,
    /// To whom it may open flows; to anybody without a list.
    pub egress: Option<Vec<Rule>>,
    /// How much of its packets passes, in each direction.
    pub caps: Caps,
    /// The transport ciphers that it takes.
    pub ciphers: CipherSupport,
    /// Who may have a session besides the listed peers.
    pub strangers: Strangers,
    /// How it reaches what is outside of the mesh.
    pub exits: Exits,
    /// Whether frames that the owner gets for [`super::Path::Relayed`] reach other members: the
    /// owner is a router, or hands them to one.
    pub is_routed: bool,
    /// Whether it has sessions with peers that can't do ML-KEM-768.
    pub post_quantum: PostQuantum,
    /// The nanoseconds since 1970 when `now_ns` was 0 (CLOCK_REALTIME minus CLOCK_BOOTTIME). Only
    /// the timestamp of message 1 uses it: it must not fall behind between two starts of a member,
    /// or peers that were not restarted refuse its handshakes until it has caught up.
    pub unix_time_at_zero_ns: u64,
}

impl Config {
    /// A member that knows nobody, lets nobody in, and speaks with listed peers only.
    #[must_use]
    pub fn new(private_key: PrivateKey, unix_time_at_zero_ns: u64) -> Self {
        Self {
            private_key,
            addresses: Vec::new(),
            peers: Vec::new(),
            rules: Vec::new(),
            egress: None,
            caps: Caps::default(),
            ciphers: CipherSupport::detect(),
            post_quantum: PostQuantum::Upgrade,
            strangers: Strangers::Refused,
            exits: Exits::default(),
            is_routed: false,
            unix_time_at_zero_ns,
        }
    }
}

/// Who may have a session with a member that does not list it. A session lets nothing in by itself:
/// the firewall decides about each packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strangers {
    /// Nobody.
    Refused,
    /// Anybody, so many at a time; who was silent for longest gives way to the next. A quarter of the
    /// places is for those whom the member looks for itself.
    Welcome {
        /// How many.
        at_most: usize,
    },
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
