//! What a volume does of its own accord: probes, checkpoints, other journal heads.

use std::rc::Rc;

use super::executor::{Either, either};
use super::options::Policy;
use super::place::{choose_heads, heads_wanted};
use super::request::RequestError;
use super::state::{Engine, State};
use super::status::NodeState;
use crate::node::{NodeError, NodeIndex, Request, Response};

/// How often nodes that are down or slow are asked how they are.
const PROBE_NS: u64 = 1_000_000_000;
/// How long a probe may take.
const PROBE_NS_MAX: u64 = 900_000_000;
/// How long a node may take to put up a fence.
const FENCE_NS_MAX: u64 = 5_000_000_000;
/// After how many bytes that were put the nodes are asked how full they are.
const CAPACITY_BYTES: u64 = 64 << 20;
/// How long the node of a slot may be down before a spare takes the slot over: when one more loss
/// leaves no spare shard, and when half of the parity is gone.
const URGENT_NS: u64 = 30_000_000_000;
const LOST_NS: u64 = 900_000_000_000;
/// How many segments may be committed since the last checkpoint.
const CHECKPOINT_SEGMENTS: u64 = 256;
/// How long a `local` volume keeps writes on this host alone.
const LOCAL_NS: u64 = 2_000_000_000;

/// Asks nodes how they are, for ever: those that are down, slow or full now and then, the others
/// how much room they have, when much was put on them.
pub(super) async fn prober(engine: Rc<Engine>) {
    loop {
        let due = || match engine.check_running() {
            Err(_) => Some(None),
            Ok(()) => engine.with(|state| state.nodes_to_probe()).map(Some),
        };
        let due = engine.events.nodes.until(&engine.runtime, due).await;
        let Some(nodes) = due else { return };
        for node in nodes {
            let engine_too = Rc::clone(&engine);
            engine.runtime.spawn(async move { engine_too.probe(node).await });
        }
        let next_ns = engine.runtime.now_ns().saturating_add(PROBE_NS);
        engine.runtime.sleep_until(next_ns).await;
        engine.events.upkeep.announce(&engine.runtime);
    }
}

/// Does what is due, for ever.
pub(super) async fn housekeeper(engine: Rc<Engine>) {
    loop {
        let now_ns = engine.runtime.now_ns();
        let tick_ns = engine.with(|state| state.next_tick_ns(now_ns));
        let due = || match engine.check_running() {
            Err(_) => Some(None),
            Ok(()) => {
                let now_ns = engine.runtime.now_ns();
                let ticks = engine.with(|state| state.next_tick_ns(now_ns)) != tick_ns;
                let chore = engine.with(|state| state.next_chore(now_ns));
                chore.or(ticks.then_some(Chore::Look)).map(Some)
            }
        };
        let wait = engine.events.upkeep.until(&engine.runtime, due);
        let chore = match either(wait, engine.runtime.sleep_until(tick_ns)).await {
            Either::First(None) => return,
            Either::First(Some(chore)) => chore,
            Either::Second(()) => Chore::SealOld,
        };
        if let Err(error) = engine.carry_out(chore).await {
            tracing::debug!(%error, "upkeep failed; it is tried again");
            let again_ns = engine.runtime.now_ns().saturating_add(PROBE_NS);
            engine.runtime.sleep_until(again_ns).await;
        }
    }
}

/// Something that is due.
enum Chore {
    /// Nothing yet, but the time of the next look has changed.
    Look,
    SealOld,
    Checkpoint,
    Heads,
    Repair,
    Replace(u8, NodeIndex),
}

impl State {
    fn next_chore(&mut self, now_ns: u64) -> Option<Chore> {
        if self.closing {
            return None;
        }
        if self.wants_heads(now_ns) {
            return Some(Chore::Heads);
        }
        let since = self.log.frontier.sequence.saturating_sub(self.superblock.frontier.sequence);
        if self.map.wants_checkpoint() || since >= CHECKPOINT_SEGMENTS {
            return Some(Chore::Checkpoint);
        }
        if let Some((slot, node)) = self.slot_to_replace(now_ns) {
            return Some(Chore::Replace(slot, node));
        }
        if self.repair_wanted {
            self.repair_wanted = false;
            if !self.backlog().is_empty() {
                return Some(Chore::Repair);
            }
        }
        None
    }

    /// The nodes that should be asked how they are now.
    fn nodes_to_probe(&mut self) -> Option<Vec<NodeIndex>> {
        let all = self.counters.put_bytes >= self.probe_at_bytes;
        if all {
            self.probe_at_bytes = self.counters.put_bytes.saturating_add(CAPACITY_BYTES);
        }
        let due = self.nodes.iter().take(self.given).filter(|(_, node)| {
            !node.for_good && (all || node.full || node.state != NodeState::Up)
        });
        let due: Vec<NodeIndex> = due.map(|(node, _)| node).collect();
        (!due.is_empty()).then_some(due)
    }

    /// When there may be something to do though nothing happens.
    fn next_tick_ns(&mut self, now_ns: u64) -> u64 {
        let heads_ns = self.nodes.next_head_ns(now_ns).unwrap_or(u64::MAX);
        self.next_seal_ns(now_ns).min(heads_ns)
    }

    /// When what is only on this host has to be put on the nodes.
    fn next_seal_ns(&mut self, now_ns: u64) -> u64 {
        let open = self.overlay.open_batch();
        if self.superblock.policy != Policy::Local || open.is_empty() {
            self.open_since_ns = None;
            return u64::MAX;
        }
        let (batch, since_ns) = *self.open_since_ns.get_or_insert((open.id, now_ns));
        if batch != open.id {
            self.open_since_ns = Some((open.id, now_ns));
            return now_ns.saturating_add(LOCAL_NS);
        }
        since_ns.saturating_add(LOCAL_NS)
    }

    /// A slot whose node has been down for long, and a node that could take it.
    fn slot_to_replace(&self, now_ns: u64) -> Option<(u8, NodeIndex)> {
        let down = |node: &NodeIndex| !self.nodes.is_usable(*node);
        let slots = self.nodes.slots();
        let alive = slots.iter().filter(|node| !down(node)).count();
        let (k, m) = (self.shape.data_shards(), self.shape.parity_shards());
        let (k, m) = (usize::from(k), usize::from(m));
        let patience_ns = match alive {
            alive if alive <= k + 1 => URGENT_NS,
            alive if alive <= k + m.div_ceil(2) => LOST_NS,
            _ => return None,
        };
        let (slot, _) = (0u8..).zip(slots).find(|(_, node)| {
            let since_ns = self.nodes.get(**node).map_or(0, |node| node.down_since_ns);
            down(node) && now_ns.saturating_sub(since_ns) >= patience_ns
        })?;
        let domain = |node: NodeIndex| self.nodes.get(node).map(|node| &node.info.domain);
        let spare = self.nodes.iter().find(|(node, entry)| {
            let others = (0u8..).zip(slots).filter(|(other, _)| *other != slot);
            let alone = others.clone().all(|(_, other)| domain(*other) != domain(*node));
            entry.info.objects
                && self.nodes.is_usable(*node)
                && !slots.contains(node)
                && (alone || self.superblock.shared_domains)
        });
        Some((slot, spare?.0))
    }

    /// Whether the journal could be on more heads than it is, or on others than one that failed.
    fn wants_heads(&self, now_ns: u64) -> bool {
        let policy = self.superblock.policy;
        let wanted = heads_wanted(policy, self.shape);
        let usable = if self.journal.is_usable() { self.journal.heads.len() } else { 0 };
        let now = (wanted, self.journal.heads.as_slice());
        let found = choose_heads(&self.nodes, policy, now, now_ns).len();
        let enough = found == wanted || self.superblock.allow_degraded;
        usable < wanted && found > usable && enough
    }

    /// Whether flushes are served with fewer journal heads than the policy wants.
    pub(super) fn is_degraded(&self) -> bool {
        let wanted = heads_wanted(self.superblock.policy, self.shape);
        self.journal.is_usable() && self.journal.heads.len() < wanted
    }
}

impl Engine {
    async fn carry_out(self: &Rc<Self>, chore: Chore) -> Result<(), RequestError> {
        match chore {
            Chore::Look => Ok(()),
            Chore::SealOld => {
                if self.with(|state| state.superblock.policy == Policy::Local) {
                    self.close_batch();
                }
                Ok(())
            }
            Chore::Replace(slot, node) => self.replace(slot, node).await,
            Chore::Heads => self.replace_heads().await,
            Chore::Repair => self.repair().await.map(|_report| ()),
            Chore::Checkpoint => self.checkpoint_and_free(|_, _| {}).await,
        }
    }

    async fn probe(self: Rc<Self>, node: NodeIndex) {
        let call = self.runtime.call(node, Request::Capacity);
        let until_ns = self.runtime.now_ns().saturating_add(PROBE_NS_MAX);
        let answer = either(call, self.runtime.sleep_until(until_ns)).await;
        let Either::First(Ok(Response::Capacity { free_bytes, .. })) = answer else { return };
        // It may have been away when the volume was taken over: an earlier holder could write to
        // it, and the next opening would take it for one that has forgotten this one.
        let was_down = !self.with(|state| state.nodes.is_usable(node));
        if was_down && self.fence_again(node).await.is_err() {
            return;
        }
        let came_up = self.with(|state| {
            let Some(entry) = state.nodes.get_mut(node) else { return false };
            entry.free_bytes = Some(free_bytes);
            entry.full = false;
            let was_up = entry.state == NodeState::Up;
            if !was_up {
                state.hopeless.clear();
                state.repair_wanted = true;
                state.acceptors_due = true;
                state.nodes.set_up(node);
            }
            !was_up
        });
        if came_up {
            self.events.nodes.announce(&self.runtime);
            self.events.upkeep.announce(&self.runtime);
        }
    }

    /// Tells a node of this opening, which it may know already.
    pub(super) async fn fence_again(&self, node: NodeIndex) -> Result<(), NodeError> {
        let (volume, epoch, evidence) =
            self.with(|state| (state.superblock.uuid, state.epoch(), state.evidence.clone()));
        let call = self.runtime.call(node, Request::Fence { volume, epoch, evidence });
        let until_ns = self.runtime.now_ns().saturating_add(FENCE_NS_MAX);
        match either(call, self.runtime.sleep_until(until_ns)).await {
            Either::First(answer) => {
                self.check_fence(&answer);
                answer.map(|_| ())
            }
            Either::Second(()) => Err(NodeError::Unavailable),
        }
    }
}
