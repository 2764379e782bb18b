//! Accidents are found without a key, lies with it, and nothing makes the parsers do worse.

use bytes::Bytes;
use storage_vdev::segment::{
    ADDRESS_MAX, Entry, Fault, FormatError, HEAD_BYTES, Place, SegmentHeader, Shard, ShardHead,
    UNIT_BYTES, open_unit, rebuild_shard,
};

use crate::sample::{Rng, SEQUENCE, Sample, correct_checksums, sample};

/// Whether the shard passes all that can be checked without a key.
fn is_intact(object: &[u8]) -> bool {
    Shard::parse(Bytes::copy_from_slice(object)).is_ok_and(|shard| shard.check().is_ok())
}

/// Whether the shard passes all that can be checked with the key.
fn is_authentic(sample: &Sample, object: &[u8]) -> bool {
    let Ok(shard) = Shard::parse(Bytes::copy_from_slice(object)) else { return false };
    let opened = shard.segment().open_table(&sample.keys, shard.table());
    opened.is_ok_and(|entries| shard.check_blocks(&sample.keys, &entries).is_ok())
}

#[test]
fn a_flipped_bit_anywhere_in_any_shard_is_found_without_a_key() {
    let sample = sample((2, 1), 4, 1);
    for shard in 0..3 {
        let mut object = sample.object(shard);
        assert!(is_intact(&object));
        for at in 0..object.len() {
            let mask = 1 << (at % 8);
            object[at] ^= mask;
            assert!(!is_intact(&object), "shard {shard}, byte {at}");
            object[at] ^= mask;
        }
    }
}

#[test]
fn any_other_byte_in_the_head_is_found_without_a_key() {
    let sample = sample((2, 1), 1, 2);
    let mut object = sample.object(1);
    for at in 0..HEAD_BYTES {
        let right = object[at];
        for mask in 1..=255 {
            object[at] = right ^ mask;
            assert!(ShardHead::parse(&object).is_err(), "byte {at}, mask {mask:#x}");
        }
        object[at] = right;
    }
}

#[test]
fn a_shard_of_any_other_length_is_refused() {
    let sample = sample((2, 1), 2, 3);
    let mut object = sample.object(0);
    for len in 0..object.len() {
        let cut = Bytes::copy_from_slice(&object[..len]);
        assert!(Shard::parse(cut).is_err(), "cut to {len}");
    }
    let expected = object.len();
    object.push(0);
    let error = Shard::parse(Bytes::from(object)).unwrap_err();
    assert_eq!(error, FormatError::Length { found: expected + 1, expected });
}

/// In a data shard every bit that means something is bound to the key. What isn't: the own part,
/// which any repairer makes anew.
#[test]
fn a_lie_under_corrected_checksums_is_found_with_the_key() {
    let sample = sample((2, 1), 4, 4);
    let mut tried = 0;
    for shard in 0..2 {
        for at in (0..256).chain(HEAD_BYTES..sample.object(shard).len()) {
            let mut object = sample.object(shard);
            object[at] ^= 0x11;
            correct_checksums(&mut object);
            if !(248..HEAD_BYTES).contains(&at) {
                assert!(!is_authentic(&sample, &object), "shard {shard}, byte {at}");
                tried += 1;
            } else {
                assert_eq!(object, sample.object(shard), "byte {at} is a checksum");
            }
        }
    }
    assert!(tried > 2 * 2 * UNIT_BYTES);
}

#[test]
fn a_forged_own_part_names_itself_and_nothing_more() {
    let sample = sample((2, 1), 4, 5);
    for at in 256..508 {
        let mut object = sample.object(0);
        object[at] ^= 0x80;
        correct_checksums(&mut object);
        if !is_intact(&object) {
            continue;
        }
        let shard = Shard::parse(Bytes::from(object.clone())).unwrap();
        assert_eq!(shard.segment(), &sample.sealed.header, "byte {at}");
        assert_eq!(shard.units(), sample.shard(0).units(), "byte {at}");
        // Slot, generation, audit root; the chunk's checksum was corrected.
        assert!((267..308).contains(&at), "byte {at}");
    }
}

#[test]
fn a_data_shard_under_another_index_is_found_with_the_key() {
    let sample = sample((2, 1), 4, 6);
    let mut object = sample.object(0);
    object[266] = 1;
    correct_checksums(&mut object);
    assert!(is_intact(&object));
    assert!(!is_authentic(&sample, &object));
}

#[test]
fn shards_of_an_older_opening_do_not_pass_for_newer_ones() {
    let sample = sample((2, 1), 4, 7);
    let mut object = sample.object(0);
    object[32] = 4;
    correct_checksums(&mut object);
    let shard = Shard::parse(Bytes::from(object)).unwrap();
    assert_eq!(shard.segment().opening.epoch, 4);
    let opened = shard.segment().open_table(&sample.keys, shard.table());
    assert_eq!(opened, Err(FormatError::OtherOpening));
}

#[test]
fn other_versions_and_codes_are_named() {
    let sample = sample((2, 1), 1, 8);
    let parse = |at: usize, value: u8| {
        let mut object = sample.object(0);
        object[at] = value;
        correct_checksums(&mut object);
        ShardHead::parse(&object).unwrap_err()
    };
    assert_eq!(parse(8, 1), FormatError::Version { found: 1 });
    assert_eq!(parse(8, 3), FormatError::Version { found: 3 });
    assert_eq!(parse(10, 2), FormatError::Code { code: 2, data_shards: 2, parity_shards: 1 },);
    assert_eq!(parse(11, 0), FormatError::Code { code: 1, data_shards: 0, parity_shards: 1 });
    assert_eq!(parse(12, 31), FormatError::Code { code: 1, data_shards: 2, parity_shards: 31 });
    assert_eq!(parse(0, b'h'), FormatError::Magic);
    assert!(matches!(parse(13, 1), FormatError::Head { .. }), "reserved");
    assert!(matches!(parse(200, 1), FormatError::Head { .. }), "reserved");
    assert!(matches!(parse(72, 0), FormatError::Head { .. }), "sequence 0");
    assert!(matches!(parse(80, 7), FormatError::Head { .. }), "a link to itself");
    assert!(matches!(parse(121, 5), FormatError::Head { .. }), "1281 blocks");
    assert!(matches!(parse(127, 1), FormatError::Head { .. }), "a table of 16 MiB");
    assert!(matches!(parse(266, 3), FormatError::Head { .. }), "a shard too many");
    assert!(FormatError::Version { found: 1 }.to_string().contains("another Hypha"));
}

/// Random heads under good checksums: an error or a head that is written again as it was read.
#[test]
fn random_heads_are_refused_or_written_again_as_they_were() {
    let sample = sample((3, 2), 33, 9);
    let mut parsed = 0;
    for seed in 0..20_000 {
        let mut rng = Rng::new(seed);
        let mut object = sample.object(rng.below(5) as u8);
        for _ in 0..=rng.below(3) {
            let at = rng.below(HEAD_BYTES as u64) as usize;
            object[at] = [0, 1, 0x7f, 0xff, rng.below(256) as u8][rng.below(5) as usize];
        }
        correct_checksums(&mut object);
        let Ok(head) = ShardHead::parse(&object) else { continue };
        assert_eq!(head.to_bytes(), object[..HEAD_BYTES], "seed {seed}");
        parsed += 1;
        let Ok(shard) = Shard::parse(Bytes::from(object)) else { continue };
        let opened = shard.segment().open_table(&sample.keys, shard.table());
        let same = shard.segment() == &sample.sealed.header;
        assert_eq!(opened.is_ok(), same, "seed {seed}");
    }
    assert!(parsed > 1000, "{parsed} heads were read");
}

/// A writer with the key may have bugs, too.
#[test]
fn a_sealed_table_that_makes_no_sense_is_refused() {
    let data = |address: u64, count: u64| 1 << 60 | (count - 1) << 52 | address;
    let open = |blocks: u16, words: &[u64]| open_forged_table(blocks, words);
    assert_eq!(open(2, &[data(5, 2)]), Ok(vec![Entry::Data { address: 5, count: 2 }]));
    let refused: [(u16, &[u64]); 12] = [
        (2, &[data(5, 1)]),
        (2, &[data(5, 3)]),
        (2, &[]),
        (0, &[data(5, 1)]),
        (1, &[0]),
        (1, &[5 << 60]),
        (1, &[2 << 60]),
        (0, &[3 << 60 | 7, 0]),
        (0, &[3 << 60 | 7, ADDRESS_MAX]),
        (1, &[4 << 60 | 1, 9]),
        (1, &[2 << 60 | 1 << 52, 9]),
        (2, &[data(ADDRESS_MAX - 1, 2)]),
    ];
    for (blocks, words) in refused {
        assert_eq!(open(blocks, words), Err(FormatError::Table), "{blocks} {words:x?}");
    }
}

/// Seals `words` as the table of a header with `blocks` blocks, as the format's text says, and
/// opens it.
fn open_forged_table(blocks: u16, words: &[u64]) -> Result<Vec<Entry>, FormatError> {
    let sample = sample((2, 1), 1, 10);
    let mut head = sample.object(0)[..256].to_vec();
    head[120..122].copy_from_slice(&blocks.to_le_bytes());
    head[124..128].copy_from_slice(&(8 * words.len() as u32).to_le_bytes());
    let mut table: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let tag = crate::fixture::seal_table(&head, &mut table);
    let header =
        SegmentHeader { blocks, table_bytes: table.len() as u32, tag, ..sample.sealed.header };
    header.open_table(&sample.keys, &table)
}

#[test]
fn a_unit_of_any_other_length_is_not_authentic() {
    let sample = sample((2, 1), 1, 11);
    let unit = sample.shard(0).unit(0).unwrap().to_vec();
    let open = |mut unit: Vec<u8>| {
        open_unit(&sample.keys, (SEQUENCE, 0), Place::Block(1000), &mut unit).is_ok()
    };
    assert!(open(unit.clone()));
    assert!(!open(Vec::new()));
    assert!(!open(unit[..UNIT_BYTES - 1].to_vec()));
    assert!(!open([&unit[..], &[0]].concat()));
}

/// Without the key a lie can't be told from the truth with k shards at hand, and is spread.
#[test]
fn with_k_shards_a_lie_is_rebuilt_from_and_the_key_finds_it() {
    let sample = sample((2, 1), 4, 12);
    let mut object = sample.object(1);
    object[HEAD_BYTES + 9] ^= 1;
    correct_checksums(&mut object);
    let lie = Shard::parse(Bytes::from(object)).unwrap();
    let sources = [lie, sample.shard(2)];
    let parts = rebuild_shard(&sample.codec, &sources, (0, 0), 1).unwrap();
    let shard = Shard::parse(Bytes::from(parts.concat())).unwrap();
    assert_eq!(shard.check(), Ok(()));
    let fault = shard.check_blocks(&sample.keys, &sample.entries());
    assert_eq!(fault, Err(Fault::NotAuthentic { index: 0 }));
}
