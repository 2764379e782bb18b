//! What one `vmm` process is told: written as JSON by `hypha` to an inherited descriptor, read once
//! by `vmm`, and erased. Not an interface for people; `version` guards against mixed builds.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::secret::{Public32, Secret32};

/// The version of this format; `vmm` refuses any other.
pub const VERSION: u32 = 4;

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// [`VERSION`].
    pub version: u32,
    /// The workload's name, for messages.
    pub name: String,
    /// The guest's ELF image.
    pub image: PathBuf,
    /// Guest RAM in bytes, a multiple of 4096.
    pub memory_bytes: u64,
    /// The guest's arguments, without the program's own name.
    #[serde(default)]
    pub args: Vec<String>,
    /// The guest's environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Block devices, in the order in which the guest numbers them.
    #[serde(default)]
    pub block: Vec<BlockConfig>,
    /// Network cards, in the order in which the guest numbers them.
    #[serde(default)]
    pub net: Vec<NetConfig>,
    /// Whether the VM ends when the process that started it does.
    #[serde(default)]
    pub die_with_parent: bool,
    /// An inherited, connected unix socket to a keeper: `vmm` sends it the descriptors of its vCPU
    /// and VM (one message, SCM_RIGHTS), so that tearing the VM down isn't part of its exit. The
    /// keeper closes them when the process is gone.
    #[serde(default)]
    pub keeper_fd: Option<i32>,
}

/// A dispersed volume as a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// The volume's name in the spec.
    pub name: String,
    /// The volume key (DEK).
    pub key: Secret32,
    /// The nodes: one per shard, in shard order; then spares.
    pub nodes: Vec<NodeConfig>,
    /// How many shards hold data (*k*).
    pub data_shards: u8,
    /// How many shards hold parity (*m*): so many nodes may be lost.
    pub parity_shards: u8,
    /// The volume's size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// When a flush is answered.
    #[serde(default)]
    pub policy: VolumePolicy,
    /// Whether the guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the volume is made if its nodes hold nothing. False once it was made, so that a
    /// volume whose nodes are all empty is an error, not an empty disk.
    pub create: bool,
    /// What is known of a volume with shard servers; directories alone are kept apart by locks.
    #[serde(default)]
    pub remote: Option<RemoteConfig>,
}

/// What is known of a volume that has shard servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteConfig {
    /// The volume's uuid.
    pub uuid: [u8; 16],
    /// Who opens it, to the volume's register: an id that only the holder of a lock uses, so that
    /// its next process takes over from the last one at once.
    pub holder: [u8; 16],
    /// The holder's name, for people.
    pub holder_name: String,
    /// How long the volume is held without renewing, if it is made, in nanoseconds.
    pub lease_ns: u64,
    /// An inherited `SOCK_SEQPACKET` unix socket to a process that may connect: over it `vmm` asks
    /// for a new socket to a node (see `storage_vdev::wire::courier`). Without it, a connection that
    /// is lost stays lost.
    #[serde(default)]
    pub courier_fd: Option<i32>,
}

/// A node of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Where it is.
    pub place: NodePlace,
    /// What tells it from all others, whatever its address; not used of a directory that can say
    /// its own.
    pub id: [u8; 16],
    /// Its name, for people.
    pub name: String,
    /// Its failure domain: two nodes of one domain are lost together.
    pub domain: String,
    /// Whether it is an acceptor of the volume's register.
    #[serde(default)]
    pub acceptor: bool,
}

impl NodeConfig {
    /// A directory of this host, with a failure domain of its own, of a volume on directories alone.
    #[must_use]
    pub fn directory(path: PathBuf) -> Self {
        let name = path.display().to_string();
        let (id, domain) = ([0; 16], name.clone());
        Self { place: NodePlace::Directory(path), id, name, domain, acceptor: false }
    }
}

/// Where a node of a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NodePlace {
    /// A directory of this host.
    Directory(PathBuf),
    /// A shard server.
    Server {
        /// The server's static X25519 key.
        key: Public32,
        /// Which of its stores.
        store: String,
        /// The inherited stream socket, connected or connecting; absent if it can't be reached now.
        fd: Option<i32>,
    },
}

/// When a flush is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumePolicy {
    /// When it is durable on one node of this host.
    Local,
    /// When it is durable on *m* + 1 nodes in different failure domains.
    #[default]
    Quorum,
    /// When it is in a segment on all nodes.
    Sealed,
}

/// A network card on the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The workload's X25519 private key: its identity on the mesh.
    pub private_key: Secret32,
    /// The inherited, bound UDP socket on which the VM's sessions run.
    pub socket_fd: i32,
    /// An inherited, connected `SOCK_SEQPACKET` socket to the router of the host's node (see
    /// `net_vdev::uplink`): through it the card reaches members that nobody listed.
    #[serde(default)]
    pub uplink_fd: Option<i32>,
    /// The member through which the guest reaches addresses outside of the mesh, over the uplink.
    #[serde(default)]
    pub exit: Option<Public32>,
    /// IPv4 addresses of the card with their prefix lengths (the IPv6 /128 follows from the key).
    #[serde(default)]
    pub ipv4: Vec<(std::net::Ipv4Addr, u8)>,
    /// The peers with whom sessions may exist.
    pub peers: Vec<PeerConfig>,
    /// Who may open flows to this card; everybody else is dropped.
    #[serde(default)]
    pub allow: Vec<AllowRule>,
    /// To whom it may open flows ([`AllowRule::from`] is the other side); to anybody without a list.
    #[serde(default)]
    pub egress: Option<Vec<AllowRule>>,
    /// IP packets per second in each direction; not 0.
    #[serde(default)]
    pub packets_per_second: Option<u64>,
    /// Their bytes per second; not 0.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// Whether peers that can't do ML-KEM-768 are refused.
    #[serde(default)]
    pub requires_post_quantum: bool,
    /// Certificates of labels that the card shows, in hexadecimal digits.
    #[serde(default)]
    pub certificates: Vec<String>,
}

/// A peer of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// The peer's X25519 public key.
    pub public_key: Public32,
    /// Where it is reached; learned from its first authenticated datagram if absent.
    pub endpoint: Option<SocketAddr>,
    /// The addresses that the peer may use inside the mesh, besides the one of its key.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// A firewall rule: a flow that `from` opens is let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowRule {
    /// Who may open the flow.
    pub from: AllowFrom,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port; absent for all ports (and for ICMP).
    pub port: Option<u16>,
}

/// Whom a firewall rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AllowFrom {
    /// The holder of a key.
    Key(Public32),
    /// Whoever shows a certificate of a label.
    Label {
        /// The key of the label's group.
        group: Public32,
        /// The label.
        name: String,
    },
}

/// A protocol that the firewall knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6 echo.
    Icmp,
}
