//! Background work, a little at a time: checkpoint, then rebuild, then scrub.
//!
//! Repair reads units that are authentic, computes the missing ones from them and writes them with
//! the header that they had: nothing is encrypted again. A rebuilt unit is durable before its
//! header says that it is there.

use super::read::Want;
use super::{RequestError, Volume};
use crate::geometry::UNIT_BYTES;
use crate::map::Mapping;
use crate::store::{Store, StoreFile};

/// How many stripes one step works on.
const STEP_STRIPES: usize = 8;

/// Whether background work is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Call again when there is time.
    More,
    /// Nothing to do until something is written or found damaged.
    Done,
}

/// A unit that was rebuilt and whose header is still to be written.
struct Rebuilt {
    stripe: u64,
    mapping: Mapping,
    headers: Vec<(usize, Vec<u8>)>,
}

impl<S: Store> Volume<S> {
    /// Does a bounded part of the background work: empties the journal into stripes, brings back
    /// missing and damaged units, and goes on with a scrub that was started.
    pub fn repair_step(&mut self) -> Step {
        if self.stopped {
            return Step::Done;
        }
        if self.is_dirty() && self.checkpoint_step(STEP_STRIPES).is_err() {
            return Step::Done;
        }
        if self.rebuild_wanted {
            self.rebuild();
        } else if let Some(next) = self.scrub_next {
            self.scrub(next);
        }
        self.step()
    }

    /// Has [`Volume::repair_step`] read every unit and verify it, once.
    pub fn start_scrub(&mut self) {
        self.scrub_next = Some(0);
    }

    /// Whether units are missing that [`Volume::repair_step`] can bring back.
    #[must_use]
    pub fn needs_repair(&self) -> bool {
        !self.stopped && self.rebuild_wanted
    }

    fn step(&self) -> Step {
        let idle =
            self.stopped || (!self.is_dirty() && !self.rebuild_wanted && self.scrub_next.is_none());
        if idle { Step::Done } else { Step::More }
    }

    /// The stripes that lack a unit on a shard that could take it.
    fn repairable(&self) -> impl Iterator<Item = (u64, Mapping, u32)> {
        let usable = self.shards.usable();
        self.degraded.iter().filter_map(move |stripe| {
            let mapping = self.map.get(*stripe)?;
            let missing = usable & !mapping.present;
            (missing != 0 && !self.lost.contains(stripe)).then_some((*stripe, mapping, missing))
        })
    }

    fn rebuild(&mut self) {
        let work: Vec<_> = self.repairable().take(STEP_STRIPES).collect();
        let mut rebuilt = Vec::new();
        let mut targets = 0;
        for (stripe, mapping, missing) in work {
            match self.rebuild_stripe(stripe, mapping, missing) {
                Ok(stripe) => rebuilt.push(stripe),
                Err(_) => {
                    self.lost.insert(stripe);
                }
            }
            targets |= missing;
        }
        self.shards.sync(targets, StoreFile::Shard);
        for Rebuilt { stripe, mapping, headers } in rebuilt {
            let mut present = self.map.get(stripe).map_or(0, |mapping| mapping.present);
            for (shard, header) in headers {
                if self.write_header(shard, mapping, &header) {
                    present |= 1 << shard;
                }
            }
            self.map.set_present(stripe, present);
            if present == self.geometry.all_shards() {
                self.degraded.remove(&stripe);
            }
        }
        let more = self.repairable().next().is_some();
        self.rebuild_wanted = more;
        if !self.rebuild_wanted {
            self.shards.sync(targets, StoreFile::Shard);
        }
        if self.check_stores().is_err() {
            tracing::error!("repair stopped: too many stores failed");
        }
    }

    /// Writes the units that shards lack; their headers are for later.
    fn rebuild_stripe(
        &mut self,
        stripe: u64,
        mapping: Mapping,
        missing: u32,
    ) -> Result<Rebuilt, RequestError> {
        let mut units = std::mem::take(&mut self.units);
        units.resize(self.codec.stripe_bytes(), 0);
        let good = self.gather(stripe, mapping, &mut units, Want::Enough);
        let lost = self.map.lost(stripe);
        let whole =
            if mapping.zero { good != 0 } else { self.codec.reconstruct(&mut units, good, false) };
        let mut headers = Vec::new();
        if whole {
            for shard in self.shards.usable_in(missing) {
                let Some(unit) = units.get(shard * UNIT_BYTES..(shard + 1) * UNIT_BYTES) else {
                    break;
                };
                if self.write_data(shard, mapping, unit) {
                    let header = self.unit_header(stripe, mapping, lost, shard, unit);
                    headers.push((shard, header));
                }
            }
        }
        self.units = units;
        if whole {
            Ok(Rebuilt { stripe, mapping, headers })
        } else {
            Err(RequestError::Lost { stripe })
        }
    }

    /// Verifies the units of some stripes from `next` on.
    fn scrub(&mut self, next: u64) {
        let work: Vec<_> = self.map.range(next, u64::MAX).take(STEP_STRIPES).collect();
        self.scrub_next = work.last().map(|(stripe, _)| stripe + 1);
        let mut units = std::mem::take(&mut self.units);
        units.resize(self.codec.stripe_bytes(), 0);
        for (stripe, mapping) in work {
            self.gather(stripe, mapping, &mut units, Want::All);
        }
        self.units = units;
    }
}
