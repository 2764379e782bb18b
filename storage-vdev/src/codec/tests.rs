//! Every kernel that this CPU can run, beside `reed-solomon-erasure`.

use std::sync::Once;

use proptest::prelude::*;
use reed_solomon_erasure::galois_8::ReedSolomon;

use super::*;

/// The kernels to test; says which ones it has to leave out.
fn kernels() -> Vec<Kernel> {
    static SAY: Once = Once::new();
    let all = Kernel::all();
    SAY.call_once(|| {
        for (name, _) in all.iter().filter(|(_, kernel)| kernel.is_none()) {
            println!("SKIPPED: this CPU can't run the codec's kernel for {name}");
        }
    });
    all.into_iter().filter_map(|(_, kernel)| kernel).collect()
}

/// A reproducible stream of bytes.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) ^ mixed >> 31
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// All shards of some data, as the reference computes them.
fn reference(
    data_shards: usize,
    parity_shards: usize,
    len: usize,
    noise: &mut Noise,
) -> Vec<Vec<u8>> {
    let mut shards: Vec<Vec<u8>> = (0..data_shards).map(|_| noise.bytes(len)).collect();
    shards.resize(data_shards + parity_shards, vec![0; len]);
    if parity_shards > 0 && len > 0 {
        ReedSolomon::new(data_shards, parity_shards).unwrap().encode(&mut shards).unwrap();
    }
    shards
}

/// A buffer whose slice `[offset..][..len]` is the shard's place; the rest shows stray writes.
fn placed(bytes: &[u8], offset: usize) -> Vec<u8> {
    let mut buffer = vec![0xa5; offset + bytes.len() + 70];
    buffer[offset..][..bytes.len()].copy_from_slice(bytes);
    buffer
}

/// Encodes with `codec` the data of `shards`, each slice at another alignment, and compares.
fn encode_and_compare(codec: &Codec, shards: &[Vec<u8>], noise: &mut Noise) {
    let (data, parity) = shards.split_at(codec.data_shards());
    let data: Vec<_> = data.iter().map(|s| (noise.below(64), s)).collect();
    let data: Vec<_> = data.into_iter().map(|(at, s)| (at, s.len(), placed(s, at))).collect();
    let sources: Vec<&[u8]> = data.iter().map(|(at, len, bytes)| &bytes[*at..][..*len]).collect();
    let mut got: Vec<_> = parity
        .iter()
        .map(|shard| (noise.below(64), shard))
        .map(|(at, shard)| (at, placed(&vec![0xee; shard.len()], at)))
        .collect();
    let mut outputs: Vec<&mut [u8]> =
        got.iter_mut().zip(parity).map(|((at, b), s)| &mut b[*at..][..s.len()]).collect();
    codec.encode(&sources, &mut outputs);
    for (i, ((at, got), wanted)) in got.iter().zip(parity).enumerate() {
        assert!(
            *got == placed(wanted, *at),
            "{codec:?}, parity {i}, {} bytes at {at}",
            wanted.len()
        );
    }
}

/// Brings the shards `wanted` back from `sources`, both in the order given, and compares.
fn reconstruct_and_compare(codec: &Codec, shards: &[Vec<u8>], sources: &[usize], wanted: &[usize]) {
    let given: Vec<(u8, &[u8])> =
        sources.iter().map(|&shard| (shard as u8, shards[shard].as_slice())).collect();
    let mut got: Vec<Vec<u8>> =
        wanted.iter().map(|&shard| vec![0xee; shards[shard].len()]).collect();
    let mut outputs: Vec<(u8, &mut [u8])> =
        wanted.iter().zip(&mut got).map(|(&shard, bytes)| (shard as u8, &mut **bytes)).collect();
    codec.reconstruct(&given, &mut outputs).unwrap();
    for (&shard, got) in wanted.iter().zip(&got) {
        assert!(*got == shards[shard], "{codec:?}, shard {shard} from {sources:?} with {wanted:?}");
    }
}

fn shuffled(mut items: Vec<usize>, noise: &mut Noise) -> Vec<usize> {
    for i in (1..items.len()).rev() {
        items.swap(i, noise.below(i + 1));
    }
    items
}

#[test]
fn every_shape_encodes_as_the_reference_does() {
    let mut noise = Noise(1);
    for data in 1..=32 {
        for parity in 0..=32 - data {
            let len = 1 + noise.below(200);
            let shards = reference(data, parity, len, &mut noise);
            for kernel in kernels() {
                let codec = Codec::with_kernel(data as u8, parity as u8, kernel);
                encode_and_compare(&codec, &shards, &mut noise);
            }
        }
    }
}

#[test]
fn the_parity_of_code_1_is_this() {
    // What the formats' code id 1 means, independent of any crate: the matrix's lower rows.
    let units: Vec<Vec<u8>> =
        (0..4).map(|shard| (0..4).map(|i| u8::from(i == shard)).collect()).collect();
    let sources: Vec<&[u8]> = units.iter().map(Vec::as_slice).collect();
    for kernel in kernels() {
        let (mut first, mut second) = ([0; 4], [0; 4]);
        Codec::with_kernel(4, 2, kernel).encode(&sources, &mut [&mut first, &mut second]);
        assert_eq!((first, second), ([27, 28, 18, 20], [28, 27, 20, 18]), "{kernel:?}");
    }
}

#[test]
fn threads_share_a_codec() {
    let shards = reference(10, 4, 1000, &mut Noise(8));
    let codec = Codec::new(10, 4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (codec, shards) = (&codec, &shards);
            scope.spawn(move || {
                let mut noise = Noise(100 + thread);
                for _ in 0..200 {
                    let order = shuffled((0..14).collect(), &mut noise);
                    let (sources, wanted) = order.split_at(10);
                    reconstruct_and_compare(codec, shards, sources, wanted);
                }
            });
        }
    });
}

#[test]
fn every_length_up_to_three_blocks_is_encoded() {
    let mut noise = Noise(2);
    for kernel in kernels() {
        let codecs = [(4, 2), (5, 3), (3, 7)].map(|(k, m)| Codec::with_kernel(k, m, kernel));
        for len in 0..=3 * 4 * 64 + 1 {
            for codec in &codecs {
                let shards = reference(codec.data_shards(), codec.parity_shards(), len, &mut noise);
                encode_and_compare(codec, &shards, &mut noise);
            }
        }
    }
}

#[test]
fn shards_longer_than_a_strip_are_encoded() {
    let mut noise = Noise(3);
    for (data, parity) in [(4, 2), (16, 16), (1, 31), (20, 10), (31, 1)] {
        for len in [4112, 16 * 4112, 65_536, 300_001] {
            let shards = reference(data, parity, len / data, &mut noise);
            for kernel in kernels() {
                let codec = Codec::with_kernel(data as u8, parity as u8, kernel);
                encode_and_compare(&codec, &shards, &mut noise);
            }
        }
    }
}

#[test]
fn every_loss_of_four_and_two_is_brought_back() {
    let mut noise = Noise(4);
    let shards = reference(4, 2, 4112, &mut noise);
    for kernel in kernels() {
        let codec = Codec::with_kernel(4, 2, kernel);
        for lost in 0u32..1 << 6 {
            let (gone, left): (Vec<usize>, Vec<usize>) =
                (0..6).partition(|shard| lost >> shard & 1 == 1);
            if gone.len() > 2 {
                continue;
            }
            for start in 0..left.len() {
                let mut sources = left.clone();
                sources.rotate_left(start);
                sources.truncate(4);
                reconstruct_and_compare(&codec, &shards, &sources, &gone);
            }
        }
    }
}

#[test]
fn every_loss_of_four_shards_of_ten_and_four_is_brought_back() {
    let mut noise = Noise(5);
    let shards = reference(10, 4, 97, &mut noise);
    let codecs: Vec<_> = kernels().into_iter().map(|k| Codec::with_kernel(10, 4, k)).collect();
    let losses = (0u32..1 << 14).filter(|lost| lost.count_ones() == 4);
    let count = losses
        .map(|lost| {
            let (gone, left): (Vec<usize>, Vec<usize>) =
                (0..14).partition(|shard| lost >> shard & 1 == 1);
            for codec in &codecs {
                reconstruct_and_compare(codec, &shards, &left, &gone);
            }
        })
        .count();
    assert_eq!(count, 1001);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_shards_come_from_any_k(data in 1usize..=32, parity in 0usize..=31, seed: u64) {
        let parity = parity.min(32 - data);
        let noise = &mut Noise(seed);
        let len = 1 + noise.below(700);
        let shards = reference(data, parity, len, noise);
        let order = shuffled((0..data + parity).collect(), noise);
        let sources = &order[..data];
        // Also of those that are there.
        let wanted = shuffled((0..data + parity).collect(), noise);
        let wanted = &wanted[..noise.below(wanted.len() + 1)];
        for kernel in kernels() {
            let codec = Codec::with_kernel(data as u8, parity as u8, kernel);
            for _ in 0..2 {
                reconstruct_and_compare(&codec, &shards, sources, wanted);
            }
        }
    }
}

#[test]
fn more_losses_than_the_cache_holds_are_brought_back_again_and_again() {
    let mut noise = Noise(6);
    let shards = reference(16, 4, 65, &mut noise);
    let codec = Codec::new(16, 4);
    for _ in 0..2 {
        for _ in 0..2 * PLANS_MAX {
            let order = shuffled((0..20).collect(), &mut noise);
            let (sources, wanted) = order.split_at(16);
            reconstruct_and_compare(&codec, &shards, sources, wanted);
        }
        assert_eq!(codec.decode.lock().unwrap().len(), PLANS_MAX);
    }
}

#[test]
fn a_loss_that_came_before_is_found_in_the_cache() {
    let shards = reference(4, 2, 64, &mut Noise(7));
    let codec = Codec::new(4, 2);
    for sources in [[0, 2, 4, 5], [5, 4, 2, 0]] {
        reconstruct_and_compare(&codec, &shards, &sources, &[1, 3]);
        reconstruct_and_compare(&codec, &shards, &sources, &[3, 1]);
    }
    assert_eq!(codec.decode.lock().unwrap().len(), 1);
}

#[test]
fn sources_and_wanted_shards_that_do_not_fit_are_refused() {
    let codec = Codec::new(2, 1);
    let (a, b, short) = ([1; 8], [2; 8], [3; 7]);
    let mut out = [0xee; 8];
    let mut attempt = |sources: &[(u8, &[u8])], wanted: u8| {
        let result = codec.reconstruct(sources, &mut [(wanted, &mut out)]);
        assert!(result.is_ok() || out == [0xee; 8], "nothing is written");
        result
    };
    let refused = [
        (attempt(&[(0, &a)], 2), CodecError::Sources { found: 1, needed: 2 }),
        (attempt(&[(0, &a), (1, &b), (2, &b)], 2), CodecError::Sources { found: 3, needed: 2 }),
        (attempt(&[(0, &a), (0, &b)], 2), CodecError::Shard { shard: 0, shards: 3 }),
        (attempt(&[(0, &a), (3, &b)], 2), CodecError::Shard { shard: 3, shards: 3 }),
        (attempt(&[(0, &a), (255, &b)], 2), CodecError::Shard { shard: 255, shards: 3 }),
        (attempt(&[(0, &a), (1, &b)], 32), CodecError::Shard { shard: 32, shards: 3 }),
        (attempt(&[(0, &a), (1, &short)], 2), CodecError::Length { shard: 1, found: 7, needed: 8 }),
    ];
    for (got, wanted) in refused {
        assert_eq!(got, Err(wanted));
    }
    let (mut one, mut two) = ([0; 8], [0; 8]);
    let twice = codec.reconstruct(&[(0, &a), (1, &b)], &mut [(2, &mut one), (2, &mut two)]);
    assert_eq!(twice, Err(CodecError::Shard { shard: 2, shards: 3 }));
    let mut long = [0; 9];
    let unequal = codec.reconstruct(&[(0, &a), (1, &b)], &mut [(2, &mut long)]);
    assert_eq!(unequal, Err(CodecError::Length { shard: 2, found: 9, needed: 8 }));
    assert_eq!(codec.reconstruct(&[(0, &a), (1, &b)], &mut []), Ok(()));
}

#[test]
#[should_panic(expected = "shards of one length")]
fn parity_of_another_length_is_refused() {
    let mut parity = [0; 63];
    Codec::new(2, 1).encode(&[&[0; 64], &[0; 64]], &mut [&mut parity]);
}

#[test]
#[should_panic(expected = "rows and columns")]
fn too_few_data_shards_are_refused() {
    Codec::new(2, 1).encode(&[&[0; 64]], &mut [&mut [0; 64]]);
}
