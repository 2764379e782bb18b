//! Counts tests from the output of the test programs themselves.
//!
//! The conventions: `test result:` lines are libtest's. A test that can't run on this machine
//! prints one line `SKIPPED: reason` and returns; libtest calls that passed, so it is taken off
//! there. With `HYPHA_REQUIRE_KVM=1` such tests fail instead.

/// How many tests passed, failed, and could not run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Ignored, or could not run on this machine.
    pub skipped: u64,
    /// Skipped by tests whose program has not given its result yet.
    pending: u64,
}

impl Tally {
    /// One check that passed.
    pub(crate) const ONE_PASSED: Self = Self { passed: 1, failed: 0, skipped: 0, pending: 0 };
    /// One check that failed.
    pub(crate) const ONE_FAILED: Self = Self { passed: 0, failed: 1, skipped: 0, pending: 0 };
    /// One check that could not run.
    pub(crate) const ONE_SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1, pending: 0 };

    /// Takes a line of a test program's output into account; returns whether it was a summary.
    pub(crate) fn read(&mut self, line: &str) -> bool {
        if skip_reason(line).is_some() {
            self.skipped += 1;
            self.pending += 1;
            return false;
        }
        let Some(result) = line.trim_start().strip_prefix("test result: ") else { return false };
        let (_, counts) = result.split_once(". ").unwrap_or(("", result));
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let count: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => self.passed += count.saturating_sub(self.pending),
                Some("failed") => self.failed += count,
                Some("ignored") => self.skipped += count,
                _ => {}
            }
        }
        self.pending = 0;
        true
    }

    /// Adds another run's counts.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Why a test says that it could not run.
pub(crate) fn skip_reason(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("SKIPPED: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        for line in output.lines() {
            tally.read(line);
        }
        tally
    }

    #[test]
    fn results_of_several_programs_are_summed() {
        let output = "test a ... ok\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1.20s\n";
        assert_eq!(tally(output), Tally { passed: 4, failed: 2, skipped: 1, pending: 0 });
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let output = "SKIPPED: no /dev/kvm\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(tally(output), Tally { passed: 1, failed: 0, skipped: 1, pending: 0 });
    }
}
