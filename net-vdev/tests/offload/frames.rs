//! Packets and super-frames for the tests, made by hand, and judged by smoltcp.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use net_vdev::offload::{
    ChecksumField, Layout, Segmentation, SegmentationKind, Segmenter, VirtioNetHeader,
};
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const ECE: u8 = 64;
pub(crate) const CWR: u8 = 128;

/// A flow's end: everything in the headers that cutting and merging must keep.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) is_ipv6: bool,
    pub(crate) is_tcp: bool,
    pub(crate) ports: (u16, u16),
    pub(crate) sequence: u32,
    pub(crate) identification: u16,
    pub(crate) must_not_fragment: bool,
    pub(crate) flags: u8,
    pub(crate) service: u8,
    pub(crate) options: Vec<u8>,
}

impl Flow {
    pub(crate) fn tcp(is_ipv6: bool) -> Self {
        Self {
            is_ipv6,
            is_tcp: true,
            ports: (40_000, 80),
            sequence: 1000,
            identification: 7,
            must_not_fragment: true,
            flags: ACK,
            service: 0,
            options: Vec::new(),
        }
    }

    pub(crate) fn udp(is_ipv6: bool) -> Self {
        Self { is_tcp: false, ..Self::tcp(is_ipv6) }
    }

    pub(crate) fn ip_bytes(&self) -> usize {
        if self.is_ipv6 { 40 } else { 20 }
    }

    pub(crate) fn headers_bytes(&self) -> usize {
        self.ip_bytes() + if self.is_tcp { 20 + self.options.len() } else { 8 }
    }

    pub(crate) fn addresses(&self) -> (IpAddress, IpAddress) {
        let v6 = |last| IpAddress::from(IpAddr::from(Ipv6Addr::new(0x400, 1, 2, 3, 4, 5, 6, last)));
        let v4 = |last| IpAddress::from(IpAddr::from(Ipv4Addr::new(10, 1, 2, last)));
        if self.is_ipv6 { (v6(1), v6(2)) } else { (v4(1), v4(2)) }
    }

    /// The frame with a complete checksum, by smoltcp.
    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = self.headers(payload.len());
        bytes.extend_from_slice(payload);
        self.fill_checksums(&mut bytes);
        bytes
    }

    /// The frame as a driver hands it over: its header, and the pseudo-header's sum in the field.
    pub(crate) fn super_frame(
        &self,
        payload: &[u8],
        segment_bytes: u16,
    ) -> (VirtioNetHeader, Vec<u8>) {
        let mut bytes = self.packet(payload);
        let start = self.ip_bytes();
        let offset = if self.is_tcp { 16 } else { 6 };
        // Cutting must not depend on what the field holds.
        bytes[start + offset..start + offset + 2].fill(0xa5);
        let kind = match (self.is_tcp, self.is_ipv6) {
            (true, false) => SegmentationKind::TcpV4,
            (true, true) => SegmentationKind::TcpV6,
            (false, _) => SegmentationKind::Udp,
        };
        let header = VirtioNetHeader {
            checksum: Some(ChecksumField { start: start as u16, offset: offset as u16 }),
            segmentation: Some(Segmentation {
                kind,
                ecn: self.flags & CWR != 0,
                payload_bytes: segment_bytes,
                headers_bytes: self.headers_bytes() as u16,
            }),
        };
        (header, bytes)
    }

    /// What cutting is to give, packet by packet, made by hand.
    pub(crate) fn expected(&self, payload: &[u8], segment_bytes: usize) -> Vec<Vec<u8>> {
        let pieces: Vec<&[u8]> = payload.chunks(segment_bytes).collect();
        let count = pieces.len();
        let each = |(index, piece): (usize, &&[u8])| {
            let mut flow = self.clone();
            flow.identification = self.identification.wrapping_add(index as u16);
            flow.sequence = self.sequence.wrapping_add((index * segment_bytes) as u32);
            flow.flags &= if index == 0 { 0xff } else { !CWR };
            flow.flags &= if index + 1 == count { 0xff } else { !(PSH | FIN) };
            flow.packet(piece)
        };
        pieces.iter().enumerate().map(each).collect()
    }

    fn headers(&self, payload_bytes: usize) -> Vec<u8> {
        let transport_bytes = self.headers_bytes() - self.ip_bytes() + payload_bytes;
        let protocol = if self.is_tcp { 6 } else { 17 };
        let (source, destination) = self.addresses();
        let mut bytes = Vec::new();
        if self.is_ipv6 {
            bytes.extend([0x60 | (self.service >> 4), (self.service << 4) | 3, 0x21, 0x43]);
            bytes.extend((transport_bytes as u16).to_be_bytes());
            bytes.extend([protocol, 64]);
        } else {
            bytes.extend([0x45, self.service]);
            bytes.extend(((20 + transport_bytes) as u16).to_be_bytes());
            bytes.extend(self.identification.to_be_bytes());
            bytes.extend([if self.must_not_fragment { 0x40 } else { 0 }, 0, 64, protocol, 0, 0]);
        }
        for address in [source, destination] {
            match address {
                IpAddress::Ipv4(address) => bytes.extend(address.octets()),
                IpAddress::Ipv6(address) => bytes.extend(address.octets()),
            }
        }
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        if self.is_tcp {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(77_u32.to_be_bytes());
            bytes.extend([
                (((20 + self.options.len()) / 4) << 4) as u8,
                self.flags,
                2,
                3,
                0,
                0,
                0,
                0,
            ]);
            bytes.extend_from_slice(&self.options);
        } else {
            bytes.extend((transport_bytes as u16).to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes
    }

    fn fill_checksums(&self, bytes: &mut [u8]) {
        let (source, destination) = self.addresses();
        let ip_bytes = self.ip_bytes();
        if !self.is_ipv6 {
            Ipv4Packet::new_unchecked(&mut *bytes).fill_checksum();
        }
        let transport = &mut bytes[ip_bytes..];
        if self.is_tcp {
            TcpPacket::new_unchecked(transport).fill_checksum(&source, &destination);
        } else {
            UdpPacket::new_unchecked(transport).fill_checksum(&source, &destination);
        }
    }
}

/// Checks lengths and checksums with smoltcp; returns the payload.
pub(crate) fn verified(packet: &[u8]) -> Vec<u8> {
    let (source, destination, protocol, transport) = if packet[0] >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        assert!(ip.verify_checksum(), "IPv4 checksum");
        assert_eq!(usize::from(ip.total_len()), packet.len());
        (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), packet[20..].to_vec())
    } else {
        let ip = Ipv6Packet::new_checked(packet).unwrap();
        assert_eq!(ip.total_len(), packet.len());
        (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), packet[40..].to_vec())
    };
    let (source, destination): (IpAddress, IpAddress) = (source, destination);
    if protocol == smoltcp::wire::IpProtocol::Tcp {
        let tcp = TcpPacket::new_checked(&transport[..]).unwrap();
        assert!(tcp.verify_checksum(&source, &destination), "TCP checksum");
        tcp.payload().to_vec()
    } else {
        let udp = UdpPacket::new_checked(&transport[..]).unwrap();
        assert!(udp.verify_checksum(&source, &destination), "UDP checksum");
        assert_eq!(usize::from(udp.len()), transport.len());
        udp.payload().to_vec()
    }
}

/// All packets that a frame is cut into, through a buffer of `buffer_bytes`.
pub(crate) fn cut(
    header: &VirtioNetHeader,
    frame: &[u8],
    layout: Layout,
    buffer_bytes: usize,
) -> Vec<Vec<u8>> {
    let mut segmenter = Segmenter::new(header, frame, layout).unwrap();
    let largest = segmenter.packet_bytes();
    let mut packets = Vec::new();
    let mut buffer = vec![0xee; buffer_bytes];
    while let Some(batch) = segmenter.fill(&mut buffer).unwrap() {
        let places: Vec<&[u8]> = buffer[..batch.len].chunks(batch.stride).collect();
        assert_eq!(places.len(), batch.count);
        for place in places {
            let end = place.len() - layout.tailroom;
            let packet = &place[layout.headroom..end];
            assert!(packet.len() <= largest);
            packets.push(packet.to_vec());
        }
    }
    packets
}

pub(crate) const MESH: Layout = Layout { headroom: 16, tailroom: 16, packet_bytes_max: 1400 };

prop_compose! {
    /// A flow with anything in its headers that cutting and merging must keep.
    pub(crate) fn any_flow()(
        is_ipv6 in any::<bool>(),
        is_tcp in any::<bool>(),
        sequence in any::<u32>(),
        identification in any::<u16>(),
        must_not_fragment in any::<bool>(),
        ends in 0_u8..4,
        service in any::<u8>(),
        options in 0_usize..11,
        port in 1_u16..4,
    ) -> Flow {
        Flow {
            is_ipv6,
            is_tcp,
            ports: (port, 80),
            sequence,
            identification,
            must_not_fragment,
            flags: ACK | [0, PSH, FIN, PSH | FIN][usize::from(ends)],
            service,
            options: vec![1; 4 * options],
        }
    }
}

/// Payload whose bytes tell their place.
pub(crate) fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8).wrapping_mul(167) as u8).collect()
}
