//! What the benchmarks share: the binaries under test, distributions, and Markdown tables.
//!
//! A benchmark prints a table; `docs/performance.md` holds the tables with the command that made
//! them. Nothing here asserts a time.
#![deny(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "benchmarks read the clock")]

use std::path::PathBuf;
use std::time::Instant;

/// The folder with `hypha`, `vmm` and `images/`: `$HYPHA_DIST`, or `dist` in the working copy.
#[must_use]
pub fn dist() -> PathBuf {
    std::env::var_os("HYPHA_DIST").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../dist")),
        PathBuf::from,
    )
}

/// Samples of one quantity, ascending.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution(Vec<f64>);

impl Distribution {
    /// Sorts the samples.
    #[must_use]
    pub fn new(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self(samples)
    }

    /// The samples, ascending.
    #[must_use]
    pub fn samples(&self) -> &[f64] {
        &self.0
    }

    /// The value that `percent` of the samples do not exceed; 0 if there are none.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> f64 {
        let index = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(index).copied().unwrap_or(0.0)
    }

    /// `median (p10 to p90)` with two digits behind the point.
    #[must_use]
    pub fn cell(&self) -> String {
        let [low, middle, high] = [10, 50, 90].map(|percent| self.percentile(percent));
        format!("{middle:.2} ({low:.2} to {high:.2})")
    }
}

/// The milliseconds that `work` takes, each of `count` times.
pub fn milliseconds(count: usize, mut work: impl FnMut()) -> Distribution {
    Distribution::new(
        (0..count)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect(),
    )
}

/// Prints a Markdown table.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    println!("| {} |", header.join(" | "));
    println!("|{}", "---|".repeat(header.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_distribution() {
        let distribution = Distribution::new((0..=100).rev().map(f64::from).collect());
        assert_eq!([0, 50, 90, 100].map(|p| distribution.percentile(p)), [0.0, 50.0, 90.0, 100.0]);
        assert_eq!(Distribution::new(Vec::new()).percentile(50), 0.0);
    }
}
