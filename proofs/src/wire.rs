//! What a node sends: the commitment in time, the opening when it is drawn. Integers are big-endian;
//! `docs/proofs.md` draws both.

use hypha_chain::key::Signature;
use hypha_chain::tree::{Extent, ExtentKind, ExtentPath};
use hypha_chain::{B256, keccak256};
use storage_vdev::audit::LeafProof;

use crate::cpu::{Segment, THREADS_MAX};
use crate::ram::Step;
use crate::store::ShownLeaf;

/// The version of both messages.
pub const VERSION: u8 = 1;
/// The most bytes of a commitment.
pub const COMMITMENT_BYTES_MAX: usize = 1 + 4 + 8 + 2 + THREADS_MAX as usize * 32 + 1 + 64 + 65;
/// The most bytes of an opening.
pub const OPENING_BYTES_MAX: usize = 1 << 20;
/// The most hashes of a path: no tree over 2^64 bytes is higher.
const PATH_MAX: u8 = 64;
const HAS_WALK: u8 = 1;
const HAS_DISK: u8 = 2;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Cut off, or more than one may have.
    #[error("the message ends too early, or has more than one may have")]
    Length,
    /// Another version.
    #[error("version {0} of the message is not known here")]
    Version(u8),
    /// A byte that means nothing there.
    #[error("{0} means nothing at its place")]
    Value(u8),
}

/// What a node commits to before it knows what will be drawn of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commitment {
    /// The node's number.
    pub node: u32,
    /// The pulse's number.
    pub pulse: u64,
    /// The root of each thread's checkpoints.
    pub threads: Vec<B256>,
    /// The root of the walk's states, with a table.
    pub walk: Option<B256>,
    /// The digest of the drawn leaves, with a plot.
    pub disk: Option<B256>,
}

/// A commitment with the signature of the node's chain key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCommitment {
    /// What is signed.
    pub commitment: Commitment,
    /// Over `PulseAnswer`.
    pub signature: Signature,
}

/// What was drawn of a commitment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The drawn segments, each with the signature over it as a `RunClaim` of one segment.
    pub segments: Vec<(Segment, Signature)>,
    /// The drawn steps.
    pub steps: Vec<Step>,
    /// The leaves that the pulse drew.
    pub leaves: Vec<ShownLeaf>,
}

impl Commitment {
    /// What the contract Capacity calls the answer.
    #[must_use]
    pub fn answer(&self) -> B256 {
        keccak256(self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.node.to_be_bytes());
        out.extend(self.pulse.to_be_bytes());
        out.extend((self.threads.len() as u16).to_be_bytes());
        out.extend(self.threads.iter().flatten());
        let flag = |is: bool, bit| if is { bit } else { 0 };
        out.push(flag(self.walk.is_some(), HAS_WALK) | flag(self.disk.is_some(), HAS_DISK));
        out.extend(self.walk.iter().chain(&self.disk).flatten());
        out
    }
}

impl SignedCommitment {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.commitment.encode();
        out.extend(self.signature.to_bytes());
        out
    }

    /// Reads one; there is one encoding of each.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut input = Input::new(bytes, COMMITMENT_BYTES_MAX)?;
        let (node, pulse) = (u32::from_be_bytes(input.array()?), input.u64()?);
        let count = u16::from_be_bytes(input.array()?);
        if count > THREADS_MAX {
            return Err(WireError::Length);
        }
        let threads = (0..count).map(|_| input.hash()).collect::<Result<Vec<B256>, _>>()?;
        let flags = input.byte()?;
        if flags & !(HAS_WALK | HAS_DISK) != 0 {
            return Err(WireError::Value(flags));
        }
        let walk = if flags & HAS_WALK != 0 { Some(input.hash()?) } else { None };
        let disk = if flags & HAS_DISK != 0 { Some(input.hash()?) } else { None };
        let signature = input.signature()?;
        input.end()?;
        Ok(Self { commitment: Commitment { node, pulse, threads, walk, disk }, signature })
    }
}

impl Opening {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend((self.segments.len() as u16).to_be_bytes());
        for (segment, signature) in &self.segments {
            put_segment(&mut out, segment);
            out.extend(signature.to_bytes());
        }
        out.push(self.steps.len() as u8);
        for step in &self.steps {
            out.push(step.states.len() as u8);
            for leaf in &step.states {
                put_leaf(&mut out, leaf);
            }
            put_shown(&mut out, &step.label);
        }
        out.extend((self.leaves.len() as u16).to_be_bytes());
        for leaf in &self.leaves {
            put_shown(&mut out, leaf);
        }
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut input = Input::new(bytes, OPENING_BYTES_MAX)?;
        let count = u16::from_be_bytes(input.array()?);
        let segments = (0..count)
            .map(|_| Ok((input.segment()?, input.signature()?)))
            .collect::<Result<_, WireError>>()?;
        let count = input.byte()?;
        let steps = (0..count).map(|_| input.step()).collect::<Result<_, _>>()?;
        let count = u16::from_be_bytes(input.array()?);
        let leaves = (0..count).map(|_| input.shown()).collect::<Result<_, _>>()?;
        input.end()?;
        Ok(Self { segments, steps, leaves })
    }
}

/// Two neighbours' ways are the same from some level up: the second is written down to there.
fn put_segment(out: &mut Vec<u8>, segment: &Segment) {
    let [first, second] = &segment.paths;
    let shared = first.iter().rev().zip(second.iter().rev()).take_while(|(a, b)| a == b).count();
    out.extend(segment.states.iter().flatten());
    put_path(out, first.iter().map(|hash| &hash.0));
    put_path(out, second.iter().take(second.len() - shared).map(|hash| &hash.0));
    out.push(shared as u8);
}

fn put_path<'a>(out: &mut Vec<u8>, path: impl ExactSizeIterator<Item = &'a [u8; 32]>) {
    out.push(path.len() as u8);
    out.extend(path.flatten());
}

fn put_leaf(out: &mut Vec<u8>, leaf: &LeafProof) {
    out.extend((leaf.bytes.len() as u16).to_be_bytes());
    out.extend(&leaf.bytes);
    put_path(out, leaf.path.iter());
}

fn put_shown(out: &mut Vec<u8>, shown: &ShownLeaf) {
    put_way(out, &shown.way);
    put_leaf(out, &shown.leaf);
}

/// An extent's way to the root of its plot, as all messages have it.
pub(crate) fn put_way(out: &mut Vec<u8>, way: &ExtentPath) {
    let extent = &way.extent;
    out.push(extent.kind_number());
    out.extend(extent.id.to_be_bytes());
    out.extend(extent.bytes_len.to_be_bytes());
    out.extend(extent.root);
    out.push(way.siblings.len() as u8);
    for (is_left, sum, hash) in &way.siblings {
        out.push(u8::from(*is_left));
        out.extend(sum.to_be_bytes());
        out.extend(hash);
    }
}

/// What is left of a message.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// A message.
    pub(crate) fn new(bytes: &'a [u8], most: usize) -> Result<Self, WireError> {
        Self::of_version(VERSION, bytes, most)
    }

    /// Anything that begins with its version.
    pub(crate) fn of_version(version: u8, bytes: &'a [u8], most: usize) -> Result<Self, WireError> {
        if bytes.len() > most {
            return Err(WireError::Length);
        }
        let mut input = Self(bytes);
        match input.byte()? {
            it if it == version => Ok(input),
            other => Err(WireError::Version(other)),
        }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(WireError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Length)
    }

    /// All that is left, if that is no more than `most`.
    pub(crate) fn rest(&mut self, most: usize) -> Result<Vec<u8>, WireError> {
        if self.len() > most {
            return Err(WireError::Length);
        }
        Ok(std::mem::take(&mut self.0).to_vec())
    }

    /// A count of things of at least `size` bytes each, which must be there.
    pub(crate) fn counted(&mut self, size: usize) -> Result<u32, WireError> {
        let count = self.u32()?;
        let fits = (count as usize).checked_mul(size).is_some_and(|bytes| bytes <= self.len());
        if fits { Ok(count) } else { Err(WireError::Length) }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, WireError> {
        self.array().map(|[byte]: [u8; 1]| byte)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn hash(&mut self) -> Result<B256, WireError> {
        self.array().map(B256::new)
    }

    fn path(&mut self) -> Result<Vec<[u8; 32]>, WireError> {
        let count = self.byte()?;
        if count > PATH_MAX {
            return Err(WireError::Length);
        }
        (0..count).map(|_| self.array()).collect()
    }

    pub(crate) fn signature(&mut self) -> Result<Signature, WireError> {
        let (r, s) = (self.hash()?, self.hash()?);
        match self.byte()? {
            v @ (27 | 28) => Ok(Signature { r, s, y_is_odd: v == 28 }),
            other => Err(WireError::Value(other)),
        }
    }

    fn segment(&mut self) -> Result<Segment, WireError> {
        let states = [self.hash()?, self.hash()?];
        let first: Vec<B256> = self.path()?.into_iter().map(B256::new).collect();
        let mut second: Vec<B256> = self.path()?.into_iter().map(B256::new).collect();
        let shared = usize::from(self.byte()?);
        let start = first.len().checked_sub(shared).ok_or(WireError::Length)?;
        second.extend(first.get(start..).unwrap_or_default());
        if second.len() > usize::from(PATH_MAX) {
            return Err(WireError::Length);
        }
        Ok(Segment { states, paths: [first, second] })
    }

    fn step(&mut self) -> Result<Step, WireError> {
        let count = self.byte()?;
        if !(1..=2).contains(&count) {
            return Err(WireError::Value(count));
        }
        let states = (0..count).map(|_| self.leaf()).collect::<Result<_, _>>()?;
        Ok(Step { states, label: self.shown()? })
    }

    fn leaf(&mut self) -> Result<LeafProof, WireError> {
        let len = u16::from_be_bytes(self.array()?);
        let bytes = self.take(len.into())?.to_vec();
        Ok(LeafProof { bytes, path: self.path()? })
    }

    fn shown(&mut self) -> Result<ShownLeaf, WireError> {
        Ok(ShownLeaf { way: self.way()?, leaf: self.leaf()? })
    }

    pub(crate) fn way(&mut self) -> Result<ExtentPath, WireError> {
        let kind = match self.byte()? {
            1 => ExtentKind::Filler,
            2 => ExtentKind::User,
            other => return Err(WireError::Value(other)),
        };
        let (id, bytes_len, root) = (self.u64()?, self.u64()?, self.hash()?);
        let count = self.byte()?;
        if usize::from(count) > ExtentPath::LEVELS_MAX {
            return Err(WireError::Length);
        }
        let mut siblings = Vec::with_capacity(count.into());
        for _ in 0..count {
            let is_left = match self.byte()? {
                side @ (0 | 1) => side == 1,
                other => return Err(WireError::Value(other)),
            };
            siblings.push((is_left, self.u64()?, self.hash()?));
        }
        let extent = Extent { kind, id, bytes_len, root };
        let mut way = ExtentPath { extent, start: 0, siblings };
        way.start = way.climb().ok_or(WireError::Length)?.start;
        Ok(way)
    }

    pub(crate) fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Length) }
    }
}
