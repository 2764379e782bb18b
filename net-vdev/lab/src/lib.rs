//! Network namespaces with nodes in them, for tests and measurements of the mesh.
//!
//! A [`Lab`] makes its own namespaces and veth pairs, runs programs in them, and takes everything
//! away when it is dropped. It touches nothing outside: no address or route of the host.
#![forbid(unsafe_code)]

mod node;
mod wires;

use std::io;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub use node::{Node, NodeOptions};
use tempfile::TempDir;
pub use wires::{Direction, Wire};

/// Numbers the labs of this process.
static LABS: AtomicU32 = AtomicU32::new(0);

/// Why something in the lab failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program is missing, or could not be started.
    #[error("{program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{command}: {reason}")]
    Failed {
        /// The command line.
        command: String,
        /// What it said.
        reason: String,
    },
}

/// Namespaces and what runs in them.
pub struct Lab {
    /// In front of the names of namespaces: no other lab has it.
    prefix: String,
    namespaces: Vec<String>,
    wires: u8,
    folder: TempDir,
    children: Vec<Child>,
}

impl Lab {
    /// A lab, or why this machine has none: it takes root and `ip`.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces take root".to_owned());
        }
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut lab = Self {
            prefix: format!("hy{}x{number}", std::process::id()),
            namespaces: Vec::new(),
            wires: 0,
            folder,
            children: Vec::new(),
        };
        lab.namespace("probe").map_err(|error| error.to_string())?;
        Ok(lab)
    }

    /// A folder that goes with the lab.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a namespace with a loopback.
    ///
    /// # Errors
    /// `ip` said no.
    pub fn namespace(&mut self, name: &str) -> Result<(), LabError> {
        let full = self.full(name);
        run(Command::new("ip").args(["netns", "add", &full]))?;
        self.namespaces.push(full);
        self.run(name, "ip", &["link", "set", "lo", "up"])?;
        Ok(())
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A command that will run in a namespace.
    #[must_use]
    pub fn command(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.full(namespace), program]);
        command
    }

    /// Runs a program in a namespace to its end; returns what it printed.
    ///
    /// # Errors
    /// It did not start, or ended with another code than 0.
    pub fn run(&self, namespace: &str, program: &str, args: &[&str]) -> Result<String, LabError> {
        run(self.command(namespace, program).args(args))
    }

    /// Starts a program that ends with the lab.
    ///
    /// # Errors
    /// It did not start.
    pub fn start(&mut self, command: &mut Command) -> Result<u32, LabError> {
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.map_err(|source| LabError::Start { program: name(command), source })?;
        let id = child.id();
        self.children.push(child);
        Ok(id)
    }

    /// Kills a program that this lab started, as a crash would.
    pub fn kill(&mut self, process: u32) {
        if let Some(child) = self.children.iter_mut().find(|child| child.id() == process) {
            // It may have ended by itself.
            _ = child.kill();
            _ = child.wait();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            _ = child.kill();
            _ = child.wait();
        }
        for namespace in &self.namespaces {
            if let Err(error) = run(Command::new("ip").args(["netns", "del", namespace])) {
                eprintln!("the namespace {namespace} stays: {error}");
            }
        }
    }
}

fn name(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<String, LabError> {
    let outcome = command.stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } =
        outcome.map_err(|source| LabError::Start { program: name(command), source })?;
    if !status.success() {
        let text = String::from_utf8_lossy(&stderr).trim().to_owned();
        let reason = format!("{status}: {text}");
        return Err(LabError::Failed { command: name(command), reason });
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The processor seconds, user and system, that a process has used so far; `None` if it is gone.
#[must_use]
pub fn cpu_seconds(process: u32) -> Option<f64> {
    // USER_HZ is 100 on every Linux that we know.
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}
