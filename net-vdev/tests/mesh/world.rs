//! A network in a box: endpoints, a clock, and links that delay, lose, repeat and reorder.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};

use net_vdev::offload::{VirtioNetHeader, each_packet};
use net_vdev::uplink::{Local, Up};
use net_vdev::wire::{MTU, RELAY_HEADER_BYTES, RelayHeader};
use net_vdev::{
    CipherSupport, Config, Endpoint, Event, Path, Peer, PrivateKey, Protocol, PublicKey, Rule,
    Strangers, Transmit,
};

use crate::packets::udp;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1000 * MS;
/// How long a datagram takes when nothing disturbs it.
pub(crate) const ONE_WAY_NS: u64 = 10 * MS;
/// The UDP port that everybody's rules open.
pub(crate) const PORT: u16 = 7;

pub(crate) const UNIX_NS: u64 = 1_700_000_000 * SECOND;

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
    /// Datagrams of more bytes than this are always lost.
    pub(crate) lose_longer: Option<usize>,
}

/// A member, where it is, and what it got.
pub(crate) struct Member {
    pub(crate) endpoint: Endpoint,
    pub(crate) config: Config,
    pub(crate) place: SocketAddr,
    pub(crate) got: Vec<Vec<u8>>,
    pub(crate) events: Vec<Event>,
}

impl Member {
    pub(crate) fn new(config: Config, place: SocketAddr, seed: [u8; 32]) -> Self {
        let endpoint = Endpoint::new(config.clone(), seed).unwrap();
        Self { endpoint, config, place, got: Vec::new(), events: Vec::new() }
    }

    pub(crate) fn key(&self) -> PublicKey {
        self.endpoint.key()
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.key().address().into()
    }
}

/// A datagram under way: when it arrives, a number that keeps the order, from, to, bytes.
type Flight = Reverse<(u64, u64, Path, Path, Vec<u8>)>;

/// The ways through routers that all members share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Relays {
    /// Whether frames get through, by the best way and the second-best.
    pub(crate) are_up: [bool; 2],
    /// The largest frame that does.
    pub(crate) frame_bytes_max: usize,
    /// How long one takes.
    pub(crate) one_way_ns: u64,
}

pub(crate) struct World {
    pub(crate) now_ns: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) faults: Faults,
    pub(crate) relays: Relays,
    /// Datagrams between these places are lost, in this direction.
    pub(crate) cut: Vec<(SocketAddr, SocketAddr)>,
    pub(crate) dice: Dice,
    /// How many packets the router of one host passed on as they were.
    pub(crate) passed_on: usize,
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
                        .map(|(protocol, port)| Rule { who: (*from).into(), protocol, port })
                };
            let peer = |(key, endpoint)| Peer { key, endpoint, addresses: Vec::new() };
            let config = Config {
                rules: others.iter().flat_map(open).collect(),
                peers: others.into_iter().map(peer).collect(),
                ciphers: CipherSupport { aes_256_gcm: index % 2 == 0 },
                ..Config::new(key.clone(), UNIX_NS)
            };
            Member::new(config, place(index), dice.seed())
        });
        let members = members.collect();
        Self {
            now_ns: SECOND,
            members,
            faults: Faults::default(),
            relays: Relays { are_up: [true; 2], frame_bytes_max: 1452, one_way_ns: 2 * ONE_WAY_NS },
            cut: Vec::new(),
            dice,
            passed_on: 0,
            seen: Vec::new(),
            flights: BinaryHeap::new(),
            count: 0,
            sent: 0,
        }
    }

    /// `count` members behind routers that know each other's keys, but not places; strangers are
    /// welcome.
    pub(crate) fn routed(count: u8, seed: u64) -> Self {
        let mut world = Self::new(count, seed);
        for index in 0..usize::from(count) {
            let seed = world.dice.seed();
            let member = &mut world.members[index];
            let config = Config {
                peers: Vec::new(),
                strangers: Strangers::Welcome { at_most: 16 },
                is_routed: true,
                ..member.config.clone()
            };
            *member = Member::new(config, member.place, seed);
        }
        world
    }

    /// Answers what members asked their router: whose address is this?
    pub(crate) fn resolve(&mut self) {
        let keys: Vec<_> = self.members.iter().map(Member::key).collect();
        for index in 0..self.members.len() {
            for event in std::mem::take(&mut self.members[index].events) {
                if let Event::Resolve(address) = event {
                    let key = keys.iter().find(|key| key.address() == address).unwrap();
                    self.members[index].endpoint.learn(self.now_ns, key, &[]);
                    self.settle(index);
                } else {
                    self.members[index].events.push(event);
                }
            }
        }
    }

    /// The way that data from one member to another takes.
    pub(crate) fn path(&self, from: usize, to: usize) -> Path {
        let key = self.members[to].key();
        let peer = self.members[from].endpoint.peers().find(|peer| peer.key == key).unwrap();
        peer.paths.iter().find(|path| path.is_current).unwrap().path
    }

    /// Sends a packet every `pause_ns` for `duration_ns`; returns how long at most none arrived.
    pub(crate) fn longest_gap_ns(
        &mut self,
        (from, to): (usize, usize),
        pause_ns: u64,
        duration_ns: u64,
    ) -> u64 {
        let end_ns = self.now_ns + duration_ns;
        let (mut last_ns, mut longest_ns) = (self.now_ns, 0);
        let mut count = self.members[to].got.len();
        while self.now_ns < end_ns {
            self.send(from, to);
            self.run(pause_ns);
            if self.members[to].got.len() > count {
                count = self.members[to].got.len();
                last_ns = self.now_ns;
            }
            longest_ns = longest_ns.max(self.now_ns - last_ns);
        }
        longest_ns
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
    pub(crate) fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.arrive(Path::Direct(from), Path::Direct(to), bytes);
    }

    /// Gives a datagram to member `to`, and takes nothing that it has to send.
    pub(crate) fn hand(&mut self, to: usize, from: SocketAddr, mut bytes: Vec<u8>) {
        let Member { endpoint, got, .. } = &mut self.members[to];
        let deliver = &mut |header: &_, packet: &[u8]| got.extend(whole(header, packet));
        let stride = bytes.len();
        endpoint.receive(self.now_ns, Path::Direct(from), &mut bytes, stride, deliver);
    }

    fn arrive(&mut self, from: Path, to: Path, mut bytes: Vec<u8>) {
        let index = self.members.iter().position(|member| match to {
            Path::Direct(place) => member.place == place,
            Path::Relayed { member: address, .. } => member.key().address() == address,
            Path::Stream(_) | Path::Local(_) => false,
        });
        let Some(index) = index else { return };
        let Member { endpoint, got, .. } = &mut self.members[index];
        let stride = bytes.len();
        let deliver = &mut |header: &_, packet: &[u8]| got.extend(whole(header, packet));
        endpoint.receive(self.now_ns, from, &mut bytes, stride, deliver);
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
            self.arrive(from, to, bytes);
        }
    }

    /// Takes what a member has to send and to say.
    pub(crate) fn settle(&mut self, index: usize) {
        let place = self.members[index].place;
        while let Some(Transmit { to, bytes, stride }) =
            self.members[index].endpoint.poll_transmit()
        {
            if let Path::Local(key) = to {
                self.pass_on(index, &key, bytes);
                continue;
            }
            for datagram in bytes.chunks(stride) {
                match to {
                    Path::Direct(to) => {
                        self.fly(place, to, datagram);
                        self.seen.push((place, to, datagram.to_vec()));
                    }
                    Path::Relayed { .. } => self.relay(index, datagram),
                    Path::Stream(_) | Path::Local(_) => {
                        panic!("there are no such ways in this world")
                    }
                }
            }
        }
        while let Some(event) = self.members[index].endpoint.poll_event() {
            self.members[index].events.push(event);
        }
    }

    /// What the router of one host does with a packet for another member there.
    fn pass_on(&mut self, from: usize, to: &PublicKey, mut message: Vec<u8>) {
        let member = self.members[from].key();
        let Some(Up::Local(local)) = Up::parse(&mut message) else { panic!("no local message") };
        assert_eq!(local.member, *to);
        if self.relays.are_up[0]
            && let Some(to) = self.members.iter_mut().find(|member| member.key() == *to)
        {
            let (got, local) = (&mut to.got, Local { member, ..local });
            self.passed_on += 1;
            let deliver = &mut |_: &VirtioNetHeader, packet: &[u8]| got.push(packet.to_vec());
            to.endpoint.receive_local(self.now_ns, &local, deliver);
        }
    }

    /// What the routers do with a frame of member `from`: they know everybody.
    fn relay(&mut self, from: usize, frame: &[u8]) {
        let header = RelayHeader::parse(frame).unwrap();
        assert_eq!(header.source, self.members[from].key().address());
        let is_lost = !self.relays.are_up[usize::from(header.is_alternate)]
            || frame.len() > self.relays.frame_bytes_max
            || self.dice.in_1000(self.faults.lose);
        if !is_lost {
            // The first router clears the flag.
            let is_alternate = false;
            let source = Path::Relayed { member: header.source, is_alternate };
            let to = Path::Relayed { member: header.destination, is_alternate };
            let datagram = frame[RELAY_HEADER_BYTES..].to_vec();
            self.count += 1;
            let due_ns = self.now_ns + self.relays.one_way_ns;
            self.flights.push(Reverse((due_ns, self.count, source, to, datagram)));
        }
    }

    fn fly(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let Faults { lose, repeat, delay, flip, lose_kind, lose_longer } = self.faults;
        let never = bytes.get(1) == lose_kind.as_ref()
            || lose_longer.is_some_and(|longest| bytes.len() > longest);
        let copies = if self.dice.in_1000(repeat) { 2 } else { 1 };
        for _ in 0..copies {
            let is_lost = self.dice.in_1000(lose) || never;
            if is_lost || self.cut.contains(&(from, to)) {
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
            let (from, to) = (Path::Direct(from), Path::Direct(to));
            self.flights.push(Reverse((due_ns, self.count, from, to, bytes)));
        }
    }
}

/// The packet as it is with its checksum.
pub(crate) fn whole(header: &VirtioNetHeader, packet: &[u8]) -> Option<Vec<u8>> {
    let mut whole = None;
    each_packet(header, packet, MTU, &mut Vec::new(), |packet| whole = Some(packet.to_vec()));
    whole
}
