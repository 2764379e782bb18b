//! Heads of shards, read and written.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{Bound, CODE_REED_SOLOMON, COMMON_MAGIC, Common, OWN_MAGIC, Own, VERSION};
use super::shape::{CHUNK_UNITS, CHUNKS_MAX, HEAD_BYTES, Shape, UNIT_BYTES};
use super::table::{Entry, TABLE_BYTES_MAX, parse};
use crate::keys::{NotAuthentic, Opening, SegmentKeys, Uuid};

/// Why bytes are not a shard, or not one that this program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It doesn't begin as a shard does.
    #[error("not a shard of a segment")]
    Magic,
    /// Another version of the format.
    #[error("made by another Hypha: its format is {found}, this one's is {VERSION}")]
    Version {
        /// The version.
        found: u16,
    },
    /// A code that this program doesn't have.
    #[error("erasure code {code} with {data_shards}+{parity_shards} shards is not known")]
    Code {
        /// The code's number.
        code: u8,
        /// k.
        data_shards: u8,
        /// m.
        parity_shards: u8,
    },
    /// A checksum doesn't fit.
    #[error("the {what} is damaged")]
    Damaged {
        /// Of what.
        what: &'static str,
    },
    /// The object is shorter or longer than its head says.
    #[error("{found} bytes where a shard of this head has {expected}")]
    Length {
        /// The bytes that there are.
        found: usize,
        /// The bytes that it should have.
        expected: usize,
    },
    /// Fields of the head contradict each other.
    #[error("the head says what no writer writes: {what}")]
    Head {
        /// Which.
        what: &'static str,
    },
    /// The head belongs to another volume or opening than the keys.
    #[error("another opening's segment")]
    OtherOpening,
    /// The table is not what the volume's key sealed.
    #[error(transparent)]
    NotAuthentic(#[from] NotAuthentic),
    /// The table is authentic and makes no sense: a writer's bug.
    #[error("the entry table makes no sense")]
    Table,
}

/// A segment's place in the chain of segments: its sequence, and the tag that nobody without the
/// key can make for it. All zero: there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Link {
    /// The sequence.
    pub sequence: u64,
    /// The tag of its header and table.
    pub tag: [u8; 16],
}

/// What all shards of a segment say in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The code.
    pub shape: Shape,
    /// The volume.
    pub uuid: Uuid,
    /// Which opening wrote it: names the keys.
    pub opening: Opening,
    /// Its number, at least 1.
    pub sequence: u64,
    /// The segment that was committed before it.
    pub link: Link,
    /// The number of the first write that it covers.
    pub first_write: u64,
    /// The number of the last write that it covers.
    pub last_write: u64,
    /// How many blocks it has.
    pub blocks: u16,
    /// The bytes of its table.
    pub table_bytes: u32,
    /// The tag of header and table. Authentic only after [`SegmentHeader::open_table`].
    pub tag: [u8; 16],
    /// CRC-32C of the encrypted table.
    pub table_crc: u32,
}

impl SegmentHeader {
    /// How the next segment refers to this one.
    #[must_use]
    pub fn link(&self) -> Link {
        Link { sequence: self.sequence, tag: self.tag }
    }

    /// The units of each shard.
    #[must_use]
    pub fn rows(&self) -> u16 {
        self.shape.rows(self.blocks)
    }

    /// The bytes of each shard's units.
    #[must_use]
    pub fn units_bytes(&self) -> usize {
        usize::from(self.rows()) * UNIT_BYTES
    }

    /// Where the encrypted table is in each shard's object: offset and length.
    #[must_use]
    pub fn table_at(&self) -> (u32, u32) {
        ((HEAD_BYTES + self.units_bytes()) as u32, self.table_bytes)
    }

    /// The bytes of each shard's object.
    #[must_use]
    pub fn object_bytes(&self) -> usize {
        HEAD_BYTES + self.units_bytes() + self.table_bytes as usize
    }

    /// The chunks that have a checksum.
    #[must_use]
    pub fn chunks(&self) -> usize {
        usize::from(self.rows()).div_ceil(CHUNK_UNITS)
    }

    /// Opens the encrypted table (the bytes at [`SegmentHeader::table_at`] of any shard). If it
    /// opens, the whole header is authentic too.
    ///
    /// # Errors
    /// Not this volume's and opening's key, not authentic, or a table that makes no sense.
    pub fn open_table(&self, keys: &SegmentKeys, table: &[u8]) -> Result<Vec<Entry>, FormatError> {
        if keys.opening() != self.opening || keys.uuid() != self.uuid {
            return Err(FormatError::OtherOpening);
        }
        if table.len() != self.table_bytes as usize || table.len() > TABLE_BYTES_MAX {
            return Err(FormatError::Damaged { what: "entry table" });
        }
        let mut table = table.to_vec();
        keys.open_table(self.sequence, self.bound().as_bytes(), &mut table, self.tag)?;
        parse(&table, self.blocks)
    }

    /// Seals `table` in place and fills in the fields that follow from it.
    pub(super) fn seal_table(&mut self, keys: &SegmentKeys, table: &mut [u8]) {
        self.table_bytes = table.len() as u32;
        self.tag = keys.seal_table(self.sequence, self.bound().as_bytes(), table);
        self.table_crc = crc32c::crc32c(table);
    }

    fn bound(&self) -> Bound {
        Bound {
            magic: COMMON_MAGIC,
            version: U16::new(VERSION),
            code: CODE_REED_SOLOMON,
            data_shards: self.shape.data_shards(),
            parity_shards: self.shape.parity_shards(),
            reserved: [0; 3],
            uuid: self.uuid,
            epoch: U64::new(self.opening.epoch),
            salt: self.opening.salt,
            sequence: U64::new(self.sequence),
            link_sequence: U64::new(self.link.sequence),
            link_tag: self.link.tag,
            first_write: U64::new(self.first_write),
            last_write: U64::new(self.last_write),
            blocks: U16::new(self.blocks),
            reserved_too: [0; 2],
            table_bytes: U32::new(self.table_bytes),
            reserved_tail: [0; 104],
        }
    }

    fn common(&self) -> Common {
        let mut common = Common {
            bound: self.bound(),
            tag: self.tag,
            table_crc: U32::new(self.table_crc),
            crc: U32::new(0),
        };
        common.crc = U32::new(crc_before_last_word(common.as_bytes(), 0));
        common
    }

    fn parse(common: &Common) -> Result<Self, FormatError> {
        let bound = &common.bound;
        if bound.magic != COMMON_MAGIC {
            return Err(FormatError::Magic);
        }
        if crc_before_last_word(common.as_bytes(), 0) != common.crc.get() {
            return Err(FormatError::Damaged { what: "segment header" });
        }
        let found = bound.version.get();
        if found != VERSION {
            return Err(FormatError::Version { found });
        }
        let (code, data_shards, parity_shards) =
            (bound.code, bound.data_shards, bound.parity_shards);
        let shape = Shape::new(data_shards, parity_shards)
            .ok()
            .filter(|_| code == CODE_REED_SOLOMON)
            .ok_or(FormatError::Code { code, data_shards, parity_shards })?;
        let header = Self {
            shape,
            uuid: bound.uuid,
            opening: Opening { epoch: bound.epoch.get(), salt: bound.salt },
            sequence: bound.sequence.get(),
            link: Link { sequence: bound.link_sequence.get(), tag: bound.link_tag },
            first_write: bound.first_write.get(),
            last_write: bound.last_write.get(),
            blocks: bound.blocks.get(),
            table_bytes: bound.table_bytes.get(),
            tag: common.tag,
            table_crc: common.table_crc.get(),
        };
        header.check()?;
        // The one way to write these values is the one that was read: nothing is hidden in what
        // is reserved, and a head that was parsed can be written again bit by bit.
        if header.common().as_bytes() != common.as_bytes() {
            return Err(FormatError::Head { what: "a reserved field is not zero" });
        }
        Ok(header)
    }

    fn check(&self) -> Result<(), FormatError> {
        let head = |what| Err(FormatError::Head { what });
        if self.sequence == 0 {
            return head("sequence 0");
        }
        if self.link.sequence >= self.sequence {
            return head("a link that doesn't lead back");
        }
        if self.blocks > self.shape.blocks_max() {
            return head("more blocks than a segment has");
        }
        if self.table_bytes as usize > TABLE_BYTES_MAX || !self.table_bytes.is_multiple_of(8) {
            return head("the table's length");
        }
        Ok(())
    }
}

/// A shard's head: what the segment's shards have in common, and what is this shard's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardHead {
    /// The common part.
    pub segment: SegmentHeader,
    /// Which of the k + m shards: data shards first.
    pub shard: u8,
    /// The slot that it was written for.
    pub slot: u8,
    /// 0 as first written; each repair of this shard adds one.
    pub generation: u32,
    /// The root of the audit tree over its units; zero if none was built.
    pub audit_root: [u8; 32],
    /// CRC-32C of each chunk of its units.
    pub(super) chunk_crcs: Vec<u32>,
}

impl ShardHead {
    /// Reads the first [`HEAD_BYTES`] of a shard. Needs no key; proves nothing but the absence of
    /// accidents.
    ///
    /// # Errors
    /// It is not an intact head of this format.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let too_short = FormatError::Length { found: bytes.len(), expected: HEAD_BYTES };
        let (common, rest) = Common::ref_from_prefix(bytes).map_err(|_| too_short)?;
        let (own, _) = Own::ref_from_prefix(rest).map_err(|_| too_short)?;
        let segment = SegmentHeader::parse(common)?;
        if crc_before_last_word(own.as_bytes(), common.crc.get()) != own.crc.get() {
            return Err(FormatError::Damaged { what: "shard's head" });
        }
        if own.magic != OWN_MAGIC || own.version.get() != VERSION {
            return Err(FormatError::Head { what: "the own part's magic or version" });
        }
        if own.shard >= segment.shape.shards() {
            return Err(FormatError::Head { what: "a shard that the code doesn't have" });
        }
        let chunk_crcs = own.chunk_crcs.iter().take(segment.chunks()).map(|crc| crc.get());
        let head = Self {
            segment,
            shard: own.shard,
            slot: own.slot,
            generation: own.generation.get(),
            audit_root: own.audit_root,
            chunk_crcs: chunk_crcs.collect(),
        };
        if head.own(common.crc.get()).as_bytes() != own.as_bytes() {
            return Err(FormatError::Head { what: "a reserved field is not zero" });
        }
        Ok(head)
    }

    /// The head's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEAD_BYTES] {
        let common = self.segment.common();
        let own = self.own(common.crc.get());
        let mut bytes = [0; HEAD_BYTES];
        let (first, second) = bytes.split_at_mut(size_of::<Common>());
        first.copy_from_slice(common.as_bytes());
        second.copy_from_slice(own.as_bytes());
        bytes
    }

    /// Whether `bytes` are chunk `chunk` of its units.
    #[must_use]
    pub fn chunk_is_intact(&self, chunk: usize, bytes: &[u8]) -> bool {
        self.chunk_crcs.get(chunk).is_some_and(|crc| crc32c::crc32c(bytes) == *crc)
    }

    fn own(&self, common_crc: u32) -> Own {
        let mut chunk_crcs = [U32::new(0); CHUNKS_MAX];
        for (field, crc) in chunk_crcs.iter_mut().zip(&self.chunk_crcs) {
            field.set(*crc);
        }
        let mut own = Own {
            magic: OWN_MAGIC,
            version: U16::new(VERSION),
            shard: self.shard,
            slot: self.slot,
            generation: U32::new(self.generation),
            audit_root: self.audit_root,
            chunk_crcs,
            reserved: [0; 76],
            crc: U32::new(0),
        };
        own.crc = U32::new(crc_before_last_word(own.as_bytes(), common_crc));
        own
    }
}

/// The CRC-32C of all but the last four bytes, continued from `start`.
fn crc_before_last_word(bytes: &[u8], start: u32) -> u32 {
    let (before, _) = bytes.split_at(bytes.len() - size_of::<U32>());
    crc32c::crc32c_append(start, before)
}
