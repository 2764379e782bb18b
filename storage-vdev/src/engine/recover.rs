//! Recovery: what the last opening had made durable beyond its last superblock.
//!
//! Segments first: from the superblock's frontier on, each must continue the chain of links and
//! have k shards left. Then the journal: the longest chain of whole groups among the heads, from
//! the last segment's last write on, without a gap.

use std::rc::Rc;

use super::executor::join_all;
use super::find::ask;
use super::options::{OpenError, Policy};
use super::record::{
    ChainEnd, HEADER_BYTES, PAYLOAD_BLOCKS_MAX, Record, parse_record, record_bytes,
};
use super::request::RequestError;
use super::state::Engine;
use super::superblock::Superblock;
use crate::geometry::BLOCK_BYTES;
use crate::keys::EpochKeys;
use crate::node::{NodeIndex, Request, Response};
use crate::segment::{Entry, HEAD_BYTES, Link, SegmentHeader, ShardHead};

/// How much of a journal is read at once.
const READ_BYTES: u32 = 1 << 20;

/// A segment that recovery found.
struct Survivor {
    header: SegmentHeader,
    entries: Vec<Entry>,
    present: u32,
}

/// Records that belong together.
pub(super) struct ReplayGroup {
    first_write: u64,
    last_write: u64,
    records: Vec<Record>,
}

/// What the journal heads still have.
pub(super) struct Replay {
    /// What is to be written again, in this order.
    pub(super) groups: Vec<ReplayGroup>,
    /// A position behind everything on any head.
    pub(super) end: u64,
    /// How many heads could be read to their ends.
    pub(super) read: usize,
}

impl Engine {
    /// Enters the segments behind the superblock's frontier into the map. Returns the last one and
    /// the last write in it.
    pub(super) async fn roll_forward(
        self: &Rc<Self>,
        superblock: &Superblock,
    ) -> Result<(Link, u64), OpenError> {
        let mut frontier = (superblock.frontier, superblock.frontier_write);
        let first = superblock.openings.last().map_or(1, |last| last.first_sequence);
        loop {
            let sequence = (frontier.0.sequence + 1).max(first);
            let Some(found) = self.find_segment(sequence, frontier.0).await else {
                return Ok(frontier);
            };
            let Survivor { header, entries, present } = found;
            self.with(|state| {
                state.map.usage_mut().add(sequence, header.blocks, present, sequence);
            });
            self.apply(sequence, &entries).await.map_err(|error| map_error(&error))?;
            self.complete_segment(sequence, present).await?;
            frontier = (header.link(), header.last_write);
        }
    }

    /// A segment that the last opening had not put everywhere: the journal's copy of it is about to
    /// be dropped, so it must be on every node that is up before.
    async fn complete_segment(
        self: &Rc<Self>,
        sequence: u64,
        present: u32,
    ) -> Result<(), OpenError> {
        let mut missing = self.with(|state| state.readable_shards(sequence, !present));
        let mut tried = 0;
        while missing != 0 {
            tried |= missing;
            let repaired = self.repair_segment(sequence, missing).await;
            tracing::info!(sequence, made = repaired.map(|(made, _)| made), "completed a segment");
            let left = self.with(|state| {
                let present = state.map.usage().get(sequence).map_or(0, |segment| segment.present);
                state.readable_shards(sequence, !present)
            });
            // Nodes that went down over it count as lost; one that is up must take its shard. What
            // was found rotten by reading it for that comes next.
            if left & tried != 0 {
                return Err(OpenError::NoSpace);
            }
            missing = left;
        }
        Ok(())
    }

    /// The segment with this number, if it continues the chain and enough of it is left.
    async fn find_segment(self: &Rc<Self>, sequence: u64, link: Link) -> Option<Survivor> {
        let shards = self.with(|state| state.shape.shards());
        let heads = (0..shards).map(|shard| {
            let engine = Rc::clone(self);
            async move { engine.shard_head(sequence, shard).await }
        });
        let heads = join_all(heads).await;
        let mut tried: Vec<SegmentHeader> = Vec::new();
        for candidate in heads.iter().flatten() {
            let header = candidate.segment;
            if tried.contains(&header) || header.link != link || header.sequence != sequence {
                continue;
            }
            tried.push(header);
            let same = |head: &&ShardHead| head.segment == header;
            let present = heads.iter().flatten().filter(same);
            let present = present.fold(0u32, |all, head| all | 1 << head.shard);
            let k = u32::from(header.shape.data_shards());
            let shape = self.with(|state| state.shape);
            if present.count_ones() < k || header.shape != shape {
                continue;
            }
            for shard in (0..shards).filter(|shard| present >> shard & 1 == 1) {
                if let Some(entries) = self.open_table(&header, shard).await {
                    return Some(Survivor { header, entries, present });
                }
            }
        }
        None
    }

    async fn shard_head(&self, sequence: u64, shard: u8) -> Option<ShardHead> {
        let bytes = self.shard_bytes(sequence, shard, (0, HEAD_BYTES as u32)).await?;
        ShardHead::parse(&bytes).ok().filter(|head| head.shard == shard)
    }

    /// What a segment says that it holds.
    pub(super) async fn segment_entries(&self, sequence: u64) -> Option<Vec<Entry>> {
        let shards = self.with(|state| state.shape.shards());
        for shard in 0..shards {
            if let Some(head) = self.shard_head(sequence, shard).await
                && head.segment.sequence == sequence
                && let Some(entries) = self.open_table(&head.segment, shard).await
            {
                return Some(entries);
            }
        }
        None
    }

    async fn open_table(&self, header: &SegmentHeader, shard: u8) -> Option<Vec<Entry>> {
        let table = self.shard_bytes(header.sequence, shard, header.table_at()).await?;
        self.with(|state| {
            let (_, keys) = state.openings.of(header.sequence)?;
            header.open_table(keys, &table).ok()
        })
    }

    /// A range of a shard's object, if its node has it.
    pub(super) async fn shard_bytes(
        &self,
        sequence: u64,
        shard: u8,
        (offset, len): (u32, u32),
    ) -> Option<bytes::Bytes> {
        let (node, key) = self.with(|state| {
            let node = state.nodes.holder(sequence, shard);
            let usable = state.nodes.is_usable(node);
            (node, state.openings.object(sequence, shard).filter(|_| usable))
        });
        match ask(&self.runtime, node, Request::Get { key: key?, offset, len }).await {
            Ok(Response::Bytes(bytes)) if len == u32::MAX || bytes.len() == len as usize => {
                Some(bytes)
            }
            _ => None,
        }
    }

    /// Reads the journal heads of the last opening.
    pub(super) async fn read_journal(
        self: &Rc<Self>,
        superblock: &Superblock,
        (keys, last_write): (&EpochKeys, u64),
    ) -> Replay {
        let mut replay = Replay { groups: Vec::new(), end: superblock.journal.position, read: 0 };
        let heads = superblock.journal.heads.iter().copied();
        // Who has forgotten the opening has nothing of its journal, whatever else it may have.
        let usable: Vec<NodeIndex> =
            heads.filter(|head| self.with(|state| state.nodes.remembers(*head))).collect();
        for head in usable {
            let Some((groups, end, whole)) = self.read_head(superblock, head, keys).await else {
                continue;
            };
            // One that went away in the middle may have had more: it can't vouch for what is lost.
            replay.read += usize::from(whole);
            replay.end = replay.end.max(end);
            let groups = continuing(groups, last_write);
            let reach = |groups: &[ReplayGroup]| groups.last().map_or(0, |last| last.last_write);
            if reach(&groups) > reach(&replay.groups) {
                replay.groups = groups;
            }
        }
        replay
    }

    /// The whole groups on one head, in order, where its journal ends, and whether the head gave out
    /// all of it.
    async fn read_head(
        self: &Rc<Self>,
        superblock: &Superblock,
        head: NodeIndex,
        keys: &EpochKeys,
    ) -> Option<(Vec<ReplayGroup>, u64, bool)> {
        let volume = superblock.uuid;
        let state = ask(&self.runtime, head, Request::JournalState { volume }).await;
        let Ok(Response::Journal { start, end, .. }) = state else { return None };
        let anchor = &superblock.journal;
        let mut walk = Walk { keys, volume, expected: None, groups: Vec::new(), part: Vec::new() };
        let mut position = start.max(anchor.position);
        if start <= anchor.position {
            walk.expected = Some(anchor.chain);
        }
        let mut buffer: Vec<u8> = Vec::new();
        let mut whole = true;
        let record_max = HEADER_BYTES + PAYLOAD_BLOCKS_MAX * BLOCK_BYTES;
        while position < end {
            let len = u32::try_from(end - position).unwrap_or(u32::MAX).min(READ_BYTES);
            let request = Request::JournalRead { volume, position, len };
            match ask(&self.runtime, head, request).await {
                Ok(Response::Bytes(bytes)) if !bytes.is_empty() => {
                    position += bytes.len() as u64;
                    buffer.extend_from_slice(&bytes);
                }
                _ => {
                    whole = false;
                    break;
                }
            }
            let used = walk.take(&buffer);
            buffer.drain(..used);
            if buffer.len() >= record_max {
                break;
            }
        }
        Some((walk.groups, end, whole))
    }

    /// Writes again what the journal had.
    pub(super) async fn replay(self: &Rc<Self>, groups: Vec<ReplayGroup>) -> Result<(), OpenError> {
        let block_bytes = BLOCK_BYTES as u64;
        for record in groups.iter().flat_map(|group| &group.records) {
            let mut payload = record.payload.as_slice();
            for extent in &record.extents {
                let offset = extent.first_block.saturating_mul(block_bytes);
                let len = extent.count.saturating_mul(block_bytes);
                let size = self.with(|state| state.size_bytes);
                let inside = offset.checked_add(len).is_some_and(|end| end <= size);
                if extent.zero {
                    if inside {
                        self.admit_zero(offset, len).await.map_err(|error| map_error(&error))?;
                    }
                    continue;
                }
                let Some((data, rest)) = payload.split_at_checked(len as usize) else { break };
                payload = rest;
                if inside {
                    self.admit_write(offset, data).await.map_err(|error| map_error(&error))?;
                }
            }
        }
        Ok(())
    }
}

/// Walks along a chain of records.
struct Walk<'a> {
    keys: &'a EpochKeys,
    volume: crate::keys::Uuid,
    /// What the next record must say; `None`: the records before it are gone, any may come.
    expected: Option<ChainEnd>,
    groups: Vec<ReplayGroup>,
    /// Records of a group that goes on.
    part: Vec<Record>,
}

impl Walk<'_> {
    /// Takes the whole records at the start of `bytes`; returns how many bytes they have.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..)
            && let Some(len) = record_bytes(rest)
            && let Ok(record) = parse_record(rest, self.keys, self.volume)
        {
            let next = ChainEnd { sequence: record.sequence + 1, tag: record.tag };
            let continues = self.expected.is_none_or(|expected| {
                record.sequence == expected.sequence && record.previous == expected.tag
            });
            let same_group = self.part.first().is_none_or(|first| first.writes == record.writes);
            if !continues || !same_group {
                break;
            }
            used += len;
            self.expected = Some(next);
            let (writes, more) = (record.writes, record.more);
            self.part.push(record);
            if !more {
                let records = std::mem::take(&mut self.part);
                let (first_write, last_write) = writes;
                self.groups.push(ReplayGroup { first_write, last_write, records });
            }
        }
        used
    }
}

/// The groups that go on behind `last_write` without a gap.
fn continuing(groups: Vec<ReplayGroup>, last_write: u64) -> Vec<ReplayGroup> {
    let mut reached = last_write;
    let mut kept = Vec::new();
    for group in groups {
        if group.last_write <= reached {
            continue;
        }
        if group.first_write > reached + 1 {
            break;
        }
        reached = group.last_write;
        kept.push(group);
    }
    kept
}

/// Whether what the journal had can be trusted to be all of it.
pub(super) fn journal_suffices(superblock: &Superblock, read: usize) -> bool {
    let heads = superblock.journal.heads.len();
    superblock.closed || superblock.policy == Policy::Sealed || heads == 0 || read > 0
}

/// What went wrong with a volume that is being opened.
pub(super) fn map_error(error: &RequestError) -> OpenError {
    match error {
        RequestError::Lost { segment } => OpenError::MapLost { segment: *segment },
        RequestError::Stale { epoch } => OpenError::Stale { epoch: *epoch },
        RequestError::NoSpace => OpenError::NoSpace,
        _ => OpenError::MapLost { segment: 0 },
    }
}
