//! Walking a journal after a crash: what is in it, and which copies lack what.

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

/// Walks the live part of the journal and hands each record to `apply`.
///
/// All copies hold the same records in the same places, so at each place any copy may supply the
/// record: the journal is whole as long as each record survives somewhere. The walk ends where no
/// copy has the next one. `wanted` are the shards that are to hold a copy from now on.
pub(crate) fn walk<S: Store>(
    shards: &ShardSet<S>,
    superblock: &Superblock,
    wanted: u32,
    keys: &mut KeyRing,
    mut apply: impl FnMut(&Record),
) -> Replay {
    let capacity = superblock.geometry.journal_bytes();
    let mut head = Position::at(superblock.journal);
    let mut repairs = Vec::new();
    loop {
        if head.offset == capacity {
            head.wrap(0);
        }
        let copies = read_copies(shards, head.offset, capacity);
        let found = copies.iter().find_map(|(_, bytes)| {
            let record = parse_record(bytes, keys).ok()?;
            follows(&record, &head, superblock).then_some((record, bytes))
        });
        let Some((record, bytes)) = found else { break };
        if head.total + bytes.len() as u64 > capacity {
            break;
        }
        let holding =
            copies.iter().filter(|copy| copy.1 == *bytes).fold(0u32, |mask, (i, _)| mask | 1 << i);
        if wanted & !holding != 0 {
            let lacking = wanted & !holding;
            repairs.push(CopyRepair { offset: head.offset, bytes: bytes.clone(), lacking });
        }
        apply(&record);
        head.advance(bytes.len() as u64, record.tag);
        if record.wraps {
            head.wrap(capacity.saturating_sub(head.offset));
        }
    }
    Replay { head, repairs }
}

/// Whether `record` is the one that belongs at `place`. Records from the newest opening on must be
/// its own: a copy that missed that opening may end in records of a fork.
fn follows(record: &Record, place: &Position, superblock: &Superblock) -> bool {
    let of_its_time = if record.sequence >= superblock.journal_epoch_start {
        record.opening == superblock.opening
    } else {
        record.opening.epoch < superblock.opening.epoch
    };
    record.sequence == place.sequence && record.previous == place.tag && of_its_time
}

fn read_copies<S: Store>(
    shards: &ShardSet<S>,
    offset: u64,
    capacity: u64,
) -> Vec<(usize, Vec<u8>)> {
    let mut copies = Vec::new();
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
        if shards.read(shard, StoreFile::Journal, offset, &mut bytes) {
            copies.push((shard, bytes));
        }
    }
    copies
}
