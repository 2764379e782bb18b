//! What one key says about another, under its signature and until an expiry. `docs/mesh-certificates.md`
//! draws the bytes.
//!
//! * [`Alias`]: a node says that a workload has an address in the node's own /64.
//! * [`LabelCertificate`]: a group says that a member has a label of the group's.
//! * [`NameRecord`]: a node says what name a workload has on it.
//!
//! A certificate is read and verified in one step: there is no value of these types whose signature
//! was not checked, but the ones that this side is about to sign. Each kind is signed for a purpose
//! of its own. A name or an address never decides by itself: what a certificate is about is always a
//! whole key.

use std::net::Ipv6Addr;

pub use text::{HostName, LabelName, TextError};

use crate::identity::{PrivateKey, PublicKey};
use crate::signature::{self, Purpose, RANDOM_BYTES, SIGNATURE_BYTES};

mod text;

/// The version of all kinds.
pub const VERSION: u8 = 1;
/// The bytes of an alias certificate.
pub const ALIAS_BYTES: usize = 100 + SIGNATURE_BYTES;
/// The longest life of an alias, in seconds.
pub const ALIAS_LIFE_MAX_S: u64 = 3600;
/// How far the clocks of an alias's signer and of its reader may be apart, in seconds: by so much earlier
/// it counts than it says, and by so much longer. It opens nothing, so that one that has ended leads at
/// worst to where its workload was. Labels, which do open something, count by the reader's clock alone.
pub const ALIAS_CLOCK_SKEW_MAX_S: u64 = 300;
/// The bytes of the longest certificate of any kind.
pub const CERTIFICATE_BYTES_MAX: usize = 84 + HostName::BYTES_MAX + SIGNATURE_BYTES;
/// The bytes in front of what differs between the kinds: header and two keys.
const COMMON_BYTES: usize = 68;

const ALIAS: Kind = Kind { number: 1, purpose: Purpose::new("Hypha mesh 1: alias") };
const LABEL: Kind = Kind { number: 2, purpose: Purpose::new("Hypha mesh 1: label") };
const NAME: Kind = Kind { number: 3, purpose: Purpose::new("Hypha mesh 1: name") };

/// A certificate as people pass it on: hexadecimal digits.
#[must_use]
pub fn to_hex(certificate: &[u8]) -> String {
    certificate.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a certificate in hexadecimal digits; `None` if they are none.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    pairs.iter().map(byte).collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty())
}

/// Why bytes are no certificate that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Shorter or longer than its kind and its fields say.
    #[error("{0} bytes are no certificate of its kind")]
    Length(usize),
    /// Another version.
    #[error("certificate of version {0}; this build reads version {VERSION}")]
    Version(u8),
    /// Another kind than the one that is expected here.
    #[error("certificate of kind {0}, which is not expected here")]
    Kind(u8),
    /// A reserved field is not zero.
    #[error("a reserved field is not zero")]
    Reserved,
    /// The label or name is none.
    #[error(transparent)]
    Text(#[from] TextError),
    /// It has ended.
    #[error("it expired at {expired_unix_s} (seconds since 1970)")]
    Expired {
        /// When.
        expired_unix_s: u64,
    },
    /// It has not begun yet.
    #[error("it begins at {begins_unix_s} (seconds since 1970)")]
    NotYet {
        /// When.
        begins_unix_s: u64,
    },
    /// Its end is not behind its beginning, or too far behind.
    #[error("it holds for {0} seconds; from 1 to {ALIAS_LIFE_MAX_S} are possible")]
    Life(u64),
    /// The address is not the one that follows from the node that signed and the workload.
    #[error("address {0} is not the workload's in the /64 of the node that signed")]
    Address(Ipv6Addr),
    /// It is about another key than the one that showed it.
    #[error("it is about another key than {0}")]
    Subject(PublicKey),
    /// Not signed by the key that it names, or changed since.
    #[error("the signature does not verify")]
    Forged,
}

/// A node gives a workload an address in its own /64, for a while.
///
/// The address follows from both keys, so that a node needs no list of what it gave to whom, and two
/// certificates of a node for one address are about one workload. Its 16-bit words have the sum of
/// those of the workload's own address (RFC 6296 §2.6): whoever puts one in the place of the other in a
/// packet changes no checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// The node; it signs.
    pub node: PublicKey,
    /// The workload.
    pub workload: PublicKey,
    /// The address.
    pub address: Ipv6Addr,
    /// When it begins, in seconds since 1970.
    pub begins_unix_s: u64,
    /// When it ends, in seconds since 1970.
    pub expires_unix_s: u64,
}

impl Alias {
    /// The alias of a workload on a node, from a time until another, in seconds since 1970.
    #[must_use]
    pub fn new(node: PublicKey, workload: PublicKey, held_unix_s: std::ops::Range<u64>) -> Self {
        let address = Self::address_of(&node, &workload);
        let (begins_unix_s, expires_unix_s) = (held_unix_s.start, held_unix_s.end);
        Self { node, workload, address, begins_unix_s, expires_unix_s }
    }

    /// The address that a workload has in the /64 of a node: 48 bits of a hash of both keys, and a word
    /// that makes the sum of the address that of the workload's own.
    #[must_use]
    pub fn address_of(node: &PublicKey, workload: &PublicKey) -> Ipv6Addr {
        let keys = [node.0, workload.0].concat();
        let hash = blake3::derive_key("Hypha mesh 1: alias of a workload on a node", &keys);
        let [a, b, c, d, e, f, ..] = hash;
        let word = |high, low| u16::from_be_bytes([high, low]);
        let [p, q, r, s, ..] = node.address().segments();
        let (t, u, v) = (word(a, b), word(c, d), word(e, f));
        // Sums of 16-bit words as checksums have them: modulo 2^16 - 1.
        let sum = |words: &[u16]| words.iter().map(|word| u32::from(*word)).sum::<u32>() % 0xffff;
        let own = sum(&workload.address().segments());
        let missing = (own + 0xffff - sum(&[p, q, r, s, t, u, v])) % 0xffff;
        Ipv6Addr::new(p, q, r, s, t, u, v, u16::try_from(missing).unwrap_or(0))
    }

    /// Signs with the node's key, which has to be that of [`Alias::node`]. `random` is fresh.
    ///
    /// # Errors
    /// [`CertificateError::Address`], [`CertificateError::Life`] or [`CertificateError::Subject`] if
    /// nobody would take it.
    pub fn sign(
        &self,
        node: &PrivateKey,
        random: &[u8; RANDOM_BYTES],
    ) -> Result<Vec<u8>, CertificateError> {
        self.check_life()?;
        self.check_address()?;
        let mut bytes = ALIAS.header(0, &self.node, &self.workload);
        bytes.extend_from_slice(&self.address.octets());
        bytes.extend_from_slice(&self.begins_unix_s.to_be_bytes());
        bytes.extend_from_slice(&self.expires_unix_s.to_be_bytes());
        ALIAS.seal(bytes, (node, &self.node), random)
    }

    /// Reads and verifies an alias certificate at `unix_s` seconds since 1970 by this side's clock, which
    /// may be [`ALIAS_CLOCK_SKEW_MAX_S`] off.
    ///
    /// # Errors
    /// A [`CertificateError`] for anything that does not count at that time.
    pub fn verify(bytes: &[u8], unix_s: u64) -> Result<Self, CertificateError> {
        let opened = ALIAS.open(bytes)?;
        let length = CertificateError::Length(bytes.len());
        if opened.text_len != 0 {
            return Err(CertificateError::Reserved);
        }
        let (address, rest) = opened.rest.split_first_chunk::<16>().ok_or(length)?;
        let (begins, rest) = rest.split_first_chunk().ok_or(length)?;
        let expires = <[u8; 8]>::try_from(rest).map_err(|_| length)?;
        let alias = Self {
            node: opened.signer,
            workload: opened.subject,
            address: Ipv6Addr::from(*address),
            begins_unix_s: u64::from_be_bytes(*begins),
            expires_unix_s: u64::from_be_bytes(expires),
        };
        if unix_s >= alias.counts_until_unix_s() {
            return Err(CertificateError::Expired { expired_unix_s: alias.expires_unix_s });
        }
        if unix_s.saturating_add(ALIAS_CLOCK_SKEW_MAX_S) < alias.begins_unix_s {
            return Err(CertificateError::NotYet { begins_unix_s: alias.begins_unix_s });
        }
        alias.check_life()?;
        alias.check_address()?;
        opened.verify(&ALIAS)?;
        Ok(alias)
    }

    /// Until when it counts by the clock of whoever reads it, in seconds since 1970.
    #[must_use]
    pub fn counts_until_unix_s(&self) -> u64 {
        self.expires_unix_s.saturating_add(ALIAS_CLOCK_SKEW_MAX_S)
    }

    fn check_life(&self) -> Result<(), CertificateError> {
        let life_s = self.expires_unix_s.saturating_sub(self.begins_unix_s);
        let is_right = (1..=ALIAS_LIFE_MAX_S).contains(&life_s);
        if is_right { Ok(()) } else { Err(CertificateError::Life(life_s)) }
    }

    fn check_address(&self) -> Result<(), CertificateError> {
        let is_right = self.address == Self::address_of(&self.node, &self.workload);
        let is_node_s = self.address == self.node.address();
        if is_right && !is_node_s { Ok(()) } else { Err(CertificateError::Address(self.address)) }
    }
}

/// A label of a group: who has it is said by certificates that the group's key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    /// The group's key.
    pub group: PublicKey,
    /// The label's name, which means something within the group only.
    pub name: LabelName,
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.group, self.name)
    }
}

/// A group gives a member a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelCertificate {
    /// The label; its group signs.
    pub label: Label,
    /// Who has it.
    pub member: PublicKey,
    /// When it ends, in seconds since 1970.
    pub expires_unix_s: u64,
}

impl LabelCertificate {
    /// Signs with the group's key, which has to be that of the label. `random` is fresh.
    ///
    /// # Errors
    /// [`CertificateError::Subject`] if it is another key.
    pub fn sign(
        &self,
        group: &PrivateKey,
        random: &[u8; RANDOM_BYTES],
    ) -> Result<Vec<u8>, CertificateError> {
        let name = self.label.name.as_str();
        let mut bytes = LABEL.header(name.len(), &self.label.group, &self.member);
        bytes.extend_from_slice(&self.expires_unix_s.to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
        LABEL.seal(bytes, (group, &self.label.group), random)
    }

    /// Reads and verifies a label certificate that `member` shows at `unix_s` seconds since 1970.
    ///
    /// # Errors
    /// A [`CertificateError`] for anything that does not count for this member at that time.
    pub fn verify(bytes: &[u8], member: &PublicKey, unix_s: u64) -> Result<Self, CertificateError> {
        let opened = LABEL.open(bytes)?;
        let length = CertificateError::Length(bytes.len());
        let (expires, name) = opened.rest.split_first_chunk().ok_or(length)?;
        let certificate = Self {
            label: Label { group: opened.signer, name: opened.text(name)?.parse()? },
            member: opened.subject,
            expires_unix_s: u64::from_be_bytes(*expires),
        };
        if certificate.member != *member {
            return Err(CertificateError::Subject(*member));
        }
        check_expiry(certificate.expires_unix_s, unix_s)?;
        opened.verify(&LABEL)?;
        Ok(certificate)
    }
}

/// A node says what name a workload has on it: the `workload` of `workload.node.mesh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameRecord {
    /// The node; it signs.
    pub node: PublicKey,
    /// The workload.
    pub workload: PublicKey,
    /// Its name on the node.
    pub name: HostName,
    /// Grows with each record of the node; of two for one name the larger counts.
    pub sequence: u64,
    /// When it ends, in seconds since 1970.
    pub expires_unix_s: u64,
}

impl NameRecord {
    /// Signs with the node's key, which has to be that of [`NameRecord::node`]. `random` is fresh.
    ///
    /// # Errors
    /// [`CertificateError::Subject`] if it is another key.
    pub fn sign(
        &self,
        node: &PrivateKey,
        random: &[u8; RANDOM_BYTES],
    ) -> Result<Vec<u8>, CertificateError> {
        let name = self.name.as_str();
        let mut bytes = NAME.header(name.len(), &self.node, &self.workload);
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.expires_unix_s.to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
        NAME.seal(bytes, (node, &self.node), random)
    }

    /// Reads and verifies a name record at `unix_s` seconds since 1970.
    ///
    /// # Errors
    /// A [`CertificateError`] for anything that does not count at that time.
    pub fn verify(bytes: &[u8], unix_s: u64) -> Result<Self, CertificateError> {
        let opened = NAME.open(bytes)?;
        let length = CertificateError::Length(bytes.len());
        let (sequence, rest) = opened.rest.split_first_chunk().ok_or(length)?;
        let (expires, name) = rest.split_first_chunk().ok_or(length)?;
        let record = Self {
            node: opened.signer,
            workload: opened.subject,
            name: opened.text(name)?.parse()?,
            sequence: u64::from_be_bytes(*sequence),
            expires_unix_s: u64::from_be_bytes(*expires),
        };
        check_expiry(record.expires_unix_s, unix_s)?;
        opened.verify(&NAME)?;
        Ok(record)
    }
}

fn check_expiry(expired_unix_s: u64, unix_s: u64) -> Result<(), CertificateError> {
    if unix_s >= expired_unix_s {
        return Err(CertificateError::Expired { expired_unix_s });
    }
    Ok(())
}

/// What tells the kinds apart.
struct Kind {
    number: u8,
    purpose: Purpose,
}

/// A certificate taken apart; its signature is not verified yet.
struct Opened<'a> {
    signer: PublicKey,
    subject: PublicKey,
    text_len: u8,
    /// What is between the keys and the signature.
    rest: &'a [u8],
    signed: &'a [u8],
    signature: &'a [u8; SIGNATURE_BYTES],
}

impl Kind {
    fn header(&self, text_len: usize, signer: &PublicKey, subject: &PublicKey) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CERTIFICATE_BYTES_MAX);
        // Both kinds of text are shorter than 256 bytes.
        bytes.extend_from_slice(&[VERSION, self.number, text_len as u8, 0]);
        bytes.extend_from_slice(&signer.0);
        bytes.extend_from_slice(&subject.0);
        bytes
    }

    fn seal(
        &self,
        mut bytes: Vec<u8>,
        (key, signer): (&PrivateKey, &PublicKey),
        random: &[u8; RANDOM_BYTES],
    ) -> Result<Vec<u8>, CertificateError> {
        if key.public() != *signer {
            return Err(CertificateError::Subject(*signer));
        }
        let signature = signature::sign(key, self.purpose, &bytes, random);
        bytes.extend_from_slice(&signature);
        Ok(bytes)
    }

    fn open<'a>(&self, bytes: &'a [u8]) -> Result<Opened<'a>, CertificateError> {
        let length = CertificateError::Length(bytes.len());
        let (signed, signature) = bytes.split_last_chunk().ok_or(length)?;
        let (common, rest) = signed.split_first_chunk::<COMMON_BYTES>().ok_or(length)?;
        let ([version, kind, text_len, reserved], keys) =
            common.split_first_chunk().ok_or(length)?;
        let (signer, subject) = keys.split_first_chunk().ok_or(length)?;
        let subject = subject.try_into().map_err(|_| length)?;
        match (*version, *kind, *reserved) {
            (VERSION, kind, 0) if kind == self.number => {}
            (VERSION, kind, _) if kind == self.number => return Err(CertificateError::Reserved),
            (VERSION, kind, _) => return Err(CertificateError::Kind(kind)),
            (version, ..) => return Err(CertificateError::Version(version)),
        }
        let (signer, subject) = (PublicKey(*signer), PublicKey(subject));
        Ok(Opened { signer, subject, text_len: *text_len, rest, signed, signature })
    }
}

impl Opened<'_> {
    /// The text at the end of a certificate, whose length the header says.
    fn text<'a>(&self, bytes: &'a [u8]) -> Result<&'a str, CertificateError> {
        if bytes.len() != usize::from(self.text_len) {
            let all = self.signed.len() + SIGNATURE_BYTES;
            return Err(CertificateError::Length(all));
        }
        std::str::from_utf8(bytes).map_err(|_| CertificateError::Text(TextError::Character))
    }

    /// The costly check, after all cheap ones.
    fn verify(&self, kind: &Kind) -> Result<(), CertificateError> {
        let verifies = signature::verify(&self.signer, kind.purpose, self.signed, self.signature);
        if verifies { Ok(()) } else { Err(CertificateError::Forged) }
    }
}

#[cfg(test)]
mod tests;
