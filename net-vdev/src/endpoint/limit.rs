//! A token bucket.

/// Lets `burst` events through at once and one more per `interval_ns`.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    interval_ns: u64,
    burst: u64,
    tokens: u64,
    since_ns: u64,
}

impl Bucket {
    pub(super) fn new(interval_ns: u64, burst: u64) -> Self {
        Self { interval_ns, burst, tokens: burst, since_ns: 0 }
    }

    /// Takes a token if there is one.
    pub(super) fn take(&mut self, now_ns: u64) -> bool {
        let earned = now_ns.saturating_sub(self.since_ns) / self.interval_ns;
        if self.tokens.saturating_add(earned) >= self.burst {
            self.tokens = self.burst;
            self.since_ns = now_ns;
        } else {
            self.tokens += earned;
            self.since_ns += earned * self.interval_ns;
        }
        let has = self.tokens > 0;
        self.tokens -= u64::from(has);
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lets_a_burst_through_and_then_its_rate() {
        let mut bucket = Bucket::new(100, 3);
        let taken = (0..1000).filter(|now| bucket.take(1_000_000 + now)).count();
        assert_eq!(taken, 3 + 9);
        assert!(bucket.take(u64::MAX));
    }
}
