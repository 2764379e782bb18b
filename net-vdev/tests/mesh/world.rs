//! A network in a box: endpoints, a clock, and links that delay, lose, repeat and reorder.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};

use net_vdev::{CipherSupport, Config, Endpoint, Peer, PrivateKey, Protocol, PublicKey, Rule};

use crate::packets::udp;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1000 * MS;
/// How long a datagram takes when nothing disturbs it.
pub(crate) const ONE_WAY_NS: u64 = 10 * MS;
/// The UDP port that everybody's rules open.
pub(crate) const PORT: u16 = 7;

const UNIX_NS: u64 = 1_700_000_000 * SECOND;

/// A small generator for tests (SplitMix64).
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

    pub(crate) fn in_1000(&mut self, chances: u64) -> bool {
        self.below(1000) < chances
    }

    pub(crate) fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        for chunk in seed.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes());
        }
        seed
    }
}

/// What the network does to datagrams; chances are per thousand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lose: u64,
    pub(crate) repeat: u64,
    pub(crate) delay: u64,
    pub(crate) flip: u64,
    /// Datagrams of this type are always lost.
    pub(crate) lose_kind: Option<u8>,
}

/// A member, where it is, and what it got.
pub(crate) struct Member {
    pub(crate) endpoint: Endpoint,
    pub(crate) config: Config,
    pub(crate) place: SocketAddr,
    pub(crate) got: Vec<Vec<u8>>,
}

impl Member {
    pub(crate) fn key(&self) -> PublicKey {
        self.endpoint.key()
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.key().address().into()
    }
}

/// A datagram under way: when it arrives, a number that keeps the order, from, to, bytes.
type Flight = Reverse<(u64, u64, SocketAddr, SocketAddr, Vec<u8>)>;

pub(crate) struct World {
    pub(crate) now_ns: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) faults: Faults,
    pub(crate) dice: Dice,
    /// Every datagram that was sent: (from, to, bytes).
    pub(crate) seen: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    flights: BinaryHeap<Flight>,
    count: u64,
    sent: u64,
}

impl World {
    /// `count` members that know each other's keys and places; each lets UDP port 7 and echoes in.
    pub(crate) fn new(count: u8, seed: u64) -> Self {
        let mut dice = Dice(seed);
        let keys: Vec<_> = (0..count).map(|_| PrivateKey::new(dice.seed())).collect();
        let place = |index: usize| SocketAddr::from(([192, 0, 2, index as u8 + 1], 1000));
        let members = keys.iter().enumerate().map(|(index, key)| {
            let others = keys.iter().enumerate().filter(|(other, _)| *other != index);
            let others: Vec<_> =
                others.map(|(other, key)| (key.public(), Some(place(other)))).collect();
            let open =
                |(from, _): &(PublicKey, _)| {
                    [(Protocol::Udp, Some(PORT)), (Protocol::Icmp, None)]
                        .map(|(protocol, port)| Rule { from: *from, protocol, port })
                };
            let peer = |(key, endpoint)| Peer { key, endpoint, addresses: Vec::new() };
            let config = Config {
                private_key: key.clone(),
                addresses: Vec::new(),
                rules: others.iter().flat_map(open).collect(),
                peers: others.into_iter().map(peer).collect(),
                ciphers: CipherSupport { aes_256_gcm: index % 2 == 0 },
                unix_time_at_zero_ns: UNIX_NS,
            };
            let endpoint = Endpoint::new(config.clone(), dice.seed()).unwrap();
            Member { endpoint, config, place: place(index), got: Vec::new() }
        });
        let members = members.collect();
        Self {
            now_ns: SECOND,
            members,
            faults: Faults::default(),
            dice,
            seen: Vec::new(),
            flights: BinaryHeap::new(),
            count: 0,
            sent: 0,
        }
    }

    /// Sends a numbered UDP packet from member `from` to member `to`; returns the packet.
    pub(crate) fn send(&mut self, from: usize, to: usize) -> Vec<u8> {
        self.sent += 1;
        let (source, target) = (self.members[from].address(), self.members[to].address());
        let packet = udp((source, PORT), (target, PORT), &self.sent.to_be_bytes());
        self.send_packet(from, &packet);
        packet
    }

    pub(crate) fn send_packet(&mut self, from: usize, packet: &[u8]) {
        self.members[from].endpoint.send_packet(self.now_ns, packet);
        self.settle(from);
    }

    /// Whether member `to` got `packet`, exactly once.
    pub(crate) fn got_once(&self, to: usize, packet: &[u8]) -> bool {
        self.members[to].got.iter().filter(|got| *got == packet).count() == 1
    }

    /// Starts member `index` anew: same key, no memory, a new seed.
    pub(crate) fn restart(&mut self, index: usize) {
        let seed = self.dice.seed();
        let member = &mut self.members[index];
        member.endpoint = Endpoint::new(member.config.clone(), seed).unwrap();
    }

    /// Gives a datagram to whoever is at `to`, as if it came from `from`.
    pub(crate) fn inject(&mut self, from: SocketAddr, to: SocketAddr, mut bytes: Vec<u8>) {
        let Some(index) = self.members.iter().position(|member| member.place == to) else {
            return;
        };
        self.members[index].endpoint.receive_datagram(self.now_ns, from, &mut bytes);
        self.settle(index);
    }

    /// Runs for `duration_ns`.
    pub(crate) fn run(&mut self, duration_ns: u64) {
        let end_ns = self.now_ns + duration_ns;
        while let Some(due_ns) = self.next_event_ns().filter(|due_ns| *due_ns <= end_ns) {
            assert!(due_ns >= self.now_ns, "an event in the past");
            self.now_ns = due_ns;
            self.step();
        }
        self.now_ns = end_ns;
    }

    fn next_event_ns(&self) -> Option<u64> {
        let flight = self.flights.peek().map(|Reverse((due_ns, ..))| *due_ns);
        let deadlines = self.members.iter().filter_map(|member| member.endpoint.next_deadline());
        deadlines.chain(flight).min().map(|due_ns| due_ns.max(self.now_ns))
    }

    fn step(&mut self) {
        for index in 0..self.members.len() {
            let endpoint = &mut self.members[index].endpoint;
            if endpoint.next_deadline().is_some_and(|due_ns| due_ns <= self.now_ns) {
                endpoint.handle_deadline(self.now_ns);
                let after = endpoint.next_deadline();
                assert!(after.is_none_or(|due_ns| due_ns > self.now_ns), "a timer spins");
                self.settle(index);
            }
        }
        let due = |Reverse((due_ns, ..)): &Flight| *due_ns <= self.now_ns;
        if self.flights.peek().is_some_and(due)
            && let Some(Reverse((_, _, from, to, bytes))) = self.flights.pop()
        {
            self.inject(from, to, bytes);
        }
    }

    /// Takes what a member has to send and what it got.
    fn settle(&mut self, index: usize) {
        let place = self.members[index].place;
        while let Some((to, bytes)) = self.members[index].endpoint.poll_transmit() {
            self.fly(place, to, &bytes);
            self.seen.push((place, to, bytes));
        }
        while let Some(packet) = self.members[index].endpoint.poll_packet() {
            self.members[index].got.push(packet);
        }
    }

    fn fly(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let Faults { lose, repeat, delay, flip, lose_kind } = self.faults;
        let copies = if self.dice.in_1000(repeat) { 2 } else { 1 };
        for _ in 0..copies {
            if self.dice.in_1000(lose) || bytes.get(1) == lose_kind.as_ref() {
                continue;
            }
            let mut bytes = bytes.to_vec();
            if self.dice.in_1000(flip) {
                let bit = self.dice.below(8 * bytes.len() as u64) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            let late_ns = if self.dice.in_1000(delay) { self.dice.below(200 * MS) } else { 0 };
            self.count += 1;
            let due_ns = self.now_ns + ONE_WAY_NS + late_ns;
            self.flights.push(Reverse((due_ns, self.count, from, to, bytes)));
        }
    }
}
