//! The half of a connection that sends to the member what the host's socket received.

use super::recovery::{Recovery, RoundTrip, Scoreboard};
use super::ring::Ring;
use super::segment::{Segment, is_after};

/// What is read ahead from the host's socket at first, and at most if the budget allows.
pub(crate) const BUFFER_BYTES_MIN: usize = 64 * 1024;
pub(crate) const BUFFER_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The most of one super-frame: as many segments as a batch of datagrams holds.
const SEGMENTS_MAX: u32 = 44;
const PAYLOAD_BYTES_MAX: u32 = 65_000;
/// What a member that says less, or nothing, is sent all the same (RFC 9293 §3.7.1 has 1,220 for
/// IPv6, and 536 for IPv4).
const MSS_MIN: u16 = 536;
/// Initial window (RFC 6928), and what is left after a timeout, in segments.
const INITIAL_SEGMENTS: u32 = 10;
/// How many timeouts in a row end a connection: some two minutes and a half.
const BACKOFFS_MAX: u8 = 9;

/// What is to be sent next: a part of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) sequence: u32,
    /// Where it is in the buffer.
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) fin: bool,
    pub(crate) push: bool,
}

/// Nobody acknowledges anything any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GaveUp;

/// NewReno with selective acknowledgements (RFC 5681, 6582, 6675, 6937).
///
/// `una <= next <= high`; the buffer starts at `una`.
#[derive(Debug)]
pub(crate) struct Sender {
    buffer: Ring,
    una: u32,
    next: u32,
    /// Behind the last byte ever sent.
    high: u32,
    mss: u32,
    /// What the member takes, and the most it ever took.
    window: u32,
    window_max: u32,
    shift: u8,
    may_sack: bool,
    congestion_window: u32,
    threshold: u32,
    duplicates: u8,
    scoreboard: Scoreboard,
    recovery: Option<Recovery>,
    /// A fast retransmission makes no sense before this is acknowledged (RFC 6582 §4).
    recovered: u32,
    round_trip: RoundTrip,
    timed: Option<(u32, u64)>,
    timer_ns: Option<u64>,
    backoffs: u8,
    /// The byte on its way is a probe of a closed window.
    is_probing: bool,
    probe_due: bool,
    /// No bytes follow those in the buffer.
    ends: bool,
    is_end_acknowledged: bool,
}

impl Sender {
    /// For a stream whose SYN has the number `initial`; nothing is sent before [`Sender::open`].
    pub(crate) fn new(initial: u32) -> Self {
        let first = initial.wrapping_add(1);
        Self {
            buffer: Ring::with_capacity(BUFFER_BYTES_MIN),
            una: first,
            next: first,
            high: first,
            mss: u32::from(MSS_MIN),
            window: 0,
            window_max: 0,
            shift: 0,
            may_sack: false,
            congestion_window: 0,
            threshold: u32::MAX,
            duplicates: 0,
            scoreboard: Scoreboard::default(),
            recovery: None,
            recovered: first,
            round_trip: RoundTrip::new(),
            timed: None,
            timer_ns: None,
            backoffs: 0,
            is_probing: false,
            probe_due: false,
            ends: false,
            is_end_acknowledged: false,
        }
    }

    /// Goes by what the member's SYN says; `mss_max` is what the way carries. Returns whether
    /// windows are scaled.
    pub(crate) fn open(&mut self, syn: &Segment<'_>, mss_max: u16) -> bool {
        let mss = syn.options.mss.unwrap_or(MSS_MIN).clamp(MSS_MIN, mss_max.max(MSS_MIN));
        self.mss = u32::from(mss);
        self.shift = syn.options.window_shift.unwrap_or(0);
        self.may_sack = syn.options.may_sack;
        self.window = u32::from(syn.window);
        self.window_max = self.window;
        self.congestion_window = INITIAL_SEGMENTS * self.mss;
        syn.options.window_shift.is_some()
    }

    pub(crate) fn mss(&self) -> u16 {
        u16::try_from(self.mss).unwrap_or(u16::MAX)
    }

    pub(crate) fn may_sack(&self) -> bool {
        self.may_sack
    }

    /// The number of the next new byte.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    pub(crate) fn buffer(&self) -> &Ring {
        &self.buffer
    }

    /// Room for bytes of the host's socket, in front of [`Sender::filled`].
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.ends { &mut [] } else { self.buffer.spare() }
    }

    pub(crate) fn filled(&mut self, len: usize) {
        self.buffer.commit(len);
    }

    /// The host's socket has no more.
    pub(crate) fn end(&mut self) {
        self.ends = true;
    }

    pub(crate) fn ends(&self) -> bool {
        self.ends
    }

    /// Whether the member has got all of it, its end included.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_end_acknowledged
    }

    /// What a larger buffer takes of the budget, if one would help: it is full of bytes that the
    /// member's window and the network's would take.
    pub(crate) fn growth_bytes(&self) -> usize {
        let capacity = self.buffer.capacity();
        let is_full = self.buffer.len() == capacity;
        let limit = self.congestion_window.min(self.window) as usize;
        if is_full && limit > capacity && capacity < BUFFER_BYTES_MAX { capacity } else { 0 }
    }

    pub(crate) fn grow(&mut self) {
        self.buffer.grow((2 * self.buffer.capacity()).min(BUFFER_BYTES_MAX));
    }

    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    pub(crate) fn timer_ns(&self) -> Option<u64> {
        self.timer_ns
    }

    /// Whether an acknowledgement is about something that was sent.
    pub(crate) fn is_credible(&self, acknowledgement: u32) -> bool {
        !is_after(acknowledgement, self.high)
    }

    /// Takes what a segment of the member's acknowledges.
    pub(crate) fn acknowledged(&mut self, now_ns: u64, segment: &Segment<'_>) {
        let ack = segment.acknowledgement;
        if is_after(self.una, ack) || !self.is_credible(ack) {
            return;
        }
        let window = u32::from(segment.window) << self.shift;
        let is_update = window != self.window;
        self.window = window;
        self.window_max = self.window_max.max(window);
        let mut news = 0;
        if self.may_sack {
            self.scoreboard.advance(ack);
            let (first, last) = (ack, self.high);
            let ranges = segment.options.sacks.iter().flatten();
            news = ranges.map(|range| self.scoreboard.add(*range, first, last)).sum();
        }
        if is_after(ack, self.una) {
            self.advance(now_ns, ack, news);
        } else if self.una != self.high && !self.is_probing {
            let is_plain = segment.len() == 0 && !is_update;
            if news > 0 || is_plain {
                self.duplicate(news);
            }
        }
        if self.is_probing && window == 0 {
            // Closed, but there: it is asked on and on, as seldom as ever.
            self.backoffs = self.backoffs.min(BACKOFFS_MAX - 2);
        }
        if self.is_probing && window > 0 {
            // The byte of the probe is sent again, with what follows.
            self.next = self.una;
            self.is_probing = false;
            self.backoffs = 0;
            self.timer_ns = None;
        }
    }

    /// Everything before `ack` has arrived.
    fn advance(&mut self, now_ns: u64, ack: u32, news: u32) {
        let acknowledged = ack.wrapping_sub(self.una);
        let flight = self.next.wrapping_sub(self.una);
        let was_full = flight.saturating_add(self.mss) >= self.congestion_window;
        let data = self.buffer.len().min(acknowledged as usize);
        self.is_end_acknowledged |= self.ends && (acknowledged as usize) > data;
        self.buffer.discard(data);
        self.una = ack;
        if is_after(ack, self.next) {
            self.next = ack;
        }
        self.backoffs = 0;
        self.duplicates = 0;
        self.is_probing = false;
        if let Some((sequence, sent_ns)) = self.timed
            && !is_after(sequence, ack)
        {
            self.round_trip.sample(now_ns.saturating_sub(sent_ns));
            self.timed = None;
        }
        match &mut self.recovery {
            Some(recovery) if is_after(recovery.point, ack) => {
                recovery.delivered(acknowledged.saturating_add(news));
                // Without selective acknowledgements, the next segment is the next that is lost.
                if !self.may_sack || is_after(ack, recovery.next) {
                    recovery.next = ack;
                }
            }
            Some(_) => {
                self.congestion_window = self.threshold;
                self.recovered = ack;
                self.recovery = None;
            }
            None if was_full => self.open_congestion_window(acknowledged),
            None => {}
        }
        self.timer_ns =
            (self.una != self.high).then(|| now_ns + self.round_trip.timeout_ns(self.backoffs));
    }

    fn open_congestion_window(&mut self, acknowledged: u32) {
        let most = 4 * BUFFER_BYTES_MAX as u32;
        let growth = if self.congestion_window < self.threshold {
            acknowledged
        } else {
            let share = u64::from(acknowledged) * u64::from(self.mss);
            let share = share / u64::from(self.congestion_window.max(1));
            u32::try_from(share).unwrap_or(self.mss).max(1)
        };
        self.congestion_window = self.congestion_window.saturating_add(growth).min(most);
    }

    /// Something arrived behind a gap.
    fn duplicate(&mut self, news: u32) {
        self.duplicates = self.duplicates.saturating_add(1);
        if let Some(recovery) = &mut self.recovery {
            recovery.delivered(if self.may_sack { news } else { self.mss });
            return;
        }
        let is_lost = self.duplicates >= 3 || self.scoreboard.bytes() > 3 * self.mss;
        if is_lost && !is_after(self.recovered, self.una) {
            let flight = self.high.wrapping_sub(self.una);
            self.threshold = (flight / 2).max(2 * self.mss);
            self.congestion_window = self.threshold;
            let mut recovery = Recovery::new(self.una, self.high);
            recovery.delivered(self.scoreboard.bytes());
            self.recovery = Some(recovery);
            // What is sent again tells nothing about the round trip (RFC 6298 §3).
            self.timed = None;
        }
    }

    /// The timer went off.
    pub(crate) fn timed_out(&mut self, now_ns: u64) -> Result<(), GaveUp> {
        if self.backoffs >= BACKOFFS_MAX {
            return Err(GaveUp);
        }
        self.backoffs += 1;
        self.timer_ns = Some(now_ns + self.round_trip.timeout_ns(self.backoffs));
        self.timed = None;
        if self.window == 0 || self.una == self.high || self.is_probing {
            self.next = self.una;
            self.probe_due = true;
            return Ok(());
        }
        let flight = self.high.wrapping_sub(self.una);
        if self.backoffs == 1 {
            self.threshold = (flight / 2).max(2 * self.mss);
        }
        self.congestion_window = self.mss;
        self.recovered = self.high;
        self.recovery = None;
        self.scoreboard.clear();
        self.duplicates = 0;
        self.next = self.una;
        Ok(())
    }

    /// What is to be sent now, one piece after the other, until there is none.
    pub(crate) fn piece(&mut self, now_ns: u64) -> Option<Piece> {
        let piece = self.again().or_else(|| self.forward(now_ns))?;
        if self.timer_ns.is_none() {
            self.timer_ns = Some(now_ns + self.round_trip.timeout_ns(self.backoffs));
        }
        Some(piece)
    }

    /// A segment that the member lacks.
    fn again(&mut self) -> Option<Piece> {
        let (target, mss) = (self.threshold, self.mss);
        let recovery = self.recovery.as_mut()?;
        if recovery.allowance(target, mss) == 0 {
            return None;
        }
        let from = if is_after(self.una, recovery.next) { self.una } else { recovery.next };
        let hole = if self.may_sack {
            self.scoreboard.hole(from)
        } else {
            (from == self.una).then(|| (from, from.wrapping_add(mss)))
        };
        let (start, end) = hole.filter(|(start, _)| is_after(recovery.point, *start))?;
        let len = end.wrapping_sub(start).min(mss);
        recovery.next = start.wrapping_add(len);
        recovery.sent(len);
        Some(self.part(start, len))
    }

    /// The next bytes that were not sent yet, or are after a timeout.
    fn forward(&mut self, now_ns: u64) -> Option<Piece> {
        let end = self.una.wrapping_add(u32::try_from(self.buffer.len()).unwrap_or(u32::MAX));
        let is_end_due = self.ends && !self.is_end_acknowledged && !is_after(self.next, end);
        let available = if is_after(self.next, end) { 0 } else { end.wrapping_sub(self.next) };
        if available == 0 && !is_end_due {
            return None;
        }
        if std::mem::take(&mut self.probe_due) {
            self.is_probing = true;
            return Some(self.step(available.min(1)));
        }
        let flight = self.next.wrapping_sub(self.una);
        let mut usable = self.window.saturating_sub(flight);
        match &self.recovery {
            Some(recovery) => usable = usable.min(recovery.allowance(self.threshold, self.mss)),
            None => usable = usable.min(self.congestion_window.saturating_sub(flight)),
        }
        let most = (SEGMENTS_MAX * self.mss).min(PAYLOAD_BYTES_MAX - PAYLOAD_BYTES_MAX % self.mss);
        let mut len = available.min(usable).min(most);
        if len < available {
            len -= len % self.mss;
        }
        // Less than a segment of many waits for more room (RFC 9293 §3.8.6.2.1), unless the member
        // never has room for one.
        if len == 0 && available > 0 {
            let is_narrow = usable > 0 && usable >= self.window_max / 2;
            if !is_narrow {
                if flight == 0 && self.timer_ns.is_none() {
                    self.timer_ns = Some(now_ns + self.round_trip.timeout_ns(self.backoffs));
                }
                return None;
            }
            len = available.min(usable);
        }
        if self.timed.is_none() && self.next == self.high {
            self.timed = Some((self.next.wrapping_add(len.max(1)), now_ns));
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.sent(len);
        }
        Some(self.step(len))
    }

    /// Moves on by `len` bytes, and by the end of the stream if that comes next.
    fn step(&mut self, len: u32) -> Piece {
        let piece = self.part(self.next, len);
        self.next = self.next.wrapping_add(len + u32::from(piece.fin));
        if is_after(self.next, self.high) {
            self.high = self.next;
        }
        piece
    }

    fn part(&self, start: u32, len: u32) -> Piece {
        let offset = start.wrapping_sub(self.una) as usize;
        let len = self.buffer.len().saturating_sub(offset).min(len as usize);
        let is_last = offset + len >= self.buffer.len();
        Piece { sequence: start, offset, len, fin: self.ends && is_last, push: is_last }
    }

    /// Nothing more is sent or kept.
    pub(crate) fn release(&mut self) {
        self.buffer = Ring::default();
        self.timer_ns = None;
        self.recovery = None;
    }
}
