//! `hypha volume delegate`: what a storage daemon needs to mend a volume, and nothing more.

use spec::node::Place;
use spec::secret::Public32;
use storage_node::heal;
use storage_vdev::VolumeKey;
use storage_vdev::engine::Limits;
use storage_vdev::segment::Shape;
use storage_vdev::service::Rights;
use storage_vdev::wire::{NodePublicKey, VolumeSigner};

use super::arguments::Which;
use super::error::VolumeError;
use super::host;
use super::open::{Reached, reach, uuid_of};
use super::show::print;
use crate::clock;

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Prints the manifest with which the daemon that has the key `holder` may heal the volume.
///
/// # Errors
/// The volume can't be opened, has nodes that only this host can reach, or the key is none.
pub(super) fn delegate(which: &Which, holder: &str, days: u32) -> Result<i32, VolumeError> {
    let argument = |field, reason| VolumeError::Argument { field, reason };
    let holder = Public32::from_hex(holder).ok_or_else(|| {
        argument("--holder", format!("{holder:?}: expected 64 hexadecimal digits"))
    })?;
    let (folder, manifest, reached) = reach(which, Limits::SMALL)?;
    let local = manifest.nodes.iter().find(|node| matches!(node.place, Place::Directory(_)));
    if let Some(node) = local {
        return Err(argument(
            "name",
            format!(
                "the node {node} is a directory of this host: expected shard servers only \
             (`hypha volume repair` mends directories)"
            ),
        ));
    }
    if let Reached::Here(session, _lock) = reached {
        let name = which.name.clone();
        session.close().map_err(|source| VolumeError::Request { name, source })?;
    }
    let uuid = uuid_of(&manifest)?;
    let shape = Shape::new(manifest.data_shards, manifest.parity_shards)
        .map_err(|error| argument("volume.json", error.to_string()))?;
    let signer = VolumeSigner::derive(&VolumeKey::new(folder.key()?.expose()), uuid);
    let rights = Rights { heal: true, ..Rights::default() };
    let until = clock::unix_time_ns() / 1_000_000_000 + u64::from(days) * DAY_SECONDS;
    let delegation = signer.delegate(rights, NodePublicKey(holder.0), until);
    let nodes = manifest.nodes.iter().filter_map(|node| match &node.place {
        Place::Server { key, store, .. } => Some(heal::ManifestNode {
            id: host::server_id(key, store),
            address: node.to_argument(),
        }),
        Place::Directory(_) => None,
    });
    let shards = manifest.data_shards + manifest.parity_shards;
    let manifest = heal::Manifest {
        volume: uuid,
        shape,
        nodes: nodes.collect(),
        slots: (0..shards).collect(),
        spares: (shards..u8::try_from(manifest.nodes.len()).unwrap_or(u8::MAX)).collect(),
        delegation: delegation.to_bytes().to_vec(),
        superblock: (0, 0),
    };
    let text = manifest.to_text().map_err(|error| VolumeError::Serve(error.to_string()))?;
    print(&text)?;
    Ok(0)
}
