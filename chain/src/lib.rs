//! The chain: contracts for capacity, what is signed for them, and an EVM inside this process.
//!
//! ```text
//!   contracts   the suite's bindings      deploy   puts it on a chain
//!   message     what is signed (EIP-712)  tree     what roots are made of
//!   ──────────────────────────────────────────────────────────────────────
//!   client      send, call, receipt, logs: the same on both
//!      ├── embedded   revm and redb in this process     ◄── rpc  eth_* on loopback
//!      └── remote     any EVM node that speaks JSON-RPC
//!   ──────────────────────────────────────────────────────────────────────
//!   transaction  EIP-1559, signed         key      secp256k1
//! ```
//!
//! There is no clock and no randomness in here: time and seeds are arguments. Formats are in
//! `docs/chain.md`.
#![forbid(unsafe_code)]

pub mod client;
pub mod contracts;
pub mod deploy;
pub mod embedded;
pub mod key;
pub mod message;
pub mod remote;
pub mod rpc;
pub mod transaction;
pub mod tree;

pub use alloy_primitives::{Address, B256, Bytes, TxKind, U256, keccak256};
pub use alloy_sol_types::{self as sol_types, SolCall};
