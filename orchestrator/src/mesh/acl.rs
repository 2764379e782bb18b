//! Who may open flows to this host: a file of rules, which a running node reads anew when told.

use std::fs;
use std::io;
use std::path::Path;

use mesh_node::acl::AclEntry;

use serde::de::DeserializeOwned;

use super::MeshError;
use crate::state;

/// The file's name in the node's folder.
pub(super) const FILE: &str = "acl.json";
/// The most bytes of the file.
const BYTES_MAX: u64 = 1 << 20;

/// Reads the rules of a node's folder; none if there is no file.
pub(super) fn load(folder: &Path) -> Result<Vec<AclEntry>, MeshError> {
    read_list(&folder.join(FILE), BYTES_MAX)
}

/// Reads a list from a file of JSON; an empty one if there is no file.
pub(super) fn read_list<T: DeserializeOwned>(
    path: &Path,
    bytes_max: u64,
) -> Result<Vec<T>, MeshError> {
    let bad = |reason: String| MeshError::Acl { path: path.to_owned(), reason };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(bad(error.to_string())),
        Ok(facts) if facts.len() > bytes_max => {
            return Err(bad(format!("{} bytes; at most {bytes_max} are read", facts.len())));
        }
        Ok(_) => {}
    }
    let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    serde_json::from_str(&text)
        .map_err(|error| bad(format!("not the list that belongs here: {error}")))
}

/// Writes the rules.
pub(super) fn save(folder: &Path, entries: &[AclEntry]) -> Result<(), MeshError> {
    let mut text = serde_json::to_string_pretty(entries).map_err(io::Error::from)?;
    text.push('\n');
    Ok(state::write_whole(&folder.join(FILE), text.as_bytes())?)
}
