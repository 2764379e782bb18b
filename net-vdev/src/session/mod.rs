//! An end-to-end session between two members: the keys of one handshake, one per direction.
//!
//! * [`handshake`]: `Noise_IKpsk2_25519_ChaChaPoly_SHA256`, which gives the keys.
//! * [`post_quantum`]: ML-KEM-768 beside it, for the secrecy of what is recorded today.
//! * [`hop`]: the tags on headers of relayed frames, under keys of their own.
//! * [`Session`]: seals and opens data datagrams in place with the cipher that both ends chose
//!   inside the handshake. Counters are nonces: a counter is used once per key, a packet is taken
//!   once per counter.
//!
//! `ring` does not erase the key schedules that it holds when they are dropped; everything that
//! this module itself holds of a key is erased.

pub mod handshake;
pub mod hop;
pub mod post_quantum;
mod window;

use ring::aead::{self, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};

pub use handshake::CipherSupport;
use handshake::{Cipher, Keys};
use hop::Hop;
pub use post_quantum::PostQuantum;
pub use window::WINDOW_PACKETS;
use window::Window;

use crate::wire::{self, DATA_HEADER_BYTES, TAG_BYTES};

/// After so many nanoseconds a session is replaced when its initiator next sends.
pub const REKEY_AFTER_NS: u64 = 120_000_000_000;
/// After so many nanoseconds a session is dead, whatever happens; its keys are dropped.
pub const REJECT_AFTER_NS: u64 = 180_000_000_000;
/// After so many packets a session is replaced.
pub const REKEY_AFTER_PACKETS: u64 = 1 << 40;
/// A counter from here on is never used: 2^41 packets of 1400 bytes under one AES-256-GCM key leave
/// an attacker an advantage of about 2^-34.
pub const REJECT_AFTER_PACKETS: u64 = 1 << 41;

/// Why a data datagram could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its counter was seen before, or is too far behind the newest.
    #[error("replayed, or more than {WINDOW_PACKETS} packets late")]
    Replayed,
    /// Its tag does not verify.
    #[error("forged or damaged")]
    Forged,
}

/// The transport state after one handshake.
pub struct Session {
    /// The index that this side gave the session; incoming data names it.
    pub(crate) local: u32,
    /// The index that the peer gave the session; outgoing data names it.
    pub(crate) remote: u32,
    /// When the handshake ended on this side.
    pub(crate) created_ns: u64,
    /// Whether this side sent message 1.
    pub(crate) initiator: bool,
    /// Whether the peer takes packets whose checksum is open.
    pub(crate) open_checksums: bool,
    seal: LessSafeKey,
    open: LessSafeKey,
    next_counter: u64,
    window: Window,
    hop: Hop,
}

impl Session {
    /// A session with the keys of a handshake; `None` if `ring` refuses a key of 32 bytes, which
    /// it does not.
    #[must_use]
    pub fn new(keys: &Keys, local: u32, now_ns: u64) -> Option<Self> {
        let algorithm = algorithm(keys.cipher);
        let key = |bytes: &[u8]| UnboundKey::new(algorithm, bytes).ok().map(LessSafeKey::new);
        Some(Self {
            local,
            remote: keys.remote_index,
            created_ns: now_ns,
            initiator: keys.initiator,
            open_checksums: keys.open_checksums,
            seal: key(keys.send.as_slice())?,
            open: key(keys.receive.as_slice())?,
            next_counter: 0,
            window: Window::new(),
            hop: Hop::new(keys)?,
        })
    }

    /// Seals a data datagram in place: its first [`DATA_HEADER_BYTES`] are room for the header, its
    /// last [`TAG_BYTES`] room for the tag, what is between is the packet. False if the session has
    /// sent all it may.
    pub fn seal(&mut self, datagram: &mut [u8]) -> bool {
        let counter = self.next_counter;
        if counter >= REJECT_AFTER_PACKETS {
            return false;
        }
        let header = wire::data_header(self.remote, counter);
        let Some((front, rest)) = datagram.split_first_chunk_mut::<DATA_HEADER_BYTES>() else {
            return false;
        };
        let Some((packet, tag_room)) = rest.split_last_chunk_mut::<TAG_BYTES>() else {
            return false;
        };
        *front = header;
        // The counter is burnt before the key is used: whatever happens next, no nonce recurs.
        self.next_counter = counter + 1;
        let nonce = nonce(counter);
        let Ok(tag) = self.seal.seal_in_place_separate_tag(nonce, Aad::from(header), packet) else {
            return false;
        };
        tag_room.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        true
    }

    /// Opens a data datagram of this session in place; returns the packet, and whether it is the
    /// newest so far.
    ///
    /// # Errors
    /// [`OpenError`] if it does not verify or its counter was seen before.
    pub fn open<'a>(
        &mut self,
        counter: u64,
        datagram: &'a mut [u8],
    ) -> Result<(&'a mut [u8], bool), OpenError> {
        if !self.window.admits(counter) {
            return Err(OpenError::Replayed);
        }
        let (header, sealed) =
            datagram.split_first_chunk_mut::<DATA_HEADER_BYTES>().ok_or(OpenError::Forged)?;
        let packet = self
            .open
            .open_in_place(nonce(counter), Aad::from(*header), sealed)
            .map_err(|_| OpenError::Forged)?;
        let newest = self.window.is_newest(counter);
        self.window.insert(counter);
        Ok((packet, newest))
    }

    /// Whether what the peer sends on it is still taken at `now_ns`.
    pub(crate) fn is_alive(&self, now_ns: u64) -> bool {
        now_ns < self.expires_ns() && self.most_sent() < REJECT_AFTER_PACKETS
    }

    /// When its keys are dropped.
    pub(crate) fn expires_ns(&self) -> u64 {
        self.created_ns.saturating_add(REJECT_AFTER_NS)
    }

    /// Whether this side may still send on it at `now_ns`.
    pub(crate) fn may_send(&self, now_ns: u64) -> bool {
        now_ns < self.sends_until_ns() && self.most_sent() < REJECT_AFTER_PACKETS
    }

    /// When this side stops to send on it: so much before the peer drops its keys that what is under
    /// way then still arrives. The responder's session is older by up to a round trip.
    pub(crate) fn sends_until_ns(&self) -> u64 {
        const UNDER_WAY_NS: u64 = 5_000_000_000;
        self.expires_ns().saturating_sub(UNDER_WAY_NS)
    }

    /// Whether this side should start a new handshake before it sends on. The responder waits
    /// longer, so that normally only one side does.
    pub(crate) fn wants_rekey(&self, now_ns: u64) -> bool {
        const RESPONDER_PATIENCE_NS: u64 = 10_000_000_000;
        let patience = if self.initiator { 0 } else { RESPONDER_PATIENCE_NS };
        now_ns.saturating_sub(self.created_ns) >= REKEY_AFTER_NS + patience
            || self.most_sent() >= REKEY_AFTER_PACKETS
    }

    /// How often the key was used that was used most.
    fn most_sent(&self) -> u64 {
        self.next_counter.max(self.hop.sent())
    }

    /// Whether this side sent a packet with this counter not long ago.
    pub(crate) fn sent_recently(&self, counter: u64) -> bool {
        counter < self.next_counter && self.next_counter - counter <= WINDOW_PACKETS
    }
}

fn algorithm(cipher: Cipher) -> &'static Algorithm {
    match cipher {
        Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        Cipher::Aes256Gcm => &aead::AES_256_GCM,
    }
}

/// 32 zero bits, then the counter, big-endian: for both ciphers.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    let (_, low) = bytes.split_at_mut(4);
    low.copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

const _: () = assert!(TAG_BYTES == 16);

#[cfg(test)]
mod tests;
