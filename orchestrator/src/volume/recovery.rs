//! `hypha volume recover`: a volume found again from its shards and its key.

use std::path::Path;

use storage_vdev::dir_nodes::open_node;
use storage_vdev::engine::{Limits, Policy};
use storage_vdev::service::NodeOptions;

use super::arguments::OpeningArguments;
use super::manifest::{Folder, Manifest};
use super::show::VolumeStatus;
use super::verbs::{New, VolumeError, open};
use spec::node::{NodeSpec, Place};

/// The volumes that a node's directory holds promises of; none if it can't be read.
fn volumes_in(path: &Path) -> Vec<[u8; 16]> {
    let options = NodeOptions { capacity_bytes: 0, create: None };
    let node = open_node(path, &options);
    let volumes = node.ok().and_then(|mut node| Some(node.service()?.volumes().collect()));
    volumes.unwrap_or_default()
}

/// The volume that the directories among `nodes` hold, if it is one.
///
/// # Errors
/// They hold none or several, or there is no directory among them.
pub(super) fn find_volume(nodes: &[NodeSpec]) -> Result<[u8; 16], VolumeError> {
    let mut found: Vec<[u8; 16]> = Vec::new();
    for node in nodes {
        if let Place::Directory(path) = &node.place {
            found.extend(volumes_in(path));
        }
    }
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(*one),
        none_or_more => {
            let text =
                |uuid: &[u8; 16]| uuid.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let listed: Vec<String> = none_or_more.iter().map(text).collect();
            Err(VolumeError::Argument {
                field: "--uuid",
                reason: format!(
                    "not given, and the directories hold {} volumes: {}",
                    listed.len(),
                    listed.join(", ")
                ),
            })
        }
    }
}

/// Opens the volume once without a manifest, and makes one from what its superblock says.
///
/// # Errors
/// It can't be opened.
pub(super) fn rebuild(
    folder: &Folder,
    (uuid, nodes): ([u8; 16], Vec<NodeSpec>),
    arguments: OpeningArguments,
) -> Result<(Manifest, VolumeStatus), VolumeError> {
    // The shape is in the superblock; until that is read, as many acceptors as there can be.
    let parity = u8::try_from(nodes.len().saturating_sub(1) / 2).unwrap_or(0);
    let draft = Manifest::new(uuid, (1, parity), "quorum", nodes);
    let session = open(folder, &draft, (arguments, Limits::LARGE), New::No)?;
    let status = session.volume().status();
    let policy = match status.policy {
        Policy::Local => "local",
        Policy::Quorum => "quorum",
        Policy::Sealed => "sealed",
    };
    let shape = (status.data_shards, status.parity_shards);
    let manifest = Manifest::new(uuid, shape, policy, draft.nodes);
    let told = VolumeStatus::new(folder.name(), &status, policy);
    let name = folder.name().to_owned();
    session.close().map_err(|source| VolumeError::Request { name, source })?;
    Ok((manifest, told))
}
