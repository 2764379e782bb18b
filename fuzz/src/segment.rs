//! A segment's shards in the hands of those who keep them.
//!
//! A segment of 2 + 1 shards is sealed once. The input damages its shards: it flips, cuts, puts
//! one in another's place, takes those of an older segment, repairs checksums. Whatever it does,
//! what opens under the key must be what was sealed; while one shard alone is damaged, everything
//! must come back, and what repair writes from undamaged shards must be the original bit by bit.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use storage_vdev::codec::Codec;
use storage_vdev::segment::{
    Entry, HEAD_BYTES, Link, Place, Sealed, SegmentBuilder, Shape, Shard, ShardHead, find_liars,
    rebuild_shard, recover_unit,
};
use storage_vdev::{BLOCK_BYTES, Opening, SegmentKeys, VolumeKey};

use crate::bytes::Input;

const DATA_SHARDS: u8 = 2;
const PARITY_SHARDS: u8 = 1;
const SHARDS: usize = (DATA_SHARDS + PARITY_SHARDS) as usize;
/// More than a chunk of rows, so that one chunk may be damaged and another not.
const BLOCKS: u16 = 2 * 17 + 1;
const OLDER: u64 = 4;
const NEWER: u64 = 9;

struct Base {
    keys: Arc<SegmentKeys>,
    codec: Codec,
    shape: Shape,
    older: Vec<Vec<u8>>,
    newer: Vec<Vec<u8>>,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let opening = Opening { epoch: 2, salt: [0x11; 32] };
        let keys = Arc::new(SegmentKeys::derive(&VolumeKey::new(&[7; 32]), [3; 16], opening));
        let Ok(shape) = Shape::new(DATA_SHARDS, PARITY_SHARDS) else {
            panic!("2 + 1 is a shape");
        };
        let codec = Codec::new(DATA_SHARDS, PARITY_SHARDS);
        let objects = |sequence| {
            let sealed = seal(&keys, shape, sequence);
            sealed.shards.iter().map(|parts| parts.concat()).collect()
        };
        let (older, newer) = (objects(OLDER), objects(NEWER));
        Base { codec, shape, older, newer, keys }
    })
}

/// The content of a block: another one in each segment.
fn block(sequence: u64, index: u16) -> Vec<u8> {
    let word = (sequence << 32 | u64::from(index)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

fn seal(keys: &Arc<SegmentKeys>, shape: Shape, sequence: u64) -> Sealed {
    let codec = Arc::new(Codec::new(DATA_SHARDS, PARITY_SHARDS));
    let Ok(mut builder) = SegmentBuilder::new(keys, &codec, shape, sequence, BLOCKS) else {
        panic!("the sequences ascend");
    };
    for index in 0..BLOCKS {
        let pushed = builder.push_block(index.into(), &block(sequence, index));
        assert_eq!(pushed, Ok(index), "there is room");
    }
    assert_eq!(builder.push_zero(100, 5), Ok(()), "there is room");
    builder.seal(Link { sequence: sequence - 1, tag: [9; 16] }, (1, BLOCKS.into()))
}

/// Damages the shards and looks at what is left. The input is a list of changes: a byte that names
/// one (modulo 6), a byte that names the shard (modulo 3), then what it needs, little-endian:
///
/// 0. exclusive-or: offset (3), mask (1)
/// 1. exclusive-or in the head: offset (3, modulo 512), mask (1), then repair all checksums
/// 2. cut to a length (3)
/// 3. take the bytes of another shard: which (1)
/// 4. take the shard of the older segment
/// 5. repair all checksums
///
/// True if some shard was damaged and all blocks came back.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let base = base();
    let mut objects = base.newer.clone();
    let mut input = Input(data);
    for _ in 0..16 {
        if input.is_empty() {
            break;
        }
        change(base, &mut objects, &mut input);
    }
    let damaged = objects.iter().zip(&base.newer).filter(|(now, then)| now != then).count();
    let shards: Vec<Option<Shard>> = objects.iter().map(|object| read(object)).collect();
    check_tables(base, &shards);
    check_repair(base, &objects, &shards);
    let all_back = check_blocks(base, &shards);
    assert!(all_back || damaged > usize::from(PARITY_SHARDS), "one shard's damage lost a block");
    damaged > 0 && all_back
}

fn change(base: &Base, objects: &mut [Vec<u8>], input: &mut Input<'_>) {
    let (what, which) = (input.byte() % 6, usize::from(input.byte()) % SHARDS);
    let other = if what == 3 { usize::from(input.byte()) % SHARDS } else { 0 };
    let copy = objects.get(other).cloned().unwrap_or_default();
    let Some(object) = objects.get_mut(which) else { return };
    let at = if what < 3 { offset(input) } else { 0 };
    match what {
        0 => flip(object, at, input.byte()),
        1 => {
            flip(object, at % HEAD_BYTES, input.byte());
            correct_checksums(object);
        }
        2 => object.truncate(at),
        3 => *object = copy,
        4 => object.clone_from(base.older.get(which).unwrap_or(&copy)),
        _ => correct_checksums(object),
    }
}

fn offset(input: &mut Input<'_>) -> usize {
    usize::from(input.u16()) | usize::from(input.byte()) << 16
}

fn flip(object: &mut [u8], at: usize, mask: u8) {
    if let Some(byte) = object.get_mut(at) {
        *byte ^= mask;
    }
}

/// Parses an object; one that parses has a head that is written again as it was read.
fn read(object: &[u8]) -> Option<Shard> {
    let head = ShardHead::parse(object);
    let shard = Shard::parse(Bytes::copy_from_slice(object));
    if let Ok(head) = &head {
        assert_eq!(Some(&head.to_bytes()[..]), object.get(..HEAD_BYTES), "a head is canonical");
    }
    assert!(head.is_ok() || shard.is_err(), "a shard without a head");
    shard.ok()
}

/// Whatever opens is what was sealed.
fn check_tables(base: &Base, shards: &[Option<Shard>]) {
    for shard in shards.iter().flatten() {
        let segment = shard.segment();
        let Ok(entries) = segment.open_table(&base.keys, shard.table()) else { continue };
        let expected = [
            Entry::Data { address: 0, count: BLOCKS.into() },
            Entry::Zero { address: 100, count: 5 },
        ];
        assert_eq!(entries, expected, "a table that was not sealed");
        assert!([OLDER, NEWER].contains(&segment.sequence), "a segment that was not sealed");
    }
}

/// From undamaged shards repair makes the originals, from others an object that parses or nothing.
fn check_repair(base: &Base, objects: &[Vec<u8>], shards: &[Option<Shard>]) {
    let sources: Vec<Shard> = shards.iter().flatten().cloned().collect();
    let undamaged = objects.iter().zip(&base.newer).all(|(now, then)| now == then || is_bad(now));
    for (shard, original) in (0u8..).zip(&base.newer) {
        let slot = base.shape.slot_of(NEWER, shard);
        let Ok(parts) = rebuild_shard(&base.codec, &sources, (shard, slot), 0) else { continue };
        let rebuilt = parts.concat();
        let parsed = Shard::parse(Bytes::copy_from_slice(&rebuilt));
        assert!(parsed.is_ok_and(|shard| shard.check().is_ok()), "a repair that is damaged");
        assert!(!undamaged || rebuilt == *original, "a repair that is not the original");
    }
    if undamaged && let Ok(liars) = find_liars(&base.codec, &sources) {
        assert_eq!(liars, 0, "an honest shard was blamed");
    }
}

/// Whether the object doesn't parse at all, so that it can't mislead.
fn is_bad(object: &[u8]) -> bool {
    Shard::parse(Bytes::copy_from_slice(object)).is_err()
}

/// Reads all blocks of the newer segment from whatever shards say they are its; true if all came.
fn check_blocks(base: &Base, shards: &[Option<Shard>]) -> bool {
    let mut all = true;
    for index in 0..BLOCKS {
        let row = index / u16::from(DATA_SHARDS);
        let units = (0u8..).zip(shards).filter_map(|(slot, shard)| {
            shard.as_ref().and_then(|shard| shard.unit(row)).map(|unit| (slot, unit))
        });
        let units: Vec<(u8, &[u8])> = units.collect();
        let place = Place::Block(index.into());
        match recover_unit(&base.codec, &base.keys, (NEWER, index), place, &units) {
            Ok(recovered) => {
                assert_eq!(recovered.block, block(NEWER, index), "a block that was not sealed");
            }
            Err(_) => all = false,
        }
    }
    all
}

/// Corrects all checksums of an object that has a whole head, as the format places them.
fn correct_checksums(object: &mut [u8]) {
    let field = |at: usize| object.get(at).copied().unwrap_or_default();
    let blocks = usize::from(u16::from_le_bytes([field(120), field(121)]));
    let rows = blocks.div_ceil(usize::from(field(11)).max(1));
    let Some((head, rest)) = object.split_first_chunk_mut::<HEAD_BYTES>() else { return };
    let (units, table) = rest.split_at((rows * 4112).min(rest.len()));
    put_crc(head, 248, crc32c::crc32c(table));
    let (common, _) = head.split_at(252);
    let common = crc32c::crc32c(common);
    put_crc(head, 252, common);
    for (chunk, bytes) in units.chunks(16 * 4112).enumerate().take(32) {
        put_crc(head, 304 + 4 * chunk, crc32c::crc32c(bytes));
    }
    let own = head.get(256..508).unwrap_or_default();
    let own = crc32c::crc32c_append(common, own);
    put_crc(head, 508, own);
}

fn put_crc(head: &mut [u8; HEAD_BYTES], at: usize, crc: u32) {
    for (target, source) in head.iter_mut().skip(at).zip(crc.to_le_bytes()) {
        *target = source;
    }
}
