//! How much memory a map takes.

use storage_vdev::extent_map::{Location, Map, Segment};

const SEGMENT: u16 = 1024;

/// Stores the map; what it stores isn't read again here.
fn checkpoint(map: &mut Map, sequence: &mut u64) -> u64 {
    let mut pages = 0;
    map.freeze().unwrap();
    while map.next_page().unwrap().is_some() {
        let index = (pages % u64::from(SEGMENT)) as u16;
        if index == 0 {
            *sequence += 1;
            map.usage_mut().add(*sequence, SEGMENT, 1, *sequence);
        }
        map.placed(Location::new(*sequence, index).unwrap()).unwrap();
        pages += 1;
    }
    for dead in map.finish_checkpoint().unwrap() {
        assert!(map.usage_mut().remove(dead));
    }
    pages
}

/// 64 GiB from the first block to the last, with 256 KiB of pages.
#[test]
fn a_sequential_write_keeps_to_the_memory_that_it_was_given() {
    let segments: u64 = 16 << 10;
    let memory = 256 << 10;
    let mut map = Map::empty(1 << 28, memory).unwrap();
    let mut sequence = 0;
    let (mut most, mut pages) = (0, 0);
    for nth in 0..segments {
        sequence += 1;
        map.usage_mut().add(sequence, SEGMENT, 0b11_1111, sequence);
        let first = nth * u64::from(SEGMENT);
        map.set(first, SEGMENT.into(), Location::new(sequence, 0).unwrap()).unwrap();
        most = most.max(map.resident_pages());
        if map.wants_checkpoint() {
            pages += checkpoint(&mut map, &mut sequence);
        }
    }
    assert!(most * 4096 <= memory, "{most} pages");
    // The table: 24 bytes for each segment, in B-tree nodes that are about two thirds full.
    assert_eq!(size_of::<u64>() + size_of::<Segment>(), 24);
    // 512 blocks of data to a leaf, and what is above the leaves once for each checkpoint.
    assert!(pages < segments * 2 * 5 / 4, "{pages} pages were stored");
}
