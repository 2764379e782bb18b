//! How much of something is allowed per second.

/// A token bucket: `per_second` on average, `burst` at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    per_second: u32,
    burst: u32,
    /// Billionths of a token, so that no time is lost to rounding.
    nanotokens: u64,
    filled_ns: u64,
}

const NANO: u64 = 1_000_000_000;

impl Bucket {
    pub(crate) fn new(now_ns: u64, per_second: u32, burst: u32) -> Self {
        Self { per_second, burst, nanotokens: u64::from(burst) * NANO, filled_ns: now_ns }
    }

    /// Takes `tokens`, or says no and takes none.
    pub(crate) fn take(&mut self, now_ns: u64, tokens: u32) -> bool {
        let passed_ns = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns = self.filled_ns.max(now_ns);
        let full = u64::from(self.burst) * NANO;
        let gained = passed_ns.saturating_mul(u64::from(self.per_second));
        self.nanotokens = full.min(self.nanotokens.saturating_add(gained));
        let wanted = u64::from(tokens) * NANO;
        let is_enough = self.nanotokens >= wanted;
        if is_enough {
            self.nanotokens -= wanted;
        }
        is_enough
    }

    /// Gives back what was taken and not used.
    pub(crate) fn give_back(&mut self, tokens: u32) {
        let full = u64::from(self.burst) * NANO;
        self.nanotokens = full.min(self.nanotokens + u64::from(tokens) * NANO);
    }

    /// Takes whatever is there.
    pub(crate) fn empty(&mut self) {
        self.nanotokens = 0;
    }

    /// When `tokens` will be there, if nobody takes any before.
    pub(crate) fn ready_ns(&self, tokens: u32) -> u64 {
        let missing = (u64::from(tokens) * NANO).saturating_sub(self.nanotokens);
        self.filled_ns.saturating_add(missing.div_ceil(u64::from(self.per_second.max(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_through_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(0, 10, 5);
        assert_eq!((0..9).filter(|_| bucket.take(0, 1)).count(), 5);
        assert_eq!(bucket.ready_ns(1), NANO / 10);
        assert!(!bucket.take(NANO / 10 - 1, 1));
        assert!(bucket.take(NANO / 10, 1));
        let taken = (0..1000).filter(|i| bucket.take(NANO + i * NANO / 100, 1)).count();
        assert!((99..=110).contains(&taken), "{taken} in ten seconds");
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let mut bucket = Bucket::new(NANO, 1, 1);
        assert!(bucket.take(NANO, 1));
        assert!(!bucket.take(0, 1));
        assert!(!bucket.take(NANO, 1));
        assert!(bucket.take(2 * NANO, 1));
    }
}
