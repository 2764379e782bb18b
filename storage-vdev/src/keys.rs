//! Keys and nonces: everything that seals or signs goes through [`EpochKeys`].
//!
//! Each open of a volume draws a fresh 32-byte salt and increments the epoch. Its keys are
//! `HKDF-SHA256(volume key, purpose ‖ uuid ‖ epoch ‖ salt)`, one per purpose. Within an open each
//! sequence number is used once, and a nonce is `sequence ‖ index`, so no (key, nonce) pair recurs:
//! not after a crash, a roll-back of the stores or a clone, because the salt differs then.
//!
//! Erasure: [`VolumeKey`] is zeroed when dropped; the key schedules inside `ring` are not erased
//! (the library offers no way), and live as long as the volume is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::{hkdf, hmac};
use zeroize::Zeroizing;

use crate::fields::Writer;
use crate::geometry::TAG_BYTES;

/// A volume's uuid.
pub type Uuid = [u8; 16];

/// A volume key (DEK): 32 secret bytes, zeroed when dropped, never shown by `Debug`.
#[derive(Clone)]
pub struct VolumeKey(Zeroizing<[u8; 32]>);

impl VolumeKey {
    /// Takes the bytes of a key. The caller erases its own copy.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// The seed of the volume's writer key (Ed25519); the same for all openings.
    pub(crate) fn writer_seed(&self, uuid: Uuid) -> Zeroizing<[u8; 32]> {
        let mut seed = Zeroizing::new([0; 32]);
        let info: [&[u8]; 2] = [b"volume writer key", &uuid];
        let root = root(self);
        let filled = root.expand(&info, hkdf::HKDF_SHA256);
        if filled.and_then(|okm| okm.fill(seed.as_mut_slice())).is_err() {
            unreachable!("HKDF-SHA256 gives up to 8160 bytes and a seed has 32");
        }
        seed
    }
}

impl std::fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}

/// Which open of the volume wrote something: its number and the salt that it drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Opening {
    /// How many times the volume had been opened, this time included.
    pub epoch: u64,
    /// The random bytes that this open drew.
    pub salt: [u8; 32],
}

/// The keys of one opening of a volume.
#[derive(Debug)]
pub(crate) struct EpochKeys {
    pub(crate) opening: Opening,
    journal: LessSafeKey,
    superblock: hmac::Key,
    segment: Arc<SegmentKeys>,
}

/// A seal that didn't open: the bytes are not what was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not what this volume's key sealed there")]
pub struct NotAuthentic;

impl EpochKeys {
    fn derive(volume_key: &VolumeKey, uuid: Uuid, opening: Opening) -> Self {
        let root = root(volume_key);
        let aead = |purpose: &[u8]| -> LessSafeKey {
            let key: UnboundKey = expand(&root, (purpose, uuid, opening), &AES_256_GCM);
            LessSafeKey::new(key)
        };
        let mac = |purpose: &[u8]| -> hmac::Key {
            expand(&root, (purpose, uuid, opening), hmac::HMAC_SHA256)
        };
        Self {
            opening,
            journal: aead(b"journal record"),
            superblock: mac(b"superblock"),
            segment: Arc::new(SegmentKeys::derive(volume_key, uuid, opening)),
        }
    }

    /// The keys of the segments of this opening.
    pub(crate) fn segment(&self) -> &Arc<SegmentKeys> {
        &self.segment
    }

    /// Encrypts the payload of journal record `sequence` in place; `header` is authenticated too.
    pub(crate) fn seal_record(
        &self,
        sequence: u64,
        header: &[u8],
        payload: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        seal(&self.journal, nonce(sequence, 0), header, payload)
    }

    /// Decrypts the payload of journal record `sequence` in place.
    pub(crate) fn open_record(
        &self,
        sequence: u64,
        header: &[u8],
        payload: &mut [u8],
        tag: [u8; TAG_BYTES],
    ) -> Result<(), NotAuthentic> {
        open(&self.journal, nonce(sequence, 0), header, payload, tag)
    }

    /// The MAC of a superblock.
    pub(crate) fn superblock_mac(&self, superblock: &[u8]) -> [u8; 32] {
        mac_bytes(&hmac::sign(&self.superblock, superblock))
    }

    /// Whether `mac` is the MAC of a superblock.
    pub(crate) fn superblock_is_authentic(&self, superblock: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.superblock, superblock, mac).is_ok()
    }
}

/// The keys that seal one opening's segments: one for blocks, one for entry tables.
///
/// No nonce recurs under them. A block's nonce is `sequence ‖ index`, a table's `sequence ‖ 0`, and
/// `SegmentKeys::claim` hands each sequence out once, to one builder, which counts its blocks and
/// seals one table. Another opening has drawn another salt, so it has other keys: that covers the
/// crash, the roll-back of the host, of a snapshot or of the register, and two openers at once. A
/// clone has another uuid. Repair copies ciphertext and seals nothing.
#[derive(Debug)]
pub struct SegmentKeys {
    opening: Opening,
    uuid: Uuid,
    block: LessSafeKey,
    table: LessSafeKey,
    /// The highest sequence that was claimed.
    claimed: AtomicU64,
}

/// The sequence, or a later one, has been used to seal with already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("segment {sequence} can't be sealed: this opening has used sequence {claimed} already")]
pub struct SequenceUsed {
    /// What was asked for.
    pub sequence: u64,
    /// The highest that was used.
    pub claimed: u64,
}

impl SegmentKeys {
    /// The keys of the opening `opening` of the volume `uuid`.
    #[must_use]
    pub fn derive(volume_key: &VolumeKey, uuid: Uuid, opening: Opening) -> Self {
        let root = root(volume_key);
        let aead = |purpose: &[u8]| -> LessSafeKey {
            let key: UnboundKey = expand(&root, (purpose, uuid, opening), &AES_256_GCM);
            LessSafeKey::new(key)
        };
        let (block, table) = (aead(b"segment block"), aead(b"segment table"));
        Self { opening, uuid, block, table, claimed: AtomicU64::new(0) }
    }

    /// The opening.
    #[must_use]
    pub fn opening(&self) -> Opening {
        self.opening
    }

    /// The volume.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Takes `sequence` for sealing, once: it must be above all that were taken before.
    pub(crate) fn claim(&self, sequence: u64) -> Result<(), SequenceUsed> {
        match self.claimed.fetch_max(sequence, Ordering::Relaxed) {
            claimed if claimed < sequence => Ok(()),
            claimed => Err(SequenceUsed { sequence, claimed }),
        }
    }

    /// Encrypts block `index` of segment `sequence` in place and returns its tag. `place` is what
    /// the block is in the volume; it opens as nothing else.
    pub(crate) fn seal_block(
        &self,
        (sequence, index): (u64, u16),
        place: [u8; 9],
        block: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        seal(&self.block, nonce(sequence, index.into()), &self.block_aad(place), block)
    }

    /// Decrypts block `index` of segment `sequence` in place.
    pub(crate) fn open_block(
        &self,
        (sequence, index): (u64, u16),
        place: [u8; 9],
        block: &mut [u8],
        tag: [u8; TAG_BYTES],
    ) -> Result<(), NotAuthentic> {
        open(&self.block, nonce(sequence, index.into()), &self.block_aad(place), block, tag)
    }

    /// Encrypts the entry table of segment `sequence` in place; `header` is authenticated too.
    pub(crate) fn seal_table(
        &self,
        sequence: u64,
        header: &[u8],
        table: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        seal(&self.table, nonce(sequence, 0), header, table)
    }

    /// Decrypts the entry table of segment `sequence` in place.
    pub(crate) fn open_table(
        &self,
        sequence: u64,
        header: &[u8],
        table: &mut [u8],
        tag: [u8; TAG_BYTES],
    ) -> Result<(), NotAuthentic> {
        open(&self.table, nonce(sequence, 0), header, table, tag)
    }

    fn block_aad(&self, place: [u8; 9]) -> [u8; 25] {
        let mut aad = [0; 25];
        Writer::new(&mut aad).put(&self.uuid).put(&place);
        aad
    }
}

/// Keys for one check of something that names its own opening.
pub(crate) fn keys_for(volume_key: &VolumeKey, uuid: Uuid, opening: Opening) -> EpochKeys {
    EpochKeys::derive(volume_key, uuid, opening)
}

/// The key that signs the records of a volume's register; the same for all openings, because a
/// record is read before its opening is known.
pub(crate) fn register_mac_key(volume_key: &VolumeKey, uuid: Uuid) -> hmac::Key {
    let always = Opening { epoch: 0, salt: [0; 32] };
    expand(&root(volume_key), (b"register record", uuid, always), hmac::HMAC_SHA256)
}

/// Seals the key of volume `base` under that of its clone `own`. Each (clone, base) has a key of its
/// own for this, which seals nothing else: the same bytes come out each time.
pub(crate) fn wrap_key(
    volume_key: &VolumeKey,
    (own, base): (Uuid, Uuid),
    key: &VolumeKey,
) -> Vec<u8> {
    let mut wrapped = key.0.to_vec();
    let tag = seal(&wrapping_key(volume_key, own, base), nonce(0, 0), &base, &mut wrapped);
    wrapped.extend_from_slice(&tag);
    wrapped
}

/// Opens what [`wrap_key`] sealed; `wrapped` is the key in the clear then. `None` if it isn't that.
pub(crate) fn unwrap_key(
    volume_key: &VolumeKey,
    (own, base): (Uuid, Uuid),
    wrapped: &mut [u8],
) -> Option<VolumeKey> {
    let (key, tag) = wrapped.split_first_chunk_mut::<32>()?;
    let tag: [u8; TAG_BYTES] = (&*tag).try_into().ok()?;
    open(&wrapping_key(volume_key, own, base), nonce(0, 0), &base, key, tag).ok()?;
    Some(VolumeKey::new(key))
}

fn wrapping_key(volume_key: &VolumeKey, own: Uuid, base: Uuid) -> LessSafeKey {
    let mut salt = [0; 32];
    Writer::new(&mut salt).put(&base);
    let always = Opening { epoch: 0, salt };
    let key: UnboundKey = expand(&root(volume_key), (b"base key", own, always), &AES_256_GCM);
    LessSafeKey::new(key)
}

fn root(volume_key: &VolumeKey) -> hkdf::Prk {
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"hypha volume 1").extract(&*volume_key.0)
}

fn expand<L: hkdf::KeyType, K: for<'a> From<hkdf::Okm<'a, L>>>(
    root: &hkdf::Prk,
    (purpose, uuid, opening): (&[u8], Uuid, Opening),
    len: L,
) -> K {
    let epoch = opening.epoch.to_le_bytes();
    let info: [&[u8]; 4] = [purpose, &uuid, &epoch, &opening.salt];
    let Ok(key) = root.expand(&info, len) else {
        unreachable!("HKDF-SHA256 gives up to 8160 bytes and a key has 32");
    };
    K::from(key)
}

fn nonce(sequence: u64, index: u32) -> Nonce {
    let mut bytes = [0; 12];
    Writer::new(&mut bytes).put(&sequence.to_le_bytes()).put(&index.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn seal(key: &LessSafeKey, nonce: Nonce, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
    let Ok(tag) = key.seal_in_place_separate_tag(nonce, Aad::from(aad), bytes) else {
        unreachable!("AES-GCM seals up to 64 GiB and no buffer here is near that");
    };
    tag.as_ref().first_chunk().copied().unwrap_or_default()
}

fn open(
    key: &LessSafeKey,
    nonce: Nonce,
    aad: &[u8],
    bytes: &mut [u8],
    tag: [u8; TAG_BYTES],
) -> Result<(), NotAuthentic> {
    match key.open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(tag), bytes, 0..) {
        Ok(_) => Ok(()),
        Err(ring::error::Unspecified) => Err(NotAuthentic),
    }
}

fn mac_bytes(tag: &hmac::Tag) -> [u8; 32] {
    tag.as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENING: Opening = Opening { epoch: 3, salt: [7; 32] };

    fn keys(opening: Opening) -> EpochKeys {
        keys_for(&VolumeKey::new(&[9; 32]), [1; 16], opening)
    }

    #[test]
    fn a_record_opens_only_under_its_own_opening_number_and_header() {
        let mut sealed = vec![0x41; 4096];
        let tag = keys(OPENING).seal_record(11, b"header", &mut sealed);
        let opens = |keys: EpochKeys, sequence, header: &[u8]| {
            let mut copy = sealed.clone();
            let opened = keys.open_record(sequence, header, &mut copy, tag).is_ok();
            opened && copy == vec![0x41; 4096]
        };
        assert!(opens(keys(OPENING), 11, b"header"));
        assert!(!opens(keys(OPENING), 12, b"header"));
        assert!(!opens(keys(OPENING), 11, b"another"));
        assert!(!opens(keys(Opening { epoch: 4, ..OPENING }), 11, b"header"));
        assert!(!opens(keys(Opening { salt: [8; 32], ..OPENING }), 11, b"header"));
    }

    #[test]
    fn a_superblock_is_signed_for_its_opening() {
        let mac = keys(OPENING).superblock_mac(b"x");
        assert!(keys(OPENING).superblock_is_authentic(b"x", &mac));
        assert!(!keys(OPENING).superblock_is_authentic(b"y", &mac));
        assert!(!keys(Opening { epoch: 4, ..OPENING }).superblock_is_authentic(b"x", &mac));
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", VolumeKey::new(&[0x41; 32])), "VolumeKey(..)");
    }
}
