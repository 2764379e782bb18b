//! A node's side of a pulse: the work that the challenge asks for, the commitment to it, and the
//! opening of what a witness draws.

use hypha_chain::B256;
use hypha_chain::key::{Key, Signature};
use hypha_chain::message::{PulseAnswer, Reader, RunClaim, sign};

use crate::binding::Binding;
use crate::cpu::{self, Chain, ChainRun, Segment, THREADS_MAX, segment_start};
use crate::ram::{self, Table, Walk, WalkRun};
use crate::store::{OpenError, Read, ShownLeaf, Store};
use crate::wire::{Commitment, Opening, SignedCommitment};
use crate::{Challenge, Rules, disk};

/// The number that the contract Disputes has for HashSegment.
pub const HASH_SEGMENT: u8 = 1;

/// Why a node can't answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProverError {
    /// More than a commitment can have.
    #[error("{0} threads are claimed; an answer has {THREADS_MAX} at most")]
    Threads(u16),
    /// Not all that was asked for is there.
    #[error("the work of this pulse is not done: {0}")]
    Unfinished(&'static str),
    /// What was read of the disk is not what was kept.
    #[error(transparent)]
    Read(#[from] OpenError),
}

/// What a node has that it can prove.
pub struct Prover<'a> {
    /// Who it is.
    pub binding: Binding,
    /// How much is asked of it.
    pub rules: Rules,
    /// How many threads it claims.
    pub threads: u16,
    /// Its table, if it claims memory.
    pub table: Option<&'a Table>,
    /// Its disks' trees, if it claims disk.
    pub store: Option<&'a Store>,
}

/// The work of one pulse: all of it at the same time, each chain on a thread of its own.
pub struct Work {
    /// One for each claimed thread.
    pub chains: Vec<ChainRun>,
    /// Over the table.
    pub walk: Option<WalkRun>,
    /// What to read of the extents, in this order.
    pub reads: Vec<Read>,
}

/// What is kept of a pulse until it is opened.
pub struct Answer<'a> {
    binding: Binding,
    rules: Rules,
    pulse: B256,
    chains: Vec<Chain>,
    walk: Option<(Walk, &'a Table)>,
    leaves: Vec<ShownLeaf>,
    commitment: Commitment,
}

impl<'a> Prover<'a> {
    /// The work that a challenge asks for.
    ///
    /// # Errors
    /// [`ProverError::Threads`].
    pub fn begin(&self, challenge: &Challenge) -> Result<Work, ProverError> {
        if self.threads > THREADS_MAX {
            return Err(ProverError::Threads(self.threads));
        }
        let pulse = self.binding.pulse(challenge);
        let chain = |thread| ChainRun::new(pulse, thread, self.rules.segments);
        let offsets = self.store.map(|store| {
            let offsets = disk::offsets(&pulse, &self.rules, store.record().bytes_len);
            offsets.into_iter().filter_map(|offset| store.locate(offset)).collect()
        });
        Ok(Work {
            chains: (0..self.threads).map(chain).collect(),
            walk: self.table.map(|_| WalkRun::new(pulse, self.rules.walk_steps)),
            reads: offsets.unwrap_or_default(),
        })
    }

    /// The answer that the finished work makes; `groups` is what was read, in the order of the reads.
    ///
    /// # Errors
    /// Something is not done, or the disk has lost what was kept on it.
    pub fn commit(
        &self,
        challenge: &Challenge,
        work: Work,
        groups: &[Vec<u8>],
    ) -> Result<Answer<'a>, ProverError> {
        let Work { chains, walk, reads } = work;
        let chains: Option<Vec<Chain>> = chains.into_iter().map(ChainRun::finish).collect();
        let chains = chains.ok_or(ProverError::Unfinished("a chain"))?;
        let walk = match walk.zip(self.table) {
            None => None,
            Some((run, table)) => {
                Some((run.finish().ok_or(ProverError::Unfinished("the walk"))?, table))
            }
        };
        if groups.len() != reads.len() {
            return Err(ProverError::Unfinished("reading the disk"));
        }
        let mut leaves = Vec::with_capacity(reads.len());
        if let Some(store) = self.store {
            for (read, group) in reads.iter().zip(groups) {
                leaves.push(store.open(read.offset, group)?);
            }
        }
        let digest = || disk::digest(leaves.iter().map(|leaf| leaf.leaf.bytes.as_slice()));
        let commitment = Commitment {
            node: self.binding.node,
            pulse: challenge.pulse,
            threads: chains.iter().map(Chain::root).collect(),
            walk: walk.as_ref().map(|(walk, _)| walk.root()),
            disk: self.store.map(|_| digest()),
        };
        let (binding, rules, pulse) = (self.binding, self.rules, self.binding.pulse(challenge));
        Ok(Answer { binding, rules, pulse, chains, walk, leaves, commitment })
    }
}

impl Answer<'_> {
    /// What is sent to all witnesses before the deadline; the same to each.
    #[must_use]
    pub fn commitment(&self, key: &Key) -> SignedCommitment {
        let commitment = self.commitment.clone();
        SignedCommitment { signature: sign_answer(&self.binding, &commitment, key), commitment }
    }

    /// What one witness drew; `None` if this answer has no such part.
    #[must_use]
    pub fn open(&self, draw: &B256, key: &Key) -> Option<Opening> {
        let threads = self.chains.len() as u16;
        let segments = cpu::drawn(draw, &self.rules, threads).into_iter().map(|(thread, index)| {
            let segment = self.chains.get(usize::from(thread))?.open(index)?;
            let claim = run_claim(&self.binding, &self.pulse, (thread, index), &segment);
            let domain = Reader::Disputes.domain(self.binding.chain_id, self.binding.disputes);
            Some((segment, sign(&claim, &domain, key)))
        });
        let segments = segments.collect::<Option<_>>()?;
        let steps = self.walk.as_ref().map(|(walk, table)| {
            let drawn = ram::drawn(draw, &self.rules);
            drawn.into_iter().map(|step| walk.open(table, step)).collect::<Option<_>>()
        });
        let steps = steps.unwrap_or_else(|| Some(Vec::new()))?;
        Some(Opening { segments, steps, leaves: self.leaves.clone() })
    }
}

/// The signature over an answer that the contract Capacity takes.
#[must_use]
pub fn sign_answer(binding: &Binding, commitment: &Commitment, key: &Key) -> Signature {
    let domain = Reader::Capacity.domain(binding.chain_id, binding.capacity);
    sign(&pulse_answer(commitment), &domain, key)
}

/// What a node signs of its commitment: two different ones for one pulse cost all its stake.
#[must_use]
pub fn pulse_answer(commitment: &Commitment) -> PulseAnswer {
    let Commitment { node, pulse, .. } = *commitment;
    PulseAnswer { node, pulse, answer: commitment.answer() }
}

/// What a node signs of an opened segment: if it is false, a dispute over it costs all its stake.
#[must_use]
pub fn run_claim(
    binding: &Binding,
    pulse: &B256,
    place: (u16, u64),
    segment: &Segment,
) -> RunClaim {
    let [from, to] = segment.states;
    let start = segment_start(pulse, place.0, place.1, &from);
    RunClaim { node: binding.node, verifier: HASH_SEGMENT, segments: 1, start, end: to }
}
