//! A limit of bytes per second.

const NS_PER_SECOND: u128 = 1_000_000_000;

/// A token bucket. It may be overdrawn by one transfer, whose bytes the next one waits for.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// `None`: no limit.
    bytes_per_second: Option<u64>,
    /// What it holds when full: a tenth of a second's.
    burst: i128,
    /// In byte-nanoseconds per second, so that no fraction is lost.
    level: i128,
    filled_ns: u64,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(bytes_per_second: Option<u64>, now_ns: u64) -> Self {
        let bytes_per_second = bytes_per_second.map(|rate| rate.max(1));
        let burst = i128::from(bytes_per_second.unwrap_or(0)) * NS_PER_SECOND as i128 / 10;
        Self { bytes_per_second, burst, level: burst, filled_ns: now_ns }
    }

    /// Whether something may be transferred now.
    pub(super) fn is_open(&mut self, now_ns: u64) -> bool {
        let Some(rate) = self.bytes_per_second else { return true };
        let elapsed = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns = self.filled_ns.max(now_ns);
        let gained = i128::from(elapsed) * i128::from(rate);
        self.level = (self.level + gained).min(self.burst);
        self.level > 0
    }

    /// `bytes` are transferred.
    pub(super) fn take(&mut self, bytes: u64) {
        if self.bytes_per_second.is_some() {
            self.level -= i128::from(bytes) * NS_PER_SECOND as i128;
        }
    }

    /// When it opens; `None` if it is open.
    pub(super) fn opens_ns(&self) -> Option<u64> {
        let rate = self.bytes_per_second.filter(|_| self.level <= 0)?;
        let wait = self.level.unsigned_abs() / u128::from(rate) + 1;
        Some(self.filled_ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_a_minute_the_limit_is_kept() {
        let (mut bucket, mut now, mut sent) = (Bucket::new(Some(10_000_000), 5), 5, 0);
        while now < 60_000_000_005 {
            while bucket.is_open(now) {
                bucket.take(1 << 20);
                sent += 1 << 20;
            }
            let opens = bucket.opens_ns().unwrap();
            assert!(opens > now);
            now = opens;
            assert!(bucket.clone().is_open(now), "it opens when it said");
        }
        let limit = 60 * 10_000_000;
        assert!((limit..limit + (3 << 20)).contains(&sent), "{sent}");
    }

    #[test]
    fn time_that_goes_back_fills_nothing() {
        let mut bucket = Bucket::new(Some(1000), 1_000_000_000);
        bucket.take(2000);
        assert!(!bucket.is_open(0));
        assert!(!bucket.is_open(1_000_000_000));
        assert!(!bucket.is_open(2_000_000_000));
        assert!(bucket.is_open(3_000_000_000));
    }

    #[test]
    fn without_a_limit_it_is_open() {
        let mut bucket = Bucket::new(None, 0);
        bucket.take(u64::MAX);
        assert!(bucket.is_open(0));
        assert_eq!(bucket.opens_ns(), None);
    }
}
