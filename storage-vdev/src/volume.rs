//! A volume: blocks over k + m stores, of which any m may be lost.
//!
//! ```text
//! write ─► overlay (memory) + pending journal record
//! flush ─► record to m + 1 journal copies, fdatasync           (the write is durable)
//! later ─► checkpoint: stripes to free slots of all k + m shards, fdatasync,
//!          superblocks, fdatasync                              (journal space is free again)
//! ```
//!
//! Invariants:
//! * A slot that the newest durable superblock commits is never written to, except by repair, which
//!   writes what is there already.
//! * What a superblock commits was durable in the journal or in the stripes before it, so after a
//!   crash the volume is as it was after some write since the last flush, and all before it.
//! * Every byte that is returned was authenticated under a key of this volume.
//!
//! The interface is completion-based: requests are submitted with an id and their completions are
//! polled. In this form the work is done inside the calls, so nothing ever has to be waited for.

mod checkpoint;
mod open;
mod read;
mod repair;
mod scan;
mod select;
mod write;

use std::collections::{BTreeSet, VecDeque};

pub use open::{OpenError, Options, Randomness};
pub use repair::Step;
pub use select::{LostShard, Reason};

use crate::codec::stripe::Codec;
use crate::geometry::{Geometry, SECTOR_BYTES};
use crate::journal::Journal;
use crate::keys::{EpochKeys, KeyRing};
use crate::map::StripeMap;
use crate::overlay::Overlay;
use crate::shards::{Fault, ShardSet};
use crate::store::Store;
use crate::superblock::Superblock;

/// How many stripes closing a volume checkpoints at most.
const CLOSE_STRIPES_MAX: usize = 4096;

/// The caller's name for a request, unique among those not yet completed.
pub type RequestId = u64;

/// A finished request.
#[derive(Debug, PartialEq, Eq)]
pub struct Completion {
    /// The id that it was submitted with.
    pub id: RequestId,
    /// How it ended.
    pub result: Result<(), RequestError>,
    /// A read's buffer, filled if `result` is `Ok`; empty for other requests.
    pub buffer: Vec<u8>,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a whole number of sectors, or not inside the volume.
    #[error("{len} bytes at {offset} are not whole sectors inside the volume")]
    Range {
        /// The first byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Too many shards of a stripe are lost or damaged.
    #[error("the blocks of stripe {stripe} are lost: too few of its shards are left")]
    Lost {
        /// The stripe.
        stripe: u64,
    },
    /// Too many stores failed while the volume was open, or it was closed.
    #[error("the volume has stopped: too many stores failed, or it was closed")]
    Stopped,
}

/// How a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How many more stores may be lost without losing data; `None` if data is lost already.
    pub redundancy: Option<u32>,
    /// How many it should be (*m*).
    pub redundancy_wanted: u32,
    /// The state of each shard, in shard order.
    pub shards: Vec<ShardState>,
    /// Bytes written since the last flush, which a crash may lose.
    pub unflushed_bytes: u64,
    /// Bytes of the journal that wait for a checkpoint.
    pub journal_bytes: u64,
    /// Stripes that repair can still complete.
    pub stripes_to_repair: u64,
    /// Stripes of which too few shards are left.
    pub stripes_lost: u64,
    /// How many times the volume was opened.
    pub epoch: u64,
}

/// The state of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    /// It holds all that it should, as far as is known.
    Healthy,
    /// It lacks units, which repair brings back.
    Rebuilding {
        /// How many units it lacks.
        units_missing: u64,
    },
    /// It was given up until the volume is opened again.
    Failed(Fault),
}

/// A volume over stores `S`.
#[derive(Debug)]
pub struct Volume<S> {
    geometry: Geometry,
    codec: Codec,
    keys: KeyRing,
    /// The number of this opening's keys.
    opening: u32,
    shards: ShardSet<S>,
    /// The newest durable superblock.
    superblock: Superblock,
    map: StripeMap,
    overlay: Overlay,
    journal: Journal,
    /// The sequence number of the next stripe version.
    next_sequence: u64,
    checkpoint: Option<checkpoint::Checkpoint>,
    retired: Vec<checkpoint::Retired>,
    /// Stripes that lack a unit on some shard, be it a failed one.
    degraded: BTreeSet<u64>,
    /// Some of them may lack it on a shard that could take it.
    rebuild_wanted: bool,
    /// Stripes of which too few shards are left.
    lost: BTreeSet<u64>,
    /// The next stripe that a scrub looks at.
    scrub_next: Option<u64>,
    /// The stripe that was decoded last: neighbours of a lost unit are read together.
    decoded: Option<read::Decoded>,
    /// A buffer for one stripe's units, kept between uses.
    units: Vec<u8>,
    completions: VecDeque<Completion>,
    waiting_flushes: Vec<RequestId>,
    stopped: bool,
}

impl<S: Store> Volume<S> {
    /// Reads into `buffer` (whole sectors) from byte `offset`; the completion gives it back.
    pub fn submit_read(&mut self, id: RequestId, offset: u64, mut buffer: Vec<u8>) {
        let checked = self.check(offset, buffer.len() as u64);
        let result = checked.and_then(|()| self.read(offset, &mut buffer));
        self.completions.push_back(Completion { id, result, buffer });
    }

    /// Writes `data` (whole sectors) at byte `offset`. The volume copies what it keeps. The
    /// completion means that reads see the data; only a flush makes it durable.
    pub fn submit_write(&mut self, id: RequestId, offset: u64, data: &[u8]) {
        let checked = self.check(offset, data.len() as u64);
        let result = checked.and_then(|()| self.write(offset, data));
        self.complete(id, result);
    }

    /// Makes everything that was submitted before it durable. All flushes that are submitted
    /// before the next [`Volume::poll`] share one commit.
    pub fn submit_flush(&mut self, id: RequestId) {
        self.waiting_flushes.push(id);
    }

    /// Frees a range (whole sectors), which then reads as zeroes.
    pub fn submit_discard(&mut self, id: RequestId, offset: u64, len: u64) {
        self.submit_write_zeroes(id, offset, len);
    }

    /// Zeroes a range (whole sectors) and frees what space it can.
    pub fn submit_write_zeroes(&mut self, id: RequestId, offset: u64, len: u64) {
        let result = self.check(offset, len).and_then(|()| self.zero(offset, len));
        self.complete(id, result);
    }

    /// The next finished request, in no promised order; `None` if none is outstanding (in a later
    /// form: if none is finished yet).
    pub fn poll(&mut self) -> Option<Completion> {
        if self.completions.is_empty() && !self.waiting_flushes.is_empty() {
            let result = self.flush();
            for id in std::mem::take(&mut self.waiting_flushes) {
                self.complete(id, result);
            }
        }
        self.completions.pop_front()
    }

    /// The volume's shape, with its size.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The volume's uuid.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.keys.uuid()
    }

    /// How the volume is. Walks over all stripes that need repair.
    #[must_use]
    pub fn status(&self) -> Status {
        let usable = self.shards.usable();
        let all = self.geometry.all_shards();
        let mut missing = vec![0u64; self.shards.len()];
        let mut fewest = usable.count_ones();
        for stripe in &self.degraded {
            let Some(mapping) = self.map.get(*stripe) else { continue };
            let present = mapping.present & usable;
            fewest = fewest.min(present.count_ones());
            for (shard, missing) in missing.iter_mut().enumerate() {
                *missing += u64::from((usable & !present & all) >> shard & 1);
            }
        }
        let copies = (self.journal.copies() & usable).count_ones();
        let by_stripes = fewest.checked_sub(u32::from(self.geometry.data_shards()));
        let by_journal = copies.checked_sub(1);
        let state = |(shard, units_missing): (usize, u64)| match self.shards.fault(shard) {
            Some(fault) => ShardState::Failed(fault),
            None if units_missing == 0 => ShardState::Healthy,
            None => ShardState::Rebuilding { units_missing },
        };
        let stripes_lost = self.lost.len() as u64 + self.map.lost_stripes();
        Status {
            redundancy: by_stripes.min(by_journal).filter(|_| stripes_lost == 0),
            redundancy_wanted: u32::from(self.geometry.parity_shards()),
            shards: missing.into_iter().enumerate().map(state).collect(),
            unflushed_bytes: self.journal.unflushed_bytes(),
            journal_bytes: self.journal.used_bytes(),
            stripes_to_repair: self.degraded.len() as u64,
            stripes_lost,
            epoch: self.superblock.opening.epoch,
        }
    }

    /// Makes everything durable and stops the volume. Requests fail from then on; dropping the
    /// volume releases its stores. Empties the journal if that takes little; what is left in it is
    /// in the overlay again after the next open.
    ///
    /// # Errors
    /// [`RequestError::Stopped`] if too many stores failed to make all of it durable.
    pub fn close(&mut self) -> Result<(), RequestError> {
        if self.stopped {
            return Err(RequestError::Stopped);
        }
        let result = self.flush().and_then(|()| {
            if self.overlay.len() <= CLOSE_STRIPES_MAX { self.checkpoint_all() } else { Ok(()) }
        });
        self.stopped = true;
        result
    }

    /// Whether the volume has stopped for good.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn complete(&mut self, id: RequestId, result: Result<(), RequestError>) {
        self.completions.push_back(Completion { id, result, buffer: Vec::new() });
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), RequestError> {
        let end = offset.checked_add(len);
        let inside = end.is_some_and(|end| end <= self.geometry.size_bytes());
        let whole = offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES);
        match (self.stopped, inside && whole) {
            (true, _) => Err(RequestError::Stopped),
            (false, false) => Err(RequestError::Range { offset, len }),
            (false, true) => Ok(()),
        }
    }

    /// Stops the volume if too few stores are left to keep what it promises.
    fn check_stores(&mut self) -> Result<(), RequestError> {
        let usable = self.shards.usable();
        let enough = usable.count_ones() >= u32::from(self.geometry.data_shards())
            && usable & self.journal.copies() != 0;
        if !enough && !self.stopped {
            tracing::error!(usable = usable.count_ones(), "too many stores failed: volume stopped");
            self.stopped = true;
        }
        if self.stopped { Err(RequestError::Stopped) } else { Ok(()) }
    }

    /// The keys of this opening.
    fn own_keys(keys: &KeyRing, opening: u32) -> &EpochKeys {
        let Some(keys) = keys.get(opening) else {
            unreachable!("the keys of this opening are added before the volume exists");
        };
        keys
    }
}
