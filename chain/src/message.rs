//! What is signed for the contracts: EIP-712 messages, each in the domain of the contract that reads it.

use alloy_primitives::{Address, B256};
use alloy_sol_types::{Eip712Domain, SolStruct, eip712_domain};

use crate::contracts::Disputes;
use crate::key::{Key, Signature};

/// The messages, with the names and fields that Solidity has for them.
mod typed {
    alloy_sol_types::sol! {
        /// A node's chain key, to the Registry: this key is of a node of that farm with that mesh key.
        struct NodeKey { uint32 farm; bytes32 meshKey; }
        /// A node's next chain key, to the Registry.
        struct RotateKey { uint32 node; bytes32 meshKey; }
        /// A node's answer to a pulse, to Capacity. Two for one pulse cost all stake.
        struct PulseAnswer { uint32 node; uint64 pulse; bytes32 answer; }
        /// A node's checkpoints of a thread in a pulse, to Disputes.
        struct Checkpoints { uint32 node; uint64 pulse; uint16 thread; uint64 count; bytes32 root; }
        /// A node's claim that a run leads from one state to another, to Disputes.
        #[derive(Debug, PartialEq, Eq)]
        struct RunClaim { uint32 node; uint8 verifier; uint64 segments; bytes32 start; bytes32 end; }
        /// An approval by signature (EIP-2612), to GridToken.
        struct Permit { address owner; address spender; uint256 value; uint256 nonce; uint256 deadline; }
    }
}

pub use typed::{Checkpoints, NodeKey, Permit, PulseAnswer, RotateKey, RunClaim};

/// As the contract takes it.
impl From<&RunClaim> for Disputes::RunClaim {
    fn from(claim: &RunClaim) -> Self {
        let RunClaim { node, verifier, segments, start, end } = *claim;
        Self { node, verifier, segments, start, end }
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// GridToken.
    Token,
    /// Registry.
    Registry,
    /// Capacity.
    Capacity,
    /// Disputes.
    Disputes,
}

impl Reader {
    /// The EIP-712 domain of this contract at an address of a chain.
    #[must_use]
    pub fn domain(self, chain_id: u64, contract: Address) -> Eip712Domain {
        let name = match self {
            Self::Token => "Hypha Grid Token",
            Self::Registry => "Hypha Registry",
            Self::Capacity => "Hypha Capacity",
            Self::Disputes => "Hypha Disputes",
        };
        eip712_domain! {
            name: name,
            version: "1",
            chain_id: chain_id,
            verifying_contract: contract,
        }
    }
}

/// Signs a message for a contract.
#[must_use]
pub fn sign(message: &impl SolStruct, domain: &Eip712Domain, key: &Key) -> Signature {
    key.sign(&digest(message, domain))
}

/// What is signed.
#[must_use]
pub fn digest(message: &impl SolStruct, domain: &Eip712Domain) -> B256 {
    message.eip712_signing_hash(domain)
}
