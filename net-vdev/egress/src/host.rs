//! The kernel's sockets.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, bind, connect,
    getsockname, ipproto, recv, recvfrom, send, shutdown, socket_with, sockopt,
};

use crate::sockets::{Kind, Ready, SocketError, Sockets, Token};

/// How many events one call of epoll brings.
const EVENTS: usize = 256;

/// Sockets of this process, watched by one epoll descriptor that the owner can wait for.
pub struct HostSockets {
    epoll: OwnedFd,
    open: HashMap<Token, Open>,
    events: Vec<epoll::Event>,
}

#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    kind: Kind,
    to: SocketAddr,
    is_finished: bool,
}

impl HostSockets {
    /// No sockets yet.
    ///
    /// # Errors
    /// The kernel gives no epoll descriptor.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, open: HashMap::new(), events: Vec::with_capacity(EVENTS) })
    }

    fn fd(&self, token: Token) -> Result<&OwnedFd, SocketError> {
        self.open.get(&token).map(|open| &open.fd).ok_or(SocketError::Broken)
    }
}

impl std::fmt::Debug for HostSockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostSockets").field("open", &self.open.len()).finish_non_exhaustive()
    }
}

impl AsFd for HostSockets {
    /// Readable when [`Sockets::ready`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Sockets for HostSockets {
    /// An address of the host is one that a socket can be bound to. (Where `ip_nonlocal_bind` lets
    /// sockets be bound to any, all count as the host's: nothing is let through by mistake.)
    fn is_own(&mut self, address: Ipv4Addr) -> bool {
        match UdpSocket::bind((address, 0)) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        }
    }

    fn open(&mut self, token: Token, kind: Kind, to: SocketAddr) -> Result<(), SocketError> {
        let socket = make(kind, to).map_err(opening)?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(token.0);
        epoll::add(&self.epoll, &socket, data, events).map_err(opening)?;
        self.open.insert(token, Open { fd: socket, kind, to, is_finished: false });
        Ok(())
    }

    fn port(&mut self, token: Token) -> Option<u16> {
        let address = getsockname(&self.open.get(&token)?.fd).ok()?;
        SocketAddr::try_from(address).ok().map(|address| address.port())
    }

    fn outcome(&mut self, token: Token) -> Result<(), SocketError> {
        let socket = self.fd(token)?;
        sockopt::socket_error(socket).map_err(using)?.map_err(using)?;
        match rustix::net::getpeername(socket) {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(Errno::NOTCONN) => Err(SocketError::WouldBlock),
            Err(error) => Err(using(error)),
        }
    }

    fn send(&mut self, token: Token, bytes: &[u8]) -> Result<usize, SocketError> {
        send(self.fd(token)?, bytes, SendFlags::NOSIGNAL).map_err(using)
    }

    fn receive(&mut self, token: Token, into: &mut [u8]) -> Result<usize, SocketError> {
        let open = self.open.get(&token).ok_or(SocketError::Broken)?;
        if !matches!(open.kind, Kind::Udp { .. }) {
            let (len, _) = recv(&open.fd, into, RecvFlags::empty()).map_err(using)?;
            return Ok(len);
        }
        loop {
            let received = recvfrom(&open.fd, &mut *into, RecvFlags::empty());
            let (len, _, from) = received.map_err(using)?;
            // Between being bound and being connected, a socket takes datagrams of anybody.
            if from.and_then(|from| SocketAddr::try_from(from).ok()) == Some(open.to) {
                return Ok(len);
            }
        }
    }

    fn finish(&mut self, token: Token) {
        if let Some(open) = self.open.get_mut(&token) {
            // A connection that broke already says so when it is used next.
            open.is_finished = shutdown(&open.fd, Shutdown::Write).is_ok();
        }
    }

    fn close(&mut self, token: Token) {
        // Closing the only descriptor takes it out of epoll.
        let Some(open) = self.open.remove(&token) else { return };
        if open.kind == Kind::Tcp && !open.is_finished {
            // Without it the other side would take what it got for all there is.
            let reset = sockopt::set_socket_linger(&open.fd, Some(Duration::ZERO));
            debug_assert!(reset.is_ok(), "a socket of TCP lingers or not");
        }
    }

    fn ready(&mut self, into: &mut Vec<Ready>) {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.events.clear();
        let room = spare_capacity(&mut self.events);
        if epoll::wait(&self.epoll, room, Some(&NOW)).is_err() {
            return;
        }
        into.extend(self.events.drain(..).map(|event| {
            let flags = event.flags;
            let failed = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            Ready {
                token: Token(event.data.u64()),
                readable: failed || flags.contains(epoll::EventFlags::IN),
                writable: failed || flags.contains(epoll::EventFlags::OUT),
            }
        }));
    }
}

fn make(kind: Kind, to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if to.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let (kind_of_socket, protocol) = match kind {
        Kind::Tcp => (SocketType::STREAM, ipproto::TCP),
        Kind::Udp { .. } => (SocketType::DGRAM, ipproto::UDP),
        Kind::Echo => (SocketType::DGRAM, ipproto::ICMP),
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, kind_of_socket, flags, Some(protocol))?;
    match kind {
        Kind::Tcp => sockopt::set_tcp_nodelay(&socket, true)?,
        Kind::Udp { port } => {
            // Flows of one port of a member share a port of the host.
            sockopt::set_socket_reuseport(&socket, true)?;
            if let Some(port) = port {
                bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
            }
        }
        Kind::Echo => {}
    }
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn opening(error: Errno) -> SocketError {
    match using(error) {
        SocketError::WouldBlock | SocketError::Broken => SocketError::Exhausted,
        other => other,
    }
}

fn using(error: Errno) -> SocketError {
    match error {
        Errno::AGAIN | Errno::INTR => SocketError::WouldBlock,
        Errno::CONNREFUSED => SocketError::Refused,
        Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::TIMEDOUT
        | Errno::NETDOWN
        | Errno::HOSTDOWN
        | Errno::ADDRNOTAVAIL => SocketError::Unreachable,
        Errno::MSGSIZE => SocketError::TooLarge,
        Errno::MFILE
        | Errno::NFILE
        | Errno::NOBUFS
        | Errno::NOMEM
        | Errno::PERM
        | Errno::ACCESS
        | Errno::ADDRINUSE => SocketError::Exhausted,
        _ => SocketError::Broken,
    }
}
