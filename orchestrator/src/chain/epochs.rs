//! An epoch's data, as nodes keep it, and what was posted of it: what nodes have proven and farms
//! have earned.

use std::path::Path;

use hypha_chain::B256;
use hypha_chain::U256;
use hypha_chain::contracts::Capacity;
use hypha_chain::sol_types::{SolEvent, SolType, SolValue};
use hypha_proofs::network::epoch::EpochData;
use proof_node::kept::{self, KeptError};

use super::failure::Failure;
use super::reach::Reach;
use super::wallet::Wallet;
use crate::files::read_regular;

/// Keeps on the chain that these nodes were proven, as far as an epoch's data shows it and the chain does
/// not have it yet: until then nobody pays for that time.
///
/// # Errors
/// A [`Failure`].
pub fn prove(
    reach: &Reach,
    wallet: &mut Wallet<'_>,
    path: &Path,
    nodes: &[u32],
) -> Result<(), Failure> {
    let data = read(path)?;
    let posted = posted(reach, &data, path)?;
    let capacity = reach.suite.capacity;
    let ended = reach.view(capacity, &Capacity::epochEndCall { epoch: data.epoch })?;
    for node in nodes {
        let Some(proof) = data.proof(*node, &posted) else { continue };
        let kept = reach.view(capacity, &Capacity::provenUntilCall(*node))?;
        // The contract keeps no time after the epoch's end, whatever the data says.
        if proof.verdict.provenUntil.min(ended.saturating_to()) > kept {
            let call = Capacity::proveCall { proof };
            wallet.send(&format!("keep the proof of node {node}"), capacity, &call)?;
        }
    }
    Ok(())
}

/// Reads an epoch's data.
///
/// # Errors
/// [`Failure::File`].
pub fn read(path: &Path) -> Result<EpochData, Failure> {
    let bytes = read_regular(path, kept::BYTES_MAX).map_err(Failure::file(path))?;
    Ok(kept::decode(&bytes).ok_or(KeptError::Damaged).map_err(Failure::file(path))?.data)
}

/// What was last posted for the epoch; it must be of this very data. A demand that was made and answered
/// since then leaves the record as it was; one that is open makes the contract refuse.
///
/// # Errors
/// A [`Failure`].
pub fn posted(reach: &Reach, data: &EpochData, path: &Path) -> Result<Capacity::Epoch, Failure> {
    let epoch = data.epoch;
    let capacity = reach.suite.capacity;
    let topics = [vec![Capacity::EpochPosted::SIGNATURE_HASH], vec![B256::from(U256::from(epoch))]];
    let logs = reach.logs(capacity, &topics)?;
    let newest = logs.iter().max_by_key(|found| (found.block, found.index));
    let event = newest.and_then(|found| Capacity::EpochPosted::decode_log(&found.log).ok());
    let none = || Failure::NotNow(format!("epoch {epoch} was not posted yet"));
    let event = event.ok_or_else(none)?.data;
    if event.data != data.hash() {
        let reason = format!("it is not the data that was posted for epoch {epoch}");
        return Err(Failure::file(path)(reason));
    }
    Ok(event.posted)
}

/// What shows a node's leaf of a posted epoch, as the contract that is to look at it takes it: each has a type
/// of its own for the same words.
///
/// # Errors
/// [`Failure::NotFound`] if the epoch has no such node.
pub fn shown<T>(data: &EpochData, posted: &Capacity::Epoch, node: u32) -> Result<T, Failure>
where
    T: SolValue + From<<T::SolType as SolType>::RustType>,
{
    let unknown =
        || Failure::NotFound(format!("epoch {} knows no node {node}: it came later", data.epoch));
    let proof = data.proof(node, posted).ok_or_else(unknown)?;
    T::abi_decode(&proof.abi_encode()).map_err(|error| Failure::Input(error.to_string()))
}
