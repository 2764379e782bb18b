//! The shard server: stores of this machine, served to volumes over the shard protocol.
//!
//! ```text
//! listeners ──► door (one thread): hello, handshake, limits ──► the store's loop (one thread each)
//!                                                                read, open, handle, one sync for
//!                                                                all of the turn, answer
//! ```
//!
//! A store's loop owns the store: a request costs no hop between threads, and whatever arrived
//! while the disk was busy with one sync shares the next.

mod config;
mod connection;
mod door;
pub(crate) mod metrics;
mod store_loop;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;
use storage_vdev::wire::handshake::STORE_NAME_BYTES_MAX;

pub use config::{KeyFileError, Limits, ListenAddress, ServerConfig, load_key};
use door::Door;
use metrics::{DoorMetrics, StoreMetrics};
pub use store_loop::Service;
use store_loop::{Arrival, StoreLoop};

/// Why a server didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: ListenAddress,
        /// Why.
        source: io::Error,
    },
    /// A store's name can't be one.
    #[error("{0:?} is no name for a store: 1 to {STORE_NAME_BYTES_MAX} bytes")]
    Name(String),
    /// No thread, or no descriptor.
    #[error("the server can't start: {0}")]
    System(#[from] io::Error),
}

/// An eventfd that wakes a thread out of its wait.
pub(crate) struct Wake(OwnedFd);

impl Wake {
    fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the thread. A counter that is full has woken it already.
    pub(crate) fn wake(&self) {
        if let Err(error) = rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            tracing::trace!("a wake that wasn't needed: {error}");
        }
    }

    /// Forgets what woke the thread.
    pub(crate) fn clear(&self) {
        let mut count = [0; 8];
        if let Err(error) = rustix::io::read(&self.0, &mut count) {
            tracing::trace!("woken by nothing: {error}");
        }
    }
}

/// What all threads of a server share.
pub(crate) struct Shared {
    pub(crate) config: ServerConfig,
    pub(crate) stopping: AtomicBool,
    /// Connections of all stores, handshakes included.
    pub(crate) connections: AtomicUsize,
    pub(crate) door: DoorMetrics,
}

/// How the door hands a session to a store's loop.
pub(crate) struct StoreHandle {
    pub(crate) arrivals: mpsc::Sender<Arrival>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) metrics: Arc<StoreMetrics>,
}

/// A running server. Dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    stores: Arc<BTreeMap<String, StoreHandle>>,
    door_wake: Arc<Wake>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<ListenAddress>,
}

impl Server {
    /// Listens, and starts a thread for the door and one for each store.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start(
        config: ServerConfig,
        stores: Vec<(String, Box<dyn Service>)>,
    ) -> Result<Self, StartError> {
        let shared = Arc::new(Shared {
            config,
            stopping: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            door: DoorMetrics::default(),
        });
        let door_wake = Arc::new(Wake::new()?);
        let (mut handles, mut loops) = (BTreeMap::new(), Vec::new());
        for (name, service) in stores {
            if name.is_empty() || name.len() > STORE_NAME_BYTES_MAX || handles.contains_key(&name) {
                return Err(StartError::Name(name));
            }
            let (arrivals, inbox) = mpsc::channel();
            let (wake, metrics) = (Arc::new(Wake::new()?), Arc::new(StoreMetrics::default()));
            let store_loop = StoreLoop::new(
                Arc::clone(&shared),
                service,
                (inbox, Arc::clone(&wake)),
                Arc::clone(&metrics),
            )?;
            loops.push((name.clone(), store_loop));
            handles.insert(name, StoreHandle { arrivals, wake, metrics });
        }
        let stores = Arc::new(handles);
        let door = Door::open(Arc::clone(&shared), Arc::clone(&stores), Arc::clone(&door_wake))?;
        let addresses = door.addresses();
        let mut this = Self { shared, stores, door_wake, threads: Vec::new(), addresses };
        for (name, store_loop) in loops {
            this.spawn(&format!("store {name}"), move || store_loop.run())?;
        }
        this.spawn("door", move || door.run())?;
        Ok(this)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(body)?);
        Ok(())
    }

    /// Where it listens; a port that was 0 is the chosen one.
    #[must_use]
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// Counters and latencies as Prometheus text (version 0.0.4).
    #[must_use]
    pub fn metrics(&self) -> String {
        let stores = self.stores.iter().map(|(name, handle)| (name.as_str(), &*handle.metrics));
        let connections = self.shared.connections.load(Ordering::Relaxed);
        metrics::render(&self.shared.door, connections, stores)
    }

    /// Takes no more connections and requests, finishes what was begun, sends the answers, ends.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.door_wake.wake();
        self.stores.values().for_each(|store| store.wake.wake());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the shard server panicked");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
