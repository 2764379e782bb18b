//! Journal heads: a ring of bytes per volume, all in one file, with overwrites only.
//!
//! ```text
//! ring: 32 entry pages │ bytes: position p of the journal is at p mod capacity
//! ```
//!
//! An append writes its bytes and then entry n to page n mod 32; nothing orders the two, one sync
//! makes both durable. An entry says where the journal starts and ends, and names each append of
//! its batch with a CRC. As with objects, an entry of batch b + 1 proves that batch b is on the
//! disk: after a crash the newest entry counts if its batch is old, or if all bytes that it names
//! are there, and else the one before. No sector of an acknowledged entry is written again before
//! 31 newer entries are durable or the batch ends.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use super::meta::RingPlace;
use crate::fields::{Reader, Writer, is_blank};
use crate::files::{NodeFile, PAGE, is_full};
use crate::keys::Uuid;
use crate::node::{NodeError, Response, TRANSFER_BYTES_MAX};

mod ring;

use ring::{ENTRIES, Entry, Piece, Seal};

/// The header of the file, then rings.
pub(super) const RINGS_AT: u64 = PAGE as u64;
const TABLE_BYTES: u64 = ENTRIES as u64 * PAGE as u64;
/// A ring is written through when it is made, so that appends only overwrite.
const FILL_BYTES: usize = 1 << 20;

/// The least and the most bytes of a journal.
pub const CAPACITY: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 30;

const MAGIC: &[u8; 8] = b"HYPHJRNL";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 512;

/// Why journals can't be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The header is damaged, of another version, or another node's.
    #[error(
        "the file journal is not this node's, damaged, or of a version that Hypha doesn't know"
    )]
    Damaged,
    /// The file can't be used.
    #[error("can't use the file journal: {0}")]
    Io(#[from] io::Error),
}

/// How much of the file a ring takes.
pub(super) fn ring_bytes(capacity: u64) -> u64 {
    TABLE_BYTES + capacity
}

/// A ring in memory.
#[derive(Debug)]
struct Ring {
    place: RingPlace,
    seal: Seal,
    start: u64,
    end: u64,
    epoch: u64,
    /// The number and the batch of the next entry.
    number: u64,
    batch: u64,
    /// What the newest entry of this batch names.
    pieces: Vec<Piece>,
    /// Entries of this batch.
    young: usize,
    /// Bytes before this position may be overwritten: durably nobody asks for them.
    reusable: u64,
    /// The same when this batch is durable.
    reusable_next: u64,
}

/// The file `journal`.
#[derive(Debug)]
pub(super) struct Journals<F> {
    file: F,
    node: Uuid,
    rings: BTreeMap<Uuid, Ring>,
    /// Volumes whose ring has entries in this batch.
    young: Vec<Uuid>,
    failed: bool,
}

impl<F: NodeFile> Journals<F> {
    /// The journals of `node` in `file`, whose header is written if the file is blank. Rings are
    /// read when they are first used.
    pub(super) fn open(mut file: F, node: Uuid) -> Result<Self, JournalError> {
        // What a process before us wrote and didn't sync counts from here on.
        file.sync()?;
        let mut header = [0; HEADER_BYTES];
        Writer::new(&mut header).put(MAGIC).put(&VERSION.to_le_bytes()).put(&[0; 6]).put(&node);
        let (content, crc) = header.split_at_mut(HEADER_BYTES - 4);
        crc.copy_from_slice(&crc32c::crc32c(content).to_le_bytes());
        let mut found = [0; HEADER_BYTES];
        if file.size()? >= HEADER_BYTES as u64 {
            file.read_at(0, &mut found)?;
        }
        if is_blank(&found) {
            file.write_at(0, &header)?;
            file.sync()?;
        } else if found != header {
            return Err(JournalError::Damaged);
        }
        Ok(Self { file, node, rings: BTreeMap::new(), young: Vec::new(), failed: false })
    }

    fn usable(&self) -> Result<(), NodeError> {
        if self.failed { Err(NodeError::Failed) } else { Ok(()) }
    }

    fn judge(&mut self, error: &io::Error) -> NodeError {
        if is_full(error) {
            return NodeError::NoSpace;
        }
        tracing::error!(%error, "a journal can't be written");
        self.failed = true;
        NodeError::Failed
    }

    /// Makes an empty ring at `place`, durably. Nothing refers to it before.
    pub(super) fn create(&mut self, volume: &Uuid, place: RingPlace) -> Result<(), NodeError> {
        self.make(volume, place, (0, 0, 0), None)
    }

    /// Makes a ring at `place` with what the ring at `old` holds, durably. The caller then has the
    /// volume refer to it.
    pub(super) fn enlarge(
        &mut self,
        volume: &Uuid,
        old: RingPlace,
        place: RingPlace,
    ) -> Result<(), NodeError> {
        self.load(volume, old)?;
        self.sync()?;
        let ring = self.rings.get(volume).ok_or(NodeError::NotFound)?;
        let state = (ring.start, ring.end, ring.epoch);
        self.make(volume, place, state, Some(old))
    }

    fn make(
        &mut self,
        volume: &Uuid,
        place: RingPlace,
        (start, end, epoch): (u64, u64, u64),
        copy_of: Option<RingPlace>,
    ) -> Result<(), NodeError> {
        self.usable()?;
        self.fill(place).map_err(|error| self.judge(&error))?;
        let mut position = start;
        while let Some(old) = copy_of
            && position < end
        {
            let len = (end - position).min(FILL_BYTES as u64);
            let bytes = self.read_ring(old, position, len as usize)?;
            self.write_ring(place, position, &bytes)?;
            position += len;
        }
        let seal = Seal::new(&self.node, volume, place.id);
        let ring = Ring {
            place,
            seal,
            start,
            end,
            epoch,
            number: 1,
            batch: 1,
            pieces: Vec::new(),
            young: 0,
            reusable: start,
            reusable_next: start,
        };
        self.rings.insert(*volume, ring);
        self.write_entry(volume)?;
        self.sync()
    }

    fn fill(&mut self, place: RingPlace) -> io::Result<()> {
        let (mut at, end) = (place.at, place.at + ring_bytes(place.capacity));
        self.file.allocate(at, end - at)?;
        let zeroes = vec![0; FILL_BYTES];
        while at < end {
            let len = (end - at).min(FILL_BYTES as u64);
            self.file.write_at(at, zeroes.get(..len as usize).unwrap_or_default())?;
            at += len;
        }
        Ok(())
    }

    /// Forgets a ring that nothing names any more, and gives its room back to the file system.
    pub(super) fn release(&mut self, volume: &Uuid, place: RingPlace) {
        self.rings.remove(volume);
        self.young.retain(|young| young != volume);
        if let Err(error) = self.file.punch(place.at, ring_bytes(place.capacity)) {
            tracing::debug!(%error, "the room of a journal can't be given back");
        }
    }

    /// Whether no entry of a ring can be read any more, and with them what it held.
    pub(super) fn is_lost(&mut self, volume: &Uuid, place: RingPlace) -> Result<bool, NodeError> {
        match self.load(volume, place) {
            Ok(_) => Ok(false),
            Err(NodeError::Corrupt) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Where a journal starts and ends.
    pub(super) fn state(&mut self, volume: &Uuid, place: RingPlace) -> Result<Response, NodeError> {
        let ring = self.load(volume, place)?;
        Ok(Response::Journal { start: ring.start, end: ring.end, epoch: ring.epoch })
    }

    /// Appends at `position`, which must be the end. It counts after the next sync.
    pub(super) fn append(
        &mut self,
        volume: &Uuid,
        place: RingPlace,
        epoch: u64,
        position: u64,
        parts: &[Bytes],
    ) -> Result<(), NodeError> {
        self.usable()?;
        let ring = self.load(volume, place)?;
        if position != ring.end {
            return Err(NodeError::Conflict { end: ring.end });
        }
        let sum = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        let len = match u32::try_from(sum) {
            Ok(len) if sum <= TRANSFER_BYTES_MAX => len,
            _ => return Err(NodeError::Unsupported),
        };
        if len == 0 {
            return Ok(());
        }
        let end = position.checked_add(u64::from(len)).ok_or(NodeError::Range)?;
        if end - ring.start > place.capacity {
            return Err(NodeError::NoSpace);
        }
        // The room is there once the trim that made it is durable, and once no entry has to be
        // judged by the bytes that are there: two batches at most.
        for _ in 0..2 {
            if self.rings.get(volume).is_some_and(|ring| end - ring.reusable > place.capacity) {
                self.write_entry(volume)?;
                self.sync()?;
            }
        }
        self.make_room(volume)?;
        let mut at = position;
        for part in parts {
            self.write_ring(place, at, part)?;
            at += part.len() as u64;
        }
        let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        let ring = self.rings.get_mut(volume).ok_or(NodeError::NotFound)?;
        (ring.end, ring.epoch) = (end, epoch);
        ring.pieces.push(Piece { position, len, crc });
        self.write_entry(volume)
    }

    /// Up to `len` bytes from `position`.
    pub(super) fn read(
        &mut self,
        volume: &Uuid,
        place: RingPlace,
        position: u64,
        len: u32,
    ) -> Result<Bytes, NodeError> {
        let ring = self.load(volume, place)?;
        if position < ring.start || position > ring.end {
            return Err(NodeError::Range);
        }
        let len = (ring.end - position).min(u64::from(len));
        Ok(Bytes::from(self.read_ring(place, position, len as usize)?))
    }

    /// Forgets what lies before `start`. True if it counts only after the next sync.
    pub(super) fn trim(
        &mut self,
        volume: &Uuid,
        place: RingPlace,
        epoch: u64,
        start: u64,
    ) -> Result<bool, NodeError> {
        self.usable()?;
        let ring = self.load(volume, place)?;
        if start <= ring.end {
            ring.start = ring.start.max(start);
            return Ok(false);
        }
        self.make_room(volume)?;
        let ring = self.rings.get_mut(volume).ok_or(NodeError::NotFound)?;
        (ring.start, ring.end, ring.epoch) = (start, start, epoch);
        ring.pieces.clear();
        self.write_entry(volume)?;
        Ok(true)
    }

    /// Makes durable what was appended and emptied.
    pub(super) fn sync(&mut self) -> Result<(), NodeError> {
        self.usable()?;
        if self.young.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.file.sync() {
            tracing::error!(%error, "journals can't be synced");
            self.failed = true;
            return Err(NodeError::Failed);
        }
        for volume in self.young.drain(..) {
            if let Some(ring) = self.rings.get_mut(&volume) {
                ring.batch += 1;
                ring.young = 0;
                ring.pieces.clear();
                ring.reusable = ring.reusable_next;
            }
        }
        Ok(())
    }

    /// Ends the batch if one more entry would be too many for the table, or for an entry.
    fn make_room(&mut self, volume: &Uuid) -> Result<(), NodeError> {
        let young = self.rings.get(volume).map_or(0, |ring| ring.young);
        if young + 1 >= ENTRIES { self.sync() } else { Ok(()) }
    }

    /// Writes an entry of the ring as it is now.
    fn write_entry(&mut self, volume: &Uuid) -> Result<(), NodeError> {
        self.make_room(volume)?;
        let ring = self.rings.get_mut(volume).ok_or(NodeError::NotFound)?;
        // Bytes that were trimmed again in the same batch need not be there after a crash.
        let start = ring.start;
        ring.pieces.retain(|piece| piece.position + u64::from(piece.len) > start);
        ring.reusable_next = ring.pieces.first().map_or(start, |piece| piece.position.min(start));
        let entry = Entry {
            number: ring.number,
            batch: ring.batch,
            epoch: ring.epoch,
            start,
            end: ring.end,
            pieces: ring.pieces.clone(),
        };
        let at = ring.place.at + entry.page() * PAGE as u64;
        let bytes = entry.encode(ring.seal);
        ring.number += 1;
        ring.young += 1;
        if !self.young.contains(volume) {
            self.young.push(*volume);
        }
        self.file.write_at(at, &bytes[..]).map_err(|error| self.judge_append(&error))
    }

    /// A ring was written through when it was made: one that is full now has failed.
    fn judge_append(&mut self, error: &io::Error) -> NodeError {
        tracing::error!(%error, "a journal can't be written");
        self.failed = true;
        NodeError::Failed
    }

    fn write_ring(
        &mut self,
        place: RingPlace,
        position: u64,
        bytes: &[u8],
    ) -> Result<(), NodeError> {
        let mut at = position;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = at % place.capacity;
            let room = usize::try_from(place.capacity - within).unwrap_or(usize::MAX);
            let (piece, behind) = rest.split_at(rest.len().min(room));
            let written = self.file.write_at(place.at + TABLE_BYTES + within, piece);
            written.map_err(|error| self.judge_append(&error))?;
            at += piece.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    fn read_ring(
        &mut self,
        place: RingPlace,
        position: u64,
        len: usize,
    ) -> Result<Vec<u8>, NodeError> {
        let mut bytes = vec![0; len];
        let mut at = position;
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let within = at % place.capacity;
            let room = usize::try_from(place.capacity - within).unwrap_or(usize::MAX);
            let (piece, behind) = rest.split_at_mut(rest.len().min(room));
            let read = self.file.read_at(place.at + TABLE_BYTES + within, piece);
            read.map_err(|error| {
                tracing::warn!(%error, "a journal can't be read");
                NodeError::Failed
            })?;
            at += piece.len() as u64;
            rest = behind;
        }
        Ok(bytes)
    }

    /// The ring of a volume, read from the disk when it is first used.
    fn load(&mut self, volume: &Uuid, place: RingPlace) -> Result<&mut Ring, NodeError> {
        if !self.rings.get(volume).is_some_and(|ring| ring.place == place) {
            let ring = self.recover(volume, place)?;
            self.rings.insert(*volume, ring);
        }
        self.rings.get_mut(volume).ok_or(NodeError::NotFound)
    }

    fn recover(&mut self, volume: &Uuid, place: RingPlace) -> Result<Ring, NodeError> {
        self.usable()?;
        let seal = Seal::new(&self.node, volume, place.id);
        let mut entries = Vec::with_capacity(ENTRIES);
        let mut page = [0; PAGE];
        for index in 0..ENTRIES as u64 {
            let at = place.at + index * PAGE as u64;
            self.file.read_at(at, &mut page).map_err(|_| NodeError::Failed)?;
            entries.extend(Entry::decode(&page, seal).filter(|entry| entry.page() == index));
        }
        entries.sort_unstable_by_key(|entry| u64::MAX - entry.number);
        let newest = entries.iter().map(|entry| entry.batch).max().unwrap_or(0);
        let number = entries.first().map_or(0, |entry| entry.number);
        let mut found = None;
        let mut stale = Vec::new();
        for entry in entries {
            if entry.batch < newest || self.is_whole(place, &entry)? {
                found = Some(entry);
                break;
            }
            stale.push(entry);
        }
        // The first entry was durable before anything referred to the ring.
        let entry = found.ok_or(NodeError::Corrupt)?;
        // Until the sync below a crash leaves the rest of them to be judged the same way again.
        for stale in &stale {
            let at = place.at + stale.page() * PAGE as u64;
            self.file.write_at(at, &[0; PAGE]).map_err(|error| self.judge_append(&error))?;
        }
        if !stale.is_empty() {
            self.file.sync().map_err(|error| self.judge_append(&error))?;
        }
        // It may be judged by its bytes once more before the next one is durable.
        let judged = entry.pieces.first().map_or(entry.start, |piece| piece.position);
        Ok(Ring {
            place,
            seal,
            start: entry.start,
            end: entry.end,
            epoch: entry.epoch,
            number: number + 1,
            batch: newest + 1,
            pieces: Vec::new(),
            young: 0,
            reusable: judged.min(entry.start),
            reusable_next: entry.start,
        })
    }

    /// Whether all bytes that an entry names are there.
    fn is_whole(&mut self, place: RingPlace, entry: &Entry) -> Result<bool, NodeError> {
        for piece in &entry.pieces {
            if u64::from(piece.len) > place.capacity {
                return Ok(false);
            }
            let bytes = self.read_ring(place, piece.position, piece.len as usize)?;
            if crc32c::crc32c(&bytes) != piece.crc {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
