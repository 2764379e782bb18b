//! How packets to members are written.

use std::net::{IpAddr, SocketAddr};

use net_vdev::offload::{
    ChecksumField, Segmentation, SegmentationKind, Sum, VirtioNetHeader, pseudo_header,
};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) const IPV4_BYTES: usize = 20;
pub(crate) const IPV6_BYTES: usize = 40;
pub(crate) const UDP_BYTES: usize = 8;
const HOP_LIMIT: u8 = 64;

/// The bytes of the IP header of this family.
pub(crate) fn ip_bytes(address: IpAddr) -> usize {
    if address.is_ipv6() { IPV6_BYTES } else { IPV4_BYTES }
}

/// Begins a packet with an IP header whose length [`seal`] fills in. Both addresses are of one
/// family, or the packet stays empty.
pub(crate) fn begin(frame: &mut Vec<u8>, source: IpAddr, destination: IpAddr, protocol: u8) {
    frame.clear();
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, HOP_LIMIT]);
            frame.extend_from_slice(&source.octets());
            frame.extend_from_slice(&destination.octets());
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // Don't fragment: then the identification means nothing (RFC 6864).
            frame.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            frame.extend_from_slice(&source.octets());
            frame.extend_from_slice(&destination.octets());
        }
        _ => {}
    }
}

/// Fills in the lengths and checksums of a packet whose transport is TCP, UDP, ICMP or ICMPv6.
pub(crate) fn seal(frame: &mut [u8]) -> Option<()> {
    let (ip_bytes, protocol) = seal_ip(frame)?;
    let at = ip_bytes + checksum_offset(protocol);
    put(frame, at, &[0; 2]);
    let sum = Sum::of(frame.get(ip_bytes..)?);
    let sum = if protocol == ICMP { sum } else { sum.plus(pseudo(frame, ip_bytes, protocol)?) };
    // In UDP a field of zero says that there is no checksum (RFC 768).
    let field = match sum.field() {
        [0, 0] if protocol == UDP => [0xff, 0xff],
        field => field,
    };
    put(frame, at, &field);
    Some(())
}

/// Makes a TCP packet of any length a super-frame: whoever takes it cuts it into segments of `mss`
/// payload bytes and computes their checksums.
pub(crate) fn seal_super_frame(
    frame: &mut [u8],
    headers_bytes: usize,
    mss: u16,
) -> Option<VirtioNetHeader> {
    let (ip_bytes, protocol) = seal_ip(frame)?;
    let field = pseudo(frame, ip_bytes, protocol)?.partial();
    put(frame, ip_bytes + checksum_offset(protocol), &field);
    let kind =
        if ip_bytes == IPV6_BYTES { SegmentationKind::TcpV6 } else { SegmentationKind::TcpV4 };
    Some(VirtioNetHeader {
        checksum: Some(ChecksumField {
            start: u16::try_from(ip_bytes).ok()?,
            offset: u16::try_from(checksum_offset(protocol)).ok()?,
        }),
        segmentation: Some(Segmentation {
            kind,
            ecn: false,
            payload_bytes: mss,
            headers_bytes: u16::try_from(headers_bytes).ok()?,
        }),
    })
}

/// Whether the transport's checksum of a packet is right; a UDP field of zero counts as right in
/// IPv4 only (RFC 8200 §8.1).
pub(crate) fn has_right_checksum(packet: &[u8], ip_bytes: usize, protocol: u8) -> bool {
    let right = || {
        let transport = packet.get(ip_bytes..)?;
        let field = packet.get(ip_bytes + checksum_offset(protocol)..)?.first_chunk::<2>()?;
        if protocol == UDP && *field == [0, 0] {
            return Some(ip_bytes == IPV4_BYTES);
        }
        let sum = Sum::of(transport);
        let sum =
            if protocol == ICMP { sum } else { sum.plus(pseudo(packet, ip_bytes, protocol)?) };
        Some(sum.is_right())
    };
    right().unwrap_or(false)
}

/// A UDP datagram as a whole packet; `None` if it is longer than an IP packet can be.
#[must_use]
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let mut frame = Vec::with_capacity(IPV6_BYTES + usize::from(len));
    begin(&mut frame, source.ip(), destination.ip(), UDP);
    frame.extend_from_slice(&source.port().to_be_bytes());
    frame.extend_from_slice(&destination.port().to_be_bytes());
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(payload);
    seal(&mut frame)?;
    Some(frame)
}

/// Why a member's packet went nowhere, in ICMP's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The other side has nobody at that port.
    Port,
    /// There is no way to the address.
    Address,
    /// It is not allowed.
    Prohibited,
    /// The packet is larger than the way carries: its largest IPv4 packet if that is known.
    TooLarge(u16),
}

/// An ICMP error to `to` about the start of a packet of its own, said by the packet's destination.
pub(crate) fn trouble(trouble: Trouble, from: IpAddr, to: IpAddr, about: &[u8]) -> Option<Vec<u8>> {
    // RFC 4443 §2.4 (c) and RFC 1812 §4.3.2.3: no longer than every path carries.
    let quoted = about.get(..about.len().min(if from.is_ipv6() { 1232 } else { 548 }))?;
    let mut frame = Vec::with_capacity(IPV6_BYTES + 8 + quoted.len());
    let protocol = if from.is_ipv6() { ICMPV6 } else { ICMP };
    begin(&mut frame, from, to, protocol);
    let (kind, code, value) = match (trouble, from) {
        (Trouble::Port, IpAddr::V6(_)) => (1, 4, 0),
        (Trouble::Address, IpAddr::V6(_)) => (1, 3, 0),
        (Trouble::Prohibited, IpAddr::V6(_)) => (1, 1, 0),
        // RFC 7915 §4.2: the IPv6 header is 20 bytes longer; never less than IPv6's least MTU.
        (Trouble::TooLarge(mtu), IpAddr::V6(_)) => (2, 0, u32::from(mtu).max(1260) + 20),
        (Trouble::Port, IpAddr::V4(_)) => (3, 3, 0),
        (Trouble::Address, IpAddr::V4(_)) => (3, 1, 0),
        (Trouble::Prohibited, IpAddr::V4(_)) => (3, 13, 0),
        (Trouble::TooLarge(mtu), IpAddr::V4(_)) => (3, 4, u32::from(mtu)),
    };
    frame.extend_from_slice(&[kind, code, 0, 0]);
    frame.extend_from_slice(&value.to_be_bytes());
    frame.extend_from_slice(quoted);
    seal(&mut frame)?;
    Some(frame)
}

/// Fills in the IP header; returns its length and the protocol.
fn seal_ip(frame: &mut [u8]) -> Option<(usize, u8)> {
    let len = frame.len();
    match frame.first()? >> 4 {
        6 => {
            let payload_bytes = u16::try_from(len.checked_sub(IPV6_BYTES)?).ok()?;
            put(frame, 4, &payload_bytes.to_be_bytes());
            Some((IPV6_BYTES, *frame.get(6)?))
        }
        _ => {
            put(frame, 2, &u16::try_from(len).ok()?.to_be_bytes());
            put(frame, 10, &[0; 2]);
            let field = Sum::of(frame.get(..IPV4_BYTES)?).field();
            put(frame, 10, &field);
            Some((IPV4_BYTES, *frame.get(9)?))
        }
    }
}

fn pseudo(frame: &[u8], ip_bytes: usize, protocol: u8) -> Option<Sum> {
    let addresses = if ip_bytes == IPV6_BYTES { 8..40 } else { 12..20 };
    Some(pseudo_header(frame.get(addresses)?, protocol, frame.len().checked_sub(ip_bytes)?))
}

/// Where the checksum is, behind the start of the transport's header.
fn checksum_offset(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    }
}

/// Writes bytes at this place of a packet, which is inside of it.
pub(crate) fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = packet.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use net_vdev::firewall::{Packet, Transport};

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn datagrams_of_both_families_are_what_a_firewall_reads() {
        for (from, to) in [("[64:ff9b::1]:53", "[400::1]:999"), ("1.1.1.1:53", "10.0.0.2:999")] {
            let packet = udp(at(from), at(to), b"hello").unwrap();
            let read = Packet::parse(&packet).unwrap();
            assert_eq!((read.source, read.destination), (at(from).ip(), at(to).ip()));
            assert!(matches!(read.transport, Transport::Udp(ports) if ports.destination == 999));
            assert!(has_right_checksum(&packet, ip_bytes(at(from).ip()), UDP));
            let mut damaged = packet.clone();
            *damaged.last_mut().unwrap() ^= 1;
            assert!(!has_right_checksum(&damaged, ip_bytes(at(from).ip()), UDP));
        }
        assert_eq!(udp(at("1.1.1.1:1"), at("1.1.1.2:1"), &vec![0; 65_528]), None);
    }

    #[test]
    fn trouble_is_about_the_packet_that_it_quotes() {
        for (from, to) in [("[400::1]:9", "[64:ff9b::1]:53"), ("10.0.0.2:9", "1.1.1.1:53")] {
            let packet = udp(at(from), at(to), &[7; 1300]).unwrap();
            for kind in
                [Trouble::Port, Trouble::Address, Trouble::Prohibited, Trouble::TooLarge(1300)]
            {
                let error = trouble(kind, at(to).ip(), at(from).ip(), &packet).unwrap();
                assert!(error.len() <= 1280, "{}", error.len());
                let read = Packet::parse(&error).unwrap();
                let Transport::Error(Some(original)) = read.transport else { panic!("{read:?}") };
                assert_eq!((original.source, original.destination), (at(from).ip(), at(to).ip()));
                assert_eq!((original.ports.source, original.ports.destination), (9, 53));
            }
        }
    }
}
