//! What the volume's tests share: a plain model, seeded operations, and an oracle for crashes.

use std::collections::BTreeSet;

use storage_vdev::sim::{Image, Rng, SimDisk, SimStore};
use storage_vdev::{
    BLOCK_BYTES, Completion, Geometry, OpenError, Options, Randomness, RequestError, Step,
    StoreFile, Volume, VolumeKey,
};

/// A volume in memory.
pub(crate) type SimVolume = Volume<SimStore>;

/// How many seeds a campaign runs: `HYPHA_SEEDS`, or `usual`.
pub(crate) fn seeds(usual: u64) -> std::ops::Range<u64> {
    let count = std::env::var("HYPHA_SEEDS").ok().and_then(|count| count.parse().ok());
    0..count.unwrap_or(usual)
}

/// A small volume with the smallest journal.
pub(crate) fn geometry(data: u8, parity: u8, blocks: u64) -> Geometry {
    let geometry = Geometry::new(data, parity, blocks * BLOCK_BYTES as u64).unwrap();
    geometry.with_journal_bytes(128 << 10).unwrap()
}

pub(crate) fn options(geometry: Geometry) -> Options {
    Options { geometry, key: VolumeKey::new(&[0x42; 32]), create: true }
}

pub(crate) fn random(rng: &mut Rng) -> Randomness {
    let mut random = Randomness { salt: [0; 32], uuid: [0; 16] };
    rng.fill(&mut random.salt);
    rng.fill(&mut random.uuid);
    random
}

pub(crate) fn open(
    disk: &SimDisk,
    geometry: Geometry,
    rng: &mut Rng,
) -> Result<SimVolume, OpenError> {
    Volume::open_or_create(disk.stores(), &options(geometry), &random(rng))
}

/// Runs one request to its end.
pub(crate) fn run(volume: &mut SimVolume, submit: impl FnOnce(&mut SimVolume)) -> Completion {
    submit(volume);
    let completion = volume.poll().expect("a submitted request completes");
    assert_eq!(volume.poll(), None);
    completion
}

pub(crate) fn write(volume: &mut SimVolume, offset: u64, data: &[u8]) -> Result<(), RequestError> {
    run(volume, |volume| volume.submit_write(1, offset, data)).result
}

pub(crate) fn zero(volume: &mut SimVolume, offset: u64, len: u64) -> Result<(), RequestError> {
    run(volume, |volume| volume.submit_write_zeroes(1, offset, len)).result
}

pub(crate) fn flush(volume: &mut SimVolume) -> Result<(), RequestError> {
    run(volume, |volume| volume.submit_flush(1)).result
}

pub(crate) fn read(
    volume: &mut SimVolume,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, RequestError> {
    let done = run(volume, |volume| volume.submit_read(1, offset, vec![0xaa; len]));
    done.result.map(|()| done.buffer)
}

pub(crate) fn read_all(volume: &mut SimVolume) -> Result<Vec<u8>, RequestError> {
    let len = volume.geometry().size_bytes();
    read(volume, 0, usize::try_from(len).unwrap())
}

/// Does all background work.
pub(crate) fn repair(volume: &mut SimVolume) {
    let mut steps = 0;
    while volume.repair_step() == Step::More {
        steps += 1;
        assert!(steps < 100_000, "background work never ends");
    }
}

/// One change of the volume.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Write { offset: u64, data: Vec<u8> },
    Zero { offset: u64, len: u64 },
}

impl Change {
    /// A random change of whole blocks or sectors.
    pub(crate) fn random(rng: &mut Rng, size: u64) -> Self {
        let unit = if rng.below(4) == 0 { 512 } else { BLOCK_BYTES as u64 };
        let units = size / unit;
        let first = rng.below(units);
        let longest = if rng.below(8) == 0 { 64 } else { 6 };
        let count = 1 + rng.below(longest.min(units - first));
        let (offset, len) = (first * unit, count * unit);
        if rng.below(5) == 0 {
            return Self::Zero { offset, len };
        }
        let mut data = vec![0; usize::try_from(len).unwrap()];
        rng.fill(&mut data);
        Self::Write { offset, data }
    }

    pub(crate) fn apply(&self, model: &mut [u8]) {
        match self {
            Self::Write { offset, data } => {
                let start = usize::try_from(*offset).unwrap();
                model[start..start + data.len()].copy_from_slice(data);
            }
            Self::Zero { offset, len } => {
                let start = usize::try_from(*offset).unwrap();
                model[start..start + usize::try_from(*len).unwrap()].fill(0);
            }
        }
    }

    pub(crate) fn submit(&self, volume: &mut SimVolume) -> Result<(), RequestError> {
        match self {
            Self::Write { offset, data } => write(volume, *offset, data),
            Self::Zero { offset, len } => zero(volume, *offset, *len),
        }
    }

    /// The blocks that it touches, one change for each.
    fn split(&self) -> Vec<Self> {
        let block_bytes = BLOCK_BYTES as u64;
        match self {
            Self::Zero { .. } => vec![self.clone()],
            Self::Write { offset, data } => {
                let mut parts = Vec::new();
                let mut at = *offset;
                let mut rest = &data[..];
                while !rest.is_empty() {
                    let len = usize::try_from(block_bytes - at % block_bytes).unwrap();
                    let (now, later) = rest.split_at(len.min(rest.len()));
                    parts.push(Self::Write { offset: at, data: now.to_vec() });
                    at += now.len() as u64;
                    rest = later;
                }
                parts
            }
        }
    }
}

/// What a volume may contain after a crash: the flushed state, and each prefix of what came later.
#[derive(Debug, Clone)]
pub(crate) struct Oracle {
    /// The state at the last acknowledged flush.
    flushed: Vec<u8>,
    /// What was issued since, in order (the last one may not have been acknowledged).
    since: Vec<Change>,
}

impl Oracle {
    pub(crate) fn new(state: Vec<u8>) -> Self {
        Self { flushed: state, since: Vec::new() }
    }

    pub(crate) fn issue(&mut self, change: Change) {
        self.since.push(change);
    }

    pub(crate) fn flush(&mut self) {
        for change in self.since.drain(..) {
            change.apply(&mut self.flushed);
        }
    }

    /// The state that reads see while the volume is open.
    pub(crate) fn newest(&self) -> Vec<u8> {
        let mut state = self.flushed.clone();
        self.since.iter().for_each(|change| change.apply(&mut state));
        state
    }

    /// Whether `state` is what some prefix of the changes gives: nothing that was flushed is lost,
    /// nothing older comes back, and no change is there without those before it.
    pub(crate) fn allows(&self, state: &[u8]) -> bool {
        let mut prefix = self.flushed.clone();
        if prefix == state {
            return true;
        }
        for change in self.since.iter().flat_map(Change::split) {
            change.apply(&mut prefix);
            if prefix == state {
                return true;
            }
        }
        // Zeroing parts of blocks is a write at each end and a record between: check blocks alone.
        let splits = |change: &Change| match change {
            Change::Zero { offset, len } => (offset | len) % BLOCK_BYTES as u64 != 0,
            Change::Write { .. } => false,
        };
        self.since.iter().any(splits) && self.allows_each_block(state)
    }

    fn allows_each_block(&self, state: &[u8]) -> bool {
        let mut versions: Vec<BTreeSet<Vec<u8>>> = self
            .flushed
            .chunks(BLOCK_BYTES)
            .map(|block| BTreeSet::from([block.to_vec()]))
            .collect();
        let mut prefix = self.flushed.clone();
        for change in self.since.iter().flat_map(Change::split) {
            change.apply(&mut prefix);
            for (block, content) in versions.iter_mut().zip(prefix.chunks(BLOCK_BYTES)) {
                block.insert(content.to_vec());
            }
        }
        versions.iter().zip(state.chunks(BLOCK_BYTES)).all(|(block, now)| block.contains(now))
    }
}

/// Damages one store in a way that `rng` chooses. `older` is a copy of it from before.
pub(crate) fn damage(disk: &SimDisk, store: usize, older: &Image, rng: &mut Rng) -> &'static str {
    let mut image = disk.image(store);
    let name = match rng.below(7) {
        0 => {
            image = Image::default();
            "lost"
        }
        1 => {
            for file in [StoreFile::Shard, StoreFile::Journal] {
                image.file_mut(file).into_iter().for_each(|bytes| rng.fill(bytes));
            }
            "random bytes"
        }
        2 => {
            for file in [StoreFile::Shard, StoreFile::Journal] {
                image.file_mut(file).into_iter().for_each(|bytes| bytes.fill(0));
            }
            "zeroes"
        }
        3 => {
            let keep = rng.next_u64();
            for file in [StoreFile::Shard, StoreFile::Journal] {
                let truncate = |bytes: &mut Vec<u8>| bytes.truncate(keep as usize % bytes.len());
                image.file_mut(file).into_iter().for_each(truncate);
            }
            "truncated"
        }
        4 => {
            image = older.clone();
            "rolled back"
        }
        5 => {
            // Behind the superblocks: headers, slots and journal records.
            for file in [StoreFile::Shard, StoreFile::Journal] {
                image.file_mut(file).into_iter().for_each(|bytes| rng.fill(&mut bytes[8192..]));
            }
            "random bytes behind intact superblocks"
        }
        _ => {
            for file in [StoreFile::Shard, StoreFile::Journal] {
                for _ in 0..40 {
                    let Some(bytes) = image.file_mut(file) else { continue };
                    let bit = rng.below(bytes.len() as u64 * 8) as usize;
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            }
            "flipped bits"
        }
    };
    disk.set_image(store, image);
    name
}

/// `count` different stores of `stores`.
pub(crate) fn choose(rng: &mut Rng, stores: usize, count: u64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..stores).collect();
    (0..count).map(|_| all.swap_remove(rng.below(all.len() as u64) as usize)).collect()
}
