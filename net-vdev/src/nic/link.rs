//! The Ethernet link between the guest and the router that it sees: frames on one side, packets of
//! the mesh on the other. No queue, no socket.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::neighbour::{Discovery, answer_arp, discover};
use super::{HEADERS_BYTES, NicCounters, VIRTIO_HEADER_BYTES};
use crate::endpoint::{Endpoint, Path};
use crate::identity::PublicKey;
use crate::wire::MTU;

/// The MAC address of the router that the guest sees: `02` and "Hypha".
pub const ROUTER_MAC: [u8; 6] = [0x02, 0x48, 0x79, 0x70, 0x68, 0x61];

/// How many frames wait for receive buffers of the guest at most.
pub const BACKLOG_MAX: usize = 64;

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
    backlog: VecDeque<Inbound>,
    /// What was dropped on the link and, by its owner, at queues and socket.
    pub(super) counters: NicCounters,
}

/// A frame for the guest: from the router, to the card.
struct Inbound {
    ethertype: [u8; 2],
    payload: Vec<u8>,
}

impl Link {
    /// The link of the card of `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            mac: mac_of(&endpoint.key()),
            endpoint,
            backlog: VecDeque::new(),
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
        match classify(bytes) {
            Some((ETHERTYPE_ARP, request)) => {
                let own = self.endpoint.addresses();
                let reply = answer_arp(request, |it| own.contains(&IpAddr::V4(it)));
                self.answer(ETHERTYPE_ARP, reply);
            }
            Some((ETHERTYPE_IPV6, packet)) => {
                let own = self.endpoint.addresses();
                match discover(packet, |it| own.contains(&IpAddr::V6(it))) {
                    Discovery::Elsewhere => self.endpoint.send_packet(now_ns, packet),
                    Discovery::Answer(reply) => self.answer(ETHERTYPE_IPV6, Some(reply)),
                    Discovery::Silence => self.answer(ETHERTYPE_IPV6, None),
                }
            }
            Some((_, packet)) => self.endpoint.send_packet(now_ns, packet),
            None => self.counters.frames_odd += 1,
        }
    }

    /// Takes a datagram of the network; what it has for the guest waits in the backlog.
    pub fn receive(&mut self, now_ns: u64, from: Path, datagram: &mut [u8]) {
        let (backlog, counters) = (&mut self.backlog, &mut self.counters);
        self.endpoint.receive(now_ns, from, datagram, &mut |packet| {
            let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
            let ethertype = if is_ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
            queue(backlog, counters, Inbound { ethertype, payload: packet.to_vec() });
        });
    }

    /// The oldest frame for the guest: its virtio and Ethernet headers, and what is behind them.
    #[must_use]
    pub fn front(&self) -> Option<([u8; HEADERS_BYTES], &[u8])> {
        let frame = self.backlog.front()?;
        let mut headers = [0; HEADERS_BYTES];
        let ethernet = self.mac.into_iter().chain(ROUTER_MAC).chain(frame.ethertype);
        let fields = VIRTIO_HEADER.into_iter().chain(ethernet);
        headers.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        Some((headers, &frame.payload))
    }

    /// Forgets the oldest frame for the guest.
    pub fn pop(&mut self) {
        self.backlog.pop_front();
    }

    fn answer(&mut self, ethertype: [u8; 2], reply: Option<Vec<u8>>) {
        match reply {
            Some(payload) => {
                queue(&mut self.backlog, &mut self.counters, Inbound { ethertype, payload });
            }
            None => self.counters.discoveries_ignored += 1,
        }
    }
}

/// Keeps a frame for the guest if there is room.
fn queue(backlog: &mut VecDeque<Inbound>, counters: &mut NicCounters, frame: Inbound) {
    if backlog.len() < BACKLOG_MAX {
        backlog.push_back(frame);
    } else {
        counters.backlog_full += 1;
    }
}

/// The EtherType and payload of a frame behind its virtio header; `None` for an odd one: an offload
/// that was not offered, too short, too long, or of another type than it says.
fn classify(bytes: &[u8]) -> Option<([u8; 2], &[u8])> {
    let (virtio, frame) = bytes.split_first_chunk::<VIRTIO_HEADER_BYTES>()?;
    let [flags, segmentation, ..] = *virtio;
    let (ethernet, payload) = frame.split_first_chunk::<14>()?;
    let ethertype = *ethernet.last_chunk::<2>()?;
    let version = payload.first()? >> 4;
    let is_known = match ethertype {
        ETHERTYPE_IPV4 => version == 4,
        ETHERTYPE_IPV6 => version == 6,
        ETHERTYPE_ARP => true,
        _ => false,
    };
    let is_plain = flags == 0 && segmentation == 0 && payload.len() <= MTU;
    (is_known && is_plain).then_some((ethertype, payload))
}

/// A locally administered address (IEEE 802 §8.4) that follows from the member's key.
fn mac_of(key: &PublicKey) -> [u8; 6] {
    let [a, b, c, d, e, ..] =
        blake3::derive_key("Hypha mesh 1: MAC address of a member's card", &key.0);
    [0x02, a, b, c, d, e]
}
