//! Keys and signatures: a cheap tag for most nodes, the real thing for some.

use net_vdev::announcement::{self, Announcement, SignedAnnouncement};
use net_vdev::{PrivateKey, PublicKey};

/// Whose announcements a node can sign.
#[derive(Debug, Clone)]
pub enum Identity {
    /// A key that nobody has the other half of; its signature is a hash.
    Tag(PublicKey),
    /// A real key.
    Real(Box<PrivateKey>),
}

fn bytes_of(seed: u64, number: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&number.to_le_bytes());
    *hasher.finalize().as_bytes()
}

fn tag(key: &PublicKey, announcement: &[u8]) -> [u8; 64] {
    let mut signature = [0; 64];
    let hash = blake3::keyed_hash(&key.0, announcement);
    signature.iter_mut().zip(hash.as_bytes()).take(16).for_each(|(to, from)| *to = *from);
    signature
}

/// Verifies both kinds: a tag's last 48 bytes are zero, which a real signature's never are.
#[must_use]
pub fn verify(key: &PublicKey, announcement: &[u8], signature: &[u8; 64]) -> bool {
    if signature[16..] == [0; 48] {
        return *signature == tag(key, announcement);
    }
    announcement::verify(key, announcement, signature)
}

impl Identity {
    /// The identity of this number.
    #[must_use]
    pub fn new(seed: u64, number: u64, is_real: bool) -> Self {
        let bytes = bytes_of(seed, number);
        if is_real {
            Self::Real(Box::new(PrivateKey::new(bytes)))
        } else {
            Self::Tag(PublicKey(bytes))
        }
    }

    /// The public key.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        match self {
            Self::Tag(key) => *key,
            Self::Real(key) => key.public(),
        }
    }

    /// Signs.
    #[must_use]
    pub fn sign(&self, announcement: Announcement) -> SignedAnnouncement {
        match self {
            Self::Tag(key) => {
                SignedAnnouncement { announcement, signature: tag(key, &announcement.encode()) }
            }
            Self::Real(key) => SignedAnnouncement::sign(announcement, key, &[7; 64]),
        }
    }
}
