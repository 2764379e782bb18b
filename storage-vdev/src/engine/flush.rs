//! Making writes durable: flushes wait for the journal, or for segments.
//!
//! A flush covers every write up to a number. What it covers is durable when each batch's segment
//! is, with all segments before it, or when the journal has it. What is still in the open batch is
//! appended to the heads in one group, for all flushes that wait by then; where that isn't possible
//! or isn't worth it, the batch is closed and its segment does it.

use std::collections::VecDeque;
use std::rc::Rc;

use super::heads::Append;
use super::options::Policy;
use super::record::group_bytes;
use super::request::{Output, RequestId};
use super::state::{Engine, State};

/// More than this is not journaled: a segment takes it as fast, and once.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// Flushes that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// Each with the last write that it covers, in ascending order.
    waiting: VecDeque<(RequestId, u64)>,
}

impl Flushes {
    /// Adds a flush of everything up to `last_write`.
    pub(super) fn push(&mut self, id: RequestId, last_write: u64) {
        self.waiting.push_back((id, last_write));
    }

    /// The last write that any of them covers.
    fn target(&self) -> Option<u64> {
        self.waiting.back().map(|(_, target)| *target)
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn take_done(&mut self, durable: u64) -> Option<RequestId> {
        self.waiting.pop_front_if(|(_, target)| *target <= durable).map(|(id, _)| id)
    }

    /// All of them, to fail them.
    pub(super) fn take_all(&mut self) -> Vec<RequestId> {
        self.waiting.drain(..).map(|(id, _)| id).collect()
    }
}

/// What has to be done for the flushes that wait.
enum Step {
    Append(Append),
    Seal,
}

impl State {
    /// The last write that is durable under the policy, with all before it.
    pub(super) fn durable_write(&self) -> u64 {
        let durable_batch = self.log.durable_batch();
        self.overlay.durable_write(|batch| durable_batch.is_some_and(|last| batch <= last))
    }

    fn next_step(&mut self) -> Option<Step> {
        let open = self.overlay.open_batch();
        let target = self.flushes.target()?;
        if target <= open.taken() || open.is_empty() {
            // It waits for segments, or for nothing.
            return None;
        }
        let by_journal = self.superblock.policy != Policy::Sealed && self.journal.is_usable();
        let bytes = group_bytes(open.pending());
        if !by_journal || bytes > GROUP_BYTES_MAX || !self.journal.has_room(bytes) {
            return Some(Step::Seal);
        }
        let group = self.overlay.take_pending()?;
        let batch = self.overlay.batch(group.batch)?;
        Some(Step::Append(self.journal.append(&group, batch, &self.keys, self.superblock.uuid)))
    }
}

impl Engine {
    /// Answers the flushes whose writes are durable by now.
    pub(super) fn settle_flushes(&self) {
        if let Err(error) = self.check_lease() {
            let failed = self.with(|state| state.flushes.take_all());
            for id in failed {
                self.complete(id, Err(error.clone()));
            }
            return;
        }
        let done: Vec<RequestId> = self.with(|state| {
            if state.flushes.is_empty() {
                return Vec::new();
            }
            let durable = state.durable_write();
            let flushes = &mut state.flushes;
            let done: Vec<_> = std::iter::from_fn(|| flushes.take_done(durable)).collect();
            state.counters.flushes += done.len() as u64;
            done
        });
        for id in done {
            self.complete(id, Ok(Output::Done));
        }
    }
}

/// Serves the flushes, for ever.
pub(super) async fn journaler(engine: Rc<Engine>) {
    loop {
        let next = || {
            // Also those that came while there was nothing left to be made durable.
            engine.settle_flushes();
            engine.with(|state| state.next_step().map(Some))
        };
        let stopped = || engine.check_running().is_err().then_some(None);
        let step = engine.events.flush.until(&engine.runtime, || stopped().or_else(next)).await;
        match step {
            None => return,
            Some(Step::Seal) => engine.close_batch(),
            Some(Step::Append(append)) => engine.append(append).await,
        }
    }
}
