//! The disks of a machine: where their nodes are, and the sockets to those that are shard servers.
//!
//! A `vmm` may not connect once its guest runs. So it inherits a socket to each server, and when
//! one ends it asks for another ([`Courier`], the parent's end of
//! [`storage_vdev::wire::courier`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use spec::deployment::Volume;
use spec::node::{Endpoint, NodeSpec, Place};
use spec::vm::{BlockConfig, NodeConfig, NodePlace, RemoteConfig};
use storage_vdev::node::NodeIndex;
use storage_vdev::wire::courier::{Question, answer, next_question};

use crate::state::{DeploymentState, StateError, VolumeState};
use crate::volume::host::{LEASE_NS, acceptors, dial, domain, holder_name, named_id, server_id};

/// The pause between two attempts at one server, first and at most: it doubles with each that fails.
const PAUSE_NS: (u64, u64) = (100_000_000, 5_000_000_000);
/// The most questions that are taken at once, so that no machine keeps the others waiting.
const QUESTIONS_MAX: usize = 64;

/// A disk as its process needs it, besides its configuration.
#[derive(Debug)]
pub struct Disk {
    /// The volume's folder in the state.
    pub folder: PathBuf,
    /// Where each node listens; `None` for a directory.
    endpoints: Vec<Option<Endpoint>>,
}

impl Disk {
    /// Makes or reads what the state has of `volume`.
    ///
    /// # Errors
    /// The state can't be used, or lost the volume's key.
    pub fn plan(
        volume: &Volume,
        read_only: bool,
        state: &DeploymentState,
    ) -> Result<(Self, BlockConfig), StateError> {
        let own = volume.nodes.is_empty();
        let shards = usize::from(volume.data_shards) + usize::from(volume.parity_shards);
        let found = state.volume(&volume.name, if own { shards } else { 0 })?;
        let has_servers = volume.nodes.iter().any(|node| !node.place.is_directory());
        let remote = if has_servers { Some(remote(&found)?) } else { None };
        let nodes = if own {
            found.directories.iter().cloned().map(NodeConfig::directory).collect()
        } else {
            let acceptors = acceptors(volume.nodes.len(), volume.parity_shards);
            let config = |(index, node)| node_config(node, has_servers && index < acceptors);
            volume.nodes.iter().enumerate().map(config).collect()
        };
        let endpoints = volume.nodes.iter().map(|node| match &node.place {
            Place::Directory(_) => None,
            Place::Server { endpoint, .. } => Some(endpoint.clone()),
        });
        let config = BlockConfig {
            name: volume.name.clone(),
            key: found.key,
            nodes,
            data_shards: volume.data_shards,
            parity_shards: volume.parity_shards,
            size_bytes: volume.size_bytes,
            policy: volume.policy,
            read_only,
            create: found.is_new,
            remote,
        };
        Ok((Self { folder: found.folder, endpoints: endpoints.collect() }, config))
    }

    /// Connects to the disk's servers and writes the sockets' numbers into `config`. A server that
    /// can't be reached now is left to the courier.
    ///
    /// # Errors
    /// The system has no descriptors to give.
    pub fn connect(&self, config: &mut BlockConfig) -> io::Result<DiskLines> {
        let mut lines = DiskLines { sockets: Vec::new(), courier: None };
        for (node, endpoint) in config.nodes.iter_mut().zip(&self.endpoints) {
            let (NodePlace::Server { fd, .. }, Some(endpoint)) = (&mut node.place, endpoint) else {
                continue;
            };
            let socket = dial(endpoint).inspect_err(|error| {
                tracing::warn!(node = node.name, %error, "a node can't be reached");
            });
            *fd = socket.as_ref().ok().map(AsRawFd::as_raw_fd);
            lines.sockets.extend(socket);
        }
        if let Some(remote) = &mut config.remote {
            let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
            let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
            remote.courier_fd = Some(theirs.as_raw_fd());
            lines.courier = Some((theirs, Courier::new(ours, &self.endpoints)));
        }
        Ok(lines)
    }
}

fn remote(volume: &VolumeState) -> Result<RemoteConfig, StateError> {
    Ok(RemoteConfig {
        uuid: volume.uuid()?,
        holder: volume.holder()?,
        holder_name: holder_name(),
        lease_ns: LEASE_NS,
        courier_fd: None,
    })
}

fn node_config(node: &NodeSpec, acceptor: bool) -> NodeConfig {
    let name: String = node.to_string().chars().take(80).collect();
    let (place, id) = match &node.place {
        Place::Directory(path) => {
            (NodePlace::Directory(path.clone()), named_id(&path.display().to_string()))
        }
        Place::Server { key, store, .. } => {
            let id = server_id(key, store);
            (NodePlace::Server { key: *key, store: store.clone(), fd: None }, id)
        }
    };
    NodeConfig { place, id, name, domain: domain(node), acceptor }
}

/// The descriptors that a process inherits for one disk.
#[derive(Debug)]
pub struct DiskLines {
    sockets: Vec<OwnedFd>,
    /// Its end of the courier, and ours.
    courier: Option<(OwnedFd, Courier)>,
}

impl DiskLines {
    /// What the process must inherit.
    pub fn inherited(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let theirs = self.courier.iter().map(|(theirs, _)| theirs);
        self.sockets.iter().chain(theirs).map(AsFd::as_fd)
    }

    /// Once the process has been started: what stays here.
    #[must_use]
    pub fn into_courier(self) -> Option<Courier> {
        self.courier.map(|(_, courier)| courier)
    }
}

/// Who fetches new sockets for one disk of a running process.
#[derive(Debug)]
pub struct Courier {
    /// `None` once the process has closed its end.
    socket: Option<OwnedFd>,
    servers: Vec<Server>,
}

/// A node, as the courier sees it.
#[derive(Debug)]
struct Server {
    /// `None` for a directory.
    endpoint: Option<Endpoint>,
    wanted: bool,
    /// No attempt before this time.
    not_before_ns: u64,
    pause_ns: u64,
}

impl Courier {
    fn new(socket: OwnedFd, endpoints: &[Option<Endpoint>]) -> Self {
        let server = |endpoint: &Option<Endpoint>| Server {
            endpoint: endpoint.clone(),
            wanted: false,
            not_before_ns: 0,
            pause_ns: PAUSE_NS.0,
        };
        Self { socket: Some(socket), servers: endpoints.iter().map(server).collect() }
    }

    /// Readable when the process asks for something.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// When [`Courier::serve`] has something to do even if nobody asks.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.socket.as_ref()?;
        let wanted = self.servers.iter().filter(|server| server.wanted);
        wanted.map(|server| server.not_before_ns).min()
    }

    /// Takes questions, and connects where it is time to.
    pub fn serve(&mut self, now_ns: u64) {
        let Some(socket) = &self.socket else { return };
        for _ in 0..QUESTIONS_MAX {
            match next_question(socket.as_fd()) {
                Question::Node(node) => {
                    if let Some(server) = self.servers.get_mut(usize::from(node)) {
                        server.wanted = server.endpoint.is_some();
                    }
                }
                Question::None => break,
                Question::Ended => {
                    self.socket = None;
                    return;
                }
            }
        }
        for (node, server) in (0..).zip(&mut self.servers) {
            if server.wanted && server.not_before_ns <= now_ns {
                server.fetch(socket.as_fd(), node, now_ns);
            }
        }
    }
}

impl Server {
    /// Tries once. However it ends, the next attempt is some time away.
    fn fetch(&mut self, socket: BorrowedFd<'_>, node: NodeIndex, now_ns: u64) {
        let Some(endpoint) = &self.endpoint else { return };
        match dial(endpoint).and_then(|found| answer(socket, node, found.as_fd())) {
            Ok(()) => {
                self.wanted = false;
                self.pause_ns = PAUSE_NS.0;
                self.not_before_ns = now_ns.saturating_add(PAUSE_NS.0);
            }
            Err(error) => {
                tracing::debug!(%endpoint, %error, "a node can't be reached");
                self.not_before_ns = now_ns.saturating_add(self.pause_ns);
                self.pause_ns = self.pause_ns.saturating_mul(2).min(PAUSE_NS.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;

    /// A courier for one server at `path` and one directory, and the process's end.
    fn courier(path: &Path) -> (Courier, storage_vdev::wire::Courier) {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, kind, flags, None).expect("a socket pair");
        let endpoints = [Some(Endpoint::Unix(path.to_owned())), None];
        (Courier::new(ours, &endpoints), storage_vdev::wire::Courier::new(theirs))
    }

    #[test]
    fn a_server_that_comes_back_is_found_and_nobody_is_dialled_without_a_pause() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server");
        let (mut courier, mut process) = courier(&path);
        assert!(process.fetch(0).is_none());
        courier.serve(0);
        assert_eq!(courier.deadline_ns(), Some(PAUSE_NS.0), "nobody is there");
        let listener = UnixListener::bind(&path).expect("bound");
        listener.set_nonblocking(true).expect("set");
        courier.serve(PAUSE_NS.0 - 1);
        assert!(listener.accept().is_err(), "the pause is kept");
        courier.serve(PAUSE_NS.0);
        assert!(listener.accept().is_ok());
        assert_eq!(courier.deadline_ns(), None);
        assert!(process.fetch(0).is_some());
        // However often the process asks.
        let mut dialled = 0;
        for now_ns in (PAUSE_NS.0..=2 * PAUSE_NS.0).step_by(PAUSE_NS.0 as usize / 10) {
            drop(process.fetch(0));
            courier.serve(now_ns);
            dialled += usize::from(listener.accept().is_ok());
        }
        assert_eq!(dialled, 1);
    }

    #[test]
    fn questions_about_directories_and_nobody_are_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut courier, mut process) = courier(&folder.path().join("server"));
        for node in [1, 2, 63] {
            assert!(process.fetch(node).is_none());
        }
        courier.serve(0);
        assert_eq!(courier.deadline_ns(), None);
        drop(process);
        courier.serve(1);
        assert!(courier.fd().is_none());
    }
}
