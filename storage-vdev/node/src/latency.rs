//! How long requests to a volume take, as histograms.

use std::fmt::Write as _;

use crate::server::metrics::Histogram;

/// What a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    WriteFua,
    Flush,
    Zero,
    BlockStatus,
    Command,
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Read, "read"),
    (Kind::Write, "write"),
    (Kind::WriteFua, "write_fua"),
    (Kind::Flush, "flush"),
    (Kind::Zero, "zero"),
    (Kind::BlockStatus, "block_status"),
    (Kind::Command, "command"),
];

/// The histograms of one volume.
#[derive(Debug, Default)]
pub(crate) struct Latencies([Histogram; KINDS.len()]);

impl Latencies {
    pub(crate) fn add(&self, kind: Kind, ns: u64) {
        if let Some(histogram) = self.0.get(kind as usize) {
            histogram.record(ns);
        }
    }

    /// Prometheus text (version 0.0.4).
    pub(crate) fn render(&self) -> String {
        let name = "hypha_volume_request_seconds";
        let mut text = String::new();
        // Writing to a string can't fail.
        _ = writeln!(text, "# HELP {name} How long requests take.");
        _ = writeln!(text, "# TYPE {name} histogram");
        for ((_, kind), histogram) in KINDS.iter().zip(&self.0) {
            _ = histogram.render(&mut text, name, &format!("request=\"{kind}\""));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_counts_under_its_own_request() {
        let latencies = Latencies::default();
        latencies.add(Kind::Flush, 20_000);
        latencies.add(Kind::Flush, u64::MAX);
        latencies.add(Kind::Command, 5);
        let text = latencies.render();
        let has = |wanted: &str| text.lines().any(|line| line.ends_with(wanted));
        assert!(has("_bucket{request=\"flush\",le=\"+Inf\"} 2"), "{text}");
        assert!(has("_count{request=\"flush\"} 2"), "{text}");
        assert!(has("_count{request=\"command\"} 1"), "{text}");
        assert!(has("_count{request=\"read\"} 0"), "{text}");
    }
}
