//! Unix sockets in the file system that only their owner may use.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// How many clients may wait to be accepted.
const BACKLOG: i32 = 16;

/// Why there can't be a socket at a path. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SocketFileError {
    /// Something else listens there, or a file is in the way.
    #[error("{} is in use", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("can't listen at {}: {error}", path.display())]
    Refused {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A path that a socket listens at, removed in the end.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl SocketFile {
    /// Listens at `path`, with mode 0600 from the start. A socket that nobody listens at any more
    /// is replaced. Accepting blocks unless `flags` say otherwise.
    pub(crate) fn bind(
        path: &Path,
        flags: SocketFlags,
    ) -> Result<(Self, OwnedFd), SocketFileError> {
        remove_stale(path)?;
        let bind = || {
            let flags = flags | SocketFlags::CLOEXEC;
            let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
            let socket = rustix::net::socket_with(family, kind, flags, None)?;
            // The file takes over the mode that the socket has when it is bound.
            rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        match bind() {
            Ok(socket) => Ok((Self(path.to_owned()), socket)),
            Err(error) => {
                let error = rustix::io::Errno::into(error);
                Err(SocketFileError::Refused { path: path.to_owned(), error })
            }
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it; then there is nothing to do.
        std::fs::remove_file(&self.0).ok();
    }
}

/// Removes a socket that no process listens at.
fn remove_stale(path: &Path) -> Result<(), SocketFileError> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let in_use = || SocketFileError::InUse { path: path.to_owned() };
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
