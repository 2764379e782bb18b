//! Storing the map: its changed pages, from the leaves up, then the table of segments.
//!
//! The caller asks for the next page, puts it into a segment, says where it is, and so on until
//! there is a root. When the segments are committed and a superblock holds the root, it finishes
//! the checkpoint. The live map may change at any time meanwhile; what is stored is the map as it
//! was at the beginning.

use std::collections::VecDeque;

use super::MapError;
use super::location::{Location, PageAddress};
use super::map::Map;
use super::pages::{Page, State, above, page_of};
use super::root::Root;
use super::usage_pages::{PLACES_MAX, write_places};

/// A checkpoint under way.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// The pages of the tree, from the leaves up.
    tree: Vec<PageAddress>,
    /// How many of them have a place.
    placed: usize,
    height: u8,
    root: Root,
    table: Option<Table>,
    /// The page that was given out last and has no place yet.
    open: Option<PageAddress>,
}

/// The pages of the table of segments, which follow those of the tree.
#[derive(Debug)]
struct Table {
    /// The first segments of the leaves that are written.
    written: Vec<u64>,
    queue: VecDeque<(PageAddress, Box<Page>)>,
    level: u8,
    /// The places of the pages of this level.
    places: Vec<(u64, Location)>,
    /// The first segments of the pages of this level that are in the queue.
    firsts: VecDeque<u64>,
    upper: Vec<Location>,
    /// Whether all pages were given out.
    done: bool,
    /// The segments that were dead when the checkpoint began, but for pages of the table.
    dead: Vec<u64>,
}

impl Map {
    /// Begins a checkpoint: what is stored is the map as it is now.
    ///
    /// # Errors
    /// [`MapError::Checkpoint`]: one is under way. [`MapError::Missing`]: the table of segments was
    /// not read yet.
    pub fn freeze(&mut self) -> Result<(), MapError> {
        self.load_usage()?;
        if self.checkpoint.is_some() {
            return Err(MapError::Checkpoint);
        }
        self.usage.hold();
        self.checkpoint = Some(Checkpoint {
            tree: self.tree.pages.freeze(),
            placed: 0,
            height: self.tree.height,
            root: Root {
                blocks: self.tree.blocks,
                map: Location::from_word(self.tree.root),
                usage: None,
                usage_level: 0,
                mapped: self.tree.mapped,
                segments: 0,
            },
            table: None,
            open: None,
        });
        Ok(())
    }

    /// The next page to store; `None` if all have their place, and [`Map::frozen_root`] is there.
    ///
    /// # Errors
    /// [`MapError::Checkpoint`]: none is under way, or the last page has no place yet.
    pub fn next_page(&mut self) -> Result<Option<(PageAddress, Box<Page>)>, MapError> {
        let Some(checkpoint) = self.checkpoint.as_mut().filter(|all| all.open.is_none()) else {
            return Err(MapError::Checkpoint);
        };
        let next = match checkpoint.tree.get(checkpoint.placed) {
            Some(address) => {
                let Some(words) = self.tree.pages.frozen_words(*address) else {
                    unreachable!("what a checkpoint has to store stays in memory until it has");
                };
                Some((*address, page_of(words)))
            }
            None => {
                let usage = &mut self.usage;
                let root = &mut checkpoint.root;
                let table = checkpoint.table.get_or_insert_with(|| {
                    root.segments = usage.held_len();
                    Table::new(usage.thaw())
                });
                if table.queue.is_empty() && table.level == 0 {
                    table.places = usage.places();
                }
                table.next(root)
            }
        };
        checkpoint.open = next.as_ref().map(|(address, _)| *address);
        Ok(next)
    }

    /// The page that was given out last is block `location.index()` of segment
    /// `location.sequence()`.
    ///
    /// # Errors
    /// [`MapError::Checkpoint`]: no page was given out.
    pub fn placed(&mut self, location: Location) -> Result<(), MapError> {
        let open = self.checkpoint.as_mut().and_then(|checkpoint| checkpoint.open.take());
        let (Some(address), Some(checkpoint)) = (open, &mut self.checkpoint) else {
            return Err(MapError::Checkpoint);
        };
        if let Some(table) = &mut checkpoint.table {
            let first = table.firsts.pop_front().unwrap_or_default();
            if table.level == 0 {
                self.usage.place(first, location);
            } else {
                table.upper.push(location);
                table.places.push((first, location));
            }
            return Ok(());
        }
        checkpoint.placed += 1;
        self.placed_tree_page(address, location);
        Ok(())
    }

    fn placed_tree_page(&mut self, address: PageAddress, location: Location) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        let pages = &mut self.tree.pages;
        let (parent, nth) = above(address);
        let live = pages.state(address).is_some_and(|state| state != State::Gone);
        let frozen_top = address.level() + 1 == checkpoint.height;
        let frozen = if frozen_top {
            checkpoint.root.map.replace(location)
        } else {
            pages.frozen_words(parent).and_then(|words| Location::from_word(words[nth]))
        };
        let live_top = address.level() + 1 == self.tree.height;
        let stored = match pages.read(parent) {
            _ if !live => None,
            _ if live_top => Location::from_word(self.tree.root),
            Some(words) => Location::from_word(words[nth]),
            None => None,
        };
        if live && live_top {
            self.tree.root = location.word();
        }
        pages.place_child(address, location.word(), live);
        pages.placed(address);
        self.usage.move_page(frozen, stored, location, live);
    }

    /// The root of the checkpoint under way, when all its pages have a place.
    #[must_use]
    pub fn frozen_root(&self) -> Option<Root> {
        let checkpoint = self.checkpoint.as_ref()?;
        let table = checkpoint.table.as_ref()?;
        (checkpoint.open.is_none() && table.done).then_some(checkpoint.root)
    }

    /// The checkpoint's root is durable, and every later opening begins with it or with a later
    /// one. Returns the segments of which the root needs nothing: unless a snapshot needs them,
    /// their shards may be deleted, and then [`super::Usage::remove`] forgets them.
    ///
    /// # Errors
    /// [`MapError::Checkpoint`]: there is no root yet.
    pub fn finish_checkpoint(&mut self) -> Result<Vec<u64>, MapError> {
        if self.frozen_root().is_none() {
            return Err(MapError::Checkpoint);
        }
        let Some(Checkpoint { tree, table: Some(table), .. }) = self.checkpoint.take() else {
            return Err(MapError::Checkpoint);
        };
        tree.into_iter().for_each(|address| self.tree.pages.finish(address));
        self.usage.upper = table.upper;
        self.usage.count_own();
        let mut dead = table.dead;
        dead.retain(|sequence| !self.usage.own.contains_key(sequence));
        Ok(dead)
    }

    /// Gives the checkpoint under way up, if there is one; the next one stores what it stored.
    pub fn abort_checkpoint(&mut self) {
        let Some(checkpoint) = self.checkpoint.take() else { return };
        checkpoint.tree.into_iter().for_each(|address| self.tree.pages.abort(address));
        match checkpoint.table {
            Some(table) => table.written.into_iter().for_each(|first| self.usage.touch(first)),
            None => drop(self.usage.release()),
        }
    }
}

impl Table {
    fn new((written, dead): (Vec<(u64, Box<Page>)>, Vec<u64>)) -> Self {
        let firsts = written.iter().map(|(first, _)| *first);
        Self {
            written: firsts.clone().collect(),
            firsts: firsts.collect(),
            queue: written
                .into_iter()
                .map(|(first, page)| (PageAddress::usage(0, first), page))
                .collect(),
            level: 0,
            places: Vec::new(),
            upper: Vec::new(),
            done: false,
            dead,
        }
    }

    /// Whether one page is on top, or there are no pages at all.
    fn is_complete(&self) -> bool {
        self.places.is_empty() || self.level > 0 && self.places.len() == 1
    }

    /// The next page of the table; those of a level follow those of the level below.
    fn next(&mut self, root: &mut Root) -> Option<(PageAddress, Box<Page>)> {
        if self.queue.is_empty() && !self.is_complete() {
            self.level += 1;
            let below = std::mem::take(&mut self.places);
            for (nth, places) in (0..).zip(below.chunks(PLACES_MAX)) {
                let address = PageAddress::usage(self.level, nth);
                self.firsts.push_back(places.first().map_or(0, |place| place.0));
                self.queue.push_back((address, write_places(self.level, places)));
            }
        }
        let next = self.queue.pop_front();
        if next.is_none() {
            self.done = true;
            root.usage = self.places.first().map(|place| place.1);
            root.usage_level = if root.usage.is_some() { self.level } else { 0 };
        }
        next
    }
}
