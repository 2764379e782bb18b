//! Journal records: a 4 KiB header with a table of changes, then the encrypted blocks.
//!
//! The GCM tag covers header and payload, and the tag of the record before is part of the header:
//! a chain that can't be cut, reordered or continued without the key. Records without a payload
//! carry a tag all the same. What a flush takes along is a *group* of one or more records, all with
//! the same write numbers; a group counts only if it is whole.

use super::overlay::{Batch, Change, Group};
use crate::fields::{Reader, Writer, u32_at};
use crate::geometry::{BLOCK_BYTES, TAG_BYTES};
use crate::keys::{EpochKeys, Opening, Uuid};

/// The bytes of a record's header.
pub(crate) const HEADER_BYTES: usize = BLOCK_BYTES;
/// The most entries of a record.
pub(crate) const ENTRIES_MAX: usize = (TAG_OFFSET - ENTRIES_OFFSET) / ENTRY_BYTES;
/// The most payload blocks of a record.
pub(crate) const PAYLOAD_BLOCKS_MAX: usize = 240;

const MAGIC: [u8; 4] = *b"HJRN";
const VERSION: u16 = 2;
const ENTRIES_OFFSET: usize = 112;
const ENTRY_BYTES: usize = 16;
const TAG_OFFSET: usize = HEADER_BYTES - 32;
const PAYLOAD_CRC_OFFSET: usize = TAG_OFFSET + TAG_BYTES;
const CRC_OFFSET: usize = HEADER_BYTES - 4;
/// The group goes on in the next record.
const FLAG_MORE: u16 = 1;
const ADDRESS_BITS: u32 = 60;
const KIND_DATA: u64 = 1;
const KIND_ZERO: u64 = 2;

/// What a record does to a run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first block.
    pub(super) first_block: u64,
    /// How many blocks.
    pub(super) count: u64,
    /// Whether the blocks become zero; otherwise the payload has their content.
    pub(super) zero: bool,
}

/// A record, checked and decrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Its number; each record of an opening has the next one.
    pub(super) sequence: u64,
    /// The tag of the record before it.
    pub(super) previous: [u8; TAG_BYTES],
    /// Its own tag.
    pub(super) tag: [u8; TAG_BYTES],
    /// The numbers of the first and the last write of its group.
    pub(super) writes: (u64, u64),
    /// Whether its group goes on in the next record.
    pub(super) more: bool,
    /// What it does, in this order.
    pub(super) extents: Vec<Extent>,
    /// The content of the extents that are not zero, one after the other.
    pub(super) payload: Vec<u8>,
}

/// Why bytes are not a journal record of this opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// The header isn't whole, or the bytes end before the record does.
    #[error("the journal record is cut off or damaged")]
    Corrupt,
    /// The record is of a version that this build doesn't know.
    #[error("the journal record has version {0}, and this build reads version {VERSION}")]
    Version(u16),
    /// The record was not written by this opening of this volume.
    #[error("the journal record was not written by this opening of the volume")]
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
pub(super) fn parse_record(
    bytes: &[u8],
    keys: &EpochKeys,
    uuid: Uuid,
) -> Result<Record, RecordError> {
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
    let mut record = read(&mut fields, header, keys.opening, uuid).ok_or(RecordError::Forged)?;
    record.payload = ciphertext.to_vec();
    let aad = header.get(..TAG_OFFSET).unwrap_or_default();
    let Record { sequence, tag, .. } = record;
    keys.open_record(sequence, aad, &mut record.payload, tag).map_err(|_| RecordError::Forged)?;
    Ok(record)
}

fn read(
    fields: &mut Reader<'_>,
    header: &[u8],
    wanted: Opening,
    wanted_uuid: Uuid,
) -> Option<Record> {
    let flags = fields.u16()?;
    let count = usize::from(fields.u16()?);
    fields.u16()?;
    let blocks = fields.u32()?;
    let uuid: Uuid = fields.bytes()?;
    let sequence = fields.u64()?;
    let opening = Opening { epoch: fields.u64()?, salt: fields.bytes()? };
    let previous = fields.bytes()?;
    let writes = (fields.u64()?, fields.u64()?);
    let table = header.get(ENTRIES_OFFSET..TAG_OFFSET)?;
    let mut extents = Vec::with_capacity(count.min(ENTRIES_MAX));
    let mut data_blocks = 0u64;
    for entry in table.chunks_exact(ENTRY_BYTES).take(count) {
        let mut fields = Reader::new(entry);
        let (word, count) = (fields.u64()?, fields.u64()?);
        let zero = match word >> ADDRESS_BITS {
            KIND_DATA => false,
            KIND_ZERO => true,
            _ => return None,
        };
        data_blocks = data_blocks.checked_add(if zero { 0 } else { count })?;
        extents.push(Extent { first_block: word % (1 << ADDRESS_BITS), count, zero });
    }
    let tag = *header.get(TAG_OFFSET..)?.first_chunk()?;
    let sound = uuid == wanted_uuid
        && opening == wanted
        && flags & !FLAG_MORE == 0
        && count <= ENTRIES_MAX
        && data_blocks == u64::from(blocks)
        && writes.0 <= writes.1;
    let (more, payload) = (flags == FLAG_MORE, Vec::new());
    sound.then_some(Record { sequence, previous, tag, writes, more, extents, payload })
}

/// Where the chain of records goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChainEnd {
    /// The number of the next record.
    pub(crate) sequence: u64,
    /// The tag of the last one.
    pub(crate) tag: [u8; TAG_BYTES],
}

/// The records of a group, sealed, one after the other. `chain` goes on behind them: no number is
/// used twice, whatever becomes of the bytes.
pub(super) fn seal_group(
    group: &Group,
    batch: &Batch,
    (keys, uuid): (&EpochKeys, Uuid),
    chain: &mut ChainEnd,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(group_bytes(&group.changes));
    let mut record = Open { start: 0, entries: Vec::new() };
    record.begin(&mut bytes);
    let mut seal = |record: &mut Open, bytes: &mut Vec<u8>, more: bool| {
        let writes = (group.first_write, group.last_write);
        record.seal(bytes, (writes, more), (keys, uuid), chain);
        if more {
            record.begin(bytes);
        }
    };
    for change in &group.changes {
        let (mut done, all) = match change {
            Change::Data { count, .. } => (0, *count),
            Change::Zero { .. } => (0, 1),
        };
        while done < all {
            let free = PAYLOAD_BLOCKS_MAX - record.payload_blocks(&bytes);
            if record.entries.len() == ENTRIES_MAX || free == 0 {
                seal(&mut record, &mut bytes, true);
                continue;
            }
            match *change {
                Change::Data { block, slot, .. } => {
                    let run = (all - done).min(free as u32);
                    let word = KIND_DATA << ADDRESS_BITS | (block + u64::from(done));
                    record.entries.push((word, u64::from(run)));
                    bytes.extend_from_slice(batch.slots(slot + done, run));
                    done += run;
                }
                Change::Zero { block, count } => {
                    record.entries.push((KIND_ZERO << ADDRESS_BITS | block, count));
                    done = all;
                }
            }
        }
    }
    seal(&mut record, &mut bytes, false);
    bytes
}

/// At most how many bytes the records of these changes have.
pub(super) fn group_bytes(changes: &[Change]) -> usize {
    let blocks = |change: &Change| match change {
        Change::Data { count, .. } => *count as usize,
        Change::Zero { .. } => 0,
    };
    let blocks: usize = changes.iter().map(blocks).sum();
    let records = 1 + blocks / PAYLOAD_BLOCKS_MAX + changes.len() / ENTRIES_MAX;
    blocks * BLOCK_BYTES + records * HEADER_BYTES
}

/// A record that is being put together at the end of a buffer.
struct Open {
    start: usize,
    entries: Vec<(u64, u64)>,
}

impl Open {
    fn begin(&mut self, bytes: &mut Vec<u8>) {
        self.start = bytes.len();
        self.entries.clear();
        bytes.resize(self.start + HEADER_BYTES, 0);
    }

    fn payload_blocks(&self, bytes: &[u8]) -> usize {
        (bytes.len() - self.start - HEADER_BYTES) / BLOCK_BYTES
    }

    fn seal(
        &self,
        bytes: &mut [u8],
        (writes, more): ((u64, u64), bool),
        (keys, uuid): (&EpochKeys, Uuid),
        chain: &mut ChainEnd,
    ) {
        let (_, record) = bytes.split_at_mut(self.start);
        let (header, payload) = record.split_at_mut(HEADER_BYTES);
        let (aad, tail) = header.split_at_mut(TAG_OFFSET);
        let (fixed, table) = aad.split_at_mut(ENTRIES_OFFSET);
        Writer::new(fixed)
            .put(&MAGIC)
            .put(&VERSION.to_le_bytes())
            .put(&(if more { FLAG_MORE } else { 0 }).to_le_bytes())
            .put(&(self.entries.len() as u16).to_le_bytes())
            .put(&[0; 2])
            .put(&((payload.len() / BLOCK_BYTES) as u32).to_le_bytes())
            .put(&uuid)
            .put(&chain.sequence.to_le_bytes())
            .put(&keys.opening.epoch.to_le_bytes())
            .put(&keys.opening.salt)
            .put(&chain.tag)
            .put(&writes.0.to_le_bytes())
            .put(&writes.1.to_le_bytes());
        let mut table = Writer::new(table);
        for (word, count) in &self.entries {
            table.put(&word.to_le_bytes()).put(&count.to_le_bytes());
        }
        let tag = keys.seal_record(chain.sequence, aad, payload);
        Writer::new(tail).put(&tag).put(&crc32c::crc32c(payload).to_le_bytes());
        let (body, crc) = header.split_at_mut(CRC_OFFSET);
        Writer::new(crc).put(&crc32c::crc32c(body).to_le_bytes());
        chain.sequence += 1;
        chain.tag = tag;
    }
}

#[cfg(test)]
mod tests;
