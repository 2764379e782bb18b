//! How much of each segment is still needed: what garbage collection, repair and the accounting of
//! space go by.
//!
//! The table is in memory as a whole. A block counts as live while the map says that it is there;
//! pages of the map count in the segments that they are stored in. The table's own pages count too,
//! but that part is not stored (storing it would change it): it follows from where the pages lie.
//!
//! While a checkpoint stores the tree's pages, a change keeps what it changed (`held`), so that
//! the table can be stored as it was when the checkpoint began, plus what the checkpoint did.

use std::collections::{BTreeMap, BTreeSet};

use super::location::Location;

/// What is known of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// How many blocks it has; 0 for one that only pages under way are known of.
    pub blocks: u16,
    /// How many of them are needed by the map as it is now, its own pages included.
    pub live: u16,
    /// The shards that nodes hold, as far as is known: bit `i` is shard `i`.
    pub present: u32,
    /// The sequence number of the segment in which what is in this one was written first, more or
    /// less: its age. Blocks that were moved keep it.
    pub birth: u64,
}

/// A page of the table: the segments from its first sequence number to the next page's.
#[derive(Debug, Clone, Copy)]
pub(super) struct TablePage {
    pub(super) location: Option<Location>,
    pub(super) dirty: bool,
}

/// The table of segments.
#[derive(Debug)]
pub struct Usage {
    pub(super) segments: BTreeMap<u64, Segment>,
    /// Segments of which nothing is live, but for pages of the table.
    dead: BTreeSet<u64>,
    /// How many pages of this table, as the last finished checkpoint stored it, are in a segment.
    pub(super) own: BTreeMap<u64, u16>,
    /// By first sequence number; 0 is always there.
    pub(super) pages: BTreeMap<u64, TablePage>,
    /// Where the table's upper pages are stored.
    pub(super) upper: Vec<Location>,
    /// While a checkpoint stores the tree: segments as they were when it began (and as what it
    /// stored makes them), if they changed since. `None`: wasn't there.
    held: Option<BTreeMap<u64, Option<Segment>>>,
    live_blocks: u64,
    own_blocks: u64,
    stored_blocks: u64,
    /// Those of them that are in segments of which nothing is live.
    dead_blocks: u64,
    errors: u64,
}

impl Usage {
    pub(super) fn new() -> Self {
        let first = TablePage { location: None, dirty: false };
        Self {
            segments: BTreeMap::new(),
            dead: BTreeSet::new(),
            own: BTreeMap::new(),
            pages: BTreeMap::from([(0, first)]),
            upper: Vec::new(),
            held: None,
            live_blocks: 0,
            own_blocks: 0,
            stored_blocks: 0,
            dead_blocks: 0,
            errors: 0,
        }
    }

    /// What is known of a segment.
    #[must_use]
    pub fn get(&self, sequence: u64) -> Option<Segment> {
        let segment = self.segments.get(&sequence)?;
        Some(self.with_own(sequence, *segment))
    }

    fn with_own(&self, sequence: u64, segment: Segment) -> Segment {
        let own = self.own.get(&sequence).copied().unwrap_or(0);
        Segment { live: segment.live.saturating_add(own), ..segment }
    }

    /// All segments from `sequence` on, in order.
    pub fn from(&self, sequence: u64) -> impl Iterator<Item = (u64, Segment)> {
        self.segments
            .range(sequence..)
            .map(|(sequence, segment)| (*sequence, self.with_own(*sequence, *segment)))
    }

    /// How many segments there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether there is no segment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The segments of which nothing is live now. A stored root may still need them: what may be
    /// deleted is said by [`super::Map::finish_checkpoint`].
    pub fn dead(&self) -> impl Iterator<Item = u64> {
        self.dead.iter().copied().filter(|sequence| !self.own.contains_key(sequence))
    }

    /// How many blocks are live in all segments: data, and pages of the map.
    #[must_use]
    pub fn live_blocks(&self) -> u64 {
        self.live_blocks + self.own_blocks
    }

    /// How many blocks all segments have.
    #[must_use]
    pub fn stored_blocks(&self) -> u64 {
        self.stored_blocks
    }

    /// How many of them are in segments of which nothing is live: deletion is all that they need.
    #[must_use]
    pub fn dead_blocks(&self) -> u64 {
        self.dead_blocks
    }

    /// How often the map named a segment that the table doesn't have, or more blocks of one than
    /// were live. If it isn't 0, nothing may be deleted.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// A segment is committed: `blocks` blocks, on the shards `present`, of age `birth`. Comes
    /// before the map points into it.
    pub fn add(&mut self, sequence: u64, blocks: u16, present: u32, birth: u64) {
        let known = self.segments.get(&sequence).copied().unwrap_or_default();
        self.stored_blocks += u64::from(blocks);
        self.stored_blocks -= u64::from(known.blocks);
        self.put(sequence, Some(Segment { blocks, live: known.live, present, birth }));
    }

    /// Other shards are there than were before. False if there is no such segment.
    pub fn set_present(&mut self, sequence: u64, present: u32) -> bool {
        let Some(segment) = self.segments.get(&sequence).copied() else { return false };
        if segment.present != present {
            self.put(sequence, Some(Segment { present, ..segment }));
        }
        true
    }

    /// The segment's shards are deleted. False if something of it is live, or there is no such
    /// segment: nothing is changed then.
    pub fn remove(&mut self, sequence: u64) -> bool {
        match self.get(sequence) {
            Some(segment) if segment.live == 0 => {
                self.stored_blocks -= u64::from(segment.blocks);
                self.put(sequence, None);
                true
            }
            _ => false,
        }
    }

    /// Blocks of a segment are no longer needed.
    pub(super) fn kill(&mut self, sequence: u64, count: u16) {
        if count == 0 {
            return;
        }
        let Some(segment) = self.segments.get(&sequence).copied() else {
            self.errors += 1;
            return;
        };
        let killed = count.min(segment.live);
        self.errors += u64::from(killed != count);
        self.live_blocks -= u64::from(killed);
        self.put(sequence, Some(Segment { live: segment.live - killed, ..segment }));
    }

    /// Blocks of a segment are needed from now on.
    pub(super) fn revive(&mut self, sequence: u64, count: u16) {
        let segment = self.segments.get(&sequence).copied().unwrap_or_default();
        self.live_blocks += u64::from(count);
        self.put(sequence, Some(Segment { live: segment.live.saturating_add(count), ..segment }));
    }

    /// Every change of the live table goes through here.
    fn put(&mut self, sequence: u64, segment: Option<Segment>) {
        let before = match segment {
            Some(segment) => self.segments.insert(sequence, segment),
            None => self.segments.remove(&sequence),
        };
        if self.dead.remove(&sequence) {
            self.dead_blocks -= before.map_or(0, |before| u64::from(before.blocks));
        }
        if let Some(segment) = segment.filter(|segment| segment.live == 0) {
            self.dead.insert(sequence);
            self.dead_blocks += u64::from(segment.blocks);
        }
        if let Some(held) = &mut self.held {
            held.entry(sequence).or_insert(before);
        }
        self.touch(sequence);
    }

    /// The page that has the segment must be stored anew.
    pub(super) fn touch(&mut self, sequence: u64) {
        if let Some((_, page)) = self.pages.range_mut(..=sequence).next_back() {
            page.dirty = true;
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.pages.values().any(|page| page.dirty)
    }

    /// The table is to be stored as it is now.
    pub(super) fn hold(&mut self) {
        self.held = Some(BTreeMap::new());
    }

    /// A page of the tree moved, in the table to be stored and in the live one: `frozen` and `live`
    /// are where it was; `to` where it is, in the live one only if it `lives` there.
    pub(super) fn move_page(
        &mut self,
        frozen: Option<Location>,
        live: Option<Location>,
        to: Location,
        lives: bool,
    ) {
        if let Some(old) = frozen {
            self.change_held(old.sequence(), |live| live.checked_sub(1));
        }
        self.change_held(to.sequence(), |live| live.checked_add(1));
        if let Some(old) = live {
            self.kill(old.sequence(), 1);
        }
        if lives {
            self.revive(to.sequence(), 1);
        }
    }

    fn change_held(&mut self, sequence: u64, change: impl FnOnce(u16) -> Option<u16>) {
        let Some(held) = &mut self.held else { return };
        let now = self.segments.get(&sequence).copied();
        let segment = held.entry(sequence).or_insert(now).get_or_insert_default();
        match change(segment.live) {
            Some(live) => segment.live = live,
            None => self.errors += 1,
        }
    }

    /// How many segments the table to be stored has.
    pub(super) fn held_len(&self) -> u64 {
        let mut len = self.segments.len() as u64;
        for (sequence, before) in self.held.iter().flatten() {
            len += u64::from(before.is_some());
            len -= u64::from(self.segments.contains_key(sequence));
        }
        len
    }

    /// Ends the holding: what changed since, as it was, and the segments that were dead.
    pub(super) fn release(&mut self) -> (BTreeMap<u64, Option<Segment>>, Vec<u64>) {
        let held = self.held.take().unwrap_or_default();
        let was_dead = |sequence: &u64| match held.get(sequence) {
            None => true,
            Some(before) => before.is_some_and(|segment| segment.live == 0),
        };
        let dead = self.dead.iter().copied().filter(was_dead).collect();
        (held, dead)
    }

    /// Counts a segment that was read from a stored table.
    pub(super) fn load(&mut self, sequence: u64, segment: Segment) {
        self.live_blocks += u64::from(segment.live);
        self.stored_blocks += u64::from(segment.blocks);
        if segment.live == 0 {
            self.dead.insert(sequence);
            self.dead_blocks += u64::from(segment.blocks);
        }
        self.segments.insert(sequence, segment);
    }

    /// Counts the table's own pages anew: they lie where `pages` and `upper` say.
    pub(super) fn count_own(&mut self) {
        self.own.clear();
        self.own_blocks = 0;
        let pages = self.pages.values().filter_map(|page| page.location);
        for location in pages.chain(self.upper.iter().copied()) {
            *self.own.entry(location.sequence()).or_default() += 1;
            self.own_blocks += 1;
        }
    }

    /// Makes this table, which was read from a snapshot's root, that of the volume rolled back to
    /// the snapshot. `now` is the volume's table. Segments that the snapshot doesn't know hold
    /// nothing any more, but they are there and must be deleted some time. Those that only the
    /// snapshot's table knows held nothing then, and were deleted since.
    pub(super) fn roll_back(&mut self, now: &Usage) {
        let is_gone = |sequence: &&u64| {
            !now.segments.contains_key(*sequence) && !self.own.contains_key(*sequence)
        };
        let gone: Vec<u64> = self.dead.iter().filter(is_gone).copied().collect();
        for sequence in gone {
            let blocks = self.segments.get(&sequence).map_or(0, |segment| segment.blocks);
            self.stored_blocks -= u64::from(blocks);
            self.put(sequence, None);
        }
        for (sequence, segment) in &now.segments {
            let then = self.segments.get(sequence).copied().unwrap_or_default();
            self.stored_blocks += u64::from(segment.blocks);
            self.stored_blocks -= u64::from(then.blocks);
            self.put(*sequence, Some(Segment { live: then.live, ..*segment }));
        }
    }
}
