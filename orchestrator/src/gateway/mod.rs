//! A gateway: ports of this host that lead to workloads in the mesh.
//!
//! ```text
//!  client ── TCP ──► door ─► (hello of TLS) ─► splice ◄─► smoltcp ◄─► Endpoint ◄─► node's router
//!         ── UDP ──► door ─────────────────► flow ◄─────────────────►    │
//! ```
//!
//! It is a member of the mesh like any other, with a key of its own, attached to the node of this
//! host; a workload's firewall lets it in, or it gets nowhere. TLS is passed on as it is: the gateway
//! reads the server name of a client's first message and nothing else.
//!
//! **Bounds.** [`CONNECTIONS_MAX`] connections, in equal shares for the doors, and [`OF_ONE_MAX`] of one
//! client's address; further clients wait in the listeners' backlogs, or are closed if it is their
//! address that has too many.
//! A client that is to say which server it means has ten seconds and 8 KiB for it. For the rest see
//! [`crate::ports`].

pub mod config;
mod datagrams;
mod doors;
mod proxy_protocol;
pub(crate) mod uplink;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use net_vdev::endpoint::Strangers;
use net_vdev::{Config, PrivateKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::config::Target;
use self::datagrams::Flows;
use self::doors::{Arrived, Caller, Doors};
use self::uplink::Uplink;
use crate::clock::unix_time_ns;
use crate::ports::splice::Splice;
use crate::ports::stack::{Stack, Wire};

/// How many connections there are at most, those of clients that have not said yet what they want
/// included.
pub const CONNECTIONS_MAX: usize = 512;
/// How many of them one client may have: an IPv4 address, or a /64 of IPv6.
pub const OF_ONE_MAX: usize = 128;

/// How many turns are made before the gateway looks whether it is to stop.
const TURNS_MAX: usize = 32;
/// How long it waits at most before it looks whether its file is to be read anew.
const TICK: Duration = Duration::from_millis(500);
/// How many workloads may have sessions with it.
const WORKLOADS_MAX: usize = 1024;
/// `unrecognized_name`, fatal (RFC 6066 §3, RFC 8446 §6).
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a gateway is told.
#[derive(Debug)]
pub struct GatewayConfig {
    /// Its key.
    pub key: PrivateKey,
    /// The file of its routes.
    pub file: PathBuf,
    /// The socket where the node takes members.
    pub uplink: PathBuf,
    /// Set when the file is to be read anew.
    pub reload: Arc<AtomicBool>,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Its file is refused.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: config::ConfigError,
    },
    /// An address is not to be had.
    #[error("the gateway can't listen at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its member can't be made.
    #[error(transparent)]
    Member(#[from] net_vdev::ConfigError),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Random,
    /// The host refused something that always works.
    #[error("the gateway: {0}")]
    Thread(#[from] io::Error),
}

/// A running gateway; its ports close when this is dropped.
#[derive(Debug)]
pub struct Gateway {
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Listens at all addresses of the file, and serves them on a thread as soon as the node answers.
    ///
    /// # Errors
    /// A [`GatewayError`].
    pub fn open(config: GatewayConfig) -> Result<Self, GatewayError> {
        let (stop, stopped) = UnixStream::pair()?;
        let mut doors = Doors::default();
        doors.change(load(&config)?)?;
        let thread = std::thread::Builder::new().name("gateway".to_owned()).spawn(move || {
            let outcome = Running::start(config, doors, stopped).and_then(Running::run);
            if let Err(error) = outcome {
                tracing::error!(%error, "the gateway is closed");
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let asked = self.stop.shutdown(std::net::Shutdown::Both);
        if let (Ok(()), Some(thread)) = (asked, self.thread.take())
            && thread.join().is_err()
        {
            tracing::error!("the gateway had crashed");
        }
    }
}

fn load(config: &GatewayConfig) -> Result<config::Doors, GatewayError> {
    config::load(&config.file)
        .map_err(|source| GatewayError::File { path: config.file.clone(), source })
}

/// A connection, whose it is, and the door that it came through.
struct Connection {
    splice: Splice,
    /// See [`Caller::source`].
    source: u128,
    door: SocketAddr,
}

struct Running {
    config: GatewayConfig,
    doors: Doors,
    /// Clients that have not said yet which server they mean.
    callers: Vec<Caller>,
    connections: Vec<Connection>,
    flows: Flows,
    stack: Stack,
    /// Readable (at its end) once the gateway is to stop.
    stopped: UnixStream,
}

impl Running {
    fn start(
        config: GatewayConfig,
        doors: Doors,
        stopped: UnixStream,
    ) -> Result<Self, GatewayError> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| GatewayError::Random)?;
        let uplink = Uplink::open(&config.uplink)?;
        let member = Config {
            strangers: Strangers::Welcome { at_most: WORKLOADS_MAX },
            is_routed: true,
            ..Config::new(config.key.clone(), unix_time_ns())
        };
        let flows = Flows::new(config.key.public().address());
        let stack = Stack::new(member, seed, Wire::Node(uplink))?;
        let (callers, connections) = (Vec::new(), Vec::new());
        Ok(Self { config, doors, callers, connections, flows, stack, stopped })
    }

    fn run(mut self) -> Result<(), GatewayError> {
        loop {
            let is_busy = (0..TURNS_MAX).all(|_| self.turn(self.stack.now_ns()));
            if !self.wait(is_busy)? {
                return Ok(());
            }
            let now_ns = self.stack.now_ns();
            if self.config.reload.swap(false, Ordering::Relaxed) {
                self.reload();
            }
            self.flows.expire(now_ns, |door| self.doors.has_udp(door));
        }
    }

    /// Reads the file anew. One that is wrong changes nothing; connections go on in any case.
    fn reload(&mut self) {
        let outcome = load(&self.config).and_then(|doors| self.doors.change(doors));
        match outcome {
            Ok(()) => tracing::info!(file = %self.config.file.display(), "the gateway's routes"),
            Err(error) => tracing::error!(%error, "the gateway goes on with its old routes"),
        }
    }

    /// Moves what can be moved; whether anything was.
    fn turn(&mut self, now_ns: u64) -> bool {
        let mut progress = self.accept(now_ns);
        progress |= self.listen_to_callers(now_ns);
        progress |= self.take_datagrams(now_ns);
        progress |= self.stack.turn();
        let stack = &mut self.stack;
        for Connection { splice, .. } in &mut self.connections {
            progress |= splice.turn(now_ns, stack.socket(splice.handle()));
        }
        self.connections.retain(|Connection { splice, .. }| {
            let is_over = splice.is_over(stack.socket(splice.handle()));
            if is_over {
                stack.remove(splice.handle());
            }
            !is_over
        });
        progress
    }

    /// How many connections each door has; none in a door that is not listed.
    fn taken(&self) -> BTreeMap<SocketAddr, usize> {
        let mut taken = BTreeMap::new();
        let of_callers = self.callers.iter().map(|it| it.door);
        for door in of_callers.chain(self.connections.iter().map(|it| it.door)) {
            *taken.entry(door).or_default() += 1;
        }
        taken
    }

    /// How many connections a door may have.
    fn share(&self) -> usize {
        (CONNECTIONS_MAX / self.doors.count().max(1)).max(1)
    }

    fn accept(&mut self, now_ns: u64) -> bool {
        let (mut taken, share, mut progress) = (self.taken(), self.share(), false);
        loop {
            let has_room = |door: &SocketAddr| taken.get(door).is_none_or(|count| *count < share);
            let Some(caller) = self.doors.accept(now_ns, has_room) else { return progress };
            progress = true;
            let source = caller.source();
            let of_callers = self.callers.iter().filter(|it| it.source() == source);
            let of_connections = self.connections.iter().filter(|it| it.source == source);
            if of_callers.count() + of_connections.count() < OF_ONE_MAX {
                *taken.entry(caller.door).or_default() += 1;
                self.callers.push(caller);
            }
        }
    }

    /// Reads what clients say first, where that decides where they go.
    fn listen_to_callers(&mut self, now_ns: u64) -> bool {
        let mut progress = false;
        for mut caller in std::mem::take(&mut self.callers) {
            match caller.listen(now_ns, &self.doors) {
                Arrived::NotYet => self.callers.push(caller),
                Arrived::Nowhere { says_so } => {
                    if says_so {
                        refuse(&caller.client);
                    }
                    progress = true;
                }
                Arrived::At(target) => {
                    self.connect(now_ns, caller, target);
                    progress = true;
                }
            }
        }
        progress
    }

    fn connect(&mut self, now_ns: u64, caller: Caller, target: Target) {
        let (source, door) = (caller.source(), caller.door);
        let Some(handle) = self.stack.connect((IpAddr::V6(target.address), target.port)) else {
            return;
        };
        let mut ahead = Vec::new();
        if target.proxy_protocol {
            ahead.extend_from_slice(&proxy_protocol::header(caller.from, caller.at));
        }
        ahead.extend_from_slice(&caller.said);
        let splice = Splice::new(caller.client, handle, ahead, now_ns);
        self.connections.push(Connection { splice, source, door });
    }

    fn take_datagrams(&mut self, now_ns: u64) -> bool {
        let mut progress = false;
        for (door, socket, target) in self.doors.udp() {
            let stack = &mut self.stack;
            let mut send = |packet: &[u8]| stack.send_packet(packet);
            progress |= self.flows.take(now_ns, (door, socket), target, &mut send);
        }
        while let Some(packet) = self.stack.next_datagram() {
            progress = true;
            if let Some((door, client, payload)) = self.flows.answer(now_ns, &packet)
                && let Some(socket) = self.doors.udp_socket(&door)
                && let Err(error) = socket.send_to(payload, client)
            {
                tracing::debug!(%error, %client, "an answer to a client");
            }
        }
        progress
    }

    /// How long nothing is due.
    fn timeout(&mut self) -> Duration {
        let now_ns = self.stack.now_ns();
        let of_connections = self.connections.iter().filter_map(|it| it.splice.deadline_ns());
        let due_ns = of_connections.chain(self.callers.iter().map(|it| it.due_ns)).min();
        let due = due_ns.map(|at_ns| Duration::from_nanos(at_ns.saturating_sub(now_ns)));
        self.stack.timeout().into_iter().chain(due).fold(TICK, Duration::min)
    }

    /// Waits for something to do, unless there is; false once the gateway is to stop.
    fn wait(&mut self, is_busy: bool) -> io::Result<bool> {
        let timeout = if is_busy { Duration::ZERO } else { self.timeout() };
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        let wire =
            if self.stack.is_blocked() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let now_ns = self.stack.now_ns();
        let mut fds = vec![
            PollFd::new(&self.stopped, PollFlags::IN),
            PollFd::from_borrowed_fd(self.stack.wire(), wire),
        ];
        let (taken, share) = (self.taken(), self.share());
        let has_room = |door: &SocketAddr| taken.get(door).is_none_or(|count| *count < share);
        fds.extend(self.doors.fds(now_ns, has_room));
        fds.extend(self.callers.iter().map(|it| PollFd::new(&it.client, PollFlags::IN)));
        for Connection { splice, .. } in &self.connections {
            let interest = splice.interest(self.stack.socket_ref(splice.handle()));
            fds.extend(interest.map(|(client, flags)| PollFd::new(client, flags)));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(fds.first().is_none_or(|stopped| stopped.revents().is_empty()))
    }
}

/// Tells a client of TLS that nobody here has that name.
fn refuse(mut client: &TcpStream) {
    // A fresh socket takes seven bytes, or the client is gone.
    if let Err(error) = client.write_all(&ALERT) {
        tracing::debug!(%error, "a client that is refused");
    }
}

#[cfg(test)]
mod tests;
