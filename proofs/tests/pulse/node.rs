//! A small node with everything, and the two sides of a pulse with it.

use hypha_chain::key::Key;
use hypha_chain::tree::ExtentKind;
use hypha_chain::{Address, B256, keccak256};
use hypha_proofs::binding::Binding;
use hypha_proofs::label::{FILLER_LAYERS, TABLE_LAYERS, fill};
use hypha_proofs::prover::{Answer, Prover, Work};
use hypha_proofs::ram::Table;
use hypha_proofs::store::{ExtentTree, Store};
use hypha_proofs::verifier::{Claim, Outcome, Verifier};
use hypha_proofs::wire::SignedCommitment;
use hypha_proofs::{Challenge, Rules};

pub(crate) const RULES: Rules = Rules {
    segments: 60,
    walk_steps: 700,
    filler_bytes: EXTENT_LABELS * 32,
    block_bytes: BLOCK_LABELS * 32,
    ..Rules::STANDARD
};
pub(crate) const SECOND: u64 = 1_000_000_000;
const EXTENT_LABELS: u64 = 4096;
const BLOCK_LABELS: u64 = 2048;

pub(crate) fn binding(node: u32) -> Binding {
    let address = Address::repeat_byte;
    Binding {
        chain_id: 31337,
        registry: address(1),
        capacity: address(2),
        disputes: address(3),
        node,
    }
}

pub(crate) fn salt() -> B256 {
    keccak256("salt")
}

pub(crate) fn key() -> Key {
    Key::from_bytes(&[9; 32]).unwrap()
}

pub(crate) fn challenge(pulse: u64) -> Challenge {
    Challenge { pulse, seed: keccak256(pulse.to_be_bytes()) }
}

/// Filler of a node: what lies on its disks.
pub(crate) fn filler(binding: &Binding, extents: u32) -> Vec<Vec<u8>> {
    let one = |extent| fill(binding.filler(0, extent, &salt()), FILLER_LAYERS, EXTENT_LABELS);
    (0..extents).map(|extent| one(extent).unwrap()).collect()
}

pub(crate) fn table(binding: &Binding) -> Table {
    let block = |block| fill(binding.table(1, block, &salt()), TABLE_LAYERS, BLOCK_LABELS).unwrap();
    Table::new((0..3).map(block).collect()).unwrap()
}

/// A store over extents; the last is a user's shard.
pub(crate) fn store_of(extents: &[Vec<u8>]) -> Store {
    let kind = |at| if at + 1 == extents.len() { ExtentKind::User } else { ExtentKind::Filler };
    let extents = extents.iter().enumerate();
    Store::new(extents.map(|(at, bytes)| (kind(at), at as u64, ExtentTree::of(bytes))).collect())
        .unwrap()
}

pub(crate) struct Node {
    pub(crate) binding: Binding,
    pub(crate) threads: u16,
    pub(crate) table: Table,
    pub(crate) extents: Vec<Vec<u8>>,
    pub(crate) store: Store,
}

impl Node {
    pub(crate) fn honest(node: u32) -> Self {
        let binding = binding(node);
        let mut extents = filler(&binding, 3);
        extents.push((0..70_001_u32).map(|at| (at % 251) as u8).collect());
        let store = store_of(&extents);
        Self { binding, threads: 4, table: table(&binding), extents, store }
    }

    pub(crate) fn claim(&self) -> Claim {
        Claim {
            binding: self.binding,
            signer: key().address(),
            threads: self.threads,
            table: Some(self.table.record()),
            plot: Some(self.store.record()),
        }
    }

    pub(crate) fn prover(&self) -> Prover<'_> {
        Prover {
            binding: self.binding,
            rules: RULES,
            threads: self.threads,
            table: Some(&self.table),
            store: Some(&self.store),
        }
    }

    /// What is read for a pulse.
    pub(crate) fn groups(&self, work: &Work) -> Vec<Vec<u8>> {
        let reads = work.reads.iter();
        reads
            .map(|read| {
                let range = read.range.start as usize..read.range.end as usize;
                self.extents[read.extent][range].to_vec()
            })
            .collect()
    }

    /// All work of a pulse, honestly.
    pub(crate) fn answer(&self, challenge: &Challenge) -> Answer<'_> {
        let prover = self.prover();
        let mut work = prover.begin(challenge).unwrap();
        for chain in &mut work.chains {
            while chain.advance(7) > 0 {}
        }
        while work.walk.as_mut().unwrap().advance(&self.table, 100) > 0 {}
        let groups = self.groups(&work);
        prover.commit(challenge, work, &groups).unwrap()
    }
}

/// A pulse with a witness whose draw is `draw`.
pub(crate) fn judge(
    claim: Claim,
    challenge: Challenge,
    answer: &Answer<'_>,
    draw: B256,
) -> Outcome {
    judge_as(claim, challenge, &answer.commitment(&key()), answer, draw)
}

/// The same with another commitment than the answer's own.
pub(crate) fn judge_as(
    claim: Claim,
    challenge: Challenge,
    commitment: &SignedCommitment,
    answer: &Answer<'_>,
    draw: B256,
) -> Outcome {
    let mut verifier = Verifier::new(RULES, claim, challenge, 0);
    let draw = verifier.on_commitment(&commitment.encode(), 4 * SECOND, draw).unwrap();
    let opening = answer.open(&draw, &key()).unwrap();
    verifier.on_opening(&opening.encode(), 5 * SECOND).unwrap()
}
