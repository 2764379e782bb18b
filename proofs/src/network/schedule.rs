//! When pulses are, and with which seeds: from the chain's rounds alone, so that all agree.
//!
//! Each round of the beacon draws whether it is a pulse. That a pulse was just now, or long ago, says
//! nothing about when the next one is; only that pulses don't overlap is not left to chance.

use hypha_chain::{Address, B256, keccak256};

use crate::{Challenge, draw};

/// What separates this draw from others under one seed.
const PURPOSE: u8 = 4;
/// Seconds of an epoch, as the contract Capacity has them.
pub const EPOCH_SECS: u64 = 3600;
/// Seconds of a day, which tables are made for.
pub const DAY_SECS: u64 = 86_400;

/// How pulses are drawn; the same for all who take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// The chain's id.
    pub chain_id: u64,
    /// The contract Capacity.
    pub capacity: Address,
    /// `Capacity.start`: when epoch 0 began, in seconds since 1970.
    pub start_secs: u64,
    /// How long a round of the beacon takes, in seconds: the chain's cadence.
    pub round_secs: u64,
    /// How far apart pulses are on average, in seconds.
    pub mean_secs: u64,
    /// For so many seconds after a drawn round, no other is a pulse: a pulse must be over first.
    pub quiet_secs: u64,
}

/// A round of the beacon: for `PrevrandaoBeacon` a block, with its `prevrandao` as entropy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Its number.
    pub number: u64,
    /// Its time, in seconds since 1970.
    pub timestamp: u64,
    /// What nobody knew before.
    pub entropy: B256,
}

/// A pulse: the round's number is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// What all nodes are asked.
    pub challenge: Challenge,
    /// The epoch that it counts in.
    pub epoch: u32,
    /// Its round's time, in seconds since 1970.
    pub timestamp: u64,
}

impl Schedule {
    /// A pulse an hour on average.
    pub const MEAN_SECS: u64 = 3600;
    /// Longer than the deadlines of `Rules::STANDARD` and a measurement of bandwidth.
    pub const QUIET_SECS: u64 = 30;

    /// The seed of a round, which is also the salt of tables if the round is the first of a day.
    #[must_use]
    pub fn seed(&self, round: &Round) -> B256 {
        let mut bytes = b"hypha round 1".to_vec();
        bytes.extend(self.chain_id.to_be_bytes());
        bytes.extend(self.capacity);
        bytes.extend(round.number.to_be_bytes());
        bytes.extend(round.entropy);
        keccak256(bytes)
    }

    /// The epoch that an instant lies in; `None` before the first and behind the last that has a
    /// number.
    #[must_use]
    pub fn epoch_at(&self, timestamp: u64) -> Option<u32> {
        let since = timestamp.checked_sub(self.start_secs)?;
        u32::try_from(since / EPOCH_SECS).ok()
    }

    /// When an epoch is over, in seconds since 1970.
    #[must_use]
    pub fn epoch_end(&self, epoch: u32) -> u64 {
        self.start_secs + (u64::from(epoch) + 1) * EPOCH_SECS
    }

    /// Whether a round draws itself as a pulse, whatever was before it.
    fn drawn(&self, seed: &B256) -> bool {
        draw(seed, PURPOSE, 0, self.mean_secs) < self.round_secs
    }
}

/// The day that an instant lies in, which a table is made for.
#[must_use]
pub fn day_at(timestamp: u64) -> u32 {
    u32::try_from(timestamp / DAY_SECS).unwrap_or(u32::MAX)
}

/// Finds the pulses among rounds.
///
/// Who begins in the middle must begin with rounds from `quiet_secs` before the first pulse that
/// counts: an earlier one may forbid it.
#[derive(Debug, Clone)]
pub struct Pulses {
    schedule: Schedule,
    last: Option<Round>,
    last_drawn: Option<u64>,
}

impl Pulses {
    /// Nothing is known of earlier rounds.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule, last: None, last_drawn: None }
    }

    /// Takes the next round, and tells the pulse if it is one. Rounds that are not newer than the
    /// last one are none.
    pub fn on_round(&mut self, round: &Round) -> Option<Pulse> {
        let newer = |last: &Round| last.number < round.number && last.timestamp <= round.timestamp;
        if !self.last.as_ref().is_none_or(newer) {
            return None;
        }
        self.last = Some(*round);
        let seed = self.schedule.seed(round);
        if !self.schedule.drawn(&seed) {
            return None;
        }
        // Counted from each drawn round and not from each pulse: so a short look back is enough.
        let before = self.last_drawn.replace(round.timestamp);
        let quiet = before.is_none_or(|at| round.timestamp - at >= self.schedule.quiet_secs);
        let epoch = self.schedule.epoch_at(round.timestamp)?;
        let challenge = Challenge { pulse: round.number, seed };
        quiet.then_some(Pulse { challenge, epoch, timestamp: round.timestamp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        chain_id: 31337,
        capacity: Address::repeat_byte(2),
        start_secs: 1_000_000,
        round_secs: 3,
        mean_secs: 600,
        quiet_secs: 30,
    };

    fn round(number: u64) -> Round {
        let entropy = keccak256(number.to_be_bytes());
        Round { number, timestamp: 1_000_000 + number * 3, entropy }
    }

    fn pulses(from: u64, to: u64) -> Vec<Pulse> {
        let mut pulses = Pulses::new(SCHEDULE);
        (from..to).filter_map(|number| pulses.on_round(&round(number))).collect()
    }

    #[test]
    fn pulses_are_as_far_apart_as_they_should_be_and_have_no_memory() {
        let found = pulses(0, 400_000);
        // One in 200 rounds is drawn; of these, those after 10 rounds in which none was.
        let expected = 400_000.0 / 200.0 * (199_f64 / 200.0).powi(9);
        let deviation = (found.len() as f64 - expected) / expected.sqrt();
        assert!(deviation.abs() < 4.0, "{} pulses, {expected} expected", found.len());
        let gaps = found.windows(2).map(|two| two[1].timestamp - two[0].timestamp);
        let gaps: Vec<u64> = gaps.collect();
        assert!(gaps.iter().all(|gap| *gap >= 30));
        // As many of those that wait 300 s wait 300 s more as of all: memoryless.
        let waits = |secs: u64| gaps.iter().filter(|gap| **gap > 30 + secs).count() as f64;
        let (first, second) = (waits(300) / waits(0), waits(600) / waits(300));
        assert!((first - second).abs() < 0.08, "{first} and {second}");
    }

    #[test]
    fn who_begins_later_finds_the_same_pulses() {
        let all = pulses(0, 20_000);
        for from in [500, 5_000, 7_777] {
            let late = pulses(from - 10, 20_000);
            let expected = all.iter().filter(|pulse| pulse.challenge.pulse >= from);
            let found = late.iter().filter(|pulse| pulse.challenge.pulse >= from);
            assert!(expected.eq(found), "from round {from} on");
        }
    }

    #[test]
    fn a_pulse_is_of_the_epoch_that_its_round_lies_in() {
        for pulse in pulses(0, 20_000) {
            let end = SCHEDULE.epoch_end(pulse.epoch);
            assert!(pulse.timestamp < end && pulse.timestamp + EPOCH_SECS >= end);
            assert_eq!(pulse.timestamp, 1_000_000 + pulse.challenge.pulse * 3);
        }
        assert_eq!(SCHEDULE.epoch_at(999_999), None);
        assert_eq!(SCHEDULE.epoch_at(1_000_000 + 3599), Some(0));
        assert_eq!(SCHEDULE.epoch_at(1_000_000 + 3600), Some(1));
    }

    #[test]
    fn old_rounds_and_rounds_told_twice_are_no_pulses() {
        let found = pulses(0, 2000);
        let mut again = Pulses::new(SCHEDULE);
        for number in 0..2000 {
            again.on_round(&round(number));
            assert_eq!(again.on_round(&round(number)), None);
            assert_eq!(again.on_round(&round(number / 2)), None);
        }
        assert!(!found.is_empty());
    }

    #[test]
    fn another_chain_and_another_entropy_have_other_seeds() {
        let seed = SCHEDULE.seed(&round(5));
        assert_ne!(seed, SCHEDULE.seed(&round(6)));
        assert_ne!(seed, Schedule { chain_id: 1, ..SCHEDULE }.seed(&round(5)));
        let other = Round { entropy: B256::ZERO, ..round(5) };
        assert_ne!(seed, SCHEDULE.seed(&other));
    }
}
