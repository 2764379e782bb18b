//! `hypha volume create`: what can be checked without a node is, before anything is changed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use spec::node::{NodeSpec, Place};
use storage_vdev::dir_nodes::check_distinct;
use storage_vdev::engine::{Create as CreateOptions, Limits};

use super::arguments::{Create, OpeningArguments};
use super::error::VolumeError;
use super::host::{self, HostError, LEASE_NS};
use super::manifest::{Folder, Manifest, ManifestError};
use super::open::{New, open};
use super::show::{self, VolumeStatus, tell};
use crate::state;

/// The journal of a volume: what FLUSH may write before a segment is due.
pub(super) const JOURNAL_BYTES: u64 = 64 << 20;

/// Makes a volume.
///
/// # Errors
/// What was asked for can't be, or a node refuses: nothing was made then.
pub(super) fn create(create: &Create) -> Result<i32, VolumeError> {
    // Until everything was looked at, not even the state is made.
    let directory = state::directory(create.form.state.as_deref())?;
    let folder = Folder::new(&directory, &create.name);
    if folder.read().is_ok() {
        let (name, directory) = (create.name.clone(), folder.path().to_owned());
        return Err(ManifestError::Exists { name, directory }.into());
    }
    let shape = (create.code.data_shards, create.code.parity_shards);
    let wanted = usize::from(shape.0) + usize::from(shape.1);
    let mut nodes = create.nodes.clone();
    if nodes.is_empty() {
        let shard = |index| NodeSpec {
            place: Place::Directory(folder.path().join(format!("shard-{index}"))),
            domain: None,
        };
        nodes = (0..wanted).map(shard).collect();
    }
    check(create, wanted, nodes.len())?;
    absolute(&mut nodes)?;
    check_distinct(&directories(&nodes)).map_err(HostError::from)?;
    settle_domains(&mut nodes, create.strict_domains)?;
    warn_of_few_acceptors(&nodes, create.code.parity_shards);
    let mut manifest = Manifest::new(host::random()?, shape, create.policy, nodes);
    manifest.journal = create.journal.as_ref().map(std::path::absolute).transpose()?;
    let options = CreateOptions {
        data_shards: shape.0,
        parity_shards: shape.1,
        size_bytes: create.size.0,
        policy: create.policy.into(),
        allow_degraded: false,
        shared_domains: !create.strict_domains,
        journal_bytes: JOURNAL_BYTES,
        lease_ns: LEASE_NS,
    };
    state::prepare(&directory)?;
    folder.create(None)?;
    let made =
        open(&folder, &manifest, (OpeningArguments::default(), Limits::LARGE), New::Empty(options))
            .and_then(|session| {
                let status = session.volume().status();
                let name = create.name.clone();
                session.close().map_err(|source| VolumeError::Request { name, source })?;
                folder.write(&manifest)?;
                Ok(status)
            });
    match made {
        Ok(status) => {
            let status = VolumeStatus::new(&create.name, &status);
            tell(&create.form, &json!(status), || {
                format!(
                    "volume {} made ({}, {}+{}), {}\n",
                    status.name,
                    show::bytes(status.size_bytes),
                    shape.0,
                    shape.1,
                    status.policy
                )
            })?;
            Ok(0)
        }
        Err(error) => {
            // Nothing was written under this key that anybody needs.
            folder.destroy()?;
            Err(error)
        }
    }
}

/// What can be said without asking a node.
fn check(create: &Create, wanted: usize, found: usize) -> Result<(), VolumeError> {
    let argument = |field, reason| Err(VolumeError::Argument { field, reason });
    let (data, parity) = (create.code.data_shards, create.code.parity_shards);
    if data == 0 || wanted > usize::from(storage_vdev::SHARDS_MAX) {
        let most = storage_vdev::SHARDS_MAX;
        return argument(
            "--code",
            format!("{data}+{parity}: expected at least 1 data shard and at most {most} in all"),
        );
    }
    if create.size.0 == 0 || !create.size.0.is_multiple_of(storage_vdev::BLOCK_BYTES as u64) {
        return argument(
            "--size",
            format!(
                "{} bytes: expected a multiple of {}",
                create.size.0,
                storage_vdev::BLOCK_BYTES
            ),
        );
    }
    if found < wanted {
        return argument(
            "--nodes",
            format!(
                "{found} nodes: expected at least {wanted}, one for each shard of {data}+{parity}"
            ),
        );
    }
    if found + 1 > storage_vdev::node::NODES_MAX {
        let most = storage_vdev::node::NODES_MAX - 1;
        return argument("--nodes", format!("{found} nodes: expected at most {most}"));
    }
    Ok(())
}

/// A register of 2 f + 1 nodes outlives f of them, which may be fewer than the shards do.
fn warn_of_few_acceptors(nodes: &[NodeSpec], parity_shards: u8) {
    let acceptors = host::acceptors(nodes.len(), parity_shards);
    let survives = acceptors.saturating_sub(1) / 2;
    if nodes.iter().any(|node| !node.place.is_directory()) && survives < usize::from(parity_shards)
    {
        tracing::warn!(
            "the volume's register is on {acceptors} nodes: it outlives {survives} losses, the \
            shards outlive {parity_shards}. With {} nodes (spares count) both do",
            2 * usize::from(parity_shards) + 1
        );
    }
}

fn directories(nodes: &[NodeSpec]) -> Vec<PathBuf> {
    let path = |node: &NodeSpec| match &node.place {
        Place::Directory(path) => Some(path.clone()),
        Place::Server { .. } => None,
    };
    nodes.iter().filter_map(path).collect()
}

/// Another process need not have our working directory.
pub(super) fn absolute(nodes: &mut [NodeSpec]) -> Result<(), VolumeError> {
    for node in nodes {
        if let Place::Directory(path) = &mut node.place {
            *path = std::path::absolute(&*path)?;
        }
    }
    Ok(())
}

/// Names each node's failure domain. Two nodes that share one are refused if that was asked for;
/// else they are warned of, and each counts as a domain of its own from then on.
pub(super) fn settle_domains(nodes: &mut [NodeSpec], strict: bool) -> Result<(), VolumeError> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut shared = Vec::new();
    for (index, node) in nodes.iter_mut().enumerate() {
        let domain = host::domain(node);
        let name = node.to_string();
        match seen.get(&domain) {
            Some(first) if strict => {
                return Err(VolumeError::Argument {
                    field: "--nodes",
                    reason: format!(
                        "{first} and {name} share a failure domain ({domain}): \
                        expected one each, because of --strict-domains"
                    ),
                });
            }
            Some(first) => shared.push((first.clone(), name, domain, index)),
            None => {
                seen.insert(domain.clone(), name);
                node.domain = Some(domain);
            }
        }
    }
    if let Some((first, second, domain, _)) = shared.first() {
        tracing::warn!(
            "{first} and {second} share a failure domain ({domain}): its loss may be \
            more than the code survives"
        );
    }
    for (.., domain, index) in &shared {
        if let Some(node) = nodes.get_mut(*index) {
            node.domain = Some(format!("{domain}-node-{index}"));
        }
    }
    Ok(())
}
