//! Which blocks are free, and which slots.

use std::collections::{BTreeMap, BTreeSet};

use super::ZONE_BLOCKS;

/// The least blocks that are worth being given back: 256 KiB.
const PUNCH_LEAST: u32 = 64;
/// How many holes are looked at for some that can be.
const HOLES_LOOKED_AT: usize = 64;

/// The free blocks, best fit first. No extent crosses a zone's boundary.
#[derive(Debug)]
pub(super) struct Space {
    /// First block to count.
    holes: BTreeMap<u32, u32>,
    /// (count, first block) of the same holes.
    by_count: BTreeSet<(u32, u32)>,
    /// Blocks in holes.
    free: u64,
    /// Free blocks whose room was given back to the file system: first block to count, none next to
    /// another.
    punched: BTreeMap<u32, u32>,
    /// How many these are.
    punched_blocks: u64,
    /// Blocks from here to the capacity were never reserved in the file.
    reserved: u64,
    capacity: u64,
}

impl Space {
    /// The space beside `extents` (first block, count), which are sorted and don't overlap.
    pub(super) fn beside(extents: &[(u32, u32)], capacity: u64) -> Self {
        let mut space = Self {
            holes: BTreeMap::new(),
            by_count: BTreeSet::new(),
            free: 0,
            punched: BTreeMap::new(),
            punched_blocks: 0,
            reserved: 0,
            capacity,
        };
        for (first, count) in extents {
            space.give_range(space.reserved, u64::from(*first));
            space.reserved = u64::from(*first) + u64::from(*count);
        }
        space
    }

    /// Blocks that are free in all.
    pub(super) fn free(&self) -> u64 {
        self.free + (self.capacity - self.reserved)
    }

    /// The blocks in all.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Free blocks, at most `most`, that still take room in the file while more than `keep` do: of
    /// one of the largest holes.
    pub(super) fn next_to_punch(&self, keep: u64, most: u32) -> Option<(u32, u32)> {
        if self.free - self.punched_blocks <= keep {
            return None;
        }
        let large = self.by_count.iter().rev().take(HOLES_LOOKED_AT);
        let mut large = large.take_while(|(count, _)| *count >= PUNCH_LEAST);
        large.find_map(|(count, first)| {
            let (mut at, end) = (*first, first.saturating_add(*count));
            // Behind what is punched at its start, up to what is punched next.
            if let Some((start, size)) = self.punched.range(..=at).next_back() {
                at = at.max(start + size);
            }
            let next = self.punched.range(at..end).next().map_or(end, |(start, _)| *start);
            let open = next.saturating_sub(at).min(most);
            (open >= PUNCH_LEAST).then_some((at, open))
        })
    }

    /// The room of free blocks was given back.
    pub(super) fn set_punched(&mut self, first: u32, count: u32) {
        let joined = self.punched.range_mut(..first).next_back();
        match joined.filter(|(start, size)| **start + **size == first) {
            Some((_, size)) => *size += count,
            None => drop(self.punched.insert(first, count)),
        }
        self.punched_blocks += u64::from(count);
    }

    /// The blocks are to be written again: whether room has to be reserved for any of them.
    pub(super) fn refill(&mut self, first: u32, count: u32) -> bool {
        let end = first + count;
        let reaching = self.punched.range(..end).rev();
        let hit: Vec<(u32, u32)> = reaching
            .map(|(start, size)| (*start, start + size))
            .take_while(|(_, behind)| *behind > first)
            .collect();
        for (start, behind) in &hit {
            self.punched.remove(start);
            self.punched_blocks -= u64::from(behind - start);
            for (from, to) in [(*start, first.min(*behind)), (end.max(*start), *behind)] {
                if from < to {
                    self.punched.insert(from, to - from);
                    self.punched_blocks += u64::from(to - from);
                }
            }
        }
        !hit.is_empty()
    }

    /// Takes `count` neighbouring blocks out of the reserved ones.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        let (size, first) = self.by_count.range((count, 0)..).next().copied()?;
        self.remove(first, size);
        if size > count {
            self.insert(first + count, size - count);
        }
        Some(first)
    }

    /// The blocks that are reserved next: at most `step`, as far as the zone goes.
    pub(super) fn next_reservation(&self, step: u32) -> Option<(u32, u32)> {
        let zone_end = (self.reserved / u64::from(ZONE_BLOCKS) + 1) * u64::from(ZONE_BLOCKS);
        let end = (self.reserved + u64::from(step)).min(zone_end).min(self.capacity);
        let count = u32::try_from(end - self.reserved).ok().filter(|count| *count > 0)?;
        Some((u32::try_from(self.reserved).ok()?, count))
    }

    /// `count` more blocks are reserved in the file.
    pub(super) fn add_reserved(&mut self, count: u32) {
        let first = self.reserved;
        self.reserved = (first + u64::from(count)).min(self.capacity);
        self.give_range(first, self.reserved);
    }

    /// Gives blocks back.
    pub(super) fn give(&mut self, first: u32, count: u32) {
        self.give_range(u64::from(first), u64::from(first) + u64::from(count));
    }

    /// Gives `first..end` back, which may span zones.
    fn give_range(&mut self, mut first: u64, end: u64) {
        while first < end {
            let zone_end = (first / u64::from(ZONE_BLOCKS) + 1) * u64::from(ZONE_BLOCKS);
            let piece_end = end.min(zone_end);
            // Blocks are numbered with 32 bits: the capacity is bounded so.
            if let (Ok(start), Ok(count)) = (u32::try_from(first), u32::try_from(piece_end - first))
            {
                self.join(start, count);
            }
            first = piece_end;
        }
    }

    fn join(&mut self, first: u32, count: u32) {
        let (mut first, mut count) = (first, count);
        let before = self.holes.range(..first).next_back().map(|(start, size)| (*start, *size));
        if let Some((start, size)) = before
            && start + size == first
            && !first.is_multiple_of(ZONE_BLOCKS)
        {
            self.remove(start, size);
            (first, count) = (start, size + count);
        }
        let behind = u64::from(first) + u64::from(count);
        if let Ok(next) = u32::try_from(behind)
            && !next.is_multiple_of(ZONE_BLOCKS)
            && let Some(size) = self.holes.get(&next).copied()
        {
            self.remove(next, size);
            count += size;
        }
        self.insert(first, count);
    }

    fn insert(&mut self, first: u32, count: u32) {
        self.holes.insert(first, count);
        self.by_count.insert((count, first));
        self.free += u64::from(count);
    }

    fn remove(&mut self, first: u32, count: u32) {
        self.holes.remove(&first);
        self.by_count.remove(&(count, first));
        self.free -= u64::from(count);
    }
}

/// Which slots are taken; the lowest free one is used first, so that the index stays short.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// A bit per slot, set if it is taken.
    taken: Vec<u64>,
    /// No slot before this word is free.
    first_free: usize,
}

impl Slots {
    /// How many slots the index has on the disk.
    pub(super) fn len(&self) -> u32 {
        // One slot per block at most, which 32 bits count.
        (self.taken.len() * 64) as u32
    }

    /// `count` more slots, a multiple of 64, all free.
    pub(super) fn extend(&mut self, count: u32) {
        self.taken.resize(self.taken.len() + count as usize / 64, 0);
    }

    /// Marks one as taken.
    pub(super) fn mark(&mut self, slot: u32) {
        if let Some(word) = self.taken.get_mut(slot as usize / 64) {
            *word |= 1 << (slot % 64);
        }
    }

    /// Takes the lowest free one.
    pub(super) fn take(&mut self) -> Option<u32> {
        let words = self.taken.get_mut(self.first_free..)?;
        let (index, word) = words.iter_mut().enumerate().find(|(_, word)| **word != u64::MAX)?;
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        self.first_free += index;
        Some((self.first_free * 64) as u32 + bit)
    }

    /// Gives one back.
    pub(super) fn give(&mut self, slot: u32) {
        let index = slot as usize / 64;
        if let Some(word) = self.taken.get_mut(index) {
            *word &= !(1 << (slot % 64));
            self.first_free = self.first_free.min(index);
        }
    }
}
