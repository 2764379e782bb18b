//! The kernel for every CPU: one look-up gives the products of a byte for up to eight rows.

use std::ops::Range;

use super::field::multiply as product;

/// The most rows of one pass: the bytes of a table's entry.
pub(super) const ROWS_MAX: usize = 8;

/// For each value of a source's byte its products, the first row's in the lowest byte.
pub(super) type Products = Box<[u64; 256]>;

/// How many bytes of a shard are summed together.
const BLOCK: usize = 8;

/// The table of one source from its factor for each row, at most [`ROWS_MAX`].
pub(super) fn products(factors: &(impl Iterator<Item = u8> + Clone)) -> Products {
    let mut table = Box::new([0; 256]);
    for byte in 1..256_usize {
        // All but the lowest bit, whose products are there unless it is the only one.
        let rest = byte & (byte - 1);
        table[byte] = if rest == 0 {
            let rows = factors.clone().enumerate();
            rows.fold(0, |entry, (row, factor)| {
                entry | u64::from(product(factor, byte as u8)) << (8 * row)
            })
        } else {
            table[rest] ^ table[byte ^ rest]
        };
    }
    table
}

/// Writes to `range` of `outputs` the sums of the products of `sources`, each by its table.
///
/// # Panics
/// If the range isn't within every slice.
pub(super) fn multiply(
    tables: &[Products],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    range: Range<usize>,
) {
    let whole = range.len() / BLOCK * BLOCK;
    for at in (range.start..range.start + whole).step_by(BLOCK) {
        let mut sums = [0; BLOCK];
        for (source, table) in sources.iter().zip(tables) {
            let bytes: [u8; BLOCK] = std::array::from_fn(|i| source[at + i]);
            for (sum, byte) in sums.iter_mut().zip(bytes) {
                *sum ^= table[usize::from(byte)];
            }
        }
        for (row, output) in outputs.iter_mut().enumerate() {
            let bytes: [u8; BLOCK] = sums.map(|sum| (sum >> (8 * row)) as u8);
            output[at..at + BLOCK].copy_from_slice(&bytes);
        }
    }
    for at in range.start + whole..range.end {
        let products = sources.iter().zip(tables).map(|(source, t)| t[usize::from(source[at])]);
        let sum = products.fold(0, |sum, entry| sum ^ entry);
        for (row, output) in outputs.iter_mut().enumerate() {
            output[at] = (sum >> (8 * row)) as u8;
        }
    }
}
