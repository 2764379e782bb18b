//! The handshake: `Noise_IKpsk2_25519_ChaChaPoly_SHA256`, one message each way, and ML-KEM-768
//! beside it.
//!
//! What the ends agree on (session indices, the transport cipher, the post-quantum half) travels
//! inside the encrypted payloads or decides the psk: nobody between them can change it, and a
//! changed message fails as a whole. Both payloads have a list of extensions; an offer's extension 1
//! is the initiator's encapsulation key. Without it the psk is 32 zero bytes.
//!
//! ```text
//! initiator                                              responder
//!   initiate() ── e, es, s, ss, {Offer, ek} ────────────► receive()
//!   finish()   ◄── ciphertext, e, ee, se, psk, {Answer} ── accept()
//! ```

use noise_ring::Primitives;
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::hop;
use super::post_quantum::{
    CIPHERTEXT_BYTES, ENCAPSULATION_KEY_BYTES, KeyPair, PostQuantum, Statics, encapsulate,
};
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

/// The type of the extension that holds an offer's encapsulation key.
const ENCAPSULATION_KEY_EXTENSION: u16 = 1;
/// The message whose end mixes the psk in.
const PSK_PLACE: u8 = 2;
/// The psk of a handshake without the post-quantum half.
const NO_PSK: [u8; 32] = [0; 32];

/// What the messages with and without the post-quantum half are long, so that no path is assumed
/// that can't carry them: a response of 1184 bytes needs no more than a piece of an initiation.
const _: () = assert!(OFFER_BYTES + 4 + ENCAPSULATION_KEY_BYTES <= PAYLOAD_BYTES_MAX);

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
    /// This member requires the post-quantum half, and the message has none.
    #[error("the peer does not do ML-KEM-768, which this member requires")]
    PostQuantum,
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

/// In an offer's byte of ciphers: its maker takes packets whose checksum is open. Readers that don't
/// know the bit pass over it.
const OFFERS_OPEN_CHECKSUMS: u8 = 1 << 3;

/// The payload of message 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The transport ciphers that the initiator takes.
    pub ciphers: CipherSupport,
    /// Whether it takes packets whose checksum is open (see [`crate::wire::OPEN_CHECKSUM`]).
    pub open_checksums: bool,
    /// The index that the initiator gives the session.
    pub index: u32,
    /// When the message was made.
    pub timestamp: Timestamp,
}

impl Offer {
    fn to_bytes(self) -> [u8; OFFER_BYTES] {
        let mut bytes = [0; OFFER_BYTES];
        let open_checksums = if self.open_checksums { OFFERS_OPEN_CHECKSUMS } else { 0 };
        let fields = [PAYLOAD_VERSION, self.ciphers.bits() | open_checksums, 0, 0];
        let content = fields.into_iter().chain(self.index.to_be_bytes()).chain(self.timestamp.0);
        bytes.iter_mut().zip(content).for_each(|(to, from)| *to = from);
        bytes
    }

    /// The offer, and its encapsulation key, if it has one.
    fn parse(payload: &[u8]) -> Option<(Self, Option<&[u8; ENCAPSULATION_KEY_BYTES]>)> {
        let (fields, extensions) = payload.split_first_chunk::<OFFER_BYTES>()?;
        let [version, ciphers, 0, 0, rest @ ..] = fields else { return None };
        let (index, timestamp) = rest.split_first_chunk::<4>()?;
        let chacha = ciphers >> Cipher::ChaCha20Poly1305 as u8 & 1;
        if *version != PAYLOAD_VERSION || chacha == 0 {
            return None;
        }
        let mut public = None;
        for extension in Extensions(extensions) {
            let (kind, bytes) = extension?;
            if kind == ENCAPSULATION_KEY_EXTENSION
                && public.replace(bytes.try_into().ok()?).is_some()
            {
                return None;
            }
        }
        let offer = Self {
            ciphers: CipherSupport { aes_256_gcm: ciphers >> Cipher::Aes256Gcm as u8 & 1 == 1 },
            open_checksums: ciphers & OFFERS_OPEN_CHECKSUMS != 0,
            index: u32::from_be_bytes(*index),
            timestamp: Timestamp(timestamp.try_into().ok()?),
        };
        Some((offer, public))
    }
}

/// The payload of message 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    cipher: Cipher,
    /// Whether both sides take open checksums.
    open_checksums: bool,
    index: u32,
}

impl Answer {
    fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        let [a, b, c, d] = self.index.to_be_bytes();
        [PAYLOAD_VERSION, self.cipher as u8, u8::from(self.open_checksums), 0, a, b, c, d]
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let (fields, extensions) = payload.split_first_chunk::<ANSWER_BYTES>()?;
        let [PAYLOAD_VERSION, cipher, open_checksums @ 0..=1, 0, index @ ..] = *fields else {
            return None;
        };
        let open_checksums = open_checksums == 1;
        let cipher = match cipher {
            1 => Cipher::ChaCha20Poly1305,
            2 => Cipher::Aes256Gcm,
            _ => return None,
        };
        let index = u32::from_be_bytes(index);
        let answer = Self { cipher, open_checksums, index };
        Extensions(extensions).all(|it| it.is_some()).then_some(answer)
    }
}

/// A list of extensions: type (u16), length (u16), bytes. Gives `None` once for what is no list, or
/// for an extension that says that it must be understood (types from 0x8000 on): there is none yet.
struct Extensions<'a>(&'a [u8]);

impl<'a> Iterator for Extensions<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let list = std::mem::take(&mut self.0);
        if list.is_empty() {
            return None;
        }
        let split = || {
            let (kind, rest) = list.split_first_chunk()?;
            let (length, rest) = rest.split_first_chunk()?;
            let (bytes, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            let kind = u16::from_be_bytes(*kind);
            (kind < 0x8000).then_some((kind, bytes, rest))
        };
        Some(split().map(|(kind, bytes, rest)| {
            self.0 = rest;
            (kind, bytes)
        }))
    }
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
    /// The key of the hop tags that this side writes (see [`super::hop`]).
    pub send_hop: Zeroizing<[u8; 32]>,
    /// The key of the hop tags that the peer writes.
    pub receive_hop: Zeroizing<[u8; 32]>,
    /// Whether the keys rest on ML-KEM-768 too.
    pub post_quantum: bool,
    /// Whether both sides take packets whose checksum is open (see [`crate::wire::OPEN_CHECKSUM`]).
    pub open_checksums: bool,
}

/// An initiation under way.
pub struct Pending {
    state: Box<HandshakeState>,
    offered: Offer,
    key_pair: KeyPair,
    statics: Statics,
    post_quantum: PostQuantum,
}

/// Starts a handshake with `peer`; returns the state and Noise message 1.
///
/// # Errors
/// [`HandshakeError::Forged`] if `peer` is a key of small order.
pub fn initiate(
    identity: &PrivateKey,
    peer: &PublicKey,
    offer: Offer,
    post_quantum: PostQuantum,
    seed: [u8; 32],
) -> Result<(Pending, Vec<u8>), HandshakeError> {
    let state = builder(seed)
        .and_then(|builder| builder.local_private_key(identity.expose()))
        .and_then(|builder| builder.remote_public_key(&peer.0))
        .and_then(Builder::build_initiator);
    let mut state = state.map_err(|_| HandshakeError::Forged)?;
    let key_pair = KeyPair::new(&seed);
    let mut payload = offer.to_bytes().to_vec();
    payload.extend_from_slice(&ENCAPSULATION_KEY_EXTENSION.to_be_bytes());
    payload.extend_from_slice(&(ENCAPSULATION_KEY_BYTES as u16).to_be_bytes());
    payload.extend_from_slice(key_pair.public());
    let message = write(&mut state, &payload)?;
    let statics = Statics { initiator: identity.public(), responder: *peer };
    let state = Box::new(state);
    Ok((Pending { state, offered: offer, key_pair, statics, post_quantum }, message))
}

impl Pending {
    /// Takes Noise message 2 and the ciphertext ahead of it, if there is one. After an error the
    /// handshake still waits for the true one.
    ///
    /// # Errors
    /// [`HandshakeError`] if the message is not the peer's answer to this very initiation.
    pub fn finish(
        &mut self,
        ciphertext: Option<&[u8; CIPHERTEXT_BYTES]>,
        message: &[u8],
    ) -> Result<Keys, HandshakeError> {
        let psk = match ciphertext {
            Some(ciphertext) => self.key_pair.psk(ciphertext, &self.statics),
            None if self.post_quantum == PostQuantum::Required => {
                return Err(HandshakeError::PostQuantum);
            }
            None => Some(Zeroizing::new(NO_PSK)),
        };
        let psk = psk.ok_or(HandshakeError::Forged)?;
        set_psk(&mut self.state, &psk)?;
        let mut payload = [0; PAYLOAD_BYTES_MAX];
        let payload = read(&mut self.state, message, &mut payload)?;
        let answer = Answer::parse(payload).ok_or(HandshakeError::Payload)?;
        if answer.cipher == Cipher::Aes256Gcm && !self.offered.ciphers.aes_256_gcm {
            return Err(HandshakeError::Cipher);
        }
        let agreed = Agreed {
            cipher: answer.cipher,
            remote_index: answer.index,
            initiator: true,
            post_quantum: ciphertext.is_some(),
            open_checksums: answer.open_checksums && self.offered.open_checksums,
        };
        split(&mut self.state, &agreed)
    }
}

/// Message 1 after it verified: who sent it, and what it offers.
pub struct Received {
    /// The initiator's key.
    pub peer: PublicKey,
    /// What it offers.
    pub offer: Offer,
    encapsulation_key: Option<Box<[u8; ENCAPSULATION_KEY_BYTES]>>,
    seed: Zeroizing<[u8; 32]>,
    statics: Statics,
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
    let (offer, encapsulation_key) = Offer::parse(payload).ok_or(HandshakeError::Payload)?;
    let peer = state.get_remote_static().and_then(|key| key.try_into().ok());
    let peer = PublicKey(peer.ok_or(HandshakeError::Forged)?);
    Ok(Received {
        peer,
        offer,
        encapsulation_key: encapsulation_key.map(|key| Box::new(*key)),
        seed: Zeroizing::new(seed),
        statics: Statics { initiator: peer, responder: identity.public() },
        state: Box::new(state),
    })
}

/// A responder's answer.
pub struct Accepted {
    /// What goes ahead of message 2 if the handshake has its post-quantum half.
    pub ciphertext: Option<Box<[u8; CIPHERTEXT_BYTES]>>,
    /// Noise message 2.
    pub message: Vec<u8>,
    /// The keys of the session.
    pub keys: Keys,
}

impl Received {
    /// Answers with `index` for this side.
    ///
    /// # Errors
    /// [`HandshakeError::PostQuantum`] if this side requires what the initiator does not offer;
    /// [`HandshakeError::Payload`] if what it offers is no encapsulation key;
    /// [`HandshakeError::Forged`] if its keys are of small order.
    pub fn accept(
        mut self,
        ciphers: CipherSupport,
        post_quantum: PostQuantum,
        index: u32,
    ) -> Result<Accepted, HandshakeError> {
        let mut ciphertext = None;
        if let Some(public) = &self.encapsulation_key {
            let encapsulated = encapsulate(public, &self.seed, &self.statics);
            let encapsulated = encapsulated.ok_or(HandshakeError::Payload)?;
            set_psk(&mut self.state, &encapsulated.psk)?;
            ciphertext = Some(encapsulated.ciphertext);
        } else if post_quantum == PostQuantum::Required {
            return Err(HandshakeError::PostQuantum);
        }
        let cipher = ciphers.choose(self.offer.ciphers);
        let open_checksums = self.offer.open_checksums;
        let answer = Answer { cipher, open_checksums, index };
        let message = write(&mut self.state, &answer.to_bytes())?;
        let agreed = Agreed {
            cipher,
            remote_index: self.offer.index,
            initiator: false,
            post_quantum: ciphertext.is_some(),
            open_checksums,
        };
        Ok(Accepted { ciphertext, message, keys: split(&mut self.state, &agreed)? })
    }
}

fn builder<'a>(seed: [u8; 32]) -> Result<Builder<'a>, snow::Error> {
    Builder::with_resolver(NOISE_NAME.parse()?, Box::new(Primitives::new(seed)))
        .psk(PSK_PLACE, &NO_PSK)?
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

fn set_psk(state: &mut HandshakeState, psk: &[u8; 32]) -> Result<(), HandshakeError> {
    state.set_psk(usize::from(PSK_PLACE), psk).map_err(|_| HandshakeError::Forged)
}

/// What both ends know at the end, besides the keys.
struct Agreed {
    cipher: Cipher,
    remote_index: u32,
    initiator: bool,
    post_quantum: bool,
    open_checksums: bool,
}

fn split(state: &mut HandshakeState, agreed: &Agreed) -> Result<Keys, HandshakeError> {
    let (first, second) = state.dangerously_get_raw_split();
    let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
    let Agreed { cipher, remote_index, initiator, post_quantum, open_checksums } = *agreed;
    let (send, receive) = if initiator { (first, second) } else { (second, first) };
    let send_hop = hop::derive_key(&send).ok_or(HandshakeError::Forged)?;
    let receive_hop = hop::derive_key(&receive).ok_or(HandshakeError::Forged)?;
    Ok(Keys {
        send,
        receive,
        cipher,
        remote_index,
        initiator,
        send_hop,
        receive_hop,
        post_quantum,
        open_checksums,
    })
}

#[cfg(test)]
mod tests;
