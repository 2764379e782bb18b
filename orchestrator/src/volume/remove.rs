//! `hypha volume rm`: the key first, for nobody can read the shards without it; then the shards.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::json;
use storage_vdev::VolumeKey;
use storage_vdev::node::{Nodes, ObjectKey, Request, Response};
use storage_vdev::service::Rights;

use super::arguments::Which;
use super::error::VolumeError;
use super::host::{self, Access, HostNodes};
use super::manifest::{Folder, Manifest};
use super::open::{folder, in_use, uuid_of};
use super::session::Exchange;
use super::show::tell;
use crate::state;

/// How many names are asked for, and removed, at once.
const KEYS_MAX: u16 = 512;

/// Destroys a volume.
///
/// # Errors
/// It is in use, or (without `abandon`) a node doesn't answer: nothing was changed then.
pub(super) fn remove(which: &Which, yes: bool, abandon: bool) -> Result<i32, VolumeError> {
    let folder = folder(&which.form, &which.name)?;
    let manifest = folder.read()?;
    let Some(_lock) = folder.lock()? else { return Err(in_use(&folder)) };
    let directory = state::directory(which.form.state.as_deref())?;
    for other in Folder::all(&directory)? {
        if other.read()?.bases.contains(&manifest.uuid) {
            return Err(VolumeError::Argument {
                field: "name",
                reason: format!(
                    "volume {} is a clone that stands on {}: remove it first",
                    other.name(),
                    folder.name()
                ),
            });
        }
    }
    if !yes {
        let question = format!("This destroys the key of volume {}, for good.", folder.name());
        if !confirm(&question)? || answer()? != folder.name() {
            return Err(VolumeError::Argument {
                field: "--yes",
                reason: "not given, and nobody confirmed: nothing was changed".to_owned(),
            });
        }
    }
    let key = VolumeKey::new(folder.key()?.expose());
    let uuid = uuid_of(&manifest)?;
    let access = Access { create: false, rights: Rights::ALL, bases: Vec::new() };
    let (nodes, _) = host::connect(&manifest, (&key, uuid), &access)?;
    let mut exchange = Exchange::new(nodes);
    if !abandon {
        let silent = silent_nodes(&mut exchange, uuid);
        if !silent.is_empty() {
            return Err(VolumeError::Argument {
                field: "--abandon",
                reason: format!(
                    "not given, and these nodes don't answer: {}: nothing was changed",
                    silent.join(", ")
                ),
            });
        }
    }
    let left = destroy(&folder, &manifest, uuid, &mut exchange)?;
    drop(exchange);
    if let Err(error) = super::clone::unpin(which, &manifest) {
        tracing::warn!(%error, "the base keeps the snapshot that the clone began as");
    }
    tell(&which.form, &json!({"removed": folder.name(), "nodes_left": left}), || {
        if left.is_empty() {
            String::new()
        } else {
            format!("the key is destroyed; unreadable shards stay on {}\n", left.join(", "))
        }
    })?;
    Ok(0)
}

fn silent_nodes(exchange: &mut Exchange<HostNodes>, uuid: [u8; 16]) -> Vec<String> {
    let names = names(exchange);
    let asked = (0u8..).zip(names);
    asked
        .filter(|(node, _)| {
            let request = Request::List { volume: uuid, after: None, limit: 1 };
            exchange.ask(*node, request).is_err()
        })
        .map(|(_, name)| name)
        .collect()
}

fn names(exchange: &Exchange<HostNodes>) -> Vec<String> {
    let nodes = exchange.nodes();
    (0u8..).take(nodes.count()).map(|node| nodes.name(node)).collect()
}

/// Destroys the key, then the shards; the names of the nodes that still have some.
fn destroy(
    folder: &Folder,
    manifest: &Manifest,
    uuid: [u8; 16],
    exchange: &mut Exchange<HostNodes>,
) -> Result<Vec<String>, VolumeError> {
    let inside = folder.path().to_owned();
    let outside: Vec<_> = manifest
        .nodes
        .iter()
        .filter_map(|node| match &node.place {
            spec::node::Place::Directory(path) => Some(path.clone()),
            spec::node::Place::Server { .. } => None,
        })
        .filter(|path| !path.starts_with(&inside))
        .collect();
    folder.destroy()?;
    let names = names(exchange);
    let mut left = Vec::new();
    for (node, name) in (0u8..).zip(names) {
        let gone = std::path::Path::new(&name).starts_with(&inside);
        if !gone && !empty_node(exchange, node, uuid) {
            left.push(name);
        }
    }
    if !outside.is_empty() {
        _ = writeln!(io::stderr(), "directories outside the state stay, without the volume");
    }
    Ok(left)
}

/// Removes a volume's objects and its journal from one node; whether all are gone.
fn empty_node(exchange: &mut Exchange<HostNodes>, node: u8, uuid: [u8; 16]) -> bool {
    let mut after: Option<ObjectKey> = None;
    loop {
        let list = Request::List { volume: uuid, after, limit: KEYS_MAX };
        let Ok(Response::Keys(keys)) = exchange.ask(node, list) else { return false };
        let Some(last) = keys.last().copied() else { break };
        after = Some(last);
        // The fence lets the last epoch delete; a higher one needs none.
        let request = Request::Delete { epoch: u64::MAX, keys };
        if exchange.ask(node, request) != Ok(Response::Done) {
            return false;
        }
    }
    let journal = Request::JournalOpen { volume: uuid, epoch: u64::MAX, capacity: 0 };
    matches!(exchange.ask(node, journal), Ok(Response::Journal { .. }))
}

/// Asks on the terminal; no terminal, no consent.
fn confirm(question: &str) -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    write!(io::stderr(), "{question} [type the volume's name] ")?;
    Ok(true)
}

/// Reads a line from the terminal.
fn answer() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}
