//! A card's side of the socket to the router of its node: see [`crate::uplink`].

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use super::link::Link;
use crate::endpoint::Event;
use crate::uplink::{self, MESSAGE_BYTES_MAX};

/// The room that [`Uplink::receive`] needs to see that a message is too long.
pub(super) const ROOM_BYTES: usize = MESSAGE_BYTES_MAX + 1;

/// The socket. It never blocks; the other end may be nobody's for a while.
pub(super) struct Uplink {
    socket: OwnedFd,
    /// The port of the card's UDP socket, if others than this host may send to it.
    port: Option<u16>,
    is_closed: bool,
}

impl Uplink {
    /// Takes the socket of a card whose datagrams come in at `listening`, and asks for a challenge.
    pub(super) fn new(socket: OwnedFd, listening: SocketAddr) -> Self {
        let port = (!listening.ip().is_loopback()).then_some(listening.port());
        let mut uplink = Self { socket, port, is_closed: false };
        // If it can't be sent now the router asks by itself when it gets the other end.
        uplink.send(&[&uplink::join()]);
        uplink
    }

    /// Sends one message of several parts; whether the router's end had room for it.
    pub(super) fn send(&mut self, parts: &[&[u8]]) -> bool {
        let [first, second] = [0, 1].map(|at| IoSlice::new(parts.get(at).copied().unwrap_or(&[])));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let none = &mut SendAncillaryBuffer::default();
        sendmsg(&self.socket, &[first, second], none, flags).is_ok()
    }

    /// Sends frames of `stride` bytes each but the last.
    pub(super) fn send_frames(&mut self, frames: &[u8], stride: usize) -> bool {
        self.send(&[&uplink::frames_header(stride), frames])
    }

    /// Receives one message and does what it says; whether there was one.
    pub(super) fn receive(&mut self, now_ns: u64, link: &mut Link, buffer: &mut [u8]) -> bool {
        let len = match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return false,
            // The other end is nobody's any more, for good.
            Ok((0, _)) => {
                self.is_closed = true;
                return false;
            }
            Ok((len, _)) => len,
            Err(_) => {
                link.counters.receive_failed += 1;
                return false;
            }
        };
        let message = buffer.get_mut(..len).filter(|_| len <= MESSAGE_BYTES_MAX);
        match message.map(|message| link.receive_from_router(now_ns, message, self.port)) {
            Some(Ok(None)) => {}
            Some(Ok(Some(answer))) => {
                link.counters.send_failed += u64::from(!self.send(&[&answer]));
            }
            Some(Err(_)) | None => link.counters.uplink_odd += 1,
        }
        true
    }

    /// What to wait for.
    pub(super) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_closed).then(|| self.socket.as_fd())
    }
}

/// Asks the router what the card's endpoint wants to know.
pub(super) fn ask(link: &mut Link, mut uplink: Option<&mut Uplink>) {
    while let Some(event) = link.endpoint.poll_event() {
        let Event::Resolve(address) = event else { continue };
        let question = uplink::resolve(&address);
        let asked = uplink.as_deref_mut().is_some_and(|uplink| uplink.send(&[&question]));
        if !asked {
            link.endpoint.give_up(&address);
        }
    }
}
