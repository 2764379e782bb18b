//! Token buckets.

use std::net::IpAddr;

use crate::source::source_of;

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

/// How many buckets sources share.
const SOURCE_BUCKETS: usize = 64;

/// Buckets for sources of any number: each always has the same one of a few, and nobody outside
/// knows who shares it. A source that floods takes one 64th of the others along, and the sum of all
/// buckets bounds the work.
pub(super) struct SourceBuckets {
    key: [u8; 32],
    buckets: Vec<Bucket>,
}

impl SourceBuckets {
    /// `key` is random and secret.
    pub(super) fn new(key: [u8; 32], bucket: Bucket) -> Self {
        Self { key, buckets: vec![bucket; SOURCE_BUCKETS] }
    }

    /// Takes a token of `source` if there is one.
    pub(super) fn take(&mut self, now_ns: u64, source: IpAddr) -> bool {
        let hash = blake3::keyed_hash(&self.key, &source_of(source).to_be_bytes());
        let [first, ..] = *hash.as_bytes();
        let bucket = self.buckets.get_mut(usize::from(first) % SOURCE_BUCKETS);
        bucket.is_some_and(|bucket| bucket.take(now_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_floods_uses_up_its_own_allowance() {
        let mut sources = SourceBuckets::new([7; 32], Bucket::new(100, 3));
        let site = |number: u128| IpAddr::V6((0x2001_0db8 << 96 | number).into());
        let taken = (0..1000).filter(|number| sources.take(0, site(*number))).count();
        assert_eq!(taken, 3, "one /64 is one source");
        let others = (1..=20).filter(|number| sources.take(0, site(number << 64))).count();
        assert!(others >= 18, "{others} of 20 others were let through");
        let all = (0..10_000).filter(|number| sources.take(0, site(number << 64))).count();
        assert_eq!(all, 3 * SOURCE_BUCKETS - taken - others, "all together are bounded");
    }

    #[test]
    fn each_connection_is_a_source_of_its_own() {
        let source = |number| crate::Path::Stream(number).source().ip();
        let mut sources = SourceBuckets::new([7; 32], Bucket::new(100, 3));
        assert_eq!((0..1000).filter(|_| sources.take(0, source(1))).count(), 3);
        let others = (2..=20).filter(|number| sources.take(0, source(*number))).count();
        assert!(others >= 17, "{others} of 19 others were let through");
    }

    #[test]
    fn it_lets_a_burst_through_and_then_its_rate() {
        let mut bucket = Bucket::new(100, 3);
        let taken = (0..1000).filter(|now| bucket.take(1_000_000 + now)).count();
        assert_eq!(taken, 3 + 9);
        assert!(bucket.take(u64::MAX));
    }
}
