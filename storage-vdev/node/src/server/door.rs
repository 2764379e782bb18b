//! The door: accepts connections, does their handshakes, and hands the sessions to the stores'
//! loops. Strangers cost this thread's time, never a store's.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use storage_vdev::wire::ServerSession;
use storage_vdev::wire::handshake::{self, HandshakeError, HelloReader, Verdict};
use storage_vdev::wire::sockets::widen;

use super::config::random_bytes;
use super::store_loop::{Arrival, now_ns};
use super::{ListenAddress, Shared, StartError, StoreHandle, Wake};

/// The most bytes of a hello.
const HELLO_ROOM: usize = handshake::HELLO_BYTES + handshake::MESSAGE_BYTES_MAX;
const WAKE_TOKEN: u64 = u64::MAX;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

struct Guest {
    socket: OwnedFd,
    reader: HelloReader,
    deadline_ns: u64,
}

pub(crate) struct Door {
    shared: Arc<Shared>,
    stores: Arc<BTreeMap<String, StoreHandle>>,
    wake: Arc<Wake>,
    epoll: OwnedFd,
    listeners: Vec<(Listener, ListenAddress)>,
    guests: HashMap<u64, Guest>,
    next_token: u64,
    /// Handshakes that may start now, in billionths: refilled with time.
    allowance: u64,
    refilled_ns: u64,
}

impl Door {
    pub(crate) fn open(
        shared: Arc<Shared>,
        stores: Arc<BTreeMap<String, StoreHandle>>,
        wake: Arc<Wake>,
    ) -> Result<Self, StartError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        let mut listeners = Vec::new();
        for address in &shared.config.listen {
            let listener = listen(address)
                .map_err(|source| StartError::Listen { address: address.clone(), source })?;
            let token = epoll::EventData::new_u64(listeners.len() as u64);
            epoll::add(&epoll, &listener, token, epoll::EventFlags::IN).map_err(io::Error::from)?;
            let actual = match &listener {
                Listener::Tcp(listener) => ListenAddress::Tcp(listener.local_addr()?),
                Listener::Unix(_) => address.clone(),
            };
            listeners.push((listener, actual));
        }
        let token = epoll::EventData::new_u64(WAKE_TOKEN);
        epoll::add(&epoll, &wake.0, token, epoll::EventFlags::IN).map_err(io::Error::from)?;
        let next_token = listeners.len() as u64;
        Ok(Self {
            shared,
            stores,
            wake,
            epoll,
            listeners,
            guests: HashMap::new(),
            next_token,
            allowance: 0,
            refilled_ns: 0,
        })
    }

    pub(crate) fn addresses(&self) -> Vec<ListenAddress> {
        self.listeners.iter().map(|(_, address)| address.clone()).collect()
    }

    pub(crate) fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        while !self.shared.stopping.load(Ordering::Acquire) {
            events.clear();
            let half_second = rustix::time::Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, Some(&half_second)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("the shard server takes no more connections: {error}");
                    return;
                }
            }
            let now_ns = now_ns();
            for event in &events {
                let data = event.data;
                self.serve(data.u64(), now_ns);
            }
            self.expire(now_ns);
        }
        for (_, address) in &self.listeners {
            remove_socket(address);
        }
    }

    fn serve(&mut self, token: u64, now_ns: u64) {
        if token == WAKE_TOKEN {
            self.wake.clear();
        } else if let Some((listener, _)) = self.listeners.get(token as usize) {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.admit(socket, now_ns),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    // Out of descriptors, most likely: the connection stays in the queue. A short
                    // rest keeps this thread from spinning meanwhile.
                    tracing::warn!("a connection can't be accepted: {error}");
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
        } else if let Some(mut guest) = self.guests.remove(&token) {
            match self.listen_to(&mut guest, now_ns) {
                Progress::Waits => drop(self.guests.insert(token, guest)),
                Progress::Session(store, session) => self.hand_over(&store, guest.socket, session),
                Progress::Ended => self.leave(),
            }
        }
    }

    fn admit(&mut self, socket: OwnedFd, now_ns: u64) {
        let shared = &self.shared;
        shared.door.accepted.add(1);
        if shared.connections.load(Ordering::Relaxed) >= shared.config.limits.connections {
            shared.door.turned_away.add(1);
            return;
        }
        // A unix socket has no such option, and needs none.
        if let Err(error) = rustix::net::sockopt::set_tcp_nodelay(&socket, true) {
            tracing::trace!("no TCP_NODELAY: {error}");
        }
        widen(&socket);
        let token = epoll::EventData::new_u64(self.next_token);
        if let Err(error) = epoll::add(&self.epoll, &socket, token, epoll::EventFlags::IN) {
            tracing::warn!("a connection can't be waited for: {error}");
            return;
        }
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let deadline_ns = now_ns.saturating_add(shared.config.limits.handshake_ns);
        let guest = Guest { socket, reader: HelloReader::default(), deadline_ns };
        self.guests.insert(self.next_token, guest);
        self.next_token += 1;
    }

    fn listen_to(&mut self, guest: &mut Guest, now_ns: u64) -> Progress {
        let mut bytes = [0; HELLO_ROOM + 1];
        match rustix::net::recv(&guest.socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Progress::Ended,
            Ok((count, _)) => guest.reader.push(bytes.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return Progress::Waits,
            Err(_) => return Progress::Ended,
        }
        let answered = match guest.reader.message() {
            Ok(None) => return Progress::Waits,
            Ok(Some(_)) if !self.may_shake(now_ns) => {
                self.shared.door.turned_away.add(1);
                return Progress::Ended;
            }
            Ok(Some(message)) => self.shake_hands(guest, message),
            Err(error) => Err(error),
        };
        match answered {
            Ok(progress) => progress,
            Err(error) => {
                self.shared.door.handshakes_failed.add(1);
                tracing::debug!("a handshake failed: {error}");
                if matches!(error, HandshakeError::Version(_)) {
                    send_all(&guest.socket, &handshake::hello(0));
                }
                Progress::Ended
            }
        }
    }

    fn shake_hands(&self, guest: &Guest, message: &[u8]) -> Result<Progress, HandshakeError> {
        let Ok(seed) = random_bytes() else { return Ok(Progress::Ended) };
        let received = handshake::receive(&self.shared.config.key, message, seed)?;
        let store = received.store.clone();
        if !self.stores.contains_key(&store) {
            let (refusal, _) = received.answer(Verdict::NoSuchStore)?;
            self.shared.door.turned_away.add(1);
            send_all(&guest.socket, &refusal);
            return Ok(Progress::Ended);
        }
        let (session, welcome) = ServerSession::welcome(received)?;
        self.shared.door.handshakes.add(1);
        if !send_all(&guest.socket, &welcome) {
            return Ok(Progress::Ended);
        }
        Ok(Progress::Session(store, Box::new(session)))
    }

    /// Handshakes cost four multiplications on the curve: so many per second and no more.
    fn may_shake(&mut self, now_ns: u64) -> bool {
        let per_second = u64::from(self.shared.config.limits.handshakes_per_second);
        let passed = now_ns.saturating_sub(self.refilled_ns).min(1_000_000_000);
        self.refilled_ns = now_ns;
        let full = per_second.saturating_mul(1_000_000_000);
        self.allowance = self.allowance.saturating_add(passed.saturating_mul(per_second)).min(full);
        match self.allowance.checked_sub(1_000_000_000) {
            Some(left) => {
                self.allowance = left;
                true
            }
            None => false,
        }
    }

    fn hand_over(&mut self, store: &str, socket: OwnedFd, session: Box<ServerSession>) {
        let removed = epoll::delete(&self.epoll, &socket);
        let Some(handle) = self.stores.get(store).filter(|_| removed.is_ok()) else {
            return self.leave();
        };
        match handle.arrivals.send(Arrival { socket, session }) {
            Ok(()) => handle.wake.wake(),
            // The store's loop has ended.
            Err(_) => self.leave(),
        }
    }

    fn expire(&mut self, now_ns: u64) {
        let before = self.guests.len();
        self.guests.retain(|_, guest| now_ns < guest.deadline_ns);
        for _ in self.guests.len()..before {
            self.shared.door.handshakes_failed.add(1);
            self.leave();
        }
    }

    fn leave(&self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

enum Progress {
    Waits,
    Session(String, Box<ServerSession>),
    Ended,
}

/// Sends a message that fits any fresh socket's buffer.
fn send_all(socket: &OwnedFd, bytes: &[u8]) -> bool {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(socket, bytes, flags) == Ok(bytes.len())
}

fn listen(address: &ListenAddress) -> io::Result<Listener> {
    match address {
        ListenAddress::Tcp(address) => {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(Listener::Tcp(listener))
        }
        ListenAddress::Unix(path) => {
            if is_left_over(path) {
                std::fs::remove_file(path)?;
            }
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok(Listener::Unix(listener))
        }
    }
}

/// Whether `path` is a socket that nobody listens on.
fn is_left_over(path: &Path) -> bool {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    UnixStream::connect(path).is_err_and(refused)
}

fn remove_socket(address: &ListenAddress) {
    let ListenAddress::Unix(path) = address else { return };
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!("the socket {} stays: {error}", path.display());
    }
}
