//! How much passes in one direction: a token bucket for packets and one for bytes.

use std::num::NonZeroU64;

use super::rules::Caps;

const SECOND_NS: u128 = 1_000_000_000;
/// What may pass at once: an eighth of a second's worth, but at least so much, so that a super-frame
/// of 64 KiB and its neighbours are not torn apart.
const BURST_PARTS: u64 = 8;
const BURST_PACKETS_MIN: u64 = 128;
const BURST_BYTES_MIN: u64 = 128 << 10;

/// Both allowances of a direction.
pub(super) struct Meter {
    packets: Option<Allowance>,
    bytes: Option<Allowance>,
}

impl Meter {
    pub(super) fn new(caps: Caps) -> Self {
        let allowance = |rate: Option<NonZeroU64>, least: u64| {
            rate.map(|rate| Allowance::new(rate, (rate.get() / BURST_PARTS).max(least)))
        };
        Self {
            packets: allowance(caps.packets_per_s, BURST_PACKETS_MIN),
            bytes: allowance(caps.bytes_per_s, BURST_BYTES_MIN),
        }
    }

    /// Takes room for so many packets of so many bytes together, from both allowances or from
    /// neither. What is more than may ever pass at once is taken for as much.
    pub(super) fn take(&mut self, now_ns: u64, packets: usize, bytes: usize) -> bool {
        let wanted = [(self.packets.as_mut(), packets), (self.bytes.as_mut(), bytes)];
        let mut costs = wanted.map(|(allowance, amount)| {
            allowance.map(|it| {
                it.earn(now_ns);
                let cost = (amount as u128 * SECOND_NS).min(it.credit_max);
                (it, cost)
            })
        });
        let fits = costs.iter().flatten().all(|(allowance, cost)| allowance.credit >= *cost);
        if fits {
            costs.iter_mut().flatten().for_each(|(allowance, cost)| allowance.credit -= *cost);
        }
        fits
    }
}

/// A token bucket. Credit is counted in billionths of a unit, so that no time is lost to rounding.
struct Allowance {
    rate: u128,
    credit: u128,
    credit_max: u128,
    since_ns: u64,
}

impl Allowance {
    fn new(rate: NonZeroU64, burst: u64) -> Self {
        let credit_max = u128::from(burst) * SECOND_NS;
        Self { rate: rate.get().into(), credit: credit_max, credit_max, since_ns: 0 }
    }

    /// Adds what was earned since the last time.
    fn earn(&mut self, now_ns: u64) {
        let elapsed_ns = u128::from(now_ns.saturating_sub(self.since_ns));
        self.since_ns = self.since_ns.max(now_ns);
        self.credit = (self.credit + elapsed_ns * self.rate).min(self.credit_max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caps(packets: u64, bytes: u64) -> Caps {
        Caps { packets_per_s: NonZeroU64::new(packets), bytes_per_s: NonZeroU64::new(bytes) }
    }

    #[test]
    fn without_a_cap_everything_passes() {
        let mut meter = Meter::new(Caps::default());
        assert!((0..100_000).all(|_| meter.take(0, 1, 1400)));
    }

    #[test]
    fn a_packet_that_one_cap_refuses_costs_nothing_of_the_other() {
        let mut meter = Meter::new(caps(1000, 1 << 20));
        // The bytes of the burst are used up, and then one more packet is asked for many times.
        assert!(meter.take(0, 1, 128 << 10));
        assert!((0..1000).all(|_| !meter.take(0, 1, 1400)));
        // 127 packets of the burst are left for those that are small enough.
        assert_eq!((0..1000).filter(|_| meter.take(0, 1, 0)).count(), 127);
    }

    #[test]
    fn a_frame_counts_as_its_packets_and_one_that_is_too_large_waits_for_a_full_bucket() {
        let mut meter = Meter::new(caps(1000, 1 << 40));
        assert!(meter.take(0, 100, 64 << 10) && !meter.take(0, 29, 1) && meter.take(0, 28, 1));
        assert!(!meter.take(100_000_000, 1000, 1));
        assert!(meter.take(128_000_000, 1000, 1) && !meter.take(128_000_000, 1, 1));
    }

    #[test]
    fn time_that_goes_back_gives_nothing() {
        let mut meter = Meter::new(caps(1000, 1 << 40));
        assert_eq!((0..1000).filter(|_| meter.take(5_000_000_000, 1, 1)).count(), 128);
        assert!(!meter.take(4_000_000_000, 1, 1) && !meter.take(5_000_000_000, 1, 1));
        assert!(meter.take(5_001_000_000, 1, 1) && !meter.take(5_001_000_000, 1, 1));
        assert!(meter.take(u64::MAX, 1, 1));
    }

    proptest! {
        #[test]
        fn in_any_time_no_more_than_the_burst_and_the_rate_passes(
            steps in prop::collection::vec((0u64..20_000_000, 20usize..1400), 1..400),
            packets in 1u64..5000, bytes in 1u64..10_000_000,
        ) {
            let mut meter = Meter::new(caps(packets, bytes));
            let (mut now_ns, mut passed, mut sum) = (0u64, 0u128, 0u128);
            for (pause_ns, length) in steps {
                now_ns += pause_ns;
                if meter.take(now_ns, 1, length) {
                    passed += 1;
                    sum += length as u128;
                }
                let limit = |rate: u64, least: u64| {
                    let burst = (rate / BURST_PARTS).max(least);
                    u128::from(burst) + u128::from(rate) * u128::from(now_ns) / SECOND_NS
                };
                prop_assert!(passed <= limit(packets, BURST_PACKETS_MIN));
                prop_assert!(sum <= limit(bytes, BURST_BYTES_MIN));
            }
        }
    }
}
