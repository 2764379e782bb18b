//! The way out of the mesh: packets for IPv4 addresses, written in NAT64's prefix `64:ff9b::/96`
//! (RFC 6052), go to one peer that a member trusts to be its exit, and come back from it alone.
//!
//! An exit's firewall has no say about these packets, nor about queries for the exit's resolver:
//! what is behind the exit decides who may go where.

use std::net::IpAddr;

use super::Endpoint;
use crate::firewall::{Packet, Transport};
use crate::identity::PublicKey;

/// The first 12 bytes of an address that stands for one outside of the mesh.
pub(crate) const OUTSIDE_PREFIX: [u8; 12] = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
const DNS_PORT: u16 = 53;

/// What the mesh's exits are to a member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exits {
    /// The member through which this one reaches the outside.
    pub through: Option<PublicKey>,
    /// Whether this member is an exit itself: its owner takes what is for the outside.
    pub is_exit: bool,
    /// Whether its owner takes TCP and UDP for port 53 of its addresses, as a resolver.
    pub is_resolver: bool,
}

impl Exits {
    /// The address of the member through which this one reaches the outside.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.through.map(|exit| exit.address().into())
    }
}

/// Whether an address stands for one outside of the mesh.
fn is_outside(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.octets().starts_with(&OUTSIDE_PREFIX))
}

impl Endpoint {
    /// Goes out through another peer from now on, or is an exit.
    pub fn set_exits(&mut self, exits: Exits) {
        self.exit_address = exits.address();
        self.exits = exits;
    }

    /// The member through which this one reaches the outside.
    #[must_use]
    pub fn exit(&self) -> Option<PublicKey> {
        self.exits.through
    }

    /// Whether a peer is known to have this address.
    #[must_use]
    pub fn has_peer_at(&self, address: &IpAddr) -> bool {
        self.routes.contains_key(address)
    }

    /// The peer's address that stands for an address: its exit's for all outside, a workload's own for
    /// its alias.
    pub(super) fn through(&self, address: IpAddr) -> IpAddr {
        match self.exit_address {
            Some(exit) if is_outside(&address) => exit,
            _ => self.aliases.workload(&address).map_or(address, IpAddr::V6),
        }
    }

    /// Whether this member may speak from an address, and is spoken to at it.
    pub(super) fn has(&self, address: &IpAddr) -> bool {
        self.addresses.contains(address) || (self.exits.is_exit && is_outside(address))
    }

    /// Whether what is behind this exit decides about a packet of a peer's, or made it.
    pub(super) fn is_of_exit(&self, packet: &Packet) -> bool {
        let asks = |port: u16| port == DNS_PORT;
        let of_resolver = match packet.transport {
            Transport::Udp(ports) | Transport::Tcp { ports, .. } => {
                let to_here = self.addresses.contains(&packet.destination);
                if to_here { asks(ports.destination) } else { asks(ports.source) }
            }
            _ => false,
        };
        let ends = [packet.source, packet.destination];
        (self.exits.is_resolver && of_resolver)
            || (self.exits.is_exit && ends.iter().any(is_outside))
    }
}
