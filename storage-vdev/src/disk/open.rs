//! Making a store, and finding out what one holds.

use std::collections::BTreeMap;
use std::io;

use super::slot::{Place, SLOT_BYTES, Slot};
use super::space::{Slots, Space};
use super::superblock::{Found, Superblock};
use super::{BATCH_MAX, BLOCK, CAPACITY_MAX, DiskStore, Entry, INDEX_STEP, block_at, slot_at};
use crate::fields::is_blank;
use crate::files::NodeFile;
use crate::keys::Uuid;
use crate::node::ObjectKey;

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskOptions {
    /// The most bytes of objects; what goes beyond [`CAPACITY_MAX`] is not used. A store that is
    /// smaller grows; none shrinks.
    pub capacity_bytes: u64,
    /// The name of the node if the store is to be made: random bytes.
    pub create: Option<Uuid>,
}

/// Why a store can't be opened. Nothing of what it held was changed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is none.
    #[error("there is no object store")]
    Missing,
    /// Both superblocks are damaged.
    #[error("the superblock of the object store is damaged")]
    Damaged,
    /// Another Hypha made it.
    #[error("the object store has format version {0}, which this Hypha doesn't know")]
    Version(u16),
    /// It would hold nothing.
    #[error("an object store has room for at least 4 KiB")]
    Capacity,
    /// The file can't be used.
    #[error("can't use the object store: {0}")]
    Io(#[from] io::Error),
}

/// What opening a store found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Objects.
    pub objects: u64,
    /// Objects of the newest batch whose bytes are not all there: a crash interrupted them, and
    /// nobody was told that they were stored.
    pub unfinished: u64,
    /// Slots whose checksum is wrong: what they named is lost.
    pub damaged_slots: u64,
    /// Objects whose extent or whose key a newer one has: the disk lost a write.
    pub superseded: u64,
}

struct Candidate {
    key: ObjectKey,
    entry: Entry,
    batch: u64,
}

/// What the index says.
struct Index {
    slots: Slots,
    objects: Vec<Candidate>,
    newest_batch: u64,
    /// Slots that must not be read again as they are.
    erase: Vec<u32>,
}

impl<F: NodeFile> DiskStore<F> {
    /// Whether `file` holds nothing yet.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn is_blank(file: &mut F) -> io::Result<bool> {
        let found = [Superblock::read(file, 0)?, Superblock::read(file, 1)?];
        Ok(found == [Found::Blank; 2])
    }

    /// Opens the store in `file`, or makes it there if the file is blank and the options say so.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(mut file: F, options: &DiskOptions) -> Result<(Self, Recovery), DiskError> {
        let blocks = options.capacity_bytes.min(CAPACITY_MAX) / BLOCK as u64;
        if blocks == 0 {
            return Err(DiskError::Capacity);
        }
        // What a process before us wrote and didn't sync counts from here on.
        file.sync()?;
        let superblock = find_superblock(&mut file, blocks, options.create)?;
        let mut recovery = Recovery::default();
        let mut index = read_index(&mut file, &superblock)?;
        recovery.damaged_slots = index.erase.len() as u64;
        drop_unfinished(&mut file, &mut index, &mut recovery);
        drop_superseded(&mut index, &mut recovery);
        erase(&mut file, &superblock, &index)?;
        recovery.objects = index.objects.len() as u64;

        let mut extents: Vec<(u32, u32)> = index
            .objects
            .iter()
            .map(|one| (one.entry.place.start, one.entry.place.blocks()))
            .collect();
        extents.sort_unstable();
        let mut store = Self {
            file,
            node: superblock.node,
            volumes: BTreeMap::new(),
            space: Space::beside(&extents, superblock.blocks),
            slots: index.slots,
            batch: index.newest_batch + 1,
            young: Vec::new(),
            mended: false,
            freed: Vec::new(),
            punches: true,
            failed: false,
        };
        for one in &index.objects {
            store.slots.mark(one.entry.slot);
            store.insert(&one.key, one.entry);
        }
        Ok((store, recovery))
    }
}

fn find_superblock(
    file: &mut impl NodeFile,
    blocks: u64,
    create: Option<Uuid>,
) -> Result<Superblock, DiskError> {
    let found = [Superblock::read(file, 0)?, Superblock::read(file, 1)?];
    match newest(&found)? {
        Some(old) if old.blocks >= blocks => Ok(old),
        Some(old) => {
            let grown = Superblock { blocks, generation: old.generation + 1, ..old };
            grown.write(file)?;
            Ok(grown)
        }
        None => {
            let node = create.ok_or(DiskError::Missing)?;
            let superblock = Superblock { node, generation: 0, blocks };
            superblock.write(file)?;
            Ok(superblock)
        }
    }
}

/// The copy that counts; `None` if nothing was ever written to either.
pub(super) fn newest(found: &[Found; 2]) -> Result<Option<Superblock>, DiskError> {
    let good = found.iter().filter_map(|found| match found {
        Found::Good(superblock) => Some(*superblock),
        _ => None,
    });
    if let Some(newest) = good.max_by_key(|superblock| superblock.generation) {
        return Ok(Some(newest));
    }
    for found in found {
        match found {
            Found::OtherVersion(version) => return Err(DiskError::Version(*version)),
            Found::Damaged => return Err(DiskError::Damaged),
            Found::Blank | Found::Good(_) => {}
        }
    }
    Ok(None)
}

/// Reads the index to its first step that is all zero: slots are used from the lowest on, and a
/// batch is shorter than a step, so no slot behind that one was ever used.
fn read_index(file: &mut impl NodeFile, superblock: &Superblock) -> Result<Index, DiskError> {
    const { assert!(BATCH_MAX < INDEX_STEP as usize) };
    let mut index =
        Index { slots: Slots::default(), objects: Vec::new(), newest_batch: 0, erase: Vec::new() };
    let mut step = vec![0; INDEX_STEP as usize * SLOT_BYTES];
    let len = file.size()?;
    loop {
        let first = index.slots.len();
        let is_inside =
            u64::from(first) < superblock.blocks && slot_at(first) + step.len() as u64 <= len;
        if !is_inside {
            break;
        }
        file.read_at(slot_at(first), &mut step)?;
        if is_blank(&step) {
            break;
        }
        index.slots.extend(INDEX_STEP);
        for (number, bytes) in (first..).zip(step.chunks(SLOT_BYTES)) {
            read_slot(&mut index, superblock, number, bytes);
        }
    }
    Ok(index)
}

fn read_slot(index: &mut Index, superblock: &Superblock, number: u32, bytes: &[u8]) {
    match Slot::decode(bytes, &superblock.node, number) {
        Slot::Blank => {}
        Slot::Deleted { batch } => index.newest_batch = index.newest_batch.max(batch),
        Slot::Object { key, place, batch } if fits(&place, superblock.blocks) => {
            index.newest_batch = index.newest_batch.max(batch);
            index.objects.push(Candidate { key, entry: Entry { slot: number, place }, batch });
        }
        Slot::Object { .. } | Slot::Damaged => index.erase.push(number),
    }
}

/// Whether an extent lies inside the store and inside one zone.
pub(super) fn fits(place: &Place, blocks: u64) -> bool {
    let (start, count) = (u64::from(place.start), u64::from(place.blocks()));
    let zone = |block: u64| block / u64::from(super::ZONE_BLOCKS);
    start + count <= blocks && zone(start) == zone(start + count - 1)
}

/// Drops the objects of the newest batch whose bytes don't fit their CRC. Older batches were synced.
/// One that can't be read stays: a disk that fails proves nothing about what was acknowledged.
fn drop_unfinished(file: &mut impl NodeFile, index: &mut Index, recovery: &mut Recovery) {
    let (erase, newest) = (&mut index.erase, index.newest_batch);
    let mut bytes = Vec::new();
    index.objects.retain(|one| {
        if one.batch < newest {
            return true;
        }
        let place = one.entry.place;
        bytes.resize(place.len as usize, 0);
        let is_whole = match file.read_at(block_at(place.start), &mut bytes) {
            Ok(()) => crc32c::crc32c(&bytes) == place.crc,
            Err(error) => error.kind() != io::ErrorKind::UnexpectedEof,
        };
        if !is_whole {
            recovery.unfinished += 1;
            erase.push(one.entry.slot);
        }
        is_whole
    });
}

/// Of objects that share an extent or a key keeps the newest: the slot of the other one should have
/// been overwritten, and the disk lost that write.
fn drop_superseded(index: &mut Index, recovery: &mut Recovery) {
    let erase = &mut index.erase;
    let known = erase.len();
    index.objects.sort_unstable_by_key(|one| one.entry.place.start);
    let mut kept: Vec<Candidate> = Vec::with_capacity(index.objects.len());
    for one in index.objects.drain(..) {
        let is_free = loop {
            match kept.last() {
                Some(last) if !last.entry.place.reaches(one.entry.place.start) => break true,
                Some(last) if last.batch >= one.batch => break false,
                Some(last) => erase.push(last.entry.slot),
                None => break true,
            }
            kept.pop();
        };
        if is_free {
            kept.push(one);
        } else {
            erase.push(one.entry.slot);
        }
    }
    kept.sort_unstable_by_key(|one| (one.key, u64::MAX - one.batch));
    kept.dedup_by(|one, newer| {
        let is_same = one.key == newer.key;
        if is_same {
            erase.push(one.entry.slot);
        }
        is_same
    });
    recovery.superseded = (erase.len() - known) as u64;
    index.objects = kept;
}

/// Overwrites the slots of what was dropped. They are written as of the batch that was newest, so
/// that a crash in the middle leaves the rest of them to be judged the same way again.
fn erase(
    file: &mut impl NodeFile,
    superblock: &Superblock,
    index: &Index,
) -> Result<(), DiskError> {
    if index.erase.is_empty() {
        return Ok(());
    }
    let deleted = Slot::Deleted { batch: index.newest_batch };
    for slot in &index.erase {
        file.write_at(slot_at(*slot), &deleted.encode(&superblock.node, *slot))?;
    }
    Ok(file.sync()?)
}
