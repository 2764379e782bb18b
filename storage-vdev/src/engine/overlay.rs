//! Written blocks that are in no committed segment: memory that reads see first.
//!
//! Writes gather in *batches*; a batch becomes a segment. The last one is open, the others wait
//! until their segments are committed. An index says for each block which batch has its newest
//! content; it is made of runs, so that what is written in sequence costs one entry.
//!
//! A batch commits as a whole, so a block that is written again while its batch is open is
//! replaced in place. The journal sees the same: what is *pending* (not journaled yet) is taken out
//! as one group, which is replayed wholly or not at all.

use std::collections::{BTreeMap, VecDeque};

use crate::geometry::BLOCK_BYTES;

/// The most zeroed runs of a batch.
const ZEROES_MAX: usize = 512;

/// The name of a batch: they count up.
pub(super) type BatchId = u64;

/// A run of blocks in the index.
#[derive(Debug, Clone, Copy)]
struct Piece {
    count: u64,
    batch: BatchId,
    /// The slot of the first block; `None`: all are zero.
    slot: Option<u32>,
}

/// What the journal has to say of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// `count` blocks from `block` have the content of as many slots.
    Data { block: u64, slot: u32, count: u32 },
    /// `count` blocks from `block` are zero.
    Zero { block: u64, count: u64 },
}

/// The content of a future segment.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) id: BatchId,
    /// The blocks, slot after slot.
    data: Vec<u8>,
    /// The block of each slot; `None` if it was zeroed in this batch since.
    addresses: Vec<Option<u64>>,
    /// Whether a slot is in `pending` already.
    is_pending: Vec<bool>,
    /// Runs that are zero before the slots are applied.
    pub(super) zeroes: Vec<(u64, u64)>,
    /// What was not journaled yet, in order.
    pending: Vec<Change>,
    /// The numbers of its first and its last write (the last one is below the first if it is
    /// empty).
    pub(super) first_write: u64,
    pub(super) last_write: u64,
    /// Writes up to this one are durable in the journal.
    pub(super) journaled: u64,
    /// The number of the last write that was taken out of `pending`.
    taken: u64,
}

/// What a block is, as far as the overlay knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// The map has it.
    Below,
    /// It is zero.
    Zero,
    /// The content of all blocks of the run.
    Data(&'a [u8]),
}

/// What waits for the journal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) batch: BatchId,
    pub(super) first_write: u64,
    pub(super) last_write: u64,
    pub(super) changes: Vec<Change>,
}

/// All batches.
#[derive(Debug)]
pub(super) struct Overlay {
    index: BTreeMap<u64, Piece>,
    batches: VecDeque<Batch>,
    /// The most blocks of a batch, and of all of them.
    batch_blocks: usize,
    blocks_max: usize,
    /// The number of the last write.
    last_write: u64,
    /// The memory of dropped batches, for the next ones.
    spare: Vec<Vec<u8>>,
}

impl Batch {
    fn new(id: BatchId, after_write: u64, data: Vec<u8>) -> Self {
        Self {
            id,
            data,
            addresses: Vec::new(),
            is_pending: Vec::new(),
            zeroes: Vec::new(),
            pending: Vec::new(),
            first_write: after_write + 1,
            last_write: after_write,
            journaled: after_write,
            taken: after_write,
        }
    }

    /// Whether nothing was written to it.
    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.zeroes.is_empty()
    }

    /// Its blocks with their addresses, without those that were zeroed later.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let blocks = self.data.chunks_exact(BLOCK_BYTES);
        self.addresses.iter().zip(blocks).filter_map(|(address, block)| Some(((*address)?, block)))
    }

    /// The content of `count` slots.
    pub(super) fn slots(&self, slot: u32, count: u32) -> &[u8] {
        let start = slot as usize * BLOCK_BYTES;
        self.data.get(start..start + count as usize * BLOCK_BYTES).unwrap_or_default()
    }

    /// What was not journaled yet.
    pub(super) fn pending(&self) -> &[Change] {
        &self.pending
    }

    /// The last write that was taken for the journal.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    fn overwrite(&mut self, block: u64, slot: u32, content: &[u8]) {
        let start = slot as usize * BLOCK_BYTES;
        if let Some(target) = self.data.get_mut(start..start + content.len()) {
            target.copy_from_slice(content);
        }
        let count = (content.len() / BLOCK_BYTES) as u32;
        for nth in 0..count {
            self.mark_pending(block + u64::from(nth), slot + nth);
        }
    }

    fn append(&mut self, block: u64, content: &[u8]) -> u32 {
        let slot = self.addresses.len() as u32;
        let count = content.len() / BLOCK_BYTES;
        self.data.extend_from_slice(content);
        self.addresses.extend((block..).take(count).map(Some));
        self.is_pending.resize(self.addresses.len(), true);
        match self.pending.last_mut() {
            Some(Change::Data { block: first, slot: first_slot, count: run })
                if *first + u64::from(*run) == block && *first_slot + *run == slot =>
            {
                *run += count as u32;
            }
            _ => self.pending.push(Change::Data { block, slot, count: count as u32 }),
        }
        slot
    }

    fn mark_pending(&mut self, block: u64, slot: u32) {
        let Some(mark) = self.is_pending.get_mut(slot as usize) else { return };
        if std::mem::replace(mark, true) {
            return;
        }
        match self.pending.last_mut() {
            Some(Change::Data { block: first, slot: first_slot, count })
                if *first + u64::from(*count) == block && *first_slot + *count == slot =>
            {
                *count += 1;
            }
            _ => self.pending.push(Change::Data { block, slot, count: 1 }),
        }
    }

    fn zero(&mut self, block: u64, count: u64) {
        match self.zeroes.last_mut() {
            Some((first, run)) if *first + *run == block => *run += count,
            _ => self.zeroes.push((block, count)),
        }
        match self.pending.last_mut() {
            Some(Change::Zero { block: first, count: run }) if *first + *run == block => {
                *run += count;
            }
            _ => self.pending.push(Change::Zero { block, count }),
        }
    }

    fn kill(&mut self, slot: u32, count: u64) {
        let start = slot as usize;
        let slots = self.addresses.get_mut(start..start + count as usize);
        slots.into_iter().flatten().for_each(|address| *address = None);
    }

    fn pending_blocks(&self) -> usize {
        let blocks = |change: &Change| match change {
            Change::Data { count, .. } => *count as usize,
            Change::Zero { .. } => 0,
        };
        self.pending.iter().map(blocks).sum()
    }
}

impl Overlay {
    /// An empty overlay behind write `after_write`, of batches of up to `batch_blocks` blocks and
    /// `blocks_max` in all.
    pub(super) fn new(batch_blocks: usize, blocks_max: usize, after_write: u64) -> Self {
        let mut overlay = Self {
            index: BTreeMap::new(),
            batches: VecDeque::new(),
            batch_blocks: batch_blocks.max(1),
            blocks_max: blocks_max.max(2 * batch_blocks).max(2),
            last_write: after_write,
            spare: Vec::new(),
        };
        overlay.batches.push_back(Batch::new(1, after_write, Vec::new()));
        overlay
    }

    /// The number of the last write.
    pub(super) fn last_write(&self) -> u64 {
        self.last_write
    }

    /// The batch that is being filled.
    pub(super) fn open_batch(&self) -> &Batch {
        let Some(batch) = self.batches.back() else { unreachable!("one batch is always open") };
        batch
    }

    fn open_batch_mut(&mut self) -> &mut Batch {
        let Some(batch) = self.batches.back_mut() else { unreachable!("one batch is always open") };
        batch
    }

    /// A batch that is not dropped yet.
    pub(super) fn batch(&self, id: BatchId) -> Option<&Batch> {
        let first = self.batches.front()?.id;
        self.batches.get(usize::try_from(id.checked_sub(first)?).ok()?)
    }

    fn batch_mut(&mut self, id: BatchId) -> Option<&mut Batch> {
        let first = self.batches.front()?.id;
        self.batches.get_mut(usize::try_from(id.checked_sub(first)?).ok()?)
    }

    /// How many blocks it holds.
    pub(super) fn blocks(&self) -> usize {
        self.batches.iter().map(|batch| batch.addresses.len()).sum()
    }

    /// How many blocks of how many bytes are neither journaled nor in a sealed segment's way.
    pub(super) fn unflushed_blocks(&self) -> usize {
        self.open_batch().pending_blocks()
    }

    /// How many more blocks it takes now.
    pub(super) fn room(&self) -> usize {
        self.blocks_max.saturating_sub(self.blocks())
    }

    /// Whether the open batch takes no more.
    pub(super) fn batch_is_full(&self) -> bool {
        let batch = self.open_batch();
        batch.addresses.len() >= self.batch_blocks || batch.zeroes.len() >= ZEROES_MAX
    }

    /// Closes the open batch, if anything is in it, and returns its id.
    pub(super) fn close_batch(&mut self) -> Option<BatchId> {
        let batch = self.open_batch();
        let id = batch.id;
        if batch.is_empty() && batch.last_write < batch.first_write {
            return None;
        }
        let data = self.spare.pop().unwrap_or_default();
        self.batches.push_back(Batch::new(id + 1, self.last_write, data));
        Some(id)
    }

    /// Writes whole blocks; as many as fit the open batch. Returns how many blocks were taken.
    pub(super) fn write(&mut self, block: u64, content: &[u8]) -> usize {
        let mut free = self.batch_blocks.saturating_sub(self.open_batch().addresses.len());
        let count = content.len() / BLOCK_BYTES;
        let open = self.open_batch().id;
        let mut done = 0;
        while done < count {
            let at = block + done as u64;
            let left = (count - done) as u64;
            let (found, run) = self.piece_at(at, left);
            let run = run as usize;
            let bytes = |run: usize| {
                content.get(done * BLOCK_BYTES..(done + run) * BLOCK_BYTES).unwrap_or_default()
            };
            if let Some(slot) = found.filter(|piece| piece.batch == open).and_then(|p| p.slot) {
                self.open_batch_mut().overwrite(at, slot, bytes(run));
                done += run;
                continue;
            }
            let run = run.min(free);
            if run == 0 {
                break;
            }
            let batch_capacity = self.batch_blocks * BLOCK_BYTES;
            let batch = self.open_batch_mut();
            if batch.data.capacity() == 0 {
                batch.data.reserve_exact(batch_capacity);
            }
            let slot = batch.append(at, bytes(run));
            self.set(at, Piece { count: run as u64, batch: open, slot: Some(slot) });
            free -= run;
            done += run;
        }
        self.last_write += done as u64;
        self.open_batch_mut().last_write = self.last_write;
        done
    }

    /// Zeroes `count` blocks. Call only while the batch isn't full.
    pub(super) fn zero(&mut self, block: u64, count: u64) {
        let open = self.open_batch().id;
        self.set(block, Piece { count, batch: open, slot: None });
        self.last_write += 1;
        let last_write = self.last_write;
        let batch = self.open_batch_mut();
        batch.zero(block, count);
        batch.last_write = last_write;
    }

    /// What block `first` is, and for how many blocks (up to `count`) that goes on.
    pub(super) fn find(&self, first: u64, count: u64) -> (Found<'_>, u64) {
        let (piece, run) = self.piece_at(first, count);
        let found = match piece {
            None => Found::Below,
            Some(Piece { slot: None, .. }) => Found::Zero,
            Some(Piece { batch, slot: Some(slot), .. }) => match self.batch(batch) {
                Some(batch) => Found::Data(batch.slots(slot, run as u32)),
                None => Found::Below,
            },
        };
        (found, run)
    }

    /// Takes what is pending in the open batch, for the journal.
    pub(super) fn take_pending(&mut self) -> Option<Group> {
        let batch = self.open_batch_mut();
        if batch.taken == batch.last_write {
            return None;
        }
        let changes = std::mem::take(&mut batch.pending);
        for change in &changes {
            if let Change::Data { slot, count, .. } = change {
                let slots = *slot as usize..(*slot + *count) as usize;
                let marks = batch.is_pending.get_mut(slots);
                marks.into_iter().flatten().for_each(|mark| *mark = false);
            }
        }
        let group = Group {
            batch: batch.id,
            first_write: batch.taken + 1,
            last_write: batch.last_write,
            changes,
        };
        batch.taken = batch.last_write;
        Some(group)
    }

    /// Notes that a group is durable in the journal.
    pub(super) fn set_journaled(&mut self, id: BatchId, last_write: u64) {
        if let Some(batch) = self.batch_mut(id) {
            batch.journaled = batch.journaled.max(last_write);
        }
    }

    /// Drops the oldest batch, whose segment is committed and in the map.
    pub(super) fn drop_batch(&mut self, id: BatchId) {
        if self.batches.len() < 2 || self.batches.front().is_none_or(|batch| batch.id != id) {
            return;
        }
        let Some(mut batch) = self.batches.pop_front() else { return };
        let mut next_slot = 0;
        while let Some(first) = batch.addresses.get(next_slot) {
            let run = match first {
                None => 1,
                Some(first) => {
                    let rest = batch.addresses.get(next_slot..).unwrap_or_default();
                    let run = rest.iter().zip(*first..).take_while(|(a, b)| **a == Some(*b));
                    let run = run.count().max(1);
                    self.forget(*first, run as u64, id);
                    run
                }
            };
            next_slot += run;
        }
        for (block, count) in std::mem::take(&mut batch.zeroes) {
            self.forget(block, count, id);
        }
        // Fresh memory costs a page fault for every page; a quarter of the batches is kept.
        let kept = self.spare.len();
        if batch.data.capacity() > 0 && kept < (self.blocks_max / self.batch_blocks / 4).max(1) {
            batch.data.clear();
            self.spare.push(batch.data);
        }
        // The rush is over.
        if self.batches.len() == 1 {
            self.spare.truncate(1);
        }
    }

    /// The numbers up to which everything is durable, given which batches' segments are.
    pub(super) fn durable_write(&self, is_durable: impl Fn(BatchId) -> bool) -> u64 {
        let mut durable = self.batches.front().map_or(0, |batch| batch.first_write - 1);
        for batch in &self.batches {
            if batch.journaled < batch.last_write && !is_durable(batch.id) {
                return durable.max(batch.journaled);
            }
            durable = batch.last_write;
        }
        durable
    }

    /// The piece at block `first`, moved so that it starts there, and for how many of `count`
    /// blocks it (or its absence) goes on.
    fn piece_at(&self, first: u64, count: u64) -> (Option<Piece>, u64) {
        let before = self.index.range(..=first).next_back();
        if let Some((start, piece)) = before
            && first < start + piece.count
        {
            let skip = first - start;
            let slot = piece.slot.map(|slot| slot + skip as u32);
            let moved = Piece { count: piece.count - skip, slot, ..*piece };
            return (Some(moved), moved.count.min(count));
        }
        let next = self.index.range(first..).next().map_or(u64::MAX, |(start, _)| *start);
        (None, count.min(next - first))
    }

    /// Puts a piece into the index; what was there is cut, and dead in the open batch if it is
    /// replaced by zeroes.
    fn set(&mut self, first: u64, piece: Piece) {
        self.cut(first, piece.count, |_| true);
        if let Some((start, before)) = self.index.range_mut(..first).next_back()
            && start + before.count == first
            && before.batch == piece.batch
        {
            let continues = match (before.slot, piece.slot) {
                (Some(a), Some(b)) => u64::from(a) + before.count == u64::from(b),
                (None, None) => true,
                _ => false,
            };
            if continues {
                before.count += piece.count;
                return;
            }
        }
        self.index.insert(first, piece);
    }

    fn forget(&mut self, first: u64, count: u64, batch: BatchId) {
        self.cut(first, count, |piece| piece.batch == batch);
    }

    /// Takes the pieces that `which` picks out of a range of the index.
    fn cut(&mut self, first: u64, count: u64, which: impl Fn(&Piece) -> bool) {
        let end = first + count;
        let open = self.open_batch().id;
        let start = self.index.range(..=first).next_back().map_or(first, |(start, _)| *start);
        let starts: Vec<u64> = self
            .index
            .range(start..end)
            .filter(|(start, piece)| *start + piece.count > first && which(piece))
            .map(|(start, _)| *start)
            .collect();
        for start in starts {
            let Some(piece) = self.index.remove(&start) else { continue };
            let piece_end = start + piece.count;
            let (cut_start, cut_end) = (start.max(first), piece_end.min(end));
            if cut_start > start {
                self.index.insert(start, Piece { count: cut_start - start, ..piece });
            }
            let slot_at = |block: u64| piece.slot.map(|slot| slot + (block - start) as u32);
            if piece_end > cut_end {
                let rest = Piece { count: piece_end - cut_end, slot: slot_at(cut_end), ..piece };
                self.index.insert(cut_end, rest);
            }
            if piece.batch == open
                && let Some(slot) = slot_at(cut_start)
            {
                self.open_batch_mut().kill(slot, cut_end - cut_start);
            }
        }
    }
}

#[cfg(test)]
mod tests;
