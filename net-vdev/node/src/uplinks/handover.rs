//! How the ends of cards' socket pairs come to the node: one message of one byte (the version) and
//! one descriptor (`SCM_RIGHTS`) each, over a `SOCK_SEQPACKET` connection to the node's `uplink`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use net_vdev::uplink::{MESSAGE_BYTES_MAX, VERSION};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    recvmsg, sendmsg, socket_with, socketpair, sockopt,
};

/// How long to wait before a node is looked for again.
const LOOK_NS: u64 = 1_000_000_000;
/// What the kernel is asked to hold of messages to a card.
const BUFFER_BYTES: usize = 4 * MESSAGE_BYTES_MAX;

/// Takes the next end that a client hands over; `None` if there is none now.
pub(super) fn receive(client: BorrowedFd<'_>) -> Result<Option<OwnedFd>, &'static str> {
    let mut version = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    match recvmsg(client, &mut [IoSliceMut::new(&mut version)], &mut control, flags) {
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Ok(received) if received.bytes == 1 && version == [VERSION] => {}
        Ok(received) if received.bytes == 0 => return Err("closed"),
        Ok(_) => return Err("a message of another version"),
        Err(_) => return Err("broken"),
    }
    let mut ends = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut ends) => ends.next(),
        _ => None,
    });
    let end = ends.next().ok_or("a message without a descriptor")?;
    let is_packets = sockopt::socket_type(&end) == Ok(SocketType::SEQPACKET)
        && sockopt::socket_domain(&end) == Ok(AddressFamily::UNIX);
    if is_packets { Ok(Some(end)) } else { Err("a descriptor that is no socket of a card") }
}

/// The two ends of a card's uplink.
#[derive(Debug)]
pub struct CardEnds {
    /// For the VMM.
    pub card: OwnedFd,
    /// For the node.
    pub node: OwnedFd,
}

impl CardEnds {
    /// A fresh pair.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let (card, node) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        for end in [&card, &node] {
            if let Err(error) = sockopt::set_socket_send_buffer_size(end, BUFFER_BYTES) {
                tracing::debug!(%error, "an uplink keeps its default buffers");
            }
        }
        Ok(Self { card, node })
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
            if let Err(error) = hand_over(&node, card.node.as_fd()) {
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

fn hand_over(node: &OwnedFd, end: BorrowedFd<'_>) -> io::Result<()> {
    let ends = [end];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&ends)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(node, &[IoSlice::new(&[VERSION])], &mut control, flags)?;
    Ok(())
}
