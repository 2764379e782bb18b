//! How a daemon keeps its links: what kernels say about them, connections where UDP is blocked, and
//! nodes of local networks.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};

use net_vdev::endpoint::Path;
use net_vdev::socket::Socket;

use super::ready::{Ready, Source};
use super::{Daemon, NodeError};
use crate::clock::unix_ns;
use crate::discovery::Discovery;
use crate::interfaces::{Interfaces, Trouble};
use crate::streams::{Change, Streams};

/// How many errors of a socket are looked at in a turn, and how many places that they are about.
const ERRORS_PER_TURN: usize = 64;
/// How often the places that datagrams go to are compared with those that are watched, and
/// connections are looked through.
const WATCH_NS: u64 = 1_000_000_000;

impl Daemon {
    /// What the kernel says about interfaces and routes, and what others say about datagrams.
    pub(super) fn heed_kernel(&mut self, now_ns: u64, ready: &Ready) {
        let mut doubtful = BTreeSet::new();
        let is_in_error = ready.has_error(Source::Network);
        for socket in self.outside.udp.iter().filter(|_| is_in_error) {
            let errors = std::iter::from_fn(|| socket.take_error()).take(ERRORS_PER_TURN);
            doubtful.extend(errors);
        }
        if let Some(interfaces) = &mut self.interfaces
            && ready.has(Source::Interfaces)
            && interfaces.take()
        {
            for (place, trouble) in interfaces.check(&self.core.places()) {
                tracing::debug!(%place, ?trouble, "a change of this host's interfaces");
                match trouble {
                    Trouble::Lost => self.core.place_refused(now_ns, place),
                    Trouble::Elsewhere => _ = doubtful.insert(place),
                }
            }
        }
        if now_ns >= self.watched_ns.saturating_add(WATCH_NS) {
            self.watched_ns = now_ns;
            if let Some(interfaces) = &mut self.interfaces {
                interfaces.watch(&self.core.places());
            }
            self.keep_streams(now_ns);
        }
        self.discover(now_ns, ready.has(Source::Discovery));
        self.core.places_are_doubtful(now_ns, &doubtful);
    }

    /// Looks for nodes on local networks, and says that this one is there.
    pub(super) fn discover(&mut self, now_ns: u64, is_ready: bool) {
        let (Some(discovery), Some(interfaces)) = (&mut self.discovery, &self.interfaces) else {
            return;
        };
        if is_ready {
            for (key, place) in discovery.take(now_ns, unix_ns() / 1_000_000_000) {
                self.core.found(now_ns, key, place);
            }
        }
        if let Some(announced) = &self.announced {
            discovery.announce(now_ns, interfaces.networks(), announced);
        }
    }

    /// Takes what connections have.
    pub(super) fn receive_streams(&mut self, now_ns: u64) {
        for change in self.outside.streams.turn(now_ns) {
            match change {
                Change::Up(number, key) => self.core.stream_up(now_ns, &key, number),
                Change::Down(number) => self.close_stream(now_ns, number),
            }
        }
        for number in self.outside.streams.numbers() {
            loop {
                match self.outside.streams.next_batch(number, &mut self.buffer) {
                    Ok(Some((len, stride))) => {
                        let batch = self.buffer.get_mut(..len).unwrap_or_default();
                        let from = Path::Stream(number);
                        self.core.receive(now_ns, from, batch, stride, &mut self.outside);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(number, %error, "a connection that breaks the format");
                        self.outside.counters.receive_failed += 1;
                        self.close_stream(now_ns, number);
                        break;
                    }
                }
            }
        }
    }

    /// Writes what waits for connections.
    pub(super) fn flush_streams(&mut self, now_ns: u64) {
        for number in self.outside.streams.flush() {
            self.close_stream(now_ns, number);
        }
    }

    fn close_stream(&mut self, now_ns: u64, number: u32) {
        self.outside.streams.close(number);
        self.core.stream_down(now_ns, number);
    }

    /// Calls neighbours that UDP does not reach, and closes connections that are of no use.
    fn keep_streams(&mut self, now_ns: u64) {
        for (key, at) in self.core.unreached(now_ns) {
            self.outside.streams.call(now_ns, &key, at);
        }
        let called = self.outside.streams.called();
        for number in self.core.spare_streams(now_ns, &called) {
            self.outside.streams.hang_up(number);
            self.core.stream_down(now_ns, number);
        }
        let endpoint = self.core.endpoint();
        let is_used = |number| endpoint.is_stream_used(number);
        for number in self.outside.streams.useless(now_ns, is_used) {
            self.close_stream(now_ns, number);
        }
    }
}

pub(super) fn listen_tcp(addresses: &[SocketAddr]) -> Result<Streams, NodeError> {
    let listen = |address: &SocketAddr| {
        let failed = |source| NodeError::ListenTcp { address: *address, source };
        let listener = TcpListener::bind(*address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    };
    let listeners = addresses.iter().map(listen).collect::<Result<Vec<_>, NodeError>>()?;
    Ok(Streams::new(listeners))
}

/// Needs a socket that link-local addresses reach.
pub(super) fn discovery(udp: &[Socket]) -> Option<Discovery> {
    let addresses = udp.iter().filter_map(|socket| socket.local_addr().ok());
    let any = |address: &SocketAddr| address.is_ipv6() && address.ip().is_unspecified();
    let port = addresses.filter(any).map(|address| address.port()).next()?;
    let discovery = Discovery::open(port);
    discovery.inspect_err(|error| tracing::debug!(%error, "no discovery of local nodes")).ok()
}

pub(super) fn interfaces() -> Option<Interfaces> {
    let interfaces = Interfaces::open();
    interfaces
        .inspect_err(|error| tracing::debug!(%error, "lost interfaces are found by probes alone"))
        .ok()
}
