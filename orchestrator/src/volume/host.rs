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
use storage_vdev::VolumeKey;
use storage_vdev::engine::NodeInfo;
use storage_vdev::mixed_nodes::{Home, MixedNodes};
use storage_vdev::node::{NodeIndex, Nodes};
use storage_vdev::service::{NodeIdentity, NodeOptions, Rights};
use storage_vdev::wire::{
    ClientConfig, Credential, NodeKey, NodePublicKey, SocketNode, SocketNodes, VolumeSigner,
};
use zeroize::Zeroizing;

use super::manifest::Manifest;

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
    /// The kernel.
    #[error("the kernel refuses what the nodes need: {0}")]
    System(#[from] io::Error),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Random,
}

/// The nodes of a volume, wherever they are: a thread for each directory, a session for each server.
pub type HostNodes = MixedNodes<ThreadNodes>;

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
    let mut directories: Vec<PathBuf> = Vec::new();
    let mut sockets = Vec::new();
    let mut endpoints = Vec::new();
    let mut homes = Vec::new();
    let identity = NodeKey::new(random()?);
    let credential = |key: &VolumeKey, uuid, rights| {
        let signer = Arc::new(VolumeSigner::derive(key, uuid));
        Credential::Signer { signer, rights, card: None }
    };
    let mut credentials = vec![credential(key, uuid, access.rights)];
    let reading = Rights { read: true, ..Rights::default() };
    credentials.extend(access.bases.iter().map(|(uuid, key)| credential(key, *uuid, reading)));
    for node in &manifest.nodes {
        match &node.place {
            Place::Directory(path) => {
                homes.push(Home::Local(directories.len() as NodeIndex));
                directories.push(path.clone());
            }
            Place::Server { endpoint, key, store } => {
                homes.push(Home::Remote(sockets.len() as NodeIndex));
                let config = ClientConfig {
                    node: NodePublicKey(key.0),
                    store: store.clone(),
                    identity: identity.clone(),
                    credentials: credentials.clone(),
                    timeout_ns: SILENT_NS,
                    ping_after_ns: PING_NS,
                };
                let socket = dial(endpoint);
                if let Err(error) = &socket {
                    tracing::warn!(%node, %error, "a node can't be reached");
                }
                let (name, config) = (node.to_string(), Arc::new(config));
                sockets.push(SocketNode { name, config, socket: socket.ok() });
                endpoints.push(endpoint.clone());
            }
        }
    }
    if let Some(journal) = &manifest.journal {
        homes.push(Home::Local(directories.len() as NodeIndex));
        directories.push(journal.clone());
    }
    let local = open_directories(&directories, access.create)?;
    let remote = if sockets.is_empty() {
        None
    } else {
        let again = move |node: NodeIndex| {
            endpoints.get(usize::from(node)).and_then(|endpoint| dial(endpoint).ok())
        };
        Some(SocketNodes::new(sockets, Box::new(again), &Zeroizing::new(random()?))?)
    };
    let infos = infos(manifest, &local, &homes);
    Ok((MixedNodes::new(local, remote, homes)?, infos))
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
/// its key and the store's name.
fn infos(manifest: &Manifest, local: &ThreadNodes, homes: &[Home]) -> Vec<NodeInfo> {
    let acceptors = acceptors(manifest.nodes.len(), manifest.parity_shards);
    let servers = manifest.nodes.iter().any(|node| matches!(node.place, Place::Server { .. }));
    let info = |(index, home): (usize, &Home)| {
        let spec = manifest.nodes.get(index);
        let (name, id) = match (home, spec) {
            (Home::Local(number), _) => {
                let name = local.name(*number);
                // A directory that can't be read now is told from the others by its place.
                let id = local.identity(*number).unwrap_or_else(|| named_id(&name));
                (name, id)
            }
            (Home::Remote(_), spec) => {
                let name = spec.map_or_else(String::new, ToString::to_string);
                let id = match spec.map(|spec| &spec.place) {
                    Some(Place::Server { key, store, .. }) => server_id(key, store),
                    _ => named_id(&name),
                };
                (name, id)
            }
        };
        NodeInfo {
            id,
            domain: spec.map_or_else(|| "this-host".to_owned(), domain),
            name: name.chars().take(80).collect(),
            objects: spec.is_some(),
            journal: true,
            register: servers && index < acceptors,
            local: matches!(home, Home::Local(_)),
        }
    };
    homes.iter().enumerate().map(info).collect()
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
    match (node.domain(), &node.place) {
        (Some(domain), _) => domain,
        (None, Place::Directory(path)) => {
            let existing = path.ancestors().find(|path| path.exists());
            let device = existing.and_then(|path| fs::metadata(path).ok());
            device
                .map_or_else(|| path.display().to_string(), |found| format!("disk-{}", found.dev()))
        }
        (None, Place::Server { endpoint, .. }) => endpoint.to_string(),
    }
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
