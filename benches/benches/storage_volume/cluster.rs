//! Six shard servers in threads of this process, reached through unix sockets and Noise sessions.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use storage_node::redis::{Address, RedisOptions, RedisStore};
use storage_node::server::{Limits, ListenAddress, Server, ServerConfig, Service};
use storage_node::uring::UringFile;
use storage_vdev::VolumeKey;
use storage_vdev::files::open_directory;
use storage_vdev::service::{NodeIdentity, NodeOptions, NodeService, Rights};
use storage_vdev::wire::{
    ClientConfig, Credential, NodeKey, SocketNode, SocketNodes, VolumeSigner,
};
use zeroize::Zeroizing;

use crate::volume::{KEY, NODES, UUID, random};

const STORE: &str = "disk0";

/// Where the servers keep their shards. Journals are in directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Directories, synced before an answer.
    Directories,
    /// A redis-server for each, with this `appendfsync`.
    Redis { fsync: &'static str },
}

impl Backend {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Directories => "our servers, directories".to_owned(),
            Self::Redis { fsync } => format!("our servers, Redis, appendfsync {fsync}"),
        }
    }
}

pub(crate) struct Cluster {
    folder: PathBuf,
    backend: Backend,
    nodes: Vec<Option<Running>>,
}

struct Running {
    id: [u8; 16],
    server: Server,
    redis: Option<Redis>,
}

/// A redis-server of this run.
pub(crate) struct Redis {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Redis {
    pub(crate) fn start(folder: &Path, fsync: &str) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let socket = folder.join("redis");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", fsync])
            // What is stored once and never changed has nothing to be compacted.
            .args(["--auto-aof-rewrite-percentage", "0"])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(folder)
            .stdout(Stdio::null())
            .spawn();
        let this = Self { child: child.unwrap(), socket };
        assert!((0..200).any(|_| this.is_up()), "redis-server starts");
        this
    }

    fn is_up(&self) -> bool {
        std::thread::sleep(Duration::from_millis(50));
        self.connect().is_some()
    }

    fn connect(&self) -> Option<RedisStore> {
        let address = Address::Unix(self.socket.clone());
        let timeout = Duration::from_secs(30);
        RedisStore::connect(RedisOptions { address, password: None, database: None, timeout }).ok()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Cluster {
    pub(crate) fn start(folder: &Path, backend: Backend) -> Self {
        let mut this = Self { folder: folder.to_owned(), backend, nodes: Vec::new() };
        this.nodes = (0..NODES).map(|node| Some(this.run(node))).collect();
        this
    }

    fn run(&self, node: u8) -> Running {
        let folder = self.folder.join(format!("node{node}"));
        let files = open_directory(&folder, true).unwrap();
        let id = random();
        let identity = NodeIdentity { node: id, acceptor_seed: Zeroizing::new(random()) };
        let (service, redis): (Box<dyn Service>, _) = match self.backend {
            Backend::Directories => {
                let create = Some(identity);
                let options = NodeOptions { capacity_bytes: 1 << 30, create };
                let files = UringFile::of_node(files);
                (Box::new(NodeService::open(files, &options).unwrap().0), None)
            }
            Backend::Redis { fsync } => {
                let redis = Redis::start(&folder.join("shards"), fsync);
                let store = redis.connect().unwrap();
                let (journal, meta) = (files.journal, files.meta);
                let service = NodeService::with_store(store, journal, meta, Some(&identity));
                (Box::new(service.unwrap()), Some(redis))
            }
        };
        let config = ServerConfig {
            key: server_key(node),
            listen: vec![ListenAddress::Unix(self.socket(node))],
            limits: Limits::default(),
        };
        let server = Server::start(config, vec![(STORE.to_owned(), service)]).unwrap();
        Running { id, server, redis }
    }

    fn socket(&self, node: u8) -> PathBuf {
        self.folder.join(format!("socket{node}"))
    }

    /// Stops a server; it is not there any more.
    pub(crate) fn stop(&mut self, node: u8) {
        if let Some(running) = self.nodes[usize::from(node)].take() {
            running.server.stop();
            drop(running.redis);
        }
    }

    /// Puts a new server with nothing on it in the place of one that was stopped.
    pub(crate) fn replace(&mut self, node: u8) {
        std::fs::remove_dir_all(self.folder.join(format!("node{node}"))).unwrap();
        self.nodes[usize::from(node)] = Some(self.run(node));
    }

    /// The nodes' ids; one that is not there has one that nobody has.
    pub(crate) fn ids(&self) -> Vec<[u8; 16]> {
        self.nodes.iter().map(|node| node.as_ref().map_or_else(random, |node| node.id)).collect()
    }

    /// Sessions with all servers that are there.
    pub(crate) fn connect(&self) -> SocketNodes {
        let signer = Arc::new(VolumeSigner::derive(&VolumeKey::new(&KEY), UUID));
        let node = |node: u8| {
            let signer = Arc::clone(&signer);
            let config = ClientConfig {
                node: server_key(node).public(),
                store: STORE.to_owned(),
                identity: NodeKey::new([99; 32]),
                credentials: vec![Credential::Signer { signer, rights: Rights::ALL }],
                timeout_ns: 30_000_000_000,
                ping_after_ns: 30_000_000_000,
            };
            let socket = UnixStream::connect(self.socket(node)).ok();
            let (name, config) = (format!("node {node}"), Arc::new(config));
            SocketNode { name, config, socket: socket.map(Into::into) }
        };
        let nodes = (0..NODES).map(node).collect();
        SocketNodes::new(nodes, Box::new(|_| None), &random()).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.nodes.len() as u8).for_each(|node| self.stop(node));
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn server_key(node: u8) -> NodeKey {
    NodeKey::new([node + 1; 32])
}
