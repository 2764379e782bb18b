//! One destination: what each neighbour said about it, what each neighbour was told, and the choice.
//!
//! Loops are excluded by Babel's feasibility condition (RFC 8966 §2.4), per destination, with the
//! sequence number that the destination itself signed. Write `d(X)` for the smallest (sequence,
//! metric) that router X ever told anybody; a newer sequence is smaller than an older one. X uses
//! neighbour Y only if the smallest that Y told X since Y's last retraction is smaller than `d(X)`.
//! As `d(Y)` is at most that, `d` falls strictly along every path, so no path comes back.
//!
//! Two things differ from the RFC. The *smallest* of what Y told is compared, not the last: if the
//! metric of a neighbour rises, it stays as safe as it was, so that a slower path is no lost path.
//! And `d(X)` is forgotten once every neighbour has acknowledged X's retraction: then nobody uses X,
//! and no path that X takes can come back to it.

use net_vdev::announcement::{Role, SignedAnnouncement};

use crate::message::INFINITY;

/// No link.
pub(crate) const NONE: u16 = u16::MAX;

/// A destination as it looks from one neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Adjacent {
    /// The sequence number of its route.
    pub(crate) sequence: u64,
    /// The update that last told it of this destination.
    pub(crate) number: u64,
    /// What it said last, and the smallest that it said under this sequence number.
    pub(crate) metric: u32,
    pub(crate) distance: u32,
    /// What it was told last.
    pub(crate) told: u32,
    /// Until when it wants to be told although it need not know, in seconds of the router's clock.
    pub(crate) subscribed_s: u32,
    pub(crate) slot: u16,
    pub(crate) flags: u8,
}

/// It is in the list of what is to be told at once, or of what may wait.
pub(crate) const URGENT: u8 = 1;
pub(crate) const CHANGED: u8 = 2;
/// It has the newest announcement.
pub(crate) const HAS_NEWEST: u8 = 4;
/// It was told a route of the sequence number that is in use now.
pub(crate) const HAS_SEQUENCE: u8 = 8;
/// What it was told last is not acknowledged.
pub(crate) const UNDER_WAY: u8 = 16;
/// It waits for a route: what comes next is urgent.
pub(crate) const ASKED: u8 = 32;
/// Packets through it did not arrive lately.
pub(crate) const AVOIDED: u8 = 64;
/// What is under way to it holds the newest announcement.
pub(crate) const NEWEST_UNDER_WAY: u8 = 128;
/// In place of a metric: nobody knows what it was told last.
pub(crate) const UNKNOWN: u32 = INFINITY - 1;

impl Adjacent {
    fn new(slot: u16) -> Self {
        Self {
            sequence: 0,
            number: 0,
            metric: INFINITY,
            distance: INFINITY,
            told: INFINITY,
            subscribed_s: 0,
            slot,
            flags: 0,
        }
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn set(&mut self, flag: u8, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    /// Takes what the neighbour says now.
    pub(crate) fn hear(&mut self, sequence: u64, metric: u32) {
        let is_same = self.metric < INFINITY && sequence == self.sequence;
        self.distance = if is_same { self.distance.min(metric) } else { metric };
        self.metric = metric;
        self.sequence = sequence;
    }
}

/// A key that is routed for, and the routes to it.
#[derive(Debug)]
pub(crate) struct Destination {
    /// The newest announcement, verified.
    pub(crate) newest: SignedAnnouncement,
    pub(crate) address: u128,
    /// Sequence number and metric: the smallest that anybody was told.
    pub(crate) feasible: Option<(u64, u32)>,
    /// The route in use: where it goes, its sequence number and metric; the second choice.
    pub(crate) primary: u16,
    pub(crate) alternate: u16,
    pub(crate) metric: u32,
    pub(crate) sequence: u64,
    /// Whether it is the router itself or attached to it.
    pub(crate) is_local: bool,
    /// Whether it is being given up to make room.
    pub(crate) is_leaving: bool,
    /// When a packet last went there, and since when there is no route, in seconds.
    pub(crate) used_s: u32,
    pub(crate) lost_s: u32,
    /// The neighbour that counts it as its own introduction.
    pub(crate) introducer: u16,
    /// Ordered by slot.
    pub(crate) adjacents: Vec<Adjacent>,
}

/// What a new choice means for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nobody need be told.
    None,
    /// The metric or the sequence number changed.
    Changed,
    /// There was no route and now there is one.
    Found,
    /// There is no route any more.
    Lost,
}

/// What a cost or metric must change by to count.
pub(crate) fn margin(of: u32) -> u32 {
    of / 10 + 1000
}

impl Destination {
    pub(crate) fn new(newest: SignedAnnouncement, address: u128, introducer: u16) -> Self {
        Self {
            newest,
            address,
            feasible: None,
            primary: NONE,
            alternate: NONE,
            metric: INFINITY,
            sequence: 0,
            is_local: false,
            is_leaving: false,
            used_s: 0,
            lost_s: 0,
            introducer,
            adjacents: Vec::new(),
        }
    }

    /// Whether all nodes of `zone` are to know it.
    pub(crate) fn is_of_zone(&self, zone: u16) -> bool {
        self.newest.announcement.role == Role::Node { zone }
    }

    pub(crate) fn is_reachable(&self) -> bool {
        self.metric < INFINITY
    }

    pub(crate) fn adjacent(&self, slot: u16) -> Option<&Adjacent> {
        let at = self.adjacents.binary_search_by_key(&slot, |adjacent| adjacent.slot).ok()?;
        self.adjacents.get(at)
    }

    pub(crate) fn adjacent_mut(&mut self, slot: u16) -> Option<&mut Adjacent> {
        let at = self.adjacents.binary_search_by_key(&slot, |adjacent| adjacent.slot).ok()?;
        self.adjacents.get_mut(at)
    }

    /// The place of a neighbour, made if there is none.
    pub(crate) fn adjacent_or_new(&mut self, slot: u16) -> &mut Adjacent {
        let at = match self.adjacents.binary_search_by_key(&slot, |adjacent| adjacent.slot) {
            Ok(at) => at,
            Err(at) => {
                self.adjacents.reserve_exact(1);
                self.adjacents.insert(at, Adjacent::new(slot));
                at
            }
        };
        &mut self.adjacents[at]
    }

    pub(crate) fn forget_neighbour(&mut self, slot: u16) {
        self.adjacents.retain(|adjacent| adjacent.slot != slot);
        if self.introducer == slot {
            self.introducer = NONE;
        }
    }

    fn is_feasible(&self, adjacent: &Adjacent) -> bool {
        let Some((sequence, metric)) = self.feasible else { return true };
        adjacent.sequence > sequence
            || (adjacent.sequence == sequence && adjacent.distance < metric)
    }

    /// What the route through a neighbour costs, if it may be used. `costs` are those of the usable
    /// links, by slot; 0 for the others.
    fn cost_through(&self, adjacent: &Adjacent, costs: &[u32]) -> Option<u32> {
        let link = costs.get(usize::from(adjacent.slot)).copied().filter(|cost| *cost > 0)?;
        // Both are at most 2^31 and 2^27.
        let sum = adjacent.metric.saturating_add(link);
        (adjacent.metric < INFINITY && sum < INFINITY && self.is_feasible(adjacent)).then_some(sum)
    }

    /// Chooses the route and the second choice anew.
    pub(crate) fn choose(&mut self, costs: &[u32], is_expired: bool) -> Change {
        let (had_metric, had_sequence, had_primary) = (self.metric, self.sequence, self.primary);
        if self.is_local {
            (self.primary, self.alternate) = (NONE, NONE);
            (self.metric, self.sequence) = (0, self.newest.announcement.sequence);
        } else {
            self.choose_link(costs, is_expired || self.is_leaving);
        }
        if self.sequence != had_sequence {
            self.adjacents.iter_mut().for_each(|adjacent| adjacent.set(HAS_SEQUENCE, false));
        }
        let is_new = self.sequence != had_sequence || self.metric != had_metric;
        match (had_metric < INFINITY, self.is_reachable()) {
            (true, false) => Change::Lost,
            (false, true) => Change::Found,
            (true, true) if is_new || self.primary != had_primary => Change::Changed,
            _ => Change::None,
        }
    }

    fn choose_link(&mut self, costs: &[u32], none: bool) {
        // The best two as (avoided, cost, slot).
        let mut best = [(true, u32::MAX, NONE); 2];
        let mut current = None;
        for adjacent in self.adjacents.iter().filter(|_| !none) {
            let Some(cost) = self.cost_through(adjacent, costs) else { continue };
            let candidate = (adjacent.has(AVOIDED), cost, adjacent.slot);
            if adjacent.slot == self.primary {
                current = Some(candidate);
            }
            if candidate < best[0] {
                best = [candidate, best[0]];
            } else if candidate < best[1] {
                best[1] = candidate;
            }
        }
        let [mut chosen, mut second] = best;
        if let Some(current) = current.filter(|current| current.2 != chosen.2) {
            let is_much_better = chosen.1.saturating_add(margin(current.1)) < current.1;
            if current.0 == chosen.0 && !is_much_better {
                (chosen, second) = (current, chosen);
            }
        }
        (self.primary, self.alternate) = (chosen.2, second.2);
        if chosen.2 == NONE {
            self.metric = INFINITY;
            return;
        }
        self.metric = chosen.1;
        self.sequence = self.adjacent(chosen.2).map_or(0, |adjacent| adjacent.sequence);
    }

    /// Whether a neighbour must be told what is true now, given that it may want to know it.
    pub(crate) fn owes(&self, adjacent: &Adjacent, wants: bool) -> bool {
        if !wants || !self.is_reachable() {
            return adjacent.told < INFINITY;
        }
        let is_off = adjacent.told.abs_diff(self.metric) > margin(self.metric);
        adjacent.told == INFINITY || !adjacent.has(HAS_SEQUENCE) || is_off
    }

    /// Notes that somebody is told the route in use. The second choice must be nearer than that, too:
    /// it is chosen anew.
    pub(crate) fn note_told(&mut self, costs: &[u32]) {
        let before = self.feasible;
        let (sequence, metric) = before.unwrap_or((0, INFINITY));
        if before.is_none() || self.sequence > sequence {
            self.feasible = Some((self.sequence, self.metric));
        } else if self.sequence == sequence {
            self.feasible = Some((sequence, metric.min(self.metric)));
        }
        if self.feasible != before && !self.is_local {
            self.choose_link(costs, false);
        }
    }

    /// Whether nobody can have a route through here: all retractions are acknowledged.
    pub(crate) fn is_unused_by_others(&self) -> bool {
        self.adjacents.iter().all(|adjacent| {
            adjacent.told == INFINITY && !adjacent.has(UNDER_WAY | URGENT | CHANGED)
        })
    }

    /// Whether anybody offers a route, be it one that may not be used.
    pub(crate) fn has_offers(&self, costs: &[u32]) -> bool {
        self.adjacents.iter().any(|adjacent| {
            adjacent.metric < INFINITY
                && costs.get(usize::from(adjacent.slot)).is_some_and(|cost| *cost > 0)
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.adjacents.capacity() * size_of::<Adjacent>()
    }
}

#[cfg(test)]
mod tests {
    use net_vdev::PublicKey;
    use net_vdev::announcement::Announcement;

    use super::*;

    fn destination(offers: &[(u16, u64, u32)]) -> Destination {
        let announcement = Announcement {
            key: PublicKey([1; 32]),
            sequence: 10,
            expires_unix_s: 0,
            role: Role::Workload,
        };
        let signed = SignedAnnouncement { announcement, signature: [0; 64] };
        let mut destination = Destination::new(signed, 1, 0);
        for (slot, sequence, metric) in offers {
            destination.adjacent_or_new(*slot).hear(*sequence, *metric);
        }
        destination
    }

    const COSTS: [u32; 4] = [3000, 3000, 3000, 0];

    #[test]
    fn the_cheapest_is_chosen_and_the_next_is_kept_ready() {
        let mut destination =
            destination(&[(0, 10, 9000), (1, 10, 5000), (2, 10, 7000), (3, 10, 0)]);
        assert_eq!(destination.choose(&COSTS, false), Change::Found);
        assert_eq!((destination.primary, destination.alternate), (1, 2));
        assert_eq!(destination.metric, 8000);
        assert_eq!(destination.choose(&[3000, 0, 3000, 0], false), Change::Changed);
        assert_eq!((destination.primary, destination.alternate), (2, 0));
    }

    #[test]
    fn a_neighbour_that_is_not_nearer_than_what_was_told_is_not_used() {
        let mut destination = destination(&[(0, 10, 5000), (1, 10, 8000), (2, 10, 7999)]);
        destination.choose(&COSTS, false);
        destination.note_told(&COSTS);
        assert_eq!(destination.feasible, Some((10, 8000)));
        destination.choose(&COSTS, false);
        assert_eq!((destination.primary, destination.alternate), (0, 2));
        assert_eq!(destination.choose(&[0, 3000, 0, 0], false), Change::Lost);
        destination.adjacent_or_new(1).hear(11, 8000);
        assert_eq!(destination.choose(&[0, 3000, 0, 0], false), Change::Found);
    }

    #[test]
    fn a_neighbour_that_gets_slower_stays_usable() {
        let mut destination = destination(&[(0, 10, 5000)]);
        destination.choose(&COSTS, false);
        destination.note_told(&COSTS);
        destination.adjacent_or_new(0).hear(10, 50_000);
        assert_eq!(destination.choose(&COSTS, false), Change::Changed);
        assert_eq!((destination.primary, destination.metric), (0, 53_000));
    }

    #[test]
    fn what_a_neighbour_said_before_its_retraction_counts_no_more() {
        let mut destination = destination(&[(0, 10, 5000)]);
        destination.choose(&COSTS, false);
        destination.note_told(&COSTS);
        destination.adjacent_or_new(0).hear(10, INFINITY);
        assert_eq!(destination.choose(&COSTS, false), Change::Lost);
        destination.adjacent_or_new(0).hear(10, 8000);
        assert_eq!(destination.choose(&COSTS, false), Change::None);
    }

    #[test]
    fn a_little_better_is_not_worth_a_change() {
        let mut destination = destination(&[(0, 10, 20_000)]);
        destination.choose(&COSTS, false);
        destination.adjacent_or_new(1).hear(10, 17_000);
        destination.choose(&COSTS, false);
        assert_eq!((destination.primary, destination.alternate), (0, 1));
        destination.adjacent_or_new(1).hear(10, 16_000);
        destination.choose(&COSTS, false);
        assert_eq!((destination.primary, destination.alternate), (1, 0));
    }

    #[test]
    fn an_avoided_neighbour_is_the_last_choice_but_one() {
        let mut destination = destination(&[(0, 10, 5000), (1, 10, 90_000)]);
        destination.choose(&COSTS, false);
        destination.adjacent_or_new(0).set(AVOIDED, true);
        destination.choose(&COSTS, false);
        assert_eq!((destination.primary, destination.alternate), (1, 0));
        destination.choose(&[3000, 0, 0, 0], false);
        assert_eq!(destination.primary, 0);
    }
}
