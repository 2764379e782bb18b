//! From a member's packets to sockets of the host and back (RFC 6146, without the packets of the
//! other side: the host's kernel makes those).
//!
//! * **TCP** ends here (`tcp`) and goes on in a connection of the host.
//! * **UDP**: a connected socket per flow. Flows from one port of a member share a port of the host,
//!   so that the mapping does not depend on the destination (RFC 4787 §4.1); only the ends that the
//!   member wrote to may answer.
//! * **ICMP echo**: a ping socket per flow, where the host allows them (`net.ipv4.ping_group_range`).
//!
//! A member spells a destination as `64:ff9b::a.b.c.d` or, with IPv4 of its own, as it is. Its
//! source must be its own address. Nothing is sent to members while their packets are taken:
//! [`Nat::flush`] does at the end of a turn, so that one acknowledgement answers many segments.

mod connections;
mod datagrams;
mod flows;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flows::{Carried, Ends, Table};
use net_vdev::PublicKey;
use net_vdev::firewall::{Packet, Transport};
use net_vdev::offload::{Layout, PACKET_BYTES_MAX, Segmenter, VirtioNetHeader};
use net_vdev::random::Generator;
use net_vdev::wire::MTU;

use crate::address;
use crate::counters::{Counters, DropReason};
use crate::dns::streams::RESOLVER;
use crate::limits::NatConfig;
use crate::packet::{self, Trouble};
use crate::sockets::{Ready, SocketError, Sockets, Token};

const DNS_PORT: u16 = 53;
/// How many small packets (refusals, ICMP errors) wait for the end of the turn.
const NOTICES_MAX: usize = 256;

/// Takes a packet for a member, or several as one super-frame.
pub type Deliver<'a> = dyn FnMut(&PublicKey, &VirtioNetHeader, &[u8]) + 'a;

/// The way out of all members of a node.
#[derive(Debug)]
pub struct Nat {
    config: NatConfig,
    /// Where the resolver takes connections.
    resolver_addresses: Vec<Ipv6Addr>,
    table: Table,
    counters: Counters,
    random: Generator,
    notices: VecDeque<(PublicKey, Vec<u8>)>,
    /// Where packets to members are written, one after the other.
    frame: Vec<u8>,
    /// Where datagrams are received and cut.
    buffer: Vec<u8>,
}

/// A packet of a member that passed the first checks.
struct Outbound<'a> {
    member: usize,
    packet: Packet,
    /// The packet's bytes, without padding.
    bytes: &'a [u8],
    /// Where its destination really is.
    to: Ipv4Addr,
    /// Whether that is the resolver, to which connections are made and nothing else.
    is_resolver: bool,
    /// Whether the transport's checksum is still to be computed, and so says nothing.
    is_unsummed: bool,
}

impl Outbound<'_> {
    /// What is behind the IP header.
    fn transport(&self) -> &[u8] {
        self.bytes.get(packet::ip_bytes(self.packet.source)..).unwrap_or_default()
    }

    fn ends(&self, protocol: u8, inner_port: u16, outer_port: u16) -> Ends {
        Ends {
            member: self.member,
            protocol,
            inner: SocketAddr::new(self.packet.source, inner_port),
            outer: SocketAddr::new(self.packet.destination, outer_port),
        }
    }

    fn check(&self, protocol: u8) -> Result<(), DropReason> {
        let ip_bytes = packet::ip_bytes(self.packet.source);
        if self.is_unsummed || packet::has_right_checksum(self.bytes, ip_bytes, protocol) {
            return Ok(());
        }
        Err(DropReason::Malformed)
    }
}

impl Nat {
    /// A way out that nobody uses yet. `seed` is fresh random bytes: sequence numbers follow from
    /// it.
    #[must_use]
    pub fn new(config: NatConfig, seed: [u8; 32]) -> Self {
        Self {
            table: Table::new(config.limits.clone()),
            config,
            resolver_addresses: Vec::new(),
            counters: Counters::default(),
            random: Generator::new(seed),
            notices: VecDeque::new(),
            frame: Vec::with_capacity(PACKET_BYTES_MAX),
            buffer: vec![0; PACKET_BYTES_MAX],
        }
    }

    /// Leads TCP for port 53 of these addresses to the resolver, which the sockets know as
    /// [`RESOLVER`].
    pub(crate) fn resolve_at(&mut self, addresses: Vec<Ipv6Addr>) {
        self.resolver_addresses = addresses;
    }

    /// What was done and dropped.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whose flow has this socket, and its ends: the member's, and the other as the member knows it.
    pub(crate) fn ends_of(&self, token: Token) -> Option<(PublicKey, SocketAddr, SocketAddr)> {
        let flow = self.table.get(self.table.place_of(token)?)?;
        let key = self.table.key_of(flow.ends.member)?;
        Some((key, flow.ends.inner, flow.ends.outer))
    }

    /// How many flows there are, and the bytes that their buffers may fill.
    #[must_use]
    pub fn occupancy(&self) -> (usize, usize) {
        (self.table.len(), self.table.buffer_bytes())
    }

    /// Takes a packet or super-frame of a member, whose IPv4 address is `ipv4` if it has one.
    pub fn receive(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        (member, ipv4): (&PublicKey, Option<Ipv4Addr>),
        header: &VirtioNetHeader,
        bytes: &[u8],
    ) {
        let outcome = self.try_receive(now_ns, sockets, (member, ipv4), header, bytes);
        match outcome {
            Ok(()) => self.counters.packets_out += 1,
            Err(reason) => self.counters.drop(reason),
        }
    }

    fn try_receive(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        (key, ipv4): (&PublicKey, Option<Ipv4Addr>),
        header: &VirtioNetHeader,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let packet = Packet::parse(bytes).map_err(|_| DropReason::Malformed)?;
        let is_own = match packet.source {
            IpAddr::V6(source) => source == key.address(),
            IpAddr::V4(source) => Some(source) == ipv4,
        };
        if !is_own {
            return Err(DropReason::Source);
        }
        let is_resolver = self.is_for_resolver(&packet);
        let to = if is_resolver { Some(RESOLVER) } else { address::outside(&packet.destination) };
        let to = to.ok_or(DropReason::Destination)?;
        let bytes = bytes.get(..packet.len).ok_or(DropReason::Malformed)?;
        let place = self.table.enter(now_ns, key).ok_or(DropReason::TooMany)?;
        let segment_bytes = header.segmentation.map_or(bytes.len(), |it| it.payload_bytes.into());
        let packets = bytes.len().div_ceil(segment_bytes.max(1));
        let member = self.table.member(place).ok_or(DropReason::TooMany)?;
        if !member.out.take(now_ns, bytes.len(), packets) {
            return Err(DropReason::OverCap);
        }
        let is_unsummed = header.checksum.is_some();
        let outbound = Outbound { member: place, packet, bytes, to, is_resolver, is_unsummed };
        match packet.transport {
            Transport::Tcp { ports, .. } => self.take_segment(now_ns, sockets, &outbound, ports),
            Transport::Udp(_) if header.segmentation.is_some() => {
                self.take_datagrams(now_ns, sockets, header, &outbound)
            }
            Transport::Udp(ports) => self.take_datagram(now_ns, sockets, &outbound, ports),
            Transport::EchoRequest(identifier) => {
                self.take_echo(now_ns, sockets, &outbound, identifier)
            }
            _ => Err(DropReason::OtherIcmp),
        }
    }

    /// Whether a packet belongs to a connection with the resolver.
    pub(crate) fn is_for_resolver(&self, packet: &Packet) -> bool {
        let Transport::Tcp { ports, .. } = packet.transport else { return false };
        let is_here = |address| self.resolver_addresses.contains(&address);
        matches!(packet.destination, IpAddr::V6(address) if is_here(address))
            && ports.destination == DNS_PORT
    }

    /// Several datagrams of one flow in a super-frame.
    fn take_datagrams(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        header: &VirtioNetHeader,
        outbound: &Outbound<'_>,
    ) -> Result<(), DropReason> {
        let layout = Layout { headroom: 0, tailroom: 0, packet_bytes_max: PACKET_BYTES_MAX };
        let segmenter = Segmenter::new(header, outbound.bytes, layout);
        let mut segmenter = segmenter.map_err(|_| DropReason::Malformed)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut outcome = Ok(());
        while let Ok(Some(batch)) = segmenter.fill(&mut buffer) {
            let packets = buffer.get(..batch.len).unwrap_or_default();
            for bytes in packets.chunks(batch.stride.max(1)) {
                let Ok(packet) = Packet::parse(bytes) else { continue };
                let Transport::Udp(ports) = packet.transport else { continue };
                let one = Outbound { packet, bytes, is_unsummed: true, ..*outbound };
                outcome = outcome.and(self.take_datagram(now_ns, sockets, &one, ports));
            }
        }
        self.buffer = buffer;
        outcome
    }

    /// Whether a flow may be opened at all; makes room for it. Tells the member if it may not go
    /// there.
    fn admit(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        outbound: &Outbound<'_>,
        ends: &Ends,
        budget_bytes: usize,
    ) -> Result<(), DropReason> {
        let destinations = &self.config.destinations;
        let is_permitted = outbound.is_resolver
            || destinations.permits(outbound.to)
                && (destinations.lists(outbound.to) || !sockets.is_own(outbound.to));
        if !is_permitted {
            self.tell_trouble(Trouble::Prohibited, outbound);
            return Err(DropReason::Forbidden);
        }
        if let Some(oldest) = self.table.admit(now_ns, ends, budget_bytes)? {
            self.remove(sockets, oldest);
        }
        Ok(())
    }

    /// Tells a member that its packet went nowhere.
    fn tell_trouble(&mut self, trouble: Trouble, outbound: &Outbound<'_>) {
        let Packet { source, destination, .. } = outbound.packet;
        let notice = packet::trouble(trouble, destination, source, outbound.bytes);
        self.notify(outbound.member, notice);
    }

    /// Keeps a small packet for a member until the end of the turn.
    fn notify(&mut self, member: usize, notice: Option<Vec<u8>>) {
        let Some((notice, member)) = notice.zip(self.table.member(member)) else { return };
        if self.notices.len() >= NOTICES_MAX {
            self.counters.drop(DropReason::Queue);
        } else {
            self.notices.push_back((member.key, notice));
        }
    }

    /// A socket can do something.
    pub fn ready(&mut self, sockets: &mut impl Sockets, ready: Ready) {
        let Some(place) = self.table.place_of(ready.token) else { return };
        let Some(flow) = self.table.get_mut(place) else { return };
        flow.is_readable |= ready.readable;
        flow.is_writable |= ready.writable;
        if matches!(flow.carried, Carried::Tcp(_)) {
            self.host_connected(sockets, place);
        }
        self.table.mark(place);
    }

    /// Moves bytes, and hands over all that is for members. To be called at the end of each turn.
    pub fn flush(&mut self, now_ns: u64, sockets: &mut impl Sockets, deliver: &mut Deliver<'_>) {
        for place in self.table.take_marked() {
            match self.table.get(place).map(|flow| &flow.carried) {
                Some(Carried::Tcp(_)) => self.flush_stream(now_ns, sockets, place, deliver),
                Some(Carried::Udp | Carried::Echo) => {
                    self.flush_datagrams(now_ns, sockets, place, deliver);
                }
                None => {}
            }
        }
        while let Some((member, notice)) = self.notices.pop_front() {
            self.counters.packets_in += 1;
            self.counters.bytes_in += notice.len() as u64;
            deliver(&member, &VirtioNetHeader::default(), &notice);
        }
    }

    /// Whether [`Nat::flush`] has something to do at once.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.table.has_marked() || !self.notices.is_empty()
    }

    /// When [`Nat::handle_deadline`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.table.next_deadline()
    }

    /// Does what is due: retransmissions, and closing what was idle for too long.
    pub fn handle_deadline(&mut self, now_ns: u64, sockets: &mut impl Sockets) {
        while let Some(place) = self.table.pop_due(now_ns) {
            let Some(flow) = self.table.get_mut(place) else { continue };
            match &mut flow.carried {
                Carried::Tcp(stream) => {
                    stream.due(now_ns);
                    self.table.mark(place);
                }
                Carried::Udp | Carried::Echo => {
                    let due_ns = datagrams::idle_at_ns(flow);
                    if due_ns <= now_ns {
                        self.remove(sockets, place);
                    } else {
                        self.table.arm(place, due_ns);
                    }
                }
            }
        }
    }

    /// A member is gone: so are its flows.
    pub fn forget(&mut self, sockets: &mut impl Sockets, member: &PublicKey) {
        let Some(member) = self.table.member_place(member) else { return };
        for place in self.table.flows_of(member) {
            self.remove(sockets, place);
        }
    }

    fn remove(&mut self, sockets: &mut impl Sockets, place: usize) {
        if let Some(flow) = self.table.remove(place) {
            sockets.close(flow.token);
        }
    }
}

/// Why a packet is dropped whose socket could not be opened or used, and what its member is told.
fn consequence(error: SocketError) -> (DropReason, Option<Trouble>) {
    match error {
        SocketError::WouldBlock => (DropReason::Full, None),
        SocketError::Refused => (DropReason::Refused, Some(Trouble::Port)),
        SocketError::Unreachable => (DropReason::Refused, Some(Trouble::Address)),
        SocketError::TooLarge => {
            (DropReason::TooLarge, Some(Trouble::TooLarge(u16::try_from(MTU).unwrap_or(1280) - 20)))
        }
        SocketError::Exhausted | SocketError::Broken => (DropReason::NoSocket, None),
    }
}
