//! The volume's nodes as the engine sees them: who holds which slot, who answers, how fast.

use super::options::NodeInfo;
use super::status::NodeState;
use crate::node::{NodeError, NodeIndex};
use crate::segment::Shape;

/// A read is late when it takes this many times what nearly all reads take.
const LATE_FACTOR: u64 = 3;
/// The least and the most patience with a read.
const LATE_NS_MIN: u64 = 2_000_000;
const LATE_NS_MAX: u64 = 250_000_000;
/// How many late or failed reads in a row make a node suspect.
const SUSPECT_AFTER: u32 = 2;
/// How many answers the judgement of a node's speed goes by.
const SAMPLES: usize = 64;

/// All nodes, and which of them hold the slots.
#[derive(Debug)]
pub(super) struct NodeTable {
    shape: Shape,
    nodes: Vec<Node>,
    /// Slot → node. Shard `s` of a segment is in slot [`Shape::slot_of`].
    slots: Vec<NodeIndex>,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) info: NodeInfo,
    pub(super) state: NodeState,
    /// Since when it is down.
    pub(super) down_since_ns: u64,
    /// Its disk failed or it refuses us: asking again is no use.
    pub(super) for_good: bool,
    /// It said that it is full.
    pub(super) full: bool,
    /// It had forgotten the last opening when the volume was opened.
    pub(super) blank: bool,
    /// It keeps no journal head until then, because it said that it can't.
    pub(super) headless_until_ns: u64,
    pub(super) free_bytes: Option<u64>,
    late: u32,
    latency: Latency,
}

/// How long a node's last answers took.
#[derive(Debug)]
struct Latency {
    samples: [u64; SAMPLES],
    next: usize,
    /// What nearly all of them took at most.
    high_ns: u64,
}

impl Latency {
    fn note(&mut self, elapsed_ns: u64) {
        if let Some(sample) = self.samples.get_mut(self.next) {
            *sample = elapsed_ns;
        }
        self.next = (self.next + 1) % SAMPLES;
        if self.next.is_multiple_of(SAMPLES / 4) {
            let mut sorted = self.samples;
            sorted.sort_unstable();
            self.high_ns = sorted.get(SAMPLES - 2).copied().unwrap_or(0);
        }
    }
}

impl NodeTable {
    pub(super) fn new(shape: Shape, infos: Vec<NodeInfo>, slots: Vec<NodeIndex>) -> Self {
        let node = |info| Node {
            info,
            state: NodeState::Up,
            down_since_ns: 0,
            for_good: false,
            full: false,
            blank: false,
            headless_until_ns: 0,
            free_bytes: None,
            late: 0,
            latency: Latency { samples: [0; SAMPLES], next: 0, high_ns: 0 },
        };
        Self { shape, nodes: infos.into_iter().map(node).collect(), slots }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn get(&self, node: NodeIndex) -> Option<&Node> {
        self.nodes.get(usize::from(node))
    }

    pub(super) fn get_mut(&mut self, node: NodeIndex) -> Option<&mut Node> {
        self.nodes.get_mut(usize::from(node))
    }

    /// All of them, with their indexes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeIndex, &Node)> {
        (0..).zip(&self.nodes)
    }

    /// Slot → node.
    pub(super) fn slots(&self) -> &[NodeIndex] {
        &self.slots
    }

    /// From now on `node` has the slot.
    pub(super) fn set_slot(&mut self, slot: u8, node: NodeIndex) {
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            *entry = node;
        }
    }

    /// The node that has (or should have) shard `shard` of segment `sequence`.
    pub(super) fn holder(&self, sequence: u64, shard: u8) -> NodeIndex {
        let slot = self.shape.slot_of(sequence, shard);
        self.slots.get(usize::from(slot)).copied().unwrap_or(NodeIndex::MAX)
    }

    /// Whether it may be asked.
    pub(super) fn is_usable(&self, node: NodeIndex) -> bool {
        self.get(node).is_some_and(|node| !matches!(node.state, NodeState::Down(_)))
    }

    /// It has forgotten the last opening.
    pub(super) fn set_blank(&mut self, node: NodeIndex) {
        if let Some(node) = self.get_mut(node) {
            node.blank = true;
        }
    }

    /// Whether it may be asked, and remembers the last opening.
    pub(super) fn remembers(&self, node: NodeIndex) -> bool {
        self.is_usable(node) && self.get(node).is_some_and(|node| !node.blank)
    }

    /// Whether it may be asked to keep a journal head.
    pub(super) fn may_be_head(&self, node: NodeIndex, now_ns: u64) -> bool {
        let ready = |node: &Node| node.info.journal && node.headless_until_ns <= now_ns;
        self.is_usable(node) && self.get(node).is_some_and(ready)
    }

    /// It can't keep a journal head: it is asked again after `until_ns`.
    pub(super) fn refuse_head(&mut self, node: NodeIndex, until_ns: u64) {
        if let Some(node) = self.get_mut(node) {
            node.headless_until_ns = until_ns;
        }
    }

    /// When a node that was no good as a journal head may be asked again, if there is one.
    pub(super) fn next_head_ns(&self, now_ns: u64) -> Option<u64> {
        self.nodes.iter().map(|node| node.headless_until_ns).filter(|at| *at > now_ns).min()
    }

    /// Whether a read should go to it first.
    pub(super) fn is_prompt(&self, node: NodeIndex) -> bool {
        self.get(node).is_some_and(|node| node.state == NodeState::Up)
    }

    /// How long a read of this node may take before others are asked as well.
    pub(super) fn patience_ns(&self, node: NodeIndex) -> u64 {
        let high = self.get(node).map_or(0, |node| node.latency.high_ns);
        (high.saturating_mul(LATE_FACTOR)).clamp(LATE_NS_MIN, LATE_NS_MAX)
    }

    /// An answer came. Returns whether the node has come up or gone down by it.
    pub(super) fn note(
        &mut self,
        node: NodeIndex,
        elapsed_ns: u64,
        error: Option<NodeError>,
        now_ns: u64,
    ) -> bool {
        match error {
            Some(error @ (NodeError::Failed | NodeError::Denied | NodeError::Unsupported)) => {
                self.set_down(node, error, now_ns, true)
            }
            Some(NodeError::Unavailable) => {
                self.set_down(node, NodeError::Unavailable, now_ns, false)
            }
            _ => {
                let Some(node) = self.get_mut(node) else { return false };
                node.latency.note(elapsed_ns);
                // A late answer to an old question is no sign that it answers now.
                if elapsed_ns > LATE_NS_MAX {
                    return false;
                }
                node.late = 0;
                let was_suspect = node.state == NodeState::Suspect;
                if was_suspect {
                    node.state = NodeState::Up;
                }
                was_suspect
            }
        }
    }

    /// A read of the node was late.
    pub(super) fn note_late(&mut self, node: NodeIndex) {
        let Some(node) = self.get_mut(node) else { return };
        node.late += 1;
        if node.late >= SUSPECT_AFTER && node.state == NodeState::Up {
            tracing::info!(node = node.info.name, "node is slow: reads go round it");
            node.state = NodeState::Suspect;
        }
    }

    /// The node is gone, or useless. Returns whether that is news.
    pub(super) fn set_down(
        &mut self,
        node: NodeIndex,
        error: NodeError,
        now_ns: u64,
        for_good: bool,
    ) -> bool {
        let Some(node) = self.get_mut(node) else { return false };
        node.for_good |= for_good;
        if matches!(node.state, NodeState::Down(_)) {
            return false;
        }
        tracing::warn!(node = node.info.name, %error, "node is down");
        node.state = NodeState::Down(error);
        node.down_since_ns = now_ns;
        true
    }

    /// The node answers again.
    pub(super) fn set_up(&mut self, node: NodeIndex) {
        if let Some(node) = self.get_mut(node) {
            tracing::info!(node = node.info.name, "node is up");
            node.state = NodeState::Up;
            node.late = 0;
        }
    }

    /// The least bytes that are left on a node that has a slot and is up; `None` if none said.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let slots = self.slots.iter().filter(|node| self.is_usable(**node));
        slots.filter_map(|node| self.get(*node)?.free_bytes).min()
    }

    /// Bytes were put on a node, or deleted (negative), since it said how much is left.
    pub(super) fn note_used(&mut self, node: NodeIndex, bytes: i64) {
        if let Some(free) = self.get_mut(node).and_then(|node| node.free_bytes.as_mut()) {
            *free = free.saturating_add_signed(-bytes);
        }
    }
}
