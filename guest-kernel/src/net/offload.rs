//! What a card that computes checksums and cuts super-frames is told of a frame, and what its driver
//! still checks of those that it gets (virtio 1.2 §5.1.6).

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
    UdpPacket,
};

/// The bytes of `struct virtio_net_hdr` with VIRTIO_F_VERSION_1.
pub(super) const HEADER_BYTES: usize = 12;
const ETHERNET_BYTES: usize = 14;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Where TCP or UDP is in a frame.
struct Transport {
    addresses: (IpAddress, IpAddress),
    protocol: IpProtocol,
    /// Where it starts, in bytes of the frame.
    at: usize,
    len: usize,
}

/// The TCP or UDP of a frame straight behind its IP header; fragments have none.
fn transport(frame: &[u8]) -> Option<Transport> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let (addresses, protocol, at, len) = match ethernet.ethertype() {
        EthernetProtocol::Ipv6 => {
            // A super-frame's length need not fit the header: what is there counts.
            let packet = Ipv6Packet::new_unchecked(ethernet.payload());
            let payload = ethernet.payload().get(40..)?;
            let len = match usize::from(packet.payload_len()) {
                0 => payload.len(),
                len => len.min(payload.len()),
            };
            let addresses = (packet.src_addr().into(), packet.dst_addr().into());
            (addresses, packet.next_header(), ETHERNET_BYTES + 40, len)
        }
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            if packet.more_frags() || packet.frag_offset() != 0 {
                return None;
            }
            let header = usize::from(packet.header_len());
            let addresses = (packet.src_addr().into(), packet.dst_addr().into());
            let len = packet.payload().len();
            (addresses, packet.next_header(), ETHERNET_BYTES + header, len)
        }
        _ => return None,
    };
    Some(Transport { addresses, protocol, at, len })
}

/// The header of a frame to send whose checksum is left to the card; with `segment_bytes` it is to be
/// cut into TCP segments of so many bytes. All zero for a frame that has neither TCP nor UDP.
pub(super) fn header(frame: &[u8], segment_bytes: Option<u16>) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let Some(found) = transport(frame) else { return header };
    let checksum_at: u16 = match found.protocol {
        IpProtocol::Tcp => 16,
        IpProtocol::Udp => 6,
        _ => return header,
    };
    // A frame is shorter than 2^16 bytes, and so are its headers.
    let start = found.at as u16;
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&checksum_at.to_le_bytes());
    let tcp_header = frame.get(found.at + 12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    if let (Some(segment_bytes), IpProtocol::Tcp) = (segment_bytes, found.protocol) {
        header[1] = match found.addresses.0 {
            IpAddress::Ipv4(_) => GSO_TCPV4,
            IpAddress::Ipv6(_) => GSO_TCPV6,
        };
        header[2..4].copy_from_slice(&((found.at + tcp_header) as u16).to_le_bytes());
        header[4..6].copy_from_slice(&segment_bytes.to_le_bytes());
    }
    header
}

/// In how many receive buffers a frame lies (MRG_RXBUF).
pub(super) fn buffer_count(header: &[u8]) -> usize {
    match header.get(10..12) {
        Some(&[low, high]) => usize::from(u16::from_le_bytes([low, high])).max(1),
        _ => 1,
    }
}

/// Whether TCP's or UDP's checksum of a received frame is right, or nothing that the driver has to
/// check: the card vouches for it, or left it undone because the packets in it were right.
pub(super) fn is_intact(header: &[u8], frame: &[u8]) -> bool {
    if header.first().is_some_and(|flags| flags & (NEEDS_CSUM | DATA_VALID) != 0) {
        return true;
    }
    let Some(found) = transport(frame) else { return true };
    let (from, to) = found.addresses;
    let Some(bytes) = frame.get(found.at..found.at + found.len) else { return true };
    match found.protocol {
        IpProtocol::Tcp => {
            TcpPacket::new_checked(bytes).is_ok_and(|packet| packet.verify_checksum(&from, &to))
        }
        IpProtocol::Udp => {
            UdpPacket::new_checked(bytes).is_ok_and(|packet| packet.verify_checksum(&from, &to))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    /// An Ethernet frame of TCP over IPv6 with `payload` zeros and no checksum.
    fn frame(payload: usize) -> Vec<u8> {
        let mut frame = vec![0; 14 + 40 + 20 + payload];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[14] = 0x60;
        let len = u16::try_from(20 + payload).unwrap();
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        frame[20] = 6;
        frame[14 + 40 + 12] = 0x50;
        frame
    }

    #[test]
    fn the_card_is_told_where_the_checksum_is_and_how_to_cut() {
        let frame = frame(3000);
        assert_eq!(header(&frame, None), [1, 0, 0, 0, 0, 0, 54, 0, 16, 0, 0, 0]);
        assert_eq!(header(&frame, Some(1340)), [1, 4, 74, 0, 0x3c, 5, 54, 0, 16, 0, 0, 0]);
        assert_eq!(header(&frame[..20], None), [0; HEADER_BYTES]);
        let mut other = frame;
        other[20] = 58;
        assert_eq!(header(&other, Some(1340)), [0; HEADER_BYTES], "ICMPv6 is left alone");
    }

    #[test]
    fn a_wrong_checksum_is_seen_unless_it_is_left_undone() {
        let mut frame = frame(100);
        let plain = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        assert!(!is_intact(&plain, &frame));
        assert!(is_intact(&header(&frame, None), &frame));
        let addresses = transport(&frame).unwrap().addresses;
        TcpPacket::new_unchecked(&mut frame[54..]).fill_checksum(&addresses.0, &addresses.1);
        assert!(is_intact(&plain, &frame));
        frame[80] ^= 1;
        assert!(!is_intact(&plain, &frame));
    }

    #[test]
    fn a_frame_lies_in_as_many_buffers_as_its_header_says() {
        assert_eq!(buffer_count(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 44, 0]), 44);
        assert_eq!(buffer_count(&[0; 12]), 1);
        assert_eq!(buffer_count(&[]), 1);
    }
}
