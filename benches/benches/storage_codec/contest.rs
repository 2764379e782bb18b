//! Who encodes and reconstructs, each as its own interface wants it, and that all agree.

use benches::milliseconds;
use reed_solomon_erasure::galois_8::ReedSolomon;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use storage_vdev::codec::{Codec, Kernel};

/// The names of those that ratios are told of.
pub(crate) const ISAL: &str = "ISA-L 2.31";
pub(crate) const SIMD: &str = "rs-simd 3.1";

/// The most turns that a contestant has; the best one counts.
const TURNS_MAX: usize = 30;
/// What a turn should take, in milliseconds: short, so that some aren't interrupted by others.
const TURN_MS: f64 = 0.5;
/// After about how many milliseconds a slow contestant has no more turns, though it has three.
const ALL_TURNS_MS: f64 = 100.0;

/// The shards of one length of one code.
pub(crate) struct Cell {
    pub(crate) data_shards: usize,
    pub(crate) parity_shards: usize,
    pub(crate) len: usize,
    /// All of them, as the reference computes them.
    shards: Vec<Vec<u8>>,
}

/// From the sources to the outputs.
type Work<'a> = Box<dyn FnMut(&[Vec<u8>], &mut [Vec<u8>]) + 'a>;

/// Something that makes outputs from sources.
pub(crate) struct Contestant<'a> {
    pub(crate) name: String,
    work: Work<'a>,
    /// Its code is the formats' one, so its outputs must be right to the byte.
    same_code: bool,
}

/// Where a contestant stands.
struct Turns<'a> {
    contestant: Contestant<'a>,
    /// How often it works in a turn.
    count: usize,
    left: usize,
    /// Milliseconds of its best turn, each time.
    best: f64,
}

impl<'a> Contestant<'a> {
    fn new(name: &str, work: impl FnMut(&[Vec<u8>], &mut [Vec<u8>]) + 'a) -> Self {
        Self { name: name.to_owned(), work: Box::new(work), same_code: true }
    }

    fn of_another_code(self) -> Self {
        Self { same_code: false, ..self }
    }
}

impl Cell {
    pub(crate) fn new(data_shards: usize, parity_shards: usize, len: usize) -> Self {
        let byte = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8;
        let shard = |s: usize| (0..len).map(|i| byte(i + s * len)).collect();
        let mut shards: Vec<Vec<u8>> = (0..data_shards).map(shard).collect();
        shards.resize(data_shards + parity_shards, vec![0; len]);
        let code = ReedSolomon::new(data_shards, parity_shards).unwrap();
        code.encode(&mut shards).unwrap();
        Self { data_shards, parity_shards, len, shards }
    }

    /// `k+m`, and the length of a shard.
    pub(crate) fn labels(&self) -> Vec<String> {
        let code = format!("{}+{}", self.data_shards, self.parity_shards);
        vec![code, format!("{} KiB", self.len >> 10)]
    }

    fn codec(&self, kernel: Kernel) -> Codec {
        Codec::with_kernel(self.data_shards as u8, self.parity_shards as u8, kernel)
    }

    /// Makes the parity from the data.
    pub(crate) fn encode(&self) -> Vec<f64> {
        let (data, parity) = self.shards.split_at(self.data_shards);
        let mut all = vec![Contestant::new("memcpy", copy).of_another_code()];
        for kernel in kernels() {
            let codec = self.codec(kernel);
            all.push(Contestant::new(kernel.name(), move |sources, outputs| {
                let sources: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
                let mut outputs: Vec<&mut [u8]> =
                    outputs.iter_mut().map(Vec::as_mut_slice).collect();
                codec.encode(&sources, &mut outputs);
            }));
        }
        #[cfg(feature = "isal")]
        all.push(self.isal(&(self.data_shards..self.shards.len()).collect::<Vec<_>>(), false));
        let mut simd =
            ReedSolomonEncoder::new(self.data_shards, self.parity_shards, self.len).unwrap();
        let simd = Contestant::new(SIMD, move |sources, _| {
            for source in sources {
                simd.add_original_shard(source).unwrap();
            }
            assert!(simd.encode().unwrap().recovery(0).is_some());
        });
        all.push(simd.of_another_code());
        let reference = ReedSolomon::new(self.data_shards, self.parity_shards).unwrap();
        all.push(Contestant::new("rse 6.0", move |sources, outputs| {
            reference.encode_sep(sources, outputs).unwrap();
        }));
        self.contest(all, data, parity)
    }

    /// Loses the first m data shards, or as many as there are, and makes them from the others.
    pub(crate) fn reconstruct(&self) -> Vec<f64> {
        let lost = self.parity_shards.min(self.data_shards);
        let kept: Vec<usize> = (lost..lost + self.data_shards).collect();
        let (gone, rest) = self.shards.split_at(lost);
        let sources = &rest[..self.data_shards];
        let mut all = vec![Contestant::new("memcpy", copy).of_another_code()];
        for kernel in kernels() {
            let (codec, kept) = (self.codec(kernel), kept.clone());
            all.push(Contestant::new(kernel.name(), move |sources, outputs| {
                let sources: Vec<(u8, &[u8])> =
                    kept.iter().zip(sources).map(|(&i, s)| (i as u8, s.as_slice())).collect();
                let mut outputs: Vec<(u8, &mut [u8])> =
                    (0..).zip(outputs.iter_mut().map(Vec::as_mut_slice)).collect();
                codec.reconstruct(&sources, &mut outputs).unwrap();
            }));
        }
        #[cfg(feature = "isal")]
        all.push(self.isal(&(0..lost).collect::<Vec<_>>(), true));
        all.push(self.simd_decoder(lost).of_another_code());
        let reference = ReedSolomon::new(self.data_shards, self.parity_shards).unwrap();
        let mut shards = self.shards.clone();
        all.push(Contestant::new("rse 6.0", move |_, outputs| {
            shards.iter_mut().zip(outputs.iter_mut()).for_each(|(s, o)| std::mem::swap(s, o));
            let mut slots: Vec<(&mut [u8], bool)> =
                (0..).zip(&mut shards).map(|(i, s): (usize, _)| (&mut **s, i >= lost)).collect();
            reference.reconstruct_data(&mut slots).unwrap();
            shards.iter_mut().zip(outputs).for_each(|(s, o)| std::mem::swap(s, o));
        }));
        self.contest(all, sources, gone)
    }

    /// rs-simd's decoder needs the recovery shards of its own code.
    fn simd_decoder(&self, lost: usize) -> Contestant<'static> {
        let (k, m) = (self.data_shards, self.parity_shards);
        let recovery = reed_solomon_simd::encode(k, m, &self.shards[..k]).unwrap();
        let originals: Vec<_> = self.shards[..k].iter().cloned().enumerate().skip(lost).collect();
        let mut decoder = ReedSolomonDecoder::new(k, m, self.len).unwrap();
        Contestant::new(SIMD, move |_, _| {
            for (index, shard) in &originals {
                decoder.add_original_shard(*index, shard).unwrap();
            }
            for (index, shard) in recovery.iter().enumerate().take(lost) {
                decoder.add_recovery_shard(index, shard).unwrap();
            }
            assert!(decoder.decode().unwrap().restored_original(0).is_some());
        })
    }

    /// ISA-L with the formats' matrix: of `rows` over the data shards, or over the last k shards
    /// but those that are too many.
    #[cfg(feature = "isal")]
    fn isal(&self, rows: &[usize], decode: bool) -> Contestant<'static> {
        let k = self.data_shards;
        // What comes of unit vectors are the matrix's columns.
        let units: Vec<Vec<u8>> =
            (0..k).map(|shard| (0..k).map(|i| u8::from(i == shard)).collect()).collect();
        let codec = self.codec(Kernel::PORTABLE);
        let first = if decode { rows.len() } else { 0 };
        let sources: Vec<(u8, &[u8])> =
            (first as u8..).zip(units.iter().map(Vec::as_slice)).collect();
        let mut cells = vec![0; rows.len() * k];
        let mut wanted: Vec<(u8, &mut [u8])> =
            rows.iter().map(|&row| row as u8).zip(cells.chunks_exact_mut(k)).collect();
        codec.reconstruct(&sources, &mut wanted).unwrap();
        let tables = crate::isal::Tables::new(rows.len(), k, &cells);
        Contestant::new(ISAL, move |sources, outputs| tables.multiply(sources, outputs))
    }

    /// The best rate of each in GB/s of data, after all have shown that they agree.
    fn contest(&self, all: Vec<Contestant>, sources: &[Vec<u8>], wanted: &[Vec<u8>]) -> Vec<f64> {
        let mut outputs = vec![vec![0; self.len]; wanted.len()];
        let mut turns = Vec::new();
        for mut contestant in all {
            outputs.iter_mut().for_each(|output| output.fill(0xee));
            (contestant.work)(sources, &mut outputs);
            let agrees = !contestant.same_code || outputs == wanted;
            assert!(agrees, "{} at {:?}: other bytes", contestant.name, self.labels());
            let once = milliseconds(3, || (contestant.work)(sources, &mut outputs));
            let count = (TURN_MS / once.percentile(0)).clamp(1.0, 1e5);
            let left = (ALL_TURNS_MS / (count * once.percentile(0))).max(3.0) as usize;
            turns.push(Turns { contestant, count: count as usize, left, best: f64::MAX });
        }
        for _ in 0..TURNS_MAX {
            for Turns { contestant, count, left, best } in &mut turns {
                if *left == 0 {
                    continue;
                }
                *left -= 1;
                let turn = milliseconds(1, || {
                    for _ in 0..*count {
                        (contestant.work)(sources, &mut outputs);
                    }
                });
                *best = best.min(turn.percentile(0) / *count as f64);
            }
        }
        let bytes = (self.len * self.data_shards) as f64;
        turns.iter().map(|turns| bytes / turns.best / 1e6).collect()
    }
}

/// The names of the contestants, in the order of the rates.
pub(crate) fn names() -> Vec<String> {
    let mut names = vec!["memcpy".to_owned()];
    names.extend(kernels().iter().map(|kernel| kernel.name().to_owned()));
    if cfg!(feature = "isal") {
        names.push(ISAL.to_owned());
    }
    names.extend([SIMD, "rse 6.0"].map(str::to_owned));
    names
}

fn kernels() -> Vec<Kernel> {
    Kernel::all().into_iter().filter_map(|(_, kernel)| kernel).collect()
}

thread_local! {
    static COPY: std::cell::RefCell<Vec<Vec<u8>>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Copies the sources to other places.
fn copy(sources: &[Vec<u8>], _: &mut [Vec<u8>]) {
    COPY.with_borrow_mut(|places| {
        if places.len() != sources.len() || places[0].len() != sources[0].len() {
            *places = sources.to_vec();
        }
        for (place, source) in places.iter_mut().zip(sources) {
            place.copy_from_slice(source);
        }
        std::hint::black_box(places);
    });
}
