//! From one super-frame to packets that fit the mesh, in place for sealing.
//!
//! ```text
//!  ◄──────────────── stride ─────────────────►◄──────────────── stride …
//! ┌──────────┬───────────────────────┬────────┬──────────┬─────────────
//! │ headroom │ IP, TCP, payload      │tailroom│ headroom │ IP, TCP, …
//! └──────────┴───────────────────────┴────────┴──────────┴─────────────
//! ```

use super::PACKET_BYTES_MAX;
use super::checksum::{Sum, pseudo_header};
use super::header::{Segmentation, SegmentationKind, VirtioNetHeader};
use super::headers::{CWR, FIN, Headers, PSH, RST, SYN, double_word, put, word};

/// How many packets one batch holds at most: what UDP_SEGMENT takes on every kernel that has it.
pub const SEGMENTS_MAX: usize = 64;

/// Why a frame is not cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// No bytes, or more than an IP packet has.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// The packet is not TCP or UDP with plain headers, or ends before they do.
    #[error("an offload for a packet that is not plain TCP or UDP")]
    Headers,
    /// The header says another protocol than the packet.
    #[error("the offload is for another protocol than the packet's")]
    Protocol,
    /// The checksum is not where the packet has it.
    #[error("the checksum is not where the packet has it")]
    Checksum,
    /// SYN or RST in a frame that is to be cut.
    #[error("segments with SYN or RST")]
    Flags,
    /// The headers alone fill the largest packet, or the buffer has no room for one packet.
    #[error("no room for a packet of this flow")]
    Room,
}

/// How packets are to lie in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes left free in front of each packet.
    pub headroom: usize,
    /// Bytes left free behind each packet.
    pub tailroom: usize,
    /// The largest packet that the path carries: TCP is cut to fit it even if its sender asked for
    /// larger segments. UDP is not: where a datagram ends is part of what it says.
    pub packet_bytes_max: usize,
}

/// Packets in a buffer, from its start. All but the last are of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// From one packet's headroom to the next one's, in bytes.
    pub stride: usize,
    /// How many there are; at least 1.
    pub count: usize,
    /// The bytes used of the buffer, to the end of the last packet's tailroom.
    pub len: usize,
}

/// A frame on its way to packets: [`Segmenter::fill`] until there is nothing left.
#[derive(Debug)]
pub struct Segmenter<'a> {
    packet: &'a [u8],
    layout: Layout,
    /// `None` for a packet that is copied as it is.
    cut: Option<Cut>,
    /// Whether checksums stay open.
    leaves_checksums: bool,
    is_done: bool,
}

/// How a frame is cut.
#[derive(Debug)]
struct Cut {
    headers: Headers,
    /// The payload of each packet but the last.
    payload_bytes: usize,
    /// Where the next packet's payload starts.
    at: usize,
    /// How many packets there have been.
    index: u16,
    /// The sum of the addresses, the same for all.
    addresses: Sum,
}

impl<'a> Segmenter<'a> {
    /// Checks the frame `packet` (an IP packet without a link header) against its header.
    ///
    /// A packet without any offload passes as it is, whatever it is. Bytes behind the end that the
    /// IP header of one with an offload tells are cut off: they are padding of a link.
    ///
    /// # Errors
    /// [`SegmentError`] if the header asks for what can't be done to this packet.
    pub fn new(
        header: &VirtioNetHeader,
        packet: &'a [u8],
        layout: Layout,
    ) -> Result<Self, SegmentError> {
        if packet.is_empty() || packet.len() > PACKET_BYTES_MAX {
            return Err(SegmentError::Length(packet.len()));
        }
        let Some(field) = header.checksum else {
            // A parsed header has no segmentation without a checksum.
            return Ok(Self { packet, layout, cut: None, leaves_checksums: false, is_done: false });
        };
        let headers = Headers::parse(packet).ok_or(SegmentError::Headers)?;
        let is_in_place = usize::from(field.start) == headers.ip_bytes
            && usize::from(field.offset) == headers.checksum_offset();
        if !is_in_place {
            return Err(SegmentError::Checksum);
        }
        let mut payload_bytes = headers.len - headers.headers_bytes;
        if let Some(segmentation) = header.segmentation {
            let fits = match segmentation.kind {
                SegmentationKind::TcpV4 => headers.is_tcp && !headers.is_ipv6,
                SegmentationKind::TcpV6 => headers.is_tcp && headers.is_ipv6,
                SegmentationKind::Udp => !headers.is_tcp,
            };
            if !fits {
                return Err(SegmentError::Protocol);
            }
            payload_bytes = usize::from(segmentation.payload_bytes);
            if headers.is_tcp {
                if word(packet, headers.ip_bytes + 12) & u16::from(SYN | RST) != 0 {
                    return Err(SegmentError::Flags);
                }
                let room = layout.packet_bytes_max.saturating_sub(headers.headers_bytes);
                payload_bytes = payload_bytes.min(room);
                if payload_bytes == 0 {
                    return Err(SegmentError::Room);
                }
            }
        }
        let addresses = packet.get(headers.addresses()).unwrap_or_default();
        let cut = Cut {
            headers,
            payload_bytes,
            at: headers.headers_bytes,
            index: 0,
            addresses: pseudo_header(addresses, headers.protocol(), 0),
        };
        Ok(Self { packet, layout, cut: Some(cut), leaves_checksums: false, is_done: false })
    }

    /// Leaves the checksums of what comes out open, for a reader that takes that: each field holds the
    /// sum of its pseudo-header, as in a frame with NEEDS_CSUM. Returns whether there are any: a packet
    /// without an offload has its own.
    pub fn leave_checksums(&mut self) -> bool {
        self.leaves_checksums = self.cut.is_some();
        self.leaves_checksums
    }

    /// The bytes of the largest packet that will come out.
    #[must_use]
    pub fn packet_bytes(&self) -> usize {
        self.cut.as_ref().map_or(self.packet.len(), |cut| {
            let headers = cut.headers;
            headers.len.min(headers.headers_bytes + cut.payload_bytes)
        })
    }

    /// The header that the frame came with, with the length of its headers as they are: a hint that
    /// nobody else checks, and that a receiver may believe.
    #[must_use]
    pub fn true_header(&self, header: &VirtioNetHeader) -> VirtioNetHeader {
        let headers_bytes = self.cut.as_ref().map_or(0, |cut| cut.headers.headers_bytes);
        let headers_bytes = u16::try_from(headers_bytes).unwrap_or(0);
        let segmentation = header.segmentation.map(|it| Segmentation { headers_bytes, ..it });
        VirtioNetHeader { segmentation, ..*header }
    }

    /// Writes the next packets into `buffer` from its start; `None` when there are no more. If they
    /// don't all fit they are divided evenly, so that no call of the socket is for a few only.
    ///
    /// # Errors
    /// [`SegmentError::Room`] if the buffer has no room for one packet.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<Option<Batch>, SegmentError> {
        if self.is_done {
            return Ok(None);
        }
        let Some(cut) = &mut self.cut else {
            let batch = copy_whole(self.packet, self.layout, buffer).ok_or(SegmentError::Room)?;
            self.is_done = true;
            return Ok(Some(batch));
        };
        let left = cut.headers.len - cut.at;
        let first = left.min(cut.payload_bytes);
        let around = self.layout.headroom + self.layout.tailroom;
        let stride = around + cut.headers.headers_bytes + first;
        let fit = (buffer.len() / stride).min(SEGMENTS_MAX);
        if fit == 0 {
            return Err(SegmentError::Room);
        }
        // A frame without payload is one packet.
        let total = if left == 0 { 1 } else { left.div_ceil(cut.payload_bytes) };
        let count = total.div_ceil(total.div_ceil(fit));
        let mut len = 0;
        for place in buffer.chunks_mut(stride).take(count) {
            let room = place.get_mut(self.layout.headroom..).unwrap_or_default();
            let packet_bytes = cut
                .write_next(self.packet, room, self.leaves_checksums)
                .ok_or(SegmentError::Room)?;
            len += around + packet_bytes;
        }
        self.is_done = count == total;
        Ok(Some(Batch { stride, count, len }))
    }
}

/// Hands out the packets of at most `packet_bytes_max` that a frame stands for, in order. A frame
/// that is not what its header says has none. `room` is kept for the next frame.
pub fn each_packet(
    header: &VirtioNetHeader,
    packet: &[u8],
    packet_bytes_max: usize,
    room: &mut Vec<u8>,
    mut take: impl FnMut(&[u8]),
) {
    if header.checksum.is_none() {
        // Nothing is to be cut or computed.
        return take(packet);
    }
    let layout = Layout { headroom: 0, tailroom: 0, packet_bytes_max };
    let Ok(mut segmenter) = Segmenter::new(header, packet, layout) else { return };
    room.resize(PACKET_BYTES_MAX, 0);
    while let Ok(Some(batch)) = segmenter.fill(room) {
        let packets = room.get(..batch.len).unwrap_or_default();
        packets.chunks(batch.stride.max(1)).for_each(&mut take);
    }
}

impl Cut {
    /// Writes the next packet to the start of `room`; returns its length.
    fn write_next(
        &mut self,
        frame: &[u8],
        room: &mut [u8],
        leaves_checksum: bool,
    ) -> Option<usize> {
        let Headers { headers_bytes, ip_bytes, .. } = self.headers;
        let end = self.headers.len.min(self.at + self.payload_bytes);
        let payload = frame.get(self.at..end)?;
        let packet = room.get_mut(..headers_bytes + payload.len())?;
        let (headers, body) = packet.split_at_mut_checked(headers_bytes)?;
        headers.copy_from_slice(frame.get(..headers_bytes)?);
        body.copy_from_slice(payload);
        self.write_ip(headers, payload.len());
        let (ip, transport) = packet.split_at_mut_checked(ip_bytes)?;
        if self.headers.is_tcp {
            self.write_tcp(transport, end == self.headers.len);
        } else {
            let len = u16::try_from(transport.len()).ok()?;
            put(transport, 4, &len.to_be_bytes());
        }
        let offset = self.headers.checksum_offset();
        put(transport, offset, &[0; 2]);
        let pseudo = self.addresses.word(u16::try_from(transport.len()).ok()?);
        let field = if leaves_checksum {
            pseudo.partial()
        } else {
            // In UDP a field of zero says that there is no checksum (RFC 768); both zeroes are equal.
            match pseudo.plus(Sum::of(transport)).field() {
                [0, 0] if !self.headers.is_tcp => [0xff, 0xff],
                field => field,
            }
        };
        put(transport, offset, &field);
        let len = ip.len() + transport.len();
        self.at = end;
        self.index = self.index.wrapping_add(1);
        Some(len)
    }

    fn write_ip(&self, headers: &mut [u8], payload_bytes: usize) {
        let len = headers.len() + payload_bytes;
        if self.headers.is_ipv6 {
            let len = u16::try_from(len - self.headers.ip_bytes).unwrap_or(u16::MAX);
            put(headers, 4, &len.to_be_bytes());
        } else {
            let id = word(headers, 4).wrapping_add(self.index);
            put(headers, 2, &u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
            put(headers, 4, &id.to_be_bytes());
            put(headers, 10, &[0; 2]);
            let field = Sum::of(headers.get(..self.headers.ip_bytes).unwrap_or_default()).field();
            put(headers, 10, &field);
        }
    }

    /// Sequence number, and flags: CWR is said once, at first, PSH and FIN once, at last.
    fn write_tcp(&self, transport: &mut [u8], is_last: bool) {
        let done = self.at - self.headers.headers_bytes;
        let sequence = double_word(transport, 4).wrapping_add(u32::try_from(done).unwrap_or(0));
        put(transport, 4, &sequence.to_be_bytes());
        if let Some(flags) = transport.get_mut(13) {
            let not_first = if self.index > 0 { CWR } else { 0 };
            let not_last = if is_last { 0 } else { PSH | FIN };
            *flags &= !(not_first | not_last);
        }
    }
}

fn copy_whole(packet: &[u8], layout: Layout, buffer: &mut [u8]) -> Option<Batch> {
    let len = layout.headroom + packet.len() + layout.tailroom;
    let place = buffer.get_mut(..len)?.get_mut(layout.headroom..)?;
    place.get_mut(..packet.len())?.copy_from_slice(packet);
    Some(Batch { stride: len, count: 1, len })
}
