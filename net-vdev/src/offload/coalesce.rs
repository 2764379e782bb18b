//! From packets, as they came in, to super-frames: the reverse of the [`super::Segmenter`], after
//! the rules of Linux's GRO.
//!
//! Cutting a super-frame again gives the packets that it was made of, bit for bit, but for the
//! identification of IPv4 packets that must not be fragmented (RFC 6864: it means nothing there) and
//! for the two zeroes of a UDP checksum.

use super::PACKET_BYTES_MAX;
use super::checksum::{Sum, pseudo_header};
use super::header::{Segmentation, SegmentationKind, VirtioNetHeader};
use super::headers::{ACK, ECE, FIN, Headers, PSH, double_word, put, word};
use super::segment::SEGMENTS_MAX;

/// How many flows are merged at a time; the oldest is passed on when one more comes.
pub const FLOWS_MAX: usize = 8;

/// Which super-frames the receiver takes (features of its virtio-net driver, or of a TUN).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepts {
    /// TCP over IPv4.
    pub tcp_v4: bool,
    /// TCP over IPv6.
    pub tcp_v6: bool,
    /// UDP over IPv4 and IPv6.
    pub udp: bool,
}

impl Accepts {
    fn takes(self, headers: &Headers) -> bool {
        match (headers.is_tcp, headers.is_ipv6) {
            (true, false) => self.tcp_v4,
            (true, true) => self.tcp_v6,
            (false, _) => self.udp,
        }
    }
}

/// Merges packets of the same flow. It holds at most [`FLOWS_MAX`] super-frames of
/// [`PACKET_BYTES_MAX`] bytes, allocated when it is made.
///
/// The packets of a flow come out in the order in which they went in. [`Coalescer::flush`] passes on
/// what is held: a caller does that at the end of what one turn of its sockets brought.
#[derive(Debug)]
pub struct Coalescer {
    accepts: Accepts,
    flows: Vec<Flow>,
    /// Counts super-frames begun, which tells the oldest.
    begun: u64,
}

/// A super-frame in the making; `count` is 0 if there is none.
#[derive(Debug)]
struct Flow {
    frame: Box<[u8]>,
    len: usize,
    /// What the first packet came with.
    first: VirtioNetHeader,
    /// The headers of the first packet; `len` in them is that packet's.
    headers: Headers,
    /// The payload of each packet but the last.
    payload_bytes: usize,
    count: usize,
    begun: u64,
}

/// What a packet can be to a super-frame.
enum Role {
    /// A packet with payload that others may follow.
    Middle,
    /// The same, and the last: nothing is merged behind PSH or FIN.
    Last,
    /// It is passed on as it is.
    Alone,
}

impl Coalescer {
    /// A coalescer for a receiver that takes such super-frames.
    #[must_use]
    pub fn new(accepts: Accepts) -> Self {
        let nothing =
            Headers { is_ipv6: false, is_tcp: false, ip_bytes: 0, headers_bytes: 0, len: 0 };
        let flow = || Flow {
            frame: vec![0; PACKET_BYTES_MAX].into_boxed_slice(),
            len: 0,
            first: VirtioNetHeader::default(),
            headers: nothing,
            payload_bytes: 0,
            count: 0,
            begun: 0,
        };
        Self { accepts, flows: (0..FLOWS_MAX).map(|_| flow()).collect(), begun: 0 }
    }

    /// Takes the next packet, with the header that it came with: its checksum may be open. `emit` gets
    /// what is complete, each with its header.
    pub fn push(
        &mut self,
        header: &VirtioNetHeader,
        packet: &[u8],
        emit: &mut impl FnMut(&VirtioNetHeader, &[u8]),
    ) {
        let headers = Headers::parse(packet).filter(|headers| self.accepts.takes(headers));
        let Some(headers) = headers else {
            return emit(header, packet);
        };
        let packet = packet.get(..headers.len).unwrap_or(packet);
        let role = role(header, packet, &headers);
        let held = self.flows.iter_mut().find(|flow| flow.is_of(packet, &headers));
        if let Some(flow) = held {
            if !matches!(role, Role::Alone) && flow.takes(packet, &headers) {
                flow.append(packet, &headers);
                let is_short = headers.len - headers.headers_bytes < flow.payload_bytes;
                if is_short || matches!(role, Role::Last) {
                    flow.finish(emit);
                }
                return;
            }
            flow.finish(emit);
        }
        match role {
            Role::Middle => self.begin(header, packet, headers, emit),
            Role::Last | Role::Alone => emit(header, packet),
        }
    }

    /// Passes on all that is held, the oldest first.
    pub fn flush(&mut self, emit: &mut impl FnMut(&VirtioNetHeader, &[u8])) {
        while let Some(flow) =
            self.flows.iter_mut().filter(|it| it.count > 0).min_by_key(|it| it.begun)
        {
            flow.finish(emit);
        }
    }

    /// Begins a super-frame with its first packet, in the place of the oldest if there is no other.
    fn begin(
        &mut self,
        header: &VirtioNetHeader,
        packet: &[u8],
        headers: Headers,
        emit: &mut impl FnMut(&VirtioNetHeader, &[u8]),
    ) {
        // An empty place counts as older than all.
        let age = |flow: &&mut Flow| if flow.count == 0 { 0 } else { flow.begun };
        let Some(flow) = self.flows.iter_mut().min_by_key(age) else { return };
        flow.finish(emit);
        self.begun += 1;
        if let Some(place) = flow.frame.get_mut(..packet.len()) {
            place.copy_from_slice(packet);
        }
        flow.first = *header;
        flow.len = packet.len();
        flow.headers = headers;
        flow.payload_bytes = headers.len - headers.headers_bytes;
        flow.count = 1;
        flow.begun = self.begun;
    }
}

impl Flow {
    /// Whether the packet has this super-frame's addresses and ports.
    fn is_of(&self, packet: &[u8], headers: &Headers) -> bool {
        let ports = |headers: &Headers| headers.ip_bytes..headers.ip_bytes + 4;
        self.count > 0
            && self.headers.is_tcp == headers.is_tcp
            && self.headers.is_ipv6 == headers.is_ipv6
            && self.frame.get(ports(headers)) == packet.get(ports(headers))
            && self.frame.get(headers.addresses()) == packet.get(headers.addresses())
    }

    /// Whether the packet goes on where the super-frame ends, and says the same in its headers.
    fn takes(&self, packet: &[u8], headers: &Headers) -> bool {
        let payload_bytes = headers.len - headers.headers_bytes;
        let at = headers.ip_bytes;
        let same =
            |range: std::ops::Range<usize>| self.frame.get(range.clone()) == packet.get(range);
        let fits = headers.headers_bytes == self.headers.headers_bytes
            && payload_bytes <= self.payload_bytes
            && self.len + payload_bytes <= PACKET_BYTES_MAX;
        let is_same_ip = if headers.is_ipv6 {
            // Version, traffic class, flow label; hop limit (the addresses are known).
            same(0..4) && same(6..8)
        } else {
            // Version, service; fragmentation, time to live, protocol.
            same(0..2) && same(6..10) && self.is_next_identification(packet)
        };
        let is_same_transport = if headers.is_tcp {
            let done = u32::try_from(self.len - self.headers.headers_bytes).unwrap_or(0);
            let next = double_word(&self.frame, at + 4).wrapping_add(done);
            let flags = |bytes: &[u8]| word(bytes, at + 12) & !u16::from(PSH | FIN);
            double_word(packet, at + 4) == next
                && same(at + 8..at + 12)
                && flags(&self.frame) == flags(packet)
                && same(at + 14..at + 16)
                && same(at + 18..headers.headers_bytes)
        } else {
            self.count < SEGMENTS_MAX
        };
        fits && is_same_ip && is_same_transport
    }

    /// Cutting numbers the packets one after the other; what may be fragmented keeps its number.
    fn is_next_identification(&self, packet: &[u8]) -> bool {
        let count = u16::try_from(self.count).unwrap_or(u16::MAX);
        let must_not_fragment = packet.get(6).is_some_and(|flags| flags & 0x40 != 0);
        must_not_fragment || word(packet, 4) == word(&self.frame, 4).wrapping_add(count)
    }

    fn append(&mut self, packet: &[u8], headers: &Headers) {
        let payload = packet.get(headers.headers_bytes..).unwrap_or_default();
        let Some(place) = self.frame.get_mut(self.len..self.len + payload.len()) else { return };
        place.copy_from_slice(payload);
        self.len += payload.len();
        self.count += 1;
        if headers.is_tcp {
            let at = headers.ip_bytes + 13;
            let ends = packet.get(at).copied().unwrap_or(0) & (PSH | FIN);
            if let Some(flags) = self.frame.get_mut(at) {
                *flags |= ends;
            }
        }
    }

    /// Passes the super-frame on, if there is one.
    fn finish(&mut self, emit: &mut impl FnMut(&VirtioNetHeader, &[u8])) {
        let header = match self.count {
            0 => return,
            // Nothing was merged: the packet is as it came.
            1 => self.first,
            _ => self.write_headers(),
        };
        self.count = 0;
        emit(&header, self.frame.get(..self.len).unwrap_or_default());
    }

    /// Makes the first packet's headers those of all.
    fn write_headers(&mut self) -> VirtioNetHeader {
        let Headers { is_ipv6, is_tcp, ip_bytes, headers_bytes, .. } = self.headers;
        let transport_bytes = self.len - ip_bytes;
        let field_at = ip_bytes + self.headers.checksum_offset();
        let frame = self.frame.get_mut(..self.len).unwrap_or_default();
        let len_16 = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
        if is_ipv6 {
            put(frame, 4, &len_16(transport_bytes));
        } else {
            put(frame, 2, &len_16(self.len));
            put(frame, 10, &[0; 2]);
            let field = Sum::of(frame.get(..ip_bytes).unwrap_or_default()).field();
            put(frame, 10, &field);
        }
        if !is_tcp {
            put(frame, ip_bytes + 4, &len_16(transport_bytes));
        }
        let addresses = frame.get(self.headers.addresses()).unwrap_or_default();
        let sum = pseudo_header(addresses, self.headers.protocol(), transport_bytes);
        put(frame, field_at, &sum.partial());
        let kind = match (is_tcp, is_ipv6) {
            (true, false) => SegmentationKind::TcpV4,
            (true, true) => SegmentationKind::TcpV6,
            (false, _) => SegmentationKind::Udp,
        };
        let small = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        VirtioNetHeader {
            checksum: Some(self.headers.checksum_field()),
            segmentation: Some(Segmentation {
                kind,
                ecn: false,
                payload_bytes: small(self.payload_bytes),
                headers_bytes: small(headers_bytes),
            }),
        }
    }
}

/// What a packet can be to a super-frame, by its flags and checksums.
fn role(header: &VirtioNetHeader, packet: &[u8], headers: &Headers) -> Role {
    let at = headers.ip_bytes;
    let is_open = header.checksum == Some(headers.checksum_field());
    if header.segmentation.is_some() || (header.checksum.is_some() && !is_open) {
        return Role::Alone;
    }
    let is_last = if headers.is_tcp {
        // CWR is rare, and would need an offload of its own.
        let flags = packet.get(at + 13).copied().unwrap_or(0);
        if flags & ACK == 0 || flags & !(ACK | PSH | FIN | ECE) != 0 {
            return Role::Alone;
        }
        flags & (PSH | FIN) != 0
    } else {
        let len = usize::from(word(packet, at + 4));
        if len != headers.len - at || (!is_open && word(packet, at + 6) == 0) {
            return Role::Alone;
        }
        false
    };
    if headers.len == headers.headers_bytes || !has_right_checksums(packet, headers, is_open) {
        return Role::Alone;
    }
    if is_last { Role::Last } else { Role::Middle }
}

/// Whether the IP header's checksum is right, and the transport's or that is open.
fn has_right_checksums(packet: &[u8], headers: &Headers, is_open: bool) -> bool {
    let Some((ip, transport)) = packet.split_at_checked(headers.ip_bytes) else { return false };
    let is_transport_right = || {
        let addresses = ip.get(headers.addresses()).unwrap_or_default();
        let pseudo = pseudo_header(addresses, headers.protocol(), transport.len());
        pseudo.plus(Sum::of(transport)).is_right()
    };
    (headers.is_ipv6 || Sum::of(ip).is_right()) && (is_open || is_transport_right())
}
