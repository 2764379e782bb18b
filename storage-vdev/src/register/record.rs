//! The value of a volume's register, and its layout.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `HYPHREG1` |
//! | 8 | 2, 2, 4 | format version, flags (bit 0: released), length of all |
//! | 16 | 16 | register: the volume's uuid |
//! | 32 | 8, 8 | version, epoch |
//! | 48 | 24 | change: the ballot under which this version was first proposed |
//! | 72 | 16 | opener: the proposer that took the epoch |
//! | 88 | 16, 8 | holder's id, length of a lease in nanoseconds |
//! | 112 | 8, 8, 32 | superblock: version, epoch, SHA-256 |
//! | 160 | 1, 1, 1, 5 | length of the holder's name, acceptors in the set, in the next set, 0 |
//! | 168 | 64 | the holder's name, UTF-8, then zeros |
//! | 232 | 24 | the ballot under which these bytes are to be accepted |
//! | 256 | 32 each | acceptors of the set, then of the next set |
//! | … | 32 | HMAC-SHA256 of all before, under the key for `register record` |
//! | … | 4 | CRC-32C of all before |
//!
//! The ballot is signed too. Else an acceptor could show an old record under a new ballot, and one
//! that lies would be enough to roll the register back.

use ring::hmac;

use crate::fields::{Reader, Writer, is_blank};
use crate::keys::{Uuid, VolumeKey, register_mac_key};
use crate::node::{AcceptorId, Ballot};

const MAGIC: [u8; 8] = *b"HYPHREG1";
const FORMAT: u16 = 1;
const FLAG_RELEASED: u16 = 1;
const FIXED_BYTES: usize = 256;
const MAC_BYTES: usize = 32;
const CRC_BYTES: usize = 4;

/// The most bytes of a holder's name.
pub const HOLDER_NAME_BYTES_MAX: usize = 64;

/// The most acceptors of one set.
pub const ACCEPTORS_MAX: usize = 15;

/// Who holds a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The host or the workload; the same over its restarts.
    pub id: [u8; 16],
    /// What to call it in a message, at most [`HOLDER_NAME_BYTES_MAX`].
    pub name: String,
}

/// The newest superblock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SuperblockRef {
    /// Its version; 0 if there is none yet.
    pub version: u64,
    /// The epoch in its key.
    pub epoch: u64,
    /// The hash of its bytes.
    pub sha256: [u8; 32],
}

/// The acceptors of a register. While they are being changed, there are two sets, and each promise
/// and each value needs a majority of both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Members {
    /// The set.
    pub current: Vec<AcceptorId>,
    /// The set that is to follow; empty if there is none.
    pub next: Vec<AcceptorId>,
}

/// The record in a volume's register.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeRecord {
    /// The volume.
    pub register: Uuid,
    /// Counts the changes, from 1.
    pub version: u64,
    /// Counts the openings, from 1.
    pub epoch: u64,
    /// The ballot under which this version was first proposed: no two changes have the same.
    pub change: Ballot,
    /// The proposer that took the epoch: no two openings have the same.
    pub opener: [u8; 16],
    /// Who holds the volume, or held it last.
    pub holder: Holder,
    /// How long a holder may go without renewing.
    pub lease_ns: u64,
    /// The holder is done with it.
    pub released: bool,
    /// The newest superblock.
    pub superblock: SuperblockRef,
    /// Who decides about the next change.
    pub members: Members,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RecordError {
    /// Cut off, damaged, or something else.
    #[error("the register's value is damaged")]
    Damaged,
    /// A version of the format that this program doesn't know.
    #[error("the register's value has format version {found}; this program knows version {FORMAT}")]
    Version {
        /// The version.
        found: u16,
    },
    /// The volume's key didn't sign it.
    #[error("the register's value was not written with this volume's key")]
    Forged,
    /// The record of another volume.
    #[error("the register's value belongs to another volume")]
    OtherVolume,
}

/// The key that a volume's records are signed with.
#[derive(Debug, Clone)]
pub struct RegisterKey(hmac::Key);

impl RegisterKey {
    /// The key of the volume `uuid` under its `volume_key`.
    #[must_use]
    pub fn new(volume_key: &VolumeKey, uuid: Uuid) -> Self {
        Self(register_mac_key(volume_key, uuid))
    }
}

impl Members {
    /// The sets of which each must give a majority.
    pub fn sets(&self) -> impl Iterator<Item = &[AcceptorId]> {
        [&self.current[..], &self.next[..]].into_iter().filter(|set| !set.is_empty())
    }

    /// Whether `acceptor` is in one of the sets.
    #[must_use]
    pub fn contains(&self, acceptor: &AcceptorId) -> bool {
        self.sets().any(|set| set.contains(acceptor))
    }

    /// Whether the acceptors for which `counts` holds are a majority of each set.
    pub fn have_majority(&self, counts: impl Fn(&AcceptorId) -> bool) -> bool {
        !self.current.is_empty()
            && self.sets().all(|set| 2 * set.iter().filter(|id| counts(id)).count() > set.len())
    }

    fn is_valid(&self) -> bool {
        self.sets().all(|set| {
            set.len() <= ACCEPTORS_MAX
                && set
                    .iter()
                    .enumerate()
                    .all(|(index, id)| !set.iter().take(index).any(|x| x == id))
        })
    }
}

impl VolumeRecord {
    /// The bytes of this record, to be accepted under `ballot`.
    ///
    /// A name longer than [`HOLDER_NAME_BYTES_MAX`] is cut at a character, and acceptors behind
    /// [`ACCEPTORS_MAX`] are refused by the [`Edit`](super::Edit) that would bring them in.
    #[must_use]
    pub fn encode(&self, key: &RegisterKey, ballot: Ballot) -> Vec<u8> {
        let ids = || self.members.current.iter().chain(&self.members.next);
        let body = FIXED_BYTES + 32 * ids().count();
        let mut bytes = vec![0; body + MAC_BYTES + CRC_BYTES];
        let length = bytes.len() as u32;
        let name = cut(&self.holder.name);
        let mut padded = [0; HOLDER_NAME_BYTES_MAX];
        Writer::new(&mut padded).put(name.as_bytes());
        let (current, next) = (self.members.current.len(), self.members.next.len());
        let mut writer = Writer::new(&mut bytes);
        writer
            .put(&MAGIC)
            .put(&FORMAT.to_le_bytes())
            .put(&(if self.released { FLAG_RELEASED } else { 0 }).to_le_bytes())
            .put(&length.to_le_bytes())
            .put(&self.register)
            .put(&self.version.to_le_bytes())
            .put(&self.epoch.to_le_bytes())
            .put(&self.change.counter.to_le_bytes())
            .put(&self.change.proposer)
            .put(&self.opener)
            .put(&self.holder.id)
            .put(&self.lease_ns.to_le_bytes())
            .put(&self.superblock.version.to_le_bytes())
            .put(&self.superblock.epoch.to_le_bytes())
            .put(&self.superblock.sha256)
            .put(&[name.len() as u8, current as u8, next as u8, 0, 0, 0, 0, 0])
            .put(&padded)
            .put(&ballot.counter.to_le_bytes())
            .put(&ballot.proposer);
        for id in ids() {
            writer.put(id);
        }
        let (signed, rest) = bytes.split_at_mut(body);
        let (mac, _) = rest.split_at_mut(MAC_BYTES);
        mac.copy_from_slice(hmac::sign(&key.0, signed).as_ref());
        let crc = crc32c::crc32c(&bytes[..body + MAC_BYTES]);
        Writer::new(&mut bytes[body + MAC_BYTES..]).put(&crc.to_le_bytes());
        bytes
    }

    /// Reads a record and its ballot without the key: what they say may be a lie.
    ///
    /// # Errors
    ///
    /// [`RecordError::Damaged`] or [`RecordError::Version`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, Ballot), RecordError> {
        let mut head = Reader::new(bytes);
        if head.bytes() != Some(MAGIC) {
            return Err(RecordError::Damaged);
        }
        match head.u16() {
            Some(FORMAT) => Self::parse_body(bytes).ok_or(RecordError::Damaged),
            Some(found) => Err(RecordError::Version { found }),
            None => Err(RecordError::Damaged),
        }
    }

    /// Reads a record of the volume `register` that `key` has signed, and the ballot under which it
    /// was to be accepted.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn open(
        bytes: &[u8],
        key: &RegisterKey,
        register: Uuid,
    ) -> Result<(Self, Ballot), RecordError> {
        let (record, ballot) = Self::parse(bytes)?;
        let tail = bytes.len().saturating_sub(MAC_BYTES + CRC_BYTES);
        let (signed, rest) = bytes.split_at_checked(tail).ok_or(RecordError::Damaged)?;
        let mac = rest.get(..MAC_BYTES).ok_or(RecordError::Damaged)?;
        hmac::verify(&key.0, signed, mac).map_err(|_| RecordError::Forged)?;
        if record.register != register {
            return Err(RecordError::OtherVolume);
        }
        Ok((record, ballot))
    }

    fn parse_body(bytes: &[u8]) -> Option<(Self, Ballot)> {
        let (checked, crc) = bytes.split_last_chunk::<CRC_BYTES>()?;
        if crc32c::crc32c(checked) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut fields = Reader::new(checked);
        let _: [u8; 10] = fields.bytes()?;
        let flags = fields.u16()?;
        let length = fields.u32()?;
        let register = fields.bytes()?;
        let (version, epoch) = (fields.u64()?, fields.u64()?);
        let change = Ballot { counter: fields.u64()?, proposer: fields.bytes()? };
        let opener = fields.bytes()?;
        let holder_id = fields.bytes()?;
        let lease_ns = fields.u64()?;
        let superblock =
            SuperblockRef { version: fields.u64()?, epoch: fields.u64()?, sha256: fields.bytes()? };
        let [name_len, current, next, padding @ ..] = fields.bytes::<8>()?;
        let name: [u8; HOLDER_NAME_BYTES_MAX] = fields.bytes()?;
        let (name, blank) = name.split_at_checked(name_len.into())?;
        let ballot = Ballot { counter: fields.u64()?, proposer: fields.bytes()? };
        let members = Members {
            current: (0..current).map(|_| fields.bytes()).collect::<Option<_>>()?,
            next: (0..next).map(|_| fields.bytes()).collect::<Option<_>>()?,
        };
        let _mac: [u8; MAC_BYTES] = fields.bytes()?;
        let plain = flags & !FLAG_RELEASED == 0
            && length as usize == bytes.len()
            && fields.bytes::<1>().is_none()
            && is_blank(&padding)
            && is_blank(blank)
            && version > 0
            && members.is_valid()
            && (members.next.is_empty() || !members.current.is_empty());
        let name = std::str::from_utf8(name).ok()?.to_owned();
        let record = Self {
            register,
            version,
            epoch,
            change,
            opener,
            holder: Holder { id: holder_id, name },
            lease_ns,
            released: flags & FLAG_RELEASED != 0,
            superblock,
            members,
        };
        plain.then_some((record, ballot))
    }
}

/// The longest start of `name` that fits and ends between characters.
fn cut(name: &str) -> &str {
    name.get(..name.floor_char_boundary(HOLDER_NAME_BYTES_MAX)).unwrap_or_default()
}
