//! The bytes of a datagram, version 1. `docs/mesh-wire.md` draws them.
//!
//! Parsing never panics: [`parse`] checks length and header once, and what it returns has the
//! lengths that its type says. All integers are big-endian.

use std::net::Ipv6Addr;

use crate::identity::PublicKey;
use crate::session::post_quantum::CIPHERTEXT_BYTES;

/// The version of the wire format, the first byte of each datagram.
pub const VERSION: u8 = 1;

/// The largest IP packet inside the mesh, in bytes.
pub const MTU: usize = 1400;

/// The bytes of the header of every datagram.
pub const HEADER_BYTES: usize = 8;
/// The bytes in front of the sealed part of a data datagram.
pub const DATA_HEADER_BYTES: usize = 16;
/// In the first byte of a packet that is sealed: its transport's checksum is open. The field holds the
/// sum of the pseudo-header, as a card leaves it to an offload, and the AEAD stands for the rest.
pub const OPEN_CHECKSUM: u8 = 0x80;
/// The bytes of an AEAD tag.
pub const TAG_BYTES: usize = 16;
/// What a data datagram adds to the packet inside: 1400 + 32 + UDP 8 + IPv6 40 = 1480 bytes.
pub const DATA_OVERHEAD_BYTES: usize = DATA_HEADER_BYTES + TAG_BYTES;
/// The largest datagram of this version.
pub const DATAGRAM_BYTES_MAX: usize = MTU + DATA_OVERHEAD_BYTES;
/// The bytes of `mac1`, of `mac2`, and of a cookie.
pub const MAC_BYTES: usize = 16;
/// The bytes of `mac1` and `mac2` behind a handshake message.
pub const TRAILER_BYTES: usize = 2 * MAC_BYTES;
/// The smallest handshake datagram: header, ephemeral key, an empty sealed payload, trailer.
pub const HANDSHAKE_BYTES_MIN: usize = HEADER_BYTES + 32 + TAG_BYTES + TRAILER_BYTES;
/// The bytes of an unknown-session notice.
pub const UNKNOWN_SESSION_BYTES: usize = 16;
/// The bytes of the random nonce of a cookie reply.
pub const COOKIE_NONCE_BYTES: usize = 24;
/// The bytes of a cookie with its tag.
pub const SEALED_COOKIE_BYTES: usize = MAC_BYTES + TAG_BYTES;
/// The bytes of a cookie reply.
pub const COOKIE_REPLY_BYTES: usize = HEADER_BYTES + COOKIE_NONCE_BYTES + SEALED_COOKIE_BYTES;

const _: () = assert!(COOKIE_REPLY_BYTES < HANDSHAKE_BYTES_MIN, "no answer makes a flood larger");

/// The largest part of a datagram in a fragment: half of the largest datagram.
pub const PIECE_BYTES_MAX: usize = DATAGRAM_BYTES_MAX.div_ceil(2);

/// The bytes in front of the datagram inside a relayed frame.
pub const RELAY_HEADER_BYTES: usize = 64;
/// Those of them that the hop tag covers.
pub const RELAY_COVERED_BYTES: usize = RELAY_HEADER_BYTES - TAG_BYTES;
/// The largest relayed frame.
pub const FRAME_BYTES_MAX: usize = RELAY_HEADER_BYTES + DATAGRAM_BYTES_MAX;
/// The hops that a relayed frame starts with.
pub const HOP_LIMIT: u8 = 64;

/// The bytes of a notice that a frame went through too many routers.
pub const EXPIRED_BYTES: usize = HEADER_BYTES + 16;

/// The second byte of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Noise message 1.
    Initiation = 1,
    /// Noise message 2.
    Response = 2,
    /// A sealed IP packet, or an empty one that confirms a session.
    Data = 3,
    /// "Too many initiations come from your address: show that it is yours."
    Cookie = 4,
    /// "I hold no such session": asks for a new handshake and proves nothing.
    UnknownSession = 5,
    /// Another datagram, on its way through a router.
    Relayed = 6,
    /// One of two pieces of a handshake datagram.
    Fragment = 7,
    /// Noise message 2 behind an ML-KEM ciphertext.
    PostQuantumResponse = 8,
    /// "A frame of yours went through too many routers; I was the last."
    Expired = 9,
}

/// Why a datagram is not one of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It ends before its type's smallest length, or goes on behind the largest.
    #[error("{0} bytes are no datagram of its type")]
    Length(usize),
    /// Another version.
    #[error("version {0}; this build speaks version {VERSION}")]
    Version(u8),
    /// A type that this version does not know.
    #[error("unknown datagram type {0}")]
    Kind(u8),
    /// A reserved field is not zero.
    #[error("a reserved field is not zero")]
    Reserved,
}

/// A datagram taken apart; nothing in it is verified yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// Noise message 1.
    Initiation(Handshake<'a>),
    /// Noise message 2 for the handshake that its reader calls `receiver`.
    Response {
        /// The index that the initiator gave its handshake.
        receiver: u32,
        /// The ciphertext of the post-quantum half, if the handshake has it.
        ciphertext: Option<&'a [u8; CIPHERTEXT_BYTES]>,
        /// The message.
        handshake: Handshake<'a>,
    },
    /// A sealed packet: the header is the datagram's first [`DATA_HEADER_BYTES`].
    Data {
        /// The index that the reader gave the session.
        receiver: u32,
        /// The packet's number, which is its nonce.
        counter: u64,
    },
    /// Asks the sender of an initiation to repeat it with a proof of its address.
    Cookie(CookieReply),
    /// The sender of this notice does not hold the session that a data datagram named.
    UnknownSession {
        /// The index of that datagram.
        index: u32,
        /// The counter of that datagram.
        counter: u64,
    },
    /// A router dropped a frame because of its hop limit.
    Expired {
        /// The index of the datagram in it.
        index: u32,
        /// The router.
        router: Ipv6Addr,
    },
    /// A frame between routers; the datagram inside starts at [`RELAY_HEADER_BYTES`].
    Relayed(RelayHeader),
    /// One of two pieces of a handshake datagram.
    Fragment(Fragment<'a>),
}

/// What a router reads of a relayed frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayHeader {
    /// How many more routers may pass it on.
    pub hop_limit: u8,
    /// Asks the first router for its second-best way.
    pub is_alternate: bool,
    /// The index that the reader gave the link's session; 0 between a VM and its node's router.
    pub receiver: u32,
    /// The frame's number on this link.
    pub counter: u64,
    /// The member that the datagram inside is for.
    pub destination: Ipv6Addr,
    /// The member that sent it.
    pub source: Ipv6Addr,
}

impl RelayHeader {
    /// Reads the header of a relayed frame; its tag is not looked at.
    ///
    /// # Errors
    /// A [`WireError`] for anything that is not a relayed frame of this version.
    pub fn parse(frame: &[u8]) -> Result<Self, WireError> {
        let length = WireError::Length(frame.len());
        if !(RELAY_HEADER_BYTES + HEADER_BYTES..=FRAME_BYTES_MAX).contains(&frame.len()) {
            return Err(length);
        }
        let ([version, kind, hop_limit, flags], rest) = frame.split_first_chunk().ok_or(length)?;
        let (receiver, rest) = rest.split_first_chunk().ok_or(length)?;
        let (counter, rest) = rest.split_first_chunk().ok_or(length)?;
        let (destination, rest) = rest.split_first_chunk::<16>().ok_or(length)?;
        let source = rest.first_chunk::<16>().ok_or(length)?;
        match (*version, *kind, *flags) {
            (VERSION, kind, 0..=1) if kind == Kind::Relayed as u8 => Ok(Self {
                hop_limit: *hop_limit,
                is_alternate: *flags == 1,
                receiver: u32::from_be_bytes(*receiver),
                counter: u64::from_be_bytes(*counter),
                destination: Ipv6Addr::from(*destination),
                source: Ipv6Addr::from(*source),
            }),
            (VERSION, kind, _) if kind == Kind::Relayed as u8 => Err(WireError::Reserved),
            (VERSION, kind, _) => Err(WireError::Kind(kind)),
            (version, ..) => Err(WireError::Version(version)),
        }
    }

    /// Writes the header, with a tag of zeros.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; RELAY_HEADER_BYTES] {
        let fields = [VERSION, Kind::Relayed as u8, self.hop_limit, u8::from(self.is_alternate)];
        let content = fields
            .into_iter()
            .chain(self.receiver.to_be_bytes())
            .chain(self.counter.to_be_bytes())
            .chain(self.destination.octets())
            .chain(self.source.octets());
        let mut bytes = [0; RELAY_HEADER_BYTES];
        bytes.iter_mut().zip(content).for_each(|(to, from)| *to = from);
        bytes
    }
}

/// One of two pieces of a handshake datagram: see [`crate::reassembly`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// A random number that both pieces have.
    pub id: u32,
    /// Whether this is the second piece.
    pub is_second: bool,
    /// The piece's part of the datagram: at least 1 and at most [`PIECE_BYTES_MAX`] bytes.
    pub bytes: &'a [u8],
}

/// A handshake message and what guards it against blind floods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake<'a> {
    /// The Noise message.
    pub noise: &'a [u8],
    /// All bytes that `mac1` covers.
    pub covered: &'a [u8],
    /// The proof that the sender knows whom it writes to: see [`MacKey`].
    pub mac1: [u8; MAC_BYTES],
    /// All bytes that `mac2` covers.
    pub covered_by_mac2: &'a [u8],
    /// In an initiation, the proof that the sender is where it says it is, or zero: see
    /// [`crate::cookie`].
    pub mac2: [u8; MAC_BYTES],
}

/// A cookie on its way to the sender of an initiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieReply {
    /// The first four bytes of the initiation's `mac1`, as a number.
    pub answers: u32,
    /// Random.
    pub nonce: [u8; COOKIE_NONCE_BYTES],
    /// The cookie and its tag.
    pub sealed: [u8; SEALED_COOKIE_BYTES],
}

/// The number by which a cookie reply names the initiation with this `mac1`.
#[must_use]
pub fn cookie_index(mac1: &[u8; MAC_BYTES]) -> u32 {
    let [a, b, c, d, ..] = *mac1;
    u32::from_be_bytes([a, b, c, d])
}

/// Takes a datagram apart.
///
/// # Errors
/// A [`WireError`] for anything that is not a datagram of version 1.
pub fn parse(bytes: &[u8]) -> Result<Datagram<'_>, WireError> {
    let length = WireError::Length(bytes.len());
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(length)?;
    let [version, kind, reserved_high, reserved_low, index @ ..] = *header;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    if kind == Kind::Relayed as u8 {
        return RelayHeader::parse(bytes).map(Datagram::Relayed);
    }
    if bytes.len() > DATAGRAM_BYTES_MAX {
        return Err(length);
    }
    let index = u32::from_be_bytes(index);
    if kind == Kind::Fragment as u8 {
        return parse_fragment(index, [reserved_high, reserved_low], body);
    }
    if [reserved_high, reserved_low] != [0, 0] {
        return Err(WireError::Reserved);
    }
    match kind {
        kind if kind == Kind::Initiation as u8 => {
            if index != 0 {
                return Err(WireError::Reserved);
            }
            Ok(Datagram::Initiation(parse_handshake(bytes).ok_or(length)?))
        }
        kind if kind == Kind::Response as u8 => {
            let handshake = parse_handshake(bytes).ok_or(length)?;
            Ok(Datagram::Response { receiver: index, ciphertext: None, handshake })
        }
        kind if kind == Kind::PostQuantumResponse as u8 => {
            let mut handshake = parse_handshake(bytes).ok_or(length)?;
            let (ciphertext, noise) = handshake.noise.split_first_chunk().ok_or(length)?;
            handshake.noise = noise;
            Ok(Datagram::Response { receiver: index, ciphertext: Some(ciphertext), handshake })
        }
        kind if kind == Kind::Data as u8 => {
            let (counter, sealed) = body.split_first_chunk().ok_or(length)?;
            if sealed.len() < TAG_BYTES {
                return Err(length);
            }
            Ok(Datagram::Data { receiver: index, counter: u64::from_be_bytes(*counter) })
        }
        kind if kind == Kind::Cookie as u8 => {
            let (nonce, sealed) = body.split_first_chunk().ok_or(length)?;
            let sealed = sealed.try_into().map_err(|_| length)?;
            Ok(Datagram::Cookie(CookieReply { answers: index, nonce: *nonce, sealed }))
        }
        kind if kind == Kind::UnknownSession as u8 => {
            let counter = <[u8; 8]>::try_from(body).map_err(|_| length)?;
            Ok(Datagram::UnknownSession { index, counter: u64::from_be_bytes(counter) })
        }
        kind if kind == Kind::Expired as u8 => {
            let router = <[u8; 16]>::try_from(body).map_err(|_| length)?;
            Ok(Datagram::Expired { index, router: Ipv6Addr::from(router) })
        }
        kind => Err(WireError::Kind(kind)),
    }
}

fn parse_fragment(id: u32, place: [u8; 2], bytes: &[u8]) -> Result<Datagram<'_>, WireError> {
    let is_second = match place {
        [0, 0] => false,
        [1, 0] => true,
        _ => return Err(WireError::Reserved),
    };
    if bytes.is_empty() || bytes.len() > PIECE_BYTES_MAX {
        return Err(WireError::Length(HEADER_BYTES + bytes.len()));
    }
    Ok(Datagram::Fragment(Fragment { id, is_second, bytes }))
}

fn parse_handshake(bytes: &[u8]) -> Option<Handshake<'_>> {
    if bytes.len() < HANDSHAKE_BYTES_MIN {
        return None;
    }
    let (covered_by_mac2, mac2) = bytes.split_last_chunk()?;
    let (covered, mac1) = covered_by_mac2.split_last_chunk()?;
    let noise = covered.get(HEADER_BYTES..)?;
    Some(Handshake { noise, covered, mac1: *mac1, covered_by_mac2, mac2: *mac2 })
}

/// The first [`HEADER_BYTES`] of a datagram of `kind`.
fn header(kind: Kind, index: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = index.to_be_bytes();
    [VERSION, kind as u8, 0, 0, a, b, c, d]
}

/// The first [`DATA_HEADER_BYTES`] of a data datagram.
#[must_use]
pub fn data_header(receiver: u32, counter: u64) -> [u8; DATA_HEADER_BYTES] {
    let mut bytes = [0; DATA_HEADER_BYTES];
    let (front, back) = bytes.split_at_mut(HEADER_BYTES);
    front.copy_from_slice(&header(Kind::Data, receiver));
    back.copy_from_slice(&counter.to_be_bytes());
    bytes
}

/// Writes an initiation to the member whose key is in `mac` into `datagram`; returns its `mac1`.
pub fn write_initiation(datagram: &mut Vec<u8>, noise: &[u8], mac: &MacKey) -> [u8; MAC_BYTES] {
    write_handshake(datagram, header(Kind::Initiation, 0), noise, mac)
}

/// Writes a response to the handshake that the initiator calls `receiver` into `datagram`, behind
/// the ciphertext of the post-quantum half if there is one.
pub fn write_response(
    datagram: &mut Vec<u8>,
    receiver: u32,
    ciphertext: Option<&[u8; CIPHERTEXT_BYTES]>,
    noise: &[u8],
    mac: &MacKey,
) {
    let Some(ciphertext) = ciphertext else {
        write_handshake(datagram, header(Kind::Response, receiver), noise, mac);
        return;
    };
    let header = header(Kind::PostQuantumResponse, receiver);
    write_handshake(datagram, header, &[ciphertext, noise].concat(), mac);
}

fn write_handshake(
    datagram: &mut Vec<u8>,
    header: [u8; HEADER_BYTES],
    noise: &[u8],
    mac: &MacKey,
) -> [u8; MAC_BYTES] {
    datagram.clear();
    datagram.extend_from_slice(&header);
    datagram.extend_from_slice(noise);
    let mac1 = mac.mac1(datagram);
    datagram.extend_from_slice(&mac1);
    datagram.extend_from_slice(&[0; MAC_BYTES]);
    mac1
}

/// The two pieces of a handshake datagram, for a path that can't carry it whole. The first has as
/// many bytes of it as the second, or one more. `id` is random.
#[must_use]
pub fn fragments(datagram: &[u8], id: u32) -> [Vec<u8>; 2] {
    let (first, second) = datagram.split_at(datagram.len().div_ceil(2));
    let [version, kind, _, reserved, index @ ..] = header(Kind::Fragment, id);
    let piece = |number: u8, bytes: &[u8]| {
        let mut piece = vec![version, kind, number, reserved];
        piece.extend_from_slice(&index);
        piece.extend_from_slice(bytes);
        piece
    };
    [piece(0, first), piece(1, second)]
}

/// Writes a cookie reply into `datagram`.
pub fn write_cookie(datagram: &mut Vec<u8>, reply: &CookieReply) {
    datagram.clear();
    datagram.extend_from_slice(&header(Kind::Cookie, reply.answers));
    datagram.extend_from_slice(&reply.nonce);
    datagram.extend_from_slice(&reply.sealed);
}

/// Writes an unknown-session notice into `datagram`.
pub fn write_unknown_session(datagram: &mut Vec<u8>, index: u32, counter: u64) {
    datagram.clear();
    datagram.extend_from_slice(&header(Kind::UnknownSession, index));
    datagram.extend_from_slice(&counter.to_be_bytes());
}

/// Appends `router`'s notice about a frame with a datagram that starts with `inside`.
pub fn write_expired(notice: &mut Vec<u8>, inside: &[u8; HEADER_BYTES], router: &Ipv6Addr) {
    let [_, _, _, _, index @ ..] = *inside;
    notice.extend_from_slice(&header(Kind::Expired, u32::from_be_bytes(index)));
    notice.extend_from_slice(&router.octets());
}

/// The key of `mac1`, which follows from the *receiver's* public key. It is no secret: the MAC only
/// shows that the sender knows whom it writes to, so that a member is silent to scanners and spends
/// no Diffie-Hellman on noise.
#[derive(Debug, Clone)]
pub struct MacKey([u8; 32]);

impl MacKey {
    /// The key for handshake messages to `receiver`.
    #[must_use]
    pub fn of(receiver: &PublicKey) -> Self {
        Self(blake3::derive_key("Hypha mesh 1: mac1 of a handshake message", &receiver.0))
    }

    /// The first 16 bytes of BLAKE3 of `covered` under this key.
    #[must_use]
    pub fn mac1(&self, covered: &[u8]) -> [u8; MAC_BYTES] {
        let hash = blake3::keyed_hash(&self.0, covered);
        let mut mac = [0; MAC_BYTES];
        mac.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
        mac
    }

    /// Whether a handshake message was written to the member of this key.
    #[must_use]
    pub fn matches(&self, handshake: &Handshake<'_>) -> bool {
        self.mac1(handshake.covered) == handshake.mac1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacKey {
        MacKey::of(&PublicKey([9; 32]))
    }

    #[test]
    fn an_initiation_lies_where_the_drawing_says() {
        let mut bytes = vec![0xee; 3];
        write_initiation(&mut bytes, &[0xaa; 100], &mac());
        assert_eq!(bytes.len(), 8 + 100 + 32);
        assert_eq!(bytes[..8], [1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..108], [0xaa; 100]);
        assert_eq!(bytes[124..], [0; 16]);
        let Ok(Datagram::Initiation(handshake)) = parse(&bytes) else { panic!("no initiation") };
        assert_eq!(handshake.noise, [0xaa; 100]);
        assert!(mac().matches(&handshake));
        assert!(!MacKey::of(&PublicKey([8; 32])).matches(&handshake));
    }

    #[test]
    fn a_response_names_its_receiver() {
        let mut bytes = Vec::new();
        write_response(&mut bytes, 0x0102_0304, None, &[0xaa; 60], &mac());
        assert_eq!(bytes[..8], [1, 2, 0, 0, 1, 2, 3, 4]);
        let parsed = parse(&bytes);
        assert!(matches!(
            parsed,
            Ok(Datagram::Response { receiver: 0x0102_0304, ciphertext: None, .. })
        ));
    }

    #[test]
    fn a_ciphertext_lies_ahead_of_message_2() {
        let mut bytes = Vec::new();
        write_response(&mut bytes, 7, Some(&[0xcc; CIPHERTEXT_BYTES]), &[0xaa; 56], &mac());
        assert_eq!(bytes.len(), 1184);
        assert_eq!(bytes[..8], [1, 8, 0, 0, 0, 0, 0, 7]);
        assert_eq!((bytes[8], bytes[8 + 1087], bytes[8 + 1088]), (0xcc, 0xcc, 0xaa));
        let Ok(Datagram::Response { ciphertext, handshake, .. }) = parse(&bytes) else {
            panic!("no response")
        };
        assert_eq!(ciphertext, Some(&[0xcc; CIPHERTEXT_BYTES]));
        assert_eq!(handshake.noise, [0xaa; 56]);
        assert!(mac().matches(&handshake));
        bytes[9] ^= 1;
        let Ok(Datagram::Response { handshake, .. }) = parse(&bytes) else { panic!("no response") };
        assert!(!mac().matches(&handshake), "mac1 covers the ciphertext too");
        assert_eq!(parse(&bytes[..1000]), Err(WireError::Length(1000)));
    }

    #[test]
    fn a_fragment_says_which_half_it_is() {
        let whole: Vec<u8> = (0..=100).collect();
        let [first, second] = fragments(&whole, 0x0a0b_0c0d);
        assert_eq!(first[..9], [1, 7, 0, 0, 0x0a, 0x0b, 0x0c, 0x0d, 0]);
        assert_eq!(second[..9], [1, 7, 1, 0, 0x0a, 0x0b, 0x0c, 0x0d, 51]);
        let fragment = Fragment { id: 0x0a0b_0c0d, is_second: true, bytes: &whole[51..] };
        assert_eq!(parse(&second), Ok(Datagram::Fragment(fragment)));
        assert_eq!(parse(&first[..8]), Err(WireError::Length(8)));
        assert_eq!(parse(&[1, 7, 2, 0, 0, 0, 0, 0, 9]), Err(WireError::Reserved));
        assert_eq!(parse(&[1, 7, 0, 1, 0, 0, 0, 0, 9]), Err(WireError::Reserved));
        let long = [&first[..8], &[0; PIECE_BYTES_MAX + 1]].concat();
        assert_eq!(parse(&long), Err(WireError::Length(long.len())));
    }

    #[test]
    fn data_and_notices_lie_where_the_drawing_says() {
        let mut bytes = data_header(7, 9).to_vec();
        assert_eq!(bytes, [1, 3, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(parse(&bytes), Err(WireError::Length(16)));
        bytes.extend_from_slice(&[0; TAG_BYTES]);
        assert_eq!(parse(&bytes), Ok(Datagram::Data { receiver: 7, counter: 9 }));
        write_unknown_session(&mut bytes, 7, 9);
        assert_eq!(bytes, [1, 5, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(parse(&bytes), Ok(Datagram::UnknownSession { index: 7, counter: 9 }));
    }

    #[test]
    fn a_relayed_frame_lies_where_the_drawing_says() {
        let header = RelayHeader {
            hop_limit: 64,
            is_alternate: true,
            receiver: 0x0102_0304,
            counter: 9,
            destination: [0x0400, 0, 0, 0, 0, 0, 0, 1].into(),
            source: [0x0500, 0, 0, 0, 0, 0, 0, 2].into(),
        };
        let mut frame = header.to_bytes().to_vec();
        assert_eq!(frame[..16], [1, 6, 64, 1, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!((frame[16], frame[31], frame[32], frame[47]), (4, 1, 5, 2));
        assert_eq!(frame[48..], [0; 16]);
        assert_eq!(RelayHeader::parse(&frame), Err(WireError::Length(64)));
        frame.extend_from_slice(&data_header(7, 9));
        assert_eq!(parse(&frame), Ok(Datagram::Relayed(header)));
        frame[3] = 2;
        assert_eq!(parse(&frame), Err(WireError::Reserved));
        let mut notice = Vec::new();
        write_expired(&mut notice, &[1, 3, 0, 0, 0, 0, 0, 7], &header.source);
        assert_eq!(notice.len(), EXPIRED_BYTES);
        let expired = Datagram::Expired { index: 7, router: header.source };
        assert_eq!(parse(&notice), Ok(expired));
    }

    #[test]
    fn a_cookie_reply_lies_where_the_drawing_says() {
        let mut bytes = vec![0xee; 3];
        let answers = cookie_index(&[9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0]);
        let reply = CookieReply { answers, nonce: [0xaa; 24], sealed: [0xbb; 32] };
        write_cookie(&mut bytes, &reply);
        assert_eq!(bytes[..8], [1, 4, 0, 0, 9, 8, 7, 6]);
        assert_eq!((&bytes[8..32], &bytes[32..]), (&[0xaa; 24][..], &[0xbb; 32][..]));
        assert_eq!(parse(&bytes), Ok(Datagram::Cookie(reply)));
        assert_eq!(parse(&bytes[..63]), Err(WireError::Length(63)));
        bytes.push(0);
        assert_eq!(parse(&bytes), Err(WireError::Length(65)));
    }

    #[test]
    fn another_version_type_length_or_a_reserved_bit_is_refused() {
        assert_eq!(parse(&[]), Err(WireError::Length(0)));
        assert_eq!(parse(&[2; 40]), Err(WireError::Version(2)));
        assert_eq!(parse(&[1, 10, 0, 0, 0, 0, 0, 0]), Err(WireError::Kind(10)));
        assert_eq!(parse(&[1, 3, 0, 1, 0, 0, 0, 0]), Err(WireError::Reserved));
        let mut long = data_header(7, 9).to_vec();
        long.resize(DATAGRAM_BYTES_MAX + 1, 0);
        assert_eq!(parse(&long), Err(WireError::Length(DATAGRAM_BYTES_MAX + 1)));
        let mut initiation = Vec::new();
        write_initiation(&mut initiation, &[0; 100], &mac());
        initiation[7] = 1;
        assert_eq!(parse(&initiation), Err(WireError::Reserved));
    }
}
