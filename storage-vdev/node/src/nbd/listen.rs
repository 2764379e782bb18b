//! Where clients come from.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::net::SocketFlags;
use rustls::ServerConfig;
use storage_vdev::wire::sockets::widen;

use crate::socket_file::{SocketFile, SocketFileError};

/// Why a server can't listen. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// There can't be a socket there.
    #[error(transparent)]
    SocketFile(#[from] SocketFileError),
    /// Plain TCP would give the volume to the network.
    #[error("{address} is not a loopback address: clients from elsewhere need TLS")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The system refuses.
    #[error("can't listen at {address}: {error}")]
    Refused {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

#[derive(Debug)]
enum Place {
    #[expect(dead_code, reason = "kept to be dropped with the listener")]
    Unix(SocketFile),
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
        let (file, socket) = SocketFile::bind(path, SocketFlags::NONBLOCK)?;
        Ok(Self { socket, place: Place::Unix(file), tls: None })
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
                widen(&client);
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

fn bind_tcp(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(OwnedFd::from(listener))
    };
    bind().map_err(|error| ListenError::Refused { address, error })
}
