//! A running `hypha run --json`, and its events.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::failure::Failure;

/// How long the demo may take after the build.
const LIMIT: Duration = Duration::from_mins(2);
/// How long `hypha` may take to end.
const END_LIMIT: Duration = Duration::from_secs(15);

/// A running `hypha`. When dropped it is asked to end, so that its VMs end too.
pub(crate) struct Session {
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
    log_file: std::fs::File,
    deadline: Instant,
    line: String,
}

impl Session {
    /// Starts `hypha run spec --json` with its state in `folder`.
    pub(crate) fn start(hypha: &Path, spec: &Path, folder: &Path) -> Result<Self, Failure> {
        let state = folder.join("state");
        let log = folder.join("events.ndjson");
        let log_file = std::fs::File::create(&log).map_err(Failure::file(&log))?;
        let mut command = Command::new(hypha);
        command.arg("run").arg(spec).arg("--json").arg("--state").arg(&state);
        let (program, spec, state) = (hypha.display(), spec.display(), state.display());
        let line = format!("{program} run {spec} --json --state {state}");
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|source| Failure::Start { line: line.clone(), source })?;
        let output = child.stdout.take();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.into_iter().flat_map(|output| BufReader::new(output).lines()) {
                sender.send(line.ok()?).ok()?;
            }
            Some(())
        });
        Ok(Self { child, lines, log, log_file, deadline: Instant::now() + LIMIT, line })
    }

    /// The file with all events so far.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Waits for the next event.
    pub(crate) fn next_event(&mut self) -> Result<Value, Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let line = self.lines.recv_timeout(left).map_err(|error| self.ended_early(error))?;
        writeln!(self.log_file, "{line}").map_err(Failure::file(&self.log))?;
        serde_json::from_str(&line).map_err(|error| Failure::Output {
            from: "hypha run --json",
            reason: format!("a line is no JSON ({error}): {line}"),
        })
    }

    /// Asks `hypha` to end, as Ctrl-C does, and waits until it has.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        self.ask();
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Ok(Some(_)) => return Ok(()),
                Err(source) => return Err(Failure::Start { line: self.line.clone(), source }),
            }
        }
        let reason = format!("it did not end within {} s of SIGINT", END_LIMIT.as_secs());
        Err(Failure::Output { from: "hypha run", reason })
    }

    fn ask(&self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // It fails only if it has ended by itself.
        pid.map(|pid| kill_process(pid, Signal::INT));
    }

    fn ended_early(&mut self, error: RecvTimeoutError) -> Failure {
        match (error, self.child.try_wait()) {
            (RecvTimeoutError::Disconnected, Ok(Some(status))) => {
                Failure::Command { repeat: self.line.clone(), status: status.to_string() }
            }
            (RecvTimeoutError::Disconnected, _) => {
                Failure::Output { from: "hypha run", reason: "it closed its output".to_owned() }
            }
            (RecvTimeoutError::Timeout, _) => Failure::Output {
                from: "demo",
                reason: format!("not done after {} s; see {}", LIMIT.as_secs(), self.log.display()),
            },
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if self.end().is_err() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}
