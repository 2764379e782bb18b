//! The kernel for every CPU: 64 bytes at a time in machine words, no tables, so that what it does
//! doesn't depend on the data. The compiler makes SSE2 of it.

use std::ops::Range;

use super::field::POLYNOMIAL;

/// Bytes that are handled together.
const BLOCK: usize = 64;
const WORDS: usize = BLOCK / 8;
type Words = [u64; WORDS];

/// Writes to `range` of `outputs` the sums of the products of `sources` with `constants`: for each
/// source one factor per output.
///
/// # Panics
/// If the range isn't within every slice.
pub(super) fn multiply(
    constants: &[u8],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    range: Range<usize>,
) {
    let mut sums = vec![[0; WORDS]; outputs.len()];
    for at in range.clone().step_by(BLOCK) {
        let bytes = BLOCK.min(range.end - at);
        sums.fill([0; WORDS]);
        for (source, factors) in sources.iter().zip(constants.chunks_exact(outputs.len())) {
            let mut block = [0; BLOCK];
            block[..bytes].copy_from_slice(&source[at..at + bytes]);
            let multiples = multiples(&block);
            for (sum, factor) in sums.iter_mut().zip(factors) {
                add(sum, &multiples, *factor);
            }
        }
        for (output, sum) in outputs.iter_mut().zip(&sums) {
            let mut block = [0; BLOCK];
            for (to, word) in block.chunks_exact_mut(8).zip(sum) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            output[at..at + bytes].copy_from_slice(&block[..bytes]);
        }
    }
}

/// The block times 1, 2, 4 … 128.
fn multiples(block: &[u8; BLOCK]) -> [Words; 8] {
    let mut multiples = [[0; WORDS]; 8];
    for (word, bytes) in multiples[0].iter_mut().zip(block.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    for power in 1..8 {
        for i in 0..WORDS {
            multiples[power][i] = double(multiples[power - 1][i]);
        }
    }
    multiples
}

/// Doubles each of eight bytes.
fn double(word: u64) -> u64 {
    let carries = word >> 7 & 0x0101_0101_0101_0101;
    (word & 0x7f7f_7f7f_7f7f_7f7f) << 1 ^ carries * u64::from(POLYNOMIAL)
}

/// Adds the block times `factor`.
fn add(sum: &mut Words, multiples: &[Words; 8], factor: u8) {
    for (power, multiple) in multiples.iter().enumerate() {
        let mask = 0u64.wrapping_sub(u64::from(factor >> power & 1));
        for (sum, word) in sum.iter_mut().zip(multiple) {
            *sum ^= word & mask;
        }
    }
}
