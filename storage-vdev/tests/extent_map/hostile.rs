//! Pages that no map has stored: each is refused or harmless, and none panics.

use storage_vdev::extent_map::{Location, Map, MapError, Page, PageAddress, Pins, Root, Run};

use crate::model::{Bench, Change};
use crate::random::{Random, Seed};

const BLOCKS: u64 = 512 * 512 + 3;

/// A root with a few thousand mapped blocks and enough segments for two leaves of the table.
fn stored() -> Bench {
    let mut bench = Bench::new(BLOCKS, 0);
    for nth in 0..400 {
        let location = bench.room(2);
        bench.change(Change::Set { first: nth * 600, count: 2, location });
        bench.next_segment();
    }
    bench.checkpoint();
    bench
}

fn map_of(root: &Root) -> Map {
    Map::from_root(root, root.blocks, 0).unwrap()
}

/// Something that is done with a map.
type Step<'a> = Box<dyn FnMut(&mut Map) -> Result<(), MapError> + 'a>;

/// Works with a map some pages of which are `bad`; returns how often one was refused.
fn work(bench: &Bench, mut bad: impl FnMut(PageAddress, &Page) -> Page) -> usize {
    let mut map = map_of(&bench.durable.root);
    let mut refused = 0;
    let mut runs: Vec<Run> = Vec::new();
    let mut steps: Vec<Step<'_>> = vec![
        Box::new(Map::load_usage),
        Box::new(move |map| map.lookup(0, BLOCKS / 2, &mut runs).map(drop)),
        Box::new(|map| map.set(5, 9, Location::new(1, 0).unwrap())),
        Box::new(|map| map.zero(0, BLOCKS).map(drop)),
        Box::new(|map| map.freeze()),
    ];
    for step in &mut steps {
        for _ in 0..100 {
            let Err(MapError::Missing(missing)) = step(&mut map) else { break };
            for (address, location) in missing {
                let (_, page) =
                    bench.pages.get(&location).unwrap_or(bench.pages.first_key_value().unwrap().1);
                match map.insert_page(address, location, &bad(address, page)) {
                    Ok(()) => {}
                    Err(MapError::Malformed { .. }) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
    refused
}

#[test]
fn flipped_bits_in_pages_are_refused_or_harmless() {
    let bench = stored();
    for seed in 0..200 {
        let print = Seed(seed);
        let mut random = Random(seed);
        work(&bench, |_, page| {
            let mut page = *page;
            if random.below(3) == 0 {
                for _ in 0..=random.below(4) {
                    page[random.below(4096) as usize] ^= 1 << random.below(8);
                }
            }
            page
        });
        drop(print);
    }
}

#[test]
fn pages_of_noise_are_refused() {
    let bench = stored();
    let mut random = Random(7);
    let refused = work(&bench, |_, _| {
        let mut page = [0; 4096];
        page.iter_mut().for_each(|byte| *byte = random.next() as u8);
        page
    });
    assert!(refused > 0);
}

#[test]
fn a_page_in_anothers_place_is_refused() {
    let bench = stored();
    let pages: Vec<&Page> = bench.pages.values().map(|(_, page)| &**page).collect();
    let mut refused = 0;
    for other in pages.iter().step_by(17) {
        refused +=
            work(&bench, |address, page| if address.word() % 4 == 0 { **other } else { *page });
    }
    assert!(refused > 0);
}

#[test]
fn pages_that_the_map_cannot_have_are_refused() {
    let bench = stored();
    let mut map = map_of(&bench.durable.root);
    let location = Location::new(1, 1).unwrap();
    for word in [u64::MAX, 2 << 60, 3 << 52, 15 << 52, 1024, (1 << 52) + 2] {
        let address = PageAddress::from_word(word);
        let result = map.insert_page(address, location, &[0; 4096]);
        assert_eq!(result, Err(MapError::Malformed { address }), "{address}");
        let mut pins = Pins::new(&bench.durable.root);
        assert!(pins.insert_page(address, location, &[0; 4096]).is_err(), "{address}");
    }
    // The last leaf has three blocks.
    let address = PageAddress::from_word(512);
    let Err(MapError::Missing(_)) = map.lookup(BLOCKS - 1, 1, &mut Vec::new()) else {
        panic!("nothing was read yet");
    };
    let mut page = [0; 4096];
    page[3 * 8 + 2] = 1;
    let inserted = map.insert_page(address, location, &page);
    assert_eq!(inserted, Ok(()), "it isn't asked for: nothing is stored there");
}

#[test]
fn a_page_that_was_not_asked_for_changes_nothing() {
    let bench = stored();
    let mut map = map_of(&bench.durable.root);
    let before = map.resident_pages();
    for (location, (address, page)) in &bench.pages {
        let elsewhere = Location::new(location.sequence() + 1, location.index()).unwrap();
        map.insert_page(*address, elsewhere, page).unwrap();
    }
    assert_eq!(map.resident_pages(), before);
    assert!(matches!(map.load_usage(), Err(MapError::Missing(_))));
}
