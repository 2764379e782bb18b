//! What ties labels, tables and pulses to one node of one chain.

use hypha_chain::{Address, B256};

use crate::{Challenge, sha256};

/// Which node of which chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The chain's id.
    pub chain_id: u64,
    /// The contract Registry: its numbers are the nodes'.
    pub registry: Address,
    /// The contract Capacity: answers and verdicts are signed for it.
    pub capacity: Address,
    /// The contract Disputes: segments are signed for it.
    pub disputes: Address,
    /// The node's number.
    pub node: u32,
}

impl Binding {
    /// The context of a filler extent's labels. `salt` is what `Capacity.drawSalt` drew.
    #[must_use]
    pub fn filler(&self, device: u32, extent: u32, salt: &B256) -> B256 {
        self.hash(b"hypha filler 1", &[&device.to_be_bytes(), &extent.to_be_bytes(), &salt[..]])
    }

    /// The context of a block of the memory table. `salt` is a beacon's seed of that day.
    #[must_use]
    pub fn table(&self, day: u32, block: u32, salt: &B256) -> B256 {
        self.hash(b"hypha table 1", &[&day.to_be_bytes(), &block.to_be_bytes(), &salt[..]])
    }

    /// What all work of a pulse contains.
    #[must_use]
    pub fn pulse(&self, challenge: &Challenge) -> B256 {
        self.hash(b"hypha pulse 1", &[&challenge.pulse.to_be_bytes(), &challenge.seed[..]])
    }

    fn hash(&self, purpose: &[u8], rest: &[&[u8]]) -> B256 {
        let mut bytes = purpose.to_vec();
        bytes.extend(self.chain_id.to_be_bytes());
        bytes.extend(self.registry);
        bytes.extend(self.node.to_be_bytes());
        bytes.extend(rest.concat());
        sha256(&bytes)
    }
}
