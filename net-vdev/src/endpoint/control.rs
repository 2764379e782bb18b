//! What two members tell each other inside a session besides packets. `docs/mesh-wire.md` draws it.
//!
//! The first byte of what a data datagram carries tells what it is: an IP packet starts with 4x or
//! 6x, a control message with 1x.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::PATHS_MAX;
use crate::certificate::ALIAS_BYTES;

/// How many addresses a member names at most.
pub const CANDIDATES_MAX: usize = PATHS_MAX - 2;
/// The bytes of a fragment's header.
pub(super) const FRAGMENT_HEADER_BYTES: usize = 8;
const SOCKET_ADDRESS_BYTES: usize = 18;

const PROBE: u8 = 0x10;
const REPLY: u8 = 0x11;
const CANDIDATES: u8 = 0x12;
const FRAGMENT: u8 = 0x13;
const ROUTER: u8 = 0x14;
const CERTIFICATES: u8 = 0x15;
const ASK_ALIAS: u8 = 0x16;
const ALIAS: u8 = 0x17;

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control<'a> {
    /// "Do you hear me on this way?" Padding may follow.
    Probe {
        /// The sender's number.
        number: u64,
    },
    /// "I do."
    Reply {
        /// The probe's number.
        number: u64,
        /// Where the probe came from, if it came straight from the network.
        observed: Option<SocketAddr>,
    },
    /// "Try these addresses of mine."
    Candidates(Vec<SocketAddr>),
    /// Half of a packet that is too large for the way.
    Fragment {
        /// The packet's number.
        identity: u16,
        /// Whether it is the second half.
        is_last: bool,
        /// How many bytes of the packet are in front of these.
        offset: u16,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A message between routers.
    Router(&'a [u8]),
    /// Certificates of the sender.
    Certificates(&'a [u8]),
    /// "Whose alias is this address of your /64?"
    AskAlias(Ipv6Addr),
    /// The answer: the certificate, or that it is nobody's (any more).
    Alias {
        /// The address.
        address: Ipv6Addr,
        /// The certificate, as [`crate::certificate::Alias::verify`] reads it.
        certificate: Option<&'a [u8; ALIAS_BYTES]>,
    },
}

impl<'a> Control<'a> {
    /// Reads a control message; `None` for anything else.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let ([kind], rest) = bytes.split_first_chunk()?;
        match *kind {
            PROBE => {
                let ([0, 0, 0], rest) = rest.split_first_chunk()? else { return None };
                let number = u64::from_be_bytes(*rest.first_chunk()?);
                Some(Self::Probe { number })
            }
            REPLY => Self::parse_reply(rest),
            CANDIDATES => Self::parse_candidates(rest),
            FRAGMENT => {
                let ([flags, identity_high, identity_low, high, low, 0, 0], bytes) =
                    rest.split_first_chunk()?
                else {
                    return None;
                };
                (*flags <= 1).then_some(Self::Fragment {
                    identity: u16::from_be_bytes([*identity_high, *identity_low]),
                    is_last: *flags == 1,
                    offset: u16::from_be_bytes([*high, *low]),
                    bytes,
                })
            }
            ROUTER => Some(Self::Router(rest)),
            CERTIFICATES => Some(Self::Certificates(rest)),
            ASK_ALIAS => {
                let ([0, 0, 0], address) = rest.split_first_chunk()? else { return None };
                Some(Self::AskAlias(<[u8; 16]>::try_from(address).ok()?.into()))
            }
            ALIAS => Self::parse_alias(rest),
            _ => None,
        }
    }

    fn parse_reply(rest: &'a [u8]) -> Option<Self> {
        let ([has_address @ 0..=1, 0, 0], rest) = rest.split_first_chunk()? else { return None };
        let (number, rest) = rest.split_first_chunk()?;
        let address = parse_address(rest.first_chunk()?);
        (rest.len() == SOCKET_ADDRESS_BYTES).then_some(Self::Reply {
            number: u64::from_be_bytes(*number),
            observed: (*has_address == 1).then_some(address),
        })
    }

    fn parse_alias(rest: &'a [u8]) -> Option<Self> {
        let ([is_known @ 0..=1, 0, 0], rest) = rest.split_first_chunk()? else { return None };
        let (address, rest) = rest.split_first_chunk::<16>()?;
        let certificate = match *is_known {
            0 if rest.is_empty() => None,
            0 => return None,
            _ => Some(rest.try_into().ok()?),
        };
        Some(Self::Alias { address: Ipv6Addr::from(*address), certificate })
    }

    fn parse_candidates(rest: &'a [u8]) -> Option<Self> {
        let ([count, 0, 0], rest) = rest.split_first_chunk()? else { return None };
        let (addresses, surplus) = rest.as_chunks::<SOCKET_ADDRESS_BYTES>();
        let is_whole = surplus.is_empty() && addresses.len() == usize::from(*count);
        (is_whole && addresses.len() <= CANDIDATES_MAX)
            .then(|| Self::Candidates(addresses.iter().map(parse_address).collect()))
    }

    /// Appends the message to `bytes`.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Probe { number } => {
                bytes.extend_from_slice(&[PROBE, 0, 0, 0]);
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            Self::Reply { number, observed } => {
                bytes.extend_from_slice(&[REPLY, u8::from(observed.is_some()), 0, 0]);
                bytes.extend_from_slice(&number.to_be_bytes());
                let unknown = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
                bytes.extend_from_slice(&address_bytes(&observed.unwrap_or(unknown)));
            }
            Self::Candidates(addresses) => {
                let count = addresses.len().min(CANDIDATES_MAX);
                bytes.extend_from_slice(&[CANDIDATES, u8::try_from(count).unwrap_or(0), 0, 0]);
                let written = addresses.iter().take(count);
                written.for_each(|address| bytes.extend_from_slice(&address_bytes(address)));
            }
            Self::Fragment { identity, is_last, offset, bytes: part } => {
                bytes.extend_from_slice(&[FRAGMENT, u8::from(*is_last)]);
                bytes.extend_from_slice(&identity.to_be_bytes());
                bytes.extend_from_slice(&offset.to_be_bytes());
                bytes.extend_from_slice(&[0, 0]);
                bytes.extend_from_slice(part);
            }
            Self::Router(message) => {
                bytes.push(ROUTER);
                bytes.extend_from_slice(message);
            }
            Self::Certificates(certificates) => {
                bytes.push(CERTIFICATES);
                bytes.extend_from_slice(certificates);
            }
            Self::AskAlias(address) => {
                bytes.extend_from_slice(&[ASK_ALIAS, 0, 0, 0]);
                bytes.extend_from_slice(&address.octets());
            }
            Self::Alias { address, certificate } => {
                bytes.extend_from_slice(&[ALIAS, u8::from(certificate.is_some()), 0, 0]);
                bytes.extend_from_slice(&address.octets());
                bytes.extend_from_slice(certificate.map_or(&[], <[u8; ALIAS_BYTES]>::as_slice));
            }
        }
    }
}

/// A port and an IPv6 address, IPv4-mapped if need be.
fn address_bytes(address: &SocketAddr) -> [u8; SOCKET_ADDRESS_BYTES] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let content = address.port().to_be_bytes().into_iter().chain(ip.octets());
    let mut bytes = [0; SOCKET_ADDRESS_BYTES];
    bytes.iter_mut().zip(content).for_each(|(to, from)| *to = from);
    bytes
}

fn parse_address(bytes: &[u8; SOCKET_ADDRESS_BYTES]) -> SocketAddr {
    let [high, low, ip @ ..] = *bytes;
    let ip = Ipv6Addr::from(ip);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    SocketAddr::new(ip, u16::from_be_bytes([high, low]))
}

/// Whether a peer's word is enough to send a few probes there: not to this very machine, nor to
/// many.
pub(super) fn is_plausible(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let is_broadcast = ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    let is_special = ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || is_broadcast;
    !is_special && address.port() != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(message: &Control<'_>) {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        assert_eq!(Control::parse(&bytes).as_ref(), Some(message));
        // Every message but those that end with bytes of any number has one length.
        let is_open = matches!(
            message,
            Control::Probe { .. }
                | Control::Fragment { .. }
                | Control::Router(_)
                | Control::Certificates(_)
        );
        bytes.push(0);
        assert_eq!(Control::parse(&bytes).is_some(), is_open);
    }

    #[test]
    fn what_is_written_is_read() {
        let v4 = SocketAddr::from(([192, 0, 2, 1], 7));
        let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 65535));
        round_trip(&Control::Probe { number: 0x0102_0304_0506_0708 });
        round_trip(&Control::Reply { number: 1, observed: Some(v4) });
        round_trip(&Control::Reply { number: u64::MAX, observed: None });
        round_trip(&Control::Candidates(vec![v4, v6]));
        round_trip(&Control::Candidates(Vec::new()));
        let bytes = &[1, 2, 3];
        round_trip(&Control::Fragment { identity: 258, is_last: true, offset: 700, bytes });
        round_trip(&Control::Router(bytes));
        round_trip(&Control::Certificates(bytes));
        let address = Ipv6Addr::new(0x400, 1, 2, 3, 4, 5, 6, 7);
        round_trip(&Control::AskAlias(address));
        round_trip(&Control::Alias { address, certificate: None });
        round_trip(&Control::Alias { address, certificate: Some(&[7; ALIAS_BYTES]) });
    }

    #[test]
    fn nobody_is_sent_to_this_machine_or_to_many() {
        let told = |text: &str| is_plausible(&text.parse().unwrap());
        assert!(told("192.168.1.2:9") && told("[fe80::1]:9") && told("8.8.8.8:53"));
        for text in ["127.0.0.1:9", "[::1]:9", "0.0.0.0:9", "224.0.0.1:9", "[ff02::1]:9"] {
            assert!(!told(text), "{text}");
        }
        assert!(!told("255.255.255.255:9") && !told("192.0.2.1:0"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(message) = Control::parse(&bytes) {
                let mut written = Vec::new();
                message.write(&mut written);
                let read = Control::parse(&written);
                prop_assert_eq!(read, Some(message));
            }
        }
    }
}
