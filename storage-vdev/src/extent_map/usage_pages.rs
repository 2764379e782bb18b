//! The table of segments as it is stored: pages of up to 170 segments in order, and above them
//! pages of up to 255 places of pages, in as many levels as it takes.

use std::collections::BTreeMap;
use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::location::{Location, PageAddress};
use super::pages::Page;
use super::usage::{Segment, TablePage, Usage};
use super::{LOOKUP_PAGES_MAX, MapError, PAGE_BYTES};

/// The most segments of a page.
pub(super) const SEGMENTS_MAX: usize = 170;
/// The most pages below a page.
pub(super) const PLACES_MAX: usize = 255;
/// A page with fewer segments is joined with the next one if that still leaves room.
const SEGMENTS_FEW: usize = SEGMENTS_MAX / 4;
const SEGMENTS_JOINED: usize = SEGMENTS_MAX * 3 / 4;

const BLOCKS_MAX: u16 = 1 << 12;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    count: U16,
    level: u8,
    zero: [u8; 5],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Row {
    sequence: U64,
    blocks: U16,
    live: U16,
    present: U32,
    birth: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PlaceRow {
    first: U64,
    location: U64,
}

const _: () = assert!(size_of::<Header>() == 8 && size_of::<Row>() == 24);
const _: () = assert!(size_of::<PlaceRow>() == 16);
const _: () = assert!(size_of::<Header>() + SEGMENTS_MAX * size_of::<Row>() <= PAGE_BYTES);
const _: () = assert!(size_of::<Header>() + PLACES_MAX * size_of::<PlaceRow>() <= PAGE_BYTES);

fn write<R: IntoBytes + Immutable>(level: u8, rows: &[R]) -> Box<Page> {
    let mut page = Box::new([0; PAGE_BYTES]);
    let header = Header { count: U16::new(rows.len() as u16), level, zero: [0; 5] };
    let bytes = header.as_bytes().iter().chain(rows.as_bytes());
    page.iter_mut().zip(bytes).for_each(|(target, byte)| *target = *byte);
    page
}

/// The rows of a page, if it is one of this level and holds nothing behind them.
fn read<R>(page: &Page, level: u8, most: usize) -> Option<&[R]>
where
    R: FromBytes + Immutable + KnownLayout + Unaligned,
{
    let (header, rest) = Header::ref_from_prefix(page).ok()?;
    let count = usize::from(header.count.get());
    if header.level != level || header.zero != [0; 5] || count == 0 || count > most {
        return None;
    }
    let (rows, rest) = <[R]>::ref_from_prefix_with_elems(rest, count).ok()?;
    rest.iter().all(|byte| *byte == 0).then_some(rows)
}

/// Whether all of `keys` are in `range`, in order, and none twice.
fn ascend(keys: impl Iterator<Item = u64>, range: &Range<u64>) -> bool {
    let mut next = range.start;
    keys.into_iter().all(|key| {
        let fits = key >= next && key < range.end;
        next = key.saturating_add(1);
        fits
    })
}

pub(super) fn write_segments(segments: &[(u64, Segment)]) -> Box<Page> {
    let row = |(sequence, segment): &(u64, Segment)| Row {
        sequence: U64::new(*sequence),
        blocks: U16::new(segment.blocks),
        live: U16::new(segment.live),
        present: U32::new(segment.present),
        birth: U64::new(segment.birth),
    };
    write(0, &segments.iter().map(row).collect::<Vec<_>>())
}

/// The segments of a page that has only such of `range`.
pub(super) fn read_segments(page: &Page, range: &Range<u64>) -> Option<Vec<(u64, Segment)>> {
    let rows: &[Row] = read(page, 0, SEGMENTS_MAX)?;
    let counts = |row: &Row| row.blocks.get() <= BLOCKS_MAX && row.live.get() <= BLOCKS_MAX;
    let sound = |row: &Row| row.sequence.get() > 0 && counts(row);
    if !rows.iter().all(sound) || !ascend(rows.iter().map(|row| row.sequence.get()), range) {
        return None;
    }
    let segment = |row: &Row| Segment {
        blocks: row.blocks.get(),
        live: row.live.get(),
        present: row.present.get(),
        birth: row.birth.get(),
    };
    Some(rows.iter().map(|row| (row.sequence.get(), segment(row))).collect())
}

pub(super) fn write_places(level: u8, places: &[(u64, Location)]) -> Box<Page> {
    let row = |(first, location): &(u64, Location)| PlaceRow {
        first: U64::new(*first),
        location: U64::new(location.word()),
    };
    write(level, &places.iter().map(row).collect::<Vec<_>>())
}

/// The places of the pages below this one, each with the range that the page below has.
fn read_places(page: &Page, level: u8, range: &Range<u64>) -> Option<Vec<(Range<u64>, Location)>> {
    let rows: &[PlaceRow] = read(page, level, PLACES_MAX)?;
    if !ascend(rows.iter().map(|row| row.first.get()), range) {
        return None;
    }
    let ends = rows.iter().skip(1).map(|row| row.first.get()).chain([range.end]);
    rows.iter()
        .zip(ends)
        .map(|(row, end)| Some((row.first.get()..end, Location::from_word(row.location.get())?)))
        .collect()
}

/// A page of a stored table that is to be read, and the segments that it may have.
#[derive(Debug, Clone)]
struct Wanted {
    address: PageAddress,
    location: Location,
    range: Range<u64>,
}

/// The upper pages of a stored table, while they are being read.
#[derive(Debug)]
pub(super) struct Walk {
    wanted: Vec<Wanted>,
    /// Where the upper pages are that were read.
    pub(super) upper: Vec<Location>,
}

/// What a page of a stored table brought.
pub(super) enum Step {
    /// It isn't wanted.
    Unwanted,
    /// Others to be read.
    Places,
    /// Segments, and where the page lies.
    Segments { first: u64, location: Location, segments: Vec<(u64, Segment)> },
}

impl Walk {
    /// Begins with the topmost page.
    pub(super) fn new(top: Option<(u8, Location)>) -> Self {
        let wanted = top.map(|(level, location)| Wanted {
            address: PageAddress::usage(level, 0),
            location,
            range: 0..1 << 52,
        });
        Self { wanted: wanted.into_iter().collect(), upper: Vec::new() }
    }

    /// What to read next; nothing if the whole table was read.
    pub(super) fn missing(&self) -> Vec<(PageAddress, Location)> {
        let pages = self.wanted.iter().rev().take(LOOKUP_PAGES_MAX);
        pages.map(|wanted| (wanted.address, wanted.location)).collect()
    }

    /// Takes the leaves that are to be read out of the walk: their ranges and places.
    pub(super) fn take_leaves(&mut self) -> Vec<(Range<u64>, Location)> {
        let leaves = self.wanted.extract_if(.., |wanted| wanted.address.level() == 0);
        leaves.map(|wanted| (wanted.range, wanted.location)).collect()
    }

    /// Takes a page that was read.
    pub(super) fn step(
        &mut self,
        address: PageAddress,
        location: Location,
        page: &Page,
    ) -> Result<Step, MapError> {
        let is = |wanted: &Wanted| wanted.address == address && wanted.location == location;
        let Some(nth) = self.wanted.iter().rposition(is) else { return Ok(Step::Unwanted) };
        let malformed = MapError::Malformed { address };
        let wanted = self.wanted.swap_remove(nth);
        let level = address.level();
        if level == 0 {
            let segments = read_segments(page, &wanted.range).ok_or(malformed)?;
            return Ok(Step::Segments { first: wanted.range.start, location, segments });
        }
        let places = read_places(page, level, &wanted.range).ok_or(malformed)?;
        self.upper.push(location);
        self.wanted.extend(places.into_iter().zip(0..).map(|((range, location), nth)| {
            let address = match level - 1 {
                0 => PageAddress::usage(0, range.start),
                below => PageAddress::usage(below, address.index() * PLACES_MAX as u64 + nth),
            };
            Wanted { address, location, range }
        }));
        Ok(Step::Places)
    }
}

impl Usage {
    /// The changed pages of the table as it was when the holding began, and the segments that were
    /// dead then. Pages are split and joined here and only here.
    pub(super) fn thaw(&mut self) -> (Vec<(u64, Box<Page>)>, Vec<u64>) {
        let (held, dead) = self.release();
        let mut written = Vec::new();
        let changed = self.pages.iter().filter(|(_, page)| page.dirty);
        let changed: Vec<u64> = changed.map(|(first, _)| *first).collect();
        for first in changed {
            // It may have been joined with the one before.
            if self.pages.contains_key(&first) {
                self.thaw_page(first, &held, &mut written);
            }
        }
        for (sequence, before) in &held {
            if self.segments.get(sequence) != before.as_ref() {
                self.touch(*sequence);
            }
        }
        (written, dead)
    }

    fn thaw_page(
        &mut self,
        first: u64,
        held: &BTreeMap<u64, Option<Segment>>,
        written: &mut Vec<(u64, Box<Page>)>,
    ) {
        let mut rows = self.rows_of(first, held);
        if rows.len() < SEGMENTS_FEW
            && let Some(next) = self.end_of(first)
        {
            let more = self.rows_of(next, held);
            if rows.len() + more.len() <= SEGMENTS_JOINED {
                rows.extend(more);
                self.pages.remove(&next);
            }
        }
        // At the end of the table segments only come behind: pages there are filled.
        let pieces = rows.len().div_ceil(SEGMENTS_MAX).max(1);
        let size = match self.end_of(first) {
            None => SEGMENTS_MAX,
            Some(_) => rows.len().div_ceil(pieces).max(1),
        };
        let location = self.pages.remove(&first).and_then(|page| page.location);
        if rows.is_empty() {
            if first == 0 {
                self.pages.insert(0, TablePage { location: None, dirty: false });
            }
            return;
        }
        for (nth, piece) in rows.chunks(size).enumerate() {
            let start = if nth == 0 { first } else { piece.first().map_or(first, |row| row.0) };
            self.pages.insert(start, TablePage { location, dirty: false });
            written.push((start, write_segments(piece)));
        }
    }

    /// Where the next page begins.
    fn end_of(&self, first: u64) -> Option<u64> {
        self.pages.range(first + 1..).next().map(|(next, _)| *next)
    }

    fn rows_of(&self, first: u64, held: &BTreeMap<u64, Option<Segment>>) -> Vec<(u64, Segment)> {
        let range = first..self.end_of(first).unwrap_or(u64::MAX);
        let live = self.segments.range(range.clone());
        let mut rows: BTreeMap<u64, Segment> = live.map(|(key, row)| (*key, *row)).collect();
        for (sequence, before) in held.range(range) {
            match before {
                Some(segment) => rows.insert(*sequence, *segment),
                None => rows.remove(sequence),
            };
        }
        rows.into_iter().collect()
    }

    /// The places of all pages of the table that are stored.
    pub(super) fn places(&self) -> Vec<(u64, Location)> {
        let place = |(first, page): (&u64, &TablePage)| Some((*first, page.location?));
        self.pages.iter().filter_map(place).collect()
    }

    pub(super) fn place(&mut self, first: u64, location: Location) {
        if let Some(page) = self.pages.get_mut(&first) {
            page.location = Some(location);
        }
    }
}
