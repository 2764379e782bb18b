//! What a gateway listens at, and clients until it is known where they go.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use mesh_egress::sni::{HELLO_BYTES_MAX, HelloError, server_name};
use net_vdev::source::source_of;
use rustix::event::{PollFd, PollFlags};

use super::GatewayError;
use super::config::{self, Target, Targets, Transport};

/// How long a client may take to say which server it means.
const HELLO_NS: u64 = 10_000_000_000;
/// How long nobody is let in after one could not be, for want of a descriptor most likely: a
/// listener that has somebody would be ready all the time.
const DEAF_NS: u64 = 1_000_000_000;

/// All doors.
#[derive(Default)]
pub(super) struct Doors {
    tcp: BTreeMap<SocketAddr, (TcpListener, Targets)>,
    udp: BTreeMap<SocketAddr, (UdpSocket, Targets)>,
    /// Until when nobody is let in.
    deaf_until_ns: u64,
}

impl Doors {
    /// Listens where these say and nowhere else. If an address is not to be had, nothing changes.
    pub(super) fn change(&mut self, doors: config::Doors) -> Result<(), GatewayError> {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for (transport, address) in doors.keys().copied() {
            let failed = |source| GatewayError::Listen { address, source };
            if transport == Transport::Tcp && !self.tcp.contains_key(&address) {
                let listener = TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                tcp.push((address, listener));
            }
            if transport == Transport::Udp && !self.udp.contains_key(&address) {
                let socket = UdpSocket::bind(address).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                udp.push((address, socket));
            }
        }
        self.tcp.retain(|address, _| doors.contains_key(&(Transport::Tcp, *address)));
        self.udp.retain(|address, _| doors.contains_key(&(Transport::Udp, *address)));
        self.tcp.extend(tcp.into_iter().map(|(at, it)| (at, (it, Targets::default()))));
        self.udp.extend(udp.into_iter().map(|(at, it)| (at, (it, Targets::default()))));
        for ((transport, address), new) in doors {
            let targets = match transport {
                Transport::Tcp => self.tcp.get_mut(&address).map(|(_, targets)| targets),
                Transport::Udp => self.udp.get_mut(&address).map(|(_, targets)| targets),
            };
            if let Some(targets) = targets {
                *targets = new;
            }
        }
        Ok(())
    }

    /// How many doors connections come through.
    pub(super) fn count(&self) -> usize {
        self.tcp.len()
    }

    /// The next client, at one of the doors that have room.
    pub(super) fn accept(
        &mut self,
        now_ns: u64,
        has_room: impl Fn(&SocketAddr) -> bool,
    ) -> Option<Caller> {
        if now_ns < self.deaf_until_ns {
            return None;
        }
        for (door, (listener, _)) in self.tcp.iter().filter(|(door, _)| has_room(door)) {
            let (client, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    let is_over = [io::ErrorKind::WouldBlock, io::ErrorKind::ConnectionAborted];
                    if !is_over.contains(&error.kind()) {
                        tracing::debug!(%error, %door, "a client could not be accepted");
                        self.deaf_until_ns = now_ns.saturating_add(DEAF_NS);
                    }
                    continue;
                }
            };
            let ready = client.set_nonblocking(true).and_then(|()| client.set_nodelay(true));
            if let (Ok(()), Ok(at)) = (ready, client.local_addr()) {
                let (door, due_ns) = (*door, now_ns.saturating_add(HELLO_NS));
                return Some(Caller { client, from, at, door, said: Vec::new(), due_ns });
            }
        }
        None
    }

    fn targets(&self, door: &SocketAddr) -> Option<&Targets> {
        self.tcp.get(door).map(|(_, targets)| targets)
    }

    /// The doors of UDP.
    pub(super) fn udp(&self) -> impl Iterator<Item = (SocketAddr, &UdpSocket, Target)> {
        self.udp
            .iter()
            .filter_map(|(door, (socket, targets))| Some((*door, socket, targets.find(None)?)))
    }

    pub(super) fn udp_socket(&self, door: &SocketAddr) -> Option<&UdpSocket> {
        self.udp.get(door).map(|(socket, _)| socket)
    }

    pub(super) fn has_udp(&self, door: &SocketAddr) -> bool {
        self.udp.contains_key(door)
    }

    /// What to wait for; listeners only where there is room for clients.
    pub(super) fn fds(
        &self,
        now_ns: u64,
        has_room: impl Fn(&SocketAddr) -> bool,
    ) -> impl Iterator<Item = PollFd<'_>> {
        let hears = now_ns >= self.deaf_until_ns;
        let tcp = self.tcp.iter().filter(move |(door, _)| hears && has_room(door));
        let tcp = tcp.map(|(_, (listener, _))| PollFd::new(listener, PollFlags::IN));
        tcp.chain(self.udp.values().map(|(socket, _)| PollFd::new(socket, PollFlags::IN)))
    }
}

/// A client of which it is not known yet where it goes.
pub(super) struct Caller {
    pub(super) client: TcpStream,
    /// The client's address, and the one that it called.
    pub(super) from: SocketAddr,
    pub(super) at: SocketAddr,
    /// The door that it came to.
    pub(super) door: SocketAddr,
    /// What it said so far.
    pub(super) said: Vec<u8>,
    /// When it has taken too long.
    pub(super) due_ns: u64,
}

/// Where a client goes.
pub(super) enum Arrived {
    NotYet,
    At(Target),
    /// Its connection ends; a client of TLS may be told why.
    Nowhere {
        says_so: bool,
    },
}

impl Caller {
    /// Who counts as one client.
    pub(super) fn source(&self) -> u128 {
        source_of(self.from.ip())
    }

    /// Reads what there is, if that matters here.
    pub(super) fn listen(&mut self, now_ns: u64, doors: &Doors) -> Arrived {
        // Its door may be gone by now.
        let Some(targets) = doors.targets(&self.door) else {
            return Arrived::Nowhere { says_so: false };
        };
        if !targets.asks_for_names() {
            return targets.find(None).map_or(Arrived::Nowhere { says_so: false }, Arrived::At);
        }
        match self.read() {
            Ok(true) => {}
            Ok(false) if now_ns < self.due_ns => return Arrived::NotYet,
            Ok(false) | Err(_) => return Arrived::Nowhere { says_so: false },
        }
        match server_name(&self.said) {
            Ok(name) => {
                targets.find(name.as_ref()).map_or(Arrived::Nowhere { says_so: true }, Arrived::At)
            }
            Err(HelloError::Incomplete) if now_ns < self.due_ns => Arrived::NotYet,
            Err(error) => {
                tracing::debug!(%error, client = %self.from, "no server name");
                Arrived::Nowhere { says_so: false }
            }
        }
    }

    /// Whether anything new came.
    fn read(&mut self) -> io::Result<bool> {
        let before = self.said.len();
        let mut buffer = [0; 2048];
        while self.said.len() < HELLO_BYTES_MAX {
            let most = buffer.len().min(HELLO_BYTES_MAX - self.said.len());
            match self.client.read(buffer.get_mut(..most).unwrap_or_default()) {
                // What it said before its end counts; the end stays in the socket.
                Ok(0) if self.said.len() > before => break,
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.said.extend_from_slice(buffer.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.said.len() > before)
    }
}
