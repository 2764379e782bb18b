//! The kernel for GFNI with AVX-512: one instruction multiplies 64 bytes by a constant, one adds
//! two products to a sum, and the constants come as broadcasts from memory.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512,
    _mm512_set1_epi64, _mm512_setzero_si512, _mm512_storeu_si512, _mm512_ternarylogic_epi64,
    _mm512_xor_si512,
};
use std::ops::Range;

/// The bytes of a vector.
pub(super) const LANE: usize = 64;

/// The most rows of one pass: their sums, two vectors each, stay in the 32 registers.
pub(super) const ROWS_MAX: usize = 12;

/// The exclusive or of three operands, as `vpternlog` wants it.
const XOR3: i32 = 0x96;

/// How far ahead of the sums the outputs' lines are asked for: stores have no other way to get them
/// into the first-level cache in time.
const AHEAD: usize = 512;

/// Writes to `range` of `outputs` the sums of the products of `sources` with `constants`: for each
/// source one bit matrix per output.
///
/// # Safety
/// The CPU has AVX-512F and GFNI. Every slice of `sources` and `outputs` has at least `range.end`
/// bytes, and `range.end` is at least [`LANE`].
#[target_feature(enable = "avx512f,gfni")]
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
            3 => pass::<3, 4>(constants, sources, outputs, range),
            4 => pass::<4, 4>(constants, sources, outputs, range),
            5 => pass::<5, 4>(constants, sources, outputs, range),
            6 => pass::<6, 3>(constants, sources, outputs, range),
            7 => pass::<7, 2>(constants, sources, outputs, range),
            8 => pass::<8, 2>(constants, sources, outputs, range),
            9 => pass::<9, 2>(constants, sources, outputs, range),
            10 => pass::<10, 2>(constants, sources, outputs, range),
            11 => pass::<11, 2>(constants, sources, outputs, range),
            ROWS_MAX => pass::<ROWS_MAX, 2>(constants, sources, outputs, range),
            rows => unreachable!("a pass of {rows} rows"),
        }
    }
}

/// [`multiply`] for `ROWS` outputs, `UNROLL` vectors of each at a time.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx512f,gfni")]
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
/// The CPU has AVX-512F and GFNI. All sources can be read and all outputs be written from `at` on
/// for `UNROLL` vectors.
#[inline]
#[target_feature(enable = "avx512f,gfni")]
unsafe fn block<const ROWS: usize, const UNROLL: usize>(
    constants: &[[u64; ROWS]],
    sources: &[&[u8]],
    outputs: &[*mut u8; ROWS],
    at: usize,
) {
    for output in outputs {
        for i in 0..UNROLL {
            // Of any address: it reads and writes nothing.
            _mm_prefetch::<_MM_HINT_T0>(output.wrapping_add(at + AHEAD + i * LANE).cast());
        }
    }
    let mut sums = [[_mm512_setzero_si512(); UNROLL]; ROWS];
    let (pairs, odd) = sources.as_chunks();
    let (constant_pairs, odd_constants) = constants.as_chunks();
    for ([a, b], [a_constants, b_constants]) in pairs.iter().zip(constant_pairs) {
        // SAFETY: the caller's promise for each source.
        let (a, b) = unsafe { (load::<UNROLL>(a, at), load::<UNROLL>(b, at)) };
        for row in 0..ROWS {
            let a_constant = _mm512_set1_epi64(a_constants[row].cast_signed());
            let b_constant = _mm512_set1_epi64(b_constants[row].cast_signed());
            for i in 0..UNROLL {
                sums[row][i] = _mm512_ternarylogic_epi64::<XOR3>(
                    sums[row][i],
                    _mm512_gf2p8affine_epi64_epi8::<0>(a[i], a_constant),
                    _mm512_gf2p8affine_epi64_epi8::<0>(b[i], b_constant),
                );
            }
        }
    }
    for (source, constants) in odd.iter().zip(odd_constants) {
        // SAFETY: the caller's promise for each source.
        let source = unsafe { load::<UNROLL>(source, at) };
        for row in 0..ROWS {
            let constant = _mm512_set1_epi64(constants[row].cast_signed());
            for i in 0..UNROLL {
                let product = _mm512_gf2p8affine_epi64_epi8::<0>(source[i], constant);
                sums[row][i] = _mm512_xor_si512(sums[row][i], product);
            }
        }
    }
    for (output, sums) in outputs.iter().zip(sums) {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise for each output; any alignment will do.
            unsafe { _mm512_storeu_si512(output.add(at + i * LANE).cast(), sum) };
        }
    }
}

/// # Safety
/// The CPU has AVX-512F, and `source` can be read from `at` on for `UNROLL` vectors.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const UNROLL: usize>(source: &[u8], at: usize) -> [__m512i; UNROLL] {
    let mut vectors = [_mm512_setzero_si512(); UNROLL];
    for (i, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller's promise; any alignment will do.
        *vector = unsafe { _mm512_loadu_si512(source.as_ptr().add(at + i * LANE).cast()) };
    }
    vectors
}
