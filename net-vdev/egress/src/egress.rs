//! All ways out of a node in one: what its daemon holds.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use net_vdev::PublicKey;
use net_vdev::firewall::{Packet, Transport};
use net_vdev::offload::VirtioNetHeader;
use net_vdev::random::Generator;
use net_vdev::wire::MTU;

use crate::address::extract;
use crate::counters::Counters;
use crate::dns::streams::{Streams, WithStreams};
use crate::dns::{Asker, Resolver, ResolverCounters};
use crate::limits::{Bucket, NatConfig};
use crate::names::Names;
use crate::nat::{Deliver, Nat};
use crate::packet::{self, UDP_BYTES};
use crate::sockets::{Ready, Sockets};

const DNS_PORT: u16 = 53;
/// The most events that are taken from the sockets in one turn.
const EVENTS_MAX: usize = 4096;

/// How many queries of strangers about names of this node are answered.
const STRANGERS_PER_S: u64 = 1000;

/// What a node offers.
#[derive(Debug, Clone, Default)]
pub struct EgressConfig {
    /// NAT64, if members may go out at all.
    pub nat: Option<NatConfig>,
    /// The addresses at which the resolver answers; none for no resolver.
    pub resolver_addresses: Vec<Ipv6Addr>,
    /// Whom the resolver asks.
    pub upstreams: Vec<SocketAddr>,
    /// The names of members.
    pub names: Names,
    /// The address of the node's own member, from which other nodes are asked about their workloads.
    pub own: Option<Ipv6Addr>,
    /// The nanoseconds since 1970 when `now_ns` was 0: by it certificates end.
    pub unix_time_at_zero_ns: u64,
}

/// The ways out of a node.
#[derive(Debug)]
pub struct Egress<S> {
    sockets: S,
    nat: Option<Nat>,
    /// Whether members may go out.
    is_exit: bool,
    resolver: Resolver,
    /// The resolver's connections with members.
    streams: Streams,
    resolver_addresses: Vec<Ipv6Addr>,
    names: Names,
    unix_time_at_zero_ns: u64,
    /// What limits the queries of strangers.
    strangers: Bucket,
    /// Packets of the node's own member.
    packets: VecDeque<Vec<u8>>,
    events: Vec<Ready>,
    /// Answers that are larger than a packet of the mesh, or that had no way back.
    answers_lost: u64,
}

impl<S: Sockets> Egress<S> {
    /// Opens nothing yet. `seed` is fresh random bytes.
    #[must_use]
    pub fn new(config: EgressConfig, sockets: S, seed: [u8; 32]) -> Self {
        let mut random = Generator::new(seed);
        let mut resolver = Resolver::new(config.upstreams, random.seed());
        if let Some(own) = config.own {
            resolver.ask_nodes_from(own);
        }
        let (is_exit, resolves) = (config.nat.is_some(), !config.resolver_addresses.is_empty());
        let nat_seed = random.seed();
        // Connections to the resolver are the NAT's work too.
        let nat = (is_exit || resolves).then(|| {
            let mut nat = Nat::new(config.nat.unwrap_or_default(), nat_seed);
            nat.resolve_at(config.resolver_addresses.clone());
            nat
        });
        Self {
            sockets,
            nat,
            is_exit,
            streams: Streams::default(),
            resolver,
            unix_time_at_zero_ns: config.unix_time_at_zero_ns,
            strangers: Bucket::new(0, STRANGERS_PER_S, STRANGERS_PER_S),
            packets: VecDeque::new(),
            resolver_addresses: config.resolver_addresses,
            names: config.names,
            events: Vec::new(),
            answers_lost: 0,
        }
    }

    /// The sockets, to wait for.
    #[must_use]
    pub fn sockets(&self) -> &S {
        &self.sockets
    }

    /// The sockets, to change how they are.
    pub fn sockets_mut(&mut self) -> &mut S {
        &mut self.sockets
    }

    /// The names of members, to change.
    pub fn names_mut(&mut self) -> &mut Names {
        &mut self.names
    }

    /// What NAT64 did, if there is one.
    #[must_use]
    pub fn counters(&self) -> Option<Counters> {
        self.nat.as_ref().map(Nat::counters)
    }

    /// What the resolver did.
    #[must_use]
    pub fn resolver_counters(&self) -> ResolverCounters {
        self.resolver.counters()
    }

    /// How many flows NAT64 has, and the bytes that their buffers may fill.
    #[must_use]
    pub fn occupancy(&self) -> (usize, usize) {
        self.nat.as_ref().map_or((0, 0), Nat::occupancy)
    }

    /// Whether a packet is for here, rather than for the node's host: its destination lies in
    /// NAT64's prefix, or it is a query for the resolver.
    #[must_use]
    pub fn takes(&self, bytes: &[u8]) -> bool {
        let destination = bytes.get(24..).and_then(<[u8]>::first_chunk::<16>);
        let is_ipv6 = bytes.first().is_some_and(|first| first >> 4 == 6);
        let Some(destination) = destination.filter(|_| is_ipv6) else { return false };
        let destination = Ipv6Addr::from(*destination);
        if extract(&destination).is_some() {
            return self.is_exit;
        }
        let is_query = || self.query(bytes).is_some() || self.is_for_resolver(bytes);
        self.resolver_addresses.contains(&destination) && is_query() || self.resolver.takes(bytes)
    }

    /// Whether a packet belongs to a connection with the resolver.
    fn is_for_resolver(&self, bytes: &[u8]) -> bool {
        let packet = Packet::parse(bytes).ok();
        packet.zip(self.nat.as_ref()).is_some_and(|(packet, nat)| nat.is_for_resolver(&packet))
    }

    /// Whether a packet of the mesh answers what this node asked another: then it is for
    /// [`Egress::receive_answer`], whoever it is from.
    #[must_use]
    pub fn is_answer(&self, bytes: &[u8]) -> bool {
        self.resolver.takes(bytes)
    }

    /// Takes another node's answer.
    pub fn receive_answer(&mut self, now_ns: u64, bytes: &[u8]) {
        let unix_s = self.unix_time_at_zero_ns.saturating_add(now_ns) / 1_000_000_000;
        self.resolver.receive(now_ns, unix_s, bytes);
    }

    /// Takes a packet of a member that may not go out, whose source its session vouches for: whoever
    /// it is may ask for this node's names. Returns whether that was it.
    pub fn receive_stranger(&mut self, now_ns: u64, bytes: &[u8]) -> bool {
        let Some((packet, ports, message)) = self.query(bytes) else { return false };
        if !self.strangers.take(now_ns, 1) {
            return false;
        }
        let Some(answer) = self.resolver.query_of_stranger(&self.names, message) else {
            return false;
        };
        let from = SocketAddr::new(packet.destination, ports.1);
        let answer = packet::udp(from, SocketAddr::new(packet.source, ports.0), &answer);
        self.packets.extend(answer.filter(|packet| packet.len() <= MTU));
        true
    }

    /// The next packet of the node's own member.
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front().or_else(|| self.resolver.poll_packet())
    }

    /// Takes a packet or super-frame of a member, whose IPv4 address is `ipv4` if it has one.
    /// Whatever answers it comes from [`Egress::flush`].
    pub fn receive(
        &mut self,
        now_ns: u64,
        (member, ipv4): (&PublicKey, Option<Ipv4Addr>),
        header: &VirtioNetHeader,
        bytes: &[u8],
    ) {
        if let Some((packet, ports, message)) = self.query(bytes) {
            if packet.source != IpAddr::V6(member.address()) {
                return;
            }
            let asker = Asker {
                member: *member,
                from: SocketAddr::new(packet.source, ports.0),
                to: SocketAddr::new(packet.destination, ports.1),
                stream: None,
            };
            self.resolver.query(now_ns, &mut self.sockets, &self.names, asker, message);
        } else if self.is_exit || self.is_for_resolver(bytes) {
            self.streams.set_now(now_ns);
            let (sockets, streams) = (&mut self.sockets, &mut self.streams);
            if let Some(nat) = &mut self.nat {
                let mut sockets = WithStreams { sockets, streams };
                nat.receive(now_ns, &mut sockets, (member, ipv4), header, bytes);
            }
        }
    }

    /// A query for the resolver: its packet, its ports, and its message.
    fn query<'a>(&self, bytes: &'a [u8]) -> Option<(Packet, (u16, u16), &'a [u8])> {
        let packet = Packet::parse(bytes).ok()?;
        let IpAddr::V6(destination) = packet.destination else { return None };
        let Transport::Udp(ports) = packet.transport else { return None };
        let is_query =
            ports.destination == DNS_PORT && self.resolver_addresses.contains(&destination);
        let message = bytes.get(packet::IPV6_BYTES + UDP_BYTES..packet.len)?;
        is_query.then_some((packet, (ports.source, ports.destination), message))
    }

    /// Takes what the host's sockets have, and hands over all that is for members. To be called at
    /// the end of each turn.
    pub fn flush(&mut self, now_ns: u64, deliver: &mut Deliver<'_>) {
        self.streams.set_now(now_ns);
        self.poll(now_ns);
        self.resolve_streams(now_ns, deliver);
        // What the resolver said on connections is ready now.
        self.poll(now_ns);
        if let Some(nat) = &mut self.nat {
            let (sockets, streams) = (&mut self.sockets, &mut self.streams);
            nat.flush(now_ns, &mut WithStreams { sockets, streams }, deliver);
        }
        self.resolve_streams(now_ns, deliver);
    }

    /// Hands the resolver what was asked on connections, and on what it answered.
    fn resolve_streams(&mut self, now_ns: u64, deliver: &mut Deliver<'_>) {
        while let Some((token, message)) = self.streams.poll_query() {
            let Some((member, from, to)) = self.nat.as_ref().and_then(|nat| nat.ends_of(token))
            else {
                continue;
            };
            let asker = Asker { member, from, to, stream: Some(token) };
            self.resolver.query(now_ns, &mut self.sockets, &self.names, asker, &message);
        }
        while let Some((asker, message)) = self.resolver.poll_answer() {
            if let Some(token) = asker.stream {
                self.streams.answer(token, &message);
                continue;
            }
            let packet = packet::udp(asker.to, asker.from, &message);
            match packet.filter(|packet| packet.len() <= MTU) {
                Some(packet) => deliver(&asker.member, &VirtioNetHeader::default(), &packet),
                None => self.answers_lost += 1,
            }
        }
    }

    fn poll(&mut self, now_ns: u64) {
        let mut events = std::mem::take(&mut self.events);
        loop {
            let before = events.len();
            let (sockets, streams) = (&mut self.sockets, &mut self.streams);
            WithStreams { sockets, streams }.ready(&mut events);
            if events.len() == before || events.len() >= EVENTS_MAX {
                break;
            }
        }
        for ready in events.drain(..) {
            if Resolver::owns(ready.token) {
                self.resolver.ready(now_ns, &mut self.sockets, ready);
            } else if let Some(nat) = &mut self.nat {
                let (sockets, streams) = (&mut self.sockets, &mut self.streams);
                nat.ready(&mut WithStreams { sockets, streams }, ready);
            }
        }
        self.events = events;
    }

    /// When something is to be done even if nothing happens.
    #[must_use]
    pub fn next_deadline(&self, now_ns: u64) -> Option<u64> {
        let nat_ns = self
            .nat
            .as_ref()
            .and_then(|nat| if nat.is_busy() { Some(now_ns) } else { nat.next_deadline() });
        let at_once = self.streams.has_queries().then_some(now_ns);
        let of_names = [self.resolver.next_deadline(), self.streams.next_deadline()];
        [nat_ns, at_once].into_iter().chain(of_names).flatten().min()
    }

    /// Does what is due.
    pub fn handle_deadline(&mut self, now_ns: u64) {
        if let Some(nat) = &mut self.nat {
            let (sockets, streams) = (&mut self.sockets, &mut self.streams);
            nat.handle_deadline(now_ns, &mut WithStreams { sockets, streams });
        }
        self.streams.set_now(now_ns);
        self.streams.handle_deadline();
        self.resolver.handle_deadline(now_ns, &mut self.sockets);
    }

    /// A member is gone: so are its flows.
    pub fn forget(&mut self, member: &PublicKey) {
        if let Some(nat) = &mut self.nat {
            let (sockets, streams) = (&mut self.sockets, &mut self.streams);
            nat.forget(&mut WithStreams { sockets, streams }, member);
        }
    }
}
