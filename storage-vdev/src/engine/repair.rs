//! Making shards again that are missing or damaged, and looking for such.
//!
//! The volume has the key, so it believes no shard: the data shards' blocks are verified, and what
//! is missing is computed from verified ones only. A rebuilt shard has the same bytes as the first
//! one, so it may be put any number of times.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::executor::join_all;
use super::find::ask;
use super::request::{Output, Report, RequestError};
use super::state::{Engine, State};
use super::status::Progress;
use crate::node::{NodeError, NodeIndex, ObjectKey, Request, Response};
use crate::segment::{Entry, Shard, find_liars, rebuild_shard};

/// How long a node may take to store a rebuilt shard.
const RESTORE_NS_MAX: u64 = 10_000_000_000;
/// The most segments that are repaired side by side.
const SIDE_BY_SIDE_MAX: usize = 4;

/// The verified data shards of a segment.
struct Whole {
    entries: Vec<Entry>,
    data: Vec<Shard>,
    /// Shards that were found to be damaged, or to lie.
    bad: u32,
}

/// Segments that are to be repaired, the most urgent first.
pub(super) struct Backlog {
    /// Each with the shards that are to be made.
    segments: Vec<(u64, u32)>,
}

impl State {
    /// What can be repaired now: shards that are missing on nodes that are up, of segments that
    /// have enough others.
    pub(super) fn backlog(&self) -> Backlog {
        let k = u32::from(self.shape.data_shards());
        let usage = self.map.usage();
        let mut segments = Vec::new();
        for (sequence, segment) in usage.from(0).filter(|(_, segment)| segment.blocks > 0) {
            // What a clone's base wrote is the base's to mend.
            if !self.is_own(sequence) {
                continue;
            }
            let all = self.readable_shards(sequence, u32::MAX);
            let missing = all & !segment.present;
            // Shards that are missing as far as is known may be there after all.
            if missing != 0 && all.count_ones() >= k && !self.hopeless.contains(&sequence) {
                segments.push((sequence, missing, (all & segment.present).count_ones()));
            }
        }
        segments.sort_by_key(|(sequence, _, left)| (*left, *sequence));
        let segments = segments.into_iter().map(|(sequence, missing, _)| (sequence, missing));
        Backlog { segments: segments.collect() }
    }

    fn side_by_side(&self) -> usize {
        let segment = usize::from(self.segment_blocks()) * crate::geometry::BLOCK_BYTES;
        (self.limits.unsealed_bytes / (4 * segment).max(1)).clamp(1, SIDE_BY_SIDE_MAX)
    }
}

impl Backlog {
    /// Whether nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }
}

impl Engine {
    /// Makes again what is missing, as far as it can be.
    pub(super) async fn repair(self: &Rc<Self>) -> Result<Report, RequestError> {
        let mut report = Report::default();
        let backlog = self.with(|state| state.backlog());
        let shards = backlog.segments.iter().map(|(_, missing)| u64::from(missing.count_ones()));
        let progress = Progress { done: 0, total: shards.sum(), eta_ns: None };
        let started_ns = self.runtime.now_ns();
        self.with(|state| state.repair = Some(progress));
        let side_by_side = self.with(|state| state.side_by_side());
        for some in backlog.segments.chunks(side_by_side) {
            if let Err(error) = self.check_running() {
                self.with(|state| state.repair = None);
                return Err(error);
            }
            let before_ns = self.runtime.now_ns();
            let repairs =
                some.iter().map(|(sequence, missing)| self.repair_segment(*sequence, *missing));
            let mut read_bytes = 0;
            for ((sequence, _), repaired) in some.iter().zip(join_all(repairs).await) {
                match repaired {
                    Some((made, bytes)) => {
                        report.shards_rebuilt += u64::from(made);
                        read_bytes += bytes;
                    }
                    None => self.give_up(*sequence, &mut report),
                }
            }
            report.segments += some.len() as u64;
            let asked = some.iter().map(|(_, missing)| u64::from(missing.count_ones()));
            let asked: u64 = asked.sum();
            report.shards_bad += asked;
            self.with(|state| advance(&mut state.repair, asked, started_ns, before_ns));
            self.throttle(read_bytes, before_ns).await;
        }
        self.with(|state| state.repair = None);
        Ok(report)
    }

    /// A segment can't be repaired with the nodes that are up: it is tried again when that changes.
    fn give_up(&self, sequence: u64, report: &mut Report) {
        let lost = self.with(|state| {
            // Deleted meanwhile: nothing is lost.
            let known = state.map.usage().get(sequence).is_some();
            known && state.hopeless.insert(sequence)
        });
        if lost {
            tracing::warn!(sequence, "too few good shards of a segment can be read");
            report.segments_lost += 1;
        }
    }

    /// Makes shards of a segment again. Returns how many, and how many bytes were read for it;
    /// `None` if too few others are good.
    pub(super) async fn repair_segment(
        self: &Rc<Self>,
        sequence: u64,
        missing: u32,
    ) -> Option<(u32, u64)> {
        let whole = self.gather(sequence, missing).await?;
        let bytes: usize = whole.data.iter().map(|shard| shard.bytes().len()).sum();
        let shards = self.with(|state| state.shape.shards());
        let mut made = 0;
        for shard in (0..shards).filter(|shard| missing >> shard & 1 == 1) {
            if self.restore(sequence, shard, &whole).await {
                made += 1;
            }
        }
        Some((made, bytes as u64))
    }

    async fn restore(self: &Rc<Self>, sequence: u64, shard: u8, whole: &Whole) -> bool {
        let made = self.with(|state| {
            let slot = state.shape.slot_of(sequence, shard);
            let parts = rebuild_shard(&state.codec, &whole.data, (shard, slot), 0).ok()?;
            let key = state.openings.object(sequence, shard)?;
            Some((state.nodes.holder(sequence, shard), key, parts))
        });
        let Some((node, key, parts)) = made else { return false };
        let stored = self.store_shard(node, key, parts.to_vec()).await;
        self.with(|state| {
            let still = state.nodes.holder(sequence, shard) == node;
            let segment = state.map.usage().get(sequence);
            let (true, Some(segment), true) = (stored, segment, still) else { return false };
            state.map.usage_mut().set_present(sequence, segment.present | 1 << shard)
        })
    }

    /// Puts a shard that was made before on a node, in the place of anything else of its name.
    async fn store_shard(&self, node: NodeIndex, key: ObjectKey, parts: Vec<Bytes>) -> bool {
        let epoch = self.with(|state| state.epoch());
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        let request = Request::Restore { epoch, key, parts };
        let mut answer = self.ask(node, request.clone(), RESTORE_NS_MAX).await;
        if answer == Err(NodeError::Exists) {
            // What is there is not what was put: it goes.
            let delete = Request::Delete { epoch, keys: vec![key] };
            answer = self.ask(node, delete, RESTORE_NS_MAX).await;
            if answer.is_ok() {
                answer = self.ask(node, request, RESTORE_NS_MAX).await;
            }
        }
        self.check_fence(&answer);
        self.with(|state| {
            if answer.is_ok() {
                state.nodes.note_used(node, bytes as i64);
                state.counters.put_bytes += bytes as u64;
            }
        });
        answer.is_ok()
    }

    /// Puts a copy of a shard on a node that is not its slot's, and says how many bytes it has;
    /// `None` if that can't be done. What can't be read where it is, is computed from the others.
    pub(super) async fn copy_shard(
        self: &Rc<Self>,
        (sequence, shard): (u64, u8),
        to: NodeIndex,
    ) -> Option<u64> {
        let key = self.with(|state| state.openings.object(sequence, shard))?;
        let found = self.read_shard(sequence, shard).await;
        let entries = found.as_ref().and_then(|found| self.entries_of(found)).unwrap_or_default();
        let mut whole = Whole { entries, data: Vec::new(), bad: 0 };
        let parts = match found {
            Some(found) if self.verify(&found, &whole) && found.check().is_ok() => {
                vec![found.bytes().clone()]
            }
            _ => {
                whole = self.gather(sequence, 1 << shard).await?;
                let slot = self.with(|state| state.shape.slot_of(sequence, shard));
                let made =
                    self.with(|state| rebuild_shard(&state.codec, &whole.data, (shard, slot), 0));
                made.ok()?.to_vec()
            }
        };
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        self.store_shard(to, key, parts).await.then_some(bytes)
    }

    /// The data shards of a segment, verified; those that are not to be had are computed.
    async fn gather(self: &Rc<Self>, sequence: u64, without: u32) -> Option<Whole> {
        let (k, n) = self.with(|state| (state.shape.data_shards(), state.shape.shards()));
        let mut whole = Whole { entries: Vec::new(), data: Vec::new(), bad: without };
        let mut sources: Vec<Shard> = Vec::new();
        let mut asked = 0u32;
        // Data shards first, which are verified block by block; those that are missing last.
        let there = (0..n).filter(|shard| without >> shard & 1 == 0);
        let order: Vec<u8> =
            there.chain((0..n).filter(|shard| without >> shard & 1 == 1)).collect();
        while sources.len() < usize::from(k) {
            let lacking = usize::from(k) - sources.len();
            let open = order.iter().copied().filter(|shard| asked >> shard & 1 == 0);
            let next: Vec<u8> = open.take(lacking).collect();
            if next.is_empty() {
                return None;
            }
            next.iter().for_each(|shard| asked |= 1 << shard);
            let reads = next.iter().map(|shard| self.read_shard(sequence, *shard));
            for shard in join_all(reads).await.into_iter().flatten() {
                if whole.entries.is_empty() && shard.segment().blocks > 0 {
                    whole.entries = self.entries_of(&shard).unwrap_or_default();
                }
                if self.verify(&shard, &whole) {
                    sources.push(shard);
                } else {
                    whole.bad |= 1 << shard.head().shard;
                    self.note_missing(sequence, shard.head().shard);
                }
            }
        }
        if let Some(data) = self.data_shards(&sources, &whole) {
            whole.data = data;
            return Some(whole);
        }
        // A parity shard lies: ask the others too, and see who is in the minority.
        let rest: Vec<u8> = (0..n).filter(|shard| asked >> shard & 1 == 0).collect();
        let reads = rest.iter().map(|shard| self.read_shard(sequence, *shard));
        sources.extend(join_all(reads).await.into_iter().flatten());
        let liars = self.with(|state| find_liars(&state.codec, &sources)).ok()?;
        sources.retain(|shard| liars >> shard.head().shard & 1 == 0);
        (0..n).filter(|shard| liars >> shard & 1 == 1).for_each(|shard| {
            self.note_missing(sequence, shard);
        });
        whole.bad |= liars;
        whole.data = self.data_shards(&sources, &whole)?;
        Some(whole)
    }

    /// All data shards, those that are missing computed from `sources` and verified.
    fn data_shards(&self, sources: &[Shard], whole: &Whole) -> Option<Vec<Shard>> {
        let k = self.with(|state| state.shape.data_shards());
        let mut data = Vec::with_capacity(usize::from(k));
        for wanted in 0..k {
            if let Some(shard) = sources.iter().find(|shard| shard.head().shard == wanted) {
                data.push(shard.clone());
                continue;
            }
            let slot = self.with(|state| {
                let sequence = sources.first().map_or(0, |shard| shard.segment().sequence);
                state.shape.slot_of(sequence, wanted)
            });
            let parts =
                self.with(|state| rebuild_shard(&state.codec, sources, (wanted, slot), 0)).ok()?;
            let mut bytes = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
            parts.iter().for_each(|part| bytes.extend_from_slice(part));
            let shard = Shard::parse(bytes.freeze()).ok()?;
            if !self.verify(&shard, whole) {
                return None;
            }
            data.push(shard);
        }
        Some(data)
    }

    async fn read_shard(self: &Rc<Self>, sequence: u64, shard: u8) -> Option<Shard> {
        let (node, key) = self.with(|state| {
            let node = state.nodes.holder(sequence, shard);
            let usable = state.nodes.is_usable(node);
            (node, state.openings.object(sequence, shard).filter(|_| usable))
        });
        let whole = Request::Get { key: key?, offset: 0, len: u32::MAX };
        let parsed = match ask(&self.runtime, node, whole).await {
            Ok(Response::Bytes(bytes)) => Shard::parse(bytes).ok(),
            // The node is there, and what was put is not: it rotted, or went.
            Err(NodeError::Corrupt | NodeError::NotFound) => None,
            _ => return None,
        };
        let known = self.with(|state| {
            let (past, _) = state.openings.of(sequence)?;
            Some((past.uuid, past.opening))
        });
        let found = parsed.filter(|parsed| {
            let segment = parsed.segment();
            let own = segment.sequence == sequence && parsed.head().shard == shard;
            own && known == Some((segment.uuid, segment.opening))
        });
        if found.is_none() {
            self.note_missing(sequence, shard);
        }
        found
    }

    fn entries_of(&self, shard: &Shard) -> Option<Vec<Entry>> {
        let header = shard.segment();
        self.with(|state| {
            let (_, keys) = state.openings.of(header.sequence)?;
            header.open_table(keys, shard.table()).ok()
        })
    }

    /// Whether a shard is what was put, as far as it can be told from itself: a parity shard's
    /// content can't be.
    fn verify(&self, shard: &Shard, whole: &Whole) -> bool {
        if self.entries_of(shard).is_none() {
            return false;
        }
        self.with(|state| {
            let Some((_, keys)) = state.openings.of(shard.segment().sequence) else {
                return false;
            };
            shard.check_blocks(keys, &whole.entries).is_ok()
        })
    }

    /// Reads and verifies every shard of every segment, and repairs what is not as it should be.
    pub(super) async fn scrub(self: &Rc<Self>) -> Result<Report, RequestError> {
        let sequences: Vec<u64> = self.with(|state| {
            let all = state.map.usage().from(0);
            let all = all.filter(|(at, one)| one.blocks > 0 && state.is_own(*at));
            all.map(|(sequence, _)| sequence).collect()
        });
        let started_ns = self.runtime.now_ns();
        let total = sequences.len() as u64;
        let damaged_before = self.with(|state| state.counters.damaged);
        self.with(|state| state.scrub = Some(Progress { done: 0, total, eta_ns: None }));
        for sequence in &sequences {
            if let Err(error) = self.check_running() {
                self.with(|state| state.scrub = None);
                return Err(error);
            }
            let before_ns = self.runtime.now_ns();
            let bytes = self.scrub_segment(*sequence).await;
            self.with(|state| advance(&mut state.scrub, 1, started_ns, before_ns));
            self.throttle(bytes, before_ns).await;
        }
        self.with(|state| state.scrub = None);
        let mut report = self.repair().await?;
        report.segments = total;
        // What the repair in the background made again, before we came to it, was found all the same.
        let found = self.with(|state| state.counters.damaged).saturating_sub(damaged_before);
        let elsewhere = found.saturating_sub(report.shards_bad);
        report.shards_bad += elsewhere;
        report.shards_rebuilt += elsewhere;
        Ok(report)
    }

    async fn scrub_segment(self: &Rc<Self>, sequence: u64) -> u64 {
        let Some(segment) = self.with(|state| state.map.usage().get(sequence)) else { return 0 };
        let readable = self.with(|state| state.readable_shards(sequence, segment.present));
        let Some(whole) = self.gather(sequence, !readable).await else {
            tracing::warn!(sequence, "too few good shards of a segment are left");
            return 0;
        };
        let (k, n) = self.with(|state| (state.shape.data_shards(), state.shape.shards()));
        let mut bytes: u64 = whole.data.iter().map(|shard| shard.bytes().len() as u64).sum();
        for shard in (k..n).filter(|shard| whole.bad >> shard & 1 == 0) {
            let Some(found) = self.read_shard(sequence, shard).await else { continue };
            bytes += found.bytes().len() as u64;
            let same = self.with(|state| {
                let slot = found.head().slot;
                let made = rebuild_shard(&state.codec, &whole.data, (shard, slot), 0).ok()?;
                let [_, units, table] = made;
                Some(units == found.units() && table == found.table() && found.check().is_ok())
            });
            if same != Some(true) {
                self.note_missing(sequence, shard);
            }
        }
        bytes
    }

    /// Waits as long as the limit asks for after so many bytes.
    pub(super) async fn throttle(&self, bytes: u64, since_ns: u64) {
        let per_second = self.with(|state| state.limits.repair_bytes_per_second);
        if per_second > 0 {
            let pause = u128::from(bytes) * 1_000_000_000 / u128::from(per_second);
            let until_ns = since_ns.saturating_add(u64::try_from(pause).unwrap_or(u64::MAX));
            self.runtime.sleep_until(until_ns).await;
        }
    }

    /// Carries out [`super::Command::Repair`].
    pub(super) async fn repair_now(self: &Rc<Self>) -> Result<Output, RequestError> {
        Ok(Output::Report(self.repair().await?))
    }
}

/// More is done, at the rate since the start.
fn advance(progress: &mut Option<Progress>, done: u64, started_ns: u64, now_ns: u64) {
    let Some(progress) = progress else { return };
    progress.done += done;
    let left = progress.total.saturating_sub(progress.done);
    let elapsed = u128::from(now_ns.saturating_sub(started_ns));
    let eta = elapsed * u128::from(left) / u128::from(progress.done.max(1));
    progress.eta_ns = u64::try_from(eta).ok();
}
