//! What each member may take of the host.

use crate::address::Destinations;

/// What one member may have and do, and all together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections of a member.
    pub connections_max: usize,
    /// UDP flows of a member.
    pub udp_flows_max: usize,
    /// ICMP echo flows of a member.
    pub echo_flows_max: usize,
    /// Flows of all members: as many sockets.
    pub flows_max: usize,
    /// Bytes that a member's connections may hold in buffers.
    pub buffer_bytes_per_member: usize,
    /// The same for all members.
    pub buffer_bytes: usize,
    /// New flows of a member per second; ten seconds' worth may come at once.
    pub opens_per_s: u32,
    /// Bytes of a member per second and direction; `None` for no cap.
    pub bytes_per_s: Option<u64>,
    /// Packets of a member per second and direction; `None` for no cap. A super-frame counts as the
    /// packets that it stands for.
    pub packets_per_s: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            udp_flows_max: 256,
            echo_flows_max: 16,
            flows_max: 8192,
            buffer_bytes_per_member: 64 << 20,
            buffer_bytes: 512 << 20,
            opens_per_s: 100,
            bytes_per_s: None,
            packets_per_s: None,
        }
    }
}

/// How the way out is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NatConfig {
    /// Where members may go.
    pub destinations: Destinations,
    /// What they may take.
    pub limits: Limits,
}

/// A token bucket: so much per second, and so much at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    per_s: u64,
    burst: u64,
    tokens: u64,
    filled_ns: u64,
}

const SECOND_NS: u128 = 1_000_000_000;

impl Bucket {
    pub(crate) fn new(now_ns: u64, per_s: u64, burst: u64) -> Self {
        Self { per_s, burst, tokens: burst, filled_ns: now_ns }
    }

    /// Takes so many tokens, if there are.
    pub(crate) fn take(&mut self, now_ns: u64, count: u64) -> bool {
        let passed_ns = u128::from(now_ns.saturating_sub(self.filled_ns));
        let earned = passed_ns * u128::from(self.per_s) / SECOND_NS;
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(self.burst);
            self.filled_ns = now_ns;
        }
        // More at once than ever fits is let through when the bucket is full.
        let wanted = count.min(self.burst);
        let has = self.tokens >= wanted;
        if has {
            self.tokens -= wanted;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_at_its_pace_and_no_further() {
        let mut bucket = Bucket::new(0, 10, 5);
        assert_eq!((0..9).filter(|_| bucket.take(0, 1)).count(), 5);
        assert!(!bucket.take(99_000_000, 1));
        assert!(bucket.take(100_000_000, 1));
        assert_eq!((0..99).filter(|_| bucket.take(90_000_000_000, 1)).count(), 5);
        assert!(bucket.take(180_000_000_000, 1_000_000));
        assert!(!bucket.take(180_000_000_000, 1));
    }
}
