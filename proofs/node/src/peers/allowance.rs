//! What one node may send, over all of its connections: bytes are read no faster than that, messages
//! beyond it are dropped, and who goes on all the same, or breaks the framing, is cut off for a while.
//!
//! Dropped is better than late: what matters is said again each half second, and would otherwise wait
//! behind what does not. An honest node drops at most what comparing two large pools takes at once.

use hypha_proofs::network::bucket::{Bucket, Rate};

/// Bytes, each message counted with [`MESSAGE_COST`] more: a burst of a measurement, and what else there is.
const BYTES: Rate = Rate { at_once: 32 << 20, per_sec: 8 << 20 };
const MESSAGE_COST: u64 = 4 << 10;
/// Messages. Comparing two pools of millions of statements takes four thousand, each ten seconds.
const MESSAGES: Rate = Rate { at_once: 1024, per_sec: 256 };
/// Messages that may be dropped before the node is cut off.
const DROPS: Rate = Rate { at_once: 8192, per_sec: 512 };
/// For how long it is cut off, in nanoseconds.
const CUT_NS: u64 = 600_000_000_000;

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is taken, after so many nanoseconds.
    Take(u64),
    /// It is dropped, and the next is read after so many nanoseconds.
    Drop(u64),
    /// The connection ends.
    Cut,
}

/// What a node may still send.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    bytes: Bucket,
    messages: Bucket,
    drops: Bucket,
    cut_until_ns: u64,
}

impl Allowance {
    pub(super) fn new(now_ns: u64) -> Self {
        let full = |rate| Bucket::full(rate, now_ns);
        Self { bytes: full(BYTES), messages: full(MESSAGES), drops: full(DROPS), cut_until_ns: 0 }
    }

    /// A message has come.
    pub(super) fn on_message(&mut self, bytes_len: usize, now_ns: u64) -> Fate {
        let cost = bytes_len as u64 + MESSAGE_COST;
        let wait_ns = self.bytes.wait_ns(cost, now_ns);
        self.bytes.take(cost, now_ns.saturating_add(wait_ns));
        if self.messages.take(1, now_ns) {
            return Fate::Take(wait_ns);
        }
        if self.drops.take(1, now_ns) {
            return Fate::Drop(wait_ns);
        }
        self.cut(now_ns);
        Fate::Cut
    }

    /// It has sent what no node sends.
    pub(super) fn cut(&mut self, now_ns: u64) {
        self.cut_until_ns = now_ns.saturating_add(CUT_NS);
    }

    /// Whether it has no connection.
    pub(super) fn is_cut(&self, now_ns: u64) -> bool {
        now_ns < self.cut_until_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Sends so many messages a second for so many seconds; how many are taken and dropped, and when it
    /// is cut off.
    fn send(per_sec: u64, secs: u64) -> (u64, u64, Option<u64>) {
        let mut it = Allowance::new(SECOND);
        let (mut taken, mut dropped) = (0, 0);
        for number in 0..per_sec * secs {
            let now_ns = SECOND + number * SECOND / per_sec;
            match it.on_message(200, now_ns) {
                Fate::Take(_) => taken += 1,
                Fate::Drop(_) => dropped += 1,
                Fate::Cut => return (taken, dropped, Some(number / per_sec)),
            }
        }
        (taken, dropped, None)
    }

    #[test]
    fn a_flood_is_thinned_out_and_then_ends() {
        assert_eq!(send(250, 100), (25_000, 0, None));
        let (taken, dropped, cut) = send(2000, 100);
        let (few, many) = ((2500..4000).contains(&taken), (8192..14_000).contains(&dropped));
        assert!(few && many, "{taken} are taken and {dropped} dropped");
        assert!(cut.is_some_and(|secs| (4..10).contains(&secs)), "{cut:?}");
    }

    #[test]
    fn what_comparing_large_pools_takes_cuts_nobody_off() {
        let mut it = Allowance::new(0);
        for round in 0..1000 {
            for _ in 0..4096 {
                assert_ne!(it.on_message(1024, round * 10 * SECOND), Fate::Cut, "round {round}");
            }
        }
    }

    #[test]
    fn large_messages_are_read_more_slowly_and_not_dropped() {
        let mut it = Allowance::new(0);
        let mut now_ns = 0;
        for _ in 0..320 {
            let Fate::Take(wait_ns) = it.on_message(1 << 20, now_ns) else { panic!("{now_ns}") };
            now_ns += wait_ns;
        }
        // 288 MiB beyond what may come at once, at 8 MiB a second.
        assert!((36 * SECOND..37 * SECOND + SECOND / 2).contains(&now_ns), "{now_ns}");
    }

    #[test]
    fn who_is_cut_off_is_let_in_again_later() {
        let mut it = Allowance::new(0);
        assert!(!it.is_cut(0));
        it.cut(SECOND);
        assert!(it.is_cut(SECOND + CUT_NS - 1) && !it.is_cut(SECOND + CUT_NS));
    }
}
