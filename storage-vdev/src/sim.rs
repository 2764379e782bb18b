//! Stores in memory that forget at a crash what was not synced: for tests and fuzz targets.
//!
//! A [`SimDisk`] holds all stores of a volume and counts their operations. After a crash each
//! sector (512 bytes) that was written since its file's last sync holds what one of the writes left
//! there, or what was there before: writes are dropped, torn and reordered, as seeds decide. Making
//! a file is durable at once, as [`Store::create`] promises.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::{Store, StoreFile};

const SECTOR: usize = 512;

/// A small generator of pseudo-random numbers (SplitMix64), so that a seed names a run.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The generator of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(number.get(..chunk.len()).unwrap_or_default());
        }
    }
}

/// The content of one store: what a host could copy away and put back later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    files: BTreeMap<StoreFile, Vec<u8>>,
}

impl Image {
    /// A file's content, if there is such a file.
    pub fn file_mut(&mut self, file: StoreFile) -> Option<&mut Vec<u8>> {
        self.files.get_mut(&file)
    }

    /// Puts a file there.
    pub fn set_file(&mut self, file: StoreFile, content: Vec<u8>) {
        self.files.insert(file, content);
    }
}

#[derive(Debug, Default)]
struct SimFile {
    /// What a read sees.
    current: Vec<u8>,
    /// For each sector written since the last sync: what it was before, and after each write.
    unsynced: BTreeMap<usize, Vec<Vec<u8>>>,
}

/// One operation on a store that changed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its number among the operations ([`SimDisk::crash_at`]).
    pub operation: u64,
    /// The store's index.
    pub store: usize,
    /// The file.
    pub file: StoreFile,
    /// Where.
    pub offset: u64,
    /// What.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    stores: Vec<BTreeMap<StoreFile, SimFile>>,
    operations: u64,
    crash_at: Option<u64>,
    broken: u32,
    trace: Option<Vec<Written>>,
}

impl State {
    /// Counts an operation and says whether it happens.
    fn step(&mut self, store: usize) -> io::Result<&mut BTreeMap<StoreFile, SimFile>> {
        let crashed = self.crash_at.is_some_and(|at| self.operations >= at);
        self.operations += u64::from(!crashed);
        let broken = self.broken >> store & 1 == 1;
        match self.stores.get_mut(store) {
            Some(files) if !crashed && !broken => Ok(files),
            _ => Err(io::Error::other("simulated failure")),
        }
    }
}

/// The stores of a volume in memory. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// `stores` empty stores.
    #[must_use]
    pub fn new(stores: usize) -> Self {
        let disk = Self::default();
        disk.lock().stores.resize_with(stores, BTreeMap::new);
        disk
    }

    /// A handle for each store.
    #[must_use]
    pub fn stores(&self) -> Vec<SimStore> {
        let count = self.lock().stores.len();
        (0..count).map(|index| SimStore { disk: self.clone(), index }).collect()
    }

    /// How many operations (writes, syncs, creations) happened so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Has every operation fail from number `operations` on, as if the machine had stopped.
    pub fn crash_at(&self, operations: Option<u64>) {
        self.lock().crash_at = operations;
    }

    /// Whether an operation would fail because of [`SimDisk::crash_at`]. Whatever the volume says
    /// from then on, a machine that had stopped would not have said it.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        let state = self.lock();
        state.crash_at.is_some_and(|at| state.operations >= at)
    }

    /// Has every operation on the stores of `mask` fail.
    pub fn break_stores(&self, mask: u32) {
        self.lock().broken = mask;
    }

    /// Decides what of the unsynced writes is left, and lets operations happen again.
    pub fn crash(&self, rng: &mut Rng) {
        let mut state = self.lock();
        state.crash_at = None;
        // All dropped, all kept, or each sector by itself.
        let mode = rng.below(4);
        for file in state.stores.iter_mut().flat_map(BTreeMap::values_mut) {
            for (sector, mut versions) in std::mem::take(&mut file.unsynced) {
                let index = match mode {
                    0 => 0,
                    1 => versions.len() - 1,
                    _ => rng.below(versions.len() as u64) as usize,
                };
                let content = versions.swap_remove(index);
                put(&mut file.current, sector * SECTOR, &content);
            }
        }
    }

    /// Keeps a record of every write from now on.
    pub fn start_trace(&self) {
        self.lock().trace.get_or_insert_default();
    }

    /// The writes since [`SimDisk::start_trace`].
    #[must_use]
    pub fn trace(&self) -> Vec<Written> {
        self.lock().trace.clone().unwrap_or_default()
    }

    /// A copy of one store as it is now.
    #[must_use]
    pub fn image(&self, store: usize) -> Image {
        let state = self.lock();
        let files = state.stores.get(store).into_iter().flatten();
        Image { files: files.map(|(file, content)| (*file, content.current.clone())).collect() }
    }

    /// Replaces one store's content: an old copy, a damaged one, or nothing at all.
    pub fn set_image(&self, store: usize, image: Image) {
        let mut state = self.lock();
        if let Some(files) = state.stores.get_mut(store) {
            let file = |current| SimFile { current, unsynced: BTreeMap::new() };
            *files = image.files.into_iter().map(|(name, bytes)| (name, file(bytes))).collect();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One store of a [`SimDisk`].
#[derive(Debug)]
pub struct SimStore {
    disk: SimDisk,
    index: usize,
}

impl Store for SimStore {
    fn name(&self) -> String {
        format!("store {}", self.index)
    }

    fn len(&self, file: StoreFile) -> io::Result<Option<u64>> {
        let state = self.disk.lock();
        if state.broken >> self.index & 1 == 1 {
            return Err(io::Error::other("simulated failure"));
        }
        let files = state.stores.get(self.index);
        Ok(files.and_then(|files| files.get(&file)).map(|file| file.current.len() as u64))
    }

    fn create(&mut self, file: StoreFile, len: u64, head: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let files = state.step(self.index)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut current = vec![0; len.max(head.len())];
        put(&mut current, 0, head);
        files.insert(file, SimFile { current, unsynced: BTreeMap::new() });
        Ok(())
    }

    fn set_aside(&mut self) -> io::Result<()> {
        self.disk.lock().step(self.index)?.clear();
        Ok(())
    }

    fn read_at(&self, file: StoreFile, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.disk.lock();
        let broken = state.broken >> self.index & 1 == 1;
        let content = state.stores.get(self.index).and_then(|files| files.get(&file));
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = content
            .filter(|_| !broken)
            .and_then(|content| content.current.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(bytes.ok_or_else(|| io::Error::other("nothing to read"))?);
        Ok(())
    }

    fn write_at(&mut self, file: StoreFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let store = self.index;
        let mut state = self.disk.lock();
        let files = state.step(store)?;
        let file_ = files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + bytes.len();
        if file_.current.len() < end {
            return Err(io::Error::other("a write behind the end of a preallocated file"));
        }
        let sectors = start / SECTOR..end.div_ceil(SECTOR);
        for sector in sectors.clone() {
            let before = sector_of(&file_.current, sector);
            file_.unsynced.entry(sector).or_insert_with(|| vec![before]);
        }
        put(&mut file_.current, start, bytes);
        for sector in sectors {
            let after = sector_of(&file_.current, sector);
            file_.unsynced.entry(sector).or_default().push(after);
        }
        let operation = state.operations - 1;
        if let Some(trace) = &mut state.trace {
            trace.push(Written { operation, store, file, offset, bytes: bytes.to_vec() });
        }
        Ok(())
    }

    fn sync(&mut self, file: StoreFile) -> io::Result<()> {
        let mut state = self.disk.lock();
        let files = state.step(self.index)?;
        files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?.unsynced.clear();
        Ok(())
    }

    fn punch(&mut self, file: StoreFile, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        self.write_at(file, offset, &zeroes)
    }
}

fn sector_of(bytes: &[u8], sector: usize) -> Vec<u8> {
    bytes.chunks(SECTOR).nth(sector).unwrap_or_default().to_vec()
}

fn put(target: &mut [u8], start: usize, bytes: &[u8]) {
    if let Some(target) = target.get_mut(start..start + bytes.len()) {
        target.copy_from_slice(bytes);
    }
}
