//! What `hypha volume` does, verb by verb.

use serde_json::json;

use super::arguments::{Form, Size, VolumeVerb};
use super::control::Order;
use super::error::VolumeError;
use super::manifest::Folder;
use super::orders::{simple, snapshots, status, work};
use super::show::tell;
use crate::{clock, state};

/// Does what the command line says; the exit code if it succeeds.
///
/// # Errors
/// [`VolumeError`].
pub fn run(verb: VolumeVerb) -> Result<i32, VolumeError> {
    match verb {
        VolumeVerb::Create(create) => super::create::create(&create),
        VolumeVerb::Ls { form } => list(&form),
        VolumeVerb::Status { which, metrics } => status(&which, metrics),
        VolumeVerb::Snapshot { which, snapshot: None, .. } => snapshots(&which),
        VolumeVerb::Snapshot { which, snapshot: Some(name), delete } => {
            let unix_time = clock::unix_time_ns() / 1_000_000_000;
            let order = if delete {
                Order::DeleteSnapshot { name }
            } else {
                Order::Snapshot { name, unix_time }
            };
            simple(&which, &order)
        }
        VolumeVerb::Clone { which, new, snapshot } => {
            super::clone::clone(&which, &new, snapshot.as_deref())
        }
        VolumeVerb::Rollback { which, snapshot: name } => simple(&which, &Order::Rollback { name }),
        VolumeVerb::Grow { which, size } => {
            let Size(size_bytes) = size;
            simple(&which, &Order::Grow { size_bytes })
        }
        VolumeVerb::Repair { which, limit } => work(&which, &Order::Repair, limit),
        VolumeVerb::Scrub { which } => work(&which, &Order::Scrub, None),
        VolumeVerb::Recover(recover) => super::recovery::recover(&recover),
        VolumeVerb::Serve(serve) => super::serve::serve(&serve),
        VolumeVerb::Delegate { which, holder, days } => {
            super::delegate::delegate(&which, &holder, days)
        }
        VolumeVerb::Rm { which, yes, abandon } => super::remove::remove(&which, yes, abandon),
    }
}

fn list(form: &Form) -> Result<i32, VolumeError> {
    let directory = state::directory(form.state.as_deref())?;
    let mut rows = Vec::new();
    for folder in Folder::all(&directory)? {
        let manifest = folder.read()?;
        let in_use = folder.lock()?.is_none();
        rows.push((folder.name().to_owned(), manifest, in_use));
    }
    let objects: Vec<_> = rows
        .iter()
        .map(|(name, manifest, in_use)| {
            json!({
                "name": name,
                "uuid": manifest.uuid,
                "code": format!("{}+{}", manifest.data_shards, manifest.parity_shards),
                "policy": manifest.policy,
                "nodes": manifest.nodes.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "in_use": in_use,
            })
        })
        .collect();
    tell(form, &json!(objects), || {
        let width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, manifest, in_use) in &rows {
            let use_ = if *in_use { "in use" } else { "idle" };
            text += &format!(
                "{name:width$}  {}+{}  {:6}  {use_:6}  {} nodes  {}\n",
                manifest.data_shards,
                manifest.parity_shards,
                manifest.policy,
                manifest.nodes.len(),
                manifest.uuid
            );
        }
        text
    })?;
    Ok(0)
}
