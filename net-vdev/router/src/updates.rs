//! Updates: what neighbours say about destinations, and what they are told.

use net_vdev::announcement::{Role, SignedAnnouncement};

use crate::config::{Event, OriginateError};
use crate::destination::{
    ASKED, CHANGED, Change, Destination, HAS_NEWEST, HAS_SEQUENCE, NEWEST_UNDER_WAY, NONE,
    UNDER_WAY, UNKNOWN, URGENT,
};
use crate::link::HOLD_NS;
use crate::message::{self, Entries, Entry, INFINITY};
use crate::router::{Router, seconds};
use crate::table::Index;

/// Why an entry was not taken.
enum Refused {
    Forged,
    Expired,
    Full,
    Unknown,
}

impl Router {
    /// Announces the node's own key, or a workload that is attached to it. To be called with a
    /// larger sequence number before the announcement expires.
    ///
    /// # Errors
    /// An [`OriginateError`]; nothing has changed then.
    pub fn originate(
        &mut self,
        now_ns: u64,
        signed: SignedAnnouncement,
    ) -> Result<(), OriginateError> {
        let announcement = signed.announcement;
        let (key, number) = (announcement.key, announcement.sequence);
        if matches!(announcement.role, Role::Node { .. }) && key != self.config.key {
            return Err(OriginateError::Node(key));
        }
        if announcement.expires_unix_s <= self.unix_s(now_ns) {
            return Err(OriginateError::Expired(key));
        }
        if !(self.config.verify)(&key, &announcement.encode(), &signed.signature) {
            return Err(OriginateError::Signature(key));
        }
        let address = u128::from(key.address());
        let index = match self.table.find(address) {
            Some(index) => {
                let Some(known) = self.table.get(index) else {
                    return Err(OriginateError::TooMany);
                };
                let newest = known.newest.announcement.sequence;
                if number <= newest {
                    return Err(OriginateError::Old { number, newest });
                }
                if !is_same_kind(known.newest.announcement.role, announcement.role) {
                    return Err(OriginateError::Role(key));
                }
                self.renew(index, signed);
                index
            }
            None if self.table.len() >= self.config.destinations_max as usize => {
                return Err(OriginateError::TooMany);
            }
            None => self.table.insert(Destination::new(signed, address, NONE)),
        };
        if let Some(destination) = self.table.get_mut(index) {
            destination.is_local = true;
            destination.is_leaving = false;
        }
        self.adopt_askers(now_ns, index);
        self.choose(now_ns, index);
        self.flush(now_ns);
        Ok(())
    }

    /// The workload is no longer attached. False if it was not.
    pub fn withdraw(&mut self, now_ns: u64, key: &net_vdev::PublicKey) -> bool {
        let Some(index) = self.table.find(u128::from(key.address())) else { return false };
        let Some(destination) = self.table.get_mut(index).filter(|it| it.is_local) else {
            return false;
        };
        destination.is_local = false;
        self.choose(now_ns, index);
        self.flush(now_ns);
        true
    }

    /// A newer announcement takes the place of the one that was known.
    fn renew(&mut self, index: Index, signed: SignedAnnouncement) {
        let Some(destination) = self.table.get_mut(index) else { return };
        destination.newest = signed;
        for adjacent in &mut destination.adjacents {
            adjacent.set(HAS_NEWEST | NEWEST_UNDER_WAY, false);
        }
    }

    /// Takes an update of a neighbour.
    pub(crate) fn learn(&mut self, now_ns: u64, slot: u16, number: u64, entries: Entries<'_>) {
        let Some(link) = self.link_at_mut(slot) else { return };
        if !link.takes(now_ns, number) {
            return;
        }
        let mut entries = entries;
        loop {
            match entries.next_entry() {
                Ok(Some(entry)) => self.learn_entry(now_ns, slot, entry),
                Ok(None) => return,
                Err(_) => {
                    self.counters.malformed += 1;
                    return;
                }
            }
        }
    }

    fn learn_entry(&mut self, now_ns: u64, slot: u16, entry: Entry) {
        let (found, sequence, metric) = match entry {
            Entry::News { signed, sequence, metric } => {
                let found = self.learn_announcement(now_ns, slot, &signed, metric);
                let is_possible = sequence <= signed.announcement.sequence;
                (found.filter(|_| is_possible), sequence, metric)
            }
            Entry::Route { address, sequence, metric } => {
                let found = self.table.find(address).filter(|index| {
                    let known = self.table.get(*index);
                    known.is_some_and(|it| sequence <= it.newest.announcement.sequence)
                });
                if found.is_none() && metric < INFINITY {
                    self.refuse(now_ns, slot, &Refused::Unknown);
                    // An announcement that comes then is to be verified: the bound is the same.
                    if self.link_at_mut(slot).is_some_and(|link| link.may_verify(now_ns)) {
                        self.ask_for_announcement(slot, address);
                    }
                }
                (found, sequence, metric)
            }
            Entry::Retraction { address } => (self.table.find(address), 0, INFINITY),
        };
        let Some((index, destination)) =
            found.and_then(|index| Some((index, self.table.get_mut(index)?)))
        else {
            return;
        };
        let newest = destination.newest.announcement.sequence;
        if metric >= INFINITY && destination.adjacent(slot).is_none() {
            return;
        }
        let adjacent = destination.adjacent_or_new(slot);
        adjacent.hear(if metric < INFINITY { sequence } else { adjacent.sequence }, metric);
        if metric < INFINITY && sequence == newest {
            adjacent.set(HAS_NEWEST, true);
        }
        if !destination.is_local {
            self.choose(now_ns, index);
        }
    }

    /// Takes the announcement that came with a route, if it is newer and right.
    fn learn_announcement(
        &mut self,
        now_ns: u64,
        slot: u16,
        signed: &SignedAnnouncement,
        metric: u32,
    ) -> Option<Index> {
        let announcement = &signed.announcement;
        let address = u128::from(announcement.key.address());
        let found = self.table.find(address);
        if let Some(known) = found.and_then(|index| self.table.get(index)) {
            if announcement.sequence <= known.newest.announcement.sequence {
                return found;
            }
        } else if metric >= INFINITY {
            return None;
        }
        if let Err(reason) = self.check(now_ns, slot, signed, found) {
            self.refuse(now_ns, slot, &reason);
            // What was known before is still true, but not what the neighbour says about the new.
            return None;
        }
        let Some(index) = found else {
            let index = self.table.insert(Destination::new(*signed, address, slot));
            if let Some(link) = self.link_at_mut(slot) {
                link.introduced += 1;
            }
            self.adopt_askers(now_ns, index);
            return Some(index);
        };
        if self.table.get(index).is_some_and(|it| it.is_local) {
            let sequence = announcement.sequence;
            self.event(Event::Superseded { key: announcement.key, sequence });
            return None;
        }
        self.renew(index, *signed);
        Some(index)
    }

    /// Whether a new announcement is to be taken.
    fn check(
        &mut self,
        now_ns: u64,
        slot: u16,
        signed: &SignedAnnouncement,
        found: Option<Index>,
    ) -> Result<(), Refused> {
        let announcement = &signed.announcement;
        if announcement.expires_unix_s <= self.unix_s(now_ns) {
            return Err(Refused::Expired);
        }
        if !self.link_at_mut(slot).is_some_and(|link| link.may_verify(now_ns)) {
            return Err(Refused::Full);
        }
        let known = found.and_then(|index| self.table.get(index));
        let was = known.map(|it| it.newest.announcement.role);
        let is_right =
            (self.config.verify)(&announcement.key, &announcement.encode(), &signed.signature);
        if !is_right || was.is_some_and(|was| !is_same_kind(was, announcement.role)) {
            return Err(Refused::Forged);
        }
        if found.is_none() && !self.make_room(now_ns, slot) {
            return Err(Refused::Full);
        }
        Ok(())
    }

    fn refuse(&mut self, now_ns: u64, slot: u16, reason: &Refused) {
        let count = match reason {
            Refused::Forged => &mut self.counters.forged,
            Refused::Expired => &mut self.counters.expired,
            Refused::Full => &mut self.counters.refused,
            Refused::Unknown => &mut self.counters.unknown,
        };
        *count += 1;
        let Some(link) = self.link_at_mut(slot) else { return };
        match reason {
            Refused::Forged => link.forged(now_ns),
            Refused::Full => link.was_refused = true,
            Refused::Expired | Refused::Unknown => {}
        }
    }

    /// Chooses the route to a destination anew, and has neighbours told.
    pub(crate) fn choose(&mut self, now_ns: u64, index: Index) {
        let unix_s = self.unix_s(now_ns);
        let Some(destination) = self.table.get_mut(index) else { return };
        let is_expired = destination.newest.announcement.expires_unix_s <= unix_s;
        let change = destination.choose(&self.costs, is_expired);
        if change == Change::Lost {
            destination.lost_s = seconds(now_ns);
        }
        if change != Change::None {
            for slot in 0..u16::try_from(self.links.len()).unwrap_or(NONE) {
                self.tell_if_owed(now_ns, index, slot, change == Change::Lost);
            }
        }
        match change {
            Change::Found => self.found(index),
            Change::Lost => self.starved(now_ns, index),
            Change::None | Change::Changed => {}
        }
    }

    /// The same for all that a neighbour says something about: the cost of its link changed.
    pub(crate) fn choose_all_with(&mut self, now_ns: u64, slot: u16) {
        for index in self.table.indices() {
            if self.table.get(index).is_some_and(|it| it.adjacent(slot).is_some()) {
                self.choose(now_ns, index);
            }
        }
    }

    /// Whether a neighbour is to be told of a destination at all.
    fn wants(&self, now_ns: u64, destination: &Destination, slot: u16) -> bool {
        let Some(link) = self.link_at(slot) else { return false };
        let in_zone = link.zone == self.config.zone && destination.is_of_zone(link.zone);
        let is_own = destination.newest.announcement.key == self.config.key;
        let subscribed_s = destination.adjacent(slot).map_or(0, |it| it.subscribed_s);
        in_zone || is_own || subscribed_s > seconds(now_ns)
    }

    /// Puts a destination on a neighbour's list, if what the neighbour knows is no longer true.
    pub(crate) fn tell_if_owed(&mut self, now_ns: u64, index: Index, slot: u16, urgent: bool) {
        let is_usable = self.link_at(slot).is_some_and(crate::link::Link::is_usable);
        let Some(destination) = self.table.get(index).filter(|_| is_usable) else { return };
        let wants = self.wants(now_ns, destination, slot);
        let owes = match destination.adjacent(slot) {
            Some(adjacent) => destination.owes(adjacent, wants),
            None => wants && destination.is_reachable(),
        };
        if owes {
            self.put_on_list(now_ns, index, slot, urgent);
        }
    }

    pub(crate) fn put_on_list(&mut self, now_ns: u64, index: Index, slot: u16, urgent: bool) {
        let Some(link) = self.links.get_mut(usize::from(slot)).and_then(Option::as_mut) else {
            return;
        };
        let Some(destination) = self.table.get_mut(index) else { return };
        let adjacent = destination.adjacent_or_new(slot);
        let flag = if urgent || adjacent.has(ASKED) { URGENT } else { CHANGED };
        if adjacent.has(flag) {
            return;
        }
        adjacent.set(flag, true);
        if flag == URGENT {
            link.urgent.push_back(index);
        } else {
            if link.changed.is_empty() {
                link.flush_ns = now_ns + HOLD_NS;
            }
            link.changed.push_back(index);
        }
    }

    /// Sends what is due to all neighbours.
    pub(crate) fn flush(&mut self, now_ns: u64) {
        for slot in 0..u16::try_from(self.links.len()).unwrap_or(NONE) {
            while self.write_update(now_ns, slot) {}
            let zone = self.config.zone;
            let Some(link) = self.link_at_mut(slot) else { continue };
            if let Some((highest, before)) = link.take_ack(now_ns) {
                let (id, bytes) = (link.id, message::ack(link.header(zone), highest, before));
                self.send(id, bytes);
            }
        }
    }

    /// Sends one update, if one is due. True if there may be another.
    fn write_update(&mut self, now_ns: u64, slot: u16) -> bool {
        let zone = self.config.zone;
        let Some(link) = self.link_at_mut(slot) else { return false };
        let Some(number) = link.next_number(now_ns) else { return false };
        let id = link.id;
        let mut bytes = message::update(link.header(zone), number);
        if !link.send_bytes.take(now_ns, message::MESSAGE_BYTES_MAX as u32) {
            return false;
        }
        let mut about = Vec::new();
        while message::has_room(&bytes) {
            let Some(index) = self.next_on_list(now_ns, slot) else { break };
            if let Some(entry) = self.entry(now_ns, index, slot, number) {
                message::push(&mut bytes, &entry);
                about.push(index);
            }
        }
        let Some(link) = self.link_at_mut(slot) else { return false };
        if about.is_empty() {
            link.send_bytes.give_back(message::MESSAGE_BYTES_MAX as u32);
            return false;
        }
        let unused = message::MESSAGE_BYTES_MAX.saturating_sub(bytes.len());
        link.send_bytes.give_back(u32::try_from(unused).unwrap_or_default());
        link.sent(now_ns, about);
        self.send(id, bytes);
        true
    }

    fn next_on_list(&mut self, now_ns: u64, slot: u16) -> Option<Index> {
        loop {
            let link = self.link_at_mut(slot)?;
            let may_wait = now_ns >= link.flush_ns;
            let (index, flag) = match link.urgent.pop_front() {
                Some(index) => (index, URGENT),
                None if may_wait => (link.changed.pop_front()?, CHANGED),
                None => return None,
            };
            let adjacent = self.table.get_mut(index).and_then(|it| it.adjacent_mut(slot));
            // It may have been on both lists, or may be gone.
            if let Some(adjacent) = adjacent.filter(|adjacent| adjacent.has(flag)) {
                adjacent.set(URGENT | CHANGED, false);
                return Some(index);
            }
        }
    }

    /// What a neighbour is told about a destination now, if anything. It counts as told.
    fn entry(&mut self, now_ns: u64, index: Index, slot: u16, number: u64) -> Option<Entry> {
        let destination = self.table.get(index)?;
        let wants = self.wants(now_ns, destination, slot);
        if !destination.owes(destination.adjacent(slot)?, wants) {
            return None;
        }
        let destination = self.table.get_mut(index)?;
        let is_told = wants && destination.is_reachable();
        if is_told {
            destination.note_told(&self.costs);
        }
        let (address, newest) = (destination.address, destination.newest);
        let (sequence, metric) = (destination.sequence, destination.metric);
        let adjacent = destination.adjacent_mut(slot)?;
        adjacent.number = number;
        adjacent.set(UNDER_WAY, true);
        adjacent.told = if is_told { metric } else { INFINITY };
        adjacent.set(HAS_SEQUENCE | NEWEST_UNDER_WAY, is_told);
        if !is_told {
            return Some(Entry::Retraction { address });
        }
        adjacent.set(ASKED, false);
        if adjacent.has(HAS_NEWEST) {
            return Some(Entry::Route { address, sequence, metric });
        }
        Some(Entry::News { signed: newest, sequence, metric })
    }

    /// Takes an acknowledgement.
    pub(crate) fn settle(&mut self, now_ns: u64, slot: u16, highest: u64, before: u64) {
        let Some(link) = self.link_at_mut(slot) else { return };
        let settled = link.acknowledged(highest, before);
        for (number, index) in settled.arrived {
            let adjacent = self.table.get_mut(index).and_then(|it| it.adjacent_mut(slot));
            if let Some(adjacent) = adjacent.filter(|adjacent| adjacent.number == number) {
                let has_newest = adjacent.has(HAS_NEWEST | NEWEST_UNDER_WAY);
                adjacent.set(UNDER_WAY | NEWEST_UNDER_WAY, false);
                adjacent.set(HAS_NEWEST, has_newest);
            }
        }
        self.tell_again(now_ns, slot, &settled.lost);
    }

    pub(crate) fn handle_timeouts(&mut self, now_ns: u64, slot: u16) {
        let Some(link) = self.link_at_mut(slot) else { return };
        let lost = link.timed_out(now_ns);
        self.tell_again(now_ns, slot, &lost);
    }

    /// Updates were lost: what they were about is told as it is now.
    fn tell_again(&mut self, now_ns: u64, slot: u16, lost: &[(u64, Index)]) {
        for (number, index) in lost {
            let adjacent = self.table.get_mut(*index).and_then(|it| it.adjacent_mut(slot));
            let Some(adjacent) = adjacent.filter(|adjacent| adjacent.number == *number) else {
                continue;
            };
            adjacent.set(UNDER_WAY | NEWEST_UNDER_WAY | HAS_SEQUENCE, false);
            adjacent.told = UNKNOWN;
            self.put_on_list(now_ns, *index, slot, true);
        }
    }
}

/// Whether both are nodes or both are workloads. A key stays what it was.
fn is_same_kind(one: Role, other: Role) -> bool {
    (one == Role::Workload) == (other == Role::Workload)
}
