//! From a manifest to nodes that answer: directories of this host and sessions with shard servers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use storage_node::thread_nodes::ThreadNodes;
use storage_vdev::VolumeKey;
use storage_vdev::engine::NodeInfo;
use storage_vdev::node::{NodeCompletion, NodeIndex, Nodes, Request, Tag};
use storage_vdev::service::{NodeIdentity, NodeOptions, Rights};
use storage_vdev::wire::{
    ClientConfig, Credential, NodeKey, NodePublicKey, SocketNode, SocketNodes, VolumeSigner,
};
use zeroize::Zeroizing;

use super::manifest::Manifest;
use super::node_spec::{Endpoint, NodeSpec, Place};

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

/// Which of the two kinds a node is, and its number there.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Local(NodeIndex),
    Remote(NodeIndex),
}

/// The nodes of a volume, wherever they are.
pub struct HostNodes {
    local: ThreadNodes,
    remote: Option<SocketNodes>,
    kinds: Vec<Kind>,
    ready: OwnedFd,
    infos: Vec<NodeInfo>,
}

/// How nodes are opened.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Whether directories that aren't there are made.
    pub create: bool,
    /// What sessions may do.
    pub rights: Rights,
}

impl HostNodes {
    /// Opens the directories of `manifest` and connects to its servers. A node that can't be had is
    /// no error: it is unavailable.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn connect(
        manifest: &Manifest,
        (key, uuid): (&VolumeKey, [u8; 16]),
        access: Access,
    ) -> Result<Self, HostError> {
        let mut directories: Vec<PathBuf> = Vec::new();
        let mut sockets = Vec::new();
        let mut endpoints = Vec::new();
        let mut kinds = Vec::new();
        let identity = NodeKey::new(random()?);
        let signer = Arc::new(VolumeSigner::derive(key, uuid));
        for node in &manifest.nodes {
            match &node.place {
                Place::Directory(path) => {
                    kinds.push(Kind::Local(directories.len() as NodeIndex));
                    directories.push(path.clone());
                }
                Place::Server { endpoint, key, store } => {
                    kinds.push(Kind::Remote(sockets.len() as NodeIndex));
                    let signer = Arc::clone(&signer);
                    let config = ClientConfig {
                        node: NodePublicKey(key.0),
                        store: store.clone(),
                        identity: identity.clone(),
                        credentials: vec![Credential::Signer {
                            signer,
                            rights: access.rights,
                            card: None,
                        }],
                        timeout_ns: SILENT_NS,
                        ping_after_ns: PING_NS,
                    };
                    let socket = connect(endpoint);
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
            kinds.push(Kind::Local(directories.len() as NodeIndex));
            directories.push(journal.clone());
        }
        let local = open_directories(&directories, access.create)?;
        let remote = if sockets.is_empty() {
            None
        } else {
            let again = move |node: NodeIndex| {
                endpoints.get(usize::from(node)).and_then(|endpoint| connect(endpoint).ok())
            };
            Some(SocketNodes::new(sockets, Box::new(again), &*Zeroizing::new(random()?))?)
        };
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        let fds = [local.ready_fd(), remote.as_ref().and_then(Nodes::ready_fd)];
        for fd in fds.into_iter().flatten() {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&ready, fd, data, epoll::EventFlags::IN).map_err(io::Error::from)?;
        }
        let infos = infos(manifest, &local, &kinds);
        Ok(Self { local, remote, kinds, ready, infos })
    }

    /// What is known of each node.
    #[must_use]
    pub fn infos(&self) -> &[NodeInfo] {
        &self.infos
    }

    /// Whether a lock on directories keeps all other openers away, so that no register is needed.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.remote.is_none()
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
        let capacity_bytes = path.map_or(0, |path| room(path));
        NodeOptions { capacity_bytes, create: identities.get(index).filter(|_| create).cloned() }
    };
    Ok(ThreadNodes::open(directories, options)?)
}

/// How many bytes a directory's disk may give to shards: all that it has.
fn room(path: &Path) -> u64 {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    rustix::fs::statvfs(existing).map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// Sixteen bytes that tell a node from all others: a directory says its own, a server is known by
/// its key and the store's name.
fn infos(manifest: &Manifest, local: &ThreadNodes, kinds: &[Kind]) -> Vec<NodeInfo> {
    let acceptors = acceptors(manifest);
    let servers = manifest.nodes.iter().any(|node| matches!(node.place, Place::Server { .. }));
    let info = |(index, kind): (usize, &Kind)| {
        let spec = manifest.nodes.get(index);
        let (name, id) = match (kind, spec) {
            (Kind::Local(number), _) => {
                let name = local.name(*number);
                // A directory that can't be read now is told from the others by its place.
                let id = local.identity(*number).unwrap_or_else(|| named_id(&name));
                (name, id)
            }
            (Kind::Remote(_), spec) => {
                let name = spec.map_or_else(String::new, ToString::to_string);
                let id = match spec.map(|spec| &spec.place) {
                    Some(Place::Server { key, store, .. }) => named_id(&format!("{key} {store}")),
                    _ => named_id(&name),
                };
                (name, id)
            }
        };
        NodeInfo {
            id,
            domain: spec.map_or_else(|| "this host".to_owned(), domain),
            name: name.chars().take(80).collect(),
            objects: spec.is_some(),
            journal: true,
            register: servers && index < acceptors,
            local: matches!(kind, Kind::Local(_)),
        }
    };
    kinds.iter().enumerate().map(info).collect()
}

/// How many nodes are acceptors of the register: 2 m + 1, so that m may be lost, as far as there
/// are so many; always an odd number.
fn acceptors(manifest: &Manifest) -> usize {
    let wanted = 2 * usize::from(manifest.parity_shards) + 1;
    let most = (manifest.nodes.len().saturating_sub(1) | 1).min(manifest.nodes.len().max(1));
    wanted.min(if most.is_multiple_of(2) { most.saturating_sub(1) } else { most }).max(1)
}

fn named_id(name: &str) -> [u8; 16] {
    let hash = digest::digest(&digest::SHA256, name.as_bytes());
    hash.as_ref().first_chunk().copied().unwrap_or_default()
}

/// A node's failure domain: as it was named, or its disk or host.
#[must_use]
pub fn domain(node: &NodeSpec) -> String {
    match (&node.domain, &node.place) {
        (Some(domain), _) => domain.clone(),
        (None, Place::Directory(path)) => {
            let existing = path.ancestors().find(|path| path.exists());
            let device = existing.and_then(|path| fs::metadata(path).ok());
            device
                .map_or_else(|| path.display().to_string(), |found| format!("disk {}", found.dev()))
        }
        (None, Place::Server { endpoint: Endpoint::Tcp(address), .. }) => address.ip().to_string(),
        (None, Place::Server { endpoint: Endpoint::Unix(path), .. }) => path.display().to_string(),
    }
}

/// A socket that is connecting: whether it succeeds, the session finds out. Doesn't block, because
/// it is called again from the volume's own thread.
fn connect(endpoint: &Endpoint) -> io::Result<OwnedFd> {
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

impl Nodes for HostNodes {
    fn count(&self) -> usize {
        self.kinds.len()
    }

    fn name(&self, node: NodeIndex) -> String {
        match (self.kinds.get(usize::from(node)), &self.remote) {
            (Some(Kind::Local(number)), _) => self.local.name(*number),
            (Some(Kind::Remote(number)), Some(remote)) => remote.name(*number),
            _ => String::new(),
        }
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        match (self.kinds.get(usize::from(node)), &mut self.remote) {
            (Some(Kind::Remote(number)), Some(remote)) => remote.submit(*number, tag, request),
            (Some(Kind::Local(number)), _) => self.local.submit(*number, tag, request),
            // Beyond the last node: the threads answer that there is none.
            _ => self.local.submit(NodeIndex::MAX, tag, request),
        }
    }

    fn poll(&mut self, now_ns: u64) -> Option<NodeCompletion> {
        self.local.poll(now_ns).or_else(|| self.remote.as_mut()?.poll(now_ns))
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }

    fn deadline_ns(&self) -> Option<u64> {
        let remote = self.remote.as_ref().and_then(Nodes::deadline_ns);
        [self.local.deadline_ns(), remote].into_iter().flatten().min()
    }
}
