//! What cheaters answer with: commitments to chains, walks and leaves of their own making, opened and
//! signed as if they were true.

use hypha_chain::message::{Reader, sign};
use hypha_chain::{B256, keccak256};
use hypha_proofs::cpu::{Chain, drawn, segment_end, segment_start};
use hypha_proofs::label::LABEL_BYTES;
use hypha_proofs::prover::{Answer, run_claim, sign_answer};
use hypha_proofs::ram::{Walk, drawn_label, next_state};
use hypha_proofs::store::ShownLeaf;
use hypha_proofs::wire::{Commitment, Opening, SignedCommitment};
use hypha_proofs::{Challenge, disk, ram};

use crate::machine::{LEAF_BYTES, Machine, RULES};

/// What a node answers a pulse with.
pub enum Reply<'a> {
    /// What the real prover made, and whose key signs it.
    True(Box<Answer<'a>>, &'a Machine),
    /// Something else.
    Lie(Box<Lie<'a>>),
    /// An earlier one's work under another commitment.
    Again(Box<Reply<'a>>, SignedCommitment),
}

/// An answer of a liar's making.
pub struct Lie<'a> {
    machine: &'a Machine,
    pulse: B256,
    chains: Vec<Chain>,
    walk: Option<Walk>,
    leaves: Vec<ShownLeaf>,
    commitment: SignedCommitment,
}

/// What a liar commits to; what it does not claim is empty.
#[derive(Default)]
pub struct Parts {
    /// Checkpoints for each thread.
    pub chains: Vec<Vec<B256>>,
    /// The walk's states.
    pub walk: Option<Vec<u8>>,
    /// The drawn leaves.
    pub leaves: Option<Vec<ShownLeaf>>,
}

impl Reply<'_> {
    /// What goes to all witnesses.
    #[must_use]
    pub fn commitment(&self) -> SignedCommitment {
        match self {
            Self::True(answer, machine) => answer.commitment(&machine.key),
            Self::Lie(lie) => lie.commitment.clone(),
            Self::Again(_, commitment) => commitment.clone(),
        }
    }

    /// What one of them drew.
    #[must_use]
    pub fn open(&self, draw: &B256) -> Option<Opening> {
        match self {
            Self::True(answer, machine) => answer.open(draw, &machine.key),
            Self::Lie(lie) => lie.open(draw),
            Self::Again(reply, _) => reply.open(draw),
        }
    }
}

impl<'a> Lie<'a> {
    /// Signs a commitment to these parts.
    #[must_use]
    pub fn new(machine: &'a Machine, challenge: &Challenge, parts: Parts) -> Self {
        let chains: Vec<Chain> = parts.chains.into_iter().filter_map(Chain::of).collect();
        let walk = parts.walk.map(Walk::of);
        let bytes = |leaves: &Vec<ShownLeaf>| {
            disk::digest(leaves.iter().map(|leaf| leaf.leaf.bytes.as_slice()))
        };
        let commitment = Commitment {
            node: machine.binding.node,
            pulse: challenge.pulse,
            threads: chains.iter().map(Chain::root).collect(),
            walk: walk.as_ref().map(Walk::root),
            disk: parts.leaves.as_ref().map(bytes),
        };
        let signature = sign_answer(&machine.binding, &commitment, &machine.key);
        let commitment = SignedCommitment { commitment, signature };
        let (pulse, leaves) = (machine.binding.pulse(challenge), parts.leaves.unwrap_or_default());
        Self { machine, pulse, chains, walk, leaves, commitment }
    }

    fn open(&self, draw: &B256) -> Option<Opening> {
        let binding = &self.machine.binding;
        let domain = Reader::Disputes.domain(binding.chain_id, binding.disputes);
        let places = drawn(draw, &RULES, self.chains.len() as u16).into_iter();
        let segments = places.map(|place| {
            let segment = self.chains.get(usize::from(place.0))?.open(place.1)?;
            let claim = run_claim(binding, &self.pulse, place, &segment);
            Some((segment, sign(&claim, &domain, &self.machine.key)))
        });
        let segments = segments.collect::<Option<_>>()?;
        let steps = self.walk.as_ref().map(|walk| {
            let drawn = ram::drawn(draw, &RULES).into_iter();
            drawn.map(|step| walk.open(&self.machine.table, step)).collect::<Option<Vec<_>>>()
        });
        let steps = steps.unwrap_or_else(|| Some(Vec::new()))?;
        Some(Opening { segments, steps, leaves: self.leaves.clone() })
    }
}

/// A thread's checkpoints; segments that `skipped` names are not computed but made up.
pub fn states(pulse: &B256, thread: u16, skipped: impl Fn(u64) -> bool) -> Vec<B256> {
    let mut state = *pulse;
    let mut states = vec![state];
    for index in 0..RULES.segments {
        let start = segment_start(pulse, thread, index, &state);
        state = if skipped(index) { keccak256(start) } else { segment_end(&start) };
        states.push(state);
    }
    states
}

/// A walk over a table of which labels are missing: zeros are taken for those.
pub fn walk(pulse: &B256, labels: &[u8], is_missing: impl Fn(u64) -> bool) -> Vec<u8> {
    let count = (labels.len() / LABEL_BYTES) as u64;
    let (mut state, mut states) = (*pulse, pulse.to_vec());
    for step in 0..RULES.walk_steps {
        let drawn = drawn_label(&state, count);
        let at = drawn as usize * LABEL_BYTES;
        let kept = labels.get(at..at + LABEL_BYTES).filter(|_| !is_missing(drawn));
        state = next_state(pulse, step, &state, kept.unwrap_or(&[0; LABEL_BYTES]));
        states.extend_from_slice(&state[..]);
    }
    states
}

/// The leaves that a pulse draws of a machine's plot, and how many of them `is_missing` names: of those
/// the way is kept and the bytes are zeros.
pub fn leaves(
    machine: &Machine,
    challenge: &Challenge,
    is_missing: impl Fn(usize) -> bool,
) -> (Vec<ShownLeaf>, u32) {
    let pulse = machine.binding.pulse(challenge);
    let offsets = disk::offsets(&pulse, &RULES, machine.store.record().bytes_len);
    let mut missing = 0;
    let one = |offset: u64| {
        let read = machine.store.locate(offset)?;
        let extent = machine.extents.get(read.extent)?;
        let group = extent.get(read.range.start as usize..read.range.end as usize)?;
        let mut shown = machine.store.open(offset, group).ok()?;
        if is_missing(offset as usize / LEAF_BYTES) {
            shown.leaf.bytes.fill(0);
            missing += 1;
        }
        Some(shown)
    };
    let leaves = offsets.into_iter().filter_map(one).collect();
    (leaves, missing)
}
