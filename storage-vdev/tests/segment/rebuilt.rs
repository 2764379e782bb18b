//! Any k shards bring back the others, without any key.

use bytes::Bytes;
use proptest::prelude::*;
use storage_vdev::codec::Codec;
use storage_vdev::segment::{CHUNK_BYTES, HEAD_BYTES, RebuildError, Shard, rebuild_shard};

use crate::sample::{SEQUENCE, Sample, sample};

fn rebuilt(sample: &Sample, sources: &[Shard], wanted: u8) -> Result<Vec<u8>, RebuildError> {
    let slot = sample.shape.slot_of(SEQUENCE, wanted);
    rebuild_shard(&sample.codec, sources, (wanted, slot), 0).map(|parts| parts.concat())
}

/// `shard` with a damaged byte in each of `chunks`.
fn damaged(sample: &Sample, shard: u8, chunks: &[usize]) -> Shard {
    let mut object = sample.object(shard);
    for chunk in chunks {
        object[HEAD_BYTES + chunk * CHUNK_BYTES + 99] ^= 0x20;
    }
    Shard::parse(Bytes::from(object)).unwrap()
}

#[test]
fn any_k_shards_rebuild_each_other_one_bit_by_bit() {
    for (data, parity) in [(1, 0), (1, 2), (2, 1), (3, 3), (4, 2), (5, 0)] {
        let sample = sample((data, parity), 70, 1);
        let all = sample.shards();
        for set in 0u32..1 << all.len() {
            let sources = (0..).zip(&all).filter(|(bit, _)| set >> bit & 1 == 1);
            let sources: Vec<Shard> = sources.map(|(_, shard)| shard.clone()).collect();
            for wanted in 0..data + parity {
                let has_own = set >> wanted & 1 == 1;
                match rebuilt(&sample, &sources, wanted) {
                    Ok(object) => {
                        assert!(has_own || sources.len() >= usize::from(data));
                        assert_eq!(object, sample.object(wanted), "{data}+{parity} {set:b}");
                    }
                    Err(RebuildError::NoSource) => assert_eq!(set, 0),
                    Err(RebuildError::TooFew { found, needed, .. }) => {
                        assert!(!has_own && found == sources.len() && found < needed);
                    }
                    Err(error) => panic!("{data}+{parity} {set:b} {wanted}: {error}"),
                }
            }
        }
    }
}

#[test]
fn every_shard_may_be_damaged_if_each_chunk_is_intact_in_k() {
    // 4 + 2 with 5 chunks: every shard has a damaged chunk, two of them the same.
    let sample = sample((4, 2), 16 * 4 * 4 + 3, 2);
    let shards: Vec<Shard> =
        (0..6).map(|shard| damaged(&sample, shard, &[usize::from(shard) % 5])).collect();
    assert!(shards.iter().all(|shard| shard.check().is_err()));
    for wanted in 0..6 {
        assert_eq!(rebuilt(&sample, &shards, wanted).unwrap(), sample.object(wanted));
    }
}

#[test]
fn a_chunk_that_is_gone_too_often_is_not_made_up() {
    let sample = sample((4, 2), 16 * 4 * 3, 3);
    let mut shards = sample.shards();
    for shard in 0..3 {
        shards[usize::from(shard)] = damaged(&sample, shard, &[1]);
    }
    let error = rebuilt(&sample, &shards, 0).unwrap_err();
    assert_eq!(error, RebuildError::TooFew { chunk: 1, found: 3, needed: 4 });
    assert_eq!(rebuilt(&sample, &shards, 5).unwrap(), sample.object(5), "this one is all there");
}

#[test]
fn a_damaged_table_is_taken_from_another_shard() {
    let sample = sample((2, 1), 9, 4);
    let mut object = sample.object(0);
    *object.last_mut().unwrap() ^= 1;
    let first = Shard::parse(Bytes::from(object)).unwrap();
    let sources = [first.clone(), sample.shard(1)];
    assert_eq!(rebuilt(&sample, &sources, 2).unwrap(), sample.object(2));
    assert_eq!(rebuilt(&sample, &sources, 0).unwrap(), sample.object(0));
    assert_eq!(rebuilt(&sample, &[first], 0), Err(RebuildError::Table));
}

#[test]
fn shards_of_different_segments_are_not_mixed() {
    let (a, b) = (sample((2, 1), 9, 5), sample((2, 1), 10, 5));
    let mixed = [a.shard(0), b.shard(1)];
    assert_eq!(rebuilt(&a, &mixed, 2), Err(RebuildError::Mixed));
    assert_eq!(rebuilt(&a, &[a.shard(0), a.shard(0)], 2), Err(RebuildError::Mixed));
    let error = rebuild_shard(&Codec::new(3, 1), &a.shards(), (0, 0), 0).unwrap_err();
    assert_eq!(error, RebuildError::Shape);
    assert_eq!(rebuilt(&a, &a.shards(), 3), Err(RebuildError::Shape));
}

#[test]
fn a_repair_counts_and_changes_nothing_but_the_head() {
    let sample = sample((4, 2), 40, 6);
    let parts = rebuild_shard(&sample.codec, &sample.shards()[1..], (0, 9), 3).unwrap();
    let object = parts.concat();
    let shard = Shard::parse(Bytes::from(object.clone())).unwrap();
    assert_eq!((shard.head().generation, shard.head().slot), (3, 9));
    assert_eq!(shard.check(), Ok(()));
    assert_eq!(object[HEAD_BYTES..], sample.object(0)[HEAD_BYTES..]);
    assert_eq!(object[..256], sample.object(0)[..256]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_rebuilt_from_wide_codes_is_the_original(
        data in 6u8..=20,
        parity in 1u8..=12,
        blocks in 1u16..500,
        lost in any::<u32>(),
        seed in any::<u64>(),
    ) {
        let sample = sample((data, parity), blocks, seed);
        let all = sample.shards();
        // As many as may be lost, from somewhere on.
        let first = lost % u32::from(data + parity);
        let is_lost = |shard: u32| {
            (shard + u32::from(data + parity) - first) % u32::from(data + parity)
                < u32::from(parity)
        };
        let left = (0..).zip(&all).filter(|(shard, _)| !is_lost(*shard));
        let left: Vec<Shard> = left.map(|(_, shard)| shard.clone()).collect();
        prop_assert_eq!(left.len(), usize::from(data));
        for wanted in (0..data + parity).filter(|shard| is_lost(u32::from(*shard))) {
            prop_assert_eq!(rebuilt(&sample, &left, wanted), Ok(sample.object(wanted)));
        }
    }
}
