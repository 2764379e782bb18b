use proptest::prelude::*;

use super::super::overlay::Overlay;
use super::*;
use crate::keys::{VolumeKey, keys_for};

const UUID: Uuid = [1; 16];

fn keys() -> EpochKeys {
    keys_for(&VolumeKey::new(&[9; 32]), UUID, Opening { epoch: 3, salt: [7; 32] })
}

/// The records of `blocks` blocks written from block 5 on, and of a large zeroing.
fn sample(blocks: usize) -> (Vec<u8>, ChainEnd) {
    let mut overlay = Overlay::new(2048, 4096, 10);
    let content: Vec<u8> = (0..blocks * BLOCK_BYTES).map(|at| (at / BLOCK_BYTES) as u8).collect();
    assert_eq!(overlay.write(5, &content), blocks);
    overlay.zero(1 << 40, 1 << 41);
    let group = overlay.take_pending().unwrap();
    let batch = overlay.batch(group.batch).unwrap();
    let mut chain = ChainEnd { sequence: 77, tag: [3; 16] };
    let bytes = seal_group(&group, batch, (&keys(), UUID), &mut chain);
    assert!(bytes.len() <= group_bytes(&group.changes));
    (bytes, chain)
}

#[test]
fn a_group_survives_a_round_trip_however_many_records_it_takes() {
    for blocks in [1, 240, 241, 700] {
        let (bytes, end) = sample(blocks);
        let (mut rest, mut payload, mut extents) = (&bytes[..], Vec::new(), Vec::new());
        let mut expected = ChainEnd { sequence: 77, tag: [3; 16] };
        while !rest.is_empty() {
            let record = parse_record(rest, &keys(), UUID).unwrap();
            assert_eq!((record.sequence, record.previous), (expected.sequence, expected.tag));
            assert_eq!(record.writes, (11, 11 + blocks as u64));
            rest = &rest[record_bytes(rest).unwrap()..];
            assert_eq!(record.more, !rest.is_empty());
            expected = ChainEnd { sequence: record.sequence + 1, tag: record.tag };
            payload.extend(record.payload);
            extents.extend(record.extents);
        }
        assert_eq!(expected, end);
        let numbers: Vec<u8> = payload.chunks(BLOCK_BYTES).map(|block| block[0]).collect();
        assert_eq!(numbers, (0..blocks).map(|block| block as u8).collect::<Vec<_>>());
        let zero = Extent { first_block: 1 << 40, count: 1 << 41, zero: true };
        assert_eq!(extents.pop(), Some(zero));
        assert_eq!(extents.iter().map(|extent| extent.count).sum::<u64>(), blocks as u64);
    }
}

#[test]
fn a_truncated_record_is_refused() {
    let (bytes, _) = sample(2);
    for len in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, bytes.len() - 1] {
        let cut = parse_record(&bytes[..len], &keys(), UUID);
        assert_eq!(cut, Err(RecordError::Corrupt), "{len}");
    }
}

#[test]
fn a_record_of_another_opening_volume_or_version_is_refused() {
    let (bytes, _) = sample(1);
    let other = keys_for(&VolumeKey::new(&[9; 32]), UUID, Opening { epoch: 4, salt: [7; 32] });
    assert_eq!(parse_record(&bytes, &other, UUID), Err(RecordError::Forged));
    assert_eq!(parse_record(&bytes, &keys(), [2; 16]), Err(RecordError::Forged));
    let mut newer = bytes;
    newer[4] = 3;
    let crc = crc32c::crc32c(&newer[..CRC_OFFSET]).to_le_bytes();
    newer[CRC_OFFSET..HEADER_BYTES].copy_from_slice(&crc);
    assert_eq!(parse_record(&newer, &keys(), UUID), Err(RecordError::Version(3)));
}

#[test]
fn a_liar_who_repairs_the_checksum_is_found_out() {
    let (bytes, _) = sample(1);
    for at in [6, 8, 33, 97, ENTRIES_OFFSET, ENTRIES_OFFSET + 8, TAG_OFFSET] {
        let mut forged = bytes.clone();
        forged[at] ^= 1;
        let crc = crc32c::crc32c(&forged[..CRC_OFFSET]).to_le_bytes();
        forged[CRC_OFFSET..HEADER_BYTES].copy_from_slice(&crc);
        assert_eq!(parse_record(&forged, &keys(), UUID), Err(RecordError::Forged), "{at}");
    }
}

proptest! {
    #[test]
    fn any_flipped_bit_is_detected(bit in 0usize..(HEADER_BYTES + BLOCK_BYTES) * 8) {
        let (mut bytes, _) = sample(1);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(parse_record(&bytes, &keys(), UUID).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(parse_record(&bytes, &keys(), UUID).is_err());
    }
}
