//! `hypha volume recover`: a volume found again from its shards and its key.

use std::path::Path;

use serde_json::json;
use storage_vdev::dir_nodes::open_node;
use storage_vdev::engine::Limits;
use storage_vdev::service::NodeOptions;

use super::arguments::{OpeningArguments, Recover};
use super::create::{absolute, settle_domains};
use super::error::VolumeError;
use super::host;
use super::manifest::{Folder, Manifest, PolicyName, parse_uuid};
use super::open::{New, folder, open};
use super::show::{VolumeStatus, tell};
use crate::state;
use spec::node::{NodeSpec, Place};

/// The volumes that a node's directory holds promises of; none if it can't be read.
fn volumes_in(path: &Path) -> Vec<[u8; 16]> {
    let options = NodeOptions { capacity_bytes: host::disk_bytes(path), create: None };
    let node = open_node(path, &options);
    let volumes = node.ok().and_then(|mut node| Some(node.service()?.volumes().collect()));
    volumes.unwrap_or_default()
}

/// The volume that the directories among `nodes` hold, if it is one.
///
/// # Errors
/// They hold none or several, or there is no directory among them.
fn find_volume(nodes: &[NodeSpec]) -> Result<[u8; 16], VolumeError> {
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
fn rebuild(
    folder: &Folder,
    (uuid, nodes): ([u8; 16], Vec<NodeSpec>),
    arguments: OpeningArguments,
) -> Result<(Manifest, VolumeStatus), VolumeError> {
    // The shape is in the superblock; until that is read, as many acceptors as there can be.
    let parity = u8::try_from(nodes.len().saturating_sub(1) / 2).unwrap_or(0);
    let draft = Manifest::new(uuid, (1, parity), PolicyName::default(), nodes);
    let session = open(folder, &draft, (arguments, Limits::LARGE), New::No)?;
    let status = session.volume().status();
    let shape = (status.data_shards, status.parity_shards);
    let manifest = Manifest::new(uuid, shape, status.policy.into(), draft.nodes);
    let told = VolumeStatus::new(folder.name(), &status);
    let name = folder.name().to_owned();
    session.close().map_err(|source| VolumeError::Request { name, source })?;
    Ok((manifest, told))
}

/// Finds a volume again.
///
/// # Errors
/// It can't be opened: nothing was kept then.
pub(super) fn recover(recover: &Recover) -> Result<i32, VolumeError> {
    let folder = folder(&recover.form, &recover.name)?;
    let key = state::read_key_at(&recover.key)?;
    let uuid = match &recover.uuid {
        Some(text) => parse_uuid(text).ok_or_else(|| VolumeError::Argument {
            field: "--uuid",
            reason: format!("{text:?}: expected 32 hexadecimal digits"),
        })?,
        None => find_volume(&recover.nodes)?,
    };
    let mut nodes = recover.nodes.clone();
    absolute(&mut nodes)?;
    settle_domains(&mut nodes, false)?;
    folder.create(Some(&key))?;
    let found = rebuild(&folder, (uuid, nodes), recover.opening);
    match found {
        Ok((manifest, status)) => {
            folder.write(&manifest)?;
            tell(&recover.form, &json!(status), || status.to_text())?;
            Ok(0)
        }
        Err(error) => {
            // The key came from elsewhere and is still there.
            folder.destroy()?;
            Err(error)
        }
    }
}
