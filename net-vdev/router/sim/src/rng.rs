//! Random numbers from a seed (splitmix64).

/// A generator.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The generator of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `from` to `to`, without `to`; `from` if there is none.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.u64() % to.saturating_sub(from).max(1)
    }

    /// A place in a list of `count`; 0 if it is empty.
    pub fn index(&mut self, count: usize) -> usize {
        self.range(0, count as u64) as usize
    }

    /// True in `parts` of a million.
    pub fn chance_ppm(&mut self, parts: u32) -> bool {
        parts != 0 && self.u64() % 1_000_000 < u64::from(parts)
    }
}
