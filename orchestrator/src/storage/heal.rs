//! Healing in the daemon: passes over the volumes that it was allowed to mend, with no key of
//! theirs, whether anybody has them open or not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use spec::node::{NodeSpec, Place};
use storage_node::heal::{Healer, Manifest, Policy, Progress, Report, Verdict, run};
use storage_vdev::node::{NodeIndex, Nodes};
use storage_vdev::wire::{
    ClientConfig, Credential, Delegation, NodeKey, NodePublicKey, SocketNode, SocketNodes,
};
use zeroize::Zeroizing;

use super::StorageError;
use super::arguments::Serve;
use crate::clock;
use crate::volume::{host, session};

/// A node that answers nothing for so long is given up for this pass.
const SILENT_NS: u64 = 10_000_000_000;
const PING_NS: u64 = 30_000_000_000;
/// How often a pass that mends tells how far it is.
const TELL_NS: u64 = 1_000_000_000;
/// How often the pause between passes looks whether the daemon stops.
const TICK: Duration = Duration::from_millis(200);

/// Starts a thread for each volume that is to be healed.
pub(super) fn start(
    serve: &Serve,
    key: &NodeKey,
    (told, stopping): (&Told, &Arc<AtomicBool>),
) -> Result<Vec<JoinHandle<()>>, StorageError> {
    let mut threads = Vec::new();
    for path in &serve.heal {
        // A file that can't be used is said now, not at the first pass.
        let ward = Ward::load(path, serve, told)?;
        let (key, stopping) = (key.clone(), Arc::clone(stopping));
        let body = move || ward.heal_for_ever(&key, &stopping);
        threads.push(std::thread::Builder::new().name("heal".to_owned()).spawn(body)?);
    }
    Ok(threads)
}

/// How the healing of each volume goes: for the metrics, and for who reads along.
#[derive(Debug, Clone)]
pub(super) struct Told {
    json: bool,
    volumes: Arc<Mutex<BTreeMap<String, Healing>>>,
}

/// How the healing of a volume goes.
#[derive(Debug, Clone, Copy, Default)]
struct Healing {
    passes: u64,
    failed_passes: u64,
    shards_restored: u64,
    shards_on_spares: u64,
    bytes_moved: u64,
    /// Of the last pass.
    silent_nodes: u64,
    /// Of the last pass: segments that are not as they should be.
    segments_bad: u64,
    /// Of a pass that is under way.
    progress: Progress,
}

impl Told {
    /// Nothing was told yet. With `json`, events are objects.
    pub(super) fn new(json: bool) -> Self {
        Self { json, volumes: Arc::default() }
    }

    fn note(&self, volume: &str, change: impl FnOnce(&mut Healing)) {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        change(volumes.entry(volume.to_owned()).or_default());
    }

    /// Prometheus text (exposition format 0.0.4).
    pub(super) fn metrics(&self) -> String {
        let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        let mut family =
            |name: &str, kind: &str, help: &str, value: fn(&Healing) -> Option<u64>| {
                // Writing to a string can't fail.
                _ = writeln!(text, "# HELP hypha_heal_{name} {help}");
                _ = writeln!(text, "# TYPE hypha_heal_{name} {kind}");
                for (volume, healing) in volumes.iter() {
                    if let Some(value) = value(healing) {
                        _ = writeln!(text, "hypha_heal_{name}{{volume=\"{volume}\"}} {value}");
                    }
                }
            };
        family("passes_total", "counter", "Passes that came to their end.", |h| Some(h.passes));
        family("failed_passes_total", "counter", "Passes that didn't.", |h| Some(h.failed_passes));
        family("shards_restored_total", "counter", "Shards made again.", |h| {
            Some(h.shards_restored)
        });
        family("shards_on_spares_total", "counter", "Those of them that went to spares.", |h| {
            Some(h.shards_on_spares)
        });
        family("bytes_total", "counter", "Bytes read and written.", |h| Some(h.bytes_moved));
        family("silent_nodes", "gauge", "Nodes that didn't answer the last pass.", |h| {
            Some(h.silent_nodes)
        });
        family("segments_bad", "gauge", "Segments that the last pass left short.", |h| {
            Some(h.segments_bad)
        });
        family("backlog_segments", "gauge", "Segments that this pass still has to look at.", |h| {
            Some(h.progress.segments.saturating_sub(h.progress.segments_done))
        });
        family("eta_seconds", "gauge", "How much longer this pass takes, if it mends.", |h| {
            h.progress.eta_ns.map(|ns| ns.div_ceil(1_000_000_000))
        });
        text
    }

    /// Tells how far a pass is that has something to mend.
    fn progress(&self, volume: &str, progress: Progress) {
        self.note(volume, |healing| healing.progress = progress);
        let Progress { segments_done, segments, eta_ns, .. } = progress;
        let eta_seconds = eta_ns.map(|ns| ns.div_ceil(1_000_000_000));
        self.say(&if self.json {
            json!({"event": "healing", "volume": volume, "segments_done": segments_done,
                "segments": segments, "eta_seconds": eta_seconds})
            .to_string()
        } else {
            let eta = eta_seconds.map_or(String::new(), |eta| format!(", {eta} s to go"));
            format!("healing {volume}: {segments_done} of {segments} segments{eta}")
        });
    }

    fn report(&self, volume: &str, report: &Report) {
        let well = [Verdict::Whole, Verdict::Repaired, Verdict::Void];
        let bad = report.verdicts.iter().filter(|(verdict, _)| !well.contains(verdict));
        let segments_bad = bad.map(|(_, count)| count).sum();
        self.note(volume, |healing| {
            healing.passes += 1;
            healing.shards_restored += report.shards_restored + report.superblocks_restored;
            healing.shards_on_spares += report.on_spares.len() as u64;
            healing.bytes_moved += report.bytes_moved;
            healing.silent_nodes = report.silent.len() as u64;
            healing.segments_bad = segments_bad;
            healing.progress = Progress::default();
        });
        let restored = report.shards_restored + report.superblocks_restored;
        if restored > 0 {
            let (bytes, spares) = (report.bytes_moved, report.on_spares.len());
            self.say(&if self.json {
                json!({"event": "healed", "volume": volume, "shards": restored,
                    "on_spares": spares, "bytes": bytes})
                .to_string()
            } else {
                format!("healed {volume}: {restored} shards, {spares} of them on spares")
            });
        }
        if !report.lying.is_empty() || !report.silent.is_empty() {
            tracing::warn!(volume, lying = ?report.lying, silent = ?report.silent,
                "nodes that don't do what they should");
        }
        for (segment, verdict) in &report.examples {
            tracing::warn!(volume, segment, ?verdict, "not as it should be");
        }
    }

    fn say(&self, line: &str) {
        // Whoever stopped listening doesn't stop the work.
        _ = writeln!(std::io::stdout(), "{line}");
    }
}

/// A volume that is healed.
struct Ward {
    path: PathBuf,
    /// How people know it: by the file's name.
    name: String,
    policy: Policy,
    every: Duration,
    /// How long a node may be silent before spares take its place; `None`: for ever.
    give_up_ns: Option<u64>,
    told: Told,
}

impl Ward {
    fn load(path: &Path, serve: &Serve, told: &Told) -> Result<Self, StorageError> {
        let failed = |reason: String| StorageError::Heal { path: path.to_owned(), reason };
        let manifest = Manifest::load(path).map_err(|error| failed(error.to_string()))?;
        credential(&manifest).ok_or_else(|| failed("its delegation is not genuine".to_owned()))?;
        for node in &manifest.nodes {
            let spec = NodeSpec::from_str(&node.address);
            let spec = spec.map_err(|error| failed(error.to_string()))?;
            if matches!(spec.place, Place::Directory(_)) {
                return Err(failed(format!("{}: expected a shard server", node.address)));
            }
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            path: path.to_owned(),
            name: name.escape_default().to_string(),
            policy: Policy {
                bytes_per_second: serve.heal_limit.map(|limit| limit.0),
                ..Policy::default()
            },
            every: Duration::from_secs(serve.heal_every.max(1)),
            give_up_ns: serve.heal_give_up.map(|seconds| seconds.saturating_mul(1_000_000_000)),
            told: told.clone(),
        })
    }

    fn heal_for_ever(&self, key: &NodeKey, stop: &AtomicBool) {
        let mut scrub = false;
        let mut silent_since: BTreeMap<NodeIndex, u64> = BTreeMap::new();
        while !stop.load(Ordering::Acquire) {
            let now_ns = clock::boot_ns();
            let is_over = |since: u64| {
                self.give_up_ns.is_some_and(|most| now_ns.saturating_sub(since) >= most)
            };
            let silent = silent_since.iter().filter(|(_, since)| is_over(**since));
            let given_up = silent.map(|(node, _)| *node).collect();
            let policy = Policy { scrub, given_up, ..self.policy.clone() };
            match self.pass(key, policy, stop) {
                Ok(Some(report)) => {
                    silent_since.retain(|node, _| report.silent.contains(node));
                    for node in &report.silent {
                        silent_since.entry(*node).or_insert(now_ns);
                    }
                    self.told.report(&self.name, &report);
                }
                Ok(None) => {}
                Err(error) => {
                    self.told.note(&self.name, |healing| healing.failed_passes += 1);
                    tracing::warn!(volume = self.name, %error, "healing");
                }
            }
            // Every other pass reads everything.
            scrub = !scrub;
            let until = clock::boot_ns().saturating_add(self.every.as_nanos() as u64);
            while clock::boot_ns() < until && !stop.load(Ordering::Acquire) {
                std::thread::sleep(TICK);
            }
        }
    }

    /// One pass; `None` if the daemon stops meanwhile.
    fn pass(
        &self,
        key: &NodeKey,
        policy: Policy,
        stop: &AtomicBool,
    ) -> Result<Option<Report>, StorageError> {
        let failed = |reason: String| StorageError::Heal { path: self.path.clone(), reason };
        let manifest = Manifest::load(&self.path).map_err(|error| failed(error.to_string()))?;
        let mut nodes = connect(&manifest, key).map_err(|error| failed(error.to_string()))?;
        let mut healer = Healer::new(manifest, policy, clock::boot_ns());
        let mut tell_at_ns = clock::boot_ns().saturating_add(TELL_NS);
        let report = loop {
            // A wait that returns false hands the healer back, to be asked how far it is.
            let report = run(&mut healer, &mut nodes, clock::boot_ns, |nodes, deadline_ns| {
                let deadline_ns = deadline_ns.map_or(tell_at_ns, |at| at.min(tell_at_ns));
                session::wait(nodes.ready_fd(), Some(deadline_ns));
                !stop.load(Ordering::Acquire) && clock::boot_ns() < tell_at_ns
            });
            if report.is_some() || stop.load(Ordering::Acquire) {
                break report;
            }
            let now_ns = clock::boot_ns();
            tell_at_ns = now_ns.saturating_add(TELL_NS);
            let progress = healer.progress(now_ns);
            if progress.surveyed && progress.segments > 0 {
                self.told.progress(&self.name, progress);
            }
        };
        healer.manifest().save(&self.path).map_err(|error| failed(error.to_string()))?;
        Ok(report)
    }
}

fn credential(manifest: &Manifest) -> Option<Delegation> {
    Delegation::from_bytes(manifest.delegation.as_slice().try_into().ok()?)
}

fn connect(manifest: &Manifest, key: &NodeKey) -> std::io::Result<SocketNodes> {
    let delegation = credential(manifest)
        .ok_or_else(|| std::io::Error::other("its delegation is not genuine"))?;
    let mut sockets = Vec::new();
    for node in &manifest.nodes {
        let spec = NodeSpec::from_str(&node.address).map_err(std::io::Error::other)?;
        let Place::Server { endpoint, key: pinned, store } = spec.place else {
            return Err(std::io::Error::other("a directory can only be mended by its own host"));
        };
        let config = ClientConfig {
            node: NodePublicKey(pinned.0),
            store,
            identity: key.clone(),
            credentials: vec![Credential::Delegation(delegation.clone())],
            timeout_ns: SILENT_NS,
            ping_after_ns: PING_NS,
        };
        let socket = host::dial(&endpoint).ok();
        let name = node.address.clone();
        sockets.push(SocketNode { name, config: Arc::new(config), socket });
    }
    let seed = Zeroizing::new(host::random().map_err(std::io::Error::other)?);
    // A node that is lost during a pass is left to the next one.
    SocketNodes::new(sockets, Box::new(|_| None), &seed)
}
