//! An acceptor: what it has promised and accepted, and what it makes of a message.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `HACC` |
//! | 4 | 2, 2 | format version, 1 if a value follows |
//! | 8 | 24 | promised ballot |
//! | 32 | 24 | accepted ballot |
//! | 56 | 4, 4 | length of the value, 0 |
//! | 64 | … | the value |
//! | … | 4 | CRC-32C of all before |

use bytes::Bytes;
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::VolumeRecord;
use super::receipt;
use crate::fields::{Reader, Writer};
use crate::keys::Uuid;
use crate::node::{
    AcceptorId, Ballot, NodeError, REGISTER_BYTES_MAX, RegisterRequest, RegisterResponse,
};

const MAGIC: [u8; 4] = *b"HACC";
const FORMAT: u16 = 1;
const FIXED_BYTES: usize = 64;
const CRC_BYTES: usize = 4;

/// How far a ballot may leap: far more than any run of changes needs, and too little for one bad
/// message to use the ballots up.
pub(super) const LEAP_MAX: u64 = 1 << 32;

/// Who an acceptor is, and what it signs receipts with.
#[derive(Debug)]
pub struct AcceptorKey(Signer);

#[derive(Debug)]
enum Signer {
    Silent(AcceptorId),
    Ed25519(Ed25519KeyPair),
}

impl AcceptorKey {
    /// An acceptor that signs receipts. `seed` is 32 random bytes, secret, kept where the acceptor's
    /// state is kept, made and lost with it.
    ///
    /// `None` if the library refuses the seed.
    #[must_use]
    pub fn signing(seed: &[u8; 32]) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok().map(|pair| Self(Signer::Ed25519(pair)))
    }

    /// An acceptor that signs nothing: inside the one process that believes it. `id` is 32 random
    /// bytes, made and lost with its state.
    #[must_use]
    pub fn silent(id: AcceptorId) -> Self {
        Self(Signer::Silent(id))
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> AcceptorId {
        match &self.0 {
            Signer::Silent(id) => *id,
            Signer::Ed25519(pair) => {
                pair.public_key().as_ref().first_chunk().copied().unwrap_or_default()
            }
        }
    }

    fn receipt(
        &self,
        register: &Uuid,
        record: &VolumeRecord,
        ballot: Ballot,
        value: &[u8],
    ) -> Bytes {
        match &self.0 {
            Signer::Silent(_) => Bytes::new(),
            Signer::Ed25519(pair) => receipt::sign(pair, register, record.epoch, ballot, value),
        }
    }
}

/// What an acceptor keeps for one register.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AcceptorState {
    promised: Ballot,
    accepted: Option<(Ballot, Bytes)>,
}

/// What a message does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The new state. If there is one, it must be durable before the answer leaves the node.
    pub next: Option<AcceptorState>,
    /// The answer.
    pub response: RegisterResponse,
}

/// The stored bytes are not an acceptor's state. The acceptor must not go on without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored state of a register acceptor is damaged, or of another version")]
pub struct AcceptorFormatError;

impl AcceptorState {
    /// The highest ballot that was promised.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.promised
    }

    /// What was accepted last.
    #[must_use]
    pub fn accepted(&self) -> Option<(Ballot, &Bytes)> {
        self.accepted.as_ref().map(|(ballot, value)| (*ballot, value))
    }

    /// What `message` does to this state.
    ///
    /// # Errors
    ///
    /// [`NodeError::Unsupported`] for a message that no honest proposer sends: a value that isn't a
    /// record of this register, two values for one ballot, a ballot out of all proportion.
    pub fn step(
        &self,
        key: &AcceptorKey,
        register: &Uuid,
        message: &RegisterRequest,
    ) -> Result<Transition, NodeError> {
        let (RegisterRequest::Prepare { ballot } | RegisterRequest::Accept { ballot, .. }) =
            message;
        if ballot.counter == 0 || ballot.counter > self.promised.counter.saturating_add(LEAP_MAX) {
            return Err(NodeError::Unsupported);
        }
        if *ballot < self.promised {
            let response = RegisterResponse::Rejected { promised: self.promised };
            return Ok(Transition { next: None, response });
        }
        match message {
            RegisterRequest::Prepare { ballot } => {
                let next = Self { promised: *ballot, accepted: self.accepted.clone() };
                let accepted = self.accepted.clone();
                let response = RegisterResponse::Promised { acceptor: key.id(), accepted };
                Ok(Transition { next: (next != *self).then_some(next), response })
            }
            RegisterRequest::Accept { ballot, value } => self.accept(key, register, *ballot, value),
        }
    }

    fn accept(
        &self,
        key: &AcceptorKey,
        register: &Uuid,
        ballot: Ballot,
        value: &Bytes,
    ) -> Result<Transition, NodeError> {
        let record = match VolumeRecord::parse(value) {
            Ok((record, signed))
                if value.len() <= REGISTER_BYTES_MAX
                    && record.register == *register
                    && signed == ballot =>
            {
                record
            }
            _ => return Err(NodeError::Unsupported),
        };
        if self.accepted.as_ref().is_some_and(|(at, other)| *at == ballot && other != value) {
            return Err(NodeError::Unsupported);
        }
        let next = Self { promised: ballot, accepted: Some((ballot, value.clone())) };
        let receipt = key.receipt(register, &record, ballot, value);
        let response = RegisterResponse::Accepted { acceptor: key.id(), receipt };
        Ok(Transition { next: (next != *self).then_some(next), response })
    }

    /// The bytes to keep.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (ballot, value) = match &self.accepted {
            Some((ballot, value)) => (*ballot, &value[..]),
            None => (Ballot::default(), &[][..]),
        };
        let end = FIXED_BYTES + value.len();
        let mut bytes = vec![0; end + CRC_BYTES];
        Writer::new(&mut bytes)
            .put(&MAGIC)
            .put(&FORMAT.to_le_bytes())
            .put(&u16::from(self.accepted.is_some()).to_le_bytes())
            .put(&self.promised.counter.to_le_bytes())
            .put(&self.promised.proposer)
            .put(&ballot.counter.to_le_bytes())
            .put(&ballot.proposer)
            .put(&(value.len() as u32).to_le_bytes())
            .put(&[0; 4])
            .put(value);
        let crc = crc32c::crc32c(&bytes[..end]);
        Writer::new(&mut bytes[end..]).put(&crc.to_le_bytes());
        bytes
    }

    /// Reads what [`AcceptorState::encode`] wrote. Bytes behind it are refused.
    ///
    /// # Errors
    ///
    /// If they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, AcceptorFormatError> {
        Self::decode_fields(bytes).ok_or(AcceptorFormatError)
    }

    fn decode_fields(bytes: &[u8]) -> Option<Self> {
        let (checked, crc) = bytes.split_last_chunk::<CRC_BYTES>()?;
        let mut fields = Reader::new(checked);
        let known = fields.bytes() == Some(MAGIC) && fields.u16() == Some(FORMAT);
        if !known || crc32c::crc32c(checked) != u32::from_le_bytes(*crc) {
            return None;
        }
        let has_value = fields.u16()?;
        let promised = Ballot { counter: fields.u64()?, proposer: fields.bytes()? };
        let ballot = Ballot { counter: fields.u64()?, proposer: fields.bytes()? };
        let length = fields.u32()? as usize;
        let padding = fields.u32()?;
        let value = checked.get(FIXED_BYTES..)?;
        let plain = padding == 0 && length == value.len() && length <= REGISTER_BYTES_MAX;
        let accepted = match has_value {
            0 if value.is_empty() && ballot == Ballot::default() => None,
            1 if ballot <= promised => Some((ballot, Bytes::copy_from_slice(value))),
            _ => return None,
        };
        plain.then_some(Self { promised, accepted })
    }
}
