//! Segments to test with: their blocks are determined by a seed.

use std::sync::Arc;

use bytes::Bytes;
use storage_vdev::codec::Codec;
use storage_vdev::segment::{Entry, Link, Sealed, SegmentBuilder, Shape, Shard};
use storage_vdev::{BLOCK_BYTES, Opening, SegmentKeys, VolumeKey};

pub(crate) const UUID: [u8; 16] = *b"a volume's uuid.";
pub(crate) const SEQUENCE: u64 = 7;
pub(crate) const LINK: Link = Link { sequence: 5, tag: [0x1a; 16] };
pub(crate) const WRITES: (u64, u64) = (100, 140);

/// SplitMix64: the fixture's blocks come from it, so it never changes.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A segment and all that one needs to look at it.
pub(crate) struct Sample {
    pub(crate) keys: Arc<SegmentKeys>,
    pub(crate) codec: Arc<Codec>,
    pub(crate) shape: Shape,
    pub(crate) blocks: Vec<Vec<u8>>,
    pub(crate) sealed: Sealed,
}

pub(crate) fn opening() -> Opening {
    Opening { epoch: 3, salt: [0x5a; 32] }
}

/// The same keys each time, as if none of them had sealed anything.
pub(crate) fn keys() -> Arc<SegmentKeys> {
    Arc::new(SegmentKeys::derive(&VolumeKey::new(&[0xd1; 32]), UUID, opening()))
}

pub(crate) fn builder(
    (data, parity): (u8, u8),
    capacity: u16,
) -> (SegmentBuilder, Arc<SegmentKeys>, Arc<Codec>, Shape) {
    let shape = Shape::new(data, parity).unwrap();
    let (keys, codec) = (keys(), Arc::new(Codec::new(data, parity)));
    let builder = SegmentBuilder::new(&keys, &codec, shape, SEQUENCE, capacity).unwrap();
    (builder, keys, codec, shape)
}

pub(crate) fn random_block(rng: &mut Rng) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    rng.fill(&mut block);
    block
}

/// The entry that block `index` of a sample comes from: runs, single blocks, moved ones, pages.
pub(crate) fn entry_of(index: u16) -> Entry {
    let address = 1000 + u64::from(index);
    match index % 7 {
        3 => Entry::Moved { address: address << 20, from: address << 12 | 5 },
        5 => Entry::Meta { address: u64::MAX - address },
        _ => Entry::Data { address, count: 1 },
    }
}

/// A segment of `blocks` blocks and a zeroed range.
pub(crate) fn sample((data, parity): (u8, u8), blocks: u16, seed: u64) -> Sample {
    let (mut builder, keys, codec, shape) = builder((data, parity), blocks);
    let mut rng = Rng::new(seed);
    let contents: Vec<Vec<u8>> = (0..blocks).map(|_| random_block(&mut rng)).collect();
    for (index, block) in (0..).zip(&contents) {
        let pushed = match entry_of(index) {
            Entry::Data { address, .. } => builder.push_block(address, block),
            Entry::Moved { address, from } => builder.push_moved(address, from, block),
            Entry::Meta { address } => builder.push_meta(address, block),
            Entry::Zero { .. } => unreachable!("a zeroed range has no block"),
        };
        assert_eq!(pushed, Ok(index));
    }
    builder.push_zero(1 << 40, 1 << 50).unwrap();
    let sealed = builder.seal(LINK, WRITES);
    Sample { keys, codec, shape, blocks: contents, sealed }
}

impl Sample {
    /// The bytes of shard `shard`'s object.
    pub(crate) fn object(&self, shard: u8) -> Vec<u8> {
        self.sealed.shards[usize::from(shard)].concat()
    }

    pub(crate) fn shard(&self, shard: u8) -> Shard {
        Shard::parse(Bytes::from(self.object(shard))).unwrap()
    }

    /// All shards, in order.
    pub(crate) fn shards(&self) -> Vec<Shard> {
        (0..self.shape.shards()).map(|shard| self.shard(shard)).collect()
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.sealed.header.open_table(&self.keys, self.shard(0).table()).unwrap()
    }
}

/// Corrects the checksums of a shard's object, as somebody does who lies on purpose. Says where
/// they are by number, as the format's text does.
pub(crate) fn correct_checksums(object: &mut [u8]) {
    let blocks = usize::from(u16::from_le_bytes([object[120], object[121]]));
    let rows = blocks.div_ceil(usize::from(object[11]).max(1));
    let table_start = (512 + rows * 4112).min(object.len());
    put_crc(object, 248, crc32c::crc32c(&object[table_start..]));
    put_crc(object, 252, crc32c::crc32c(&object[..252]));
    let units = object[512..table_start].to_vec();
    for (chunk, bytes) in units.chunks(16 * 4112).enumerate() {
        put_crc(object, 304 + 4 * chunk, crc32c::crc32c(bytes));
    }
    let common = u32::from_le_bytes(object[252..256].try_into().unwrap());
    put_crc(object, 508, crc32c::crc32c_append(common, &object[256..508]));
}

fn put_crc(object: &mut [u8], at: usize, crc: u32) {
    object[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}
