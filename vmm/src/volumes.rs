//! From the configuration of a disk to its open volume: directories of this host, and shard servers
//! behind sockets that this process inherited.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use spec::vm::{BlockConfig, NodePlace, RemoteConfig, VolumePolicy};
use storage_vdev::dir_nodes::{DirNodes, DirNodesError};
use storage_vdev::engine::{
    Create, Holder, Limits, NodeInfo, OpenError, OpenOptions, Policy, Randomness, TakeOver, Volume,
};
use storage_vdev::mixed_nodes::{Home, MixedNodes};
use storage_vdev::node::NodeIndex;
use storage_vdev::service::{NodeIdentity, NodeOptions, Rights};
use storage_vdev::wire::{
    ClientConfig, Courier, Credential, NodeKey, NodePublicKey, SocketNode, SocketNodes,
    VolumeSigner,
};
use storage_vdev::{
    BlockDevice, Geometry, GeometryError, Options, VolumeKey, node_capacity, open_directories,
};
use vdev::Device;
use zeroize::Zeroizing;

use crate::launch::random_bytes;
use crate::process::Inherited;
use crate::vm::now_ns;

/// A shard server that answers nothing for so long is given up.
const SILENT_NS: u64 = 5_000_000_000;
/// How often a silent session is asked for a sign of life.
const PING_NS: u64 = 20_000_000_000;
/// How long opening may take. Long enough to give up every server that is silent, one after another.
const OPENING_NS: u64 = 60_000_000_000;

/// Why a disk can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its shape is impossible.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Its directories.
    #[error(transparent)]
    Directories(#[from] storage_vdev::DirectoriesError),
    /// Its directories, beside shard servers.
    #[error(transparent)]
    Nodes(#[from] DirNodesError),
    /// There are shard servers, and it isn't said who opens the volume.
    #[error("a volume with shard servers needs \"remote\"")]
    NoRemote,
    /// The volume.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nodes answer, but too slowly.
    #[error("the volume's nodes did not answer in {} s", OPENING_NS / 1_000_000_000)]
    Slow,
    /// The system.
    #[error("no resources for the volume: {0}")]
    System(#[from] io::Error),
}

/// The sockets of one disk that this process inherited.
#[derive(Debug, Default)]
pub struct DiskSockets {
    /// By the node's index.
    nodes: Vec<Option<OwnedFd>>,
    courier: Option<OwnedFd>,
}

impl DiskSockets {
    /// Takes what `disk` names.
    ///
    /// # Errors
    /// A descriptor isn't there.
    pub fn take(disk: &BlockConfig, inherited: &mut Inherited) -> io::Result<Self> {
        let mut nodes = Vec::with_capacity(disk.nodes.len());
        for node in &disk.nodes {
            nodes.push(match node.place {
                NodePlace::Server { fd: Some(fd), .. } => Some(inherited.take(fd)?),
                NodePlace::Server { fd: None, .. } | NodePlace::Directory(_) => None,
            });
        }
        let courier = disk.remote.as_ref().and_then(|remote| remote.courier_fd);
        let courier = courier.map(|fd| inherited.take(fd)).transpose()?;
        Ok(Self { nodes, courier })
    }
}

/// Opens the volume of `disk`, makes it if it may, and puts the device in front.
///
/// # Errors
/// [`DiskError`].
pub fn open_disk(disk: &BlockConfig, sockets: DiskSockets) -> Result<Box<dyn Device>, DiskError> {
    let geometry = Geometry::new(disk.data_shards, disk.parity_shards, disk.size_bytes)?;
    let key = VolumeKey::new(disk.key.expose());
    if has_servers(disk) {
        let volume = open_mixed(disk, &key, &geometry, sockets)?;
        return Ok(Box::new(BlockDevice::new(volume, &disk.name, disk.read_only)));
    }
    let options = Options {
        geometry,
        key,
        create: disk.create,
        policy: policy(disk.policy),
        limits: Limits::SMALL,
    };
    let seed = Zeroizing::new(random_bytes()?);
    let volume = open_directories(&directories(disk), &options, &seed, now_ns())?;
    Ok(Box::new(BlockDevice::new(volume, &disk.name, disk.read_only)))
}

/// Whether a node of the disk is a shard server.
#[must_use]
pub fn has_servers(disk: &BlockConfig) -> bool {
    disk.nodes.iter().any(|node| matches!(node.place, NodePlace::Server { .. }))
}

/// Whether a node of the disk is a directory of this host.
#[must_use]
pub fn has_directories(disk: &BlockConfig) -> bool {
    disk.nodes.iter().any(|node| matches!(node.place, NodePlace::Directory(_)))
}

fn directories(disk: &BlockConfig) -> Vec<PathBuf> {
    let paths = disk.nodes.iter().filter_map(|node| match &node.place {
        NodePlace::Directory(path) => Some(path.clone()),
        NodePlace::Server { .. } => None,
    });
    paths.collect()
}

fn policy(policy: VolumePolicy) -> Policy {
    match policy {
        VolumePolicy::Local => Policy::Local,
        VolumePolicy::Quorum => Policy::Quorum,
        VolumePolicy::Sealed => Policy::Sealed,
    }
}

fn open_mixed(
    disk: &BlockConfig,
    key: &VolumeKey,
    geometry: &Geometry,
    sockets: DiskSockets,
) -> Result<Volume<MixedNodes<DirNodes>>, DiskError> {
    let remote = disk.remote.as_ref().ok_or(DiskError::NoRemote)?;
    let local = open_local(disk, geometry)?;
    let nodes = open_nodes(disk, (key, remote.uuid), local, sockets)?;
    let create = Create {
        data_shards: disk.data_shards,
        parity_shards: disk.parity_shards,
        size_bytes: disk.size_bytes,
        policy: policy(disk.policy),
        allow_degraded: false,
        shared_domains: false,
        journal_bytes: geometry.journal_bytes(),
        lease_ns: remote.lease_ns,
    };
    let RemoteConfig { uuid, holder, holder_name, .. } = remote.clone();
    let options = OpenOptions {
        uuid,
        key: key.clone(),
        nodes: infos(disk, &nodes),
        base: None,
        create: Some(create).filter(|_| disk.create),
        must_be_new: false,
        holder: Holder { id: holder, name: holder_name },
        register: true,
        take_over: TakeOver::Refuse,
        accept_loss: false,
        limits: Limits::SMALL,
    };
    let random = Randomness { salt: random_bytes()?, proposer: random_bytes()? };
    let mut opening = Volume::open(nodes, options, random);
    let give_up_ns = now_ns().saturating_add(OPENING_NS);
    loop {
        let now_ns = now_ns();
        if let Some(result) = opening.poll(now_ns) {
            return Ok(result?);
        }
        if now_ns >= give_up_ns {
            return Err(DiskError::Slow);
        }
        let until_ns = opening.deadline_ns().unwrap_or(give_up_ns).min(give_up_ns);
        let wait_ns = until_ns.saturating_sub(now_ns).min(1_000_000_000);
        let timeout = Timespec {
            tv_sec: i64::from(wait_ns == 1_000_000_000),
            tv_nsec: (wait_ns % 1_000_000_000).cast_signed(),
        };
        let ready = opening.ready_fd();
        let mut fds: Vec<PollFd<'_>> =
            ready.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

/// The directories among the nodes. One that is gone stays gone: its place may be a disk that isn't
/// mounted, and the volume does without up to *m*.
fn open_local(disk: &BlockConfig, geometry: &Geometry) -> Result<DirNodes, DiskError> {
    let directories = directories(disk);
    let mut identities = Vec::with_capacity(directories.len());
    for _ in directories.iter().filter(|_| disk.create) {
        let acceptor_seed = Zeroizing::new(random_bytes()?);
        identities.push(NodeIdentity { node: random_bytes()?, acceptor_seed });
    }
    let capacity_bytes = node_capacity(geometry);
    let options =
        |index: usize| NodeOptions { capacity_bytes, create: identities.get(index).cloned() };
    Ok(DirNodes::open(&directories, options)?)
}

fn open_nodes(
    disk: &BlockConfig,
    (key, uuid): (&VolumeKey, [u8; 16]),
    local: DirNodes,
    sockets: DiskSockets,
) -> Result<MixedNodes<DirNodes>, DiskError> {
    let identity = NodeKey::new(random_bytes()?);
    let signer = Arc::new(VolumeSigner::derive(key, uuid));
    let (mut homes, mut servers, mut indexes) = (Vec::new(), Vec::new(), Vec::new());
    let mut directories: NodeIndex = 0;
    for ((index, node), socket) in (0..).zip(&disk.nodes).zip(sockets.nodes) {
        let NodePlace::Server { key, store, .. } = &node.place else {
            homes.push(Home::Local(directories));
            directories = directories.saturating_add(1);
            continue;
        };
        homes.push(Home::Remote(indexes.len() as NodeIndex));
        indexes.push(index);
        let signer = Arc::clone(&signer);
        let config = ClientConfig {
            node: NodePublicKey(key.0),
            store: store.clone(),
            identity: identity.clone(),
            credentials: vec![Credential::Signer { signer, rights: Rights::ALL }],
            timeout_ns: SILENT_NS,
            ping_after_ns: PING_NS,
        };
        servers.push(SocketNode { name: node.name.clone(), config: Arc::new(config), socket });
    }
    let courier = sockets.courier.map(Courier::new);
    let wake = courier.as_ref().map(Courier::ready_fd).transpose()?;
    let again: storage_vdev::wire::sockets::Reconnect = match courier {
        Some(mut courier) => {
            Box::new(move |server: NodeIndex| courier.fetch(*indexes.get(usize::from(server))?))
        }
        None => Box::new(|_| None),
    };
    let seed = Zeroizing::new(random_bytes()?);
    let mut remote = SocketNodes::new(servers, again, &seed)?;
    if let Some(wake) = wake {
        remote.wake_on(wake)?;
    }
    Ok(MixedNodes::new(local, Some(remote), homes)?)
}

fn infos(disk: &BlockConfig, nodes: &MixedNodes<DirNodes>) -> Vec<NodeInfo> {
    let info = |(node, home): (&spec::vm::NodeConfig, &Home)| {
        let own = match home {
            Home::Local(number) => nodes.local().identity(*number),
            Home::Remote(_) => None,
        };
        NodeInfo {
            id: own.unwrap_or(node.id),
            name: node.name.clone(),
            domain: node.domain.clone(),
            objects: true,
            journal: true,
            register: node.acceptor,
            local: matches!(home, Home::Local(_)),
        }
    };
    disk.nodes.iter().zip(nodes.homes()).map(info).collect()
}
