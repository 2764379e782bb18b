//! Journal records: a 4 KiB header with a table of extents, then the encrypted blocks.
//!
//! The GCM tag covers header and payload, and the tag of the record before is part of the header:
//! a chain that can't be cut, reordered or continued without the key. Records without a payload
//! carry a tag all the same.

use crate::fields::{Reader, Writer, u32_at};
use crate::geometry::{BLOCK_BYTES, TAG_BYTES};
use crate::keys::{EpochKeys, KeyRing, Opening};
use crate::superblock::VERSION;

/// The bytes of a record's header.
pub(crate) const HEADER_BYTES: usize = BLOCK_BYTES;
/// The most entries of a record.
pub(crate) const ENTRIES_MAX: usize = (TAG_OFFSET - ENTRIES_OFFSET) / ENTRY_BYTES;
/// The most payload blocks of a record.
pub(crate) const PAYLOAD_BLOCKS_MAX: usize = 127;

const MAGIC: [u8; 4] = *b"HJRN";
const ENTRIES_OFFSET: usize = 112;
const ENTRY_BYTES: usize = 16;
const TAG_OFFSET: usize = HEADER_BYTES - 32;
const PAYLOAD_CRC_OFFSET: usize = TAG_OFFSET + TAG_BYTES;
const CRC_OFFSET: usize = HEADER_BYTES - 4;
const KIND_EXTENTS: u16 = 1;
const KIND_WRAP: u16 = 2;

/// What a record does to a run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first block.
    pub first_block: u64,
    /// How many blocks.
    pub count: u32,
    /// Whether the blocks become zero; otherwise the payload has their content.
    pub zero: bool,
}

/// A record, checked and decrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number; each record of a volume has the next one.
    pub sequence: u64,
    /// Who wrote it.
    pub opening: Opening,
    /// The tag of the record before it.
    pub previous: [u8; TAG_BYTES],
    /// Its own tag.
    pub tag: [u8; TAG_BYTES],
    /// Whether the next record is at the start of the file.
    pub wraps: bool,
    /// What it does, in this order.
    pub extents: Vec<Extent>,
    /// The content of the extents that are not zero, one after the other.
    pub payload: Vec<u8>,
}

/// Why bytes are not a journal record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The header isn't whole, or the bytes end before the record does.
    #[error("the journal record is cut off or damaged")]
    Corrupt,
    /// The record is of a version that this build doesn't know.
    #[error("the journal record has version {0}, and this build reads version {VERSION}")]
    Version(u16),
    /// The record was not written for this volume under its key.
    #[error("the journal record was not written under this volume's key")]
    Forged,
}

/// The bytes of the record whose header starts `bytes`, if its checksum fits.
pub(crate) fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER_BYTES)?;
    let crc = crc32c::crc32c(header.get(..CRC_OFFSET)?);
    let blocks = u32_at(header, 12)? as usize;
    let whole = header.starts_with(&MAGIC)
        && u32_at(header, CRC_OFFSET) == Some(crc)
        && blocks <= PAYLOAD_BLOCKS_MAX;
    whole.then_some(HEADER_BYTES + blocks * BLOCK_BYTES)
}

/// Reads the record at the start of `bytes`, checks its checksums and its MAC and decrypts it.
/// The keys that it was written under are added to `keys` if they fit.
///
/// # Errors
/// [`RecordError`] if there is no record of this volume.
pub fn parse_record(bytes: &[u8], keys: &mut KeyRing) -> Result<Record, RecordError> {
    let len = record_bytes(bytes).ok_or(RecordError::Corrupt)?;
    let record = bytes.get(..len).ok_or(RecordError::Corrupt)?;
    let (header, ciphertext) = record.split_at_checked(HEADER_BYTES).ok_or(RecordError::Corrupt)?;
    if u32_at(header, PAYLOAD_CRC_OFFSET) != Some(crc32c::crc32c(ciphertext)) {
        return Err(RecordError::Corrupt);
    }
    let mut fields = Reader::new(header.get(MAGIC.len()..).unwrap_or_default());
    match fields.u16() {
        Some(VERSION) => {}
        version => return Err(RecordError::Version(version.unwrap_or(0))),
    }
    let mut record = read(&mut fields, header, keys).ok_or(RecordError::Forged)?;
    record.payload = ciphertext.to_vec();
    let aad = header.get(..TAG_OFFSET).unwrap_or_default();
    let Record { sequence, tag, opening, .. } = record;
    let payload = &mut record.payload;
    keys.add_if(opening, |keys| keys.open_record(sequence, aad, payload, tag).is_ok())
        .ok_or(RecordError::Forged)?;
    Ok(record)
}

fn read(fields: &mut Reader<'_>, header: &[u8], keys: &KeyRing) -> Option<Record> {
    let kind = fields.u16()?;
    let count = usize::from(fields.u16()?);
    fields.u16()?;
    let blocks = fields.u32()?;
    let uuid: [u8; 16] = fields.bytes()?;
    let sequence = fields.u64()?;
    let opening = Opening { epoch: fields.u64()?, salt: fields.bytes()? };
    let previous = fields.bytes()?;
    let table = header.get(ENTRIES_OFFSET..TAG_OFFSET)?;
    let mut extents = Vec::with_capacity(count.min(ENTRIES_MAX));
    let mut data_blocks = 0u64;
    for entry in table.chunks_exact(ENTRY_BYTES).take(count) {
        let mut fields = Reader::new(entry);
        let (first_block, count, kind) = (fields.u64()?, fields.u32()?, fields.u32()?);
        data_blocks += if kind == 0 { u64::from(count) } else { 0 };
        extents.push(Extent { first_block, count, zero: kind == 1 });
        if kind > 1 {
            return None;
        }
    }
    let tag = *header.get(TAG_OFFSET..)?.first_chunk()?;
    let sound = uuid == keys.uuid()
        && count <= ENTRIES_MAX
        && data_blocks == u64::from(blocks)
        && (kind == KIND_EXTENTS || (kind == KIND_WRAP && count == 0));
    let wraps = kind == KIND_WRAP;
    let payload = Vec::new();
    sound.then_some(Record { sequence, opening, previous, tag, wraps, extents, payload })
}

/// Seals the record in `buffer` (room for a header, then the plain payload) in place and returns
/// its tag. `extents` is empty exactly for a record that wraps.
pub(crate) fn seal_record(
    buffer: &mut [u8],
    extents: &[Extent],
    (sequence, previous): (u64, [u8; TAG_BYTES]),
    keys: &EpochKeys,
    uuid: [u8; 16],
) -> [u8; TAG_BYTES] {
    let (header, payload) = buffer.split_at_mut(HEADER_BYTES);
    header.fill(0);
    let kind = if extents.is_empty() { KIND_WRAP } else { KIND_EXTENTS };
    let (aad, tail) = header.split_at_mut(TAG_OFFSET);
    let (fixed, table) = aad.split_at_mut(ENTRIES_OFFSET);
    Writer::new(fixed)
        .put(&MAGIC)
        .put(&VERSION.to_le_bytes())
        .put(&kind.to_le_bytes())
        .put(&(extents.len() as u16).to_le_bytes())
        .put(&[0; 2])
        .put(&((payload.len() / BLOCK_BYTES) as u32).to_le_bytes())
        .put(&uuid)
        .put(&sequence.to_le_bytes())
        .put(&keys.opening.epoch.to_le_bytes())
        .put(&keys.opening.salt)
        .put(&previous);
    let mut table = Writer::new(table);
    for extent in extents {
        table
            .put(&extent.first_block.to_le_bytes())
            .put(&extent.count.to_le_bytes())
            .put(&u32::from(extent.zero).to_le_bytes());
    }
    let tag = keys.seal_record(sequence, aad, payload);
    Writer::new(tail).put(&tag).put(&crc32c::crc32c(payload).to_le_bytes());
    let (body, crc) = header.split_at_mut(CRC_OFFSET);
    Writer::new(crc).put(&crc32c::crc32c(body).to_le_bytes());
    tag
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::VolumeKey;

    fn ring() -> (KeyRing, u32) {
        let mut keys = KeyRing::new(&VolumeKey::new(&[9; 32]), [1; 16]);
        let index = keys.add(Opening { epoch: 3, salt: [7; 32] });
        (keys, index)
    }

    fn sample() -> (Vec<u8>, KeyRing) {
        let (keys, index) = ring();
        let mut buffer = vec![0x55; HEADER_BYTES + 2 * BLOCK_BYTES];
        let extents = [
            Extent { first_block: 8, count: 2, zero: false },
            Extent { first_block: 0, count: 1 << 20, zero: true },
        ];
        seal_record(&mut buffer, &extents, (77, [3; 16]), keys.get(index).unwrap(), [1; 16]);
        (buffer, keys)
    }

    #[test]
    fn a_record_survives_a_round_trip() {
        let (bytes, mut keys) = sample();
        let record = parse_record(&bytes, &mut keys).unwrap();
        assert_eq!((record.sequence, record.previous, record.wraps), (77, [3; 16], false));
        assert_eq!(record.payload, vec![0x55; 2 * BLOCK_BYTES]);
        assert_eq!(record.extents.len(), 2);
        assert!(record.extents[1].zero);
    }

    #[test]
    fn a_record_without_payload_is_authenticated_too() {
        let (mut keys, index) = ring();
        let mut bytes = vec![0; HEADER_BYTES];
        let extents = [Extent { first_block: 0, count: 9, zero: true }];
        seal_record(&mut bytes, &extents, (1, [0; 16]), keys.get(index).unwrap(), [1; 16]);
        assert!(parse_record(&bytes, &mut keys).is_ok());
        // A liar that knows the format, but not the key, discards one block more.
        bytes[ENTRIES_OFFSET + 8] = 10;
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]).to_le_bytes();
        bytes[CRC_OFFSET..].copy_from_slice(&crc);
        assert_eq!(parse_record(&bytes, &mut keys), Err(RecordError::Forged));
    }

    #[test]
    fn a_truncated_record_is_refused() {
        let (bytes, mut keys) = sample();
        for len in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, bytes.len() - 1] {
            assert_eq!(parse_record(&bytes[..len], &mut keys), Err(RecordError::Corrupt));
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_detected(bit in 0usize..(HEADER_BYTES + 2 * BLOCK_BYTES) * 8) {
            let (mut bytes, mut keys) = sample();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parse_record(&bytes, &mut keys).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert!(parse_record(&bytes, &mut ring().0).is_err());
        }
    }
}
