//! A router against a neighbour that says anything.
//!
//! The router under test has an honest neighbour, a second router, and a hostile one whose messages
//! the input writes: well-formed, half right or not at all. Whatever it says: tables stay within their
//! bounds, an address resolves to no key but its own, the node stays local to itself, the honest
//! neighbour stays reachable through its own link, and time does not stand still.

use std::net::Ipv6Addr;

use mesh_router::message::{self, Body, Entry, Header, Request};
use mesh_router::{Config, LinkId, NextHop, Router};
use net_vdev::PublicKey;
use net_vdev::announcement::{Announcement, Role, SignedAnnouncement};

use crate::bytes::Input;

const ROUTER: u8 = 0;
const HONEST: u8 = 1;
const HOSTILE: u8 = 2;
const DESTINATIONS_MAX: u32 = 24;
const MS: u64 = 1_000_000;

fn key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

fn address(number: u8) -> Ipv6Addr {
    key(number).address()
}

/// A cheap stand-in for a signature: the key, and the sum of the bytes.
fn tag(key: &PublicKey, bytes: &[u8]) -> [u8; 64] {
    let mut tag = [0; 64];
    tag.iter_mut().zip(key.0).for_each(|(to, from)| *to = from);
    tag[32] = bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(*byte));
    tag
}

fn verify(key: &PublicKey, bytes: &[u8], signature: &[u8; 64]) -> bool {
    *signature == tag(key, bytes)
}

fn signed(number: u8, sequence: u64, role: Role) -> SignedAnnouncement {
    let announcement = Announcement { key: key(number), sequence, expires_unix_s: 1 << 40, role };
    SignedAnnouncement { announcement, signature: tag(&key(number), &announcement.encode()) }
}

fn router(number: u8) -> Router {
    let config = Config {
        verify,
        destinations_max: DESTINATIONS_MAX,
        requests_max: 16,
        ..Config::new(key(number), 1)
    };
    let mut router = Router::new(config, u64::from(number));
    let role = Role::Node { zone: 1 };
    if let Err(error) = router.originate(0, signed(number, 1, role)) {
        panic!("a fresh router takes its own announcement: {error}");
    }
    router
}

struct World {
    now_ns: u64,
    router: Router,
    honest: Router,
    /// The router's link to the honest neighbour, and back.
    links: [LinkId; 2],
    hostile: LinkId,
    /// What the router calls itself towards the hostile neighbour, and what that one calls itself.
    router_is: u32,
    hostile_is: u32,
    number: u64,
    /// Probes of the router that the hostile neighbour got.
    probes: Vec<u32>,
    was_believed: bool,
}

fn up(router: &mut Router, now_ns: u64, neighbour: u8) -> LinkId {
    match router.link_up(now_ns, key(neighbour), 0) {
        Ok(link) => link,
        Err(error) => panic!("two neighbours are not too many: {error}"),
    }
}

impl World {
    fn new() -> Self {
        let (mut router, mut honest) = (router(ROUTER), router(HONEST));
        let links = [up(&mut router, 0, HONEST), up(&mut honest, 0, ROUTER)];
        let hostile = up(&mut router, 0, HOSTILE);
        let mut world = Self {
            now_ns: 0,
            router,
            honest,
            links,
            hostile,
            router_is: 0,
            hostile_is: 7,
            number: 0,
            probes: Vec::new(),
            was_believed: false,
        };
        world.pass(100 * MS);
        world
    }

    /// Delivers all that the routers have to say; what goes to the hostile neighbour tells it numbers.
    fn deliver(&mut self) {
        for _ in 0..1000 {
            let mut is_quiet = true;
            while let Some((link, bytes)) = self.router.poll_transmit() {
                is_quiet = false;
                if link == self.links[0] {
                    self.honest.receive(self.now_ns, self.links[1], &bytes);
                } else if let Ok((header, body)) = message::parse(&bytes) {
                    self.router_is = header.from;
                    if let Body::Probe { id } = body {
                        self.probes.push(id);
                    }
                }
            }
            while let Some((_, bytes)) = self.honest.poll_transmit() {
                is_quiet = false;
                self.router.receive(self.now_ns, self.links[0], &bytes);
            }
            if is_quiet {
                return;
            }
        }
        panic!("two routers never stop talking");
    }

    fn pass(&mut self, time_ns: u64) {
        let end_ns = self.now_ns + time_ns;
        for _ in 0..10_000 {
            self.deliver();
            let due_ns = self.router.next_deadline().min(self.honest.next_deadline());
            if due_ns > end_ns {
                self.now_ns = end_ns;
                return;
            }
            self.now_ns = self.now_ns.max(due_ns);
            self.router.handle_deadline(self.now_ns);
            self.honest.handle_deadline(self.now_ns);
        }
        panic!("time stands still at {}", self.now_ns);
    }

    fn header(&self) -> Header {
        Header { zone: 1, from: self.hostile_is, to: self.router_is }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.router.receive(self.now_ns, self.hostile, bytes);
        self.deliver();
    }

    fn say_entry(&mut self, entry: &Entry) {
        self.number += 1;
        let mut bytes = message::update(self.header(), self.number);
        message::push(&mut bytes, entry);
        self.say(&bytes);
    }

    fn check(&mut self) {
        let full = self.router.occupancy();
        let most = DESTINATIONS_MAX as usize / 4 * 5;
        assert!(full.destinations <= most && full.requests <= 16, "{full:?}");
        assert!(full.bytes < 1 << 20, "{full:?}");
        for number in 0..=255 {
            let found = self.router.resolve(&address(number));
            let is_own = found.is_none_or(|found| found == key(number));
            assert!(is_own, "the address of {number} resolves to {found:?}");
        }
        let local = self.router.next_hop(self.now_ns, &address(ROUTER), false);
        assert_eq!(local, NextHop::Local(key(ROUTER)), "the node left itself");
        for (at, route) in self.router.routes().enumerate() {
            assert!(at < most, "more routes than destinations");
            self.was_believed |= route.primary == Some(self.hostile);
        }
    }
}

/// Runs a list of actions: a byte that names one (modulo 12), then what it needs.
///
/// True if the router once had a route through the hostile neighbour.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let mut world = World::new();
    input.actions(|input| {
        act(&mut world, input);
        world.check();
    });
    // It may have said that it is nearest to all; but in the end the honest neighbour is there.
    world.router.link_down(world.now_ns, world.hostile);
    world.pass(5000 * MS);
    let hop = world.router.route_to(&address(HONEST), false);
    assert_eq!(hop, NextHop::Link(world.links[0]), "the honest neighbour is lost");
    world.was_believed
}

fn act(world: &mut World, input: &mut Input<'_>) {
    match input.byte() % 12 {
        kind @ 0..=6 => speak(world, kind, input),
        7 => {
            let time_ms = u64::from(input.u16()) % 5000;
            world.pass(time_ms * MS);
        }
        8 => {
            world.router.link_down(world.now_ns, world.hostile);
            world.hostile = up(&mut world.router, world.now_ns, HOSTILE);
            world.deliver();
        }
        9 => {
            let number = input.byte();
            world.router.next_hop(world.now_ns, &address(number), number.is_multiple_of(2));
            world.router.avoid(world.now_ns, &address(number), world.hostile);
            world.deliver();
        }
        10 => {
            world.hostile_is = u32::from(input.byte());
            world.number = 0;
            let bytes = message::probe(world.header(), 1);
            world.say(&bytes);
        }
        _ => {
            for id in std::mem::take(&mut world.probes) {
                let bytes = message::reply(world.header(), id);
                world.say(&bytes);
            }
        }
    }
}

/// The hostile neighbour sends a message.
fn speak(world: &mut World, kind: u8, input: &mut Input<'_>) {
    match kind {
        0 => {
            let len = usize::from(input.u16()) % 1400;
            let bytes = input.bytes(len).to_vec();
            world.say(&bytes);
        }
        1 => {
            let (kind, len) = (input.byte(), usize::from(input.byte()));
            let mut bytes = message::probe(world.header(), 0);
            bytes.truncate(message::HEADER_BYTES);
            bytes.iter_mut().skip(1).take(1).for_each(|byte| *byte = kind);
            bytes.extend_from_slice(input.bytes(len));
            world.say(&bytes);
        }
        2 => {
            let (number, sequence, metric) = (input.byte(), input.byte(), input.u16());
            let zone = u16::from(input.byte() % 2);
            let role = if zone == 1 { Role::Node { zone } } else { Role::Workload };
            let sequence = u64::from(sequence);
            // Nobody but the router itself and the honest neighbour can sign for them.
            let mut signed = signed(number, sequence, role);
            signed.signature[40] = u8::from(number <= HONEST);
            world.say_entry(&Entry::News { signed, sequence, metric: u32::from(metric) << 16 });
        }
        3 => {
            let address = u128::from(address(input.byte()));
            let (sequence, metric) = (u64::from(input.byte()), u32::from(input.u16()));
            world.say_entry(&Entry::Route { address, sequence, metric });
        }
        4 => {
            let address = u128::from(address(input.byte()));
            world.say_entry(&Entry::Retraction { address });
        }
        5 => {
            let (highest, before) = (u64::from(input.u16()), u64::from(input.u16()));
            let bytes = message::ack(world.header(), highest, before);
            world.say(&bytes);
        }
        _ => {
            let (number, sequence, flags) = (input.byte(), input.byte(), input.byte());
            let request = Request {
                address: u128::from(address(number)),
                sequence: u64::from(sequence) << (flags & 0x38),
                hops: flags,
                wants_announcement: flags & 1 != 0,
                attempt: flags >> 2 & 3,
                is_search: flags & 2 != 0,
            };
            let bytes = message::request(world.header(), request);
            world.say(&bytes);
        }
    }
}
