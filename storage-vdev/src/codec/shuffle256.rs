//! The kernel for AVX2 without GFNI: a product is the sum of two table look-ups, one for the low and
//! one for the high four bits of each byte, and one instruction looks 32 bytes up.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_loadu_si256, _mm256_set1_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
};
use std::ops::Range;

/// The bytes of a vector.
pub(super) const LANE: usize = 32;

/// The most rows of one pass: their sums, two vectors each, stay in the 16 registers.
pub(super) const ROWS_MAX: usize = 4;

/// The products of a constant with 0 to 15, and with 16 times these.
pub(super) type Nibbles = [[u8; 16]; 2];

/// Writes to `range` of `outputs` the sums of the products of `sources` with `constants`: for each
/// source one pair of tables per output.
///
/// # Safety
/// The CPU has AVX2. Every slice of `sources` and `outputs` has at least `range.end` bytes,
/// and `range.end` is at least [`LANE`].
#[target_feature(enable = "avx2")]
pub(super) unsafe fn multiply(
    constants: &[Nibbles],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    range: Range<usize>,
) {
    // SAFETY: the caller's promise, handed on.
    unsafe {
        match outputs.len() {
            1 => pass::<1, 4>(constants, sources, outputs, range),
            2 => pass::<2, 2>(constants, sources, outputs, range),
            3 => pass::<3, 2>(constants, sources, outputs, range),
            ROWS_MAX => pass::<ROWS_MAX, 2>(constants, sources, outputs, range),
            rows => unreachable!("a pass of {rows} rows"),
        }
    }
}

/// [`multiply`] for `ROWS` outputs, `UNROLL` vectors of each at a time.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx2")]
unsafe fn pass<const ROWS: usize, const UNROLL: usize>(
    constants: &[Nibbles],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    range: Range<usize>,
) {
    let Ok(outputs) = <&mut [&mut [u8]; ROWS]>::try_from(outputs) else { return };
    let outputs = outputs.each_mut().map(|output| output.as_mut_ptr());
    let constants = constants.as_chunks().0;
    let mut at = range.start;
    // SAFETY: each block ends at or before `range.end`, which every slice reaches, and the last one
    // starts at 0 or later because `range.end >= LANE`. It overlaps bytes that are written already,
    // with the same values: outputs are never read, and the borrows keep them apart from sources.
    unsafe {
        while at + UNROLL * LANE <= range.end {
            block::<ROWS, UNROLL>(constants, sources, &outputs, at);
            at += UNROLL * LANE;
        }
        while at + LANE <= range.end {
            block::<ROWS, 1>(constants, sources, &outputs, at);
            at += LANE;
        }
        if at < range.end {
            block::<ROWS, 1>(constants, sources, &outputs, range.end - LANE);
        }
    }
}

/// Computes `UNROLL` vectors of each output from offset `at` on.
///
/// # Safety
/// The CPU has AVX2. All sources can be read and all outputs be written from `at` on for
/// `UNROLL` vectors.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn block<const ROWS: usize, const UNROLL: usize>(
    constants: &[[Nibbles; ROWS]],
    sources: &[&[u8]],
    outputs: &[*mut u8; ROWS],
    at: usize,
) {
    let mask = _mm256_set1_epi8(0x0f);
    let mut sums = [[_mm256_setzero_si256(); UNROLL]; ROWS];
    for (source, constants) in sources.iter().zip(constants) {
        // SAFETY: the caller's promise for each source.
        let source = unsafe { load::<UNROLL>(source, at) };
        let low = source.map(|bytes| _mm256_and_si256(bytes, mask));
        let high = source.map(|bytes| _mm256_and_si256(_mm256_srli_epi64::<4>(bytes), mask));
        for row in 0..ROWS {
            let [low_table, high_table] = &constants[row];
            let (low_table, high_table) = (broadcast(low_table), broadcast(high_table));
            for i in 0..UNROLL {
                let product = _mm256_xor_si256(
                    _mm256_shuffle_epi8(low_table, low[i]),
                    _mm256_shuffle_epi8(high_table, high[i]),
                );
                sums[row][i] = _mm256_xor_si256(sums[row][i], product);
            }
        }
    }
    for (output, sums) in outputs.iter().zip(sums) {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise for each output; any alignment will do.
            unsafe { _mm256_storeu_si256(output.add(at + i * LANE).cast(), sum) };
        }
    }
}

/// # Safety
/// The CPU has AVX2, and `source` can be read from `at` on for `UNROLL` vectors.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const UNROLL: usize>(source: &[u8], at: usize) -> [__m256i; UNROLL] {
    let mut vectors = [_mm256_setzero_si256(); UNROLL];
    for (i, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller's promise; any alignment will do.
        *vector = unsafe { _mm256_loadu_si256(source.as_ptr().add(at + i * LANE).cast()) };
    }
    vectors
}

/// The table in both halves of a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(table: &[u8; 16]) -> __m256i {
    // SAFETY: the reference holds for 16 bytes; any alignment will do.
    let table: __m128i = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
    _mm256_broadcastsi128_si256(table)
}
