use proptest::prelude::*;

use super::*;

fn key() -> VolumeKey {
    VolumeKey::new(&[8; 32])
}

fn sample() -> Superblock {
    let opening = Opening { epoch: 2, salt: [1; 32] };
    let older = Opening { epoch: 1, salt: [9; 32] };
    let node = |name: u8| NodeInfo {
        id: [name; 16],
        name: format!("node {name}"),
        domain: "a host".to_owned(),
        objects: true,
        journal: name < 2,
        register: name == 0,
        local: false,
    };
    let root = Root::empty(256);
    Superblock {
        uuid: [3; 16],
        shape: Shape::new(2, 1).unwrap(),
        version: 9,
        opening,
        size_bytes: 1 << 20,
        policy: Policy::Sealed,
        allow_degraded: true,
        shared_domains: false,
        closed: true,
        journal_bytes: 1 << 20,
        lease_ns: 77,
        root,
        frontier: Link { sequence: 12, tag: [4; 16] },
        frontier_write: 1000,
        journal: JournalAnchor {
            heads: vec![1, 0],
            position: 8192,
            chain: ChainEnd { sequence: 5, tag: [6; 16] },
        },
        nodes: (0..4).map(node).collect(),
        slots: vec![0, 1, 3],
        openings: vec![
            PastOpening { first_sequence: 1, uuid: [5; 16], opening: older },
            PastOpening { first_sequence: 7, uuid: [3; 16], opening },
        ],
        snapshots: vec![Snapshot {
            name: "before".to_owned(),
            root,
            size_bytes: 1 << 20,
            frontier: 3,
            unix_time: 1_800_000_000,
            has_clone: true,
        }],
        deletes: vec![DeleteIntent { sequence: 2, epoch: 1 }],
        bases: vec![Base { uuid: [5; 16], wrapped_key: vec![1; 60] }],
    }
}

/// The same bytes with a checksum that fits.
fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - CRC_BYTES;
    let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&crc);
    bytes
}

#[test]
fn a_superblock_survives_a_round_trip() {
    assert_eq!(Superblock::parse(&sample().encode(&key()), &key()), Ok(sample()));
}

#[test]
fn the_fields_lie_where_the_format_draws_them() {
    let bytes = sample().encode(&key());
    assert_eq!(bytes[..16], *b"HYPHASUP\x02\x00\x01\x02\x01\x02\x03\x00");
    assert_eq!(bytes[16..32], [3; 16]);
    assert_eq!((bytes[32], bytes[40], bytes[48]), (9, 2, 1));
    assert_eq!((bytes[80], bytes[88]), (12, 4));
    assert_eq!(bytes[104..112], 1000u64.to_le_bytes());
    assert_eq!(bytes[128], 77);
    assert_eq!(bytes[136..200], Root::empty(256).to_bytes());
    assert_eq!(bytes[200..208], 8192u64.to_le_bytes());
    assert_eq!((bytes[208], bytes[216]), (5, 6));
    assert_eq!(bytes[232..238], [2, 0, 0, 0, 1, 0]);
}

#[test]
fn another_key_is_told_from_damage_and_another_version() {
    let bytes = sample().encode(&key());
    let other = VolumeKey::new(&[7; 32]);
    assert_eq!(Superblock::parse(&bytes, &other), Err(SuperblockError::Forged));
    let mut newer = bytes.clone();
    newer[8] = 3;
    assert_eq!(Superblock::parse(&with_crc(newer), &key()), Err(SuperblockError::Version(3)));
    for len in [0, 8, 40, 200, bytes.len() - 1] {
        assert_eq!(Superblock::parse(&bytes[..len], &key()), Err(SuperblockError::Corrupt));
    }
}

#[test]
fn a_list_that_claims_to_be_long_costs_no_memory() {
    let mut bytes = sample().encode(&key());
    bytes[232..236].fill(0xff);
    assert_eq!(Superblock::parse(&with_crc(bytes), &key()), Err(SuperblockError::Corrupt));
}

#[test]
fn superblocks_sort_behind_the_segments_of_their_epoch() {
    let (volume, epoch) = ([3; 16], 2);
    let segment = ObjectKey { volume, epoch, sequence: (1 << 52) - 1, shard: 31 };
    let key = superblock_key(volume, epoch, 1);
    assert!(segment < before_superblocks(volume, epoch));
    assert!(before_superblocks(volume, epoch) < key);
    assert!(key < superblock_key(volume, epoch, 2));
    assert_eq!((version_of(&key), version_of(&segment)), (Some(1), None));
}

proptest! {
    #[test]
    fn any_flipped_bit_is_detected(position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = sample().encode(&key());
        let at = position.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Superblock::parse(&bytes, &key()).is_err());
        // Whoever repairs the checksum has no key.
        if at < bytes.len() - CRC_BYTES {
            prop_assert!(Superblock::parse(&with_crc(bytes), &key()).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(Superblock::parse(&bytes, &key()).is_err());
    }
}
