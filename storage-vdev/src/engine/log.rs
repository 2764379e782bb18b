//! The log: segments that are sealed and on their way to the nodes, in the order of their sequence
//! numbers. They are committed in this order, whichever is durable first.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::overlay::{Batch, BatchId};
use crate::codec::Codec;
use crate::extent_map::{Location, PageAddress};
use crate::keys::SegmentKeys;
use crate::segment::{Buffers, Entry, Link, SegmentBuilder, Shape};

/// How many segments may be on their way at most. A successor skips so many sequence numbers, so
/// that none of its own was ever used before.
pub(super) const WINDOW: u64 = 64;

/// A segment on its way.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub(super) sequence: u64,
    /// The batch that it holds; `None` for one that the engine wrote for itself.
    pub(super) batch: Option<BatchId>,
    pub(super) entries: Vec<Entry>,
    pub(super) link: Link,
    pub(super) last_write: u64,
    pub(super) blocks: u16,
    /// The age of its content: see [`crate::extent_map::Segment::birth`].
    pub(super) birth: u64,
    /// The shards that a node holds durably.
    pub(super) present: u32,
    /// The shards that it goes without, though their nodes may be up again by now.
    pub(super) given_up: u32,
    /// All shards are there, or as many as there are nodes for.
    pub(super) durable: bool,
}

/// A segment's objects, shard by shard.
pub(super) type Shards = Vec<[Bytes; 3]>;

/// The log's head: what is sealed, and what is committed.
#[derive(Debug)]
pub(super) struct Log {
    keys: Arc<SegmentKeys>,
    codec: Arc<Codec>,
    shape: Shape,
    buffers: Buffers,
    under_way: VecDeque<UnderWay>,
    next_sequence: u64,
    /// The last segment that was sealed, and the last write in it.
    sealed: Link,
    sealed_write: u64,
    /// The last segment that was committed and is in the map, and the last write in it.
    pub(super) frontier: Link,
    pub(super) frontier_write: u64,
}

/// A segment that the engine fills for itself: pages of the map, blocks that are moved.
pub(super) struct OwnSegment {
    builder: SegmentBuilder,
    entries: Vec<Entry>,
    birth: u64,
}

impl OwnSegment {
    /// Where the next block will lie.
    fn next(&self) -> Option<Location> {
        Location::new(self.builder.sequence(), self.builder.blocks())
    }

    /// Appends a page of the map and says where it will lie; `None` if it is full.
    pub(super) fn push_page(&mut self, address: PageAddress, page: &[u8]) -> Option<Location> {
        let location = self.next()?;
        self.builder.push_meta(address.word(), page).ok()?;
        self.entries.push(Entry::Meta { address: address.word() });
        Some(location)
    }

    /// Appends a copy of the block at `from`, whose age is `birth`; false if it is full.
    pub(super) fn push_moved(
        &mut self,
        block: u64,
        (from, birth): (Location, u64),
        content: &[u8],
    ) -> bool {
        let pushed = self.builder.push_moved(block, from.word(), content).is_ok();
        if pushed {
            self.entries.push(Entry::Moved { address: block, from: from.word() });
            self.birth = self.birth.min(birth);
        }
        pushed
    }
}

impl Log {
    /// A log that goes on behind `frontier` with sequence number `next_sequence` and seals into
    /// `buffers`.
    pub(super) fn new(
        keys: Arc<SegmentKeys>,
        (codec, shape): (Arc<Codec>, Shape),
        (frontier, frontier_write): (Link, u64),
        next_sequence: u64,
        buffers: Buffers,
    ) -> Self {
        Self {
            keys,
            codec,
            shape,
            buffers,
            under_way: VecDeque::new(),
            next_sequence,
            sealed: frontier,
            sealed_write: frontier_write,
            frontier,
            frontier_write,
        }
    }

    /// The sequence number of the next segment.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// The last segment that was sealed.
    pub(super) fn last_sealed(&self) -> u64 {
        self.sealed.sequence
    }

    /// The memory that it seals into.
    pub(super) fn buffers(&self) -> Buffers {
        self.buffers.clone()
    }

    /// Whether one more segment may be sealed now.
    pub(super) fn has_room(&self) -> bool {
        let oldest = self.under_way.front().map_or(self.next_sequence, |first| first.sequence);
        self.next_sequence - oldest < WINDOW - 1
    }

    /// Seals a batch.
    pub(super) fn seal_batch(&mut self, batch: &Batch, batch_blocks: u16) -> (u64, Shards) {
        let mut builder = self.builder(batch_blocks);
        let mut entries: Vec<Entry> = Vec::new();
        for (address, count) in &batch.zeroes {
            if builder.push_zero(*address, *count).is_ok() {
                entries.push(Entry::Zero { address: *address, count: *count });
            }
        }
        for (address, block) in batch.blocks() {
            if builder.push_block(address, block).is_err() {
                unreachable!("a batch has no more blocks than a segment takes");
            }
            match entries.last_mut() {
                Some(Entry::Data { address: first, count })
                    if *first + u64::from(*count) == address =>
                {
                    *count += 1;
                }
                _ => entries.push(Entry::Data { address, count: 1 }),
            }
        }
        let own = OwnSegment { birth: builder.sequence(), builder, entries };
        self.seal(own, Some(batch.id), (batch.first_write, batch.last_write))
    }

    /// Begins a segment of the engine's own. It must be sealed before any other is.
    pub(super) fn begin_own(&self, blocks: u16) -> OwnSegment {
        let builder = self.builder(blocks);
        OwnSegment { birth: builder.sequence(), builder, entries: Vec::new() }
    }

    /// Seals a segment of the engine's own.
    pub(super) fn seal_own(&mut self, own: OwnSegment) -> (u64, Shards) {
        let writes = (self.sealed_write + 1, self.sealed_write);
        self.seal(own, None, writes)
    }

    fn builder(&self, blocks: u16) -> SegmentBuilder {
        let (code, sequence) = ((&self.codec, self.shape), self.next_sequence);
        match SegmentBuilder::in_buffers(&self.buffers, &self.keys, code, sequence, blocks) {
            Ok(builder) => builder,
            Err(_) => {
                unreachable!("a segment that is begun is sealed, and its number not used again")
            }
        }
    }

    fn seal(
        &mut self,
        own: OwnSegment,
        batch: Option<BatchId>,
        writes: (u64, u64),
    ) -> (u64, Shards) {
        let OwnSegment { builder, entries, birth } = own;
        let blocks = builder.blocks();
        let sealed = builder.seal(self.sealed, writes);
        let sequence = sealed.header.sequence;
        self.next_sequence = sequence + 1;
        self.sealed = sealed.header.link();
        self.sealed_write = writes.1;
        self.under_way.push_back(UnderWay {
            sequence,
            batch,
            entries,
            link: self.sealed,
            last_write: writes.1,
            blocks,
            birth,
            present: 0,
            given_up: 0,
            durable: false,
        });
        (sequence, sealed.shards)
    }

    /// A segment on its way.
    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut UnderWay> {
        let first = self.under_way.front()?.sequence;
        self.under_way.get_mut(usize::try_from(sequence.checked_sub(first)?).ok()?)
    }

    /// Shards that were put on a node that is no longer theirs don't count: `mask` says which do.
    pub(super) fn empty_slot(&mut self, mask: impl Fn(u64) -> u32) {
        self.under_way.iter_mut().for_each(|one| one.present &= mask(one.sequence));
    }

    /// Whether no segment is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The oldest segment on its way, if it is durable.
    pub(super) fn next_to_commit(&self) -> Option<&UnderWay> {
        self.under_way.front().filter(|first| first.durable)
    }

    /// The oldest segment is in the map.
    pub(super) fn commit(&mut self) -> Option<UnderWay> {
        let first = self.under_way.pop_front()?;
        if self.under_way.is_empty() {
            self.buffers.release();
        }
        self.frontier = first.link;
        self.frontier_write = first.last_write;
        Some(first)
    }

    /// The last batch of those whose segments are durable, with all segments before them.
    pub(super) fn durable_batch(&self) -> Option<BatchId> {
        self.under_way.iter().take_while(|one| one.durable).filter_map(|one| one.batch).last()
    }
}
