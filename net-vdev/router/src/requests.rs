//! Looking for routes that nobody told: other zones' nodes, workloads, and what was lost.
//!
//! A request goes to the neighbours that may know more, or to all if nobody does; whoever has a route
//! answers with an update, and whoever asked is told of every change for some minutes. So a request
//! leaves a path of subscriptions behind it, along which the answer comes back.

use std::net::Ipv6Addr;

use crate::config::{Event, NextHop};
use crate::destination::{ASKED, Destination, HAS_NEWEST, HAS_SEQUENCE, NONE};
use crate::hash::{AddressMap, Seeded};
use crate::message::{self, INFINITY, Request};
use crate::router::{Router, seconds};
use crate::table::Index;

const MS: u64 = 1_000_000;

/// How many routers pass a request on.
const HOPS: u8 = 32;
/// A request that was passed on is not passed on again within this time.
const AGAIN_NS: u64 = 80 * MS;
/// Nor is a copy of a search that took a longer way, within this.
const COPY_NS: u64 = 1000 * MS;
/// When a request is repeated, counted from the one before; then it has failed.
const REPEATS_NS: [u64; 4] = [100 * MS, 200 * MS, 300 * MS, 400 * MS];
/// How long "nobody has a route" is remembered.
const NEGATIVE_NS: u64 = 1000 * MS;
/// How long it is remembered who asked, when it wasn't this router itself.
const REMEMBER_NS: u64 = 2000 * MS;
/// How long a neighbour that asked is told of changes.
pub(crate) const LEASE_S: u32 = 120;
/// How long a packet that went somewhere keeps the route wanted.
pub(crate) const USED_S: u32 = 60;
/// The most neighbours that are told when an unknown address is found: of those who ask for
/// themselves, and of those who pass a search on. The latter ask others, too, and the first of them
/// are nearest to whoever wants to know: if all were told, the answer would go wherever the search
/// did.
const ASKERS_MAX: usize = 16;
const SEARCHERS_MAX: usize = 1;
/// A neighbour's share of the table: one in so many.
const SHARE: u32 = 8;
/// The most neighbours that a request goes to, if some are known to help.
const TARGETS_MAX: usize = 4;

/// An address that is being looked for.
#[derive(Debug)]
struct Wanted {
    sequence: u64,
    /// Whether this router wants it for itself, or for a route that it lost.
    is_own: bool,
    /// Whether somebody waits for an event.
    is_awaited: bool,
    /// Nobody answered.
    is_negative: bool,
    attempts: usize,
    /// That of the request that was passed on last.
    attempt: u8,
    /// When to repeat it, or to forget it.
    next_ns: u64,
    passed_on_ns: Option<u64>,
    askers: Vec<u16>,
    /// Whose share it counts against, [`NONE`] for this router.
    slot: u16,
}

#[derive(Debug)]
pub(crate) struct Requests {
    wanted: AddressMap<u128, Wanted>,
    /// When the first is due; may be too early.
    pub(crate) deadline_ns: u64,
}

impl Requests {
    pub(crate) fn new(hasher: Seeded) -> Self {
        Self { wanted: AddressMap::with_hasher(hasher), deadline_ns: u64::MAX }
    }

    pub(crate) fn len(&self) -> usize {
        self.wanted.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        let askers: usize = self.wanted.values().map(|it| it.askers.capacity() * 2).sum();
        self.wanted.capacity() * (size_of::<(u128, Wanted)>() + 1) + askers
    }

    pub(crate) fn forget_neighbour(&mut self, slot: u16) {
        for wanted in self.wanted.values_mut() {
            wanted.askers.retain(|asker| *asker != slot);
        }
    }

    /// The entry for an address, made if there is room for it.
    fn entry(&mut self, address: u128, slot: u16, max: u32) -> Option<&mut Wanted> {
        if !self.wanted.contains_key(&address) {
            let of_slot = self.wanted.values().filter(|it| it.slot == slot).count();
            let is_full = self.wanted.len() >= max as usize;
            if is_full || (slot != NONE && of_slot >= (max / SHARE) as usize) {
                return None;
            }
        }
        Some(self.wanted.entry(address).or_insert(Wanted {
            sequence: 0,
            is_own: false,
            is_awaited: false,
            is_negative: false,
            attempts: 0,
            attempt: 0,
            next_ns: u64::MAX,
            passed_on_ns: None,
            askers: Vec::new(),
            slot,
        }))
    }

    /// The addresses looked for that a destination is routed for, in order.
    fn covered_by(&self, destination: &Destination) -> Vec<u128> {
        let (prefix, length) = destination.newest.announcement.prefix();
        let host_bits = 128 - u32::from(length);
        let same = |address: &u128| {
            (address ^ u128::from(prefix)).checked_shr(host_bits).unwrap_or_default() == 0
        };
        let mut covered: Vec<u128> = self.wanted.keys().copied().filter(same).collect();
        covered.sort_unstable();
        covered
    }

    fn due_at(&mut self, at_ns: u64) {
        self.deadline_ns = self.deadline_ns.min(at_ns);
    }
}

/// A request of this router's own.
fn search(address: u128, sequence: u64, is_search: bool) -> Request {
    let wants_announcement = false;
    Request { address, sequence, hops: HOPS, wants_announcement, is_search, attempt: 0 }
}

impl Router {
    /// A packet is to go to an address without a route.
    pub(crate) fn ask(&mut self, now_ns: u64, address: u128) -> NextHop {
        if let Some(wanted) = self.requests.wanted.get_mut(&address) {
            if wanted.is_negative {
                return NextHop::Unreachable;
            }
            wanted.is_awaited = true;
            if wanted.is_own {
                return NextHop::Pending;
            }
        }
        let sequence = self.sequence_that_helps(address);
        if self.start(now_ns, address, sequence, true) {
            self.flush(now_ns);
            return NextHop::Pending;
        }
        NextHop::Unreachable
    }

    /// Whether an address is being looked for, or is known not to be found.
    pub(crate) fn is_searching(&self, address: &Ipv6Addr) -> bool {
        let wanted = self.requests.wanted.get(&u128::from(*address));
        wanted.is_some_and(|wanted| wanted.is_own || wanted.is_negative)
    }

    /// The smallest sequence number under which any route may be used.
    fn sequence_that_helps(&self, address: u128) -> u64 {
        let found = self.table.find_covering(address).and_then(|index| self.table.get(index));
        let feasible = found.and_then(|destination| destination.feasible);
        feasible.map_or(0, |(sequence, _)| sequence.saturating_add(1))
    }

    /// Starts to look for an address. False if there are too many lookups.
    fn start(&mut self, now_ns: u64, address: u128, sequence: u64, is_awaited: bool) -> bool {
        let max = self.config.requests_max;
        let Some(wanted) = self.requests.entry(address, NONE, max) else { return false };
        wanted.is_own = true;
        wanted.is_awaited |= is_awaited;
        wanted.is_negative = false;
        wanted.sequence = wanted.sequence.max(sequence);
        wanted.slot = NONE;
        (wanted.attempts, wanted.attempt) = (0, 0);
        wanted.next_ns = now_ns + REPEATS_NS[0];
        wanted.passed_on_ns = Some(now_ns);
        self.requests.due_at(now_ns + REPEATS_NS[0]);
        self.pass_on(search(address, sequence, is_awaited), NONE);
        true
    }

    /// Sends a request to whoever may help, other than `except`. If nobody is known to, all
    /// neighbours get it, but not for a node of this zone that only lost its route: it will be told
    /// of, unless the zone itself has come apart, which a packet finds out (`is_search`).
    fn pass_on(&mut self, request: Request, except: u16) {
        let Request { address, is_search, .. } = request;
        let mut targets = Vec::new();
        let found = self.table.find_covering(address).and_then(|index| self.table.get(index));
        if let Some(destination) = found {
            let chosen = [destination.primary, destination.alternate];
            targets.extend(chosen.into_iter().filter(|slot| *slot != NONE && *slot != except));
            if targets.is_empty() {
                let offers = destination.adjacents.iter();
                let offers = offers.filter(|it| it.metric < INFINITY && it.slot != except);
                targets.extend(offers.map(|it| it.slot).take(TARGETS_MAX));
            }
        }
        let is_in_zone = found.is_some_and(|it| it.is_of_zone(self.config.zone));
        if targets.is_empty() && (!is_in_zone || is_search) {
            let links = self.links.iter().flatten().filter(|link| link.is_usable());
            targets.extend(links.map(|link| link.id.slot).filter(|slot| *slot != except));
        }
        for slot in targets {
            self.send_request(slot, Request { wants_announcement: false, ..request });
        }
    }

    fn send_request(&mut self, slot: u16, request: Request) {
        let zone = self.config.zone;
        let Some(link) = self.link_at(slot).filter(|link| link.is_usable()) else { return };
        let (id, bytes) = (link.id, message::request(link.header(zone), request));
        self.send(id, bytes);
    }

    /// A neighbour mentioned an announcement that is not here (any more).
    pub(crate) fn ask_for_announcement(&mut self, slot: u16, address: u128) {
        let request = Request { hops: 0, wants_announcement: true, ..search(address, 0, false) };
        self.send_request(slot, request);
    }

    /// A neighbour that was refused something is asked to say all again.
    pub(crate) fn ask_for_all(&mut self, slot: u16) {
        self.ask_for_announcement(slot, 0);
    }

    /// Keeps the subscription at the neighbours in use.
    pub(crate) fn refresh(&mut self, index: Index) {
        let Some(destination) = self.table.get(index) else { return };
        let address = destination.address;
        for slot in [destination.primary, destination.alternate] {
            self.send_request(slot, Request { hops: 0, ..search(address, 0, false) });
        }
    }

    /// A neighbour asks.
    pub(crate) fn asked(&mut self, now_ns: u64, slot: u16, request: Request) {
        let is_for_all = request.address == 0 && request.wants_announcement;
        let tokens = if is_for_all { 100 } else { 1 };
        let Some(link) = self.link_at_mut(slot) else { return };
        if !link.requests.take(now_ns, tokens) {
            self.counters.too_many += 1;
            return;
        }
        if is_for_all {
            return self.say_all_again(now_ns, slot);
        }
        match self.table.find_covering(request.address) {
            Some(index) => self.asked_for_known(now_ns, slot, index, request),
            None => self.asked_for_unknown(now_ns, slot, request),
        }
    }

    fn say_all_again(&mut self, now_ns: u64, slot: u16) {
        for index in self.table.indices() {
            let adjacent = self.table.get_mut(index).and_then(|it| it.adjacent_mut(slot));
            if let Some(adjacent) = adjacent {
                adjacent.set(HAS_NEWEST | HAS_SEQUENCE, false);
                self.tell_if_owed(now_ns, index, slot, false);
            }
        }
    }

    fn asked_for_known(&mut self, now_ns: u64, slot: u16, index: Index, request: Request) {
        let Some(destination) = self.table.get_mut(index) else { return };
        let newest = destination.newest.announcement;
        let adjacent = destination.adjacent_or_new(slot);
        adjacent.subscribed_s = seconds(now_ns).saturating_add(LEASE_S);
        if request.wants_announcement {
            adjacent.set(HAS_NEWEST | HAS_SEQUENCE, false);
        }
        // Nobody can ask for more than the next number: it would make all wait for it.
        let sequence = request.sequence.min(newest.sequence.saturating_add(1));
        let is_good = destination.is_reachable() && destination.sequence >= sequence;
        let (is_local, primary) = (destination.is_local, destination.primary);
        if !is_good && let Some(adjacent) = destination.adjacent_mut(slot) {
            adjacent.set(ASKED, true);
        }
        self.tell_if_owed(now_ns, index, slot, true);
        if is_local && sequence > newest.sequence {
            self.event(Event::SequenceWanted { key: newest.key, sequence });
        } else if !is_local && (!is_good || primary == slot) {
            self.pass_on_once(now_ns, slot, Request { sequence, ..request });
        }
    }

    fn asked_for_unknown(&mut self, now_ns: u64, slot: u16, request: Request) {
        let max = self.config.requests_max;
        let Some(wanted) = self.requests.entry(request.address, slot, max) else {
            self.counters.refused += 1;
            return;
        };
        let is_passed_on = request.is_search && request.hops < HOPS;
        let askers_max = if is_passed_on { SEARCHERS_MAX } else { ASKERS_MAX };
        if !wanted.askers.contains(&slot) && wanted.askers.len() < askers_max {
            wanted.askers.push(slot);
        }
        if !wanted.is_own {
            wanted.next_ns = now_ns + REMEMBER_NS;
            self.requests.due_at(now_ns + REMEMBER_NS);
        }
        self.pass_on_once(now_ns, slot, request);
    }

    fn pass_on_once(&mut self, now_ns: u64, slot: u16, request: Request) {
        let max = self.config.requests_max;
        let Some(hops) = request.hops.checked_sub(1) else { return };
        let Some(wanted) = self.requests.entry(request.address, slot, max) else { return };
        let is_copy = request.is_search && request.attempt <= wanted.attempt;
        let pause_ns = if is_copy { COPY_NS } else { AGAIN_NS };
        let is_recent = wanted.passed_on_ns.is_some_and(|at_ns| now_ns < at_ns + pause_ns);
        if is_recent && wanted.sequence == request.sequence {
            return;
        }
        wanted.passed_on_ns = Some(now_ns);
        wanted.sequence = request.sequence;
        wanted.attempt = request.attempt;
        if !wanted.is_own {
            wanted.next_ns = now_ns + REMEMBER_NS;
            self.requests.due_at(now_ns + REMEMBER_NS);
        }
        self.pass_on(Request { hops: hops.min(HOPS), ..request }, slot);
    }

    /// Who asked for a destination before it was known is told of it.
    pub(crate) fn adopt_askers(&mut self, now_ns: u64, index: Index) {
        let Some(destination) = self.table.get_mut(index) else { return };
        for address in self.requests.covered_by(destination) {
            let Some(wanted) = self.requests.wanted.get_mut(&address) else { continue };
            for slot in wanted.askers.drain(..) {
                let adjacent = destination.adjacent_or_new(slot);
                adjacent.subscribed_s = seconds(now_ns).saturating_add(LEASE_S);
                adjacent.set(ASKED, true);
            }
            if wanted.is_own {
                destination.used_s = seconds(now_ns);
            }
        }
    }

    /// A destination has a route again.
    pub(crate) fn found(&mut self, index: Index) {
        let Some(destination) = self.table.get(index) else { return };
        for address in self.requests.covered_by(destination) {
            let removed = self.requests.wanted.remove(&address);
            if removed.is_some_and(|wanted| wanted.is_awaited) {
                self.event(Event::Resolved(Ipv6Addr::from(address)));
            }
        }
    }

    /// Whether a route is wanted, by packets or by neighbours.
    pub(crate) fn is_wanted(&self, now_s: u32, destination: &Destination) -> bool {
        let is_used = destination.used_s != 0 && destination.used_s.saturating_add(USED_S) > now_s;
        is_used || destination.adjacents.iter().any(|it| it.subscribed_s > now_s)
    }

    /// A destination lost its route. If a neighbour offers one that may not be used, or if somebody
    /// wants it, a new sequence number is asked for at once.
    pub(crate) fn starved(&mut self, now_ns: u64, index: Index) {
        let Some(destination) = self.table.get(index) else { return };
        if destination.is_leaving
            || destination.newest.announcement.expires_unix_s <= self.unix_s(now_ns)
        {
            return;
        }
        let is_wanted = self.is_wanted(seconds(now_ns), destination)
            && !destination.is_of_zone(self.config.zone);
        if destination.has_offers(&self.costs) || is_wanted {
            let address = destination.address;
            self.counters.starved += 1;
            self.start(now_ns, address, self.sequence_that_helps(address), false);
        }
    }

    /// Repeats requests and gives up on them.
    pub(crate) fn handle_requests(&mut self, now_ns: u64) {
        if now_ns < self.requests.deadline_ns {
            return;
        }
        let due = self.requests.wanted.iter().filter(|(_, it)| now_ns >= it.next_ns);
        let mut due: Vec<u128> = due.map(|(address, _)| *address).collect();
        // The map's order depends on its secret; what is sent first must not.
        due.sort_unstable();
        for address in due {
            self.handle_request(now_ns, address);
        }
        let next = self.requests.wanted.values().map(|it| it.next_ns).min();
        self.requests.deadline_ns = next.unwrap_or(u64::MAX);
    }

    fn handle_request(&mut self, now_ns: u64, address: u128) {
        let Some(wanted) = self.requests.wanted.get_mut(&address) else { return };
        wanted.attempts += 1;
        let repeat_ns = REPEATS_NS.get(wanted.attempts).filter(|_| wanted.is_own);
        if let Some(repeat_ns) = repeat_ns {
            wanted.next_ns = now_ns + repeat_ns;
            wanted.passed_on_ns = Some(now_ns);
            let (sequence, is_awaited) = (wanted.sequence, wanted.is_awaited);
            let attempt = u8::try_from(wanted.attempts).unwrap_or(u8::MAX);
            wanted.attempt = attempt;
            let request = Request { attempt, ..search(address, sequence, is_awaited) };
            return self.pass_on(request, NONE);
        }
        if wanted.is_awaited && !wanted.is_negative {
            wanted.is_negative = true;
            wanted.is_own = true;
            wanted.next_ns = now_ns + NEGATIVE_NS;
            return self.event(Event::Unreachable(Ipv6Addr::from(address)));
        }
        self.requests.wanted.remove(&address);
    }
}
