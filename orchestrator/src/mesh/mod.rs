//! `hypha mesh`: this host's node of the mesh.
//!
//! ```text
//! $HYPHA_STATE/mesh/key        the node's X25519 key, 32 bytes, 0600
//!                  /sequence   the number of its last announcement
//!                  /acl.json   who may open flows to this host
//!                  /groups/NAME/key       a group's key, 32 bytes, 0600
//!                  /certificates.json     what this host shows of groups
//!                  /socket     where a running node is asked
//!                  /uplink     where it takes the cards of VMs
//!                  /gateway/   the key of its gateway
//!                  /edge/      the key of its link to mycelium
//! ```

mod acl;
pub mod arguments;
mod edge;
mod labels;
mod map;
mod show;
mod up;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_node::acl::AclError;
use mesh_node::orders::{self, Answer, Order, Status};
use net_vdev::announcement::{Announcement, Role};
use net_vdev::{PrivateKey, PublicKey};
use serde_json::json;

use crate::exit_code;
use crate::gateway::GatewayError;
use crate::state::{self, Common, StateError};
use arguments::{AclVerb, MeshVerb};

/// The folder of the gateway's member, in the node's.
const GATEWAY: &str = "gateway";

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The node.
    #[error(transparent)]
    Node(#[from] mesh_node::NodeError),
    /// The gateway.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// No node answers.
    #[error("no node runs with this state ({0} does not answer): start one with `hypha mesh up`")]
    NotRunning(PathBuf),
    /// The node could not do it.
    #[error("{0}")]
    Failed(String),
    /// The file of rules.
    #[error("{path}: {reason}")]
    Acl {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A rule that is none.
    #[error(transparent)]
    Rule(#[from] AclError),
    /// A group that is not there.
    #[error("there is no group {0:?} here; `hypha mesh group show` lists them")]
    NoGroup(String),
    /// A certificate of no use.
    #[error("the certificate is of no use here: {0}")]
    Certificate(String),
    /// A rule that is not there.
    #[error("there is no rule {0}; `hypha mesh acl list` lists them")]
    NoRule(String),
    /// A label that no certificate here gives.
    #[error("there is no certificate of {0}; `hypha mesh certificate list` lists them")]
    NoCertificate(String),
    /// Arguments that contradict themselves.
    #[error("{0}")]
    Contradiction(String),
    /// An address for metrics that is not to be had.
    #[error("can't serve metrics at {address}: {source}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl MeshError {
    /// The command's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        use mesh_node::NodeError;
        use mesh_node::tun::TunError;
        match self {
            Self::Acl { .. }
            | Self::Certificate(_)
            | Self::Contradiction(_)
            | Self::Rule(_)
            | Self::Node(NodeError::Config(_) | NodeError::Tun(TunError::Name { .. }))
            | Self::Gateway(GatewayError::File { .. }) => exit_code::BAD_SPEC,
            Self::NoRule(_) | Self::NoGroup(_) | Self::NoCertificate(_) => exit_code::NOT_FOUND,
            Self::Node(
                NodeError::Busy(_) | NodeError::Listen { .. } | NodeError::ListenTcp { .. },
            )
            | Self::Gateway(GatewayError::Listen { .. })
            | Self::Metrics { .. } => exit_code::CONFLICT,
            Self::NotRunning(_) | Self::Failed(_) => exit_code::UNAVAILABLE,
            Self::Node(NodeError::Tun(_)) => exit_code::HOST_CANNOT,
            Self::State(_) | Self::Node(_) | Self::Gateway(_) | Self::Io(_) => exit_code::FAILURE,
        }
    }
}

/// Carries out a verb.
///
/// # Errors
/// A [`MeshError`].
pub fn run(verb: MeshVerb) -> Result<i32, MeshError> {
    match verb {
        MeshVerb::Up(arguments) => up::up(&arguments),
        MeshVerb::Key { quiet, gateway, common } => tell_key(quiet, gateway, &common),
        MeshVerb::Status(common) => show_status(&common, show::status),
        MeshVerb::Peers(common) => show_status(&common, show::peers),
        MeshVerb::Routes(common) => show_status(&common, show::routes),
        MeshVerb::Edge(arguments) => edge::run(&arguments),
        MeshVerb::Map { svg, common } => show_map(svg, &common),
        MeshVerb::Ping { to, count, common } => ping(&Order::Ping { to: to.0 }, count, &common),
        MeshVerb::Trace { to, common } => {
            let answer = ask(&common, &Order::Trace { to: to.0 })?;
            print(&show::answer(&answer, common.json)?)
        }
        MeshVerb::Acl(verb) => change_acl(&verb),
        MeshVerb::Group(verb) => labels::groups(&verb),
        MeshVerb::Certificate(verb) => labels::certificates(&verb),
    }
}

/// The node's folder, made if need be.
fn folder(common: &Common) -> Result<PathBuf, MeshError> {
    let directory = state::directory(common.state.as_deref())?;
    state::prepare(&directory)?;
    let folder = directory.join("mesh");
    state::create_directory(&folder)?;
    Ok(folder)
}

fn key(folder: &Path) -> Result<PrivateKey, MeshError> {
    Ok(PrivateKey::new(*state::key(folder)?.expose()))
}

fn print(text: &str) -> Result<i32, MeshError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(0)
}

fn tell_key(quiet: bool, of_gateway: bool, common: &Common) -> Result<i32, MeshError> {
    let folder = folder(common)?;
    let folder = if of_gateway { folder.join(GATEWAY) } else { folder };
    let public = key(&folder)?.public();
    if quiet {
        return print(&format!("{public}\n"));
    }
    if common.json {
        let mut object = json!({"key": public.to_string(), "address": public.address()});
        if !of_gateway {
            object["aliases"] = json!(aliases_prefix(&public));
        }
        return print(&format!("{object}\n"));
    }
    let mut text = format!("key      {public}\naddress  {}\n", public.address());
    if !of_gateway {
        text += &format!("aliases  {}\n", aliases_prefix(&public));
    }
    print(&text)
}

/// The /64 of a node's key, in which its workloads have their aliases.
fn aliases_prefix(node: &PublicKey) -> String {
    let announcement =
        Announcement { key: *node, sequence: 0, expires_unix_s: 0, role: Role::Node { zone: 0 } };
    let (prefix, bits) = announcement.prefix();
    format!("{prefix}/{bits}")
}

/// Asks the running node. Nothing is made where none ever ran.
fn ask(common: &Common, order: &Order) -> Result<Answer, MeshError> {
    let socket = state::directory(common.state.as_deref())?.join("mesh").join("socket");
    match orders::ask(&socket, order) {
        Ok(Answer::Failed { reason }) => Err(MeshError::Failed(reason)),
        Ok(answer) => Ok(answer),
        Err(error) if is_absent(&error) => Err(MeshError::NotRunning(socket)),
        Err(error) => Err(error.into()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn show_status(common: &Common, text: fn(&Status) -> String) -> Result<i32, MeshError> {
    match ask(common, &Order::Status)? {
        answer if common.json => print(&show::answer(&answer, true)?),
        Answer::Status(status) => print(&text(&status)),
        answer => print(&show::answer(&answer, false)?),
    }
}

fn show_map(svg: bool, common: &Common) -> Result<i32, MeshError> {
    let answer = ask(common, &Order::Status)?;
    let Answer::Status(status) = &answer else {
        return print(&show::answer(&answer, common.json)?);
    };
    let map = map::Map::new(status);
    match (svg, common.json) {
        (true, _) => print(&map::svg::draw(&map)),
        (false, true) => print(&(serde_json::to_string(&map).map_err(io::Error::from)? + "\n")),
        (false, false) => print(&map.text()),
    }
}

fn ping(order: &Order, count: u32, common: &Common) -> Result<i32, MeshError> {
    let mut last = None;
    let mut answered = 0;
    for number in 0..count {
        if number > 0 {
            std::thread::sleep(Duration::from_millis(500));
        }
        // The last one is said once: here, or as why the command fails.
        if let Some(reason) = last.take() {
            tracing::warn!("{reason}");
        }
        match ask(common, order) {
            Ok(answer) => {
                answered += 1;
                print(&show::answer(&answer, common.json)?)?;
            }
            Err(MeshError::Failed(reason)) => last = Some(reason),
            Err(error) => return Err(error),
        }
    }
    match last {
        Some(reason) if answered == 0 => return Err(MeshError::Failed(reason)),
        Some(reason) => tracing::warn!("{reason}"),
        None => {}
    }
    Ok(0)
}

fn change_acl(verb: &AclVerb) -> Result<i32, MeshError> {
    let (AclVerb::List(common) | AclVerb::Add { common, .. } | AclVerb::Remove { common, .. }) =
        verb;
    let folder = folder(common)?;
    let mut entries = acl::load(&folder)?;
    match verb {
        AclVerb::List(_) if common.json => {
            return print(&(serde_json::to_string(&entries).map_err(io::Error::from)? + "\n"));
        }
        AclVerb::List(_) if entries.is_empty() => {
            return print("nobody may open flows to this host\n");
        }
        AclVerb::List(_) => {
            return print(&entries.iter().map(|entry| format!("{entry}\n")).collect::<String>());
        }
        AclVerb::Add { rule, .. } => {
            let entry = rule.entry()?;
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        AclVerb::Remove { rule, .. } => {
            let (entry, before) = (rule.entry()?, entries.len());
            entries.retain(|it| *it != entry);
            if entries.len() == before {
                return Err(MeshError::NoRule(entry.to_string()));
            }
        }
    }
    acl::save(&folder, &entries)?;
    tell_node(common, &Order::Rules { rules: entries })
}

/// Has a node that runs go by what was written at once. Where none does, that is said: perhaps it runs
/// with another state, as another user's does.
fn tell_node(common: &Common, order: &Order) -> Result<i32, MeshError> {
    match ask(common, order) {
        Ok(_) => Ok(0),
        Err(MeshError::NotRunning(socket)) => {
            let socket = socket.display();
            tracing::warn!("kept for the next start: no node runs with this state ({socket})");
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arguments::RuleArguments;
    use mesh_node::acl::Transport;

    #[test]
    fn a_rule_about_a_port_of_icmp_is_refused_and_changes_nothing() {
        let state = tempfile::tempdir().unwrap();
        for (port, is_right) in [(Some(22), false), (None, true)] {
            let common = Common { json: false, state: Some(state.path().to_owned()) };
            let from = "ab".repeat(32).parse().unwrap();
            let rule = RuleArguments { from, protocol: Transport::Icmp, port };
            let outcome = change_acl(&AclVerb::Add { rule, common });
            assert_eq!(outcome.is_ok(), is_right);
            let rules = acl::load(&state.path().join("mesh")).unwrap();
            assert_eq!(rules.len(), usize::from(is_right));
        }
    }
}
