//! From a manifest to nodes that answer: directories of this host and sessions with shard servers.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use spec::node::{Endpoint, NodeSpec, Place};
use spec::secret::Public32;
use storage_node::thread_nodes::ThreadNodes;
use storage_vdev::engine::NodeInfo;
use storage_vdev::mixed_nodes::{Home, MixedNodes};
use storage_vdev::node::{NodeIndex, Nodes};
use storage_vdev::service::{NodeIdentity, NodeOptions, Rights};
use storage_vdev::wire::{
    ClientConfig, Credential, NodeKey, NodePublicKey, SocketNode, SocketNodes, VolumeSigner,
};
use storage_vdev::{Uuid, VolumeKey};
use zeroize::Zeroizing;

use super::manifest::Manifest;
use super::patient::Patient;
use super::shared::{Reached, STORE, SharedDirectories};

/// How long an opening holds a volume without renewing.
pub const LEASE_NS: u64 = 10_000_000_000;
/// A node that answers nothing for so long is given up.
const SILENT_NS: u64 = 5_000_000_000;
/// How often a silent session is asked for a sign of life.
const PING_NS: u64 = 20_000_000_000;

/// Why a volume's nodes can't be had.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A directory.
    #[error(transparent)]
    Directories(#[from] storage_vdev::dir_nodes::DirNodesError),
    /// Somebody has a directory for himself.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel.
    #[error("the kernel refuses what the nodes need: {0}")]
    System(#[from] io::Error),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Random,
}

/// The nodes of a volume, wherever they are: a thread for each directory, a session for each server.
pub type HostNodes = Patient<MixedNodes<ThreadNodes>>;

/// How nodes are opened.
#[derive(Debug, Clone)]
pub struct Access {
    /// Whether directories that aren't there are made.
    pub create: bool,
    /// What sessions may do.
    pub rights: Rights,
    /// The volumes that a clone stands on, with their keys: sessions may read them.
    pub bases: Vec<([u8; 16], VolumeKey)>,
}

/// Opens the directories of `manifest` and connects to its servers, and says what is known of each
/// node. One that can't be had is no error: it is unavailable.
///
/// # Errors
/// [`HostError`].
pub fn connect(
    manifest: &Manifest,
    (key, uuid): (&VolumeKey, [u8; 16]),
    access: &Access,
) -> Result<(HostNodes, Vec<NodeInfo>), HostError> {
    let credentials = credentials((key, uuid), access);
    let identity = NodeKey::new(random()?);
    let config = |node, store: &str| ClientConfig {
        node,
        store: store.to_owned(),
        identity: identity.clone(),
        credentials: credentials.clone(),
        timeout_ns: SILENT_NS,
        ping_after_ns: PING_NS,
    };
    let places = Places::of(manifest);
    let mut sockets = Vec::new();
    for (endpoint, node) in &places.servers {
        let Place::Server { key, store, .. } = &node.place else { continue };
        let socket = dial(endpoint).inspect_err(|error| {
            tracing::warn!(%node, %error, "a node can't be reached");
        });
        let config = Arc::new(config(NodePublicKey(key.0), store));
        sockets.push(SocketNode { name: node.to_string(), config, socket: socket.ok() });
    }
    let mut shared = SharedDirectories::new(places.shared.clone(), access.create);
    let reached = shared.open(uuid)?;
    let there: Vec<bool> = reached.iter().map(|one| one.socket.is_some()).collect();
    let identities: Vec<Option<Uuid>> = reached.iter().map(|one| one.identity).collect();
    for (path, Reached { key, socket, .. }) in places.shared.iter().zip(reached) {
        // Nobody has the key of a directory that isn't there, so nobody is taken for it.
        let key = key.unwrap_or_else(|| identity.public());
        let (name, config) = (path.display().to_string(), Arc::new(config(key, STORE)));
        sockets.push(SocketNode { name, config, socket });
    }
    let local = open_directories(&places.own, access.create)?;
    let infos = infos(manifest, &local, &places.homes, &identities);
    let homes = places.homes;
    let servers: Vec<Endpoint> = places.servers.into_iter().map(|server| server.0).collect();
    let server_count = servers.len();
    let remote = if sockets.is_empty() {
        None
    } else {
        let again = move |node: NodeIndex| match servers.get(usize::from(node)) {
            Some(endpoint) => dial(endpoint).ok(),
            None => shared.again(usize::from(node).saturating_sub(servers.len())),
        };
        Some(SocketNodes::new(sockets, Box::new(again), &Zeroizing::new(random()?))?)
    };
    // A directory that isn't there is not waited for.
    let changes_hands = |home: &Home| match home {
        Home::Remote(number) => usize::from(*number)
            .checked_sub(server_count)
            .is_some_and(|index| there.get(index) == Some(&true)),
        Home::Local(_) => false,
    };
    let patient = (0..).zip(&homes).filter(|(_, home)| changes_hands(home));
    let patient = patient.map(|(node, _)| node).collect();
    Ok((Patient::new(MixedNodes::new(local, remote, homes)?, patient), infos))
}

/// What the nodes are shown: the right to use the volume, and to read those that it stands on.
fn credentials((key, uuid): (&VolumeKey, Uuid), access: &Access) -> Vec<Credential> {
    let credential = |key: &VolumeKey, uuid, rights| {
        let signer = Arc::new(VolumeSigner::derive(key, uuid));
        Credential::Signer { signer, rights }
    };
    let reading = Rights { read: true, ..Rights::default() };
    let bases = access.bases.iter().map(|(uuid, key)| credential(key, *uuid, reading));
    std::iter::once(credential(key, uuid, access.rights)).chain(bases).collect()
}

/// Where the nodes of a volume are, each kind in the order of the manifest.
struct Places<'a> {
    /// Directories that only this volume uses.
    own: Vec<PathBuf>,
    /// Directories that clones or the base use, too. Behind `servers` in the sessions.
    shared: Vec<PathBuf>,
    servers: Vec<(Endpoint, &'a NodeSpec)>,
    homes: Vec<Home>,
}

impl<'a> Places<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        let mut this =
            Self { own: Vec::new(), shared: Vec::new(), servers: Vec::new(), homes: Vec::new() };
        let servers = manifest.nodes.iter().filter(|node| !node.place.is_directory()).count();
        for node in &manifest.nodes {
            match &node.place {
                Place::Directory(path) if manifest.shared => {
                    this.homes.push(Home::Remote((servers + this.shared.len()) as NodeIndex));
                    this.shared.push(path.clone());
                }
                Place::Directory(path) => {
                    this.homes.push(Home::Local(this.own.len() as NodeIndex));
                    this.own.push(path.clone());
                }
                Place::Server { endpoint, .. } => {
                    this.homes.push(Home::Remote(this.servers.len() as NodeIndex));
                    this.servers.push((endpoint.clone(), node));
                }
            }
        }
        if let Some(journal) = &manifest.journal {
            this.homes.push(Home::Local(this.own.len() as NodeIndex));
            this.own.push(journal.clone());
        }
        this
    }
}

fn open_directories(directories: &[PathBuf], create: bool) -> Result<ThreadNodes, HostError> {
    let mut identities = Vec::new();
    for _ in directories {
        let half: [u8; 32] = random()?;
        let node = half.first_chunk().copied().unwrap_or_default();
        identities.push(NodeIdentity { node, acceptor_seed: Zeroizing::new(random()?) });
    }
    let options = |index: usize| {
        let path: Option<&PathBuf> = directories.get(index);
        let capacity_bytes = path.map_or(0, |path| disk_bytes(path));
        NodeOptions { capacity_bytes, create: identities.get(index).filter(|_| create).cloned() }
    };
    Ok(ThreadNodes::open(directories, options)?)
}

/// How many bytes a directory's disk may give to shards: all that it has.
#[must_use]
pub fn disk_bytes(path: &Path) -> u64 {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    rustix::fs::statvfs(existing).map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// Sixteen bytes that tell a node from all others: a directory says its own, a server is known by
/// its key and the store's name. `shared` are those of the directories that others use, too.
fn infos(
    manifest: &Manifest,
    local: &ThreadNodes,
    homes: &[Home],
    shared: &[Option<Uuid>],
) -> Vec<NodeInfo> {
    let acceptors = acceptors(manifest.nodes.len(), manifest.parity_shards);
    let servers = manifest.has_servers();
    let mut shared = shared.iter();
    let mut info = |(index, home): (usize, &Home)| {
        let spec = manifest.nodes.get(index);
        let name = match (home, spec) {
            (Home::Local(number), _) => local.name(*number),
            (Home::Remote(_), spec) => spec.map_or_else(String::new, ToString::to_string),
        };
        let id = match (home, spec.map(|spec| &spec.place)) {
            (_, Some(Place::Server { key, store, .. })) => Some(server_id(key, store)),
            (Home::Local(number), _) => local.identity(*number),
            (Home::Remote(_), _) => shared.next().copied().flatten(),
        };
        NodeInfo {
            // A directory that can't be read now is told from the others by its place.
            id: id.unwrap_or_else(|| named_id(&name)),
            domain: spec.map_or_else(|| "this-host".to_owned(), domain),
            name: name.chars().take(80).collect(),
            objects: spec.is_some(),
            journal: true,
            register: servers && index < acceptors,
            local: spec.is_none_or(|spec| spec.place.is_directory()),
        }
    };
    homes.iter().enumerate().map(&mut info).collect()
}

/// How many of a volume's first nodes are acceptors of its register: 2 m + 1, so that m may be
/// lost, as far as there are so many; always an odd number.
#[must_use]
pub fn acceptors(nodes: usize, parity_shards: u8) -> usize {
    let wanted = 2 * usize::from(parity_shards) + 1;
    let odd = if nodes.is_multiple_of(2) { nodes.saturating_sub(1) } else { nodes };
    wanted.min(odd).max(1)
}

/// What tells a shard server's store from all others.
#[must_use]
pub fn server_id(key: &Public32, store: &str) -> [u8; 16] {
    named_id(&format!("{key} {store}"))
}

/// What tells a node that is known by its name alone from all others.
#[must_use]
pub fn named_id(name: &str) -> [u8; 16] {
    let hash = digest::digest(&digest::SHA256, name.as_bytes());
    hash.as_ref().first_chunk().copied().unwrap_or_default()
}

/// This process's name to people who wonder who holds a volume: host and process.
#[must_use]
pub fn holder_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host: String = host.chars().take(60).collect();
    format!("{host}, process {}", std::process::id())
}

/// A node's failure domain: as it was named, or its disk or host.
#[must_use]
pub fn domain(node: &NodeSpec) -> String {
    node.domain(|path| {
        let existing = path.ancestors().find(|path| path.exists());
        let device = existing.and_then(|path| fs::metadata(path).ok());
        device.map_or_else(|| path.display().to_string(), |found| format!("disk-{}", found.dev()))
    })
}

/// A socket that is connecting: whether it succeeds, the session finds out. Doesn't block, because
/// it is called again from the volume's own thread.
///
/// # Errors
/// The kernel's: there is nobody at a unix socket, or no route.
pub fn dial(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, begun) = match endpoint {
        Endpoint::Tcp(address) => {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
            net::sockopt::set_tcp_nodelay(&socket, true)?;
            let begun = net::connect(&socket, address);
            (socket, begun)
        }
        Endpoint::Unix(path) => {
            let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let begun = net::connect(&socket, &SocketAddrUnix::new(path)?);
            (socket, begun)
        }
    };
    match begun {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Fresh random bytes.
///
/// # Errors
/// The kernel gives none.
pub fn random<const N: usize>() -> Result<[u8; N], HostError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| HostError::Random)?;
    Ok(bytes)
}
