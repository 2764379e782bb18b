//! The processors' part of a pulse: chains of SHA-256 in segments of 1000 steps, one for each unit.
//!
//! A unit is the work of one chain in one pulse and nothing else: a fast thread does several of them, two
//! slow ones may do one. In messages its chain is called a thread, for which it once stood.
//!
//! Before each segment the state is mixed with the pulse, the thread and the segment's number.
//! Without that, a chain could be computed at any time before: the pulse would bind its first segment
//! alone, and one false segment among tens of thousands is hardly ever drawn.

use hypha_chain::B256;
use hypha_chain::tree::{Tree, root_of};

use crate::{Rules, draw, sha256};

/// Steps of a segment, as the contract HashSegment counts.
pub const SEGMENT_STEPS: u32 = 1000;
/// The most chains that one answer may have, and so the most units of a node.
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

/// Of the deadline, the part that an owner is advised to fill: the rest is for blocks that come late, lines
/// that are slow, and a machine that does something else for once. Who fills more, up to what still counts in
/// full, gains by it in no network of usual lines (`proof-sim`).
const ADVISED_SHARE: (u64, u64) = (18, 25);

/// How fast a machine's threads hash.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Threads.
    pub threads: u16,
    /// Nanoseconds of a hash on one of them while the others rest.
    pub alone_ns: f64,
    /// Nanoseconds by hash of whichever thread, with all of them at work.
    pub together_ns: f64,
}

/// How many units a machine should claim whose walk keeps a thread busy for `walk_ns` of each pulse. None if
/// not even a chain alone counts in full.
#[must_use]
pub fn units(rules: &Rules, pace: &Pace, walk_ns: u64) -> u16 {
    let hashes = rules.segments as f64 * f64::from(SEGMENT_STEPS);
    let (part, whole) = ADVISED_SHARE;
    let time_ns = (rules.commit_ns / whole * part) as f64;
    // The walk takes its time of one thread, and as many times less of all of them.
    let left_ns = time_ns - walk_ns as f64 / f64::from(pace.threads.max(1));
    if hashes * pace.alone_ns > rules.full_ns() as f64 || pace.together_ns <= 0.0 {
        return 0;
    }
    ((left_ns / (hashes * pace.together_ns)) as u16).min(THREADS_MAX)
}

/// A chain that is being computed; one for each unit. Its tree is made with its last segment.
pub struct ChainRun {
    pulse: B256,
    thread: u16,
    segments: u64,
    states: Vec<B256>,
    chain: Option<Chain>,
}

impl ChainRun {
    /// A thread's chain in a pulse.
    #[must_use]
    pub fn new(pulse: B256, thread: u16, segments: u64) -> Self {
        Self { pulse, thread, segments, states: vec![pulse], chain: None }
    }

    /// Computes up to `segments` more. Returns how many are left.
    pub fn advance(&mut self, segments: u64) -> u64 {
        for _ in 0..segments.min(self.left()) {
            let index = self.states.len() as u64 - 1;
            let state = self.states.last().copied().unwrap_or_default();
            let start = segment_start(&self.pulse, self.thread, index, &state);
            self.states.push(segment_end(&start));
        }
        let left = self.left();
        if left == 0 && self.chain.is_none() {
            self.chain = Chain::of(std::mem::take(&mut self.states));
        }
        left
    }

    /// The chain, ready to be opened; `None` if it is not done.
    #[must_use]
    pub fn finish(self) -> Option<Chain> {
        self.chain
    }

    fn left(&self) -> u64 {
        let made = self.states.len() as u64;
        if self.chain.is_some() { 0 } else { (self.segments + 1).saturating_sub(made) }
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
