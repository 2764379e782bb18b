//! Walking a journal after a crash: what is in it, and which copies lack what.
//!
//! A copy may hold records of a fork: ones that were written and never acknowledged before the
//! volume went on without them, and that a store hid or brought back. They are authentic and follow
//! the same record as the ones that were acknowledged. Two things tell them apart:
//!
//! * Before `journal_epoch_start` of the newest superblock: it names the tag of the last record
//!   there, and each tag vouches for the one before. Only one path arrives at it.
//! * From there on: only records of that opening count, and it gave each sequence number once.

use super::record::{HEADER_BYTES, record_bytes};
use super::{Position, Record, parse_record};
use crate::keys::KeyRing;
use crate::shards::ShardSet;
use crate::store::{Store, StoreFile};
use crate::superblock::Superblock;

/// What a walk over all copies found.
#[derive(Debug)]
pub(crate) struct Replay {
    /// Behind the last record.
    pub(crate) head: Position,
    /// The live records, oldest first.
    pub(crate) records: Vec<Record>,
    /// The records that one of the wanted copies lacks, as ciphertext.
    pub(crate) repairs: Vec<CopyRepair>,
}

/// A record to write to the copies that lack it.
#[derive(Debug)]
pub(crate) struct CopyRepair {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) lacking: u32,
}

/// A record that follows some place.
struct Candidate {
    record: Record,
    bytes: Vec<u8>,
    /// The copies that hold exactly these bytes.
    holding: u32,
}

/// A record on the path, and the others that could have been taken instead.
struct Branch {
    place: Position,
    taken: Candidate,
    others: Vec<Candidate>,
}

/// Walks the live part of the journal. `None` if no path leads to the record that the superblock
/// names: durable records are gone on more stores than may be lost.
///
/// All copies should hold the same records in the same places, so at each place any copy may supply
/// the record: the journal is whole as long as each record survives somewhere. Where copies differ,
/// each record that follows is tried. A record names the one before it, so none is on two paths and
/// the search takes no longer than reading all copies. `wanted` are the shards that are to hold a
/// copy from now on.
pub(crate) fn walk<S: Store>(
    shards: &ShardSet<S>,
    superblock: &Superblock,
    wanted: u32,
    keys: &mut KeyRing,
) -> Option<Replay> {
    let capacity = superblock.geometry.journal_bytes();
    let mut place = Position::at(superblock.journal);
    let mut path: Vec<Branch> = Vec::new();
    loop {
        if place.offset == capacity {
            place.wrap(0);
        }
        let astray = place.sequence == superblock.journal_epoch_start
            && place.tag != superblock.journal_epoch_tag;
        let others = if astray { Vec::new() } else { follow(shards, &place, superblock, keys) };
        if others.is_empty() && !astray && place.sequence >= superblock.journal_epoch_start {
            break;
        }
        let mut next = (place, others);
        let branch = loop {
            let (place, mut others) = next;
            if let Some(taken) = others.pop() {
                break Branch { place, taken, others };
            }
            let Branch { place, others, .. } = path.pop()?;
            next = (place, others);
        };
        place = branch.behind(capacity);
        path.push(branch);
    }
    let (mut records, mut repairs) = (Vec::new(), Vec::new());
    for Branch { place, taken, .. } in path {
        let Candidate { record, bytes, holding } = taken;
        if wanted & !holding != 0 {
            repairs.push(CopyRepair { offset: place.offset, bytes, lacking: wanted & !holding });
        }
        records.push(record);
    }
    Some(Replay { head: place, records, repairs })
}

impl Branch {
    /// The place behind the record that was taken.
    fn behind(&self, capacity: u64) -> Position {
        let Candidate { record, bytes, .. } = &self.taken;
        let mut place = self.place;
        place.advance(bytes.len() as u64, record.tag);
        if record.wraps {
            place.wrap(capacity.saturating_sub(place.offset));
        }
        place
    }
}

/// The different records that may come next at `place`, the likeliest last.
fn follow<S: Store>(
    shards: &ShardSet<S>,
    place: &Position,
    superblock: &Superblock,
    keys: &mut KeyRing,
) -> Vec<Candidate> {
    let capacity = superblock.geometry.journal_bytes();
    let mut candidates: Vec<Candidate> = Vec::new();
    for (bytes, holding) in read_copies(shards, place.offset, capacity) {
        let Ok(record) = parse_record(&bytes, keys) else { continue };
        // Bytes that no MAC covers may differ between copies of one record.
        let known = candidates.iter().any(|candidate| candidate.record.tag == record.tag);
        let fits = place.total + bytes.len() as u64 <= capacity;
        if fits && !known && follows(&record, place, superblock) {
            candidates.push(Candidate { record, bytes, holding });
        }
    }
    // Of two, a later opening wrote the one that was acknowledged, if any was.
    candidates.sort_by_key(|candidate| candidate.record.opening.epoch);
    candidates
}

/// Whether `record` may be the one that belongs at `place`. Records from the newest opening on must
/// be its own.
fn follows(record: &Record, place: &Position, superblock: &Superblock) -> bool {
    let of_its_time = if record.sequence >= superblock.journal_epoch_start {
        record.opening == superblock.opening
    } else {
        record.opening.epoch < superblock.opening.epoch
    };
    record.sequence == place.sequence && record.previous == place.tag && of_its_time
}

/// The whole records at `offset`, each once, with the mask of the copies that hold it.
fn read_copies<S: Store>(shards: &ShardSet<S>, offset: u64, capacity: u64) -> Vec<(Vec<u8>, u32)> {
    let mut copies: Vec<(Vec<u8>, u32)> = Vec::new();
    for shard in 0..shards.len() {
        let mut bytes = vec![0; HEADER_BYTES];
        if !shards.read(shard, StoreFile::Journal, offset, &mut bytes) {
            continue;
        }
        let Some(len) = record_bytes(&bytes) else { continue };
        if offset + len as u64 > capacity {
            continue;
        }
        bytes.resize(len, 0);
        if !shards.read(shard, StoreFile::Journal, offset, &mut bytes) {
            continue;
        }
        match copies.iter_mut().find(|(other, _)| *other == bytes) {
            Some((_, holding)) => *holding |= 1 << shard,
            None => copies.push((bytes, 1 << shard)),
        }
    }
    copies
}
