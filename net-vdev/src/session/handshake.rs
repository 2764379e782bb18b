//! The handshake: `Noise_IKpsk2_25519_ChaChaPoly_SHA256`, one message each way.
//!
//! The psk is 32 zero bytes until the post-quantum part comes; both payloads have a list of
//! extensions, so that it finds room. What the ends agree on (session indices, the transport
//! cipher) travels inside the encrypted payloads: nobody between them can change it, and a changed
//! message fails as a whole.
//!
//! ```text
//! initiator                                        responder
//!   initiate() ── e, es, s, ss, {Offer} ──────────► read()
//!   finish()   ◄── e, ee, se, psk, {Answer} ─────── accept()
//! ```

use noise_ring::Primitives;
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use crate::identity::{PrivateKey, PublicKey};

/// The Noise protocol name.
pub const NOISE_NAME: &str = "Noise_IKpsk2_25519_ChaChaPoly_SHA256";
/// The prologue that both sides hash: another protocol or version can't be mixed in.
pub const PROLOGUE: &[u8] = b"Hypha mesh 1";
/// The version of both payloads.
pub const PAYLOAD_VERSION: u8 = 1;
/// The bytes of an [`Offer`] without extensions.
pub const OFFER_BYTES: usize = 20;
/// The bytes of an answer, message 2's payload, without extensions.
pub const ANSWER_BYTES: usize = 8;
/// The largest payload with extensions: what fits the largest datagram in any message.
const PAYLOAD_BYTES_MAX: usize = 1400;

const NO_PSK: [u8; 32] = [0; 32];

/// Why a handshake message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Not for this member, damaged, forged, or under a key of small order.
    #[error("the message does not verify")]
    Forged,
    /// It verifies, but its payload is not one of this version.
    #[error("the payload is not one of version {PAYLOAD_VERSION}")]
    Payload,
    /// The responder chose a cipher that was not offered.
    #[error("the responder chose a cipher that was not offered")]
    Cipher,
}

/// A transport cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cipher {
    /// ChaCha20-Poly1305 (RFC 8439): every member can.
    ChaCha20Poly1305 = 1,
    /// AES-256-GCM: where both ends have the instructions.
    Aes256Gcm = 2,
}

/// Which transport ciphers a member is willing to use, besides ChaCha20-Poly1305.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CipherSupport {
    /// AES-256-GCM, because the processor has instructions for it.
    pub aes_256_gcm: bool,
}

impl CipherSupport {
    /// What this processor is good at.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        let aes_256_gcm = std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq");
        #[cfg(not(target_arch = "x86_64"))]
        let aes_256_gcm = false;
        Self { aes_256_gcm }
    }

    /// Bit *n* is the [`Cipher`] of number *n*.
    fn bits(self) -> u8 {
        1 << Cipher::ChaCha20Poly1305 as u8 | u8::from(self.aes_256_gcm) << Cipher::Aes256Gcm as u8
    }

    /// The best cipher that both this side and the offer have.
    fn choose(self, offer: Self) -> Cipher {
        if self.aes_256_gcm && offer.aes_256_gcm {
            Cipher::Aes256Gcm
        } else {
            Cipher::ChaCha20Poly1305
        }
    }
}

/// When an initiation was made, TAI64N-like: 2^62 + seconds since 1970, then nanoseconds. A
/// responder takes from each peer only initiations newer than all before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp([u8; 12]);

impl Timestamp {
    /// The timestamp of a number of nanoseconds since 1970.
    #[must_use]
    pub fn from_unix_ns(unix_ns: u64) -> Self {
        let (seconds, nanoseconds) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
        let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
        let mut bytes = [0; 12];
        let (high, low) = bytes.split_at_mut(8);
        high.copy_from_slice(&((1 << 62) + seconds).to_be_bytes());
        low.copy_from_slice(&nanoseconds.to_be_bytes());
        Self(bytes)
    }
}

/// The payload of message 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The transport ciphers that the initiator takes.
    pub ciphers: CipherSupport,
    /// The index that the initiator gives the session.
    pub index: u32,
    /// When the message was made.
    pub timestamp: Timestamp,
}

impl Offer {
    fn to_bytes(self) -> [u8; OFFER_BYTES] {
        let mut bytes = [0; OFFER_BYTES];
        let fields = [PAYLOAD_VERSION, self.ciphers.bits(), 0, 0];
        let content = fields.into_iter().chain(self.index.to_be_bytes()).chain(self.timestamp.0);
        bytes.iter_mut().zip(content).for_each(|(to, from)| *to = from);
        bytes
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let (fields, extensions) = payload.split_first_chunk::<OFFER_BYTES>()?;
        let [version, ciphers, 0, 0, rest @ ..] = fields else { return None };
        let (index, timestamp) = rest.split_first_chunk::<4>()?;
        let chacha = ciphers >> Cipher::ChaCha20Poly1305 as u8 & 1;
        if *version != PAYLOAD_VERSION || chacha == 0 || !extensions_are_optional(extensions) {
            return None;
        }
        Some(Self {
            ciphers: CipherSupport { aes_256_gcm: ciphers >> Cipher::Aes256Gcm as u8 & 1 == 1 },
            index: u32::from_be_bytes(*index),
            timestamp: Timestamp(timestamp.try_into().ok()?),
        })
    }
}

/// The payload of message 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    cipher: Cipher,
    index: u32,
}

impl Answer {
    fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        let [a, b, c, d] = self.index.to_be_bytes();
        [PAYLOAD_VERSION, self.cipher as u8, 0, 0, a, b, c, d]
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let (fields, extensions) = payload.split_first_chunk::<ANSWER_BYTES>()?;
        let [PAYLOAD_VERSION, cipher, 0, 0, index @ ..] = *fields else { return None };
        let cipher = match cipher {
            1 => Cipher::ChaCha20Poly1305,
            2 => Cipher::Aes256Gcm,
            _ => return None,
        };
        let index = u32::from_be_bytes(index);
        extensions_are_optional(extensions).then_some(Self { cipher, index })
    }
}

/// Walks a list of extensions (type u16, length u16, bytes). This version knows none; it passes
/// over optional ones, and refuses those that say they must be understood (types from 0x8000 on).
fn extensions_are_optional(mut list: &[u8]) -> bool {
    while !list.is_empty() {
        let Some(([kind, _, length @ ..], rest)) = list.split_first_chunk::<4>() else {
            return false;
        };
        let Some(rest) = rest.get(usize::from(u16::from_be_bytes(*length))..) else {
            return false;
        };
        if kind & 0x80 != 0 {
            return false;
        }
        list = rest;
    }
    true
}

/// What a finished handshake leaves: the keys of a session. Erased when dropped.
pub struct Keys {
    /// The key for what this side sends.
    pub send: Zeroizing<[u8; 32]>,
    /// The key for what the peer sends.
    pub receive: Zeroizing<[u8; 32]>,
    /// The cipher that both sides take.
    pub cipher: Cipher,
    /// The index that the peer gave the session.
    pub remote_index: u32,
    /// Whether this side sent message 1.
    pub initiator: bool,
}

/// An initiation under way.
pub struct Pending {
    state: Box<HandshakeState>,
    offered: CipherSupport,
}

/// Starts a handshake with `peer`; returns the state and Noise message 1.
///
/// # Errors
/// [`HandshakeError::Forged`] if `peer` is a key of small order.
pub fn initiate(
    identity: &PrivateKey,
    peer: &PublicKey,
    offer: Offer,
    seed: [u8; 32],
) -> Result<(Pending, Vec<u8>), HandshakeError> {
    let state = builder(seed)
        .and_then(|builder| builder.local_private_key(identity.expose()))
        .and_then(|builder| builder.remote_public_key(&peer.0))
        .and_then(Builder::build_initiator);
    let mut state = state.map_err(|_| HandshakeError::Forged)?;
    let message = write(&mut state, &offer.to_bytes())?;
    Ok((Pending { state: Box::new(state), offered: offer.ciphers }, message))
}

impl Pending {
    /// Takes Noise message 2. After an error the handshake still waits for the true one.
    ///
    /// # Errors
    /// [`HandshakeError`] if the message is not the peer's answer to this very initiation.
    pub fn finish(&mut self, message: &[u8]) -> Result<Keys, HandshakeError> {
        let mut payload = [0; PAYLOAD_BYTES_MAX];
        let payload = read(&mut self.state, message, &mut payload)?;
        let answer = Answer::parse(payload).ok_or(HandshakeError::Payload)?;
        if answer.cipher == Cipher::Aes256Gcm && !self.offered.aes_256_gcm {
            return Err(HandshakeError::Cipher);
        }
        Ok(split(&mut self.state, answer.cipher, answer.index, true))
    }
}

/// Message 1 after it verified: who sent it, and what it offers.
pub struct Received {
    /// The initiator's key.
    pub peer: PublicKey,
    /// What it offers.
    pub offer: Offer,
    state: Box<HandshakeState>,
}

/// Reads Noise message 1.
///
/// # Errors
/// [`HandshakeError`] if it is not for `identity` or its payload is not one of this version.
pub fn receive(
    identity: &PrivateKey,
    message: &[u8],
    seed: [u8; 32],
) -> Result<Received, HandshakeError> {
    let state = builder(seed)
        .and_then(|builder| builder.local_private_key(identity.expose()))
        .and_then(Builder::build_responder);
    let mut state = state.map_err(|_| HandshakeError::Forged)?;
    let mut payload = [0; PAYLOAD_BYTES_MAX];
    let payload = read(&mut state, message, &mut payload)?;
    let offer = Offer::parse(payload).ok_or(HandshakeError::Payload)?;
    let peer = state.get_remote_static().and_then(|key| key.try_into().ok());
    let peer = PublicKey(peer.ok_or(HandshakeError::Forged)?);
    Ok(Received { peer, offer, state: Box::new(state) })
}

impl Received {
    /// Answers with `index` for this side; returns Noise message 2 and the keys.
    ///
    /// # Errors
    /// [`HandshakeError::Forged`] if the initiator's keys are of small order.
    pub fn accept(
        mut self,
        ciphers: CipherSupport,
        index: u32,
    ) -> Result<(Vec<u8>, Keys), HandshakeError> {
        let cipher = ciphers.choose(self.offer.ciphers);
        let message = write(&mut self.state, &Answer { cipher, index }.to_bytes())?;
        Ok((message, split(&mut self.state, cipher, self.offer.index, false)))
    }
}

fn builder<'a>(seed: [u8; 32]) -> Result<Builder<'a>, snow::Error> {
    Builder::with_resolver(NOISE_NAME.parse()?, Box::new(Primitives::new(seed)))
        .psk(2, &NO_PSK)?
        .prologue(PROLOGUE)
}

fn write(state: &mut HandshakeState, payload: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    // The larger of the two: e, then s and its tag, then the payload and its tag.
    let mut message = vec![0; 32 + 48 + payload.len() + 16];
    let len = state.write_message(payload, &mut message).map_err(|_| HandshakeError::Forged)?;
    message.truncate(len);
    Ok(message)
}

fn read<'a>(
    state: &mut HandshakeState,
    message: &[u8],
    payload: &'a mut [u8],
) -> Result<&'a [u8], HandshakeError> {
    let len = state.read_message(message, payload).map_err(|_| HandshakeError::Forged)?;
    payload.get(..len).ok_or(HandshakeError::Forged)
}

fn split(state: &mut HandshakeState, cipher: Cipher, remote_index: u32, initiator: bool) -> Keys {
    let (first, second) = state.dangerously_get_raw_split();
    let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
    let (send, receive) = if initiator { (first, second) } else { (second, first) };
    Keys { send, receive, cipher, remote_index, initiator }
}

#[cfg(test)]
mod tests;
