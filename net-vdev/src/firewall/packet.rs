//! The headers of an IP packet inside the mesh, read once.
//!
//! Only what the firewall can judge passes: TCP, UDP and ICMP straight behind an IPv4 header
//! without options or an IPv6 header without extension headers, and no fragments (the mesh's MTU
//! is known, and a fragment hides its ports).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::offload::ChecksumField;

/// Why a packet can't be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than its own headers or length field say.
    #[error("the packet ends before its headers say")]
    Truncated,
    /// Neither IPv4 nor IPv6.
    #[error("neither IPv4 nor IPv6")]
    Version,
    /// A fragment of an IPv4 or IPv6 packet.
    #[error("a fragment")]
    Fragment,
    /// IPv4 options or IPv6 extension headers.
    #[error("IPv4 options or IPv6 extension headers")]
    Extension,
    /// A transport protocol other than TCP, UDP and ICMP.
    #[error("a protocol other than TCP, UDP and ICMP")]
    Protocol,
}

/// A protocol that the firewall knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6 echo.
    Icmp,
}

/// The parts of a packet that decide its fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// What is behind the IP header.
    pub transport: Transport,
    /// The packet's length; bytes behind it are padding of the link.
    pub len: usize,
}

/// What is behind the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment.
    Tcp {
        /// The source and destination ports.
        ports: Ports,
        /// The flags (RFC 9293 §3.1).
        flags: TcpFlags,
    },
    /// A UDP datagram.
    Udp(Ports),
    /// An echo request and its identifier.
    EchoRequest(u16),
    /// An echo reply and its identifier.
    EchoReply(u16),
    /// An ICMP error and the packet that it is about, if that can be told.
    Error(Option<Original>),
    /// Any other ICMP message (neighbour discovery and the like): none of these leaves a link.
    OtherIcmp,
}

/// The ports of a TCP segment or UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The source port.
    pub source: u16,
    /// The destination port.
    pub destination: u16,
}

/// The TCP flags that matter to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// Whether the segment opens a connection: SYN without ACK.
    #[must_use]
    pub fn opens(self) -> bool {
        self.0 & 0x12 == 0x02
    }

    /// Whether the sender has no more to send.
    #[must_use]
    pub fn finishes(self) -> bool {
        self.0 & 0x01 != 0
    }

    /// Whether the connection is torn down.
    #[must_use]
    pub fn resets(self) -> bool {
        self.0 & 0x04 != 0
    }
}

/// The packet that an ICMP error is about, as far as the error quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Original {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
    /// Its ports; of an echo request the identifier, twice.
    pub ports: Ports,
}

impl Original {
    /// The same as if it had gone the other way.
    pub(super) fn reversed(self) -> Self {
        let Ports { source, destination } = self.ports;
        Self {
            source: self.destination,
            destination: self.source,
            ports: Ports { source: destination, destination: source },
            ..self
        }
    }
}

impl Packet {
    /// Where the checksum is that a TCP segment's or UDP datagram's sender may leave to an offload.
    /// `bytes` are those that were read. A datagram with bytes behind it has none that could be left: an
    /// offload goes on to the packet's end, and the datagram does not.
    #[must_use]
    pub fn checksum_field(&self, bytes: &[u8]) -> Option<ChecksumField> {
        let start: u16 = if self.source.is_ipv6() { 40 } else { 20 };
        match self.transport {
            Transport::Tcp { .. } => Some(ChecksumField { start, offset: 16 }),
            Transport::Udp(_) => {
                let len = field(bytes, usize::from(start) + 4).ok()?;
                let ends = usize::from(start) + usize::from(len);
                (ends == self.len).then_some(ChecksumField { start, offset: 6 })
            }
            _ => None,
        }
    }

    /// Reads the headers of `bytes`.
    ///
    /// # Errors
    /// A [`PacketError`] for what the firewall can't judge.
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        let (header, payload) = IpHeader::parse(bytes)?;
        let available = payload.len();
        let payload = payload.get(..header.payload_len).ok_or(PacketError::Truncated)?;
        let transport = match (header.protocol, header.source) {
            (6, _) => parse_tcp(payload)?,
            (17, _) => {
                let length = field(payload, 4)?;
                if usize::from(length) < 8 || usize::from(length) > payload.len() {
                    return Err(PacketError::Truncated);
                }
                Transport::Udp(parse_ports(payload)?)
            }
            (1, IpAddr::V4(_)) => parse_icmp(payload, &ICMP_V4)?,
            (58, IpAddr::V6(_)) => parse_icmp(payload, &ICMP_V6)?,
            _ => return Err(PacketError::Protocol),
        };
        let len = bytes.len() - available + header.payload_len;
        let IpHeader { source, destination, .. } = header;
        Ok(Self { source, destination, transport, len })
    }
}

struct IpHeader {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload_len: usize,
}

impl IpHeader {
    fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), PacketError> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(_) => Err(PacketError::Version),
            None => Err(PacketError::Truncated),
        }
    }

    /// RFC 791 §3.1.
    fn parse_v4(bytes: &[u8]) -> Result<(Self, &[u8]), PacketError> {
        let (header, payload) = bytes.split_first_chunk::<20>().ok_or(PacketError::Truncated)?;
        let &[version_ihl, _, len_high, len_low, _, _, fragment_high, fragment_low, ..] = header;
        if version_ihl & 0x0f != 5 {
            return Err(PacketError::Extension);
        }
        // More-fragments, or an offset that is not 0.
        if (fragment_high & 0x3f, fragment_low) != (0, 0) {
            return Err(PacketError::Fragment);
        }
        let total = usize::from(u16::from_be_bytes([len_high, len_low]));
        let &[_, _, _, _, _, _, _, _, _, protocol, _, _, addresses @ ..] = header;
        let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
        let header = Self {
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            protocol,
            payload_len: total.checked_sub(20).ok_or(PacketError::Truncated)?,
        };
        Ok((header, payload))
    }

    /// RFC 8200 §3.
    fn parse_v6(bytes: &[u8]) -> Result<(Self, &[u8]), PacketError> {
        let (header, payload) = bytes.split_first_chunk::<40>().ok_or(PacketError::Truncated)?;
        let &[_, _, _, _, len_high, len_low, protocol, _, ref addresses @ ..] = header;
        match protocol {
            44 => return Err(PacketError::Fragment),
            0 | 43 | 50 | 51 | 60 | 135 | 139 | 140 => return Err(PacketError::Extension),
            _ => {}
        }
        let (source, destination) =
            addresses.split_first_chunk::<16>().ok_or(PacketError::Truncated)?;
        let destination = destination.first_chunk::<16>().ok_or(PacketError::Truncated)?;
        let header = Self {
            source: Ipv6Addr::from(*source).into(),
            destination: Ipv6Addr::from(*destination).into(),
            protocol,
            payload_len: usize::from(u16::from_be_bytes([len_high, len_low])),
        };
        Ok((header, payload))
    }
}

/// The types of ICMP messages, which differ between IPv4 (RFC 792) and IPv6 (RFC 4443).
struct IcmpTypes {
    echo_request: u8,
    echo_reply: u8,
    errors: &'static [u8],
}

/// Errors: destination unreachable (with fragmentation needed), time exceeded, parameter problem.
const ICMP_V4: IcmpTypes = IcmpTypes { echo_request: 8, echo_reply: 0, errors: &[3, 11, 12] };
/// Errors: destination unreachable, packet too big, time exceeded, parameter problem.
const ICMP_V6: IcmpTypes = IcmpTypes { echo_request: 128, echo_reply: 129, errors: &[1, 2, 3, 4] };

fn parse_icmp(payload: &[u8], types: &IcmpTypes) -> Result<Transport, PacketError> {
    let (header, quoted) = payload.split_first_chunk::<8>().ok_or(PacketError::Truncated)?;
    let &[kind, _, _, _, identifier_high, identifier_low, _, _] = header;
    let identifier = u16::from_be_bytes([identifier_high, identifier_low]);
    Ok(match kind {
        kind if kind == types.echo_request => Transport::EchoRequest(identifier),
        kind if kind == types.echo_reply => Transport::EchoReply(identifier),
        kind if types.errors.contains(&kind) => Transport::Error(parse_original(quoted, types)),
        _ => Transport::OtherIcmp,
    })
}

/// Only the IP header and 8 bytes behind it need be quoted (RFC 792), so lengths aren't checked.
fn parse_original(quoted: &[u8], types: &IcmpTypes) -> Option<Original> {
    let (header, payload) = IpHeader::parse(quoted).ok()?;
    let IpHeader { source, destination, .. } = header;
    let (protocol, ports) = match (header.protocol, source) {
        (6, _) => (Protocol::Tcp, parse_ports(payload).ok()?),
        (17, _) => (Protocol::Udp, parse_ports(payload).ok()?),
        (1, IpAddr::V4(_)) | (58, IpAddr::V6(_)) => {
            let Ok(Transport::EchoRequest(identifier)) = parse_icmp(payload, types) else {
                return None;
            };
            (Protocol::Icmp, Ports { source: identifier, destination: identifier })
        }
        _ => return None,
    };
    Some(Original { protocol, source, destination, ports })
}

fn parse_tcp(segment: &[u8]) -> Result<Transport, PacketError> {
    let header = segment.first_chunk::<20>().ok_or(PacketError::Truncated)?;
    let [.., offset, flags, _, _, _, _, _, _] = *header;
    let header_bytes = usize::from(offset >> 4) * 4;
    if header_bytes < 20 || header_bytes > segment.len() {
        return Err(PacketError::Truncated);
    }
    Ok(Transport::Tcp { ports: parse_ports(segment)?, flags: TcpFlags(flags) })
}

fn parse_ports(segment: &[u8]) -> Result<Ports, PacketError> {
    Ok(Ports { source: field(segment, 0)?, destination: field(segment, 2)? })
}

fn field(bytes: &[u8], offset: usize) -> Result<u16, PacketError> {
    let bytes = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    bytes.map(|pair| u16::from_be_bytes(*pair)).ok_or(PacketError::Truncated)
}
