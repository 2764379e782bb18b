//! A card's side of the socket to the router of its node: see [`crate::uplink`].

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use super::link::Link;
use crate::endpoint::{Event, Path};
use crate::uplink::{self, Down, MESSAGE_BYTES_MAX};
use crate::wire::{RELAY_HEADER_BYTES, RelayHeader};

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
                link.endpoint.forget_who_is_here();
                return false;
            }
            Ok((len, _)) => len,
            Err(_) => {
                link.counters.receive_failed += 1;
                return false;
            }
        };
        let message = buffer.get_mut(..len).filter(|_| len <= MESSAGE_BYTES_MAX);
        match message.and_then(Down::parse) {
            Some(message) => self.heed(now_ns, link, message),
            None => link.counters.uplink_odd += 1,
        }
        true
    }

    /// What to wait for.
    pub(super) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_closed).then(|| self.socket.as_fd())
    }

    fn heed(&mut self, now_ns: u64, link: &mut Link, message: Down<'_>) {
        let endpoint = &mut link.endpoint;
        match message {
            Down::Challenge(challenge) => {
                endpoint.forget_who_is_here();
                let answer = endpoint.answer_challenge(now_ns, &challenge);
                link.counters.send_failed += u64::from(!self.send(&[&answer]));
            }
            Down::Attached(addresses) => {
                let at =
                    |port| addresses.iter().map(move |ip| SocketAddr::new(*ip, port)).collect();
                endpoint.set_candidates(self.port.map_or_else(Vec::new, at));
            }
            Down::Frames { stride, frames } => {
                for frame in frames.chunks_mut(stride) {
                    receive_frame(now_ns, link, frame);
                }
            }
            Down::Resolved(key) => {
                endpoint.learn(now_ns, &key, &[]);
            }
            Down::Unknown(address) => endpoint.give_up(&address),
            Down::Local(local) => link.receive_local(now_ns, &local),
            Down::Here(key) => endpoint.set_here(&key, true),
            Down::Gone(key) => endpoint.set_here(&key, false),
        }
    }
}

fn receive_frame(now_ns: u64, link: &mut Link, frame: &mut [u8]) {
    let header = RelayHeader::parse(frame).ok();
    let own = link.endpoint.key().address();
    let header = header.filter(|header| header.destination == own);
    let Some((header, (_, datagram))) =
        header.and_then(|header| Some((header, frame.split_at_mut_checked(RELAY_HEADER_BYTES)?)))
    else {
        link.counters.uplink_odd += 1;
        return;
    };
    let (member, is_alternate) = (header.source, header.is_alternate);
    link.receive(now_ns, Path::Relayed { member, is_alternate }, datagram);
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
