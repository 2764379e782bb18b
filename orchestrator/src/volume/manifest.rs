//! What a host knows of a volume: a folder of the state with its manifest, key and lock.
//!
//! ```text
//! $HYPHA_STATE/volumes/NAME/volume.json   the manifest: shape and nodes
//!                          /key           volume key, 32 bytes, 0600
//!                          /holder/key    random: who this host is to the register
//!                          /lock          held while a process has the volume open
//!                          /control       socket of that process
//! ```
//!
//! A manifest has no secret. With the key and the nodes it can be made again
//! (`hypha volume recover`).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use spec::secret::Secret32;
use storage_vdev::engine::Policy;

use crate::state::{self, StateError};
use spec::node::NodeSpec;

/// The version of the manifest.
const VERSION: u32 = 1;
/// The most bytes of a manifest.
const BYTES_MAX: u64 = 1 << 20;

/// A volume as `volume.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this format.
    pub version: u32,
    /// The volume's uuid, 32 hexadecimal digits.
    pub uuid: String,
    /// How many shards hold data.
    pub data_shards: u8,
    /// How many shards hold parity.
    pub parity_shards: u8,
    /// When a FLUSH is answered.
    pub policy: PolicyName,
    /// Nodes by index: one per shard, then spares.
    pub nodes: Vec<NodeSpec>,
    /// A directory of this host with a journal head, on a disk of its own if possible; without
    /// one all heads are on nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<PathBuf>,
    /// The volumes whose segments this one may still need, because it began as a clone: their
    /// uuids. Their keys are in `base-UUID/key`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<String>,
    /// The snapshot of the first of `bases` that this one began as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_snapshot: Option<String>,
    /// Whether other volumes use the same directories: a base of clones, and its clones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// When a FLUSH is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// When this host's journal has it: a lost host loses what came after the last segment.
    Local,
    /// When m + 1 journals in different failure domains have it: any m losses lose nothing.
    #[default]
    Quorum,
    /// When all k + m shards have it.
    Sealed,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::Local => Self::Local,
            PolicyName::Quorum => Self::Quorum,
            PolicyName::Sealed => Self::Sealed,
        }
    }
}

impl From<Policy> for PolicyName {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Local => Self::Local,
            Policy::Quorum => Self::Quorum,
            Policy::Sealed => Self::Sealed,
        }
    }
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::Quorum => "quorum",
            Self::Sealed => "sealed",
        })
    }
}

/// Why a volume's folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is no such volume.
    #[error("there is no volume {name:?} in {directory}; `hypha volume ls` lists them")]
    NotFound {
        /// Its name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A volume of that name exists.
    #[error("the volume {name:?} exists already, in {directory}")]
    Exists {
        /// Its name.
        name: String,
        /// Its folder.
        directory: PathBuf,
    },
    /// The file is not a manifest.
    #[error("{path}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key, lock or file.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The folder of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    name: String,
    path: PathBuf,
}

impl Folder {
    /// The folder of the volume `name` in the state `directory`, which need not exist.
    #[must_use]
    pub fn new(directory: &Path, name: &str) -> Self {
        Self { name: name.to_owned(), path: directory.join("volumes").join(name) }
    }

    /// The folders of all volumes, by name.
    ///
    /// # Errors
    /// The state can't be read.
    pub fn all(directory: &Path) -> Result<Vec<Self>, ManifestError> {
        let volumes = directory.join("volumes");
        let entries = match fs::read_dir(&volumes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(state::at(&volumes)(error).into()),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(state::at(&volumes))?;
            if entry.path().join("volume.json").is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names.iter().map(|name| Self::new(directory, name)).collect())
    }

    /// The volume's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the process that has the volume open listens.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.path.join("control")
    }

    /// Where the volume's own shard directories are, if nobody names others.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder with a fresh key, or with `key`. The manifest comes last
    /// ([`Folder::write`]): without one there is no volume.
    ///
    /// # Errors
    /// There is one already, or it can't be made.
    pub fn create(&self, key: Option<&Secret32>) -> Result<Secret32, ManifestError> {
        if self.path.join("volume.json").exists() {
            let (name, directory) = (self.name.clone(), self.path.clone());
            return Err(ManifestError::Exists { name, directory });
        }
        state::create_directory(&self.path)?;
        if let Some(key) = key {
            state::write_whole(&self.path.join("key"), key.expose())?;
        }
        Ok(state::key(&self.path)?)
    }

    /// Reads the manifest.
    ///
    /// # Errors
    /// There is none, or it can't be read.
    pub fn read(&self) -> Result<Manifest, ManifestError> {
        let path = self.path.join("volume.json");
        let bytes = match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut io::Read::take(file, BYTES_MAX), &mut bytes)
                    .map_err(state::at(&path))?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (name, directory) = (self.name.clone(), self.path.clone());
                return Err(ManifestError::NotFound { name, directory });
            }
            Err(error) => return Err(state::at(&path)(error).into()),
        };
        let damaged = |reason: String| ManifestError::Damaged { path: path.clone(), reason };
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if manifest.version != VERSION {
            let found = manifest.version;
            return Err(damaged(format!("version {found}, this hypha reads version {VERSION}")));
        }
        Ok(manifest)
    }

    /// Writes the manifest, durably.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let mut text = serde_json::to_string_pretty(manifest).map_err(|error| {
            ManifestError::Damaged { path: self.path.clone(), reason: error.to_string() }
        })?;
        text.push('\n');
        Ok(state::write_whole(&self.path.join("volume.json"), text.as_bytes())?)
    }

    /// The volume key.
    ///
    /// # Errors
    /// It is not there, or others may read it.
    pub fn key(&self) -> Result<Secret32, ManifestError> {
        Ok(state::read_key_at(&self.path.join("key"))?)
    }

    /// Keeps the key of a volume that this one stands on.
    ///
    /// # Errors
    /// It can't be written.
    pub fn keep_base(&self, uuid: &str, key: &Secret32) -> Result<(), ManifestError> {
        let directory = self.path.join(format!("base-{uuid}"));
        state::create_directory(&directory)?;
        Ok(state::write_whole(&directory.join("key"), key.expose())?)
    }

    /// The key of a volume that this one stands on.
    ///
    /// # Errors
    /// It can't be read.
    pub fn base_key(&self, uuid: &str) -> Result<Secret32, ManifestError> {
        Ok(state::read_key_at(&self.path.join(format!("base-{uuid}")).join("key"))?)
    }

    /// Who this host is to the volume's register: made at first use.
    ///
    /// # Errors
    /// It can't be read or made.
    pub fn holder(&self) -> Result<[u8; 16], ManifestError> {
        let key = state::key(&self.path.join("holder"))?;
        Ok(key.expose().first_chunk().copied().unwrap_or_default())
    }

    /// The lock that a process holds while it has the volume open; `None` if another one does.
    ///
    /// # Errors
    /// The lock file can't be used.
    pub fn lock(&self) -> Result<Option<File>, ManifestError> {
        let Some(mut lock) = state::lock(&self.path.join("lock"))? else { return Ok(None) };
        let note = format!("process {}\n", std::process::id());
        let noted = lock.set_len(0).and_then(|()| io::Write::write_all(&mut lock, note.as_bytes()));
        noted.map_err(state::at(&self.path))?;
        Ok(Some(lock))
    }

    /// Who holds the lock, as far as it said so.
    #[must_use]
    pub fn user(&self) -> String {
        let note = fs::read_to_string(self.path.join("lock")).unwrap_or_default();
        let note: String = note.trim().chars().take(60).collect();
        if note.is_empty() { "another process".to_owned() } else { note }
    }

    /// Destroys the key, durably, and then the folder: nobody can read the shards after that.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn destroy(&self) -> Result<(), ManifestError> {
        let key = self.path.join("key");
        let overwritten = fs::OpenOptions::new().write(true).open(&key).and_then(|mut file| {
            io::Write::write_all(&mut file, &[0; 32])?;
            file.sync_all()
        });
        match overwritten {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(state::at(&key)(error).into()),
        }
        fs::remove_dir_all(&self.path).map_err(state::at(&self.path))?;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(state::at(parent))?;
        Ok(())
    }
}

impl Manifest {
    /// A manifest of the present version.
    #[must_use]
    pub fn new(uuid: [u8; 16], shape: (u8, u8), policy: PolicyName, nodes: Vec<NodeSpec>) -> Self {
        Self {
            version: VERSION,
            uuid: uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
            data_shards: shape.0,
            parity_shards: shape.1,
            policy,
            nodes,
            journal: None,
            bases: Vec::new(),
            base_snapshot: None,
            shared: false,
        }
    }

    /// Whether a node is a shard server.
    #[must_use]
    pub fn has_servers(&self) -> bool {
        self.nodes.iter().any(|node| !node.place.is_directory())
    }

    /// Whether a node is a directory of this host.
    #[must_use]
    pub fn has_directories(&self) -> bool {
        self.nodes.iter().any(|node| node.place.is_directory())
    }

    /// The uuid's bytes; `None` if the text is none.
    #[must_use]
    pub fn uuid_bytes(&self) -> Option<[u8; 16]> {
        parse_uuid(&self.uuid)
    }
}

/// 32 hexadecimal digits, with or without the usual dashes.
#[must_use]
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut uuid = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    digits.iter().all(u8::is_ascii_hexdigit).then_some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let nodes = (0..3).map(|i| format!("/srv/{i}").parse().expect("a directory")).collect();
        Manifest::new([0xab; 16], (2, 1), PolicyName::Quorum, nodes)
    }

    #[test]
    fn a_manifest_survives_a_round_trip() {
        let directory = tempfile::tempdir().expect("a directory");
        let folder = Folder::new(directory.path(), "db");
        let key = folder.create(None).expect("made");
        folder.write(&manifest()).expect("written");
        assert_eq!(folder.read().expect("read"), manifest());
        assert_eq!(folder.key().expect("read"), key);
        assert_eq!(folder.read().expect("read").uuid_bytes(), Some([0xab; 16]));
        assert_eq!(folder.holder().expect("made"), folder.holder().expect("read"));
        assert_eq!(Folder::all(directory.path()).expect("listed"), std::slice::from_ref(&folder));
        assert!(matches!(folder.create(None), Err(ManifestError::Exists { .. })));
    }

    #[test]
    fn another_version_or_field_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let folder = Folder::new(directory.path(), "db");
        assert!(matches!(folder.read(), Err(ManifestError::NotFound { .. })));
        folder.create(None).expect("made");
        folder.write(&Manifest { version: 9, ..manifest() }).expect("written");
        let refused = folder.read().expect_err("version 9").to_string();
        assert!(refused.contains("version 9"), "{refused}");
        fs::write(folder.path().join("volume.json"), "{\"version\":1,\"x\":2}").expect("written");
        assert!(matches!(folder.read(), Err(ManifestError::Damaged { .. })));
    }

    #[test]
    fn a_destroyed_volume_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let folder = Folder::new(directory.path(), "db");
        folder.create(None).expect("made");
        folder.write(&manifest()).expect("written");
        folder.destroy().expect("destroyed");
        assert!(!folder.path().exists());
        assert_eq!(Folder::all(directory.path()).expect("listed"), []);
    }

    #[test]
    fn a_volume_has_one_user_per_host() {
        let directory = tempfile::tempdir().expect("a directory");
        let folder = Folder::new(directory.path(), "db");
        folder.create(None).expect("made");
        let held = folder.lock().expect("usable").expect("free");
        assert!(folder.lock().expect("usable").is_none());
        drop(held);
        assert!(folder.lock().expect("usable").is_some());
    }
}
