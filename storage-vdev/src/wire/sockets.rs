//! A volume's nodes behind sockets that are connected already.
//!
//! After [`SocketNodes::new`] the only system calls are `sendto`, `recvfrom` and `epoll_wait` on
//! descriptors that exist by then, so a confined process can go on with it; a connection that ended
//! is closed, and one that the owner hands in later takes an `epoll_ctl` (and whatever the owner
//! does to get it).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ring::hmac;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, sockopt};

use super::client::{Client, ClientConfig, ClientError};
use crate::node::{NODES_MAX, NodeCompletion, NodeError, NodeIndex, Nodes, Request, Tag};

/// How long after the end of a connection a new one is asked for, first and at most: the wait
/// doubles with each that fails.
pub const RECONNECT_NS: (u64, u64) = (100_000_000, 10_000_000_000);

/// Bytes are moved at least so often, even while completions wait to be taken.
const EXCHANGE_NS: u64 = 1_000_000;

/// The epoll data of [`SocketNodes::wake_on`]'s descriptor, which is no slot's.
const WAKE: u64 = u64::MAX;

/// What may wait in a unix socket: a whole shard.
const SEND_BUFFER_BYTES: usize = 2 << 20;

/// Asks for a send buffer that takes a whole shard, so that the two ends of a unix socket don't wait
/// for each other after every few pages. TCP finds its own size. What the system allows will do.
pub fn widen(socket: impl AsFd) {
    if sockopt::socket_domain(&socket) != Ok(AddressFamily::UNIX) {
        return;
    }
    if let Err(error) = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES) {
        tracing::debug!(%error, "a socket's send buffer stays as it is");
    }
}

/// Gives a new connected (or connecting) socket for a node, if the owner has one.
pub type Reconnect = Box<dyn FnMut(NodeIndex) -> Option<OwnedFd> + Send>;

/// A node and how it is reached.
#[derive(Debug)]
pub struct SocketNode {
    /// How to name it to a person.
    pub name: String,
    /// What the client knows of it.
    pub config: Arc<ClientConfig>,
    /// A connected stream socket; `None` if the node can't be reached now.
    pub socket: Option<OwnedFd>,
}

/// What a node's connection is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// There is a connection, and the handshake is under way.
    Connecting,
    /// The session stands.
    Open,
    /// The session stands, but the node refused a credential.
    Denied,
    /// There is none, and why the last one ended.
    Down(Option<ClientError>),
}

struct Slot {
    name: String,
    config: Arc<ClientConfig>,
    connection: Option<Connection>,
    error: Option<ClientError>,
    /// When to ask for a new connection, once a clock was seen.
    retry_ns: Option<u64>,
    backoff_ns: u64,
    /// The owner was asked for a socket and had none yet.
    awaited: bool,
}

struct Connection {
    socket: OwnedFd,
    client: Client,
    readable: bool,
    writable: bool,
}

/// A volume's nodes over shard sessions.
pub struct SocketNodes {
    slots: Vec<Slot>,
    epoll: OwnedFd,
    reconnect: Reconnect,
    seed: hmac::Key,
    handshakes: u64,
    ready: VecDeque<NodeCompletion>,
    events: Vec<epoll::Event>,
    now_ns: u64,
    /// When bytes were last moved.
    exchanged_ns: Option<u64>,
    /// Readable when the owner may have a socket that it had not when it was asked.
    wake: Option<OwnedFd>,
    woken: bool,
}

impl SocketNodes {
    /// Starts a session on each socket. `seed` is fresh randomness.
    ///
    /// # Errors
    /// What `epoll` says, or `InvalidInput` for too many nodes or a key that can't be one.
    pub fn new(nodes: Vec<SocketNode>, reconnect: Reconnect, seed: &[u8; 32]) -> io::Result<Self> {
        if nodes.len() > NODES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many nodes"));
        }
        let mut this = Self {
            slots: Vec::new(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            reconnect,
            seed: hmac::Key::new(hmac::HMAC_SHA256, seed),
            handshakes: 0,
            ready: VecDeque::new(),
            events: Vec::with_capacity(NODES_MAX),
            now_ns: 0,
            exchanged_ns: None,
            wake: None,
            woken: false,
        };
        for SocketNode { name, config, socket } in nodes {
            this.slots.push(Slot {
                name,
                config,
                connection: None,
                error: None,
                retry_ns: None,
                backoff_ns: RECONNECT_NS.0,
                awaited: false,
            });
            if let Some(socket) = socket {
                widen(&socket);
                this.connect(this.slots.len() - 1, socket)?;
            }
        }
        Ok(this)
    }

    /// When `fd` becomes readable, the owner is asked again at once for the sockets that it had not
    /// when it was asked last.
    ///
    /// # Errors
    /// What `epoll` says.
    pub fn wake_on(&mut self, fd: OwnedFd) -> io::Result<()> {
        let interest = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(WAKE), interest)?;
        self.wake = Some(fd);
        Ok(())
    }

    /// How each node's connection is.
    #[must_use]
    pub fn state(&self, node: NodeIndex) -> NodeState {
        let Some(slot) = self.slots.get(usize::from(node)) else { return NodeState::Down(None) };
        match &slot.connection {
            Some(connection) if connection.client.is_denied() => NodeState::Denied,
            Some(connection) if connection.client.is_open() => NodeState::Open,
            Some(_) => NodeState::Connecting,
            None => NodeState::Down(slot.error),
        }
    }

    /// Starts a session with node `index` on `socket`.
    fn connect(&mut self, index: usize, socket: OwnedFd) -> io::Result<()> {
        self.handshakes += 1;
        let seed = hmac::sign(&self.seed, &self.handshakes.to_le_bytes());
        let seed = seed.as_ref().first_chunk().copied().unwrap_or_default();
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        let client = Client::new(Arc::clone(&slot.config), seed).map_err(|error| {
            slot.error = Some(error.into());
            io::Error::new(io::ErrorKind::InvalidInput, error)
        })?;
        // Edge-triggered and never changed: both ends of a transition are seen without epoll_ctl.
        let interest = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(index as u64), interest)?;
        slot.connection = Some(Connection { socket, client, readable: true, writable: true });
        Ok(())
    }

    /// Moves bytes on all connections and gathers what is finished.
    fn exchange(&mut self) {
        self.mark_ready();
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            if let Some(connection) = &mut slot.connection {
                // What has come is in time, however late we look: the clock comes second.
                connection.exchange();
                connection.client.tick(self.now_ns);
                connection.write();
                while let Some(completion) = connection.client.poll() {
                    self.ready.push_back(completion);
                }
                if connection.client.is_open() {
                    slot.backoff_ns = RECONNECT_NS.0;
                }
                if let Some(error) = connection.client.error() {
                    slot.error = Some(error);
                    slot.connection = None;
                    slot.schedule(self.now_ns);
                }
            } else if slot.retry_ns.is_none_or(|at| at <= self.now_ns) {
                slot.schedule(self.now_ns);
                self.try_again(index);
            } else if self.woken && slot.awaited {
                self.try_again(index);
            }
        }
        self.woken = false;
    }

    fn try_again(&mut self, index: usize) {
        let Ok(node) = NodeIndex::try_from(index) else { return };
        let socket = (self.reconnect)(node);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.awaited = socket.is_none();
        }
        let Some(socket) = socket else { return };
        // A descriptor that epoll refuses is as good as none: the next try is scheduled.
        if self.connect(index, socket).is_err() {
            return;
        }
        if let Some(connection) =
            self.slots.get_mut(index).and_then(|slot| slot.connection.as_mut())
        {
            connection.client.tick(self.now_ns);
            connection.exchange();
        }
    }

    fn mark_ready(&mut self) {
        self.events.clear();
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let waited = epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&now));
        // Only an interruption can happen to a descriptor that is ours; then every connection is
        // tried.
        let all = waited.is_err();
        for slot in self.slots.iter_mut().filter(|_| all) {
            if let Some(connection) = &mut slot.connection {
                (connection.readable, connection.writable) = (true, true);
            }
        }
        for event in &self.events {
            let (data, flags) = (event.data, event.flags);
            if data.u64() == WAKE {
                self.woken = true;
                continue;
            }
            let index = usize::try_from(data.u64()).unwrap_or(usize::MAX);
            let Some(connection) =
                self.slots.get_mut(index).and_then(|slot| slot.connection.as_mut())
            else {
                continue;
            };
            let reading = epoll::EventFlags::IN
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::HUP
                | epoll::EventFlags::ERR;
            connection.readable |= flags.intersects(reading);
            connection.writable |= flags.intersects(epoll::EventFlags::OUT);
        }
    }
}

impl Slot {
    fn schedule(&mut self, now_ns: u64) {
        self.retry_ns = Some(now_ns.saturating_add(self.backoff_ns));
        self.backoff_ns = self.backoff_ns.saturating_mul(2).min(RECONNECT_NS.1);
    }
}

impl Connection {
    fn exchange(&mut self) {
        self.write();
        while self.readable && self.client.error().is_none() {
            self.read();
        }
        // What came may have released requests that waited for the handshake.
        self.write();
    }

    fn write(&mut self) {
        while self.writable && !self.client.outgoing().is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, self.client.outgoing(), flags) {
                Ok(count) => self.client.sent(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => {
                    // What the node sent before it closed may say why, or answer.
                    self.writable = false;
                    self.readable = true;
                }
            }
        }
    }

    fn read(&mut self) {
        let buffer = self.client.read_buffer();
        let room = buffer.capacity() - buffer.len();
        let received = rustix::net::recv(&self.socket, spare_capacity(buffer), RecvFlags::DONTWAIT);
        match received {
            Ok((0, _)) => self.client.close(),
            Ok((count, _)) => {
                // A stream socket gives less than was asked for only when it has no more.
                self.readable = count == room;
                self.client.receive();
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.readable = false,
            Err(_) => self.client.close(),
        }
    }
}

impl Nodes for SocketNodes {
    fn count(&self) -> usize {
        self.slots.len()
    }

    fn name(&self, node: NodeIndex) -> String {
        self.slots.get(usize::from(node)).map_or_else(String::new, |slot| slot.name.clone())
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        let slot = self.slots.get_mut(usize::from(node));
        match slot.and_then(|slot| slot.connection.as_mut()) {
            Some(connection) => connection.client.submit(tag, request),
            None => {
                let result = Err(NodeError::Unavailable);
                self.ready.push_back(NodeCompletion { tag, result });
            }
        }
    }

    fn poll(&mut self, now_ns: u64) -> Option<NodeCompletion> {
        self.now_ns = now_ns;
        // Completions that are at hand cost no system call, but don't keep the others waiting.
        let due = self.exchanged_ns.is_none_or(|at| now_ns.saturating_sub(at) >= EXCHANGE_NS);
        if self.ready.is_empty() || due {
            self.exchanged_ns = Some(now_ns);
            self.exchange();
        }
        self.ready.pop_front()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn deadline_ns(&self) -> Option<u64> {
        let deadlines = self.slots.iter().filter_map(|slot| match &slot.connection {
            Some(connection) => connection.client.deadline_ns(),
            None => slot.retry_ns,
        });
        deadlines.min()
    }
}
