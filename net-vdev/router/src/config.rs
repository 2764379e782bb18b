//! What a router is told at its start, and what it tells its user.

use std::net::Ipv6Addr;

use net_vdev::PublicKey;

use crate::link::LinkId;

/// How a router is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's key.
    pub key: PublicKey,
    /// The node's zone: all nodes of a zone know each other; others are looked up on demand.
    pub zone: u16,
    /// Verifies an announcement's signature: key, bytes, signature. In production
    /// [`net_vdev::announcement::verify`].
    pub verify: fn(&PublicKey, &[u8], &[u8; 64]) -> bool,
    /// What the clock of the world says at `now_ns` = 0, in ns since 1970: announcements expire by
    /// the world's time.
    pub unix_time_at_zero_ns: u64,
    /// The most neighbours.
    pub neighbours_max: u16,
    /// The most destinations. For a moment there may be a quarter more, while others make room.
    pub destinations_max: u32,
    /// The most addresses that are being looked for, or are known not to be found.
    pub requests_max: u32,
}

impl Config {
    /// A set-up with bounds for a node: 64 neighbours, 8192 destinations, 1024 lookups.
    #[must_use]
    pub fn new(key: PublicKey, zone: u16) -> Self {
        Self {
            key,
            zone,
            verify: net_vdev::announcement::verify,
            unix_time_at_zero_ns: 0,
            neighbours_max: 64,
            destinations_max: 8192,
            requests_max: 1024,
        }
    }
}

/// Why a link can't be taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The neighbour is the router itself.
    #[error("the peer has this node's own key")]
    Own,
    /// There are as many links as the configuration allows.
    #[error("there are {0} links already, as many as are allowed")]
    TooMany(u16),
}

/// Why an announcement can't be originated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginateError {
    /// The signature is none of that key.
    #[error("the announcement of {0} is not signed by it")]
    Signature(PublicKey),
    /// It has ended.
    #[error("the announcement of {0} has expired")]
    Expired(PublicKey),
    /// There is a newer or an equal one.
    #[error("the announcement has number {number}, but {newest} was seen already")]
    Old {
        /// Its own number.
        number: u64,
        /// The newest that was seen.
        newest: u64,
    },
    /// A node other than this one.
    #[error("{0} is a node: it announces itself")]
    Node(PublicKey),
    /// The key was announced in the other role before.
    #[error("{0} was announced as something else before")]
    Role(PublicKey),
    /// The table is full.
    #[error("there are as many destinations as are allowed")]
    TooMany,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// To the node itself or a workload attached to it.
    Local(PublicKey),
    /// To a neighbour.
    Link(LinkId),
    /// A route is being looked for; an [`Event`] follows.
    Pending,
    /// Nobody has a route.
    Unreachable,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// There is a route to an address for which [`NextHop::Pending`] was answered.
    Resolved(Ipv6Addr),
    /// There is none.
    Unreachable(Ipv6Addr),
    /// The neighbour answers, and packets may be sent through the link.
    LinkUp(LinkId),
    /// The neighbour does not answer any more. The link stays, and is probed, until it is taken down.
    LinkDead(LinkId),
    /// A route can only be used again once this local key announces itself under a number of at
    /// least `sequence`: sign it and call [`crate::Router::originate`].
    SequenceWanted {
        /// The key, the node's own or an attached workload's.
        key: PublicKey,
        /// The number that is wanted.
        sequence: u64,
    },
    /// Somebody else spreads a newer announcement of this local key, with its signature: the
    /// workload has moved, or this host lost count. To stay, announce a larger number.
    Superseded {
        /// The key.
        key: PublicKey,
        /// The number seen.
        sequence: u64,
    },
}

/// What was dropped, and why. Each counts messages or entries since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of messages handed out to be sent.
    pub sent_bytes: u64,
    /// Messages handed out.
    pub sent: u64,
    /// Messages taken.
    pub received: u64,
    /// Dropped: a neighbour sent more than is taken from one.
    pub too_many: u64,
    /// Dropped: no message of this version.
    pub malformed: u64,
    /// Dropped: for another incarnation of the link.
    pub stale: u64,
    /// Entries with a wrong signature.
    pub forged: u64,
    /// Entries whose announcement has ended.
    pub expired: u64,
    /// Entries refused because the table was full or too many signatures were to be verified.
    pub refused: u64,
    /// Entries about announcements that this router does not have.
    pub unknown: u64,
    /// Events that nobody took in time.
    pub lost_events: u64,
    /// Times that a destination had no route left and a new sequence number was asked for.
    pub starved: u64,
}
