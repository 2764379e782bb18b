//! Getting units of a segment from its nodes, round those that are slow, gone or wrong.
//!
//! A block is asked of the one node that has it. When that is not to be had, or late, the same rows
//! of k other shards are, and the block is computed. Whatever comes first counts.

use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;

use super::executor::{Answer, Call, Either, either};
use super::read::{LostSegment, Want};
use super::state::{Engine, State};
use crate::node::{NodeError, NodeIndex, Request, Response};
use crate::segment::{Recovered, Shape, UNIT_BYTES, recover_unit};

/// How long a node may take to answer a read before it is down.
const GET_NS_MAX: u64 = 5_000_000_000;
/// The most rows that are fetched together.
const WINDOW_ROWS_MAX: u16 = 128;

/// Rows of one shard.
#[derive(Debug, Clone)]
struct Piece {
    shard: u8,
    first_row: u16,
    rows: u16,
    bytes: Bytes,
}

/// Units of a segment that were fetched or computed. None is verified.
#[derive(Debug, Default)]
pub(super) struct Units {
    pieces: Vec<Piece>,
}

impl Units {
    /// The unit of block `index`, if it is here.
    pub(super) fn unit(&self, shape: Shape, index: u16) -> Option<&[u8]> {
        let k = u16::from(shape.data_shards());
        let (shard, row) = ((index % k) as u8, index / k);
        let piece = self.pieces.iter().find(|piece| piece.shard == shard && piece.has(row))?;
        let start = usize::from(row - piece.first_row) * UNIT_BYTES;
        piece.bytes.get(start..start + UNIT_BYTES)
    }
}

impl Piece {
    fn has(&self, row: u16) -> bool {
        (self.first_row..self.first_row + self.rows).contains(&row)
    }
}

/// Rows that are wanted together.
#[derive(Debug, Clone)]
struct Window {
    sequence: u64,
    first_row: u16,
    end_row: u16,
    /// For each data shard that is wanted: its first row, and the one behind its last.
    shards: Vec<(u8, u16, u16)>,
}

/// A question that is under way.
struct Pending {
    shard: u8,
    first_row: u16,
    rows: u16,
    node: NodeIndex,
    late_ns: u64,
    late: bool,
    call: Call,
}

/// The state of fetching one window.
struct Gathering {
    window: Window,
    pending: Vec<Pending>,
    got: Vec<Piece>,
    /// Shards that were asked and can't be had.
    failed: u32,
}

impl Engine {
    /// Fetches the units of `wants`, all of one segment and in the order of their indexes.
    pub(super) async fn fetch_segment(
        self: &Rc<Self>,
        wants: &[Want],
    ) -> Result<Units, LostSegment> {
        let mut units = Units::default();
        let windows = self.with(|state| windows(state.shape, wants));
        for window in windows {
            units.pieces.append(&mut self.fetch_window(window).await?);
        }
        Ok(units)
    }

    async fn fetch_window(self: &Rc<Self>, window: Window) -> Result<Vec<Piece>, LostSegment> {
        let sequence = window.sequence;
        let mut all = Gathering { window, pending: Vec::new(), got: Vec::new(), failed: 0 };
        let wanted = all.window.shards.clone();
        for (shard, first, end) in wanted {
            if self.with(|state| state.hope(sequence, shard)) == Some(Hope::Good) {
                self.get(&mut all, shard, first..end);
            }
        }
        let started_ns = self.runtime.now_ns();
        loop {
            let missing = all.missing();
            if missing.is_empty() {
                return Ok(all.got);
            }
            let rebuild: Vec<u8> =
                missing.iter().copied().filter(|shard| !all.is_awaited(*shard)).collect();
            let k = usize::from(self.with(|state| state.shape.data_shards()));
            if !rebuild.is_empty() {
                let sources = all.sources().len();
                if sources >= k {
                    return self.rebuild(all, &missing).ok_or(LostSegment(sequence));
                }
                self.ask_more(&mut all, k - sources);
                if all.pending.is_empty() {
                    return Err(LostSegment(sequence));
                }
            }
            self.next_answer(&mut all, started_ns).await;
        }
    }

    /// Sends a request for rows of a shard.
    fn get(self: &Rc<Self>, all: &mut Gathering, shard: u8, rows: std::ops::Range<u16>) {
        let sequence = all.window.sequence;
        let (node, key, offset) = self.with(|state| {
            let node = state.nodes.holder(sequence, shard);
            let key = state.openings.object(sequence, shard);
            (node, key, state.shape.row_offset(rows.start))
        });
        let Some(key) = key else { return };
        let count = rows.end - rows.start;
        let request = Request::Get { key, offset, len: u32::from(count) * UNIT_BYTES as u32 };
        let patience = self.with(|state| state.nodes.patience_ns(node));
        all.pending.push(Pending {
            shard,
            first_row: rows.start,
            rows: count,
            node,
            late_ns: self.runtime.now_ns().saturating_add(patience),
            late: false,
            call: self.runtime.call(node, request),
        });
    }

    /// Asks other shards for the whole window until `count` more answers can come in time.
    fn ask_more(self: &Rc<Self>, all: &mut Gathering, count: usize) {
        let (first, end) = (all.window.first_row, all.window.end_row);
        let coming = |pending: &&Pending| !pending.late && pending.rows == end - first;
        let mut lacking = count.saturating_sub(all.pending.iter().filter(coming).count());
        let sequence = all.window.sequence;
        let shards = self.with(|state| state.shape.shards());
        for hope in [Hope::Good, Hope::Slow, Hope::Little] {
            for shard in 0..shards {
                if lacking == 0 {
                    return;
                }
                let asked = all.failed >> shard & 1 == 1
                    || all
                        .got
                        .iter()
                        .any(|piece| piece.shard == shard && piece.rows == end - first)
                    || all.pending.iter().any(|one| one.shard == shard && one.rows == end - first);
                if !asked && self.with(|state| state.hope(sequence, shard)) == Some(hope) {
                    self.get(all, shard, first..end);
                    lacking -= 1;
                }
            }
        }
    }

    /// Waits for an answer, or until one is late.
    async fn next_answer(self: &Rc<Self>, all: &mut Gathering, started_ns: u64) {
        let give_up_ns = started_ns.saturating_add(GET_NS_MAX);
        let on_time = all.pending.iter().filter(|one| !one.late).map(|one| one.late_ns);
        let until_ns = on_time.min().unwrap_or(u64::MAX).min(give_up_ns);
        let answer = std::future::poll_fn(|context| {
            for (nth, one) in all.pending.iter_mut().enumerate() {
                if let Poll::Ready(answer) = std::pin::Pin::new(&mut one.call).poll(context) {
                    return Poll::Ready((nth, answer));
                }
            }
            Poll::Pending
        });
        match either(answer, self.runtime.sleep_until(until_ns)).await {
            Either::First((nth, answer)) => {
                let one = all.pending.swap_remove(nth);
                self.take_answer(all, &one, answer);
            }
            Either::Second(()) => self.note_late(all, give_up_ns),
        }
    }

    fn take_answer(&self, all: &mut Gathering, one: &Pending, answer: Answer) {
        let Pending { shard, first_row, rows, .. } = *one;
        match answer {
            Ok(Response::Bytes(bytes)) if bytes.len() == usize::from(rows) * UNIT_BYTES => {
                all.got.push(Piece { shard, first_row, rows, bytes });
            }
            Err(NodeError::Unavailable | NodeError::Failed | NodeError::Denied) => {
                all.failed |= 1 << shard;
            }
            _ => {
                // The node answers, and doesn't have the shard as it was put there.
                all.failed |= 1 << shard;
                self.note_missing(all.window.sequence, shard);
            }
        }
    }

    fn note_late(&self, all: &mut Gathering, give_up_ns: u64) {
        let now_ns = self.runtime.now_ns();
        all.pending.retain_mut(|one| {
            if now_ns >= give_up_ns {
                all.failed |= 1 << one.shard;
                self.node_down(one.node, NodeError::Unavailable);
                return false;
            }
            if !one.late && now_ns >= one.late_ns {
                one.late = true;
                self.with(|state| state.nodes.note_late(one.node));
                self.events.nodes.announce(&self.runtime);
            }
            true
        });
    }

    /// Computes the missing shards' rows from k others.
    fn rebuild(&self, all: Gathering, missing: &[u8]) -> Option<Vec<Piece>> {
        let (first, end) = (all.window.first_row, all.window.end_row);
        let bytes = usize::from(end - first) * UNIT_BYTES;
        let mut made: Vec<(u8, Vec<u8>)> =
            missing.iter().map(|shard| (*shard, vec![0; bytes])).collect();
        self.with(|state| {
            let k = usize::from(state.shape.data_shards());
            let sources: Vec<(u8, &[u8])> = all.sources().into_iter().take(k).collect();
            let mut wanted: Vec<(u8, &mut [u8])> =
                made.iter_mut().map(|(shard, bytes)| (*shard, bytes.as_mut_slice())).collect();
            state.counters.reads_rebuilt += 1;
            state.codec.reconstruct(&sources, &mut wanted).ok()
        })?;
        let mut pieces = all.got;
        pieces.extend(made.into_iter().map(|(shard, bytes)| Piece {
            shard,
            first_row: first,
            rows: end - first,
            bytes: Bytes::from(bytes),
        }));
        Some(pieces)
    }

    /// Brings back a block whose unit was not authentic: asks all shards, and finds out which lie.
    pub(super) async fn recover_block(
        self: &Rc<Self>,
        want: &Want,
        block: &mut [u8],
    ) -> Result<(), LostSegment> {
        let (sequence, index) = (want.location.sequence(), want.location.index());
        let lost = LostSegment(sequence);
        let (k, shards) =
            self.with(|state| (u16::from(state.shape.data_shards()), state.shape.shards()));
        let row = index / k;
        let window = Window { sequence, first_row: row, end_row: row + 1, shards: Vec::new() };
        let mut all = Gathering { window, pending: Vec::new(), got: Vec::new(), failed: 0 };
        for shard in 0..shards {
            if self.with(|state| state.hope(sequence, shard)).is_some() {
                self.get(&mut all, shard, row..row + 1);
            }
        }
        let started_ns = self.runtime.now_ns();
        let recovered = loop {
            // Slow ones are waited for only if the others don't do.
            if let Some(recovered) = self.recover_from(&all.got, want) {
                break recovered;
            }
            if all.pending.is_empty() {
                return Err(lost);
            }
            self.next_answer(&mut all, started_ns).await;
        };
        (0..shards)
            .filter(|shard| recovered.suspects >> shard & 1 == 1)
            .for_each(|shard| self.note_missing(sequence, shard));
        if recovered.block.len() != block.len() {
            return Err(lost);
        }
        block.copy_from_slice(&recovered.block);
        Ok(())
    }

    /// The block, if enough of these units are good.
    fn recover_from(&self, got: &[Piece], want: &Want) -> Option<Recovered> {
        let (sequence, index) = (want.location.sequence(), want.location.index());
        let sources: Vec<(u8, &[u8])> =
            got.iter().map(|piece| (piece.shard, &piece.bytes[..])).collect();
        self.with(|state| {
            let (_, keys) = state.openings.of(sequence)?;
            recover_unit(&state.codec, keys, (sequence, index), want.place, &sources).ok()
        })
    }

    /// A shard is not on its node, or not as it should be: repair makes it again.
    pub(super) fn note_missing(&self, sequence: u64, shard: u8) {
        self.with(|state| {
            let Some(segment) = state.map.usage().get(sequence) else { return };
            if segment.present >> shard & 1 == 1 {
                tracing::warn!(sequence, shard, "a shard is missing or damaged");
                state.counters.damaged += 1;
                state.map.usage_mut().set_present(sequence, segment.present & !(1 << shard));
                state.repair_wanted = true;
            }
        });
        self.events.upkeep.announce(&self.runtime);
    }
}

impl Gathering {
    /// The wanted shards whose rows are not here.
    fn missing(&self) -> Vec<u8> {
        let has = |shard: u8, first: u16, end: u16| {
            self.got.iter().any(|piece| {
                piece.shard == shard && piece.has(first) && (end == first || piece.has(end - 1))
            })
        };
        let wanted = self.window.shards.iter();
        wanted.filter(|(shard, first, end)| !has(*shard, *first, *end)).map(|one| one.0).collect()
    }

    /// Whether an answer for the shard may still come in time.
    fn is_awaited(&self, shard: u8) -> bool {
        self.pending.iter().any(|one| one.shard == shard && !one.late)
    }

    /// The shards of which the whole window is here.
    fn sources(&self) -> Vec<(u8, &[u8])> {
        let rows = self.window.end_row - self.window.first_row;
        let whole = self.got.iter().filter(|piece| piece.rows == rows);
        let mut sources: Vec<(u8, &[u8])> =
            whole.map(|piece| (piece.shard, &piece.bytes[..])).collect();
        sources.sort_unstable_by_key(|source| source.0);
        sources.dedup_by_key(|source| source.0);
        sources
    }
}

impl State {
    /// What is to be expected of a read of a shard; `None`: nothing.
    fn hope(&self, sequence: u64, shard: u8) -> Option<Hope> {
        let node = self.nodes.holder(sequence, shard);
        if !self.nodes.is_usable(node) {
            return None;
        }
        // A segment that is not in the table is being recovered, or just gone: try.
        let segment = self.map.usage().get(sequence);
        let present = segment.is_none_or(|one| one.blocks == 0 || one.present >> shard & 1 == 1);
        Some(match (present, self.nodes.is_prompt(node)) {
            (true, true) => Hope::Good,
            (true, false) => Hope::Slow,
            (false, _) => Hope::Little,
        })
    }
}

/// What is to be expected of a read of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hope {
    /// It comes soon.
    Good,
    /// It comes, but its node is slow.
    Slow,
    /// It was missing, as far as is known: a repair may have made it since the last checkpoint, or
    /// it was put and never acknowledged.
    Little,
}

/// Cuts what is wanted of a segment into windows of rows that are near each other.
fn windows(shape: Shape, wants: &[Want]) -> Vec<Window> {
    let k = u16::from(shape.data_shards());
    let mut windows: Vec<Window> = Vec::new();
    for want in wants {
        let index = want.location.index();
        let (shard, row) = ((index % k) as u8, index / k);
        let near = windows
            .last_mut()
            .filter(|last| row <= last.end_row && row - last.first_row < WINDOW_ROWS_MAX);
        let Some(window) = near else {
            let sequence = want.location.sequence();
            let shards = vec![(shard, row, row + 1)];
            windows.push(Window { sequence, first_row: row, end_row: row + 1, shards });
            continue;
        };
        window.end_row = window.end_row.max(row + 1);
        match window.shards.iter_mut().find(|one| one.0 == shard) {
            Some(one) => one.2 = row + 1,
            None => window.shards.push((shard, row, row + 1)),
        }
    }
    windows
}
