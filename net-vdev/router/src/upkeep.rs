//! What happens without a cause from outside: expiry, room for others, forgetting.

use crate::destination::NONE;
use crate::message::INFINITY;
use crate::requests::LEASE_S;
use crate::router::{Router, seconds};
use crate::table::Index;

/// How long a destination without a route keeps what it told others, once they all know that there
/// is none. Long enough for a new sequence number to arrive, which repairs without detours.
const RELEASE_S: u32 = 3;
/// How long a destination without a route is remembered.
const FORGET_S: u32 = 60;
/// How often a subscription in use is renewed.
const REFRESH_S: u32 = LEASE_S / 3;

impl Router {
    /// Looks through the table.
    pub(crate) fn sweep(&mut self, now_ns: u64) {
        let now_s = seconds(now_ns);
        for index in self.table.indices() {
            self.sweep_one(now_ns, now_s, index);
        }
        let room = self.config.destinations_max as usize / 8 * 7;
        if self.table.len() > room {
            return;
        }
        for slot in 0..u16::try_from(self.links.len()).unwrap_or(NONE) {
            let link = self.link_at_mut(slot).filter(|link| link.was_refused && link.is_usable());
            if let Some(link) = link {
                link.was_refused = false;
                self.ask_for_all(slot);
            }
        }
    }

    fn sweep_one(&mut self, now_ns: u64, now_s: u32, index: Index) {
        let unix_s = self.unix_s(now_ns);
        let Some(destination) = self.table.get(index) else { return };
        let is_expired = destination.newest.announcement.expires_unix_s <= unix_s;
        if is_expired && destination.is_reachable() && !destination.is_local {
            self.choose(now_ns, index);
        }
        for slot in 0..u16::try_from(self.links.len()).unwrap_or(NONE) {
            self.tell_if_owed(now_ns, index, slot, false);
        }
        let Some(destination) = self.table.get_mut(index) else { return };
        if !destination.is_reachable() {
            let lost_s = now_s.saturating_sub(destination.lost_s);
            if !destination.is_unused_by_others() {
                // A neighbour that does not acknowledge keeps it from being released, perhaps for
                // long; requests may have been lost. Ask again.
                return self.starved(now_ns, index);
            }
            if destination.feasible.is_some() && lost_s >= RELEASE_S {
                destination.feasible = None;
                self.choose(now_ns, index);
            } else if destination.is_leaving || lost_s >= FORGET_S {
                self.forget(index);
            }
            return;
        }
        // At different times for different ones; twice, so that a lost request does no harm.
        let phase = u32::try_from(destination.address % 16).unwrap_or_default();
        if (now_s + 2 * phase) % REFRESH_S < 4 && self.is_to_be_refreshed(now_s, index) {
            self.refresh(index);
        }
    }

    /// Whether a destination is wanted here, and its next router only tells those who ask. That is
    /// so for a node of this zone, too, if the way to it leaves the zone.
    fn is_to_be_refreshed(&self, now_s: u32, index: Index) -> bool {
        let Some(destination) = self.table.get(index).filter(|it| !it.is_local) else {
            return false;
        };
        let next_zone = self.link_at(destination.primary).map(|link| link.zone);
        let is_of_zone = destination.is_of_zone(self.config.zone);
        let is_told = is_of_zone && next_zone == Some(self.config.zone);
        !is_told && (is_of_zone || self.is_wanted(now_s, destination))
    }

    fn forget(&mut self, index: Index) {
        self.avoided.retain(|(_, avoided, _)| *avoided != index);
        let Some(removed) = self.table.remove(index) else { return };
        if let Some(link) = self.link_at_mut(removed.introducer) {
            link.introduced = link.introduced.saturating_sub(1);
        }
    }

    /// Another neighbour that offers a route takes a destination over.
    pub(crate) fn find_introducer(&mut self, index: Index) {
        let Some(destination) = self.table.get_mut(index) else { return };
        let offers = destination.adjacents.iter().find(|it| it.metric < INFINITY);
        destination.introducer = offers.map_or(NONE, |it| it.slot);
        let slot = destination.introducer;
        if let Some(link) = self.link_at_mut(slot) {
            link.introduced += 1;
        }
    }

    /// Whether there is room for one more destination that this neighbour introduces. If the table
    /// is full, the neighbour that introduced the most gives one up, but never for itself: so nobody
    /// takes from others more than they all have.
    pub(crate) fn make_room(&mut self, now_ns: u64, slot: u16) -> bool {
        let max = self.config.destinations_max as usize;
        if self.table.len() < max {
            return true;
        }
        let own = self.link_at(slot).map_or(0, |link| link.introduced);
        let links = self.links.iter().flatten();
        let Some(largest) = links.max_by_key(|link| link.introduced) else { return false };
        let largest_slot = largest.id.slot;
        if largest.introduced <= own + 1 || self.table.len() >= max + max / 4 {
            return false;
        }
        let Some(index) = self.table.to_give_up(largest_slot, seconds(now_ns)) else {
            return false;
        };
        if let Some(destination) = self.table.get_mut(index) {
            destination.is_leaving = true;
            destination.introducer = NONE;
        }
        if let Some(link) = self.link_at_mut(largest_slot) {
            link.introduced = link.introduced.saturating_sub(1);
            link.was_refused = true;
        }
        self.choose(now_ns, index);
        true
    }
}
