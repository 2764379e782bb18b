//! Connections to other nodes: one for each, made when something is to be said, kept while it is used.
//!
//! Sending never waits: a message to a node whose line is slow or down is dropped when too much waits
//! already, and what matters is said again by the protocol. Whoever sends too much is read more slowly,
//! then not listened to, then cut off, and nobody else notices.

mod allowance;
pub mod link;
mod strangers;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hypha_chain::Address;
use hypha_chain::key::Key;

use self::allowance::{Allowance, Fate};
use self::link::{GREETING_TIME, Identity, LinkError, greet, read, write};
use self::strangers::{Strangers, origin};
use crate::clock::monotonic_ns;

/// Bytes that wait for one node: a burst of a measurement and what else there is.
const WAITING_MAX: usize = 12 << 20;
/// Bytes that wait for all.
const WAITING_ALL_MAX: usize = 256 << 20;
/// Connections at once.
const LINKS_MAX: usize = 1024;
/// Calls at once that are not answered yet. They are not counted with strangers who call: those must not
/// keep this node from calling.
const CALLS_MAX: usize = 64;
/// After a stranger was turned away, the next is let in so much later.
const CROWDED_TIME: Duration = Duration::from_millis(1);
/// A connection on which nothing comes for so long is closed.
const IDLE_TIME: Duration = Duration::from_secs(600);
/// How long a message may take to be taken.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// After a failed call, the next is so much later, doubled each time.
const RETRY_NS: u64 = 500_000_000;
const RETRY_NS_MAX: u64 = 60_000_000_000;

/// Where a node is, and by which key it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// The address of its chain key.
    pub signer: Address,
    /// Where it listens, if that is known. It can call in any case.
    pub address: Option<SocketAddr>,
}

/// A message that came.
#[derive(Debug)]
pub struct Incoming {
    /// The node whose connection it is.
    pub from: u32,
    /// The message.
    pub bytes: Vec<u8>,
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages that were written.
    pub sent: AtomicU64,
    /// Messages that came.
    pub received: AtomicU64,
    /// Messages that were dropped: too much waited, or the node is not known.
    pub dropped: AtomicU64,
    /// Messages that came and were dropped: their node sends too many.
    pub flooded: AtomicU64,
    /// Nodes that were cut off for a while.
    pub cut_off: AtomicU64,
    /// Connections that were refused, or whose other end was not who it said.
    pub refused: AtomicU64,
}

/// Takes a message, and waits until there is room for it; false if nobody listens any more.
pub type Deliver = Box<dyn Fn(Incoming) -> bool + Send + Sync>;

/// The connections of a node.
pub struct Peers {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    identity: Identity,
    key: Arc<Key>,
    contacts: RwLock<Arc<BTreeMap<u32, Contact>>>,
    peers: Mutex<BTreeMap<u32, Arc<Peer>>>,
    deliver: Deliver,
    stop: AtomicBool,
    links: AtomicUsize,
    strangers: Strangers,
    calls: AtomicUsize,
    waiting: AtomicUsize,
    numbers: AtomicU64,
    counters: Counters,
}

struct Peer {
    line: Mutex<Line>,
    changed: Condvar,
    allowance: Mutex<Allowance>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The connection that is used, with its number and who made it.
    used: Option<(u64, u32, TcpStream)>,
    is_calling: bool,
    failures: u32,
    retry_ns: u64,
}

impl Peers {
    /// Listens. `deliver` is given what comes.
    ///
    /// # Errors
    /// The address can't be listened at.
    pub fn start(
        listen: SocketAddr,
        identity: Identity,
        key: Arc<Key>,
        deliver: Deliver,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            identity,
            key,
            contacts: RwLock::new(Arc::new(BTreeMap::new())),
            peers: Mutex::new(BTreeMap::new()),
            deliver,
            stop: AtomicBool::new(false),
            links: AtomicUsize::new(0),
            strangers: Strangers::default(),
            calls: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            numbers: AtomicU64::new(0),
            counters: Counters::default(),
        });
        let accepting = Arc::clone(&shared);
        let named = thread::Builder::new().name("peers".to_owned());
        let accepting = Some(named.spawn(move || accept(&listener, &accepting))?);
        Ok(Self { shared, address, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// How many connections there are.
    #[must_use]
    pub fn links(&self) -> usize {
        self.shared.links.load(Ordering::Relaxed)
    }

    /// Who the others are. Connections to those who are not among them any more end when they are idle.
    pub fn know(&self, contacts: BTreeMap<u32, Contact>) {
        let mut peers = self.shared.lock();
        peers.retain(|node, _| contacts.contains_key(node));
        drop(peers);
        *self.shared.contacts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(contacts);
    }

    /// Sends a message, now or when there is a connection; or drops it.
    pub fn send(&self, to: u32, bytes: Vec<u8>) {
        let shared = &self.shared;
        let contact = shared.contact(to);
        let Some(contact) = contact else { return shared.drop_one() };
        let peer = Arc::clone(shared.lock().entry(to).or_default());
        let mut line = peer.lock();
        let all = shared.waiting.load(Ordering::Relaxed);
        let too_much = line.bytes + bytes.len() > WAITING_MAX || all > WAITING_ALL_MAX;
        let is_connected = line.used.is_some() || line.is_calling;
        let may_call = contact.address.is_some()
            && monotonic_ns() >= line.retry_ns
            && shared.calls.load(Ordering::Relaxed) < CALLS_MAX;
        if too_much || (!is_connected && !may_call) || peer.is_cut() {
            return shared.drop_one();
        }
        line.bytes += bytes.len();
        shared.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        line.waiting.push_back(bytes);
        if let Some(address) = contact.address.filter(|_| !is_connected) {
            line.is_calling = true;
            shared.calls.fetch_add(1, Ordering::Relaxed);
            let (shared, peer) = (Arc::clone(shared), Arc::clone(&peer));
            thread::spawn(move || call(&shared, &peer, to, address));
        }
        drop(line);
        peer.changed.notify_all();
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for peer in self.shared.lock().values() {
            let line = peer.lock();
            if let Some((_, _, stream)) = &line.used {
                // One that is closed already needs no closing.
                _ = stream.shutdown(Shutdown::Both);
            }
            peer.changed.notify_all();
        }
        // So that whoever waits for a connection gets one, and sees that it is over. The address is free
        // when this returns.
        let woken = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok();
        if let Some(accepting) = self.accepting.take().filter(|_| woken) {
            // One that panicked has printed why.
            _ = accepting.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contact(&self, node: u32) -> Option<Contact> {
        let contacts = self.contacts.read().unwrap_or_else(PoisonError::into_inner);
        contacts.get(&node).copied()
    }

    fn drop_one(&self) {
        self.counters.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl Default for Peer {
    fn default() -> Self {
        let allowance = Mutex::new(Allowance::new(monotonic_ns()));
        Self { line: Mutex::default(), changed: Condvar::new(), allowance }
    }
}

impl Peer {
    fn allowance(&self) -> MutexGuard<'_, Allowance> {
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self) -> bool {
        self.allowance().is_cut(monotonic_ns())
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn take(&mut self, shared: &Shared) -> Option<Vec<u8>> {
        let bytes = self.waiting.pop_front()?;
        self.bytes -= bytes.len();
        shared.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
        Some(bytes)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stops() {
            return;
        }
        let Ok(mut stream) = stream else {
            // No descriptor is left: others may be closed meanwhile.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        let entered = stream.peer_addr().and_then(|from| {
            let is_full = shared.links.load(Ordering::Relaxed) >= LINKS_MAX;
            if is_full { Err(io::ErrorKind::QuotaExceeded.into()) } else { Ok(origin(from.ip())) }
        });
        let entered = entered.and_then(|origin| shared.strangers.enter(origin, &stream));
        let Ok((number, turned_away)) = entered else {
            shared.counters.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        if turned_away {
            thread::sleep(CROWDED_TIME);
        }
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let signer = |node| shared.contact(node).map(|contact| contact.signer);
            let met = greet(&mut stream, &shared.identity, &shared.key, None, signer);
            shared.strangers.leave(number);
            match met {
                Ok(node) => {
                    let peer = Arc::clone(shared.lock().entry(node).or_default());
                    serve(&shared, &peer, (node, node), stream);
                }
                Err(error) => {
                    shared.counters.refused.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!("a connection is refused: {error}");
                }
            }
        });
    }
}

fn call(shared: &Arc<Shared>, peer: &Arc<Peer>, node: u32, address: SocketAddr) {
    let signer = |node| shared.contact(node).map(|contact| contact.signer);
    let met = TcpStream::connect_timeout(&address, GREETING_TIME)
        .map_err(LinkError::from)
        .and_then(|mut stream| {
            greet(&mut stream, &shared.identity, &shared.key, Some(node), signer)?;
            Ok(stream)
        });
    shared.calls.fetch_sub(1, Ordering::Relaxed);
    let mut line = peer.lock();
    line.is_calling = false;
    match met {
        Ok(stream) => {
            (line.failures, line.retry_ns) = (0, 0);
            drop(line);
            serve(shared, peer, (node, shared.identity.node), stream);
        }
        Err(error) => {
            let wait = RETRY_NS.saturating_mul(1 << line.failures.min(16)).min(RETRY_NS_MAX);
            line.retry_ns = monotonic_ns().saturating_add(wait);
            line.failures = line.failures.saturating_add(1);
            if line.used.is_none() {
                while line.take(shared).is_some() {
                    shared.drop_one();
                }
            }
            tracing::debug!(node, "a call to {address} has failed: {error}");
        }
    }
}

/// Uses a connection until it ends, or a better one is there. `who` is the node at the other end, and the
/// one that has called.
fn serve(shared: &Arc<Shared>, peer: &Arc<Peer>, who: (u32, u32), stream: TcpStream) {
    let (node, caller) = who;
    let timeouts = stream
        .set_read_timeout(Some(IDLE_TIME))
        .and_then(|()| stream.set_write_timeout(Some(WRITE_TIME)));
    let clones = timeouts.and_then(|()| Ok((stream.try_clone()?, stream.try_clone()?)));
    let Ok((closing, writing)) = clones else { return };
    let number = shared.numbers.fetch_add(1, Ordering::Relaxed);
    {
        let mut line = peer.lock();
        // If both have called at once, both keep the connection that the lower number has made.
        let lower = node.min(shared.identity.node);
        let is_worse =
            |(_, used_caller, _): &(u64, u32, TcpStream)| *used_caller == lower && caller != lower;
        if line.used.as_ref().is_some_and(is_worse) || shared.stops() || peer.is_cut() {
            return;
        }
        if let Some((_, _, before)) = line.used.replace((number, caller, closing)) {
            _ = before.shutdown(Shutdown::Both);
        }
    }
    shared.links.fetch_add(1, Ordering::Relaxed);
    let (writer_shared, writer_peer) = (Arc::clone(shared), Arc::clone(peer));
    let writer = thread::spawn(move || write_all(&writer_shared, &writer_peer, number, writing));
    read_all(shared, peer, node, stream);
    {
        let mut line = peer.lock();
        if let Some((_, _, stream)) = line.used.take_if(|(used, ..)| *used == number) {
            _ = stream.shutdown(Shutdown::Both);
        }
    }
    peer.changed.notify_all();
    // It ends when it sees that another connection is used, or none.
    _ = writer.join();
    shared.links.fetch_sub(1, Ordering::Relaxed);
}

fn read_all(shared: &Shared, peer: &Peer, node: u32, mut stream: TcpStream) {
    loop {
        let read = read(&mut stream);
        if shared.stops() {
            return;
        }
        let now_ns = monotonic_ns();
        let fate = match &read {
            Ok(bytes) => peer.allowance().on_message(bytes.len(), now_ns),
            Err(LinkError::Length(_)) => {
                peer.allowance().cut(now_ns);
                Fate::Cut
            }
            Err(error) => {
                tracing::debug!(node, "the connection ends: {error}");
                return;
            }
        };
        let (Fate::Take(wait_ns) | Fate::Drop(wait_ns)) = fate else {
            shared.counters.cut_off.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(node, "a node that floods this one is cut off for a while");
            return;
        };
        if wait_ns > 0 {
            thread::sleep(Duration::from_nanos(wait_ns));
        }
        let Ok(bytes) = read else { return };
        if matches!(fate, Fate::Drop(_)) {
            shared.counters.flooded.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        shared.counters.received.fetch_add(1, Ordering::Relaxed);
        if !(shared.deliver)(Incoming { from: node, bytes }) {
            return;
        }
    }
}

fn write_all(shared: &Shared, peer: &Peer, number: u64, mut stream: TcpStream) {
    loop {
        let mut line = peer.lock();
        let bytes = loop {
            if shared.stops() || line.used.as_ref().is_none_or(|(used, ..)| *used != number) {
                return;
            }
            if let Some(bytes) = line.take(shared) {
                break bytes;
            }
            line = peer.changed.wait(line).unwrap_or_else(PoisonError::into_inner);
        };
        drop(line);
        if write(&mut stream, &bytes).is_err() {
            shared.drop_one();
            // The reader ends too, and gives the connection up.
            _ = stream.shutdown(Shutdown::Both);
            return;
        }
        shared.counters.sent.fetch_add(1, Ordering::Relaxed);
    }
}
