//! Putting a slot on another node.
//!
//! When the slot's node is gone, the new one has the slot at once, and repair fills it: nothing is
//! lost by that which isn't lost already. When the node is there (it is to be emptied, or is slow),
//! its shards are copied first, and only when all of them are durable on the new node does a
//! superblock name that: at no time is any segment on fewer nodes than before.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::request::RequestError;
use super::state::{Engine, State};
use crate::node::NodeIndex;

/// A copy that goes on while the volume is written is done in so many passes before writes wait for
/// the last one.
const PASSES_MAX: u32 = 8;
/// So few segments left are worth no more passes.
const FEW: usize = 4;
/// How often the last pass is repeated because garbage collection was at work, too.
const TRIES_MAX: u32 = 64;

/// A slot that is being moved.
struct Move {
    slot: u8,
    to: NodeIndex,
    /// The segments whose shard of this slot is durable on the new node.
    copied: BTreeSet<u64>,
}

impl State {
    /// The segments whose shard of the slot is on the old node and not yet on the new one.
    fn to_copy(&self, one: &Move) -> Vec<u64> {
        let usage = self.map.usage().from(0);
        let there = usage.filter(|(sequence, segment)| {
            let bit = 1u32 << self.shape.shard_in(*sequence, one.slot);
            segment.blocks > 0 && segment.present & bit != 0 && self.is_own(*sequence)
        });
        let open = there.map(|(sequence, _)| sequence);
        open.filter(|sequence| !one.copied.contains(sequence)).collect()
    }

    /// The slot's node is another one from now on; it has what was copied.
    fn give_slot(&mut self, one: &Move) {
        self.nodes.set_slot(one.slot, one.to);
        let kept: Vec<(u64, u32)> = one
            .copied
            .iter()
            .filter_map(|sequence| Some((*sequence, self.map.usage().get(*sequence)?.present)))
            .collect();
        self.empty_slot(one.slot);
        for (sequence, present) in kept {
            self.map.usage_mut().set_present(sequence, present);
        }
    }
}

impl Engine {
    /// From now on a slot's shards are on another node.
    pub(super) async fn replace(
        self: &Rc<Self>,
        slot: u8,
        node: NodeIndex,
    ) -> Result<(), RequestError> {
        let (allowed, is_gone) = self.with(|state| {
            let objects = state.nodes.get(node).is_some_and(|entry| entry.info.objects);
            let holder = state.nodes.slots().get(usize::from(slot)).copied();
            let free = holder.is_some() && objects && !state.nodes.slots().contains(&node);
            (free, holder.is_none_or(|holder| !state.nodes.is_usable(holder)))
        });
        if !allowed {
            return Err(RequestError::Refused("there is no such slot, or the node can't take it"));
        }
        let mut one = Move { slot, to: node, copied: BTreeSet::new() };
        if is_gone {
            tracing::info!(slot, node, "another node takes a slot over");
            return self.hand_slot(&mut one, false).await.map(|_| ());
        }
        if !self.with(|state| state.nodes.is_usable(node)) {
            return Err(RequestError::Refused("the node that is to take the slot is down"));
        }
        tracing::info!(slot, node, "a slot is moved to another node");
        for _ in 0..PASSES_MAX {
            if self.copy_pass(&mut one).await? <= FEW {
                break;
            }
        }
        self.with(|state| state.held = true);
        let result = self.move_held(&mut one).await;
        self.with(|state| state.held = false);
        self.events.queue.announce(&self.runtime);
        result
    }

    /// Writes wait: copies what is left, and hands the slot over.
    async fn move_held(self: &Rc<Self>, one: &mut Move) -> Result<(), RequestError> {
        for _ in 0..TRIES_MAX {
            self.seal_all().await?;
            self.copy_pass(one).await?;
            if self.hand_slot(one, true).await? {
                return Ok(());
            }
        }
        Err(RequestError::Refused("garbage collection did not let the slot be moved: try again"))
    }

    /// Copies what is to be copied now. Returns how many segments that were.
    async fn copy_pass(self: &Rc<Self>, one: &mut Move) -> Result<usize, RequestError> {
        let segments = self.with(|state| state.to_copy(one));
        for sequence in &segments {
            self.check_running()?;
            let before_ns = self.runtime.now_ns();
            let shard = self.with(|state| state.shape.shard_in(*sequence, one.slot));
            match self.copy_shard((*sequence, shard), one.to).await {
                Some(bytes) => {
                    one.copied.insert(*sequence);
                    self.throttle(bytes, before_ns).await;
                }
                // Deleted meanwhile, perhaps.
                None if self.with(|state| state.map.usage().get(*sequence).is_none()) => {}
                None => return Err(RequestError::Unavailable),
            }
        }
        Ok(segments.len())
    }

    /// A superblock names the new node. With `whole` only if it has everything: `false` if not.
    async fn hand_slot(self: &Rc<Self>, one: &mut Move, whole: bool) -> Result<bool, RequestError> {
        let mut handed = false;
        // The superblock that names the node also says which shards it doesn't have.
        let stored = self.checkpoint_from(|state| {
            let is_whole = state.to_copy(one).is_empty() && state.log.is_idle();
            if !handed && (is_whole || !whole) {
                handed = true;
                state.give_slot(one);
            }
        });
        stored.await?;
        Ok(handed)
    }
}
