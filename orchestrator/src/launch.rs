//! From a deployment and its keys to what each `vmm` process is told.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_node::uplinks::CardEnds;
use net_vdev::certificate::HostName;
use net_vdev::{PrivateKey, PublicKey};
use spec::deployment::{Deployment, From, Image, Interface, Machine, Network};
use spec::secret::{Public32, Secret32};
use spec::vm::{AllowFrom, AllowRule, NetConfig, PeerConfig, Protocol, VERSION, VmConfig};

use crate::disk::Disk;
use crate::state::{DeploymentState, StateError};

/// The most bytes of `HYPHA_PEERS` that surely fit the boot page beside the spec's own strings.
const PEERS_BYTES_MAX: usize = 8 << 10;

/// Why a deployment can't be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A key, lock or volume.
    #[error(transparent)]
    State(#[from] StateError),
    /// An image that is not there.
    #[error("the image {name:?} of {workload} is not there: {path}: {source}")]
    Image {
        /// As the spec says it.
        name: String,
        /// The machine.
        workload: String,
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A UDP socket that can't be had.
    #[error("the mesh socket of {workload} at {address}: {source}")]
    Socket {
        /// The machine, or the network for the host's own.
        workload: String,
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No socket pair for a card's uplink.
    #[error("the uplink of {workload}: {source}")]
    Uplink {
        /// The machine.
        workload: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// More peers than a guest can be told of.
    #[error("the network {network:?} has more members than a guest can be told of")]
    TooManyPeers {
        /// The network.
        network: String,
    },
}

/// Where the parts of Hypha lie.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The `vmm` executable. It takes the state directory from its environment.
    pub vmm: PathBuf,
    /// The shipped images.
    pub images: PathBuf,
}

impl Installation {
    /// Beside our own executable, unless `$HYPHA_VMM` and `$HYPHA_IMAGES` say otherwise.
    ///
    /// # Errors
    /// Our own path is unknown.
    pub fn find() -> io::Result<Self> {
        let exe = std::env::current_exe()?;
        let beside = |variable: &str, name: &str| {
            let given = std::env::var_os(variable).filter(|value: &OsString| !value.is_empty());
            let path = given.map_or_else(|| exe.with_file_name(name), PathBuf::from);
            std::path::absolute(path)
        };
        Ok(Self { vmm: beside("HYPHA_VMM", "vmm")?, images: beside("HYPHA_IMAGES", "images")? })
    }
}

/// How a machine is known on its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its public key.
    pub key: PublicKey,
    /// Where its sessions run.
    pub endpoint: SocketAddr,
}

/// A machine that is ready to be started, as often as need be.
#[derive(Debug)]
pub struct Prepared {
    /// Its configuration.
    pub config: VmConfig,
    /// What its disks need besides, in the same order.
    pub disks: Vec<Disk>,
    /// Who it is, if it has a network card.
    pub identity: Option<Identity>,
    /// The sockets that its process inherits; they outlive a restart, and so do their ports.
    pub sockets: Vec<UdpSocket>,
    /// The two ends of its card's uplink to the mesh node of this host. They outlive a restart too.
    pub uplink: Option<CardEnds>,
}

/// The host's own member of a network: the way in for published ports.
#[derive(Debug)]
pub struct Gateway {
    /// The network.
    pub network: String,
    /// Its key.
    pub key: Secret32,
    /// Its socket.
    pub socket: UdpSocket,
    /// Where its sessions run.
    pub endpoint: SocketAddr,
    /// The ports that lead through it.
    pub ports: Vec<GatewayPort>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayPort {
    /// The machine.
    pub workload: String,
    /// Where the host listens.
    pub listen: SocketAddr,
    /// The machine's public key.
    pub key: Public32,
    /// Where its sessions run.
    pub endpoint: SocketAddr,
    /// The guest's port.
    pub target: u16,
}

/// All that a deployment needs to run.
#[derive(Debug)]
pub struct Plan {
    /// The machines, in the order of the spec.
    pub machines: Vec<Prepared>,
    /// The way in for published ports; one per network that has any.
    pub gateways: Vec<Gateway>,
}

/// A machine's card: what the others must know of it.
struct Card {
    private: Secret32,
    public: PublicKey,
    socket: UdpSocket,
    endpoint: SocketAddr,
    uplink: Option<CardEnds>,
}

/// Makes the plan: reads or makes keys and directories, binds sockets, finds images.
///
/// `spec_folder` is where relative image paths start.
///
/// # Errors
/// A key, directory, socket or image can't be had.
pub fn plan(
    deployment: &Deployment,
    state: &DeploymentState,
    installation: &Installation,
    spec_folder: &Path,
) -> Result<Plan, LaunchError> {
    let mut images = Vec::new();
    for machine in &deployment.machines {
        images.push(find_image(machine, installation, spec_folder)?);
    }
    let mut cards = HashMap::new();
    for machine in &deployment.machines {
        if let Some(interface) = &machine.interface {
            cards.insert(machine.name.as_str(), card(machine, interface, state)?);
        }
    }
    let mut gateways = Vec::new();
    for network in &deployment.networks {
        gateways.extend(gateway(network, deployment, &cards, state)?);
    }
    let mut configs = Vec::new();
    for (machine, image) in deployment.machines.iter().zip(images) {
        let mut config = base_config(machine, image);
        let mut disks = Vec::new();
        for mount in &machine.mounts {
            let (disk, block) = Disk::plan(&mount.volume, mount.read_only, state)?;
            disks.push(disk);
            config.block.push(block);
        }
        if let (Some(interface), Some(card)) = (&machine.interface, cards.get(&*machine.name)) {
            let neighbours = Neighbours { deployment, interface, cards: &cards };
            let gateway = gateways.iter().find(|gateway| gateway.network == interface.network.name);
            config.env.push(("HYPHA_PEERS".to_owned(), neighbours.names(machine)?));
            config.net.push(neighbours.net_config(machine, card, gateway));
        }
        configs.push((config, disks));
    }
    let machines = configs.into_iter().map(|(config, disks)| {
        let card = cards.remove(config.name.as_str());
        let identity = card.as_ref().map(|card| {
            let (key, endpoint) = (card.public, card.endpoint);
            Identity { key, endpoint }
        });
        let (sockets, uplinks): (_, Vec<_>) =
            card.into_iter().map(|card| (card.socket, card.uplink)).unzip();
        let uplink = uplinks.into_iter().next().flatten();
        Prepared { config, disks, identity, sockets, uplink }
    });
    Ok(Plan { machines: machines.collect(), gateways })
}

fn find_image(
    machine: &Machine,
    installation: &Installation,
    spec_folder: &Path,
) -> Result<PathBuf, LaunchError> {
    let (name, path) = match &machine.image {
        Image::Shipped(name) => (name.clone(), installation.images.join(name)),
        Image::File(path) => (path.display().to_string(), spec_folder.join(path)),
    };
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => Ok(path),
        outcome => {
            let source = outcome.err().unwrap_or_else(|| io::ErrorKind::IsADirectory.into());
            Err(LaunchError::Image { name, workload: machine.name.clone(), path, source })
        }
    }
}

fn base_config(machine: &Machine, image: PathBuf) -> VmConfig {
    let mut env = machine.env.clone();
    if !machine.mounts.is_empty() {
        let places: Vec<_> = machine.mounts.iter().map(|mount| mount.mountpoint.as_str()).collect();
        env.push(("HYPHA_MOUNTS".to_owned(), places.join(",")));
    }
    VmConfig {
        version: VERSION,
        name: machine.name.clone(),
        image,
        memory_bytes: machine.memory_bytes,
        args: machine.args.clone(),
        env,
        block: Vec::new(),
        net: Vec::new(),
        die_with_parent: true,
        keeper_fd: None,
    }
}

fn card(
    machine: &Machine,
    interface: &Interface,
    state: &DeploymentState,
) -> Result<Card, LaunchError> {
    let private = state.workload_key(&machine.name)?;
    let public = PrivateKey::new(*private.expose()).public();
    let port = interface.mesh_port.unwrap_or(0);
    let (socket, endpoint) = bind(&machine.name, interface.network.listen, port)?;
    let ends =
        interface.network.attach.then(|| CardEnds::new(host_name(&machine.name))).transpose();
    let uplink =
        ends.map_err(|source| LaunchError::Uplink { workload: machine.name.clone(), source })?;
    Ok(Card { private, public, socket, endpoint, uplink })
}

/// What a machine is called in the mesh, if its name can be one of a host: in lower case.
fn host_name(machine: &str) -> Option<HostName> {
    machine.to_ascii_lowercase().parse().ok()
}

/// A socket, and where members on this host reach it.
fn bind(who: &str, ip: IpAddr, port: u16) -> Result<(UdpSocket, SocketAddr), LaunchError> {
    let address = SocketAddr::new(ip, port);
    let bound = UdpSocket::bind(address).and_then(|socket| {
        socket.set_nonblocking(true)?;
        make_room(&socket);
        let local = socket.local_addr()?;
        Ok((socket, local))
    });
    let (socket, mut endpoint) = bound.map_err(|source| LaunchError::Socket {
        workload: who.to_owned(),
        address,
        source,
    })?;
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => endpoint.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => endpoint.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok((socket, endpoint))
}

/// Room in the kernel for bursts of datagrams: what a guest hands over at once is more than a
/// socket's default holds. The host's limit (`net.core.rmem_max`, `wmem_max`) may allow less.
fn make_room(socket: &UdpSocket) {
    const SOCKET_BYTES: usize = 1 << 20;
    let receive = rustix::net::sockopt::set_socket_recv_buffer_size(socket, SOCKET_BYTES);
    let send = rustix::net::sockopt::set_socket_send_buffer_size(socket, SOCKET_BYTES);
    if let Err(error) = receive.and(send) {
        tracing::debug!(%error, "a socket keeps its default buffers");
    }
}

fn gateway(
    network: &Arc<Network>,
    deployment: &Deployment,
    cards: &HashMap<&str, Card>,
    state: &DeploymentState,
) -> Result<Option<Gateway>, LaunchError> {
    let mut ports = Vec::new();
    for machine in members(deployment, &network.name) {
        let Some(card) = cards.get(&*machine.name) else { continue };
        ports.extend(machine.ports.iter().map(|port| {
            let ip = if port.public { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
            GatewayPort {
                workload: machine.name.clone(),
                listen: SocketAddr::new(ip.into(), port.listen),
                key: Public32(card.public.0),
                endpoint: card.endpoint,
                target: port.target,
            }
        }));
    }
    if ports.is_empty() {
        return Ok(None);
    }
    let key = state.network_key(&network.name)?;
    let (socket, endpoint) = bind(&network.name, network.listen, 0)?;
    Ok(Some(Gateway { network: network.name.clone(), key, socket, endpoint, ports }))
}

fn members<'a>(deployment: &'a Deployment, network: &str) -> impl Iterator<Item = &'a Machine> {
    let on_it = move |machine: &&Machine| {
        machine.interface.as_ref().is_some_and(|interface| interface.network.name == network)
    };
    deployment.machines.iter().filter(on_it)
}

/// A machine's view of its network.
struct Neighbours<'a> {
    deployment: &'a Deployment,
    interface: &'a Interface,
    cards: &'a HashMap<&'a str, Card>,
}

impl Neighbours<'_> {
    /// The other machines of the network.
    fn others(&self, machine: &Machine) -> impl Iterator<Item = (&Machine, &Card)> {
        let name = machine.name.clone();
        members(self.deployment, &self.interface.network.name)
            .filter(move |other| other.name != name)
            .filter_map(|other| Some((other, self.cards.get(&*other.name)?)))
    }

    /// `name=address` of every other machine, for the guest.
    fn names(&self, machine: &Machine) -> Result<String, LaunchError> {
        let pair =
            |(other, card): (&Machine, &Card)| format!("{}={}", other.name, card.public.address());
        let pairs: Vec<_> = self.others(machine).map(pair).collect();
        let text = pairs.join(",");
        if text.len() > PEERS_BYTES_MAX {
            let network = self.interface.network.name.clone();
            return Err(LaunchError::TooManyPeers { network });
        }
        Ok(text)
    }

    fn net_config(&self, machine: &Machine, card: &Card, gateway: Option<&Gateway>) -> NetConfig {
        let mut peers: Vec<_> = self
            .others(machine)
            .map(|(other, card)| PeerConfig {
                public_key: Public32(card.public.0),
                endpoint: Some(card.endpoint),
                addresses: ipv4(other).map(|(ip, _)| IpAddr::V4(ip)).collect(),
            })
            .collect();
        peers.extend(self.interface.network.peers.iter().map(|peer| PeerConfig {
            public_key: peer.key,
            endpoint: peer.endpoint,
            addresses: Vec::new(),
        }));
        let mut allow: Vec<_> =
            self.interface.allow.iter().flat_map(|rule| self.rules(rule)).collect();
        if let Some(gateway) = gateway.filter(|_| !machine.ports.is_empty()) {
            let from = Public32(PrivateKey::new(*gateway.key.expose()).public().0);
            let endpoint = Some(gateway.endpoint);
            peers.push(PeerConfig { public_key: from, endpoint, addresses: Vec::new() });
            allow.extend(machine.ports.iter().map(|port| AllowRule {
                from: AllowFrom::Key(from),
                protocol: Protocol::Tcp,
                port: Some(port.target),
            }));
        }
        let egress = self.interface.egress.as_ref();
        let egress = egress.map(|rules| rules.iter().flat_map(|rule| self.rules(rule)));
        NetConfig {
            private_key: card.private.clone(),
            socket_fd: card.socket.as_raw_fd(),
            uplink_fd: card.uplink.as_ref().map(|ends| ends.card.as_raw_fd()),
            exit: self.interface.network.exit,
            ipv4: ipv4(machine).collect(),
            peers,
            allow,
            egress: egress.map(Iterator::collect),
            packets_per_second: self.interface.limits.packets_per_second,
            bytes_per_second: self.interface.limits.bytes_per_second,
            requires_post_quantum: self.interface.requires_post_quantum,
            certificates: self.interface.certificates.clone(),
        }
    }

    fn rules(&self, rule: &spec::deployment::Allow) -> Vec<AllowRule> {
        let from = match &rule.from {
            From::Key(key) => vec![AllowFrom::Key(*key)],
            From::Label { group, name } => {
                vec![AllowFrom::Label { group: *group, name: name.clone() }]
            }
            From::Machines(names) => {
                let cards = names.iter().filter_map(|name| self.cards.get(name.as_str()));
                cards.map(|card| AllowFrom::Key(Public32(card.public.0))).collect()
            }
        };
        let rule = |from| AllowRule { from, protocol: rule.protocol, port: rule.port };
        from.into_iter().map(rule).collect()
    }
}

fn ipv4(machine: &Machine) -> impl Iterator<Item = (Ipv4Addr, u8)> {
    machine.interface.iter().filter_map(|interface| interface.ipv4)
}
