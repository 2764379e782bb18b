//! Filler on disks: which extents there are, which to make next, which to give up.
//!
//! ```text
//!   plotter   threads at the lowest priority that make, compare and remove extents
//!      └── Filler   what to do next, from what is to be kept and what is free
//!             └── shelf   a folder of extents      format   the files beside them
//! ```
//!
//! Filler takes what nobody else wants: what is reserved is given up at once, and a stated part of each
//! file system stays free.

pub mod format;
pub mod plots;
pub mod plotter;
pub mod shelf;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use hypha_chain::B256;
use hypha_chain::tree::Extent;
use hypha_proofs::binding::Binding;
use hypha_proofs::label::{COUNT_MAX, LABEL_BYTES};
use hypha_proofs::store::ExtentTree;

use self::format::tree_bytes_max;
use self::shelf::{Files, Kept, Rotten, Shelf, ShelfError};

/// A folder for filler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub folder: PathBuf,
    /// The most bytes of filler in it.
    pub bytes_max: u64,
    /// So many bytes of its file system stay free.
    pub keep_free: u64,
}

/// One extent: which shelf, and its number there.
pub type Slot = (usize, u32);

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Make an extent there.
    Make(Slot),
    /// Give one up.
    Remove(Slot),
}

/// All folders of a node.
#[derive(Debug)]
pub struct Filler {
    shelves: Vec<(Shelf, Place)>,
    extent_bytes: u64,
    making: BTreeSet<Slot>,
}

/// Where extents can be read, without a lock: of each device its folder.
#[derive(Debug, Clone)]
pub struct Reading(BTreeMap<u32, Files>);

/// Why filler can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum FillerError {
    /// A folder.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// No size.
    #[error("an extent has whole labels of 32 bytes, and 4 GiB at most, not {0} bytes")]
    Extent(u64),
    /// Two folders that are one, or a copy.
    #[error("{0} and {1} have one device number: one is a copy of the other, remove it")]
    Twice(PathBuf, PathBuf),
}

impl Filler {
    /// Opens folders, or makes them. `random` gives numbers for new ones. Extents that are of no use are
    /// removed and told, with their folder.
    ///
    /// # Errors
    /// [`FillerError`].
    pub fn open(
        places: Vec<Place>,
        (binding, salt): (&Binding, &B256),
        extent_bytes: u64,
        mut random: impl FnMut() -> u32,
    ) -> Result<(Self, Vec<(PathBuf, Rotten)>), FillerError> {
        let labels = extent_bytes / LABEL_BYTES as u64;
        let is_whole = extent_bytes.is_multiple_of(LABEL_BYTES as u64);
        if !is_whole || labels == 0 || labels > COUNT_MAX {
            return Err(FillerError::Extent(extent_bytes));
        }
        let (mut shelves, mut all_rotten) = (Vec::<(Shelf, Place)>::new(), Vec::new());
        for place in places {
            let (shelf, rotten) = Shelf::open(&place.folder, binding, salt, random())?;
            let device = shelf.files().device();
            if let Some((_, other)) = shelves.iter().find(|(it, _)| it.files().device() == device) {
                return Err(FillerError::Twice(other.folder.clone(), place.folder));
            }
            all_rotten.extend(rotten.into_iter().map(|it| (place.folder.clone(), it)));
            shelves.push((shelf, place));
        }
        Ok((Self { shelves, extent_bytes, making: BTreeSet::new() }, all_rotten))
    }

    /// All extents in the order of a plot: by device, then by number.
    #[must_use]
    pub fn listed(&self) -> Vec<Extent> {
        let mut all: Vec<Extent> = self.shelves.iter().flat_map(|(it, _)| it.listed()).collect();
        all.sort_by_key(|extent| extent.id);
        all
    }

    /// Bytes of all extents.
    #[must_use]
    pub fn bytes_len(&self) -> u64 {
        self.shelves.iter().map(|(shelf, _)| shelf.bytes_len()).sum()
    }

    /// Bytes of one extent that is made.
    #[must_use]
    pub fn extent_bytes(&self) -> u64 {
        self.extent_bytes
    }

    /// All extents, by place.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, Kept)> + '_ {
        let shelves = self.shelves.iter().enumerate();
        shelves.flat_map(|(at, (shelf, _))| {
            shelf.extents().iter().map(move |(number, kept)| ((at, *number), *kept))
        })
    }

    /// The files of a slot's folder.
    #[must_use]
    pub fn files(&self, slot: Slot) -> Option<&Files> {
        self.shelves.get(slot.0).map(|(shelf, _)| shelf.files())
    }

    /// Where extents can be read.
    #[must_use]
    pub fn reading(&self) -> Reading {
        let files = self.shelves.iter().map(|(shelf, _)| shelf.files());
        Reading(files.map(|files| (files.device(), files.clone())).collect())
    }

    /// What is to be done so that at most `wanted` bytes are kept, and as many of them as fit.
    ///
    /// # Errors
    /// A file system doesn't tell how much of it is free.
    pub fn next(&self, wanted: u64) -> io::Result<Step> {
        let mut free = Vec::with_capacity(self.shelves.len());
        for (shelf, _) in &self.shelves {
            free.push(shelf.free()?);
        }
        Ok(self.step(wanted, &free))
    }

    fn step(&self, wanted: u64, free: &[u64]) -> Step {
        let last = |at: usize| {
            let (shelf, _) = self.shelves.get(at)?;
            shelf.extents().keys().next_back().map(|number| (at, *number))
        };
        // Somebody else needs this disk's room: first of all.
        for (at, ((shelf, place), free)) in self.shelves.iter().zip(free).enumerate() {
            let narrow = *free < place.keep_free || shelf.bytes_len() > place.bytes_max;
            if let Some(slot) = last(at).filter(|_| narrow) {
                return Step::Remove(slot);
            }
        }
        if self.bytes_len() > wanted {
            return (0..self.shelves.len()).rev().find_map(last).map_or(Step::Rest, Step::Remove);
        }
        let coming = |at: usize| {
            let count = self.making.iter().filter(|slot| slot.0 == at).count();
            count as u64 * self.extent_bytes
        };
        let all_coming = self.making.len() as u64 * self.extent_bytes;
        if self.bytes_len() + all_coming + self.extent_bytes > wanted {
            return Step::Rest;
        }
        let takes = self.takes();
        for (at, ((shelf, place), free)) in self.shelves.iter().zip(free).enumerate() {
            let fits = shelf.bytes_len() + coming(at) + self.extent_bytes <= place.bytes_max;
            let room = free.saturating_sub(coming(at)) >= place.keep_free.saturating_add(takes);
            let vacant = shelf.vacant(|number| self.making.contains(&(at, number)));
            if let Some(number) = vacant.filter(|_| fits && room) {
                return Step::Make((at, number));
            }
        }
        Step::Rest
    }

    /// Whether one more extent still has room on the disk of a slot.
    ///
    /// # Errors
    /// A file system doesn't tell how much of it is free.
    pub fn has_room(&self, slot: Slot) -> io::Result<bool> {
        let Some((shelf, place)) = self.shelves.get(slot.0) else { return Ok(false) };
        Ok(shelf.free()? >= place.keep_free.saturating_add(self.takes()))
    }

    /// Bytes of an extent and its hashes.
    fn takes(&self) -> u64 {
        self.extent_bytes + tree_bytes_max(self.extent_bytes)
    }

    /// An extent is being made: nobody else is to make it.
    pub fn begin(&mut self, slot: Slot) {
        self.making.insert(slot);
    }

    /// It is made and on the disk, or it is not.
    pub fn end(&mut self, slot: Slot, kept: Option<Kept>) {
        self.making.remove(&slot);
        if let Some(((shelf, _), kept)) = self.shelves.get_mut(slot.0).zip(kept) {
            shelf.insert(slot.1, kept);
        }
    }

    /// Whether what is there and what is being made is more than is wanted.
    #[must_use]
    pub fn exceeds(&self, wanted: u64) -> bool {
        self.bytes_len() + self.making.len() as u64 * self.extent_bytes > wanted
    }

    /// Gives an extent up: its room is free when this returns.
    ///
    /// # Errors
    /// The disk. It is not counted any more in any case.
    pub fn remove(&mut self, slot: Slot) -> io::Result<()> {
        self.shelves.get_mut(slot.0).map_or(Ok(()), |(shelf, _)| shelf.remove(slot.1))
    }
}

impl Reading {
    /// No folder.
    #[must_use]
    pub fn nothing() -> Self {
        Self(BTreeMap::new())
    }

    /// The hashes of an extent.
    ///
    /// # Errors
    /// It is not there, or the disk has lost it.
    pub fn tree(&self, extent: &Extent) -> io::Result<ExtentTree> {
        let (files, number) = self.place(extent.id)?;
        files.tree(number, extent.bytes_len)
    }

    /// A range of an extent's bytes.
    ///
    /// # Errors
    /// It is not there, or the disk can't read it.
    pub fn read(&self, id: u64, range: Range<u64>) -> io::Result<Vec<u8>> {
        let (files, number) = self.place(id)?;
        files.read(number, range)
    }

    /// The context of an extent's labels, to make it again; `None` if it is of no folder here.
    #[must_use]
    pub fn context(&self, id: u64) -> Option<B256> {
        self.place(id).ok().map(|(files, number)| files.context(number))
    }

    fn place(&self, id: u64) -> io::Result<(&Files, u32)> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "no folder has this extent");
        let files = self.0.get(&((id >> 32) as u32)).ok_or_else(none)?;
        Ok((files, id as u32))
    }
}

#[cfg(test)]
mod tests {
    use hypha_chain::Address;
    use hypha_proofs::label::{FILLER_LAYERS, fill};

    use super::*;

    const EXTENT: u64 = 64 * 1024;

    fn binding() -> Binding {
        let address = Address::repeat_byte(7);
        Binding { chain_id: 1, registry: address, capacity: address, disputes: address, node: 3 }
    }

    fn filler(folder: &std::path::Path, max: [u64; 2]) -> Filler {
        let place = |(at, bytes_max): (usize, u64)| Place {
            folder: folder.join(at.to_string()),
            bytes_max,
            keep_free: 100,
        };
        let places = max.into_iter().enumerate().map(place).collect();
        let mut number = 0;
        let random = || {
            number += 1;
            number
        };
        let salt = B256::repeat_byte(9);
        let (filler, rotten) = Filler::open(places, (&binding(), &salt), EXTENT, random).unwrap();
        assert!(rotten.is_empty(), "{rotten:?}");
        filler
    }

    fn make(filler: &mut Filler, slot: Slot) {
        filler.begin(slot);
        let files = filler.files(slot).unwrap().clone();
        let bytes = fill(files.context(slot.1), FILLER_LAYERS, EXTENT / 32).unwrap();
        let kept = files.write(slot.1, &bytes, &ExtentTree::of(&bytes)).unwrap();
        filler.end(slot, Some(kept));
    }

    #[test]
    fn folders_are_filled_one_after_the_other_and_given_up_from_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut filler = filler(folder.path(), [2 * EXTENT, 10 * EXTENT]);
        let free = [u64::MAX / 2; 2];
        for slot in [(0, 0), (0, 1), (1, 0)] {
            assert_eq!(filler.step(3 * EXTENT + 5, &free), Step::Make(slot));
            make(&mut filler, slot);
        }
        assert_eq!(filler.step(3 * EXTENT + 5, &free), Step::Rest);
        assert_eq!(filler.step(3 * EXTENT - 1, &free), Step::Remove((1, 0)));
        filler.remove((1, 0)).unwrap();
        assert_eq!(filler.step(0, &free), Step::Remove((0, 1)));
        assert_eq!(filler.listed().len(), 2);
    }

    #[test]
    fn a_disk_that_others_fill_gives_its_filler_up_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut filler = filler(folder.path(), [EXTENT, EXTENT]);
        make(&mut filler, (0, 0));
        let takes = EXTENT + tree_bytes_max(EXTENT);
        assert_eq!(filler.step(9 * EXTENT, &[99, u64::MAX / 2]), Step::Remove((0, 0)));
        assert_eq!(filler.step(9 * EXTENT, &[100, 100 + takes - 1]), Step::Rest);
        assert_eq!(filler.step(9 * EXTENT, &[100, 100 + takes]), Step::Make((1, 0)));
        filler.begin((1, 0));
        assert_eq!(filler.step(9 * EXTENT, &[100, u64::MAX / 2]), Step::Rest);
    }

    #[test]
    fn an_extent_that_is_made_loses_its_room_when_others_fill_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut filler = filler(folder.path(), [EXTENT, EXTENT]);
        assert!(filler.has_room((0, 0)).unwrap() && !filler.has_room((2, 0)).unwrap());
        filler.shelves[1].1.keep_free = u64::MAX;
        assert!(filler.has_room((0, 0)).unwrap() && !filler.has_room((1, 0)).unwrap());
    }

    #[test]
    fn what_is_there_is_found_again_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = filler(folder.path(), [EXTENT, EXTENT]);
        make(&mut first, (0, 0));
        let listed = first.listed();
        drop(first);
        let again = filler(folder.path(), [EXTENT, EXTENT]);
        assert_eq!(again.listed(), listed);
        let (reading, extent) = (again.reading(), listed[0]);
        assert_eq!(reading.tree(&extent).unwrap().root(), extent.root);
        assert_eq!(reading.read(extent.id, 0..EXTENT).unwrap().len() as u64, EXTENT);
        assert!(reading.read(extent.id, 0..EXTENT + 1).is_err());
        assert!(reading.read(5 << 32, 0..1).is_err());
    }

    #[test]
    fn a_copied_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(filler(folder.path(), [EXTENT, EXTENT]));
        let device = |at: &str| folder.path().join(at).join("device");
        std::fs::copy(device("0"), device("1")).unwrap();
        let place = |at: &str| Place { folder: folder.path().join(at), bytes_max: 1, keep_free: 0 };
        let places = vec![place("0"), place("1")];
        let found = Filler::open(places, (&binding(), &B256::ZERO), EXTENT, || 5);
        assert!(matches!(found, Err(FillerError::Twice(..))));
        let found = Filler::open(Vec::new(), (&binding(), &B256::ZERO), 33, || 5);
        assert!(matches!(found, Err(FillerError::Extent(33))));
    }
}
