//! A node's files in memory, which fail as disks fail: for simulations, tests and fuzz targets.
//!
//! After a crash each sector (512 bytes) that was written since its file's last sync holds what one
//! of the writes left there, or what was there before: writes are dropped, torn and reordered.
//! Beyond that a [`SimDisk`] lies, rots, fills up and fails as [`Faults`] and its methods say, each
//! time decided by a seed.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{NodeFile, NodeFiles, PAGE};

/// What a disk writes as a whole.
pub const SECTOR: usize = 512;

/// A small generator of pseudo-random numbers (SplitMix64), so that a seed names a run.
#[derive(Debug, Clone, Default)]
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

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }

    /// Whether something happens that has `per_million` chances in a million.
    pub fn chance(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.below(1_000_000) < u64::from(per_million)
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(number.get(..chunk.len()).unwrap_or_default());
        }
    }
}

/// How often a disk misbehaves: chances in a million, for each operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// A write is acknowledged and never happens.
    pub lost_write: u32,
    /// A write is acknowledged and happens at another page of its file.
    pub misdirected_write: u32,
    /// A write fails and leaves any of its sectors behind.
    pub write_error: u32,
    /// A read fails.
    pub read_error: u32,
    /// A sync fails; what it should have made durable stays in doubt, whatever later ones say.
    pub sync_error: u32,
}

/// Which of a node's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Which {
    /// [`NodeFiles::objects`].
    Objects,
    /// [`NodeFiles::journal`].
    Journal,
    /// [`NodeFiles::meta`].
    Meta,
}

impl Which {
    /// All of them, in the order of [`super::FILE_NAMES`].
    pub const ALL: [Self; 3] = [Self::Objects, Self::Journal, Self::Meta];
}

type Sector = [u8; SECTOR];

#[derive(Debug, Clone, Default)]
struct Content {
    len: u64,
    /// What a read sees; a page that is not there is zero, and takes no space.
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// Ranges of pages that were allocated while there was no limit: they may be written when there
    /// is no room. First page to the end.
    reserved: BTreeMap<u64, u64>,
    /// For each sector written since the last sync: what it was before, and after each write.
    unsynced: BTreeMap<u64, Vec<Sector>>,
    /// The same of syncs that failed: a later sync settles nothing.
    doubtful: BTreeMap<u64, Vec<Sector>>,
}

impl Content {
    /// Whether a page can be written though there is no room for more.
    fn has_room(&self, page: u64) -> bool {
        let before = self.reserved.range(..=page).next_back();
        self.pages.contains_key(&page) || before.is_some_and(|(_, end)| page < *end)
    }

    fn sector(&self, sector: u64) -> Sector {
        let mut content = [0; SECTOR];
        self.copy(sector * SECTOR as u64, &mut content);
        content
    }

    /// Fills `buffer` from `offset`; what lies behind the end is zero.
    fn copy(&self, offset: u64, buffer: &mut [u8]) {
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let count = rest.len().min(PAGE - within);
            let (piece, behind) = rest.split_at_mut(count);
            match self.pages.get(&page).and_then(|page| page.get(within..within + count)) {
                Some(bytes) => piece.copy_from_slice(bytes),
                None => piece.fill(0),
            }
            (at, rest) = (at + count as u64, behind);
        }
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let (piece, behind) = rest.split_at(rest.len().min(PAGE - within));
            let page = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            if let Some(target) = page.get_mut(within..within + piece.len()) {
                target.copy_from_slice(piece);
            }
            (at, rest) = (at + piece.len() as u64, behind);
        }
        self.len = self.len.max(at);
    }

    /// Writes, and remembers what each sector was before.
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let first = offset / SECTOR as u64;
        let sectors = first..(offset + bytes.len() as u64).div_ceil(SECTOR as u64);
        for sector in sectors.clone() {
            let before = self.sector(sector);
            self.unsynced.entry(sector).or_insert_with(|| vec![before]);
        }
        self.put(offset, bytes);
        for sector in sectors {
            let after = self.sector(sector);
            self.unsynced.entry(sector).or_default().push(after);
        }
    }

    /// Decides what is left of each sector that is not settled; `choose` gets its number and how
    /// many versions of it there are, the oldest first.
    fn settle(&mut self, mut choose: impl FnMut(u64, usize) -> usize) {
        let doubtful = std::mem::take(&mut self.doubtful);
        for (sector, mut versions) in doubtful.into_iter().chain(std::mem::take(&mut self.unsynced))
        {
            let index = choose(sector, versions.len()).min(versions.len() - 1);
            let content = versions.swap_remove(index);
            self.put(sector * SECTOR as u64, &content);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    files: [Content; 3],
    operations: u64,
    crash_at: Option<u64>,
    full_at: Option<u64>,
    sync_error_at: Option<u64>,
    pages_max: Option<usize>,
    faults: Faults,
    rng: Rng,
}

impl State {
    /// Counts an operation that changes something, unless the machine has stopped.
    fn step(&mut self) -> io::Result<u64> {
        if self.has_crashed() {
            return Err(io::Error::other("simulated crash"));
        }
        self.operations += 1;
        Ok(self.operations - 1)
    }

    fn has_crashed(&self) -> bool {
        self.crash_at.is_some_and(|at| self.operations >= at)
    }

    fn file(&mut self, which: Which) -> &mut Content {
        let [objects, journal, meta] = &mut self.files;
        match which {
            Which::Objects => objects,
            Which::Journal => journal,
            Which::Meta => meta,
        }
    }

    /// Whether pages of the range are not there yet and there is no room for them.
    fn is_full(&mut self, which: Which, offset: u64, len: u64, operation: u64) -> bool {
        if self.full_at.is_none() && self.pages_max.is_none() {
            return false;
        }
        let (first, end) = (offset / PAGE as u64, (offset + len).div_ceil(PAGE as u64));
        let missing = (first..end).filter(|page| !self.file(which).has_room(*page)).count();
        let used: usize = self.files.iter().map(|file| file.pages.len()).sum();
        let now = self.full_at.is_some_and(|at| operation >= at);
        missing > 0 && (now || self.pages_max.is_some_and(|max| used + missing > max))
    }
}

/// The disk of one node. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk without faults; `seed` decides about the faults that are set later.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let disk = Self::default();
        disk.lock().rng = Rng::new(seed);
        disk
    }

    /// Its files, as a node opens them.
    #[must_use]
    pub fn files(&self) -> NodeFiles<SimFile> {
        let file = |which| SimFile { disk: self.clone(), which };
        let [objects, journal, meta] = Which::ALL.map(file);
        NodeFiles { objects, journal, meta }
    }

    /// How many operations that change something (writes, syncs, allocations) happened so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Has everything fail from operation `at` on, as if the machine had stopped.
    pub fn crash_at(&self, at: Option<u64>) {
        self.lock().crash_at = at;
    }

    /// Whether the machine has stopped: whatever a node says from then on, nobody would hear it.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.lock().has_crashed()
    }

    /// Has every allocation, and every write of a page that isn't there yet, find the disk full
    /// from operation `at` on.
    pub fn full_at(&self, at: Option<u64>) {
        self.lock().full_at = at;
    }

    /// Has the first sync from operation `at` on fail, once.
    pub fn sync_error_at(&self, at: Option<u64>) {
        self.lock().sync_error_at = at;
    }

    /// Limits the space of all files together.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.lock().pages_max = bytes.map(|bytes| (bytes / PAGE as u64) as usize);
    }

    /// Has the disk misbehave from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Stops the machine if it has not stopped by itself, decides what is left of the writes that
    /// were not synced, and lets it run again.
    pub fn crash(&self, rng: &mut Rng) {
        let mut state = self.lock();
        state.crash_at = None;
        // All dropped, all kept, or each sector by itself.
        let mode = rng.below(4);
        for file in &mut state.files {
            file.settle(|_, versions| match mode {
                0 => 0,
                1 => versions - 1,
                _ => rng.below(versions as u64) as usize,
            });
        }
    }

    /// As [`SimDisk::crash`], with a choice for each sector that is not settled: `choose` gets its
    /// file, its number and how many versions of it there are, the oldest first, and says which one
    /// is left.
    pub fn crash_with(&self, mut choose: impl FnMut(Which, u64, usize) -> usize) {
        let mut state = self.lock();
        state.crash_at = None;
        for which in Which::ALL {
            state.file(which).settle(|sector, versions| choose(which, sector, versions));
        }
    }

    /// The sectors that a crash would decide about now.
    #[must_use]
    pub fn unsettled(&self) -> Vec<(Which, u64)> {
        let mut state = self.lock();
        let mut all = Vec::new();
        for which in Which::ALL {
            let file = state.file(which);
            all.extend(file.doubtful.keys().chain(file.unsynced.keys()).map(|one| (which, *one)));
        }
        all
    }

    /// Flips one bit of a page that was written, if there is one, and says where.
    pub fn rot(&self, which: Which, rng: &mut Rng) -> Option<u64> {
        let mut state = self.lock();
        let file = state.file(which);
        let index = rng.below(file.pages.len() as u64) as usize;
        let (page, content) = file.pages.iter_mut().nth(index)?;
        let within = rng.below(PAGE as u64);
        let byte = content.get_mut(within as usize)?;
        *byte ^= 1 << rng.below(8);
        Some(page * PAGE as u64 + within)
    }

    /// A file's bytes from `offset`, as a read sees them.
    #[must_use]
    pub fn bytes(&self, which: Which, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.lock().file(which).copy(offset, &mut bytes);
        bytes
    }

    /// A file's length in bytes.
    #[must_use]
    pub fn len(&self, which: Which) -> u64 {
        self.lock().file(which).len
    }

    /// Changes a file's bytes behind the node's back.
    pub fn set_bytes(&self, which: Which, offset: u64, bytes: &[u8]) {
        self.lock().file(which).put(offset, bytes);
    }

    /// Another disk with the same content, without faults: what a host could copy away and put
    /// back later.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = State { files: self.lock().files.clone(), ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    which: Which,
}

fn failure(what: &str) -> io::Error {
    io::Error::other(format!("simulated {what} error"))
}

impl NodeFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.len(self.which))
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let chance = state.faults.read_error;
        if state.has_crashed() || state.rng.chance(chance) {
            return Err(failure("read"));
        }
        let file = state.file(self.which);
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > file.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.copy(offset, buffer);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let operation = state.step()?;
        if state.is_full(self.which, offset, bytes.len() as u64, operation) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let faults = state.faults;
        let mut target = offset;
        if state.rng.chance(faults.lost_write) {
            return Ok(());
        }
        if state.rng.chance(faults.misdirected_write) {
            let pages = state.file(self.which).len / PAGE as u64;
            target = state.rng.below(pages) * PAGE as u64 + offset % PAGE as u64;
        }
        let fails = state.rng.chance(faults.write_error);
        state.file(self.which).write(target, bytes);
        if fails { Err(failure("write")) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let operation = state.step()?;
        let chance = state.faults.sync_error;
        let fails = state.sync_error_at.is_some_and(|at| operation >= at);
        if fails {
            state.sync_error_at = None;
        }
        let fails = fails || state.rng.chance(chance);
        let file = state.file(self.which);
        let unsynced = std::mem::take(&mut file.unsynced);
        for (sector, versions) in unsynced {
            if fails {
                file.doubtful.entry(sector).or_default().extend(versions);
            } else if let Some(doubtful) = file.doubtful.get_mut(&sector) {
                // Written again after the failure: that write is on the disk now.
                *doubtful = versions.last().copied().into_iter().collect();
            }
        }
        if fails { Err(failure("sync")) } else { Ok(()) }
    }

    fn allocate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let operation = state.step()?;
        if state.is_full(self.which, offset, len, operation) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // Space is accounted for only when it is written: an allocated page reads as zeroes, and
        // keeping it would only cost memory. With a limit it has to count.
        let limited = state.pages_max.is_some();
        let file = state.file(self.which);
        file.len = file.len.max(offset + len);
        let (first, end) = (offset / PAGE as u64, (offset + len).div_ceil(PAGE as u64));
        if limited {
            for page in first..end {
                file.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            }
        } else {
            let known = file.reserved.entry(first).or_insert(end);
            *known = end.max(*known);
        }
        Ok(())
    }

    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.step()?;
        let file = state.file(self.which);
        let zeroes = [0; PAGE];
        let first = offset.div_ceil(PAGE as u64);
        for page in first..(offset + len) / PAGE as u64 {
            file.write(page * PAGE as u64, &zeroes);
        }
        Ok(())
    }
}
