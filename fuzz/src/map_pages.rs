//! Pages of a volume's map that say anything at all.
//!
//! Pages come authentic from the log, so these would be of our own making; the map must refuse them
//! or go on, in bounded time and memory, and never answer with a gap or an overlap. The input is a
//! root, what happens to the map, and the pages that it is given when it asks.

use storage_vdev::extent_map::{
    Location, Map, MapError, PAGE_BYTES, Page, PageAddress, Pins, Root, Run,
};

use crate::bytes::Input;

/// How often one step may ask for pages.
const ROUNDS: usize = 12;
const STEPS: usize = 48;

struct Pages {
    made: Vec<Page>,
    next: usize,
}

impl Pages {
    /// The input's pages: rows of words, mostly locations of small segments.
    fn read(input: &mut Input<'_>) -> Self {
        let mut made = Vec::new();
        for _ in 0..input.byte() % 16 {
            let mut page = [0; PAGE_BYTES];
            let table = input.byte();
            if table & 1 == 1 {
                page.iter_mut()
                    .zip([table >> 4, 0, table >> 1 & 3])
                    .for_each(|(to, byte)| *to = byte);
            }
            for _ in 0..input.byte() % 24 {
                let at = usize::from(input.u16()) % (PAGE_BYTES / 8) * 8;
                let word = match input.byte() {
                    kind @ 0..=199 => u64::from(kind % 8) << 12 | u64::from(input.u16() % 600),
                    _ => input.bytes(8).iter().fold(0, |all, byte| all << 8 | u64::from(*byte)),
                };
                let target = page.get_mut(at..at + 8).unwrap_or_default();
                target.iter_mut().zip(word.to_le_bytes()).for_each(|(to, byte)| *to = byte);
            }
            made.push(page);
        }
        Self { made, next: 0 }
    }

    fn give(&mut self) -> Page {
        self.next += 1;
        let count = self.made.len().max(1);
        self.made.get(self.next % count).copied().unwrap_or([0; PAGE_BYTES])
    }
}

/// Runs a step until it asks for no more pages; `None` if it failed or never ends.
fn paged<T>(
    map: &mut Map,
    pages: &mut Pages,
    mut step: impl FnMut(&mut Map) -> Result<T, MapError>,
) -> Option<T> {
    for _ in 0..ROUNDS {
        match step(map) {
            Ok(done) => return Some(done),
            Err(MapError::Missing(missing)) => {
                assert!(!missing.is_empty() && missing.len() <= 32, "{} pages", missing.len());
                for (address, location) in missing {
                    match map.insert_page(address, location, &pages.give()) {
                        Ok(()) | Err(MapError::Malformed { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            }
            Err(_) => return None,
        }
    }
    None
}

fn look(map: &mut Map, pages: &mut Pages, first: u64, count: u64) {
    let mut runs: Vec<Run> = Vec::new();
    let Some(covered) = paged(map, pages, |map| map.lookup(first, count, &mut runs)) else {
        return;
    };
    let mut at = first;
    for run in &runs {
        assert!(run.first == at && run.count > 0, "runs follow each other");
        at += run.count;
    }
    assert!(at - first == covered && covered <= count, "runs cover what was asked for");
}

/// Stores the map. Returns whether it got to the end.
fn checkpoint(map: &mut Map, pages: &mut Pages, sequence: u64) -> bool {
    if paged(map, pages, Map::freeze).is_none() {
        return false;
    }
    let mut index: u32 = 0;
    while let Ok(Some(_)) = map.next_page() {
        let location = Location::new(sequence + u64::from(index / 4096), (index % 4096) as u16);
        let Some(location) = location else { return false };
        assert_eq!(map.placed(location), Ok(()));
        index += 1;
    }
    let root = map.frozen_root();
    let stored = root.map(|root| Root::from_bytes(&root.to_bytes()));
    assert!(stored.is_some_and(|stored| stored.ok() == root), "a root is stored as it is");
    map.finish_checkpoint().is_ok()
}

fn root(input: &mut Input<'_>) -> Root {
    let blocks = u64::from(input.u16()) << (input.byte() % 37);
    let place = |input: &mut Input<'_>| Location::new(input.byte().into(), input.u16() % 4096);
    Root {
        blocks,
        map: place(input),
        usage: place(input),
        usage_level: input.byte() % 4,
        mapped: u64::from(input.u16()).min(blocks),
        segments: u64::from(input.byte()),
    }
}

fn ask_pins(root: &Root, pages: &mut Pages) {
    let mut pins = Pins::new(root);
    for sequence in 0..8 {
        for _ in 0..ROUNDS {
            let Err(MapError::Missing(missing)) = pins.live(sequence) else { break };
            for (address, location) in missing {
                drop(pins.insert_page(address, location, &pages.give()));
            }
        }
    }
}

/// Says whether a checkpoint was stored to its end.
pub fn check(input: &[u8]) -> bool {
    let mut input = Input(input);
    let root = root(&mut input);
    let mut pages = Pages::read(&mut input);
    ask_pins(&root, &mut pages);
    let Ok(mut map) = Map::from_root(&root, root.blocks, 0) else { return false };
    let mut stored = false;
    for step in 0..STEPS as u64 {
        if input.is_empty() {
            break;
        }
        let order = input.byte();
        let first = u64::from(input.u16()) << (order >> 4);
        let count = u64::from(input.byte()) + 1;
        let at = |index| Location::new(1 + step % 7, index);
        let (Some(from), Some(to)) = (at(input.u16() % 3000), at(100 + step as u16)) else { break };
        match order % 8 {
            0 => look(&mut map, &mut pages, first, count << (order % 32)),
            1 => drop(paged(&mut map, &mut pages, |map| map.set(first, count, to))),
            2 => drop(paged(&mut map, &mut pages, |map| map.zero(first, count << 9))),
            3 => drop(paged(&mut map, &mut pages, |map| map.move_if(first, from, to))),
            4 => {
                let address = PageAddress::from_word(first | u64::from(order & 0x30) << 48);
                paged(&mut map, &mut pages, |map| map.rewrite(address, from));
            }
            5 => drop(map.grow(first.max(map.blocks()))),
            6 => map.usage_mut().add(step + 1, 1024, 7, step),
            _ => stored |= checkpoint(&mut map, &mut pages, 1000 + step),
        }
        map.abort_checkpoint();
    }
    stored
}
