//! A node of the mesh against a neighbour that has a key and a session, and seals and sends whatever
//! it likes: control messages, messages between routers, frames, packets; on any way.
//!
//! The node's host gets only packets that the neighbour's session carried, from the neighbour's own
//! address to the node's, and that a rule lets in; what the node holds in memory stays bounded.

use std::net::{Ipv6Addr, SocketAddr};

use mesh_node::core::{Core, Outside, Resolved};
use mesh_router::Router;
use net_vdev::endpoint::{EVENTS_MAX, Endpoint, Path, Strangers, TRANSMITS_MAX};
use net_vdev::offload::{Accepts, Layout, PACKET_BYTES_MAX, Segmenter, VirtioNetHeader};
use net_vdev::session::handshake::{Accepted, Keys, Offer, Pending, Timestamp, initiate, receive};
use net_vdev::session::{CipherSupport, PostQuantum, Session};
use net_vdev::wire::{
    self, DATA_HEADER_BYTES, Datagram, HOP_LIMIT, MacKey, RelayHeader, TAG_BYTES,
};
use net_vdev::{Config, PrivateKey, Protocol, PublicKey, Rule};

use crate::bytes::Input;

const UNIX_NS: u64 = 1_800_000_000_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;
const ALL: CipherSupport = CipherSupport { aes_256_gcm: true };
const NODE: u8 = 1;
const NEIGHBOUR: u8 = 2;
/// The index that the neighbour gives its sessions.
const INDEX: u32 = 77;

fn key(number: u8) -> PrivateKey {
    PrivateKey::new([number; 32])
}

fn place(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 7400))
}

/// What the node sent, and gave its host.
#[derive(Default)]
struct Wire {
    sent: Vec<Vec<u8>>,
    delivered: Vec<Vec<u8>>,
    /// Whether a packet came whose checksum is open.
    is_open: bool,
}

impl Outside for Wire {
    fn send(&mut self, _to: SocketAddr, datagrams: &[u8], stride: usize) {
        self.sent.extend(datagrams.chunks(stride).map(<[u8]>::to_vec));
    }

    fn send_stream(&mut self, _number: u32, _datagrams: &[u8], _stride: usize) {
        panic!("nobody named a stream");
    }

    fn deliver(&mut self, header: &VirtioNetHeader, packet: &[u8]) {
        // What the kernel is told to do with a packet can be done with it.
        let layout = Layout { headroom: 0, tailroom: 0, packet_bytes_max: PACKET_BYTES_MAX };
        let outcome = Segmenter::new(header, packet, layout);
        assert!(outcome.is_ok(), "{outcome:?}: {header:?} {packet:02x?}");
        self.is_open |= header.checksum.is_some();
        self.delivered.push(packet.to_vec());
    }

    fn here(&mut self, _member: &PublicKey, _other: &PublicKey, _is_here: bool) {
        panic!("nobody is attached");
    }

    fn attached(&mut self, _member: &PublicKey, _frames: &[u8], _stride: usize) {
        panic!("nobody is attached");
    }

    fn resolved(&mut self, _member: &PublicKey, _address: &Ipv6Addr, _whose: Resolved<'_>) {
        panic!("nobody is attached");
    }
}

struct World {
    now_ns: u64,
    core: Core,
    wire: Wire,
    session: Option<Session>,
    pending: Option<Pending>,
    initiations: u64,
    /// Whether its session takes open checksums.
    open_checksums: bool,
}

impl World {
    fn new() -> Self {
        let (node, neighbour) = (key(NODE), key(NEIGHBOUR).public());
        let rule = |protocol| Rule { who: neighbour.into(), protocol, port: Some(7) };
        let config = Config {
            rules: vec![rule(Protocol::Udp), rule(Protocol::Tcp)],
            strangers: Strangers::Welcome { at_most: 4 },
            is_routed: true,
            ..Config::new(node.clone(), UNIX_NS)
        };
        let endpoint = match Endpoint::new(config, [3; 32]) {
            Ok(endpoint) => endpoint,
            Err(error) => panic!("the configuration was chosen to be right: {error}"),
        };
        let mut routing = mesh_router::Config::new(node.public(), 0);
        routing.unix_time_at_zero_ns = UNIX_NS;
        // Signatures have a target of their own, and none of the neighbour's inputs would have one.
        routing.verify = |_, _, signature| signature.first() != Some(&0xff);
        let accepts = Accepts { tcp_v4: true, tcp_v6: true, udp: true };
        let core = Core::new(endpoint, Router::new(routing, 4), accepts);
        let wire = Wire::default();
        let now_ns = SECOND_NS;
        Self {
            now_ns,
            core,
            wire,
            session: None,
            pending: None,
            initiations: 0,
            open_checksums: true,
        }
    }

    fn give(&mut self, from: Path, mut datagrams: Vec<u8>, stride: usize) {
        self.core.receive(self.now_ns, from, &mut datagrams, stride, &mut self.wire);
        self.settle();
    }

    /// Lets the node do what is due, and the neighbour take what it needs for its session.
    fn settle(&mut self) {
        self.core.finish_turn(self.now_ns, &mut self.wire);
        for datagram in std::mem::take(&mut self.wire.sent) {
            self.neighbour_hears(&datagram);
        }
    }

    fn neighbour_hears(&mut self, datagram: &[u8]) {
        match wire::parse(datagram) {
            Ok(Datagram::Response { receiver: INDEX, ciphertext, handshake }) => {
                let keys = self.pending.as_mut().map(|it| it.finish(ciphertext, handshake.noise));
                if let Some(Ok(keys)) = keys {
                    self.take_up(&keys);
                    self.pending = None;
                }
            }
            Ok(Datagram::Initiation(handshake)) => {
                let Ok(received) = receive(&key(NEIGHBOUR), handshake.noise, [6; 32]) else {
                    return;
                };
                let to = received.offer.index;
                let accepted = received.accept(ALL, PostQuantum::Upgrade, INDEX);
                let Ok(Accepted { ciphertext, message, keys }) = accepted else { return };
                self.take_up(&keys);
                let mac = MacKey::of(&key(NODE).public());
                let mut response = Vec::new();
                wire::write_response(&mut response, to, ciphertext.as_deref(), &message, &mac);
                let stride = response.len();
                let from = Path::Direct(place(NEIGHBOUR));
                self.core.receive(self.now_ns, from, &mut response, stride, &mut self.wire);
            }
            _ => {}
        }
    }

    fn take_up(&mut self, keys: &Keys) {
        self.session = Session::new(keys, INDEX, self.now_ns);
        self.open_checksums = keys.open_checksums;
    }

    /// The neighbour starts a session, as an honest one does that takes open checksums or not.
    fn connect(&mut self, open_checksums: bool) {
        self.initiations += 1;
        let timestamp = Timestamp::from_unix_ns(UNIX_NS + self.now_ns + self.initiations);
        let offer = Offer { ciphers: ALL, open_checksums, index: INDEX, timestamp };
        let to = key(NODE).public();
        let started = initiate(&key(NEIGHBOUR), &to, offer, PostQuantum::Upgrade, [5; 32]);
        let Ok((pending, message)) = started else { panic!("the keys are good") };
        self.pending = Some(pending);
        let mut datagram = Vec::new();
        wire::write_initiation(&mut datagram, &message, &MacKey::of(&to));
        let stride = datagram.len();
        self.give(Path::Direct(place(NEIGHBOUR)), datagram, stride);
        self.say(Path::Direct(place(NEIGHBOUR)), &[]);
    }

    /// The neighbour seals these bytes, and sends them on this way.
    fn say(&mut self, from: Path, content: &[u8]) {
        let Some(session) = self.session.as_mut() else { return };
        let mut datagram = vec![0; DATA_HEADER_BYTES];
        datagram.extend_from_slice(content);
        datagram.resize(datagram.len() + TAG_BYTES, 0);
        if !session.seal(&mut datagram) || datagram.len() > wire::DATAGRAM_BYTES_MAX {
            return;
        }
        let stride = datagram.len();
        self.give(from, datagram, stride);
    }

    /// The neighbour seals a packet of its own that says that its checksum is open, after a change.
    fn say_open(&mut self, input: &mut Input<'_>) {
        let (from, to) = (key(NEIGHBOUR).public().address(), key(NODE).public().address());
        let mut packet = udp_packet(from, to, 7);
        if input.byte() & 1 == 1 {
            // A segment of the same length and no payload.
            packet.truncate(44);
            packet.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
            packet.iter_mut().skip(5).take(2).zip([20, 6]).for_each(|(to, from)| *to = from);
        }
        packet.iter_mut().take(1).for_each(|first| *first |= wire::OPEN_CHECKSUM);
        let (at, mask) = (usize::from(input.byte()), input.byte());
        let at = at % packet.len();
        packet.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
        packet.truncate(packet.len().saturating_sub(usize::from(input.byte())));
        self.wire.is_open = false;
        self.say(Path::Direct(place(NEIGHBOUR)), &packet);
        assert!(!self.wire.is_open || self.open_checksums, "open, and nobody agreed on that");
    }

    /// The neighbour sends a frame with this header's fields, and these bytes inside.
    fn frame(&mut self, input: &mut Input<'_>) {
        let addresses = [NODE, NEIGHBOUR, 9].map(|number| key(number).public().address());
        let pick = |byte: u8| addresses[usize::from(byte) % addresses.len()];
        let header = RelayHeader {
            hop_limit: input.byte() % (HOP_LIMIT + 1),
            is_alternate: input.byte() & 1 == 1,
            receiver: 0,
            counter: 0,
            destination: pick(input.byte()),
            source: pick(input.byte()),
        };
        let Some(session) = self.session.as_mut() else { return };
        let mut bytes = header.to_bytes();
        if !session.seal_hop(&mut bytes) {
            return;
        }
        let mut frame = bytes.to_vec();
        let len = usize::from(input.byte());
        frame.extend_from_slice(input.bytes(len));
        let stride = frame.len();
        self.give(Path::Direct(place(NEIGHBOUR)), frame, stride);
    }
}

/// Runs a list of actions: a byte that names one (modulo 10), then what it needs.
///
/// 0. the neighbour starts a session
/// 1. it says bytes on the direct way: length (1), the bytes
/// 2. it says them through a router: length (1), the bytes
/// 3. it sends a frame: hop limit, flags, destination, source, length (1 each), the bytes
/// 4. somebody sends bytes: length (1), the bytes
/// 5. the clock goes on: tenths of a second (1)
/// 6. the node's host sends a packet to the neighbour
/// 7. the neighbour says a packet of its own to the open port
/// 8. it says one and that its checksum is open, changed: which (1), where (1), exclusive-or with (1),
///    bytes cut off (1)
/// 9. it starts a session in which checksums don't stay open
///
/// True if a packet of the neighbour reached the node's host.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let mut world = World::new();
    input.actions(|input| {
        act(&mut world, input);
        hold(&world);
    });
    let own = key(NODE).public().address().octets();
    let neighbour = key(NEIGHBOUR).public().address().octets();
    for packet in &world.wire.delivered {
        assert_eq!(packet.get(8..24), Some(neighbour.as_slice()), "another source");
        assert_eq!(packet.get(24..40), Some(own.as_slice()), "another destination");
    }
    !world.wire.delivered.is_empty()
}

fn act(world: &mut World, input: &mut Input<'_>) {
    let neighbour = key(NEIGHBOUR).public().address();
    let relayed = Path::Relayed { member: neighbour, is_alternate: false };
    match input.byte() % 10 {
        0 => world.connect(true),
        9 => world.connect(false),
        8 => world.say_open(input),
        kind @ (1 | 2) => {
            let len = usize::from(input.byte());
            let from = if kind == 1 { Path::Direct(place(NEIGHBOUR)) } else { relayed };
            let content = input.bytes(len);
            world.say(from, content);
        }
        3 => world.frame(input),
        4 => {
            let len = usize::from(input.byte());
            let bytes = input.bytes(len).to_vec();
            world.give(Path::Direct(place(9)), bytes, len.max(1));
        }
        5 => {
            world.now_ns += u64::from(input.byte()) * SECOND_NS / 10;
            world.settle();
        }
        6 => {
            let packet = udp_packet(key(NODE).public().address(), neighbour, 9);
            world.core.send(world.now_ns, &VirtioNetHeader::default(), &packet);
            world.settle();
        }
        _ => {
            let packet = udp_packet(neighbour, key(NODE).public().address(), 7);
            world.say(Path::Direct(place(NEIGHBOUR)), &packet);
        }
    }
}

/// What the node holds is bounded whatever happened.
fn hold(world: &World) {
    let held = world.core.endpoint().occupancy();
    assert!(held.peers <= 4 && held.indices <= 4 * held.peers.max(1), "{held:?}");
    assert!(held.timers <= held.peers && held.waiting <= 12 * 4 + 256, "{held:?}");
    assert!(held.transmits <= TRANSMITS_MAX && held.events <= EVENTS_MAX, "{held:?}");
    assert!(world.core.router().neighbours().count() <= 4, "links to members without a session");
}

/// An IPv6 packet with an empty UDP datagram. Its checksum is the hosts' business.
fn udp_packet(from: Ipv6Addr, to: Ipv6Addr, port: u8) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&[0x30, 0, 0, port, 0, 8, 0, 0]);
    packet
}
