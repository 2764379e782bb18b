//! What a member says about itself to the whole mesh, under its own signature.
//!
//! An announcement says "the key that signs this is a node of zone z" or "…is a workload", with a
//! sequence number and an expiry. Which prefix it may be routed for follows from the key alone (a
//! workload's `/128`, a node's `/64`), so there is no field in which to claim another's.
//! `docs/mesh-routing.md` draws the bytes.

use std::net::Ipv6Addr;

use crate::identity::{PrivateKey, PublicKey};
use crate::signature::{self, Purpose, RANDOM_BYTES, SIGNATURE_BYTES};

/// The version of the format, its first byte.
pub const VERSION: u8 = 1;

/// The bytes of an announcement without its signature.
pub const ANNOUNCEMENT_BYTES: usize = 52;
/// The bytes of an announcement with its signature.
pub const SIGNED_BYTES: usize = ANNOUNCEMENT_BYTES + SIGNATURE_BYTES;

/// A signature made for anything else is none of an announcement.
const PURPOSE: Purpose = Purpose::new("Hypha mesh 1: announcement");

/// What the signer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A workload: routed for the `/128` of its key, wherever it is attached; known on demand.
    Workload,
    /// A node: routed for the `/64` of its key, known to all nodes of its zone.
    Node {
        /// The zone that it was configured to be in.
        zone: u16,
    },
}

/// What a key says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Whose announcement it is; it is signed by this key.
    pub key: PublicKey,
    /// Grows with each announcement of the key and is persisted before use. Of two, the larger wins.
    pub sequence: u64,
    /// When it ends, in seconds since 1970.
    pub expires_unix_s: u64,
    /// What the key is.
    pub role: Role,
}

/// Why bytes are no announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnnouncementError {
    /// Another length than that of this version.
    #[error("{0} bytes are no announcement; this version has {SIGNED_BYTES}")]
    Length(usize),
    /// Another version.
    #[error("announcement of version {0}; this build reads version {VERSION}")]
    Version(u8),
    /// A role that this version does not know, or a workload with a zone.
    #[error("unknown role {role} with zone {zone}")]
    Role {
        /// The byte found.
        role: u8,
        /// The zone found.
        zone: u16,
    },
}

impl Announcement {
    /// The prefix that it is routed for and its length in bits: 64 for a node, 128 for a workload.
    #[must_use]
    pub fn prefix(&self) -> (Ipv6Addr, u8) {
        let address = self.key.address();
        match self.role {
            Role::Workload => (address, 128),
            Role::Node { .. } => (Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)), 64),
        }
    }

    /// The bytes as they are sent.
    #[must_use]
    pub fn encode(&self) -> [u8; ANNOUNCEMENT_BYTES] {
        let (role, zone) = match self.role {
            Role::Workload => (0, 0),
            Role::Node { zone } => (1, zone),
        };
        let mut bytes = [0; ANNOUNCEMENT_BYTES];
        let fields: [&[u8]; 5] = [
            &[VERSION, role],
            &zone.to_be_bytes(),
            &self.key.0,
            &self.sequence.to_be_bytes(),
            &self.expires_unix_s.to_be_bytes(),
        ];
        let all = fields.into_iter().flatten();
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// Reads the bytes of one.
    ///
    /// # Errors
    /// An [`AnnouncementError`] for anything but what [`encode`](Self::encode) writes.
    pub fn parse(bytes: &[u8; ANNOUNCEMENT_BYTES]) -> Result<Self, AnnouncementError> {
        let [version, role, zone_high, zone_low, rest @ ..] = *bytes;
        if version != VERSION {
            return Err(AnnouncementError::Version(version));
        }
        let zone = u16::from_be_bytes([zone_high, zone_low]);
        let role = match (role, zone) {
            (0, 0) => Role::Workload,
            (1, zone) => Role::Node { zone },
            (role, zone) => return Err(AnnouncementError::Role { role, zone }),
        };
        // The array's length makes both splits succeed; an error keeps this free of panics.
        let length = AnnouncementError::Length(bytes.len());
        let (key, numbers) = rest.split_first_chunk::<32>().ok_or(length)?;
        let (sequence, expires) = numbers.split_first_chunk::<8>().ok_or(length)?;
        let expires = <[u8; 8]>::try_from(expires).map_err(|_| length)?;
        Ok(Self {
            key: PublicKey(*key),
            sequence: u64::from_be_bytes(*sequence),
            expires_unix_s: u64::from_be_bytes(expires),
            role,
        })
    }
}

/// An announcement and its signature, which nobody may have verified yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedAnnouncement {
    /// What is announced.
    pub announcement: Announcement,
    /// The key's signature of [`Announcement::encode`].
    pub signature: [u8; SIGNATURE_BYTES],
}

/// Whether `signature` is one of `announcement`, the bytes of [`Announcement::encode`], under `key`.
#[must_use]
pub fn verify(key: &PublicKey, announcement: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
    signature::verify(key, PURPOSE, announcement, signature)
}

impl SignedAnnouncement {
    /// Signs `announcement` with the private half of its key. `random` is drawn anew for each.
    #[must_use]
    pub fn sign(announcement: Announcement, key: &PrivateKey, random: &[u8; RANDOM_BYTES]) -> Self {
        let signature = signature::sign(key, PURPOSE, &announcement.encode(), random);
        Self { announcement, signature }
    }

    /// The bytes as they are sent.
    #[must_use]
    pub fn encode(&self) -> [u8; SIGNED_BYTES] {
        let mut bytes = [0; SIGNED_BYTES];
        let announcement = self.announcement.encode();
        let all = announcement.iter().chain(&self.signature);
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// Reads one. Its signature is not verified.
    ///
    /// # Errors
    /// An [`AnnouncementError`] for anything but what [`encode`](Self::encode) writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnnouncementError> {
        let length = AnnouncementError::Length(bytes.len());
        let (announcement, signature) = bytes.split_first_chunk().ok_or(length)?;
        let signature = signature.try_into().map_err(|_| length)?;
        Ok(Self { announcement: Announcement::parse(announcement)?, signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(role: Role) -> SignedAnnouncement {
        let announcement = Announcement {
            key: PublicKey([0xaa; 32]),
            sequence: 0x0102_0304_0506_0708,
            expires_unix_s: 0x1112_1314_1516_1718,
            role,
        };
        SignedAnnouncement { announcement, signature: [0xbb; 64] }
    }

    #[test]
    fn the_bytes_lie_where_the_drawing_says() {
        let bytes = signed(Role::Node { zone: 0x2122 }).encode();
        assert_eq!(bytes[..4], [1, 1, 0x21, 0x22]);
        assert_eq!(bytes[4..36], [0xaa; 32]);
        assert_eq!(bytes[36..44], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[44..52], [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
        assert_eq!(bytes[52..], [0xbb; 64]);
    }

    #[test]
    fn what_was_written_is_read() {
        for role in [Role::Workload, Role::Node { zone: 0 }, Role::Node { zone: 65535 }] {
            let signed = signed(role);
            assert_eq!(SignedAnnouncement::parse(&signed.encode()), Ok(signed));
        }
    }

    #[test]
    fn another_version_role_or_length_is_refused() {
        let bytes = signed(Role::Workload).encode();
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes;
            bytes[at] = to;
            SignedAnnouncement::parse(&bytes)
        };
        assert_eq!(changed(0, 2), Err(AnnouncementError::Version(2)));
        assert_eq!(changed(1, 7), Err(AnnouncementError::Role { role: 7, zone: 0 }));
        assert_eq!(changed(3, 1), Err(AnnouncementError::Role { role: 0, zone: 1 }));
        assert_eq!(SignedAnnouncement::parse(&bytes[..115]), Err(AnnouncementError::Length(115)));
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(SignedAnnouncement::parse(&longer), Err(AnnouncementError::Length(117)));
    }

    #[test]
    fn a_prefix_follows_from_the_key_alone() {
        let address = signed(Role::Workload).announcement.key.address();
        assert_eq!(signed(Role::Workload).announcement.prefix(), (address, 128));
        let (prefix, length) = signed(Role::Node { zone: 3 }).announcement.prefix();
        assert_eq!(prefix.segments()[..4], address.segments()[..4]);
        assert_eq!((&prefix.segments()[4..], length), (&[0; 4][..], 64));
    }

    #[test]
    fn a_signature_covers_every_byte_of_the_announcement() {
        let private = PrivateKey::new([0x42; 32]);
        let announcement =
            Announcement { key: private.public(), ..signed(Role::Workload).announcement };
        let signed = SignedAnnouncement::sign(announcement, &private, &[1; RANDOM_BYTES]);
        let bytes = announcement.encode();
        assert!(verify(&private.public(), &bytes, &signed.signature));
        for at in 0..bytes.len() {
            let mut bytes = bytes;
            bytes[at] ^= 1;
            assert!(!verify(&private.public(), &bytes, &signed.signature), "byte {at}");
        }
    }
}
