//! How much of something a peer may cause per second.

const NANO: u64 = 1_000_000_000;

/// A token bucket: `per_second` on average, `burst` at once.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: u32,
    burst: u32,
    /// Billionths of a token, so that no time is lost to rounding.
    nanotokens: u64,
    filled_ns: u64,
}

impl Rate {
    pub(super) fn new(now_ns: u64, per_second: u32, burst: u32) -> Self {
        Self { per_second, burst, nanotokens: u64::from(burst) * NANO, filled_ns: now_ns }
    }

    /// Takes one token if there is one.
    pub(super) fn take(&mut self, now_ns: u64) -> bool {
        let passed_ns = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns = self.filled_ns.max(now_ns);
        let gained = passed_ns.saturating_mul(u64::from(self.per_second));
        let full = u64::from(self.burst) * NANO;
        self.nanotokens = full.min(self.nanotokens.saturating_add(gained));
        let left = self.nanotokens.checked_sub(NANO);
        self.nanotokens = left.unwrap_or(self.nanotokens);
        left.is_some()
    }
}
