//! `struct virtio_net_hdr` (virtio 1.2 §5.1.6), which stands in front of each frame of a virtio-net
//! queue and of a Linux TUN with IFF_VNET_HDR.
//!
//! ```text
//! byte 0  flags        1 NEEDS_CSUM, 2 DATA_VALID, 4 RSC_INFO
//!      1  gso_type     0 none, 1 TCPV4, 4 TCPV6, 5 UDP_L4; + 0x80 ECN
//!      2  hdr_len      le16, bytes of all headers: a hint
//!      4  gso_size     le16, payload bytes of each packet
//!      6  csum_start   le16, where the checksum's range starts; it goes on to the end
//!      8  csum_offset  le16, where its field is, from there
//!     10  num_buffers  le16, receive buffers of the frame (not on a TUN)
//! ```

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// The bytes of the header in a virtqueue, with `num_buffers`.
pub const VIRTIO_HEADER_BYTES: usize = 12;
/// The bytes of the header on a TUN, without `num_buffers`.
pub const TUN_HEADER_BYTES: usize = 10;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_UDP_L4: u8 = VIRTIO_NET_HDR_GSO_UDP_L4 as u8;
const GSO_ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A gso_type that nobody offered, UFO among them.
    #[error("unknown segmentation {0:#04x}")]
    Segmentation(u8),
    /// Segments of no bytes.
    #[error("segments of 0 bytes")]
    SegmentSize,
    /// Segmentation without a checksum to compute (virtio 1.2 §5.1.6.2 demands it).
    #[error("segmentation without NEEDS_CSUM")]
    ChecksumMissing,
    /// The checksum's range starts in the link's header.
    #[error("the checksum's range starts in front of the packet")]
    ChecksumStart,
}

/// A header, checked by itself; whether the packet behind it agrees is for its reader to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioNetHeader {
    /// The checksum that is yet to be computed, if any.
    pub checksum: Option<ChecksumField>,
    /// How the frame is to be cut, if at all.
    pub segmentation: Option<Segmentation>,
}

/// NEEDS_CSUM: the field holds the pseudo-header's sum, the rest is to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChecksumField {
    /// Where the range starts, in bytes behind this header.
    pub start: u16,
    /// Where the field is, in bytes behind `start`.
    pub offset: u16,
}

/// How a super-frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// The protocol.
    pub kind: SegmentationKind,
    /// Whether the first packet carries CWR (RFC 3168 §6.1.2).
    pub ecn: bool,
    /// The payload of each packet but the last, in bytes; not 0.
    pub payload_bytes: u16,
    /// All headers of the frame, in bytes; a hint.
    pub headers_bytes: u16,
}

/// The protocol of a super-frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of one size over IPv4 or IPv6.
    Udp,
}

impl VirtioNetHeader {
    /// Reads a header; of one in a virtqueue, all but `num_buffers`, which a driver leaves zero.
    ///
    /// DATA_VALID and RSC_INFO mean nothing from a driver; a TUN sets the former on packets whose
    /// checksum is complete.
    ///
    /// # Errors
    /// [`HeaderError`] if it asks for what does not exist or contradicts itself.
    pub fn parse(bytes: &[u8; TUN_HEADER_BYTES]) -> Result<Self, HeaderError> {
        let &[flags, gso_type, headers_0, headers_1, size_0, size_1, start_0, start_1, at_0, at_1] =
            bytes;
        let checksum = (flags & NEEDS_CSUM != 0).then_some(ChecksumField {
            start: u16::from_le_bytes([start_0, start_1]),
            offset: u16::from_le_bytes([at_0, at_1]),
        });
        let kind = match gso_type & !GSO_ECN {
            GSO_NONE if gso_type == GSO_NONE => return Ok(Self { checksum, segmentation: None }),
            GSO_TCPV4 => SegmentationKind::TcpV4,
            GSO_TCPV6 => SegmentationKind::TcpV6,
            GSO_UDP_L4 if gso_type == GSO_UDP_L4 => SegmentationKind::Udp,
            _ => return Err(HeaderError::Segmentation(gso_type)),
        };
        let segmentation = Segmentation {
            kind,
            ecn: gso_type & GSO_ECN != 0,
            payload_bytes: u16::from_le_bytes([size_0, size_1]),
            headers_bytes: u16::from_le_bytes([headers_0, headers_1]),
        };
        if segmentation.payload_bytes == 0 {
            return Err(HeaderError::SegmentSize);
        }
        if checksum.is_none() {
            return Err(HeaderError::ChecksumMissing);
        }
        Ok(Self { checksum, segmentation: Some(segmentation) })
    }

    /// The header's bytes, for a frame in `buffers` receive buffers; a TUN takes the first
    /// [`TUN_HEADER_BYTES`] of them.
    #[must_use]
    pub fn bytes(&self, buffers: u16) -> [u8; VIRTIO_HEADER_BYTES] {
        let (mut gso_type, mut headers, mut size) = (GSO_NONE, [0; 2], [0; 2]);
        if let Some(segmentation) = self.segmentation {
            let kind = match segmentation.kind {
                SegmentationKind::TcpV4 => GSO_TCPV4,
                SegmentationKind::TcpV6 => GSO_TCPV6,
                SegmentationKind::Udp => GSO_UDP_L4,
            };
            gso_type = kind | if segmentation.ecn { GSO_ECN } else { 0 };
            headers = segmentation.headers_bytes.to_le_bytes();
            size = segmentation.payload_bytes.to_le_bytes();
        }
        let flags = if self.checksum.is_some() { NEEDS_CSUM } else { 0 };
        let field = self.checksum.unwrap_or(ChecksumField { start: 0, offset: 0 });
        let (start, offset) = (field.start.to_le_bytes(), field.offset.to_le_bytes());
        let buffers = buffers.to_le_bytes();
        [
            flags, gso_type, headers[0], headers[1], size[0], size[1], start[0], start[1],
            offset[0], offset[1], buffers[0], buffers[1],
        ]
    }

    /// The header for the packet alone, of one for a frame with a link header of `bytes`.
    ///
    /// # Errors
    /// [`HeaderError::ChecksumStart`] if the checksum's range starts in the link's header.
    pub fn without_link(mut self, bytes: u16) -> Result<Self, HeaderError> {
        if let Some(field) = &mut self.checksum {
            field.start = field.start.checked_sub(bytes).ok_or(HeaderError::ChecksumStart)?;
        }
        if let Some(segmentation) = &mut self.segmentation {
            segmentation.headers_bytes = segmentation.headers_bytes.saturating_sub(bytes);
        }
        Ok(self)
    }

    /// The header for a frame with a link header of `bytes`, of one for the packet alone.
    #[must_use]
    pub fn with_link(mut self, bytes: u16) -> Self {
        if let Some(field) = &mut self.checksum {
            field.start = field.start.saturating_add(bytes);
        }
        if let Some(segmentation) = &mut self.segmentation {
            segmentation.headers_bytes = segmentation.headers_bytes.saturating_add(bytes);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A TUN's header in front of 10 × 1,348 bytes of TCP over IPv6, as Linux writes it.
    const TCP6: [u8; TUN_HEADER_BYTES] = [1, 4, 72, 0, 0x44, 0x05, 40, 0, 16, 0];

    #[test]
    fn a_linux_super_frame_is_understood() {
        let header = VirtioNetHeader::parse(&TCP6).unwrap();
        assert_eq!(header.checksum, Some(ChecksumField { start: 40, offset: 16 }));
        let segmentation = Segmentation {
            kind: SegmentationKind::TcpV6,
            ecn: false,
            payload_bytes: 1348,
            headers_bytes: 72,
        };
        assert_eq!(header.segmentation, Some(segmentation));
        assert_eq!(header.bytes(0)[..10], TCP6);
    }

    #[test]
    fn what_was_not_offered_or_contradicts_itself_is_refused() {
        let with = |at: usize, value: u8| {
            let mut bytes = TCP6;
            bytes[at] = value;
            VirtioNetHeader::parse(&bytes)
        };
        assert_eq!(with(0, 0), Err(HeaderError::ChecksumMissing));
        for gso_type in [2, 3, 6, 0x80, 0x85, 0xff] {
            assert_eq!(with(1, gso_type), Err(HeaderError::Segmentation(gso_type)));
        }
        assert!(with(1, 0x84).unwrap().segmentation.unwrap().ecn);
        let mut empty = TCP6;
        empty[4..6].fill(0);
        assert_eq!(VirtioNetHeader::parse(&empty), Err(HeaderError::SegmentSize));
    }

    #[test]
    fn a_checksum_that_starts_in_the_link_header_is_refused() {
        let mut header = VirtioNetHeader::parse(&TCP6).unwrap();
        assert_eq!(header.with_link(14).without_link(14), Ok(header));
        header.checksum = Some(ChecksumField { start: 13, offset: 0 });
        assert_eq!(header.without_link(14), Err(HeaderError::ChecksumStart));
    }

    proptest! {
        #[test]
        fn any_header_is_refused_or_comes_back(bytes in any::<[u8; TUN_HEADER_BYTES]>()) {
            if let Ok(header) = VirtioNetHeader::parse(&bytes) {
                let [first @ .., 2, 1] = header.bytes(0x0102) else { unreachable!() };
                prop_assert_eq!(VirtioNetHeader::parse(&first), Ok(header));
            }
        }
    }
}
