//! What participants send each other. Each message is signed by whom it speaks for, or of no use to
//! who forges it; `docs/proofs.md` draws them.

use hypha_chain::B256;
use hypha_chain::key::{Key, Signature};
use hypha_chain::message::{Reader, digest, sign};

use super::gossip::CHECK_COST;
use super::pool::{Range, Sum, Term};
use super::statement::{STATEMENT_BYTES_MAX, Statement};
use crate::binding::Binding;
use crate::wire::{COMMITMENT_BYTES_MAX, Input, OPENING_BYTES_MAX, VERSION, WireError};

mod typed {
    alloy_sol_types::sol! {
        /// What a witness draws of a node's answer; signed for Capacity.
        struct PulseDraw { uint32 node; uint64 pulse; uint32 witness; bytes32 draw; }
        /// What a node opens to a witness; signed for Capacity.
        struct PulseOpening { uint32 node; uint64 pulse; uint32 witness; bytes32 opening; }
        /// A node is ready for its line to be measured; signed for Capacity.
        struct BurstReady { uint32 node; uint64 pulse; }
        /// What a challenger is about to send; signed for Capacity.
        struct BurstHead { uint32 node; uint64 pulse; uint32 challenger; bytes32 chunks; }
        /// What a node has received of its challengers; signed for Capacity.
        struct BurstReceipt { uint32 node; uint64 pulse; bytes32 entries; }
    }
}

pub(super) use typed::{BurstHead, BurstReady, BurstReceipt, PulseDraw, PulseOpening};

/// What it costs to see whether a statement is known.
const LOOK_COST: u64 = 16;
/// The most bytes of any message.
pub const MESSAGE_BYTES_MAX: usize = OPENING_BYTES_MAX + 256;
/// The most statements of one message.
pub const STATEMENTS_MAX: usize = 256;
/// The most numbers of statements in one message.
pub const IDS_MAX: usize = 4096;
/// The most bytes of one piece of a burst.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// The most pieces of a burst.
pub const CHUNKS_MAX: usize = 128;
/// The most challengers of a receipt.
pub const ENTRIES_MAX: usize = 16;

/// A message between participants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A node's commitment, as `wire::SignedCommitment` has it.
    Commitment(Vec<u8>),
    /// A witness's draw.
    Draw {
        /// Whose answer.
        node: u32,
        /// Of which pulse.
        pulse: u64,
        /// Who draws.
        witness: u32,
        /// What is drawn.
        draw: B256,
        /// The witness's, over `PulseDraw`.
        signature: Signature,
    },
    /// A node's opening for a witness.
    Opening {
        /// Whose answer.
        node: u32,
        /// Of which pulse.
        pulse: u64,
        /// For whom.
        witness: u32,
        /// As `wire::Opening` has it.
        opening: Vec<u8>,
        /// The node's, over `PulseOpening` with the opening's keccak-256.
        signature: Signature,
    },
    /// Statements, new ones or such as were wanted.
    Statements(Vec<Statement>),
    /// How much a peer has of a term's statements, in sixteen parts of a range.
    Summary(Term, Range, Box<[Sum; 16]>),
    /// The numbers of all statements that a peer has in a range.
    List(Term, Range, Vec<u128>),
    /// Numbers of statements that a peer wants.
    Want(Term, Vec<u128>),
    /// A node whose line is to be measured: begin.
    Ready {
        /// Which node.
        node: u32,
        /// In which pulse.
        pulse: u64,
        /// The node's, over `BurstReady`.
        signature: Signature,
    },
    /// What a challenger is about to send.
    Head {
        /// To whom.
        node: u32,
        /// In which pulse.
        pulse: u64,
        /// Who.
        challenger: u32,
        /// The SHA-256 of each piece.
        chunks: Vec<B256>,
        /// The challenger's, over `BurstHead` with the keccak-256 of all these.
        signature: Signature,
    },
    /// A piece of a burst.
    Chunk {
        /// In which pulse.
        pulse: u64,
        /// From whom.
        challenger: u32,
        /// Which, from 0.
        index: u16,
        /// Bytes that nobody could know before.
        bytes: Vec<u8>,
    },
    /// What a node has received; the same to all challengers.
    Receipt(Receipt),
    /// A peer wants a piece of something that is known by its hash.
    WantPiece {
        /// Its keccak-256.
        hash: B256,
        /// Where the piece begins.
        offset: u32,
    },
    /// That piece.
    Piece {
        /// The keccak-256 of the whole.
        hash: B256,
        /// Where the piece begins.
        offset: u32,
        /// Bytes of the whole.
        total: u32,
        /// [`CHUNK_BYTES`], or what is left.
        bytes: Vec<u8>,
    },
}

/// What a node has received of its challengers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Which node.
    pub node: u32,
    /// In which pulse.
    pub pulse: u64,
    /// For each challenger whose burst is whole, the hash over it.
    pub entries: Vec<(u32, B256)>,
    /// The node's, over `BurstReceipt`.
    pub signature: Signature,
}

impl Message {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.kind()];
        match self {
            Self::Commitment(bytes) => out.extend(bytes),
            Self::Draw { node, pulse, witness, draw, signature } => {
                put_place(&mut out, *node, *pulse, *witness);
                out.extend(draw);
                out.extend(signature.to_bytes());
            }
            Self::Opening { node, pulse, witness, opening, signature } => {
                put_place(&mut out, *node, *pulse, *witness);
                out.extend(signature.to_bytes());
                out.extend(opening);
            }
            Self::Statements(statements) => {
                out.extend((statements.len() as u16).to_be_bytes());
                statements.iter().for_each(|statement| statement.put(&mut out));
            }
            Self::Summary(term, range, sums) => {
                term.put(&mut out);
                range.put(&mut out);
                for sum in sums.iter() {
                    out.extend(sum.count.to_be_bytes());
                    out.extend(sum.hash.to_be_bytes());
                }
            }
            Self::List(term, range, ids) => {
                term.put(&mut out);
                range.put(&mut out);
                put_ids(&mut out, ids);
            }
            Self::Want(term, ids) => {
                term.put(&mut out);
                put_ids(&mut out, ids);
            }
            Self::Ready { node, pulse, signature } => {
                out.extend(node.to_be_bytes());
                out.extend(pulse.to_be_bytes());
                out.extend(signature.to_bytes());
            }
            Self::Head { node, pulse, challenger, chunks, signature } => {
                put_place(&mut out, *node, *pulse, *challenger);
                out.push(chunks.len() as u8);
                out.extend(chunks.iter().flatten());
                out.extend(signature.to_bytes());
            }
            Self::Chunk { pulse, challenger, index, bytes } => {
                out.extend(pulse.to_be_bytes());
                out.extend(challenger.to_be_bytes());
                out.extend(index.to_be_bytes());
                out.extend(bytes);
            }
            Self::Receipt(receipt) => receipt.put(&mut out),
            Self::WantPiece { hash, offset } => {
                out.extend(hash);
                out.extend(offset.to_be_bytes());
            }
            Self::Piece { hash, offset, total, bytes } => {
                out.extend(hash);
                out.extend(offset.to_be_bytes());
                out.extend(total.to_be_bytes());
                out.extend(bytes);
            }
        }
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut input = Input::new(bytes, MESSAGE_BYTES_MAX)?;
        let kind = input.byte()?;
        let message = Self::read(kind, &mut input)?;
        input.end()?;
        Ok(message)
    }

    fn read(kind: u8, input: &mut Input<'_>) -> Result<Self, WireError> {
        Ok(match kind {
            0 => Self::Commitment(input.rest(COMMITMENT_BYTES_MAX)?),
            1 => {
                let (node, pulse, witness) = place(input)?;
                let (draw, signature) = (input.hash()?, input.signature()?);
                Self::Draw { node, pulse, witness, draw, signature }
            }
            2 => {
                let (node, pulse, witness) = place(input)?;
                let (signature, opening) = (input.signature()?, input.rest(OPENING_BYTES_MAX)?);
                Self::Opening { node, pulse, witness, opening, signature }
            }
            3 => Self::Statements(statements(input)?),
            4 => {
                let (term, range) = (Term::read(input)?, Range::read(input)?);
                let mut sums = [Sum::default(); 16];
                for sum in &mut sums {
                    *sum = Sum { count: input.u32()?, hash: u128::from_be_bytes(input.array()?) };
                }
                Self::Summary(term, range, Box::new(sums))
            }
            5 => Self::List(Term::read(input)?, Range::read(input)?, ids(input)?),
            6 => Self::Want(Term::read(input)?, ids(input)?),
            7 => {
                let (node, pulse) = (input.u32()?, input.u64()?);
                Self::Ready { node, pulse, signature: input.signature()? }
            }
            8 => {
                let (node, pulse, challenger) = place(input)?;
                let chunks = counted(input, CHUNKS_MAX, |input| input.hash())?;
                let signature = input.signature()?;
                Self::Head { node, pulse, challenger, chunks, signature }
            }
            9 => {
                let (pulse, challenger) = (input.u64()?, input.u32()?);
                let index = u16::from_be_bytes(input.array()?);
                Self::Chunk { pulse, challenger, index, bytes: input.rest(CHUNK_BYTES)? }
            }
            10 => Self::Receipt(Receipt::read(input)?),
            11 => Self::WantPiece { hash: input.hash()?, offset: input.u32()? },
            12 => {
                let (hash, offset, total) = (input.hash()?, input.u32()?, input.u32()?);
                Self::Piece { hash, offset, total, bytes: input.rest(CHUNK_BYTES)? }
            }
            other => return Err(WireError::Value(other)),
        })
    }

    /// What it costs to look at it, in the measure of `Gossip::may_cost`. Statements that are new cost
    /// more, when they are checked.
    pub(super) fn cost(&self, bytes_len: usize) -> u64 {
        match self {
            Self::Chunk { .. } => bytes_len as u64 / 64,
            Self::Statements(all) => LOOK_COST * (1 + all.len() as u64),
            Self::Summary(..) | Self::List(..) | Self::Want(..) => bytes_len as u64,
            _ => CHECK_COST + bytes_len as u64 / 64,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Commitment(_) => 0,
            Self::Draw { .. } => 1,
            Self::Opening { .. } => 2,
            Self::Statements(_) => 3,
            Self::Summary(..) => 4,
            Self::List(..) => 5,
            Self::Want(..) => 6,
            Self::Ready { .. } => 7,
            Self::Head { .. } => 8,
            Self::Chunk { .. } => 9,
            Self::Receipt(_) => 10,
            Self::WantPiece { .. } => 11,
            Self::Piece { .. } => 12,
        }
    }
}

impl Receipt {
    /// The node's receipt.
    pub(super) fn new(binding: &Binding, pulse: u64, entries: Vec<(u32, B256)>, key: &Key) -> Self {
        let hash = Self::hash_of(&entries);
        let message = BurstReceipt { node: binding.node, pulse, entries: hash };
        Self { node: binding.node, pulse, entries, signature: signed(&message, binding, key) }
    }

    /// What challengers name it by.
    #[must_use]
    pub fn hash(&self) -> B256 {
        Self::hash_of(&self.entries)
    }

    /// What is signed.
    pub(super) fn digest(&self, binding: &Binding) -> B256 {
        let (node, pulse) = (self.node, self.pulse);
        digest_of(&BurstReceipt { node, pulse, entries: self.hash() }, binding)
    }

    fn hash_of(entries: &[(u32, B256)]) -> B256 {
        let mut bytes = Vec::new();
        for (challenger, hash) in entries {
            bytes.extend(challenger.to_be_bytes());
            bytes.extend(hash);
        }
        hypha_chain::keccak256(bytes)
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.node.to_be_bytes());
        out.extend(self.pulse.to_be_bytes());
        out.push(self.entries.len() as u8);
        for (challenger, hash) in &self.entries {
            out.extend(challenger.to_be_bytes());
            out.extend(hash);
        }
        out.extend(self.signature.to_bytes());
    }

    fn read(input: &mut Input<'_>) -> Result<Self, WireError> {
        let (node, pulse) = (input.u32()?, input.u64()?);
        let entries = counted(input, ENTRIES_MAX, |input| Ok((input.u32()?, input.hash()?)))?;
        Ok(Self { node, pulse, entries, signature: input.signature()? })
    }
}

/// Signs a message between participants, in Capacity's domain.
pub(super) fn signed(
    message: &impl alloy_sol_types::SolStruct,
    binding: &Binding,
    key: &Key,
) -> Signature {
    sign(message, &Reader::Capacity.domain(binding.chain_id, binding.capacity), key)
}

/// What is signed of a message between participants.
pub(super) fn digest_of(message: &impl alloy_sol_types::SolStruct, binding: &Binding) -> B256 {
    digest(message, &Reader::Capacity.domain(binding.chain_id, binding.capacity))
}

/// The smallest bytes of a statement: counts that don't fit what follows are refused before a read.
fn statements(input: &mut Input<'_>) -> Result<Vec<Statement>, WireError> {
    let count = usize::from(u16::from_be_bytes(input.array()?));
    if count > STATEMENTS_MAX || input.len() > count * STATEMENT_BYTES_MAX {
        return Err(WireError::Length);
    }
    (0..count).map(|_| Statement::read(input)).collect()
}

fn put_place(out: &mut Vec<u8>, node: u32, pulse: u64, other: u32) {
    out.extend(node.to_be_bytes());
    out.extend(pulse.to_be_bytes());
    out.extend(other.to_be_bytes());
}

fn place(input: &mut Input<'_>) -> Result<(u32, u64, u32), WireError> {
    Ok((input.u32()?, input.u64()?, input.u32()?))
}

fn put_ids(out: &mut Vec<u8>, ids: &[u128]) {
    out.extend((ids.len() as u16).to_be_bytes());
    ids.iter().for_each(|id| out.extend(id.to_be_bytes()));
}

fn ids(input: &mut Input<'_>) -> Result<Vec<u128>, WireError> {
    let count = usize::from(u16::from_be_bytes(input.array()?));
    if count > IDS_MAX {
        return Err(WireError::Length);
    }
    (0..count).map(|_| input.array().map(u128::from_be_bytes)).collect()
}

fn counted<T>(
    input: &mut Input<'_>,
    most: usize,
    read: impl Fn(&mut Input<'_>) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let count = usize::from(input.byte()?);
    if count > most {
        return Err(WireError::Length);
    }
    (0..count).map(|_| read(input)).collect()
}
