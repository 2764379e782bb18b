//! The disk's part of a pulse: leaves at bytes that the pulse draws.

use hypha_chain::B256;
use hypha_chain::tree::ExtentKind;

use crate::store::{LeafError, PlotRecord, ShownLeaf};
use crate::{Rules, draw, sha256};

/// What separates these draws from others under one seed.
const PURPOSE: u8 = 1;

/// The bytes that a pulse draws of a plot.
#[must_use]
pub fn offsets(pulse: &B256, rules: &Rules, bytes_len: u64) -> Vec<u64> {
    (0..rules.disk_draws).map(|number| draw(pulse, PURPOSE, number, bytes_len)).collect()
}

/// What a commitment says about the drawn leaves: a node that has not read them in time can't.
pub fn digest<'a>(leaves: impl IntoIterator<Item = &'a [u8]>) -> B256 {
    let hashes: Vec<u8> = leaves.into_iter().flat_map(|leaf| sha256(leaf).0).collect();
    sha256(&hashes)
}

/// Why shown leaves prove nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// More or fewer than were drawn.
    #[error("{found} leaves, where {drawn} were drawn")]
    Count {
        /// How many are shown.
        found: usize,
        /// How many were drawn.
        drawn: usize,
    },
    /// Not those that the commitment was made over.
    #[error("the leaves are not those of the commitment")]
    Digest,
    /// One of them is wrong.
    #[error(transparent)]
    Leaf(#[from] LeafError),
}

/// Checks all drawn leaves. Returns how many of them lie in filler; the rest are users'.
///
/// # Errors
/// [`DiskError`].
pub fn check(
    pulse: &B256,
    rules: &Rules,
    plot: &PlotRecord,
    committed: &B256,
    shown: &[ShownLeaf],
) -> Result<u32, DiskError> {
    let offsets = offsets(pulse, rules, plot.bytes_len);
    if shown.len() != offsets.len() {
        return Err(DiskError::Count { found: shown.len(), drawn: offsets.len() });
    }
    if digest(shown.iter().map(|leaf| leaf.leaf.bytes.as_slice())) != *committed {
        return Err(DiskError::Digest);
    }
    let mut filler = 0;
    for (leaf, offset) in shown.iter().zip(offsets) {
        leaf.check(plot, offset)?;
        filler += u32::from(leaf.way.extent.kind == ExtentKind::Filler);
    }
    Ok(filler)
}
