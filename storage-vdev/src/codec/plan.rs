//! A matrix made ready for a kernel, and the walk of its rows over the bytes.

use std::ops::Range;

use super::CODE_SHARDS_MAX;
use super::field::{Matrix, multiply};
use super::kernel::{Code, Kernel};
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{gfni256, gfni512, shuffle256};

/// How many bytes of all sources together are walked before the next rows turn to them: they stay
/// in the second-level cache.
const STRIP_BYTES: usize = 256 << 10;

/// The widest vector of a kernel.
const LANE_MAX: usize = 64;

/// Multiplies vectors of shards by one matrix.
#[derive(Debug)]
pub(super) struct Plan {
    columns: usize,
    rows: usize,
    passes: Vec<Pass>,
}

/// Some rows of the matrix, as many as a kernel computes at once.
#[derive(Debug)]
struct Pass {
    rows: Range<usize>,
    constants: Constants,
}

/// Cells of the matrix in a kernel's form, column after column.
#[derive(Debug)]
enum Constants {
    Portable(Vec<portable::Products>),
    #[cfg(target_arch = "x86_64")]
    Shuffle256(Vec<shuffle256::Nibbles>),
    #[cfg(target_arch = "x86_64")]
    Gfni256(Vec<u64>),
    #[cfg(target_arch = "x86_64")]
    Gfni512(Vec<u64>),
}

impl Plan {
    pub(super) fn new(matrix: &Matrix, kernel: Kernel) -> Self {
        let rows = matrix.row_count();
        let count = rows.div_ceil(rows_max(kernel)).max(1);
        let passes = (0..count).map(|i| rows * i / count..rows * (i + 1) / count);
        let passes = passes.filter(|rows| !rows.is_empty()).map(|rows| {
            let columns = 0..matrix.column_count();
            let column = |c| rows.clone().map(move |row| matrix.cell(row, c));
            let cells = columns.clone().flat_map(column);
            let constants = match kernel.code() {
                Code::Portable => {
                    Constants::Portable(columns.map(|c| portable::products(&column(c))).collect())
                }
                #[cfg(target_arch = "x86_64")]
                Code::Shuffle256 => Constants::Shuffle256(cells.map(nibbles).collect()),
                #[cfg(target_arch = "x86_64")]
                Code::Gfni256 => Constants::Gfni256(cells.map(bit_matrix).collect()),
                #[cfg(target_arch = "x86_64")]
                Code::Gfni512 => Constants::Gfni512(cells.map(bit_matrix).collect()),
            };
            Pass { rows, constants }
        });
        Self { columns: matrix.column_count(), rows, passes: passes.collect() }
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
        if len >= LANE_MAX {
            self.walk(sources, outputs, len);
        } else {
            self.run_short(sources, outputs, len);
        }
    }

    /// [`Plan::run`] for shards shorter than a vector, which are lengthened by zeroes.
    fn run_short(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]], len: usize) {
        let mut padded_sources = [[0; LANE_MAX]; CODE_SHARDS_MAX];
        let mut padded_outputs = [[0; LANE_MAX]; CODE_SHARDS_MAX];
        for (padded, source) in padded_sources.iter_mut().zip(sources) {
            padded[..len].copy_from_slice(source);
        }
        let padded = padded_sources.each_ref().map(<[u8; LANE_MAX]>::as_slice);
        let mut results = padded_outputs.each_mut().map(<[u8; LANE_MAX]>::as_mut_slice);
        self.walk(&padded[..self.columns], &mut results[..self.rows], LANE_MAX);
        for (output, padded) in outputs.iter_mut().zip(&padded_outputs) {
            output.copy_from_slice(&padded[..len]);
        }
    }

    /// Runs all passes over `len` bytes of slices of this length, at least [`LANE_MAX`].
    fn walk(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]], len: usize) {
        let strip = match self.passes.len() {
            0 | 1 => len,
            _ => (STRIP_BYTES / self.columns).next_multiple_of(LANE_MAX),
        };
        for start in (0..len).step_by(strip) {
            let range = start..len.min(start + strip);
            for pass in &self.passes {
                let outputs = &mut outputs[pass.rows.clone()];
                pass.constants.multiply(sources, outputs, range.clone());
            }
        }
    }
}

impl Constants {
    /// Computes one pass over `range`, which ends at [`LANE_MAX`] or later and within every slice.
    fn multiply(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]], range: Range<usize>) {
        match self {
            Self::Portable(constants) => portable::multiply(constants, sources, outputs, range),
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "these kernels need a CPU that has their instructions")]
            _ => {
                let within = sources.iter().all(|source| range.end <= source.len())
                    && outputs.iter().all(|output| range.end <= output.len());
                assert!(within && range.end >= LANE_MAX, "a range within the shards");
                // SAFETY: a `Kernel` other than the portable one, without which these constants
                // are not made, is only had from a CPU with its features; the range was checked.
                unsafe {
                    match self {
                        Self::Shuffle256(c) => shuffle256::multiply(c, sources, outputs, range),
                        Self::Gfni256(c) => gfni256::multiply(c, sources, outputs, range),
                        Self::Gfni512(c) => gfni512::multiply(c, sources, outputs, range),
                        Self::Portable(_) => {}
                    }
                }
            }
        }
    }
}

/// The most rows that a kernel computes in one pass.
fn rows_max(kernel: Kernel) -> usize {
    match kernel.code() {
        Code::Portable => portable::ROWS_MAX,
        #[cfg(target_arch = "x86_64")]
        Code::Shuffle256 => shuffle256::ROWS_MAX,
        #[cfg(target_arch = "x86_64")]
        Code::Gfni256 => gfni256::ROWS_MAX,
        #[cfg(target_arch = "x86_64")]
        Code::Gfni512 => gfni512::ROWS_MAX,
    }
}

/// The tables that [`shuffle256`] looks products with `constant` up in.
#[cfg(target_arch = "x86_64")]
fn nibbles(constant: u8) -> shuffle256::Nibbles {
    let table =
        |shift: u8| std::array::from_fn(|nibble| multiply(constant, (nibble as u8) << shift));
    [table(0), table(4)]
}

/// Multiplication by `constant` as `gf2p8affineqb` wants it: byte 7 - i holds the bits of the factor
/// whose sum is bit i of the product.
#[cfg(target_arch = "x86_64")]
fn bit_matrix(constant: u8) -> u64 {
    let row = |i: usize| (0..8).fold(0, |row, j| row | (multiply(constant, 1 << j) >> i & 1) << j);
    u64::from_be_bytes(std::array::from_fn(row))
}
