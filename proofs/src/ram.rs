//! Memory's part of a pulse: a walk over a table in which each step depends on the one before.
//!
//! The table is made of blocks of labels in two layers, once a day. A step hashes the pulse, the state
//! and the label that the state draws: who keeps the table anywhere but in memory is too slow.

use hypha_chain::B256;
use hypha_chain::tree::{Extent, ExtentKind, ExtentPath};
use storage_vdev::audit::{self, AuditTree, LEAF_BYTES, LeafProof, ProofError};

use crate::label::LABEL_BYTES;
use crate::store::{ExtentTree, LeafError, OpenError, PlotRecord, ShownLeaf, Store};
use crate::{Rules, draw, sha256};

/// Labels of a standard block: 64 MiB, so that a witness can make any one again in seconds.
pub const BLOCK_LABELS: u64 = 1 << 21;

const PURPOSE: u8 = 3;
const STATES_PER_LEAF: u64 = (LEAF_BYTES / LABEL_BYTES) as u64;

/// A node's table: its blocks' bytes and their trees.
pub struct Table {
    blocks: Vec<Vec<u8>>,
    store: Store,
    labels: u64,
}

impl Table {
    /// A table of blocks that have whole labels and, but for the last, one length; otherwise `None`.
    #[must_use]
    pub fn new(blocks: Vec<Vec<u8>>) -> Option<Self> {
        let extents = blocks.iter().zip(0..);
        let extents = extents.map(|(block, id)| (ExtentKind::Filler, id, ExtentTree::of(block)));
        let store = Store::new(extents.collect())?;
        let labels = store.record().bytes_len / LABEL_BYTES as u64;
        let first = blocks.first().map(Vec::len)?;
        let (last, others) = blocks.split_last()?;
        let even = others.iter().all(|block| block.len() == first) && last.len() <= first;
        let whole = blocks.iter().all(|block| block.len() % LABEL_BYTES == 0);
        (even && whole).then_some(Self { blocks, store, labels })
    }

    /// What the node commits to before the day's pulses.
    #[must_use]
    pub fn record(&self) -> PlotRecord {
        self.store.record()
    }

    fn label(&self, index: u64) -> &[u8] {
        let at = index as usize * LABEL_BYTES;
        let size = self.blocks.first().map_or(1, Vec::len).max(1);
        let block = self.blocks.get(at / size).map(Vec::as_slice).unwrap_or_default();
        block.get(at % size..at % size + LABEL_BYTES).unwrap_or_default()
    }

    /// The way of the block that holds the byte at `offset`; `None` behind the end.
    #[must_use]
    pub fn way(&self, offset: u64) -> Option<ExtentPath> {
        self.store.way(offset)
    }

    fn open(&self, offset: u64) -> Result<ShownLeaf, OpenError> {
        let read = self.store.locate(offset).ok_or(OpenError::Range(offset))?;
        let block = self.blocks.get(read.extent).map(Vec::as_slice).unwrap_or_default();
        let group = block.get(read.range.start as usize..read.range.end as usize);
        self.store.open(offset, group.unwrap_or_default())
    }
}

/// The label that a state draws.
#[must_use]
pub fn drawn_label(state: &B256, labels: u64) -> u64 {
    let word = state.first_chunk::<8>().copied().unwrap_or_default();
    u64::from_be_bytes(word) % labels.max(1)
}

/// The state after step `step`.
#[must_use]
pub fn next_state(pulse: &B256, step: u64, state: &B256, label: &[u8]) -> B256 {
    let mut bytes = [0; 104];
    let step = step.to_be_bytes();
    let mut rest = bytes.as_mut_slice();
    for part in [&pulse[..], &step, &state[..], label] {
        let Some((to, after)) = rest.split_at_mut_checked(part.len()) else { break };
        to.copy_from_slice(part);
        rest = after;
    }
    sha256(&bytes)
}

/// A walk that is being taken. Its tree is made with its last step.
pub struct WalkRun {
    pulse: B256,
    steps: u64,
    taken: u64,
    state: B256,
    states: Vec<u8>,
    walk: Option<Walk>,
}

impl WalkRun {
    /// A pulse's walk.
    #[must_use]
    pub fn new(pulse: B256, steps: u64) -> Self {
        Self { pulse, steps, taken: 0, state: pulse, states: pulse.to_vec(), walk: None }
    }

    /// Takes up to `steps` more steps over the table. Returns how many are left.
    pub fn advance(&mut self, table: &Table, steps: u64) -> u64 {
        for _ in 0..steps.min(self.steps - self.taken) {
            let label = table.label(drawn_label(&self.state, table.labels));
            self.state = next_state(&self.pulse, self.taken, &self.state, label);
            self.states.extend_from_slice(&self.state[..]);
            self.taken += 1;
        }
        let left = self.steps - self.taken;
        if left == 0 && self.walk.is_none() {
            self.walk = Some(Walk::of(std::mem::take(&mut self.states)));
        }
        left
    }

    /// The walk, ready to be opened; `None` if it is not done.
    #[must_use]
    pub fn finish(self) -> Option<Walk> {
        self.walk
    }
}

/// All states of a walk and the audit tree over them.
pub struct Walk {
    states: Vec<u8>,
    tree: AuditTree,
}

/// One drawn step: its two states, and the label between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The leaf of states that the first is in, and the next leaf if the second is there.
    pub states: Vec<LeafProof>,
    /// The label's leaf of the table.
    pub label: ShownLeaf,
}

impl Walk {
    /// Commits to states, whatever they are.
    #[must_use]
    pub fn of(states: Vec<u8>) -> Self {
        Self { tree: AuditTree::of(&states), states }
    }

    /// What the commitment says.
    #[must_use]
    pub fn root(&self) -> B256 {
        self.tree.root().into()
    }

    /// Opens a step; `None` if there is no such one.
    #[must_use]
    pub fn open(&self, table: &Table, step: u64) -> Option<Step> {
        let at = usize::try_from(step).ok()? * LABEL_BYTES;
        let state = B256::try_from(self.states.get(at..at + LABEL_BYTES)?).ok()?;
        let leaf = |index: u64| {
            let bytes = self.states.chunks(LEAF_BYTES).nth(index as usize)?;
            self.tree.open(index, bytes).ok()
        };
        let states = leaves_of(step).map(leaf).collect::<Option<Vec<LeafProof>>>()?;
        let label = table.open(drawn_label(&state, table.labels) * LABEL_BYTES as u64).ok()?;
        Some(Step { states, label })
    }
}

/// Why a shown step proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Not the leaves that the two states are in.
    #[error("step {0} is shown with other states than its own")]
    States(u64),
    /// The states are not those of the commitment.
    #[error("step {0} is not in the committed walk: {1}")]
    NotCommitted(u64, ProofError),
    /// The label is not in the table.
    #[error("the label of step {0} is not in the table: {1}")]
    Label(u64, LeafError),
    /// A block of another size, at another place, or of another kind than the table's must be.
    #[error("the label of step {0} is in a block that is not where and what it must be")]
    Block(u64),
    /// The second state does not follow.
    #[error("step {0} was not taken")]
    False(u64),
}

/// The steps that a witness draws.
#[must_use]
pub fn drawn(draw_seed: &B256, rules: &Rules) -> Vec<u64> {
    (0..rules.walk_draws).map(|at| draw(draw_seed, PURPOSE, at, rules.walk_steps)).collect()
}

impl Step {
    /// Checks a step against the walk's root and the table.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn check(
        &self,
        pulse: &B256,
        rules: &Rules,
        roots: (&B256, &PlotRecord),
        step: u64,
    ) -> Result<(), StepError> {
        let (root, table) = roots;
        let leaves = leaves_of(step);
        let first = leaves.start;
        if self.states.len() as u64 != leaves.end - leaves.start {
            return Err(StepError::States(step));
        }
        let len = (rules.walk_steps + 1) * LABEL_BYTES as u64;
        for (leaf, proof) in leaves.zip(&self.states) {
            audit::verify(&root.0, len, leaf, proof)
                .map_err(|error| StepError::NotCommitted(step, error))?;
        }
        let shown: Vec<u8> = self.states.iter().flat_map(|leaf| leaf.bytes.clone()).collect();
        let state = |index: u64| label_at(&shown, (index - first * STATES_PER_LEAF) as usize);
        let (from, to) = state(step).zip(state(step + 1)).ok_or(StepError::States(step))?;
        let index = drawn_label(&from, table.bytes_len / LABEL_BYTES as u64);
        let offset = index * LABEL_BYTES as u64;
        let place =
            self.label.check(table, offset).map_err(|error| StepError::Label(step, error))?;
        if !is_in_place(&self.label.way, rules.block_bytes, table.bytes_len) {
            return Err(StepError::Block(step));
        }
        // Of a table with blocks of broken labels, no such label is whole.
        let bytes = self.label.leaf.bytes.get(place..place + LABEL_BYTES);
        let label = bytes.ok_or(StepError::False(step))?;
        if next_state(pulse, step, &from, label) != to {
            return Err(StepError::False(step));
        }
        Ok(())
    }
}

/// Whether a block is one that a table may have there. Its number is its place, so that no block is
/// counted twice; all but the last have one size, so that none is made out of nothing in time.
fn is_in_place(way: &ExtentPath, block_bytes: u64, bytes_len: u64) -> bool {
    let Extent { kind, id, bytes_len: len, .. } = way.extent;
    let is_last = way.start + len == bytes_len;
    kind == ExtentKind::Filler
        && id.checked_mul(block_bytes) == Some(way.start)
        && (len == block_bytes || is_last && len < block_bytes)
}

/// The leaves of states that step `step` goes between.
fn leaves_of(step: u64) -> std::ops::Range<u64> {
    step / STATES_PER_LEAF..(step + 1) / STATES_PER_LEAF + 1
}

fn label_at(bytes: &[u8], index: usize) -> Option<B256> {
    B256::try_from(bytes.get(index * LABEL_BYTES..(index + 1) * LABEL_BYTES)?).ok()
}
