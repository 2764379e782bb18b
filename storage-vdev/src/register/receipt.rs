//! Receipts: what an acceptor signs when it accepts, and what others conclude from a majority.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `HRC1` |
//! | 4 | 4 | 0 |
//! | 8 | 32 | acceptor: an Ed25519 public key |
//! | 40 | 16, 8 | register, epoch |
//! | 64 | 24 | ballot |
//! | 88 | 32 | SHA-256 of the value |
//! | 120 | 64 | Ed25519 signature of `hypha register receipt 1` ‖ bytes 0–119 |

use bytes::Bytes;
use ring::digest;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};

use super::{Members, VolumeRecord};
use crate::fields::{Reader, Writer};
use crate::keys::Uuid;
use crate::node::{AcceptorId, Ballot, REGISTER_BYTES_MAX};

const MAGIC: [u8; 4] = *b"HRC1";
const DOMAIN: &[u8; 24] = b"hypha register receipt 1";
const SIGNED_BYTES: usize = 120;
const RECEIPT_BYTES: usize = SIGNED_BYTES + 64;

/// The most receipts of one piece of evidence: two sets of acceptors.
const RECEIPTS_MAX: usize = 2 * super::ACCEPTORS_MAX;

/// A statement of an acceptor: under this ballot I accepted this value, and it has this epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Who says it.
    pub acceptor: AcceptorId,
    /// The volume.
    pub register: Uuid,
    /// The epoch in the value.
    pub epoch: u64,
    /// The ballot.
    pub ballot: Ballot,
    /// The hash of the value.
    pub sha256: [u8; 32],
}

/// Why evidence proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// There is none, or it is not in the form that [`Committed::evidence`](super::Committed) has.
    #[error("the evidence of the epoch is malformed")]
    Malformed,
    /// It is about another volume or another epoch.
    #[error("the evidence is about another volume or another epoch")]
    OtherEpoch,
    /// A receipt that the acceptor it names didn't sign.
    #[error("a receipt is forged")]
    Forged,
    /// The acceptors that signed are not a majority of those that are known.
    #[error("too few of the register's acceptors have signed")]
    TooFew,
}

impl Receipt {
    /// Reads a receipt and checks its signature.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::Malformed`], [`EvidenceError::Forged`].
    pub fn verify(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let receipt = Self::parse(bytes).ok_or(EvidenceError::Malformed)?;
        let (signed, signature) =
            bytes.split_at_checked(SIGNED_BYTES).ok_or(EvidenceError::Malformed)?;
        UnparsedPublicKey::new(&ED25519, &receipt.acceptor)
            .verify(&[DOMAIN, signed].concat(), signature)
            .map_err(|_| EvidenceError::Forged)?;
        Ok(receipt)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Reader::new(bytes);
        let known = fields.bytes() == Some(MAGIC) && fields.u32() == Some(0);
        let receipt = Self {
            acceptor: fields.bytes()?,
            register: fields.bytes()?,
            epoch: fields.u64()?,
            ballot: Ballot { counter: fields.u64()?, proposer: fields.bytes()? },
            sha256: fields.bytes()?,
        };
        (known && bytes.len() == RECEIPT_BYTES).then_some(receipt)
    }
}

pub(super) fn sign(
    pair: &Ed25519KeyPair,
    register: &Uuid,
    epoch: u64,
    ballot: Ballot,
    value: &[u8],
) -> Bytes {
    use ring::signature::KeyPair as _;
    let mut bytes = [0; RECEIPT_BYTES];
    Writer::new(&mut bytes)
        .put(&MAGIC)
        .put(&[0; 4])
        .put(pair.public_key().as_ref())
        .put(register)
        .put(&epoch.to_le_bytes())
        .put(&ballot.counter.to_le_bytes())
        .put(&ballot.proposer)
        .put(&sha256(value));
    let (signed, signature) = bytes.split_at_mut(SIGNED_BYTES);
    signature.copy_from_slice(pair.sign(&[DOMAIN, &*signed].concat()).as_ref());
    Bytes::copy_from_slice(&bytes)
}

/// Checks that `register` has reached exactly `epoch`, for a node that knows its acceptors by
/// `known` and nothing else. `evidence` is the value, then receipts of acceptors that accepted it
/// under one ballot: a majority of each known set makes it chosen.
///
/// Returns the acceptors from now on: those that the value names. The caller keeps them for the
/// next time, durably and with the fence.
///
/// # Errors
///
/// Why the evidence proves nothing.
pub fn verify_evidence(
    register: &Uuid,
    epoch: u64,
    known: &Members,
    evidence: &[Bytes],
) -> Result<Members, EvidenceError> {
    let (value, receipts) = evidence.split_first().ok_or(EvidenceError::Malformed)?;
    if receipts.len() > RECEIPTS_MAX || value.len() > REGISTER_BYTES_MAX {
        return Err(EvidenceError::Malformed);
    }
    let (record, signed) = VolumeRecord::parse(value).map_err(|_| EvidenceError::Malformed)?;
    if record.register != *register || record.epoch != epoch {
        return Err(EvidenceError::OtherEpoch);
    }
    let hash = sha256(value);
    let mut signers = Vec::with_capacity(receipts.len());
    for bytes in receipts {
        let receipt = Receipt::verify(bytes)?;
        let same =
            receipt.register == *register && receipt.epoch == epoch && receipt.sha256 == hash;
        if !same || receipt.ballot != signed {
            return Err(EvidenceError::OtherEpoch);
        }
        signers.push(receipt.acceptor);
    }
    if !known.have_majority(|id| signers.contains(id)) {
        return Err(EvidenceError::TooFew);
    }
    Ok(record.members)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().first_chunk().copied().unwrap_or_default()
}
