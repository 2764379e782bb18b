//! The small trees of commitments (keccak-256), and the sum tree over a node's extents.
//!
//! Both have the shape of the audit tree (`docs/audit-tree.md`): leaf `0x00`, node `0x01`, root `0x02`,
//! a node without a sibling goes up as it is. Solidity checks what is built here:
//! `contracts/src/Merkle.sol`.

use alloy_primitives::{B256, U256, keccak256};

use crate::contracts::Capacity;

/// All levels of a keccak tree.
pub struct Tree {
    /// The leaves' hashes first, the top last.
    levels: Vec<Vec<B256>>,
}

impl Tree {
    /// A tree over leaves of these bytes; `None` without a leaf.
    #[must_use]
    pub fn new<'a>(leaves: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let hashed = leaves.into_iter().map(|leaf| keccak256([&[0], leaf].concat())).collect();
        let mut levels: Vec<Vec<B256>> = vec![hashed];
        while levels.last()?.len() > 1 {
            let next = levels.last()?.chunks(2).map(|pair| match pair {
                [left, right] => node(left, right),
                alone => alone.first().copied().unwrap_or_default(),
            });
            let next = next.collect();
            levels.push(next);
        }
        levels.last()?.first()?;
        Some(Self { levels })
    }

    /// How many leaves there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// The root, which also says how many leaves there are.
    #[must_use]
    pub fn root(&self) -> B256 {
        let top = self.levels.last().and_then(|level| level.first()).copied().unwrap_or_default();
        root(self.count(), &top)
    }

    /// The siblings on a leaf's way up, the lowest first; `None` for a leaf that is not there.
    #[must_use]
    pub fn path(&self, index: u64) -> Option<Vec<B256>> {
        let mut at = usize::try_from(index).ok()?;
        self.levels.first()?.get(at)?;
        let mut path = Vec::new();
        for level in &self.levels {
            path.extend(level.get(at ^ 1));
            at >>= 1;
        }
        Some(path)
    }
}

/// The root that a leaf's hash leads to; `None` if the path has another shape than the tree.
#[must_use]
pub fn root_of(leaf: &[u8], index: u64, count: u64, path: &[B256]) -> Option<B256> {
    if index >= count {
        return None;
    }
    let mut hash = keccak256([&[0], leaf].concat());
    let (mut at, mut width, mut path) = (index, count, path.iter());
    while width > 1 {
        if at & 1 == 1 {
            hash = node(path.next()?, &hash);
        } else if at + 1 < width {
            hash = node(&hash, path.next()?);
        }
        at >>= 1;
        width = width.div_ceil(2);
    }
    path.next().is_none().then(|| root(count, &hash))
}

fn node(left: &B256, right: &B256) -> B256 {
    keccak256([&[1], left.as_slice(), right.as_slice()].concat())
}

fn root(count: u64, top: &B256) -> B256 {
    keccak256([&[2], count.to_be_bytes().as_slice(), top.as_slice()].concat())
}

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Labels that only this node can have made.
    Filler,
    /// A user's shard.
    User,
}

/// One extent of a node's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// What it holds.
    pub kind: ExtentKind,
    /// Of filler: device · 2^32 + number. Of a shard: its reservation.
    pub id: u64,
    /// Its length in bytes.
    pub bytes_len: u64,
    /// The root of the audit tree over its bytes.
    pub root: B256,
}

/// The way of an extent to the root of its plot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentPath {
    /// The extent.
    pub extent: Extent,
    /// Where its first byte is in the plot.
    pub start: u64,
    /// For each level whether the sibling is on the left, its sum and its hash.
    pub siblings: Vec<(bool, u64, B256)>,
}

/// Where an extent's way leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Climbed {
    /// The plot's root.
    pub root: B256,
    /// Offset of the extent's first byte in the plot.
    pub start: u64,
    /// All bytes of the plot.
    pub bytes_len: u64,
}

impl ExtentPath {
    /// The most levels that a way may have, as for the contracts.
    pub const LEVELS_MAX: usize = 40;

    /// Where this way leads, from the extent and the siblings alone; `None` if it has too many levels
    /// or its sums don't fit 64 bits.
    #[must_use]
    pub fn climb(&self) -> Option<Climbed> {
        if self.siblings.len() > Self::LEVELS_MAX {
            return None;
        }
        let mut at = (self.extent.bytes_len, self.extent.hash());
        let mut start: u64 = 0;
        for (is_left, sum, hash) in &self.siblings {
            let sibling = (*sum, *hash);
            let both = at.0.checked_add(*sum)?;
            let hash = if *is_left { sum_node(&sibling, &at) } else { sum_node(&at, &sibling) };
            if *is_left {
                start = start.checked_add(*sum)?;
            }
            at = (both, hash);
        }
        let root = keccak256([&[2], at.0.to_be_bytes().as_slice(), at.1.as_slice()].concat());
        Some(Climbed { root, start, bytes_len: at.0 })
    }
}

/// The sum tree over a node's extents: any byte of the whole can be asked for.
pub struct Plot {
    extents: Vec<Extent>,
    levels: Vec<Vec<(u64, B256)>>,
}

impl Plot {
    /// A plot of these extents; `None` without one, or if they have 2^64 bytes or more in all.
    #[must_use]
    pub fn new(extents: Vec<Extent>) -> Option<Self> {
        extents.iter().try_fold(0_u64, |sum, extent| sum.checked_add(extent.bytes_len))?;
        let leaves = extents.iter().map(|extent| (extent.bytes_len, extent.hash())).collect();
        let mut levels: Vec<Vec<(u64, B256)>> = vec![leaves];
        while levels.last()?.len() > 1 {
            let next = levels.last()?.chunks(2).map(|pair| match pair {
                [left, right] => (left.0 + right.0, sum_node(left, right)),
                alone => alone.first().copied().unwrap_or_default(),
            });
            let next = next.collect();
            levels.push(next);
        }
        levels.last()?.first()?;
        Some(Self { extents, levels })
    }

    /// The root, which also says how many bytes there are.
    #[must_use]
    pub fn root(&self) -> B256 {
        let (sum, top) = self.top();
        keccak256([&[2], sum.to_be_bytes().as_slice(), top.as_slice()].concat())
    }

    /// All bytes.
    #[must_use]
    pub fn bytes_len(&self) -> u64 {
        self.top().0
    }

    /// The extent that holds the byte at `offset`, with its path; `None` beyond the end.
    #[must_use]
    pub fn path(&self, offset: u64) -> Option<ExtentPath> {
        let mut start = 0;
        let found = self.extents.iter().position(|extent| {
            let within = offset - start < extent.bytes_len;
            if !within {
                start += extent.bytes_len;
            }
            within
        })?;
        let mut at = found;
        let mut siblings = Vec::new();
        for level in &self.levels {
            if let Some((sum, hash)) = level.get(at ^ 1) {
                siblings.push((at & 1 == 1, *sum, *hash));
            }
            at >>= 1;
        }
        Some(ExtentPath { extent: *self.extents.get(found)?, start, siblings })
    }

    fn top(&self) -> (u64, B256) {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or_default()
    }
}

impl Extent {
    /// 1 for filler, 2 for a shard: what contracts call it.
    #[must_use]
    pub fn kind_number(&self) -> u8 {
        match self.kind {
            ExtentKind::Filler => 1,
            ExtentKind::User => 2,
        }
    }

    fn hash(&self) -> B256 {
        let mut bytes = vec![0, self.kind_number()];
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.bytes_len.to_be_bytes());
        bytes.extend(self.root);
        keccak256(bytes)
    }
}

/// As the contracts take it: sums and hashes of the siblings in a row, and a bit for each on the left.
impl From<&ExtentPath> for Capacity::ExtentPath {
    fn from(path: &ExtentPath) -> Self {
        let (mut sides, mut siblings) = (U256::ZERO, Vec::new());
        for (level, (is_left, sum, hash)) in path.siblings.iter().enumerate() {
            if *is_left {
                sides |= U256::ONE << level;
            }
            siblings.extend(sum.to_be_bytes());
            siblings.extend(hash);
        }
        let Extent { id, bytes_len, root, .. } = path.extent;
        let kind = path.extent.kind_number();
        let extent = Capacity::Extent { kind, id, bytesLen: bytes_len, root };
        Self { extent, sides, siblings: siblings.into() }
    }
}

fn sum_node(left: &(u64, B256), right: &(u64, B256)) -> B256 {
    let mut bytes = vec![1];
    for (sum, hash) in [left, right] {
        bytes.extend(sum.to_be_bytes());
        bytes.extend(hash);
    }
    keccak256(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u64) -> Vec<Vec<u8>> {
        (0..count).map(|i| i.to_be_bytes().to_vec()).collect()
    }

    #[test]
    fn each_leaf_of_each_shape_leads_to_the_root_and_a_changed_one_does_not() {
        for count in 1..40 {
            let leaves = leaves(count);
            let tree = Tree::new(leaves.iter().map(Vec::as_slice)).unwrap();
            for (index, leaf) in (0_u64..).zip(&leaves) {
                let path = tree.path(index).unwrap();
                assert_eq!(root_of(leaf, index, count, &path), Some(tree.root()));
                assert_ne!(root_of(b"other", index, count, &path), Some(tree.root()));
                assert_ne!(root_of(leaf, index, count + 1, &path), Some(tree.root()));
            }
            assert_eq!(tree.path(count), None);
        }
        assert!(Tree::new([]).is_none());
    }

    #[test]
    fn each_byte_of_a_plot_is_in_the_extent_that_its_path_names() {
        let sizes = [5, 1, 0, 9, 3, 0, 7];
        let extents = sizes.iter().zip(1..).map(|(&bytes_len, id)| Extent {
            kind: ExtentKind::Filler,
            id,
            bytes_len,
            root: keccak256([id as u8]),
        });
        let plot = Plot::new(extents.collect()).unwrap();
        assert_eq!(plot.bytes_len(), 25);
        for offset in 0..25 {
            let path = plot.path(offset).unwrap();
            assert!(path.start <= offset && offset - path.start < path.extent.bytes_len);
            let climbed = path.climb().unwrap();
            assert_eq!(climbed, Climbed { root: plot.root(), start: path.start, bytes_len: 25 });
            let mut lies = path;
            lies.siblings[0].1 = u64::MAX;
            assert_ne!(lies.climb().map(|it| it.root), Some(plot.root()));
        }
        assert_eq!(plot.path(25), None);
    }
}
