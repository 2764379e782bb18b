//! What is to be sent to a client: small pieces are gathered, large buffers go out as they are.

use std::collections::VecDeque;
use std::io::IoSlice;

/// The size of a gathering piece.
const GATHER_BYTES: usize = 64 << 10;

/// Buffers up to this size are copied into a gathering piece: cheaper than a piece of their own.
const COPY_BYTES_MAX: usize = 16 << 10;

/// The most pieces that one call of the system takes.
pub(crate) const SLICES_MAX: usize = 64;

#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    gathers: bool,
}

/// A queue of bytes.
#[derive(Debug, Default)]
pub struct Output {
    pieces: VecDeque<Piece>,
    /// How much of the first piece is sent.
    sent: usize,
    len: usize,
    spare: Option<Vec<u8>>,
}

impl Output {
    /// How many bytes wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a copy of `bytes`.
    pub fn put(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        if let Some(last) = self.pieces.back_mut()
            && last.gathers
            && last.bytes.capacity() - last.bytes.len() >= bytes.len()
        {
            last.bytes.extend_from_slice(bytes);
            return;
        }
        let mut gathered = self.spare.take().unwrap_or_else(|| Vec::with_capacity(GATHER_BYTES));
        gathered.extend_from_slice(bytes);
        self.pieces.push_back(Piece { bytes: gathered, gathers: true });
    }

    /// Adds a buffer; gives it back at once if its bytes were copied.
    pub fn put_buffer(&mut self, buffer: Vec<u8>) -> Option<Vec<u8>> {
        if buffer.len() <= COPY_BYTES_MAX {
            self.put(&buffer);
            return Some(buffer);
        }
        self.len += buffer.len();
        self.pieces.push_back(Piece { bytes: buffer, gathers: false });
        None
    }

    /// What to send next, in `slices`; how many of them are used.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut used = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
            let from = if used == 0 { self.sent } else { 0 };
            *slot = IoSlice::new(piece.bytes.get(from..).unwrap_or_default());
            used += 1;
        }
        used
    }

    /// The first `count` bytes are sent. Buffers that are done with go to `spent`.
    pub fn consume(&mut self, count: usize, spent: &mut Vec<Vec<u8>>) {
        self.len = self.len.saturating_sub(count);
        self.sent += count;
        while let Some(first) = self.pieces.front()
            && self.sent >= first.bytes.len()
        {
            self.sent -= first.bytes.len();
            let Some(mut piece) = self.pieces.pop_front() else { return };
            if piece.gathers {
                piece.bytes.clear();
                self.spare = Some(piece.bytes).filter(|bytes| bytes.capacity() <= GATHER_BYTES);
            } else {
                spent.push(piece.bytes);
            }
        }
    }

    /// All that waits, for tests and for a carrier that copies anyway; nothing waits afterwards.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len);
        for (index, piece) in self.pieces.drain(..).enumerate() {
            let from = if index == 0 { self.sent } else { 0 };
            all.extend_from_slice(piece.bytes.get(from..).unwrap_or_default());
        }
        self.sent = 0;
        self.len = 0;
        all
    }
}
