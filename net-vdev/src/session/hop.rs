//! The tag on the header of a relayed frame: it shows the next router that the frame comes from its
//! neighbour, unchanged and for the first time. What is inside is sealed from end to end already, so
//! nothing is encrypted here: the tag is the AEAD of an empty message with the header as additional
//! data.
//!
//! Each direction of a link's session has a key of its own for this, which follows from the key of
//! that direction, and a counter and a window of its own: frames of both kinds may overtake each
//! other.

use ring::aead::{Aad, LessSafeKey, Tag, UnboundKey};
use ring::hkdf;
use zeroize::Zeroizing;

use super::handshake::Keys;
use super::window::Window;
use super::{OpenError, REJECT_AFTER_PACKETS, Session, algorithm, nonce};
use crate::wire::{RELAY_COVERED_BYTES, RELAY_HEADER_BYTES, TAG_BYTES};

/// The key of hop tags that follows from the key of a direction; `None` if `ring` refuses to derive
/// 32 bytes, which it does not.
pub(super) fn derive_key(direction: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, direction)
        .expand(&[b"Hypha mesh 1: hop tags"], hkdf::HKDF_SHA256)
        .and_then(|output| output.fill(key.as_mut_slice()))
        .ok()?;
    Some(key)
}

/// Both directions of the hop tags of one session.
pub(super) struct Hop {
    seal: LessSafeKey,
    open: LessSafeKey,
    next_counter: u64,
    window: Window,
}

impl Hop {
    pub(super) fn new(keys: &Keys) -> Option<Self> {
        let algorithm = algorithm(keys.cipher);
        let key = |bytes: &[u8]| UnboundKey::new(algorithm, bytes).ok().map(LessSafeKey::new);
        Some(Self {
            seal: key(keys.send_hop.as_slice())?,
            open: key(keys.receive_hop.as_slice())?,
            next_counter: 0,
            window: Window::new(),
        })
    }

    /// How many tags were written.
    pub(super) fn sent(&self) -> u64 {
        self.next_counter
    }
}

impl Session {
    /// Writes the reader's index, the next hop counter and the tag into the header of a relayed
    /// frame; the tag covers the 48 bytes in front of it. False, and nothing is written, if the
    /// session has sent all it may.
    pub fn seal_hop(&mut self, header: &mut [u8; RELAY_HEADER_BYTES]) -> bool {
        let counter = self.hop.next_counter;
        if counter >= REJECT_AFTER_PACKETS {
            return false;
        }
        let mut covered = [0; RELAY_COVERED_BYTES];
        covered.copy_from_slice(&header[..RELAY_COVERED_BYTES]);
        covered[4..8].copy_from_slice(&self.remote.to_be_bytes());
        covered[8..16].copy_from_slice(&counter.to_be_bytes());
        // The counter is burnt before the key is used: whatever happens next, no nonce recurs.
        self.hop.next_counter = counter + 1;
        let sealed =
            self.hop.seal.seal_in_place_separate_tag(nonce(counter), Aad::from(covered), &mut []);
        let Ok(tag) = sealed else { return false };
        header[..RELAY_COVERED_BYTES].copy_from_slice(&covered);
        header[RELAY_COVERED_BYTES..].copy_from_slice(tag.as_ref());
        true
    }

    /// Checks the header of a relayed frame that names this session.
    ///
    /// # Errors
    /// [`OpenError`] if its tag does not verify or its hop counter was seen before.
    pub fn open_hop(&mut self, header: &[u8; RELAY_HEADER_BYTES]) -> Result<(), OpenError> {
        let (covered, tag) = header.split_last_chunk::<TAG_BYTES>().ok_or(OpenError::Forged)?;
        let mut counter = [0; 8];
        counter.copy_from_slice(&header[8..16]);
        let counter = u64::from_be_bytes(counter);
        if !self.hop.window.admits(counter) {
            return Err(OpenError::Replayed);
        }
        self.hop
            .open
            .open_in_place_separate_tag(
                nonce(counter),
                Aad::from(covered),
                Tag::from(*tag),
                &mut [],
                0..,
            )
            .map_err(|_| OpenError::Forged)?;
        self.hop.window.insert(counter);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
