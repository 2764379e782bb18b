//! Layouts: what is written is read again, and nothing else is.

use bytes::Bytes;
use proptest::prelude::*;
use storage_vdev::VolumeKey;
use storage_vdev::node::{Ballot, RegisterRequest};
use storage_vdev::register::{
    AcceptorKey, AcceptorState, HOLDER_NAME_BYTES_MAX, Holder, Members, RecordError, RegisterKey,
    SuperblockRef, VolumeRecord,
};

use crate::cluster::{REGISTER, volume_key};

fn record() -> VolumeRecord {
    VolumeRecord {
        register: REGISTER,
        version: 9,
        epoch: 4,
        change: Ballot { counter: 12, proposer: [5; 16] },
        opener: [6; 16],
        holder: Holder { id: [8; 16], name: "müller's host".to_owned() },
        lease_ns: 10_000_000_000,
        released: true,
        superblock: SuperblockRef { version: 3, epoch: 2, sha256: [0xab; 32] },
        members: Members { current: vec![[1; 32], [2; 32], [3; 32]], next: vec![[3; 32]] },
    }
}

const BALLOT: Ballot = Ballot { counter: 13, proposer: [4; 16] };

fn key() -> RegisterKey {
    RegisterKey::new(&volume_key(), REGISTER)
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let bytes = record().encode(&key(), BALLOT);
    assert_eq!(VolumeRecord::open(&bytes, &key(), REGISTER), Ok((record(), BALLOT)));
}

#[test]
fn the_first_version_of_a_record_stays_readable() {
    let fixture = include_str!("fixture-record-1.hex");
    let digits: Vec<u8> = fixture.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    assert_eq!(record().encode(&key(), BALLOT), bytes);
    assert_eq!(VolumeRecord::open(&bytes, &key(), REGISTER), Ok((record(), BALLOT)));
}

#[test]
fn every_flipped_bit_of_a_record_is_noticed() {
    let bytes = record().encode(&key(), BALLOT);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(VolumeRecord::parse(&flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn every_truncated_and_every_longer_record_is_refused() {
    let mut bytes = record().encode(&key(), BALLOT);
    for len in 0..bytes.len() {
        assert_eq!(VolumeRecord::parse(&bytes[..len]), Err(RecordError::Damaged), "{len} bytes");
    }
    bytes.push(0);
    assert_eq!(VolumeRecord::parse(&bytes), Err(RecordError::Damaged));
}

#[test]
fn a_forged_record_is_refused_although_its_checksum_is_right() {
    let mut bytes = record().encode(&key(), BALLOT);
    let end = bytes.len() - 4;
    bytes[40] ^= 1;
    let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&crc);
    assert!(VolumeRecord::parse(&bytes).is_ok());
    assert_eq!(VolumeRecord::open(&bytes, &key(), REGISTER), Err(RecordError::Forged));
    let other = RegisterKey::new(&VolumeKey::new(&[4; 32]), REGISTER);
    let bytes = record().encode(&key(), BALLOT);
    assert_eq!(VolumeRecord::open(&bytes, &other, REGISTER), Err(RecordError::Forged));
}

#[test]
fn another_volumes_record_is_refused_even_under_the_same_key() {
    let bytes = record().encode(&key(), BALLOT);
    assert_eq!(VolumeRecord::open(&bytes, &key(), [9; 16]), Err(RecordError::OtherVolume));
    // A clone has a key of its own.
    let clone = RegisterKey::new(&volume_key(), [9; 16]);
    assert_eq!(VolumeRecord::open(&bytes, &clone, [9; 16]), Err(RecordError::Forged));
}

#[test]
fn a_record_of_a_later_format_is_named_as_such() {
    let mut bytes = record().encode(&key(), BALLOT);
    bytes[8] = 2;
    assert_eq!(VolumeRecord::parse(&bytes), Err(RecordError::Version { found: 2 }));
}

#[test]
fn a_long_name_is_cut_between_characters() {
    let mut long = record();
    long.holder.name = "x".to_owned() + &"ü".repeat(HOLDER_NAME_BYTES_MAX);
    let bytes = long.encode(&key(), BALLOT);
    let name = VolumeRecord::parse(&bytes).unwrap().0.holder.name;
    assert_eq!(name, "x".to_owned() + &"ü".repeat(31));
}

#[test]
fn an_acceptors_state_is_read_as_it_was_written_and_damage_is_noticed() {
    let key = AcceptorKey::silent([1; 32]);
    let value = Bytes::from(record().encode(&self::key(), BALLOT));
    let accept = RegisterRequest::Accept { ballot: BALLOT, value };
    let first = AcceptorState::default().step(&key, &REGISTER, &accept).unwrap().next.unwrap();
    let higher = RegisterRequest::Prepare { ballot: Ballot { counter: 18, ..BALLOT } };
    let second = first.step(&key, &REGISTER, &higher).unwrap().next.unwrap();
    for state in [AcceptorState::default(), first, second] {
        let bytes = state.encode();
        assert_eq!(AcceptorState::decode(&bytes), Ok(state));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(AcceptorState::decode(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(AcceptorState::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..1200),
        counts in any::<[u8; 3]>(),
    ) {
        // Past the magic, the counts and the checksum, which random bytes don't get.
        let magics: [&[u8]; 3] = [b"HYPHREG1\x01\x00", b"HACC\x01\x00", b"HRC1"];
        for magic in magics {
            for (target, byte) in bytes.iter_mut().zip(magic) {
                *target = *byte;
            }
            if let Some(target) = bytes.get_mut(160..163) {
                target.copy_from_slice(&counts);
            }
            if let Some((checked, crc)) = bytes.split_last_chunk_mut::<4>() {
                *crc = crc32c::crc32c(checked).to_le_bytes();
            }
            if let Ok((record, _)) = VolumeRecord::parse(&bytes) {
                prop_assert!(record.members.current.len() <= 15);
            }
            if let Ok(state) = AcceptorState::decode(&bytes) {
                prop_assert_eq!(state.encode(), bytes.clone());
            }
            prop_assert!(storage_vdev::register::Receipt::verify(&bytes).is_err());
        }
    }
}
