//! What one `vmm` process is told: written as JSON by `hypha` to an inherited descriptor, read once
//! by `vmm`, and erased. Not an interface for people; `version` guards against mixed builds.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::secret::{Public32, Secret32};

/// The version of this format; `vmm` refuses any other.
pub const VERSION: u32 = 1;

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
    /// The shard directories, `data_shards + parity_shards` of them, in shard order.
    pub directories: Vec<PathBuf>,
    /// How many shards hold data (*k*).
    pub data_shards: u8,
    /// How many shards hold parity (*m*): so many directories may be lost.
    pub parity_shards: u8,
    /// The volume's size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// Whether the guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the volume is made if its directories hold nothing. False once it was made, so that
    /// a volume whose directories are all gone is an error, not an empty disk.
    pub create: bool,
}

/// A network card on the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The workload's X25519 private key: its identity on the mesh.
    pub private_key: Secret32,
    /// The inherited, bound UDP socket on which the VM's sessions run.
    pub socket_fd: i32,
    /// IPv4 addresses of the card with their prefix lengths (the IPv6 /128 follows from the key).
    #[serde(default)]
    pub ipv4: Vec<(std::net::Ipv4Addr, u8)>,
    /// The peers with whom sessions may exist.
    pub peers: Vec<PeerConfig>,
    /// Who may open flows to this card; everybody else is dropped.
    #[serde(default)]
    pub allow: Vec<AllowRule>,
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
    /// The key of the peer who may open the flow.
    pub from: Public32,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port; absent for all ports (and for ICMP).
    pub port: Option<u16>,
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
