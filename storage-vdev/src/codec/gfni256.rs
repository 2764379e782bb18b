//! The kernel for GFNI without AVX-512: one instruction multiplies 32 bytes by a constant.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use std::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256,
    _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_storeu_si256, _mm256_xor_si256,
};
use std::ops::Range;

/// The bytes of a vector.
pub(super) const LANE: usize = 32;

/// The most rows of one pass: their sums, two vectors each, stay in the 16 registers.
pub(super) const ROWS_MAX: usize = 6;

/// How far ahead of the sums the outputs' lines are asked for: stores have no other way to get them
/// into the first-level cache in time. Only where they are many beside the products.
const AHEAD: usize = 512;

/// Writes to `range` of `outputs` the sums of the products of `sources` with `constants`: for each
/// source one bit matrix per output.
///
/// # Safety
/// The CPU has AVX2 and GFNI. Every slice of `sources` and `outputs` has at least `range.end` bytes,
/// and `range.end` is at least [`LANE`].
#[target_feature(enable = "avx2,gfni")]
pub(super) unsafe fn multiply(
    constants: &[u64],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    range: Range<usize>,
) {
    // SAFETY: the caller's promise, handed on.
    unsafe {
        match outputs.len() {
            1 => pass::<1, 4>(constants, sources, outputs, range),
            2 => pass::<2, 4>(constants, sources, outputs, range),
            3 => pass::<3, 3>(constants, sources, outputs, range),
            4 => pass::<4, 2>(constants, sources, outputs, range),
            5 => pass::<5, 2>(constants, sources, outputs, range),
            ROWS_MAX => pass::<ROWS_MAX, 2>(constants, sources, outputs, range),
            rows => unreachable!("a pass of {rows} rows"),
        }
    }
}

/// [`multiply`] for `ROWS` outputs, `UNROLL` vectors of each at a time.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx2,gfni")]
unsafe fn pass<const ROWS: usize, const UNROLL: usize>(
    constants: &[u64],
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
/// The CPU has AVX2 and GFNI. All sources can be read and all outputs be written from `at` on for
/// `UNROLL` vectors.
#[inline]
#[target_feature(enable = "avx2,gfni")]
unsafe fn block<const ROWS: usize, const UNROLL: usize>(
    constants: &[[u64; ROWS]],
    sources: &[&[u8]],
    outputs: &[*mut u8; ROWS],
    at: usize,
) {
    if sources.len() <= 2 * ROWS {
        for output in outputs {
            for i in (0..UNROLL).step_by(64 / LANE) {
                // Of any address: it reads and writes nothing.
                _mm_prefetch::<_MM_HINT_T0>(output.wrapping_add(at + AHEAD + i * LANE).cast());
            }
        }
    }
    let mut sums = [[_mm256_setzero_si256(); UNROLL]; ROWS];
    for (source, constants) in sources.iter().zip(constants) {
        // SAFETY: the caller's promise for each source.
        let source = unsafe { load::<UNROLL>(source, at) };
        for row in 0..ROWS {
            let constant = _mm256_set1_epi64x(constants[row].cast_signed());
            for i in 0..UNROLL {
                let product = _mm256_gf2p8affine_epi64_epi8::<0>(source[i], constant);
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
