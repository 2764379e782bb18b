//! What a router knows, for people and metrics to read.

use std::net::Ipv6Addr;

use net_vdev::PublicKey;
use net_vdev::announcement::Role;

use crate::config::Counters;
use crate::destination::Destination;
use crate::link::{Link, LinkId};
use crate::liveness::State;
use crate::router::Router;

/// A neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourView {
    /// Its link.
    pub link: LinkId,
    /// Its key.
    pub key: PublicKey,
    /// Its zone, as it says.
    pub zone: u16,
    /// Whether it answers probes.
    pub state: State,
    /// Whether packets may be sent through the link.
    pub is_usable: bool,
    /// The smallest round trip of the last ten to twenty seconds, in ns.
    pub round_trip_ns: u64,
    /// How many of the last 64 probes were lost.
    pub lost_of_64: u32,
    /// What the link costs, in µs.
    pub cost_us: u32,
    /// How many destinations it was the first to tell of.
    pub introduced: u32,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteView {
    /// The prefix and its length in bits.
    pub prefix: (Ipv6Addr, u8),
    /// Whose it is.
    pub key: PublicKey,
    /// Node of a zone, or workload.
    pub role: Role,
    /// Whether it is this node or attached to it.
    pub is_local: bool,
    /// Where packets go, and the second choice; none if it can't be reached or is local.
    pub primary: Option<LinkId>,
    /// The second choice.
    pub alternate: Option<LinkId>,
    /// The distance in µs; none if it can't be reached.
    pub metric_us: Option<u32>,
    /// The sequence number of the route.
    pub sequence: u64,
    /// When its newest announcement ends, in seconds since 1970.
    pub expires_unix_s: u64,
}

/// How full the tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Links, usable or not.
    pub neighbours: usize,
    /// Destinations.
    pub destinations: usize,
    /// Addresses that are being looked for or known not to be found.
    pub requests: usize,
    /// Bytes of memory of all tables and lists.
    pub bytes: usize,
}

impl Occupancy {
    /// Bytes for each destination.
    #[must_use]
    pub fn bytes_per_destination(&self) -> usize {
        self.bytes / self.destinations.max(1)
    }
}

impl Router {
    /// The neighbours, in the order of their links.
    pub fn neighbours(&self) -> impl Iterator<Item = NeighbourView> {
        self.links.iter().flatten().map(|link| NeighbourView {
            link: link.id,
            key: link.neighbour,
            zone: link.zone,
            state: link.liveness.state,
            is_usable: link.is_usable(),
            round_trip_ns: link.liveness.quality.round_trip_ns(),
            lost_of_64: link.liveness.quality.lost_of_64(),
            cost_us: link.cost_us,
            introduced: link.introduced,
        })
    }

    /// The routes, in no particular order.
    pub fn routes(&self) -> impl Iterator<Item = RouteView> {
        self.table.iter().map(|(_, destination)| self.route_view(destination))
    }

    fn route_view(&self, destination: &Destination) -> RouteView {
        let announcement = &destination.newest.announcement;
        let link = |slot: u16| self.link_at(slot).map(|link| link.id);
        RouteView {
            prefix: announcement.prefix(),
            key: announcement.key,
            role: announcement.role,
            is_local: destination.is_local,
            primary: link(destination.primary),
            alternate: link(destination.alternate),
            metric_us: destination.is_reachable().then_some(destination.metric),
            sequence: destination.sequence,
            expires_unix_s: announcement.expires_unix_s,
        }
    }

    /// How full the tables are. Walks through all of them.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let links: usize = self.links.iter().flatten().map(Link::bytes).sum();
        let places = self.links.capacity() * size_of::<Option<Link>>();
        Occupancy {
            neighbours: self.links.iter().flatten().count(),
            destinations: self.table.len(),
            requests: self.requests.len(),
            bytes: links + places + self.table.bytes() + self.requests.bytes(),
        }
    }

    /// What was sent, taken and dropped since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
