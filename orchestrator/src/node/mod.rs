//! `hypha node`: a node of the network, from its registration to its stake's return.
//!
//! A node has two keys that vouch for each other: a chain key (`keys/node` in the state), which signs
//! answers to pulses, and the mesh's key (`mesh/key`). `docs/keys.md` says what each signs.

pub mod arguments;
pub mod binding;
mod change;
pub mod measure;
mod network;
mod offer;
pub mod prove;
mod register;
mod stake;
pub(crate) mod status;

use std::path::Path;

use hypha_chain::contracts::Registry;
use hypha_chain::key::Key;

use crate::chain::failure::Failure;
use crate::chain::reach::Reach;
use crate::keys;
use arguments::{NodeKeyArguments, NodeVerb};

/// Carries out a verb.
///
/// # Errors
/// A [`Failure`].
pub fn run(verb: &NodeVerb) -> Result<i32, Failure> {
    match verb {
        NodeVerb::Register(arguments) => register::run(arguments),
        NodeVerb::Offer(arguments) => offer::run(arguments),
        NodeVerb::Maintenance(arguments) => stake::maintenance(arguments),
        NodeVerb::Unstake(arguments) => stake::unstake(arguments),
        NodeVerb::Raise(arguments) => change::raise(arguments),
        NodeVerb::RotateKey(arguments) => change::rotate(arguments),
        NodeVerb::Measure(arguments) => measure::run(arguments),
        NodeVerb::Prove(arguments) => prove::run(arguments),
        NodeVerb::Status { node, key, chain } => status::run(*node, key, chain),
    }
}

/// The chain key of this host's node.
///
/// # Errors
/// A [`Failure`].
pub fn key(state: &Path, arguments: &NodeKeyArguments) -> Result<Key, Failure> {
    Ok(keys::named(state, arguments.name(), &arguments.passphrase())?)
}

/// The node that a chain key is or was bound to, if any.
///
/// # Errors
/// A [`Failure`].
pub fn number_of(reach: &Reach, key: &Key) -> Result<Option<u32>, Failure> {
    let node = reach.view(reach.suite.registry, &Registry::nodeOfCall(key.address()))?;
    Ok((node != 0).then_some(node))
}
