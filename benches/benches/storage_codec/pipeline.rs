//! What a segment goes through on one core, and the audit tree.

use std::sync::Arc;

use benches::milliseconds;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use storage_vdev::audit::AuditTree;
use storage_vdev::codec::Codec;
use storage_vdev::segment::{Link, SegmentBuilder, Shape};
use storage_vdev::{Opening, SegmentKeys, VolumeKey};

const BLOCK_BYTES: usize = 4096;
const UNIT_BYTES: usize = 4112;
const TURNS: usize = 25;
/// Rows that are sealed and then encoded while they are in the second-level cache.
const STRIP_ROWS: usize = 16;

/// The shards of one segment, and what makes them.
struct Segment {
    data_shards: usize,
    plain: Vec<u8>,
    key: LessSafeKey,
    codec: Codec,
    shards: Vec<Vec<u8>>,
}

impl Segment {
    fn new(data_shards: u8, parity_shards: u8, blocks: usize) -> Self {
        let rows = blocks / usize::from(data_shards);
        Self {
            data_shards: data_shards.into(),
            plain: vec![0x5a; blocks * BLOCK_BYTES],
            key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap()),
            codec: Codec::new(data_shards, parity_shards),
            shards: vec![vec![0; rows * UNIT_BYTES]; usize::from(data_shards + parity_shards)],
        }
    }

    fn rows(&self) -> usize {
        self.shards[0].len() / UNIT_BYTES
    }

    /// Copies and seals the blocks of these rows into the data shards' units.
    fn seal(&mut self, rows: std::ops::Range<usize>) {
        for row in rows {
            for column in 0..self.data_shards {
                let block = row * self.data_shards + column;
                let unit = &mut self.shards[column][row * UNIT_BYTES..][..UNIT_BYTES];
                let (bytes, tag) = unit.split_at_mut(BLOCK_BYTES);
                bytes.copy_from_slice(&self.plain[block * BLOCK_BYTES..][..BLOCK_BYTES]);
                let mut nonce = [0; 12];
                nonce[4..].copy_from_slice(&(block as u64).to_be_bytes());
                let nonce = Nonce::assume_unique_for_key(nonce);
                let aad = Aad::from([9; 24]);
                let made = self.key.seal_in_place_separate_tag(nonce, aad, bytes).unwrap();
                tag.copy_from_slice(made.as_ref());
            }
        }
    }

    fn encode(&mut self, rows: std::ops::Range<usize>) {
        let bytes = rows.start * UNIT_BYTES..rows.end * UNIT_BYTES;
        let (data, parity) = self.shards.split_at_mut(self.data_shards);
        let data: Vec<&[u8]> = data.iter().map(|shard| &shard[bytes.clone()]).collect();
        let mut parity: Vec<&mut [u8]> =
            parity.iter_mut().map(|shard| &mut shard[bytes.clone()]).collect();
        self.codec.encode(&data, &mut parity);
    }

    fn checksum(&self, rows: std::ops::Range<usize>) {
        let bytes = rows.start * UNIT_BYTES..rows.end * UNIT_BYTES;
        for shard in &self.shards {
            std::hint::black_box(crc32c::crc32c(&shard[bytes.clone()]));
        }
    }

    fn strips(&self) -> Vec<std::ops::Range<usize>> {
        let rows = self.rows();
        (0..rows).step_by(STRIP_ROWS).map(|at| at..rows.min(at + STRIP_ROWS)).collect()
    }

    /// GB/s of the blocks' bytes.
    fn rate(&mut self, mut work: impl FnMut(&mut Self)) -> f64 {
        work(self);
        let best = milliseconds(TURNS, || work(self)).percentile(0);
        self.plain.len() as f64 / best / 1e6
    }
}

/// What the volume does: the segment's builder, which allocates its shards, seals each block as it
/// comes and encodes and checksums as it goes.
fn builder_rate(data_shards: u8, parity_shards: u8, blocks: usize) -> f64 {
    let shape = Shape::new(data_shards, parity_shards).unwrap();
    let codec = Arc::new(Codec::new(data_shards, parity_shards));
    let opening = Opening { epoch: 1, salt: [3; 32] };
    let keys = Arc::new(SegmentKeys::derive(&VolumeKey::new(&[7; 32]), [1; 16], opening));
    let plain = vec![0x5a; blocks * BLOCK_BYTES];
    let mut sequence = 0;
    let link = Link::default();
    let best = milliseconds(TURNS + 1, || {
        sequence += 1;
        let mut builder =
            SegmentBuilder::new(&keys, &codec, shape, sequence, shape.blocks_max()).unwrap();
        for (address, block) in (0..).zip(plain.chunks(BLOCK_BYTES)) {
            builder.push_block(address, block).unwrap();
        }
        drop(std::hint::black_box(builder.seal(link, (1, 1))));
    });
    plain.len() as f64 / best.percentile(0) / 1e6
}

/// A row of the table: the steps alone, all together, and what the steps' sum would give.
pub(crate) fn seal(data_shards: u8, parity_shards: u8, blocks: usize) -> Vec<String> {
    let mut segment = Segment::new(data_shards, parity_shards, blocks);
    let strips = segment.strips();
    let each = |segment: &mut Segment, step: &dyn Fn(&mut Segment, std::ops::Range<usize>)| {
        strips.iter().for_each(|strip| step(segment, strip.clone()));
    };
    let steps = [
        segment.rate(|s| each(s, &Segment::seal)),
        segment.rate(|s| each(s, &Segment::encode)),
        segment.rate(|s| each(s, &|s, rows| s.checksum(rows))),
    ];
    let whole = segment.rate(|s| {
        each(s, &|s, rows| {
            s.seal(rows.clone());
            s.encode(rows.clone());
            s.checksum(rows);
        });
    });
    let sum = 1.0 / steps.iter().map(|rate| 1.0 / rate).sum::<f64>();
    let code = format!("{data_shards}+{parity_shards}, {} MiB", blocks / 256);
    let mut row = vec![code];
    let builder = builder_rate(data_shards, parity_shards, blocks);
    row.extend(steps.iter().chain([&whole, &sum, &builder]).map(|rate| format!("{rate:.2}")));
    row
}

/// The audit tree over a shard of this many bytes: GB/s.
pub(crate) fn audit(bytes: usize) -> f64 {
    let shard = vec![0x3c; bytes];
    let best = milliseconds(TURNS, || drop(std::hint::black_box(AuditTree::of(&shard))));
    bytes as f64 / best.percentile(0) / 1e6
}

/// SHA-256 of the library over the same bytes at once: GB/s.
pub(crate) fn sha256(bytes: usize) -> f64 {
    let shard = vec![0x3c; bytes];
    let best = milliseconds(TURNS, || {
        std::hint::black_box(ring::digest::digest(&ring::digest::SHA256, &shard));
    });
    bytes as f64 / best.percentile(0) / 1e6
}
