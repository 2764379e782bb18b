//! Slot headers: each unit says what it is, so that a shard can be read without any other.

use crate::fields::{Reader, Writer, is_blank, u32_at};
use crate::geometry::{Geometry, SLOT_HEADER_BYTES, TAG_BYTES, UNIT_TAG_BYTES};
use crate::keys::{EpochKeys, KeyRing, Opening, Uuid};
use crate::superblock::{CODE_REED_SOLOMON, VERSION};

const MAGIC: [u8; 4] = *b"HSLT";
const FLAG_ZERO: u16 = 1;
const MAC_OFFSET: usize = SLOT_HEADER_BYTES - 36;
const CRC_OFFSET: usize = SLOT_HEADER_BYTES - 4;
/// Where a header holds the tags of its unit.
pub(crate) const TAGS_OFFSET: u64 = 128;

/// What a slot of one shard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotHeader {
    pub(crate) shard: u8,
    pub(crate) slot: u32,
    pub(crate) stripe: u64,
    /// The version of the stripe; each write of any stripe takes a new one.
    pub(crate) sequence: u64,
    /// The stripe was discarded: it reads as zeroes and has no ciphertext.
    pub(crate) zero: bool,
    /// The blocks of the stripe whose content was lost before this version was written.
    pub(crate) lost: u128,
    pub(crate) unit_crc: u32,
    pub(crate) unit_mac: [u8; TAG_BYTES],
    /// The unit's part of the GCM tags (parity of them on a parity shard).
    pub(crate) tags: [u8; UNIT_TAG_BYTES],
}

/// Why bytes are not a slot header of this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotError {
    /// Not a whole header.
    Corrupt,
    /// A whole header that wasn't written for this volume and place under its key.
    Forged,
}

impl SlotHeader {
    /// The bytes of this header, signed with `keys`.
    pub(crate) fn encode(
        &self,
        geometry: &Geometry,
        uuid: Uuid,
        keys: &EpochKeys,
    ) -> [u8; SLOT_HEADER_BYTES] {
        let mut bytes = [0; SLOT_HEADER_BYTES];
        let flags = if self.zero { FLAG_ZERO } else { 0 };
        Writer::new(&mut bytes)
            .put(&MAGIC)
            .put(&VERSION.to_le_bytes())
            .put(&[CODE_REED_SOLOMON, geometry.data_shards(), geometry.parity_shards()])
            .put(&[self.shard])
            .put(&flags.to_le_bytes())
            .put(&self.slot.to_le_bytes())
            .put(&uuid)
            .put(&self.stripe.to_le_bytes())
            .put(&self.sequence.to_le_bytes())
            .put(&keys.opening.epoch.to_le_bytes())
            .put(&keys.opening.salt)
            .put(&self.lost.to_le_bytes())
            .put(&self.unit_crc.to_le_bytes())
            .put(&[0; 4])
            .put(&self.unit_mac)
            .put(&self.tags);
        let (body, tail) = bytes.split_at_mut(MAC_OFFSET);
        Writer::new(tail).put(&keys.header_mac(body));
        let (body, tail) = bytes.split_at_mut(CRC_OFFSET);
        Writer::new(tail).put(&crc32c::crc32c(body).to_le_bytes());
        bytes
    }

    /// Reads the header of `slot` on `shard`; `None` if nothing was written there. With it comes
    /// the number of its keys in `keys`.
    pub(crate) fn parse(
        bytes: &[u8],
        (shard, slot): (u8, u32),
        geometry: &Geometry,
        keys: &mut KeyRing,
    ) -> Result<Option<(Self, u32)>, SlotError> {
        if is_blank(bytes) {
            return Ok(None);
        }
        let body = bytes.get(..MAC_OFFSET).ok_or(SlotError::Corrupt)?;
        let mac = bytes.get(MAC_OFFSET..CRC_OFFSET).ok_or(SlotError::Corrupt)?;
        let crc = crc32c::crc32c(bytes.get(..CRC_OFFSET).unwrap_or_default());
        if !body.starts_with(&MAGIC) || u32_at(bytes, CRC_OFFSET) != Some(crc) {
            return Err(SlotError::Corrupt);
        }
        let (header, opening) = Self::read(body, geometry, keys.uuid()).ok_or(SlotError::Forged)?;
        if (header.shard, header.slot) != (shard, slot) || header.stripe >= geometry.stripes() {
            return Err(SlotError::Forged);
        }
        let index = keys.add_if(opening, |keys| keys.header_is_authentic(body, mac));
        index.map(|index| Some((header, index))).ok_or(SlotError::Forged)
    }

    fn read(body: &[u8], geometry: &Geometry, uuid: Uuid) -> Option<(Self, Opening)> {
        let mut fields = Reader::new(body.get(MAGIC.len()..)?);
        let version = fields.u16()?;
        let [code, data_shards, parity_shards, shard] = fields.bytes()?;
        let flags = fields.u16()?;
        let slot = fields.u32()?;
        let ours = version == VERSION
            && code == CODE_REED_SOLOMON
            && data_shards == geometry.data_shards()
            && parity_shards == geometry.parity_shards()
            && flags & !FLAG_ZERO == 0
            && fields.bytes()? == uuid;
        let stripe = fields.u64()?;
        let sequence = fields.u64()?;
        let opening = Opening { epoch: fields.u64()?, salt: fields.bytes()? };
        let lost = fields.u128()?;
        let unit_crc = fields.u32()?;
        fields.u32()?;
        let unit_mac = fields.bytes()?;
        let tags = fields.bytes()?;
        let zero = flags & FLAG_ZERO != 0;
        let header = Self { shard, slot, stripe, sequence, zero, lost, unit_crc, unit_mac, tags };
        ours.then_some((header, opening))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::VolumeKey;

    const OPENING: Opening = Opening { epoch: 3, salt: [7; 32] };

    fn sample() -> SlotHeader {
        SlotHeader {
            shard: 1,
            slot: 17,
            stripe: 3,
            sequence: 99,
            zero: false,
            lost: 0b1010,
            unit_crc: 0xdead_beef,
            unit_mac: [5; 16],
            tags: [6; 64],
        }
    }

    fn encoded() -> ([u8; SLOT_HEADER_BYTES], Geometry, KeyRing) {
        let geometry = Geometry::new(2, 1, 1 << 20).unwrap();
        let mut keys = KeyRing::new(&VolumeKey::new(&[9; 32]), [1; 16]);
        let index = keys.add(OPENING);
        let bytes = sample().encode(&geometry, [1; 16], keys.get(index).unwrap());
        (bytes, geometry, keys)
    }

    #[test]
    fn a_header_opens_only_in_its_own_place_and_volume() {
        let (bytes, geometry, mut keys) = encoded();
        let parse = |place, keys: &mut KeyRing| SlotHeader::parse(&bytes, place, &geometry, keys);
        assert_eq!(parse((1, 17), &mut keys), Ok(Some((sample(), 0))));
        assert_eq!(parse((1, 18), &mut keys), Err(SlotError::Forged));
        assert_eq!(parse((2, 17), &mut keys), Err(SlotError::Forged));
        let mut other_volume = KeyRing::new(&VolumeKey::new(&[9; 32]), [2; 16]);
        assert_eq!(parse((1, 17), &mut other_volume), Err(SlotError::Forged));
        let mut other_key = KeyRing::new(&VolumeKey::new(&[8; 32]), [1; 16]);
        assert_eq!(parse((1, 17), &mut other_key), Err(SlotError::Forged));
    }

    #[test]
    fn an_unwritten_header_is_not_an_error() {
        let (_, geometry, mut keys) = encoded();
        assert_eq!(SlotHeader::parse(&[0; 256], (1, 17), &geometry, &mut keys), Ok(None));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_detected(bit in 0usize..SLOT_HEADER_BYTES * 8) {
            let (mut bytes, geometry, mut keys) = encoded();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SlotHeader::parse(&bytes, (1, 17), &geometry, &mut keys).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(1u8.., 0..300)) {
            let (_, geometry, mut keys) = encoded();
            prop_assert!(SlotHeader::parse(&bytes, (1, 17), &geometry, &mut keys)
                .is_ok_and(|header| header.is_none()) == bytes.is_empty());
        }
    }
}
