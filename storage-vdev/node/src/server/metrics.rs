//! Counters and latency histograms, as Prometheus text.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use storage_vdev::node::{NodeError, Request};

/// A counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of a histogram's buckets: 16 µs, doubling, to 8.6 s; then the rest.
const BUCKETS: usize = 20;
const FIRST_BUCKET_NS: u64 = 1 << 14;

/// How long something took.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, ns: u64) {
        let bucket = (0..BUCKETS).find(|bucket| ns <= FIRST_BUCKET_NS << bucket);
        if let Some(count) = self.buckets.get(bucket.unwrap_or(BUCKETS)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(crate) fn render(&self, out: &mut String, name: &str, labels: &str) -> fmt::Result {
        let mut total = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let bound = match bucket {
                BUCKETS => "+Inf".to_owned(),
                _ => seconds(FIRST_BUCKET_NS << bucket),
            };
            writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}")?;
        }
        let sum = seconds(self.sum_ns.load(Ordering::Relaxed));
        writeln!(out, "{name}_sum{{{labels}}} {sum}")?;
        writeln!(out, "{name}_count{{{labels}}} {total}")
    }
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// What the door counts.
#[derive(Debug, Default)]
pub(crate) struct DoorMetrics {
    pub(crate) accepted: Counter,
    pub(crate) handshakes: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) turned_away: Counter,
}

const KINDS: [&str; 16] = [
    "put",
    "restore",
    "get",
    "list",
    "delete",
    "journal_open",
    "journal_append",
    "journal_read",
    "journal_state",
    "journal_trim",
    "fence",
    "register",
    "audit",
    "capacity",
    "authorise",
    "refused",
];

/// Which of [`KINDS`] a request is.
pub(crate) fn kind_of(request: &Request) -> usize {
    match request {
        Request::Put { .. } => 0,
        Request::Restore { .. } => 1,
        Request::Get { .. } => 2,
        Request::List { .. } => 3,
        Request::Delete { .. } => 4,
        Request::JournalOpen { .. } => 5,
        Request::JournalAppend { .. } => 6,
        Request::JournalRead { .. } => 7,
        Request::JournalState { .. } => 8,
        Request::JournalTrim { .. } => 9,
        Request::Fence { .. } => 10,
        Request::Register { .. } => 11,
        Request::Audit { .. } => 12,
        Request::Capacity => 13,
    }
}

/// A capability that counted, and one that didn't.
pub(crate) const AUTHORISED: (usize, usize) = (14, 15);

const ERRORS: [&str; 12] = [
    "epoch_stale",
    "exists",
    "not_found",
    "range",
    "conflict",
    "no_space",
    "quota",
    "corrupt",
    "denied",
    "unsupported",
    "unavailable",
    "failed",
];

fn error_index(error: NodeError) -> usize {
    match error {
        NodeError::EpochStale { .. } => 0,
        NodeError::Exists => 1,
        NodeError::NotFound => 2,
        NodeError::Range => 3,
        NodeError::Conflict { .. } => 4,
        NodeError::NoSpace => 5,
        NodeError::Quota => 6,
        NodeError::Corrupt => 7,
        NodeError::Denied => 8,
        NodeError::Unsupported => 9,
        NodeError::Unavailable => 10,
        NodeError::Failed => 11,
    }
}

/// What a store's loop counts.
#[derive(Debug, Default)]
pub(crate) struct StoreMetrics {
    pub(crate) sessions: Counter,
    pub(crate) sessions_broken: Counter,
    pub(crate) sessions_idle: Counter,
    pub(crate) syncs: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) bytes_sent: Counter,
    requests: [Counter; KINDS.len()],
    errors: [Counter; ERRORS.len()],
    /// Requests that waited for a sync.
    pub(crate) durable: Histogram,
    /// Requests that were answered at once.
    pub(crate) immediate: Histogram,
}

impl StoreMetrics {
    pub(crate) fn count_request(&self, kind: usize) {
        if let Some(counter) = self.requests.get(kind) {
            counter.add(1);
        }
    }

    pub(crate) fn count_error(&self, error: NodeError) {
        if let Some(counter) = self.errors.get(error_index(error)) {
            counter.add(1);
        }
    }
}

/// Everything as Prometheus text.
pub(crate) fn render<'a>(
    door: &DoorMetrics,
    connections: usize,
    stores: impl Iterator<Item = (&'a str, &'a StoreMetrics)> + Clone,
) -> String {
    let mut out = String::new();
    if write_all(&mut out, door, connections, stores).is_err() {
        // Writing to a string doesn't fail; a half text would be worse than none.
        out.clear();
    }
    out
}

fn write_all<'a>(
    out: &mut String,
    door: &DoorMetrics,
    connections: usize,
    stores: impl Iterator<Item = (&'a str, &'a StoreMetrics)> + Clone,
) -> fmt::Result {
    writeln!(out, "# TYPE hypha_shard_connections gauge")?;
    writeln!(out, "hypha_shard_connections {connections}")?;
    let counters = [
        ("connections_accepted_total", &door.accepted),
        ("connections_turned_away_total", &door.turned_away),
        ("handshakes_total", &door.handshakes),
        ("handshakes_failed_total", &door.handshakes_failed),
    ];
    for (name, counter) in counters {
        writeln!(out, "# TYPE hypha_shard_{name} counter")?;
        writeln!(out, "hypha_shard_{name} {}", counter.get())?;
    }
    type Pick = fn(&StoreMetrics) -> &Counter;
    let of_stores: [(&str, Pick); 6] = [
        ("sessions_total", |store| &store.sessions),
        ("sessions_broken_total", |store| &store.sessions_broken),
        ("sessions_idle_total", |store| &store.sessions_idle),
        ("syncs_total", |store| &store.syncs),
        ("received_bytes_total", |store| &store.bytes_received),
        ("sent_bytes_total", |store| &store.bytes_sent),
    ];
    for (name, pick) in of_stores {
        writeln!(out, "# TYPE hypha_shard_{name} counter")?;
        for (store, metrics) in stores.clone() {
            let store = escaped(store);
            writeln!(out, "hypha_shard_{name}{{store=\"{store}\"}} {}", pick(metrics).get())?;
        }
    }
    writeln!(out, "# TYPE hypha_shard_requests_total counter")?;
    for (store, metrics) in stores.clone() {
        write_labelled(out, "requests_total", (store, "kind"), &KINDS, &metrics.requests)?;
    }
    writeln!(out, "# TYPE hypha_shard_errors_total counter")?;
    for (store, metrics) in stores.clone() {
        write_labelled(out, "errors_total", (store, "error"), &ERRORS, &metrics.errors)?;
    }
    writeln!(out, "# TYPE hypha_shard_request_seconds histogram")?;
    for (store, metrics) in stores {
        for (class, histogram) in [("durable", &metrics.durable), ("immediate", &metrics.immediate)]
        {
            let labels = format!("store=\"{}\",class=\"{class}\"", escaped(store));
            histogram.render(out, "hypha_shard_request_seconds", &labels)?;
        }
    }
    Ok(())
}

fn write_labelled(
    out: &mut String,
    name: &str,
    (store, label): (&str, &str),
    values: &[&str],
    counters: &[Counter],
) -> fmt::Result {
    let store = escaped(store);
    for (value, counter) in values.iter().zip(counters) {
        let labels = format!("store=\"{store}\",{label}=\"{value}\"");
        writeln!(out, "hypha_shard_{name}{{{labels}}} {}", counter.get())?;
    }
    Ok(())
}

/// A label's value as the text format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
