//! A node's objects in one file: extents, an index of slots, and one sync that makes both durable.
//!
//! ```text
//! superblock 0 │ superblock 1 │ zone 0: slots, extents │ zone 1: slots, extents │ …
//! ```
//!
//! An object is written to a free extent and named by a slot of 64 bytes. Nothing orders the two
//! writes: slots carry the number of the *batch* (what one sync makes durable) and the CRC of the
//! object's bytes. Batch n + 1 begins when the sync of batch n has returned, so a slot of batch
//! n + 1 proves that all of batch n is on the disk, and after a crash only the objects of the
//! newest batch have to be read and checked. A delete overwrites the slot; its extent is used again
//! only after the next sync. `docs/storage-node.md` draws the bytes.
//!
//! Memory: 33 bytes per object in B-tree nodes that are at least half full, so at most 64 bytes or
//! so, a bit per slot, and 32 bytes per hole.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;

use bytes::Bytes;

use crate::files::{NodeFile, PAGE, is_full};
use crate::keys::Uuid;
use crate::node::{NodeError, OBJECT_BYTES_MAX, ObjectKey};
use crate::service::{Capabilities, Capacity, ShardStore};

mod gather;
mod look;
mod open;
mod scrub;
mod slot;
mod space;
mod superblock;

pub use look::{LOOK_SLOTS, Look, Seen};
pub use open::{DiskError, DiskOptions, Recovery};
pub use scrub::Scrubbed;

use slot::{Place, SLOT_BYTES, Slot};
use space::{Slots, Space};

/// The unit of space.
const BLOCK: usize = PAGE;
/// Blocks of extents in a zone: 1 GiB.
const ZONE_BLOCKS: u32 = 1 << 18;
/// Slots in a zone: one per block, so that slots never run out before space does.
const ZONE_SLOTS: u32 = ZONE_BLOCKS;
const ZONE_INDEX_BYTES: u64 = ZONE_SLOTS as u64 * SLOT_BYTES as u64;
const ZONE_BYTES: u64 = ZONE_INDEX_BYTES + ZONE_BLOCKS as u64 * BLOCK as u64;
const ZONES_AT: u64 = 2 * BLOCK as u64;
/// Slots are made in steps of this many: 256 KiB, zeroed.
const INDEX_STEP: u32 = 4096;
/// Blocks are reserved in steps of this many: 64 MiB.
const SPACE_STEP: u32 = 1 << 14;
/// So many free blocks keep their room, to be written again without any being reserved (64 MiB).
const PUNCH_KEEP: u64 = 1 << 14;
/// How many blocks are given back at once (16 MiB).
const PUNCH_MOST: u32 = 1 << 12;
/// The most puts and deletes of one batch: less than a step of slots, see [`open`].
const BATCH_MAX: usize = 2048;

/// The most bytes that a store may hold: blocks are numbered with 32 bits.
pub const CAPACITY_MAX: u64 = (1 << 32) * BLOCK as u64 - BLOCK as u64;

/// Where a slot lies in the file.
fn slot_at(slot: u32) -> u64 {
    let zone = u64::from(slot / ZONE_SLOTS);
    ZONES_AT + zone * ZONE_BYTES + u64::from(slot % ZONE_SLOTS) * SLOT_BYTES as u64
}

/// Where a block lies in the file.
fn block_at(block: u32) -> u64 {
    let zone = u64::from(block / ZONE_BLOCKS);
    let within = u64::from(block % ZONE_BLOCKS) * BLOCK as u64;
    ZONES_AT + zone * ZONE_BYTES + ZONE_INDEX_BYTES + within
}

/// An object's name within its volume, in the order of [`ObjectKey`].
type ShortKey = [u8; 17];

fn short(key: &ObjectKey) -> ShortKey {
    let mut short = [0; 17];
    let (epoch, rest) = short.split_at_mut(8);
    epoch.copy_from_slice(&key.epoch.to_be_bytes());
    let (sequence, shard) = rest.split_at_mut(8);
    sequence.copy_from_slice(&key.sequence.to_be_bytes());
    shard.fill(key.shard);
    short
}

fn long(volume: &Uuid, short: &ShortKey) -> ObjectKey {
    let mut fields = crate::fields::Reader::new(short);
    let mut number = || fields.bytes().map(u64::from_be_bytes).unwrap_or_default();
    let (epoch, sequence) = (number(), number());
    let [shard] = fields.bytes().unwrap_or_default();
    ObjectKey { volume: *volume, epoch, sequence, shard }
}

/// An object in memory.
#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: u32,
    place: Place,
}

#[derive(Debug, Default)]
struct Objects {
    entries: BTreeMap<ShortKey, Entry>,
    blocks: u64,
}

/// A store of objects in one file.
#[derive(Debug)]
pub struct DiskStore<F> {
    file: F,
    node: Uuid,
    volumes: BTreeMap<Uuid, Objects>,
    space: Space,
    slots: Slots,
    /// What is written now belongs to this batch.
    batch: u64,
    /// Put in this batch.
    young: Vec<ObjectKey>,
    /// Whether a slot was written again in this batch.
    mended: bool,
    /// Freed in this batch: slots (if they are free, too) and extents that may be used again when
    /// it is durable.
    freed: Vec<(Option<u32>, Place)>,
    /// Whether the file system takes room back.
    punches: bool,
    /// A write or a sync failed: nothing is written any more, because nobody knows what would be
    /// durable. Opening the file again finds out.
    failed: bool,
}

impl<F: NodeFile> DiskStore<F> {
    /// The node that the store belongs to.
    #[must_use]
    pub fn node(&self) -> &Uuid {
        &self.node
    }

    /// How many objects there are.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.volumes.values().map(|objects| objects.entries.len()).sum()
    }

    /// Whether a write or a sync failed, so that the store has to be opened again.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    fn entry(&self, key: &ObjectKey) -> Option<Entry> {
        self.volumes.get(&key.volume)?.entries.get(&short(key)).copied()
    }

    fn insert(&mut self, key: &ObjectKey, entry: Entry) {
        let objects = self.volumes.entry(key.volume).or_default();
        objects.blocks += u64::from(entry.place.blocks());
        if let Some(old) = objects.entries.insert(short(key), entry) {
            objects.blocks -= u64::from(old.place.blocks());
        }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Entry> {
        let objects = self.volumes.get_mut(&key.volume)?;
        let entry = objects.entries.remove(&short(key))?;
        objects.blocks -= u64::from(entry.place.blocks());
        if objects.entries.is_empty() {
            self.volumes.remove(&key.volume);
        }
        Some(entry)
    }

    fn usable(&self) -> Result<(), NodeError> {
        if self.failed { Err(NodeError::Failed) } else { Ok(()) }
    }

    /// What a failed write means: no room, or no more trust in the file.
    fn judge(&mut self, error: &io::Error) -> NodeError {
        if is_full(error) {
            return NodeError::NoSpace;
        }
        tracing::error!(%error, "objects can't be written");
        self.failed = true;
        NodeError::Failed
    }

    /// Takes an extent, reserving more of the file where needed.
    fn take_space(&mut self, blocks: u32) -> Result<u32, NodeError> {
        loop {
            if let Some(first) = self.space.take(blocks) {
                return self.room_for(first, blocks).map(|()| first);
            }
            let reserved = self.reserve(SPACE_STEP).or_else(|error| match error {
                // Perhaps there is room for this one object.
                NodeError::NoSpace => self.reserve(blocks),
                error => Err(error),
            });
            match reserved {
                Ok(()) => {}
                Err(NodeError::NoSpace) if !self.freed.is_empty() => self.sync()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Reserves room again for blocks that had been given back; they are free again if there is none.
    fn room_for(&mut self, first: u32, blocks: u32) -> Result<(), NodeError> {
        if !self.space.refill(first, blocks) {
            return Ok(());
        }
        let bytes = u64::from(blocks) * BLOCK as u64;
        self.file.allocate(block_at(first), bytes).map_err(|error| {
            self.space.give(first, blocks);
            self.space.set_punched(first, blocks);
            self.judge(&error)
        })
    }

    fn reserve(&mut self, step: u32) -> Result<(), NodeError> {
        let (first, count) = self.space.next_reservation(step).ok_or(NodeError::NoSpace)?;
        let bytes = u64::from(count) * BLOCK as u64;
        self.file.allocate(block_at(first), bytes).map_err(|error| self.judge(&error))?;
        self.space.add_reserved(count);
        Ok(())
    }

    /// Takes a slot, making more of them where needed.
    fn take_slot(&mut self) -> Result<u32, NodeError> {
        if let Some(slot) = self.slots.take() {
            return Ok(slot);
        }
        let first = self.slots.len();
        if u64::from(first) >= self.space.capacity() {
            return Err(NodeError::NoSpace);
        }
        let zeroes = vec![0; INDEX_STEP as usize * SLOT_BYTES];
        let written = self
            .file
            .allocate(slot_at(first), zeroes.len() as u64)
            .and_then(|()| self.file.write_at(slot_at(first), &zeroes));
        written.map_err(|error| self.judge(&error))?;
        self.slots.extend(INDEX_STEP);
        self.slots.take().ok_or(NodeError::NoSpace)
    }

    /// Writes the parts to a fresh extent and says where.
    fn write_object(&mut self, len: u32, crc: u32, parts: &[Bytes]) -> Result<Place, NodeError> {
        let start = self.take_space(slot::blocks(len))?;
        let place = Place { start, len, crc };
        if let Err(error) = gather::write(&mut self.file, block_at(start), parts) {
            self.space.give(start, place.blocks());
            return Err(self.judge(&error));
        }
        Ok(place)
    }

    fn write_slot(&mut self, number: u32, slot: &Slot) -> Result<(), NodeError> {
        let bytes = slot.encode(&self.node, number);
        self.file.write_at(slot_at(number), &bytes).map_err(|error| self.judge(&error))
    }

    /// Reads `len` bytes of an object from `offset`.
    fn read(&mut self, place: &Place, offset: u32, len: u32) -> Result<Vec<u8>, NodeError> {
        let mut bytes = vec![0; len as usize];
        let at = block_at(place.start) + u64::from(offset);
        self.file.read_at(at, &mut bytes).map_err(|error| {
            tracing::warn!(%error, "an object can't be read");
            NodeError::Failed
        })?;
        Ok(bytes)
    }

    /// Part of an object, if no disk has to be waited for. `None` also if there is anything else
    /// that [`ShardStore::get`] has to say.
    pub fn get_cached(&mut self, key: &ObjectKey, offset: u32, len: u32) -> Option<Bytes> {
        let place = self.entry(key)?.place;
        // All of an object is compared with its checksum, which is for the other way.
        if len >= place.len || len > place.len.checked_sub(offset)? {
            return None;
        }
        let mut bytes = vec![0; len as usize];
        let at = block_at(place.start) + u64::from(offset);
        self.file.read_cached(at, &mut bytes).then(|| Bytes::from(bytes))
    }

    /// Puts an object where another one has the same key: the same bytes are a success, damaged
    /// ones are replaced.
    fn put_again(
        &mut self,
        key: &ObjectKey,
        old: Entry,
        new: (u32, u32),
        parts: &[Bytes],
    ) -> Result<(), NodeError> {
        let stored = self.read(&old.place, 0, old.place.len).unwrap_or_default();
        let is_same = new == (old.place.len, old.place.crc)
            && parts
                .iter()
                .try_fold(stored.as_slice(), |rest, part| rest.strip_prefix(part.as_ref()))
                .is_some_and(<[u8]>::is_empty);
        if is_same {
            return Ok(());
        }
        if stored.len() == old.place.len as usize && crc32c::crc32c(&stored) == old.place.crc {
            return Err(NodeError::Exists);
        }
        let (len, crc) = new;
        let place = self.write_object(len, crc, parts)?;
        self.write_slot(old.slot, &Slot::Object { key: *key, place, batch: self.batch })?;
        self.freed.push((None, old.place));
        self.insert(key, Entry { slot: old.slot, place });
        self.young.push(*key);
        Ok(())
    }

    fn settle_batch(&mut self) {
        self.batch += 1;
        self.young.clear();
        self.mended = false;
        for (slot, place) in self.freed.drain(..) {
            self.space.give(place.start, place.blocks());
            if let Some(slot) = slot {
                self.slots.give(slot);
            }
        }
    }
}

impl<F: NodeFile> ShardStore for DiskStore<F> {
    fn put(&mut self, key: &ObjectKey, parts: &[Bytes]) -> Result<(), NodeError> {
        self.usable()?;
        let bytes = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        let len = match u32::try_from(bytes) {
            Ok(len) if bytes <= OBJECT_BYTES_MAX => len,
            _ => return Err(NodeError::Unsupported),
        };
        let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        if self.young.len() + self.freed.len() >= BATCH_MAX {
            self.sync()?;
        }
        if let Some(old) = self.entry(key) {
            return self.put_again(key, old, (len, crc), parts);
        }
        let place = self.write_object(len, crc, parts)?;
        let give_back = |store: &mut Self, error| {
            store.space.give(place.start, place.blocks());
            error
        };
        let slot = self.take_slot().map_err(|error| give_back(self, error))?;
        let named = Slot::Object { key: *key, place, batch: self.batch };
        if let Err(error) = self.write_slot(slot, &named) {
            self.slots.give(slot);
            return Err(give_back(self, error));
        }
        self.insert(key, Entry { slot, place });
        self.young.push(*key);
        Ok(())
    }

    fn get(&mut self, key: &ObjectKey, offset: u32, len: u32) -> Result<Bytes, NodeError> {
        let place = self.entry(key).ok_or(NodeError::NotFound)?.place;
        let rest = place.len.checked_sub(offset).ok_or(NodeError::Range)?;
        let count = if len == u32::MAX { rest } else { len };
        if count > rest {
            return Err(NodeError::Range);
        }
        let bytes = self.read(&place, offset, count)?;
        if count == place.len && crc32c::crc32c(&bytes) != place.crc {
            return Err(NodeError::Corrupt);
        }
        Ok(Bytes::from(bytes))
    }

    fn list(
        &mut self,
        volume: &Uuid,
        after: Option<&ObjectKey>,
        limit: u16,
    ) -> Result<Vec<ObjectKey>, NodeError> {
        let Some(objects) = self.volumes.get(volume) else { return Ok(Vec::new()) };
        let from = match after {
            Some(after) if after.volume > *volume => return Ok(Vec::new()),
            Some(after) if after.volume == *volume => Bound::Excluded(short(after)),
            _ => Bound::Unbounded,
        };
        let names =
            objects.entries.range((from, Bound::Unbounded)).map(|(key, _)| long(volume, key));
        Ok(names.take(usize::from(limit)).collect())
    }

    fn delete(&mut self, key: &ObjectKey) -> Result<(), NodeError> {
        self.usable()?;
        if self.young.len() + self.freed.len() >= BATCH_MAX {
            self.sync()?;
        }
        let Some(entry) = self.entry(key) else { return Ok(()) };
        self.write_slot(entry.slot, &Slot::Deleted { batch: self.batch })?;
        self.remove(key);
        self.freed.push((Some(entry.slot), entry.place));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), NodeError> {
        self.usable()?;
        if self.young.is_empty() && self.freed.is_empty() && !self.mended {
            return Ok(());
        }
        if let Err(error) = self.file.sync() {
            tracing::error!(%error, "objects can't be synced");
            self.failed = true;
            // Nobody was told that they are there, and perhaps they are not.
            for key in std::mem::take(&mut self.young) {
                self.remove(&key);
            }
            return Err(NodeError::Failed);
        }
        self.settle_batch();
        Ok(())
    }

    fn tidy(&mut self) -> bool {
        if self.failed || !self.punches {
            return false;
        }
        let Some((first, count)) = self.space.next_to_punch(PUNCH_KEEP, PUNCH_MOST) else {
            return false;
        };
        let bytes = u64::from(count) * BLOCK as u64;
        if let Err(error) = self.file.punch(block_at(first), bytes) {
            tracing::debug!(%error, "the room of free blocks can't be given back");
            self.punches = false;
            return false;
        }
        self.space.set_punched(first, count);
        true
    }

    fn capacity(&mut self) -> Result<Capacity, NodeError> {
        let block = BLOCK as u64;
        Ok(Capacity {
            total_bytes: self.space.capacity() * block,
            free_bytes: self.space.free() * block,
        })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: true, ranged: true }
    }

    fn used_bytes(&self, volume: &Uuid) -> u64 {
        self.volumes.get(volume).map_or(0, |objects| objects.blocks * BLOCK as u64)
    }
}
