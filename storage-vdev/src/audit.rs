//! The audit tree of an object: SHA-256 over leaves of 1 KiB, so that who keeps a shard can show
//! any KiB of it to somebody who knows the root alone.
//!
//! `docs/audit-tree.md` is the specification, for those who check proofs elsewhere.

#[cfg(target_arch = "x86_64")]
mod lanes;

use ring::digest;

/// The bytes of a leaf; the last one of an object may be shorter.
pub const LEAF_BYTES: usize = 1024;

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The bytes that are hashed together where the CPU can.
const BATCH_BYTES: usize = 16 * LEAF_BYTES;

const LEAF_PREFIX: u8 = 0;
const NODE_PREFIX: u8 = 1;
const ROOT_PREFIX: u8 = 2;

/// Why a leaf can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenLeafError {
    /// The object has no such leaf.
    #[error("leaf {leaf} is behind the object's {leaves} leaves")]
    Range {
        /// The leaf asked for.
        leaf: u64,
        /// How many there are.
        leaves: u64,
    },
    /// The bytes are not those that the tree was built over.
    #[error("the bytes of leaf {leaf} have changed since its tree was built")]
    Changed {
        /// The leaf.
        leaf: u64,
    },
}

/// Why a proof shows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The object has no such leaf.
    #[error("leaf {leaf} is behind the object's {leaves} leaves")]
    Range {
        /// The leaf asked for.
        leaf: u64,
        /// How many there are.
        leaves: u64,
    },
    /// The leaf hasn't the length that its place demands.
    #[error("leaf {leaf} of such an object has {needed} bytes, not {found}")]
    LeafLength {
        /// The leaf.
        leaf: u64,
        /// How many bytes the proof has.
        found: usize,
        /// How many it should have.
        needed: usize,
    },
    /// The path is longer or shorter than from the leaf to the root.
    #[error("a path of {found} hashes, where it takes {needed}")]
    PathLength {
        /// How many hashes the proof has.
        found: usize,
        /// How many it should have.
        needed: usize,
    },
    /// The hashes lead to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// A leaf and the hashes beside its way to the root, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafProof {
    /// The leaf's bytes.
    pub bytes: Vec<u8>,
    /// The siblings; a level at which the node has none is left out.
    pub path: Vec<Hash>,
}

/// The tree over an object; takes 1/16 of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditTree {
    len: u64,
    /// From the leaves to the one top node.
    levels: Vec<Vec<Hash>>,
}

/// Builds a tree over bytes that come in pieces.
#[derive(Debug, Clone, Default)]
pub struct AuditTreeBuilder {
    leaves: Vec<Hash>,
    /// The start of a batch.
    pending: Vec<u8>,
}

impl AuditTreeBuilder {
    /// A builder that has seen no bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the object's next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if !self.pending.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BATCH_BYTES - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() < BATCH_BYTES {
                return;
            }
            push_leaf_hashes(&mut self.leaves, &self.pending);
            self.pending.clear();
        }
        let (batches, rest) = bytes.split_at(bytes.len() / BATCH_BYTES * BATCH_BYTES);
        push_leaf_hashes(&mut self.leaves, batches);
        self.pending.extend_from_slice(rest);
    }

    /// The tree over all bytes so far.
    #[must_use]
    pub fn finish(mut self) -> AuditTree {
        let len = (self.leaves.len() * LEAF_BYTES + self.pending.len()) as u64;
        push_leaf_hashes(&mut self.leaves, &self.pending);
        if self.leaves.is_empty() {
            self.leaves.push(leaf_hash(0, &[]));
        }
        let mut levels = vec![self.leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let level = level_above(below);
            levels.push(level);
        }
        AuditTree { len, levels }
    }
}

impl AuditTree {
    /// The tree over an object that lies in memory.
    #[must_use]
    pub fn of(object: &[u8]) -> Self {
        let mut builder = AuditTreeBuilder::new();
        builder.update(object);
        builder.finish()
    }

    /// The bytes of the object.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the length of what the tree is over")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The hash that stands for the object and its length.
    #[must_use]
    pub fn root(&self) -> Hash {
        let top = self.levels.last().and_then(|level| level.first());
        root_hash(self.len, &top.copied().unwrap_or_default())
    }

    /// Opens a leaf, whose bytes the caller has read from the object.
    ///
    /// # Errors
    /// If there is no such leaf, or the bytes are others than the tree was built over: what would
    /// come of that proves nothing.
    pub fn open(&self, leaf: u64, bytes: &[u8]) -> Result<LeafProof, OpenLeafError> {
        let leaves = leaf_count(self.len);
        let index = usize::try_from(leaf).unwrap_or(usize::MAX);
        let hashes = self.levels.first();
        let Some(known) = hashes.and_then(|hashes| hashes.get(index)) else {
            return Err(OpenLeafError::Range { leaf, leaves });
        };
        if *known != leaf_hash(leaf, bytes) {
            return Err(OpenLeafError::Changed { leaf });
        }
        let siblings = self.levels.iter().enumerate();
        let path = siblings.filter_map(|(height, level)| level.get(index >> height ^ 1).copied());
        Ok(LeafProof { bytes: bytes.to_vec(), path: path.collect() })
    }
}

/// The leaves of an object of this many bytes; an empty object has one, empty.
#[must_use]
pub fn leaf_count(len: u64) -> u64 {
    len.div_ceil(LEAF_BYTES as u64).max(1)
}

/// Checks that `proof` shows leaf `leaf` of the object with this root and length.
///
/// Takes at most 55 hashes, whatever the proof holds.
///
/// # Errors
/// If it doesn't. The root binds the length: a true proof fails for another `len`.
pub fn verify(root: &Hash, len: u64, leaf: u64, proof: &LeafProof) -> Result<(), ProofError> {
    let leaves = leaf_count(len);
    if leaf >= leaves {
        return Err(ProofError::Range { leaf, leaves });
    }
    let needed = (len - leaf * LEAF_BYTES as u64).min(LEAF_BYTES as u64) as usize;
    if proof.bytes.len() != needed {
        return Err(ProofError::LeafLength { leaf, found: proof.bytes.len(), needed });
    }
    // Which side the sibling of each level is on; no entry for a node without one.
    let mut sides = Vec::new();
    let (mut index, mut width) = (leaf, leaves);
    while width > 1 {
        if index ^ 1 < width {
            sides.push(index & 1 == 1);
        }
        (index, width) = (index >> 1, width.div_ceil(2));
    }
    if proof.path.len() != sides.len() {
        return Err(ProofError::PathLength { found: proof.path.len(), needed: sides.len() });
    }
    let first = leaf_hash(leaf, &proof.bytes);
    let top = proof.path.iter().zip(sides).fold(first, |hash, (sibling, left)| {
        if left { node_hash(sibling, &hash) } else { node_hash(&hash, sibling) }
    });
    if root_hash(len, &top) == *root { Ok(()) } else { Err(ProofError::Root) }
}

/// Adds the hashes of the leaves that follow those in `leaves`.
fn push_leaf_hashes(leaves: &mut Vec<Hash>, bytes: &[u8]) {
    let (batches, rest) = bytes.as_chunks::<BATCH_BYTES>();
    for batch in batches {
        match batch_of_leaves(leaves.len() as u64, batch) {
            Some(hashes) => leaves.extend(hashes),
            None => push_one_by_one(leaves, batch),
        }
    }
    push_one_by_one(leaves, rest);
}

fn push_one_by_one(leaves: &mut Vec<Hash>, bytes: &[u8]) {
    for leaf in bytes.chunks(LEAF_BYTES) {
        leaves.push(leaf_hash(leaves.len() as u64, leaf));
    }
}

/// The nodes above a level; the last one of an odd count goes up as it is.
fn level_above(below: &[Hash]) -> Vec<Hash> {
    let (pairs, odd) = below.as_chunks();
    let (batches, rest) = pairs.as_chunks();
    let mut above = Vec::with_capacity(below.len().div_ceil(2));
    for batch in batches {
        match batch_of_nodes(batch) {
            Some(hashes) => above.extend(hashes),
            None => above.extend(batch.iter().map(|[left, right]| node_hash(left, right))),
        }
    }
    above.extend(rest.iter().map(|[left, right]| node_hash(left, right)));
    above.extend(odd);
    above
}

/// The hashes of sixteen leaves, the first of which has this number; `None` if the CPU hasn't the
/// instructions.
#[cfg(target_arch = "x86_64")]
fn batch_of_leaves(first: u64, bytes: &[u8; BATCH_BYTES]) -> Option<[Hash; 16]> {
    const BLOCKS: usize = (PREFIX_BYTES + LEAF_BYTES) / 64 + 1;
    const PREFIX_BYTES: usize = 9;
    let lanes = lanes::Lanes::detect()?;
    let leaf = |lane: usize| &bytes[lane * LEAF_BYTES..][..LEAF_BYTES];
    // The blocks that hold more than bytes of the leaf: the prefix, and the padding.
    let heads: [lanes::Block; 16] = std::array::from_fn(|lane| {
        let mut block = [LEAF_PREFIX; 64];
        block[1..PREFIX_BYTES].copy_from_slice(&(first + lane as u64).to_be_bytes());
        block[PREFIX_BYTES..].copy_from_slice(&leaf(lane)[..64 - PREFIX_BYTES]);
        block
    });
    let tails: [lanes::Block; 16] = std::array::from_fn(|lane| {
        let mut block = [0; 64];
        block[..PREFIX_BYTES].copy_from_slice(&leaf(lane)[LEAF_BYTES - PREFIX_BYTES..]);
        pad(&mut block, PREFIX_BYTES, PREFIX_BYTES + LEAF_BYTES);
        block
    });
    Some(lanes.hash(BLOCKS, |number| {
        std::array::from_fn(|lane| match number {
            0 => &heads[lane],
            _ => {
                let rest = &leaf(lane)[number * 64 - PREFIX_BYTES..];
                rest.first_chunk().unwrap_or(&tails[lane])
            }
        })
    }))
}

/// The nodes above sixteen pairs; `None` if the CPU hasn't the instructions.
#[cfg(target_arch = "x86_64")]
fn batch_of_nodes(pairs: &[[Hash; 2]; 16]) -> Option<[Hash; 16]> {
    let lanes = lanes::Lanes::detect()?;
    let messages: [[lanes::Block; 2]; 16] = pairs.each_ref().map(|[left, right]| {
        let (mut first, mut second) = ([NODE_PREFIX; 64], [0; 64]);
        first[1..33].copy_from_slice(left);
        first[33..].copy_from_slice(&right[..31]);
        second[0] = right[31];
        pad(&mut second, 1, 65);
        [first, second]
    });
    Some(lanes.hash(2, |number| messages.each_ref().map(|message| &message[number])))
}

/// Ends a message of `len` bytes in its last block, of which it fills `used`.
#[cfg(target_arch = "x86_64")]
fn pad(block: &mut lanes::Block, used: usize, len: usize) {
    block[used] = 0x80;
    block[56..].copy_from_slice(&(8 * len as u64).to_be_bytes());
}

#[cfg(not(target_arch = "x86_64"))]
fn batch_of_leaves(_: u64, _: &[u8; BATCH_BYTES]) -> Option<[Hash; 16]> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn batch_of_nodes(_: &[[Hash; 2]; 16]) -> Option<[Hash; 16]> {
    None
}

fn leaf_hash(leaf: u64, bytes: &[u8]) -> Hash {
    sha256(&[&[LEAF_PREFIX], &leaf.to_be_bytes(), bytes])
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[NODE_PREFIX], left, right])
}

fn root_hash(len: u64, top: &Hash) -> Hash {
    sha256(&[&[ROOT_PREFIX], &len.to_be_bytes(), top])
}

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
