//! Users' shards in this node's plot.

use serde_json::json;

use super::core::Core;
use super::inputs::Input;
use crate::filler;
use crate::metrics::{add, set};
use crate::reading::Reading;
use crate::shards::{Event, Keeper, Pace};

/// A plot of which less than this part is gone is committed to anew in its time and not at once: a pulse
/// finds that with a chance of one in a thousand.
const LOST_SHARE: u64 = 1 << 16;

/// What the core keeps of shards.
#[derive(Debug, Default)]
pub(super) struct ShardsState {
    /// Proven bytes that are gone and not committed to anew.
    pub(super) lost: u64,
    /// Room that shards take from filler.
    displaced: u64,
    /// No thread could be made.
    has_failed: bool,
}

impl Core<'_> {
    pub(super) fn tend_shards(&mut self) {
        if self.config.shards.is_empty() || self.shards.has_failed {
            return;
        }
        let Some(keeper) = &self.keeper else { return self.start_keeper() };
        let progress = keeper.progress();
        set(&self.metrics.shard_bytes, progress.proven);
        set(&self.metrics.shard_stored_bytes, progress.stored);
        set(&self.metrics.shard_hashed_bytes, progress.hashed);
        let state = &mut self.shards;
        state.displaced = displaced(state.displaced, progress.stored, self.config.extent_bytes);
    }

    fn start_keeper(&mut self) {
        let (folders, cache) = (self.config.shards.clone(), self.config.folder.join("shards"));
        let pace = Pace::with_plots_every(self.config.timing.commit_ns);
        let core = self.core.clone();
        let tell = move |event| _ = core.send(Input::Shards(event));
        match Keeper::start(folders, cache, pace, tell) {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(error) => {
                self.shards.has_failed = true;
                let text = format!("no shards are proven: no thread can be made: {error}");
                self.teller.tell("shards-failed", text, json!({"error": error.to_string()}));
            }
        }
    }

    /// Whether all that a plot is made of is known.
    pub(super) fn knows_shards(&self) -> bool {
        let is_ready = |keeper: &Keeper| keeper.progress().is_ready;
        self.config.shards.is_empty()
            || self.shards.has_failed
            || self.keeper.as_ref().is_some_and(is_ready)
    }

    /// Bytes of filler that there is room for beside the shards, of a claim of so many bytes.
    pub(super) fn room_beside_shards(&self, claimed: u64) -> u64 {
        claimed.saturating_sub(self.shards.displaced)
    }

    /// Whether so much of a plot of so many bytes is gone that it is urgent to say so. `since_ns` is the
    /// time since the last plot.
    pub(super) fn is_loss_urgent(&self, committed_len: u64, since_ns: Option<u64>) -> bool {
        is_urgent(self.shards.lost, committed_len, since_ns, self.config.timing.commit_ns)
    }

    pub(super) fn on_shards(&mut self, event: Event) {
        match event {
            Event::Changed { proven, lost } => {
                self.is_grown = true;
                self.shards.lost = self.shards.lost.saturating_add(lost);
                let stored = self.keeper.as_ref().map_or(0, |keeper| keeper.progress().stored);
                let text = format!("{proven} bytes of shards are in the plot, {lost} are gone");
                let fields = json!({"proven": proven, "stored": stored, "lost": lost});
                self.teller.tell("shards", text, fields);
            }
            Event::Rotten { folder, shard } => {
                add(&self.metrics.shards_rotten, 1);
                let path = folder.display();
                let text = format!("{path}: a shard is damaged ({shard}): it is not proven");
                let fields = json!({"folder": folder, "shard": shard});
                self.teller.tell("shard-rotten", text, fields);
            }
            Event::Failed { folder, error } => {
                let path = folder.display();
                let text = format!("{path}: {error}; its shards are not proven until it is well");
                let fields = json!({"folder": folder, "error": error});
                self.teller.tell("shards-failed", text, fields);
            }
            Event::Back { folder } => {
                let text = format!("{} can be read again", folder.display());
                self.teller.tell("shards-back", text, json!({"folder": folder}));
            }
            Event::Full { folder } => {
                let path = folder.display();
                let text = format!("{path} has more shards than are proven");
                self.teller.tell("shards-full", text, json!({"folder": folder}));
            }
        }
    }

    /// Where what the plot lists is read.
    pub(super) fn reading(&self) -> Reading {
        let filler = self.plotter.as_ref().map(|plotter| plotter.filler().reading());
        let shards = self.keeper.as_ref().map(Keeper::reading);
        Reading {
            filler: filler.unwrap_or_else(filler::Reading::nothing),
            shards: shards.unwrap_or_default(),
        }
    }
}

/// When shards come and go all the time, that is told once a minute: the plots that are kept are then those
/// of more than the hour that a challenge has.
fn is_urgent(lost: u64, committed_len: u64, since_ns: Option<u64>, commit_ns: u64) -> bool {
    let is_much = lost > 0 && lost.saturating_mul(LOST_SHARE) >= committed_len;
    is_much && since_ns.is_none_or(|since| since >= commit_ns / 10)
}

/// Room that so many bytes of shards take from filler: whole extents, given back only when more than one
/// is free, so that a shard that comes and goes does not cost an extent each time.
fn displaced(before: u64, stored: u64, extent: u64) -> u64 {
    let needed = stored.div_ceil(extent.max(1)).saturating_mul(extent);
    if needed > before || needed.saturating_add(extent) < before { needed } else { before }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_a_pulse_would_hardly_find_waits() {
        let (plot, ten_minutes) = (10 << 40, 600_000_000_000);
        let urgent = |lost, since| is_urgent(lost, plot, since, ten_minutes);
        assert!(!urgent(0, None) && !urgent(100 << 20, None));
        assert!(urgent(160 << 20, None) && urgent(u64::MAX, Some(60_000_000_000)));
        assert!(!urgent(u64::MAX, Some(59_999_999_999)));
        assert!(is_urgent(1, 5000, None, ten_minutes));
    }

    #[test]
    fn shards_displace_whole_extents_and_give_them_back_late() {
        assert_eq!(displaced(0, 0, 100), 0);
        assert_eq!(displaced(0, 1, 100), 100);
        assert_eq!(displaced(100, 101, 100), 200);
        assert_eq!(displaced(200, 100, 100), 200);
        assert_eq!(displaced(200, 0, 100), 0);
        assert_eq!(displaced(300, 100, 100), 100);
        assert_eq!(displaced(0, u64::MAX, 1 << 30), u64::MAX);
    }
}
