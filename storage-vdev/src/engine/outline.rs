//! What a superblock tells somebody without the key: enough to mend a volume.

use super::superblock::{Superblock, superblock_key, version_of};
use crate::extent_map::Location;
use crate::keys::Uuid;
use crate::node::{NodeIndex, ObjectKey};
use crate::segment::{Link, Shape};

/// A superblock read without the key: its checksum fits, which shows that it has had no accident.
/// Whether it is true only the key can tell; several nodes that say the same are better than one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The volume.
    pub uuid: Uuid,
    /// The code.
    pub shape: Shape,
    /// Counts superblocks over all openings.
    pub version: u64,
    /// The epoch of the opening that wrote it.
    pub epoch: u64,
    /// The last segment whose blocks are in its map.
    pub frontier: Link,
    /// The last segment that was committed when it was written, as far as it tells: the frontier,
    /// or a later one that has pages of its maps. What lies behind belongs to who has the volume
    /// open.
    pub committed: u64,
    /// Objects are deleted so long after the superblock that announces it, at the earliest.
    pub lease_ns: u64,
    /// The nodes' ids.
    pub nodes: Vec<Uuid>,
    /// Slot → place in `nodes`.
    pub slots: Vec<NodeIndex>,
    /// The openings whose segments are still there: first sequence, volume (a clone has segments of
    /// its base), epoch. In ascending order.
    pub openings: Vec<(u64, Uuid, u64)>,
    /// Segments that are to be deleted: sequence, epoch.
    pub deletes: Vec<(u64, u64)>,
}

impl Outline {
    /// Reads a superblock; `None` if it is damaged or of another version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (superblock, ..) = Superblock::parse_unproven(bytes).ok()?;
        let openings = superblock.openings.iter();
        let deletes = superblock.deletes.iter();
        Some(Self {
            uuid: superblock.uuid,
            shape: superblock.shape,
            version: superblock.version,
            epoch: superblock.opening.epoch,
            frontier: superblock.frontier,
            committed: committed(&superblock),
            lease_ns: superblock.lease_ns,
            nodes: superblock.nodes.iter().map(|node| node.id).collect(),
            slots: superblock.slots.clone(),
            openings: openings
                .map(|past| (past.first_sequence, past.uuid, past.opening.epoch))
                .collect(),
            deletes: deletes.map(|intent| (intent.sequence, intent.epoch)).collect(),
        })
    }

    /// The version of the superblock that this key names; `None` if it names a shard.
    #[must_use]
    pub fn version_of(key: &ObjectKey) -> Option<u64> {
        version_of(key)
    }

    /// The name of its object.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        superblock_key(self.uuid, self.epoch, self.version)
    }

    /// The volume and the epoch whose segment has this sequence, if one has.
    #[must_use]
    pub fn opening_of(&self, sequence: u64) -> Option<(Uuid, u64)> {
        let older = self.openings.iter().take_while(|(first, ..)| *first <= sequence);
        older.last().map(|(_, uuid, epoch)| (*uuid, *epoch))
    }
}

/// Segments are committed in their order, and pages before the superblock that names them.
fn committed(superblock: &Superblock) -> u64 {
    let roots = superblock.snapshots.iter().map(|snapshot| &snapshot.root);
    let pages = roots.chain([&superblock.root]).flat_map(|root| [root.map, root.usage]);
    let sequences = pages.flatten().map(Location::sequence);
    sequences.fold(superblock.frontier.sequence, u64::max)
}
