//! Time: the time-stamp counter, scaled by the boot page.

/// Converts ticks of the time-stamp counter to nanoseconds since the guest started.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start_ticks: u64,
    /// Nanoseconds per tick as a 32.32 fixed-point number: a multiplication instead of a division
    /// at every look at the clock, at most half a part in 10^9 off above 1 GHz.
    ns_per_tick: u64,
    wall_clock_start_ns: u64,
}

impl Clock {
    /// A clock that shows 0 at `start_ticks`, when the wall clock showed `wall_clock_start_ns`.
    ///
    /// # Panics
    /// If `tsc_khz` is 0: the VMM broke the boot page's contract.
    #[must_use]
    pub fn new(start_ticks: u64, tsc_khz: u64, wall_clock_start_ns: u64) -> Self {
        assert!(tsc_khz != 0, "the boot page gives no scale for the time-stamp counter");
        let ns_per_tick = (1_000_000 << 32) / tsc_khz;
        Self { start_ticks, ns_per_tick, wall_clock_start_ns }
    }

    /// Nanoseconds between the start and `ticks`; 0 if `ticks` is earlier.
    #[must_use]
    pub fn monotonic_ns(&self, ticks: u64) -> u64 {
        let elapsed = u128::from(ticks.saturating_sub(self.start_ticks));
        u64::try_from((elapsed * u128::from(self.ns_per_tick)) >> 32).unwrap_or(u64::MAX)
    }

    /// Nanoseconds since 1970 (UTC) at `ticks`.
    #[must_use]
    pub fn wall_ns(&self, ticks: u64) -> u64 {
        self.wall_clock_start_ns.saturating_add(self.monotonic_ns(ticks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds_without_overflow() {
        let clock = Clock::new(1_000, 2_000_000, 77);
        assert_eq!(clock.monotonic_ns(1_000), 0);
        assert_eq!(clock.monotonic_ns(3_000), 1_000, "2 GHz: half a nanosecond a tick");
        assert_eq!(clock.monotonic_ns(0), 0, "a counter behind the start");
        assert_eq!(clock.wall_ns(3_000), 1_077);
        let years_10 = 2_000_000_000 * 60 * 60 * 24 * 365 * 10;
        assert_eq!(clock.monotonic_ns(1_000 + years_10), years_10 / 2);
        assert_eq!(Clock::new(0, 1, 0).monotonic_ns(u64::MAX), u64::MAX);
    }
}
