//! Blocks that were read, for the next time. Bounded; the second chance decides who goes (CLOCK).

use std::collections::HashMap;

use crate::extent_map::Location;
use crate::geometry::BLOCK_BYTES;

/// How many blocks are allocated together.
const CHUNK_BLOCKS: usize = 64;

/// Blocks by their place in the log: what lies there never changes, so nothing is ever stale.
#[derive(Debug)]
pub(super) struct Cache {
    slots_max: usize,
    /// The blocks, so many to a chunk: a cache that grows copies nothing.
    chunks: Vec<Vec<u8>>,
    slots: Vec<Slot>,
    index: HashMap<Location, u32>,
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    location: Location,
    used: bool,
}

impl Cache {
    /// A cache of at most `bytes` of blocks; 0: none.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            slots_max: bytes / BLOCK_BYTES,
            chunks: Vec::new(),
            slots: Vec::new(),
            index: HashMap::new(),
            hand: 0,
        }
    }

    /// The block at `location`, if it is here.
    pub(super) fn get(&mut self, location: Location) -> Option<&[u8]> {
        let slot = *self.index.get(&location)? as usize;
        self.slots.get_mut(slot)?.used = true;
        let start = slot % CHUNK_BLOCKS * BLOCK_BYTES;
        self.chunks.get(slot / CHUNK_BLOCKS)?.get(start..start + BLOCK_BYTES)
    }

    /// Keeps a block.
    pub(super) fn insert(&mut self, location: Location, block: &[u8]) {
        if self.slots_max == 0 || block.len() != BLOCK_BYTES || self.index.contains_key(&location) {
            return;
        }
        if self.slots.len() < self.slots_max {
            self.index.insert(location, self.slots.len() as u32);
            if self.slots.len().is_multiple_of(CHUNK_BLOCKS) {
                let blocks = CHUNK_BLOCKS.min(self.slots_max - self.slots.len());
                self.chunks.push(Vec::with_capacity(blocks * BLOCK_BYTES));
            }
            self.slots.push(Slot { location, used: false });
            self.chunks.last_mut().into_iter().for_each(|chunk| chunk.extend_from_slice(block));
            return;
        }
        let slots = self.slots.len();
        while let Some(slot) = self.slots.get_mut(self.hand % slots)
            && std::mem::take(&mut slot.used)
        {
            self.hand = (self.hand + 1) % slots;
        }
        let victim = self.hand % slots;
        self.hand = (self.hand + 1) % slots;
        let start = victim % CHUNK_BLOCKS * BLOCK_BYTES;
        let chunk = self.chunks.get_mut(victim / CHUNK_BLOCKS);
        let target = chunk.and_then(|chunk| chunk.get_mut(start..start + BLOCK_BYTES));
        if let (Some(slot), Some(target)) = (self.slots.get_mut(victim), target) {
            self.index.remove(&slot.location);
            self.index.insert(location, victim as u32);
            slot.location = location;
            target.copy_from_slice(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u16) -> Location {
        Location::new(7, index).unwrap()
    }

    #[test]
    fn a_block_that_is_used_outlives_those_that_are_not() {
        let mut cache = Cache::new(3 * BLOCK_BYTES);
        for index in 0..3 {
            cache.insert(at(index), &[index as u8; BLOCK_BYTES]);
        }
        assert!(cache.get(at(0)).is_some());
        cache.insert(at(3), &[3; BLOCK_BYTES]);
        assert_eq!(cache.get(at(0)), Some(&[0; BLOCK_BYTES][..]));
        assert_eq!(cache.get(at(1)), None);
        assert_eq!(cache.get(at(3)), Some(&[3; BLOCK_BYTES][..]));
    }

    #[test]
    fn a_cache_takes_no_more_memory_than_it_was_given() {
        let mut cache = Cache::new(4 * BLOCK_BYTES);
        for index in 0..1000 {
            cache.insert(at(index), &[1; BLOCK_BYTES]);
        }
        let bytes: usize = cache.chunks.iter().map(Vec::capacity).sum();
        assert_eq!((bytes, cache.index.len()), (4 * BLOCK_BYTES, 4));
    }
}
