//! What carries a connection's bytes: a socket that never blocks, with or without TLS.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use rustls::{ServerConfig, ServerConnection};

use super::output::{Output, SLICES_MAX};

/// How much may wait inside TLS to be sent.
const TLS_BUFFER_BYTES: usize = 256 << 10;

/// A socket. Writing to a closed one is an error and no signal.
#[derive(Debug)]
struct Socket(OwnedFd);

impl Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&self.0, into, RecvFlags::empty())?.0)
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket {
    fn send_slices(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut ancillary = SendAncillaryBuffer::default();
        Ok(rustix::net::sendmsg(&self.0, slices, &mut ancillary, SendFlags::NOSIGNAL)?)
    }
}

/// What reading gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// So many bytes; there may be more.
    Bytes(usize),
    /// Nothing more for now.
    Blocked,
    /// The other end has closed.
    Closed,
}

/// A socket with its TLS, if any.
#[derive(Debug)]
pub(crate) struct Carrier {
    socket: Socket,
    tls: Option<Box<ServerConnection>>,
}

impl Carrier {
    /// `socket` must not block.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket: Socket(socket), tls: None }
    }

    /// What comes from now on is TLS.
    pub(crate) fn start_tls(&mut self, config: Arc<ServerConfig>) -> io::Result<()> {
        let mut tls = ServerConnection::new(config).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// Whether TLS itself waits to send something.
    pub(crate) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Reads what is there, without waiting.
    pub(crate) fn fill(&mut self, into: &mut [u8]) -> io::Result<Filled> {
        let Some(tls) = &mut self.tls else {
            return filled((&self.socket).read(into));
        };
        loop {
            match filled(tls.reader().read(into))? {
                Filled::Blocked => {}
                other => return Ok(other),
            }
            match filled(tls.read_tls(&mut &self.socket))? {
                Filled::Bytes(_) => {}
                other => return Ok(other),
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert that tells the other end why; if it can't be sent, it isn't.
                tls.write_tls(&mut &self.socket).ok();
                return Err(io::Error::other(error));
            }
        }
    }

    /// Sends as much as can be sent without waiting. Buffers that are done with go to `spent`.
    pub(crate) fn send(&mut self, output: &mut Output, spent: &mut Vec<Vec<u8>>) -> io::Result<()> {
        loop {
            if let Some(tls) = &mut self.tls
                && tls.wants_write()
            {
                match tls.write_tls(&mut &self.socket) {
                    Ok(_) => continue,
                    Err(error) => return blocked_is_fine(error),
                }
            }
            if output.is_empty() {
                return Ok(());
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let used = output.slices(&mut slices);
            let slices = slices.get(..used).unwrap_or_default();
            let sent = match &mut self.tls {
                None => self.socket.send_slices(slices),
                Some(tls) => tls.writer().write_vectored(slices),
            };
            match sent {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => output.consume(count, spent),
                Err(error) => return blocked_is_fine(error),
            }
        }
    }
}

impl AsFd for Carrier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.0.as_fd()
    }
}

fn filled(result: io::Result<usize>) -> io::Result<Filled> {
    match result {
        Ok(0) => Ok(Filled::Closed),
        Ok(count) => Ok(Filled::Bytes(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Filled::Blocked),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Filled::Blocked),
        Err(error) => Err(error),
    }
}

fn blocked_is_fine(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}
