//! The Ethernet link between the guest and the router that it sees: frames on one side, packets of
//! the mesh on the other. No queue, no socket.

use std::net::IpAddr;

use super::ipv4::{Ipv4, Leaving};
use super::neighbour::{Discovery, answer_arp, discover};
use super::{ETHERNET_BYTES, HEADERS_BYTES, NicCounters, VIRTIO_HEADER_BYTES};
use crate::codel::{Popped, Queue};
use crate::endpoint::{Endpoint, OddMessage, Path};
use crate::identity::PublicKey;
use crate::offload::{
    Accepts, Coalescer, PACKET_BYTES_MAX, Segmentation, SegmentationKind, VirtioNetHeader,
    each_packet,
};
use crate::wire::MTU;

/// The MAC address of the router that the guest sees: `02` and "Hypha".
pub const ROUTER_MAC: [u8; 6] = [0x02, 0x48, 0x79, 0x70, 0x68, 0x61];

/// How many frames wait for receive buffers of the guest at most: some batches of the socket.
pub const BACKLOG_MAX: usize = 256;

/// Where `num_buffers` is in the virtio header.
const BUFFER_COUNT_AT: usize = 10;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// The link of one card.
pub struct Link {
    /// The card's member of the mesh.
    pub endpoint: Endpoint,
    mac: [u8; 6],
    ipv4: Ipv4,
    inbox: Inbox,
    /// What was dropped on the link and, by its owner, at queues and socket.
    pub(super) counters: NicCounters,
}

/// A frame for the guest: from the router, to the card.
struct Inbound {
    header: VirtioNetHeader,
    ethertype: [u8; 2],
    payload: Vec<u8>,
}

/// A frame as it lies in the guest's buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Its virtio and Ethernet headers.
    pub headers: [u8; HEADERS_BYTES],
    /// What is behind them.
    pub payload: Vec<u8>,
}

impl Outgoing {
    /// Says how many buffers it takes (`num_buffers`, virtio 1.2 §5.1.6.4); it says 1 by itself.
    pub(super) fn set_buffer_count(&mut self, count: usize) {
        let count = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
        let place = self.headers.get_mut(BUFFER_COUNT_AT..BUFFER_COUNT_AT + 2);
        place.into_iter().for_each(|place| place.copy_from_slice(&count));
    }
}

impl Inbound {
    fn of(header: &VirtioNetHeader, packet: &[u8]) -> Self {
        let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
        let ethertype = if is_ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        Self { header: *header, ethertype, payload: packet.to_vec() }
    }
}

/// Puts what came in into the order and shape that the guest takes.
struct Inbox {
    /// Counted in frames.
    backlog: Queue<Inbound>,
    accepts: Accepts,
    /// Merges packets for a guest that takes super-frames.
    merger: Option<Box<Coalescer>>,
    /// Room for what is cut from a super-frame.
    cut: Vec<u8>,
}

impl Inbox {
    /// Takes a packet or super-frame that was let in.
    fn take(
        &mut self,
        now_ns: u64,
        counters: &mut NicCounters,
        ipv4: &Ipv4,
        (header, packet): (&VirtioNetHeader, &[u8]),
    ) {
        if header.segmentation.is_some_and(|cut| self.takes_whole(&cut)) {
            self.flush(now_ns, counters);
            return queue(now_ns, &mut self.backlog, counters, Inbound::of(header, packet));
        }
        let Self { backlog, merger, cut, .. } = self;
        if let Some(merger) = merger
            && header.segmentation.is_none()
            && !ipv4.takes(packet)
        {
            // Its driver takes open checksums.
            return merger.push(header, packet, &mut |header, packet| {
                queue(now_ns, backlog, counters, Inbound::of(header, packet));
            });
        }
        each_packet(header, packet, MTU, cut, |packet| {
            let translated = ipv4.arrive(packet);
            let packet = translated.as_deref().unwrap_or(packet);
            let mut keep = |header: &VirtioNetHeader, packet: &[u8]| {
                queue(now_ns, backlog, counters, Inbound::of(header, packet));
            };
            match merger {
                Some(merger) => merger.push(&VirtioNetHeader::default(), packet, &mut keep),
                None => keep(&VirtioNetHeader::default(), packet),
            }
        });
    }

    /// GUEST_ECN is not offered: a super-frame of a neighbour that says how CWR is to be cut goes in
    /// packets (virtio 1.2 §5.1.6.4.1).
    fn takes_whole(&self, segmentation: &Segmentation) -> bool {
        let takes_kind = match segmentation.kind {
            SegmentationKind::TcpV4 => self.accepts.tcp_v4,
            SegmentationKind::TcpV6 => self.accepts.tcp_v6,
            SegmentationKind::Udp => self.accepts.udp,
        };
        takes_kind && !segmentation.ecn
    }

    /// Passes on what was merged so far.
    fn flush(&mut self, now_ns: u64, counters: &mut NicCounters) {
        let Self { backlog, merger: Some(merger), .. } = self else { return };
        merger.flush(&mut |header, packet| {
            queue(now_ns, backlog, counters, Inbound::of(header, packet));
        });
    }
}

impl Link {
    /// The link of the card of `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            mac: mac_of(&endpoint.key()),
            endpoint,
            ipv4: Ipv4::new(),
            inbox: Inbox {
                backlog: Queue::new(BACKLOG_MAX, 1),
                accepts: Accepts::default(),
                merger: None,
                cut: Vec::new(),
            },
            counters: NicCounters::default(),
        }
    }

    /// The card's MAC address, which follows from its member's key.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Takes a frame of the guest, behind its virtio header.
    pub fn send(&mut self, now_ns: u64, bytes: &[u8]) {
        let classified = classify(bytes);
        if let Some((header, ETHERTYPE_IPV4 | ETHERTYPE_IPV6, packet)) = &classified {
            match self.ipv4.leave(&self.endpoint, header, packet) {
                Leaving::AsItIs => {}
                Leaving::As(header, packet) => {
                    return self.endpoint.send_frame(now_ns, &header, packet);
                }
                Leaving::Here(reply) => return self.answer(now_ns, ETHERTYPE_IPV4, reply),
            }
        }
        match classified {
            // What has an offload is TCP or UDP, or refused.
            Some((header, ETHERTYPE_IPV4 | ETHERTYPE_IPV6, packet))
                if header != VirtioNetHeader::default() =>
            {
                self.endpoint.send_frame(now_ns, &header, packet);
            }
            Some((_, ETHERTYPE_ARP, request)) => {
                let own = self.endpoint.addresses();
                let reply = answer_arp(request, |it| own.contains(&IpAddr::V4(it)));
                self.answer(now_ns, ETHERTYPE_ARP, reply);
            }
            Some((_, ETHERTYPE_IPV6, packet)) => {
                let own = self.endpoint.addresses();
                match discover(packet, |it| own.contains(&IpAddr::V6(it))) {
                    Discovery::Elsewhere => self.endpoint.send_packet(now_ns, packet),
                    Discovery::Answer(reply) => self.answer(now_ns, ETHERTYPE_IPV6, Some(reply)),
                    Discovery::Silence => self.answer(now_ns, ETHERTYPE_IPV6, None),
                }
            }
            Some((_, _, packet)) => self.endpoint.send_packet(now_ns, packet),
            None => self.counters.frames_odd += 1,
        }
    }

    /// The guest takes such super-frames from now on.
    pub(super) fn set_accepts(&mut self, accepts: Accepts) {
        self.inbox.accepts = accepts;
        let merges = accepts != Accepts::default();
        self.inbox.merger = merges.then(|| Box::new(Coalescer::new(accepts)));
    }

    /// Takes datagrams of the network, of `stride` bytes each but the last; what they have for the
    /// guest waits, the last of it until [`Link::flush_merged`].
    pub fn receive(&mut self, now_ns: u64, from: Path, batch: &mut [u8], stride: usize) {
        let (inbox, counters, ipv4) = (&mut self.inbox, &mut self.counters, &self.ipv4);
        self.endpoint.receive(now_ns, from, batch, stride, &mut |header, packet| {
            inbox.take(now_ns, counters, ipv4, (header, packet));
        });
    }

    /// Takes a message of the router that the card is attached to, as [`Link::receive`] does. The
    /// message to answer with, if any.
    pub(super) fn receive_from_router(
        &mut self,
        now_ns: u64,
        message: &mut [u8],
        port: Option<u16>,
    ) -> Result<Option<Vec<u8>>, OddMessage> {
        let (inbox, counters, ipv4) = (&mut self.inbox, &mut self.counters, &self.ipv4);
        self.endpoint.receive_from_router(now_ns, message, port, &mut |header, packet| {
            inbox.take(now_ns, counters, ipv4, (header, packet));
        })
    }

    /// Nothing more comes in together with what was received last.
    pub fn flush_merged(&mut self, now_ns: u64) {
        self.inbox.flush(now_ns, &mut self.counters);
    }

    /// Takes the oldest frame for the guest.
    pub fn take(&mut self, now_ns: u64) -> Option<Outgoing> {
        let frame = loop {
            match self.inbox.backlog.pop(now_ns)? {
                Popped::Due(frame) => break frame,
                Popped::Dropped(_) => self.counters.backlog_stale += 1,
            }
        };
        let virtio = frame.header.with_link(ETHERNET_BYTES as u16).bytes(1);
        let mut headers = [0; HEADERS_BYTES];
        let ethernet = self.mac.into_iter().chain(ROUTER_MAC).chain(frame.ethertype);
        let fields = virtio.into_iter().chain(ethernet);
        headers.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        Some(Outgoing { headers, payload: frame.payload })
    }

    fn answer(&mut self, now_ns: u64, ethertype: [u8; 2], reply: Option<Vec<u8>>) {
        match reply {
            Some(payload) => {
                let frame = Inbound { header: VirtioNetHeader::default(), ethertype, payload };
                queue(now_ns, &mut self.inbox.backlog, &mut self.counters, frame);
            }
            None => self.counters.discoveries_ignored += 1,
        }
    }
}

/// Keeps a frame for the guest if there is room.
fn queue(now_ns: u64, backlog: &mut Queue<Inbound>, counters: &mut NicCounters, frame: Inbound) {
    if backlog.push(now_ns, 1, frame).is_err() {
        counters.backlog_full += 1;
    }
}

/// The header of a frame, for its packet alone, EtherType and packet; `None` for an odd one: an
/// offload that was not offered, too short, too long, or of another type than it says.
fn classify(bytes: &[u8]) -> Option<(VirtioNetHeader, [u8; 2], &[u8])> {
    let (virtio, frame) = bytes.split_first_chunk::<VIRTIO_HEADER_BYTES>()?;
    let header = VirtioNetHeader::parse(virtio.first_chunk()?).ok()?;
    let header = header.without_link(u16::try_from(ETHERNET_BYTES).ok()?).ok()?;
    let (ethernet, payload) = frame.split_first_chunk::<ETHERNET_BYTES>()?;
    let ethertype = *ethernet.last_chunk::<2>()?;
    let version = payload.first()? >> 4;
    let is_known = match ethertype {
        ETHERTYPE_IPV4 => version == 4,
        ETHERTYPE_IPV6 => version == 6,
        ETHERTYPE_ARP => header == VirtioNetHeader::default(),
        _ => false,
    };
    let bytes_max = if header.segmentation.is_some() { PACKET_BYTES_MAX } else { MTU };
    (is_known && payload.len() <= bytes_max).then_some((header, ethertype, payload))
}

/// A locally administered address (IEEE 802 §8.4) that follows from the member's key.
fn mac_of(key: &PublicKey) -> [u8; 6] {
    let [a, b, c, d, e, ..] =
        blake3::derive_key("Hypha mesh 1: MAC address of a member's card", &key.0);
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{ChecksumField, Sum, pseudo_header};

    #[test]
    fn a_super_frame_with_cwr_goes_in_packets_to_a_guest_that_was_not_offered_it() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
        packet.extend_from_slice(&[4; 32]);
        // ACK and CWR.
        packet.extend_from_slice(&[
            0, 9, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x90, 1, 0, 0, 0, 0, 0,
        ]);
        packet.resize(60 + 3000, 7);
        packet[4..6].copy_from_slice(&3020u16.to_be_bytes());
        for (ecn, count) in [(false, 1), (true, 3)] {
            let accepts = Accepts { tcp_v4: true, tcp_v6: true, udp: false };
            let merger = Some(Box::new(Coalescer::new(accepts)));
            let backlog = Queue::new(BACKLOG_MAX, 1);
            let mut inbox = Inbox { backlog, accepts, merger, cut: Vec::new() };
            let (mut counters, ipv4) = (NicCounters::default(), Ipv4::new());
            let segmentation = Segmentation {
                kind: SegmentationKind::TcpV6,
                ecn,
                payload_bytes: 1000,
                headers_bytes: 60,
            };
            let header = VirtioNetHeader {
                checksum: Some(ChecksumField { start: 40, offset: 16 }),
                segmentation: Some(segmentation),
            };
            inbox.take(1, &mut counters, &ipv4, (&header, &packet));
            inbox.flush(1, &mut counters);
            let mut frames = Vec::new();
            while let Some(Popped::Due(frame)) = inbox.backlog.pop(1) {
                frames.push(frame);
            }
            assert!(frames.iter().all(|it| it.header.segmentation.is_none_or(|it| !it.ecn)));
            // CWR is said once, by a packet that is merged with none.
            let has_cwr = |it: &&Inbound| it.payload[53] & 0x80 != 0;
            assert_eq!(frames.iter().filter(has_cwr).count(), 1);
            assert!(frames.len() <= count, "{} frames", frames.len());
            assert_eq!(frames.iter().map(|it| it.payload.len() - 60).sum::<usize>(), 3000);
            let first = &frames[0].payload;
            let sum = pseudo_header(&first[8..40], 6, first.len() - 40).plus(Sum::of(&first[40..]));
            assert_eq!(sum.is_right(), ecn, "whole in a packet, left open in a super-frame");
        }
    }
}
