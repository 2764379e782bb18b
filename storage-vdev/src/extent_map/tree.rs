//! The radix tree: which location each block has.

use super::location::{Location, PageAddress};
use super::map::Run;
use super::pages::{FANOUT, FANOUT_BITS, Page, Pages, State, Words, above, words_of};
use super::root::Root;
use super::usage::Usage;
use super::{BLOCKS_MAX, MapError};

/// The most leaves (of 512 blocks) that one call looks at, and the most pages that it asks for.
pub const LOOKUP_PAGES_MAX: usize = 32;

/// What is in the way from the root to a page.
enum Way {
    /// The page is in memory.
    Found,
    /// Nothing is mapped below the page of this level.
    Hole(u8),
    /// This page must be read first.
    Missing(PageAddress, Location),
}

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) blocks: u64,
    pub(super) height: u8,
    /// Where the topmost page was stored last; 0: nowhere.
    pub(super) root: u64,
    pub(super) mapped: u64,
    pub(super) pages: Pages,
}

/// Neighbours that lived in one segment, so that its count changes once for all.
#[derive(Default)]
struct Dying {
    sequence: u64,
    count: u16,
}

impl Dying {
    fn add(&mut self, location: Location, usage: &mut Usage) {
        if self.sequence != location.sequence() {
            self.flush(usage);
            self.sequence = location.sequence();
        }
        self.count += 1;
    }

    fn flush(&mut self, usage: &mut Usage) {
        usage.kill(self.sequence, std::mem::take(&mut self.count));
    }
}

/// How many levels of pages `blocks` blocks need.
pub(super) fn height_of(blocks: u64) -> u8 {
    let mut height = 1;
    while span(height) < blocks {
        height += 1;
    }
    height
}

/// How many blocks are below one word of a page of `level`.
fn span(level: u8) -> u64 {
    1 << (FANOUT_BITS * u32::from(level))
}

impl Tree {
    pub(super) fn new(root: &Root, capacity: usize) -> Self {
        Self {
            blocks: root.blocks,
            height: height_of(root.blocks),
            root: root.map.map_or(0, Location::word),
            mapped: root.mapped,
            pages: Pages::new(capacity),
        }
    }

    pub(super) fn check(&self, first: u64, count: u64) -> Result<u64, MapError> {
        first
            .checked_add(count)
            .filter(|end| *end <= self.blocks)
            .ok_or(MapError::OutOfRange { first, count })
    }

    /// The location that is stored for the page, as far as what is above it is in memory.
    fn stored(&mut self, address: PageAddress) -> Result<Option<Location>, Way> {
        let word = if address.level() + 1 == self.height {
            self.root
        } else {
            let (parent, nth) = above(address);
            match self.way(parent) {
                Way::Found => self.pages.read(parent).map_or(0, |words| words[nth]),
                other => return Err(other),
            }
        };
        Ok(Location::from_word(word))
    }

    fn way(&mut self, address: PageAddress) -> Way {
        if self.pages.read(address).is_some() {
            return Way::Found;
        }
        match self.stored(address) {
            Ok(None) => Way::Hole(address.level()),
            Ok(Some(location)) => Way::Missing(address, location),
            Err(way) => way,
        }
    }

    /// The pages to read before the leaves of `first..end` can be looked at.
    fn missing(&mut self, first: u64, end: u64) -> MapError {
        let mut pages = Vec::new();
        let mut at = first;
        let mut looked_at = 0;
        while at < end && looked_at < LOOKUP_PAGES_MAX {
            let level = match self.way(leaf_of(at)) {
                Way::Found => 0,
                Way::Hole(level) => level,
                Way::Missing(address, location) => {
                    pages.push((address, location));
                    address.level()
                }
            };
            looked_at += 1;
            at = end_of(at, level);
        }
        MapError::Missing(pages)
    }

    /// See [`super::Map::lookup`].
    pub(super) fn lookup(
        &mut self,
        first: u64,
        count: u64,
        runs: &mut Vec<Run>,
    ) -> Result<u64, MapError> {
        let end = self.check(first, count)?;
        runs.clear();
        let mut at = first;
        let mut leaves = 0;
        while at < end && leaves < LOOKUP_PAGES_MAX {
            match self.way(leaf_of(at)) {
                Way::Found => {
                    let until = end_of(at, 0).min(end);
                    if let Some(words) = self.pages.read(leaf_of(at)) {
                        for address in at..until {
                            let word = words[address as usize % FANOUT];
                            Run::push(runs, address, 1, Location::from_word(word));
                        }
                    }
                    leaves += 1;
                    at = until;
                }
                Way::Hole(level) => {
                    let until = end_of(at, level).min(end);
                    Run::push(runs, at, until - at, None);
                    at = until;
                }
                Way::Missing(..) => return Err(self.missing(at, end)),
            }
        }
        Ok(at - first)
    }

    /// Makes sure that a page is in memory and in the live tree, empty if it wasn't there.
    fn create(&mut self, address: PageAddress) -> Result<(), MapError> {
        match self.way(address) {
            Way::Found => Ok(()),
            Way::Missing(address, location) => Err(MapError::Missing(vec![(address, location)])),
            Way::Hole(_) => {
                if address.level() + 1 < self.height {
                    self.create(above(address).0)?;
                }
                self.pages.insert(address, Box::new([0; FANOUT]), State::Dirty);
                Ok(())
            }
        }
    }

    /// Maps `count` blocks to `location` and those behind it. All are in the volume and in one
    /// segment.
    pub(super) fn set(
        &mut self,
        first: u64,
        count: u64,
        location: Location,
        usage: &mut Usage,
    ) -> Result<(), MapError> {
        let end = self.check(first, count)?;
        let mut at = first;
        while at < end {
            let until = end_of(at, 0).min(end);
            self.create(leaf_of(at))?;
            let Some(words) = self.pages.change(leaf_of(at)) else {
                unreachable!("a leaf that was just created is in memory");
            };
            let places = &mut words[at as usize % FANOUT..][..(until - at) as usize];
            let mut dying = Dying::default();
            let mut fresh = 0;
            for (word, next) in places.iter_mut().zip(location.word() + (at - first)..) {
                match Location::from_word(std::mem::replace(word, next)) {
                    Some(old) => dying.add(old, usage),
                    None => fresh += 1,
                }
            }
            dying.flush(usage);
            usage.revive(location.sequence(), (until - at) as u16);
            // The count comes from a root; a root whose count is wrong must not lead to none.
            self.mapped = (self.mapped + fresh).min(self.blocks);
            at = until;
        }
        Ok(())
    }

    /// Maps a block to `to` if it is at `from`.
    pub(super) fn move_if(
        &mut self,
        address: u64,
        from: Location,
        to: Location,
        usage: &mut Usage,
    ) -> Result<bool, MapError> {
        self.check(address, 1)?;
        match self.way(leaf_of(address)) {
            Way::Found => {}
            Way::Hole(_) => return Ok(false),
            Way::Missing(..) => return Err(self.missing(address, address + 1)),
        }
        let nth = address as usize % FANOUT;
        let is = self.pages.read(leaf_of(address)).map(|words| words[nth]);
        if is != Some(from.word()) {
            return Ok(false);
        }
        self.set(address, 1, to, usage)?;
        Ok(true)
    }

    /// See [`super::Map::zero`].
    pub(super) fn zero(
        &mut self,
        first: u64,
        count: u64,
        usage: &mut Usage,
    ) -> Result<u64, MapError> {
        let end = self.check(first, count)?;
        let mut at = first;
        let mut leaves = 0;
        while at < end && leaves < LOOKUP_PAGES_MAX {
            match self.way(leaf_of(at)) {
                Way::Found => {
                    let until = end_of(at, 0).min(end);
                    self.zero_leaf(at, until, usage);
                    leaves += 1;
                    at = until;
                }
                Way::Hole(level) => at = end_of(at, level).min(end),
                Way::Missing(..) if at > first => break,
                Way::Missing(..) => return Err(self.missing(at, end)),
            }
        }
        Ok(at - first)
    }

    /// Makes blocks of one leaf zero, and drops the leaf if nothing is left in it.
    fn zero_leaf(&mut self, first: u64, end: u64, usage: &mut Usage) {
        let leaf = leaf_of(first);
        let range = first as usize % FANOUT..first as usize % FANOUT + (end - first) as usize;
        let any = |words: &Words| words[range.clone()].iter().any(|word| *word != 0);
        if self.pages.read(leaf).is_some_and(any)
            && let Some(words) = self.pages.change(leaf)
        {
            let mut dying = Dying::default();
            for word in &mut words[range] {
                if let Some(old) = Location::from_word(std::mem::take(word)) {
                    dying.add(old, usage);
                    self.mapped = self.mapped.saturating_sub(1);
                }
            }
            dying.flush(usage);
        }
        self.drop_empty(leaf, usage);
    }

    /// Drops a page in which nothing is left, and those above it in which nothing is left then.
    fn drop_empty(&mut self, mut address: PageAddress, usage: &mut Usage) {
        let empty = |words: &Words| words.iter().all(|word| *word == 0);
        while self.pages.live_children(address) == 0 && self.pages.read(address).is_some_and(empty)
        {
            self.pages.drop_live(address);
            let (parent, nth) = above(address);
            let stored = if address.level() + 1 == self.height {
                Some(&mut self.root)
            } else {
                self.pages.change(parent).map(|words| &mut words[nth])
            };
            let stored = stored.map_or(0, std::mem::take);
            if let Some(location) = Location::from_word(stored) {
                usage.kill(location.sequence(), 1);
            }
            address = parent;
        }
    }

    /// Makes the volume larger.
    pub(super) fn grow(&mut self, blocks: u64) -> Result<(), MapError> {
        if blocks < self.blocks || blocks > BLOCKS_MAX {
            return Err(MapError::OutOfRange { first: 0, count: blocks });
        }
        while self.height < height_of(blocks) {
            let top = PageAddress::map(self.height - 1, 0);
            let stored = std::mem::take(&mut self.root);
            // Also above one that only a checkpoint under way still has: a page in memory has those
            // above it in memory.
            if stored != 0 || self.pages.state(top).is_some() {
                let mut words = Box::new([0; FANOUT]);
                words[0] = stored;
                self.pages.insert_above(top, words);
            }
            self.height += 1;
        }
        self.blocks = blocks;
        Ok(())
    }

    /// Takes a page that was read, if it is still wanted.
    pub(super) fn insert(
        &mut self,
        address: PageAddress,
        location: Location,
        page: &Page,
    ) -> Result<(), MapError> {
        if address.level() >= self.height || address.index() >= self.pages_of(address.level()) {
            return Err(MapError::Malformed { address });
        }
        let wanted = match self.way(address) {
            Way::Missing(missing, stored) => missing == address && stored == location,
            Way::Found | Way::Hole(_) => false,
        };
        if !wanted {
            return Ok(());
        }
        let words = words_of(page);
        // Each word of this page is for so many blocks, and the last may be for fewer.
        let below = span(address.level());
        let first = address.index() * FANOUT as u64;
        let inside = self.blocks.div_ceil(below) - first;
        let sound = words
            .iter()
            .zip(0..)
            .all(|(word, nth)| *word == 0 || nth < inside && Location::from_word(*word).is_some());
        if !sound {
            return Err(MapError::Malformed { address });
        }
        self.pages.insert(address, words, State::Clean);
        Ok(())
    }

    /// How many pages a level has.
    fn pages_of(&self, level: u8) -> u64 {
        self.blocks.div_ceil(span(level + 1))
    }

    /// Sees to it that the next checkpoint stores the page anew, if it is stored at `location` now.
    pub(super) fn rewrite(
        &mut self,
        address: PageAddress,
        location: Location,
    ) -> Result<bool, MapError> {
        if address.level() >= self.height || address.index() >= self.pages_of(address.level()) {
            return Ok(false);
        }
        match self.stored(address) {
            Ok(Some(stored)) if stored == location => {}
            Ok(_) | Err(Way::Hole(_) | Way::Found) => return Ok(false),
            Err(Way::Missing(address, location)) => {
                return Err(MapError::Missing(vec![(address, location)]));
            }
        }
        match self.pages.change(address) {
            Some(_) => Ok(true),
            None => Err(MapError::Missing(vec![(address, location)])),
        }
    }
}

/// The leaf of a block.
fn leaf_of(block: u64) -> PageAddress {
    PageAddress::map(0, block >> FANOUT_BITS)
}

/// The first block behind the page of `level` that has `block`.
fn end_of(block: u64, level: u8) -> u64 {
    let span = span(level + 1);
    (block / span + 1) * span
}
