//! Small datagrams that wait for others to the same place: they leave with one system call.
//!
//! A system call with its walk through the stack costs some microseconds however little it sends, at
//! every router on the way once more: what leaves together arrives together. A TCP receiver answers
//! each super-frame with an acknowledgement of a hundred bytes, so that is half of all calls.

use crate::socket::{BATCH_BYTES_MAX, BATCH_COUNT_MAX};

/// What is larger is not copied to wait: a copy of more would cost as much as the call.
const SMALL_BYTES: usize = 8192;

/// Datagrams for one place `T`, all of `stride` bytes but the last, which may be shorter. The order of
/// those for one place is kept, that between places is not.
pub struct Gather<T> {
    to: Option<T>,
    datagrams: Vec<u8>,
    stride: usize,
}

impl<T: Copy + PartialEq> Default for Gather<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy + PartialEq> Gather<T> {
    /// Nothing waits.
    #[must_use]
    pub const fn new() -> Self {
        Self { to: None, datagrams: Vec::new(), stride: 0 }
    }

    /// Takes datagrams of `stride` bytes each, the last perhaps shorter. What can't wait with those
    /// that do, or makes them leave, goes to `send`.
    pub fn add(
        &mut self,
        to: T,
        datagrams: &[u8],
        stride: usize,
        send: &mut dyn FnMut(T, &[u8], usize),
    ) {
        if self.takes(to, datagrams, stride) {
            return self.datagrams.extend_from_slice(datagrams);
        }
        let is_small = datagrams.len() <= SMALL_BYTES;
        if is_small || self.to == Some(to) {
            self.flush(send);
        }
        if is_small {
            self.to = Some(to);
            self.stride = stride.max(1);
            self.datagrams.extend_from_slice(datagrams);
        } else {
            send(to, datagrams, stride);
        }
    }

    /// Hands what waits to `send`.
    pub fn flush(&mut self, send: &mut dyn FnMut(T, &[u8], usize)) {
        if let Some(to) = self.to.take() {
            send(to, &self.datagrams, self.stride);
            self.datagrams.clear();
        }
    }

    /// Whether these datagrams may follow those that wait.
    fn takes(&self, to: T, datagrams: &[u8], stride: usize) -> bool {
        let len = self.datagrams.len() + datagrams.len();
        self.to == Some(to)
            && datagrams.len() <= SMALL_BYTES
            && self.datagrams.len().is_multiple_of(self.stride)
            && stride <= self.stride
            && (stride == self.stride || datagrams.len() == stride)
            && len <= BATCH_BYTES_MAX
            && len.div_ceil(self.stride) <= BATCH_COUNT_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What left: where to, how many bytes, of what stride.
    type Sent = Vec<(u8, usize, usize)>;

    fn gathered(added: &[(u8, usize, usize)]) -> Sent {
        let (mut gather, mut sent) = (Gather::new(), Sent::new());
        let mut send = |to, bytes: &[u8], stride| sent.push((to, bytes.len(), stride));
        for (to, len, stride) in added {
            gather.add(*to, &vec![0; *len], *stride, &mut send);
        }
        gather.flush(&mut send);
        gather.flush(&mut send);
        sent
    }

    #[test]
    fn equal_datagrams_for_one_place_leave_together() {
        assert_eq!(gathered(&[(1, 100, 100), (1, 300, 100), (1, 100, 100)]), [(1, 500, 100)]);
        assert_eq!(gathered(&[]), []);
    }

    #[test]
    fn a_shorter_one_is_the_last_and_a_longer_one_begins_anew() {
        let added = [(1, 100, 100), (1, 60, 60), (1, 60, 60), (1, 100, 100)];
        assert_eq!(gathered(&added), [(1, 160, 100), (1, 60, 60), (1, 100, 100)]);
        // A shorter stride of several is not that of the ones that wait.
        assert_eq!(gathered(&[(1, 100, 100), (1, 120, 60)]), [(1, 100, 100), (1, 120, 60)]);
    }

    #[test]
    fn large_batches_do_not_wait_and_keep_their_order_at_their_place() {
        let large = 40_000;
        let added = [(1, 100, 100), (2, large, 1000), (1, 100, 100), (1, large, 1000)];
        let expected = [(2, large, 1000), (1, 200, 100), (1, large, 1000)];
        assert_eq!(gathered(&added), expected);
    }

    #[test]
    fn a_batch_is_no_larger_than_a_socket_takes() {
        let sent = gathered(&[(1, 100, 100); 100]);
        assert_eq!(sent, [(1, 6400, 100), (1, 3600, 100)]);
        let sent = gathered(&[(1, 1480, 1480); 45]);
        assert_eq!(sent, [(1, 44 * 1480, 1480), (1, 1480, 1480)]);
    }
}
