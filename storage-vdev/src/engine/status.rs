//! How a volume is: what a person, a metric and a policy ask.

use super::options::Policy;
use super::state::{Engine, State};
use crate::geometry::BLOCK_BYTES;
use crate::keys::Uuid;
use crate::node::{NodeError, NodeIndex};

/// How a volume is. Costs no I/O.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The volume.
    pub uuid: Uuid,
    /// Its size.
    pub size_bytes: u64,
    /// How many data shards a segment has (*k*).
    pub data_shards: u8,
    /// How many parity shards a segment has (*m*).
    pub parity_shards: u8,
    /// How many times the volume was opened.
    pub epoch: u64,
    /// When a flush is answered.
    pub policy: Policy,
    /// Whether the volume falls short of the policy just now (too few journal heads).
    pub policy_degraded: bool,
    /// How many more nodes may be lost without losing data; `None` if data is lost already.
    pub redundancy: Option<u32>,
    /// How many it should be (*m*).
    pub redundancy_wanted: u32,
    /// The state of each node, in their order.
    pub nodes: Vec<NodeStatus>,
    /// Bytes written since the last flush, which a crash may lose (the RPO).
    pub unflushed_bytes: u64,
    /// Bytes in the journal heads.
    pub journal_bytes: u64,
    /// Bytes in memory that are in no committed segment.
    pub unsealed_bytes: u64,
    /// Committed segments.
    pub segments: u64,
    /// Segments that lack a shard.
    pub segments_degraded: u64,
    /// Segments of which too few shards are left, as far as is known.
    pub segments_lost: u64,
    /// Shards that the repair still has to make.
    pub shards_to_repair: u64,
    /// Bytes of blocks that the volume or a snapshot needs.
    pub live_bytes: u64,
    /// Bytes of blocks in committed segments, live or not.
    pub stored_bytes: u64,
    /// Bytes of blocks that the nodes have room for, GC headroom taken off; `None` if unknown.
    pub free_bytes: Option<u64>,
    /// A repair that is under way.
    pub repair: Option<Progress>,
    /// A scrub that is under way.
    pub scrub: Option<Progress>,
    /// Why the volume has stopped, if it has.
    pub stopped: Option<super::RequestError>,
    /// Counts since the volume was opened.
    pub counters: Counters,
}

/// Work that is under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Shards (repair) or segments (scrub) done.
    pub done: u64,
    /// All of them, as far as is known.
    pub total: u64,
    /// How much longer, at the rate so far; `None` at the start.
    pub eta_ns: Option<u64>,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name: a path, an address.
    pub name: String,
    /// Its failure domain.
    pub domain: String,
    /// How it is.
    pub state: NodeState,
    /// The slots (shard numbers) that it holds.
    pub slots: Vec<u8>,
    /// Whether it is one of the volume's journal heads.
    pub is_head: bool,
    /// Shards that it should hold and doesn't.
    pub shards_missing: u64,
    /// Bytes left on it, if it said.
    pub free_bytes: Option<u64>,
}

/// The state of a node, as this volume sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// It answers.
    Up,
    /// It is slow to answer: reads go round it.
    Suspect,
    /// It failed, or hasn't answered for long. It is asked again now and then.
    Down(NodeError),
}

/// Counts since the volume was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes read by requests.
    pub read_bytes: u64,
    /// Bytes written by requests.
    pub written_bytes: u64,
    /// Flushes answered.
    pub flushes: u64,
    /// Blocks found in the read cache.
    pub cache_hits: u64,
    /// Blocks that were read from nodes.
    pub cache_misses: u64,
    /// Reads that went to other shards because a node was late, gone or wrong.
    pub reads_rebuilt: u64,
    /// Segments sealed.
    pub segments_sealed: u64,
    /// Bytes put on nodes, heads and parity included.
    pub put_bytes: u64,
    /// Bytes appended to journal heads, copies included.
    pub journal_bytes: u64,
    /// Blocks moved by garbage collection.
    pub moved_blocks: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Units or heads that failed their check.
    pub damaged: u64,
}

impl Engine {
    /// How the volume is. `names` are what the nodes are called now.
    pub(super) fn status(&self, names: &[String]) -> Status {
        let stopped = self.stopped.borrow().clone();
        self.with(|state| state.status(names, stopped))
    }
}

impl State {
    fn status(&self, names: &[String], stopped: Option<super::RequestError>) -> Status {
        let shape = self.shape;
        let k = u32::from(shape.data_shards());
        let usage = self.map.usage();
        let mut missing = vec![0u64; self.nodes.len()];
        let mut redundancy = Some(u32::from(shape.parity_shards()));
        let (mut degraded, mut to_repair) = (0, 0);
        for (sequence, segment) in usage.from(0).filter(|(_, segment)| segment.blocks > 0) {
            let usable = self.readable_shards(sequence, segment.present);
            redundancy = redundancy.min(usable.count_ones().checked_sub(k));
            let absent = (0..shape.shards()).filter(|shard| segment.present >> shard & 1 == 0);
            let mut any = false;
            for shard in absent {
                any = true;
                to_repair += 1;
                let holder = usize::from(self.nodes.holder(sequence, shard));
                missing.get_mut(holder).into_iter().for_each(|count| *count += 1);
            }
            degraded += u64::from(any);
        }
        let block = BLOCK_BYTES as u64;
        let headroom = self.headroom_blocks();
        let nodes = self.nodes.iter().zip(missing);
        Status {
            uuid: self.superblock.uuid,
            size_bytes: self.size_bytes,
            data_shards: shape.data_shards(),
            parity_shards: shape.parity_shards(),
            epoch: self.epoch(),
            policy: self.superblock.policy,
            policy_degraded: self.is_degraded(),
            redundancy: redundancy.filter(|_| self.hopeless.is_empty()),
            redundancy_wanted: u32::from(shape.parity_shards()),
            nodes: nodes.map(|((node, _), missing)| self.node(node, names, missing)).collect(),
            unflushed_bytes: self.overlay.unflushed_blocks() as u64 * block,
            journal_bytes: self.journal.used_bytes(),
            unsealed_bytes: self.overlay.blocks() as u64 * block,
            segments: usage.len() as u64,
            segments_degraded: degraded,
            segments_lost: self.hopeless.len() as u64,
            shards_to_repair: to_repair,
            live_bytes: usage.live_blocks() * block,
            stored_bytes: usage.stored_blocks() * block,
            free_bytes: self.free_blocks().map(|free| free.saturating_sub(headroom) * block),
            repair: self.repair,
            scrub: self.scrub,
            stopped,
            counters: self.counters,
        }
    }

    /// The shards of a segment that are there, on nodes that are up.
    pub(super) fn readable_shards(&self, sequence: u64, present: u32) -> u32 {
        let shards = 0..self.shape.shards();
        let usable =
            shards.filter(|shard| self.nodes.is_usable(self.nodes.holder(sequence, *shard)));
        usable.fold(0, |all, shard| all | 1 << shard) & present
    }

    fn node(&self, node: NodeIndex, names: &[String], shards_missing: u64) -> NodeStatus {
        let entry = self.nodes.get(node);
        let info = entry.map(|entry| &entry.info);
        let name = names.get(usize::from(node)).cloned();
        let slots = (0..).zip(self.nodes.slots()).filter(|(_, holder)| **holder == node);
        NodeStatus {
            name: name.unwrap_or_else(|| info.map(|info| info.name.clone()).unwrap_or_default()),
            domain: info.map(|info| info.domain.clone()).unwrap_or_default(),
            state: entry.map_or(NodeState::Down(NodeError::Unavailable), |entry| entry.state),
            slots: slots.map(|(slot, _)| slot).collect(),
            is_head: self.journal.heads.contains(&node),
            shards_missing,
            free_bytes: entry.and_then(|entry| entry.free_bytes),
        }
    }
}
