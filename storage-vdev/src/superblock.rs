//! The superblock: what a shard file is part of, and the commit point of a checkpoint.
//!
//! A shard file starts with two superblocks; generation *g* is written to place *g mod 2*, so a
//! torn write leaves the generation before. Each field guards against something:
//!
//! * `uuid`, `shard`: a store that belongs to another volume or another place;
//! * `generation`, `opening`, `parent`: a store that was rolled back (see [`Superblock::follows`]);
//! * `committed`: slots that a crashed checkpoint wrote;
//! * `mapped`, `map_sum`: slot headers that vanished or came back on more stores than may be lost;
//! * `journal`: journal records from before the checkpoint;
//! * `journal_epoch_start`, `journal_epoch_tag`: journal records of a fork, from before the opening
//!   or after it;
//! * `members`: a store that was left behind while the volume went on without it.

use crate::fields::{Reader, Writer, is_blank, u32_at};
use crate::geometry::{Geometry, SUPERBLOCK_BYTES, TAG_BYTES};
use crate::keys::{Opening, Uuid, VolumeKey, keys_for};

const MAGIC: [u8; 8] = *b"HYPHAVOL";
/// The version of the whole on-disk format.
pub(crate) const VERSION: u16 = 1;
/// Reed-Solomon over GF(2^8) mod 0x11D with the matrix `V * inv(V_top)`.
pub(crate) const CODE_REED_SOLOMON: u8 = 1;
const MAC_OFFSET: usize = SUPERBLOCK_BYTES - 36;
const CRC_OFFSET: usize = SUPERBLOCK_BYTES - 4;

/// Where the journal's live part starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JournalAnchor {
    /// The offset of the oldest live record in the journal file.
    pub(crate) offset: u64,
    /// Its sequence number.
    pub(crate) sequence: u64,
    /// The tag of the record before it.
    pub(crate) tag: [u8; TAG_BYTES],
}

/// What a volume's shard files agree on. All copies of a generation differ only in `shard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) geometry: Geometry,
    pub(crate) uuid: Uuid,
    pub(crate) shard: u8,
    /// Counts superblocks over all openings.
    pub(crate) generation: u64,
    /// Who wrote it.
    pub(crate) opening: Opening,
    /// The opening before, and the generation that this opening found.
    pub(crate) parent: Opening,
    pub(crate) parent_generation: u64,
    /// Stripe sequence numbers up to this one are committed.
    pub(crate) committed: u64,
    /// How many stripes have a slot.
    pub(crate) mapped: u64,
    /// The sum over all of them ([`crate::map::StripeMap::sum`]).
    pub(crate) map_sum: u128,
    pub(crate) journal: JournalAnchor,
    /// The first journal record that is of `opening`.
    pub(crate) journal_epoch_start: u64,
    /// The tag of the record before that one.
    pub(crate) journal_epoch_tag: [u8; TAG_BYTES],
    /// The shards that took part when this was written.
    pub(crate) members: u32,
}

/// Why bytes are not a superblock of this volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SuperblockError {
    /// Nothing was ever written there.
    Blank,
    /// Not a whole superblock.
    Corrupt,
    /// A whole superblock of another version of the format.
    Version(u16),
    /// A whole superblock that this key didn't sign.
    Forged,
}

impl Superblock {
    /// The bytes of this superblock on its shard.
    pub(crate) fn encode(&self, volume_key: &VolumeKey) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        Writer::new(&mut bytes)
            .put(&MAGIC)
            .put(&VERSION.to_le_bytes())
            .put(&[CODE_REED_SOLOMON, self.geometry.data_shards(), self.geometry.parity_shards()])
            .put(&[self.shard, 0, 0])
            .put(&self.uuid)
            .put(&self.geometry.size_bytes().to_le_bytes())
            .put(&self.geometry.journal_bytes().to_le_bytes())
            .put(&self.generation.to_le_bytes())
            .put(&self.opening.epoch.to_le_bytes())
            .put(&self.opening.salt)
            .put(&self.parent.epoch.to_le_bytes())
            .put(&self.parent.salt)
            .put(&self.parent_generation.to_le_bytes())
            .put(&self.committed.to_le_bytes())
            .put(&self.mapped.to_le_bytes())
            .put(&self.map_sum.to_le_bytes())
            .put(&self.journal.offset.to_le_bytes())
            .put(&self.journal.sequence.to_le_bytes())
            .put(&self.journal.tag)
            .put(&self.journal_epoch_start.to_le_bytes())
            .put(&self.journal_epoch_tag)
            .put(&self.members.to_le_bytes());
        let keys = keys_for(volume_key, self.uuid, self.opening);
        let (body, tail) = bytes.split_at_mut(MAC_OFFSET);
        Writer::new(tail).put(&keys.superblock_mac(body));
        let crc = crc32c::crc32c(bytes.get(..CRC_OFFSET).unwrap_or_default());
        Writer::new(bytes.get_mut(CRC_OFFSET..).unwrap_or_default()).put(&crc.to_le_bytes());
        bytes
    }

    /// Reads a superblock and checks its CRC, version and MAC, in this order.
    pub(crate) fn parse(bytes: &[u8], volume_key: &VolumeKey) -> Result<Self, SuperblockError> {
        if is_blank(bytes) {
            return Err(SuperblockError::Blank);
        }
        let body = bytes.get(..MAC_OFFSET).ok_or(SuperblockError::Corrupt)?;
        let mac = bytes.get(MAC_OFFSET..CRC_OFFSET).ok_or(SuperblockError::Corrupt)?;
        let crc = crc32c::crc32c(bytes.get(..CRC_OFFSET).unwrap_or_default());
        if !body.starts_with(&MAGIC) || u32_at(bytes, CRC_OFFSET) != Some(crc) {
            return Err(SuperblockError::Corrupt);
        }
        let mut fields = Reader::new(body.get(MAGIC.len()..).unwrap_or_default());
        let version = fields.u16().ok_or(SuperblockError::Corrupt)?;
        if version != VERSION {
            return Err(SuperblockError::Version(version));
        }
        let superblock = Self::read(&mut fields).ok_or(SuperblockError::Corrupt)?;
        let keys = keys_for(volume_key, superblock.uuid, superblock.opening);
        if keys.superblock_is_authentic(body, mac) {
            Ok(superblock)
        } else {
            Err(SuperblockError::Forged)
        }
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        let [code, data_shards, parity_shards, shard] = fields.bytes()?;
        fields.u16()?;
        let uuid = fields.bytes()?;
        let size_bytes = fields.u64()?;
        let journal_bytes = fields.u64()?;
        let geometry = Geometry::new(data_shards, parity_shards, size_bytes)
            .and_then(|geometry| geometry.with_journal_bytes(journal_bytes))
            .ok()?;
        let superblock = Self {
            geometry,
            uuid,
            shard,
            generation: fields.u64()?,
            opening: Opening { epoch: fields.u64()?, salt: fields.bytes()? },
            parent: Opening { epoch: fields.u64()?, salt: fields.bytes()? },
            parent_generation: fields.u64()?,
            committed: fields.u64()?,
            mapped: fields.u64()?,
            map_sum: fields.u128()?,
            journal: JournalAnchor {
                offset: fields.u64()?,
                sequence: fields.u64()?,
                tag: fields.bytes()?,
            },
            journal_epoch_start: fields.u64()?,
            journal_epoch_tag: fields.bytes()?,
            members: fields.u32()?,
        };
        let anchor = superblock.journal.offset;
        let sound = code == CODE_REED_SOLOMON
            && usize::from(shard) < geometry.shards()
            && anchor <= journal_bytes
            && anchor.is_multiple_of(SUPERBLOCK_BYTES as u64);
        sound.then_some(superblock)
    }

    /// Whether a store that holds `older` may have crashed just before it was given `self`, so
    /// that its slots are as `self` says. Anything else was rolled back or left behind.
    ///
    /// A superblock is written only after the one before is durable on each store that takes part,
    /// so such a store is exactly one generation behind, of the same opening or of its parent. Or
    /// it was given the first superblock of an opening that crashed before all stores had it, and
    /// that the others never saw.
    pub(crate) fn follows(&self, older: &Self) -> bool {
        let same = older.generation == self.generation && older.opening == self.opening;
        let before = older.generation.checked_add(1) == Some(self.generation)
            && if self.parent_generation == older.generation {
                older.opening == self.parent
            } else {
                older.opening == self.opening
            };
        let member = self.members & 1u32.checked_shl(u32::from(older.shard)).unwrap_or(0) != 0;
        older.uuid == self.uuid && member && (same || before || self.is_sibling(older))
    }

    /// Whether both are the first superblocks of their openings, and these found the same state.
    pub(crate) fn is_sibling(&self, other: &Self) -> bool {
        let found = |s: &Self| (s.uuid, s.generation, s.parent, s.parent_generation);
        self.parent_generation.checked_add(1) == Some(self.generation)
            && found(self) == found(other)
    }

    /// How new it is: later openings first, then later generations.
    pub(crate) fn age(&self) -> (u64, u64) {
        (self.opening.epoch, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Superblock {
        Superblock {
            geometry: Geometry::new(4, 2, 1 << 20).unwrap(),
            uuid: [3; 16],
            shard: 5,
            generation: 9,
            opening: Opening { epoch: 2, salt: [1; 32] },
            parent: Opening { epoch: 1, salt: [2; 32] },
            parent_generation: 7,
            committed: 100,
            mapped: 12,
            map_sum: 1 << 100,
            journal: JournalAnchor { offset: 8192, sequence: 44, tag: [4; 16] },
            journal_epoch_start: 40,
            journal_epoch_tag: [5; 16],
            members: 0b11_1111,
        }
    }

    fn key() -> VolumeKey {
        VolumeKey::new(&[8; 32])
    }

    #[test]
    fn a_superblock_survives_a_round_trip() {
        assert_eq!(Superblock::parse(&sample().encode(&key()), &key()), Ok(sample()));
    }

    #[test]
    fn another_key_is_told_from_corruption_and_another_version() {
        let bytes = sample().encode(&key());
        let other = VolumeKey::new(&[7; 32]);
        assert_eq!(Superblock::parse(&bytes, &other), Err(SuperblockError::Forged));
        assert_eq!(Superblock::parse(&[0; 4096], &key()), Err(SuperblockError::Blank));
        let mut newer = bytes;
        newer[8] = 2;
        let crc = crc32c::crc32c(&newer[..CRC_OFFSET]).to_le_bytes();
        newer[CRC_OFFSET..].copy_from_slice(&crc);
        assert_eq!(Superblock::parse(&newer, &key()), Err(SuperblockError::Version(2)));
    }

    #[test]
    fn only_the_generation_just_before_is_followed() {
        let newest = sample();
        let older = |generation, opening| Superblock { generation, opening, ..sample() };
        assert!(newest.follows(&newest));
        assert!(newest.follows(&older(8, newest.opening)));
        assert!(!newest.follows(&older(7, newest.opening)));
        assert!(!newest.follows(&older(8, newest.parent)));
        let first = Superblock { parent_generation: 8, ..sample() };
        assert!(first.follows(&older(8, newest.parent)));
        assert!(!first.follows(&older(8, newest.opening)));
        assert!(!Superblock { members: 0b1_1111, ..sample() }.follows(&sample()));
        let fork = Opening { salt: [7; 32], ..newest.opening };
        assert!(first.follows(&Superblock { opening: fork, ..first }));
        assert!(!first.follows(&Superblock { opening: fork, parent: fork, ..first }));
        assert!(!newest.follows(&older(9, fork)));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_detected(bit in 0usize..SUPERBLOCK_BYTES * 8) {
            let mut bytes = sample().encode(&key());
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Superblock::parse(&bytes, &key()).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert!(Superblock::parse(&bytes, &key()).is_err());
        }
    }
}
