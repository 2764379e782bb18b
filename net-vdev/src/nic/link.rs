//! The Ethernet link between the guest and the router that it sees: frames on one side, packets of
//! the mesh on the other. No queue, no socket.

use std::net::IpAddr;

use super::ipv4::{Ipv4, Leaving};
use super::neighbour::{Discovery, answer_arp, discover};
use super::{ETHERNET_BYTES, HEADERS_BYTES, NicCounters, VIRTIO_HEADER_BYTES};
use crate::codel::{Popped, Queue};
use crate::endpoint::{Endpoint, OddMessage, Path};
use crate::identity::PublicKey;
use crate::offload::{PACKET_BYTES_MAX, VirtioNetHeader, each_packet};
use crate::wire::MTU;

/// The MAC address of the router that the guest sees: `02` and "Hypha".
pub const ROUTER_MAC: [u8; 6] = [0x02, 0x48, 0x79, 0x70, 0x68, 0x61];

/// How many frames wait for receive buffers of the guest at most: some batches of the socket.
pub const BACKLOG_MAX: usize = 256;

/// No flags, no segmentation, num_buffers = 1 (virtio 1.2 §5.1.6.4).
const VIRTIO_HEADER: [u8; VIRTIO_HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// The link of one card.
pub struct Link {
    /// The card's member of the mesh.
    pub endpoint: Endpoint,
    mac: [u8; 6],
    ipv4: Ipv4,
    /// Counted in frames.
    backlog: Queue<Inbound>,
    /// Room for what is cut from a super-frame.
    cut: Vec<u8>,
    /// What was dropped on the link and, by its owner, at queues and socket.
    pub(super) counters: NicCounters,
}

/// A frame for the guest: from the router, to the card.
struct Inbound {
    ethertype: [u8; 2],
    payload: Vec<u8>,
}

impl Inbound {
    /// A packet as the guest knows it.
    fn of(ipv4: &Ipv4, packet: &[u8]) -> Self {
        let payload = ipv4.arrive(packet).unwrap_or_else(|| packet.to_vec());
        let is_ipv6 = payload.first().is_some_and(|first| first >> 4 == 6);
        let ethertype = if is_ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        Self { ethertype, payload }
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
            backlog: Queue::new(BACKLOG_MAX, 1),
            cut: Vec::new(),
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

    /// Takes a datagram of the network; what it has for the guest waits in the backlog.
    pub fn receive(&mut self, now_ns: u64, from: Path, datagram: &mut [u8]) {
        let (backlog, counters) = (&mut self.backlog, &mut self.counters);
        let ipv4 = &self.ipv4;
        self.endpoint.receive(now_ns, from, datagram, &mut |packet| {
            queue(now_ns, backlog, counters, Inbound::of(ipv4, packet));
        });
    }

    /// Takes the oldest frame for the guest: its virtio and Ethernet headers, and what is behind
    /// them.
    pub fn take(&mut self, now_ns: u64) -> Option<([u8; HEADERS_BYTES], Vec<u8>)> {
        let frame = loop {
            match self.backlog.pop(now_ns)? {
                Popped::Due(frame) => break frame,
                Popped::Dropped(_) => self.counters.backlog_stale += 1,
            }
        };
        let mut headers = [0; HEADERS_BYTES];
        let ethernet = self.mac.into_iter().chain(ROUTER_MAC).chain(frame.ethertype);
        let fields = VIRTIO_HEADER.into_iter().chain(ethernet);
        headers.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        Some((headers, frame.payload))
    }

    /// Takes a message of the router that the card is attached to; what it has for the guest waits in
    /// the backlog, as plain packets. The message to answer with, if any.
    pub(super) fn receive_from_router(
        &mut self,
        now_ns: u64,
        message: &mut [u8],
        port: Option<u16>,
    ) -> Result<Option<Vec<u8>>, OddMessage> {
        let (backlog, counters, cut) = (&mut self.backlog, &mut self.counters, &mut self.cut);
        let ipv4 = &self.ipv4;
        self.endpoint.receive_from_router(now_ns, message, port, &mut |header, packet| {
            each_packet(header, packet, MTU, cut, |packet| {
                queue(now_ns, backlog, counters, Inbound::of(ipv4, packet));
            });
        })
    }

    fn answer(&mut self, now_ns: u64, ethertype: [u8; 2], reply: Option<Vec<u8>>) {
        match reply {
            Some(payload) => {
                let frame = Inbound { ethertype, payload };
                queue(now_ns, &mut self.backlog, &mut self.counters, frame);
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
