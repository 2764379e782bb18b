//! Which segments a snapshot needs.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::location::{Location, PageAddress};
use super::pages::Page;
use super::root::Root;
use super::usage_pages::{Step, Walk, read_segments};
use super::{LOOKUP_PAGES_MAX, MapError};

/// How many leaves of the table are in memory.
const LEAVES: usize = LOOKUP_PAGES_MAX;

/// A leaf in memory: where it lies, and how many blocks of each of its segments are live.
type Leaf = (Location, BTreeMap<u64, u16>);

/// The table of segments that a stored root has, page by page: it is only asked, never changed.
#[derive(Debug)]
pub struct Pins {
    walk: Walk,
    leaves: Vec<(Range<u64>, Location)>,
    own: BTreeMap<u64, u16>,
    loaded: VecDeque<Leaf>,
}

impl Pins {
    /// The segments that `root` needs.
    #[must_use]
    pub fn new(root: &Root) -> Self {
        Self {
            walk: Walk::new(root.usage.map(|location| (root.usage_level, location))),
            leaves: Vec::new(),
            own: BTreeMap::new(),
            loaded: VecDeque::new(),
        }
    }

    /// How many blocks of the segment the root needs: data, pages of its map and of its table.
    ///
    /// # Errors
    /// [`MapError::Missing`].
    pub fn live(&mut self, sequence: u64) -> Result<u16, MapError> {
        self.find_leaves()?;
        let own = self.own.get(&sequence).copied().unwrap_or(0);
        let after = self.leaves.partition_point(|(range, _)| range.start <= sequence);
        let Some((range, location)) = after.checked_sub(1).and_then(|nth| self.leaves.get(nth))
        else {
            return Ok(own);
        };
        let Some((_, segments)) = self.loaded.iter().find(|(at, _)| at == location) else {
            let address = PageAddress::usage(0, range.start);
            return Err(MapError::Missing(vec![(address, *location)]));
        };
        Ok(own.saturating_add(segments.get(&sequence).copied().unwrap_or(0)))
    }

    fn find_leaves(&mut self) -> Result<(), MapError> {
        let mut found = self.walk.take_leaves();
        self.leaves.append(&mut found);
        let missing = self.walk.missing();
        if !missing.is_empty() {
            return Err(MapError::Missing(missing));
        }
        if self.own.is_empty() {
            self.leaves.sort_by_key(|(range, _)| range.start);
            let leaves = self.leaves.iter().map(|(_, location)| *location);
            for location in leaves.chain(self.walk.upper.iter().copied()) {
                *self.own.entry(location.sequence()).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Takes a page that was read because it was missing.
    ///
    /// # Errors
    /// [`MapError::Malformed`].
    pub fn insert_page(
        &mut self,
        address: PageAddress,
        location: Location,
        page: &Page,
    ) -> Result<(), MapError> {
        if !address.is_usage() {
            return Err(MapError::Malformed { address });
        }
        if address.level() > 0 {
            return match self.walk.step(address, location, page)? {
                Step::Unwanted | Step::Places | Step::Segments { .. } => Ok(()),
            };
        }
        let is =
            |leaf: &&(Range<u64>, Location)| leaf.0.start == address.index() && leaf.1 == location;
        let Some((range, _)) = self.leaves.iter().find(is) else { return Ok(()) };
        let segments = read_segments(page, range).ok_or(MapError::Malformed { address })?;
        if self.loaded.len() == LEAVES {
            self.loaded.pop_front();
        }
        let live = segments.into_iter().map(|(sequence, segment)| (sequence, segment.live));
        self.loaded.push_back((location, live.collect()));
        Ok(())
    }
}
