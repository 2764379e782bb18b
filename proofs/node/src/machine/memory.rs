//! Memory: how much there is, and how much of it is free for a table.

use super::cgroup::Limits;
use super::sources::Sources;

/// The memory of a machine, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that the kernel has.
    pub total: u64,
    /// What new programs could take without swapping.
    pub available: u64,
    /// What the control groups of this process may have.
    pub limit: Option<u64>,
    /// What they may still take.
    pub limit_left: Option<u64>,
}

impl Memory {
    /// Reads what the kernel says.
    #[must_use]
    pub fn read(sources: &Sources, limits: &Limits) -> Self {
        let text = sources.text("proc/meminfo").unwrap_or_default();
        let kib = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            kib.checked_mul(1024)
        };
        Self {
            total: kib("MemTotal").unwrap_or_default(),
            available: kib("MemAvailable").or_else(|| kib("MemFree")).unwrap_or_default(),
            limit: limits.memory,
            limit_left: limits.memory_left,
        }
    }

    /// Bytes that this process could take now.
    #[must_use]
    pub fn usable(&self) -> u64 {
        self.available.min(self.limit_left.unwrap_or(u64::MAX))
    }
}
