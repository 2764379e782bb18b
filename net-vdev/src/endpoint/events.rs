//! What an endpoint's owner has to know or to do.

use std::net::Ipv6Addr;

use super::{Endpoint, Path};
use crate::certificate::ALIAS_BYTES;
use crate::identity::PublicKey;

/// How many events wait for [`Endpoint::poll_event`] at most; beyond, new ones are lost.
pub const EVENTS_MAX: usize = 1024;
/// So many may wait when one is taken that a peer's message causes, and one that anybody's datagram
/// does: neither takes the place of what this member itself has to say.
const EVENTS_OF_PEERS_MAX: usize = EVENTS_MAX / 4 * 3;
const EVENTS_OF_ANYBODY_MAX: usize = EVENTS_MAX / 4;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// There is a session with this peer to send on. Comes again for each renewal.
    Up(PublicKey),
    /// There is none any more.
    Down(PublicKey),
    /// Packets wait for whoever has this address: the owner is to find the member's key and to say
    /// it to [`Endpoint::learn`], or [`Endpoint::give_up`].
    Resolve(Ipv6Addr),
    /// A peer sent a message between routers, on this path.
    Router {
        /// The peer.
        from: PublicKey,
        /// On which way.
        path: Path,
        /// The message.
        message: Vec<u8>,
    },
    /// A peer asks whose alias an address is.
    AliasAsked {
        /// The peer.
        from: PublicKey,
        /// The address.
        address: Ipv6Addr,
    },
    /// A peer says whose alias an address is. Nobody looked at the certificate yet.
    Alias {
        /// The peer.
        from: PublicKey,
        /// The address.
        address: Ipv6Addr,
        /// The certificate; `None` if it is nobody's.
        certificate: Option<Box<[u8; ALIAS_BYTES]>>,
    },
    /// A router says that it dropped a frame because of its hop limit. Nothing proves it.
    Expired {
        /// The index of the datagram in the frame.
        index: u32,
        /// The router.
        router: Ipv6Addr,
    },
    /// A peer answered a [`Endpoint::ping`].
    Pong {
        /// Who.
        from: PublicKey,
        /// On which way.
        path: Path,
        /// The number that the ping got.
        number: u64,
    },
    /// Somebody says that it does not know the session of a datagram that came from here, and no
    /// session of this member's is meant. Nothing proves it.
    UnknownSession {
        /// The index in the datagram.
        index: u32,
        /// From where.
        path: Path,
    },
    /// A way to a peer stopped working.
    PathDied {
        /// The peer.
        peer: PublicKey,
        /// The way.
        path: Path,
    },
}

impl Event {
    /// How many may wait at most when it comes.
    fn room(&self) -> usize {
        match self {
            Self::Up(_) | Self::Down(_) | Self::Resolve(_) | Self::PathDied { .. } => EVENTS_MAX,
            Self::Router { .. }
            | Self::AliasAsked { .. }
            | Self::Alias { .. }
            | Self::Pong { .. } => EVENTS_OF_PEERS_MAX,
            Self::Expired { .. } | Self::UnknownSession { .. } => EVENTS_OF_ANYBODY_MAX,
        }
    }
}

impl Endpoint {
    /// Queues an event. A flood of one kind leaves room for those that are worth more.
    pub(super) fn tell(&mut self, event: Event) {
        if self.events.len() < event.room() {
            self.events.push_back(event);
        } else {
            self.counters.events_lost += 1;
        }
    }
}
