//! What the nodes say that they have.

use std::collections::{BTreeMap, BTreeSet};

use storage_vdev::engine::Outline;
use storage_vdev::node::{NodeIndex, ObjectKey};
use storage_vdev::segment::Shape;

/// How many nodes a void segment's successors are looked through for one that passes it over.
/// Segments are abandoned together: as many as were under way when a node failed.
const SUCCESSORS_MAX: usize = 256;

/// A segment as the nodes' lists show it.
#[derive(Debug, Clone, Default)]
pub(super) struct Listed {
    /// Who has which shard; in order, each pair once.
    pub(super) holders: Vec<(u8, NodeIndex)>,
    /// What its head says, once one was read: the segment before it, and its objects' size.
    pub(super) head: Option<(u64, u64)>,
}

impl Listed {
    /// How many different shards there are.
    pub(super) fn shards(&self) -> u8 {
        self.mask().count_ones() as u8
    }

    /// A bit for each shard that there is.
    pub(super) fn mask(&self) -> u32 {
        self.holders.iter().fold(0, |mask, (shard, _)| mask | 1 << (shard % 32))
    }
}

/// All that was listed.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Who has which superblock.
    pub(super) superblocks: BTreeMap<ObjectKey, BTreeSet<NodeIndex>>,
    /// Segments by sequence and epoch.
    segments: BTreeMap<(u64, u64), Listed>,
}

impl Survey {
    /// Notes that `node` has `keys`, as far as they can be objects of a volume of this shape.
    pub(super) fn note(&mut self, node: NodeIndex, shape: Shape, keys: &[ObjectKey]) {
        for key in keys {
            if Outline::version_of(key).is_some() {
                self.superblocks.entry(*key).or_default().insert(node);
            } else if key.shard < shape.shards() && key.sequence > 0 {
                let listed = self.segments.entry((key.sequence, key.epoch)).or_default();
                let holder = (key.shard, node);
                if let Err(place) = listed.holders.binary_search(&holder) {
                    listed.holders.insert(place, holder);
                }
            }
        }
    }

    /// Keeps the segments that `outline` says belong to the volume, and returns them by sequence,
    /// with the number of those that lie behind the last committed one.
    pub(super) fn in_scope(&mut self, outline: &Outline) -> (BTreeMap<u64, Listed>, u64) {
        let mut beyond = 0;
        let mut kept = BTreeMap::new();
        for ((sequence, epoch), listed) in std::mem::take(&mut self.segments) {
            if sequence > outline.committed {
                beyond += 1;
            } else if is_live(outline, sequence, epoch) {
                kept.insert(sequence, listed);
            }
        }
        (kept, beyond)
    }
}

/// Whether the segment is one of the volume's own, and not about to be deleted.
pub(super) fn is_live(outline: &Outline, sequence: u64, epoch: u64) -> bool {
    sequence <= outline.committed
        && outline.opening_of(sequence) == Some((outline.uuid, epoch))
        && !outline.deletes.contains(&(sequence, epoch))
}

/// Whether a later segment's link passes over segment `sequence`: it was sealed and never
/// committed, and what there is of it means nothing.
pub(super) fn is_void(segments: &BTreeMap<u64, Listed>, outline: &Outline, sequence: u64) -> bool {
    if sequence == outline.frontier.sequence {
        return false;
    }
    let later = segments.range(sequence + 1..).take(SUCCESSORS_MAX);
    let links = later.filter_map(|(_, listed)| listed.head.map(|(link, _)| link));
    links.into_iter().any(|link| link < sequence)
}
