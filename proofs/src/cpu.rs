//! A thread's part of a pulse: a chain of SHA-256 in segments of 1000 steps.
//!
//! Before each segment the state is mixed with the pulse, the thread and the segment's number.
//! Without that, a chain could be computed at any time before: the pulse would bind its first segment
//! alone, and one false segment among tens of thousands is hardly ever drawn.

use hypha_chain::B256;
use hypha_chain::tree::{Tree, root_of};

use crate::{Rules, draw, sha256};

/// Steps of a segment, as the contract HashSegment counts.
pub const SEGMENT_STEPS: u32 = 1000;
/// The most threads that one answer may have.
pub const THREADS_MAX: u16 = 256;

const PURPOSE: u8 = 2;

/// What a segment starts from: the state before it, bound to its place.
#[must_use]
pub fn segment_start(pulse: &B256, thread: u16, index: u64, state: &B256) -> B256 {
    let (thread, index) = (thread.to_be_bytes(), index.to_be_bytes());
    sha256(&[&pulse[..], &thread, &index, &state[..]].concat())
}

/// What a segment leads to: 1000 hashes.
#[must_use]
pub fn segment_end(start: &B256) -> B256 {
    (0..SEGMENT_STEPS).fold(*start, |state, _| sha256(&state[..]))
}

/// A chain that is being computed; one for each thread, on that thread.
pub struct ChainRun {
    pulse: B256,
    thread: u16,
    segments: u64,
    states: Vec<B256>,
}

impl ChainRun {
    /// A thread's chain in a pulse.
    #[must_use]
    pub fn new(pulse: B256, thread: u16, segments: u64) -> Self {
        Self { pulse, thread, segments, states: vec![pulse] }
    }

    /// Computes up to `segments` more. Returns how many are left.
    pub fn advance(&mut self, segments: u64) -> u64 {
        for _ in 0..segments.min(self.left()) {
            let index = self.states.len() as u64 - 1;
            let state = self.states.last().copied().unwrap_or_default();
            let start = segment_start(&self.pulse, self.thread, index, &state);
            self.states.push(segment_end(&start));
        }
        self.left()
    }

    /// The chain, ready to be opened; `None` if it is not done.
    #[must_use]
    pub fn finish(self) -> Option<Chain> {
        if self.left() > 0 { None } else { Chain::of(self.states) }
    }

    fn left(&self) -> u64 {
        (self.segments + 1).saturating_sub(self.states.len() as u64)
    }
}

/// A chain's checkpoints and the tree over them.
pub struct Chain {
    states: Vec<B256>,
    tree: Tree,
}

/// One drawn segment: the checkpoints before and after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The two states.
    pub states: [B256; 2],
    /// Their ways to the root.
    pub paths: [Vec<B256>; 2],
}

impl Chain {
    /// Commits to checkpoints, whatever they are; `None` without any.
    #[must_use]
    pub fn of(states: Vec<B256>) -> Option<Self> {
        let leaves: Vec<[u8; 40]> = (0..).zip(&states).map(|(at, state)| leaf(at, state)).collect();
        let tree = Tree::new(leaves.iter().map(<[u8; 40]>::as_slice))?;
        Some(Self { states, tree })
    }

    /// What the commitment says.
    #[must_use]
    pub fn root(&self) -> B256 {
        self.tree.root()
    }

    /// Opens a segment; `None` if there is no such one.
    #[must_use]
    pub fn open(&self, index: u64) -> Option<Segment> {
        let at = usize::try_from(index).ok()?;
        let states = [*self.states.get(at)?, *self.states.get(at + 1)?];
        Some(Segment { states, paths: [self.tree.path(index)?, self.tree.path(index + 1)?] })
    }
}

/// Why a shown segment proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// A state is not in the committed tree, or the chain is shorter than it must be.
    #[error("segment {index} of thread {thread} is not in the committed chain of that length")]
    NotCommitted {
        /// The thread.
        thread: u16,
        /// The segment.
        index: u64,
    },
    /// The second state does not follow from the first.
    #[error("segment {index} of thread {thread} was not computed")]
    False {
        /// The thread.
        thread: u16,
        /// The segment.
        index: u64,
    },
}

/// The segments that a witness draws: thread and index. Every thread has at least one.
pub fn drawn(draw_seed: &B256, rules: &Rules, threads: u16) -> Vec<(u16, u64)> {
    let number = rules.segments_drawn(threads);
    let place = |at: u32| {
        ((at % u32::from(threads.max(1))) as u16, draw(draw_seed, PURPOSE, at, rules.segments))
    };
    (0..number).map(place).collect()
}

impl Segment {
    /// Checks a segment against a thread's root: 1000 hashes and two paths.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn check(
        &self,
        pulse: &B256,
        rules: &Rules,
        root: &B256,
        place: (u16, u64),
    ) -> Result<(), SegmentError> {
        let ((thread, index), [from, to]) = (place, &self.states);
        let [first, second] = &self.paths;
        let count = rules.segments + 1;
        let committed = root_of(&leaf(index, from), index, count, first) == Some(*root)
            && root_of(&leaf(index + 1, to), index + 1, count, second) == Some(*root);
        if !committed {
            return Err(SegmentError::NotCommitted { thread, index });
        }
        if segment_end(&segment_start(pulse, thread, index, from)) != *to {
            return Err(SegmentError::False { thread, index });
        }
        Ok(())
    }
}

/// A checkpoint as the contracts know it.
fn leaf(index: u64, state: &B256) -> [u8; 40] {
    let mut bytes = [0; 40];
    let parts = index.to_be_bytes().into_iter().chain(state.0);
    for (to, from) in bytes.iter_mut().zip(parts) {
        *to = from;
    }
    bytes
}
