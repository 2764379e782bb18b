//! How the ends of cards' socket pairs come to the node: one message each, over a
//! `SOCK_SEQPACKET` connection to the node's `uplink`.
//!
//! ```text
//!  0 │ version (1) │ the machine's name (0 to 63 bytes) │ and one descriptor (`SCM_RIGHTS`)
//! ```
//!
//! Without a name the member is attached and has none on the node.

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use net_vdev::certificate::HostName;
use net_vdev::uplink::MESSAGE_BYTES_MAX;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    recvmsg, sendmsg, socket_with, socketpair, sockopt,
};

/// The version of the message.
const VERSION: u8 = 2;
/// How long to wait before a node is looked for again.
const LOOK_NS: u64 = 1_000_000_000;
/// What the kernel is asked to hold of messages to a card.
const BUFFER_BYTES: usize = 4 * MESSAGE_BYTES_MAX;

/// Takes the next end that a client hands over, and its machine's name; `None` if there is none now.
pub(super) fn receive(
    client: BorrowedFd<'_>,
) -> Result<Option<(OwnedFd, Option<HostName>)>, &'static str> {
    // One byte more than there may be, so that a longer message is seen to be one.
    let mut message = [0; 1 + HostName::BYTES_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let len = match recvmsg(client, &mut [IoSliceMut::new(&mut message)], &mut control, flags) {
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Ok(received) if received.bytes == 0 => return Err("closed"),
        Ok(received) => received.bytes,
        Err(_) => return Err("broken"),
    };
    let name = match message.get(..len) {
        Some([VERSION]) => None,
        Some([VERSION, name @ ..]) => Some(parse_name(name).ok_or("a name that is none")?),
        _ => return Err("a message of another version"),
    };
    let mut ends = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut ends) => ends.next(),
        _ => None,
    });
    let end = ends.next().ok_or("a message without a descriptor")?;
    let is_packets = sockopt::socket_type(&end) == Ok(SocketType::SEQPACKET)
        && sockopt::socket_domain(&end) == Ok(AddressFamily::UNIX);
    if is_packets { Ok(Some((end, name))) } else { Err("a descriptor that is no socket of a card") }
}

fn parse_name(bytes: &[u8]) -> Option<HostName> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// The two ends of a card's uplink.
#[derive(Debug)]
pub struct CardEnds {
    /// For the VMM.
    pub card: OwnedFd,
    /// For the node.
    pub node: OwnedFd,
    /// What the machine is to be called on the node: `NAME.<node>.mesh`.
    pub name: Option<HostName>,
}

impl CardEnds {
    /// A fresh pair for the machine of this name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(name: Option<HostName>) -> io::Result<Self> {
        let (card, node) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        for end in [&card, &node] {
            if let Err(error) = sockopt::set_socket_send_buffer_size(end, BUFFER_BYTES) {
                tracing::debug!(%error, "an uplink keeps its default buffers");
            }
        }
        Ok(Self { card, node, name })
    }
}

/// Hands the cards of this process's VMs to the node of this host, as often as one starts. It never
/// waits: [`Handover::serve`] is to be called when [`Handover::deadline_ns`] has passed or
/// [`Handover::fd`] is readable.
#[derive(Debug)]
pub struct Handover {
    path: PathBuf,
    node: Option<OwnedFd>,
    look_at_ns: u64,
}

impl Handover {
    /// Looks for a node that takes cards at this path.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, node: None, look_at_ns: 0 }
    }

    /// What is readable when the node ended.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.node.as_ref().map(AsFd::as_fd)
    }

    /// When to look for a node again, in the nanoseconds that [`Handover::serve`] is given.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.node.is_none().then_some(self.look_at_ns)
    }

    /// Finds out whether the node still runs, and hands `cards` to one that has just started.
    /// Returns whether it did.
    pub fn serve<'a>(&mut self, now_ns: u64, cards: impl Iterator<Item = &'a CardEnds>) -> bool {
        if let Some(node) = &self.node {
            let mut byte = [0];
            if recv(node, &mut byte, RecvFlags::DONTWAIT) == Err(Errno::AGAIN) {
                return false;
            }
            self.node = None;
            self.look_at_ns = now_ns;
        }
        if now_ns < self.look_at_ns {
            return false;
        }
        self.look_at_ns = now_ns.saturating_add(LOOK_NS);
        let Ok(node) = self.connect() else { return false };
        for card in cards {
            if let Err(error) = hand_over(&node, card) {
                tracing::debug!(%error, "the node takes no card");
                return false;
            }
        }
        self.node = Some(node);
        true
    }

    fn connect(&self) -> rustix::io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let node = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&node, &SocketAddrUnix::new(&self.path)?)?;
        Ok(node)
    }
}

fn hand_over(node: &OwnedFd, card: &CardEnds) -> io::Result<()> {
    let ends = [card.node.as_fd()];
    let name = card.name.as_ref().map_or("", HostName::as_str).as_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&ends)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let message = [IoSlice::new(&[VERSION]), IoSlice::new(name)];
    sendmsg(node, &message, &mut control, flags)?;
    Ok(())
}
