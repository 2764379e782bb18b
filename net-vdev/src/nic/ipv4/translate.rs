//! Packets of IPv4 written as packets of IPv6 and back (RFC 7915), without any state.
//!
//! ```text
//!   guest's address    ◄──► member's address
//!   the router's       ◄──► the exit's (its resolver answers there)
//!   any other a.b.c.d  ◄──► 64:ff9b::a.b.c.d
//! ```
//!
//! Checksums are updated by what changed (RFC 1624), so that a wrong one stays wrong. The hop limit
//! stays too: the card is a wire, not a router. Fragments and options are not translated; the mesh
//! carries neither.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::endpoint::OUTSIDE_PREFIX;
use crate::offload::{
    ChecksumField, SegmentationKind, Sum, VirtioNetHeader, pseudo_header, put, updated,
};

pub(super) const IPV4_BYTES: usize = 20;
pub(super) const IPV6_BYTES: usize = 40;
pub(super) const ICMP: u8 = 1;
const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// An ICMP error is to be no longer than this (RFC 1812 §4.3.2.3, RFC 4443 §2.4).
const ERROR_V4_BYTES_MAX: usize = 576;
const ERROR_V6_BYTES_MAX: usize = 1280;
const ERROR_HEADER_BYTES: usize = 8;

/// Who is who on both sides of the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The guest's address in IPv4.
    pub guest: Ipv4Addr,
    /// The same in IPv6: the member's.
    pub member: Ipv6Addr,
    /// What the guest calls its router and its resolver.
    pub router: Ipv4Addr,
    /// The same in IPv6: the exit's.
    pub exit: Ipv6Addr,
}

impl Ends {
    /// How an address is written in IPv6.
    #[must_use]
    pub fn ipv6(&self, address: Ipv4Addr) -> Ipv6Addr {
        if address == self.guest {
            return self.member;
        }
        if address == self.router {
            return self.exit;
        }
        let mut octets = [0; 16];
        let all = OUTSIDE_PREFIX.into_iter().chain(address.octets());
        octets.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        Ipv6Addr::from(octets)
    }

    /// How an address is written in IPv4, if it can be.
    #[must_use]
    pub fn ipv4(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        if address == self.member {
            return Some(self.guest);
        }
        if address == self.exit {
            return Some(self.router);
        }
        let octets = address.octets();
        let last = octets.last_chunk::<4>().filter(|_| octets.starts_with(&OUTSIDE_PREFIX))?;
        let address = Ipv4Addr::from(*last);
        // These two have their own spelling.
        (address != self.guest && address != self.router).then_some(address)
    }
}

/// An IP header of either family, and what is behind it.
struct Parts<'a> {
    traffic_class: u8,
    hop_limit: u8,
    protocol: u8,
    /// Source and destination, as they lie in the packet.
    addresses: &'a [u8],
    /// The bytes behind the header, by the header's own word.
    payload_bytes: usize,
    /// Those that are there: fewer in what an error quotes.
    payload: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Reads IPv4 without options or fragments.
    fn of_ipv4(packet: &'a [u8]) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<IPV4_BYTES>()?;
        let &[0x45, traffic_class, len_0, len_1, _, _, at_0, at_1, hop_limit, protocol, ..] =
            header
        else {
            return None;
        };
        if (at_0 & 0x3f, at_1) != (0, 0) {
            return None;
        }
        let len = usize::from(u16::from_be_bytes([len_0, len_1]));
        let payload_bytes = len.checked_sub(IPV4_BYTES)?;
        let payload = rest.get(..payload_bytes.min(rest.len()))?;
        let addresses = packet.get(12..IPV4_BYTES)?;
        Some(Self { traffic_class, hop_limit, protocol, addresses, payload_bytes, payload })
    }

    /// Reads IPv6 without extension headers (whose numbers are none of the protocols below).
    fn of_ipv6(packet: &'a [u8]) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<IPV6_BYTES>()?;
        let &[class_0, class_1, _, _, len_0, len_1, protocol, hop_limit, ..] = header;
        if class_0 >> 4 != 6 {
            return None;
        }
        let payload_bytes = usize::from(u16::from_be_bytes([len_0, len_1]));
        let payload = rest.get(..payload_bytes.min(rest.len()))?;
        let traffic_class = class_0 << 4 | class_1 >> 4;
        let addresses = packet.get(8..IPV6_BYTES)?;
        Some(Self { traffic_class, hop_limit, protocol, addresses, payload_bytes, payload })
    }

    fn is_whole(&self) -> bool {
        self.payload.len() == self.payload_bytes
    }

    /// The sum of its pseudo-header, which ICMP in IPv4 does not have.
    fn pseudo_header(&self) -> Sum {
        if self.protocol == ICMP {
            return Sum::default();
        }
        pseudo_header(self.addresses, self.protocol, self.payload_bytes)
    }
}

/// Writes a whole packet of IPv4, or a super-frame, as one of IPv6 into `into`; returns its header.
/// `None` for what can't be translated.
#[must_use]
pub fn to_ipv6(
    ends: &Ends,
    header: &VirtioNetHeader,
    packet: &[u8],
    into: &mut Vec<u8>,
) -> Option<VirtioNetHeader> {
    into.clear();
    let parts = Parts::of_ipv4(packet).filter(Parts::is_whole)?;
    if parts.protocol == ICMP && is_error_v4(parts.payload) {
        error_to_ipv6(ends, &parts, into)?;
        return (*header == VirtioNetHeader::default()).then_some(*header);
    }
    write_ipv6(ends, &parts, into)?;
    let Some(field) = header.checksum else {
        // What is to be cut always has a checksum to compute.
        return header.segmentation.is_none().then_some(*header);
    };
    let is_in_place = usize::from(field.start) == IPV4_BYTES
        && Some(usize::from(field.offset)) == checksum_at(parts.protocol);
    let partial = Parts::of_ipv6(into)?.pseudo_header().partial();
    put(into, IPV6_BYTES + usize::from(field.offset), &partial);
    let start = u16::try_from(IPV6_BYTES).ok()?;
    let mut header = *header;
    header.checksum = Some(ChecksumField { start, offset: field.offset });
    if let Some(segmentation) = &mut header.segmentation {
        segmentation.kind = match segmentation.kind {
            SegmentationKind::TcpV4 => SegmentationKind::TcpV6,
            SegmentationKind::Udp => SegmentationKind::Udp,
            SegmentationKind::TcpV6 => return None,
        };
        let longer = u16::try_from(IPV6_BYTES - IPV4_BYTES).ok()?;
        segmentation.headers_bytes = segmentation.headers_bytes.saturating_add(longer);
    }
    is_in_place.then_some(header)
}

/// Writes a whole packet of IPv6 as one of IPv4 into `into`. `None` for what can't be translated.
#[must_use]
pub fn to_ipv4(ends: &Ends, packet: &[u8], into: &mut Vec<u8>) -> Option<()> {
    into.clear();
    let parts = Parts::of_ipv6(packet).filter(Parts::is_whole)?;
    if parts.protocol == ICMPV6 && parts.payload.first().is_some_and(|kind| *kind < 128) {
        return error_to_ipv4(ends, &parts, into);
    }
    write_ipv4(ends, &parts, into)
}

/// Appends a packet, or as much of one as an error quotes, in IPv6.
fn write_ipv6(ends: &Ends, parts: &Parts<'_>, into: &mut Vec<u8>) -> Option<()> {
    let protocol = match parts.protocol {
        ICMP => ICMPV6,
        TCP | UDP => parts.protocol,
        _ => return None,
    };
    let at = begin_ipv6(ends, parts, protocol, into)?;
    into.extend_from_slice(parts.payload);
    let payload = into.get_mut(at + IPV6_BYTES..)?;
    if parts.protocol == ICMP {
        let kind = match *payload.first()? {
            8 => 128,
            0 => 129,
            _ => return None,
        };
        put(payload, 0, &[kind]);
    }
    finish(parts, Parts::of_ipv6(into.get(at..)?)?.pseudo_header(), into.get_mut(at..)?, IPV6_BYTES)
}

/// Appends a packet, or as much of one as an error quotes, in IPv4.
fn write_ipv4(ends: &Ends, parts: &Parts<'_>, into: &mut Vec<u8>) -> Option<()> {
    let protocol = match parts.protocol {
        ICMPV6 => ICMP,
        TCP | UDP => parts.protocol,
        _ => return None,
    };
    let at = begin_ipv4(ends, parts, protocol, into)?;
    into.extend_from_slice(parts.payload);
    let payload = into.get_mut(at + IPV4_BYTES..)?;
    if parts.protocol == ICMPV6 {
        let kind = match *payload.first()? {
            128 => 8,
            129 => 0,
            _ => return None,
        };
        put(payload, 0, &[kind]);
    }
    finish(parts, Parts::of_ipv4(into.get(at..)?)?.pseudo_header(), into.get_mut(at..)?, IPV4_BYTES)
}

/// Appends the header in IPv6; returns where it starts.
fn begin_ipv6(ends: &Ends, parts: &Parts<'_>, protocol: u8, into: &mut Vec<u8>) -> Option<usize> {
    let at = into.len();
    let class = parts.traffic_class;
    let [len_0, len_1] = u16::try_from(parts.payload_bytes).ok()?.to_be_bytes();
    let fixed = [0x60 | class >> 4, class << 4, 0, 0, len_0, len_1, protocol, parts.hop_limit];
    into.extend_from_slice(&fixed);
    for address in parts.addresses.as_chunks::<4>().0 {
        into.extend_from_slice(&ends.ipv6(Ipv4Addr::from(*address)).octets());
    }
    Some(at)
}

/// Appends the header in IPv4; returns where it starts.
fn begin_ipv4(ends: &Ends, parts: &Parts<'_>, protocol: u8, into: &mut Vec<u8>) -> Option<usize> {
    let at = into.len();
    let [len_0, len_1] = u16::try_from(IPV4_BYTES + parts.payload_bytes).ok()?.to_be_bytes();
    // Don't fragment: then the identification means nothing (RFC 6864).
    let fixed = [0x45, parts.traffic_class, len_0, len_1, 0, 0, 0x40, 0, parts.hop_limit, protocol];
    into.extend_from_slice(&fixed);
    into.extend_from_slice(&[0, 0]);
    for address in parts.addresses.as_chunks::<16>().0 {
        into.extend_from_slice(&ends.ipv4(Ipv6Addr::from(*address))?.octets());
    }
    let field = Sum::of(into.get(at..)?).field();
    put(into, at + 10, &field);
    Some(at)
}

/// Sets the transport's checksum of a packet whose IP header and ICMP type were replaced.
fn finish(old: &Parts<'_>, new_pseudo: Sum, packet: &mut [u8], ip_bytes: usize) -> Option<()> {
    let payload = packet.get_mut(ip_bytes..)?;
    let at = checksum_at(old.protocol)?;
    let Some(field) = payload.get(at..).and_then(<[u8]>::first_chunk::<2>).copied() else {
        // An error need not quote as much.
        return (!old.is_whole()).then_some(());
    };
    let field = match (old.protocol, field) {
        // In IPv4 the field may be left empty (RFC 768), in IPv6 it may not.
        (UDP, [0, 0]) if old.is_whole() => Sum::of(payload).plus(new_pseudo).field(),
        (UDP, [0, 0]) => [0, 0],
        (_, field) => {
            let field = updated(field, old.pseudo_header().partial(), new_pseudo.partial());
            let first = |bytes: &[u8]| bytes.first_chunk::<2>().copied().unwrap_or_default();
            // The type of an ICMP message is under its checksum.
            updated(field, first(old.payload), first(payload))
        }
    };
    put(payload, at, &field);
    // Ones' complement has two zeros. In UDP one of them says that there is no checksum; and where
    // all is zero, an update finds the wrong one (RFC 1624 §3).
    let is_all_zero = || Sum::of(payload).plus(new_pseudo).partial() == [0, 0];
    if field == [0, 0] && (old.protocol == UDP || is_all_zero()) {
        put(payload, at, &[0xff, 0xff]);
    }
    Some(())
}

/// Whether a message is an ICMP error: all but echoes and queries.
fn is_error_v4(message: &[u8]) -> bool {
    matches!(message.first(), Some(3 | 11 | 12))
}

/// An ICMPv4 error, its checksum checked, as one of ICMPv6 (RFC 7915 §4.2).
fn error_to_ipv6(ends: &Ends, parts: &Parts<'_>, into: &mut Vec<u8>) -> Option<()> {
    let (header, quoted) = parts.payload.split_first_chunk::<ERROR_HEADER_BYTES>()?;
    let &[kind, code, _, _, _, _, mtu_0, mtu_1] = header;
    let (kind, code, value) = match (kind, code) {
        (3, 0 | 1 | 5..=8 | 11 | 12) => (1, 0, 0),
        (3, 2) => (4, 1, 6),
        (3, 3) => (1, 4, 0),
        (3, 4) => (2, 0, u32::from(u16::from_be_bytes([mtu_0, mtu_1])).max(1260) + 20),
        (3, 9 | 10 | 13 | 15) => (1, 1, 0),
        (11, 0 | 1) => (3, code, 0),
        _ => return None,
    };
    let quoted = Parts::of_ipv4(quoted).filter(|_| Sum::of(parts.payload).is_right())?;
    let at = begin_ipv6(ends, parts, ICMPV6, into)?;
    into.extend_from_slice(&[kind, code, 0, 0]);
    into.extend_from_slice(&u32::to_be_bytes(value));
    write_ipv6(ends, &quoted, into)?;
    into.truncate(at + ERROR_V6_BYTES_MAX);
    let len = u16::try_from(into.len() - at - IPV6_BYTES).ok()?;
    put(into, at + 4, &len.to_be_bytes());
    let message = Parts::of_ipv6(into.get(at..)?)?;
    let field = Sum::of(message.payload).plus(message.pseudo_header()).field();
    put(into, at + IPV6_BYTES + 2, &field);
    Some(())
}

/// An ICMPv6 error, its checksum checked, as one of ICMPv4 (RFC 7915 §5.2).
fn error_to_ipv4(ends: &Ends, parts: &Parts<'_>, into: &mut Vec<u8>) -> Option<()> {
    let (header, quoted) = parts.payload.split_first_chunk::<ERROR_HEADER_BYTES>()?;
    let &[kind, code, _, _, value_0, value_1, value_2, value_3] = header;
    let mtu = u32::from_be_bytes([value_0, value_1, value_2, value_3]);
    let (kind, code, mtu) = match (kind, code) {
        (1, 0 | 2 | 3) => (3, 1, 0),
        (1, 1) => (3, 10, 0),
        (1, 4) => (3, 3, 0),
        (2, _) => (3, 4, u16::try_from(mtu.saturating_sub(20)).unwrap_or(u16::MAX)),
        (3, 0 | 1) => (11, code, 0),
        (4, 1) => (3, 2, 0),
        _ => return None,
    };
    let is_right = Sum::of(parts.payload).plus(parts.pseudo_header()).is_right();
    let quoted = Parts::of_ipv6(quoted).filter(|_| is_right)?;
    let at = begin_ipv4(ends, parts, ICMP, into)?;
    into.extend_from_slice(&[kind, code, 0, 0, 0, 0]);
    into.extend_from_slice(&mtu.to_be_bytes());
    write_ipv4(ends, &quoted, into)?;
    into.truncate(at + ERROR_V4_BYTES_MAX);
    let len = u16::try_from(into.len() - at).ok()?;
    put(into, at + 2, &len.to_be_bytes());
    put(into, at + 10, &[0, 0]);
    let field = Sum::of(into.get(at..at + IPV4_BYTES)?).field();
    put(into, at + 10, &field);
    let field = Sum::of(into.get(at + IPV4_BYTES..)?).field();
    put(into, at + IPV4_BYTES + 2, &field);
    Some(())
}

/// Where the checksum is, behind the start of the transport's header.
fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}
