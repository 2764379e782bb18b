//! Shards' memory, used again: a fresh buffer of a mebibyte costs a page fault for every page.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

/// Buffers that nodes are done with, for the next segment. What is in them is ciphertext. Clones
/// share them.
#[derive(Debug, Clone, Default)]
pub struct Buffers(Arc<Spare>);

#[derive(Debug, Default)]
struct Spare {
    bytes_max: usize,
    /// The buffers, and the sum of their capacities.
    kept: Mutex<(Vec<Vec<u8>>, usize)>,
}

impl Buffers {
    /// Keeps at most `bytes_max` bytes of memory that nobody uses; 0: none.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Spare { bytes_max, kept: Mutex::default() }))
    }

    /// A buffer with room for `len` bytes. It may have bytes in it already.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        let kept = self.0.kept.lock().ok().and_then(|mut kept| {
            let (buffers, bytes) = &mut *kept;
            let place = buffers.iter().rposition(|buffer| buffer.capacity() >= len)?;
            let buffer = buffers.swap_remove(place);
            *bytes -= buffer.capacity();
            Some(buffer)
        });
        kept.unwrap_or_else(|| Vec::with_capacity(len))
    }

    /// Gives back what nobody uses.
    pub fn release(&self) {
        if let Ok(mut kept) = self.0.kept.lock() {
            *kept = (Vec::new(), 0);
        }
    }

    /// The bytes of a buffer, which comes back when the last clone of them is dropped.
    pub(super) fn lend(&self, bytes: Vec<u8>) -> Bytes {
        if self.0.bytes_max == 0 {
            return Bytes::from(bytes);
        }
        Bytes::from_owner(Lent { bytes, home: Arc::clone(&self.0) })
    }
}

struct Lent {
    bytes: Vec<u8>,
    home: Arc<Spare>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Ok(mut kept) = self.home.kept.lock() else { return };
        let (buffers, bytes) = &mut *kept;
        if *bytes + self.bytes.capacity() <= self.home.bytes_max {
            *bytes += self.bytes.capacity();
            buffers.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_reader_is_gone() {
        let buffers = Buffers::new(3000);
        let mut first = buffers.take(1000);
        first.extend_from_slice(&[7; 1000]);
        let place = first.as_ptr();
        let lent = buffers.lend(first);
        let part = lent.slice(10..20);
        drop(lent);
        let other = buffers.take(1000);
        assert_ne!(other.as_ptr(), place);
        assert_eq!(part, [7; 10][..]);
        drop(part);
        let again = buffers.take(500);
        assert_eq!(again.as_ptr(), place);
    }

    /// How many buffers are kept, and of how many bytes.
    fn kept(buffers: &Buffers) -> (usize, usize) {
        let kept = buffers.0.kept.lock().unwrap();
        (kept.0.len(), kept.1)
    }

    #[test]
    fn no_more_memory_is_kept_than_allowed() {
        let buffers = Buffers::new(2500);
        let lent: Vec<Bytes> = (0..5).map(|_| buffers.lend(vec![1; 1000])).collect();
        drop(lent);
        assert_eq!(kept(&buffers), (2, 2000));
        buffers.release();
        assert_eq!(kept(&buffers), (0, 0));
        let none = Buffers::default();
        drop(none.lend(vec![1; 1000]));
        assert_eq!(kept(&none), (0, 0));
    }
}
