//! The sockets of the VMs on this host, by which their cards reach the node's router.
//!
//! Whoever runs VMs here (`hypha run`) makes a socket pair per card, gives one end to the VMM and
//! hands the other over the socket `uplink` in the state's folder, which only the owner of the state
//! may connect to. It keeps a copy of both: so a VM that is started again and a node that is
//! started again find each other without the VMM ever opening a socket. `docs/mesh-uplink.md` tells
//! the whole story, [`net_vdev::uplink`] the messages.

mod handover;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub use handover::{CardEnds, Handover};
use net_vdev::PublicKey;
use net_vdev::announcement::SignedAnnouncement;
use net_vdev::certificate::HostName;
use net_vdev::signature::SIGNATURE_BYTES;
use net_vdev::uplink::{self, Challenge, LOCAL_BYTES, MESSAGE_BYTES_MAX, Up, local_header};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, listen, recv, send, socket_with,
};
use rustix::time::Timespec;

use crate::core::{AttachError, Core, Outside};
use crate::daemon::NodeError;

/// How many cards may be connected, and how many that run VMs.
const CARDS_MAX: usize = 4096;
const CLIENTS_MAX: usize = 256;
/// How many messages one card may send before the others have their turn, and how many of the
/// sockets that are ready have one.
const MESSAGES_PER_TURN: usize = 16;
const READY_PER_TURN: usize = 64;
/// When a member is asked to announce itself anew: its announcements hold for an hour.
const RENEW_NS: u64 = 1_200_000_000_000;
/// The least time between two challenges of one card.
const CHALLENGE_PAUSE_NS: u64 = 2_000_000_000;
/// How many answers of one card are verified in so long: two signatures each, for which others wait.
const ANSWERS_MAX: u32 = 16;
const ANSWERS_PERIOD_NS: u64 = 4_000_000_000;

const LISTENER: u64 = u64::MAX;

/// The listening socket, those who run VMs, and the cards.
pub(crate) struct Uplinks {
    node: PublicKey,
    path: PathBuf,
    listener: OwnedFd,
    ready: OwnedFd,
    clients: BTreeMap<u64, OwnedFd>,
    cards: BTreeMap<u64, Card>,
    /// Which card a member has.
    members: BTreeMap<PublicKey, u64>,
    /// Which member has a name here.
    named: BTreeMap<HostName, PublicKey>,
    next: u64,
    buffer: Vec<u8>,
    /// Where the host may be reached.
    addresses: Vec<IpAddr>,
    renewed_ns: u64,
    /// Whether the listener is not watched for a while.
    is_deaf: bool,
    counters: UplinkCounters,
}

/// What was lost between the node and the cards of its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UplinkCounters {
    /// Messages that a card's socket had no room for.
    pub full: u64,
    /// Messages of a card that are none of this version, or came before it was attached.
    pub odd: u64,
    /// Packets passed on between two members of this node as they were.
    pub local: u64,
    /// Cards that could not prove who they are, or whose announcement the router refused.
    pub refused: u64,
}

struct Card {
    socket: OwnedFd,
    /// What its machine is to be called.
    name: Option<HostName>,
    /// What it was asked last, and when.
    challenge: Challenge,
    asked_ns: u64,
    /// Since when its answers are counted, and how many there were.
    answers: (u64, u32),
    member: Option<PublicKey>,
}

impl Card {
    /// Whether another answer is looked at now.
    fn may_answer(&mut self, now_ns: u64) -> bool {
        let (since_ns, count) = &mut self.answers;
        if now_ns >= since_ns.saturating_add(ANSWERS_PERIOD_NS) {
            (*since_ns, *count) = (now_ns, 0);
        }
        *count = count.saturating_add(1);
        *count <= ANSWERS_MAX
    }
}

impl Uplinks {
    /// Listens at `path` for the cards of `node`. The caller made sure that no other node does.
    pub(crate) fn open(path: &Path, node: PublicKey) -> Result<Self, NodeError> {
        let failed = |source: io::Error| NodeError::State { path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let make = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            bind(&listener, &SocketAddrUnix::new(path)?)?;
            listen(&listener, 64)?;
            let ready = epoll::create(CreateFlags::CLOEXEC)?;
            epoll::add(&ready, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
            Ok((listener, ready))
        };
        let (listener, ready) = make().map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            node,
            path: path.to_owned(),
            listener,
            ready,
            clients: BTreeMap::new(),
            cards: BTreeMap::new(),
            members: BTreeMap::new(),
            named: BTreeMap::new(),
            next: 0,
            buffer: vec![0; MESSAGE_BYTES_MAX + 1],
            addresses: Vec::new(),
            renewed_ns: 0,
            is_deaf: false,
            counters: UplinkCounters::default(),
        })
    }

    /// What to wait for.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    pub(crate) fn counters(&self) -> UplinkCounters {
        self.counters
    }

    /// Tells the cards from now on that the host may be reached at these addresses.
    pub(crate) fn set_addresses(&mut self, addresses: Vec<IpAddr>) {
        if addresses != self.addresses {
            self.addresses = addresses;
            let told = uplink::attached(&self.addresses);
            let members: Vec<_> = self.members.keys().copied().collect();
            members.iter().for_each(|member| self.send(member, &told));
        }
    }

    /// Takes new cards, and what the cards have to say.
    pub(crate) fn turn(&mut self, now_ns: u64, core: &mut Core, outside: &mut impl Outside) {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; READY_PER_TURN];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = match epoll::wait(&self.ready, &mut events, Some(&no_wait)) {
            Ok((ready, _)) => ready,
            Err(error) => {
                tracing::debug!(%error, "waiting for cards");
                return;
            }
        };
        for event in ready {
            let id = event.data.u64();
            if id == LISTENER {
                self.accept();
            } else if self.clients.contains_key(&id) {
                self.take_cards(now_ns, id);
            } else {
                self.hear(now_ns, id, core, outside);
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match accept_with(&self.listener, flags) {
                Ok(socket) => {
                    if self.clients.len() < CLIENTS_MAX
                        && let Some(id) = self.watch(&socket)
                    {
                        self.clients.insert(id, socket);
                    }
                }
                // No descriptor left: the listener would stay ready, and every turn be for nothing.
                Err(Errno::MFILE | Errno::NFILE) => {
                    tracing::warn!("no descriptor left for who runs VMs; they have to wait");
                    self.unwatch(&self.listener);
                    self.is_deaf = true;
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn watch(&mut self, socket: &OwnedFd) -> Option<u64> {
        self.next += 1;
        let watched =
            epoll::add(&self.ready, socket, EventData::new_u64(self.next), EventFlags::IN);
        watched.is_ok().then_some(self.next)
    }

    /// To be called before a socket is closed: others have copies of it, so the kernel would go on
    /// telling of it, and nobody here could take what it has.
    fn unwatch(&self, socket: &OwnedFd) {
        if let Err(error) = epoll::delete(&self.ready, socket) {
            tracing::warn!(%error, "a socket stays watched");
        }
    }

    /// Takes the cards that one who runs VMs hands over.
    fn take_cards(&mut self, now_ns: u64, client: u64) {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(socket) = self.clients.get(&client) else { return };
            match handover::receive(socket.as_fd()) {
                Ok(Some((card, name))) => self.add(now_ns, card, name),
                Ok(None) => return,
                Err(reason) => {
                    tracing::debug!(reason, "one who runs VMs is gone");
                    if let Some(socket) = self.clients.remove(&client) {
                        self.unwatch(&socket);
                    }
                }
            }
        }
    }

    fn add(&mut self, now_ns: u64, socket: OwnedFd, name: Option<HostName>) {
        if self.cards.len() >= CARDS_MAX {
            tracing::warn!("{CARDS_MAX} cards are connected; another one is refused");
            return;
        }
        let Some(id) = self.watch(&socket) else { return };
        let challenge = Challenge { node: self.node, nonce: [0; 32], sequence: 0 };
        let answers = (now_ns, 0);
        let card = Card { socket, name, challenge, asked_ns: 0, answers, member: None };
        self.cards.insert(id, card);
        self.challenge(now_ns, id, 0);
    }

    /// Asks a card to prove who it is and to announce itself under a number of at least `sequence`.
    fn challenge(&mut self, now_ns: u64, id: u64, sequence: u64) {
        let Some(card) = self.cards.get_mut(&id) else { return };
        let mut nonce = [0; 32];
        if SystemRandom::new().fill(&mut nonce).is_err() {
            tracing::error!("the kernel gives no random bytes: no card is attached");
            return;
        }
        card.challenge = Challenge { nonce, sequence, ..card.challenge };
        card.asked_ns = now_ns;
        let message = card.challenge.message();
        deliver(&card.socket, &message, &mut self.counters);
    }

    /// Asks a card once more what it was asked last. An answer to it that is on its way counts too.
    fn ask_again(&mut self, id: u64) {
        if let Some(card) = self.cards.get(&id) {
            deliver(&card.socket, &card.challenge.message(), &mut self.counters);
        }
    }

    /// Takes what a card has to say.
    fn hear(&mut self, now_ns: u64, id: u64, core: &mut Core, outside: &mut impl Outside) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..MESSAGES_PER_TURN {
            let Some(card) = self.cards.get(&id) else { break };
            let len = match recv(&card.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => break,
                Ok((0, _)) | Err(_) => {
                    self.remove(now_ns, id, core, outside);
                    break;
                }
                Ok((len, _)) => len,
            };
            let message = buffer.get_mut(..len).filter(|_| len <= MESSAGE_BYTES_MAX);
            if !message.is_some_and(|message| self.heed(now_ns, id, message, core, outside)) {
                self.counters.odd += 1;
            }
        }
        self.buffer = buffer;
    }

    fn remove(&mut self, now_ns: u64, id: u64, core: &mut Core, outside: &mut impl Outside) {
        let Some(card) = self.cards.remove(&id) else { return };
        self.unwatch(&card.socket);
        if let Some(member) = card.member.filter(|it| self.members.get(it) == Some(&id)) {
            self.members.remove(&member);
            core.detach(now_ns, &member, outside);
        }
        self.name_members();
    }

    /// Of members with one name, the one whose card came first has it; those who proved nothing yet
    /// have none.
    fn name_members(&mut self) {
        self.named.clear();
        for card in self.cards.values() {
            if let (Some(name), Some(member)) = (card.name, card.member) {
                self.named.entry(name).or_insert(member);
            }
        }
    }

    /// Which attached member has which name.
    pub(crate) fn named(&self) -> &BTreeMap<HostName, PublicKey> {
        &self.named
    }

    /// Does what a card's message says; whether it is one that the card may send now.
    fn heed(
        &mut self,
        now_ns: u64,
        id: u64,
        message: &mut [u8],
        core: &mut Core,
        outside: &mut impl Outside,
    ) -> bool {
        let member = self.cards.get(&id).and_then(|card| card.member);
        let mut local = None;
        match (Up::parse(message), member) {
            // A VMM that has just started does not know what the one before was told.
            (Some(Up::Join), _) => self.ask_again(id),
            (Some(Up::Attach(answer)), _) => {
                self.attach(now_ns, id, &answer, core, outside);
            }
            (Some(Up::Frames { stride, frames }), Some(member)) => {
                for frame in frames.chunks_mut(stride) {
                    core.receive_attached(now_ns, &member, frame, outside);
                }
            }
            (Some(Up::Resolve(address)), Some(member)) => {
                core.resolve_for(now_ns, &member, &address, outside);
            }
            (Some(Up::Local(it)), Some(member)) => {
                local = Some((member, it.member, local_header(&member, &it.header)));
            }
            (Some(Up::Frames { .. } | Up::Resolve(_) | Up::Local(_)), None) | (None, _) => {
                return false;
            }
        }
        if let Some((from, to, header)) = local {
            let place = message.first_chunk_mut::<LOCAL_BYTES>();
            place.into_iter().for_each(|place| *place = header);
            self.pass_on(&from, &to, message);
        }
        true
    }

    /// A card proved who it is: its member is attached, or attached anew.
    fn attach(
        &mut self,
        now_ns: u64,
        id: u64,
        answer: &(SignedAnnouncement, [u8; SIGNATURE_BYTES]),
        core: &mut Core,
        outside: &mut impl Outside,
    ) {
        let (signed, signature) = answer;
        let key = signed.announcement.key;
        let Some(card) = self.cards.get_mut(&id) else { return };
        // Nor is it worth a line of a log each time.
        if !card.may_answer(now_ns) {
            self.counters.refused += 1;
            return;
        }
        // One member per card.
        let is_same = card.member.is_none_or(|member| member == key);
        let is_proven = is_same && card.challenge.is_answered(&key, signature);
        let attached =
            if is_proven { core.attach(now_ns, signed) } else { Err(AttachError::Proof) };
        match attached {
            Ok(member) => {
                card.member = Some(member);
                let told = uplink::attached(&self.addresses);
                deliver(&card.socket, &told, &mut self.counters);
                let before = self.members.insert(member, id);
                // The member's VM was started again by somebody else: the one before is cut off.
                if let Some(before) = before.filter(|before| *before != id) {
                    tracing::info!(%member, "attached on another socket; the one before is cut off");
                    if let Some(card) = self.cards.remove(&before) {
                        self.unwatch(&card.socket);
                    }
                    core.forget_here(&member, outside);
                }
                self.name_members();
            }
            Err(error) => {
                tracing::warn!(member = %key, %error, "a card is not attached");
                self.counters.refused += 1;
            }
        }
    }

    /// Passes a packet on from one member of this node to another, as it is.
    fn pass_on(&mut self, from: &PublicKey, to: &PublicKey, message: &[u8]) {
        if self.members.contains_key(to) {
            self.counters.local += 1;
            self.send(to, message);
        } else {
            self.send(from, &uplink::gone(to));
        }
    }

    /// Members whose announcements are about to end announce themselves anew.
    pub(crate) fn renew(&mut self, now_ns: u64) {
        const LOOK_NS: u64 = 10_000_000_000;
        if now_ns < self.renewed_ns.saturating_add(LOOK_NS) {
            return;
        }
        self.renewed_ns = now_ns;
        if std::mem::take(&mut self.is_deaf) {
            let data = EventData::new_u64(LISTENER);
            if let Err(error) = epoll::add(&self.ready, &self.listener, data, EventFlags::IN) {
                tracing::warn!(%error, "nobody who runs VMs is heard");
                self.is_deaf = true;
            }
        }
        let is_due = |(id, card): (&u64, &Card)| {
            (card.asked_ns.saturating_add(RENEW_NS) <= now_ns).then_some(*id)
        };
        let due: Vec<_> = self.cards.iter().filter_map(is_due).collect();
        due.into_iter().for_each(|id| self.challenge(now_ns, id, 0));
    }

    /// A member is to announce itself under a number of at least `sequence`.
    pub(crate) fn ask_for(&mut self, now_ns: u64, member: &PublicKey, sequence: u64) {
        let id = self.members.get(member).copied();
        let card = id.and_then(|id| self.cards.get(&id));
        let is_rested = |card: &Card| card.asked_ns.saturating_add(CHALLENGE_PAUSE_NS) <= now_ns;
        if let Some(id) = id.filter(|_| card.is_some_and(is_rested)) {
            self.challenge(now_ns, id, sequence);
        }
    }

    /// A card that does not read loses what is for it, as a full wire would.
    pub(crate) fn send(&mut self, member: &PublicKey, message: &[u8]) {
        let card = self.members.get(member).and_then(|id| self.cards.get(id));
        if let Some(card) = card {
            deliver(&card.socket, message, &mut self.counters);
        }
    }
}

fn deliver(socket: &OwnedFd, message: &[u8], counters: &mut UplinkCounters) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if let Err(error) = send(socket, message, flags) {
        tracing::trace!(%error, "a card's socket");
        counters.full += 1;
    }
}

impl Drop for Uplinks {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the uplinks' socket stays");
        }
    }
}
