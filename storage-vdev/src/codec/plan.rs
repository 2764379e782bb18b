//! A matrix made ready for a kernel, and the walk of its rows over the bytes.

use super::Kernel;
use super::field::Matrix;
use super::portable;

/// Multiplies vectors of shards by one matrix.
#[derive(Debug)]
pub(super) struct Plan {
    rows: usize,
    columns: usize,
    constants: Constants,
}

/// The cells of the matrix in a kernel's form, column after column.
#[derive(Debug)]
enum Constants {
    Portable(Vec<u8>),
}

impl Plan {
    pub(super) fn new(matrix: &Matrix, kernel: Kernel) -> Self {
        let (rows, columns) = (matrix.row_count(), matrix.column_count());
        let cells = (0..columns).flat_map(|c| (0..rows).map(move |r| matrix.cell(r, c)));
        let constants = match kernel {
            Kernel::Portable => Constants::Portable(cells.collect()),
        };
        Self { rows, columns, constants }
    }

    /// Writes the matrix's product with `sources` to `outputs`.
    ///
    /// # Panics
    /// If there are not as many sources as columns and outputs as rows, all of one length.
    pub(super) fn run(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        assert_eq!((outputs.len(), sources.len()), (self.rows, self.columns), "rows and columns");
        let len = sources.first().map_or(0, |source| source.len());
        let equal = sources.iter().all(|source| source.len() == len)
            && outputs.iter().all(|output| output.len() == len);
        assert!(equal, "shards of one length");
        if self.rows == 0 || len == 0 {
            return;
        }
        match &self.constants {
            Constants::Portable(constants) => portable::multiply(constants, sources, outputs),
        }
    }
}
