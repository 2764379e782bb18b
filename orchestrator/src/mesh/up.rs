//! `hypha mesh up`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mesh_egress::address::Destinations;
use mesh_egress::dns::upstreams_of;
use mesh_node::acl::AclEntry;
use mesh_node::exit::ExitConfig;
use mesh_node::orders::{self, Answer, Order};
use mesh_node::{Daemon, NodeConfig};
use net_vdev::PublicKey;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::acl;
use super::arguments::{PORT, Up};
use super::labels;
use super::{GATEWAY, MeshError, folder, key, print, show};
use crate::gateway::{Gateway, GatewayConfig};
use crate::scrape;

/// Who resolves names if nobody else is named.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;

/// Runs the node until SIGINT or SIGTERM.
pub(super) fn up(arguments: &Up) -> Result<i32, MeshError> {
    let folder = folder(&arguments.common)?;
    check(arguments, &key(&folder)?.public())?;
    raise_descriptor_limit();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&stop))?;
    }
    let config = NodeConfig {
        key: key(&folder)?,
        state: folder.clone(),
        listen: if arguments.listen.is_empty() {
            vec![anywhere()]
        } else {
            arguments.listen.clone()
        },
        listen_tcp: arguments.listen_tcp.clone(),
        discovers: !arguments.no_discovery,
        neighbours: arguments.peers.iter().map(|peer| (peer.key, peer.at)).collect(),
        zone: arguments.zone,
        tun: (!arguments.no_tun).then(|| arguments.tun.clone()),
        rules: acl::load(&folder)?.iter().map(AclEntry::rule).collect(),
        certificates: labels::load(&folder)?,
        strangers_max: usize::from(arguments.sessions),
        exit: exit(arguments)?,
    };
    let mut daemon = Daemon::start(config, Arc::clone(&stop))?;
    let gateway = arguments.gateway.as_deref().map(|file| gateway(file, &folder)).transpose()?;
    if let Some(address) = arguments.metrics {
        serve_metrics(address, &folder)?;
    }
    tell(arguments, &daemon)?;
    let outcome = daemon.run();
    drop(gateway);
    outcome?;
    Ok(0)
}

/// Refuses what contradicts itself.
fn check(arguments: &Up, own: &PublicKey) -> Result<(), MeshError> {
    if arguments.peers.iter().any(|peer| peer.key == *own) {
        return Err(MeshError::Contradiction(
            "--peer has this node's own key: give that which `hypha mesh key` prints on the other host"
                .to_owned(),
        ));
    }
    if arguments.exit.is_some_and(|key| PublicKey(key.0) == *own) {
        return Err(MeshError::Contradiction(
            "--exit names this node itself: give it --nat64, or the key of another".to_owned(),
        ));
    }
    let mut names = BTreeSet::new();
    if let Some((name, _)) = arguments.names.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(MeshError::Contradiction(format!("--name {} is given twice", name.as_str())));
    }
    let mut names = BTreeSet::new();
    let nicknames = &arguments.nicknames;
    if let Some((name, _)) = nicknames.iter().find(|(name, _)| !names.insert(name.as_str())) {
        let name = name.as_str();
        return Err(MeshError::Contradiction(format!("--nickname {name} is given twice")));
    }
    Ok(())
}

/// A connection through the way out, a card and a neighbour over TCP are a descriptor each: takes as
/// many as this process may have.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of descriptors stays as it is");
    }
}

/// What members reach outside of the mesh, as the arguments say.
fn exit(arguments: &Up) -> Result<ExitConfig, MeshError> {
    let resolvers = arguments.dns.then(|| {
        if !arguments.resolvers.is_empty() {
            return Ok(arguments.resolvers.iter().map(|ip| (*ip, DNS_PORT).into()).collect());
        }
        std::fs::read_to_string(RESOLV_CONF).map(|text| upstreams_of(&text))
    });
    let destinations = || Destinations::new(arguments.allow_destinations.clone());
    Ok(ExitConfig {
        nat64: arguments.nat64.then(destinations),
        through: arguments.exit.map(|key| PublicKey(key.0)),
        resolvers: resolvers.transpose()?,
        names: arguments.names.iter().map(|(name, key)| (*name, PublicKey(key.0))).collect(),
        names_machines: !arguments.no_names,
        nicknames: arguments
            .nicknames
            .iter()
            .map(|(name, key)| (name.as_str().to_owned(), PublicKey(key.0)))
            .collect(),
        members: arguments.exit_for.iter().map(|key| PublicKey(key.0)).collect(),
        ..ExitConfig::default()
    })
}

/// The gateway; it finds the node as soon as that runs.
fn gateway(file: &Path, folder: &Path) -> Result<Gateway, MeshError> {
    let own = folder.join(GATEWAY);
    let reload = Arc::new(AtomicBool::new(false));
    flag::register(SIGHUP, Arc::clone(&reload))?;
    let key = key(&own)?;
    tracing::info!(key = %key.public(), "workloads let the gateway in by its key");
    Ok(Gateway::open(GatewayConfig {
        key,
        file: file.to_owned(),
        uplink: folder.join("uplink"),
        reload,
    })?)
}

/// All addresses of both families, or of IPv4 where there is no IPv6.
fn anywhere() -> SocketAddr {
    let has_ipv6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    if has_ipv6 {
        (Ipv6Addr::UNSPECIFIED, PORT).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, PORT).into()
    }
}

fn tell(arguments: &Up, daemon: &Daemon) -> Result<(), MeshError> {
    let (key, listening) = (daemon.key(), daemon.listening());
    let tun = (!arguments.no_tun).then_some(arguments.tun.as_str());
    let text = if arguments.common.json {
        let event = json!({"event": "up", "key": key.to_string(), "address": key.address(),
            "listening": listening, "tun": tun});
        format!("{event}\n")
    } else {
        let places: Vec<_> = listening.iter().map(SocketAddr::to_string).collect();
        let card = tun.map_or_else(String::new, |tun| format!(", interface {tun}"));
        format!("node {key}\naddress {}{card}, listening at {}\n", key.address(), places.join(", "))
    };
    print(&text)?;
    Ok(())
}

/// Answers scrapes with what the node's control socket says.
fn serve_metrics(address: SocketAddr, folder: &Path) -> Result<(), MeshError> {
    let failed = |source| MeshError::Metrics { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let socket = folder.join("socket");
    let metrics = move || match orders::ask(&socket, &Order::Status) {
        Ok(Answer::Status(status)) => Ok(show::metrics(&status)),
        Ok(answer) => Err(std::io::Error::other(format!("{answer:?}"))),
        Err(error) => Err(error),
    };
    scrape::serve(listener, metrics).map_err(failed)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        up: Up,
    }

    const KEYS: [&str; 2] = [
        "fd3384e132ad02a56c78f45547ee40038dc79002b90d29ed90e08eee762ae715",
        "abababababababababababababababababababababababababababababababab",
    ];

    fn checked(words: &[&str]) -> Result<(), String> {
        let all = ["up"].iter().chain(words);
        let line = Line::command().try_get_matches_from(all).unwrap();
        let own: spec::secret::Public32 = spec::secret::Public32::from_hex(KEYS[0]).unwrap();
        let up = Line::from_arg_matches(&line).unwrap().up;
        check(&up, &PublicKey(own.0)).map_err(|error| {
            assert_eq!(error.exit_code(), crate::exit_code::BAD_SPEC);
            error.to_string()
        })
    }

    #[test]
    fn a_name_that_means_two_and_an_exit_that_is_the_node_itself_are_refused() {
        let [own, other] = KEYS;
        let [one, two] = KEYS.map(|key| format!("web={key}"));
        assert_eq!(checked(&["--exit", other, "--dns", "--name", &one]), Ok(()));
        assert_eq!(
            checked(&["--dns", "--name", &one, "--nickname", &two]),
            Ok(()),
            "they differ in kind"
        );
        for (words, wrong) in [
            (["--exit", own].to_vec(), "--exit names this node itself"),
            (["--peer", own].to_vec(), "--peer has this node's own key"),
            (["--name", &one, "--name", &two].to_vec(), "--name web is given twice"),
            (
                ["--dns", "--nickname", &one, "--nickname", &two].to_vec(),
                "--nickname web is given twice",
            ),
        ] {
            let error = checked(&words).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn metrics_that_can_t_be_served_say_where() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = serve_metrics(address, Path::new("nowhere")).unwrap_err();
        assert!(error.to_string().contains(&format!("metrics at {address}")), "{error}");
        assert_eq!(error.exit_code(), crate::exit_code::CONFLICT);
    }
}
