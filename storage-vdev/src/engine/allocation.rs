//! Which parts of a volume are stored.

use std::rc::Rc;

use super::overlay::Found;
use super::request::{Extent, Output, RequestError, RequestId};
use super::state::{Engine, State};
use crate::extent_map::{MapError, Run};
use crate::geometry::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// The most extents of an answer.
const EXTENTS_MAX: usize = 4096;

impl State {
    /// The extents from block `first` on, until `count` blocks are said or there are enough.
    fn allocation(&mut self, first: u64, count: u64) -> Result<Vec<Extent>, MapError> {
        let mut extents: Vec<Extent> = Vec::new();
        let (mut block, end) = (first, first + count);
        let mut runs: Vec<Run> = Vec::new();
        while block < end && extents.len() < EXTENTS_MAX {
            let (found, run) = self.overlay.find(block, end - block);
            match found {
                Found::Data(_) => push(&mut extents, run, true),
                Found::Zero => push(&mut extents, run, false),
                Found::Below => {
                    runs.clear();
                    let said = match self.map.lookup(block, run, &mut runs) {
                        Ok(said) => said,
                        // What was found so far is an answer too.
                        Err(MapError::Missing(_)) if !extents.is_empty() => return Ok(extents),
                        Err(error) => return Err(error),
                    };
                    runs.iter().for_each(|run| {
                        push(&mut extents, run.count, run.location.is_some());
                    });
                    block += said.max(1);
                    continue;
                }
            }
            block += run.max(1);
        }
        Ok(extents)
    }
}

fn push(extents: &mut Vec<Extent>, blocks: u64, allocated: bool) {
    let len = blocks * BLOCK;
    match extents.last_mut() {
        Some(last) if last.allocated == allocated => last.len += len,
        _ => extents.push(Extent { len, allocated }),
    }
}

impl Engine {
    pub(super) fn submit_block_status(self: &Rc<Self>, id: RequestId, offset: u64, len: u64) {
        if let Err(error) = self.check(offset, len).and_then(|()| self.check_lease()) {
            return self.complete(id, Err(error));
        }
        let engine = Rc::clone(self);
        self.runtime.spawn(async move {
            let result = engine.block_status(offset, len).await;
            engine.complete(id, result.map(Output::Extents));
        });
    }

    async fn block_status(
        self: &Rc<Self>,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Extent>, RequestError> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let first = offset / BLOCK;
        let count = (offset + len).div_ceil(BLOCK) - first;
        loop {
            self.check_running()?;
            match self.with(|state| state.allocation(first, count)) {
                Ok(extents) => return Ok(cut(extents, offset % BLOCK, len)),
                Err(MapError::Missing(pages)) => self.load_pages(pages).await?,
                Err(_) => return Err(RequestError::Refused("the volume's map is damaged")),
            }
        }
    }
}

/// Takes `skip` bytes off the front, and what is behind `len` bytes off the end.
fn cut(extents: Vec<Extent>, mut skip: u64, len: u64) -> Vec<Extent> {
    let mut left = len;
    let mut kept = Vec::with_capacity(extents.len());
    for extent in extents {
        let skipped = skip.min(extent.len);
        skip -= skipped;
        let len = (extent.len - skipped).min(left);
        left -= len;
        if len > 0 {
            kept.push(Extent { len, allocated: extent.allocated });
        }
    }
    kept
}
