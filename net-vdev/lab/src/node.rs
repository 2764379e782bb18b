//! A node of the mesh in a namespace: the command `hypha mesh up`.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::{Lab, LabError};

/// The UDP port of all nodes.
const PORT: u16 = 7400;
/// How often and for how long a node is asked whether it is there.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// How to start a node.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// The neighbours that it calls: key and address.
    pub neighbours: Vec<(String, String)>,
    /// Whether it has no network interface.
    pub is_router_only: bool,
    /// More words of the command line.
    pub more: Vec<String>,
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its namespace.
    pub namespace: String,
    /// Its key.
    pub key: String,
    /// Its address.
    pub address: Ipv6Addr,
    /// Its state.
    pub state: PathBuf,
    hypha: PathBuf,
}

impl Node {
    /// A command about this node: `hypha mesh` with its state.
    #[must_use]
    pub fn command(&self, lab: &Lab, verb: &[&str]) -> Command {
        let mut command = lab.command(&self.namespace, &self.hypha.to_string_lossy());
        command.arg("mesh").args(verb).arg("--state").arg(&self.state);
        command
    }

    /// What `hypha mesh status --json` says.
    ///
    /// # Errors
    /// It does not run.
    pub fn status(&self, lab: &Lab) -> Result<Value, LabError> {
        let text = crate::run(&mut self.command(lab, &["status", "--json"]))?;
        serde_json::from_str(&text).map_err(|error| LabError::Failed {
            command: "hypha mesh status --json".to_owned(),
            reason: error.to_string(),
        })
    }

    /// Lets `from` open TCP and UDP flows to this node's host, and ping it.
    ///
    /// # Errors
    /// The command said no.
    pub fn allow(&self, lab: &Lab, from: &Node) -> Result<(), LabError> {
        for protocol in ["tcp", "udp", "icmp"] {
            crate::run(&mut self.command(lab, &["acl", "add", &from.key, protocol]))?;
        }
        Ok(())
    }

    /// Where others reach it over a wire whose address at its end is this.
    #[must_use]
    pub fn at(&self, address: &str) -> (String, String) {
        (self.key.clone(), format!("{address}:{PORT}"))
    }
}

impl Lab {
    /// A node that is not started yet: its key is made.
    ///
    /// # Errors
    /// The command said no.
    pub fn node(&self, namespace: &str, hypha: &Path) -> Result<Node, LabError> {
        let state = self.folder().join(namespace);
        let mut command = Command::new(hypha);
        command.args(["mesh", "key", "--json", "--state"]).arg(&state);
        let text = crate::run(&mut command)?;
        let object: Value = serde_json::from_str(&text).unwrap_or_default();
        let field = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
        let address = field("address").parse().map_err(|_| LabError::Failed {
            command: "hypha mesh key --json".to_owned(),
            reason: text.clone(),
        })?;
        Ok(Node {
            namespace: namespace.to_owned(),
            key: field("key"),
            address,
            state,
            hypha: hypha.to_owned(),
        })
    }

    /// Starts a node and waits until it answers; returns its process ID.
    ///
    /// # Errors
    /// It does not start, or does not answer within five seconds.
    pub fn start_node(&mut self, node: &Node, options: &NodeOptions) -> Result<u32, LabError> {
        let mut command = node.command(self, &["up", "--listen", &format!("0.0.0.0:{PORT}")]);
        for (key, at) in &options.neighbours {
            command.arg("--peer").arg(format!("{key}@{at}"));
        }
        if options.is_router_only {
            command.arg("--no-tun");
        }
        command.args(&options.more).stdout(Stdio::null());
        let process = self.start(&mut command)?;
        let mut last = None;
        for _ in 0..TRIES {
            match node.status(self) {
                Ok(_) => return Ok(process),
                Err(error) => last = Some(error),
            }
            std::thread::sleep(PAUSE);
        }
        Err(last.unwrap_or_else(|| LabError::Failed {
            command: "hypha mesh up".to_owned(),
            reason: "it does not answer".to_owned(),
        }))
    }

    /// Waits until a member answers a ping of a node.
    ///
    /// # Errors
    /// It does not within ten seconds.
    pub fn await_member(&self, node: &Node, to: &Node) -> Result<(), LabError> {
        let mut last = None;
        for _ in 0..TRIES {
            match crate::run(&mut node.command(self, &["ping", "-c", "1", &to.key])) {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
            std::thread::sleep(2 * PAUSE);
        }
        last.map_or(Ok(()), Err)
    }
}
