//! One client of a store: its socket and its session.

use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use storage_vdev::wire::ServerSession;
use storage_vdev::wire::server::{Event, SessionError};

use super::config::Limits;

/// A connection without progress for so long keeps no buffers.
const QUIET_NS: u64 = 1_000_000_000;

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client closed it, or the network did.
    Closed,
    /// What came is no session.
    Broken(SessionError),
    /// Nothing whole came, or nothing was taken, for too long.
    Idle,
}

pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) session: Box<ServerSession>,
    /// The socket may have something to read; it was not found empty yet.
    readable: bool,
    writable: bool,
    /// When the last whole message came, or the last byte was taken of what waits.
    progress_ns: u64,
    pub(super) end: Option<End>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, session: Box<ServerSession>, now_ns: u64) -> Self {
        let (readable, writable) = (true, true);
        Self { socket, session, readable, writable, progress_ns: now_ns, end: None }
    }

    /// The socket became readable or writable.
    pub(super) fn notice(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Whether there is something to read, and the client takes its answers.
    pub(super) fn wants_turn(&self, limits: &Limits) -> bool {
        self.end.is_none() && self.readable && self.session.outgoing_bytes() < limits.unsent_bytes
    }

    /// Reads one turn's worth and gives what the client asks for to `take`.
    pub(super) fn read(
        &mut self,
        limits: &Limits,
        (now_ns, unix_seconds): (u64, u64),
        mut take: impl FnMut(Event),
    ) -> u64 {
        let mut received = 0;
        while self.readable && self.end.is_none() && received < limits.turn_bytes as u64 {
            let buffer = self.session.read_buffer();
            let room = buffer.capacity() - buffer.len();
            let read = rustix::net::recv(&self.socket, spare_capacity(buffer), RecvFlags::DONTWAIT);
            match read {
                Ok((0, _)) => self.end = Some(End::Closed),
                Ok((count, _)) => {
                    // A stream socket gives less than was asked for only when it has no more.
                    self.readable = count == room;
                    received += count as u64;
                    let progress_ns = &mut self.progress_ns;
                    let taken = self.session.receive(unix_seconds, |event| {
                        *progress_ns = now_ns;
                        take(event);
                    });
                    self.end = taken.err().map(End::Broken);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Err(_) => self.end = Some(End::Closed),
            }
        }
        received
    }

    /// Writes what waits, as far as the socket takes it.
    pub(super) fn write(&mut self, now_ns: u64) -> u64 {
        let mut sent = 0;
        while self.writable && !self.session.outgoing().is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, self.session.outgoing(), flags) {
                Ok(count) => {
                    self.session.sent(count);
                    self.progress_ns = now_ns;
                    sent += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => {
                    self.writable = false;
                    self.end = self.end.or(Some(End::Closed));
                }
            }
        }
        sent
    }

    /// Ends a connection that has made no progress for too long; one that is quiet gives memory back.
    pub(super) fn expire(&mut self, now_ns: u64, limits: &Limits) {
        let quiet_ns = now_ns.saturating_sub(self.progress_ns);
        if quiet_ns >= QUIET_NS {
            self.session.shrink();
        }
        if self.end.is_none() && quiet_ns >= limits.idle_ns {
            self.end = Some(End::Idle);
        }
    }
}
