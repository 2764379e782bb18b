//! The audit tree of an object: SHA-256 over leaves of 1 KiB, so that who keeps a shard can show
//! any KiB of it to somebody who knows the root alone.
//!
//! `docs/audit-tree.md` is the specification, for those who check proofs elsewhere.

use ring::digest;

/// The bytes of a leaf; the last one of an object may be shorter.
pub const LEAF_BYTES: usize = 1024;

/// A SHA-256 hash.
pub type Hash = [u8; 32];

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
    len: u64,
    leaves: Vec<Hash>,
    /// The start of a leaf.
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
        self.len += bytes.len() as u64;
        if !self.pending.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(LEAF_BYTES - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == LEAF_BYTES {
                self.leaves.push(leaf_hash(self.leaves.len() as u64, &self.pending));
                self.pending.clear();
            }
        }
        let whole = bytes.chunks_exact(LEAF_BYTES);
        self.pending.extend_from_slice(whole.remainder());
        for leaf in whole {
            self.leaves.push(leaf_hash(self.leaves.len() as u64, leaf));
        }
    }

    /// The tree over all bytes so far.
    #[must_use]
    pub fn finish(mut self) -> AuditTree {
        if !self.pending.is_empty() || self.leaves.is_empty() {
            self.leaves.push(leaf_hash(self.leaves.len() as u64, &self.pending));
        }
        let mut levels = vec![self.leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let parent = |pair: &[Hash]| match pair {
                [left, right] => node_hash(left, right),
                // The last of an odd count goes up as it is.
                alone => alone.first().copied().unwrap_or_default(),
            };
            let level = below.chunks(2).map(parent).collect();
            levels.push(level);
        }
        AuditTree { len: self.len, levels }
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
