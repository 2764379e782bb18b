//! What happens to nodes later, in the order of time; what is due at one instant, as it was planned.

use std::collections::BTreeMap;

/// Events of nodes at instants, in nanoseconds.
pub(crate) struct Queue<E> {
    /// By instant, and by a number that counts what was planned.
    events: BTreeMap<(u64, u64), (u32, E)>,
    pub(crate) planned: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self { events: BTreeMap::new(), planned: 0 }
    }

    /// Plans an event of a node.
    pub(crate) fn at(&mut self, node: u32, at_ns: u64, event: E) {
        self.planned += 1;
        self.events.insert((at_ns, self.planned), (node, event));
    }

    /// Takes the next event that is due until then: its instant, its node and itself.
    pub(crate) fn next(&mut self, until_ns: u64) -> Option<(u64, u32, E)> {
        let first = self.events.first_entry().filter(|first| first.key().0 <= until_ns)?;
        let ((at_ns, _), (node, event)) = first.remove_entry();
        Some((at_ns, node, event))
    }
}
