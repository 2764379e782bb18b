//! Published ports: TCP listeners of the host whose connections are spliced to guests.
//!
//! ```text
//!  client ── TCP ──► listener ─► splice ◄─► smoltcp ◄─► net_vdev::Endpoint ── UDP ──► VM
//!                    └─────────────── one thread per network ──────────────┘
//! ```
//!
//! The thread is a mesh member like any machine, with its own key; the guest's firewall lets it in
//! at the published ports and nowhere else. No root, no TAP: the host's side is plain sockets.
//!
//! **Bounds.** [`CONNECTIONS_MAX`] connections per network, in equal shares for its ports, so that
//! neither clients nor guests can use up another port's; further clients wait in the listener's
//! backlog. A connection that moves nothing for ten minutes is reset, for one minute once one side
//! has ended. It holds two buffers of [`BUFFER_BYTES`] and nothing else: what does not fit stays in
//! the kernel's socket, and so slows its sender down. Half-closes are passed on in both directions;
//! a reset of one side becomes a reset of the other.

pub(crate) mod splice;
pub(crate) mod stack;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use net_vdev::{Config, ConfigError, Peer, PrivateKey, PublicKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clock::unix_time_ns;
use crate::launch::Gateway;
use splice::Splice;
use stack::{Stack, Wire};

/// How many connections one network's proxy holds at once, or one per port if it has more ports.
pub const CONNECTIONS_MAX: usize = 256;

/// How much of each direction of a connection is under way at once.
pub const BUFFER_BYTES: usize = 64 << 10;

/// How many turns are made before the proxy looks whether it is to stop.
const TURNS_MAX: usize = 32;
/// How long nobody is let in after one could not be.
const DEAF_NS: u64 = 1_000_000_000;

/// Why ports can't be published.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The host's port can't be listened on.
    #[error("port {} of {workload} can't be published at {listen}: {source}", .listen.port())]
    Listen {
        /// The machine.
        workload: String,
        /// The host's address.
        listen: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Random,
    /// The members of the network can't be told apart.
    #[error("the network {network:?}: {source}")]
    Member {
        /// The network.
        network: String,
        /// Why not.
        #[source]
        source: ConfigError,
    },
    /// The host refused something that always works.
    #[error("the proxy of the network {network:?}: {source}")]
    Thread {
        /// The network.
        network: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The published ports of one network; they close when this is dropped.
#[derive(Debug)]
pub struct Ports {
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Ports {
    /// Listens on all ports of `gateway` and serves them on a thread.
    ///
    /// # Errors
    /// A port is taken or not permitted, or the host refused a thread.
    pub fn open(gateway: Gateway) -> Result<Self, PortError> {
        let network = gateway.network.clone();
        let thread_error = |source| PortError::Thread { network: network.clone(), source };
        let (stop, stopped) = UnixStream::pair().map_err(thread_error)?;
        let proxy = Proxy::open(gateway, stopped)?;
        let thread = std::thread::Builder::new()
            .name(format!("ports-{network}"))
            .spawn(move || proxy.run())
            .map_err(|source| PortError::Thread { network, source })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        let asked = self.stop.shutdown(std::net::Shutdown::Both);
        if let (Ok(()), Some(thread)) = (asked, self.thread.take())
            && thread.join().is_err()
        {
            tracing::error!("the proxy of published ports had crashed");
        }
    }
}

/// A listener, where it leads, and the connections that came through it.
struct Door {
    listener: TcpListener,
    target: (IpAddr, u16),
    splices: Vec<Splice>,
}

fn listen(gateway: &Gateway) -> Result<Vec<Door>, PortError> {
    let mut doors = Vec::new();
    for port in &gateway.ports {
        let listener = TcpListener::bind(port.listen)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| {
                let (workload, listen) = (port.workload.clone(), port.listen);
                PortError::Listen { workload, listen, source }
            })?;
        let address = PublicKey(port.key.0).address();
        doors.push(Door {
            listener,
            target: (IpAddr::V6(address), port.target),
            splices: Vec::new(),
        });
    }
    Ok(doors)
}

fn member(gateway: Gateway) -> Result<Stack, PortError> {
    let mut peers: Vec<Peer> = Vec::new();
    for port in &gateway.ports {
        let key = PublicKey(port.key.0);
        if peers.iter().all(|peer| peer.key != key) {
            peers.push(Peer { key, endpoint: Some(port.endpoint), addresses: Vec::new() });
        }
    }
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| PortError::Random)?;
    let key = PrivateKey::new(*gateway.key.expose());
    let config = Config { peers, ..Config::new(key, unix_time_ns()) };
    Stack::new(config, seed, Wire::Network(gateway.socket))
        .map_err(|source| PortError::Member { network: gateway.network, source })
}

struct Proxy {
    stack: Stack,
    doors: Vec<Door>,
    /// How many connections each door has room for.
    share: usize,
    /// Until when nobody is let in, after one could not be.
    deaf_until_ns: u64,
    /// Readable (at its end) once the proxy is to stop.
    stopped: UnixStream,
}

impl Proxy {
    fn open(gateway: Gateway, stopped: UnixStream) -> Result<Self, PortError> {
        let doors = listen(&gateway)?;
        let share = (CONNECTIONS_MAX / doors.len().max(1)).max(1);
        Ok(Self { stack: member(gateway)?, doors, share, deaf_until_ns: 0, stopped })
    }

    fn run(mut self) {
        loop {
            // Each side's progress may be the other's. A guest that never lets us rest must not
            // keep us from seeing that we are to stop.
            let is_busy = (0..TURNS_MAX).all(|_| self.turn(self.stack.now_ns()));
            match self.wait(is_busy) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(%error, "published ports are closed");
                    return;
                }
            }
        }
    }

    /// Moves what can be moved; whether anything was.
    fn turn(&mut self, now_ns: u64) -> bool {
        let mut progress = self.accept(now_ns);
        progress |= self.stack.turn();
        let stack = &mut self.stack;
        for door in &mut self.doors {
            for splice in &mut door.splices {
                progress |= splice.turn(now_ns, stack.socket(splice.handle()));
            }
            door.splices.retain(|splice| {
                let is_over = splice.is_over(stack.socket(splice.handle()));
                if is_over {
                    stack.remove(splice.handle());
                }
                !is_over
            });
        }
        progress
    }

    fn accept(&mut self, now_ns: u64) -> bool {
        let mut progress = false;
        if now_ns < self.deaf_until_ns {
            return false;
        }
        for door in &mut self.doors {
            while door.splices.len() < self.share {
                let client = match door.listener.accept() {
                    Ok((client, _)) => client,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(error) => {
                        // Out of descriptors, most likely: the listener stays ready.
                        tracing::debug!(%error, "a client could not be accepted");
                        self.deaf_until_ns = now_ns.saturating_add(DEAF_NS);
                        break;
                    }
                };
                let ready = client.set_nonblocking(true).and_then(|()| client.set_nodelay(true));
                if let (Ok(()), Some(handle)) = (ready, self.stack.connect(door.target)) {
                    door.splices.push(Splice::new(client, handle, Vec::new(), now_ns));
                    progress = true;
                }
            }
        }
        progress
    }

    fn splices(&self) -> impl Iterator<Item = &Splice> {
        self.doors.iter().flat_map(|door| &door.splices)
    }

    /// How long nothing is due; `None` for as long as nothing comes.
    fn timeout(&mut self) -> Option<Duration> {
        let now_ns = self.stack.now_ns();
        let idle_ns = self.splices().filter_map(Splice::deadline_ns).min();
        let deaf_ns = (now_ns < self.deaf_until_ns).then_some(self.deaf_until_ns);
        let due_ns = idle_ns.into_iter().chain(deaf_ns).min();
        let idle = due_ns.map(|at_ns| Duration::from_nanos(at_ns.saturating_sub(now_ns)));
        self.stack.timeout().into_iter().chain(idle).min()
    }

    /// Waits for something to do, unless there is; false once the proxy is to stop.
    fn wait(&mut self, is_busy: bool) -> io::Result<bool> {
        let timeout = if is_busy { Some(Duration::ZERO) } else { self.timeout() };
        let timeout = timeout
            .map(|left| Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 }));
        let udp =
            if self.stack.is_blocked() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = vec![
            PollFd::new(&self.stopped, PollFlags::IN),
            PollFd::from_borrowed_fd(self.stack.wire(), udp),
        ];
        let hears = self.stack.now_ns() >= self.deaf_until_ns;
        let open = self.doors.iter().filter(|door| hears && door.splices.len() < self.share);
        fds.extend(open.map(|door| PollFd::new(&door.listener, PollFlags::IN)));
        for splice in self.splices() {
            let interest = splice.interest(self.stack.socket_ref(splice.handle()));
            fds.extend(interest.map(|(client, flags)| PollFd::new(client, flags)));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let stop = fds.first().is_some_and(|stopped| !stopped.revents().is_empty());
        Ok(!stop)
    }
}

#[cfg(test)]
mod tests;
