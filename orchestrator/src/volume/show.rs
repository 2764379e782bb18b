//! How a volume's state is told: text for people, JSON for scripts, metrics for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde::{Deserialize, Serialize};
use storage_vdev::engine::{Counters, NodeState, Progress, Status};

use super::arguments::Form;
use super::error::VolumeError;
use super::manifest::PolicyName;

/// A volume's state as `--json` prints it and as the control socket carries it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name on this host.
    pub name: String,
    /// 32 hexadecimal digits.
    pub uuid: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Data shards per segment.
    pub data_shards: u8,
    /// Parity shards per segment.
    pub parity_shards: u8,
    /// `healthy`, `degraded`, `lost` or `stopped`.
    pub health: Health,
    /// How many more nodes may be lost; nothing if data is lost already.
    pub redundancy: Option<u32>,
    /// How many it should be.
    pub redundancy_wanted: u32,
    /// When a FLUSH is answered.
    pub policy: PolicyName,
    /// Fewer journal copies than the policy wants.
    pub policy_degraded: bool,
    /// How often the volume was opened.
    pub epoch: u64,
    /// Bytes written since the last flush: what a crash of this host loses (the RPO).
    pub unflushed_bytes: u64,
    /// Bytes in the journal.
    pub journal_bytes: u64,
    /// Bytes in memory that are in no segment.
    pub unsealed_bytes: u64,
    /// Bytes that the volume and its snapshots need.
    pub live_bytes: u64,
    /// Bytes in segments, needed or not.
    pub stored_bytes: u64,
    /// Bytes that can still be written, headroom for garbage collection taken off.
    pub free_bytes: Option<u64>,
    /// Segments.
    pub segments: u64,
    /// Segments that lack a shard.
    pub segments_degraded: u64,
    /// Segments of which too few shards are left.
    pub segments_lost: u64,
    /// Shards that repair still has to make.
    pub shards_to_repair: u64,
    /// Work under way.
    pub repair: Option<Work>,
    /// Work under way.
    pub scrub: Option<Work>,
    /// The nodes.
    pub nodes: Vec<NodeLine>,
    /// Why the volume has stopped.
    pub stopped: Option<String>,
    /// Counts since it was opened.
    pub counters: BTreeMap<String, u64>,
}

/// How a volume is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// All shards are where they should be.
    Healthy,
    /// Nothing is lost, but fewer losses are survived than should be.
    Degraded,
    /// Some data is lost.
    Lost,
    /// It serves nothing any more.
    Stopped,
}

/// Work under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Done so far.
    pub done: u64,
    /// In all, as far as is known.
    pub total: u64,
    /// Seconds to go, at the rate so far.
    pub eta_seconds: Option<u64>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLine {
    /// Its name: a path, an address.
    pub name: String,
    /// Its failure domain.
    pub domain: String,
    /// `up`, `suspect` or `down`.
    pub state: String,
    /// Why it is down.
    pub reason: Option<String>,
    /// The shards that it holds of each segment.
    pub slots: Vec<u8>,
    /// Whether it keeps a copy of the journal.
    pub journal: bool,
    /// Shards that it lacks.
    pub shards_missing: u64,
    /// Bytes left on it.
    pub free_bytes: Option<u64>,
}

impl From<Progress> for Work {
    fn from(progress: Progress) -> Self {
        let eta_seconds = progress.eta_ns.map(|ns| ns.div_ceil(1_000_000_000));
        Self { done: progress.done, total: progress.total, eta_seconds }
    }
}

impl VolumeStatus {
    /// The state of the volume `name`.
    #[must_use]
    pub fn new(name: &str, status: &Status) -> Self {
        let health = match status {
            Status { stopped: Some(_), .. } => Health::Stopped,
            Status { redundancy: None, .. } => Health::Lost,
            Status { redundancy: Some(now), redundancy_wanted, policy_degraded, .. } => {
                if now < redundancy_wanted || *policy_degraded || status.segments_degraded > 0 {
                    Health::Degraded
                } else {
                    Health::Healthy
                }
            }
        };
        let node = |node: &storage_vdev::engine::NodeStatus| {
            let (state, reason) = match node.state {
                NodeState::Up => ("up", None),
                NodeState::Suspect => ("suspect", None),
                NodeState::Down(error) => ("down", Some(error.to_string())),
            };
            NodeLine {
                name: node.name.clone(),
                domain: node.domain.clone(),
                state: state.to_owned(),
                reason,
                slots: node.slots.clone(),
                journal: node.is_head,
                shards_missing: node.shards_missing,
                free_bytes: node.free_bytes,
            }
        };
        Self {
            name: name.to_owned(),
            uuid: status.uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
            size_bytes: status.size_bytes,
            data_shards: status.data_shards,
            parity_shards: status.parity_shards,
            health,
            redundancy: status.redundancy,
            redundancy_wanted: status.redundancy_wanted,
            policy: status.policy.into(),
            policy_degraded: status.policy_degraded,
            epoch: status.epoch,
            unflushed_bytes: status.unflushed_bytes,
            journal_bytes: status.journal_bytes,
            unsealed_bytes: status.unsealed_bytes,
            live_bytes: status.live_bytes,
            stored_bytes: status.stored_bytes,
            free_bytes: status.free_bytes,
            segments: status.segments,
            segments_degraded: status.segments_degraded,
            segments_lost: status.segments_lost,
            shards_to_repair: status.shards_to_repair,
            repair: status.repair.map(Work::from),
            scrub: status.scrub.map(Work::from),
            nodes: status.nodes.iter().map(node).collect(),
            stopped: status.stopped.as_ref().map(ToString::to_string),
            counters: counted(&status.counters),
        }
    }

    /// Lines for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let redundancy = match (self.health, self.redundancy) {
            (Health::Stopped, _) => "stopped".to_owned(),
            (_, None) => format!("DATA LOST ({} segments)", self.segments_lost),
            (_, Some(now)) => format!("survives {now} of {} losses", self.redundancy_wanted),
        };
        let degraded = if self.policy_degraded { " (too few journals!)" } else { "" };
        let rows = [
            ("volume", format!("{} ({})", self.name, self.uuid)),
            (
                "size",
                format!(
                    "{}, code {}+{}",
                    bytes(self.size_bytes),
                    self.data_shards,
                    self.parity_shards
                ),
            ),
            ("health", format!("{}, {redundancy}", self.health.word())),
            ("policy", format!("{}{degraded}", self.policy)),
            (
                "unflushed",
                format!("{} would be lost with this host now", bytes(self.unflushed_bytes)),
            ),
            (
                "stored",
                format!(
                    "{} live of {} in {} segments",
                    bytes(self.live_bytes),
                    bytes(self.stored_bytes),
                    self.segments
                ),
            ),
            ("free", self.free_bytes.map_or("unknown".to_owned(), bytes)),
            ("epoch", self.epoch.to_string()),
        ];
        for (name, value) in rows {
            _ = writeln!(text, "{name:10} {value}");
        }
        for (name, work) in [("repair", self.repair), ("scrub", self.scrub)] {
            if let Some(work) = work {
                _ = writeln!(text, "{name:10} {}", work.to_text());
            }
        }
        if self.shards_to_repair > 0 {
            _ = writeln!(text, "{:10} {} shards", "to repair", self.shards_to_repair);
        }
        if let Some(reason) = &self.stopped {
            _ = writeln!(text, "{:10} {reason}", "stopped");
        }
        let width = self.nodes.iter().map(|node| node.name.chars().count()).max().unwrap_or(0);
        for (index, node) in self.nodes.iter().enumerate() {
            let shards: Vec<String> = node.slots.iter().map(u8::to_string).collect();
            let mut notes = vec![match shards.as_slice() {
                [] => "spare".to_owned(),
                shards => format!("shard {}", shards.join(",")),
            }];
            notes.extend(node.journal.then(|| "journal".to_owned()));
            if node.shards_missing > 0 {
                notes.push(format!("lacks {} shards", node.shards_missing));
            }
            notes.extend(node.reason.clone());
            let notes = notes.join(", ");
            let NodeLine { name, state, .. } = node;
            _ = writeln!(text, "node {index:<5} {name:width$}  {state:8} {notes}");
        }
        text
    }

    /// Prometheus text (exposition format 0.0.4).
    #[must_use]
    pub fn to_metrics(&self) -> String {
        let mut text = String::new();
        let label = format!("{{volume=\"{}\"}}", self.name);
        let redundancy = self.redundancy.map_or(-1, i64::from);
        let gauges = [
            ("size_bytes", "The volume's size.", self.size_bytes as i64),
            ("redundancy", "How many more nodes may be lost; -1: data is lost.", redundancy),
            ("redundancy_wanted", "How many it should be.", i64::from(self.redundancy_wanted)),
            (
                "rpo_bytes",
                "Written and not flushed: what a lost host loses.",
                self.unflushed_bytes as i64,
            ),
            (
                "policy_degraded",
                "Fewer journal copies than the policy wants.",
                i64::from(self.policy_degraded),
            ),
            ("journal_bytes", "Bytes in the journal.", self.journal_bytes as i64),
            ("live_bytes", "Bytes that are needed.", self.live_bytes as i64),
            ("stored_bytes", "Bytes in segments.", self.stored_bytes as i64),
            ("segments", "Segments.", self.segments as i64),
            ("segments_degraded", "Segments that lack a shard.", self.segments_degraded as i64),
            ("segments_lost", "Segments beyond repair.", self.segments_lost as i64),
            ("repair_backlog_shards", "Shards to be made again.", self.shards_to_repair as i64),
            ("epoch", "How often the volume was opened.", self.epoch as i64),
        ];
        for (name, help, value) in gauges {
            _ = writeln!(text, "# HELP hypha_volume_{name} {help}");
            _ = writeln!(text, "# TYPE hypha_volume_{name} gauge");
            _ = writeln!(text, "hypha_volume_{name}{label} {value}");
        }
        for (name, value) in &self.counters {
            _ = writeln!(text, "# TYPE hypha_volume_{name}_total counter");
            _ = writeln!(text, "hypha_volume_{name}_total{label} {value}");
        }
        let shards = self.segments * u64::from(self.data_shards + self.parity_shards);
        _ = writeln!(text, "# HELP hypha_volume_shards Shards of all segments, by how they are.");
        _ = writeln!(text, "# TYPE hypha_volume_shards gauge");
        for (state, count) in [
            ("intact", shards.saturating_sub(self.shards_to_repair)),
            ("missing", self.shards_to_repair),
        ] {
            _ = writeln!(
                text,
                "hypha_volume_shards{{volume=\"{}\",state=\"{state}\"}} {count}",
                self.name
            );
        }
        if let Some(eta) = self.repair.and_then(|work| work.eta_seconds) {
            _ = writeln!(text, "# HELP hypha_volume_repair_eta_seconds How much longer it takes.");
            _ = writeln!(text, "# TYPE hypha_volume_repair_eta_seconds gauge");
            _ = writeln!(text, "hypha_volume_repair_eta_seconds{label} {eta}");
        }
        _ = writeln!(text, "# TYPE hypha_volume_nodes gauge");
        for state in ["up", "suspect", "down"] {
            let count = self.nodes.iter().filter(|node| node.state == state).count();
            _ = writeln!(
                text,
                "hypha_volume_nodes{{volume=\"{}\",state=\"{state}\"}} {count}",
                self.name
            );
        }
        text
    }
}

/// The counts under the names that scripts and metrics know them by.
fn counted(counts: &Counters) -> BTreeMap<String, u64> {
    let counters = [
        ("read_bytes", counts.read_bytes),
        ("written_bytes", counts.written_bytes),
        ("flushes", counts.flushes),
        ("cache_hits", counts.cache_hits),
        ("cache_misses", counts.cache_misses),
        ("reads_rebuilt", counts.reads_rebuilt),
        ("segments_sealed", counts.segments_sealed),
        ("put_bytes", counts.put_bytes),
        ("journal_appended_bytes", counts.journal_bytes),
        ("moved_blocks", counts.moved_blocks),
        ("checkpoints", counts.checkpoints),
        ("damaged", counts.damaged),
    ];
    counters.map(|(name, value)| (name.to_owned(), value)).into()
}

impl Health {
    /// The word for people and scripts.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Lost => "lost",
            Self::Stopped => "stopped",
        }
    }
}

impl Work {
    /// A line for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let percent = (self.done * 100).checked_div(self.total).unwrap_or(100);
        let eta = self.eta_seconds.map_or(String::new(), |seconds| format!(", {seconds} s to go"));
        format!("{} of {} ({percent} %{eta})", self.done, self.total)
    }
}

/// Answers in the form that was asked for.
pub(super) fn tell(
    form: &Form,
    object: &serde_json::Value,
    text: impl FnOnce() -> String,
) -> Result<(), VolumeError> {
    if form.json { print(&format!("{object}\n")) } else { print(&text()) }
}

/// Writes to standard output.
pub(super) fn print(text: &str) -> Result<(), VolumeError> {
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

/// A number of bytes for people.
#[must_use]
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let power = (count.checked_ilog2().unwrap_or(0) / 10).min(5);
    let unit = units.get(power as usize).copied().unwrap_or("B");
    let scaled = count as f64 / (1u64 << (10 * power)) as f64;
    if power == 0 || scaled.fract() == 0.0 {
        format!("{scaled:.0} {unit}")
    } else {
        format!("{scaled:.1} {unit}")
    }
}

/// A time for people, in UTC: `2026-01-31 23:59:59`. The civil calendar by its 400-year cycle that
/// begins on 1 March (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
#[must_use]
pub fn utc(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_their_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(10 << 30), "10 GiB");
        assert_eq!(bytes(1536 << 10), "1.5 MiB");
    }

    #[test]
    fn times_are_told_in_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23:59:59");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00");
    }
}
