//! What was put in comes out, and nothing is sealed twice.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use storage_vdev::codec::Codec;
use storage_vdev::segment::{
    ADDRESS_MAX, CHUNK_BYTES, Entry, FormatError, HEAD_BYTES, Link, Place, PushError, ROWS_MAX,
    SegmentBuilder, Shape, Shard, ShardHead, TABLE_BYTES_MAX, UNIT_BYTES, open_unit,
};
use storage_vdev::{BLOCK_BYTES, SegmentKeys, SequenceUsed, VolumeKey};

use crate::sample::{
    LINK, Rng, SEQUENCE, Sample, UUID, WRITES, builder, entry_of, keys, opening, random_block,
    sample,
};

fn place_of(index: u16) -> Place {
    entry_of(index).place(0).unwrap()
}

/// Reads each block as an engine does: one unit of one shard.
fn assert_all_blocks_read_back(sample: &Sample) {
    for (index, block) in (0..).zip(&sample.blocks) {
        let (shard, offset) = sample.shape.unit_at(index);
        let object = sample.object(shard);
        let mut unit = object[offset as usize..][..UNIT_BYTES].to_vec();
        open_unit(&sample.keys, (SEQUENCE, index), place_of(index), &mut unit).unwrap();
        assert_eq!(unit, *block, "block {index}");
    }
}

#[test]
fn every_block_is_read_from_one_unit_of_one_shard() {
    assert_all_blocks_read_back(&sample((4, 2), 150, 1));
}

#[test]
fn a_segment_has_any_number_of_blocks_up_to_its_limit() {
    for blocks in (0..=70).chain([127, 128, 129, 255, 256, 257, 1024]) {
        let sample = sample((4, 2), blocks, 2);
        assert_eq!(sample.sealed.header.blocks, blocks);
        for shard in sample.shards() {
            assert_eq!(shard.check(), Ok(()), "{blocks} blocks, shard {}", shard.head().shard);
            assert_eq!(shard.check_blocks(&sample.keys, &sample.entries()), Ok(()));
        }
    }
    assert_all_blocks_read_back(&sample((4, 2), 1024, 2));
}

#[test]
fn each_shape_keeps_to_the_size_of_an_object() {
    for data in 1..=32 {
        for parity in 0..=32 - data {
            let shape = Shape::new(data, parity).unwrap();
            let rows = shape.rows(shape.blocks_max());
            assert!(usize::from(rows) <= ROWS_MAX);
            assert_eq!(rows * u16::from(data), shape.blocks_max(), "whole rows");
            let object = HEAD_BYTES + usize::from(rows) * UNIT_BYTES + TABLE_BYTES_MAX;
            assert!(object <= storage_vdev::node::OBJECT_BYTES_MAX);
        }
    }
    assert!(Shape::new(0, 2).is_err());
    assert!(Shape::new(30, 3).is_err());
    assert_eq!(Shape::new(4, 2).unwrap().blocks_max(), 1024);
    assert_eq!(Shape::new(16, 4).unwrap().blocks_max(), 4096);
}

#[test]
fn the_slots_turn_and_each_has_one_shard() {
    for (data, parity) in [(1, 0), (2, 1), (4, 2), (20, 12)] {
        let shape = Shape::new(data, parity).unwrap();
        for sequence in (1..50).chain([u64::MAX - 3, u64::MAX]) {
            let slots: HashSet<u8> =
                (0..shape.shards()).map(|shard| shape.slot_of(sequence, shard)).collect();
            assert_eq!(slots.len(), usize::from(shape.shards()));
            for shard in 0..shape.shards() {
                assert_eq!(shape.shard_in(sequence, shape.slot_of(sequence, shard)), shard);
            }
        }
    }
}

#[test]
fn the_head_says_what_the_writer_said() {
    let sample = sample((3, 2), 20, 3);
    for shard in 0..5 {
        let object = sample.object(shard);
        let head = ShardHead::parse(&object).unwrap();
        let segment = head.segment;
        assert_eq!(segment, sample.sealed.header);
        assert_eq!((segment.uuid, segment.opening), (UUID, opening()));
        assert_eq!((segment.sequence, segment.link), (SEQUENCE, LINK));
        assert_eq!((segment.first_write, segment.last_write), WRITES);
        assert_eq!((head.shard, head.slot), (shard, sample.shape.slot_of(SEQUENCE, shard)));
        assert_eq!((head.generation, head.audit_root), (0, [0; 32]));
        assert_eq!(segment.object_bytes(), object.len());
        assert_eq!(head.to_bytes(), object[..HEAD_BYTES]);
    }
    assert_eq!(sample.sealed.header.link().sequence, SEQUENCE);
}

#[test]
fn entries_come_back_in_their_order_with_runs_joined() {
    let (mut builder, keys, ..) = builder((2, 1), 600);
    let block = vec![1; BLOCK_BYTES];
    for address in 0..300 {
        builder.push_block(address, &block).unwrap();
    }
    builder.push_zero(5, 9).unwrap();
    builder.push_block(300, &block).unwrap();
    builder.push_block(302, &block).unwrap();
    builder.push_moved(303, 77, &block).unwrap();
    builder.push_block(304, &block).unwrap();
    builder.push_meta(305, &block).unwrap();
    builder.push_block(ADDRESS_MAX - 1, &block).unwrap();
    let sealed = builder.seal(Link::default(), (1, 2));
    let shard = Shard::parse(Bytes::from(sealed.shards[2].concat())).unwrap();
    let data = |address, count| Entry::Data { address, count };
    let expected = vec![
        data(0, 256),
        data(256, 44),
        Entry::Zero { address: 5, count: 9 },
        data(300, 1),
        data(302, 1),
        Entry::Moved { address: 303, from: 77 },
        data(304, 1),
        Entry::Meta { address: 305 },
        data(ADDRESS_MAX - 1, 1),
    ];
    assert_eq!(shard.segment().open_table(&keys, shard.table()), Ok(expected));
}

#[test]
fn a_block_opens_only_as_what_it_was_sealed() {
    let sample = sample((2, 1), 4, 4);
    let unit = sample.shard(0).unit(0).unwrap().to_vec();
    let opens = |keys: &SegmentKeys, at, place| {
        let mut unit = unit.clone();
        open_unit(keys, at, place, &mut unit).is_ok()
    };
    let at = (SEQUENCE, 0);
    let other_keys = |epoch, salt, uuid| {
        let opening = storage_vdev::Opening { epoch, salt: [salt; 32] };
        SegmentKeys::derive(&VolumeKey::new(&[0xd1; 32]), uuid, opening)
    };
    assert!(opens(&sample.keys, at, place_of(0)));
    assert!(!opens(&sample.keys, (SEQUENCE + 1, 0), place_of(0)));
    assert!(!opens(&sample.keys, (SEQUENCE, 2), place_of(0)));
    assert!(!opens(&sample.keys, at, Place::Block(1001)));
    assert!(!opens(&sample.keys, at, Place::Meta(1000)), "the namespaces are apart");
    assert!(!opens(&other_keys(4, 0x5a, UUID), at, place_of(0)));
    assert!(!opens(&other_keys(3, 0x5b, UUID), at, place_of(0)));
    assert!(!opens(&other_keys(3, 0x5a, [0; 16]), at, place_of(0)));
}

#[test]
fn a_table_opens_only_under_its_own_header_and_key() {
    let sample = sample((2, 1), 4, 5);
    let shard = sample.shard(0);
    let mut header = sample.sealed.header;
    header.last_write += 1;
    let opened = header.open_table(&sample.keys, shard.table());
    assert_eq!(opened, Err(FormatError::NotAuthentic(storage_vdev::NotAuthentic)));
    let wrong_key = SegmentKeys::derive(&VolumeKey::new(&[0; 32]), UUID, opening());
    let opened = sample.sealed.header.open_table(&wrong_key, shard.table());
    assert_eq!(opened, Err(FormatError::NotAuthentic(storage_vdev::NotAuthentic)));
}

#[test]
fn one_sequence_is_sealed_once_under_the_same_keys() {
    let (keys, codec) = (keys(), Arc::new(Codec::new(2, 1)));
    let shape = Shape::new(2, 1).unwrap();
    let begin = |sequence| SegmentBuilder::new(&keys, &codec, shape, sequence, 8).map(|_| ());
    assert_eq!(begin(0), Err(SequenceUsed { sequence: 0, claimed: 0 }));
    assert_eq!(begin(5), Ok(()));
    assert_eq!(begin(5), Err(SequenceUsed { sequence: 5, claimed: 5 }));
    assert_eq!(begin(4), Err(SequenceUsed { sequence: 4, claimed: 5 }));
    assert_eq!(begin(6), Ok(()));
}

#[test]
fn equal_blocks_have_unlike_ciphertexts() {
    let (mut builder, ..) = builder((4, 0), 64);
    for _ in 0..64 {
        builder.push_block(9, &[0; BLOCK_BYTES]).unwrap();
    }
    let sealed = builder.seal(Link::default(), (1, 1));
    let units = sealed.shards.iter().flat_map(|parts| parts[1].chunks(UNIT_BYTES));
    assert_eq!(units.collect::<HashSet<_>>().len(), 64);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (mut builder, keys, ..) = builder((2, 1), 3);
    let block = [7; BLOCK_BYTES];
    assert_eq!(builder.push_block(ADDRESS_MAX, &block), Err(PushError::Block));
    assert_eq!(builder.push_block(0, &block[1..]), Err(PushError::Block));
    assert_eq!(builder.push_zero(0, 0), Err(PushError::Block));
    assert_eq!(builder.push_zero(1, ADDRESS_MAX), Err(PushError::Block));
    for index in 0..3 {
        assert!(!builder.is_full());
        assert_eq!(builder.push_block(index, &block), Ok(index as u16));
    }
    assert!(builder.is_full());
    assert_eq!(builder.push_block(9, &block), Err(PushError::Full));
    assert_eq!(builder.push_meta(9, &block), Err(PushError::Full));
    builder.push_zero(40, 2).unwrap();
    let sealed = builder.seal(Link::default(), (1, 2));
    let entries = [Entry::Data { address: 0, count: 3 }, Entry::Zero { address: 40, count: 2 }];
    let table = &sealed.shards[0][2];
    assert_eq!(sealed.header.open_table(&keys, table).unwrap(), entries);
}

#[test]
fn a_table_of_zeroed_ranges_ends_somewhere() {
    let (mut builder, keys, ..) = builder((1, 1), 8);
    let mut pushed = 0u64;
    while builder.push_zero(pushed * 10, 3).is_ok() {
        pushed += 1;
        assert!(pushed < 1 << 20);
    }
    assert!(builder.is_full());
    let sealed = builder.seal(Link::default(), (1, pushed));
    assert!(sealed.header.table_bytes as usize <= TABLE_BYTES_MAX);
    let entries = sealed.header.open_table(&keys, &sealed.shards[1][2]).unwrap();
    assert_eq!(entries.len() as u64, pushed);
}

#[test]
fn chunks_are_whole_units() {
    assert!(CHUNK_BYTES.is_multiple_of(UNIT_BYTES));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_entries_and_blocks_come_back(
        data in 1u8..=9,
        parity in 0u8..=4,
        kinds in proptest::collection::vec((0u8..4, 0..ADDRESS_MAX / 2, 1u64..1 << 40), 0..120),
        seed in any::<u64>(),
    ) {
        let (mut builder, keys, _, shape) = builder((data, parity), 200);
        let mut rng = Rng::new(seed);
        let mut expected = Vec::new();
        for (kind, address, number) in kinds {
            let block = random_block(&mut rng);
            let entry = match kind {
                0 => Entry::Data { address, count: 1 },
                1 => Entry::Moved { address, from: number },
                2 => Entry::Meta { address: number },
                _ => Entry::Zero { address, count: number },
            };
            let pushed = match entry {
                Entry::Data { .. } => builder.push_block(address, &block).map(drop),
                Entry::Moved { from, .. } => builder.push_moved(address, from, &block).map(drop),
                Entry::Meta { address } => builder.push_meta(address, &block).map(drop),
                Entry::Zero { count, .. } => builder.push_zero(address, count),
            };
            prop_assert_eq!(pushed, Ok(()));
            expected.push((entry, block));
        }
        let sealed = builder.seal(LINK, WRITES);
        let entries = sealed.header.open_table(&keys, &sealed.shards[0][2]).unwrap();
        // Runs are joined; taken apart they are what was pushed.
        let apart = entries.iter().flat_map(|entry| match *entry {
            Entry::Data { address, count } => (0..u64::from(count))
                .map(|nth| Entry::Data { address: address + nth, count: 1 })
                .collect(),
            other => vec![other],
        });
        prop_assert_eq!(
            apart.collect::<Vec<_>>(),
            expected.iter().map(|(entry, _)| *entry).collect::<Vec<_>>()
        );
        let blocks = expected.iter().filter(|(entry, _)| entry.blocks() == 1);
        for (index, (entry, block)) in (0u16..).zip(blocks) {
            let (shard, offset) = shape.unit_at(index);
            let object = sealed.shards[usize::from(shard)].concat();
            let mut unit = object[offset as usize..][..UNIT_BYTES].to_vec();
            let place = entry.place(0).unwrap();
            prop_assert!(open_unit(&keys, (SEQUENCE, index), place, &mut unit).is_ok());
            prop_assert_eq!(&unit, block);
        }
    }
}
