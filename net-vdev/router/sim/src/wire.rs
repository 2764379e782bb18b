//! What connects two nodes.

use crate::rng::Rng;

/// One direction of a wire.
#[derive(Debug, Clone, Copy)]
pub struct Direction {
    /// Whether it carries anything. A cut is silent: nobody is told.
    pub is_cut: bool,
    /// How long a bit travels, in ns.
    pub delay_ns: u64,
    /// Messages lost, of a million.
    pub loss_ppm: u32,
    /// Bytes per second; 0 has no bound.
    pub bytes_per_s: u64,
    /// When the last message in its queue will have left.
    busy_until_ns: u64,
    /// When the last message arrives: they keep their order.
    last_arrival_ns: u64,
}

/// How much a queue holds, as the time to send it.
const QUEUE_NS: u64 = 200_000_000;

impl Direction {
    /// A direction that carries everything after `delay_ns`.
    #[must_use]
    pub fn new(delay_ns: u64) -> Self {
        Self {
            is_cut: false,
            delay_ns,
            loss_ppm: 0,
            bytes_per_s: 0,
            busy_until_ns: 0,
            last_arrival_ns: 0,
        }
    }

    /// When a message of `bytes` sent now arrives, if it does.
    pub fn carry(&mut self, now_ns: u64, bytes: usize, rng: &mut Rng) -> Option<u64> {
        // UDP, IP and the session add 100 bytes.
        let bytes = bytes as u64 + 100;
        let mut left_ns = now_ns;
        if let Some(send_ns) = (bytes * 1_000_000_000).checked_div(self.bytes_per_s) {
            let starts_ns = self.busy_until_ns.max(now_ns);
            if starts_ns > now_ns + QUEUE_NS {
                return None;
            }
            self.busy_until_ns = starts_ns + send_ns;
            left_ns = self.busy_until_ns;
        }
        if self.is_cut || rng.chance_ppm(self.loss_ppm) {
            return None;
        }
        let jitter_ns = rng.range(0, self.delay_ns / 20 + 1);
        self.last_arrival_ns = self.last_arrival_ns.max(left_ns + self.delay_ns + jitter_ns);
        Some(self.last_arrival_ns)
    }
}

/// A wire between two ports.
#[derive(Debug, Clone)]
pub struct Wire {
    /// The nodes at its ends.
    pub ends: [usize; 2],
    /// The number of the port at each end.
    pub ports: [usize; 2],
    /// From end 0 to end 1, and back.
    pub directions: [Direction; 2],
}

impl Wire {
    /// Whether both directions carry something.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.directions.iter().all(|direction| !direction.is_cut)
    }
}
