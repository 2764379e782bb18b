//! The host's sockets, as narrow as what is behind them needs.
//!
//! Two implement [`Sockets`]: [`crate::host::HostSockets`], the kernel's, and the scripted network of
//! the tests. None of its calls waits.

use std::net::{Ipv4Addr, SocketAddr};

/// Names a socket; made by its user, who never uses one twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Why a socket did not do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// Not now: [`Sockets::ready`] tells when.
    #[error("not now")]
    WouldBlock,
    /// The other side has nobody at that port.
    #[error("refused by the other side")]
    Refused,
    /// There is no way to the address.
    #[error("no way to the address")]
    Unreachable,
    /// The datagram is too large for the way.
    #[error("too large for the way")]
    TooLarge,
    /// The host has no more sockets, ports or memory, or does not allow this kind of socket.
    #[error("the host has no more sockets, or none of this kind")]
    Exhausted,
    /// The connection broke, or there is no such socket.
    #[error("the connection broke")]
    Broken,
}

/// What a socket can do now that it could not before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The socket.
    pub token: Token,
    /// Something came in, or its end, or an error.
    pub readable: bool,
    /// It takes bytes; a connection stands, or failed.
    pub writable: bool,
}

/// What is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection; it stands when the socket is writable and [`Sockets::outcome`] says so.
    Tcp,
    /// UDP datagrams to and from one place, from `port` of the host if one is given.
    Udp {
        /// The port, which may have other sockets of the same user already.
        port: Option<u16>,
    },
    /// ICMP echo requests and their replies, whole messages.
    Echo,
}

/// Sockets to places outside of the mesh.
pub trait Sockets {
    /// Whether the address is one of the host itself.
    fn is_own(&mut self, address: Ipv4Addr) -> bool;
    /// Opens a socket to a place.
    ///
    /// # Errors
    /// Any [`SocketError`] but the first.
    fn open(&mut self, token: Token, kind: Kind, to: SocketAddr) -> Result<(), SocketError>;
    /// The port of the host that a socket has.
    fn port(&mut self, token: Token) -> Option<u16>;
    /// Whether a connection stands.
    ///
    /// # Errors
    /// Why it failed, or [`SocketError::WouldBlock`].
    fn outcome(&mut self, token: Token) -> Result<(), SocketError>;
    /// Sends one datagram, or bytes of a stream; returns how many it took.
    ///
    /// # Errors
    /// Any [`SocketError`]; that of a datagram may be about an earlier one.
    fn send(&mut self, token: Token, bytes: &[u8]) -> Result<usize, SocketError>;
    /// Receives one datagram, or bytes of a stream, of which 0 are its end.
    ///
    /// # Errors
    /// Any [`SocketError`].
    fn receive(&mut self, token: Token, into: &mut [u8]) -> Result<usize, SocketError>;
    /// No more bytes will be sent on a connection.
    fn finish(&mut self, token: Token);
    /// Closes a socket; a connection that is not at its end is reset.
    fn close(&mut self, token: Token);
    /// Adds what sockets can do now. Each change is told once.
    fn ready(&mut self, into: &mut Vec<Ready>);
}
