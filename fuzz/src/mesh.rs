//! A member of the mesh against anybody on the network and against its own guest.
//!
//! An honest peer and the member under test share a session over a network that the input
//! controls: it delivers, changes, repeats, delays and invents datagrams, and moves the clock. The
//! member's own guest sends any frames. Whatever happens, a packet that reaches the guest was sent
//! by the peer, unchanged, and arrives no more often than it was sent. The peer also tries what it
//! may not: a source that is not its own, and a port that no rule opens.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use net_vdev::endpoint::{Config, Endpoint, Path, Peer, Transmit};
use net_vdev::firewall::{Packet, Protocol, Rule, Transport};
use net_vdev::identity::PrivateKey;
use net_vdev::nic::{Link, Outgoing};
use net_vdev::offload::{
    ChecksumField, Segmentation, SegmentationKind, VirtioNetHeader, each_packet,
};
use net_vdev::wire::MTU;

use crate::bytes::Input;

/// How many datagrams the network remembers.
const REMEMBERED: usize = 64;

fn config(own: u8, peer: u8, rules: Vec<Rule>) -> Config {
    let key = |number: u8| PrivateKey::new([number; 32]);
    Config {
        peers: vec![Peer {
            key: key(peer).public(),
            endpoint: Some(address(peer)),
            addresses: Vec::new(),
        }],
        rules,
        ..Config::new(key(own), 1_700_000_000_000_000_000)
    }
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 1000 + u16::from(number)))
}

const MEMBER: u8 = 1;
const PEER: u8 = 2;

/// An address that the peer takes for its own, and the member's configuration does not.
const FALSE_SOURCE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
const OPEN_PORT: u16 = 7;
const CLOSED_PORT: u16 = 9;

struct World {
    now_ns: u64,
    member: Link,
    peer: Endpoint,
    /// Datagrams on the wire: to the member (true) or to the peer.
    wire: Vec<(bool, Vec<u8>)>,
    /// How often the peer sent a packet, less how often it arrived.
    owed: BTreeMap<Vec<u8>, u32>,
    sent: u8,
    arrived: bool,
    /// Whether the guest may have opened a flow to the peer, which lets answers in.
    guest_spoke: bool,
}

impl World {
    fn new() -> Self {
        let rule = Rule {
            who: PrivateKey::new([PEER; 32]).public().into(),
            protocol: Protocol::Udp,
            port: Some(OPEN_PORT),
        };
        let make = |config, seed| match Endpoint::new(config, [seed; 32]) {
            Ok(endpoint) => endpoint,
            Err(error) => panic!("the configuration was chosen to be right: {error}"),
        };
        let mut peer = config(PEER, MEMBER, Vec::new());
        peer.addresses.push(FALSE_SOURCE.into());
        Self {
            now_ns: 1_000_000_000,
            member: Link::new(make(config(MEMBER, PEER, vec![rule]), 3)),
            peer: make(peer, 4),
            wire: Vec::new(),
            owed: BTreeMap::new(),
            sent: 0,
            arrived: false,
            guest_spoke: false,
        }
    }

    /// The peer sends a UDP packet, each time another one; the member's guest is to get it only if
    /// `source` and `port` are what the member's configuration says.
    fn peer_sends(&mut self, source: Ipv6Addr, port: u16, len: u8) {
        self.sent = self.sent.wrapping_add(1);
        let to = self.member.endpoint.key().address();
        let mut payload = vec![self.sent; 1 + usize::from(len)];
        payload.extend_from_slice(&self.now_ns.to_be_bytes());
        let packet = udp_packet((source.octets(), to.octets()), (40_000, port), &payload);
        if source == self.peer.key().address() && (port == OPEN_PORT || self.guest_spoke) {
            *self.owed.entry(packet.clone()).or_default() += 1;
        }
        self.peer.send_packet(self.now_ns, &packet);
    }

    /// The peer sends a super-frame of datagrams to the open port. Their checksums stay open on the way,
    /// and the card computes them for its guest.
    fn peer_sends_many(&mut self, count: u8, len: u8) {
        self.sent = self.sent.wrapping_add(1);
        let (from, to) = (self.peer.key().address(), self.member.endpoint.key().address());
        let (count, payload_bytes) = (2 + count % 8, 9 + u16::from(len));
        let mut payload = vec![self.sent; usize::from(count) * usize::from(payload_bytes)];
        for (number, part) in (0..).zip(payload.chunks_mut(payload_bytes.into())) {
            let own = [number].into_iter().chain(self.now_ns.to_be_bytes());
            part.iter_mut().zip(own).for_each(|(to, from)| *to = from);
        }
        let frame = udp_packet((from.octets(), to.octets()), (40_000, OPEN_PORT), &payload);
        let header = VirtioNetHeader {
            checksum: Some(ChecksumField { start: 40, offset: 6 }),
            segmentation: Some(Segmentation {
                kind: SegmentationKind::Udp,
                ecn: false,
                payload_bytes,
                headers_bytes: 48,
            }),
        };
        each_packet(&header, &frame, MTU, &mut Vec::new(), |packet| {
            *self.owed.entry(packet.to_vec()).or_default() += 1;
        });
        self.peer.send_frame(self.now_ns, &header, &frame);
    }

    /// Moves what both sides have to say onto the wire, and takes what reached the guest.
    fn collect(&mut self) {
        while let Some(Transmit { bytes, .. }) = self.member.endpoint.poll_transmit() {
            self.wire.push((false, bytes));
        }
        while let Some(Transmit { bytes, stride, .. }) = self.peer.poll_transmit() {
            self.wire.extend(bytes.chunks(stride.max(1)).map(|it| (true, it.to_vec())));
        }
        let surplus = self.wire.len().saturating_sub(REMEMBERED);
        self.wire.drain(..surplus);
        while let Some(Outgoing { headers, payload: packet }) = self.member.take(self.now_ns) {
            assert!(headers.len() + packet.len() <= 1426, "longer than the card's MTU");
            // The link itself answers the guest's questions about neighbours.
            if Packet::parse(&packet).is_ok_and(|packet| self.is_from_peer(&packet)) {
                let owed = self.owed.get_mut(&packet).filter(|count| **count > 0);
                match owed {
                    Some(count) => {
                        *count -= 1;
                        self.arrived = true;
                    }
                    None => panic!("the peer did not send (so often) {packet:02x?}"),
                }
            }
        }
    }

    fn is_from_peer(&self, packet: &Packet) -> bool {
        let is_udp = matches!(packet.transport, Transport::Udp { .. });
        is_udp && [self.peer.key().address(), FALSE_SOURCE].map(IpAddr::V6).contains(&packet.source)
    }

    fn deliver(&mut self, to_member: bool, from: SocketAddr, mut datagram: Vec<u8>) {
        let stride = datagram.len();
        if to_member {
            self.member.receive(self.now_ns, Path::Direct(from), &mut datagram, stride);
        } else {
            let ignore = &mut |_: &VirtioNetHeader, _: &[u8]| {};
            self.peer.receive(self.now_ns, Path::Direct(from), &mut datagram, stride, ignore);
        }
    }

    /// The network delivers the datagram at this place of its memory, as it is.
    fn deliver_remembered(&mut self, index: u8) {
        if let Some((to_member, datagram)) = self.pick(index) {
            let from = address(if to_member { PEER } else { MEMBER });
            self.deliver(to_member, from, datagram);
        }
    }

    fn pick(&self, index: u8) -> Option<(bool, Vec<u8>)> {
        let index = usize::from(index) % self.wire.len().max(1);
        self.wire.get(index).cloned()
    }
}

/// An IPv6 packet with a UDP datagram. Its checksum is the guests' business.
fn udp_packet(addresses: ([u8; 16], [u8; 16]), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&len);
    packet.extend_from_slice(&[17, 64]);
    packet.extend_from_slice(&addresses.0);
    packet.extend_from_slice(&addresses.1);
    packet.extend_from_slice(&ports.0.to_be_bytes());
    packet.extend_from_slice(&ports.1.to_be_bytes());
    packet.extend_from_slice(&len);
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    packet
}

/// Runs a list of actions: a byte that names one (modulo 11), then what it needs.
///
/// 0. the peer sends a packet: length (1)
/// 1. deliver a remembered datagram as it is: which (1)
/// 2. deliver it changed: which (1), where (2), exclusive-or with (1)
/// 3. deliver it cut: which (1), length (2)
/// 4. deliver bytes to the member: from (1), length (1), the bytes
/// 5. the clock goes on: seconds (1)
/// 6. the member's guest sends a frame: length (1), the bytes
/// 7. deliver all that is new, in order, as an honest network does
/// 8. the peer sends from an address that is not its own: length (1)
/// 9. the peer sends to a port that no rule opens: length (1)
/// 10. the peer sends a super-frame of datagrams: how many (1), length of each (1)
///
/// True if a packet of the peer arrived.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let mut world = World::new();
    input.actions(|input| {
        act(&mut world, input);
        world.collect();
    });
    world.arrived
}

fn act(world: &mut World, input: &mut Input<'_>) {
    let peer = world.peer.key().address();
    match input.byte() % 11 {
        10 => world.peer_sends_many(input.byte(), input.byte()),
        0 => world.peer_sends(peer, OPEN_PORT, input.byte()),
        8 => world.peer_sends(FALSE_SOURCE, OPEN_PORT, input.byte()),
        9 => world.peer_sends(peer, CLOSED_PORT, input.byte()),
        1 => world.deliver_remembered(input.byte()),
        2 => {
            let picked = world.pick(input.byte());
            let (at, mask) = (usize::from(input.u16()), input.byte());
            if let Some((to_member, mut datagram)) = picked {
                let at = at % datagram.len().max(1);
                datagram.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
                world.deliver(to_member, address(9), datagram);
            }
        }
        3 => {
            let picked = world.pick(input.byte());
            let len = usize::from(input.u16());
            if let Some((to_member, mut datagram)) = picked {
                datagram.truncate(len);
                world.deliver(to_member, address(PEER), datagram);
            }
        }
        4 => {
            let from = address(input.byte());
            let len = usize::from(input.byte());
            let datagram = input.bytes(len).to_vec();
            world.deliver(true, from, datagram);
        }
        5 => {
            world.now_ns += u64::from(input.byte()) * 1_000_000_000;
            world.member.endpoint.handle_deadline(world.now_ns);
            world.peer.handle_deadline(world.now_ns);
        }
        6 => {
            let len = usize::from(input.byte());
            let frame = input.bytes(len).to_vec();
            world.guest_spoke |= frame.windows(16).any(|bytes| *bytes == peer.octets());
            world.member.send(world.now_ns, &frame);
        }
        _ => {
            // A handshake and what waited for it need three rounds.
            for _ in 0..3 {
                let new = world.wire.split_off(0);
                for (to_member, datagram) in new {
                    let from = address(if to_member { PEER } else { MEMBER });
                    world.deliver(to_member, from, datagram.clone());
                }
                world.collect();
            }
        }
    }
}
