//! A token bucket: how much somebody may cost at once, and in a second. Time is an argument.

const SECOND: u64 = 1_000_000_000;

/// What a bucket holds, and how fast it fills again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The most that it holds.
    pub at_once: u64,
    /// What comes back in a second.
    pub per_sec: u64,
}

/// What may still be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    rate: Rate,
    left: u64,
    at_ns: u64,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn full(rate: Rate, now_ns: u64) -> Self {
        Self { rate, left: rate.at_once, at_ns: now_ns }
    }

    /// Takes a cost; false if it was not all there. Then what was there is gone too, so that whoever asks
    /// for too much all the time gets nothing.
    pub fn take(&mut self, cost: u64, now_ns: u64) -> bool {
        let left = self.left(now_ns);
        if left < self.rate.at_once {
            // Parts of a unit are not lost, however often this is asked.
            let part = self.gained(now_ns) % u128::from(SECOND);
            let part_ns = part / u128::from(self.rate.per_sec.max(1));
            let part_ns = u64::try_from(part_ns).unwrap_or(0);
            self.at_ns = self.at_ns.max(now_ns.saturating_sub(part_ns));
        } else {
            self.at_ns = self.at_ns.max(now_ns);
        }
        self.left = left.saturating_sub(cost);
        left >= cost
    }

    /// What has come since, in units of a billionth.
    fn gained(&self, now_ns: u64) -> u128 {
        u128::from(now_ns.saturating_sub(self.at_ns)) * u128::from(self.rate.per_sec)
    }

    /// What there is now.
    #[must_use]
    pub fn left(&self, now_ns: u64) -> u64 {
        let more = self.gained(now_ns) / u128::from(SECOND);
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        self.left.saturating_add(more).min(self.rate.at_once)
    }

    /// Whether nothing was taken lately.
    #[must_use]
    pub fn is_full(&self, now_ns: u64) -> bool {
        self.left(now_ns) >= self.rate.at_once
    }

    /// How long it takes until a cost is there, in nanoseconds; of more than it ever holds, until it is
    /// full.
    #[must_use]
    pub fn wait_ns(&self, cost: u64, now_ns: u64) -> u64 {
        let lacks = u128::from(cost.min(self.rate.at_once).saturating_sub(self.left(now_ns)));
        let wait = (lacks * u128::from(SECOND)).div_ceil(u128::from(self.rate.per_sec.max(1)));
        u64::try_from(wait).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { at_once: 100, per_sec: 10 };

    #[test]
    fn what_was_taken_comes_back_with_time_and_no_more_than_it_holds() {
        let mut bucket = Bucket::full(RATE, 5 * SECOND);
        assert!(bucket.take(100, 5 * SECOND) && !bucket.is_full(5 * SECOND));
        assert_eq!(bucket.wait_ns(10, 5 * SECOND), SECOND);
        assert!(!bucket.take(10, 6 * SECOND - 1));
        // What was there is gone.
        assert_eq!(bucket.left(6 * SECOND - 1), 0);
        assert!(bucket.take(10, 7 * SECOND));
        assert_eq!(bucket.left(1000 * SECOND), 100);
        assert!(bucket.is_full(1000 * SECOND));
        // A clock that goes back fills nothing, and no time overflows.
        assert!(bucket.take(100, 1000 * SECOND));
        assert_eq!((bucket.left(3), bucket.left(u64::MAX)), (0, 100));
        assert_eq!(bucket.wait_ns(u64::MAX, 1000 * SECOND), 10 * SECOND);
    }

    #[test]
    fn whoever_asks_often_gets_as_much_as_who_asks_seldom() {
        let mut bucket = Bucket::full(RATE, 0);
        assert!(bucket.take(100, 0));
        // Of each seventh of a second, seventy units in seven seconds.
        let got = (1..=49).filter(|step| bucket.take(1, step * SECOND / 7)).count();
        assert!((48..=49).contains(&got), "{got}");
        let mut bucket = Bucket::full(RATE, 0);
        assert!(bucket.take(100, 0));
        // Twenty a second are twice what comes: half of them.
        let got = (1..=200).filter(|step| bucket.take(1, step * SECOND / 20)).count();
        assert!((99..=100).contains(&got), "{got}");
    }
}
