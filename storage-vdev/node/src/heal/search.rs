//! Which superblock to go by.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use storage_vdev::engine::Outline;
use storage_vdev::node::{NodeIndex, ObjectKey};

use super::manifest::Manifest;

/// How many of the newest superblocks are read: the newest may have reached too few nodes.
const NEWEST_MAX: usize = 4;

/// The superblocks that nodes list, and what they say.
#[derive(Debug, Default)]
pub(super) struct Search {
    copies: BTreeMap<ObjectKey, Vec<(NodeIndex, Bytes)>>,
}

/// A superblock that enough nodes show alike.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) outline: Outline,
    pub(super) bytes: Bytes,
    /// Who has it, intact.
    pub(super) holders: Vec<NodeIndex>,
}

/// What to read: the newest superblocks by epoch and version, and who lists them.
pub(super) fn newest(
    listed: &BTreeMap<ObjectKey, BTreeSet<NodeIndex>>,
) -> Vec<(ObjectKey, NodeIndex)> {
    let newest = listed.iter().rev().take(NEWEST_MAX);
    newest.flat_map(|(key, nodes)| nodes.iter().map(|node| (*key, *node))).collect()
}

impl Search {
    /// A node has shown its copy.
    pub(super) fn note(&mut self, key: ObjectKey, node: NodeIndex, bytes: Bytes) {
        self.copies.entry(key).or_default().push((node, bytes));
    }

    /// The newest that is not older than the manifest's and that so many nodes show alike that one
    /// of them is honest if no more than m lie (fewer if the code is too narrow for that).
    pub(super) fn choose(&self, manifest: &Manifest) -> Option<Found> {
        let shape = manifest.shape;
        let enough = usize::from(shape.data_shards().min(shape.parity_shards() + 1));
        self.copies.iter().rev().find_map(|(key, copies)| {
            let found = copies.iter().find_map(|(_, bytes)| agreed(copies, bytes))?;
            let outline = &found.outline;
            let fits = outline.uuid == manifest.volume
                && outline.shape == shape
                && outline.key() == *key
                && (outline.epoch, outline.version) >= manifest.superblock
                && found.holders.len() >= enough;
            fits.then_some(found)
        })
    }
}

/// `bytes` and who shows the same, if they are a superblock and no other version of it has as many.
fn agreed(copies: &[(NodeIndex, Bytes)], bytes: &Bytes) -> Option<Found> {
    let votes = |bytes: &Bytes| copies.iter().filter(|(_, other)| other == bytes).count();
    let outline = Outline::parse(bytes)?;
    let rival = copies.iter().any(|(_, other)| {
        other != bytes && votes(other) >= votes(bytes) && Outline::parse(other).is_some()
    });
    let holders = copies.iter().filter(|(_, other)| other == bytes).map(|(node, _)| *node);
    (!rival).then(|| Found { outline, bytes: bytes.clone(), holders: holders.collect() })
}
