//! A slot of the index: 64 bytes that name an object and say where it lies.

use crate::fields::{Reader, Writer, is_blank};
use crate::keys::Uuid;
use crate::node::{OBJECT_BYTES_MAX, ObjectKey};

/// The size of a slot. Eight share a sector, which a disk writes as a whole.
pub(super) const SLOT_BYTES: usize = 64;

const OBJECT: u8 = 1;
const DELETED: u8 = 2;
const VERSION: u8 = 1;
/// Batches count up from 1; a number from here on is no batch.
const BATCH_END: u64 = 1 << 63;

/// Where an object lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its first block of 4096 bytes.
    pub(super) start: u32,
    /// Its length in bytes.
    pub(super) len: u32,
    /// The CRC-32C of its bytes.
    pub(super) crc: u32,
}

impl Place {
    /// How many blocks it takes: at least one.
    pub(super) fn blocks(&self) -> u32 {
        blocks(self.len)
    }

    /// Whether it covers `block` or goes beyond it.
    pub(super) fn reaches(&self, block: u32) -> bool {
        u64::from(self.start) + u64::from(self.blocks()) > u64::from(block)
    }
}

/// How many blocks an object of `len` bytes takes.
pub(super) fn blocks(len: u32) -> u32 {
    len.div_ceil(super::BLOCK as u32).max(1)
}

/// What a slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// It was never used.
    Blank,
    /// An object.
    Object { key: ObjectKey, place: Place, batch: u64 },
    /// The object that was here is deleted.
    Deleted { batch: u64 },
    /// Neither: what was here is lost.
    Damaged,
}

fn checksum(node: &Uuid, number: u32, bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(node);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &number.to_le_bytes()), bytes)
}

impl Slot {
    /// The bytes of slot `number` of the store of `node`.
    pub(super) fn encode(&self, node: &Uuid, number: u32) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        let mut out = Writer::new(&mut bytes);
        match self {
            Self::Blank | Self::Damaged => return bytes,
            Self::Object { key, place, batch } => {
                out.put(&[OBJECT, VERSION, key.shard, 0])
                    .put(&place.crc.to_le_bytes())
                    .put(&key.volume)
                    .put(&key.epoch.to_le_bytes())
                    .put(&key.sequence.to_le_bytes())
                    .put(&place.start.to_le_bytes())
                    .put(&place.len.to_le_bytes())
                    .put(&[0; 4])
                    .put(&batch.to_le_bytes());
            }
            Self::Deleted { batch } => {
                out.put(&[DELETED, VERSION, 0, 0]).put(&[0; 48]).put(&batch.to_le_bytes());
            }
        }
        let (content, crc) = bytes.split_at_mut(SLOT_BYTES - 4);
        crc.copy_from_slice(&checksum(node, number, content).to_le_bytes());
        bytes
    }

    /// Reads slot `number`.
    pub(super) fn decode(bytes: &[u8], node: &Uuid, number: u32) -> Self {
        if is_blank(bytes) {
            return Self::Blank;
        }
        Self::parse(bytes, node, number).unwrap_or(Self::Damaged)
    }

    fn parse(bytes: &[u8], node: &Uuid, number: u32) -> Option<Self> {
        let (content, crc) = bytes.split_at_checked(SLOT_BYTES - 4)?;
        if checksum(node, number, content).to_le_bytes() != *crc {
            return None;
        }
        let mut fields = Reader::new(content);
        let [state, VERSION, shard, 0] = fields.bytes()? else { return None };
        let crc = fields.u32()?;
        let volume = fields.bytes()?;
        let (epoch, sequence) = (fields.u64()?, fields.u64()?);
        let (start, len) = (fields.u32()?, fields.u32()?);
        let _zero = fields.u32()?;
        let batch = fields.u64().filter(|batch| *batch < BATCH_END)?;
        match state {
            OBJECT if len as usize <= OBJECT_BYTES_MAX => Some(Self::Object {
                key: ObjectKey { volume, epoch, sequence, shard },
                place: Place { start, len, crc },
                batch,
            }),
            DELETED => Some(Self::Deleted { batch }),
            _ => None,
        }
    }
}
