//! Garbage collection: blocks that are still needed are moved out of segments that are mostly
//! dead, so that the segments can be deleted.
//!
//! Victims are chosen by cost and benefit (Rosenblum and Ousterhout 1992): what is won is the dead
//! part of a segment, for as long as it was stable; what it costs is to read the segment and to
//! write its live part. Segments that lack a shard come first, as moving repairs. What is moved
//! comes into segments of its own, by age: it was not overwritten for long, and will not be soon.
//!
//! A block is moved only if the map still says that it is where it was copied from: a write that
//! came meanwhile wins. Pages of the map are not copied; the next checkpoint stores them anew.

use std::rc::Rc;

use super::executor::{Either, either};
use super::read::{LostSegment, Want};
use super::request::RequestError;
use super::state::{Engine, State};
use crate::extent_map::{Location, MapError, PageAddress, Run, Segment};
use crate::geometry::BLOCK_BYTES;
use crate::segment::{Entry, Place};

/// How much of what is stored should be live, in percent: below, garbage is collected.
const TARGET_PERCENT: u64 = 60;
/// The same if less than a tenth of the room is free.
const TARGET_PERCENT_FULL: u64 = 80;
/// The same if writes are refused, or are about to be.
const TARGET_PERCENT_URGENT: u64 = 97;
/// A segment that is this full isn't worth moving, in percent; more if it is urgent.
const VICTIM_PERCENT: u64 = 80;
/// The most segments that one round empties.
const VICTIMS_MAX: usize = 16;
/// A segment that lacks a shard counts so many times.
const DEGRADED_FACTOR: u64 = 4;
/// How many segments must be committed before a search that found nothing is repeated.
const REST_SEGMENTS: u64 = 64;
/// So many segments of which nothing is live are worth a checkpoint.
const DEAD_SEGMENTS: usize = 16;
/// How often it is looked whether something is to do, if nothing happens.
const TICK_NS: u64 = 1_000_000_000;

/// What is worth doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Nothing yet, but the time of the next look has changed.
    Look,
    /// Enough is dead: a checkpoint frees it.
    Free,
    Move(Round),
}

/// How far a round of moving goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Round {
    /// Segments that are at most so full are emptied, in percent.
    percent: u64,
    /// The most blocks that are moved. They take room before they give any back.
    budget: u64,
    /// Room is short: what gives most of it comes first.
    urgent: bool,
}

/// A block that is to be moved.
#[derive(Debug, Clone, Copy)]
struct Moving {
    block: u64,
    from: Location,
    birth: u64,
}

/// A segment that is to be emptied.
#[derive(Debug, Clone, Copy)]
struct Victim {
    sequence: u64,
    segment: Segment,
}

impl State {
    fn gc_work(&self) -> Option<Work> {
        if self.closing || self.superblock_busy {
            return None;
        }
        let usage = self.map.usage();
        if usage.errors() > 0 {
            // Nothing is deleted then: see `free`.
            return None;
        }
        let (stored, dead) = (usage.stored_blocks(), usage.dead_blocks());
        let free = self.free_blocks();
        let headroom = self.headroom_blocks();
        let urgent = free.is_some_and(|free| free < 2 * headroom + self.overlay.blocks() as u64);
        let all = usage.dead().take(self.freeing.held_len() + DEAD_SEGMENTS + 1);
        let fresh: Vec<u64> = all.filter(|sequence| !self.freeing.is_held(*sequence)).collect();
        let blocks = |sequence: &u64| usage.get(*sequence).map_or(0, |one| u64::from(one.blocks));
        let gain: u64 = fresh.iter().map(blocks).sum();
        // Each checkpoint leaves the last one's pages behind: that alone is no reason for another.
        let cost = self.checkpoint_cost();
        if gain > cost && (fresh.len() >= DEAD_SEGMENTS || urgent) {
            return Some(Work::Free);
        }
        let full = free.is_some_and(|free| free < (stored + free) / 10);
        let target = match (urgent, full) {
            (true, _) => TARGET_PERCENT_URGENT,
            (_, true) => TARGET_PERCENT_FULL,
            _ => TARGET_PERCENT,
        };
        // While writes are refused, no segment comes that would end the rest.
        let rested = urgent || self.log.frontier.sequence >= self.gc_rests_until;
        let spread = stored - dead.min(stored);
        if rested && usage.live_blocks() * 100 < spread * target {
            let percent = target.max(VICTIM_PERCENT);
            let budget = self.gc_budget();
            // What is being deleted makes room for more at once.
            let wait = budget < u64::from(self.segment_blocks()) && self.is_deleting();
            return Some(Work::Move(Round { percent, budget, urgent })).filter(|_| !wait);
        }
        None
    }

    /// About how many blocks a checkpoint takes, with what follows from it.
    fn checkpoint_cost(&self) -> u64 {
        2 * self.map.dirty_pages() as u64 + self.map.usage().len() as u64 / 50 + 8
    }

    /// How many blocks may be moved before any segment is deleted. The headroom is for this.
    fn gc_budget(&self) -> u64 {
        let most = u64::from(self.segment_blocks()) * VICTIMS_MAX as u64;
        let free = self.free_blocks().unwrap_or(u64::MAX);
        (free.saturating_sub(2 * self.checkpoint_cost()) / 2).min(most)
    }

    /// Whether discards wait to be sealed that free more than a few segments.
    fn discarded_much(&self) -> bool {
        let zeroes = self.overlay.open_batch().zeroes.iter();
        let blocks = zeroes.fold(0u64, |all, (_, count)| all.saturating_add(*count));
        blocks >= u64::from(self.segment_blocks()) * DEAD_SEGMENTS as u64
    }

    /// The best segments to empty, more of them than a round takes.
    fn victims(&self, Round { percent, urgent, .. }: Round) -> Vec<Victim> {
        let capacity = u64::from(self.segment_blocks());
        let now = self.log.next_sequence();
        let all = (1u32 << (self.shape.shards() - 1) << 1).wrapping_sub(1);
        let mut scored: Vec<(u64, Victim)> = Vec::new();
        for (sequence, segment) in self.map.usage().from(0) {
            let live = u64::from(segment.live).min(capacity);
            let sealed = segment.blocks > 0 && sequence <= self.log.frontier.sequence;
            if !sealed || live == 0 || live * 100 > capacity * percent || !self.is_own(sequence) {
                continue;
            }
            if self.freeing.is_held(sequence) {
                continue;
            }
            let age = if urgent { 1 } else { now.saturating_sub(segment.birth).max(1) };
            let benefit = (capacity - live).max(1).saturating_mul(age);
            let factor = if segment.present == all { 1 } else { DEGRADED_FACTOR };
            let score = benefit.saturating_mul(1024 * factor) / (capacity + live);
            scored.push((score, Victim { sequence, segment }));
        }
        let most = 4 * VICTIMS_MAX;
        if scored.len() > most {
            scored.select_nth_unstable_by_key(most, |(score, _)| std::cmp::Reverse(*score));
            scored.truncate(most);
        }
        scored.sort_unstable_by_key(|(score, victim)| (std::cmp::Reverse(*score), victim.sequence));
        scored.into_iter().map(|(_, victim)| victim).collect()
    }

    /// Which blocks of a segment are live. Marks its live pages to be stored anew.
    fn live_blocks_of(
        &mut self,
        victim: &Victim,
        entries: &[Entry],
    ) -> Result<Vec<Moving>, MapError> {
        let mut live = Vec::new();
        let mut runs: Vec<Run> = Vec::new();
        let mut index: u16 = 0;
        for entry in entries {
            let Some(at) = Location::new(victim.sequence, index) else { break };
            let (first, count) = match entry {
                Entry::Data { address, count } => (*address, u64::from(*count)),
                Entry::Moved { address, .. } => (*address, 1),
                Entry::Meta { address } => {
                    self.map.rewrite(PageAddress::from_word(*address), at)?;
                    (0, 0)
                }
                Entry::Zero { .. } => (0, 0),
            };
            index = index.saturating_add(u16::try_from(entry.blocks()).unwrap_or(u16::MAX));
            if first.saturating_add(count) > self.map.blocks() {
                continue;
            }
            let mut done = 0;
            while done < count {
                done += self.map.lookup(first + done, count - done, &mut runs)?.max(1);
                for run in &runs {
                    for nth in 0..run.count {
                        let from = run.location.and_then(|location| location.after(nth));
                        let block = run.first + nth;
                        if let Some(from) = from
                            && Some(from) == at.after(block - first)
                        {
                            live.push(Moving { block, from, birth: victim.segment.birth });
                        }
                    }
                }
            }
        }
        Ok(live)
    }
}

impl Engine {
    /// Empties the best victims. Returns whether there were any.
    async fn collect_round(self: &Rc<Self>, round: Round) -> Result<bool, RequestError> {
        let mut victims = Vec::new();
        let mut left = round.budget;
        for victim in self.with(|state| state.victims(round)) {
            let live = u64::from(victim.segment.live);
            if victims.len() < VICTIMS_MAX
                && live <= left
                && !self.is_pinned(victim.sequence).await?
            {
                left -= live;
                victims.push(victim);
            }
        }
        if !self.with(|state| state.is_worth_it(&victims, round.urgent)) {
            return Ok(false);
        }
        victims.sort_unstable_by_key(|victim| victim.segment.birth);
        let mut moving = Vec::new();
        for victim in &victims {
            let Some(entries) = self.segment_entries(victim.sequence).await else {
                tracing::warn!(segment = victim.sequence, "a segment's table can't be read");
                continue;
            };
            let live = self.paged(|state| state.live_blocks_of(victim, &entries)).await?;
            moving.extend(live);
            self.move_blocks(&mut moving, false).await?;
        }
        self.move_blocks(&mut moving, true).await?;
        self.checkpoint_and_free(|_, _| {}).await?;
        Ok(true)
    }

    /// Runs `f`, with the pages of the map that it wants.
    async fn paged<R>(
        self: &Rc<Self>,
        mut f: impl FnMut(&mut State) -> Result<R, MapError>,
    ) -> Result<R, RequestError> {
        loop {
            match self.with(&mut f) {
                Ok(result) => return Ok(result),
                Err(MapError::Missing(pages)) => self.load_pages(pages).await?,
                Err(error) => {
                    tracing::error!(%error, "the map is damaged");
                    return Err(RequestError::Refused("the volume's map is damaged"));
                }
            }
        }
    }

    /// Copies blocks into segments of their own; only whole segments unless `rest`.
    async fn move_blocks(
        self: &Rc<Self>,
        moving: &mut Vec<Moving>,
        rest: bool,
    ) -> Result<(), RequestError> {
        let most = usize::from(self.with(|state| state.segment_blocks()));
        while moving.len() >= most || rest && !moving.is_empty() {
            let mut batch: Vec<Moving> = moving.drain(..most.min(moving.len())).collect();
            // Neighbours in the volume become neighbours in the log.
            batch.sort_unstable_by_key(|one| one.block);
            self.move_batch(batch).await?;
        }
        Ok(())
    }

    async fn move_batch(self: &Rc<Self>, mut batch: Vec<Moving>) -> Result<(), RequestError> {
        let mut content = vec![0; batch.len() * BLOCK_BYTES];
        loop {
            let wants: Vec<Want> = (0..)
                .zip(&batch)
                .map(|(at, one)| Want { location: one.from, place: Place::Block(one.block), at })
                .collect();
            match self.fetch(&wants, &mut content).await {
                Ok(()) => break,
                // Written again or moved meanwhile, and its segment deleted: nothing is left to do.
                Err(LostSegment(gone)) if self.is_freed(gone) => {
                    batch.retain(|one| one.from.sequence() != gone);
                }
                Err(LostSegment(segment)) => return Err(RequestError::Lost { segment }),
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let mut rest = batch.iter().zip(content.chunks_exact(BLOCK_BYTES)).peekable();
        let mut last = 0;
        while rest.peek().is_some() {
            self.log_room().await?;
            last = self.write_own(|state, own| {
                while let Some((one, block)) = rest.peek() {
                    if !own.push_moved(one.block, (one.from, one.birth), block) {
                        break;
                    }
                    state.counters.moved_blocks += 1;
                    rest.next();
                }
            });
        }
        self.committed(last).await
    }

    /// Empties segments until none is left that is worth it, and frees what is dead.
    pub(super) async fn collect_all(self: &Rc<Self>) -> Result<(), RequestError> {
        // What was discarded counts from when it is in a segment.
        self.seal_all().await?;
        loop {
            let budget = self.with(|state| state.gc_budget());
            let round = Round { percent: VICTIM_PERCENT, budget, urgent: false };
            if !self.collect_round(round).await? {
                break;
            }
        }
        self.checkpoint_and_free(|_, _| {}).await
    }
}

impl State {
    /// Whether emptying these segments gives back enough of the room, or makes few of many.
    fn is_worth_it(&self, victims: &[Victim], urgent: bool) -> bool {
        let capacity = usize::from(self.segment_blocks());
        let stored: usize = victims.iter().map(|one| usize::from(one.segment.blocks)).sum();
        let live: usize = victims.iter().map(|one| usize::from(one.segment.live)).sum();
        let written = live.div_ceil(capacity);
        let saved = stored.saturating_sub(live);
        if urgent {
            return saved as u64 > self.checkpoint_cost();
        }
        saved >= capacity && saved * 5 >= stored || victims.len() >= 4 * written.max(1)
    }
}

/// Collects garbage, for ever.
pub(super) async fn collector(engine: Rc<Engine>) {
    loop {
        // What is discarded waits in the open batch: it is looked at again after a while.
        let idle = engine.with(|state| state.overlay.open_batch().zeroes.is_empty());
        let due = || match engine.check_running() {
            Err(_) => Some(None),
            Ok(()) => engine.with(|state| {
                let changed = state.overlay.open_batch().zeroes.is_empty() != idle;
                state.gc_work().or(changed.then_some(Work::Look)).map(Some)
            }),
        };
        let tick_ns = engine.runtime.now_ns().saturating_add(TICK_NS);
        let tick_ns = if idle { u64::MAX } else { tick_ns };
        let wait = engine.events.upkeep.until(&engine.runtime, due);
        let work = match either(wait, engine.runtime.sleep_until(tick_ns)).await {
            Either::First(None) => return,
            Either::First(Some(work)) => work,
            Either::Second(()) => {
                if engine.with(|state| state.discarded_much()) {
                    engine.close_batch();
                }
                continue;
            }
        };
        let done = match work {
            Work::Look => continue,
            Work::Free => engine.checkpoint_and_free(|_, _| {}).await.map(|()| true),
            Work::Move(round) => engine.collect_round(round).await,
        };
        if !matches!(done, Ok(true)) {
            if let Err(error) = &done {
                tracing::debug!(%error, "garbage collection failed; it is tried again");
            }
            engine.with(|state| {
                state.gc_rests_until = state.log.frontier.sequence + REST_SEGMENTS;
            });
            let again_ns = engine.runtime.now_ns().saturating_add(TICK_NS);
            engine.runtime.sleep_until(again_ns).await;
        }
    }
}
