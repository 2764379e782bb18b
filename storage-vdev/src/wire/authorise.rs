//! Who may do what with a volume: capabilities, signed by the volume's writer key.
//!
//! The writer key (Ed25519) follows from the volume key; a node pins its public half when it first
//! sees the volume. Whoever holds it shows a capability that is signed over this very session's
//! handshake hash: copied into another session, it is worth nothing. For a healer the writer key
//! signs a [`Delegation`] instead: to a node's static key, for some rights, until some time; the
//! handshake proves that the session's client holds that key.
//!
//! This module decides whether a capability is genuine. Whether its writer key is the one pinned
//! for the volume is the node's business.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::handshake::NodePublicKey;
use super::message::{Input, MessageError};
use crate::keys::{Uuid, VolumeKey};
use crate::node::AcceptorId;
use crate::register::ACCEPTORS_MAX;
use crate::service::{Rights, WriterKey};

const CAPABILITY_CONTEXT: &[u8] = b"hypha shard capability 1";
const DELEGATION_CONTEXT: &[u8] = b"hypha shard delegation 1";
const CARD_CONTEXT: &[u8] = b"hypha volume card 1";

/// The rights as bits: read 1, write 2, delete 4, fence 8, heal 16, audit 32.
#[must_use]
pub fn rights_to_bits(rights: Rights) -> u8 {
    let Rights { read, write, delete, fence, heal, audit } = rights;
    let bits = [read, write, delete, fence, heal, audit].into_iter().rev();
    bits.fold(0, |bits, bit| bits << 1 | u8::from(bit))
}

/// The rights of these bits; `None` if a bit means nothing.
#[must_use]
pub fn rights_from_bits(bits: u8) -> Option<Rights> {
    let has = |place: u8| bits >> place & 1 == 1;
    let [read, write, delete, fence, heal, audit] = [0, 1, 2, 3, 4, 5].map(has);
    (bits < 64).then_some(Rights { read, write, delete, fence, heal, audit })
}

fn verifies(writer: &WriterKey, text: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, writer).verify(text, signature).is_ok()
}

/// Signs with a volume's writer key. `ring` keeps the key in memory that it doesn't erase; the seed
/// is erased.
pub struct VolumeSigner {
    pair: Ed25519KeyPair,
    volume: Uuid,
}

impl std::fmt::Debug for VolumeSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VolumeSigner(..)")
    }
}

impl VolumeSigner {
    /// The writer key of `volume`, from its volume key.
    #[must_use]
    pub fn derive(volume_key: &VolumeKey, volume: Uuid) -> Self {
        let seed = volume_key.writer_seed(volume);
        let Ok(pair) = Ed25519KeyPair::from_seed_unchecked(&*seed) else {
            unreachable!("every 32 bytes are the seed of an Ed25519 key");
        };
        Self { pair, volume }
    }

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> Uuid {
        self.volume
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> WriterKey {
        let key = self.pair.public_key().as_ref();
        key.first_chunk().copied().unwrap_or_default()
    }

    /// A capability for the session with this handshake hash, for whoever holds the writer key.
    #[must_use]
    pub fn capability(&self, rights: Rights, binding: &[u8; 32]) -> Authorise {
        let text = capability_text(binding, &self.volume, rights);
        Authorise {
            volume: self.volume,
            writer: self.public(),
            rights,
            proof: Proof::Session { signature: self.sign(&text) },
            card: None,
        }
    }

    /// Gives `rights` to the holder of a static key until `not_after` (seconds since 1970).
    #[must_use]
    pub fn delegate(&self, rights: Rights, holder: NodePublicKey, not_after: u64) -> Delegation {
        let text = delegation_text(&self.volume, rights, &holder, not_after);
        Delegation {
            volume: self.volume,
            writer: self.public(),
            rights,
            holder,
            not_after,
            signature: self.sign(&text),
        }
    }

    /// Signs who the first acceptors of the volume's register are.
    #[must_use]
    pub fn card(&self, acceptors: &[AcceptorId]) -> VolumeCard {
        let mut card = VolumeCard { acceptors: acceptors.to_vec(), signature: [0; 64] };
        card.signature = self.sign(&card.text(&self.volume));
        card
    }

    fn sign(&self, text: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(text);
        let bytes: Option<&[u8; 64]> = signature.as_ref().first_chunk();
        bytes.copied().unwrap_or([0; 64])
    }
}

/// Rights that the writer key gave to somebody else. Public bytes: useless without the holder's
/// private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The volume.
    pub volume: Uuid,
    /// The key that signed.
    pub writer: WriterKey,
    /// What the holder may do.
    pub rights: Rights,
    /// The static key that the session's client must have.
    pub holder: NodePublicKey,
    /// The last second, since 1970, in which it counts.
    pub not_after: u64,
    /// Over all the above.
    pub signature: [u8; 64],
}

impl Delegation {
    /// The bytes of a stored delegation.
    pub const BYTES: usize = 160;

    /// As it is stored by a daemon that heals: volume, writer, rights (8), holder, end, signature.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (rights, end) = (u64::from(rights_to_bits(self.rights)), self.not_after);
        crate::fields::Writer::new(&mut bytes)
            .put(&self.volume)
            .put(&self.writer)
            .put(&rights.to_le_bytes())
            .put(&self.holder.0)
            .put(&end.to_le_bytes())
            .put(&self.signature);
        bytes
    }

    /// Reads what [`Delegation::to_bytes`] wrote, and checks its signature. `None` if it is not
    /// genuine.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut reader = crate::fields::Reader::new(bytes);
        let (volume, writer) = (reader.bytes()?, reader.bytes()?);
        let rights = rights_from_bits(u8::try_from(reader.u64()?).ok()?)?;
        let (holder, not_after) = (NodePublicKey(reader.bytes()?), reader.u64()?);
        let delegation =
            Self { volume, writer, rights, holder, not_after, signature: reader.bytes()? };
        delegation.is_genuine().then_some(delegation)
    }

    /// The message that shows it.
    #[must_use]
    pub fn authorise(&self) -> Authorise {
        let (holder, not_after, signature) = (self.holder, self.not_after, self.signature);
        Authorise {
            volume: self.volume,
            writer: self.writer,
            rights: self.rights,
            proof: Proof::Delegated { holder, not_after, signature },
            card: None,
        }
    }

    fn is_genuine(&self) -> bool {
        let text = delegation_text(&self.volume, self.rights, &self.holder, self.not_after);
        verifies(&self.writer, &text, &self.signature)
    }
}

/// Who the first acceptors of a volume's register are, signed by its writer key. A node that knows
/// none for the volume yet keeps them, and asks for their receipts at each fence; later changes come
/// with the receipts themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeCard {
    /// The acceptors, by their receipt keys.
    pub acceptors: Vec<AcceptorId>,
    /// Over the volume and the acceptors.
    pub signature: [u8; 64],
}

impl VolumeCard {
    fn text(&self, volume: &Uuid) -> Vec<u8> {
        [CARD_CONTEXT, volume, self.acceptors.as_flattened()].concat()
    }

    /// Whether `writer` signed it for `volume`.
    #[must_use]
    pub fn is_genuine(&self, volume: &Uuid, writer: &WriterKey) -> bool {
        (1..=ACCEPTORS_MAX).contains(&self.acceptors.len())
            && verifies(writer, &self.text(volume), &self.signature)
    }
}

/// How a capability is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The writer key signed this session's handshake hash.
    Session {
        /// Over the handshake hash, the volume and the rights.
        signature: [u8; 64],
    },
    /// The writer key signed the client's static key.
    Delegated {
        /// The static key that the session's client must have.
        holder: NodePublicKey,
        /// The last second, since 1970, in which it counts.
        not_after: u64,
        /// Over the volume, the rights, the holder and the end.
        signature: [u8; 64],
    },
}

/// A capability, as it is shown once per volume and session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorise {
    /// The volume.
    pub volume: Uuid,
    /// The key that signed; the node compares it with the pinned one.
    pub writer: WriterKey,
    /// What it entitles to.
    pub rights: Rights,
    /// Why it should be believed.
    pub proof: Proof,
    /// The volume's card, if the client has a new one.
    pub card: Option<VolumeCard>,
}

/// Why a capability doesn't count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// Its signature is not the writer key's over this.
    #[error("the capability is not signed by the volume's writer key for this session")]
    Forged,
    /// It was given to somebody else.
    #[error("the capability was given to another node")]
    Holder,
    /// Its time is over.
    #[error("the capability ended")]
    Expired,
    /// The card with it is not signed by the same key, or makes no sense.
    #[error("the volume's card is not signed by its writer key")]
    Card,
}

impl Authorise {
    /// Whether this counts in the session with this handshake hash and client at `unix_seconds`.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn verify(
        &self,
        binding: &[u8; 32],
        peer: &NodePublicKey,
        unix_seconds: u64,
    ) -> Result<(), CapabilityError> {
        let (text, signature) = match &self.proof {
            Proof::Session { signature } => {
                (capability_text(binding, &self.volume, self.rights), signature)
            }
            Proof::Delegated { holder, .. } if holder != peer => {
                return Err(CapabilityError::Holder);
            }
            Proof::Delegated { not_after, .. } if *not_after < unix_seconds => {
                return Err(CapabilityError::Expired);
            }
            Proof::Delegated { holder, not_after, signature } => {
                (delegation_text(&self.volume, self.rights, holder, *not_after), signature)
            }
        };
        if !verifies(&self.writer, &text, signature) {
            return Err(CapabilityError::Forged);
        }
        match &self.card {
            Some(card) if !card.is_genuine(&self.volume, &self.writer) => {
                Err(CapabilityError::Card)
            }
            _ => Ok(()),
        }
    }

    /// The last second in which it counts; `None` if it lives as long as its session.
    #[must_use]
    pub fn not_after(&self) -> Option<u64> {
        match self.proof {
            Proof::Session { .. } => None,
            Proof::Delegated { not_after, .. } => Some(not_after),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (form, holder, end, signature) = match &self.proof {
            Proof::Session { signature } => (0, [0; 32], 0, signature),
            Proof::Delegated { holder, not_after, signature } => {
                (1, holder.0, *not_after, signature)
            }
        };
        let flags =
            [rights_to_bits(self.rights), form, u8::from(self.card.is_some()), 0, 0, 0, 0, 0];
        let end = u64::to_le_bytes(end);
        let parts: [&[u8]; 6] = [&self.volume, &self.writer, &flags, &holder, &end, signature];
        parts.iter().for_each(|part| out.extend_from_slice(part));
        if let Some(card) = &self.card {
            let count = u8::try_from(card.acceptors.len()).unwrap_or(u8::MAX);
            out.extend_from_slice(&[count, 0, 0, 0, 0, 0, 0, 0]);
            out.extend_from_slice(card.acceptors.as_flattened());
            out.extend_from_slice(&card.signature);
        }
    }

    pub(super) fn decode(input: &mut Input<'_>) -> Result<Self, MessageError> {
        let (volume, writer) = (input.array()?, input.array()?);
        let [rights, form, has_card, 0, 0, 0, 0, 0] = input.array()? else {
            return Err(MessageError::Excess);
        };
        let rights = rights_from_bits(rights).ok_or(MessageError::Range)?;
        let (holder, not_after): ([u8; 32], u64) = (input.array()?, input.u64()?);
        let signature = input.array()?;
        let proof = match form {
            0 if holder == [0; 32] && not_after == 0 => Proof::Session { signature },
            0 => return Err(MessageError::Excess),
            1 => Proof::Delegated { holder: NodePublicKey(holder), not_after, signature },
            _ => return Err(MessageError::Range),
        };
        let card = match has_card {
            0 => None,
            1 => Some(decode_card(input)?),
            _ => return Err(MessageError::Range),
        };
        Ok(Self { volume, writer, rights, proof, card })
    }
}

fn decode_card(input: &mut Input<'_>) -> Result<VolumeCard, MessageError> {
    let [count, 0, 0, 0, 0, 0, 0, 0] = input.array()? else {
        return Err(MessageError::Excess);
    };
    if usize::from(count) > ACCEPTORS_MAX {
        return Err(MessageError::Range);
    }
    let acceptors = (0..count).map(|_| input.array()).collect::<Result<_, _>>()?;
    Ok(VolumeCard { acceptors, signature: input.array()? })
}

fn capability_text(binding: &[u8; 32], volume: &Uuid, rights: Rights) -> Vec<u8> {
    [CAPABILITY_CONTEXT, binding, volume, &[rights_to_bits(rights)]].concat()
}

fn delegation_text(
    volume: &Uuid,
    rights: Rights,
    holder: &NodePublicKey,
    not_after: u64,
) -> Vec<u8> {
    let end = not_after.to_le_bytes();
    [DELEGATION_CONTEXT, volume, &[rights_to_bits(rights)], &holder.0, &end].concat()
}
