//! `hypha node prove`: the daemon that answers pulses, watches others and keeps filler.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use hypha_chain::B256;
use net_vdev::PublicKey;
use proof_node::chain::follower::cadence_of;
use proof_node::daemon::{self, Aggregation, Config, DaemonError, Event};
use proof_node::filler::Place;
use proof_node::metrics::Metrics;
use proof_node::shards;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::arguments::NodeKeyArguments;
use super::{network, number_of};
use crate::chain::amount::parse_mib;
use crate::chain::failure::Failure;
use crate::chain::reach::{ChainArguments, Reach};
use crate::files::read_regular;
use crate::keys::arguments::PassphraseArguments;
use crate::{keys, scrape, state};

/// Where nodes listen in the mesh.
pub const PORT: u16 = 7412;
/// Of a disk whose folder has no stated part to keep free, a twentieth stays free.
const KEEP_FREE_SHARE: u64 = 20;
/// The longest list of peers.
const PEERS_BYTES_MAX: u64 = 16 << 20;
/// How often sockets look whether the daemon stops.
const TICK: Duration = Duration::from_millis(100);

/// Options of `hypha node prove`.
#[derive(Debug, Args)]
pub struct ProveArguments {
    /// Where to listen for other nodes.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from(([0_u16; 8], PORT)))]
    pub listen: SocketAddr,
    /// Where a node listens, if that is not its mesh address; can be given more than once.
    #[arg(long = "peer", value_name = "NODE=ADDRESS", value_parser = parse_peer)]
    pub peers: Vec<(u32, SocketAddr)>,
    /// A file with one NODE=ADDRESS in each line; lines with # are comments.
    #[arg(long = "peers", value_name = "FILE")]
    pub peers_file: Option<PathBuf>,
    /// A folder for filler; can be given more than once, one on each disk [default: node/filler in the
    /// state].
    #[arg(long = "filler", value_name = "FOLDER")]
    pub fillers: Vec<PathBuf>,
    /// The folder of a shard server of this host, whose shards are proven too, as those of a reservation
    /// if one is named; can be given more than once.
    #[arg(long, value_name = "FOLDER[=RESERVATION]", value_parser = parse_shards)]
    pub shards: Vec<shards::Folder>,
    /// What stays free of each of these disks [default: 5 %].
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub keep_free: Option<u64>,
    /// Threads that make filler and memory tables, at the lowest priority.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub plot_threads: u16,
    /// The most memory for the table [default: all that is claimed, and four fifths of what is free].
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub memory: Option<u64>,
    /// Serve Prometheus metrics over HTTP here.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Post epochs too, with the bond of this account: a key's name in the state, or its file.
    #[arg(long, value_name = "NAME|FILE")]
    pub aggregate: Option<String>,
    /// Where the passphrase of that key is.
    #[arg(long, value_name = "FILE", requires = "aggregate")]
    pub aggregate_passphrase_file: Option<PathBuf>,
    /// Appeal against posted epochs that are not what was proven, with 100 tokens of this account each: a
    /// key's name in the state, or its file [default: only tell].
    #[arg(long, value_name = "NAME|FILE")]
    pub appeal: Option<String>,
    /// Where the passphrase of that key is.
    #[arg(long, value_name = "FILE", requires = "appeal")]
    pub appeal_passphrase_file: Option<PathBuf>,
    /// What all nodes of a development network have alike [default: the standard].
    #[arg(long, value_name = "FILE")]
    pub network: Option<PathBuf>,
    /// Which key this host's node has.
    #[command(flatten)]
    pub node_key: NodeKeyArguments,
    /// Which chain.
    #[command(flatten)]
    pub chain: ChainArguments,
}

fn parse_peer(text: &str) -> Result<(u32, SocketAddr), String> {
    let (node, address) = text.split_once('=').ok_or("a peer is written as 7=192.0.2.1:7412")?;
    let node = node.trim().parse().map_err(|_| format!("{node} is no node's number"))?;
    let none = |_| format!("{address} is no address with a port");
    let address = address.trim().parse().map_err(none)?;
    Ok((node, address))
}

/// A folder, and behind its last `=` a reservation's number, if that is one.
fn parse_shards(text: &str) -> Result<shards::Folder, String> {
    let named = text.rsplit_once('=').and_then(|(path, number)| Some((path, number.parse().ok()?)));
    let (path, reservation) = named.unwrap_or((text, 0));
    if path.is_empty() {
        return Err(
            "the folder is missing; it is written as /srv/disk1 or /srv/disk1=12".to_owned()
        );
    }
    Ok(shards::Folder { path: path.into(), reservation })
}

pub(super) fn run(arguments: &ProveArguments) -> Result<i32, Failure> {
    shards::check(&arguments.shards)
        .map_err(|error| Failure::Input(format!("--shards {error}")))?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let reach = Reach::open(&arguments.chain)?;
    let config = config(arguments, &reach)?;
    let metrics = Arc::new(Metrics::default());
    if let Some(address) = arguments.metrics {
        let metrics = Arc::clone(&metrics);
        let failed =
            |error| Failure::Input(format!("--metrics {address} can't be served: {error}"));
        let listener = TcpListener::bind(address).map_err(failed)?;
        scrape::serve(listener, move || Ok::<_, Infallible>(metrics.render()))?;
    }
    let json = arguments.chain.json;
    let ended = std::thread::scope(|scope| {
        // Of a chain that nobody serves, this process makes the blocks.
        let tick = || {
            while !stop.load(Ordering::Acquire) {
                if let Err(error) = reach.tick() {
                    tracing::error!("no block is made: {error}");
                }
                std::thread::sleep(TICK);
            }
        };
        let ticker = reach.makes_blocks().then(|| scope.spawn(tick));
        let ended = daemon::run(config, &stop, &metrics, &mut |event| tell(event, json));
        stop.store(true, Ordering::Release);
        if ticker.is_some_and(|ticker| ticker.join().is_err()) {
            tracing::error!("the thread that makes blocks has panicked");
        }
        ended
    });
    ended.map_err(failure)?;
    Ok(0)
}

/// What can be mended on the command line is told as such.
fn failure(error: DaemonError) -> Failure {
    match error {
        DaemonError::Client(error) => error.into(),
        DaemonError::Io { ref source, .. } | DaemonError::Thread(ref source) => {
            Failure::Io(io::Error::new(source.kind(), error.to_string()))
        }
        DaemonError::InUse(_) => Failure::InUse(error.to_string()),
        other => Failure::Input(other.to_string()),
    }
}

fn config(arguments: &ProveArguments, reach: &Reach) -> Result<Config, Failure> {
    let directory = arguments.chain.directory()?;
    let key = super::key(&directory, &arguments.node_key)?;
    let address = key.address();
    let node = number_of(reach, &key)?.ok_or_else(|| {
        let text =
            format!("{address} is no node's key: put it on the chain with `hypha node register`");
        Failure::NotFound(text)
    })?;
    let folder = directory.join("node");
    state::create_directory(&folder)?;
    let (network, timing) = network::read(arguments.network.as_deref())?;
    let account = |name: &String, passphrase_file: &Option<PathBuf>| {
        let passphrase_file = passphrase_file.clone();
        let passphrase = PassphraseArguments { passphrase_file, passphrase_fd: None };
        keys::named(&directory, name, &passphrase).map(Arc::new)
    };
    let (aggregate, appeal) = (arguments.aggregate.as_ref(), arguments.appeal.as_ref());
    let aggregation =
        aggregate.map(|name| account(name, &arguments.aggregate_passphrase_file)).transpose()?;
    let appellant =
        appeal.map(|name| account(name, &arguments.appeal_passphrase_file)).transpose()?;
    let first_block = reach.first_block();
    Ok(Config {
        node,
        key: Arc::new(key),
        client: reach.client.clone(),
        chain_id: reach.chain_id,
        suite: reach.suite,
        first_block,
        confirmations: arguments.chain.confirmations,
        cadence_secs: cadence_of(&reach.client, first_block)?,
        network,
        timing,
        places: places(arguments, &folder)?,
        shards: arguments.shards.clone(),
        // Smaller ones prove nothing, and larger ones leave more of a disk unused.
        extent_bytes: network.rules.filler_bytes,
        plot_threads: arguments.plot_threads,
        memory_mib_max: arguments.memory.unwrap_or(u64::MAX),
        listen: arguments.listen,
        peers: peers(arguments)?,
        address_of,
        aggregation: aggregation.map(|key| Aggregation { key }),
        appellant,
        folder,
    })
}

fn places(arguments: &ProveArguments, folder: &Path) -> Result<Vec<Place>, Failure> {
    let default = [folder.join("filler")];
    let folders =
        if arguments.fillers.is_empty() { &default } else { arguments.fillers.as_slice() };
    let mut places = Vec::new();
    for folder in folders {
        state::create_directory(folder)?;
        let keep_free = match arguments.keep_free {
            Some(mib) => mib << 20,
            None => {
                let space = rustix::fs::statvfs(folder).map_err(io::Error::from)?;
                space.f_blocks.saturating_mul(space.f_frsize) / KEEP_FREE_SHARE
            }
        };
        places.push(Place { folder: folder.clone(), bytes_max: u64::MAX, keep_free });
    }
    Ok(places)
}

fn peers(arguments: &ProveArguments) -> Result<BTreeMap<u32, SocketAddr>, Failure> {
    let mut peers = BTreeMap::new();
    if let Some(path) = &arguments.peers_file {
        let bytes = read_regular(path, PEERS_BYTES_MAX).map_err(Failure::file(path))?;
        let text = String::from_utf8(bytes).map_err(Failure::file(path))?;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let in_line = |error: String| format!("line {number}: {error}");
            let peer = parse_peer(line).map_err(in_line).map_err(Failure::file(path))?;
            peers.insert(peer.0, peer.1);
        }
    }
    peers.extend(arguments.peers.iter().copied());
    Ok(peers)
}

/// The mesh address that follows from a mesh key, and the port of proofs.
fn address_of(mesh_key: &B256) -> Option<SocketAddr> {
    let key = PublicKey(mesh_key.0);
    (!mesh_key.is_zero()).then(|| SocketAddr::new(key.address().into(), PORT))
}

/// Events are what this verb says: one line each, or one JSON object.
fn tell(event: &Event, json: bool) {
    let line = if json {
        let mut object = match &event.fields {
            Value::Object(object) => object.clone(),
            _ => serde_json::Map::new(),
        };
        object.insert("event".to_owned(), json!(event.kind));
        Value::Object(object).to_string()
    } else {
        event.text.clone()
    };
    let mut out = io::stdout().lock();
    // Whoever read along may be gone; the node goes on proving.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        tracing::debug!("nobody reads the events");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_a_number_and_an_address() {
        assert_eq!(parse_peer("7=127.0.0.1:1").unwrap().0, 7);
        assert_eq!(parse_peer("7 = [::1]:9").unwrap().1, "[::1]:9".parse().unwrap());
        for text in ["", "7", "7=", "=127.0.0.1:1", "x=127.0.0.1:1", "7=127.0.0.1"] {
            assert!(parse_peer(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_shard_servers_folder_may_have_a_reservation() {
        let parsed = |text: &str| {
            let folder = parse_shards(text).unwrap();
            (folder.path.to_str().unwrap().to_owned(), folder.reservation)
        };
        assert_eq!(parsed("/srv/a"), ("/srv/a".to_owned(), 0));
        assert_eq!(parsed("/srv/a=12"), ("/srv/a".to_owned(), 12));
        assert_eq!(parsed("/srv/k=v"), ("/srv/k=v".to_owned(), 0));
        assert_eq!(parsed("/srv/k=v=7"), ("/srv/k=v".to_owned(), 7));
        assert!(parse_shards("").is_err() && parse_shards("=7").is_err());
    }

    #[test]
    fn a_mesh_key_leads_to_its_address_and_none_to_nothing() {
        let key = net_vdev::PrivateKey::new([3; 32]).public();
        let address = address_of(&B256::from(key.0)).unwrap();
        assert_eq!((address.ip(), address.port()), (key.address().into(), PORT));
        assert_eq!(address_of(&B256::ZERO), None);
    }
}
