//! A map, the segments that its pages are in, and what it ought to say.

use std::collections::{BTreeMap, BTreeSet};

use storage_vdev::extent_map::{Location, Map, MapError, Page, PageAddress, Pins, Root, Run};

/// What blocks are mapped to.
pub(crate) type Blocks = BTreeMap<u64, Location>;

/// A change of the map, to be repeated when an older root is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Add { sequence: u64, blocks: u16 },
    Set { first: u64, count: u64, location: Location },
    Move { block: u64, from: Location, to: Location },
    Zero { first: u64, count: u64 },
    Grow { blocks: u64 },
}

/// A root and what must be found there.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) root: Root,
    pub(crate) blocks: Blocks,
    /// No segment behind it is in the root.
    pub(crate) frontier: u64,
}

pub(crate) struct Bench {
    pub(crate) map: Map,
    pub(crate) memory: usize,
    pub(crate) model: Blocks,
    pub(crate) pages: BTreeMap<Location, (PageAddress, Box<Page>)>,
    pub(crate) deleted: BTreeSet<u64>,
    pub(crate) durable: Kept,
    pub(crate) snapshots: Vec<Kept>,
    /// Changes since the durable root.
    pub(crate) log: Vec<Change>,
    /// The checkpoint under way: what it must hold, and how long the log was.
    pub(crate) under_way: Option<(Kept, usize)>,
    pub(crate) sequence: u64,
    pub(crate) next_index: u16,
    /// How often pages had to be read.
    pub(crate) reads: usize,
}

pub(crate) const SEGMENT_BLOCKS: u16 = 1024;

impl Bench {
    pub(crate) fn new(blocks: u64, memory: usize) -> Self {
        let root = Root::empty(blocks);
        let mut bench = Self {
            map: Map::empty(blocks, memory).unwrap(),
            memory,
            model: Blocks::new(),
            pages: BTreeMap::new(),
            deleted: BTreeSet::new(),
            durable: Kept { root, blocks: Blocks::new(), frontier: 0 },
            snapshots: Vec::new(),
            log: Vec::new(),
            under_way: None,
            sequence: 0,
            next_index: 0,
            reads: 0,
        };
        bench.next_segment();
        bench
    }

    /// Commits the segment under way and begins another.
    pub(crate) fn next_segment(&mut self) {
        self.sequence += 1;
        self.next_index = 0;
        let (sequence, blocks) = (self.sequence, SEGMENT_BLOCKS);
        self.map.usage_mut().add(sequence, blocks, 0b111, sequence);
        self.log.push(Change::Add { sequence, blocks });
    }

    /// Room for blocks in the segment under way.
    pub(crate) fn room(&mut self, count: u16) -> Location {
        if self.next_index + count > SEGMENT_BLOCKS {
            self.next_segment();
        }
        let location = Location::new(self.sequence, self.next_index).unwrap();
        self.next_index += count;
        location
    }

    /// Reads what is missing until `what` is done.
    pub(crate) fn paged<T>(&mut self, mut what: impl FnMut(&mut Map) -> Result<T, MapError>) -> T {
        for _ in 0..10_000 {
            match what(&mut self.map) {
                Ok(done) => return done,
                Err(MapError::Missing(missing)) => {
                    assert!(!missing.is_empty(), "something is missing, but not what");
                    self.reads += missing.len();
                    for (address, location) in missing {
                        let page = read(&self.pages, &self.deleted, address, location);
                        self.map.insert_page(address, location, page).unwrap();
                    }
                }
                Err(other) => panic!("{other}"),
            }
        }
        panic!("it never ends");
    }

    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Add { sequence, blocks } => {
                self.map.usage_mut().add(sequence, blocks, 0b111, sequence);
            }
            Change::Set { first, count, location } => {
                self.paged(|map| map.set(first, count, location));
                for nth in 0..count {
                    self.model.insert(first + nth, location.after(nth).unwrap());
                }
            }
            Change::Move { block, from, to } => {
                let moved = self.paged(|map| map.move_if(block, from, to));
                assert_eq!(moved, self.model.get(&block) == Some(&from));
                if moved {
                    self.model.insert(block, to);
                }
            }
            Change::Zero { first, count } => {
                let mut done = 0;
                while done < count {
                    done += self.paged(|map| map.zero(first + done, count - done));
                }
                let gone: Vec<u64> =
                    self.model.range(first..first + count).map(|(block, _)| *block).collect();
                for block in gone {
                    self.model.remove(&block);
                }
            }
            Change::Grow { blocks } => self.map.grow(blocks).unwrap(),
        }
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.apply(change);
        self.log.push(change);
    }

    pub(crate) fn freeze(&mut self) {
        self.map.freeze().unwrap();
        let root = self.durable.root;
        let blocks = self.model.clone();
        self.under_way = Some((Kept { root, blocks, frontier: self.sequence }, self.log.len()));
        // What is frozen has no part in what comes: pages go behind the frontier.
        self.next_segment();
    }

    /// Stores a page of the checkpoint. False: there are no more.
    pub(crate) fn store_page(&mut self) -> bool {
        let Some((address, page)) = self.map.next_page().unwrap() else { return false };
        let location = self.room(1);
        assert!(self.pages.insert(location, (address, page)).is_none());
        self.map.placed(location).unwrap();
        true
    }

    /// Makes the checkpoint durable and deletes what is no longer needed.
    pub(crate) fn finish(&mut self) {
        while self.store_page() {}
        let (mut kept, log) = self.under_way.take().unwrap();
        kept.root = self.map.frozen_root().unwrap();
        assert_eq!(kept.root, Root::from_bytes(&kept.root.to_bytes()).unwrap());
        self.durable = kept;
        self.log.drain(..log);
        let dead = self.map.finish_checkpoint().unwrap();
        self.delete(dead);
        assert_eq!(self.map.usage().errors(), 0, "the counts are off");
    }

    pub(crate) fn abort(&mut self) {
        self.map.abort_checkpoint();
        self.under_way = None;
    }

    pub(crate) fn checkpoint(&mut self) {
        self.freeze();
        self.finish();
    }

    fn delete(&mut self, dead: Vec<u64>) {
        let mut pins: Vec<Pins> = self.snapshots.iter().map(|kept| Pins::new(&kept.root)).collect();
        for sequence in dead {
            let pinned =
                pins.iter_mut().any(|pins| live_of(pins, &self.pages, &self.deleted, sequence) > 0);
            if !pinned {
                assert!(self.map.usage_mut().remove(sequence), "{sequence} is live");
                self.deleted.insert(sequence);
            }
        }
        let deleted = &self.deleted;
        self.pages.retain(|location, _| !deleted.contains(&location.sequence()));
    }

    /// The process dies, and another opens the durable root and rolls forward.
    pub(crate) fn crash(&mut self) {
        self.under_way = None;
        let log = std::mem::take(&mut self.log);
        self.map =
            Map::from_root(&self.durable.root, self.durable.root.blocks, self.memory).unwrap();
        self.model = self.durable.blocks.clone();
        self.paged(Map::load_usage);
        self.check_counts();
        assert_eq!(self.map.usage().len() as u64, self.durable.root.segments);
        // The table was stored before they were deleted; the superblock says that they are.
        for sequence in &self.deleted {
            self.map.usage_mut().remove(*sequence);
        }
        for change in log {
            self.change(change);
        }
        self.next_segment();
    }

    /// Segments' counts are what the stored pages and the blocks say; nothing changed since the
    /// checkpoint that is durable.
    pub(crate) fn check_counts(&mut self) {
        let mut counts: BTreeMap<u64, u16> = BTreeMap::new();
        let pages = reachable(&self.pages, &self.durable.root);
        for location in self.durable.blocks.values().chain(&pages) {
            *counts.entry(location.sequence()).or_default() += 1;
        }
        for (sequence, segment) in self.map.usage().from(0) {
            let count = counts.remove(&sequence).unwrap_or(0);
            assert_eq!(segment.live, count, "segment {sequence}");
        }
        // Pages of the table itself may lie in segments that come with the rolling forward.
        counts.retain(|sequence, _| *sequence <= self.durable.frontier);
        assert!(counts.is_empty(), "the table doesn't have {counts:?}");
        assert_eq!(self.map.mapped(), self.durable.blocks.len() as u64);
    }

    /// What the map says of blocks is what the model says.
    pub(crate) fn check(&mut self, first: u64, count: u64) {
        let mut runs = Vec::new();
        let mut at = first;
        while at < first + count {
            let left = first + count - at;
            let covered = self.paged(|map| map.lookup(at, left, &mut runs));
            check_runs(&self.model, &runs, at, covered);
            at += covered;
        }
    }

    /// What a snapshot says is what was there.
    pub(crate) fn check_snapshot(&mut self, kept: &Kept, first: u64, count: u64) {
        let blocks = kept.root.blocks;
        let end = (first + count).min(blocks);
        let mut map = Map::from_root(&kept.root, blocks, 0).unwrap();
        let mut at = first.min(end);
        std::mem::swap(&mut map, &mut self.map);
        let mut runs = Vec::new();
        while at < end {
            let covered = self.paged(|map| map.lookup(at, end - at, &mut runs));
            check_runs(&kept.blocks, &runs, at, covered);
            at += covered;
        }
        std::mem::swap(&mut map, &mut self.map);
    }

    pub(crate) fn roll_back(&mut self, nth: usize) {
        self.abort();
        let kept = self.snapshots[nth].clone();
        let blocks = self.map.blocks();
        let other = Map::from_root(&kept.root, kept.root.blocks, self.memory).unwrap();
        let before = std::mem::replace(&mut self.map, other);
        self.paged(|map| map.roll_back(&before));
        assert_eq!(self.map.blocks(), blocks);
        let back = self.map.usage().from(0).find(|(key, _)| self.deleted.contains(key));
        assert_eq!(back, None, "a deleted segment is back");
        self.model = kept.blocks;
        self.log.clear();
        self.checkpoint();
    }
}

fn check_runs(model: &Blocks, runs: &[Run], first: u64, covered: u64) {
    let mut at = first;
    for run in runs {
        assert_eq!(run.first, at, "runs leave no gap");
        if let Some(location) = run.location {
            for nth in 0..run.count {
                assert_eq!(model.get(&(at + nth)).copied(), location.after(nth), "{}", at + nth);
            }
        }
        if run.location.is_none() {
            assert_eq!(model.range(at..at + run.count).next(), None);
        }
        at += run.count;
    }
    assert_eq!(at, first + covered);
}

fn read<'a>(
    pages: &'a BTreeMap<Location, (PageAddress, Box<Page>)>,
    deleted: &BTreeSet<u64>,
    address: PageAddress,
    location: Location,
) -> &'a Page {
    assert!(!deleted.contains(&location.sequence()), "{address} was in a deleted segment");
    let (stored, page) = pages.get(&location).expect("a page that is asked for is stored");
    assert_eq!(*stored, address);
    page
}

fn live_of(
    pins: &mut Pins,
    pages: &BTreeMap<Location, (PageAddress, Box<Page>)>,
    deleted: &BTreeSet<u64>,
    sequence: u64,
) -> u16 {
    for _ in 0..1000 {
        match pins.live(sequence) {
            Ok(live) => return live,
            Err(MapError::Missing(missing)) => {
                for (address, location) in missing {
                    let page = read(pages, deleted, address, location);
                    pins.insert_page(address, location, page).unwrap();
                }
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("it never ends");
}

/// All pages that a root leads to, found without the code under test.
pub(crate) fn reachable(
    pages: &BTreeMap<Location, (PageAddress, Box<Page>)>,
    root: &Root,
) -> Vec<Location> {
    let mut found = Vec::new();
    let mut todo: Vec<Location> = root.map.into_iter().chain(root.usage).collect();
    while let Some(location) = todo.pop() {
        let (address, page) = pages.get(&location).expect("a page of a root is stored");
        found.push(location);
        let word = |at: usize| {
            page.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        };
        let level = address.word() >> 52 & 0xff;
        let below: Vec<u64> = match (address.word() >> 60, level) {
            (_, 0) => Vec::new(),
            (0, _) => (0..512).filter_map(|nth| word(nth * 8)).collect(),
            (_, _) => {
                let count = usize::from(page[0]) + usize::from(page[1]) * 256;
                (0..count).filter_map(|nth| word(8 + nth * 16 + 8)).collect()
            }
        };
        todo.extend(below.into_iter().filter_map(Location::from_word));
    }
    found
}
