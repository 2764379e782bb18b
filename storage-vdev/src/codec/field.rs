//! GF(2^8) modulo 0x11D, and the matrix of the code. Everything here is as
//! `reed-solomon-erasure` has it; the tests compare the two.

/// x^8 = x^4 + x^3 + x^2 + 1.
const POLYNOMIAL: u8 = 0x1d;

/// Powers of the generator 2, twice in a row so that a sum of two logarithms needs no reduction.
const EXP: [u8; 510] = {
    let mut exp = [0; 510];
    let mut value = 1;
    let mut i = 0;
    while i < 510 {
        exp[i] = value;
        value = double(value);
        i += 1;
    }
    exp
};

/// The logarithm of each element but 0.
const LOG: [u8; 256] = {
    let mut log = [0; 256];
    let mut i = 0;
    while i < 255 {
        log[EXP[i] as usize] = i as u8;
        i += 1;
    }
    log
};

const fn double(a: u8) -> u8 {
    (a << 1) ^ if a & 0x80 == 0 { 0 } else { POLYNOMIAL }
}

/// The product of two elements.
pub(super) const fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    EXP[LOG[a as usize] as usize + LOG[b as usize] as usize]
}

/// The element that gives 1 with `a`, which is not 0.
const fn inverse(a: u8) -> u8 {
    EXP[255 - LOG[a as usize] as usize]
}

/// A matrix of elements, row after row. At most 32 by 32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    rows: usize,
    columns: usize,
    cells: Vec<u8>,
}

impl Matrix {
    /// The cells from their coordinates.
    pub(super) fn from_fn(rows: usize, columns: usize, cell: impl Fn(usize, usize) -> u8) -> Self {
        let coordinates = (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c)));
        Self { rows, columns, cells: coordinates.map(|(r, c)| cell(r, c)).collect() }
    }

    /// The matrix of the code, k + m rows of k: `V * inv(V_top)` with V\[r\]\[c\] = r^c. Its top is
    /// the identity, and any k of its rows are invertible because any k rows of V are.
    pub(super) fn of_code(data_shards: usize, shards: usize) -> Self {
        let vandermonde = Self::from_fn(shards, data_shards, |row, column| {
            (0..column).fold(1, |power, _| multiply(power, row as u8))
        });
        let top: Vec<usize> = (0..data_shards).collect();
        let Some(inverse) = vandermonde.rows(&top).inverse() else {
            unreachable!("a Vandermonde matrix of distinct elements is invertible");
        };
        vandermonde.times(&inverse)
    }

    pub(super) fn row_count(&self) -> usize {
        self.rows
    }

    pub(super) fn column_count(&self) -> usize {
        self.columns
    }

    /// The cell at these coordinates, which the caller keeps within the matrix.
    pub(super) fn cell(&self, row: usize, column: usize) -> u8 {
        self.cells[row * self.columns + column]
    }

    /// The matrix of these rows, in this order.
    pub(super) fn rows(&self, rows: &[usize]) -> Self {
        Self::from_fn(rows.len(), self.columns, |row, column| self.cell(rows[row], column))
    }

    /// The product with `right`, which has as many rows as this has columns.
    pub(super) fn times(&self, right: &Self) -> Self {
        Self::from_fn(self.rows, right.columns, |row, column| {
            (0..self.columns)
                .fold(0, |sum, i| sum ^ multiply(self.cell(row, i), right.cell(i, column)))
        })
    }

    /// The inverse of a square matrix by Gauss-Jordan; `None` if there is none.
    pub(super) fn inverse(&self) -> Option<Self> {
        let n = self.rows;
        let mut work =
            Self::from_fn(
                n,
                2 * n,
                |r, c| if c < n { self.cell(r, c) } else { (c - n == r).into() },
            );
        for pivot in 0..n {
            let row = (pivot..n).find(|&row| work.cell(row, pivot) != 0)?;
            work.swap_rows(row, pivot);
            let scale = inverse(work.cell(pivot, pivot));
            for column in pivot..2 * n {
                let cell = &mut work.cells[pivot * 2 * n + column];
                *cell = multiply(*cell, scale);
            }
            for other in (0..n).filter(|&other| other != pivot) {
                let factor = work.cell(other, pivot);
                for column in pivot..2 * n {
                    let product = multiply(factor, work.cell(pivot, column));
                    work.cells[other * 2 * n + column] ^= product;
                }
            }
        }
        Some(Self::from_fn(n, n, |row, column| work.cell(row, n + column)))
    }

    fn swap_rows(&mut self, a: usize, b: usize) {
        for column in 0..self.columns {
            self.cells.swap(a * self.columns + column, b * self.columns + column);
        }
    }
}

#[cfg(test)]
mod tests {
    use reed_solomon_erasure::{Field as _, galois_8};

    use super::*;

    #[test]
    fn products_are_those_of_the_reference() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(multiply(a, b), galois_8::Field::mul(a, b), "{a} times {b}");
            }
            assert!(a == 0 || multiply(a, inverse(a)) == 1, "the inverse of {a}");
        }
    }

    #[test]
    fn a_singular_matrix_has_no_inverse() {
        let singular = Matrix::from_fn(3, 3, |row, column| if row == 2 { 0 } else { column as u8 });
        assert_eq!(singular.inverse(), None);
    }

    #[test]
    fn the_top_of_every_code_is_the_identity() {
        for shards in 1..=32 {
            for data in 1..=shards {
                let matrix = Matrix::of_code(data, shards);
                let top: Vec<usize> = (0..data).collect();
                let identity = Matrix::from_fn(data, data, |r, c| (r == c).into());
                assert_eq!(matrix.rows(&top), identity, "{data} of {shards}");
            }
        }
    }
}
