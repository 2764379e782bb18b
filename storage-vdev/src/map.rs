//! Where each stripe lies, and which slots are free.
//!
//! The map is not stored: it is read from the slot headers at open (newest committed version of a
//! stripe wins), and checked against the count and the keyed sum that the superblock holds. So a
//! header that vanished, or an old one that came back, on more stores than may be lost is seen.
//!
//! A version is named by its opening and its sequence number, never by the number alone.

use std::collections::BTreeMap;

use crate::geometry::Geometry;
use crate::keys::{KeyRing, MapKey};

/// Where the newest version of a stripe lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) sequence: u64,
    pub(crate) slot: u32,
    /// The number of its keys in the key ring.
    pub(crate) keys: u32,
    /// The shards that hold a unit of it, as far as is known.
    pub(crate) present: u32,
    /// The stripe was discarded: no ciphertext.
    pub(crate) zero: bool,
}

/// All stripes that were ever written, and the free slots.
#[derive(Debug)]
pub(crate) struct StripeMap {
    key: MapKey,
    stripes: BTreeMap<u64, Mapping>,
    /// Stripes with blocks whose content is lost for good.
    lost: BTreeMap<u64, u128>,
    sum: u128,
    free: FreeSlots,
}

impl StripeMap {
    pub(crate) fn new(key: MapKey, geometry: &Geometry) -> Self {
        let free = FreeSlots::new(geometry.slots());
        Self { key, stripes: BTreeMap::new(), lost: BTreeMap::new(), sum: 0, free }
    }

    pub(crate) fn get(&self, stripe: u64) -> Option<Mapping> {
        self.stripes.get(&stripe).copied()
    }

    /// The blocks of the stripe whose content is lost.
    pub(crate) fn lost(&self, stripe: u64) -> u128 {
        self.lost.get(&stripe).copied().unwrap_or(0)
    }

    /// How many stripes have blocks whose content is lost.
    pub(crate) fn lost_stripes(&self) -> u64 {
        self.lost.len() as u64
    }

    /// Maps a stripe to a newer version, whose slot is taken; returns the older one, whose slot
    /// stays taken until [`StripeMap::release`]. `keys` is the ring that mappings refer to.
    pub(crate) fn set(
        &mut self,
        stripe: u64,
        mapping: Mapping,
        lost: u128,
        keys: &KeyRing,
    ) -> Option<Mapping> {
        self.free.take_exactly(mapping.slot);
        self.sum = self.sum.wrapping_add(self.term(stripe, &mapping, keys));
        if lost == 0 {
            self.lost.remove(&stripe);
        } else {
            self.lost.insert(stripe, lost);
        }
        let old = self.stripes.insert(stripe, mapping);
        if let Some(old) = old {
            self.sum = self.sum.wrapping_sub(self.term(stripe, &old, keys));
        }
        old
    }

    /// What a version of a stripe adds to the sum.
    pub(crate) fn term(&self, stripe: u64, mapping: &Mapping, keys: &KeyRing) -> u128 {
        let Some(epoch) = keys.get(mapping.keys) else {
            unreachable!("a mapping is made with keys of the ring, which forgets none");
        };
        self.key.term(stripe, mapping.sequence, epoch.opening)
    }

    /// Remembers which shards hold a unit of the stripe.
    pub(crate) fn set_present(&mut self, stripe: u64, present: u32) {
        if let Some(mapping) = self.stripes.get_mut(&stripe) {
            mapping.present = present;
        }
    }

    /// How many stripes are mapped.
    pub(crate) fn mapped(&self) -> u64 {
        self.stripes.len() as u64
    }

    /// The sum over all stripes of a keyed hash of (stripe, sequence, opening).
    pub(crate) fn sum(&self) -> u128 {
        self.sum
    }

    /// The mapped stripes from `first` to `last` (inclusive).
    pub(crate) fn range(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, Mapping)> {
        self.stripes.range(first..=last).map(|(stripe, mapping)| (*stripe, *mapping))
    }

    /// Takes a free slot, the lowest one so that files stay compact.
    pub(crate) fn take_slot(&mut self) -> Option<u32> {
        self.free.take()
    }

    /// Gives a slot back that no durable version uses any more.
    pub(crate) fn release(&mut self, slot: u32) {
        self.free.release(slot);
    }
}

/// A bit for each slot: set if it is free.
#[derive(Debug)]
struct FreeSlots {
    words: Vec<u64>,
    /// No word before this one has a bit set.
    first: usize,
}

impl FreeSlots {
    fn new(slots: u32) -> Self {
        let mut words = vec![u64::MAX; slots.div_ceil(64) as usize];
        if let Some(last) = words.last_mut()
            && !slots.is_multiple_of(64)
        {
            *last = (1 << (slots % 64)) - 1;
        }
        Self { words, first: 0 }
    }

    fn take(&mut self) -> Option<u32> {
        while let Some(word) = self.words.get_mut(self.first) {
            if *word != 0 {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                return Some(self.first as u32 * 64 + bit);
            }
            self.first += 1;
        }
        None
    }

    fn take_exactly(&mut self, slot: u32) {
        if let Some(word) = self.words.get_mut((slot / 64) as usize) {
            *word &= !(1 << (slot % 64));
        }
    }

    fn release(&mut self, slot: u32) {
        if let Some(word) = self.words.get_mut((slot / 64) as usize) {
            *word |= 1 << (slot % 64);
            self.first = self.first.min((slot / 64) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Opening, VolumeKey};

    fn mapping(sequence: u64, slot: u32) -> Mapping {
        Mapping { sequence, slot, keys: 0, present: 1, zero: false }
    }

    #[test]
    fn the_sum_depends_on_the_newest_versions_and_on_who_wrote_them() {
        let mut keys = KeyRing::new(&VolumeKey::new(&[1; 32]), [2; 16]);
        for salt in [3, 4] {
            keys.add(Opening { epoch: 1, salt: [salt; 32] });
        }
        let geometry = Geometry::new(2, 1, 1 << 20).unwrap();
        let mut one = StripeMap::new(keys.map_key(), &geometry);
        one.set(3, mapping(1, 0), 0, &keys);
        one.set(4, mapping(2, 1), 0, &keys);
        one.set(3, mapping(3, 2), 0, &keys);
        let mut other = StripeMap::new(keys.map_key(), &geometry);
        other.set(4, mapping(2, 1), 0, &keys);
        other.set(3, mapping(3, 2), 0, &keys);
        assert_eq!(one.sum(), other.sum());
        other.set(3, Mapping { keys: 1, ..mapping(3, 2) }, 0, &keys);
        assert_ne!(one.sum(), other.sum());
        other.set(3, mapping(4, 5), 0, &keys);
        assert_ne!(one.sum(), other.sum());
    }

    #[test]
    fn each_slot_is_taken_once_until_it_is_released() {
        for slots in [1, 63, 64, 65, 200] {
            let mut free = FreeSlots::new(slots);
            let taken: Vec<u32> = std::iter::from_fn(|| free.take()).collect();
            assert_eq!(taken, (0..slots).collect::<Vec<_>>());
            free.release(slots - 1);
            free.release(0);
            assert_eq!(free.take(), Some(0));
            assert_eq!(free.take(), Some(slots - 1).filter(|slot| *slot != 0));
        }
    }
}
