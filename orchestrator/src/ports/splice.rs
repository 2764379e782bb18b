//! One connection: a client's socket of the host and a socket of our own stack, joined.
//!
//! There is no buffer between the two: bytes are read straight into the stack's send buffer and
//! written straight out of its receive buffer.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustix::event::PollFlags;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, Socket, State};

/// How long a connection may move nothing.
pub(crate) const IDLE_NS: u64 = 600_000_000_000;

/// How long it may move nothing once one side has said all that it will say.
pub(crate) const HALF_IDLE_NS: u64 = 60_000_000_000;

/// See the module.
pub(crate) struct Splice {
    handle: SocketHandle,
    /// Gone once both of its directions are over.
    client: Option<TcpStream>,
    /// What the guest is to get before the client's bytes that are still in its socket.
    ahead: Vec<u8>,
    /// The client has said all that it will say.
    client_ended: bool,
    /// The guest has said all that it will say, and the client was told so.
    guest_ended: bool,
    /// The guest once accepted the connection.
    was_accepted: bool,
    /// When a byte or an end last passed, either way.
    moved_ns: u64,
}

/// What one direction did.
enum Moved {
    Nothing,
    Something,
    /// The client is gone.
    Broken,
}

impl Splice {
    /// Joins `client` to the socket `handle`, which gets `ahead` first.
    pub(crate) fn new(
        client: TcpStream,
        handle: SocketHandle,
        ahead: Vec<u8>,
        now_ns: u64,
    ) -> Self {
        Self {
            handle,
            client: Some(client),
            ahead,
            client_ended: false,
            guest_ended: false,
            was_accepted: false,
            moved_ns: now_ns,
        }
    }

    pub(crate) fn handle(&self) -> SocketHandle {
        self.handle
    }

    /// What the client has to be ready for, for [`Splice::turn`] to get on.
    ///
    /// A hang-up is always reported, so the client is left out while nothing could be done about
    /// one: when it may still have bytes that the guest has no room for. A client that has ended
    /// has none, and only a reset can still come of it.
    pub(crate) fn interest(&self, guest: &Socket<'_>) -> Option<(&TcpStream, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !self.client_ended && guest.can_send());
        flags.set(PollFlags::OUT, guest.can_recv());
        let is_watched = !flags.is_empty() || self.client_ended;
        self.client.as_ref().filter(|_| is_watched).map(|client| (client, flags))
    }

    /// When the connection has moved nothing for too long; `None` once the client is gone: what is
    /// left then has the stack's own timeouts.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        let has_ended = self.client_ended || self.guest_ended;
        let limit_ns = if has_ended { HALF_IDLE_NS } else { IDLE_NS };
        self.client.is_some().then(|| self.moved_ns.saturating_add(limit_ns))
    }

    /// Whether nothing is left to do for this connection.
    pub(crate) fn is_over(&self, guest: &Socket<'_>) -> bool {
        // In TIME-WAIT the last acknowledgement is sent; a guest that missed it is told by a reset.
        self.client.is_none() && matches!(guest.state(), State::Closed | State::TimeWait)
    }

    /// Moves what can be moved in both directions; whether anything was. Both sides see a reset of a
    /// connection that has been idle for too long.
    pub(crate) fn turn(&mut self, now_ns: u64, guest: &mut Socket<'_>) -> bool {
        self.was_accepted |= guest.may_send() || guest.may_recv();
        let deadline_ns = self.deadline_ns();
        let Some(mut client) = self.client.take() else { return false };
        let moved = [self.feed_guest(&mut client, guest), self.feed_client(&mut client, guest)];
        if moved.iter().any(|moved| matches!(moved, Moved::Something)) {
            self.moved_ns = now_ns;
        } else if deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns) {
            reset(&client);
            guest.abort();
            return true;
        }
        if moved.iter().any(|moved| matches!(moved, Moved::Broken)) {
            guest.abort();
            return true;
        }
        let over = self.client_ended && self.guest_ended;
        let broken = !over && guest.state() == State::Closed;
        if broken {
            // The guest refused, reset or vanished: the client sees a reset, not a clean end.
            reset(&client);
        }
        if !over && !broken {
            self.client = Some(client);
        }
        over || broken || moved.iter().any(|moved| matches!(moved, Moved::Something))
    }

    fn feed_guest(&mut self, client: &mut TcpStream, guest: &mut Socket<'_>) -> Moved {
        if self.client_ended {
            let is_reset = !self.guest_ended && matches!(client.take_error(), Ok(Some(_)));
            return if is_reset { Moved::Broken } else { Moved::Nothing };
        }
        if !guest.can_send() {
            return Moved::Nothing;
        }
        if !self.ahead.is_empty() {
            let sent = guest.send_slice(&self.ahead).unwrap_or(0);
            self.ahead.drain(..sent);
            return Moved::Something;
        }
        let outcome = guest.send(|room| match client.read(room) {
            Ok(count) => (count, Ok(count)),
            Err(error) => (0, Err(error)),
        });
        match outcome {
            Ok(Ok(0)) => {
                self.client_ended = true;
                guest.close();
                Moved::Something
            }
            Ok(Ok(_)) => Moved::Something,
            Ok(Err(error)) => unless_later(&error),
            Err(_) => Moved::Nothing,
        }
    }

    fn feed_client(&mut self, client: &mut TcpStream, guest: &mut Socket<'_>) -> Moved {
        if self.guest_ended || !self.was_accepted {
            return Moved::Nothing;
        }
        let outcome = guest.recv(|bytes| match client.write(bytes) {
            Ok(count) => (count, Ok(count)),
            Err(error) => (0, Err(error)),
        });
        match outcome {
            Ok(Ok(0)) => Moved::Nothing,
            Ok(Ok(_)) => Moved::Something,
            Ok(Err(error)) => unless_later(&error),
            // All of the guest's bytes are delivered, and its end.
            Err(RecvError::Finished) => {
                self.guest_ended = true;
                match client.shutdown(Shutdown::Write) {
                    Ok(()) => Moved::Something,
                    Err(_) => Moved::Broken,
                }
            }
            Err(RecvError::InvalidState) => Moved::Nothing,
        }
    }
}

fn unless_later(error: &io::Error) -> Moved {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Moved::Nothing,
        _ => Moved::Broken,
    }
}

/// Makes the drop of a socket a reset.
fn reset(client: &TcpStream) {
    let linger = Some(std::time::Duration::ZERO);
    if let Err(error) = rustix::net::sockopt::set_socket_linger(client, linger) {
        tracing::debug!(%error, "a client sees an end instead of a reset");
    }
}
