//! The body of a data packet: AES-256-GCM under the X25519 secret of the two static keys.
//!
//! `encrypt(01 type 00 00, payload) | tag 16 | nonce 12`, no additional data. The key is the bare
//! Diffie-Hellman result, the same in both directions and forever: there is no forward secrecy, a
//! recorded packet opens again, and nonces are random. [`SharedSecret::open`] adds the check that
//! mycelium lacks: the packet inside must come from the address of the key that sealed it.

use std::net::Ipv6Addr;

use net_vdev::PublicKey;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::wire::BODY_BYTES_MAX;

/// What a body has besides its payload, in bytes.
pub const OVERHEAD_BYTES: usize = USER_HEADER_BYTES + TAG_BYTES + NONCE_LEN;

const USER_HEADER_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
const USER_VERSION: u8 = 1;
const IP_PACKET: u8 = 0;
const IPV6_HEADER_BYTES: usize = 40;

/// The private key of an edge. It is a type of its own so that no node's or workload's key, which
/// promises forward secrecy to its peers, is ever used in mycelium's way. Erased when dropped.
pub struct EdgeKey(Zeroizing<[u8; 32]>);

impl EdgeKey {
    /// Wraps the bytes of a key (mycelium's key file holds the same 32).
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let secret = StaticSecret::from(*self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// The secret that this key has in common with another.
    ///
    /// # Errors
    /// The other is no key: its secret would be the same with everybody.
    pub fn agree(&self, other: &PublicKey) -> Result<SharedSecret, SealError> {
        let secret = StaticSecret::from(*self.0);
        let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(other.0));
        if !shared.was_contributory() {
            return Err(SealError::WeakKey(*other));
        }
        let key =
            UnboundKey::new(&AES_256_GCM, shared.as_bytes()).map_err(|_| SealError::Cipher)?;
        Ok(SharedSecret { own: self.public().address(), peer: *other, key: LessSafeKey::new(key) })
    }
}

impl std::fmt::Debug for EdgeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EdgeKey(..)")
    }
}

/// Why no body could be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The peer's key has small order.
    #[error("{0} is no usable X25519 key")]
    WeakKey(PublicKey),
    /// The packet is longer than a body may be.
    #[error("a packet of {0} bytes is too long for mycelium")]
    Length(usize),
    /// The cipher refused.
    #[error("the packet could not be encrypted")]
    Cipher,
}

/// Why a body was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is too short or was not sealed with this secret.
    #[error("not sealed by the key that the sender's address belongs to")]
    Forged,
    /// It holds one of mycelium's messages or out-of-band ICMP, which this edge does not speak.
    #[error("a body of type {0}, which is no IPv6 packet")]
    Kind(u8),
    /// What is inside is no IPv6 packet of exactly that length.
    #[error("the body holds no whole IPv6 packet")]
    NoPacket,
    /// The packet inside claims another source than its sender's address.
    #[error("the packet inside claims to come from {0}, which is not its sender's address")]
    Source(Ipv6Addr),
    /// The packet inside is for somebody else.
    #[error("the packet inside is for {0}, which is not this edge's address")]
    Destination(Ipv6Addr),
}

/// What seals and opens packets between an edge and one other key.
pub struct SharedSecret {
    own: Ipv6Addr,
    peer: PublicKey,
    key: LessSafeKey,
}

impl std::fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedSecret(with {})", self.peer)
    }
}

impl SharedSecret {
    /// The body that holds an IPv6 packet. `nonce` is 12 fresh random bytes: a repeated one shows
    /// the difference of two packets and lets bodies be forged.
    ///
    /// # Errors
    /// The packet is too long.
    pub fn seal(&self, packet: &[u8], nonce: [u8; NONCE_LEN]) -> Result<Vec<u8>, SealError> {
        let length = packet.len() + OVERHEAD_BYTES;
        if length > BODY_BYTES_MAX {
            return Err(SealError::Length(packet.len()));
        }
        let mut body = Vec::with_capacity(length);
        body.extend([USER_VERSION, IP_PACKET, 0, 0]);
        body.extend(packet);
        let sealing = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(sealing, Aad::empty(), &mut body)
            .map_err(|_| SealError::Cipher)?;
        body.extend(nonce);
        Ok(body)
    }

    /// The IPv6 packet in a body: from the peer's own address, to the edge's own.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing of the body may be used.
    pub fn open(&self, body: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (sealed, nonce) = body.split_last_chunk::<NONCE_LEN>().ok_or(OpenError::Forged)?;
        let mut buffer = sealed.to_vec();
        let opened = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut buffer)
            .map_err(|_| OpenError::Forged)?;
        let (header, packet) =
            opened.split_first_chunk::<USER_HEADER_BYTES>().ok_or(OpenError::NoPacket)?;
        match header {
            [USER_VERSION, IP_PACKET, 0, 0] => {}
            [_, kind, ..] => return Err(OpenError::Kind(*kind)),
        }
        let (source, destination) = addresses(packet).ok_or(OpenError::NoPacket)?;
        if source != self.peer.address() {
            return Err(OpenError::Source(source));
        }
        if destination != self.own {
            return Err(OpenError::Destination(destination));
        }
        Ok(packet.to_vec())
    }
}

/// Source and destination of an IPv6 packet that is as long as it says.
pub(crate) fn addresses(packet: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let (header, payload) = packet.split_first_chunk::<IPV6_HEADER_BYTES>()?;
    let [first, _, _, _, high, low, _, _, addresses @ ..] = header;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if first >> 4 != 6 || payload.len() != length {
        return None;
    }
    let (source, rest) = addresses.split_first_chunk::<16>()?;
    Some(((*source).into(), (*rest.first_chunk::<16>()?).into()))
}
