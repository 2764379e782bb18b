//! Payload that came before its turn.

use std::collections::VecDeque;

use super::segment::{SACKS_MAX, is_after};

/// How many pieces are kept: as many segments as one super-frame and a bit has, lost one by one.
/// Together they lie within the window, so their bytes are bounded by it.
const PIECES_MAX: usize = 128;

/// Pieces of the stream behind a gap, in order, without overlap.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pieces: VecDeque<(u32, Vec<u8>)>,
    /// Where the newest piece starts: its range is reported first (RFC 2018 §4).
    newest: u32,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Keeps what of `payload` fills a gap of its own. What overlaps is cut off; what no place is
    /// left for is dropped: its sender has it still.
    pub(crate) fn insert(&mut self, sequence: u32, payload: &[u8]) {
        let at = self.pieces.partition_point(|(start, _)| !is_after(*start, sequence));
        let mut start = sequence;
        if let Some((before, bytes)) = at.checked_sub(1).and_then(|at| self.pieces.get(at)) {
            let end = before.wrapping_add(len_32(bytes));
            if is_after(end, start) {
                start = end;
            }
        }
        let mut end = sequence.wrapping_add(len_32(payload));
        if let Some((after, _)) = self.pieces.get(at)
            && is_after(end, *after)
        {
            end = *after;
        }
        if !is_after(end, start) || self.pieces.len() >= PIECES_MAX {
            return;
        }
        let range = (start.wrapping_sub(sequence) as usize)..(end.wrapping_sub(sequence) as usize);
        let Some(bytes) = payload.get(range) else { return };
        self.newest = start;
        self.pieces.insert(at, (start, bytes.to_vec()));
    }

    /// Takes out the piece that goes on at `next`; what came again in the meantime is cut off it.
    pub(crate) fn take(&mut self, next: u32) -> Option<Vec<u8>> {
        while let Some((start, _)) = self.pieces.front() {
            if is_after(*start, next) {
                return None;
            }
            let (start, mut bytes) = self.pieces.pop_front()?;
            let known = next.wrapping_sub(start) as usize;
            if known < bytes.len() {
                bytes.drain(..known);
                return Some(bytes);
            }
        }
        None
    }

    /// The ranges that are held, the one with the newest piece first.
    pub(crate) fn ranges(&self) -> [Option<(u32, u32)>; SACKS_MAX] {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for (start, bytes) in &self.pieces {
            let end = start.wrapping_add(len_32(bytes));
            match ranges.last_mut() {
                Some((_, last)) if *last == *start => *last = end,
                _ => ranges.push((*start, end)),
            }
        }
        let is_newest = |(start, end): &(u32, u32)| {
            !is_after(*start, self.newest) && is_after(*end, self.newest)
        };
        if let Some(at) = ranges.iter().position(is_newest) {
            ranges.swap(0, at);
        }
        let mut first = [None; SACKS_MAX];
        first.iter_mut().zip(ranges).for_each(|(to, from)| *to = Some(from));
        first
    }
}

fn len_32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_range_is_reported_first() {
        let mut held = Held::default();
        held.insert(u32::MAX - 4, b"ab");
        held.insert(10, b"cd");
        assert_eq!(held.ranges()[..2], [Some((10, 12)), Some((u32::MAX - 4, u32::MAX - 2))]);
        held.insert(u32::MAX - 2, b"efg");
        assert_eq!(held.ranges()[..3], [Some((u32::MAX - 4, 0)), Some((10, 12)), None]);
    }

    #[test]
    fn pieces_are_bounded() {
        let mut held = Held::default();
        (0..1000).for_each(|at| held.insert(2 * at, b"a"));
        assert_eq!(held.pieces.len(), PIECES_MAX);
    }

    proptest! {
        /// Segments of one stream in any order, twice, with any overlap: what comes out is the stream.
        #[test]
        fn the_stream_comes_out_as_it_was(
            first in any::<u32>(),
            cuts in prop::collection::vec((0_u32..300, 0_u32..40), 1..60),
        ) {
            let stream: Vec<u8> = (0..340).map(|at| (at % 251) as u8).collect();
            let (mut held, mut next, mut out) = (Held::default(), first, Vec::new());
            for (start, len) in cuts {
                let piece = &stream[start as usize..(start + len) as usize];
                held.insert(first.wrapping_add(start), piece);
                if start % 3 == 0 {
                    while let Some(bytes) = held.take(next) {
                        next = next.wrapping_add(bytes.len() as u32);
                        out.extend(bytes);
                    }
                }
            }
            prop_assert_eq!(&out[..], &stream[..out.len()]);
        }
    }
}
