//! A folder with a state in it, the command, and processes that end with the test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::nbd::Nbd;

/// A folder for a state, sockets and stores.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hypha"));
        command
            .env("HYPHA_STATE", self.path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `hypha` with the words of `line`.
    pub(crate) fn hypha(&self, line: &str) -> Output {
        self.command().args(line.split_whitespace()).output().unwrap()
    }

    /// The same, which must end with code 0: its standard output.
    pub(crate) fn done(&self, line: &str) -> String {
        let output = self.hypha(line);
        assert_eq!(output.status.code(), Some(0), "hypha {line}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The last line of JSON that `hypha` prints, whatever its code.
    pub(crate) fn json(&self, line: &str) -> (Option<i32>, Value) {
        let output = self.hypha(line);
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let last = text.lines().last().unwrap_or_else(|| panic!("{line}: {}", stderr(&output)));
        (output.status.code(), serde_json::from_str(last).unwrap())
    }

    pub(crate) fn status(&self, volume: &str) -> (Option<i32>, Value) {
        self.json(&format!("volume status {volume} --json"))
    }

    /// Starts `hypha` with the words of `line` and waits for its first line.
    pub(crate) fn start(&self, line: &str) -> Running {
        let mut child = self.command().args(line.split_whitespace()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        assert!(!first.is_empty(), "hypha {line}: {}", {
            let output = child.wait_with_output().unwrap();
            stderr(&output)
        });
        Running { child, lines, first, socket: PathBuf::new() }
    }

    /// Serves a volume over NBD.
    pub(crate) fn serve(&self, volume: &str, options: &str) -> Running {
        let socket = self.path(&format!("{volume}.sock"));
        let nbd = format!("--nbd unix:{}", socket.display());
        let mut running = self.start(&format!("volume serve {volume} {nbd} {options}"));
        running.socket = socket;
        running
    }

    /// A listing of all that is in the state, with the files' lengths.
    pub(crate) fn listing(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("state")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
                // Who only looks holds a lock meanwhile.
                if entry.file_name() == "lock" {
                    continue;
                }
                let len = if metadata.is_file() { metadata.len() } else { 0 };
                found.push(format!("{} {len}", entry.path().display()));
            }
        }
        found.sort();
        found
    }
}

/// A process of `hypha` that goes on. Ends with the value.
pub(crate) struct Running {
    child: Child,
    pub(crate) lines: BufReader<std::process::ChildStdout>,
    /// Its first line.
    pub(crate) first: String,
    socket: PathBuf,
}

impl Running {
    /// A client of the NBD server that it is.
    pub(crate) fn client(&self) -> Nbd {
        Nbd::connect(&self.socket)
    }

    /// Ends it in good order.
    pub(crate) fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until `condition` holds; how long is nobody's business, but it ends.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("it never happened: {what}");
}

/// `count` directories below a folder, as `--nodes` takes them.
pub(crate) fn directories(folder: &Path, count: usize) -> String {
    let one = |index| folder.join(format!("disk{index}")).display().to_string();
    (0..count).map(one).collect::<Vec<_>>().join(" ")
}

/// Bytes that differ from block to block.
pub(crate) fn content(seed: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| (at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..len as u64 / 8).flat_map(word).collect()
}
