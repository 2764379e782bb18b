//! Requests of a virtio-blk queue (virtio 1.2 §5.2.6): an untrusted chain becomes a typed request or
//! a status, before any I/O.

use std::io::Read;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::served::SECTOR_BYTES;

/// The most bytes of one read or write.
pub(super) const DATA_BYTES_MAX: usize = 16 << 20;

/// The most sectors of one discard or write-zeroes segment (1 GiB).
pub(super) const ZERO_SECTORS_MAX: u32 = 1 << 21;

/// The most segments of one discard or write-zeroes request.
pub(super) const ZERO_SEGMENTS_MAX: u32 = 16;

const HEADER_BYTES: usize = 16;
const SEGMENT_BYTES: usize = 16;

/// A request that is whole. Offsets and lengths are in bytes, and are checked against the volume's
/// size by the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64, len: u32 },
    Write { offset: u64, len: usize },
    Flush,
    GetId,
    Discard { ranges: Vec<(u64, u64)> },
    Zero { ranges: Vec<(u64, u64)>, may_unmap: bool },
}

/// How a request is answered that can't be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is wrong.
    IoError,
    /// It is not known here.
    Unsupported,
}

impl Refusal {
    pub(super) fn status(self) -> u8 {
        match self {
            Self::IoError => VIRTIO_BLK_S_IOERR as u8,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// Reads a request from the readable part of a chain, which has `payload_len` bytes behind the
/// header that is taken off first, and `data_len` writable bytes before the status.
pub(super) fn parse(
    reader: &mut impl Read,
    readable_len: usize,
    data_len: usize,
) -> Result<Request, Refusal> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).map_err(|_| Refusal::IoError)?;
    let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
    let payload_len = readable_len.saturating_sub(HEADER_BYTES);
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Refusal::IoError);
    let checked = |len: usize| {
        let whole = (len as u64).is_multiple_of(SECTOR_BYTES);
        if len > 0 && len <= DATA_BYTES_MAX && whole { Ok(len) } else { Err(Refusal::IoError) }
    };
    match kind {
        VIRTIO_BLK_T_IN => Ok(Request::Read { offset: offset?, len: checked(data_len)? as u32 }),
        VIRTIO_BLK_T_OUT => Ok(Request::Write { offset: offset?, len: checked(payload_len)? }),
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Request::GetId),
        VIRTIO_BLK_T_DISCARD => {
            let (ranges, _) = parse_ranges(reader, payload_len, 0)?;
            Ok(Request::Discard { ranges })
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            let (ranges, may_unmap) = parse_ranges(reader, payload_len, known)?;
            Ok(Request::Zero { ranges, may_unmap })
        }
        _ => Err(Refusal::Unsupported),
    }
}

/// The ranges, and whether all of them have the known flag.
fn parse_ranges(
    reader: &mut impl Read,
    payload_len: usize,
    known_flags: u32,
) -> Result<(Vec<(u64, u64)>, bool), Refusal> {
    let most = ZERO_SEGMENTS_MAX as usize * SEGMENT_BYTES;
    if payload_len == 0 || payload_len > most || !payload_len.is_multiple_of(SEGMENT_BYTES) {
        return Err(Refusal::IoError);
    }
    let mut ranges = Vec::with_capacity(payload_len / SEGMENT_BYTES);
    let mut all_flagged = true;
    for _ in 0..payload_len / SEGMENT_BYTES {
        let mut segment = [0; SEGMENT_BYTES];
        reader.read_exact(&mut segment).map_err(|_| Refusal::IoError)?;
        let (sector, sectors, flags) =
            (u64_at(&segment, 0), u32_at(&segment, 8), u32_at(&segment, 12));
        if flags & !known_flags != 0 {
            return Err(Refusal::Unsupported);
        }
        if sectors == 0 || sectors > ZERO_SECTORS_MAX {
            return Err(Refusal::IoError);
        }
        all_flagged &= flags == known_flags;
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Refusal::IoError)?;
        ranges.push((offset, u64::from(sectors) * SECTOR_BYTES));
    }
    Ok((ranges, all_flagged))
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.copied().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.copied().map_or(0, u64::from_le_bytes)
}
