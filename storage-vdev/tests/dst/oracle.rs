//! What each sector of a volume may hold.
//!
//! Every write gets a *stamp*, and each of its sectors says so. The oracle has the changes in the
//! order of their submission. After a crash one cut must explain the whole volume: all changes
//! before it are there, none behind it is, and the one at the cut may be torn between sectors. The
//! cut is not before what an acknowledged flush covered.

use std::collections::BTreeMap;

pub(crate) const SECTOR: usize = 512;

/// The stamp of a sector of zeroes.
const ZERO: u64 = 0;

/// What changes a volume.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    /// Sectors from the first on get this stamp; 0: they become zero.
    Sectors { first: usize, count: usize, stamp: u64 },
    /// The whole volume becomes this: all of it or nothing.
    Whole(Vec<u64>),
}

impl Effect {
    /// What it makes of a sector, if it changes it.
    fn of(&self, sector: usize) -> Option<u64> {
        match self {
            Self::Sectors { first, count, stamp } => {
                (*first..first + count).contains(&sector).then_some(*stamp)
            }
            Self::Whole(stamps) => Some(stamps.get(sector).copied().unwrap_or(ZERO)),
        }
    }

    fn can_tear(&self) -> bool {
        matches!(self, Self::Sectors { .. })
    }

    fn sectors(&self, all: usize) -> std::ops::Range<usize> {
        match self {
            Self::Sectors { first, count, .. } => *first..first + count,
            Self::Whole(_) => 0..all,
        }
    }
}

#[derive(Debug, Clone)]
struct Change {
    effect: Effect,
    /// Its completion came: reads that are submitted from now on see it.
    done: bool,
    /// It failed, and may be there or not.
    refused: bool,
}

impl Change {
    /// What the sectors may be after it.
    fn apply(&self, state: &mut [Vec<u64>]) {
        for sector in self.effect.sectors(state.len()) {
            if let Some(stamp) = self.effect.of(sector) {
                if !self.refused {
                    state[sector].clear();
                }
                state[sector].push(stamp);
            }
        }
    }
}

/// A read that is under way: what had been completed when it was submitted.
#[derive(Debug, Clone)]
pub(crate) struct ReadView {
    first: usize,
    /// For each sector, one more than the last completed change that touched it.
    since: Vec<usize>,
}

/// The history of a volume since its content was last known for sure.
#[derive(Debug, Clone)]
pub(crate) struct Oracle {
    base: Vec<u64>,
    changes: Vec<Change>,
    /// So many changes are durable.
    durable: usize,
    next_stamp: u64,
    pub(crate) snapshots: BTreeMap<String, Vec<u64>>,
}

impl Oracle {
    pub(crate) fn new(sectors: usize) -> Self {
        Self {
            base: vec![ZERO; sectors],
            changes: Vec::new(),
            durable: 0,
            next_stamp: 1,
            snapshots: BTreeMap::new(),
        }
    }

    pub(crate) fn sectors(&self) -> usize {
        self.base.len()
    }

    pub(crate) fn grow(&mut self, sectors: usize) {
        self.base.resize(sectors.max(self.base.len()), ZERO);
    }

    /// How many changes there were: what a flush that is submitted now covers.
    pub(crate) fn submitted(&self) -> usize {
        self.changes.len()
    }

    /// A write is submitted; returns its number and its bytes.
    pub(crate) fn write(&mut self, first: usize, count: usize) -> (usize, Vec<u8>) {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        let data = (first..first + count).flat_map(|sector| content(stamp, sector)).collect();
        (self.push(Effect::Sectors { first, count, stamp }), data)
    }

    /// A zeroing or discard is submitted.
    pub(crate) fn zero(&mut self, first: usize, count: usize) -> usize {
        self.push(Effect::Sectors { first, count, stamp: ZERO })
    }

    /// The volume is to become what it was.
    pub(crate) fn roll_back(&mut self, name: &str) -> usize {
        let stamps = self.snapshots.get(name).cloned().unwrap_or_default();
        self.push(Effect::Whole(stamps))
    }

    fn push(&mut self, effect: Effect) -> usize {
        self.changes.push(Change { effect, done: false, refused: false });
        self.changes.len() - 1
    }

    pub(crate) fn done(&mut self, change: usize) {
        self.changes[change].done = true;
    }

    /// A flush is acknowledged that covers the first `count` changes.
    pub(crate) fn flushed(&mut self, count: usize) {
        self.durable = self.durable.max(count);
    }

    /// A change was refused: it may be there or not, whatever comes after it.
    pub(crate) fn refused(&mut self, change: usize) {
        self.changes[change].refused = true;
    }

    /// What made flushes durable is gone, as the policy allows.
    pub(crate) fn forgive_flushes(&mut self) {
        self.durable = 0;
    }

    /// The content when every change is there.
    pub(crate) fn newest(&self) -> Vec<u64> {
        let mut stamps = self.base.clone();
        for change in &self.changes {
            apply(&mut stamps, &change.effect);
        }
        stamps
    }

    pub(crate) fn begin_read(&self, first: usize, count: usize) -> ReadView {
        let since = |sector: usize| {
            let last = self
                .changes
                .iter()
                .rposition(|change| change.done && change.effect.of(sector).is_some());
            last.map_or(0, |last| last + 1)
        };
        ReadView { first, since: (first..first + count).map(since).collect() }
    }

    /// Whether a read may have returned these bytes.
    pub(crate) fn check_read(&self, view: &ReadView, bytes: &[u8]) -> Result<(), String> {
        for ((sector, since), bytes) in (view.first..).zip(&view.since).zip(bytes.chunks(SECTOR)) {
            let stamp = stamp_of(sector, bytes)?;
            let before = self.changes[..*since].iter().rev();
            let before = before.filter_map(|change| change.effect.of(sector)).next();
            let may_be = before.unwrap_or(self.base[sector]) == stamp
                || self.changes[*since..].iter().any(|c| c.effect.of(sector) == Some(stamp));
            if !may_be {
                return Err(format!(
                    "a read of sector {sector} gave stamp {stamp}, completed was {:?} or base {}",
                    before, self.base[sector]
                ));
            }
        }
        Ok(())
    }

    /// Whether the volume may be this after a crash; takes it as what it is from now on.
    pub(crate) fn check_crash(&mut self, bytes: &[u8]) -> Result<(), String> {
        let found = stamps_of(bytes)?;
        if found.len() > self.base.len() {
            return Err(format!("{} sectors instead of {}", found.len(), self.base.len()));
        }
        let mut state: Vec<Vec<u64>> = self.base.iter().map(|stamp| vec![*stamp]).collect();
        let durable = self.durable;
        for change in &self.changes[..durable] {
            change.apply(&mut state);
        }
        let at = |sector: usize| found.get(sector).copied().unwrap_or(ZERO);
        for cut in durable..=self.changes.len() {
            let torn = self.changes.get(cut).map(|change| &change.effect);
            let torn = torn.filter(|effect| effect.can_tear());
            let explained = (0..state.len()).all(|sector| {
                state[sector].contains(&at(sector))
                    || torn.and_then(|effect| effect.of(sector)) == Some(at(sector))
            });
            if explained {
                let all = self.base.len();
                self.base = (0..all).map(at).collect();
                self.changes.clear();
                self.durable = 0;
                return Ok(());
            }
            if let Some(change) = self.changes.get(cut) {
                change.apply(&mut state);
            }
        }
        Err(self.explain(&found))
    }

    /// The volume must be this.
    pub(crate) fn check_exact(&self, expected: &[u64], bytes: &[u8]) -> Result<(), String> {
        let found = stamps_of(bytes)?;
        for (sector, (found, expected)) in found.iter().zip(expected).enumerate() {
            if found != expected {
                return Err(format!("sector {sector} has stamp {found} instead of {expected}"));
            }
        }
        Ok(())
    }

    fn explain(&self, found: &[u64]) -> String {
        let mut lines = vec![format!(
            "no cut among {}..={} explains the volume:",
            self.durable,
            self.changes.len()
        )];
        for (sector, stamp) in found.iter().enumerate() {
            let history: Vec<(usize, u64)> = self
                .changes
                .iter()
                .enumerate()
                .filter_map(|(number, change)| Some((number, change.effect.of(sector)?)))
                .collect();
            let flushed = history.iter().rfind(|(number, _)| *number < self.durable);
            let expected = flushed.map_or(self.base[sector], |(_, stamp)| *stamp);
            if *stamp != expected {
                lines.push(format!(
                    "  sector {sector}: found {stamp}, base {}, changes {history:?}",
                    self.base[sector]
                ));
            }
        }
        lines.truncate(40);
        lines.join("\n")
    }
}

fn apply(stamps: &mut [u64], effect: &Effect) {
    for sector in effect.sectors(stamps.len()) {
        if let Some(stamp) = effect.of(sector) {
            stamps[sector] = stamp;
        }
    }
}

/// What a sector with this stamp holds.
fn content(stamp: u64, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let seed = stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (sector as u64).rotate_left(40);
    for (word, chunk) in (0u64..).zip(bytes.chunks_exact_mut(8)) {
        let word = if word == 0 { stamp } else { seed.wrapping_add(word << 17) };
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn stamp_of(sector: usize, bytes: &[u8]) -> Result<u64, String> {
    let stamp = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let intact = match stamp {
        ZERO => bytes.iter().all(|byte| *byte == 0),
        _ => *bytes == content(stamp, sector),
    };
    if intact { Ok(stamp) } else { Err(format!("sector {sector}: bytes that nobody wrote")) }
}

/// The stamps of a volume's sectors.
pub(crate) fn stamps_of(bytes: &[u8]) -> Result<Vec<u64>, String> {
    stamps_at(0, bytes)
}

/// The stamps of the sectors from `first` on.
pub(crate) fn stamps_at(first: usize, bytes: &[u8]) -> Result<Vec<u64>, String> {
    (first..).zip(bytes.chunks(SECTOR)).map(|(sector, bytes)| stamp_of(sector, bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Oracle, SECTOR, content};

    fn volume(stamps: &[u64]) -> Vec<u8> {
        let sector = |(sector, stamp): (usize, &u64)| match stamp {
            0 => [0; SECTOR],
            stamp => content(*stamp, sector),
        };
        stamps.iter().enumerate().flat_map(sector).collect()
    }

    fn history() -> Oracle {
        let mut oracle = Oracle::new(3);
        oracle.write(0, 2);
        oracle.flushed(1);
        oracle.write(1, 2);
        oracle.write(0, 1);
        oracle
    }

    #[test]
    fn a_prefix_of_the_changes_is_taken_and_the_last_may_be_torn() {
        for stamps in [[1, 1, 0], [1, 2, 0], [1, 1, 2], [1, 2, 2], [3, 2, 2]] {
            history().check_crash(&volume(&stamps)).unwrap();
        }
    }

    #[test]
    fn a_lost_flush_and_a_gap_and_foreign_bytes_are_found() {
        for stamps in [[0, 0, 0], [0, 1, 0], [3, 1, 0], [3, 2, 0]] {
            assert!(history().check_crash(&volume(&stamps)).is_err(), "{stamps:?}");
        }
        let mut bytes = volume(&[1, 2, 2]);
        bytes[100] ^= 1;
        assert!(history().check_crash(&bytes).is_err());
        let mut swapped = volume(&[1, 1, 0]);
        swapped.rotate_left(SECTOR);
        assert!(history().check_crash(&swapped).is_err());
    }
}
