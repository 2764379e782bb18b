//! Hash tables whose places a stranger can't predict.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

/// A map from addresses or prefixes.
pub(crate) type AddressMap<K, V> = HashMap<K, V, Seeded>;

/// Builds hashers from a secret of the router. Addresses are hashes of keys, but their owner chooses
/// among keys; without a secret it could choose some that collide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seeded {
    key: [u64; 2],
}

impl Seeded {
    pub(crate) fn new(key: [u64; 2]) -> Self {
        Self { key }
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded { state: self.key[0], key: self.key[1] | 1 }
    }
}

/// Multiplies to 128 bits and folds the halves, once for each eight bytes.
pub(crate) struct Folded {
    state: u64,
    key: u64,
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.key);
        let [low, high] = [product & u128::from(u64::MAX), product >> 64];
        self.state = u64::try_from(low ^ high).unwrap_or_default().rotate_left(23) ^ self.key;
    }

    fn write_u128(&mut self, word: u128) {
        self.write_u64(u64::try_from(word >> 64).unwrap_or_default());
        self.write_u64(u64::try_from(word & u128::from(u64::MAX)).unwrap_or_default());
    }

    fn finish(&self) -> u64 {
        let product = u128::from(self.state) * u128::from(self.key);
        u64::try_from((product ^ (product >> 64)) & u128::from(u64::MAX)).unwrap_or_default()
    }
}

/// A small generator for jitter and incarnations (splitmix64), from the seed that the router was
/// given. Nothing secret is made with it.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Not zero.
    pub(crate) fn incarnation(&mut self) -> u32 {
        u32::try_from(self.u64() >> 32).unwrap_or_default().max(1)
    }

    /// `period_ns`, up to an eighth less or more, so that links do not fall into step.
    pub(crate) fn around(&mut self, period_ns: u64) -> u64 {
        period_ns - period_ns / 8 + self.u64() % (period_ns / 4).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_depend_on_the_secret_and_on_every_bit() {
        let (one, other) = (Seeded::new([1, 2]), Seeded::new([3, 4]));
        assert_ne!(one.hash_one(7u128), other.hash_one(7u128));
        for bit in 0..128 {
            assert_ne!(one.hash_one(7u128), one.hash_one(7u128 ^ (1 << bit)), "bit {bit}");
        }
    }

    #[test]
    fn jitter_stays_within_an_eighth() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            assert!((875..1125).contains(&random.around(1000)));
        }
    }
}
