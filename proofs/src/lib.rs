//! Proofs of capacity: what a node computes and keeps, and what a witness checks.
//!
//! ```text
//!   prover    work of a pulse → commitment → opening        verifier   challenge → draw → verdict
//!      └───────────────────────── wire: what they send ─────────────────────┘
//!   ────────────────────────────────────────────────────────────────────────────────────────────
//!   cpu    chains of segments      ram   a walk over a table      disk   drawn leaves
//!                                                └──── store: extents in a sum tree ────┘
//!   ────────────────────────────────────────────────────────────────────────────────────────────
//!   regenerate   whether an extent is the filler that it is said to be
//!   label  the layered graph that filler is made of      binding   what ties it all to one node
//! ```
//!
//! There is no clock, no randomness, no thread and no file in here: times, random bytes and what was
//! read are arguments, and long work is done in portions that the caller chooses. Formats, and what
//! all this does not stop, are in `docs/proofs.md`.
#![forbid(unsafe_code)]

pub mod binding;
pub mod cpu;
pub mod disk;
pub mod label;
pub mod network;
pub mod prover;
pub mod ram;
pub mod regenerate;
pub mod store;
pub mod verifier;
pub mod wire;

use hypha_chain::{B256, keccak256};
use ring::digest::{SHA256, digest};

/// How much work a pulse is, and how many parts of it a witness looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Segments of each thread's chain, 1000 hashes each.
    pub segments: u64,
    /// Steps of the walk.
    pub walk_steps: u64,
    /// Drawn segments in all; each thread has one at least.
    pub cpu_draws: u32,
    /// Drawn steps of the walk.
    pub walk_draws: u32,
    /// Drawn bytes of the plot.
    pub disk_draws: u32,
    /// From challenge to commitment, in nanoseconds.
    pub commit_ns: u64,
    /// From draw to opening, in nanoseconds.
    pub open_ns: u64,
    /// Bytes that an extent of filler has at least: a short one is made again in time, out of nothing.
    pub filler_bytes: u64,
    /// Bytes of a table's block, but for the last: likewise.
    pub block_bytes: u64,
}

impl Rules {
    /// What the network asks.
    pub const STANDARD: Self = Self {
        segments: 25_000,
        walk_steps: 1 << 22,
        cpu_draws: 32,
        walk_draws: 8,
        disk_draws: 64,
        commit_ns: 5_000_000_000,
        open_ns: 10_000_000_000,
        filler_bytes: 1 << 30,
        block_bytes: ram::BLOCK_LABELS * label::LABEL_BYTES as u64,
    };

    /// Until when a commitment counts in full, in nanoseconds after the challenge: four fifths of the time
    /// that it has at most.
    #[must_use]
    pub fn full_ns(&self) -> u64 {
        self.commit_ns / 5 * 4
    }

    /// What counts of an amount of timed work (units, memory that was walked over) whose commitment has come
    /// so long after the challenge: all of it until [`Rules::full_ns`], and then evenly less, down to nothing
    /// at the deadline. So whoever claims more than is done by then earns less, and not more; and who is a
    /// little late for once loses a little.
    #[must_use]
    pub fn timely(&self, took_ns: u64, amount: u64) -> u64 {
        let fades_ns = self.commit_ns.saturating_sub(self.full_ns()).max(1);
        let left_ns = self.commit_ns.saturating_sub(took_ns).min(fades_ns);
        let counts = (u128::from(amount) * u128::from(left_ns)).div_ceil(u128::from(fades_ns));
        u64::try_from(counts).unwrap_or(amount)
    }

    /// How many segments are drawn of a node with these threads.
    #[must_use]
    pub fn segments_drawn(&self, threads: u16) -> u32 {
        if threads == 0 { 0 } else { self.cpu_draws.max(threads.into()) }
    }
}

/// One question to all nodes: nobody can know the seed before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge {
    /// The pulse's number.
    pub pulse: u64,
    /// The beacon's value.
    pub seed: B256,
}

pub(crate) fn sha256(bytes: &[u8]) -> B256 {
    B256::from_slice(digest(&SHA256, bytes).as_ref())
}

/// The `number`th draw under a seed, below `bound`; 0 if that is 0. 256 bits are reduced, so that no
/// place is likelier than another by more than 2^-192.
pub(crate) fn draw(seed: &B256, purpose: u8, number: u32, bound: u64) -> u64 {
    let hash = keccak256([seed.as_slice(), &[purpose], &number.to_be_bytes()].concat());
    let wide = |rest: u128, byte: &u8| (rest << 8 | u128::from(*byte)) % u128::from(bound.max(1));
    hash.iter().fold(0, wide) as u64
}
