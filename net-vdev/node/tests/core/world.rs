//! A network in a box: nodes, a clock, and links that delay, lose, and can be cut in one direction.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::{Ipv6Addr, SocketAddr};

use mesh_node::core::{Core, Outside, Resolved};
use mesh_router::Router;
use net_vdev::announcement::{Announcement, Role, SignedAnnouncement};
use net_vdev::certificate::ALIAS_BYTES;
use net_vdev::endpoint::{Endpoint, Path, Strangers};
use net_vdev::offload::{Accepts, VirtioNetHeader};
use net_vdev::{Config, PrivateKey, Protocol, PublicKey, Rule};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1000 * MS;
/// How long a datagram takes over any link.
pub(crate) const ONE_WAY_NS: u64 = 2 * MS;
pub(crate) const UNIX_NS: u64 = 1_800_000_000 * SECOND;

/// SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        for chunk in seed.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes());
        }
        seed
    }
}

/// What a node sent and delivered in one turn.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) sent: Vec<(SocketAddr, Vec<u8>, usize)>,
    pub(crate) delivered: Vec<(VirtioNetHeader, Vec<u8>)>,
    pub(crate) attached: Vec<(PublicKey, Vec<u8>)>,
    pub(crate) here: Vec<(PublicKey, PublicKey, bool)>,
    pub(crate) resolved: Vec<(PublicKey, Ipv6Addr, Answer)>,
}

/// What an attached member was told about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Key(PublicKey),
    Alias([u8; ALIAS_BYTES]),
    Nobody,
}

impl Outside for Wire {
    fn send(&mut self, to: SocketAddr, datagrams: &[u8], stride: usize) {
        self.sent.push((to, datagrams.to_vec(), stride));
    }

    fn send_stream(&mut self, _number: u32, _datagrams: &[u8], _stride: usize) {
        panic!("there are no streams in this world");
    }

    fn deliver(&mut self, header: &VirtioNetHeader, packet: &[u8]) {
        self.delivered.push((*header, packet.to_vec()));
    }

    fn resolved(&mut self, member: &PublicKey, address: &Ipv6Addr, whose: Resolved<'_>) {
        let answer = match whose {
            Resolved::Key(key) => Answer::Key(*key),
            Resolved::Alias(certificate) => Answer::Alias(*certificate),
            Resolved::Nobody => Answer::Nobody,
        };
        self.resolved.push((*member, *address, answer));
    }

    fn here(&mut self, member: &PublicKey, other: &PublicKey, is_here: bool) {
        self.here.push((*member, *other, is_here));
    }

    fn attached(&mut self, member: &PublicKey, frames: &[u8], stride: usize) {
        for frame in frames.chunks(stride) {
            self.attached.push((*member, frame.to_vec()));
        }
    }
}

pub(crate) struct Node {
    pub(crate) core: Core,
    pub(crate) key: PublicKey,
    pub(crate) wire: Wire,
    /// Batches that went out, as (datagrams, bytes).
    pub(crate) batches: Vec<(usize, usize)>,
}

type Flight = Reverse<(u64, u64, usize, usize, Vec<u8>, usize)>;

pub(crate) struct World {
    pub(crate) now_ns: u64,
    pub(crate) nodes: Vec<Node>,
    /// Pairs that have a wire between them; datagrams between others are lost.
    pub(crate) wires: BTreeSet<(usize, usize)>,
    /// A node that sends no frames on, and else behaves.
    pub(crate) swallows_frames: Option<usize>,
    pub(crate) dice: Dice,
    /// What was sent to places of no node: by whom, where to, and the datagrams.
    pub(crate) strays: Vec<(usize, SocketAddr, Vec<u8>, usize)>,
    flights: BinaryHeap<Flight>,
    count: u64,
}

pub(crate) fn place(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(index).unwrap() + 1], 7400))
}

impl World {
    /// Nodes with wires as listed, both ways; neighbours are configured on the side named first.
    pub(crate) fn new(count: usize, wires: &[(usize, usize)], seed: u64) -> Self {
        Self::with_clocks(count, wires, seed, |_| 0)
    }

    /// The same with clocks that are so many seconds ahead.
    pub(crate) fn with_clocks(
        count: usize,
        wires: &[(usize, usize)],
        seed: u64,
        ahead_s: impl Fn(usize) -> i64,
    ) -> Self {
        let mut dice = Dice(seed);
        let keys: Vec<_> = (0..count).map(|_| PrivateKey::new(dice.seed())).collect();
        let publics: Vec<_> = keys.iter().map(PrivateKey::public).collect();
        let now_ns = SECOND;
        let nodes = keys.iter().enumerate().map(|(index, key)| {
            let unix_ns = UNIX_NS.saturating_add_signed(ahead_s(index) * SECOND as i64);
            let rule = |from: &PublicKey| {
                [Protocol::Udp, Protocol::Tcp].map(|protocol| Rule {
                    who: (*from).into(),
                    protocol,
                    port: None,
                })
            };
            let config = Config {
                rules: publics.iter().flat_map(rule).collect(),
                strangers: Strangers::Welcome { at_most: 64 },
                is_routed: true,
                ..Config::new(key.clone(), unix_ns)
            };
            let public = key.public();
            let endpoint = Endpoint::new(config, dice.seed()).unwrap();
            let mut routing = mesh_router::Config::new(public, 0);
            routing.unix_time_at_zero_ns = unix_ns;
            let router = Router::new(routing, dice.next());
            let all = Accepts { tcp_v4: true, tcp_v6: true, udp: true };
            let mut core = Core::new(endpoint, router, all);
            let announcement = Announcement {
                key: public,
                sequence: 1,
                expires_unix_s: UNIX_NS / SECOND + 3600,
                role: Role::Node { zone: 0 },
            };
            let signed = SignedAnnouncement::sign(announcement, key, &[7; 64]);
            core.originate(now_ns, &signed).unwrap();
            Node { core, key: public, wire: Wire::default(), batches: Vec::new() }
        });
        let mut world = Self {
            now_ns,
            nodes: nodes.collect(),
            wires: wires.iter().flat_map(|(one, two)| [(*one, *two), (*two, *one)]).collect(),
            swallows_frames: None,
            dice,
            strays: Vec::new(),
            flights: BinaryHeap::new(),
            count: 0,
        };
        for (one, two) in wires {
            let key = world.nodes[*two].key;
            assert!(world.nodes[*one].core.add_neighbour(now_ns, key, Some(place(*two))));
        }
        (0..count).for_each(|index| world.settle(index));
        world
    }

    pub(crate) fn address(&self, node: usize) -> Ipv6Addr {
        self.nodes[node].key.address()
    }

    /// Lets what a node did take effect.
    pub(crate) fn settle(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.core.finish_turn(self.now_ns, &mut node.wire);
        for (to, bytes, stride) in std::mem::take(&mut node.wire.sent) {
            self.nodes[index].batches.push((bytes.len().div_ceil(stride), bytes.len()));
            let target = (0..self.nodes.len()).find(|other| place(*other) == to);
            if target.is_none() {
                self.strays.push((index, to, bytes.clone(), stride));
            }
            let is_swallowed = self.swallows_frames == Some(index) && bytes.get(1) == Some(&6);
            let wired = |target: &usize| self.wires.contains(&(index, *target)) && !is_swallowed;
            let Some(target) = target.filter(wired) else {
                continue;
            };
            self.count += 1;
            let due_ns = self.now_ns + ONE_WAY_NS;
            self.flights.push(Reverse((due_ns, self.count, index, target, bytes, stride)));
        }
    }

    pub(crate) fn inject(&mut self, from: SocketAddr, to: usize, mut bytes: Vec<u8>) {
        let stride = bytes.len();
        let Node { core, wire, .. } = &mut self.nodes[to];
        core.receive(self.now_ns, Path::Direct(from), &mut bytes, stride, wire);
        self.settle(to);
    }

    pub(crate) fn run(&mut self, duration_ns: u64) {
        let end_ns = self.now_ns + duration_ns;
        while let Some(due_ns) = self.next_ns().filter(|due_ns| *due_ns <= end_ns) {
            self.now_ns = due_ns.max(self.now_ns);
            for index in 0..self.nodes.len() {
                let due_ns = self.nodes[index].core.next_deadline();
                if due_ns.is_some_and(|due_ns| due_ns <= self.now_ns) {
                    self.settle(index);
                }
            }
            while self.flights.peek().is_some_and(|Reverse(it)| it.0 <= self.now_ns) {
                let Some(Reverse((_, _, from, to, mut bytes, stride))) = self.flights.pop() else {
                    break;
                };
                let Node { core, wire, .. } = &mut self.nodes[to];
                let from = Path::Direct(place(from));
                core.receive(self.now_ns, from, &mut bytes, stride, wire);
                self.settle(to);
            }
        }
        self.now_ns = end_ns;
    }

    fn next_ns(&self) -> Option<u64> {
        let flight = self.flights.peek().map(|Reverse(it)| it.0);
        let deadlines = self.nodes.iter().filter_map(|node| node.core.next_deadline());
        deadlines.chain(flight).min()
    }

    /// Node `from`'s host sends a UDP packet to node `to`'s; its payload.
    pub(crate) fn send(&mut self, from: usize, to: usize) -> Vec<u8> {
        let payload = self.dice.next().to_be_bytes().to_vec();
        let packet = udp(self.address(from), self.address(to), &payload);
        let header = VirtioNetHeader::default();
        self.nodes[from].core.send(self.now_ns, &header, &packet);
        self.settle(from);
        payload
    }

    /// Whether node `to`'s host got a packet with this payload, exactly once.
    pub(crate) fn got_once(&self, to: usize, payload: &[u8]) -> bool {
        let got = self.nodes[to].wire.delivered.iter();
        got.filter(|(_, packet)| packet.ends_with(payload)).count() == 1
    }

    /// Sends every 20 ms for `duration_ns`; returns how long at most nothing arrived.
    pub(crate) fn longest_gap_ns(&mut self, from: usize, to: usize, duration_ns: u64) -> u64 {
        let end_ns = self.now_ns + duration_ns;
        let (mut last_ns, mut longest_ns) = (self.now_ns, 0);
        let mut count = self.nodes[to].wire.delivered.len();
        while self.now_ns < end_ns {
            self.send(from, to);
            self.run(20 * MS);
            if self.nodes[to].wire.delivered.len() > count {
                count = self.nodes[to].wire.delivered.len();
                last_ns = self.now_ns;
            }
            longest_ns = longest_ns.max(self.now_ns - last_ns);
        }
        longest_ns
    }
}

pub(crate) fn udp(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], 17, 64];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&[0x30, 0, 0x30, 0, len[0], len[1], 0, 0]);
    packet.extend_from_slice(payload);
    packet
}
