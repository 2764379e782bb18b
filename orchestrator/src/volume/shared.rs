//! Directories that several volumes use at once: a base's and its clones'.
//!
//! A node's files are one process's at a time. Whoever finds a directory free takes it and serves
//! it at the socket `door` inside it; everybody, that process included, reaches it there, as a
//! shard server is reached. When the process ends, so do the sessions, and who needs the directory
//! next takes it. A volume of its own doesn't go this way: it has its directories for itself.
//!
//! ```text
//! DIR/objects, journal, meta   the node (docs/storage-node.md)
//!    /door, /door.key          the socket, and the static key of whoever serves there
//!    /UUID.lock                held by who has that volume open
//! ```

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spec::node::Endpoint;
use storage_node::server::{Limits, ListenAddress, Server, ServerConfig, Service, load_key};
use storage_vdev::Uuid;
use storage_vdev::files::{DirectoryError, open_directory};
use storage_vdev::service::{NodeIdentity, NodeOptions, NodeService};
use storage_vdev::wire::NodePublicKey;
use zeroize::Zeroizing;

use super::host::{self, HostError};
use crate::state;

/// The one store of a directory's server.
pub(super) const STORE: &str = "node";
/// How often, and with which pause, a door is tried of which somebody has the directory already.
const TRIES: (u32, Duration) = (100, Duration::from_millis(20));

/// The directories of one volume that others use, too.
pub(super) struct SharedDirectories {
    paths: Vec<PathBuf>,
    create: bool,
    /// Those that this process serves.
    servers: Vec<Option<Server>>,
    /// That nobody else has this volume open in these directories.
    locks: Vec<File>,
}

/// How a directory is reached, and who it is.
pub(super) struct Reached {
    /// The static key of who serves it; `None` if there is no such directory.
    pub(super) key: Option<NodePublicKey>,
    /// The node's own name, if it can be read.
    pub(super) identity: Option<Uuid>,
    /// A socket to it.
    pub(super) socket: Option<OwnedFd>,
}

impl SharedDirectories {
    /// The directories `paths`, of which nothing is opened yet. With `create` those that are
    /// missing are made.
    pub(super) fn new(paths: Vec<PathBuf>, create: bool) -> Self {
        let servers = paths.iter().map(|_| None).collect();
        Self { paths, create, servers, locks: Vec::new() }
    }

    /// Takes or reaches each directory for `volume`. One that can't be had is no error.
    ///
    /// # Errors
    /// [`HostError::InUse`] if somebody has a directory for himself, or has this volume open there.
    pub(super) fn open(&mut self, volume: Uuid) -> Result<Vec<Reached>, HostError> {
        let mut all = Vec::new();
        for (index, path) in self.paths.clone().iter().enumerate() {
            let taken = self.take(index);
            let socket = match &taken {
                Err(HostError::InUse { .. }) => Some(patiently_dial(path)?),
                Err(error) => {
                    tracing::warn!(%error, "a storage node can't be used");
                    None
                }
                Ok(()) => Some(dial(path)?),
            };
            if socket.is_none() {
                all.push(Reached { key: None, identity: None, socket });
                continue;
            }
            let uuid: String = volume.iter().map(|byte| format!("{byte:02x}")).collect();
            let lock = state::lock(&path.join(format!("{uuid}.lock")));
            let lock = lock.map_err(|error| io::Error::other(error.to_string()))?;
            let lock = lock.ok_or_else(|| HostError::InUse { path: path.clone() })?;
            self.locks.push(lock);
            let key = load_key(&path.join("door.key")).map_err(io::Error::other)?;
            let identity = storage_vdev::service::identity_in(&path.join("meta"))?;
            all.push(Reached { key: Some(key.public()), identity, socket });
        }
        Ok(all)
    }

    /// A socket to the directory with this number, after the last one ended.
    pub(super) fn again(&mut self, index: usize) -> Option<OwnedFd> {
        match self.take(index) {
            Ok(()) | Err(HostError::InUse { .. }) => {}
            Err(error) => tracing::debug!(%error, "a storage node can't be used"),
        }
        dial(self.paths.get(index)?).ok()
    }

    /// Serves a directory, if nobody does.
    fn take(&mut self, index: usize) -> Result<(), HostError> {
        let (Some(path), Some(server)) = (self.paths.get(index), self.servers.get_mut(index))
        else {
            return Ok(());
        };
        if server.is_none() {
            *server = Some(serve(path, self.create)?);
        }
        Ok(())
    }
}

fn dial(path: &Path) -> io::Result<OwnedFd> {
    host::dial(&Endpoint::Unix(path.join("door")))
}

/// Whoever took the directory a moment ago may not listen yet.
fn patiently_dial(path: &Path) -> Result<OwnedFd, HostError> {
    for _ in 0..TRIES.0 {
        if let Ok(socket) = dial(path) {
            return Ok(socket);
        }
        std::thread::sleep(TRIES.1);
    }
    Err(HostError::InUse { path: path.to_owned() })
}

fn serve(path: &Path, create: bool) -> Result<Server, HostError> {
    let files = open_directory(path, create).map_err(|error| match error {
        DirectoryError::InUse { path } => HostError::InUse { path },
        other => HostError::System(io::Error::other(other.to_string())),
    })?;
    let half: [u8; 32] = host::random()?;
    let node = half.first_chunk().copied().unwrap_or_default();
    let identity = NodeIdentity { node, acceptor_seed: Zeroizing::new(host::random()?) };
    let options = NodeOptions {
        capacity_bytes: host::disk_bytes(path),
        create: Some(identity).filter(|_| create),
    };
    let opened = NodeService::open(files, &options);
    let (service, recovery) = opened.map_err(|error| io::Error::other(error.to_string()))?;
    if recovery.damaged_slots > 0 {
        tracing::warn!(node = %path.display(), ?recovery, "some objects are lost");
    }
    let key = load_key(&path.join("door.key")).map_err(io::Error::other)?;
    let listen = vec![ListenAddress::Unix(path.join("door"))];
    let config = ServerConfig { key, listen, limits: Limits::default() };
    let store: (String, Box<dyn Service>) = (STORE.to_owned(), Box::new(service));
    Ok(Server::start(config, vec![store]).map_err(io::Error::other)?)
}
