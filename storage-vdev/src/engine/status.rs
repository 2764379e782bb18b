//! How a volume is: what a person, a metric and a policy ask.

use super::options::Policy;
use crate::keys::Uuid;
use crate::node::NodeError;

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
