//! A segment that was written once and for all, read by this crate, and again from nothing but
//! `docs/storage-segment.md`, with `ring` and `reed-solomon-erasure`.

use std::path::PathBuf;

use bytes::Bytes;
use reed_solomon_erasure::galois_8::ReedSolomon;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use storage_vdev::segment::{Entry, Shard, open_unit};

use crate::sample::{self, SEQUENCE, Sample, UUID, entry_of};

/// What the fixture is: 2 + 1 shards, five blocks.
fn written() -> Sample {
    sample::sample((2, 1), 5, 2026)
}

fn path(shard: u8) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/segment-2/{shard}"))
}

fn fixture(shard: u8) -> Vec<u8> {
    std::fs::read(path(shard)).unwrap()
}

/// Only for a new version of the format, into a folder of its own: what is checked in never changes.
#[test]
#[ignore = "writes the fixture"]
fn write_the_fixture() {
    for shard in 0..3 {
        assert!(!path(shard).exists(), "it has been written");
        std::fs::write(path(shard), written().object(shard)).unwrap();
    }
}

#[test]
fn sealing_still_gives_the_same_bytes() {
    for shard in 0..3 {
        assert!(written().object(shard) == fixture(shard), "shard {shard} has changed");
    }
}

#[test]
fn the_fixture_is_read() {
    let sample = written();
    for shard in 0..3 {
        let shard = Shard::parse(Bytes::from(fixture(shard))).unwrap();
        let entries = shard.segment().open_table(&sample.keys, shard.table()).unwrap();
        let mut expected: Vec<Entry> = Vec::new();
        expected.push(Entry::Data { address: 1000, count: 3 });
        expected.extend([entry_of(3), entry_of(4)]);
        expected.push(Entry::Zero { address: 1 << 40, count: 1 << 50 });
        assert_eq!(entries, expected);
        shard.check_blocks(&sample.keys, &entries).unwrap();
    }
    for (index, block) in (0..).zip(&sample.blocks) {
        let (shard, offset) = sample.shape.unit_at(index);
        let mut unit = fixture(shard)[offset as usize..][..4112].to_vec();
        let place = entry_of(index).place(0).unwrap();
        open_unit(&sample.keys, (SEQUENCE, index), place, &mut unit).unwrap();
        assert_eq!(unit, *block);
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn key(head: &[u8], purpose: &[u8]) -> LessSafeKey {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"hypha volume 1").extract(&[0xd1; 32]);
    let info = [purpose, &head[16..32], &head[32..40], &head[40..72]];
    let okm = prk.expand(&info, &AES_256_GCM).unwrap();
    LessSafeKey::new(UnboundKey::from(okm))
}

fn nonce(head: &[u8], index: u32) -> Nonce {
    let bytes = [&head[72..80], &index.to_le_bytes()].concat();
    Nonce::assume_unique_for_key(bytes.try_into().unwrap())
}

/// Seals a table under the header in `head` (its first 256 bytes), as the format's text says.
pub(crate) fn seal_table(head: &[u8], table: &mut [u8]) -> [u8; 16] {
    let key = key(head, b"segment table");
    let aad = Aad::from(&head[..232]);
    let tag = key.seal_in_place_separate_tag(nonce(head, 0), aad, table).unwrap();
    tag.as_ref().try_into().unwrap()
}

/// The table's words, opened.
fn table_words(object: &[u8], rows: usize) -> Vec<u64> {
    let len = u32::from_le_bytes(object[124..128].try_into().unwrap()) as usize;
    let mut table = object[512 + rows * 4112..].to_vec();
    assert_eq!(table.len(), len);
    table.extend_from_slice(&object[232..248]);
    let aad = Aad::from(&object[..232]);
    let opened = key(object, b"segment table").open_in_place(nonce(object, 0), aad, &mut table);
    opened.unwrap().chunks(8).map(|word| u64_at(word, 0)).collect()
}

/// What each block is: its namespace and its address.
fn places(words: &[u64]) -> Vec<(u8, u64)> {
    let mut places = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (address, count) = (word & ((1 << 52) - 1), (word >> 52 & 0xff) + 1);
        match word >> 60 {
            1 => places.extend((address..address + count).map(|address| (0, address))),
            2 => places.push((words.next().map_or(9, |_| 0), address)),
            3 => assert_eq!((address, words.next()), (1 << 40, Some(&(1 << 50)))),
            4 => places.push((1, *words.next().unwrap())),
            kind => panic!("kind {kind}"),
        }
    }
    places
}

#[test]
fn each_two_shards_are_decoded_by_other_means() {
    let expected = written().blocks;
    for lost in 0..3 {
        let shards: Vec<Vec<u8>> = (0..3).map(fixture).collect();
        let head = &shards[usize::from(lost == 0)];
        assert_eq!(&head[..8], b"HYPHASEG");
        assert_eq!((head[8], head[10], head[11], head[12]), (2, 1, 2, 1));
        assert_eq!(head[16..32], UUID);
        assert_eq!(u64_at(head, 72), SEQUENCE);
        let blocks = usize::from(u16::from_le_bytes([head[120], head[121]]));
        let rows = blocks.div_ceil(2);
        let units = |shard: &Vec<u8>| shard[512..512 + rows * 4112].to_vec();
        let mut units: Vec<Option<Vec<u8>>> = shards.iter().map(|s| Some(units(s))).collect();
        units[lost] = None;
        ReedSolomon::new(2, 1).unwrap().reconstruct(&mut units).unwrap();
        let places = places(&table_words(head, rows));
        assert_eq!(places.len(), blocks);
        let key = key(head, b"segment block");
        for (index, (namespace, address)) in places.into_iter().enumerate() {
            let start = index / 2 * 4112;
            let mut unit = units[index % 2].as_ref().unwrap()[start..start + 4112].to_vec();
            let aad = [&UUID[..], &[namespace], &address.to_le_bytes()].concat();
            let opened = key.open_in_place(nonce(head, index as u32), Aad::from(aad), &mut unit);
            assert_eq!(opened.unwrap(), &expected[index][..], "block {index}, {lost} lost");
        }
    }
}
