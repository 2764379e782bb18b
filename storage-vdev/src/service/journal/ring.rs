//! The entries of a ring's table: a page each.

use super::{Reader, Writer};
use crate::files::PAGE;
use crate::keys::Uuid;

/// Pages of a ring's table.
pub(super) const ENTRIES: usize = 32;

const MAGIC: &[u8; 4] = b"HYPJ";
const VERSION: u16 = 1;

/// What an append wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) position: u64,
    pub(super) len: u32,
    pub(super) crc: u32,
}

/// What ties an entry to its ring: the CRC of the node, the volume and the ring's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal(u32);

impl Seal {
    pub(super) fn new(node: &Uuid, volume: &Uuid, ring: u64) -> Self {
        let crc = crc32c::crc32c_append(crc32c::crc32c(node), volume);
        Self(crc32c::crc32c_append(crc, &ring.to_le_bytes()))
    }
}

/// Where a journal starts and ends, and the bytes of its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Counts up, from 1.
    pub(super) number: u64,
    pub(super) batch: u64,
    pub(super) epoch: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Fewer than [`ENTRIES`], each behind the other.
    pub(super) pieces: Vec<Piece>,
}

impl Entry {
    /// Which page of the table it goes to.
    pub(super) fn page(&self) -> u64 {
        self.number % ENTRIES as u64
    }

    pub(super) fn encode(&self, seal: Seal) -> Box<[u8; PAGE]> {
        let mut bytes = Box::new([0; PAGE]);
        let mut out = Writer::new(&mut bytes[..]);
        out.put(MAGIC)
            .put(&VERSION.to_le_bytes())
            .put(&(self.pieces.len() as u16).to_le_bytes())
            .put(&self.number.to_le_bytes())
            .put(&self.batch.to_le_bytes())
            .put(&self.epoch.to_le_bytes())
            .put(&self.start.to_le_bytes())
            .put(&self.end.to_le_bytes());
        for piece in &self.pieces {
            out.put(&piece.position.to_le_bytes())
                .put(&piece.len.to_le_bytes())
                .put(&piece.crc.to_le_bytes());
        }
        let (content, crc) = bytes.split_at_mut(PAGE - 4);
        crc.copy_from_slice(&crc32c::crc32c_append(seal.0, content).to_le_bytes());
        bytes
    }

    /// Reads an entry; `None` if the page holds none of this ring.
    pub(super) fn decode(page: &[u8; PAGE], seal: Seal) -> Option<Self> {
        let (content, crc) = page.split_last_chunk::<4>()?;
        let mut fields = Reader::new(content);
        let known = fields.bytes() == Some(*MAGIC) && fields.u16() == Some(VERSION);
        if !known || crc32c::crc32c_append(seal.0, content) != u32::from_le_bytes(*crc) {
            return None;
        }
        let count = usize::from(fields.u16()?);
        let (number, batch) = (fields.u64()?, fields.u64()?);
        let (epoch, start, end) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let mut piece = || {
            let (position, len, crc) = (fields.u64()?, fields.u32()?, fields.u32()?);
            Some(Piece { position, len, crc })
        };
        let pieces = (0..count).map(|_| piece()).collect::<Option<Vec<_>>>()?;
        // Counters that could not go on were never written, and no byte behind the end.
        let inside = |piece: &Piece| {
            piece.position.checked_add(u64::from(piece.len)).is_some_and(|behind| behind <= end)
        };
        let sound = count < ENTRIES
            && start <= end
            && number.max(batch) < 1 << 63
            && pieces.iter().all(inside);
        sound.then_some(Self { number, batch, epoch, start, end, pieces })
    }
}
