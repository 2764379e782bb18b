//! Requests of the virtio-blk queue (virtio 1.2 §5.2.6): an untrusted chain becomes a typed request
//! or a status, before any I/O.

use vdev::{Chain, GuestRam, RingError};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::fields::Reader;
use crate::geometry::SECTOR_BYTES;

/// The most sectors of one discard or write-zeroes segment (32 MiB): what one request may cost.
pub(super) const ZERO_SECTORS_MAX: u32 = 1 << 16;
/// The most segments of one discard or write-zeroes request.
pub(super) const ZERO_SEGMENTS_MAX: u32 = 16;

/// The bytes of a request's header: type, reserved, sector.
pub(super) const HEADER_BYTES: usize = 16;
const SEGMENT_BYTES: usize = 16;

/// A request that is whole; offsets and lengths are in bytes and still to be checked against the
/// volume's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64, len: usize },
    Write { offset: u64, len: usize },
    Flush,
    GetId,
    Zero { ranges: Vec<(u64, u64)> },
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

/// Reads the request of a chain. The ring is broken if there is no room for the answer.
pub(super) fn parse(chain: &Chain, ram: &GuestRam) -> Result<Result<Request, Refusal>, RingError> {
    let Some(data_len) = chain.writable_len().checked_sub(1) else {
        let reason = "there is no room for a status byte";
        return Err(RingError::Malformed { head: chain.head(), reason });
    };
    let mut header = [0; HEADER_BYTES];
    if chain.read_at(ram, 0, &mut header) < HEADER_BYTES {
        return Ok(Err(Refusal::IoError));
    }
    let mut fields = Reader::new(&header);
    let (Some(kind), Some(_reserved), Some(sector)) = (fields.u32(), fields.u32(), fields.u64())
    else {
        return Ok(Err(Refusal::IoError));
    };
    let payload_len = chain.readable_len() - HEADER_BYTES;
    let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Refusal::IoError);
    let data = |len: usize| match offset {
        Ok(offset) if len > 0 && (len as u64).is_multiple_of(SECTOR_BYTES) => Ok((offset, len)),
        _ => Err(Refusal::IoError),
    };
    Ok(match kind {
        VIRTIO_BLK_T_IN => data(data_len).map(|(offset, len)| Request::Read { offset, len }),
        VIRTIO_BLK_T_OUT => data(payload_len).map(|(offset, len)| Request::Write { offset, len }),
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Request::GetId),
        VIRTIO_BLK_T_DISCARD => parse_ranges(chain, ram, payload_len, 0),
        VIRTIO_BLK_T_WRITE_ZEROES => {
            parse_ranges(chain, ram, payload_len, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
        }
        _ => Err(Refusal::Unsupported),
    })
}

fn parse_ranges(
    chain: &Chain,
    ram: &GuestRam,
    payload_len: usize,
    known_flags: u32,
) -> Result<Request, Refusal> {
    let most = ZERO_SEGMENTS_MAX as usize * SEGMENT_BYTES;
    if payload_len == 0 || payload_len > most || !payload_len.is_multiple_of(SEGMENT_BYTES) {
        return Err(Refusal::IoError);
    }
    let mut payload = [0; ZERO_SEGMENTS_MAX as usize * SEGMENT_BYTES];
    let payload = payload.get_mut(..payload_len).ok_or(Refusal::IoError)?;
    if chain.read_at(ram, HEADER_BYTES, payload) < payload_len {
        return Err(Refusal::IoError);
    }
    let ranges = payload.chunks_exact(SEGMENT_BYTES).map(|segment| {
        let mut fields = Reader::new(segment);
        let sector = fields.u64().ok_or(Refusal::IoError)?;
        let sectors = fields.u32().ok_or(Refusal::IoError)?;
        let flags = fields.u32().ok_or(Refusal::IoError)?;
        if flags & !known_flags != 0 {
            return Err(Refusal::Unsupported);
        }
        if sectors > ZERO_SECTORS_MAX {
            return Err(Refusal::IoError);
        }
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Refusal::IoError)?;
        Ok((offset, u64::from(sectors) * SECTOR_BYTES))
    });
    Ok(Request::Zero { ranges: ranges.collect::<Result<_, _>>()? })
}
