//! IP packets for tests. Checksums are left at zero: the mesh leaves them to the guests.

use std::net::IpAddr;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const RST: u8 = 0x04;

/// An IP packet of `protocol` (58 stands for ICMP in both families).
pub(crate) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap();
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let protocol = if protocol == 58 { 1 } else { protocol };
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&(len + 20).to_be_bytes());
            packet.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&len.to_be_bytes());
            packet.extend_from_slice(&[protocol, 64]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
        }
        _ => panic!("addresses of two families"),
    }
    packet.extend_from_slice(payload);
    packet
}

pub(crate) fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = ports(from.1, to.1);
    datagram.extend_from_slice(&u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    ip(from.0, to.0, 17, &datagram)
}

pub(crate) fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Vec<u8> {
    let mut segment = ports(from.1, to.1);
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    ip(from.0, to.0, 6, &segment)
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

/// An ICMP message whose types differ between the families: (IPv4, IPv6).
pub(crate) fn icmp(source: IpAddr, destination: IpAddr, kinds: (u8, u8), rest: &[u8]) -> Vec<u8> {
    let kind = if source.is_ipv4() { kinds.0 } else { kinds.1 };
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(rest);
    ip(source, destination, 58, &message)
}

pub(crate) fn echo_request(source: IpAddr, destination: IpAddr, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    icmp(source, destination, (8, 128), &[high, low, 0, 1])
}

pub(crate) fn echo_reply(source: IpAddr, destination: IpAddr, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    icmp(source, destination, (0, 129), &[high, low, 0, 1])
}

/// "Packet too big" (fragmentation needed in IPv4) about `original`.
pub(crate) fn too_big(source: IpAddr, destination: IpAddr, original: &[u8]) -> Vec<u8> {
    let mut rest = vec![0, 0, 5, 0];
    rest.extend_from_slice(original.get(..48.min(original.len())).unwrap());
    icmp(source, destination, (3, 2), &rest)
}
