//! The card as a DHCP server (RFC 2131) with one client and one address to give.

use std::net::Ipv4Addr;

use super::translate::{IPV4_BYTES, UDP};
use crate::offload::{Sum, pseudo_header, put};

/// Where a server listens, and a client.
pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const UDP_BYTES: usize = 8;
/// The fixed fields, and the cookie that says that options follow (RFC 2131 §2, §3).
const FIXED_BYTES: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The least that clients take (RFC 1542 §2.1).
const MESSAGE_BYTES_MIN: usize = 300;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// What the client is told (RFC 2132).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// The bits of the network that it shares with nobody.
    pub prefix_bits: u8,
    /// Its router, resolver, and DHCP server.
    pub router: Ipv4Addr,
    /// The largest packet, in bytes.
    pub mtu: u16,
    /// For how long all that holds, in seconds.
    pub seconds: u32,
}

/// What a client says.
struct Message<'a> {
    fixed: &'a [u8; FIXED_BYTES],
    kind: u8,
    /// The address that it asks for, or has.
    wanted: Ipv4Addr,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = message.split_first_chunk::<FIXED_BYTES>()?;
        // A request, on Ethernet.
        let mut options = rest.strip_prefix(&COOKIE).filter(|_| fixed.starts_with(&[1, 1, 6]))?;
        let current = fixed.get(12..)?.first_chunk::<4>()?;
        let (mut kind, mut server, mut wanted, mut client_id) = (None, None, None, None);
        while let Some((code, rest)) = options.split_first() {
            options = rest;
            match code {
                0 => continue,
                255 => break,
                _ => {}
            }
            let (len, rest) = options.split_first()?;
            let (value, rest) = rest.split_at_checked(usize::from(*len))?;
            options = rest;
            let address = || <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
            match code {
                50 => wanted = Some(address()?),
                53 => kind = value.first().copied(),
                54 => server = Some(address()?),
                61 => client_id = Some(value),
                _ => {}
            }
        }
        let wanted = wanted.unwrap_or(Ipv4Addr::from(*current));
        Some(Self { fixed, kind: kind?, wanted, server, client_id })
    }

    /// The type of the answer.
    fn answer(&self, lease: &Lease) -> Option<u8> {
        if self.server.is_some_and(|server| server != lease.router) {
            return None;
        }
        match self.kind {
            DISCOVER => Some(OFFER),
            REQUEST if self.wanted == lease.address => Some(ACK),
            REQUEST => Some(NAK),
            INFORM => Some(ACK),
            // What is released or declined is offered again: there is no other.
            _ => None,
        }
    }
}

/// The IPv4 packet that answers a client's message, the payload of a datagram; `None` if there is
/// nothing to answer.
#[must_use]
pub fn answer(message: &[u8], lease: &Lease) -> Option<Vec<u8>> {
    let message = Message::parse(message)?;
    let kind = message.answer(lease)?;
    let mut packet = Vec::with_capacity(IPV4_BYTES + UDP_BYTES + MESSAGE_BYTES_MIN + 64);
    packet.resize(IPV4_BYTES + UDP_BYTES, 0);
    let at = packet.len();
    packet.extend_from_slice(message.fixed);
    // A reply; its transaction, flags and hardware address are the request's.
    put(&mut packet, at, &[2]);
    packet.get_mut(at + 44..)?.fill(0);
    put(&mut packet, at + 8, &[0; 4]);
    let given = if matches!((kind, message.kind), (NAK, _) | (_, INFORM)) {
        Ipv4Addr::UNSPECIFIED
    } else {
        lease.address
    };
    put(&mut packet, at + 16, &given.octets());
    put(&mut packet, at + 20, &lease.router.octets());
    packet.extend_from_slice(&COOKIE);
    write_options(&mut packet, &message, kind, lease);
    packet.resize(packet.len().max(at + MESSAGE_BYTES_MIN), 0);
    seal(&mut packet, lease.router)?;
    Some(packet)
}

fn write_options(packet: &mut Vec<u8>, message: &Message<'_>, kind: u8, lease: &Lease) {
    let mut option = |code: u8, value: &[u8]| {
        if let Ok(len) = u8::try_from(value.len()) {
            packet.extend_from_slice(&[code, len]);
            packet.extend_from_slice(value);
        }
    };
    let router = lease.router.octets();
    option(53, &[kind]);
    option(54, &router);
    if kind != NAK {
        let mask = u32::MAX.checked_shl(32 - u32::from(lease.prefix_bits.min(32))).unwrap_or(0);
        if message.kind != INFORM {
            option(51, &lease.seconds.to_be_bytes());
        }
        option(1, &mask.to_be_bytes());
        option(3, &router);
        option(6, &router);
        option(26, &lease.mtu.to_be_bytes());
        let is_near = (lease.address.to_bits() ^ lease.router.to_bits()) & mask == 0;
        if !is_near {
            // RFC 3442: the router is on the link, and all else behind it.
            let [a, b, c, d] = router;
            option(121, &[32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d]);
        }
    }
    // RFC 6842: who asked under a name is answered under it.
    if let Some(client_id) = message.client_id {
        option(61, client_id);
    }
    packet.push(255);
}

/// Fills in the headers in front of a message: to all, for the client has no address yet.
fn seal(packet: &mut [u8], from: Ipv4Addr) -> Option<()> {
    let len = u16::try_from(packet.len()).ok()?;
    let udp_bytes = len.checked_sub(u16::try_from(IPV4_BYTES).ok()?)?;
    put(packet, 0, &[0x45, 0]);
    put(packet, 2, &len.to_be_bytes());
    put(packet, 6, &[0x40, 0, 64, UDP]);
    put(packet, 12, &from.octets());
    put(packet, 16, &Ipv4Addr::BROADCAST.octets());
    let field = Sum::of(packet.get(..IPV4_BYTES)?).field();
    put(packet, 10, &field);
    put(packet, IPV4_BYTES, &SERVER_PORT.to_be_bytes());
    put(packet, IPV4_BYTES + 2, &CLIENT_PORT.to_be_bytes());
    put(packet, IPV4_BYTES + 4, &udp_bytes.to_be_bytes());
    let pseudo = pseudo_header(packet.get(12..IPV4_BYTES)?, UDP, usize::from(udp_bytes));
    let field = match Sum::of(packet.get(IPV4_BYTES..)?).plus(pseudo).field() {
        [0, 0] => [0xff, 0xff],
        field => field,
    };
    put(packet, IPV4_BYTES + 6, &field);
    Some(())
}
