//! The router: links, timers, and where a packet goes.

use std::collections::VecDeque;
use std::net::Ipv6Addr;

use net_vdev::PublicKey;

use crate::config::{Config, Counters, Event, LinkError, NextHop};
use crate::destination::NONE;
use crate::doubts::Recent;
use crate::hash::{Random, Seeded};
use crate::link::{Link, LinkId};
use crate::liveness::{Action, Confirmed};
use crate::message::{self, Body, Header};
use crate::requests::Requests;
use crate::table::{Index, Table};

/// Events that wait to be taken.
const EVENTS_MAX: usize = 1024;
const S: u64 = 1_000_000_000;
/// How often the table is looked through.
const SWEEP_NS: u64 = 2 * S;
/// How long a link is avoided for a destination.
const AVOID_NS: u64 = 10 * S;
/// The most pairs of destination and link that are avoided at a time.
const AVOIDED_MAX: usize = 256;

/// A node's router. See the crate's documentation.
#[derive(Debug)]
pub struct Router {
    pub(crate) config: Config,
    pub(crate) random: Random,
    pub(crate) links: Vec<Option<Link>>,
    /// What each usable link costs, by slot; 0 for all others.
    pub(crate) costs: Vec<u32>,
    generation: u32,
    pub(crate) table: Table,
    pub(crate) requests: Requests,
    pub(crate) doubts: Recent,
    pub(crate) avoided: Vec<(u64, Index, u16)>,
    pub(crate) sweep_ns: u64,
    out: VecDeque<(LinkId, Vec<u8>)>,
    events: VecDeque<Event>,
    pub(crate) counters: Counters,
}

impl Router {
    /// A router without links. `seed` is random: jitter, incarnations and hash keys come from it.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let hasher = Seeded::new([random.u64(), random.u64()]);
        Self {
            config,
            links: Vec::new(),
            costs: Vec::new(),
            generation: 0,
            table: Table::new(hasher),
            requests: Requests::new(hasher),
            doubts: Recent::default(),
            avoided: Vec::new(),
            sweep_ns: 0,
            out: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            random,
        }
    }

    /// A neighbour can be spoken to. Packets may be sent through the link after
    /// [`Event::LinkUp`]. `extra_cost_us` is added to the cost that is measured.
    ///
    /// # Errors
    /// A [`LinkError`]; an older link to the same neighbour is taken down and replaced.
    pub fn link_up(
        &mut self,
        now_ns: u64,
        neighbour: PublicKey,
        extra_cost_us: u32,
    ) -> Result<LinkId, LinkError> {
        if neighbour == self.config.key {
            return Err(LinkError::Own);
        }
        let older = self.links.iter().flatten().find(|link| link.neighbour == neighbour);
        if let Some(older) = older.map(|link| link.id) {
            self.link_down(now_ns, older);
        }
        let free = self.links.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.links.len());
        let bound = self.config.neighbours_max.min(NONE - 1);
        let slot = u16::try_from(slot).ok().filter(|slot| *slot < bound);
        let slot = slot.ok_or(LinkError::TooMany(bound))?;
        if free.is_none() {
            self.links.push(None);
            self.costs.push(0);
        }
        self.generation = self.generation.wrapping_add(1);
        let id = LinkId { slot, generation: self.generation };
        let own = self.random.incarnation();
        let link = Link::new(now_ns, id, neighbour, extra_cost_us, own);
        if let Some(place) = self.links.get_mut(id.index()) {
            *place = Some(link);
        }
        self.poll_liveness(now_ns, slot);
        Ok(id)
    }

    /// The link is no more: its socket failed, its peer was removed. Routes through it are replaced
    /// before this returns.
    pub fn link_down(&mut self, now_ns: u64, id: LinkId) {
        let Some(link) = self.link(id) else { return };
        if link.is_usable() {
            self.spread_loss(now_ns, id);
        }
        self.forget_neighbour(now_ns, id.slot);
        if let Some(place) = self.links.get_mut(id.index()) {
            *place = None;
        }
        self.flush(now_ns);
    }

    /// Somebody who may be wrong, like an ICMP error, says that the link is dead. Packets take the
    /// second choice while that is looked into, for as long as a few round trips.
    pub fn suspect(&mut self, now_ns: u64, id: LinkId) {
        if self.link_mut(id).is_some_and(|link| link.liveness.hint(now_ns)) {
            self.poll_liveness(now_ns, id.slot);
        }
    }

    /// Data is handed to the link: it is probed closely as long as that goes on. Call it per batch.
    pub fn sent(&mut self, now_ns: u64, id: LinkId) {
        if let Some(link) = self.link_mut(id) {
            link.liveness.sent(now_ns);
        }
    }

    /// Whether packets that came from this neighbour are to be passed on. They are not while it may
    /// still act on what this router told it before it forgot.
    #[must_use]
    pub fn accepts(&self, id: LinkId) -> bool {
        self.link(id).is_some_and(|link| link.is_known)
    }

    /// A message of the neighbour arrived.
    pub fn receive(&mut self, now_ns: u64, id: LinkId, bytes: &[u8]) {
        let Some(link) = self.link_mut(id) else { return };
        if !link.received.take(now_ns, 1) {
            self.counters.too_many += 1;
            return;
        }
        let Ok((header, body)) = message::parse(bytes) else {
            self.counters.malformed += 1;
            return;
        };
        self.counters.received += 1;
        if !self.meet(now_ns, id.slot, header, &body) {
            self.counters.stale += 1;
            return;
        }
        match body {
            Body::Probe { id: probe } => {
                // Named as the probe named itself, so that the reply is taken in any case.
                let Some(own) = self.link(id).map(|link| link.own) else { return };
                let head = Header { zone: self.config.zone, from: own, to: header.from };
                self.send(id, message::reply(head, probe));
            }
            Body::Reply { id: probe } => self.confirm(now_ns, id.slot, probe),
            Body::Update { number, entries } => self.learn(now_ns, id.slot, number, entries),
            Body::Ack { highest, before } => self.settle(now_ns, id.slot, highest, before),
            Body::Request(request) => self.asked(now_ns, id.slot, request),
            Body::Doubt(doubt) => self.doubted(now_ns, id.slot, doubt),
        }
        self.flush(now_ns);
    }

    /// Compares incarnations: notices that the neighbour started anew, and whether the message is
    /// for this incarnation of ours.
    fn meet(&mut self, now_ns: u64, slot: u16, header: Header, body: &Body<'_>) -> bool {
        let Some(link) = self.link_at(slot) else { return false };
        let is_probe = matches!(body, Body::Probe { .. });
        let is_mine = header.to == link.own;
        if header.from == 0 || !(is_mine || is_probe) {
            return false;
        }
        if header.from != link.theirs {
            let introduces = is_probe || matches!(body, Body::Reply { .. });
            if !introduces || !(is_mine || header.to == 0 || link.theirs == 0) {
                // An old probe that was late, or one to an old incarnation of ours: the reply lets
                // its sender learn the new one.
                return is_probe;
            }
            // What it said and was told is void.
            let (own, was_met) = (link.own, link.theirs != 0);
            if was_met {
                self.forget_neighbour(now_ns, slot);
            }
            if let Some(link) = self.link_at_mut(slot) {
                link.restart(own, header.from);
            }
        }
        let Some(link) = self.link_at_mut(slot) else { return false };
        link.zone = header.zone;
        let is_news = header.to == link.own && !link.is_known;
        link.is_known |= is_news;
        if is_news && link.is_usable() {
            self.link_is_usable(now_ns, slot);
        }
        true
    }

    fn confirm(&mut self, now_ns: u64, slot: u16, probe: u32) {
        let Some(link) = self.links.get_mut(usize::from(slot)).and_then(Option::as_mut) else {
            return;
        };
        let confirmed = link.liveness.confirm(now_ns, probe, &mut self.random);
        if confirmed == Confirmed::Nothing {
            return;
        }
        link.is_doubted = link.liveness.is_in_doubt(now_ns);
        let cost_changed = link.follow_cost();
        if confirmed == Confirmed::Up && link.is_usable() {
            self.link_is_usable(now_ns, slot);
        } else if cost_changed && link.is_usable() {
            self.costs[usize::from(slot)] = link.cost_us.max(1);
            self.choose_all_with(now_ns, slot);
        }
    }

    /// The neighbour answers and knows us: it gets all that it is to know.
    fn link_is_usable(&mut self, now_ns: u64, slot: u16) {
        let Some(link) = self.link_at_mut(slot) else { return };
        link.follow_cost();
        let (id, cost) = (link.id, link.cost_us.max(1));
        if let Some(place) = self.costs.get_mut(usize::from(slot)) {
            *place = cost;
        }
        self.choose_all_with(now_ns, slot);
        for index in self.table.indices() {
            self.tell_if_owed(now_ns, index, slot, false);
        }
        if let Some(link) = self.link_at_mut(slot) {
            link.flush_ns = now_ns;
        }
        self.event(Event::LinkUp(id));
    }

    /// All that the neighbour said and was told is void.
    fn forget_neighbour(&mut self, now_ns: u64, slot: u16) {
        // Nothing is told to it any more, in particular not what follows from forgetting it.
        if let Some(link) = self.link_at_mut(slot) {
            link.is_known = false;
        }
        if let Some(cost) = self.costs.get_mut(usize::from(slot)) {
            *cost = 0;
        }
        self.avoided.retain(|(_, _, avoided)| *avoided != slot);
        self.requests.forget_neighbour(slot);
        for index in self.table.indices() {
            let Some(destination) = self.table.get_mut(index) else { continue };
            if destination.adjacent(slot).is_none() {
                continue;
            }
            let was_introducer = destination.introducer == slot;
            destination.forget_neighbour(slot);
            if was_introducer {
                self.find_introducer(index);
            }
            self.choose(now_ns, index);
        }
        if let Some(link) = self.link_at_mut(slot) {
            link.introduced = 0;
            link.was_refused = false;
        }
    }

    fn poll_liveness(&mut self, now_ns: u64, slot: u16) {
        // A probe or the death of the link, each at most once per call.
        for _ in 0..3 {
            let Some(link) = self.links.get_mut(usize::from(slot)).and_then(Option::as_mut) else {
                return;
            };
            link.is_doubted = link.liveness.is_in_doubt(now_ns);
            let id = link.id;
            match link.liveness.poll(now_ns, &mut self.random) {
                Action::Probe(probe) => {
                    let bytes = message::probe(link.header(self.config.zone), probe);
                    self.send(id, bytes);
                }
                Action::Dead => {
                    link.is_doubted = false;
                    let was_known = link.is_known;
                    if was_known {
                        self.spread_loss(now_ns, id);
                    }
                    self.forget_neighbour(now_ns, slot);
                    let own = self.random.incarnation();
                    if let Some(link) = self.link_at_mut(slot) {
                        link.restart(own, 0);
                    }
                    if was_known {
                        self.event(Event::LinkDead(id));
                    }
                }
                Action::Wait => return,
            }
        }
    }

    /// Where a packet to `address` goes now. `alternate` asks for the second choice, if there is
    /// one: that path is free of loops too, provided that all further routers take their first.
    /// Without a route, one is looked for.
    pub fn next_hop(&mut self, now_ns: u64, address: &Ipv6Addr, alternate: bool) -> NextHop {
        let bits = u128::from(*address);
        let found = self.table.find_covering(bits);
        if let Some(destination) = found.and_then(|index| self.table.get_mut(index)) {
            destination.used_s = seconds(now_ns);
        }
        match found.and_then(|index| self.choice(index, alternate)) {
            Some(next_hop) => next_hop,
            None => self.ask(now_ns, bits),
        }
    }

    /// Where a packet to `address` would go, without consequences.
    #[must_use]
    pub fn route_to(&self, address: &Ipv6Addr, alternate: bool) -> NextHop {
        let found = self.table.find_covering(u128::from(*address));
        found.and_then(|index| self.choice(index, alternate)).unwrap_or(NextHop::Unreachable)
    }

    fn choice(&self, index: Index, alternate: bool) -> Option<NextHop> {
        let destination = self.table.get(index)?;
        if destination.is_local {
            return Some(NextHop::Local(destination.newest.announcement.key));
        }
        let primary = self.link_at(destination.primary)?;
        // In doubt, the second choice is as free of loops and more likely to work.
        let second = self.link_at(destination.alternate).filter(|second| !second.is_doubted);
        let chosen = second.filter(|_| alternate || primary.is_doubted);
        Some(NextHop::Link(chosen.unwrap_or(primary).id))
    }

    /// Whether [`Router::next_hop`] for this address starts a search, which all routers hear of. Their
    /// owner limits how many it lets others start.
    #[must_use]
    pub fn would_search(&self, address: &Ipv6Addr) -> bool {
        self.route_to(address, false) == NextHop::Unreachable && !self.is_searching(address)
    }

    /// The key that an address belongs to, for a session with it.
    #[must_use]
    pub fn resolve(&self, address: &Ipv6Addr) -> Option<PublicKey> {
        let index = self.table.find_covering(u128::from(*address))?;
        let destination = self.table.get(index)?;
        let is_known = destination.is_local || destination.is_reachable();
        is_known.then_some(destination.newest.announcement.key)
    }

    /// Packets to `address` through `link` do not arrive, as a probe from end to end found. Another
    /// path is taken for ten seconds, if there is one.
    pub fn avoid(&mut self, now_ns: u64, address: &Ipv6Addr, link: LinkId) {
        let Some(index) = self.table.find_covering(u128::from(*address)) else { return };
        if self.link(link).is_none() || self.avoided.len() >= AVOIDED_MAX {
            return;
        }
        let adjacent = self.table.get_mut(index).and_then(|it| it.adjacent_mut(link.slot));
        let Some(adjacent) = adjacent else { return };
        if !adjacent.has(crate::destination::AVOIDED) {
            adjacent.set(crate::destination::AVOIDED, true);
            self.avoided.push((now_ns + AVOID_NS, index, link.slot));
        }
        self.choose(now_ns, index);
        self.flush(now_ns);
    }

    /// Does what is due.
    pub fn handle_deadline(&mut self, now_ns: u64) {
        for slot in 0..u16::try_from(self.links.len()).unwrap_or(NONE) {
            self.poll_liveness(now_ns, slot);
            self.handle_timeouts(now_ns, slot);
        }
        self.handle_requests(now_ns);
        while let Some(at) = self.avoided.iter().position(|(until_ns, ..)| now_ns >= *until_ns) {
            let (_, index, slot) = self.avoided.swap_remove(at);
            let adjacent = self.table.get_mut(index).and_then(|it| it.adjacent_mut(slot));
            if let Some(adjacent) = adjacent {
                adjacent.set(crate::destination::AVOIDED, false);
                self.choose(now_ns, index);
            }
        }
        if now_ns >= self.sweep_ns {
            self.sweep_ns = now_ns + self.random.around(SWEEP_NS);
            self.sweep(now_ns);
        }
        self.flush(now_ns);
    }

    /// When [`handle_deadline`](Self::handle_deadline) is to be called, in ns.
    #[must_use]
    pub fn next_deadline(&self) -> u64 {
        let links = self.links.iter().flatten();
        let links = links.map(|link| link.liveness.deadline_ns().min(link.stream_deadline_ns()));
        let avoided = self.avoided.iter().map(|(until_ns, ..)| *until_ns);
        let others = [self.sweep_ns, self.requests.deadline_ns];
        links.chain(avoided).chain(others).min().unwrap_or(u64::MAX)
    }

    /// The next message to send: to whom, and its bytes.
    pub fn poll_transmit(&mut self) -> Option<(LinkId, Vec<u8>)> {
        self.out.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn event(&mut self, event: Event) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
            self.counters.lost_events += 1;
        }
        self.events.push_back(event);
    }

    pub(crate) fn send(&mut self, id: LinkId, bytes: Vec<u8>) {
        self.counters.sent += 1;
        self.counters.sent_bytes += bytes.len() as u64;
        self.out.push_back((id, bytes));
    }

    pub(crate) fn link(&self, id: LinkId) -> Option<&Link> {
        self.link_at(id.slot).filter(|link| link.id == id)
    }

    fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.link_at_mut(id.slot).filter(|link| link.id == id)
    }

    pub(crate) fn link_at(&self, slot: u16) -> Option<&Link> {
        self.links.get(usize::from(slot))?.as_ref()
    }

    pub(crate) fn link_at_mut(&mut self, slot: u16) -> Option<&mut Link> {
        self.links.get_mut(usize::from(slot))?.as_mut()
    }

    pub(crate) fn unix_s(&self, now_ns: u64) -> u64 {
        self.config.unix_time_at_zero_ns.saturating_add(now_ns) / S
    }
}

/// Seconds of the router's clock; never 0.
pub(crate) fn seconds(now_ns: u64) -> u32 {
    u32::try_from(now_ns / S).unwrap_or(u32::MAX).saturating_add(1)
}
