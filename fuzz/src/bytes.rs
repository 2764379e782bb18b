//! Reads numbers off the front of a fuzzer's input.

/// What is left of an input. Past its end every number is 0.
#[derive(Debug)]
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// The next bytes, so many as are left of `count`.
    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next two bytes, little-endian.
    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Calls `act` until nothing is left, at most 64 times: a run of any length finds no more than a
    /// short one.
    pub(crate) fn actions(&mut self, mut act: impl FnMut(&mut Self)) {
        for _ in 0..64 {
            if self.is_empty() {
                break;
            }
            act(self);
        }
    }
}
