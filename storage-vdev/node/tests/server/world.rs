//! A server with nodes in temporary directories, and volumes' ends of sessions with it.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use storage_node::server::{Limits, ListenAddress, Server, ServerConfig, Service};
use storage_vdev::VolumeKey;
use storage_vdev::files::open_directory;
use storage_vdev::node::{NodeError, Nodes, ObjectKey, Request, Response};
use storage_vdev::service::{NodeIdentity, NodeOptions, NodeService, Rights};
use storage_vdev::wire::{
    ClientConfig, Credential, NodeKey, NodePublicKey, SocketNode, SocketNodes, VolumeSigner,
};
use zeroize::Zeroizing;

pub(crate) const VOLUME: [u8; 16] = [7; 16];
pub(crate) type Outcome = Result<Response, NodeError>;

pub(crate) fn node_key() -> NodeKey {
    NodeKey::new([1; 32])
}

pub(crate) fn client_key() -> NodeKey {
    NodeKey::new([2; 32])
}

pub(crate) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub(crate) fn unix_seconds() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec as u64
}

pub(crate) fn signer(volume: [u8; 16]) -> Arc<VolumeSigner> {
    Arc::new(VolumeSigner::derive(&VolumeKey::new(&[9; 32]), volume))
}

pub(crate) fn owner() -> Credential {
    Credential::Signer { signer: signer(VOLUME), rights: Rights::ALL }
}

/// The node in `directory`, made if it isn't there.
pub(crate) fn node(directory: &Path) -> Box<dyn Service> {
    let identity = NodeIdentity { node: [3; 16], acceptor_seed: Zeroizing::new([4; 32]) };
    let options = NodeOptions { capacity_bytes: 256 << 20, create: Some(identity) };
    let files = open_directory(directory, true).unwrap();
    Box::new(NodeService::open(files, &options).unwrap().0)
}

/// A server on a unix socket and on a port of the loopback, with the stores `disk0` and `disk1`.
pub(crate) struct Served {
    pub(crate) server: Option<Server>,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) fn serve(limits: Limits) -> Served {
    let mut served = Served { server: None, folder: tempfile::tempdir().unwrap() };
    served.start(limits);
    served
}

impl Served {
    pub(crate) fn start(&mut self, limits: Limits) {
        let listen = vec![
            ListenAddress::Unix(self.folder.path().join("socket")),
            ListenAddress::Tcp(([127, 0, 0, 1], 0).into()),
        ];
        let store = |name: &str| (name.to_owned(), node(&self.folder.path().join(name)));
        let stores = vec![store("disk0"), store("disk1")];
        let config = ServerConfig { key: node_key(), listen, limits };
        self.server = Some(Server::start(config, stores).unwrap());
    }

    pub(crate) fn stop(&mut self) {
        self.server.take().unwrap().stop();
    }

    pub(crate) fn unix(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join("socket")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    pub(crate) fn tcp(&self) -> TcpStream {
        let addresses = self.server.as_ref().unwrap().addresses();
        let Some(ListenAddress::Tcp(address)) = addresses.get(1) else { panic!("no port") };
        TcpStream::connect(address).unwrap()
    }

    /// The value of a metric, by the start of its line.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.server.as_ref().unwrap().metrics();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub(crate) fn volume(&self, credentials: Vec<Credential>) -> Volume {
        Volume::new(self.unix().into(), config("disk0", node_key().public(), credentials))
    }
}

pub(crate) fn config(
    store: &str,
    node: NodePublicKey,
    credentials: Vec<Credential>,
) -> ClientConfig {
    ClientConfig {
        node,
        store: store.to_owned(),
        identity: client_key(),
        credentials,
        timeout_ns: 20_000_000_000,
        ping_after_ns: 5_000_000_000,
    }
}

/// A volume's end of a session with one node, waited for.
pub(crate) struct Volume {
    pub(crate) nodes: SocketNodes,
    next_tag: u64,
}

impl Volume {
    pub(crate) fn new(socket: OwnedFd, config: ClientConfig) -> Self {
        let node =
            SocketNode { name: "a node".into(), config: Arc::new(config), socket: Some(socket) };
        let seed = now_ns().to_le_bytes().repeat(4).try_into().unwrap();
        let nodes = SocketNodes::new(vec![node], Box::new(|_| None), &seed).unwrap();
        Self { nodes, next_tag: 0 }
    }

    pub(crate) fn submit(&mut self, request: Request) -> u64 {
        self.next_tag += 1;
        self.nodes.submit(0, self.next_tag, request);
        self.next_tag
    }

    /// The next completion; panics if there is none for long.
    pub(crate) fn wait(&mut self) -> (u64, Outcome) {
        let until = now_ns() + 30_000_000_000;
        loop {
            let now_ns = now_ns();
            if let Some(completion) = self.nodes.poll(now_ns) {
                return (completion.tag, completion.result);
            }
            assert!(now_ns < until, "no completion");
            let wait_ns = self.nodes.deadline_ns().map_or(1_000_000_000, |at| {
                at.saturating_sub(now_ns).clamp(1_000_000, 1_000_000_000)
            });
            let ready = self.nodes.ready_fd().unwrap();
            let timeout = Timespec { tv_sec: 0, tv_nsec: (wait_ns - 1) as i64 };
            poll(&mut [PollFd::new(&ready, PollFlags::IN)], Some(&timeout)).unwrap();
        }
    }

    pub(crate) fn ask(&mut self, request: Request) -> Outcome {
        let tag = self.submit(request);
        let (answered, result) = self.wait();
        assert_eq!(answered, tag);
        result
    }
}

pub(crate) fn key(sequence: u64) -> ObjectKey {
    ObjectKey { volume: VOLUME, epoch: 1, sequence, shard: 0 }
}

pub(crate) fn put(sequence: u64, bytes: &[u8]) -> Request {
    Request::Put { key: key(sequence), parts: vec![Bytes::copy_from_slice(bytes)] }
}

pub(crate) fn get(sequence: u64) -> Request {
    Request::Get { key: key(sequence), offset: 0, len: u32::MAX }
}

pub(crate) fn content(sequence: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u64 ^ at as u64 >> 8 ^ sequence) as u8).collect()
}
