//! How a confined process, which may not connect, comes by new sockets: it asks its parent over a
//! socket pair.
//!
//! A question is one byte, the node's index in the volume's list. The answer is the same byte with
//! one descriptor (`SCM_RIGHTS`): a connected or connecting stream socket. A node that can't be
//! reached is answered when it can: the parent goes on trying, with pauses. A question is asked once
//! per socket that is wanted. Both ends are `SOCK_SEQPACKET` and neither ever blocks.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};

use crate::node::{NODES_MAX, NodeIndex};

/// How many answers are taken at once: one per node.
const ANSWERS_MAX: usize = NODES_MAX;

/// The end that asks.
#[derive(Debug)]
pub struct Courier {
    socket: OwnedFd,
    /// Bit *i*: node *i* was asked for and has not come.
    asked: u64,
    arrived: Vec<(NodeIndex, OwnedFd)>,
}

impl Courier {
    /// Asks on `socket`.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, asked: 0, arrived: Vec::new() }
    }

    /// A descriptor that is readable when a socket may have come.
    ///
    /// # Errors
    /// The system has none to give.
    pub fn ready_fd(&self) -> io::Result<OwnedFd> {
        Ok(fcntl_dupfd_cloexec(&self.socket, 3)?)
    }

    /// The socket for `node` if it is there by now; else makes sure that it was asked for.
    pub fn fetch(&mut self, node: NodeIndex) -> Option<OwnedFd> {
        self.receive();
        if let Some(at) = self.arrived.iter().position(|(arrived, _)| *arrived == node) {
            return Some(self.arrived.swap_remove(at).1);
        }
        let bit = 1u64.checked_shl(u32::from(node))?;
        if self.asked & bit == 0 {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // A question that isn't taken is asked again at the next try.
            if send(&self.socket, &[node], flags).is_ok() {
                self.asked |= bit;
            }
        }
        None
    }

    fn receive(&mut self) {
        for _ in 0..ANSWERS_MAX {
            let Some((node, socket)) = self.receive_one() else { return };
            let bit = 1u64.checked_shl(u32::from(node)).unwrap_or(0);
            if let Some(socket) = socket
                && self.asked & bit != 0
            {
                self.asked &= !bit;
                self.arrived.push((node, socket));
            }
        }
    }

    fn receive_one(&self) -> Option<(NodeIndex, Option<OwnedFd>)> {
        let mut node = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut node)], &mut control, flags);
        if received.ok()?.bytes == 0 {
            return None;
        }
        let sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        let [node] = node;
        Some((node, sockets.last()))
    }
}

/// What came over the other end of a courier's socket pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// A socket for this node is wanted.
    Node(NodeIndex),
    /// Nothing now.
    None,
    /// The other end is gone.
    Ended,
}

/// The next question on the parent's end. What is no question is passed over by the caller as a
/// node that it doesn't have.
#[must_use]
pub fn next_question(socket: BorrowedFd<'_>) -> Question {
    let mut node = [0; 1];
    match rustix::net::recv(socket, &mut node, RecvFlags::DONTWAIT) {
        Ok((0, _)) => Question::Ended,
        Ok(_) => Question::Node(node[0]),
        Err(Errno::AGAIN | Errno::INTR) => Question::None,
        Err(_) => Question::Ended,
    }
}

/// Answers on the parent's end.
///
/// # Errors
/// The other end is gone, or takes nothing now.
pub fn answer(socket: BorrowedFd<'_>, node: NodeIndex, found: BorrowedFd<'_>) -> io::Result<()> {
    let found = [found];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&found)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket.as_fd(), &[IoSlice::new(&[node])], &mut control, flags)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (Courier, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Courier::new(ours), theirs)
    }

    #[test]
    fn a_socket_is_asked_for_once_and_comes_once() {
        let (mut courier, parent) = pair();
        let (socket, _other) = UnixStream::pair().unwrap();
        assert!(courier.fetch(5).is_none());
        assert!(courier.fetch(5).is_none());
        assert_eq!(next_question(parent.as_fd()), Question::Node(5));
        assert_eq!(next_question(parent.as_fd()), Question::None);
        answer(parent.as_fd(), 5, socket.as_fd()).unwrap();
        assert!(courier.fetch(4).is_none(), "it is another node's");
        assert!(courier.fetch(5).is_some());
        assert!(courier.fetch(5).is_none());
        assert_eq!(next_question(parent.as_fd()), Question::Node(4));
        assert_eq!(next_question(parent.as_fd()), Question::Node(5));
    }

    #[test]
    fn what_was_not_asked_for_is_dropped() {
        let (mut courier, parent) = pair();
        let (socket, _other) = UnixStream::pair().unwrap();
        answer(parent.as_fd(), 1, socket.as_fd()).unwrap();
        assert!(courier.fetch(1).is_none());
        // Without a descriptor, it is no answer.
        send(&parent, &[1], SendFlags::empty()).unwrap();
        assert!(courier.fetch(1).is_none());
        answer(parent.as_fd(), 1, socket.as_fd()).unwrap();
        assert!(courier.fetch(1).is_some());
    }

    #[test]
    fn a_parent_that_is_gone_is_no_panic() {
        let (mut courier, parent) = pair();
        drop(parent);
        assert!(courier.fetch(1).is_none());
        let (courier, parent) = pair();
        drop(courier);
        assert_eq!(next_question(parent.as_fd()), Question::Ended);
        let (socket, _other) = UnixStream::pair().unwrap();
        assert!(answer(parent.as_fd(), 1, socket.as_fd()).is_err());
    }
}
