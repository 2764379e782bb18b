//! Whether an extent holds the labels that it is said to hold, by making it again.
//!
//! A pulse shows that drawn bytes are those that were committed to, whatever they are. Bytes that are
//! cheap to make again would do for it; this is what finds them, one drawn extent at a time.

use hypha_chain::B256;
use hypha_chain::tree::{ExtentKind, ExtentPath};

use crate::binding::Binding;
use crate::label::{FILLER_LAYERS, Fill, FillError, LABEL_BYTES, TABLE_LAYERS};
use crate::store::{ExtentTree, LeafError, PlotRecord, check_way};

/// Why an extent can't be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegenerateError {
    /// The shown extent is not the drawn one.
    #[error(transparent)]
    Way(#[from] LeafError),
    /// A user's shard: nobody but the user knows what it should be.
    #[error("the drawn byte is in a user's shard, which can't be made again: draw another")]
    User,
    /// Not whole labels.
    #[error("an extent of {0} bytes is no filler: it has no whole number of labels")]
    Length(u64),
    /// No size of an extent.
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// An extent that is being made again, in portions of the caller's choice.
pub struct Regeneration {
    fill: Fill,
    expected: B256,
}

impl Regeneration {
    /// Of the filler extent that holds the byte at `offset` of a node's plot.
    ///
    /// # Errors
    /// [`RegenerateError`].
    pub fn of_filler(
        binding: &Binding,
        salt: &B256,
        plot: &PlotRecord,
        offset: u64,
        way: &ExtentPath,
    ) -> Result<Self, RegenerateError> {
        let id = way.extent.id;
        let context = binding.filler((id >> 32) as u32, id as u32, salt);
        Self::new(context, FILLER_LAYERS, check_way(way, plot, offset), way)
    }

    /// Of the block that holds the byte at `offset` of a node's table. `when` is the day and its salt.
    ///
    /// # Errors
    /// [`RegenerateError`].
    pub fn of_table(
        binding: &Binding,
        when: (u32, &B256),
        table: &PlotRecord,
        offset: u64,
        way: &ExtentPath,
    ) -> Result<Self, RegenerateError> {
        let context = binding.table(when.0, way.extent.id as u32, when.1);
        Self::new(context, TABLE_LAYERS, check_way(way, table, offset), way)
    }

    fn new(
        context: B256,
        layers: u8,
        checked: Result<u64, LeafError>,
        way: &ExtentPath,
    ) -> Result<Self, RegenerateError> {
        checked?;
        let extent = &way.extent;
        if extent.kind == ExtentKind::User {
            return Err(RegenerateError::User);
        }
        let (count, rest) =
            (extent.bytes_len / LABEL_BYTES as u64, extent.bytes_len % LABEL_BYTES as u64);
        if rest > 0 {
            return Err(RegenerateError::Length(extent.bytes_len));
        }
        Ok(Self { fill: Fill::new(context, layers, count)?, expected: extent.root })
    }

    /// Makes up to `labels` more. Returns how many are still to be made.
    pub fn advance(&mut self, labels: u64) -> u64 {
        self.fill.advance(labels)
    }

    /// Whether the extent is what it is said to be; `None` if it is not made yet.
    #[must_use]
    pub fn finish(self) -> Option<bool> {
        let bytes = self.fill.finish()?;
        Some(ExtentTree::of(&bytes).root() == self.expected)
    }
}
