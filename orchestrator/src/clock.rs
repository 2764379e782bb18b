//! The one place where time is read; everything else is handed it.

use std::time::{Instant, SystemTime};

/// CLOCK_MONOTONIC, counted from the clock's making.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    begin: Instant,
}

impl Clock {
    /// A clock that starts at 0 now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the edge where time is read")]
    pub fn start() -> Self {
        Self { begin: Instant::now() }
    }

    /// Nanoseconds since the clock was made.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// CLOCK_REALTIME in nanoseconds since 1970.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the edge where time is read")]
pub fn unix_time_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// CLOCK_BOOTTIME in nanoseconds: never goes back, and counts while the host sleeps, as leases need
/// it.
#[must_use]
pub fn boot_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
