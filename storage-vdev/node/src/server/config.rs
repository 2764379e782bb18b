//! What a shard server is told: where to listen, its key, its limits.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use storage_vdev::wire::NodeKey;
use zeroize::Zeroizing;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A unix socket. One that is left over from a server that ended is replaced.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// What clients may use up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all, those in a handshake included.
    pub connections: usize,
    /// Handshakes per second, and as many at once.
    pub handshakes_per_second: u32,
    /// A handshake that takes longer ends.
    pub handshake_ns: u64,
    /// A connection that has brought no whole message for so long ends, and so does one that takes
    /// no byte of what waits for it.
    pub idle_ns: u64,
    /// While so many bytes of answers wait for a client, nothing more is read from it.
    pub unsent_bytes: usize,
    /// How many bytes of one client are read before it is the others' turn.
    pub turn_bytes: usize,
    /// How long a server that stops goes on sending answers.
    pub farewell_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshakes_per_second: 200,
            handshake_ns: 5_000_000_000,
            idle_ns: 120_000_000_000,
            unsent_bytes: 8 << 20,
            turn_bytes: 4 << 20,
            farewell_ns: 1_000_000_000,
        }
    }
}

/// What a server is told.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The node's static key.
    pub key: NodeKey,
    /// Where to listen.
    pub listen: Vec<ListenAddress>,
    /// What clients may use up.
    pub limits: Limits,
}

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be read or made.
    #[error("the key file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it.
    #[error("the key file {0} is open to others: chmod 600")]
    Open(PathBuf),
    /// It is not 32 bytes.
    #[error("the key file {0} doesn't hold a key of 32 bytes")]
    Length(PathBuf),
}

/// Reads a node's static key (32 bytes, mode 0600); makes it if there is none.
///
/// # Errors
/// [`KeyFileError`].
pub fn load_key(path: &Path) -> Result<NodeKey, KeyFileError> {
    let io_error = |source| KeyFileError::Io { path: path.to_owned(), source };
    match OpenOptions::new().read(true).open(path) {
        Ok(file) => {
            let metadata = file.metadata().map_err(io_error)?;
            if metadata.mode() & 0o077 != 0 {
                return Err(KeyFileError::Open(path.to_owned()));
            }
            let mut bytes = Zeroizing::new(Vec::with_capacity(64));
            file.take(33).read_to_end(&mut bytes).map_err(io_error)?;
            let key = <[u8; 32]>::try_from(bytes.as_slice());
            let key = Zeroizing::new(key.map_err(|_| KeyFileError::Length(path.to_owned()))?);
            Ok(NodeKey::new(*key))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(path).map_err(io_error),
        Err(error) => Err(io_error(error)),
    }
}

/// Writes a fresh key beside `path`, syncs it, and gives it its name: a crash leaves no half key.
fn make_key(path: &Path) -> io::Result<NodeKey> {
    let key = Zeroizing::new(random_bytes()?);
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(&*key)?;
    file.sync_all()?;
    // A link, not a rename: of two that start at once the second fails and replaces nothing.
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    linked?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(NodeKey::new(*key))
}

/// 32 bytes from the kernel.
pub(crate) fn random_bytes() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if count == bytes.len() { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
