//! A vhost-user-blk device: a volume as a disk of a virtual machine of QEMU, Cloud Hypervisor or
//! any other front-end.
//!
//! The caller's thread owns the volume and serves the queues; `vhost-user-backend` talks to the
//! front-end on threads of its own and wakes it for each kick. A front-end that goes away may come
//! back, or another one: one at a time.

mod frontend;
mod request;
mod session;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};
use rustix::net::SocketFlags;
use storage_vdev::engine::Volume;
use storage_vdev::node::Nodes;
use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use self::frontend::{Frontend, Memory};
use self::session::{Part, Session};
use crate::orders::Inbox;
use crate::served::{Failure, Served};
use crate::socket_file::{SocketFile, SocketFileError};
use crate::wait::{Stop, Wake, now_ns, wait};

/// Why a device ends, or can't start.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There can't be a socket there.
    #[error(transparent)]
    SocketFile(#[from] SocketFileError),
    /// The system refuses what the device can't do without.
    #[error("the device can't go on: {0}")]
    System(#[from] io::Error),
    /// The front-end can't be served.
    #[error("the front-end can't be served: {0}")]
    Frontend(String),
    /// The volume failed when it was closed.
    #[error("what was not flushed may be lost: {0}")]
    Close(#[from] Failure),
}

/// A vhost-user-blk device over a volume.
#[derive(Debug)]
pub struct Device<N> {
    served: Served<N, Part>,
    listener: UnixListener,
    #[expect(dead_code, reason = "kept to be removed with the device")]
    file: SocketFile,
    name: [u8; VIRTIO_BLK_ID_BYTES as usize],
    read_only: bool,
    sessions: u64,
}

/// A front-end that is connected.
struct Connected {
    frontend: Arc<Frontend>,
    session: Session,
    shutdown: Option<ShutdownHandle>,
    /// Ends when the front-end is gone.
    waiter: JoinHandle<()>,
}

impl<N: Nodes> Device<N> {
    /// A device at a unix socket that only its owner may use. `name` is its serial number (the
    /// first 20 bytes of it).
    ///
    /// # Errors
    /// [`DeviceError::SocketFile`].
    pub fn new(
        volume: Volume<N>,
        path: &Path,
        name: &str,
        read_only: bool,
    ) -> Result<Self, DeviceError> {
        let (file, socket) = SocketFile::bind(path, SocketFlags::empty())?;
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        id.iter_mut().zip(name.bytes()).for_each(|(target, byte)| *target = byte);
        let (listener, served) = (UnixListener::from(socket), Served::new(volume));
        Ok(Self { served, listener, file, name: id, read_only, sessions: 0 })
    }

    /// Lets the volume take orders from `inbox`.
    pub fn take_orders(&mut self, inbox: Inbox) {
        self.served.take_orders(inbox);
    }

    /// Serves one front-end after the other until `stop`. Then closes the volume.
    ///
    /// # Errors
    /// [`DeviceError`]. A front-end's errors end only its connection.
    pub fn run(mut self, stop: &Stop) -> Result<(), DeviceError> {
        let wake = Wake::new()?;
        let mut connected: Option<Connected> = None;
        loop {
            let now_ns = now_ns();
            let due = connected.as_ref().is_some_and(|connected| connected.session.is_due());
            let wake_ns = if due { Some(now_ns) } else { self.served.deadline_ns() };
            let mut sources =
                vec![PollFd::new(&stop.0, PollFlags::IN), PollFd::new(&wake, PollFlags::IN)];
            let ready = self.served.ready_fd();
            sources.extend(ready.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            if connected.is_none() {
                sources.push(PollFd::new(&self.listener, PollFlags::IN));
            }
            wait(&mut sources, wake_ns)?;
            let mut fired = sources.iter().map(|source| !source.revents().is_empty());
            let stopped = fired.next().unwrap_or(false);
            let arrived = connected.is_none() && fired.next_back().unwrap_or(false);
            drop(sources);
            wake.take();
            if stopped {
                break;
            }
            if arrived {
                connected = self.connect(&wake)?;
            }
            self.turn(&mut connected);
        }
        if let Some(Connected { shutdown, waiter, .. }) = connected {
            shutdown.into_iter().for_each(|handle| handle.shutdown());
            if waiter.join().is_err() {
                tracing::error!("the thread of a vhost-user front-end failed");
            }
        }
        Ok(self.served.close()?)
    }

    /// Does what there is to do.
    fn turn(&mut self, connected: &mut Option<Connected>) {
        if let Some(Connected { session, .. }) = connected {
            session.take_kicked(&mut self.served);
        }
        while let Some(finished) = self.served.poll(now_ns()) {
            if let Some(Connected { session, .. }) = connected {
                session.finish(&finished);
            }
            if let Ok(crate::served::Answer::Bytes(buffer)) = finished.result {
                self.served.recycle(buffer);
            }
        }
        if let Some(Connected { session, .. }) = connected {
            session.interrupt_all();
        }
        // What it left under way is carried out; there is nobody to tell.
        let over = |connected: &mut Connected| connected.frontend.state().ended;
        if let Some(gone) = connected.take_if(over)
            && gone.waiter.join().is_err()
        {
            tracing::error!("the thread of a vhost-user front-end failed");
        }
    }

    /// Takes the front-end that waits at the socket.
    fn connect(&mut self, wake: &Wake) -> Result<Option<Connected>, DeviceError> {
        let size_bytes = self.served.size_bytes();
        let frontend = Arc::new(Frontend::new(size_bytes, self.read_only, wake.clone()));
        let memory: Memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let refused = |error: &dyn std::fmt::Display| DeviceError::Frontend(error.to_string());
        let backend = Arc::clone(&frontend);
        let mut daemon = VhostUserDaemon::new("vhost-user".into(), backend, memory.clone())
            .map_err(|error| refused(&error))?;
        let mut listener = Listener::from(self.listener.try_clone()?);
        if let Err(error) = daemon.start(&mut listener) {
            tracing::warn!(%error, "a vhost-user front-end could not be accepted");
            return Ok(None);
        }
        let shutdown = daemon.shutdown_handle();
        let told = Arc::clone(&frontend);
        let waiter =
            std::thread::Builder::new().name("vhost-user-end".into()).spawn(move || {
                if let Err(error) = daemon.wait() {
                    tracing::info!(%error, "vhost-user front-end disconnected");
                }
                // Joins the threads that kicks come from.
                drop(daemon);
                told.end();
            })?;
        self.sessions += 1;
        let session =
            Session::new(self.sessions, Arc::clone(&frontend), memory, self.name, self.read_only);
        Ok(Some(Connected { frontend, session, shutdown, waiter }))
    }
}
