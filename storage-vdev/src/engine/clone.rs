//! Clones: a new volume whose blocks are a snapshot's of another one, its *base*, until they are
//! overwritten.
//!
//! A clone has its own uuid, key, log and superblock. It begins with the base's openings and the
//! snapshot's root; the base's segments are read under the base's key, which the clone's superblock
//! holds, sealed under the clone's. It never writes or deletes an object of the base. The base
//! keeps the snapshot as long as it is marked as a clone's ([`super::Command::PinSnapshot`]); that
//! must be done first, and whoever removes the clone takes the mark away.

use std::rc::Rc;

use zeroize::Zeroizing;

use super::find::find_newest;
use super::open::keepers;
use super::options::{CloneOf, Create, OpenError, OpenOptions};
use super::place::match_nodes;
use super::record::ChainEnd;
use super::state::Engine;
use super::superblock::{Base, JournalAnchor, Superblock};
use crate::keys::{Opening, Uuid, VolumeKey, unwrap_key, wrap_key};
use crate::node::NodeIndex;
use crate::segment::{Link, Shape};

impl Superblock {
    /// The key of one of the volumes whose segments this one reads.
    pub(super) fn key_of(&self, uuid: Uuid, own: &VolumeKey) -> Option<VolumeKey> {
        if uuid == self.uuid {
            return Some(own.clone());
        }
        let base = self.bases.iter().find(|base| base.uuid == uuid)?;
        let mut wrapped = Zeroizing::new(base.wrapped_key.clone());
        unwrap_key(own, (self.uuid, uuid), &mut wrapped)
    }
}

/// The first superblock of a clone; it is not stored yet. Also the slots whose nodes are not those
/// of the base.
pub(super) async fn clone_of(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    (create, of): (&Create, &CloneOf),
    (opening, deaf): (Opening, &[NodeIndex]),
) -> Result<(Superblock, Vec<u8>), OpenError> {
    let nodes = keepers(options);
    let found = find_newest(&engine.runtime, &nodes, of.uuid, &of.key).await?;
    let base = found.superblock.ok_or(OpenError::NotFound)?;
    let snapshot = base.snapshots.iter().find(|one| one.name == of.snapshot && one.has_clone);
    let snapshot = snapshot.ok_or_else(|| OpenError::NoSnapshot(of.snapshot.clone()))?;
    let shape = Shape::new(create.data_shards, create.parity_shards);
    if shape != Ok(base.shape) || create.size_bytes < snapshot.size_bytes {
        let text = |k: u8, m: u8, size: u64| format!("{k}+{m} shards, {size} bytes");
        let (k, m) = (base.shape.data_shards(), base.shape.parity_shards());
        return Err(OpenError::Shape {
            found: text(k, m, snapshot.size_bytes),
            wanted: text(create.data_shards, create.parity_shards, create.size_bytes),
        });
    }
    let matched = match_nodes(&base, &options.nodes, deaf, !options.register);
    let mut bases = Vec::new();
    for uuid in base.bases.iter().map(|older| older.uuid).chain([base.uuid]) {
        let key = base.key_of(uuid, &of.key).ok_or(OpenError::WrongKey)?;
        bases.push(Base { uuid, wrapped_key: wrap_key(&options.key, (options.uuid, uuid), &key) });
    }
    let openings = base.openings.iter().filter(|past| past.first_sequence <= snapshot.frontier);
    let superblock = Superblock {
        uuid: options.uuid,
        shape: base.shape,
        version: 0,
        opening,
        size_bytes: create.size_bytes,
        policy: create.policy,
        allow_degraded: create.allow_degraded,
        shared_domains: create.shared_domains,
        closed: true,
        journal_bytes: create.journal_bytes,
        lease_ns: create.lease_ns,
        root: snapshot.root,
        // The clone's own log begins behind all that the snapshot needs.
        frontier: Link { sequence: snapshot.frontier, tag: [0; 16] },
        frontier_write: 0,
        journal: JournalAnchor {
            heads: Vec::new(),
            position: 0,
            chain: ChainEnd { sequence: 1, tag: [0; 16] },
        },
        nodes: matched.nodes,
        slots: matched.slots,
        openings: openings.copied().collect(),
        snapshots: Vec::new(),
        deletes: Vec::new(),
        bases,
    };
    Ok((superblock, matched.fresh))
}
