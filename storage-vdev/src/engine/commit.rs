//! From closed batches to committed segments: seal, put on all slots, enter into the map.

use std::rc::Rc;

use bytes::Bytes;

use super::executor::join_all;
use super::log::{OwnSegment, Shards};
use super::request::RequestError;
use super::state::{Engine, State};
use crate::extent_map::{Location, MapError};
use crate::node::{NodeError, NodeIndex, Request};
use crate::segment::Entry;

/// How long a node may take to put a shard.
const PUT_NS_MAX: u64 = 10_000_000_000;
/// How long until a put that found no room, or too few nodes, is tried again.
const RETRY_NS: u64 = 500_000_000;

/// What became of a shard.
enum Placed {
    Yes,
    /// Its node is down; there are enough others.
    Missing,
    /// The volume has stopped.
    Stopped,
}

/// Seals closed batches, for ever.
pub(super) async fn sealer(engine: Rc<Engine>) {
    loop {
        let next = || {
            if engine.check_running().is_err() {
                return Some(None);
            }
            engine.with(|state| {
                if !state.log.has_room() {
                    return None;
                }
                let id = state.to_seal.pop_front()?;
                let blocks = state.segment_blocks();
                let batch = state.overlay.batch(id)?;
                state.counters.segments_sealed += 1;
                Some(Some(state.log.seal_batch(batch, blocks)))
            })
        };
        match engine.events.sealing.until(&engine.runtime, next).await {
            None => return,
            Some((sequence, shards)) => engine.spawn_put(sequence, shards),
        }
        engine.events.queue.announce(&engine.runtime);
    }
}

/// Enters segments into the map, in their order, for ever.
pub(super) async fn committer(engine: Rc<Engine>) {
    loop {
        let next = || {
            if engine.check_running().is_err() {
                return Some(None);
            }
            let next = engine.with(|state| {
                let next = state.log.next_to_commit().filter(|_| !state.freezing)?;
                state.applying = true;
                Some((next.sequence, next.blocks, next.present, next.birth, next.entries.clone()))
            });
            next.map(Some)
        };
        let Some((sequence, blocks, present, birth, entries)) =
            engine.events.durable.until(&engine.runtime, next).await
        else {
            return;
        };
        engine.with(|state| state.map.usage_mut().add(sequence, blocks, present, birth));
        if let Err(error) = engine.apply(sequence, &entries).await {
            engine.stop(error);
            return;
        }
        engine.with(|state| {
            state.applying = false;
            if let Some(committed) = state.log.commit()
                && let Some(batch) = committed.batch
            {
                state.overlay.drop_batch(batch);
            }
        });
        engine.trim_journal();
        for event in [&engine.events.committed, &engine.events.queue, &engine.events.sealing] {
            event.announce(&engine.runtime);
        }
        engine.events.nodes.announce(&engine.runtime);
        engine.events.upkeep.announce(&engine.runtime);
    }
}

impl Engine {
    fn spawn_put(self: &Rc<Self>, sequence: u64, shards: Shards) {
        let engine = Rc::clone(self);
        self.runtime.spawn(async move { engine.put_segment(sequence, shards).await });
    }

    /// Puts all shards of a segment, and says when it is durable.
    async fn put_segment(self: Rc<Self>, sequence: u64, shards: Shards) {
        let puts = (0u8..).zip(shards).map(|(shard, parts)| {
            let engine = Rc::clone(&self);
            async move { engine.put_shard(sequence, shard, parts).await }
        });
        let placed = join_all(puts).await;
        if placed.iter().any(|placed| matches!(placed, Placed::Stopped)) {
            return;
        }
        self.with(|state| {
            if let Some(segment) = state.log.get_mut(sequence) {
                segment.durable = true;
            }
        });
        self.events.durable.announce(&self.runtime);
        self.settle_flushes();
        if placed.iter().any(|placed| matches!(placed, Placed::Missing)) {
            self.with(|state| state.repair_wanted = true);
            self.events.upkeep.announce(&self.runtime);
        }
    }

    async fn put_shard(self: &Rc<Self>, sequence: u64, shard: u8, parts: [Bytes; 3]) -> Placed {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        loop {
            if self.check_running().is_err() {
                return Placed::Stopped;
            }
            let (node, key) = self.with(|state| {
                (state.nodes.holder(sequence, shard), state.openings.object(sequence, shard))
            });
            let Some(key) = key else { return Placed::Stopped };
            let request = Request::Put { key, parts: parts.to_vec() };
            let answer = self.ask(node, request, PUT_NS_MAX).await;
            self.check_fence(&answer);
            match answer {
                Ok(_) => {
                    self.note_put(sequence, shard, (node, bytes));
                    return Placed::Yes;
                }
                Err(NodeError::NoSpace | NodeError::Quota) => self.wait_for_space(node).await,
                Err(error) => {
                    // A node that refuses a shard for a reason of its own is no use either.
                    self.node_down(node, error);
                    if self.may_go_without(sequence, shard) {
                        return Placed::Missing;
                    }
                    self.wait_for_nodes().await;
                }
            }
        }
    }

    fn note_put(&self, sequence: u64, shard: u8, (node, bytes): (NodeIndex, usize)) {
        self.with(|state| {
            state.counters.put_bytes += bytes as u64;
            state.nodes.note_used(node, bytes as i64);
            if let Some(node) = state.nodes.get_mut(node) {
                node.full = false;
            }
            let still = state.nodes.holder(sequence, shard) == node;
            if let Some(segment) = state.log.get_mut(sequence).filter(|_| still) {
                segment.present |= 1 << shard;
            }
        });
    }

    /// Whether a segment is durable without this shard, which it goes without then: the nodes that
    /// are down count as lost, shards that were given up count even if their node is up again, and
    /// no more may be lost than there is parity.
    fn may_go_without(&self, sequence: u64, shard: u8) -> bool {
        self.with(|state| {
            let under_way = state.log.get_mut(sequence);
            let (present, given_up) = under_way.map_or((0, 0), |one| (one.present, one.given_up));
            let lost = |other: &u8| {
                let usable = state.nodes.is_usable(state.nodes.holder(sequence, *other));
                let gone = *other == shard || given_up >> *other & 1 == 1 || !usable;
                present >> *other & 1 == 0 && gone
            };
            let all_lost = (0..state.shape.shards()).filter(lost).count();
            let may = all_lost <= usize::from(state.shape.parity_shards());
            if may && let Some(segment) = state.log.get_mut(sequence) {
                segment.given_up |= 1 << shard;
            }
            may
        })
    }

    /// A node is full: flushes are told so, and the put is tried again later.
    async fn wait_for_space(self: &Rc<Self>, node: NodeIndex) {
        self.with(|state| {
            if let Some(node) = state.nodes.get_mut(node) {
                node.full = true;
                node.free_bytes = Some(0);
            }
        });
        self.fail_flushes(&RequestError::NoSpace);
        self.events.nodes.announce(&self.runtime);
        self.events.upkeep.announce(&self.runtime);
        let again_ns = self.runtime.now_ns().saturating_add(RETRY_NS);
        self.runtime.sleep_until(again_ns).await;
    }

    /// Too few nodes: flushes are told so, and the put is tried again later.
    async fn wait_for_nodes(self: &Rc<Self>) {
        self.fail_flushes(&RequestError::Unavailable);
        let again_ns = self.runtime.now_ns().saturating_add(RETRY_NS);
        self.runtime.sleep_until(again_ns).await;
    }

    /// Fails the flushes that need a segment which can't be put now. Nothing is dropped: the next
    /// flush covers the same writes again.
    fn fail_flushes(&self, error: &RequestError) {
        let failed = self.with(|state| {
            let need_segments = state.durable_write() + 1 < state.overlay.open_batch().first_write;
            if need_segments { state.flushes.take_all() } else { Vec::new() }
        });
        for id in failed {
            self.complete(id, Err(error.clone()));
        }
    }

    /// Seals a segment of the engine's own that `fill` has filled, and puts it. `fill` must leave
    /// something in it. Returns its sequence number; wait for it with [`Engine::committed`].
    pub(super) fn write_own(
        self: &Rc<Self>,
        fill: impl FnOnce(&mut State, &mut OwnSegment),
    ) -> u64 {
        let (sequence, shards) = self.with(|state| {
            let mut own = state.log.begin_own(state.segment_blocks());
            fill(state, &mut own);
            state.counters.segments_sealed += 1;
            state.log.seal_own(own)
        });
        self.spawn_put(sequence, shards);
        sequence
    }

    /// Waits until the log takes one more segment.
    pub(super) async fn log_room(&self) -> Result<(), RequestError> {
        let ready = || match self.check_running() {
            Err(error) => Some(Err(error)),
            Ok(()) => self.with(|state| state.log.has_room()).then_some(Ok(())),
        };
        self.events.sealing.until(&self.runtime, ready).await
    }

    /// Waits until segment `sequence`, and every one before it, is committed.
    pub(super) async fn committed(&self, sequence: u64) -> Result<(), RequestError> {
        let ready = || match self.check_running() {
            Err(error) => Some(Err(error)),
            Ok(()) => {
                let frontier = self.with(|state| state.log.frontier.sequence);
                (frontier >= sequence).then_some(Ok(()))
            }
        };
        self.events.committed.until(&self.runtime, ready).await
    }

    /// Waits until every write up to this one is in a committed segment. Its batch must be closed.
    pub(super) async fn written_through(&self, last_write: u64) -> Result<(), RequestError> {
        let ready = || match self.check_running() {
            Err(error) => Some(Err(error)),
            Ok(()) => {
                let reached = self.with(|state| state.log.frontier_write);
                (reached >= last_write).then_some(Ok(()))
            }
        };
        self.events.committed.until(&self.runtime, ready).await
    }

    /// Runs `f` between two segments: the map is as after a whole number of them.
    pub(super) async fn between_segments<R>(
        &self,
        mut f: impl FnMut(&mut State) -> R,
    ) -> Result<R, RequestError> {
        let ready = || match self.check_running() {
            Err(error) => Some(Err(error)),
            Ok(()) => self.with(|state| {
                state.freezing = state.applying;
                (!state.applying).then(|| Ok(f(state)))
            }),
        };
        let result = self.events.committed.until(&self.runtime, ready).await;
        self.events.durable.announce(&self.runtime);
        result
    }

    /// Enters what a segment says into the map.
    pub(super) async fn apply(
        self: &Rc<Self>,
        sequence: u64,
        entries: &[Entry],
    ) -> Result<(), RequestError> {
        let mut index: u32 = 0;
        for entry in entries {
            let location = u16::try_from(index).ok().and_then(|at| Location::new(sequence, at));
            self.apply_entry(*entry, location).await?;
            index += entry.blocks();
        }
        Ok(())
    }

    async fn apply_entry(
        self: &Rc<Self>,
        entry: Entry,
        location: Option<Location>,
    ) -> Result<(), RequestError> {
        let mut zeroed = 0;
        loop {
            let step = self.with(|state| match (entry, location) {
                (Entry::Data { address, count }, Some(to)) => {
                    state.map.set(address, u64::from(count), to).map(|()| true)
                }
                (Entry::Moved { address, from }, Some(to)) => match Location::from_word(from) {
                    Some(from) => state.map.move_if(address, from, to).map(|_| true),
                    None => Ok(true),
                },
                (Entry::Zero { address, count }, _) => {
                    let step = state.map.zero(address + zeroed, count - zeroed);
                    step.map(|blocks| {
                        zeroed += blocks;
                        zeroed >= count
                    })
                }
                _ => Ok(true),
            });
            match step {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(MapError::Missing(pages)) => self.load_pages(pages).await?,
                Err(error) => {
                    tracing::error!(%error, "a segment does not fit the map");
                    return Err(RequestError::Refused("the volume's map is damaged"));
                }
            }
        }
    }
}
