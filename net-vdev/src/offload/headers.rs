//! The headers of a packet that can be cut or merged: TCP or UDP straight behind an IPv4 header
//! without options or an IPv6 header without extensions, whole.

use super::header::ChecksumField;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;

pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;

/// Where what is. All places are inside the packet that was read, which is at least `len` long;
/// `ip_bytes < headers_bytes <= len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers {
    /// Whether the IP header is IPv6.
    pub is_ipv6: bool,
    /// Whether the transport is TCP; else UDP.
    pub is_tcp: bool,
    /// The bytes of the IP header; the transport's header starts behind it.
    pub ip_bytes: usize,
    /// The bytes of IP header and transport header.
    pub headers_bytes: usize,
    /// The packet's length by its IP header; what is behind that is padding of the link.
    pub len: usize,
}

impl Headers {
    /// Reads the headers of `packet`; `None` if they are of another kind, or cut.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let (is_ipv6, protocol, len) = match packet.first()? >> 4 {
            4 => {
                let &[version, _, len_0, len_1, _, _, fragment_0, fragment_1, _, protocol, ..] =
                    packet.first_chunk::<IPV4_BYTES>()?;
                let is_fragment = fragment_0 & 0x3f != 0 || fragment_1 != 0;
                if version != 0x45 || is_fragment {
                    return None;
                }
                (false, protocol, usize::from(u16::from_be_bytes([len_0, len_1])))
            }
            6 => {
                let &[_, _, _, _, len_0, len_1, protocol, ..] =
                    packet.first_chunk::<IPV6_BYTES>()?;
                let len = IPV6_BYTES + usize::from(u16::from_be_bytes([len_0, len_1]));
                (true, protocol, len)
            }
            _ => return None,
        };
        let ip_bytes = if is_ipv6 { IPV6_BYTES } else { IPV4_BYTES };
        let transport = packet.get(ip_bytes..len)?;
        let transport_bytes = match protocol {
            PROTOCOL_TCP => {
                let [.., offset, _] = *transport.first_chunk::<14>()?;
                let bytes = usize::from(offset >> 4) * 4;
                if bytes < 20 {
                    return None;
                }
                bytes
            }
            PROTOCOL_UDP => UDP_BYTES,
            _ => return None,
        };
        (transport_bytes <= transport.len()).then_some(Self {
            is_ipv6,
            is_tcp: protocol == PROTOCOL_TCP,
            ip_bytes,
            headers_bytes: ip_bytes + transport_bytes,
            len,
        })
    }

    /// Where source and destination address lie.
    pub(super) fn addresses(&self) -> std::ops::Range<usize> {
        if self.is_ipv6 { 8..40 } else { 12..20 }
    }

    /// The number of the transport.
    pub(super) fn protocol(&self) -> u8 {
        if self.is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP }
    }

    /// Where an open checksum is.
    pub(super) fn checksum_field(&self) -> ChecksumField {
        let small = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        ChecksumField { start: small(self.ip_bytes), offset: small(self.checksum_offset()) }
    }

    /// Where the transport's checksum field is, behind the start of its header.
    pub(super) fn checksum_offset(&self) -> usize {
        if self.is_tcp { 16 } else { 6 }
    }
}

/// The big-endian word at this place of a packet, 0 if the packet ends before.
pub(super) fn word(packet: &[u8], at: usize) -> u16 {
    packet.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

/// The big-endian double word at this place of a packet, 0 if the packet ends before.
pub(super) fn double_word(packet: &[u8], at: usize) -> u32 {
    packet.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Writes bytes at this place of a packet, which is inside of it.
pub(crate) fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = packet.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}
