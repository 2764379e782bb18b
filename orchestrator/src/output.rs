//! What `hypha run` tells: lines for people, or one JSON object per line for programs.

use std::io::{self, IsTerminal, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use serde::Serialize;
use spec::secret::Public32;

use crate::supervisor::Exit;

/// Something that happened to a deployment; the field names are those of `--json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// Where the deployment's keys and volumes lie.
    State {
        /// The directory.
        directory: &'a Path,
    },
    /// A machine's place on the mesh: what other deployments list as a peer.
    Address {
        /// The machine.
        workload: &'a str,
        /// Its public key.
        key: Public32,
        /// Its address.
        address: Ipv6Addr,
        /// Where its sessions run.
        endpoint: SocketAddr,
    },
    /// A machine's process was started.
    Started {
        /// The machine.
        workload: &'a str,
        /// The process ID of its VMM.
        pid: u32,
        /// How often it was started, this time included.
        attempt: u32,
    },
    /// The guest wrote its first byte.
    FirstOutput {
        /// The machine.
        workload: &'a str,
        /// From the start of its process, in milliseconds.
        cold_start_ms: f64,
    },
    /// The guest wrote a line.
    Log {
        /// The machine.
        workload: &'a str,
        /// The line.
        line: &'a str,
    },
    /// The VMM of a machine wrote a line.
    Message {
        /// The machine.
        workload: &'a str,
        /// The line.
        line: &'a str,
    },
    /// A port of the host leads to a machine.
    Published {
        /// The machine.
        workload: &'a str,
        /// Where the host listens.
        listen: SocketAddr,
        /// The guest's port.
        target: u16,
    },
    /// A machine's process ended.
    Exited {
        /// The machine.
        workload: &'a str,
        /// Its exit code.
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        /// The signal that ended it.
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
    },
    /// A machine will be started again.
    Restarting {
        /// The machine.
        workload: &'a str,
        /// After this pause, in milliseconds.
        in_ms: u64,
    },
}

impl<'a> Event<'a> {
    /// The event of a process that ended.
    #[must_use]
    pub fn exited(workload: &'a str, exit: Exit) -> Self {
        let (code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
            Exit::NotStarted => (None, None),
        };
        Self::Exited { workload, code, signal }
    }
}

/// Where events go.
#[derive(Debug)]
pub struct Output {
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// Guests' lines on standard output, the rest on standard error.
    Text { name_width: usize, colour: bool },
    /// All on standard output.
    Json,
}

/// Colours for names, in turn (SGR codes).
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

impl Output {
    /// One JSON object per line on standard output.
    #[must_use]
    pub fn json() -> Self {
        Self { form: Form::Json }
    }

    /// Lines for people, with room for the longest of `names`; colours only on a terminal.
    #[must_use]
    pub fn text<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let name_width = names.map(str::len).max().unwrap_or(0);
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { form: Form::Text { name_width, colour } }
    }

    /// Writes one event.
    ///
    /// # Errors
    /// Standard output is gone.
    pub fn show(&self, event: Event<'_>) -> io::Result<()> {
        match self.form {
            Form::Json => {
                let mut line = serde_json::to_string(&event)?;
                line.push('\n');
                write_out(&line)
            }
            Form::Text { name_width, colour } => show_text(event, name_width, colour),
        }
    }
}

fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn show_text(event: Event<'_>, width: usize, colour: bool) -> io::Result<()> {
    if let Event::Log { workload, line } = event {
        let name = format!("{workload:width$}");
        return write_out(&if colour {
            let sum: usize = workload.bytes().map(usize::from).sum();
            let code = COLOURS.get(sum % COLOURS.len()).copied().unwrap_or(0);
            format!("\x1b[{code}m{name} |\x1b[0m {line}\n")
        } else {
            format!("{name} | {line}\n")
        });
    }
    let text = match event {
        Event::State { directory } => format!("hypha: state in {}", directory.display()),
        Event::Address { workload, key, address, endpoint } => {
            format!("hypha: {workload} is {address} on the mesh (key {key} at {endpoint})")
        }
        Event::Started { workload, pid, attempt: 1 } => {
            format!("hypha: {workload} started (process {pid})")
        }
        Event::Started { workload, pid, attempt } => {
            format!("hypha: {workload} started (process {pid}, attempt {attempt})")
        }
        Event::Message { workload, line } => format!("{workload:width$} ! {line}"),
        Event::Published { workload, listen, target } => {
            format!("hypha: {listen} leads to port {target} of {workload}")
        }
        Event::Exited { workload, code: Some(code), .. } => {
            format!("hypha: {workload} ended with code {code}")
        }
        Event::Exited { workload, signal: Some(signal), .. } => {
            format!("hypha: {workload} was ended by signal {signal}")
        }
        Event::Exited { workload, .. } => format!("hypha: {workload} could not be started"),
        Event::Restarting { workload, in_ms } => {
            format!("hypha: {workload} starts again in {in_ms} ms")
        }
        Event::FirstOutput { workload, cold_start_ms } => {
            format!("hypha: {workload} wrote its first byte after {cold_start_ms:.1} ms")
        }
        Event::Log { .. } => return Ok(()),
    };
    // Standard error may be closed while the machines go on.
    let _gone = writeln!(io::stderr().lock(), "{text}");
    Ok(())
}
