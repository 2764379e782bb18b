//! Taking writes, zeroings and flushes, in the order of their submission.
//!
//! What fits the overlay is taken inside the submission. What doesn't (no room, or a part of a
//! block that must be read first) goes into a queue, and everything behind it too.

use std::rc::Rc;

use super::overlay::Found;
use super::request::{Output, RequestError, RequestId, check_range};
use super::state::{Engine, State};
use crate::geometry::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A request that waits for its turn.
#[derive(Debug)]
pub(super) enum Queued {
    Write { id: RequestId, offset: u64, data: Vec<u8>, fua: bool },
    Zero { id: RequestId, offset: u64, len: u64 },
    Flush { id: RequestId },
}

impl Queued {
    pub(super) fn id(&self) -> RequestId {
        match self {
            Self::Write { id, .. } | Self::Zero { id, .. } | Self::Flush { id } => *id,
        }
    }
}

impl State {
    /// Whether nothing waits before a write of `blocks` blocks, and it fits.
    fn takes(&self, blocks: u64) -> bool {
        !self.held
            && self.queue.is_empty()
            && blocks <= self.overlay.room() as u64
            && self.to_seal.is_empty()
    }

    /// Writes whole blocks; returns how many bytes were taken before a batch was full. Closes it
    /// then.
    fn put(&mut self, offset: u64, data: &[u8]) -> usize {
        let taken = self.overlay.write(offset / BLOCK, data);
        if self.overlay.batch_is_full() {
            self.to_seal.extend(self.overlay.close_batch());
        }
        taken * BLOCK_BYTES
    }

    fn put_all(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            done += self.put(offset + done as u64, rest);
        }
    }

    fn zero_blocks(&mut self, offset: u64, len: u64) {
        self.overlay.zero(offset / BLOCK, len / BLOCK);
        if self.overlay.batch_is_full() {
            self.to_seal.extend(self.overlay.close_batch());
        }
    }

    /// Whether a write must be refused so that there is room left to tidy up.
    fn lacks_space(&self) -> bool {
        let waiting = self.overlay.blocks() as u64;
        self.free_blocks().is_some_and(|free| free < self.headroom_blocks() + waiting)
    }

    /// The blocks that are kept free on the nodes: what is on its way, a checkpoint, and a few
    /// segments for garbage collection to move blocks to.
    pub(super) fn headroom_blocks(&self) -> u64 {
        let segment = u64::from(self.segment_blocks());
        let pages = self.map.dirty_pages() as u64 + self.map.usage().len() as u64 / 100;
        4 * segment + 2 * pages + 64
    }
}

impl Engine {
    /// Whether a write of `len` bytes would be taken at once. Whoever copies its data for each
    /// submission had better wait while it is not.
    pub(super) fn takes_write(&self, len: u64) -> bool {
        // A volume that has stopped refuses at once.
        self.check_running().is_err() || self.with(|state| state.takes(len.div_ceil(BLOCK) + 1))
    }

    pub(super) fn submit_write(&self, id: RequestId, offset: u64, data: &[u8], fua: bool) {
        let len = data.len() as u64;
        if let Err(error) = self.check(offset, len) {
            return self.complete(id, Err(error));
        }
        let whole = offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK);
        let taken = self.with(|state| {
            state.counters.written_bytes += len;
            if state.lacks_space() {
                return Err(RequestError::NoSpace);
            }
            if whole && state.takes(len / BLOCK) {
                state.put_all(offset, data);
                if fua {
                    let last_write = state.overlay.last_write();
                    state.flushes.push(id, last_write);
                }
                return Ok(true);
            }
            state.queue.push_back(Queued::Write { id, offset, data: data.to_vec(), fua });
            Ok(false)
        });
        match taken {
            Err(error) => self.complete(id, Err(error)),
            Ok(true) if !fua => self.complete(id, Ok(Output::Done)),
            Ok(_) => {}
        }
        self.announce_writes();
    }

    pub(super) fn submit_zero(&self, id: RequestId, offset: u64, len: u64) {
        if let Err(error) = self.check(offset, len) {
            return self.complete(id, Err(error));
        }
        let whole = offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK);
        let taken = self.with(|state| {
            let taken = whole && state.takes(0);
            if taken && len > 0 {
                state.zero_blocks(offset, len);
            }
            if !taken {
                state.queue.push_back(Queued::Zero { id, offset, len });
            }
            taken
        });
        if taken {
            self.complete(id, Ok(Output::Done));
        }
        self.events.upkeep.announce(&self.runtime);
        self.announce_writes();
    }

    pub(super) fn submit_flush(&self, id: RequestId) {
        if let Err(error) = self.check(0, 0) {
            return self.complete(id, Err(error));
        }
        self.with(|state| {
            if state.queue.is_empty() {
                let last_write = state.overlay.last_write();
                state.flushes.push(id, last_write);
            } else {
                state.queue.push_back(Queued::Flush { id });
            }
        });
        self.announce_writes();
    }

    /// Checks what goes for every request.
    pub(super) fn check(&self, offset: u64, len: u64) -> Result<(), RequestError> {
        self.check_running()?;
        let (closing, size) = self.with(|state| (state.closing, state.size_bytes));
        if closing {
            return Err(RequestError::Closed);
        }
        check_range(offset, len, size)
    }

    fn announce_writes(&self) {
        let (queued, sealing, flushing) = self.with(|state| {
            (!state.queue.is_empty(), !state.to_seal.is_empty(), !state.flushes.is_empty())
        });
        if queued {
            self.events.queue.announce(&self.runtime);
        }
        if sealing {
            self.events.sealing.announce(&self.runtime);
        }
        if flushing {
            self.events.flush.announce(&self.runtime);
        }
    }

    /// Closes the open batch: its segment follows.
    pub(super) fn close_batch(&self) {
        self.with(|state| state.to_seal.extend(state.overlay.close_batch()));
        self.events.sealing.announce(&self.runtime);
    }

    /// Carries the first request of the queue out.
    async fn admit(self: &Rc<Self>, queued: Queued) {
        let id = queued.id();
        let result = match queued {
            Queued::Write { offset, data, fua, .. } => {
                let result = self.admit_write(offset, &data).await;
                if fua && result.is_ok() {
                    self.with(|state| {
                        let last_write = state.overlay.last_write();
                        state.flushes.push(id, last_write);
                    });
                    self.events.flush.announce(&self.runtime);
                    return;
                }
                result
            }
            Queued::Zero { offset, len, .. } => self.admit_zero(offset, len).await,
            Queued::Flush { .. } => {
                self.with(|state| {
                    let last_write = state.overlay.last_write();
                    state.flushes.push(id, last_write);
                });
                self.events.flush.announce(&self.runtime);
                return;
            }
        };
        self.complete(id, result.map(|()| Output::Done));
    }

    pub(super) async fn admit_write(
        self: &Rc<Self>,
        offset: u64,
        data: &[u8],
    ) -> Result<(), RequestError> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let in_block = (at % BLOCK) as usize;
            if in_block != 0 || rest.len() < BLOCK_BYTES {
                let part = rest.get(..rest.len().min(BLOCK_BYTES - in_block)).unwrap_or(rest);
                self.write_part(at, part).await?;
                done += part.len();
                continue;
            }
            let whole = rest.len() - rest.len() % BLOCK_BYTES;
            let room = self.wait_for_room().await?;
            let chunk = rest.get(..whole.min(room * BLOCK_BYTES)).unwrap_or(rest);
            done += self.with(|state| state.put(at, chunk));
            self.events.sealing.announce(&self.runtime);
        }
        Ok(())
    }

    pub(super) async fn admit_zero(
        self: &Rc<Self>,
        offset: u64,
        len: u64,
    ) -> Result<(), RequestError> {
        let end = offset + len;
        let first = offset.next_multiple_of(BLOCK).min(end);
        let last = (end - end % BLOCK).max(first);
        if offset < first {
            self.write_part(offset, &vec![0; (first - offset) as usize]).await?;
        }
        if first < last {
            self.wait_for_room().await?;
            self.with(|state| state.zero_blocks(first, last - first));
            self.events.sealing.announce(&self.runtime);
        }
        if last < end {
            self.write_part(last, &vec![0; (end - last) as usize]).await?;
        }
        Ok(())
    }

    /// Writes a part of a block: reads the rest of it first.
    async fn write_part(self: &Rc<Self>, at: u64, part: &[u8]) -> Result<(), RequestError> {
        let in_block = (at % BLOCK) as usize;
        let start = at - at % BLOCK;
        let mut block = vec![0; BLOCK_BYTES];
        self.read_blocks(start / BLOCK, &mut block).await?;
        if let Some(target) = block.get_mut(in_block..in_block + part.len()) {
            target.copy_from_slice(part);
        }
        self.wait_for_room().await?;
        self.with(|state| state.put(start, &block));
        self.events.sealing.announce(&self.runtime);
        Ok(())
    }

    /// Waits until the overlay takes at least one block; returns how many it takes.
    async fn wait_for_room(&self) -> Result<usize, RequestError> {
        let room = || {
            if let Err(error) = self.check_running() {
                return Some(Err(error));
            }
            self.with(|state| match state.overlay.room() {
                _ if !state.to_seal.is_empty() => None,
                0 => None,
                room => Some(Ok(room)),
            })
        };
        self.events.queue.until(&self.runtime, room).await
    }
}

/// Carries out what is queued, one after the other, for ever.
pub(super) async fn admitter(engine: Rc<Engine>) {
    loop {
        let next = || {
            if engine.check_running().is_err() {
                return Some(None);
            }
            engine.with(|state| {
                let next = state.queue.front_mut().filter(|_| !state.held)?;
                state.queue_busy = true;
                let taken = Queued::Flush { id: next.id() };
                Some(Some(std::mem::replace(next, taken)))
            })
        };
        match engine.events.queue.until(&engine.runtime, next).await {
            None => return,
            Some(queued) => {
                engine.admit(queued).await;
                engine.with(|state| {
                    state.queue.pop_front();
                    state.queue_busy = false;
                });
            }
        }
    }
}

impl State {
    /// Copies what the overlay has of the blocks from `first` on into `out`. Calls `below` with the
    /// runs that it doesn't have.
    pub(super) fn read_overlay(&self, first: u64, out: &mut [u8], mut below: impl FnMut(u64, u64)) {
        let count = (out.len() / BLOCK_BYTES) as u64;
        let mut done = 0;
        while done < count {
            let (found, run) = self.overlay.find(first + done, count - done);
            let range = done as usize * BLOCK_BYTES..(done + run) as usize * BLOCK_BYTES;
            match (found, out.get_mut(range)) {
                (Found::Data(content), Some(target)) => target.copy_from_slice(content),
                (Found::Zero, Some(target)) => target.fill(0),
                (Found::Below, _) => below(first + done, run),
                (_, None) => return,
            }
            done += run.max(1);
        }
    }
}
