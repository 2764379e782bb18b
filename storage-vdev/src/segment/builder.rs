//! Making segments.

use std::sync::Arc;

use bytes::Bytes;

use super::buffers::Buffers;
use super::head::{Link, SegmentHeader, ShardHead};
use super::shape::{CHUNK_BYTES, CHUNK_UNITS, Shape, UNIT_BYTES};
use super::table::{ADDRESS_MAX, Place, TableWriter};
use crate::codec::Codec;
use crate::geometry::BLOCK_BYTES;
use crate::keys::{SegmentKeys, SequenceUsed};

/// Why something is not put into a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// No room: seal it and begin another.
    #[error("the segment is full")]
    Full,
    /// Not a block, or an address that no volume has.
    #[error("not a block of a volume")]
    Block,
}

/// A segment that is being filled. Each block is encrypted where it will lie in its shard as it
/// comes, and each sixteen rows get their parity and checksums while they are in the cache.
#[derive(Debug)]
pub struct SegmentBuilder {
    keys: Arc<SegmentKeys>,
    codec: Arc<Codec>,
    shape: Shape,
    sequence: u64,
    /// The blocks it will take.
    capacity: u16,
    blocks: u16,
    buffers: Buffers,
    /// Each shard's units. Those of data shards grow block by block; those of parity shards are
    /// true as far as there are checksums, and may be longer.
    units: Vec<Vec<u8>>,
    chunk_crcs: Vec<Vec<u32>>,
    table: TableWriter,
}

/// A segment that is to be stored.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// What all its shards say in common.
    pub header: SegmentHeader,
    /// The objects of shard 0, 1, … k + m - 1, each in parts that follow each other. The last part
    /// (the table) is shared.
    pub shards: Vec<[Bytes; 3]>,
}

impl SegmentBuilder {
    /// Begins segment `sequence`, which takes up to `capacity` blocks (no more than
    /// [`Shape::blocks_max`]), under `keys`.
    ///
    /// # Errors
    /// `sequence` is not above all that these keys have sealed.
    pub fn new(
        keys: &Arc<SegmentKeys>,
        codec: &Arc<Codec>,
        shape: Shape,
        sequence: u64,
        capacity: u16,
    ) -> Result<Self, SequenceUsed> {
        Self::in_buffers(&Buffers::default(), keys, (codec, shape), sequence, capacity)
    }

    /// As [`SegmentBuilder::new`], in memory from `buffers`, where it goes back when the nodes are
    /// done with the shards.
    ///
    /// # Errors
    /// `sequence` is not above all that these keys have sealed.
    pub fn in_buffers(
        buffers: &Buffers,
        keys: &Arc<SegmentKeys>,
        (codec, shape): (&Arc<Codec>, Shape),
        sequence: u64,
        capacity: u16,
    ) -> Result<Self, SequenceUsed> {
        keys.claim(sequence)?;
        let capacity = capacity.min(shape.blocks_max());
        let (rows, shards) = (shape.rows(capacity), usize::from(shape.shards()));
        let room = usize::from(rows) * UNIT_BYTES;
        let chunks = usize::from(rows).div_ceil(CHUNK_UNITS);
        let mut units: Vec<Vec<u8>> = (0..shards).map(|_| buffers.take(room)).collect();
        units.iter_mut().take(usize::from(shape.data_shards())).for_each(Vec::clear);
        Ok(Self {
            buffers: buffers.clone(),
            keys: Arc::clone(keys),
            codec: Arc::clone(codec),
            shape,
            sequence,
            capacity,
            blocks: 0,
            units,
            chunk_crcs: (0..shards).map(|_| Vec::with_capacity(chunks)).collect(),
            table: TableWriter::default(),
        })
    }

    /// The segment's sequence.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How many blocks it has.
    #[must_use]
    pub fn blocks(&self) -> u16 {
        self.blocks
    }

    /// Whether it takes no more blocks.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.blocks == self.capacity || !self.table.has_room()
    }

    /// Appends the block of `address` and returns its index.
    ///
    /// # Errors
    /// It is full, `bytes` is not a block, or there is no such address.
    pub fn push_block(&mut self, address: u64, bytes: &[u8]) -> Result<u16, PushError> {
        check_range(address, 1)?;
        let index = self.push(Place::Block(address), bytes)?;
        self.table.push_data(address);
        Ok(index)
    }

    /// Appends the block of `address` as a copy of the one at location `from`: it counts only if
    /// the map says `from` when the segment is applied. Returns its index.
    ///
    /// # Errors
    /// It is full, `bytes` is not a block, or there is no such address.
    pub fn push_moved(&mut self, address: u64, from: u64, bytes: &[u8]) -> Result<u16, PushError> {
        check_range(address, 1)?;
        let index = self.push(Place::Block(address), bytes)?;
        self.table.push_moved(address, from);
        Ok(index)
    }

    /// Appends a page of the volume's own maps and returns its index.
    ///
    /// # Errors
    /// It is full, or `bytes` is not a block.
    pub fn push_meta(&mut self, address: u64, bytes: &[u8]) -> Result<u16, PushError> {
        let index = self.push(Place::Meta(address), bytes)?;
        self.table.push_meta(address);
        Ok(index)
    }

    /// Makes `count` blocks from `address` on zero.
    ///
    /// # Errors
    /// The table is full, or there is no such range.
    pub fn push_zero(&mut self, address: u64, count: u64) -> Result<(), PushError> {
        check_range(address, count)?;
        if !self.table.has_room() {
            return Err(PushError::Full);
        }
        self.table.push_zero(address, count);
        Ok(())
    }

    fn push(&mut self, place: Place, bytes: &[u8]) -> Result<u16, PushError> {
        if self.is_full() {
            return Err(PushError::Full);
        }
        if bytes.len() != BLOCK_BYTES {
            return Err(PushError::Block);
        }
        let index = self.blocks;
        let shard = index % u16::from(self.shape.data_shards());
        let units = self.units.get_mut(usize::from(shard)).ok_or(PushError::Full)?;
        let start = units.len();
        units.extend_from_slice(bytes);
        let (_, block) = units.split_at_mut(start);
        let tag = self.keys.seal_block((self.sequence, index), place.bytes(), block);
        units.extend_from_slice(&tag);
        self.blocks += 1;
        let chunk_blocks = CHUNK_UNITS * usize::from(self.shape.data_shards());
        if usize::from(self.blocks).is_multiple_of(chunk_blocks) {
            self.finish_chunk();
        }
        Ok(index)
    }

    /// Computes the parity and the checksums of the rows since the last chunk.
    fn finish_chunk(&mut self) {
        let chunks = self.chunk_crcs.first().map_or(0, Vec::len);
        let (data, parity) = self.units.split_at_mut(usize::from(self.shape.data_shards()));
        let start = chunks * CHUNK_BYTES;
        let end = data.first().map_or(0, Vec::len);
        let data: Vec<&[u8]> = data.iter().filter_map(|units| units.get(start..end)).collect();
        let mut fresh: Vec<&mut [u8]> = Vec::with_capacity(parity.len());
        for units in parity {
            // What an earlier segment left in the buffer is overwritten.
            if units.len() < end {
                units.resize(end, 0);
            }
            fresh.extend(units.get_mut(start..end));
        }
        self.codec.encode(&data, &mut fresh);
        for (units, crcs) in self.units.iter().zip(&mut self.chunk_crcs) {
            crcs.extend(units.get(start..end).map(crc32c::crc32c));
        }
    }

    /// Finishes the segment. `link` is the segment that was committed before; `writes` are the
    /// numbers of the first and the last write that this one covers.
    #[must_use]
    pub fn seal(mut self, link: Link, writes: (u64, u64)) -> Sealed {
        let row_end = usize::from(self.shape.rows(self.blocks)) * UNIT_BYTES;
        let data_shards = usize::from(self.shape.data_shards());
        for units in self.units.iter_mut().take(data_shards) {
            units.resize(row_end, 0);
        }
        let chunks = self.chunk_crcs.first().map_or(0, Vec::len);
        if chunks * CHUNK_BYTES < row_end {
            self.finish_chunk();
        }
        for units in self.units.iter_mut().skip(data_shards) {
            units.truncate(row_end);
        }
        let (first_write, last_write) = writes;
        let mut header = SegmentHeader {
            shape: self.shape,
            uuid: self.keys.uuid(),
            opening: self.keys.opening(),
            sequence: self.sequence,
            link,
            first_write,
            last_write,
            blocks: self.blocks,
            table_bytes: 0,
            tag: [0; 16],
            table_crc: 0,
        };
        let mut table = self.table.into_bytes();
        header.seal_table(&self.keys, &mut table);
        let table = Bytes::from(table);
        let shards = (0u8..).zip(self.units).zip(self.chunk_crcs);
        let shards = shards.map(|((shard, units), chunk_crcs)| {
            let head = ShardHead {
                segment: header,
                shard,
                slot: self.shape.slot_of(self.sequence, shard),
                generation: 0,
                audit_root: [0; 32],
                chunk_crcs,
            };
            [Bytes::copy_from_slice(&head.to_bytes()), self.buffers.lend(units), table.clone()]
        });
        Sealed { header, shards: shards.collect() }
    }
}

fn check_range(address: u64, count: u64) -> Result<(), PushError> {
    let fits = address < ADDRESS_MAX && count > 0 && count <= ADDRESS_MAX - address;
    if fits { Ok(()) } else { Err(PushError::Block) }
}
