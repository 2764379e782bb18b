//! Who lies, as far as it can be told.

use bytes::Bytes;
use storage_vdev::segment::{
    HEAD_BYTES, Recovered, RowError, Shard, UNIT_BYTES, find_liars, recover_unit,
};

use crate::sample::{SEQUENCE, Sample, correct_checksums, entry_of, sample};

/// The units of row 0 of the shards in `set`, those in `lying` with a bit flipped.
fn row(sample: &Sample, set: u32, lying: u32) -> Vec<(u8, Vec<u8>)> {
    let chosen = (0..sample.shape.shards()).filter(|shard| set >> shard & 1 == 1);
    let units = chosen.map(|shard| {
        let mut unit = sample.shard(shard).unit(0).unwrap().to_vec();
        // Each lies in its own way.
        unit[100 + usize::from(shard)] ^= u8::from(lying >> shard & 1 == 1) << (shard % 8);
        (shard, unit)
    });
    units.collect()
}

fn recover(sample: &Sample, index: u16, units: &[(u8, Vec<u8>)]) -> Result<Recovered, RowError> {
    let units: Vec<(u8, &[u8])> = units.iter().map(|(shard, unit)| (*shard, &unit[..])).collect();
    let place = entry_of(index).place(0).unwrap();
    recover_unit(&sample.codec, &sample.keys, (SEQUENCE, index), place, &units)
}

fn subsets(of: u8, count: u32) -> impl Iterator<Item = u32> {
    (0u32..1 << of).filter(move |set| set.count_ones() == count)
}

#[test]
fn any_m_liars_cost_no_block_of_4_and_2() {
    let sample = sample((4, 2), 4, 1);
    for count in 0..=2 {
        for lying in subsets(6, count) {
            let units = row(&sample, 0b11_1111, lying);
            for index in 0..4 {
                let recovered = recover(&sample, index, &units).unwrap();
                assert_eq!(recovered.block, sample.blocks[usize::from(index)], "{lying:b}");
                if lying >> index & 1 == 1 {
                    assert_eq!(recovered.suspects, lying, "block {index}");
                } else {
                    assert_eq!(recovered.suspects, 0, "the block's own shard was enough");
                }
            }
        }
    }
}

#[test]
fn more_liars_than_m_give_an_error_and_never_a_wrong_block() {
    let sample = sample((4, 2), 4, 2);
    for count in 3..=6 {
        for lying in subsets(6, count) {
            let units = row(&sample, 0b11_1111, lying);
            for index in 0..4 {
                match recover(&sample, index, &units) {
                    Ok(recovered) => {
                        assert_eq!(lying >> index & 1, 0, "only the shard itself can prove it");
                        assert_eq!(recovered.block, sample.blocks[usize::from(index)]);
                    }
                    Err(error) => assert_eq!(error, RowError::NotRecoverable),
                }
            }
        }
    }
}

#[test]
fn absent_and_lying_shards_count_alike() {
    let sample = sample((4, 2), 4, 3);
    for set in 0u32..1 << 6 {
        for liar in (0..6).filter(|shard| set >> shard & 1 == 1) {
            let units = row(&sample, set, 1 << liar);
            let recovered = recover(&sample, 0, &units);
            if set & 1 == 1 && liar != 0 || set.count_ones() > 4 {
                assert_eq!(recovered.unwrap().block, sample.blocks[0], "{set:b} {liar}");
            } else {
                assert!(recovered.is_err(), "{set:b} {liar}");
            }
        }
    }
}

#[test]
fn four_liars_of_10_and_4_are_passed_over() {
    let sample = sample((10, 4), 10, 4);
    for lying in [0b1111, 0b11_0000_0000_0011, 0b10_0100_1000_0001, 0b1_0001_0001_0001] {
        let units = row(&sample, 0x3fff, lying);
        let recovered = recover(&sample, 0, &units).unwrap();
        assert_eq!((recovered.block, recovered.suspects), (sample.blocks[0].clone(), lying));
    }
}

#[test]
fn each_single_liar_of_a_wide_code_is_found_within_the_bound() {
    let sample = sample((20, 12), 20, 5);
    for liar in 1..32 {
        let units = row(&sample, u32::MAX, 1 | 1 << liar);
        let recovered = recover(&sample, 0, &units).unwrap();
        assert_eq!(recovered.suspects, 1 | 1 << liar);
        assert_eq!(recovered.block, sample.blocks[0]);
    }
}

#[test]
fn units_that_are_none_are_refused() {
    let sample = sample((2, 1), 2, 6);
    assert_eq!(recover(&sample, 0, &[]), Err(RowError::TooFew { needed: 2 }));
    let mut units = row(&sample, 0b110, 0);
    units[0].1.pop();
    assert_eq!(recover(&sample, 0, &units), Err(RowError::TooFew { needed: 2 }));
    let twice = [row(&sample, 0b100, 0), row(&sample, 0b100, 0)].concat();
    assert!(recover(&sample, 0, &twice).is_err());
    let foreign = vec![(9, vec![0; UNIT_BYTES]), (1, vec![0; UNIT_BYTES])];
    assert!(recover(&sample, 0, &foreign).is_err());
}

/// The shards in `set`, those in `lying` with a bit of each third row flipped under good checksums.
fn shards(sample: &Sample, set: u32, lying: u32) -> Vec<Shard> {
    let chosen = (0..sample.shape.shards()).filter(|shard| set >> shard & 1 == 1);
    let shards = chosen.map(|shard| {
        let mut object = sample.object(shard);
        if lying >> shard & 1 == 1 {
            let rows = usize::from(sample.sealed.header.rows());
            for row in (usize::from(shard % 3)..rows).step_by(3) {
                object[HEAD_BYTES + row * UNIT_BYTES + usize::from(shard)] ^= 4;
            }
            correct_checksums(&mut object);
        }
        Shard::parse(Bytes::from(object)).unwrap()
    });
    shards.collect()
}

#[test]
fn without_a_key_shards_are_compared() {
    let sample = sample((4, 2), 4 * 40, 7);
    let all = 0b11_1111;
    assert_eq!(find_liars(&sample.codec, &shards(&sample, all, 0)), Ok(0));
    for liar in 0..6 {
        let lying = 1 << liar;
        assert_eq!(find_liars(&sample.codec, &shards(&sample, all, lying)), Ok(lying));
        for absent in (0..6).filter(|absent| *absent != liar) {
            // k + 1 at hand: they contradict each other, and that is all.
            let found = find_liars(&sample.codec, &shards(&sample, all & !(1 << absent), lying));
            assert_eq!(found, Err(RowError::Undecided), "{liar} {absent}");
        }
    }
    let four = find_liars(&sample.codec, &shards(&sample, 0b1111, 0b1));
    assert_eq!(four, Ok(0), "k shards always agree");
}

#[test]
fn two_liars_among_k_and_4_are_named() {
    let sample = sample((3, 4), 3 * 20, 8);
    for lying in subsets(7, 2) {
        let found = find_liars(&sample.codec, &shards(&sample, 0x7f, lying));
        assert_eq!(found, Ok(lying), "{lying:b}");
    }
}

/// 4 + 2 can name one. Two that lie in the same row are too many; nobody is blamed wrongly.
#[test]
fn too_many_liars_blame_no_honest_shard() {
    let sample = sample((4, 2), 4 * 20, 9);
    for lying in subsets(6, 2) {
        match find_liars(&sample.codec, &shards(&sample, 0b11_1111, lying)) {
            // They lie in different rows: one at a time, until k are left.
            Ok(found) => assert_eq!(found & !lying, 0, "{lying:b} {found:b}"),
            Err(error) => assert_eq!(error, RowError::Undecided),
        }
    }
}
