//! Random bytes from a seed that is given: logic draws none from the kernel by itself.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A deterministic generator with fast key erasure: each output also replaces the key, so what is
/// in memory later does not tell what was drawn before.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Generator {
    key: [u8; 32],
}

impl Generator {
    /// A generator from fresh random bytes that nothing else is seeded with.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self { key: seed }
    }

    /// Draws bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let mut output = blake3::Hasher::new_keyed(&self.key).finalize_xof();
        output.fill(&mut self.key);
        output.fill(bytes);
    }

    /// A fresh seed for another generator.
    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.fill(&mut seed);
        seed
    }

    /// Draws a number.
    pub fn u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        u32::from_be_bytes(bytes)
    }

    /// Draws a number.
    pub fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_be_bytes(bytes)
    }
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Generator(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_no_draw_repeats() {
        let (mut one, mut two) = (Generator::new([7; 32]), Generator::new([7; 32]));
        let first = one.seed();
        assert_eq!(first, two.seed());
        assert_ne!(first, one.seed());
        assert_ne!(one.key, [7; 32]);
    }
}
