//! Who may open flows to this host: a file of rules, which a running node reads anew when told.

use std::fs;
use std::io;
use std::path::Path;

use mesh_node::acl::AclEntry;

use super::MeshError;
use crate::state;

/// The file's name in the node's folder.
pub(super) const FILE: &str = "acl.json";
/// The most bytes of the file.
const BYTES_MAX: u64 = 1 << 20;

/// Reads the rules of a node's folder; none if there is no file.
pub(super) fn load(folder: &Path) -> Result<Vec<AclEntry>, MeshError> {
    let path = folder.join(FILE);
    let bad = |reason: String| MeshError::Acl { path: path.clone(), reason };
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(bad(error.to_string())),
        Ok(facts) if facts.len() > BYTES_MAX => {
            return Err(bad(format!("{} bytes; at most {BYTES_MAX} are read", facts.len())));
        }
        Ok(_) => {}
    }
    let text = fs::read_to_string(&path).map_err(|error| bad(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| bad(format!("no list of rules: {error}")))
}

/// Writes the rules.
pub(super) fn save(folder: &Path, entries: &[AclEntry]) -> Result<(), MeshError> {
    let mut text = serde_json::to_string_pretty(entries).map_err(io::Error::from)?;
    text.push('\n');
    Ok(state::write_whole(&folder.join(FILE), text.as_bytes())?)
}
