//! Where time and randomness are read. Everything below is given them.
#![expect(clippy::disallowed_methods, reason = "this is where time is read")]

use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock: it doesn't step, and deadlines are kept by it.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000) + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Processor time of this thread so far, in nanoseconds.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000) + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Processor time of this process so far, in nanoseconds.
#[must_use]
pub fn process_cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000) + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Seconds since 1970, as the system's clock has it.
#[must_use]
pub fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// 32 bytes that nobody can know; `None` if the kernel gives none.
#[must_use]
pub fn random32() -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

/// A number for drawing places to read; without the kernel's help, the clock's.
#[must_use]
pub fn random_u64() -> u64 {
    let word = random32().and_then(|bytes| bytes.first_chunk::<8>().copied());
    word.map_or_else(monotonic_ns, u64::from_be_bytes)
}
