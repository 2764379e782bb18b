//! Where clients come from.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustls::ServerConfig;

/// How many clients may wait to be accepted.
const BACKLOG: i32 = 16;

/// Why a server can't listen. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Something else listens there, or a file is in the way.
    #[error("{} is in use", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Plain TCP would give the volume to the network.
    #[error("{address} is not a loopback address: clients from elsewhere need TLS")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The system refuses.
    #[error("can't listen at {place}: {error}")]
    Refused {
        /// A path or an address.
        place: String,
        /// Why.
        error: io::Error,
    },
}

#[derive(Debug)]
enum Place {
    /// The path is removed in the end.
    Unix(PathBuf),
    Tcp,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    place: Place,
    tls: Option<Arc<ServerConfig>>,
}

impl Listener {
    /// A unix socket that only its owner may use (mode 0600, from the start). A socket that nobody
    /// listens at any more is replaced.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn unix(path: &Path) -> Result<Self, ListenError> {
        remove_stale(path)?;
        let bind = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
            let socket = rustix::net::socket_with(family, kind, flags, None)?;
            // The file takes over the mode that the socket has when it is bound.
            rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        let socket = bind().map_err(|error: rustix::io::Errno| ListenError::Refused {
            place: path.display().to_string(),
            error: error.into(),
        })?;
        Ok(Self { socket, place: Place::Unix(path.to_owned()), tls: None })
    }

    /// A TCP socket with TLS.
    ///
    /// # Errors
    /// [`ListenError::Refused`].
    pub fn tls(address: SocketAddr, config: Arc<ServerConfig>) -> Result<Self, ListenError> {
        Ok(Self { socket: bind_tcp(address)?, place: Place::Tcp, tls: Some(config) })
    }

    /// A TCP socket in the clear, for programs of this machine that know no unix sockets. Every
    /// user of the machine can use it.
    ///
    /// # Errors
    /// [`ListenError`], if the address is not a loopback address.
    pub fn plain_loopback(address: SocketAddr) -> Result<Self, ListenError> {
        if !address.ip().is_loopback() {
            return Err(ListenError::NotLoopback { address });
        }
        Ok(Self { socket: bind_tcp(address)?, place: Place::Tcp, tls: None })
    }

    /// The port of a TCP socket, for those that were bound to port 0.
    ///
    /// # Errors
    /// The system's.
    pub fn port(&self) -> io::Result<Option<u16>> {
        let address = rustix::net::getsockname(&self.socket)?;
        Ok(SocketAddr::try_from(address).ok().map(|address| address.port()))
    }

    /// The next client, if one waits.
    pub(crate) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.socket, flags) {
            Ok(client) => {
                if matches!(self.place, Place::Tcp) {
                    rustix::net::sockopt::set_tcp_nodelay(&client, true)?;
                    rustix::net::sockopt::set_socket_keepalive(&client, true)?;
                }
                Ok(Some(client))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn tls_config(&self) -> Option<Arc<ServerConfig>> {
        self.tls.clone()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Place::Unix(path) = &self.place {
            // Somebody may have removed it; then there is nothing to do.
            std::fs::remove_file(path).ok();
        }
    }
}

/// Removes a socket that no process listens at.
pub(crate) fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let in_use = || ListenError::InUse { path: path.to_owned() };
    if !found.file_type().is_socket() {
        return Err(in_use());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|_| in_use())
        }
        _ => Err(in_use()),
    }
}

fn bind_tcp(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(OwnedFd::from(listener))
    };
    bind().map_err(|error| ListenError::Refused { place: address.to_string(), error })
}
