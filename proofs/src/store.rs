//! What a node keeps, so that it can show any of it: extents in a Merkle sum tree, each with the
//! upper part of its audit tree.
//!
//! A whole audit tree takes a sixteenth of what it is over. Here only hashes over 64 KiB and more are
//! kept (a thousandth); who opens a leaf reads the 64 KiB around it.

use std::ops::Range;

use hypha_chain::B256;
use hypha_chain::contracts::Capacity;
use hypha_chain::tree::{Extent, ExtentKind, ExtentPath, Plot};
use storage_vdev::audit::{self, LEAF_BYTES, LeafProof, ProofError};

use crate::sha256;

/// Bytes that are read to open a leaf: 64 leaves, or what the extent has left.
pub const GROUP_BYTES: usize = 64 * LEAF_BYTES;
/// Levels below the kept ones.
const GROUP_LEVELS: usize = 6;

/// A plot as the chain knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlotRecord {
    /// The root of the sum tree.
    pub root: B256,
    /// All bytes.
    pub bytes_len: u64,
}

/// Why a leaf can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The store has no such byte.
    #[error("byte {0} is behind the end of what is kept")]
    Range(u64),
    /// The bytes handed in are not those that the store was built over.
    #[error("what was read around byte {0} is not what was kept: the disk has lost it")]
    Changed(u64),
    /// The hashes over the extent were not handed in.
    #[error("the hashes over the extent with byte {0} are not there")]
    Unloaded(u64),
}

/// Why a shown leaf proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// The extent's path leads elsewhere.
    #[error("the extent is not in the committed plot")]
    Plot,
    /// The drawn byte is not in that extent.
    #[error("byte {0} was drawn, which is not in the shown extent")]
    Offset(u64),
    /// The leaf is not in the extent.
    #[error("the leaf is not in its extent: {0}")]
    Leaf(#[from] ProofError),
}

/// An extent's hashes from groups of 64 KiB up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentTree {
    len: u64,
    levels: Vec<Vec<B256>>,
}

impl ExtentTree {
    /// The tree over an extent's bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut tops = Vec::with_capacity(bytes.len().div_ceil(GROUP_BYTES));
        for group in bytes.chunks(GROUP_BYTES) {
            let levels = group_levels(tops.len(), group);
            tops.extend(levels.last().and_then(|level| level.first()));
        }
        if tops.is_empty() {
            tops.push(leaf_hash(0, &[]));
        }
        Self { len: bytes.len() as u64, levels: levels_above(tops, usize::MAX) }
    }

    /// The tree over an extent of so many bytes from the hashes that [`ExtentTree::groups`] gave; `None`
    /// if it can't have so many.
    #[must_use]
    pub fn from_groups(bytes_len: u64, groups: Vec<B256>) -> Option<Self> {
        let count = bytes_len.div_ceil(GROUP_BYTES as u64).max(1);
        let fits = groups.len() as u64 == count;
        fits.then(|| Self { len: bytes_len, levels: levels_above(groups, usize::MAX) })
    }

    /// The hashes over each 64 KiB: all that must be kept of the tree.
    #[must_use]
    pub fn groups(&self) -> &[B256] {
        self.levels.first().map(Vec::as_slice).unwrap_or_default()
    }

    /// Bytes of the extent.
    #[must_use]
    pub fn bytes_len(&self) -> u64 {
        self.len
    }

    /// Whether these are the bytes of group `number`.
    #[must_use]
    pub fn has_group(&self, number: usize, bytes: &[u8]) -> bool {
        let top = group_levels(number, bytes).last().and_then(|level| level.first()).copied();
        top.is_some() && top.as_ref() == self.groups().get(number)
    }

    /// The root of the whole audit tree.
    #[must_use]
    pub fn root(&self) -> B256 {
        let top = self.levels.last().and_then(|level| level.first()).copied().unwrap_or_default();
        sha256(&[&[2], self.len.to_be_bytes().as_slice(), &top[..]].concat())
    }

    /// Opens a leaf with the bytes of its group.
    fn open(&self, leaf: u64, group: &[u8]) -> Option<LeafProof> {
        let leaf = usize::try_from(leaf).ok()?;
        let (number, within) = (leaf >> GROUP_LEVELS, leaf % (1 << GROUP_LEVELS));
        let levels = group_levels(number, group);
        if levels.last()?.first()? != self.levels.first()?.get(number)? {
            return None;
        }
        let bytes = group.chunks(LEAF_BYTES).nth(within)?.to_vec();
        let sibling = |(height, level): (usize, &Vec<B256>), at: usize| {
            level.get((at >> height) ^ 1).map(|hash| hash.0)
        };
        let below = levels.iter().enumerate().filter_map(|it| sibling(it, within));
        let above = self.levels.iter().enumerate().filter_map(|it| sibling(it, number));
        Some(LeafProof { path: below.chain(above).collect(), bytes })
    }
}

/// What must be read to show one byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The byte's place in the whole plot.
    pub offset: u64,
    /// Which extent, in the order in which they were handed in.
    pub extent: usize,
    /// The range of the extent's bytes to read.
    pub range: Range<u64>,
}

/// A leaf with its whole way to the plot's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownLeaf {
    /// From the extent to the plot.
    pub way: ExtentPath,
    /// From the leaf to the extent.
    pub leaf: LeafProof,
}

/// The trees of all that a node keeps. The bytes themselves are the caller's.
pub struct Store {
    plot: Plot,
    /// Of each extent its root, and its tree unless that is elsewhere.
    trees: Vec<(B256, Option<ExtentTree>)>,
    /// Where each extent ends in the plot.
    ends: Vec<u64>,
}

impl Store {
    /// A store of extents, each with what it is, its id and its tree; `None` without any byte.
    #[must_use]
    pub fn new(extents: Vec<(ExtentKind, u64, ExtentTree)>) -> Option<Self> {
        let described = extents.iter().map(|(kind, id, tree)| Extent {
            kind: *kind,
            id: *id,
            bytes_len: tree.len,
            root: tree.root(),
        });
        let mut store = Self::listed(described.collect())?;
        for ((_, tree), (_, _, given)) in store.trees.iter_mut().zip(extents) {
            *tree = Some(given);
        }
        Some(store)
    }

    /// A store of extents whose trees are elsewhere: [`Store::load`] those that are to be opened. `None`
    /// without any byte.
    #[must_use]
    pub fn listed(extents: Vec<Extent>) -> Option<Self> {
        let trees = extents.iter().map(|extent| (extent.root, None)).collect();
        let ends = extents.iter().scan(0_u64, |end, extent| {
            *end = end.saturating_add(extent.bytes_len);
            Some(*end)
        });
        let ends = ends.collect();
        let plot = Plot::new(extents).filter(|plot| plot.bytes_len() > 0)?;
        Some(Self { plot, trees, ends })
    }

    /// Hands in an extent's tree. Returns whether it is this extent's; another is not taken.
    pub fn load(&mut self, extent: usize, tree: ExtentTree) -> bool {
        let is_it = |(root, _): &&mut (B256, Option<ExtentTree>)| tree.root() == *root;
        let Some((_, place)) = self.trees.get_mut(extent).filter(is_it) else { return false };
        *place = Some(tree);
        true
    }

    /// What the chain is told.
    #[must_use]
    pub fn record(&self) -> PlotRecord {
        PlotRecord { root: self.plot.root(), bytes_len: self.plot.bytes_len() }
    }

    /// What must be read to show the byte at `offset`; `None` behind the end.
    #[must_use]
    pub fn locate(&self, offset: u64) -> Option<Read> {
        let extent = self.ends.partition_point(|end| *end <= offset);
        let before = extent.checked_sub(1).and_then(|at| self.ends.get(at)).copied().unwrap_or(0);
        let (within, len) = (offset - before, self.ends.get(extent)? - before);
        let start = within / GROUP_BYTES as u64 * GROUP_BYTES as u64;
        let end = (start + GROUP_BYTES as u64).min(len);
        Some(Read { offset, extent, range: start..end })
    }

    /// The way of the extent that holds the byte at `offset`; `None` behind the end.
    #[must_use]
    pub fn way(&self, offset: u64) -> Option<ExtentPath> {
        self.plot.path(offset)
    }

    /// The leaf around the byte at `offset`, with its way; `group` is what [`Store::locate`] asked for.
    ///
    /// # Errors
    /// There is no such byte, or the group's bytes have changed.
    pub fn open(&self, offset: u64, group: &[u8]) -> Result<ShownLeaf, OpenError> {
        let found = self.locate(offset).zip(self.plot.path(offset));
        let (read, way) = found.ok_or(OpenError::Range(offset))?;
        let tree = self.trees.get(read.extent).and_then(|(_, tree)| tree.as_ref());
        let tree = tree.ok_or(OpenError::Unloaded(offset))?;
        let leaf = (offset - way.start) / LEAF_BYTES as u64;
        let leaf = tree.open(leaf, group).ok_or(OpenError::Changed(offset))?;
        Ok(ShownLeaf { way, leaf })
    }
}

/// The answer to a challenge of the chain.
impl From<&ShownLeaf> for Capacity::Answer {
    fn from(shown: &ShownLeaf) -> Self {
        Self {
            way: (&shown.way).into(),
            leaf: shown.leaf.bytes.clone().into(),
            path: shown.leaf.path.iter().copied().map(B256::new).collect(),
        }
    }
}

impl ShownLeaf {
    /// Checks that this is the leaf around the byte at `offset` of a committed plot. Returns the
    /// byte's place in the leaf.
    ///
    /// # Errors
    /// [`LeafError`].
    pub fn check(&self, plot: &PlotRecord, offset: u64) -> Result<usize, LeafError> {
        let within = check_way(&self.way, plot, offset)?;
        let (extent, leaf) = (&self.way.extent, within / LEAF_BYTES as u64);
        audit::verify(&extent.root, extent.bytes_len, leaf, &self.leaf)?;
        Ok((within % LEAF_BYTES as u64) as usize)
    }
}

/// Checks that an extent is in a plot and holds the byte at `offset`. Returns the byte's place in it.
///
/// # Errors
/// [`LeafError`].
pub fn check_way(way: &ExtentPath, plot: &PlotRecord, offset: u64) -> Result<u64, LeafError> {
    let climbed = way.climb().ok_or(LeafError::Plot)?;
    if (climbed.root, climbed.bytes_len) != (plot.root, plot.bytes_len) {
        return Err(LeafError::Plot);
    }
    let within = offset.checked_sub(climbed.start).filter(|at| *at < way.extent.bytes_len);
    within.ok_or(LeafError::Offset(offset))
}

fn leaf_hash(index: u64, bytes: &[u8]) -> B256 {
    sha256(&[&[0], index.to_be_bytes().as_slice(), bytes].concat())
}

/// All levels of one group, from its leaves to its one node.
fn group_levels(number: usize, group: &[u8]) -> Vec<Vec<B256>> {
    let first = (number as u64) << GROUP_LEVELS;
    let leaves = (first..).zip(group.chunks(LEAF_BYTES));
    levels_above(leaves.map(|(index, bytes)| leaf_hash(index, bytes)).collect(), GROUP_LEVELS)
}

/// A level and those above it; a node without a sibling goes up as it is.
fn levels_above(lowest: Vec<B256>, most: usize) -> Vec<Vec<B256>> {
    let mut levels = vec![lowest];
    while let Some(below) = levels.last().filter(|level| level.len() > 1) {
        if levels.len() > most {
            break;
        }
        let above = below.chunks(2).map(|pair| match pair {
            [left, right] => sha256(&[&[1], left.as_slice(), right.as_slice()].concat()),
            alone => alone.first().copied().unwrap_or_default(),
        });
        let above = above.collect();
        levels.push(above);
    }
    levels
}

#[cfg(test)]
mod tests {
    use storage_vdev::audit::AuditTree;

    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn the_kept_part_of_a_tree_has_the_root_of_the_whole_one() {
        for len in [0, 1, 1024, 1025, 5000, 65_536, 65_537, 70_000, 200_000, 1 << 20] {
            let bytes = bytes(len);
            assert_eq!(ExtentTree::of(&bytes).root().0, AuditTree::of(&bytes).root(), "{len}");
        }
    }

    #[test]
    fn a_tree_is_made_again_of_its_groups_and_knows_their_bytes() {
        let bytes = bytes(200_000);
        let tree = ExtentTree::of(&bytes);
        let again = ExtentTree::from_groups(tree.bytes_len(), tree.groups().to_vec());
        assert_eq!(again.as_ref(), Some(&tree));
        for (number, group) in bytes.chunks(GROUP_BYTES).enumerate() {
            assert!(tree.has_group(number, group) && !tree.has_group(number + 1, group));
        }
        assert!(!tree.has_group(0, &[]));
        assert_eq!(ExtentTree::from_groups(1, tree.groups().to_vec()), None);
        assert_eq!(ExtentTree::from_groups(0, Vec::new()), None);
    }

    #[test]
    fn every_leaf_of_a_store_is_shown_and_a_changed_one_is_not() {
        let parts = [70_000, 0, 1, 131_072, 1025].map(bytes);
        let extents = parts.iter().zip(0..);
        let extents =
            extents.map(|(bytes, id)| (ExtentKind::Filler, id, ExtentTree::of(bytes))).collect();
        let store = Store::new(extents).unwrap();
        let record = store.record();
        for offset in (0..record.bytes_len).step_by(509).chain([record.bytes_len - 1]) {
            let read = store.locate(offset).unwrap();
            let range = read.range.start as usize..read.range.end as usize;
            let mut group = parts[read.extent][range].to_vec();
            let shown = store.open(offset, &group).unwrap();
            assert!(shown.check(&record, offset).is_ok());
            assert!(shown.check(&record, (offset + 1024) % record.bytes_len).is_err());
            group[0] ^= 1;
            assert_eq!(store.open(offset, &group), Err(OpenError::Changed(offset)));
        }
        assert_eq!(store.locate(record.bytes_len), None);
        assert!(Store::new(Vec::new()).is_none());
    }

    #[test]
    fn a_store_opens_extents_whose_trees_were_handed_in_and_no_others() {
        let parts = [70_000, 131_072].map(bytes);
        let extents = || parts.iter().zip(0..).map(|(bytes, id)| (id, ExtentTree::of(bytes)));
        let whole = extents().map(|(id, tree)| (ExtentKind::Filler, id, tree)).collect();
        let whole = Store::new(whole).unwrap();
        let listed = extents().map(|(id, tree)| Extent {
            kind: ExtentKind::Filler,
            id,
            bytes_len: tree.bytes_len(),
            root: tree.root(),
        });
        let mut store = Store::listed(listed.collect()).unwrap();
        assert_eq!(store.record(), whole.record());
        let trees: Vec<ExtentTree> = extents().map(|(_, tree)| tree).collect();
        assert!(!store.load(0, trees[1].clone()) && !store.load(2, trees[1].clone()));
        assert!(store.load(1, trees[1].clone()));
        assert_eq!(store.open(5, &parts[0][..GROUP_BYTES]), Err(OpenError::Unloaded(5)));
        let group = &parts[1][..GROUP_BYTES];
        assert_eq!(store.open(70_005, group), whole.open(70_005, group));
        assert!(store.open(70_005, group).is_ok());
        for offset in [0, 69_999, 70_000, 201_071] {
            assert_eq!(store.locate(offset), whole.locate(offset));
        }
    }
}
