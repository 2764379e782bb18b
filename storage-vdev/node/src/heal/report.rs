//! What a pass has found and done.

use std::collections::BTreeMap;

use storage_vdev::node::NodeIndex;

/// How many examples of each kind a report keeps; the counts go on.
const EXAMPLES_MAX: usize = 64;

/// How a segment stands when the pass is through with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// All k + m shards are there (and were intact, if the pass read them).
    Whole,
    /// What was missing is back.
    Repaired,
    /// Shards are missing, but so few that the policy lets them be.
    Deferred,
    /// Some shards are back, others found no node to go to.
    Unplaced,
    /// Fewer than k shards can be had. Nothing was made up.
    Lost,
    /// The shards contradict each other, and too few are at hand to say which are right.
    Contradictory,
    /// Never committed: a later segment of the chain passes it over.
    Void,
    /// The superblock has given it up in the meantime, or the pass ended before its turn.
    Skipped,
}

/// A shard that was put on a spare: whoever has the key must know, to give the spare the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpareShard {
    /// The segment.
    pub sequence: u64,
    /// The shard.
    pub shard: u8,
    /// The spare.
    pub node: NodeIndex,
}

/// What a pass has found and done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Epoch and version of the superblock that it went by; `None`: none could be believed, and
    /// nothing was touched.
    pub superblock: Option<(u64, u64)>,
    /// Copies of that superblock that were put where they were missing or damaged.
    pub superblocks_restored: u64,
    /// Segments by how they stand.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// The first segments that are not as they should be.
    pub examples: Vec<(u64, Verdict)>,
    /// Segments behind the last one that the superblock shows as committed. They were left alone.
    pub uncommitted: u64,
    /// Shards that were rebuilt and stored.
    pub shards_restored: u64,
    /// Bytes that were read and written.
    pub bytes_moved: u64,
    /// Shards that a node says it has and that were missing or damaged when they were read, by
    /// node.
    pub damaged: BTreeMap<NodeIndex, u64>,
    /// Shards that contradict the others under good checksums, by node.
    pub lying: BTreeMap<NodeIndex, u64>,
    /// Shards that went to spares.
    pub on_spares: Vec<SpareShard>,
    /// Nodes that could not be asked what they have.
    pub silent: Vec<NodeIndex>,
    /// A newer opening fenced the pass off before it was through; the next pass goes by its
    /// superblock.
    pub fenced_off: bool,
}

impl Report {
    pub(super) fn judge(&mut self, sequence: u64, verdict: Verdict) {
        *self.verdicts.entry(verdict).or_default() += 1;
        let is_well = matches!(verdict, Verdict::Whole | Verdict::Repaired | Verdict::Void);
        if !is_well && self.examples.len() < EXAMPLES_MAX {
            self.examples.push((sequence, verdict));
        }
    }

    /// How many segments have this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> u64 {
        self.verdicts.get(&verdict).copied().unwrap_or(0)
    }
}

/// How far a pass is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the nodes have been listed, so that the totals are known.
    pub surveyed: bool,
    /// Segments that it is through with.
    pub segments_done: u64,
    /// Segments that it has to look at.
    pub segments: u64,
    /// Bytes read and written so far.
    pub bytes_moved: u64,
    /// How much longer, if it goes on as it has; `None` before the first segment is done.
    pub eta_ns: Option<u64>,
}
