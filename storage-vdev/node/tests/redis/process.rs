//! Servers that a test starts, each in its own folder, on a unix socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use storage_node::redis::{Address, RedisError, RedisOptions, RedisStore};

pub(crate) struct Server {
    child: Option<Child>,
    folder: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Durable.
    Redis,
    /// Keeps nothing on disk.
    Forgetful,
    ZeroDb,
}

impl Kind {
    fn program(self) -> &'static str {
        if self == Self::ZeroDb { "zdb" } else { "redis-server" }
    }
}

/// The server, or `None` with a loud word if it is not installed.
pub(crate) fn start(kind: Kind, folder: &Path) -> Option<Server> {
    let mut server = Server { child: None, folder: folder.to_owned(), kind };
    let probe = Command::new(kind.program()).arg("--version").stdout(Stdio::null()).status();
    if probe.is_err() {
        eprintln!("SKIPPED: {} is not installed, so this test shows nothing", kind.program());
        return None;
    }
    server.run();
    Some(server)
}

impl Server {
    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    pub(crate) fn run(&mut self) {
        let mut command = Command::new(self.kind.program());
        let socket = self.socket();
        if self.kind == Kind::ZeroDb {
            command.args(["--mode", "user", "--sync", "--socket"]).arg(socket);
            command.arg("--data").arg(self.folder.join("data"));
            command.arg("--index").arg(self.folder.join("index"));
        } else {
            command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(socket);
            command.arg("--dir").arg(&self.folder);
            if self.kind == Kind::Redis {
                command.args(["--appendonly", "yes", "--appendfsync", "always"]);
            }
        }
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn options(&self) -> RedisOptions {
        RedisOptions {
            address: Address::Unix(self.socket()),
            password: None,
            database: None,
            timeout: Duration::from_secs(10),
        }
    }

    pub(crate) fn connect(&self) -> RedisStore {
        for _ in 0..600 {
            match RedisStore::connect(self.options()) {
                Ok(store) => return store,
                Err(RedisError::Io(_) | RedisError::Refused { .. }) => {
                    sleep(Duration::from_millis(50));
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the server doesn't come up");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
