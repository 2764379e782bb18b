//! IPv4 for guests that know nothing else: the card gives its guest an address by DHCP, and writes
//! its packets for the outside in IPv6, for the exit's NAT64 to undo (464XLAT, RFC 6877). There is
//! no NAT here and nothing to run out of.
//!
//! It is there whenever the member has an exit. What is for members that the card knows by their
//! IPv4 addresses goes to them as it is.
//!
//! A guest may reach the outside in both families at once, and answers look alike. So the card
//! remembers in which family the guest last spoke on a flow: one bit per flow, of a fixed number of
//! bits. Two flows that fall on one bit and are of different families disturb each other: with as
//! many flows as an exit grants a member, that is one in a hundred.

mod dhcp;
mod translate;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use dhcp::{Lease, answer as answer_dhcp};
pub use translate::{Ends, to_ipv4, to_ipv6};
use translate::{ICMP, IPV4_BYTES};

use crate::endpoint::Endpoint;
use crate::firewall::{Packet, Ports, Protocol, Transport};
use crate::identity::PublicKey;
use crate::offload::{Sum, VirtioNetHeader, put};
use crate::wire::MTU;

/// What the guest calls its router, and its own address if it has no other (RFC 7335).
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// See [`ROUTER`].
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
/// An IPv6 header is so much longer.
const LONGER_BYTES: usize = 20;
/// The largest packet of IPv4 that still fits the mesh in IPv6.
pub const IPV4_MTU: u16 = (MTU - LONGER_BYTES) as u16;
const LEASE_S: u32 = 3600;
/// The bits that tell the families of flows, in words.
const FLOW_WORDS: usize = 2048;

/// What becomes of a packet of the guest.
pub(super) enum Leaving<'a> {
    /// It is none of this module's: it goes on as it is.
    AsItIs,
    /// It goes on like this.
    As(VirtioNetHeader, &'a [u8]),
    /// The card answers it, or has nothing to answer.
    Here(Option<Vec<u8>>),
}

/// A card's translator.
pub(super) struct Ipv4 {
    /// Who is who, with this exit.
    known: Option<(PublicKey, Ends)>,
    flows: Box<[u64; FLOW_WORDS]>,
    packet: Vec<u8>,
}

/// What makes a flow one: protocol, the guest's port, and the other end.
type Flow = (Protocol, u16, IpAddr, u16);

impl Ipv4 {
    pub(super) fn new() -> Self {
        Self { known: None, flows: Box::new([0; FLOW_WORDS]), packet: Vec::new() }
    }

    /// Takes a packet of the guest's.
    pub(super) fn leave(
        &mut self,
        endpoint: &Endpoint,
        header: &VirtioNetHeader,
        bytes: &[u8],
    ) -> Leaving<'_> {
        let Some(ends) = self.ends(endpoint) else { return Leaving::AsItIs };
        if is_ipv6(bytes) {
            self.note_ipv6(&ends, bytes);
            return Leaving::AsItIs;
        }
        if let Some(message) = dhcp_message(bytes) {
            return Leaving::Here(answer_dhcp(message, &lease(&ends)));
        }
        // What the firewall can't read it refuses and counts.
        let Ok(packet) = Packet::parse(bytes) else { return Leaving::AsItIs };
        let IpAddr::V4(to) = packet.destination else { return Leaving::AsItIs };
        let is_for_exit = packet.source == IpAddr::V4(ends.guest)
            && !endpoint.has_peer_at(&packet.destination)
            && !(to.is_multicast() || to.is_broadcast() || to.is_unspecified());
        if !is_for_exit {
            return Leaving::AsItIs;
        }
        if header.segmentation.is_none() && packet.len > usize::from(IPV4_MTU) {
            return Leaving::Here(too_large(bytes));
        }
        let flow = flow_of_guest(&packet)
            .map(|(protocol, own, port)| (protocol, own, IpAddr::V6(ends.ipv6(to)), port));
        if let Some(flow) = flow {
            self.set(&flow, true);
        }
        let bytes = bytes.get(..packet.len).unwrap_or_default();
        match to_ipv6(&ends, header, bytes, &mut self.packet) {
            Some(header) => Leaving::As(header, &self.packet),
            None => Leaving::AsItIs,
        }
    }

    /// A packet for the guest in IPv4, if it belongs to a flow on which the guest speaks that.
    pub(super) fn arrive(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (ends, len) = self.ipv4_flow(bytes)?;
        let mut translated = Vec::with_capacity(len);
        to_ipv4(ends, bytes.get(..len)?, &mut translated)?;
        Some(translated)
    }

    /// Whether a packet for the guest belongs to a flow on which the guest speaks IPv4.
    pub(super) fn takes(&self, bytes: &[u8]) -> bool {
        self.ipv4_flow(bytes).is_some()
    }

    /// Who is who, and the bytes of a packet of such a flow.
    fn ipv4_flow(&self, bytes: &[u8]) -> Option<(&Ends, usize)> {
        let (_, ends) = self.known.as_ref()?;
        let source = bytes.get(8..)?.first_chunk::<16>().filter(|_| is_ipv6(bytes))?;
        ends.ipv4(Ipv6Addr::from(*source))?;
        let packet = Packet::parse(bytes).ok()?;
        self.get(&flow_to_guest(&packet)?).then_some((ends, packet.len))
    }

    /// The guest speaks IPv6 on a flow, if it leads outside.
    fn note_ipv6(&mut self, ends: &Ends, bytes: &[u8]) {
        let to = bytes.get(24..).and_then(<[u8]>::first_chunk::<16>);
        let leads_outside = to.is_some_and(|to| ends.ipv4(Ipv6Addr::from(*to)).is_some());
        if leads_outside && let Ok(packet) = Packet::parse(bytes) {
            let flow = flow_of_guest(&packet);
            if let Some((protocol, own, port)) = flow {
                self.set(&(protocol, own, packet.destination, port), false);
            }
        }
    }

    /// Who is who, if the member has an exit.
    fn ends(&mut self, endpoint: &Endpoint) -> Option<Ends> {
        let exit = endpoint.exit()?;
        if self.known.is_none_or(|(known, _)| known != exit) {
            let own = endpoint.addresses().iter().find_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            });
            let ends = Ends {
                guest: own.filter(|own| *own != ROUTER).unwrap_or(GUEST),
                member: endpoint.address(),
                router: ROUTER,
                exit: exit.address(),
            };
            self.known = Some((exit, ends));
        }
        self.known.map(|(_, ends)| ends)
    }

    fn set(&mut self, flow: &Flow, speaks_ipv4: bool) {
        let (word, bit) = place(flow);
        if let Some(word) = self.flows.get_mut(word) {
            *word = if speaks_ipv4 { *word | bit } else { *word & !bit };
        }
    }

    fn get(&self, flow: &Flow) -> bool {
        let (word, bit) = place(flow);
        self.flows.get(word).is_some_and(|word| word & bit != 0)
    }
}

fn is_ipv6(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first >> 4 == 6)
}

/// The bit of a flow: its word and the bit in it. Nobody but the guest chooses what falls where, and
/// it is the guest's own flows that meet.
fn place(flow: &Flow) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    flow.hash(&mut hasher);
    let hash = hasher.finish();
    ((hash >> 6) as usize % FLOW_WORDS, 1 << (hash & 63))
}

/// Protocol, own port and other port of a packet of the guest's.
fn flow_of_guest(packet: &Packet) -> Option<(Protocol, u16, u16)> {
    match packet.transport {
        Transport::Tcp { ports, .. } => Some((Protocol::Tcp, ports.source, ports.destination)),
        Transport::Udp(ports) => Some((Protocol::Udp, ports.source, ports.destination)),
        Transport::EchoRequest(id) | Transport::EchoReply(id) => Some((Protocol::Icmp, id, 0)),
        Transport::Error(_) | Transport::OtherIcmp => None,
    }
}

/// The flow that a packet for the guest belongs to, or is an error about.
fn flow_to_guest(packet: &Packet) -> Option<Flow> {
    let (protocol, Ports { source, destination }, from) = match packet.transport {
        Transport::Tcp { ports, .. } => (Protocol::Tcp, ports, packet.source),
        Transport::Udp(ports) => (Protocol::Udp, ports, packet.source),
        Transport::EchoRequest(id) | Transport::EchoReply(id) => {
            return Some((Protocol::Icmp, id, packet.source, 0));
        }
        Transport::Error(original) => {
            // What it quotes went the other way.
            let original = original?;
            let (own, other) = (original.ports.source, original.ports.destination);
            let other = if original.protocol == Protocol::Icmp { 0 } else { other };
            return Some((original.protocol, own, original.destination, other));
        }
        Transport::OtherIcmp => return None,
    };
    Some((protocol, destination, from, source))
}

/// What the guest is told by DHCP.
fn lease(ends: &Ends) -> Lease {
    Lease {
        address: ends.guest,
        // RFC 7335's block has the router in it; what else there is, is behind the router.
        prefix_bits: if ends.guest == GUEST { 29 } else { 32 },
        router: ends.router,
        mtu: IPV4_MTU,
        seconds: LEASE_S,
    }
}

/// The message in a datagram for a DHCP server. Its checksum may wait for an offload, and what it
/// asks for does not hang on it.
fn dhcp_message(bytes: &[u8]) -> Option<&[u8]> {
    let packet = Packet::parse(bytes).ok()?;
    let Transport::Udp(ports) = packet.transport else { return None };
    let is_here = [Ipv4Addr::BROADCAST, ROUTER].map(IpAddr::V4).contains(&packet.destination);
    let is_for_server = ports.destination == dhcp::SERVER_PORT && is_here;
    bytes.get(IPV4_BYTES + 8..packet.len).filter(|_| is_for_server)
}

/// "Fragmentation needed", about the start of a packet that is too large for the mesh (RFC 1191).
fn too_large(about: &[u8]) -> Option<Vec<u8>> {
    let quoted = about.get(..IPV4_BYTES + 8)?;
    let len = u16::try_from(IPV4_BYTES + 8 + quoted.len()).ok()?;
    let mut error = Vec::with_capacity(usize::from(len));
    error.extend_from_slice(&[0x45, 0]);
    error.extend_from_slice(&len.to_be_bytes());
    error.extend_from_slice(&[0, 0, 0x40, 0, 64, ICMP, 0, 0]);
    error.extend_from_slice(&ROUTER.octets());
    error.extend_from_slice(about.get(12..16)?);
    let field = Sum::of(&error).field();
    put(&mut error, 10, &field);
    error.extend_from_slice(&[3, 4, 0, 0, 0, 0]);
    error.extend_from_slice(&IPV4_MTU.to_be_bytes());
    error.extend_from_slice(quoted);
    let field = Sum::of(error.get(IPV4_BYTES..)?).field();
    put(&mut error, IPV4_BYTES + 2, &field);
    Some(error)
}

#[cfg(test)]
mod tests;
