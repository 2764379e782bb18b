//! Sealing in place: 16 bytes of header in front of each packet, 16 of tag behind, as in
//! `docs/mesh-wire.md`. Keys are fixed: this is no session.

use std::error::Error;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

pub(crate) const HEADER_BYTES: usize = 16;
pub(crate) const TAG_BYTES: usize = 16;

/// One direction.
pub(crate) struct Direction {
    key: LessSafeKey,
    counter: u64,
}

impl Direction {
    pub(crate) fn new(key: u8) -> Result<Self, Box<dyn Error>> {
        let key = UnboundKey::new(&AES_256_GCM, &[key; 32]).map_err(|_| "no key")?;
        Ok(Self { key: LessSafeKey::new(key), counter: 0 })
    }

    /// Seals the packet that has room around it.
    pub(crate) fn seal(&mut self, datagram: &mut [u8]) -> Result<(), ring::error::Unspecified> {
        let refused = ring::error::Unspecified;
        let (header, rest) = datagram.split_first_chunk_mut::<HEADER_BYTES>().ok_or(refused)?;
        let (packet, place) = rest.split_last_chunk_mut::<TAG_BYTES>().ok_or(refused)?;
        self.counter += 1;
        *header = [1, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        header[8..].copy_from_slice(&self.counter.to_be_bytes());
        let tag =
            self.key.seal_in_place_separate_tag(nonce(self.counter), Aad::from(*header), packet)?;
        place.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens a datagram in place; returns the packet.
    pub(crate) fn open<'a>(
        &mut self,
        datagram: &'a mut [u8],
    ) -> Result<&'a [u8], ring::error::Unspecified> {
        let refused = ring::error::Unspecified;
        let (header, sealed) = datagram.split_first_chunk_mut::<HEADER_BYTES>().ok_or(refused)?;
        let counter = u64::from_be_bytes(*header.last_chunk().ok_or(refused)?);
        let packet = self.key.open_in_place(nonce(counter), Aad::from(*header), sealed)?;
        Ok(packet)
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}
