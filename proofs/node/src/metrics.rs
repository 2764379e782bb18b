//! What is counted, as Prometheus reads it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters and gauges of a node that proves.
#[derive(Debug, Default)]
pub struct Metrics {
    /// The newest block that was read.
    pub block: AtomicU64,
    /// Its time, in seconds since 1970.
    pub block_time: AtomicU64,
    /// Whether the chain answers.
    pub chain_up: AtomicU64,
    /// Pulses that were seen when they began.
    pub pulses: AtomicU64,
    /// Pulses whose answer went out in time.
    pub answered: AtomicU64,
    /// Pulses that could not be answered in time.
    pub missed: AtomicU64,
    /// How long the work of the last answered pulse took, in microseconds.
    pub answer_micros: AtomicU64,
    /// Processor time of this process during pulses, in microseconds.
    pub pulse_cpu_micros: AtomicU64,
    /// Verdicts that this node gave as a witness.
    pub verdicts: AtomicU64,
    /// Evidence that was found against somebody.
    pub evidence: AtomicU64,
    /// Bytes of filler.
    pub filler_bytes: AtomicU64,
    /// Bytes of filler that there should be.
    pub filler_wanted_bytes: AtomicU64,
    /// Bytes of filler made by this process.
    pub filler_made_bytes: AtomicU64,
    /// Bytes of users' shards in the plot.
    pub shard_bytes: AtomicU64,
    /// Bytes of all that the shard servers' folders hold.
    pub shard_stored_bytes: AtomicU64,
    /// Bytes of shards read by this process to be proven.
    pub shard_hashed_bytes: AtomicU64,
    /// Shards that were found damaged.
    pub shards_rotten: AtomicU64,
    /// Extents that were found damaged.
    pub rotten: AtomicU64,
    /// Bytes of the committed plot.
    pub plot_bytes: AtomicU64,
    /// Bytes of the day's table.
    pub table_bytes: AtomicU64,
    /// Challenges of the chain that were answered.
    pub challenges_answered: AtomicU64,
    /// Until when the chain keeps that this node is proven, in seconds since 1970.
    pub proven_until: AtomicU64,
    /// Of the accounts that this node sends by, those that can't pay for gas.
    pub accounts_without_gas: AtomicU64,
    /// Transactions that failed.
    pub transactions_failed: AtomicU64,
    /// Epochs that this node posted.
    pub epochs_posted: AtomicU64,
    /// The newest epoch that the ledger goes on from.
    pub judged_epoch: AtomicU64,
    /// Posted epochs that were found true.
    pub epochs_true: AtomicU64,
    /// Posted epochs that were objected to.
    pub epochs_false: AtomicU64,
    /// Appeals that were made from here.
    pub appeals: AtomicU64,
    /// Votes of this node on appeals.
    pub votes: AtomicU64,
    /// Connections to other nodes.
    pub peers: AtomicU64,
    /// Messages that were not sent.
    pub messages_dropped: AtomicU64,
    /// Messages that were not looked at: their node sends too many, or ones that can't be read.
    pub messages_ignored: AtomicU64,
    /// How often a node was cut off for a while.
    pub peers_cut_off: AtomicU64,
}

impl Metrics {
    /// All of them in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        let gauges = [
            ("block", "newest block that was read", &self.block),
            ("block_timestamp_seconds", "its time", &self.block_time),
            ("chain_up", "whether the chain answers", &self.chain_up),
            ("answer_microseconds", "work of the last answered pulse", &self.answer_micros),
            ("filler_bytes", "filler on the disks", &self.filler_bytes),
            ("filler_wanted_bytes", "filler that there should be", &self.filler_wanted_bytes),
            ("shard_bytes", "users' shards in the plot", &self.shard_bytes),
            ("shard_stored_bytes", "all in the shard servers' folders", &self.shard_stored_bytes),
            ("plot_bytes", "the committed plot", &self.plot_bytes),
            ("table_bytes", "the day's memory table", &self.table_bytes),
            ("proven_until_seconds", "until when the node is proven", &self.proven_until),
            ("accounts_without_gas", "accounts that can't pay", &self.accounts_without_gas),
            ("judged_epoch", "newest epoch that the ledger goes on from", &self.judged_epoch),
            ("peers", "connections to other nodes", &self.peers),
        ];
        let counters = [
            ("pulses", "pulses seen when they began", &self.pulses),
            ("answered", "pulses answered in time", &self.answered),
            ("missed", "pulses not answered in time", &self.missed),
            ("pulse_cpu_microseconds", "processor time in pulses", &self.pulse_cpu_micros),
            ("verdicts", "verdicts given as a witness", &self.verdicts),
            ("evidence", "evidence found against somebody", &self.evidence),
            ("filler_made_bytes", "filler made by this process", &self.filler_made_bytes),
            ("shard_hashed_bytes", "shards read to be proven", &self.shard_hashed_bytes),
            ("rotten_shards", "users' shards found damaged", &self.shards_rotten),
            ("rotten_extents", "extents found damaged", &self.rotten),
            ("challenges_answered", "challenges answered", &self.challenges_answered),
            ("transactions_failed", "transactions that failed", &self.transactions_failed),
            ("epochs_posted", "epochs posted", &self.epochs_posted),
            ("epochs_true", "posted epochs found true", &self.epochs_true),
            ("epochs_false", "posted epochs objected to", &self.epochs_false),
            ("appeals", "appeals made", &self.appeals),
            ("votes", "votes on appeals", &self.votes),
            ("messages_dropped", "messages that were not sent", &self.messages_dropped),
            ("messages_ignored", "messages not looked at", &self.messages_ignored),
            ("peers_cut_off", "floods that were cut off", &self.peers_cut_off),
        ];
        let mut text = String::new();
        let gauges = gauges.into_iter().map(|metric| (metric, "gauge", ""));
        let counters = counters.into_iter().map(|metric| (metric, "counter", "_total"));
        for ((name, help, value), kind, suffix) in gauges.chain(counters) {
            let (name, value) =
                (format!("hypha_proof_{name}{suffix}"), value.load(Ordering::Relaxed));
            // Writing to a string can't fail.
            _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}

/// Sets a gauge.
pub(crate) fn set(gauge: &AtomicU64, value: u64) {
    gauge.store(value, Ordering::Relaxed);
}

/// Counts.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_kind_a_help_and_a_value() {
        let metrics = Metrics::default();
        add(&metrics.answered, 3);
        set(&metrics.chain_up, 1);
        let text = metrics.render();
        assert!(
            text.contains(
                "# TYPE hypha_proof_answered_total counter\nhypha_proof_answered_total 3\n"
            )
        );
        assert!(text.contains("# TYPE hypha_proof_chain_up gauge\nhypha_proof_chain_up 1\n"));
        assert_eq!(text.lines().count() % 3, 0);
    }
}
