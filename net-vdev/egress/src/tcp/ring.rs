//! Bytes that wait, in a buffer that is used round and round.

/// A queue of bytes with a capacity that only grows.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Ring {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into_boxed_slice(), start: 0, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Makes room for `capacity` bytes in all, if there is not.
    pub(crate) fn grow(&mut self, capacity: usize) {
        if capacity <= self.bytes.len() {
            return;
        }
        let mut larger = Self::with_capacity(capacity);
        let (first, second) = self.slices(0, self.len);
        larger.push(first);
        larger.push(second);
        *self = larger;
    }

    /// `len` bytes from `offset` on, or as many of them as there are, in two parts.
    pub(crate) fn slices(&self, offset: usize, len: usize) -> (&[u8], &[u8]) {
        let offset = offset.min(self.len);
        let len = len.min(self.len - offset);
        let start = self.wrapped(self.start + offset);
        let first = len.min(self.bytes.len() - start);
        let part = |from: usize, len: usize| self.bytes.get(from..from + len).unwrap_or_default();
        (part(start, first), part(0, len - first))
    }

    /// The free room behind the last byte as far as it lies in one piece; [`Ring::commit`] says how
    /// much of it was filled.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        let free = self.bytes.len() - self.len;
        let end = self.wrapped(self.start + self.len);
        let len = free.min(self.bytes.len() - end);
        self.bytes.get_mut(end..end + len).unwrap_or_default()
    }

    pub(crate) fn commit(&mut self, len: usize) {
        self.len = (self.len + len).min(self.bytes.len());
    }

    /// Adds bytes; returns how many there was room for.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> usize {
        let before = self.len;
        while !bytes.is_empty() {
            let spare = self.spare();
            let len = spare.len().min(bytes.len());
            if len == 0 {
                break;
            }
            let (now, later) = bytes.split_at(len);
            if let Some(place) = spare.get_mut(..len) {
                place.copy_from_slice(now);
            }
            self.commit(len);
            bytes = later;
        }
        self.len - before
    }

    /// Drops the first `len` bytes.
    pub(crate) fn discard(&mut self, len: usize) {
        let len = len.min(self.len);
        self.start = self.wrapped(self.start + len);
        self.len -= len;
        if self.len == 0 {
            self.start = 0;
        }
    }

    fn wrapped(&self, at: usize) -> usize {
        if at >= self.bytes.len() { at - self.bytes.len() } else { at }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_no_bytes_and_no_room() {
        let mut ring = Ring::default();
        assert_eq!((ring.push(b"a"), ring.slices(0, 9)), (0, (&[][..], &[][..])));
        ring.discard(1);
        assert!(ring.is_empty());
    }

    proptest! {
        #[test]
        fn a_ring_is_a_queue(steps in prop::collection::vec(any::<(u8, u8)>(), 0..200)) {
            let (mut ring, mut queue) = (Ring::with_capacity(64), VecDeque::new());
            let mut next = 0_u8;
            for (what, amount) in steps {
                match what % 4 {
                    0 => ring.grow(usize::from(amount)),
                    1 => {
                        let len = usize::from(amount) % (queue.len() + 1);
                        ring.discard(len);
                        queue.drain(..len);
                    }
                    _ => {
                        let bytes: Vec<u8> = (0..amount).map(|at| next.wrapping_add(at)).collect();
                        let taken = ring.push(&bytes);
                        prop_assert_eq!(taken, bytes.len().min(ring.capacity() - queue.len()));
                        queue.extend(&bytes[..taken]);
                        next = next.wrapping_add(amount);
                    }
                }
                prop_assert_eq!(ring.len(), queue.len());
                let offset = usize::from(amount) / 2;
                let (first, second) = ring.slices(offset, 20);
                let expected: Vec<u8> = queue.iter().skip(offset).take(20).copied().collect();
                prop_assert_eq!([first, second].concat(), expected);
            }
        }
    }
}
