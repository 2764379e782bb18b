//! What the checks of packets and names of the mesh share: right checksums, and sockets to servers
//! that answer what the input says.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_egress::address::Destinations;
use mesh_egress::sockets::{Kind, Ready, SocketError, Sockets, Token};
use net_vdev::offload::{Sum, pseudo_header};

/// The host's own address.
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Where a transport's checksum is.
fn checksum_at(protocol: u8) -> usize {
    match protocol {
        6 => 16,
        17 => 6,
        _ => 2,
    }
}

/// The sum of a packet's transport with its pseudo-header, and where the transport starts.
fn sum(packet: &[u8]) -> Option<(Sum, usize, u8)> {
    let is_ipv6 = packet.first()? >> 4 == 6;
    let (at, protocol) = if is_ipv6 { (40, *packet.get(6)?) } else { (20, *packet.get(9)?) };
    let transport = packet.get(at..)?;
    let addresses = packet.get(if is_ipv6 { 8..40 } else { 12..20 })?;
    let sum = Sum::of(transport);
    let is_icmp = protocol == 1;
    let pseudo = || pseudo_header(addresses, protocol, transport.len());
    Some((if is_icmp { sum } else { sum.plus(pseudo()) }, at, protocol))
}

/// Whether all checksums of a packet without options or extensions are right.
pub(crate) fn has_right_checksums(packet: &[u8]) -> bool {
    let header_is_right = packet.first().is_some_and(|first| first >> 4 == 6)
        || packet.get(..20).is_some_and(|header| Sum::of(header).is_right());
    header_is_right && sum(packet).is_some_and(|(sum, ..)| sum.is_right())
}

fn put(packet: &mut [u8], at: usize, bytes: [u8; 2]) {
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&bytes);
    }
}

/// A packet with right lengths and checksums.
pub(crate) fn packet(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    transport: &[u8],
) -> Vec<u8> {
    let len = transport.len() as u16;
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, 64]);
            put(&mut packet, 4, len.to_be_bytes());
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
            put(&mut packet, 2, (len + 20).to_be_bytes());
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            let field = Sum::of(&packet).field();
            put(&mut packet, 10, field);
        }
        _ => panic!("a packet of two families"),
    }
    let start = packet.len();
    packet.extend_from_slice(transport);
    let at = start + checksum_at(protocol);
    put(&mut packet, at, [0; 2]);
    if let Some((sum, ..)) = sum(&packet) {
        let field = sum.field();
        let field = if protocol == 17 && field == [0, 0] { [0xff; 2] } else { field };
        put(&mut packet, at, field);
    }
    packet
}

/// Sockets to servers that take everything, and answer what they are told to.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    /// Those that are open: to where, what comes in, and what went out.
    pub(crate) open: BTreeMap<Token, (Kind, SocketAddr, VecDeque<Vec<u8>>)>,
    pub(crate) sent: Vec<(Kind, Vec<u8>)>,
    ready: Vec<Ready>,
}

impl Outside {
    /// The socket at a place of the list has this to say; an empty one is an end.
    pub(crate) fn says(&mut self, place: usize, bytes: &[u8]) {
        let count = self.open.len().max(1);
        if let Some((token, (_, _, queue))) = self.open.iter_mut().nth(place % count) {
            queue.push_back(bytes.to_vec());
            self.ready.push(Ready { token: *token, readable: true, writable: true });
        }
    }
}

impl Sockets for Outside {
    fn is_own(&mut self, address: Ipv4Addr) -> bool {
        address == OWN
    }

    fn open(&mut self, token: Token, kind: Kind, to: SocketAddr) -> Result<(), SocketError> {
        let IpAddr::V4(address) = to.ip() else { panic!("{to} is not IPv4") };
        assert!(Destinations::default().permits(address) && address != OWN, "{to} is forbidden");
        assert!(self.open.insert(token, (kind, to, VecDeque::new())).is_none(), "a token twice");
        self.ready.push(Ready { token, readable: false, writable: true });
        Ok(())
    }

    fn port(&mut self, token: Token) -> Option<u16> {
        self.open.contains_key(&token).then_some(40_000)
    }

    fn outcome(&mut self, token: Token) -> Result<(), SocketError> {
        self.open.get(&token).map(|_| ()).ok_or(SocketError::Broken)
    }

    fn send(&mut self, token: Token, bytes: &[u8]) -> Result<usize, SocketError> {
        let (kind, ..) = self.open.get(&token).ok_or(SocketError::Broken)?;
        self.sent.push((*kind, bytes.to_vec()));
        Ok(bytes.len())
    }

    fn receive(&mut self, token: Token, into: &mut [u8]) -> Result<usize, SocketError> {
        let (kind, _, queue) = self.open.get_mut(&token).ok_or(SocketError::Broken)?;
        let bytes = queue.pop_front().ok_or(SocketError::WouldBlock)?;
        let len = bytes.len().min(into.len());
        into.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
        if *kind == Kind::Tcp && len < bytes.len() {
            queue.push_front(bytes.get(len..).unwrap_or_default().to_vec());
        }
        Ok(len)
    }

    fn finish(&mut self, _token: Token) {}

    fn close(&mut self, token: Token) {
        self.open.remove(&token);
    }

    fn ready(&mut self, into: &mut Vec<Ready>) {
        into.append(&mut self.ready);
    }
}
