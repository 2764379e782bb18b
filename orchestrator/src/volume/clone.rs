//! `hypha volume clone`: a new volume, with a key of its own, that begins as a snapshot of another.

use serde_json::json;
use storage_vdev::VolumeKey;
use storage_vdev::engine::{CloneOf, Create, Limits, Policy};

use super::arguments::Which;
use super::control::Order;
use super::host;
use super::manifest::{Manifest, ManifestError};
use super::verbs::{
    JOURNAL_BYTES, LEASE_NS, New, VolumeError, carry_out, folder, open, tell, uuid_of,
};
use crate::clock;

/// Makes the volume `new` from a snapshot of the one that `which` names.
///
/// # Errors
/// There is no such snapshot or there is such a volume already; a node refuses.
pub(super) fn clone(which: &Which, new: &str, snapshot: Option<&str>) -> Result<i32, VolumeError> {
    let base = folder(&which.form, &which.name)?;
    let base_manifest = base.read()?;
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
    carry_out(which, &pin, Limits::SMALL)?;

    let shape = (base_manifest.data_shards, base_manifest.parity_shards);
    let nodes = base_manifest.nodes.clone();
    let mut manifest = Manifest::new(host::random()?, shape, &base_manifest.policy, nodes);
    manifest.bases.push(base_manifest.uuid.clone());
    manifest.bases.extend(base_manifest.bases.iter().cloned());
    let create = Create {
        data_shards: shape.0,
        parity_shards: shape.1,
        size_bytes,
        policy: match base_manifest.policy.as_str() {
            "local" => Policy::Local,
            "sealed" => Policy::Sealed,
            _ => Policy::Quorum,
        },
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
