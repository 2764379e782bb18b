//! The sockets of the VMs on this host.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use net_vdev::PublicKey;
use net_vdev::uplink::{self, MESSAGE_BYTES_MAX, Up};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, listen, recv, send, socket_with, sockopt,
};

use crate::core::{Core, Outside};
use crate::daemon::NodeError;

/// How many cards may be connected.
const UPLINKS_MAX: usize = 4096;
/// How many messages one card may send before the others have their turn.
const MESSAGES_PER_TURN: usize = 16;
const BUFFER_BYTES: usize = 1 << 20;

/// The listening socket and the cards.
pub(crate) struct Uplinks {
    path: PathBuf,
    listener: OwnedFd,
    cards: BTreeMap<u32, Card>,
    /// Which card a member has.
    members: BTreeMap<PublicKey, u32>,
    next: u32,
    buffer: Vec<u8>,
    /// Messages that a card's socket had no room for.
    pub(crate) full: u64,
}

struct Card {
    socket: OwnedFd,
    member: Option<PublicKey>,
}

impl Uplinks {
    /// Listens at `path`. The caller made sure that no other node does.
    pub(crate) fn open(path: &Path) -> Result<Self, NodeError> {
        let failed = |source: io::Error| NodeError::State { path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let make = || -> rustix::io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            bind(&listener, &SocketAddrUnix::new(path)?)?;
            listen(&listener, 64)?;
            Ok(listener)
        };
        Ok(Self {
            path: path.to_owned(),
            listener: make().map_err(|errno| failed(errno.into()))?,
            cards: BTreeMap::new(),
            members: BTreeMap::new(),
            next: 0,
            buffer: vec![0; MESSAGE_BYTES_MAX + 1],
            full: 0,
        })
    }

    /// What to wait for.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.listener.as_fd()].into_iter().chain(self.cards.values().map(|it| it.socket.as_fd()))
    }

    /// Takes new cards, and what the cards have to say.
    pub(crate) fn turn(&mut self, now_ns: u64, core: &mut Core, others: &mut impl Outside) {
        self.accept();
        let ids: Vec<u32> = self.cards.keys().copied().collect();
        for id in ids {
            for _ in 0..MESSAGES_PER_TURN {
                match self.receive(now_ns, id, core, others) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(reason) => {
                        tracing::debug!(card = id, reason, "a card is gone");
                        self.remove(now_ns, id, core);
                        break;
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok(socket) =
            accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            if self.cards.len() >= UPLINKS_MAX {
                continue;
            }
            let sized = sockopt::set_socket_send_buffer_size(&socket, BUFFER_BYTES);
            if let Err(error) = sized {
                tracing::debug!(%error, "a card's socket keeps its default buffers");
            }
            self.next = self.next.wrapping_add(1);
            self.cards.insert(self.next, Card { socket, member: None });
        }
    }

    fn remove(&mut self, now_ns: u64, id: u32, core: &mut Core) {
        if let Some(member) = self.cards.remove(&id).and_then(|card| card.member) {
            self.members.remove(&member);
            core.detach(now_ns, &member);
        }
    }

    /// Takes one message of a card; whether there was one.
    fn receive(
        &mut self,
        now_ns: u64,
        id: u32,
        core: &mut Core,
        others: &mut impl Outside,
    ) -> Result<bool, &'static str> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let taken = self.take(now_ns, id, &mut buffer, core, others);
        self.buffer = buffer;
        taken
    }

    fn take(
        &mut self,
        now_ns: u64,
        id: u32,
        buffer: &mut [u8],
        core: &mut Core,
        others: &mut impl Outside,
    ) -> Result<bool, &'static str> {
        let card = self.cards.get_mut(&id).ok_or("unknown")?;
        let len = match recv(&card.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err("closed"),
            Ok((len, _)) if len > MESSAGE_BYTES_MAX => return Err("a message that is too long"),
            Ok((len, _)) => len,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(_) => return Err("broken"),
        };
        let message = buffer.get_mut(..len).unwrap_or_default();
        match (Up::parse(message).ok_or("no message of this version")?, card.member) {
            (Up::Attach(signed), None) => {
                let member = core.attach(now_ns, &signed).map_err(|error| {
                    tracing::warn!(%error, "a member is not attached");
                    "refused"
                })?;
                card.member = Some(member);
                let answer = uplink::attached(&core.endpoint().key());
                self.members.insert(member, id);
                self.send(&member, &answer);
            }
            (Up::Frames { stride, frames }, Some(member)) => {
                for frame in frames.chunks_mut(stride) {
                    core.receive_attached(now_ns, &member, frame, others);
                }
            }
            (Up::Resolve(address), Some(member)) => {
                core.resolve_for(now_ns, &member, &address, others);
            }
            (Up::Attach(_), Some(_)) => return Err("attached twice"),
            (_, None) => return Err("not attached yet"),
        }
        Ok(true)
    }

    /// A card that does not read loses what is for it, as a full wire would.
    pub(crate) fn send(&mut self, member: &PublicKey, message: &[u8]) {
        let card = self.members.get(member).and_then(|id| self.cards.get(id));
        let Some(card) = card else { return };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Err(error) = send(&card.socket, message, flags) {
            tracing::trace!(%error, "a card's socket");
            self.full += 1;
        }
    }
}

impl Drop for Uplinks {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the uplinks' socket stays");
        }
    }
}
