//! What the daemon keeps of a volume, to heal it without being asked.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use storage_vdev::Uuid;
use storage_vdev::node::{NODES_MAX, NodeIndex};
use storage_vdev::segment::Shape;

/// The version of the file.
const VERSION: u32 = 1;

/// The most bytes of a manifest's file.
const FILE_BYTES_MAX: usize = 1 << 20;

/// The most bytes of a delegation, as the shard protocol stores it.
const DELEGATION_BYTES_MAX: usize = 4096;

/// A node that keeps the volume's objects, or could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestNode {
    /// What tells it from all others.
    pub id: Uuid,
    /// Where it is, for whoever connects to it.
    pub address: String,
}

/// A volume that the daemon heals. No secret is in it: the delegation is good only with the
/// daemon's own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The volume.
    pub volume: Uuid,
    /// Its code.
    pub shape: Shape,
    /// Its nodes; those of the superblock are told apart by their ids.
    pub nodes: Vec<ManifestNode>,
    /// Slot → place in `nodes`, as long as no superblock says otherwise.
    pub slots: Vec<NodeIndex>,
    /// Nodes that may take a shard whose own node can't, in the order in which they are asked.
    pub spares: Vec<NodeIndex>,
    /// What the volume's owner signed: that this daemon may heal it.
    pub delegation: Vec<u8>,
    /// Epoch and version of the newest superblock that was seen; an older one is not believed.
    pub superblock: (u64, u64),
}

/// Why a manifest can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file can't be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It isn't JSON of the form, or names what it doesn't list.
    #[error("not a heal manifest: {0}")]
    Form(String),
    /// Another version.
    #[error("the manifest has version {found}, this program reads {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    version: u32,
    volume: String,
    data_shards: u8,
    parity_shards: u8,
    nodes: Vec<NodeForm>,
    slots: Vec<NodeIndex>,
    spares: Vec<NodeIndex>,
    delegation: String,
    superblock_epoch: u64,
    superblock_version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeForm {
    id: String,
    address: String,
}

#[derive(Deserialize)]
struct VersionForm {
    version: u32,
}

impl Manifest {
    /// Reads a manifest's text.
    ///
    /// # Errors
    /// It is not one, or of another version.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        let form_error = |error: serde_json::Error| ManifestError::Form(error.to_string());
        if text.len() > FILE_BYTES_MAX {
            return Err(ManifestError::Form("more than 1 MiB".to_owned()));
        }
        let VersionForm { version } = serde_json::from_slice(text).map_err(form_error)?;
        if version != VERSION {
            return Err(ManifestError::Version { found: version });
        }
        let form: FileForm = serde_json::from_slice(text).map_err(form_error)?;
        let id = |text: &str| {
            let id = from_hex(text).and_then(|bytes| Uuid::try_from(bytes).ok());
            id.ok_or_else(|| ManifestError::Form(format!("{text:?} is not 16 bytes in hex")))
        };
        let shape = Shape::new(form.data_shards, form.parity_shards)
            .map_err(|error| ManifestError::Form(error.to_string()))?;
        let nodes = form
            .nodes
            .into_iter()
            .map(|node| Ok(ManifestNode { id: id(&node.id)?, address: node.address }));
        let delegation = from_hex(&form.delegation)
            .ok_or_else(|| ManifestError::Form("the delegation is not hex".to_owned()))?;
        let manifest = Self {
            volume: id(&form.volume)?,
            shape,
            nodes: nodes.collect::<Result<_, ManifestError>>()?,
            slots: form.slots,
            spares: form.spares,
            delegation,
            superblock: (form.superblock_epoch, form.superblock_version),
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks that it names only what it lists.
    ///
    /// # Errors
    /// It doesn't.
    pub fn check(&self) -> Result<(), ManifestError> {
        let form = |what: &str| Err(ManifestError::Form(what.to_owned()));
        let is_node = |node: &NodeIndex| usize::from(*node) < self.nodes.len();
        if self.nodes.len() > NODES_MAX {
            return form("too many nodes");
        }
        if self.slots.len() != usize::from(self.shape.shards()) {
            return form("it takes one slot for each shard");
        }
        if !self.slots.iter().chain(&self.spares).all(is_node) {
            return form("a slot or a spare is on a node that is not listed");
        }
        if self.delegation.len() > DELEGATION_BYTES_MAX {
            return form("the delegation is too long");
        }
        Ok(())
    }

    /// Its text.
    ///
    /// # Errors
    /// None that is known: the form has nothing that JSON can't say.
    pub fn to_text(&self) -> Result<String, ManifestError> {
        let nodes = self.nodes.iter();
        let form = FileForm {
            version: VERSION,
            volume: to_hex(&self.volume),
            data_shards: self.shape.data_shards(),
            parity_shards: self.shape.parity_shards(),
            nodes: nodes
                .map(|node| NodeForm { id: to_hex(&node.id), address: node.address.clone() })
                .collect(),
            slots: self.slots.clone(),
            spares: self.spares.clone(),
            delegation: to_hex(&self.delegation),
            superblock_epoch: self.superblock.0,
            superblock_version: self.superblock.1,
        };
        serde_json::to_string_pretty(&form).map_err(|error| ManifestError::Form(error.to_string()))
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It can't be read, or is no manifest.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        Self::parse(&std::fs::read(path)?)
    }

    /// Writes the file at `path`: after a crash there is the old one or the new one.
    ///
    /// # Errors
    /// It can't be written; the old one is still there then.
    pub fn save(&self, path: &Path) -> Result<(), ManifestError> {
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(self.to_text()?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(())
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
    pairs.iter().map(byte).collect()
}
