//! The one place where time is read; everything else is handed it.

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME in nanoseconds: never goes back, and counts while the host sleeps.
pub(crate) fn boot_ns() -> u64 {
    read_ns(ClockId::Boottime)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    read_ns(ClockId::Realtime)
}

fn read_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
