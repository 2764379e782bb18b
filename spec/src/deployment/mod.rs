//! The workload spec that people write (`docs/spec.md`), parsed once into checked types.
//!
//! ```text
//! text ─► JSON (serde_json: strict grammar, nesting limit; jsonc-parser: where each value is)
//!      ─► shapes (check, against the tables that the JSON Schema also comes from)
//!      ─► types (build: references, addresses, ports, everything between two values)
//! ```
//!
//! A [`Deployment`] can't hold a reference that leads nowhere, an address that two machines share
//! or a size out of range: whoever has one need not look again.

mod build;
mod check;
mod form;
mod problem;
mod schema;
mod shape;
mod tables;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

pub use problem::{Conflict, Problem, Problems, Reason};
pub use schema::schema;

use crate::node::NodeSpec;
use crate::secret::Public32;
use crate::vm::{Protocol, VolumePolicy};

/// The largest spec, in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// What memory and volume sizes are multiples of, in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// The least memory of a machine, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 2 << 20;

/// The most memory of a machine, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 128 << 30;

/// A machine's memory if the spec does not say, in bytes.
pub const MEMORY_BYTES_DEFAULT: u64 = 128 << 20;

/// The smallest volume, in bytes.
pub const VOLUME_BYTES_MIN: u64 = 1 << 20;

/// The largest volume, in bytes.
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;

/// The most bytes of a machine's arguments and environment together, a terminator each; the rest
/// of the boot page's room is for what Hypha adds.
pub const STRINGS_BYTES_MAX: usize = 16 << 10;

/// Networks, volumes and machines that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// Its identity on this host: a DNS label.
    pub name: String,
    /// The networks, in the order of the spec.
    pub networks: Vec<Arc<Network>>,
    /// The volumes, in the order of the spec.
    pub volumes: Vec<Arc<Volume>>,
    /// The machines, in the order of the spec.
    pub machines: Vec<Machine>,
}

/// A network: its members have sessions with each other and with its outside peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Where its members' IPv4 addresses come from; without it they have IPv6 only.
    pub subnet: Option<Subnet>,
    /// The host's address that the members' UDP sockets are bound to.
    pub listen: IpAddr,
    /// Mesh members outside this deployment.
    pub peers: Vec<Peer>,
    /// Whether its members are attached to the mesh node of their host, if one runs.
    pub attach: bool,
    /// The key of the member through which its members reach what is outside of the mesh.
    pub exit: Option<Public32>,
}

/// A mesh member outside the deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its X25519 public key.
    pub key: Public32,
    /// Where it is reached; without it, it calls first.
    pub endpoint: Option<SocketAddr>,
}

/// An IPv4 subnet without host bits, from /8 to /30.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    address: Ipv4Addr,
    prefix_len: u8,
}

impl Subnet {
    /// Parses `a.b.c.d/n`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix_len: u8 = if digits { prefix.parse().ok()? } else { return None };
        let address: Ipv4Addr = address.parse().ok()?;
        let subnet = Self { address, prefix_len };
        let in_range = (8..=30).contains(&prefix_len);
        (in_range && address.to_bits() & subnet.host_mask() == 0).then_some(subnet)
    }

    /// The prefix length, 8 to 30.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Whether `ip` is an address of the subnet that a member may have: not the network's own, not
    /// the broadcast address.
    #[must_use]
    pub fn has_host(&self, ip: Ipv4Addr) -> bool {
        let host = ip.to_bits() & self.host_mask();
        ip.to_bits() ^ host == self.address.to_bits() && host != 0 && host != self.host_mask()
    }

    /// The addresses that are given out automatically: all but the first, which stays free for a
    /// gateway.
    pub fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let base = self.address.to_bits();
        (2..self.host_mask()).map(move |host| Ipv4Addr::from_bits(base | host))
    }

    fn host_mask(&self) -> u32 {
        u32::MAX.checked_shr(u32::from(self.prefix_len)).unwrap_or(0)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// A dispersed, encrypted volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its size, a multiple of [`PAGE_BYTES`].
    pub size_bytes: u64,
    /// Shards with data (*k*), 1 to 32.
    pub data_shards: u8,
    /// Shards with parity (*m*), 0 to 32: so many may be lost.
    pub parity_shards: u8,
    /// Where the shards lie, in shard order, then spares; empty: in the state directory. No two
    /// are the same, and no other volume has a directory of them.
    pub nodes: Vec<NodeSpec>,
    /// When a flush is answered.
    pub policy: VolumePolicy,
}

/// A virtual machine. It has one vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it runs.
    pub image: Image,
    /// Its memory, a multiple of [`PAGE_BYTES`].
    pub memory_bytes: u64,
    /// Its volumes, in the order of the guest's block devices. No other machine has any of them.
    pub mounts: Vec<Mount>,
    /// Its network card.
    pub interface: Option<Interface>,
    /// What the host publishes of it; empty without an interface.
    pub ports: Vec<PublishedPort>,
    /// The guest's arguments, without the program's name.
    pub args: Vec<String>,
    /// The guest's environment, sorted by name.
    pub env: Vec<(String, String)>,
    /// When it is started again; `None` leaves it to whoever runs it (`hypha run`: never).
    pub restart: Option<Restart>,
}

/// What a machine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// An image shipped with Hypha.
    Shipped(String),
    /// A file; a relative path starts at the spec's folder.
    File(PathBuf),
}

/// A volume in a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The volume.
    pub volume: Arc<Volume>,
    /// Where the guest shows it: an absolute path.
    pub mountpoint: String,
    /// Whether the guest may not write.
    pub read_only: bool,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The network.
    pub network: Arc<Network>,
    /// The address and prefix length in the network's subnet, if that has one.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// The host's UDP port of the card; without it the host chooses one.
    pub mesh_port: Option<u16>,
    /// Who may open flows to this machine; everybody else is dropped.
    pub allow: Vec<Allow>,
    /// To whom it may open flows ([`Allow::from`] is the other side); to anybody without a list.
    pub egress: Option<Vec<Allow>>,
    /// How much of its traffic passes in each direction.
    pub limits: Limits,
    /// Whether it refuses peers that can't do ML-KEM-768.
    pub requires_post_quantum: bool,
    /// Certificates of labels that it shows to its peers, in hexadecimal digits.
    pub certificates: Vec<String>,
}

/// A firewall rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Who may open the flow.
    pub from: From,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port; `None` for all, and for ICMP.
    pub port: Option<u16>,
}

/// How much of a machine's traffic passes, in each direction for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// IP packets per second; not 0.
    pub packets_per_second: Option<u64>,
    /// Their bytes per second; not 0.
    pub bytes_per_second: Option<u64>,
}

/// Whom a firewall rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// The holder of a key.
    Key(Public32),
    /// Machines of the same network, by name: one, or all with a label. Never empty.
    Machines(Vec<String>),
    /// Whoever shows a certificate of a label, from anywhere.
    Label {
        /// The key of the label's group.
        group: Public32,
        /// The label: 1 to 64 characters `a-z 0-9 - . _ =`, at both ends a letter or a digit.
        name: String,
    },
}

/// A TCP port of the guest that the host listens for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedPort {
    /// The host's port.
    pub listen: u16,
    /// The guest's port.
    pub target: u16,
    /// Whether to listen on all addresses of the host instead of loopback.
    pub public: bool,
}

/// When a machine that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// After which ends.
    pub policy: RestartPolicy,
    /// How many restarts in a row are tried; `None` for no limit.
    pub max_retries: Option<u32>,
    /// The pause before the first restart; it doubles with each.
    pub backoff_initial: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// A run of this length counts as healthy: pause and retries start anew.
    pub reset_after: Duration,
}

impl Restart {
    /// The rule with this policy and the usual pauses: 1 s doubling to 60 s, reset after 10 min.
    #[must_use]
    pub const fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            max_retries: None,
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            reset_after: Duration::from_secs(600),
        }
    }
}

/// After which ends a machine is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// After every end.
    Always,
    /// After a non-zero exit code or a signal.
    OnFailure,
    /// After none.
    Never,
}

/// Parses and checks a spec.
///
/// # Errors
/// Everything that is wrong with it, up to a limit.
pub fn parse(text: &str) -> Result<Deployment, Problems> {
    let mut report = problem::Report::new(text);
    if text.len() > TEXT_BYTES_MAX {
        report.add(0, "", Reason::TooLarge { bytes: text.len() });
        return report.finish(None);
    }
    // The strict grammar and the nesting limit (128) are serde_json's; the tree with positions,
    // whose parser is more lenient, is only made of a text that passed.
    if let Err(error) = serde_json::from_str::<serde_json::Value>(text) {
        return Err(Problems::one(syntax_problem(&error)));
    }
    let tree = parse_to_ast(text, &CollectOptions::default(), &strict());
    let value = tree.map(|tree| tree.value);
    let Ok(Some(value)) = value else {
        let reason = match value {
            Err(error) => Reason::Syntax(error.kind().to_string().to_lowercase()),
            Ok(_) => Reason::Syntax("expected value".to_owned()),
        };
        report.add(0, "", reason);
        return report.finish(None);
    };
    let root = check::Node::root(&value);
    check::check(&root, &shape::Shape::Object(&tables::DEPLOYMENT), &mut report);
    let deployment = if report.is_clean() { build::build(&root, &mut report) } else { None };
    report.finish(deployment)
}

/// Parses and checks the bytes of a spec file.
///
/// # Errors
/// As [`parse`]; also for bytes that are not UTF-8.
pub fn parse_bytes(bytes: &[u8]) -> Result<Deployment, Problems> {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(text),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let valid = String::from_utf8_lossy(valid);
            let mut report = problem::Report::new(&valid);
            report.add(valid.len(), "", Reason::NotUtf8);
            report.finish(None)
        }
    }
}

fn strict() -> ParseOptions {
    ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    }
}

fn syntax_problem(error: &serde_json::Error) -> Problem {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
    Problem {
        line: error.line().max(1),
        column: error.column().max(1),
        pointer: String::new(),
        reason: Reason::Syntax(message),
    }
}
