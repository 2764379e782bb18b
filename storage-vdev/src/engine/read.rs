//! Reading: the overlay first, then the map, then what it names.

use std::rc::Rc;

use super::executor::join_all;
use super::request::{Output, RequestError, RequestId};
use super::state::{Engine, State};
use crate::extent_map::{Location, MapError, Page, PageAddress, Run};
use crate::geometry::BLOCK_BYTES;
use crate::segment::{Place, open_unit_into};

/// Reads of more than this leave the cache alone.
const CACHED_READ_BYTES: usize = 32 << 10;
/// How often a read begins again because blocks were moved under it, or pages were missing.
const TRIES_MAX: usize = 32;

/// A block that is to be fetched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    pub(super) location: Location,
    pub(super) place: Place,
    /// Which block of the buffer.
    pub(super) at: usize,
}

/// Blocks that could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LostSegment(pub(super) u64);

impl State {
    /// Fills `out` with what is in memory of the blocks from `first` on. The rest goes to `wants`.
    fn plan_read(
        &mut self,
        first: u64,
        out: &mut [u8],
        wants: &mut Vec<Want>,
    ) -> Result<(), MapError> {
        let mut below: Vec<(u64, u64)> = Vec::new();
        self.read_overlay(first, out, |block, count| below.push((block, count)));
        let mut runs: Vec<Run> = Vec::new();
        for (mut block, mut count) in below {
            while count > 0 {
                runs.clear();
                let found = self.map.lookup(block, count, &mut runs)?;
                for run in &runs {
                    self.plan_run(first, run, out, wants);
                }
                block += found.max(1);
                count = count.saturating_sub(found.max(1));
            }
        }
        Ok(())
    }

    fn plan_run(&mut self, first: u64, run: &Run, out: &mut [u8], wants: &mut Vec<Want>) {
        let at = (run.first - first) as usize;
        let count = run.count as usize;
        let Some(start) = run.location else {
            let zeroes = out.get_mut(at * BLOCK_BYTES..(at + count) * BLOCK_BYTES);
            zeroes.into_iter().for_each(|bytes| bytes.fill(0));
            return;
        };
        for nth in 0..count {
            let Some(location) = start.after(nth as u64) else { continue };
            let target = out.get_mut((at + nth) * BLOCK_BYTES..(at + nth + 1) * BLOCK_BYTES);
            match (self.cache.get(location), target) {
                (Some(block), Some(target)) => {
                    target.copy_from_slice(block);
                    self.counters.cache_hits += 1;
                }
                _ => {
                    let place = Place::Block(run.first + nth as u64);
                    wants.push(Want { location, place, at: at + nth });
                    self.counters.cache_misses += 1;
                }
            }
        }
    }
}

impl Engine {
    pub(super) fn submit_read(self: &Rc<Self>, id: RequestId, offset: u64, mut buffer: Vec<u8>) {
        let len = buffer.len() as u64;
        if let Err(error) = self.check(offset, len).and_then(|()| self.check_lease()) {
            return self.complete_with(id, Err(error), buffer);
        }
        let block = BLOCK_BYTES as u64;
        if offset.is_multiple_of(block) && len.is_multiple_of(block) {
            let mut wants = Vec::new();
            let planned = self.with(|state| {
                state.counters.read_bytes += len;
                state.plan_read(offset / block, &mut buffer, &mut wants)
            });
            if planned.is_ok() && wants.is_empty() {
                return self.complete_with(id, Ok(Output::Done), buffer);
            }
        }
        let engine = Rc::clone(self);
        self.runtime.spawn(async move {
            let result = engine.read_bytes(offset, &mut buffer).await;
            let result = result.and_then(|()| engine.check_lease());
            engine.complete_with(id, result.map(|()| Output::Done), buffer);
        });
    }

    async fn read_bytes(
        self: &Rc<Self>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), RequestError> {
        let block = BLOCK_BYTES as u64;
        let skip = (offset % block) as usize;
        if skip == 0 && buffer.len().is_multiple_of(BLOCK_BYTES) {
            return self.read_blocks(offset / block, buffer).await;
        }
        let mut whole = vec![0; (skip + buffer.len()).next_multiple_of(BLOCK_BYTES)];
        self.read_blocks(offset / block, &mut whole).await?;
        if let Some(part) = whole.get(skip..skip + buffer.len()) {
            buffer.copy_from_slice(part);
        }
        Ok(())
    }

    /// Reads whole blocks from block `first` on.
    pub(super) async fn read_blocks(
        self: &Rc<Self>,
        first: u64,
        out: &mut [u8],
    ) -> Result<(), RequestError> {
        let mut lost = None;
        let mut wants = Vec::new();
        for _ in 0..TRIES_MAX {
            self.check_running()?;
            wants.clear();
            match self.with(|state| state.plan_read(first, out, &mut wants)) {
                Ok(()) => {}
                Err(MapError::Missing(pages)) => {
                    self.load_pages(pages).await?;
                    continue;
                }
                Err(error) => return Err(damaged_map(&error)),
            }
            match self.fetch(&wants, out).await {
                Ok(()) => return Ok(()),
                Err(segment) if lost == Some(segment) => break,
                // The block may have been moved, and its segment deleted, since the map was asked.
                Err(segment) => lost = Some(segment),
            }
        }
        let LostSegment(segment) = lost.unwrap_or(LostSegment(0));
        Err(RequestError::Lost { segment })
    }

    /// Fetches blocks into their places in `out`.
    pub(super) async fn fetch(
        self: &Rc<Self>,
        wants: &[Want],
        out: &mut [u8],
    ) -> Result<(), LostSegment> {
        let mut sorted = wants.to_vec();
        sorted.sort_unstable_by_key(|want| want.location);
        let segments: Vec<&[Want]> =
            sorted.chunk_by(|a, b| a.location.sequence() == b.location.sequence()).collect();
        let keep = out.len() <= CACHED_READ_BYTES;
        let fetched = match segments.as_slice() {
            [one] => vec![self.fetch_segment(one).await],
            all => join_all(all.iter().map(|wants| self.fetch_segment(wants))).await,
        };
        for (wants, units) in segments.iter().zip(fetched) {
            let units = units?;
            for want in wants.iter() {
                let range = want.at * BLOCK_BYTES..(want.at + 1) * BLOCK_BYTES;
                let Some(block) = out.get_mut(range) else { continue };
                let sequence = want.location.sequence();
                let at = (sequence, want.location.index());
                let opened = self.with(|state| {
                    let (_, keys) = state.openings.of(sequence)?;
                    let unit = units.unit(state.shape, want.location.index())?;
                    open_unit_into(keys, at, want.place, unit, block).ok()
                });
                if opened.is_none() {
                    self.recover_block(want, block).await?;
                }
                if keep {
                    self.with(|state| state.cache.insert(want.location, block));
                }
            }
        }
        Ok(())
    }

    /// Reads one block of the log.
    pub(super) async fn read_location(
        self: &Rc<Self>,
        location: Location,
        place: Place,
    ) -> Result<Box<Page>, LostSegment> {
        let mut block: Box<Page> = Box::new([0; BLOCK_BYTES]);
        let want = Want { location, place, at: 0 };
        self.fetch(&[want], &mut block[..]).await?;
        Ok(block)
    }

    /// Reads a page of a map: the volume's, or a snapshot's.
    pub(super) async fn read_page(
        self: &Rc<Self>,
        address: PageAddress,
        location: Location,
    ) -> Result<Box<Page>, RequestError> {
        let page = self.read_location(location, Place::Meta(address.word())).await;
        page.map_err(|LostSegment(segment)| RequestError::Lost { segment })
    }

    /// Whether a segment was given up because nothing needs it, so that it can't be lost.
    pub(super) fn is_freed(&self, segment: u64) -> bool {
        self.with(|state| state.map.usage().get(segment).is_none())
    }

    /// Reads pages of the volume's map and gives them to it, as far as it still wants them.
    pub(super) async fn load_pages(
        self: &Rc<Self>,
        pages: Vec<(PageAddress, Location)>,
    ) -> Result<(), RequestError> {
        let reads = pages
            .iter()
            .map(|(address, location)| self.read_location(*location, Place::Meta(address.word())));
        let read = join_all(reads).await;
        for ((address, location), page) in pages.into_iter().zip(read) {
            let page = match page {
                Ok(page) => page,
                // A checkpoint has put the page somewhere else meanwhile: the map says where.
                Err(LostSegment(segment)) if address.is_map() && self.is_freed(segment) => continue,
                Err(LostSegment(segment)) => return Err(RequestError::Lost { segment }),
            };
            self.with(|state| state.map.insert_page(address, location, &page))
                .map_err(|error| damaged_map(&error))?;
        }
        Ok(())
    }
}

/// A page that was authentic and makes no sense, or an address that a check should have refused.
fn damaged_map(error: &MapError) -> RequestError {
    tracing::error!(%error, "the map is damaged");
    RequestError::Refused("the volume's map is damaged")
}
