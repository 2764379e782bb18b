//! The control socket of a node: what `hypha mesh` asks, and what it is answered.
//!
//! One JSON object per line each way, one order per connection. The socket lies in the state's
//! folder (0700), so only the owner of the state can connect. Connections are served by a thread of
//! their own; the node answers from its turn and never waits for a reader.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path as FilePath, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use mesh_router::LinkId;
use net_vdev::announcement::Role;
use net_vdev::certificate::{Alias, HostName};
use net_vdev::endpoint::{Path, PathView, PeerView};
use net_vdev::{DropReason, PublicKey};
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use crate::acl::AclEntry;
use crate::core::Core;
use crate::daemon::{NodeError, SocketCounters};
use crate::uplinks::UplinkCounters;

/// The most bytes of an order.
const ORDER_BYTES_MAX: u64 = 1 << 20;
/// How long a connection may take to say what it wants, and the node to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nobody is served after a connection that failed.
const PAUSE: Duration = Duration::from_millis(20);

/// What a node is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Everything: the node, its peers, neighbours and routes.
    Status,
    /// Ask a member once whether it is there.
    Ping {
        /// Its address.
        to: Ipv6Addr,
    },
    /// Go by these rules from now on.
    Rules {
        /// Who may open flows to the host.
        rules: Vec<AclEntry>,
    },
    /// Show these certificates of labels to peers from now on.
    Certificates {
        /// Each in hexadecimal digits.
        certificates: Vec<String>,
    },
    /// Find the routers on the way to a member.
    Trace {
        /// Its address.
        to: Ipv6Addr,
    },
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Order::Status`].
    Status(Box<Status>),
    /// To [`Order::Ping`].
    Pong {
        /// The member's key.
        key: String,
        /// The alias that led to it, if it was asked for by one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alias: Option<AliasStatus>,
        /// How long it took, in microseconds.
        round_trip_us: u64,
        /// On which way.
        path: String,
    },
    /// To [`Order::Trace`]: the routers, the member itself last.
    Trace {
        /// The alias that led to the member, if it was asked for by one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alias: Option<AliasStatus>,
        /// Each hop: `None` for one that did not answer.
        hops: Vec<Option<Hop>>,
    },
    /// It was done.
    Done,
    /// It could not be done.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

/// A router on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Its address.
    pub address: Ipv6Addr,
    /// How long its answer took, in microseconds.
    pub round_trip_us: u64,
}

/// An address that a workload has in the /64 of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasStatus {
    /// The address.
    pub address: Ipv6Addr,
    /// The workload's key.
    pub key: String,
    /// The node's key.
    pub node: String,
    /// When its certificate ends, in seconds since 1970.
    pub expires_unix_s: u64,
}

impl AliasStatus {
    pub(crate) fn of(alias: &Alias) -> Self {
        Self {
            address: alias.address,
            key: alias.workload.to_string(),
            node: alias.node.to_string(),
            expires_unix_s: alias.expires_unix_s,
        }
    }
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's key.
    pub key: String,
    /// Its address.
    pub address: Ipv6Addr,
    /// Its zone.
    pub zone: u16,
    /// Where it listens for datagrams.
    pub listening: Vec<SocketAddr>,
    /// Where it takes TCP connections.
    pub listening_tcp: Vec<SocketAddr>,
    /// Where others see it.
    pub observed: Vec<SocketAddr>,
    /// The network interface of its host.
    pub tun: Option<String>,
    /// The members attached to it: the VMs of its host.
    #[serde(default)]
    pub attached: Vec<AttachedStatus>,
    /// The aliases of those members in this node's /64.
    #[serde(default)]
    pub aliases: Vec<AliasStatus>,
    /// The aliases in other nodes' /64 that this node has a certificate of.
    #[serde(default)]
    pub known_aliases: Vec<AliasStatus>,
    /// The members that it has or had sessions with.
    pub peers: Vec<PeerStatus>,
    /// The neighbours of its router.
    pub neighbours: Vec<NeighbourStatus>,
    /// The routes.
    pub routes: Vec<RouteStatus>,
    /// Counters by name.
    pub counters: Vec<(String, u64)>,
}

/// A member attached to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedStatus {
    /// Its key.
    pub key: String,
    /// Its address.
    pub address: Ipv6Addr,
    /// Its name on this node, if it has one.
    #[serde(default)]
    pub name: Option<String>,
}

/// A member with a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its key.
    pub key: String,
    /// Its address.
    pub address: Ipv6Addr,
    /// Whether this node was configured to know it.
    pub is_configured: bool,
    /// Whether there is a session.
    pub is_connected: bool,
    /// The bytes of packets sent and received.
    pub bytes_sent: u64,
    /// See [`PeerStatus::bytes_sent`].
    pub bytes_received: u64,
    /// The ways to it.
    pub paths: Vec<PathStatus>,
    /// What keeps it from being reached as it should be, and what to do.
    pub advice: Option<String>,
}

/// A way to a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Where it leads.
    pub path: String,
    /// Whether data takes it.
    pub is_current: bool,
    /// Whether it answers probes.
    pub is_alive: bool,
    /// The smoothed round-trip time in microseconds.
    pub round_trip_us: Option<u64>,
}

/// A neighbour of the router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourStatus {
    /// Its key.
    pub key: String,
    /// Its address.
    pub address: Ipv6Addr,
    /// Its zone, as it says.
    #[serde(default)]
    pub zone: u16,
    /// Whether frames may be sent to it.
    pub is_usable: bool,
    /// The smallest round trip of late, in microseconds.
    pub round_trip_us: u64,
    /// What the link costs, in microseconds.
    pub cost_us: u32,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// The prefix, as `address/bits`.
    pub prefix: String,
    /// Whose it is.
    pub key: String,
    /// The zone of the node that it leads to; `None` for a workload.
    #[serde(default)]
    pub zone: Option<u16>,
    /// What it costs, in microseconds.
    pub cost_us: Option<u32>,
    /// The neighbour that it goes to; `None` for this node.
    pub next: Option<String>,
    /// The neighbour that takes its place at once.
    pub next_best: Option<String>,
}

/// An order and where its answer goes.
pub(crate) struct Asked {
    pub(crate) order: Order,
    pub(crate) reply: SyncSender<Answer>,
}

/// The listening side: gives orders to the node's thread.
pub(crate) struct Desk {
    path: PathBuf,
    asked: Receiver<Asked>,
    bell: OwnedFd,
}

impl Desk {
    /// Listens at `path`. A socket that nobody answers on any more is replaced.
    pub(crate) fn open(path: &FilePath) -> Result<Self, NodeError> {
        let failed = |source: io::Error| NodeError::State { path: path.to_owned(), source };
        if UnixStream::connect(path).is_ok() {
            return Err(NodeError::Busy(path.to_owned()));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).map_err(failed)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = bell.map_err(|errno| failed(errno.into()))?;
        let for_threads = bell.try_clone().map_err(failed)?;
        let (sender, asked) = channel();
        std::thread::Builder::new()
            .name("orders".to_owned())
            .spawn(move || serve(&listener, &sender, &for_threads))
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), asked, bell })
    }

    /// The orders that came in.
    pub(crate) fn take(&mut self) -> Vec<Asked> {
        let mut count = [0; 8];
        if rustix::io::read(&self.bell, &mut count).is_err() {
            return Vec::new();
        }
        self.asked.try_iter().collect()
    }
}

impl AsFd for Desk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the control socket stays");
        }
    }
}

/// Serves one connection after the other, as long as there is a node.
fn serve(listener: &UnixListener, sender: &Sender<Asked>, bell: &OwnedFd) {
    for stream in listener.incoming() {
        let outcome = stream.and_then(|stream| serve_one(&stream, sender, bell));
        match outcome {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(%error, "an order was not answered");
                // Perhaps there is no descriptor left: to ask again at once would find the same.
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Whether the node is still there.
fn serve_one(stream: &UnixStream, sender: &Sender<Asked>, bell: &OwnedFd) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(ORDER_BYTES_MAX)).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Err(error) => Answer::Failed { reason: format!("no order: {error}") },
        Ok(order) => {
            let (reply, answers) = sync_channel(1);
            if sender.send(Asked { order, reply }).is_err() {
                return Ok(false);
            }
            rustix::io::write(bell, &1u64.to_ne_bytes())?;
            answers.recv_timeout(PATIENCE).unwrap_or_else(|_| Answer::Failed {
                reason: "the node did not answer in time".to_owned(),
            })
        }
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    let mut stream = stream;
    stream.write_all(&text)?;
    Ok(true)
}

/// What only the daemon knows of itself.
pub(crate) struct NodeFacts<'a> {
    pub(crate) now_ns: u64,
    pub(crate) listening: Vec<SocketAddr>,
    pub(crate) listening_tcp: Vec<SocketAddr>,
    /// Where connections lead, by number.
    pub(crate) streams: BTreeMap<u32, SocketAddr>,
    pub(crate) tun: Option<String>,
    pub(crate) zone: u16,
    pub(crate) sockets: SocketCounters,
    pub(crate) uplinks: UplinkCounters,
    pub(crate) named: &'a BTreeMap<HostName, PublicKey>,
    pub(crate) exit: Vec<(String, u64)>,
}

/// How the node is.
pub(crate) fn status(core: &Core, facts: NodeFacts<'_>) -> Answer {
    let endpoint = core.endpoint();
    let names: BTreeMap<_, _> = facts.named.iter().map(|(name, key)| (*key, *name)).collect();
    let attached_status = |key: &PublicKey| AttachedStatus {
        key: key.to_string(),
        address: key.address(),
        name: names.get(key).map(HostName::to_string),
    };
    let key_of = |link: LinkId| {
        let neighbour = core.router().neighbours().find(|neighbour| neighbour.link == link);
        neighbour.map(|neighbour| neighbour.key.to_string())
    };
    let neighbours = core.router().neighbours().map(|neighbour| NeighbourStatus {
        key: neighbour.key.to_string(),
        address: neighbour.key.address(),
        zone: neighbour.zone,
        is_usable: neighbour.is_usable,
        round_trip_us: neighbour.round_trip_ns / 1000,
        cost_us: neighbour.cost_us,
    });
    let routes = core.router().routes().map(|route| RouteStatus {
        prefix: format!("{}/{}", route.prefix.0, route.prefix.1),
        key: route.key.to_string(),
        zone: match route.role {
            Role::Node { zone } => Some(zone),
            Role::Workload => None,
        },
        cost_us: route.metric_us,
        next: route.primary.and_then(key_of),
        next_best: route.alternate.and_then(key_of),
    });
    Answer::Status(Box::new(Status {
        key: endpoint.key().to_string(),
        address: endpoint.address(),
        zone: facts.zone,
        peers: endpoint.peers().map(|peer| peer_status(core, &facts, &peer)).collect(),
        listening: facts.listening,
        listening_tcp: facts.listening_tcp,
        observed: endpoint.observed().collect(),
        tun: facts.tun,
        aliases: core.own_aliases().map(AliasStatus::of).collect(),
        known_aliases: core.known_aliases(facts.now_ns).map(AliasStatus::of).collect(),
        attached: core.attached().values().map(attached_status).collect(),
        neighbours: neighbours.collect(),
        routes: routes.collect(),
        counters: counters(core, facts.sockets, facts.uplinks)
            .into_iter()
            .chain(facts.exit)
            .collect(),
    }))
}

fn peer_status(core: &Core, facts: &NodeFacts<'_>, peer: &PeerView) -> PeerStatus {
    let name = |path: &Path| match path {
        Path::Stream(number) => facts.streams.get(number).map(|at| format!("tcp {at}")),
        _ => None,
    };
    let path = |view: &PathView| PathStatus {
        path: name(&view.path).unwrap_or_else(|| view.path.to_string()),
        is_current: view.is_current,
        is_alive: view.is_alive,
        round_trip_us: view.round_trip_ns.map(|round_trip_ns| round_trip_ns / 1000),
    };
    PeerStatus {
        key: peer.key.to_string(),
        address: peer.key.address(),
        is_configured: peer.is_listed,
        is_connected: peer.is_connected,
        bytes_sent: peer.bytes_sent,
        bytes_received: peer.bytes_received,
        paths: peer.paths.iter().map(path).collect(),
        advice: core.advice(facts.now_ns, peer),
    }
}

/// All counters of a node, by the names that metrics give them.
fn counters(core: &Core, sockets: SocketCounters, cards: UplinkCounters) -> Vec<(String, u64)> {
    let member = core.endpoint().counters();
    let frames = core.counters();
    let router = core.router().counters();
    let named = [
        ("packets_sent", member.packets_sent),
        ("bytes_sent", member.bytes_sent),
        ("packets_received", member.packets_received),
        ("bytes_received", member.bytes_received),
        ("packets_split", member.packets_split),
        ("handshakes", member.handshakes),
        ("initiations_sent", member.initiations_sent),
        ("cookies_sent", member.cookies_sent),
        ("events_lost", member.events_lost),
        ("frames_forwarded", frames.frames_forwarded),
        ("frames_unexpected", frames.frames_unexpected),
        ("frames_odd", frames.frames_odd),
        ("frames_unroutable", frames.frames_unroutable),
        ("frames_expired", frames.frames_expired),
        ("aliases_refused", frames.aliases_refused),
        ("links_refused", frames.links_refused),
        ("router_sent_bytes", router.sent_bytes),
        ("router_sent", router.sent),
        ("router_received", router.received),
        ("router_malformed", router.malformed),
        ("router_too_many", router.too_many),
        ("router_forged", router.forged),
        ("router_refused", router.refused),
        ("socket_send_full", sockets.send_full),
        ("socket_send_refused", sockets.send_refused),
        ("socket_send_too_large", sockets.send_too_large),
        ("socket_receive_failed", sockets.receive_failed),
        ("tun_refused", sockets.tun_refused),
        ("cards_full", cards.full),
        ("cards_odd", cards.odd),
        ("cards_refused", cards.refused),
        ("cards_local", cards.local),
    ];
    let drops = DropReason::ALL.into_iter().filter(|reason| member.dropped(*reason) > 0);
    let drops = drops.map(|reason| (format!("dropped_{}", reason.name()), member.dropped(reason)));
    named.into_iter().map(|(name, count)| (name.to_owned(), count)).chain(drops).collect()
}

/// Asks the node whose control socket is at `path`.
///
/// # Errors
/// There is no node, or it went away.
pub fn ask(path: &FilePath, order: &Order) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    let mut text = serde_json::to_vec(order)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
