//! The half of a connection that takes what the member sends.

use super::Broken;
use super::held::Held;
use super::ring::Ring;
use super::segment::{SACKS_MAX, Segment, is_after};

/// What a member may have on its way at first, and at most if its budget allows.
pub(crate) const WINDOW_BYTES_MIN: u32 = 64 * 1024;
pub(crate) const WINDOW_BYTES_MAX: u32 = 2 * 1024 * 1024;
/// The unit of windows that this side announces is 2^7 bytes.
pub(crate) const WINDOW_SHIFT: u8 = 7;

/// Takes bytes in order and hands them to the host's socket.
///
/// All that is held, whether before its turn or because the socket takes no more, lies between the
/// first byte that the socket has not got and the window's right edge: `window_bytes` bound it.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// The next byte of the stream.
    next: u32,
    /// The right edge of the window as it was announced last. It never goes back.
    edge: u32,
    shift: u8,
    window_bytes: u32,
    /// Bytes in order that the socket has not taken.
    pending: Ring,
    held: Held,
    /// Where the stream ends, if that is known.
    end: Option<u32>,
    is_finished: bool,
    /// Bytes passed on since the window grew last.
    since_growth: u32,
}

impl Receiver {
    /// For a stream whose SYN had the number `initial`.
    pub(crate) fn new(initial: u32, scales: bool) -> Self {
        let next = initial.wrapping_add(1);
        let window_bytes = if scales { WINDOW_BYTES_MIN } else { WINDOW_BYTES_MIN - 1 };
        Self {
            next,
            edge: next.wrapping_add(window_bytes),
            shift: if scales { WINDOW_SHIFT } else { 0 },
            window_bytes,
            pending: Ring::default(),
            held: Held::default(),
            end: None,
            is_finished: false,
            since_growth: 0,
        }
    }

    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// Whether all of the stream came in; the socket may not have got all of it.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Whether the socket has got all that came in.
    pub(crate) fn is_drained(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn ranges(&self) -> [Option<(u32, u32)>; SACKS_MAX] {
        self.held.ranges()
    }

    /// Whether any of the segment lies within the window (RFC 9293 §3.10.7.4).
    pub(crate) fn is_acceptable(&self, segment: &Segment<'_>) -> bool {
        let start = segment.sequence;
        let end = start.wrapping_add(segment.len());
        let is_before_edge = !is_after(start, self.edge);
        if segment.len() == 0 {
            return is_before_edge && !is_after(self.next, start);
        }
        // A segment that fills a window of zero is none to take, but its ACK counts.
        is_before_edge && is_after(end, self.next)
    }

    /// Takes an acceptable segment; `sink` is the socket and says how much it took.
    pub(crate) fn take(
        &mut self,
        segment: &Segment<'_>,
        sink: &mut dyn FnMut(&[u8]) -> Result<usize, Broken>,
    ) -> Result<(), Broken> {
        let mut payload = segment.payload;
        let mut start = segment.sequence;
        if is_after(self.next, start) {
            let known = self.next.wrapping_sub(start) as usize;
            payload = payload.get(known..).unwrap_or_default();
            start = self.next;
        }
        let room = self.edge.wrapping_sub(start) as usize;
        let is_cut = payload.len() > room;
        payload = payload.get(..room).unwrap_or(payload);
        if segment.has(super::segment::FIN) && !is_cut && self.end.is_none() {
            self.end = Some(segment.sequence.wrapping_add(segment.len()).wrapping_sub(1));
        }
        // Nothing follows the end of the stream, whatever else is said.
        if let Some(end) = self.end {
            let len = end.wrapping_sub(start) as usize;
            payload = payload.get(..len).unwrap_or(payload);
        }
        if start != self.next {
            self.held.insert(start, payload);
            return Ok(());
        }
        self.pass(payload, sink)?;
        while let Some(bytes) = self.held.take(self.next) {
            self.pass(&bytes, sink)?;
        }
        if self.end == Some(self.next) && !self.is_finished {
            self.next = self.next.wrapping_add(1);
            self.is_finished = true;
        }
        Ok(())
    }

    /// The socket takes bytes again.
    pub(crate) fn drain(
        &mut self,
        sink: &mut dyn FnMut(&[u8]) -> Result<usize, Broken>,
    ) -> Result<(), Broken> {
        while !self.pending.is_empty() {
            let (bytes, _) = self.pending.slices(0, usize::MAX);
            let offered = bytes.len();
            let taken = sink(bytes)?;
            self.pending.discard(taken);
            if taken < offered {
                break;
            }
        }
        Ok(())
    }

    fn pass(
        &mut self,
        bytes: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> Result<usize, Broken>,
    ) -> Result<(), Broken> {
        let taken = if self.pending.is_empty() && !bytes.is_empty() { sink(bytes)? } else { 0 };
        let rest = bytes.get(taken..).unwrap_or_default();
        if !rest.is_empty() {
            self.pending.grow(self.window_bytes as usize);
            self.pending.push(rest);
        }
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.next = self.next.wrapping_add(len);
        self.since_growth = self.since_growth.saturating_add(len);
        Ok(())
    }

    /// What a larger window takes of the budget, if one would help: a whole window went through
    /// and the socket keeps up.
    pub(crate) fn growth_bytes(&self) -> u32 {
        let helps = self.since_growth >= self.window_bytes
            && self.pending.is_empty()
            && self.shift > 0
            && self.window_bytes < WINDOW_BYTES_MAX;
        if helps { self.window_bytes } else { 0 }
    }

    pub(crate) fn grow(&mut self) {
        self.window_bytes = (2 * self.window_bytes).min(WINDOW_BYTES_MAX);
        self.since_growth = 0;
    }

    pub(crate) fn window_bytes(&self) -> u32 {
        self.window_bytes
    }

    /// Whether the member should be told that its window is larger again (RFC 9293 §3.8.6.2.2).
    pub(crate) fn has_news(&self) -> bool {
        let open = self.edge.wrapping_sub(self.next);
        let could_be = self.free();
        could_be >= open + self.window_bytes / 4 || (open == 0 && could_be > 0)
    }

    /// The window as the next segment announces it; from then on it holds.
    pub(crate) fn announce(&mut self) -> u16 {
        // What the field's unit can't say is not promised.
        let window = (self.free() >> self.shift).min(u32::from(u16::MAX));
        let edge = self.next.wrapping_add(window << self.shift);
        if is_after(edge, self.edge) {
            self.edge = edge;
        }
        // An edge that was promised is announced again, even if the unit rounds it down.
        let open = self.edge.wrapping_sub(self.next) >> self.shift;
        u16::try_from(open).unwrap_or(u16::MAX)
    }

    /// The window in a SYN is not scaled (RFC 7323 §2.2).
    pub(crate) fn announce_unscaled(&self) -> u16 {
        u16::try_from(self.edge.wrapping_sub(self.next)).unwrap_or(u16::MAX)
    }

    fn free(&self) -> u32 {
        let pending = u32::try_from(self.pending.len()).unwrap_or(u32::MAX);
        self.window_bytes.saturating_sub(pending)
    }

    /// Nothing more is held.
    pub(crate) fn release(&mut self) {
        self.pending = Ring::default();
        self.held = Held::default();
    }

    /// Whether there is a gap in what came in.
    pub(crate) fn has_gap(&self) -> bool {
        !self.held.is_empty()
    }
}
