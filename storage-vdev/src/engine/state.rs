//! What the tasks of a volume share.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::cache::Cache;
use super::executor::{Answer, Either, Event, Runtime, either};
use super::flush::Flushes;
use super::free::Freeing;
use super::heads::Journal;
use super::log::Log;
use super::nodes::NodeTable;
use super::openings::Openings;
use super::options::Limits;
use super::overlay::{BatchId, Overlay};
use super::request::{Command, Completion, Output, RequestError, RequestId};
use super::status::{Counters, Progress};
use super::superblock::Superblock;
use super::write::Queued;
use crate::codec::Codec;
use crate::extent_map::Map;
use crate::geometry::BLOCK_BYTES;
use crate::keys::{EpochKeys, Uuid, VolumeKey};
use crate::node::{NodeError, NodeIndex, Request};
use crate::register::{Lease, Proposer};
use crate::segment::Shape;

/// A volume without its nodes and its tasks.
#[derive(Default)]
pub(super) struct Engine {
    pub(super) runtime: Rc<Runtime>,
    pub(super) events: Events,
    /// None until the volume's superblock is known.
    state: RefCell<Option<State>>,
    completions: RefCell<VecDeque<Completion>>,
    pub(super) stopped: RefCell<Option<RequestError>>,
}

/// What tasks wait for.
#[derive(Default)]
pub(super) struct Events {
    /// Something was put into the queue of writes, or there is room again.
    pub(super) queue: Event,
    /// A batch was closed, or the log has room again.
    pub(super) sealing: Event,
    /// A segment became durable.
    pub(super) durable: Event,
    /// A segment was committed.
    pub(super) committed: Event,
    /// A flush waits, or the journal can be used again.
    pub(super) flush: Event,
    /// A node came up or went down, or got room.
    pub(super) nodes: Event,
    /// Work for the task that looks after shards, segments and checkpoints.
    pub(super) upkeep: Event,
    /// The lock of the superblock became free.
    pub(super) superblock: Event,
    /// The register's proposer became free.
    pub(super) register: Event,
}

impl Events {
    fn all(&self) -> [&Event; 9] {
        [
            &self.queue,
            &self.sealing,
            &self.durable,
            &self.committed,
            &self.flush,
            &self.nodes,
            &self.upkeep,
            &self.superblock,
            &self.register,
        ]
    }
}

/// What changes.
pub(super) struct State {
    pub(super) shape: Shape,
    pub(super) codec: Arc<Codec>,
    pub(super) volume_key: VolumeKey,
    /// The keys of this opening.
    pub(super) keys: EpochKeys,
    pub(super) openings: Openings,
    pub(super) limits: Limits,
    pub(super) nodes: NodeTable,
    /// How many of them were given to this opening; the others are only known.
    pub(super) given: usize,
    pub(super) overlay: Overlay,
    /// Batches that are closed and not sealed yet.
    pub(super) to_seal: VecDeque<BatchId>,
    pub(super) log: Log,
    pub(super) journal: Journal,
    pub(super) map: Map,
    /// A segment is being entered into the map.
    pub(super) applying: bool,
    /// Somebody waits until none is.
    pub(super) freezing: bool,
    pub(super) cache: Cache,
    /// The newest durable superblock.
    pub(super) superblock: Superblock,
    pub(super) size_bytes: u64,
    /// Writes, zeroings and flushes that are not carried out yet, in the order of submission.
    pub(super) queue: VecDeque<Queued>,
    /// The first of them is being carried out.
    pub(super) queue_busy: bool,
    pub(super) flushes: Flushes,
    /// Commands that wait for the task that carries them out.
    pub(super) commands: VecDeque<(RequestId, Command)>,
    pub(super) closing: bool,
    /// The request that closes the volume.
    pub(super) closer: Option<RequestId>,
    /// The volume is given up, or about to be.
    pub(super) released: bool,
    /// Writes wait: the volume is being rolled back.
    pub(super) held: bool,
    pub(super) freeing: Freeing,
    /// No garbage is looked for before this segment is committed.
    pub(super) gc_rests_until: u64,
    /// The open batch, and since when something has been in it, as far as was noticed.
    pub(super) open_since_ns: Option<(BatchId, u64)>,
    /// Somebody writes a superblock.
    pub(super) superblock_busy: bool,
    /// None if the volume has no register.
    pub(super) lease: Option<Lease>,
    /// What shows nodes that the epoch is ours.
    pub(super) evidence: Vec<Bytes>,
    /// Nodes may have acceptors that are not the register's.
    pub(super) acceptors_due: bool,
    /// None while somebody uses it.
    pub(super) proposer: Option<Proposer>,
    /// Something can be repaired, perhaps.
    pub(super) repair_wanted: bool,
    pub(super) repair: Option<Progress>,
    pub(super) scrub: Option<Progress>,
    /// Segments that could not be repaired with the nodes that are up.
    pub(super) hopeless: BTreeSet<u64>,
    pub(super) counters: Counters,
    /// When so much was put, the nodes are asked how much room they have.
    pub(super) probe_at_bytes: u64,
}

impl Engine {
    /// The volume's state from here on.
    pub(super) fn begin(&self, state: State) {
        *self.state.borrow_mut() = Some(state);
    }

    /// The state, for as long as `f` runs: no task can hold it while it waits.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        match &mut *self.state.borrow_mut() {
            Some(state) => f(state),
            None => unreachable!("the state is there before anything that asks for it"),
        }
    }

    /// Takes into account what nodes have answered.
    pub(super) fn note_finished(&self) {
        let finished = self.runtime.take_finished();
        if finished.is_empty() {
            return;
        }
        let now_ns = self.runtime.now_ns();
        let Some(state) = &mut *self.state.borrow_mut() else { return };
        let mut news = false;
        for one in finished {
            news |= state.nodes.note(one.node, one.elapsed_ns, one.error, now_ns);
        }
        if news {
            state.hopeless.clear();
            state.repair_wanted = true;
            self.events.nodes.announce(&self.runtime);
            self.events.upkeep.announce(&self.runtime);
        }
    }

    /// The volume's size in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.with(|state| state.size_bytes)
    }

    /// The volume's uuid.
    pub(super) fn uuid(&self) -> Uuid {
        self.with(|state| state.superblock.uuid)
    }

    /// Asks a node, unless it is down. A node that hasn't answered after `patience_ns` is down.
    pub(super) async fn ask(&self, node: NodeIndex, request: Request, patience_ns: u64) -> Answer {
        if !self.with(|state| state.nodes.is_usable(node)) {
            return Err(NodeError::Unavailable);
        }
        let until_ns = self.runtime.now_ns().saturating_add(patience_ns);
        let call = self.runtime.call(node, request);
        match either(call, self.runtime.sleep_until(until_ns)).await {
            Either::First(answer) => answer,
            Either::Second(()) => {
                self.node_down(node, NodeError::Unavailable);
                Err(NodeError::Unavailable)
            }
        }
    }

    /// A node is of no use for now.
    pub(super) fn node_down(&self, node: NodeIndex, error: NodeError) {
        let now_ns = self.runtime.now_ns();
        if self.with(|state| state.nodes.set_down(node, error, now_ns, false)) {
            self.events.nodes.announce(&self.runtime);
            self.events.upkeep.announce(&self.runtime);
        }
    }

    /// The volume can't go on: everything that waits fails, now and later.
    pub(super) fn stop(&self, error: RequestError) {
        if self.stopped.borrow().is_some() {
            return;
        }
        if error != RequestError::Closed {
            tracing::error!(%error, "the volume has stopped");
        }
        *self.stopped.borrow_mut() = Some(error);
        self.fail_waiting();
        self.events.all().into_iter().for_each(|event| event.announce(&self.runtime));
    }

    /// Why the volume has stopped.
    pub(super) fn check_running(&self) -> Result<(), RequestError> {
        self.stopped.borrow().clone().map_or(Ok(()), Err)
    }

    /// Stops the volume if an answer says that it was taken over.
    pub(super) fn check_fence(&self, answer: &Answer) {
        if let Err(NodeError::EpochStale { current }) = answer {
            self.stop(RequestError::Stale { epoch: *current });
        }
    }

    /// What was submitted and not begun fails; so do flushes.
    fn fail_waiting(&self) {
        let Err(error) = self.check_running() else { return };
        let mut failed = Vec::new();
        if let Some(state) = &mut *self.state.borrow_mut() {
            // The first may be under way; its own task ends it.
            let kept = usize::from(state.queue_busy).min(state.queue.len());
            failed.extend(state.queue.drain(kept..).map(|queued| queued.id()));
            failed.extend(state.flushes.take_all());
            failed.extend(state.commands.drain(..).map(|(id, _)| id));
        }
        for id in failed {
            self.complete(id, Err(error.clone()));
        }
    }

    /// Ends a request that has no buffer.
    pub(super) fn complete(&self, id: RequestId, result: Result<Output, RequestError>) {
        self.complete_with(id, result, Vec::new());
    }

    /// Ends a request.
    pub(super) fn complete_with(
        &self,
        id: RequestId,
        result: Result<Output, RequestError>,
        buffer: Vec<u8>,
    ) {
        self.completions.borrow_mut().push_back(Completion { id, result, buffer });
    }

    pub(super) fn completions_are_empty(&self) -> bool {
        self.completions.borrow().is_empty()
    }

    /// The next completion. Whatever was found out, it is not said without a lease: this is the
    /// last moment before the answer.
    pub(super) fn next_completion(&self) -> Option<Completion> {
        let mut completion = self.completions.borrow_mut().pop_front()?;
        let closes = self.with(|state| state.closer == Some(completion.id));
        if completion.result.is_ok()
            && !closes
            && let Err(error) = self.check_lease()
        {
            completion.result = Err(error);
        }
        Some(completion)
    }
}

impl State {
    /// The epoch of this opening.
    pub(super) fn epoch(&self) -> u64 {
        self.keys.opening.epoch
    }

    /// How many blocks the volume has.
    pub(super) fn blocks(&self) -> u64 {
        self.size_bytes / BLOCK_BYTES as u64
    }

    /// How many blocks a segment takes.
    pub(super) fn segment_blocks(&self) -> u16 {
        let most = usize::from(self.shape.blocks_max());
        let wanted = self.limits.segment_blocks.clamp(1, most);
        u16::try_from(wanted).unwrap_or(u16::MAX)
    }

    /// How many blocks of segments fit what the nodes have left; `None` if nobody said.
    pub(super) fn free_blocks(&self) -> Option<u64> {
        let per_node = self.nodes.free_bytes()? / crate::segment::UNIT_BYTES as u64;
        Some(per_node.saturating_mul(u64::from(self.shape.data_shards())))
    }
}
