//! The state directory: who is using what, keys, volumes. `docs/keys.md` lists the keys.
//!
//! ```text
//! $HYPHA_STATE/VERSION
//! $HYPHA_STATE/deployments/NAME/lock                   held while `hypha run` runs it
//!                              /workloads/WL/key        X25519 private key, 32 bytes
//!                              /networks/NET/key        the same for the host's mesh member
//!                              /volumes/VOL/key         volume key, 32 bytes
//!                              /volumes/VOL/shard-N/    one directory per shard
//!                              /volumes/VOL/uuid        with shard servers: 16 of 32 random bytes
//!                              /volumes/VOL/holder      and who this host is to the register
//! $HYPHA_STATE/volumes/NAME/                           see `volume::manifest`
//! $HYPHA_STATE/storage/                                see `storage`
//! ```
//!
//! Directories are 0700, files 0600. A file appears whole or not at all: written beside its place,
//! fsynced, renamed, and the directory fsynced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{FlockOperation, flock};
use spec::secret::Secret32;
use zeroize::Zeroizing;

use crate::exit_code;

/// The version of the layout.
const LAYOUT_VERSION: &str = "1";
/// The file in a volume's folder that says that the volume was made.
const MADE: &str = "made";

/// What all verbs of a state take.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where the state is [default: $HYPHA_STATE or ~/.local/share/hypha].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// Why the state can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process runs the deployment.
    #[error("the deployment {name:?} is already running here (it holds {lock})")]
    Busy {
        /// The deployment.
        name: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// No place for the state.
    #[error("no state directory: set HYPHA_STATE or HOME, or give --state DIR")]
    NoDirectory,
    /// Another layout.
    #[error("{path} says version {found:?}, this hypha reads version {LAYOUT_VERSION}")]
    Version {
        /// The version file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// A key file that is not one.
    #[error("{0} does not hold a key of 32 bytes")]
    NotAKey(PathBuf),
    /// A key that others may read.
    #[error("{path} has mode {mode:o}, so others may read the key; run chmod 600 {path}")]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A volume whose key is gone.
    #[error("{key} is missing, but {shard} holds data that only this key can read")]
    KeyLost {
        /// Where the key should be.
        key: PathBuf,
        /// A shard directory that is not empty.
        shard: PathBuf,
    },
    /// A volume elsewhere whose key is gone.
    #[error("{0} is missing, but the volume was made, and only this key can read it")]
    VolumeKeyLost(PathBuf),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Random,
    /// A file or directory can't be used.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StateError {
    /// The command's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotAKey(_) | Self::KeyExposed { .. } => exit_code::BAD_SPEC,
            _ => exit_code::FAILURE,
        }
    }
}

pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { path, source }
}

/// The state directory: the argument, `$HYPHA_STATE`, or `~/.local/share/hypha`.
///
/// # Errors
/// None of them is given.
pub fn directory(argument: Option<&Path>) -> Result<PathBuf, StateError> {
    let from_env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let directory = argument
        .map(Path::to_owned)
        .or_else(|| from_env("HYPHA_STATE").map(PathBuf::from))
        .or_else(|| Some(PathBuf::from(from_env("HOME")?).join(".local/share/hypha")))
        .ok_or(StateError::NoDirectory)?;
    // The machines' processes need not have our working directory.
    std::path::absolute(&directory).map_err(at(&directory))
}

/// The state of one deployment, locked for as long as this value lives.
#[derive(Debug)]
pub struct DeploymentState {
    root: PathBuf,
    _lock: File,
}

impl DeploymentState {
    /// Opens or creates the state of the deployment `name` below `directory`, and locks it.
    ///
    /// # Errors
    /// Another process has it, or it can't be used.
    pub fn open(directory: &Path, name: &str) -> Result<Self, StateError> {
        prepare(directory)?;
        let root = directory.join("deployments").join(name);
        create_directory(&root)?;
        let path = root.join("lock");
        let held = lock(&path)?;
        let _lock = held.ok_or_else(|| StateError::Busy { name: name.to_owned(), lock: path })?;
        Ok(Self { root, _lock })
    }

    /// The deployment's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The X25519 private key of a workload, made at first use.
    ///
    /// # Errors
    /// It can't be read or made.
    pub fn workload_key(&self, name: &str) -> Result<Secret32, StateError> {
        key(&self.root.join("workloads").join(name))
    }

    /// The X25519 private key of the host's own member of a network, made at first use.
    ///
    /// # Errors
    /// It can't be read or made.
    pub fn network_key(&self, name: &str) -> Result<Secret32, StateError> {
        key(&self.root.join("networks").join(name))
    }

    /// The key of a volume, made at first use, and its `count` shard directories: none if its shards
    /// lie elsewhere.
    ///
    /// # Errors
    /// Something can't be read or made, or the key is gone while the data is there.
    pub fn volume(&self, name: &str, count: usize) -> Result<VolumeState, StateError> {
        let directory = self.root.join("volumes").join(name);
        let shards: Vec<_> =
            (0..count).map(|index| directory.join(format!("shard-{index}"))).collect();
        let key_path = directory.join("key");
        if !key_path.try_exists().map_err(at(&key_path))? {
            let has_data = |shard: &&PathBuf| {
                fs::read_dir(shard).is_ok_and(|mut entries| entries.next().is_some())
            };
            if let Some(shard) = shards.iter().find(has_data) {
                return Err(StateError::KeyLost { key: key_path, shard: shard.clone() });
            }
        }
        let made = directory.join(MADE);
        let is_new = !made.try_exists().map_err(at(&made))?;
        if shards.is_empty() && !is_new && !key_path.try_exists().map_err(at(&key_path))? {
            return Err(StateError::VolumeKeyLost(key_path));
        }
        let secret = key(&directory)?;
        shards.iter().try_for_each(|shard| create_directory(shard))?;
        Ok(VolumeState { key: secret, directories: shards, folder: directory, is_new })
    }
}

/// A volume's part of the state.
#[derive(Debug)]
pub struct VolumeState {
    /// Its key.
    pub key: Secret32,
    /// Its shard directories, in shard order.
    pub directories: Vec<PathBuf>,
    /// Its folder.
    pub folder: PathBuf,
    /// No machine is known to have run on it: it may be made.
    pub is_new: bool,
}

impl VolumeState {
    /// The uuid of a volume with shard servers, made at first use.
    ///
    /// # Errors
    /// It can't be read or made.
    pub fn uuid(&self) -> Result<[u8; 16], StateError> {
        half(&self.folder.join("uuid"))
    }

    /// Who this host is to the register of a volume with shard servers, made at first use. Only who
    /// has the deployment's lock may use it.
    ///
    /// # Errors
    /// It can't be read or made.
    pub fn holder(&self) -> Result<[u8; 16], StateError> {
        half(&self.folder.join("holder"))
    }
}

/// Notes durably that the volume with this folder exists.
///
/// # Errors
/// The note can't be written.
pub fn note_volume_made(folder: &Path) -> Result<(), StateError> {
    write_whole(&folder.join(MADE), b"")
}

fn check_version(path: &Path) -> Result<(), StateError> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim() == LAYOUT_VERSION => Ok(()),
        Ok(text) => {
            let found = text.trim().chars().take(20).collect();
            Err(StateError::Version { path: path.to_owned(), found })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_whole(path, format!("{LAYOUT_VERSION}\n").as_bytes())
        }
        Err(error) => Err(at(path)(error)),
    }
}

/// Locks a file, made if there is none, for as long as the value lives; `None` if another process
/// has it.
pub(crate) fn lock(path: &Path) -> Result<Option<File>, StateError> {
    let lock = private(OpenOptions::new().create(true).truncate(false).write(true))
        .open(path)
        .map_err(at(path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(at(path)(error.into())),
    }
}

/// The key in the file at `path`.
pub(crate) fn read_key_at(path: &Path) -> Result<Secret32, StateError> {
    read_key(path, File::open(path).map_err(at(path))?)
}

/// Makes sure that the state directory is there and of this layout.
pub(crate) fn prepare(directory: &Path) -> Result<(), StateError> {
    create_directory(directory)?;
    check_version(&directory.join("VERSION"))
}

/// The key in `directory`, made if there is none.
pub(crate) fn key(directory: &Path) -> Result<Secret32, StateError> {
    create_directory(directory)?;
    random_file(&directory.join("key"))
}

/// What is in the file at `path`, made of random bytes if there is none.
fn random_file(path: &Path) -> Result<Secret32, StateError> {
    match File::open(path) {
        Ok(file) => read_key(path, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = Zeroizing::new([0u8; 32]);
            SystemRandom::new().fill(&mut *bytes).map_err(|_| StateError::Random)?;
            write_whole(path, &*bytes)?;
            Ok(Secret32::new(*bytes))
        }
        Err(error) => Err(at(path)(error)),
    }
}

fn half(path: &Path) -> Result<[u8; 16], StateError> {
    Ok(random_file(path)?.expose().first_chunk().copied().unwrap_or_default())
}

fn read_key(path: &Path, mut file: File) -> Result<Secret32, StateError> {
    let metadata = file.metadata().map_err(at(path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::KeyExposed { path: path.to_owned(), mode });
    }
    if metadata.len() != 32 {
        return Err(StateError::NotAKey(path.to_owned()));
    }
    let mut bytes = Zeroizing::new([0u8; 32]);
    file.read_exact(&mut *bytes).map_err(at(path))?;
    Ok(Secret32::new(*bytes))
}

pub(crate) fn create_directory(path: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

/// Writes a file so that after a crash it is there whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The process ID keeps two deployments that both find no VERSION apart.
    let beside = directory.join(format!(".{name}.{}", std::process::id()));
    let mut file = private(OpenOptions::new().create(true).truncate(true).write(true))
        .open(&beside)
        .map_err(at(&beside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(&beside))?;
    put_in_place(&beside, path)
}

/// Gives a whole file beside its place its name, durably.
pub(crate) fn put_in_place(beside: &Path, path: &Path) -> Result<(), StateError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::rename(beside, path).map_err(at(path))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path) -> DeploymentState {
        DeploymentState::open(directory, "shop").expect("a fresh directory")
    }

    #[test]
    fn a_key_is_made_once_and_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = open(directory.path()).workload_key("web").expect("made");
        let state = open(directory.path());
        assert_eq!(state.workload_key("web").expect("read"), first);
        assert_ne!(state.workload_key("db").expect("made"), first);
        let path = state.root().join("workloads/web/key");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a parent")), 0o700);
        assert_eq!(fs::read(&path).expect("readable"), first.expose());
    }

    #[test]
    fn one_deployment_has_one_user() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = open(directory.path());
        let second = DeploymentState::open(directory.path(), "shop");
        assert!(matches!(second, Err(StateError::Busy { .. })));
        DeploymentState::open(directory.path(), "other").expect("another deployment is free");
        drop(held);
        open(directory.path());
    }

    #[test]
    fn another_layout_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("VERSION"), "2\n").expect("written");
        let refused = DeploymentState::open(directory.path(), "shop");
        assert!(matches!(refused, Err(StateError::Version { found, .. }) if found == "2"));
    }

    #[test]
    fn a_key_that_is_exposed_or_cut_short_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = open(directory.path());
        state.workload_key("web").expect("made");
        let path = state.root().join("workloads/web/key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        assert!(matches!(state.workload_key("web"), Err(StateError::KeyExposed { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::write(&path, [0; 31]).expect("written");
        assert!(matches!(state.workload_key("web"), Err(StateError::NotAKey(_))));
    }

    #[test]
    fn a_volume_without_its_key_is_not_given_a_new_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = open(directory.path());
        let volume = state.volume("db", 3).expect("made");
        assert!(volume.is_new);
        note_volume_made(&volume.folder).expect("noted");
        let shards = volume.directories;
        assert!(!state.volume("db", 3).expect("found").is_new);
        assert_eq!(shards.len(), 3);
        fs::remove_dir(&shards[1]).expect("an empty directory");
        fs::write(shards[2].join("data"), "x").expect("written");
        state.volume("db", 3).expect("a lost shard directory is made again");
        fs::remove_file(state.root().join("volumes/db/key")).expect("there");
        assert!(matches!(state.volume("db", 3), Err(StateError::KeyLost { .. })));
    }

    #[test]
    fn a_volume_on_servers_keeps_its_names_and_is_not_given_a_new_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = open(directory.path());
        let volume = state.volume("db", 0).expect("made");
        let names = (volume.uuid().expect("made"), volume.holder().expect("made"));
        assert_ne!(names.0, names.1);
        note_volume_made(&volume.folder).expect("noted");
        let again = state.volume("db", 0).expect("found");
        assert_eq!((again.uuid().expect("read"), again.holder().expect("read")), names);
        fs::remove_file(volume.folder.join("key")).expect("there");
        assert!(matches!(state.volume("db", 0), Err(StateError::VolumeKeyLost(_))));
    }
}
