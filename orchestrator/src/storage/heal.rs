//! Healing in the daemon: passes over the volumes that it was allowed to mend, with no key of
//! theirs, whether anybody has them open or not.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use spec::node::{NodeSpec, Place};
use storage_node::heal::{Healer, Manifest, Policy, Report, run};
use storage_vdev::node::Nodes;
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
/// How often the pause between passes looks whether the daemon stops.
const TICK: Duration = Duration::from_millis(200);

/// Starts a thread for each volume that is to be healed.
pub(super) fn start(
    serve: &Serve,
    key: &NodeKey,
    stopping: &Arc<AtomicBool>,
) -> Result<Vec<JoinHandle<()>>, StorageError> {
    let mut threads = Vec::new();
    for path in &serve.heal {
        // A file that can't be used is said now, not at the first pass.
        let ward = Ward::load(path)?;
        let policy =
            Policy { bytes_per_second: serve.heal_limit.map(|limit| limit.0), ..Policy::default() };
        let every = Duration::from_secs(serve.heal_every.max(1));
        let (key, stopping) = (key.clone(), Arc::clone(stopping));
        let body = move || ward.heal_for_ever(&key, &policy, every, &stopping);
        threads.push(std::thread::Builder::new().name("heal".to_owned()).spawn(body)?);
    }
    Ok(threads)
}

/// A volume that is healed.
struct Ward {
    path: PathBuf,
}

impl Ward {
    fn load(path: &Path) -> Result<Self, StorageError> {
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
        Ok(Self { path: path.to_owned() })
    }

    fn heal_for_ever(&self, key: &NodeKey, policy: &Policy, every: Duration, stop: &AtomicBool) {
        let mut scrub = false;
        while !stop.load(Ordering::Acquire) {
            let policy = Policy { scrub, ..policy.clone() };
            match self.pass(key, policy, stop) {
                Ok(Some(report)) => tell(&self.path, &report),
                Ok(None) => {}
                Err(error) => tracing::warn!(volume = %self.path.display(), %error, "healing"),
            }
            // Every other pass reads everything.
            scrub = !scrub;
            let until = clock::boot_ns().saturating_add(every.as_nanos() as u64);
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
        let report = run(&mut healer, &mut nodes, clock::boot_ns, |nodes, deadline_ns| {
            session::wait(nodes.ready_fd(), deadline_ns);
            !stop.load(Ordering::Acquire)
        });
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

fn tell(path: &Path, report: &Report) {
    let volume = path.display();
    if report.shards_restored + report.superblocks_restored > 0 {
        tracing::info!(%volume, shards = report.shards_restored, bytes = report.bytes_moved,
            "healed");
    }
    if !report.lying.is_empty() || !report.silent.is_empty() {
        tracing::warn!(%volume, lying = ?report.lying, silent = ?report.silent,
            "nodes that don't do what they should");
    }
    for (segment, verdict) in &report.examples {
        tracing::warn!(%volume, segment, ?verdict, "not as it should be");
    }
}
