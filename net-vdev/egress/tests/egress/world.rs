//! The outside as the tests script it, a member, and what passes between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mesh_egress::limits::{Limits, NatConfig};
use mesh_egress::sockets::{Kind, Ready, SocketError, Sockets, Token};
use mesh_egress::{Egress, EgressConfig};
use net_vdev::PublicKey;
use net_vdev::offload::{Layout, Segmenter, VirtioNetHeader};

pub(crate) const SECOND_NS: u64 = 1_000_000_000;
pub(crate) const MEMBER: PublicKey = PublicKey([7; 32]);
pub(crate) const RESOLVER: Ipv6Addr = Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 0x53);

/// What the other side of a connection is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Echoes,
    /// Sends so many bytes, and ends.
    Sends(usize),
    /// Takes what comes, and ends when the member does.
    Takes,
    /// Stands, and takes nothing.
    Stuck,
    Refuses,
    Unreachable,
    /// Never answers.
    Silent,
    /// Stands, and breaks when something comes.
    Breaks,
}

#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) kind: Kind,
    pub(crate) to: SocketAddr,
    pub(crate) received: Vec<u8>,
    pub(crate) datagrams: Vec<Vec<u8>>,
    pub(crate) for_member: VecDeque<Vec<u8>>,
    pub(crate) is_finished: bool,
    server: Server,
    sent: usize,
    error: Option<SocketError>,
    wakes: bool,
}

/// Sockets to servers that are scripted by port.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    pub(crate) servers: BTreeMap<u16, Server>,
    pub(crate) own: BTreeSet<Ipv4Addr>,
    pub(crate) sockets: BTreeMap<Token, Socket>,
    pub(crate) closed: Vec<Socket>,
    pub(crate) opened: usize,
    pub(crate) sockets_max: Option<usize>,
}

impl Outside {
    /// Hands the socket to this place a datagram.
    pub(crate) fn answer(&mut self, to: &str, datagram: &[u8]) {
        let to: SocketAddr = to.parse().unwrap();
        let socket = self.sockets.values_mut().rfind(|socket| socket.to == to).unwrap();
        socket.for_member.push_back(datagram.to_vec());
        socket.wakes = true;
    }

    pub(crate) fn fail(&mut self, to: &str, error: SocketError) {
        let to: SocketAddr = to.parse().unwrap();
        let socket = self.sockets.values_mut().find(|socket| socket.to == to).unwrap();
        socket.error = Some(error);
        socket.wakes = true;
    }

    pub(crate) fn socket(&self, to: &str) -> &Socket {
        let to: SocketAddr = to.parse().unwrap();
        self.sockets.values().rfind(|socket| socket.to == to).unwrap()
    }
}

impl Sockets for Outside {
    fn is_own(&mut self, address: Ipv4Addr) -> bool {
        self.own.contains(&address)
    }

    fn open(&mut self, token: Token, kind: Kind, to: SocketAddr) -> Result<(), SocketError> {
        if self.sockets_max.is_some_and(|most| self.sockets.len() >= most) {
            return Err(SocketError::Exhausted);
        }
        let server = self.servers.get(&to.port()).copied().unwrap_or(Server::Silent);
        let socket = Socket {
            kind,
            to,
            server,
            received: Vec::new(),
            datagrams: Vec::new(),
            for_member: VecDeque::new(),
            is_finished: false,
            sent: 0,
            error: None,
            wakes: true,
        };
        self.opened += 1;
        assert!(self.sockets.insert(token, socket).is_none(), "a token is used twice");
        Ok(())
    }

    fn port(&mut self, token: Token) -> Option<u16> {
        match self.sockets.get(&token)?.kind {
            Kind::Udp { port } => Some(port.unwrap_or(40_000 + (token.0 & 0xff) as u16)),
            Kind::Tcp | Kind::Echo => Some(0),
        }
    }

    fn outcome(&mut self, token: Token) -> Result<(), SocketError> {
        match self.sockets.get(&token).ok_or(SocketError::Broken)?.server {
            Server::Refuses => Err(SocketError::Refused),
            Server::Unreachable => Err(SocketError::Unreachable),
            Server::Silent => Err(SocketError::WouldBlock),
            _ => Ok(()),
        }
    }

    fn send(&mut self, token: Token, bytes: &[u8]) -> Result<usize, SocketError> {
        let socket = self.sockets.get_mut(&token).ok_or(SocketError::Broken)?;
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        if socket.kind != Kind::Tcp {
            socket.datagrams.push(bytes.to_vec());
            return Ok(bytes.len());
        }
        match socket.server {
            Server::Stuck => Err(SocketError::WouldBlock),
            Server::Breaks => Err(SocketError::Broken),
            Server::Echoes => {
                socket.for_member.push_back(bytes.to_vec());
                socket.received.extend_from_slice(bytes);
                socket.wakes = true;
                Ok(bytes.len())
            }
            _ => {
                socket.received.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn receive(&mut self, token: Token, into: &mut [u8]) -> Result<usize, SocketError> {
        let socket = self.sockets.get_mut(&token).ok_or(SocketError::Broken)?;
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        if let Server::Sends(all) = socket.server {
            let len = into.len().min(all - socket.sent);
            into[..len]
                .iter_mut()
                .enumerate()
                .for_each(|(at, byte)| *byte = pattern(socket.sent + at));
            socket.sent += len;
            return Ok(len);
        }
        let Some(mut bytes) = socket.for_member.pop_front() else {
            let ends = socket.is_finished && socket.kind == Kind::Tcp;
            return if ends { Ok(0) } else { Err(SocketError::WouldBlock) };
        };
        let len = into.len().min(bytes.len());
        into[..len].copy_from_slice(&bytes[..len]);
        if socket.kind == Kind::Tcp && len < bytes.len() {
            socket.for_member.push_front(bytes.split_off(len));
        }
        Ok(len)
    }

    fn finish(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get_mut(&token) {
            socket.is_finished = true;
            socket.wakes = true;
        }
    }

    fn close(&mut self, token: Token) {
        self.closed.extend(self.sockets.remove(&token));
    }

    fn ready(&mut self, into: &mut Vec<Ready>) {
        for (token, socket) in &mut self.sockets {
            if std::mem::take(&mut socket.wakes) {
                let writable = socket.server != Server::Silent || socket.kind != Kind::Tcp;
                into.push(Ready { token: *token, readable: true, writable });
            }
        }
    }
}

/// The byte at a place of a stream that [`Server::Sends`].
pub(crate) fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

/// A node and its clock.
pub(crate) struct World {
    pub(crate) egress: Egress<Outside>,
    pub(crate) now_ns: u64,
}

impl World {
    pub(crate) fn new(servers: &[(u16, Server)]) -> Self {
        Self::with(servers, Limits::default())
    }

    pub(crate) fn with(servers: &[(u16, Server)], limits: Limits) -> Self {
        let outside = Outside { servers: servers.iter().copied().collect(), ..Outside::default() };
        let config = EgressConfig {
            nat: Some(NatConfig { limits, ..NatConfig::default() }),
            resolver_addresses: vec![RESOLVER],
            upstreams: vec!["192.0.2.53:53".parse().unwrap(), "192.0.2.54:53".parse().unwrap()],
            ..EgressConfig::default()
        };
        Self { egress: Egress::new(config, outside, [9; 32]), now_ns: SECOND_NS }
    }

    pub(crate) fn outside(&mut self) -> &mut Outside {
        self.egress.sockets_mut()
    }

    pub(crate) fn send(&mut self, packet: &[u8]) {
        self.send_as(&MEMBER, packet);
    }

    pub(crate) fn send_as(&mut self, member: &PublicKey, packet: &[u8]) {
        let header = VirtioNetHeader::default();
        self.egress.receive(self.now_ns, (member, None), &header, packet);
    }

    /// One turn; what came for members, cut to packets.
    pub(crate) fn turn(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        if self.egress.next_deadline(self.now_ns).is_some_and(|due_ns| due_ns <= self.now_ns) {
            self.egress.handle_deadline(self.now_ns);
        }
        self.egress.flush(self.now_ns, &mut |_, header, frame| packets.extend(cut(header, frame)));
        packets
    }

    pub(crate) fn turns(&mut self, count: usize) -> Vec<Vec<u8>> {
        (0..count).flat_map(|_| self.turn()).collect()
    }

    pub(crate) fn dropped(&self, reason: mesh_egress::counters::DropReason) -> u64 {
        self.egress.counters().unwrap().dropped(reason)
    }
}

/// Cuts a super-frame as the mesh would.
pub(crate) fn cut(header: &VirtioNetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    let layout = Layout { headroom: 0, tailroom: 0, packet_bytes_max: 1400 };
    let mut segmenter = Segmenter::new(header, frame, layout).unwrap();
    let (mut buffer, mut packets) = (vec![0; 1 << 17], Vec::new());
    while let Some(batch) = segmenter.fill(&mut buffer).unwrap() {
        packets.extend(buffer[..batch.len].chunks(batch.stride).map(<[u8]>::to_vec));
    }
    assert!(packets.iter().all(|packet| packet.len() <= 1400), "too large for the mesh");
    packets
}

/// `64:ff9b::a.b.c.d` with a port.
pub(crate) fn outside(address: [u8; 4], port: u16) -> SocketAddr {
    let ip = mesh_egress::address::embed(Ipv4Addr::from(address));
    SocketAddr::new(IpAddr::V6(ip), port)
}

/// A UDP datagram of a member's.
pub(crate) fn udp(from: (&PublicKey, u16), to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let IpAddr::V6(to_ip) = to.ip() else { panic!("{to} is IPv4") };
    let len = 8 + payload.len() as u16;
    let mut transport = Vec::new();
    for word in [from.1, to.port(), len, 0] {
        transport.extend_from_slice(&word.to_be_bytes());
    }
    transport.extend_from_slice(payload);
    ipv6(from.0.address(), to_ip, 17, 6, transport)
}

/// A packet whose transport has its checksum at `at`.
pub(crate) fn ipv6(
    from: Ipv6Addr,
    to: Ipv6Addr,
    protocol: u8,
    at: usize,
    mut transport: Vec<u8>,
) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(transport.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[protocol, 64]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum = net_vdev::offload::pseudo_header(&packet[8..40], protocol, transport.len());
    let field = sum.plus(net_vdev::offload::Sum::of(&transport)).field();
    transport[at..at + 2].copy_from_slice(&field);
    packet.extend_from_slice(&transport);
    packet
}
