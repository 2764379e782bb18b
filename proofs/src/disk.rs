//! The disk's part of a pulse: leaves at bytes that the pulse draws.

use std::collections::BTreeMap;

use hypha_chain::B256;
use hypha_chain::tree::{Extent, ExtentKind};

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
    /// Filler that is made again faster than it is read.
    #[error("filler extent {id} has {bytes_len} bytes, less than filler must have")]
    Short {
        /// The extent's id.
        id: u64,
        /// Its bytes.
        bytes_len: u64,
    },
    /// Kept once and counted twice: `Capacity.duplicate` takes all stake for the two ways.
    #[error("filler extent {0} is at two places of the plot")]
    Twice(u64),
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
    let mut places = BTreeMap::new();
    for (leaf, offset) in shown.iter().zip(offsets) {
        leaf.check(plot, offset)?;
        let Extent { kind, id, bytes_len, .. } = leaf.way.extent;
        if kind == ExtentKind::User {
            continue;
        }
        if bytes_len < rules.filler_bytes {
            return Err(DiskError::Short { id, bytes_len });
        }
        if *places.entry(id).or_insert(leaf.way.start) != leaf.way.start {
            return Err(DiskError::Twice(id));
        }
        filler += 1;
    }
    Ok(filler)
}
