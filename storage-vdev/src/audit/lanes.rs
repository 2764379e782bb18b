//! Sixteen SHA-256 computations at once, one in each 32-bit lane of AVX-512 registers: twice the
//! rate of one after the other with the SHA instructions.
#![expect(unsafe_code, reason = "vector loads and stores, and a call that needs AVX-512")]

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_loadu_si512, _mm512_ror_epi32, _mm512_set1_epi32,
    _mm512_set4_epi32, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_shuffle_i32x4,
    _mm512_srli_epi32, _mm512_storeu_si512, _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::Hash;

/// How many messages are hashed at once.
pub(super) const LANES: usize = 16;

/// A block of the compression function.
pub(super) type Block = [u8; 64];

/// The fractional parts of the square roots of the first 8 primes.
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The fractional parts of the cube roots of the first 64 primes.
#[rustfmt::skip]
const ROUND: [[u32; 16]; 4] = [
    [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4,
        0xab1c_5ed5, 0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe,
        0x9bdc_06a7, 0xc19b_f174,
    ],
    [
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc,
        0x76f9_88da, 0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147,
        0x06ca_6351, 0x1429_2967,
    ],
    [
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e,
        0x9272_2c85, 0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624,
        0xf40e_3585, 0x106a_a070,
    ],
    [
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f,
        0x682e_6ff3, 0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb,
        0xbef9_a3f7, 0xc671_78f2,
    ],
];

/// Truth tables of three operands for `vpternlog`.
const XOR: i32 = 0x96;
const CHOOSE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

/// Shows that this CPU has what the computation takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes(());

impl Lanes {
    /// `None` if the CPU lacks AVX-512.
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        has.then_some(Self(()))
    }

    /// Hashes sixteen messages of `count` blocks each, padding included: `blocks` has the blocks of
    /// a number for all lanes.
    pub(super) fn hash<'a>(
        self,
        count: usize,
        blocks: impl Fn(usize) -> [&'a Block; LANES],
    ) -> [Hash; LANES] {
        let mut state = START.map(|word| [word; LANES]);
        for number in 0..count {
            // SAFETY: a `Lanes` is only had from a CPU with AVX-512F and AVX-512BW.
            unsafe { compress(&mut state, blocks(number)) };
        }
        std::array::from_fn(|lane| {
            let mut hash = [0; 32];
            for (bytes, words) in hash.as_chunks_mut().0.iter_mut().zip(&state) {
                *bytes = words[lane].to_be_bytes();
            }
            hash
        })
    }
}

/// One round with the state's words in these variables; the next one has them turned by one.
macro_rules! round {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $word:expr) => {
        let sum = add(
            add($h, $word),
            add(
                xor(ror::<6>($e), ror::<11>($e), ror::<25>($e)),
                _mm512_ternarylogic_epi32::<CHOOSE>($e, $f, $g),
            ),
        );
        let rest = add(
            xor(ror::<2>($a), ror::<13>($a), ror::<22>($a)),
            _mm512_ternarylogic_epi32::<MAJORITY>($a, $b, $c),
        );
        $d = add($d, sum);
        $h = add(sum, rest);
    };
}

/// Takes one block of each lane into the states: for each word of a state its sixteen lanes.
#[target_feature(enable = "avx512f,avx512bw")]
fn compress(state: &mut [[u32; LANES]; 8], blocks: [&Block; LANES]) {
    let mut words = transpose(blocks);
    let before = state.each_ref().map(|lanes| load(lanes));
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = before;
    for (quarter, constants) in ROUND.iter().enumerate() {
        let key = |i: usize| _mm512_set1_epi32(constants[i].cast_signed());
        for i in [0, 8] {
            round!(a b c d e f g h, add(words[i], key(i)));
            round!(h a b c d e f g, add(words[i + 1], key(i + 1)));
            round!(g h a b c d e f, add(words[i + 2], key(i + 2)));
            round!(f g h a b c d e, add(words[i + 3], key(i + 3)));
            round!(e f g h a b c d, add(words[i + 4], key(i + 4)));
            round!(d e f g h a b c, add(words[i + 5], key(i + 5)));
            round!(c d e f g h a b, add(words[i + 6], key(i + 6)));
            round!(b c d e f g h a, add(words[i + 7], key(i + 7)));
        }
        if quarter < 3 {
            schedule(&mut words);
        }
    }
    for (lanes, (before, after)) in
        state.iter_mut().zip(before.into_iter().zip([a, b, c, d, e, f, g, h]))
    {
        let sum = add(before, after);
        // SAFETY: the reference holds for sixteen words; any alignment will do.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sum) };
    }
}

/// The next sixteen words of the message schedule from the last sixteen.
#[inline]
#[target_feature(enable = "avx512f")]
fn schedule(words: &mut [__m512i; 16]) {
    for i in 0..16 {
        let (early, late) = (words[(i + 1) % 16], words[(i + 14) % 16]);
        let early = xor(ror::<7>(early), ror::<18>(early), _mm512_srli_epi32::<3>(early));
        let late = xor(ror::<17>(late), ror::<19>(late), _mm512_srli_epi32::<10>(late));
        words[i] = add(add(words[i], early), add(words[(i + 9) % 16], late));
    }
}

/// Word `i` of all blocks, big-endian, in vector `i`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(blocks: [&Block; LANES]) -> [__m512i; 16] {
    let swap = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    let mut rows = [_mm512_setzero_si512(); 16];
    for (row, block) in rows.iter_mut().zip(blocks) {
        // SAFETY: the reference holds for 64 bytes; any alignment will do.
        let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        *row = _mm512_shuffle_epi8(bytes, swap);
    }
    // Within each 128 bits: words of two rows, then of four.
    let mut fours = rows;
    for i in (0..16).step_by(4) {
        let low = [0, 2].map(|j| _mm512_unpacklo_epi32(rows[i + j], rows[i + j + 1]));
        let high = [0, 2].map(|j| _mm512_unpackhi_epi32(rows[i + j], rows[i + j + 1]));
        fours[i] = _mm512_unpacklo_epi64(low[0], low[1]);
        fours[i + 1] = _mm512_unpackhi_epi64(low[0], low[1]);
        fours[i + 2] = _mm512_unpacklo_epi64(high[0], high[1]);
        fours[i + 3] = _mm512_unpackhi_epi64(high[0], high[1]);
    }
    // fours[4r + w] has words w, w+4, w+8, w+12 of rows 4r to 4r+3, 128 bits each.
    let mut words = rows;
    for w in 0..4 {
        let [r0, r1, r2, r3] = [fours[w], fours[4 + w], fours[8 + w], fours[12 + w]];
        let even = [(r0, r1), (r2, r3)].map(|(x, y)| _mm512_shuffle_i32x4::<0x88>(x, y));
        let odd = [(r0, r1), (r2, r3)].map(|(x, y)| _mm512_shuffle_i32x4::<0xdd>(x, y));
        words[w] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        words[w + 4] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        words[w + 8] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        words[w + 12] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    words
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(lanes: &[u32; LANES]) -> __m512i {
    // SAFETY: the reference holds for sixteen words; any alignment will do.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<XOR>(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn ror<const BITS: i32>(a: __m512i) -> __m512i {
    _mm512_ror_epi32::<BITS>(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lane_is_sha_256() {
        let Some(lanes) = Lanes::detect() else {
            println!("SKIPPED: this CPU can't run sixteen SHA-256 computations at once (AVX-512)");
            return;
        };
        // Messages of 119 bytes, which fill two blocks with their padding.
        let messages: [[Block; 2]; LANES] = std::array::from_fn(|lane| {
            let mut bytes = [0; 128];
            for (i, byte) in bytes.iter_mut().enumerate().take(119) {
                *byte = (lane * 37 + i * i) as u8;
            }
            bytes[119] = 0x80;
            bytes[120..].copy_from_slice(&(119_u64 * 8).to_be_bytes());
            [0, 64].map(|at| std::array::from_fn(|i| bytes[at + i]))
        });
        let hashes = lanes.hash(2, |number| messages.each_ref().map(|message| &message[number]));
        for (message, hash) in messages.iter().zip(hashes) {
            let bytes = &message.as_flattened()[..119];
            let wanted = ring::digest::digest(&ring::digest::SHA256, bytes);
            assert_eq!(hash.as_slice(), wanted.as_ref());
        }
    }
}
