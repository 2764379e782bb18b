//! The map of a volume: the tree of blocks and the table of segments, kept in step.

use super::checkpoint::Checkpoint;
use super::location::{Location, PageAddress};
use super::pages::Page;
use super::root::Root;
use super::tree::Tree;
use super::usage::{TablePage, Usage};
use super::usage_pages::{Step, Walk};
use super::{MapError, PAGE_BYTES, PAGES_MIN};

/// Blocks that follow each other, in the volume and in one segment; or that are all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first block.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Where the first lies; the others lie behind it. `None`: they are zero, and nowhere.
    pub location: Option<Location>,
}

impl Run {
    /// Appends `count` blocks to `runs`, to the last run if they continue it.
    pub(super) fn push(runs: &mut Vec<Run>, first: u64, count: u64, location: Option<Location>) {
        if let Some(last) = runs.last_mut() {
            let next = last.location.map(|at| at.after(last.count));
            if next == location.map(Some) {
                last.count += count;
                return;
            }
        }
        runs.push(Run { first, count, location });
    }
}

/// Where each block of a volume lies. See the module's text for [`MapError::Missing`].
#[derive(Debug)]
pub struct Map {
    pub(super) tree: Tree,
    pub(super) usage: Usage,
    /// The stored table of segments, until it is read.
    loading: Option<Walk>,
    pub(super) checkpoint: Option<Checkpoint>,
}

impl Map {
    /// The map of a new volume of `blocks` blocks, which keeps about `memory_bytes` of pages in
    /// memory.
    ///
    /// # Errors
    /// The volume is larger than [`super::BLOCKS_MAX`].
    pub fn empty(blocks: u64, memory_bytes: usize) -> Result<Self, MapError> {
        Self::from_root(&Root::empty(0), blocks, memory_bytes)
    }

    /// The map that `root` stands for, in a volume of `blocks` blocks: at least the root's. All but
    /// [`Map::lookup`] needs [`Map::load_usage`] first.
    ///
    /// # Errors
    /// The volume is smaller than the root says, or larger than [`super::BLOCKS_MAX`].
    pub fn from_root(root: &Root, blocks: u64, memory_bytes: usize) -> Result<Self, MapError> {
        let capacity = (memory_bytes / PAGE_BYTES).max(PAGES_MIN);
        let mut tree = Tree::new(root, capacity);
        tree.grow(blocks)?;
        let top = root.usage.map(|location| (root.usage_level, location));
        let loading = top.is_some().then(|| Walk::new(top));
        Ok(Self { tree, usage: Usage::new(), loading, checkpoint: None })
    }

    /// The volume's size in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.tree.blocks
    }

    /// How many blocks are mapped: not zero by being nowhere.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        self.tree.mapped
    }

    /// The table of segments, as far as it was read.
    #[must_use]
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The table of segments.
    pub fn usage_mut(&mut self) -> &mut Usage {
        &mut self.usage
    }

    /// How many pages of the tree are in memory.
    #[must_use]
    pub fn resident_pages(&self) -> usize {
        self.tree.pages.resident()
    }

    /// How many pages of the tree changed since the last checkpoint began.
    #[must_use]
    pub fn dirty_pages(&self) -> usize {
        self.tree.pages.dirty()
    }

    /// Whether changed pages take half of the memory, so that it's time for a checkpoint. Without
    /// one the map goes on, in more memory than it was given.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        self.tree.pages.dirty() >= self.tree.pages.capacity() / 2
    }

    /// Whether a checkpoint would store anything.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.tree.pages.dirty() > 0 || self.usage.is_dirty()
    }

    /// Reads the table of segments.
    ///
    /// # Errors
    /// [`MapError::Missing`] until it was read as a whole.
    pub fn load_usage(&mut self) -> Result<(), MapError> {
        let Some(walk) = &mut self.loading else { return Ok(()) };
        let missing = walk.missing();
        if !missing.is_empty() {
            return Err(MapError::Missing(missing));
        }
        self.usage.upper = std::mem::take(&mut walk.upper);
        self.usage.count_own();
        self.loading = None;
        Ok(())
    }

    /// Takes a page that was read because it was missing. One that isn't wanted any more is
    /// ignored.
    ///
    /// # Errors
    /// [`MapError::Malformed`].
    pub fn insert_page(
        &mut self,
        address: PageAddress,
        location: Location,
        page: &Page,
    ) -> Result<(), MapError> {
        if address.is_map() {
            return self.tree.insert(address, location, page);
        }
        if !address.is_usage() {
            return Err(MapError::Malformed { address });
        }
        let Some(walk) = &mut self.loading else { return Ok(()) };
        match walk.step(address, location, page)? {
            Step::Unwanted | Step::Places => {}
            Step::Segments { first, location, segments } => {
                let page = TablePage { location: Some(location), dirty: false };
                self.usage.pages.insert(first, page);
                segments.into_iter().for_each(|(key, segment)| self.usage.load(key, segment));
            }
        }
        Ok(())
    }

    /// Where blocks lie: fills `runs` with what covers `first..` without a gap, and returns how
    /// many blocks that are: all `count` of them, unless they are on more than
    /// [`super::LOOKUP_PAGES_MAX`] leaves.
    ///
    /// # Errors
    /// [`MapError::Missing`], [`MapError::OutOfRange`].
    pub fn lookup(&mut self, first: u64, count: u64, runs: &mut Vec<Run>) -> Result<u64, MapError> {
        self.tree.lookup(first, count, runs)
    }

    /// `count` blocks from `first` on lie at `location` and behind it from now on.
    ///
    /// # Errors
    /// [`MapError::Missing`] (some of them may be set already), [`MapError::OutOfRange`].
    pub fn set(&mut self, first: u64, count: u64, location: Location) -> Result<(), MapError> {
        self.load_usage()?;
        if count == 0 {
            return self.tree.check(first, count).map(|_| ());
        }
        location.after(count - 1).ok_or(MapError::OutOfRange { first, count })?;
        self.tree.set(first, count, location, &mut self.usage)
    }

    /// The block lies at `to` from now on, if it lies at `from`. Returns whether it did.
    ///
    /// # Errors
    /// [`MapError::Missing`], [`MapError::OutOfRange`].
    pub fn move_if(&mut self, block: u64, from: Location, to: Location) -> Result<bool, MapError> {
        self.load_usage()?;
        self.tree.move_if(block, from, to, &mut self.usage)
    }

    /// Makes blocks zero: `first` and those behind it, as many as one call does. Returns how many;
    /// the caller goes on behind them until `count` are done. What is zero already costs nothing.
    ///
    /// # Errors
    /// [`MapError::Missing`], [`MapError::OutOfRange`].
    pub fn zero(&mut self, first: u64, count: u64) -> Result<u64, MapError> {
        self.load_usage()?;
        self.tree.zero(first, count, &mut self.usage)
    }

    /// Makes the volume larger: `blocks` blocks in all.
    ///
    /// # Errors
    /// [`MapError::OutOfRange`]: that would be smaller, or too large.
    pub fn grow(&mut self, blocks: u64) -> Result<(), MapError> {
        self.tree.grow(blocks)
    }

    /// Sees to it that the next checkpoint stores a page of the map anew if it is stored at
    /// `location` now, so that the segment there needn't be kept for it. Returns whether it is.
    ///
    /// # Errors
    /// [`MapError::Missing`].
    pub fn rewrite(&mut self, address: PageAddress, location: Location) -> Result<bool, MapError> {
        self.load_usage()?;
        if address.is_map() {
            return self.tree.rewrite(address, location);
        }
        if address.is_usage() && address.level() > 0 {
            return Ok(self.usage.upper.contains(&location));
        }
        match self.usage.pages.get_mut(&address.index()) {
            Some(page) if address.is_usage() && page.location == Some(location) => {
                page.dirty = true;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Makes this map, whose root is a snapshot's, that of the volume rolled back to it; `now` is
    /// the volume's map. Segments that came later hold nothing any more, and the volume keeps the
    /// size that it has now. A checkpoint must be durable before anything else is.
    ///
    /// # Errors
    /// [`MapError::Missing`], [`MapError::OutOfRange`].
    pub fn roll_back(&mut self, now: &Map) -> Result<(), MapError> {
        self.load_usage()?;
        self.tree.grow(now.tree.blocks)?;
        self.usage.roll_back(&now.usage);
        Ok(())
    }
}
