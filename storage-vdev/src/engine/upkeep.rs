//! What a volume does of its own accord: probes, checkpoints, other journal heads.

use std::rc::Rc;

use super::executor::{Either, either};
use super::options::Policy;
use super::place::{choose_heads, heads_wanted};
use super::request::RequestError;
use super::state::{Engine, State};
use super::status::NodeState;
use crate::node::{NodeIndex, Request, Response};

/// How often nodes that are down or slow are asked how they are.
const PROBE_NS: u64 = 1_000_000_000;
/// How long a probe may take.
const PROBE_NS_MAX: u64 = 900_000_000;
/// How often the others are asked how full they are, in probes.
const CAPACITY_PROBES: u64 = 10;
/// How many segments may be committed since the last checkpoint.
const CHECKPOINT_SEGMENTS: u64 = 256;
/// How long a `local` volume keeps writes on this host alone.
const LOCAL_NS: u64 = 2_000_000_000;

/// Asks nodes how they are, for ever.
pub(super) async fn prober(engine: Rc<Engine>) {
    let mut round = 0;
    while engine.check_running().is_ok() {
        let nodes: Vec<NodeIndex> = engine.with(|state| {
            let all = state.nodes.iter().take(state.given);
            let due = all.filter(|(_, node)| {
                !node.for_good && (node.state != NodeState::Up || round % CAPACITY_PROBES == 0)
            });
            due.map(|(node, _)| node).collect()
        });
        for node in nodes {
            let engine_too = Rc::clone(&engine);
            engine.runtime.spawn(async move { engine_too.probe(node).await });
        }
        round += 1;
        let next_ns = engine.runtime.now_ns().saturating_add(PROBE_NS);
        engine.runtime.sleep_until(next_ns).await;
    }
}

/// Does what is due, for ever.
pub(super) async fn housekeeper(engine: Rc<Engine>) {
    loop {
        let due = || match engine.check_running() {
            Err(_) => Some(None),
            Ok(()) => engine.with(|state| state.next_chore()).map(Some),
        };
        let tick_ns = engine.runtime.now_ns().saturating_add(PROBE_NS);
        let wait = engine.events.upkeep.until(&engine.runtime, due);
        let chore = match either(wait, engine.runtime.sleep_until(tick_ns)).await {
            Either::First(None) => return,
            Either::First(Some(chore)) => chore,
            Either::Second(()) => {
                engine.seal_old_writes();
                engine.with(|state| state.repair_wanted = !state.backlog().is_empty());
                continue;
            }
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
    Checkpoint,
    Heads,
    Repair,
}

impl State {
    fn next_chore(&mut self) -> Option<Chore> {
        if self.closing {
            return None;
        }
        if self.wants_heads() {
            return Some(Chore::Heads);
        }
        let since = self.log.frontier.sequence.saturating_sub(self.superblock.frontier.sequence);
        if self.map.wants_checkpoint() || since >= CHECKPOINT_SEGMENTS {
            return Some(Chore::Checkpoint);
        }
        if self.repair_wanted {
            self.repair_wanted = false;
            return Some(Chore::Repair);
        }
        None
    }

    /// Whether the journal could be on more heads than it is, or on others than one that failed.
    fn wants_heads(&self) -> bool {
        let policy = self.superblock.policy;
        let wanted = heads_wanted(policy, self.shape);
        let usable = if self.journal.is_usable() { self.journal.heads.len() } else { 0 };
        let found = choose_heads(&self.nodes, policy, (wanted, &self.journal.heads)).len();
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
        let came_up = self.with(|state| {
            let Some(entry) = state.nodes.get_mut(node) else { return false };
            entry.free_bytes = Some(free_bytes);
            entry.full = false;
            let was_up = entry.state == NodeState::Up;
            if !was_up {
                state.hopeless.clear();
                state.nodes.set_up(node);
            }
            !was_up
        });
        if came_up {
            self.events.nodes.announce(&self.runtime);
            self.events.upkeep.announce(&self.runtime);
        }
    }

    /// What is only on this host, by the `local` policy, is put on the nodes before long.
    fn seal_old_writes(&self) {
        let now_ns = self.runtime.now_ns();
        let old = self.with(|state| {
            let local = state.superblock.policy == Policy::Local;
            let open = state.overlay.open_batch();
            if !local || open.is_empty() {
                state.open_since_ns = None;
                return false;
            }
            let (batch, since_ns) = *state.open_since_ns.get_or_insert((open.id, now_ns));
            if batch != open.id {
                state.open_since_ns = Some((open.id, now_ns));
                return false;
            }
            now_ns.saturating_sub(since_ns) >= LOCAL_NS
        });
        if old {
            self.close_batch();
        }
    }
}
