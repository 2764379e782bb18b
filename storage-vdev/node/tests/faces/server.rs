//! Running a server in a process of its own, and tools against it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use tempfile::TempDir;

/// The size of the volumes here, unless a test says otherwise.
pub(crate) const SIZE_BYTES: u64 = 256 << 20;

/// A server with its volume. Dropping it ends it by the end of its input, as a user would.
pub(crate) struct Server {
    child: Child,
    input: Option<ChildStdin>,
    folder: PathBuf,
}

/// Cargo builds examples before it runs tests and puts them beside the tests' folder.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(name)
}

impl Server {
    /// Serves the volume in `folder` (made if it isn't there) over NBD.
    pub(crate) fn nbd(folder: &Path, arguments: &[&str]) -> Self {
        Self::start("nbd_volume", folder, SIZE_BYTES, arguments)
    }

    /// Starts an example server, and waits until it serves.
    pub(crate) fn start(program: &str, folder: &Path, size: u64, arguments: &[&str]) -> Self {
        let mut child = Command::new(example(program))
            .args([folder, &socket(folder)])
            .arg(size.to_string())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "serving\n", "{program} doesn't start");
        Self { child, input, folder: folder.to_owned() }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.folder)
    }

    /// What NBD tools call the export.
    pub(crate) fn uri(&self) -> String {
        self.uri_of("")
    }

    pub(crate) fn uri_of(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// Kills it as the system would: nothing is flushed, closed or removed.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it and sees that it closed the volume.
    pub(crate) fn end(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success(), "the server failed to close its volume");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        // A test that fails meanwhile has its own reason to tell.
        self.child.wait().ok();
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

/// A folder for a volume, with a path short enough for a unix socket.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("hypha-").tempdir_in("/tmp").unwrap()
}

/// Whether `program` can be run; says so if not.
pub(crate) fn has(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|path| path.join(program).is_file());
    if !found {
        println!("SKIPPED: {program} is not installed (cargo xtask check installs it)");
    }
    found
}

/// Runs a program that is to succeed. Its output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}{told}");
    said
}

/// Runs a program.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}
