//! A bounded queue that drops from its head when it has stood for too long: CoDel (RFC 8289).
//!
//! A queue is there for bursts. One that doesn't drain within [`INTERVAL_NS`] only adds delay, so as
//! long as it stands longer than [`TARGET_NS`], CoDel drops: once after an interval, then at times
//! that come closer with the square root of the drops so far, until TCP slows down.
//!
//! ```text
//!              stands > target for an interval: drop one
//!   not dropping ───────────────────────────────────────► dropping ─┐ drop at `drop_next_ns`,
//!        ▲                                                   │  ▲   │ then once more after
//!        └────────── stands < target, or is (nearly) empty ──┘  └───┘ interval / √count
//! ```
//!
//! Time is an argument; nothing here reads a clock.

use std::collections::VecDeque;

/// The delay of a standing queue that is accepted (RFC 8289 §4.3 proposes 5 ms for the Internet at
/// large; a guest's queue drains at memory speed, and our own delay is to stay below 1 ms).
pub const TARGET_NS: u64 = 1_000_000;
/// How long a queue may stand before the first drop: the round trip of a slow path (RFC 8289 §4.2).
pub const INTERVAL_NS: u64 = 100_000_000;

/// A queue that holds so much at most: bytes, or items if each counts 1.
#[derive(Debug)]
pub struct Queue<T> {
    items: VecDeque<Item<T>>,
    size: usize,
    size_max: usize,
    /// Up to this a queue is not taken for a standing one: one packet (RFC 8289 §5.3).
    size_small: usize,
    /// When the queue will have stood above the target for an interval; `None` while it doesn't.
    above_until_ns: Option<u64>,
    is_dropping: bool,
    drop_next_ns: u64,
    /// Drops since dropping began.
    count: u64,
    /// What `count` was when it began.
    count_last: u64,
}

#[derive(Debug)]
struct Item<T> {
    entered_ns: u64,
    size: usize,
    value: T,
}

/// What [`Queue::pop`] takes from the queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Popped<T> {
    /// The oldest: it is due.
    Due(T),
    /// The oldest, which is to be dropped; the queue has more to say.
    Dropped(T),
}

impl<T> Queue<T> {
    /// An empty queue for at most `size_max`, whose largest items have `size_small`.
    #[must_use]
    pub fn new(size_max: usize, size_small: usize) -> Self {
        Self {
            items: VecDeque::new(),
            size: 0,
            size_max,
            size_small,
            above_until_ns: None,
            is_dropping: false,
            drop_next_ns: 0,
            count: 0,
            count_last: 0,
        }
    }

    /// The size of all that is in the queue.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether there is nothing in the queue.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Puts an item of `size` behind the others.
    ///
    /// # Errors
    /// Gives the item back if the queue is full.
    pub fn push(&mut self, now_ns: u64, size: usize, value: T) -> Result<(), T> {
        if self.size.saturating_add(size) > self.size_max {
            return Err(value);
        }
        self.size += size;
        self.items.push_back(Item { entered_ns: now_ns, size, value });
        Ok(())
    }

    /// The oldest item, which the next [`Queue::pop`] takes, due or not.
    #[must_use]
    pub fn front(&self) -> Option<&T> {
        self.items.front().map(|item| &item.value)
    }

    /// Takes the oldest item, and says whether it is due or to be dropped. `None` if there is none.
    ///
    /// The caller goes on after a drop until something is due or nothing is left, as RFC 8289 §5.5
    /// does in its loop.
    pub fn pop(&mut self, now_ns: u64) -> Option<Popped<T>> {
        let Some(item) = self.items.pop_front() else {
            self.above_until_ns = None;
            self.is_dropping = false;
            return None;
        };
        self.size -= item.size;
        let stands = self.has_stood(now_ns, now_ns.saturating_sub(item.entered_ns));
        if !stands {
            self.is_dropping = false;
        } else if !self.is_dropping {
            self.begin_dropping(now_ns);
            return Some(Popped::Dropped(item.value));
        } else if now_ns >= self.drop_next_ns {
            self.count += 1;
            self.drop_next_ns += spacing(self.count);
            return Some(Popped::Dropped(item.value));
        }
        Some(Popped::Due(item.value))
    }

    /// Takes all items, for a queue that is given up.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.size = 0;
        self.above_until_ns = None;
        self.is_dropping = false;
        self.items.drain(..).map(|item| item.value)
    }

    /// Whether the queue has stood above the target for an interval, now that an item leaves that
    /// was in it for `sojourn_ns`.
    fn has_stood(&mut self, now_ns: u64, sojourn_ns: u64) -> bool {
        if sojourn_ns < TARGET_NS || self.size <= self.size_small {
            self.above_until_ns = None;
            return false;
        }
        now_ns >= *self.above_until_ns.get_or_insert(now_ns + INTERVAL_NS)
    }

    /// The first drop. If dropping stopped a short while ago it goes on at nearly the rate that it
    /// had, which was about right.
    fn begin_dropping(&mut self, now_ns: u64) {
        self.is_dropping = true;
        let delta = self.count.saturating_sub(self.count_last);
        let is_recent = now_ns.saturating_sub(self.drop_next_ns) < 16 * INTERVAL_NS;
        self.count = if delta > 1 && is_recent { delta } else { 1 };
        self.count_last = self.count;
        self.drop_next_ns = now_ns + spacing(self.count);
    }
}

/// The time from one drop to the next after so many of them (RFC 8289 §3.3).
fn spacing(count: u64) -> u64 {
    // The square root of a number with 20 more binary digits is 10 digits more precise.
    let root = (count.clamp(1, 1 << 40) << 20).isqrt();
    (INTERVAL_NS << 10) / root
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACKET: usize = 1400;
    const MS: u64 = 1_000_000;

    /// Feeds the queue one packet each `in_ns` and takes one each `out_ns`; returns what left, as
    /// the time it spent in the queue, and how many were dropped.
    fn run(queue: &mut Queue<u64>, in_ns: u64, out_ns: u64, until_ns: u64) -> (Vec<u64>, usize) {
        let (mut sojourns, mut drops) = (Vec::new(), 0);
        let (mut enters_ns, mut leaves_ns) = (0, 0);
        while enters_ns.min(leaves_ns) < until_ns {
            if enters_ns <= leaves_ns {
                let _full = queue.push(enters_ns, PACKET, enters_ns);
                enters_ns += in_ns;
                continue;
            }
            while let Some(popped) = queue.pop(leaves_ns) {
                match popped {
                    Popped::Due(entered_ns) => {
                        sojourns.push(leaves_ns - entered_ns);
                        break;
                    }
                    Popped::Dropped(_) => drops += 1,
                }
            }
            leaves_ns += out_ns;
        }
        (sojourns, drops)
    }

    #[test]
    fn a_queue_that_drains_loses_nothing() {
        let mut queue = Queue::new(1 << 20, PACKET);
        let (sojourns, drops) = run(&mut queue, 10_000, 9_000, 1000 * MS);
        assert_eq!(drops, 0);
        assert!(sojourns.len() > 90_000);
    }

    #[test]
    fn a_burst_within_an_interval_loses_nothing() {
        let mut queue = Queue::new(1 << 20, PACKET);
        for number in 0..500 {
            assert_eq!(queue.push(0, PACKET, number), Ok(()));
        }
        // Drained at a steady rate over 90 ms, far above the target but less than an interval.
        for number in 0..500 {
            assert_eq!(queue.pop(90 * MS * number / 500), Some(Popped::Due(number)));
        }
        assert_eq!(queue.pop(91 * MS), None);
    }

    #[test]
    fn a_standing_queue_is_dropped_from_faster_and_faster() {
        let mut queue = Queue::new(usize::MAX, PACKET);
        // 1 % more comes in than goes out.
        let mut drops = Vec::new();
        for second in 1..=4 {
            drops.push(run_from(&mut queue, (second - 1) * 1000 * MS));
        }
        assert!(drops.is_sorted(), "{drops:?}");
        // The first second: at 100 ms, then 100, 70, 58 … ms later.
        assert!((10..40).contains(&drops[0]), "{drops:?}");
    }

    /// One second of a queue with 500 packets that are replaced as they leave, one per 100 us.
    fn run_from(queue: &mut Queue<u64>, start_ns: u64) -> usize {
        let mut drops = 0;
        for step in 0..10_000 {
            let now_ns = start_ns + step * 100_000;
            while queue.size() < 500 * PACKET {
                queue.push(now_ns, PACKET, now_ns).unwrap();
            }
            while let Some(Popped::Dropped(_)) = queue.pop(now_ns) {
                drops += 1;
            }
        }
        drops
    }

    #[test]
    fn dropping_stops_when_the_queue_is_short_again() {
        let mut queue = Queue::new(usize::MAX, PACKET);
        assert!(run_from(&mut queue, 0) > 0);
        let mut now_ns = 1000 * MS;
        while queue.size() > PACKET {
            queue.pop(now_ns);
            now_ns += 10_000;
        }
        for number in 0..1000 {
            now_ns += MS;
            queue.push(now_ns, PACKET, number).unwrap();
            while let Some(popped) = queue.pop(now_ns + 100_000) {
                assert!(matches!(popped, Popped::Due(_)));
            }
        }
    }

    #[test]
    fn a_full_queue_gives_the_item_back() {
        let mut queue = Queue::new(3 * PACKET, PACKET);
        for number in 0..3 {
            assert_eq!(queue.push(0, PACKET, number), Ok(()));
        }
        assert_eq!(queue.push(0, 1, 9), Err(9));
        assert_eq!(queue.drain().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(queue.push(0, 3 * PACKET, 9), Ok(()));
    }

    #[test]
    fn drops_come_closer_with_the_square_root() {
        assert_eq!(spacing(1), INTERVAL_NS);
        assert_eq!(spacing(4), INTERVAL_NS / 2);
        assert_eq!(spacing(100), INTERVAL_NS / 10);
        assert!(spacing(u64::MAX) > 0);
    }

    proptest! {
        #[test]
        fn items_leave_in_order_and_none_is_lost_in_silence(
            steps in prop::collection::vec((any::<bool>(), 0_u64..20 * MS, 1_usize..3000), 0..400),
        ) {
            let mut queue = Queue::new(100_000, PACKET);
            let (mut now_ns, mut next, mut expected, mut bytes) = (0, 0_u64, 0_u64, 0);
            for (pushes, later_ns, size) in steps {
                now_ns += later_ns;
                if pushes {
                    match queue.push(now_ns, size, (next, size)) {
                        Ok(()) => { next += 1; bytes += size; }
                        Err(_) => prop_assert!(bytes + size > 100_000),
                    }
                } else {
                    match queue.pop(now_ns) {
                        Some(Popped::Due((number, size)) | Popped::Dropped((number, size))) => {
                            prop_assert_eq!(number, expected);
                            expected += 1;
                            bytes -= size;
                        }
                        None => prop_assert_eq!(next, expected),
                    }
                }
                prop_assert_eq!(queue.size(), bytes);
            }
        }
    }
}
