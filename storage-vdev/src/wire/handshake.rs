//! The handshake: `Noise_IK_25519_AESGCM_SHA256`, one message each way.
//!
//! The client knows the node's static key (the volume's list of nodes pins it) and names the store
//! inside the encrypted first message; the node learns the client's static key. Both payloads and
//! the protocol's version are part of the handshake's hash, which capabilities are bound to.
//!
//! ```text
//! client                                            node
//!   initiate() ── hello ‖ e, es, s, ss, {store} ───► accept()
//!   finish()   ◄── hello ‖ e, ee, se, {verdict} ────
//! ```

use std::cmp::Ordering;

use noise_ring::Primitives;
use snow::{Builder, HandshakeState};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The Noise protocol name.
pub const NOISE_NAME: &str = "Noise_IK_25519_AESGCM_SHA256";
/// The version of the protocol.
pub const VERSION: u16 = 1;
/// What both directions begin with.
pub const MAGIC: [u8; 4] = *b"HYSP";
/// The bytes of a hello: magic, version, length of the Noise message behind it.
pub const HELLO_BYTES: usize = 8;
/// The most bytes of a store's name.
pub const STORE_NAME_BYTES_MAX: usize = 64;
/// The most bytes of a Noise message of either kind.
pub const MESSAGE_BYTES_MAX: usize = 256;

const PROLOGUE: &[u8] = b"Hypha shard protocol 1";
/// e, s with its tag, the payload's tag.
const OFFER_OVERHEAD: usize = 32 + 48 + 16;
/// e and the payload's tag.
const ANSWER_OVERHEAD: usize = 32 + 16;
const VERDICT_BYTES: usize = 16;

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// What came is not a hello of this protocol.
    #[error("the other end doesn't speak the shard protocol")]
    NotShards,
    /// It speaks another version.
    #[error("the other end speaks version {0} of the shard protocol, this end version {VERSION}")]
    Version(u16),
    /// The message is damaged, forged, for another node, or under a key of small order.
    #[error("the handshake does not verify: not the node whose key is pinned, or damaged")]
    Forged,
    /// It verifies but makes no sense.
    #[error("the handshake is malformed")]
    Malformed,
    /// The node has no store of this name.
    #[error("the node has no store of this name")]
    NoSuchStore,
    /// The node takes no more connections now.
    #[error("the node is busy")]
    Busy,
}

/// A static X25519 private key (RFC 7748): a node's own, or a client's. Erased when dropped, never
/// shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NodeKey([u8; 32]);

impl NodeKey {
    /// Wraps the 32 bytes of a key; X25519 clamps them at each use.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public half, by which others pin this end.
    #[must_use]
    pub fn public(&self) -> NodePublicKey {
        let secret = StaticSecret::from(self.0);
        NodePublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

/// A static X25519 public key: what an end of a session is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePublicKey(pub [u8; 32]);

impl std::fmt::Display for NodePublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for NodePublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodePublicKey({self})")
    }
}

/// What a node answers to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The session begins.
    Welcome,
    /// There is no store of this name.
    NoSuchStore,
    /// No more connections now.
    Busy,
}

impl Verdict {
    fn to_bytes(self) -> [u8; VERDICT_BYTES] {
        let code = match self {
            Self::Welcome => 0,
            Self::NoSuchStore => 1,
            Self::Busy => 2,
        };
        u128::to_le_bytes(code)
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        match u128::from_le_bytes(payload.try_into().ok()?) {
            0 => Some(Self::Welcome),
            1 => Some(Self::NoSuchStore),
            2 => Some(Self::Busy),
            _ => None,
        }
    }
}

/// What a finished handshake leaves.
pub struct Keys {
    /// The key for what this side sends. Erased when dropped.
    pub send: Zeroizing<[u8; 32]>,
    /// The key for what the other side sends. Erased when dropped.
    pub receive: Zeroizing<[u8; 32]>,
    /// The handshake's hash: the same at both ends of this session and in no other.
    pub binding: [u8; 32],
}

/// An initiation under way.
pub struct Pending {
    state: Box<HandshakeState>,
}

/// Starts a handshake with the node `peer` for its store `store`; returns the state and the bytes to
/// send. `seed` is fresh randomness.
///
/// # Errors
/// [`HandshakeError::Malformed`] if the name is empty or too long, [`HandshakeError::Forged`] if
/// `peer` is a key of small order.
pub fn initiate(
    identity: &NodeKey,
    peer: &NodePublicKey,
    store: &str,
    seed: [u8; 32],
) -> Result<(Pending, Vec<u8>), HandshakeError> {
    if store.is_empty() || store.len() > STORE_NAME_BYTES_MAX {
        return Err(HandshakeError::Malformed);
    }
    let state = builder(seed)
        .and_then(|builder| builder.local_private_key(&identity.0))
        .and_then(|builder| builder.remote_public_key(&peer.0))
        .and_then(Builder::build_initiator);
    let mut state = state.map_err(|_| HandshakeError::Forged)?;
    let message = write(&mut state, store.as_bytes(), OFFER_OVERHEAD)?;
    Ok((Pending { state: Box::new(state) }, message))
}

impl Pending {
    /// Takes the node's Noise message, which followed its hello.
    ///
    /// # Errors
    /// [`HandshakeError`] if it is not the pinned node's answer to this very initiation, or says no.
    pub fn finish(mut self, message: &[u8]) -> Result<Keys, HandshakeError> {
        let mut payload = [0; MESSAGE_BYTES_MAX];
        let payload = read(&mut self.state, message, &mut payload)?;
        match Verdict::parse(payload).ok_or(HandshakeError::Malformed)? {
            Verdict::Welcome => Ok(split(&mut self.state, true)),
            Verdict::NoSuchStore => Err(HandshakeError::NoSuchStore),
            Verdict::Busy => Err(HandshakeError::Busy),
        }
    }
}

/// A client's first message after it verified.
pub struct Received {
    /// The client's static key. Proven only by its first sealed frame: until then the message may
    /// be a replay.
    pub peer: NodePublicKey,
    /// The store that it wants.
    pub store: String,
    state: Box<HandshakeState>,
}

/// Reads a client's Noise message, which followed its hello. `seed` is fresh randomness.
///
/// # Errors
/// [`HandshakeError`] if it is not for `identity`, or names no store.
pub fn receive(
    identity: &NodeKey,
    message: &[u8],
    seed: [u8; 32],
) -> Result<Received, HandshakeError> {
    let state = builder(seed)
        .and_then(|builder| builder.local_private_key(&identity.0))
        .and_then(Builder::build_responder);
    let mut state = state.map_err(|_| HandshakeError::Forged)?;
    let mut payload = [0; MESSAGE_BYTES_MAX];
    let payload = read(&mut state, message, &mut payload)?;
    let name = std::str::from_utf8(payload).map_err(|_| HandshakeError::Malformed)?;
    if name.is_empty() || name.len() > STORE_NAME_BYTES_MAX {
        return Err(HandshakeError::Malformed);
    }
    let peer = state.get_remote_static().and_then(|key| key.try_into().ok());
    let peer = NodePublicKey(peer.ok_or(HandshakeError::Forged)?);
    Ok(Received { peer, store: name.to_owned(), state: Box::new(state) })
}

impl Received {
    /// Answers; returns the bytes to send, and the keys (of use only after a welcome).
    ///
    /// # Errors
    /// [`HandshakeError::Forged`] if the client's keys are of small order.
    pub fn answer(mut self, verdict: Verdict) -> Result<(Vec<u8>, Keys), HandshakeError> {
        let message = write(&mut self.state, &verdict.to_bytes(), ANSWER_OVERHEAD)?;
        Ok((message, split(&mut self.state, false)))
    }
}

/// A hello in front of a Noise message of `len` bytes; 0 tells only the version.
#[must_use]
pub fn hello(len: u16) -> [u8; HELLO_BYTES] {
    let [m0, m1, m2, m3] = MAGIC;
    let ([v0, v1], [l0, l1]) = (VERSION.to_le_bytes(), len.to_le_bytes());
    [m0, m1, m2, m3, v0, v1, l0, l1]
}

/// How many bytes of Noise message follow this hello.
///
/// # Errors
/// [`HandshakeError::NotShards`], [`HandshakeError::Version`], or [`HandshakeError::Malformed`] if
/// the message would be empty or too long.
pub fn parse_hello(bytes: [u8; HELLO_BYTES]) -> Result<usize, HandshakeError> {
    let [m0, m1, m2, m3, v0, v1, l0, l1] = bytes;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(HandshakeError::NotShards);
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(HandshakeError::Version(version));
    }
    match usize::from(u16::from_le_bytes([l0, l1])) {
        len @ 1..=MESSAGE_BYTES_MAX => Ok(len),
        _ => Err(HandshakeError::Malformed),
    }
}

/// Collects a hello and the Noise message behind it from a stream.
#[derive(Debug, Default)]
pub struct HelloReader {
    buffer: Vec<u8>,
}

impl HelloReader {
    /// Takes bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        // One byte more than may be there tells that there was too much.
        let room = (HELLO_BYTES + MESSAGE_BYTES_MAX + 1).saturating_sub(self.buffer.len());
        self.buffer.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    /// The Noise message, once it is there whole.
    ///
    /// # Errors
    /// As [`parse_hello`]; also [`HandshakeError::Malformed`] if more follows: neither end may send
    /// before it has read the other's message.
    pub fn message(&self) -> Result<Option<&[u8]>, HandshakeError> {
        let Some((hello, message)) = self.buffer.split_first_chunk::<HELLO_BYTES>() else {
            return if MAGIC.iter().zip(&self.buffer).all(|(want, have)| want == have) {
                Ok(None)
            } else {
                Err(HandshakeError::NotShards)
            };
        };
        match message.len().cmp(&parse_hello(*hello)?) {
            Ordering::Less => Ok(None),
            Ordering::Equal => Ok(Some(message)),
            Ordering::Greater => Err(HandshakeError::Malformed),
        }
    }
}

fn builder<'a>(seed: [u8; 32]) -> Result<Builder<'a>, snow::Error> {
    Builder::with_resolver(NOISE_NAME.parse()?, Box::new(Primitives::new(seed))).prologue(PROLOGUE)
}

/// A hello and the next Noise message behind it.
fn write(
    state: &mut HandshakeState,
    payload: &[u8],
    overhead: usize,
) -> Result<Vec<u8>, HandshakeError> {
    let mut message = vec![0; overhead + payload.len()];
    let len = state.write_message(payload, &mut message).map_err(|_| HandshakeError::Forged)?;
    message.truncate(len);
    let len = u16::try_from(len).map_err(|_| HandshakeError::Malformed)?;
    Ok([&hello(len)[..], &message].concat())
}

fn read<'a>(
    state: &mut HandshakeState,
    message: &[u8],
    payload: &'a mut [u8],
) -> Result<&'a [u8], HandshakeError> {
    let len = state.read_message(message, payload).map_err(|_| HandshakeError::Forged)?;
    payload.get(..len).ok_or(HandshakeError::Forged)
}

fn split(state: &mut HandshakeState, initiator: bool) -> Keys {
    let (first, second) = state.dangerously_get_raw_split();
    let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
    let (send, receive) = if initiator { (first, second) } else { (second, first) };
    let binding = state.get_handshake_hash().first_chunk().copied().unwrap_or_default();
    Keys { send, receive, binding }
}

const _: () = assert!(OFFER_OVERHEAD + STORE_NAME_BYTES_MAX <= MESSAGE_BYTES_MAX);
const _: () = assert!(ANSWER_OVERHEAD + VERDICT_BYTES <= MESSAGE_BYTES_MAX);
