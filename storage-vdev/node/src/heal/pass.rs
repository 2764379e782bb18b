//! How a pass goes about it.

use storage_vdev::node::NodeIndex;
use storage_vdev::segment::Shape;

/// How much to repair, and how fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whether all shards are read and checked, not only what is missing by the nodes' own word.
    pub scrub: bool,
    /// Whether a segment waits until it is at the threshold k + ceil(m / 2) before it is repaired:
    /// two losses that are mended together cost the reading of one.
    pub lazy: bool,
    /// The most bytes per second that are read and written together; `None`: as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// Nodes that have been gone for so long that spares take their place. Another node that
    /// doesn't answer is waited for: its shards are most likely still there.
    pub given_up: Vec<NodeIndex>,
    /// How many segments are under way at a time. Each takes the memory of its shards.
    pub parallel: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { scrub: false, lazy: true, bytes_per_second: None, given_up: Vec::new(), parallel: 4 }
    }
}

impl Policy {
    /// A segment is repaired when so many shards are left, or fewer.
    pub(super) fn threshold(&self, shape: Shape) -> u8 {
        let (data, parity) = (shape.data_shards(), shape.parity_shards());
        if self.lazy { data + parity.div_ceil(2) } else { shape.shards() }
    }
}
