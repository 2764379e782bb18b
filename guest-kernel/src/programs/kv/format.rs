//! What lies on the disk: superblocks and records. `docs/kv-format.md` draws it.
//!
//! Invariants:
//! 1. Both superblock slots are written one after the other with a flush between, so at any moment
//!    one of them is whole, and at rest they are equal.
//! 2. A record's epoch was durable in a superblock before the record was written. Every open,
//!    every compaction and every recovery from a failed write begins a new epoch. Along a log
//!    epochs never fall, so what an interrupted batch left behind is never taken for its
//!    successor's.
//! 3. Only one batch is in flight. So behind the end of the log nothing valid of a *later* batch
//!    can lie; if it does, the log is damaged, not torn.
//! 4. A region is reused without being erased, and old values are a client's bytes. So every record
//!    carries the store's id, a random number that no client ever sees: a value that looks like a
//!    record is never taken for one.

use alloc::vec::Vec;

use super::crc32c::crc32c;

/// The first bytes of a superblock.
const MAGIC: [u8; 8] = *b"HYPHAKV1";
const VERSION: u32 = 1;
/// What a superblock slot occupies: one page, so that no two share a physical block.
pub const SLOT_BYTES: u64 = 4096;
/// The superblocks.
pub const SLOTS: u64 = 2;
/// Where the CRC of a superblock's other fields lies.
const SUPERBLOCK_CRC: usize = 60;
/// The bytes of a record in front of its key.
pub const RECORD_HEADER_BYTES: usize = 40;
/// The longest key.
pub const KEY_BYTES_MAX: usize = 512;
/// The longest value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The longest record.
pub const RECORD_BYTES_MAX: usize = RECORD_HEADER_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX;
/// The most that one batch holds, its padding included.
pub const BATCH_BYTES_MAX: usize = 2 << 20;
/// The least that a region has.
pub const REGION_BYTES_MIN: u64 = 64 << 10;

/// The root of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Counts the updates; the slot with the higher one is newer.
    pub generation: u64,
    /// The newest epoch that records may carry.
    pub epoch: u64,
    /// The region that holds the log, 0 or 1.
    pub active_region: u32,
    /// The alignment of batches: what the disk writes without touching its neighbours.
    pub block_bytes: u32,
    /// The size of each of the two regions.
    pub region_bytes: u64,
    /// The sequence number of the log's first record.
    pub first_sequence: u64,
    /// Drawn when the disk was formatted.
    pub store_id: u64,
}

/// What a superblock slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Nothing but zeros.
    Blank,
    /// A whole superblock.
    Valid(Superblock),
    /// A superblock that is torn or damaged, or may be one: its magic is there or was never
    /// written.
    Torn,
    /// A superblock of a version that this program doesn't know.
    Version(u32),
    /// Something else.
    Foreign,
}

impl Superblock {
    /// The first superblock of a disk, or `None` if the disk is too small.
    #[must_use]
    pub fn for_disk(capacity_bytes: u64, block_bytes: u32, store_id: u64) -> Option<Self> {
        let room = capacity_bytes.checked_sub(SLOTS * SLOT_BYTES)? / 2;
        let region_bytes = room - room % SLOT_BYTES;
        (region_bytes >= REGION_BYTES_MIN).then_some(Self {
            generation: 1,
            epoch: 1,
            active_region: 0,
            block_bytes,
            region_bytes,
            first_sequence: 1,
            store_id,
        })
    }

    /// Where region `region` begins on the disk.
    #[must_use]
    pub fn region_offset(&self, region: u32) -> u64 {
        SLOTS * SLOT_BYTES + u64::from(region) * self.region_bytes
    }

    /// The bytes of a slot, a whole block of them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.block_bytes as usize);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.block_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.first_sequence.to_le_bytes());
        bytes.extend_from_slice(&self.region_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.store_id.to_le_bytes());
        bytes.extend_from_slice(&self.active_region.to_le_bytes());
        bytes.extend_from_slice(&crc32c(0, &bytes).to_le_bytes());
        bytes.resize(self.block_bytes as usize, 0);
        bytes
    }

    /// What the bytes of a slot are.
    #[must_use]
    pub fn parse(slot: &[u8]) -> Slot {
        if slot.iter().all(|byte| *byte == 0) {
            return Slot::Blank;
        }
        let magic = slot.first_chunk::<8>().copied().unwrap_or_default();
        let crc_matches = slot.get(..SUPERBLOCK_CRC).map(|bytes| crc32c(0, bytes))
            == u32_at(slot, SUPERBLOCK_CRC);
        if magic != MAGIC {
            return if magic == [0; 8] { Slot::Torn } else { Slot::Foreign };
        }
        if !crc_matches {
            return Slot::Torn;
        }
        match u32_at(slot, 8) {
            Some(VERSION) => Self::fields(slot).map_or(Slot::Torn, Slot::Valid),
            version => Slot::Version(version.unwrap_or(0)),
        }
    }

    fn fields(slot: &[u8]) -> Option<Self> {
        let superblock = Self {
            block_bytes: u32_at(slot, 12)?,
            generation: u64_at(slot, 16)?,
            epoch: u64_at(slot, 24)?,
            first_sequence: u64_at(slot, 32)?,
            region_bytes: u64_at(slot, 40)?,
            store_id: u64_at(slot, 48)?,
            active_region: u32_at(slot, 56)?,
        };
        let sane = superblock.block_bytes.is_power_of_two()
            && (512..=SLOT_BYTES).contains(&u64::from(superblock.block_bytes))
            && superblock.region_bytes.is_multiple_of(SLOT_BYTES)
            && superblock.region_bytes >= REGION_BYTES_MIN
            && superblock.region_bytes < 1 << 62
            && superblock.active_region < 2;
        sane.then_some(superblock)
    }
}

/// What a record says about its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The key has this value from now on.
    Put,
    /// The key is gone.
    Delete,
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it says.
    pub kind: Kind,
    /// Whether the next record begins at the next block boundary.
    pub ends_batch: bool,
    /// The key's length, 1 to [`KEY_BYTES_MAX`].
    pub key_len: usize,
    /// The value's length, up to [`VALUE_BYTES_MAX`]; 0 for a deletion.
    pub value_len: usize,
    /// The record's index within its batch.
    pub position: u32,
    /// Counts the records of a log without gaps.
    pub sequence: u64,
    /// See the module's second invariant.
    pub epoch: u64,
    /// [`Superblock::store_id`].
    pub store_id: u64,
    crc: u32,
}

const FLAG_ENDS_BATCH: u8 = 1;

impl Header {
    /// The header at the start of `bytes`, if its fields are possible. The CRC is not checked yet.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, flags) = match bytes.get(4..6)? {
            [1, flags] => (Kind::Put, *flags),
            [2, flags] => (Kind::Delete, *flags),
            _ => return None,
        };
        let header = Self {
            kind,
            ends_batch: flags & FLAG_ENDS_BATCH != 0,
            key_len: usize::from(u16::from_le_bytes(bytes.get(6..8)?.try_into().ok()?)),
            value_len: usize::try_from(u32_at(bytes, 8)?).ok()?,
            position: u32_at(bytes, 12)?,
            sequence: u64_at(bytes, 16)?,
            epoch: u64_at(bytes, 24)?,
            store_id: u64_at(bytes, 32)?,
            crc: u32_at(bytes, 0)?,
        };
        let possible = flags & !FLAG_ENDS_BATCH == 0
            && (1..=KEY_BYTES_MAX).contains(&header.key_len)
            && header.value_len <= VALUE_BYTES_MAX
            && (kind == Kind::Put || header.value_len == 0);
        possible.then_some(header)
    }

    /// The length of the whole record.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        record_bytes(self.key_len, self.value_len)
    }

    /// The sequence number of the first record of this record's batch.
    #[must_use]
    pub fn batch_sequence(&self) -> u64 {
        self.sequence.wrapping_sub(u64::from(self.position))
    }

    /// Key and value, if `bytes` begin with this whole record and its CRC is right.
    #[must_use]
    pub fn check<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let record = bytes.get(..self.record_bytes())?;
        if crc32c(0, record.get(4..)?) != self.crc {
            return None;
        }
        record.get(RECORD_HEADER_BYTES..)?.split_at_checked(self.key_len)
    }
}

/// The length of the record of a key and value of these lengths.
#[must_use]
pub fn record_bytes(key_len: usize, value_len: usize) -> usize {
    RECORD_HEADER_BYTES + key_len + value_len
}

/// Records one after the other, to be written as one batch from a block boundary on.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    last: usize,
    position: u32,
    first_sequence: u64,
    epoch: u64,
    store_id: u64,
}

impl Batch {
    /// An empty batch in the epoch of `superblock` whose first record gets `first_sequence`.
    #[must_use]
    pub fn new(superblock: &Superblock, first_sequence: u64) -> Self {
        let Superblock { epoch, store_id, .. } = *superblock;
        Self { bytes: Vec::new(), last: 0, position: 0, first_sequence, epoch, store_id }
    }

    /// Appends a record (no value: a deletion). Returns where in the batch it lies and its sequence
    /// number.
    pub fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> (usize, u64) {
        let sequence = self.first_sequence + u64::from(self.position);
        let at = self.bytes.len();
        let value_len = value.map_or(0, <[u8]>::len);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[if value.is_some() { 1 } else { 2 }, 0]);
        self.bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(&(value_len as u32).to_le_bytes());
        self.bytes.extend_from_slice(&self.position.to_le_bytes());
        self.bytes.extend_from_slice(&sequence.to_le_bytes());
        self.bytes.extend_from_slice(&self.epoch.to_le_bytes());
        self.bytes.extend_from_slice(&self.store_id.to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or(&[]));
        self.seal(self.last, at);
        self.last = at;
        self.position += 1;
        (at, sequence)
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.position
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.position == 0
    }

    /// The bytes so far, unpadded.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// The batch's bytes, padded to whole blocks.
    #[must_use]
    pub fn finish(mut self, block_bytes: u32) -> Vec<u8> {
        if let Some(flags) = self.bytes.get_mut(self.last + 5) {
            *flags = FLAG_ENDS_BATCH;
        }
        let end = self.bytes.len();
        self.seal(self.last, end);
        self.bytes.resize(end.next_multiple_of(block_bytes as usize), 0);
        self.bytes
    }

    /// Writes the CRC of the record at `start..end`.
    fn seal(&mut self, start: usize, end: usize) {
        let crc = self.bytes.get(start + 4..end).map(|record| crc32c(0, record));
        if let (Some(crc), Some(target)) = (crc, self.bytes.get_mut(start..start + 4)) {
            target.copy_from_slice(&crc.to_le_bytes());
        }
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}
