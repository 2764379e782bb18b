//! What is lost or damaged comes back, bit by bit, and nothing is made up.

use bytes::Bytes;
use storage_node::heal::{Policy, Report, SpareShard, Verdict};
use storage_vdev::files::sim::Rng;
use storage_vdev::segment::{HEAD_BYTES, Shard};

use crate::world::{Sketch, World, is_same};

const SEGMENTS: u64 = 7;

fn scrub() -> Policy {
    Policy { scrub: true, ..Policy::default() }
}

fn subsets(of: u8, count: u32) -> Vec<Vec<u8>> {
    let sets = (0u32..1 << of).filter(|set| set.count_ones() == count);
    sets.map(|set| (0..of).filter(|bit| set >> bit & 1 == 1).collect()).collect()
}

/// Corrects a shard's checksums, as somebody does who lies on purpose.
fn lie(original: &Bytes) -> Vec<u8> {
    let mut object = original.to_vec();
    object[HEAD_BYTES + 77] ^= 8;
    let units = Shard::parse(original.clone()).unwrap().units().len();
    for (chunk, start) in (0..units).step_by(16 * 4112).enumerate() {
        let end = (start + 16 * 4112).min(units);
        let crc = crc32c::crc32c(&object[HEAD_BYTES + start..HEAD_BYTES + end]);
        object[304 + 4 * chunk..308 + 4 * chunk].copy_from_slice(&crc.to_le_bytes());
    }
    let common = u32::from_le_bytes(object[252..256].try_into().unwrap());
    let own = crc32c::crc32c_append(common, &object[256..508]);
    object[508..].first_chunk_mut::<4>().unwrap().copy_from_slice(&own.to_le_bytes());
    assert!(Shard::parse(Bytes::from(object.clone())).unwrap().check().is_ok());
    object
}

/// Damages a shard in a way of `kind` that its node doesn't notice, or loses it.
fn damage(world: &mut World, sequence: u64, shard: u8, kind: u64) {
    let mut object = world.originals[&(sequence, shard)].to_vec();
    let end = object.len();
    match kind {
        0 => return world.lose(sequence, shard),
        1 => object[HEAD_BYTES + 5] ^= 1,
        2 => object[300] ^= 1,
        3 => object[end - 1] ^= 1,
        4 => object.truncate(end / 2),
        _ => object.clear(),
    }
    world.replace(sequence, shard, object);
    // Its own checksum has failed, or a repair could not replace it.
    let place = (world.home(sequence, shard), world.key(sequence, shard));
    world.stores.rotten.insert(place);
}

fn assert_all_back(world: &World, context: &str) {
    for sequence in 1..=SEGMENTS {
        assert!(world.is_whole(sequence), "{context}: segment {sequence}");
    }
}

#[test]
fn a_whole_volume_is_left_alone() {
    for policy in [Policy::default(), scrub()] {
        let mut world = World::new((4, 2), SEGMENTS, 0);
        let report = world.heal(policy);
        assert_eq!(report.count(Verdict::Whole), SEGMENTS);
        assert_eq!(report.superblock, Some((3, 40)));
        assert!(world.stores.stored.is_empty());
        assert_eq!(report.examples, []);
    }
}

#[test]
fn every_two_of_4_and_2_come_back_in_every_segment() {
    for lost in subsets(6, 2) {
        for kind in 0..6 {
            let mut world = World::new((4, 2), SEGMENTS, 0);
            for sequence in 1..=SEGMENTS {
                lost.iter().for_each(|shard| damage(&mut world, sequence, *shard, kind));
            }
            let report = world.heal(if kind == 0 { Policy::default() } else { scrub() });
            assert_eq!(report.count(Verdict::Repaired), SEGMENTS, "{lost:?} {kind}");
            assert_eq!(report.shards_restored, 2 * SEGMENTS);
            assert_all_back(&world, &format!("{lost:?} damage {kind}"));
        }
    }
}

#[test]
fn nodes_that_were_wiped_get_everything_back_superblock_included() {
    for wiped in subsets(6, 2) {
        let mut world = World::new((4, 2), SEGMENTS, 0);
        for node in &wiped {
            world.stores.objects[usize::from(*node)].clear();
        }
        let report = world.heal(Policy::default());
        assert_eq!(report.count(Verdict::Repaired), SEGMENTS, "{wiped:?}");
        assert_eq!(report.superblocks_restored, 2);
        let key = Sketch::new(SEGMENTS).key();
        assert!(world.stores.objects.iter().all(|objects| objects.contains_key(&key)));
        assert_all_back(&world, &format!("{wiped:?}"));
    }
}

#[test]
fn more_than_m_lost_is_reported_and_nothing_is_made_up() {
    for lost in subsets(6, 3) {
        for kind in 0..6 {
            let mut world = World::new((4, 2), SEGMENTS, 0);
            lost.iter().for_each(|shard| damage(&mut world, 3, *shard, kind));
            let report = world.heal(scrub());
            assert_eq!(report.count(Verdict::Whole), SEGMENTS - 1, "{lost:?} {kind}");
            if kind == 3 {
                // The table alone, which the other three have, too.
                assert_eq!(report.count(Verdict::Repaired), 1, "{lost:?}");
                assert!(world.is_whole(3));
            } else {
                assert_eq!(report.examples, [(3, Verdict::Lost)], "{lost:?} {kind}");
                assert!(world.stores.stored.iter().all(|(_, key)| key.sequence != 3));
            }
        }
    }
}

#[test]
fn the_lazy_threshold_waits_and_then_mends_all_at_once() {
    let run = |lost: u8, lazy: bool| {
        let mut world = World::new((10, 4), SEGMENTS, 0);
        for sequence in 1..=SEGMENTS {
            (0..lost).for_each(|shard| world.lose(sequence, shard * 3));
        }
        let report = world.heal(Policy { lazy, ..Policy::default() });
        if report.count(Verdict::Repaired) > 0 {
            assert_all_back(&world, &format!("{lost} lost"));
        }
        (report.count(Verdict::Deferred), report.count(Verdict::Repaired))
    };
    assert_eq!(run(1, true), (SEGMENTS, 0));
    assert_eq!(run(1, false), (0, SEGMENTS));
    for lost in 2..=4 {
        assert_eq!(run(lost, true), (0, SEGMENTS), "{lost} lost");
    }
}

#[test]
fn what_is_nearest_to_its_limit_is_mended_first() {
    let mut world = World::new((4, 2), SEGMENTS, 0);
    (1..=SEGMENTS).for_each(|sequence| world.lose(sequence, 0));
    world.lose(6, 1);
    let report = world.heal(Policy { parallel: 1, ..Policy::default() });
    assert_eq!(report.count(Verdict::Repaired), SEGMENTS);
    assert_eq!(world.stores.stored[0].1.sequence, 6);
    assert_all_back(&world, "urgent");
}

fn liars(report: &Report) -> Vec<u8> {
    report.lying.keys().copied().collect()
}

#[test]
fn a_liar_is_named_and_its_lie_is_not_spread() {
    for liar in 0..6 {
        let mut world = World::new((4, 2), SEGMENTS, 1);
        let bytes = lie(&world.originals[&(4, liar)]);
        world.replace(4, liar, bytes);
        let report = world.heal(scrub());
        let node = world.home(4, liar);
        assert_eq!(liars(&report), [node]);
        // Its node keeps its bytes: the true shard goes to the spare.
        assert_eq!(report.on_spares, [SpareShard { sequence: 4, shard: liar, node: 6 }]);
        let spare = &world.stores.objects[6][&world.key(4, liar)];
        assert!(is_same(spare, &world.originals[&(4, liar)]), "liar {liar}");
    }
}

#[test]
fn with_k_and_1_shards_a_lie_stops_the_repair() {
    for liar in 1..6 {
        let mut world = World::new((4, 2), SEGMENTS, 0);
        let bytes = lie(&world.originals[&(4, liar)]);
        world.replace(4, liar, bytes);
        world.lose(4, 0);
        let report = world.heal(Policy::default());
        assert_eq!(report.examples, [(4, Verdict::Contradictory)], "liar {liar}");
        assert!(world.stores.stored.is_empty());
    }
}

/// What can't be known without the key: k shards always agree.
#[test]
fn with_k_shards_a_lie_is_spread_under_good_checksums() {
    let mut world = World::new((4, 2), SEGMENTS, 0);
    let bytes = lie(&world.originals[&(4, 3)]);
    world.replace(4, 3, bytes);
    world.lose(4, 0);
    world.lose(4, 1);
    let report = world.heal(Policy::default());
    assert_eq!(report.count(Verdict::Repaired), 1);
    assert!(!world.is_back(4, 0) && !world.is_back(4, 1));
    let object = world.object(4, 0).unwrap().clone();
    assert_eq!(Shard::parse(object).unwrap().check(), Ok(()));
}

#[test]
fn a_silent_node_is_waited_for_and_a_given_up_one_replaced() {
    let mut world = World::new((4, 2), SEGMENTS, 2);
    world.stores.down.insert(2);
    let report = world.heal(Policy::default());
    assert_eq!(report.silent, [2]);
    assert_eq!(report.count(Verdict::Unplaced), SEGMENTS);
    assert!(world.stores.stored.is_empty());
    let report = world.heal(Policy { given_up: vec![2], ..Policy::default() });
    assert_eq!(report.count(Verdict::Repaired), SEGMENTS);
    assert_eq!(report.on_spares.len() as u64, SEGMENTS);
    for SpareShard { sequence, shard, node } in report.on_spares {
        let stored = &world.stores.objects[usize::from(node)][&world.key(sequence, shard)];
        assert!(is_same(stored, &world.originals[&(sequence, shard)]));
    }
    let again = world.heal(Policy { given_up: vec![2], ..Policy::default() });
    assert_eq!(again.count(Verdict::Whole), SEGMENTS);
    assert_eq!(again.shards_restored, 0);
}

#[test]
fn a_full_node_hands_over_to_a_spare_and_without_one_it_is_said() {
    for spares in [0, 1] {
        let mut world = World::new((4, 2), SEGMENTS, spares);
        world.lose(5, 1);
        world.stores.full.insert(world.home(5, 1));
        let report = world.heal(Policy::default());
        let verdict = if spares == 0 { Verdict::Unplaced } else { Verdict::Repaired };
        assert_eq!(report.count(verdict), 1, "{spares} spares");
        assert_eq!(report.on_spares.len(), usize::from(spares));
    }
}

#[test]
fn the_bandwidth_is_limited_and_progress_tells_how_long_it_takes() {
    let mut world = World::new((4, 2), 60, 0);
    for sequence in 1..=60 {
        world.lose(sequence, (sequence % 6) as u8);
    }
    let start = world.stores.clock.get();
    let policy = Policy { bytes_per_second: Some(1_000_000), parallel: 2, ..Policy::default() };
    let report = world.heal(policy);
    assert_eq!(report.count(Verdict::Repaired), 60);
    let seconds = (world.stores.clock.get() - start) as f64 / 1e9;
    let expected = report.bytes_moved as f64 / 1e6;
    assert!((0.8..1.3).contains(&(seconds / expected)), "{seconds} s, {expected} s of bytes");
}

/// Random damage within the limits, answers in random order, nodes that stop answering for a
/// while: after a pass over quiet nodes everything is back.
#[test]
fn whatever_happens_in_a_pass_a_later_one_brings_everything_back() {
    for seed in 0..150 {
        let mut rng = Rng::new(seed);
        let mut world = World::new((4, 2), SEGMENTS, 1);
        world.rng = Rng::new(seed);
        for sequence in 1..=SEGMENTS {
            for _ in 0..rng.below(3) {
                let (shard, kind) = (rng.below(6) as u8, rng.below(6));
                damage(&mut world, sequence, shard, kind);
            }
        }
        let mut faults = Rng::new(seed + 1_000_000);
        world.hook = Some(Box::new(move |stores, node, _| {
            match faults.below(12) {
                0 => drop(stores.down.insert(node)),
                1..4 => stores.down.clear(),
                _ => {}
            };
        }));
        world.heal(scrub());
        world.hook = None;
        world.stores.down.clear();
        let mut again = world.heal(scrub());
        if again.count(Verdict::Unplaced) > 0 {
            again = world.heal(scrub());
        }
        let fine = again.count(Verdict::Whole) + again.count(Verdict::Repaired);
        assert_eq!(fine, SEGMENTS, "seed {seed}: {again:?}");
        assert_all_back(&world, &format!("seed {seed}"));
    }
}
