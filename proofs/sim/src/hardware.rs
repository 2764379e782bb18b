//! How long a pulse's standard work takes on a machine. Work is done in small and for real; how long it
//! would take in large is counted here, and the real verifier judges whether that is in time.

use hypha_proofs::Rules;
use hypha_proofs::cpu::{Pace, SEGMENT_STEPS, units};

/// Milliseconds in nanoseconds.
pub const MS: u64 = 1_000_000;
/// A second in nanoseconds.
pub const SECOND: u64 = 1000 * MS;

/// A machine's speeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hardware {
    /// Threads that run at the same time.
    pub cores: u32,
    /// A hash of a chain, in nanoseconds.
    pub hash_ns: f64,
    /// A step of a walk over memory, in nanoseconds.
    pub step_ns: f64,
    /// A random read of flash, in nanoseconds.
    pub flash_ns: f64,
    /// A label, in nanoseconds: four random reads and three blocks of SHA-256.
    pub label_ns: f64,
    /// Leaves of a pulse, read one after the other from a spinning disk, in nanoseconds.
    pub seek_ns: f64,
}

/// What a machine does in one pulse, for all its identities.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Chains of standard length.
    pub chains: u32,
    /// Walks of standard length.
    pub walks: u32,
    /// Of a walk's steps, those whose label is on flash and not in memory.
    pub on_flash: f64,
    /// Labels that are made again.
    pub labels: f64,
    /// The longest chain among those.
    pub labels_in_a_row: f64,
    /// Drawn leaves that are read.
    pub reads: u32,
}

impl Hardware {
    /// A usual one: SHA-256 in hardware at a middling clock, flash and spinning disks. `label_ns` is
    /// the design's lower figure.
    pub const USUAL: Self = Self {
        cores: 16,
        hash_ns: 100.0,
        step_ns: 350.0,
        flash_ns: 80_000.0,
        label_ns: 350.0,
        seek_ns: 10_000_000.0,
    };
    /// The fastest core that the design measured.
    pub const FAST: Self = Self { hash_ns: 59.0, ..Self::USUAL };
    /// A server of 64 threads.
    pub const SERVER: Self = Self { cores: 64, ..Self::FAST };

    /// The units that a measurement proposes to an owner who also has so many walks taken.
    #[must_use]
    pub fn units(&self, walks: u32) -> u16 {
        let (rules, cores) = (Rules::STANDARD, f64::from(self.cores));
        let walk_ns = f64::from(walks) * rules.walk_steps as f64 * self.step_ns;
        let (alone_ns, together_ns) = (self.hash_ns, self.hash_ns / cores);
        let pace = Pace { threads: self.cores as u16, alone_ns, together_ns };
        units(&rules, &pace, walk_ns as u64)
    }

    /// From the pulse to the commitment, in nanoseconds.
    #[must_use]
    pub fn pulse_ns(&self, load: &Load) -> u64 {
        let rules = Rules::STANDARD;
        let chain = rules.segments as f64 * f64::from(SEGMENT_STEPS) * self.hash_ns;
        let steps = rules.walk_steps as f64;
        let walk_cpu = steps * (1.0 - load.on_flash) * self.step_ns;
        let walk = walk_cpu + steps * load.on_flash * self.flash_ns;
        // Nothing is faster than its longest chain of steps, nor than all cores together.
        let longest = [
            if load.chains > 0 { chain } else { 0.0 },
            if load.walks > 0 { walk } else { 0.0 },
            load.labels_in_a_row * self.label_ns,
            f64::from(load.reads) * self.seek_ns,
        ];
        let longest = longest.into_iter().fold(0.0, f64::max);
        let work = f64::from(load.chains) * chain
            + f64::from(load.walks) * walk_cpu
            + load.labels * self.label_ns;
        longest.max(work / f64::from(self.cores)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_chains_as_cores_take_as_long_as_one_and_one_more_takes_longer() {
        let usual = Hardware::USUAL;
        let time = |chains| usual.pulse_ns(&Load { chains, ..Load::default() });
        assert_eq!(time(1), 2_500 * MS);
        assert_eq!(time(16), time(1));
        assert!(time(17) > time(16) && time(33) > Rules::STANDARD.commit_ns);
    }

    #[test]
    fn a_walk_over_flash_does_not_end_in_time() {
        let walk = |on_flash| Load { walks: 1, on_flash, ..Load::default() };
        assert!(Hardware::USUAL.pulse_ns(&walk(0.0)) < 2 * SECOND);
        assert!(Hardware::USUAL.pulse_ns(&walk(0.1)) > Rules::STANDARD.commit_ns);
    }
}
