//! `hypha volume clone`: a new volume, with a key of its own, that begins as a snapshot of another.

use serde_json::json;
use storage_vdev::VolumeKey;
use storage_vdev::engine::{CloneOf, Create, Limits};

use super::arguments::Which;
use super::control::Order;
use super::create::JOURNAL_BYTES;
use super::error::VolumeError;
use super::host::{self, LEASE_NS};
use super::manifest::{Folder, Manifest, ManifestError};
use super::open::{New, folder, open, uuid_of};
use super::orders::carry_out;
use super::show::tell;
use crate::{clock, state};

/// Makes the volume `new` from a snapshot of the one that `which` names.
///
/// # Errors
/// There is no such snapshot or there is such a volume already; a node refuses.
pub(super) fn clone(which: &Which, new: &str, snapshot: Option<&str>) -> Result<i32, VolumeError> {
    let base = folder(&which.form, &which.name)?;
    base.read()?;
    let target = folder(&which.form, new)?;
    if target.read().is_ok() {
        let (name, directory) = (new.to_owned(), target.path().to_owned());
        return Err(ManifestError::Exists { name, directory }.into());
    }
    let snapshot = match snapshot {
        Some(name) => name.to_owned(),
        None => {
            let unix_time = clock::unix_time_ns() / 1_000_000_000;
            let name = new.to_owned();
            carry_out(which, &Order::Snapshot { name, unix_time }, Limits::SMALL)?;
            new.to_owned()
        }
    };
    let listed = carry_out(which, &Order::ListSnapshots, Limits::SMALL)?.snapshots;
    let found = listed.unwrap_or_default().into_iter().find(|line| line.name == snapshot);
    let size_bytes = found.map(|line| line.size_bytes).ok_or_else(|| VolumeError::Argument {
        field: "--snapshot",
        reason: format!("{snapshot:?}: volume {} has no such snapshot", which.name),
    })?;
    let pin = Order::PinSnapshot { name: snapshot.clone(), has_clone: true };
    let base_manifest = share(&base)?;
    carry_out(which, &pin, Limits::SMALL)?;

    let shape = (base_manifest.data_shards, base_manifest.parity_shards);
    let nodes = base_manifest.nodes.clone();
    let mut manifest = Manifest::new(host::random()?, shape, base_manifest.policy, nodes);
    manifest.shared = base_manifest.shared;
    manifest.base_snapshot = Some(snapshot.clone());
    manifest.bases.push(base_manifest.uuid.clone());
    manifest.bases.extend(base_manifest.bases.iter().cloned());
    let create = Create {
        data_shards: shape.0,
        parity_shards: shape.1,
        size_bytes,
        policy: base_manifest.policy.into(),
        allow_degraded: false,
        shared_domains: true,
        journal_bytes: JOURNAL_BYTES,
        lease_ns: LEASE_NS,
    };
    let of = CloneOf {
        uuid: uuid_of(&base_manifest)?,
        key: VolumeKey::new(base.key()?.expose()),
        snapshot: snapshot.clone(),
    };
    target.create(None)?;
    target.keep_base(&base_manifest.uuid, &base.key()?)?;
    for uuid in &base_manifest.bases {
        target.keep_base(uuid, &base.base_key(uuid)?)?;
    }
    let made = open(&target, &manifest, (which.opening, Limits::LARGE), New::Clone(create, of));
    let closed = made.and_then(|session| {
        let name = new.to_owned();
        session.close().map_err(|source| VolumeError::Request { name, source })
    });
    if let Err(error) = closed {
        // Nothing was written under this key that anybody needs.
        target.destroy()?;
        return Err(error);
    }
    target.write(&manifest)?;
    tell(&which.form, &json!({"cloned": new, "from": which.name, "snapshot": snapshot}), || {
        format!("volume {new} begins as {} was at {snapshot}\n", which.name)
    })?;
    Ok(0)
}

/// Lets other volumes use the directories of `base`, too. A process that has it open for itself has
/// to end once for that.
fn share(base: &Folder) -> Result<Manifest, VolumeError> {
    let mut manifest = base.read()?;
    if manifest.shared || !manifest.has_directories() {
        return Ok(manifest);
    }
    let Some(_lock) = base.lock()? else {
        return Err(VolumeError::Argument {
            field: "name",
            reason: format!(
                "volume {0} has its directories for itself while {1} has it open: stop that once; \
                 when {0} has a clone, it shares them from the start",
                base.name(),
                base.user()
            ),
        });
    };
    manifest.shared = true;
    base.write(&manifest)?;
    Ok(manifest)
}

/// Takes the mark off the snapshot that a clone began as, when the clone is gone; off its
/// directories, too, if no other volume of this state uses them now.
pub(super) fn unpin(which: &Which, gone: &Manifest) -> Result<(), VolumeError> {
    let (Some(uuid), Some(snapshot)) = (gone.bases.first(), &gone.base_snapshot) else {
        return Ok(());
    };
    let directory = state::directory(which.form.state.as_deref())?;
    let mut base = None;
    let mut others = Vec::new();
    for folder in Folder::all(&directory)? {
        let manifest = folder.read()?;
        if manifest.uuid == *uuid {
            base = Some((folder, manifest));
        } else if manifest.bases.contains(uuid) {
            others.push(manifest);
        }
    }
    let Some((base, mut manifest)) = base else {
        tracing::warn!(
            snapshot,
            base = uuid,
            "the base is not in this state: it keeps the snapshot"
        );
        return Ok(());
    };
    if !others.iter().any(|other| other.base_snapshot.as_ref() == Some(snapshot)) {
        let name = base.name().to_owned();
        let which = Which { name, ..which.clone() };
        let order = Order::PinSnapshot { name: snapshot.clone(), has_clone: false };
        carry_out(&which, &order, Limits::SMALL)?;
    }
    if others.is_empty()
        && manifest.shared
        && let Some(_lock) = base.lock()?
    {
        manifest.shared = false;
        base.write(&manifest)?;
    }
    Ok(())
}
