//! What the member has got of what was sent, and how lost segments are sent again.

use super::segment::is_after;

/// How many ranges of a member's are remembered.
const RANGES_MAX: usize = 32;

/// Ranges behind the first missing byte that the member has (RFC 2018), in order and apart.
#[derive(Debug, Default)]
pub(crate) struct Scoreboard {
    ranges: Vec<(u32, u32)>,
}

impl Scoreboard {
    /// Adds a range that lies between `first` and `last`; returns how many bytes of it are news.
    pub(crate) fn add(&mut self, (start, end): (u32, u32), first: u32, last: u32) -> u32 {
        let is_inside = is_after(end, start) && is_after(start, first) && !is_after(end, last);
        if !is_inside {
            return 0;
        }
        let before = self.bytes();
        let (mut start, mut end) = (start, end);
        self.ranges.retain(|(known_start, known_end)| {
            let is_apart = is_after(*known_start, end) || is_after(start, *known_end);
            if !is_apart {
                start = if is_after(start, *known_start) { *known_start } else { start };
                end = if is_after(*known_end, end) { *known_end } else { end };
            }
            is_apart
        });
        let at = self.ranges.partition_point(|(known, _)| is_after(start, *known));
        self.ranges.insert(at, (start, end));
        // Only what a member makes up needs more; the ranges furthest on are forgotten.
        self.ranges.truncate(RANGES_MAX);
        self.bytes().saturating_sub(before)
    }

    /// Forgets what lies before `first`.
    pub(crate) fn advance(&mut self, first: u32) {
        self.ranges.retain(|(_, end)| is_after(*end, first));
        if let Some((start, _)) = self.ranges.first_mut()
            && is_after(first, *start)
        {
            *start = first;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    pub(crate) fn bytes(&self) -> u32 {
        self.ranges.iter().map(|(start, end)| end.wrapping_sub(*start)).sum()
    }

    /// The first gap in front of a range, at `from` or later.
    pub(crate) fn hole(&self, from: u32) -> Option<(u32, u32)> {
        let mut start = from;
        for (known_start, known_end) in &self.ranges {
            if is_after(*known_start, start) {
                return Some((start, *known_start));
            }
            if is_after(*known_end, start) {
                start = *known_end;
            }
        }
        None
    }
}

/// Sending again what the member lacks, at the pace at which the rest arrives (RFC 6937).
#[derive(Debug)]
pub(crate) struct Recovery {
    /// It is over when this is acknowledged.
    pub(crate) point: u32,
    /// What comes before this was sent again already.
    pub(crate) next: u32,
    /// What was on its way when it began, and what of it arrived since.
    flight: u32,
    delivered: u32,
    /// What was sent since.
    sent: u32,
}

impl Recovery {
    pub(crate) fn new(first: u32, point: u32) -> Self {
        Self { point, next: first, flight: point.wrapping_sub(first).max(1), delivered: 0, sent: 0 }
    }

    pub(crate) fn delivered(&mut self, bytes: u32) {
        self.delivered = self.delivered.saturating_add(bytes);
    }

    pub(crate) fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.saturating_add(bytes);
    }

    /// What may be sent now, so that `target` bytes are on their way in the end; the first segment
    /// always may.
    pub(crate) fn allowance(&self, target: u32, mss: u32) -> u32 {
        let earned = u64::from(self.delivered) * u64::from(target) / u64::from(self.flight);
        let earned = u32::try_from(earned).unwrap_or(u32::MAX).max(mss);
        earned.saturating_sub(self.sent)
    }
}

/// The retransmission timeout (RFC 6298).
#[derive(Debug)]
pub(crate) struct RoundTrip {
    smoothed_ns: Option<u64>,
    variation_ns: u64,
}

const TIMEOUT_FIRST_NS: u64 = 1_000_000_000;
const TIMEOUT_MIN_NS: u64 = 200_000_000;
const TIMEOUT_MAX_NS: u64 = 60_000_000_000;

impl RoundTrip {
    pub(crate) fn new() -> Self {
        Self { smoothed_ns: None, variation_ns: 0 }
    }

    pub(crate) fn sample(&mut self, sample_ns: u64) {
        match &mut self.smoothed_ns {
            None => {
                self.smoothed_ns = Some(sample_ns);
                self.variation_ns = sample_ns / 2;
            }
            Some(smoothed_ns) => {
                let off_ns = smoothed_ns.abs_diff(sample_ns);
                self.variation_ns = (3 * self.variation_ns + off_ns) / 4;
                *smoothed_ns = (7 * *smoothed_ns + sample_ns) / 8;
            }
        }
    }

    /// The timeout after so many in a row.
    pub(crate) fn timeout_ns(&self, backoffs: u8) -> u64 {
        let base_ns = self.smoothed_ns.map_or(TIMEOUT_FIRST_NS, |smoothed_ns| {
            (smoothed_ns + 4 * self.variation_ns).max(TIMEOUT_MIN_NS)
        });
        base_ns.saturating_mul(1 << backoffs.min(16)).min(TIMEOUT_MAX_NS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holes_are_what_is_between_ranges() {
        let mut board = Scoreboard::default();
        assert_eq!(board.hole(0), None);
        assert_eq!(board.add((20, 30), 0, 100), 10);
        assert_eq!(board.add((25, 40), 0, 100), 10);
        assert_eq!(board.add((60, 70), 0, 100), 10);
        assert_eq!(board.hole(0), Some((0, 20)));
        assert_eq!(board.hole(15), Some((15, 20)));
        assert_eq!(board.hole(20), Some((40, 60)));
        assert_eq!(board.hole(60), None);
        board.advance(25);
        assert_eq!(board.bytes(), 25);
    }

    #[test]
    fn a_lie_about_what_was_never_sent_is_no_news() {
        let mut board = Scoreboard::default();
        for range in [(10, 200), (0, 5), (50, 50), (60, 50), (200, 300)] {
            assert_eq!(board.add(range, 0, 100), 0, "{range:?}");
        }
    }

    #[test]
    fn the_timeout_follows_the_round_trips_and_doubles() {
        let mut round_trip = RoundTrip::new();
        assert_eq!(round_trip.timeout_ns(0), 1_000_000_000);
        (0..50).for_each(|_| round_trip.sample(300_000_000));
        let timeout_ns = round_trip.timeout_ns(0);
        assert!((300_000_000..320_000_000).contains(&timeout_ns), "{timeout_ns}");
        assert_eq!(round_trip.timeout_ns(2), 4 * timeout_ns);
        assert_eq!(round_trip.timeout_ns(200), 60_000_000_000);
    }

    proptest! {
        #[test]
        fn a_scoreboard_is_a_set_of_bytes(
            first in any::<u32>(),
            ranges in prop::collection::vec((1_u32..200, 0_u32..20), 0..30),
        ) {
            let (mut board, mut known) = (Scoreboard::default(), [false; 220]);
            for (start, len) in ranges {
                let at = |offset: u32| first.wrapping_add(offset);
                let news = board.add((at(start), at(start + len)), first, at(220));
                let mut expected = 0;
                for place in &mut known[start as usize..(start + len) as usize] {
                    expected += u32::from(!std::mem::replace(place, true));
                }
                prop_assert_eq!(news, expected);
            }
        }
    }
}
