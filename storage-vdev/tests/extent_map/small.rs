//! What a map does, case by case.

use storage_vdev::extent_map::{Location, Map, MapError, ROOT_BYTES, Root, Run};

use crate::model::{Bench, Change};

const LEAF: u64 = 512;
const TEBIBYTE: u64 = 1 << 28;

fn at(sequence: u64, index: u16) -> Location {
    Location::new(sequence, index).unwrap()
}

#[test]
fn a_location_names_every_block_of_every_segment_and_no_other() {
    for (sequence, index) in [(1, 0), (1, 4095), (7, 9), ((1 << 52) - 1, 4095)] {
        let location = at(sequence, index);
        assert_eq!((location.sequence(), location.index()), (sequence, index));
        assert_eq!(Location::from_word(location.word()), Some(location));
    }
    for (sequence, index) in [(0, 0), (0, 5), (1 << 52, 0), (1, 4096)] {
        assert_eq!(Location::new(sequence, index), None);
    }
    assert_eq!(Location::from_word(0), None);
    assert_eq!(Location::from_word(4095), None);
    assert_eq!(at(3, 4090).after(5), Some(at(3, 4095)));
    assert_eq!(at(3, 4090).after(6), None);
    assert_eq!(size_of::<Option<Location>>(), 8);
}

#[test]
fn neighbours_in_one_segment_are_one_run() {
    let mut map = Map::empty(4 * LEAF, 0).unwrap();
    map.usage_mut().add(1, 1024, 1, 1);
    map.set(500, 20, at(1, 0)).unwrap();
    map.set(520, 1, at(1, 30)).unwrap();
    let mut runs = Vec::new();
    assert_eq!(map.lookup(490, 40, &mut runs), Ok(40));
    let run = |first, count, location| Run { first, count, location };
    let wanted = [
        run(490, 10, None),
        run(500, 20, Some(at(1, 0))),
        run(520, 1, Some(at(1, 30))),
        run(521, 9, None),
    ];
    assert_eq!(runs, wanted);
}

#[test]
fn a_change_outside_the_volume_or_the_segment_is_refused() {
    let mut map = Map::empty(1000, 0).unwrap();
    let refused = |first, count| Err(MapError::OutOfRange { first, count });
    assert_eq!(map.set(999, 2, at(1, 0)), refused(999, 2));
    assert_eq!(map.set(u64::MAX, 2, at(1, 0)), refused(u64::MAX, 2));
    assert_eq!(map.set(0, 2, at(1, 4095)), refused(0, 2));
    assert_eq!(map.zero(1, 1000), refused(1, 1000).map(|()| 0));
    assert_eq!(map.lookup(1001, 0, &mut Vec::new()), refused(1001, 0).map(|()| 0));
    assert_eq!(map.move_if(1000, at(1, 0), at(2, 0)), refused(1000, 1).map(|()| false));
    assert_eq!(map.grow(999), refused(0, 999));
    assert!(map.set(1000, 0, at(1, 0)).is_ok());
    assert_eq!(map.mapped(), 0);
}

#[test]
fn blocks_count_in_the_segment_that_they_are_in() {
    let mut map = Map::empty(10 * LEAF, 0).unwrap();
    for sequence in 1..=3 {
        map.usage_mut().add(sequence, 1024, 0b11, sequence);
    }
    let live = |map: &Map| [1, 2, 3].map(|sequence| map.usage().get(sequence).unwrap().live);
    map.set(0, 1024, at(1, 0)).unwrap();
    map.set(100, 50, at(2, 0)).unwrap();
    assert_eq!(live(&map), [974, 50, 0]);
    assert_eq!(map.move_if(100, at(2, 0), at(3, 0)), Ok(true));
    assert_eq!(map.move_if(100, at(2, 0), at(3, 1)), Ok(false));
    assert_eq!(live(&map), [974, 49, 1]);
    assert_eq!(map.zero(0, 1024), Ok(1024));
    assert_eq!(live(&map), [0, 0, 0]);
    assert_eq!(map.usage().live_blocks(), 0);
    assert_eq!(map.usage().dead().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(map.mapped(), 0);
    assert_eq!(map.resident_pages(), 0, "empty pages are dropped");
    assert_eq!(map.usage().errors(), 0);
}

#[test]
fn a_block_of_an_unknown_segment_is_counted_as_an_error_when_it_dies() {
    let mut map = Map::empty(LEAF, 0).unwrap();
    map.set(0, 1, at(9, 0)).unwrap();
    map.usage_mut().add(9, 1, 1, 9);
    assert!(!map.usage_mut().remove(9), "it is live");
    map.zero(0, 1).unwrap();
    assert_eq!(map.usage().errors(), 0);
    assert!(map.usage_mut().remove(9));
    assert!(!map.usage_mut().remove(9));
}

#[test]
fn a_discard_of_a_tebibyte_looks_only_at_what_is_mapped() {
    let mut bench = Bench::new(TEBIBYTE, 0);
    for first in [5, TEBIBYTE / 2, TEBIBYTE - 1] {
        let location = bench.room(1);
        bench.change(Change::Set { first, count: 1, location });
    }
    bench.checkpoint();
    bench.crash();
    let mut calls = 0;
    let mut done = 0;
    while done < TEBIBYTE {
        done += bench.paged(|map| {
            calls += 1;
            map.zero(done, TEBIBYTE - done)
        });
    }
    assert!(calls <= 20, "{calls} calls");
    assert!(bench.reads <= 20, "{} pages were read", bench.reads);
    bench.model.clear();
    bench.checkpoint();
    assert_eq!(bench.durable.root.map, None, "an empty tree has no page");
}

#[test]
fn one_call_zeroes_a_bounded_number_of_leaves() {
    let mut map = Map::empty(100 * LEAF, 1 << 20).unwrap();
    for leaf in 0..100 {
        map.usage_mut().add(leaf + 1, 512, 1, leaf);
        map.set(leaf * LEAF, LEAF, at(leaf + 1, 0)).unwrap();
    }
    let done = map.zero(0, 100 * LEAF).unwrap();
    assert_eq!(done, 32 * LEAF);
    let rest = map.zero(done, 100 * LEAF - done).unwrap();
    assert_eq!(rest, 32 * LEAF);
}

#[test]
fn a_checkpoint_stores_what_changed_and_what_is_above_it() {
    let mut bench = Bench::new(TEBIBYTE, 1 << 20);
    for leaf in 0..100 {
        let location = bench.room(1);
        bench.change(Change::Set { first: leaf * LEAF, count: 1, location });
    }
    bench.checkpoint();
    let location = bench.room(1);
    bench.change(Change::Set { first: 7 * LEAF, count: 1, location });
    bench.freeze();
    let mut pages = 0;
    while bench.store_page() {
        pages += 1;
    }
    assert_eq!(pages, 4 + 2, "a leaf, three above it, and the table's two");
    bench.finish();
}

#[test]
fn no_second_checkpoint_begins_and_none_ends_without_a_root() {
    let mut bench = Bench::new(LEAF, 0);
    let location = bench.room(1);
    bench.change(Change::Set { first: 0, count: 1, location });
    assert_eq!(bench.map.finish_checkpoint(), Err(MapError::Checkpoint));
    assert!(bench.map.next_page().is_err());
    bench.freeze();
    assert_eq!(bench.map.freeze(), Err(MapError::Checkpoint));
    assert_eq!(bench.map.frozen_root(), None);
    assert_eq!(bench.map.finish_checkpoint(), Err(MapError::Checkpoint));
    assert!(bench.map.next_page().unwrap().is_some());
    assert!(bench.map.next_page().is_err(), "the last page has no place yet");
    bench.map.placed(bench.pages.len().try_into().map(|index| at(2, index)).unwrap()).unwrap();
    assert_eq!(bench.map.placed(at(2, 9)), Err(MapError::Checkpoint));
    bench.abort();
    bench.checkpoint();
    bench.check_counts();
}

#[test]
fn a_page_in_the_way_of_garbage_collection_is_stored_anew() {
    let mut bench = Bench::new(TEBIBYTE, 0);
    for leaf in 0..3 {
        let location = bench.room(1);
        bench.change(Change::Set { first: leaf * LEAF, count: 1, location });
    }
    bench.checkpoint();
    bench.crash();
    let stored: Vec<_> = bench.pages.iter().map(|(at, (address, _))| (*at, *address)).collect();
    for (location, address) in &stored {
        assert!(bench.paged(|map| map.rewrite(*address, *location)), "{address} is live there");
        let other = at(location.sequence() + 9, location.index());
        assert!(!bench.paged(|map| map.rewrite(*address, other)), "and nowhere else");
    }
    bench.checkpoint();
    bench.check_counts();
    for (location, _) in &stored {
        let live = bench.map.usage().get(location.sequence()).map(|segment| segment.live);
        assert!(live.is_none(), "segment {} is gone", location.sequence());
    }
}

#[test]
fn a_volume_grows_while_a_checkpoint_is_under_way() {
    let mut bench = Bench::new(1, 0);
    let location = bench.room(1);
    bench.change(Change::Set { first: 0, count: 1, location });
    bench.freeze();
    bench.change(Change::Grow { blocks: TEBIBYTE });
    let location = bench.room(1);
    bench.change(Change::Set { first: TEBIBYTE - 1, count: 1, location });
    bench.finish();
    assert_eq!(bench.durable.root.blocks, 1);
    bench.check(0, TEBIBYTE);
    bench.crash();
    bench.check(0, TEBIBYTE);
    bench.checkpoint();
    assert_eq!(bench.durable.root.blocks, TEBIBYTE);
    bench.check_counts();
}

#[test]
fn a_root_comes_back_as_it_was_and_a_damaged_one_does_not() {
    let root = Root {
        blocks: 1000,
        map: Some(at(5, 6)),
        usage: Some(at(7, 8)),
        usage_level: 1,
        mapped: 3,
        segments: 2,
    };
    let bytes = root.to_bytes();
    assert_eq!(Root::from_bytes(&bytes), Ok(root));
    assert_eq!(Root::from_bytes(&Root::empty(9).to_bytes()), Ok(Root::empty(9)));
    assert!(Root::from_bytes(&[0; ROOT_BYTES]).is_err());
    for (byte, value) in [(0, 0), (4, 3), (14, 0xff), (16, 0), (24, 0), (63, 1), (48, 9), (50, 1)] {
        let mut damaged = bytes;
        damaged[byte] ^= value;
        let read = Root::from_bytes(&damaged);
        assert!(read.is_err() || read != Ok(root) || value == 0, "byte {byte}");
    }
}
