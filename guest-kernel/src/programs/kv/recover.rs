//! Reading the log: at start, to rebuild the index, and later record by record.

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::format::{BATCH_BYTES_MAX, Header, Kind, RECORD_HEADER_BYTES, Superblock, record_bytes};
use super::index::{Index, Place};
use crate::block::{Block, BlockError, SECTOR_BYTES};
use crate::dma::DmaBuffer;

/// How much of the log one request reads.
const WINDOW_BYTES: u64 = 1 << 20;

/// Reads a region through a window that moves forward.
pub struct Reader {
    disk: Block,
    region_offset: u64,
    region_bytes: u64,
    store_id: u64,
    window_offset: u64,
    window_bytes: u64,
    window: DmaBuffer,
}

impl Reader {
    /// A reader of a region that reads whole windows: for scans.
    #[must_use]
    pub fn new(disk: Block, superblock: &Superblock) -> Self {
        Self {
            disk,
            region_offset: superblock.region_offset(superblock.active_region),
            region_bytes: superblock.region_bytes,
            store_id: superblock.store_id,
            window_offset: 0,
            window_bytes: WINDOW_BYTES,
            window: DmaBuffer::empty(),
        }
    }

    /// A reader that reads no more than it's asked for.
    #[must_use]
    pub fn exact(disk: Block, superblock: &Superblock) -> Self {
        Self { window_bytes: 0, ..Self::new(disk, superblock) }
    }

    /// The `len` bytes at `offset` of the region; fewer at its end.
    ///
    /// # Errors
    /// The disk could not be read.
    pub async fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8], BlockError> {
        let end = offset.saturating_add(len as u64).min(self.region_bytes);
        let window_end = self.window_offset + self.window.len() as u64;
        if offset < self.window_offset || end > window_end {
            let start = offset - offset % SECTOR_BYTES;
            let wanted = (end.saturating_sub(start)).max(self.window_bytes);
            let wanted = wanted.next_multiple_of(SECTOR_BYTES);
            let read = wanted.min(self.region_bytes.saturating_sub(start));
            if read == 0 {
                return Ok(&[]);
            }
            self.window = self.disk.read(self.region_offset + start, read as usize).await?;
            self.window_offset = start;
        }
        let from = (offset - self.window_offset) as usize;
        let to = (end.saturating_sub(self.window_offset)) as usize;
        Ok(self.window.get(from..to).unwrap_or(&[]))
    }

    /// The record at `offset`: its header, key and value. `None` if there is no whole one.
    ///
    /// # Errors
    /// The disk could not be read.
    pub async fn record(
        &mut self,
        offset: u64,
    ) -> Result<Option<(Header, &[u8], &[u8])>, BlockError> {
        let Some(header) = Header::parse(self.bytes(offset, RECORD_HEADER_BYTES).await?) else {
            return Ok(None);
        };
        if header.store_id != self.store_id {
            return Ok(None);
        }
        let record = self.bytes(offset, header.record_bytes()).await?;
        Ok(header.check(record).map(|(key, value)| (header, key, value)))
    }

    /// The value in the record at `place`, if that is what lies there.
    ///
    /// # Errors
    /// The disk could not be read.
    pub async fn record_at(
        &mut self,
        place: Place,
        key: &[u8],
    ) -> Result<Option<&[u8]>, BlockError> {
        // The length is known: one request fetches the whole record.
        self.bytes(place.offset, record_bytes(key.len(), place.value_len)).await?;
        let matches =
            |header: &Header, found: &[u8]| header.sequence == place.sequence && found == key;
        let record = self.record(place.offset).await?;
        Ok(record.filter(|(header, found, _)| matches(header, found)).map(|(_, _, value)| value))
    }
}

/// The end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Where the next batch goes: the offset in the active region.
    pub offset: u64,
    /// The sequence number of its first record.
    pub sequence: u64,
}

/// Why the log can't be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayError {
    /// The disk could not be read.
    Disk(BlockError),
    /// A record is unreadable though later ones were made durable: to go on would lose them.
    Damaged {
        /// Its offset in the active region.
        offset: u64,
    },
    /// The log is newer than the superblock: an update of the superblock was lost.
    StaleSuperblock,
}

impl From<BlockError> for ReplayError {
    fn from(error: BlockError) -> Self {
        Self::Disk(error)
    }
}

/// Replays the log of `superblock`'s active region into `index`.
///
/// The log ends at the first batch that isn't whole: a batch counts only if all of it is there.
///
/// # Errors
/// See [`ReplayError`].
pub async fn replay(
    disk: &Block,
    superblock: &Superblock,
    index: &mut Index,
) -> Result<Tail, ReplayError> {
    let mut reader = Reader::new(disk.clone(), superblock);
    let mut tail = Tail { offset: 0, sequence: superblock.first_sequence };
    let mut epoch = 0;
    loop {
        let batch = read_batch(&mut reader, superblock, tail, epoch).await?;
        let Some(batch) = batch else { break };
        tail.offset = batch.end.next_multiple_of(u64::from(superblock.block_bytes));
        tail.sequence += batch.changes.len() as u64;
        epoch = batch.epoch;
        for (key, place) in batch.changes {
            match place {
                Some(place) => drop(index.put(&key, place)),
                None => drop(index.remove(&key)),
            }
        }
    }
    refuse_damage(&mut reader, superblock, tail, epoch).await?;
    Ok(tail)
}

struct WholeBatch {
    /// No place: a deletion.
    changes: Vec<(Rc<[u8]>, Option<Place>)>,
    end: u64,
    epoch: u64,
}

async fn read_batch(
    reader: &mut Reader,
    superblock: &Superblock,
    tail: Tail,
    mut epoch: u64,
) -> Result<Option<WholeBatch>, ReplayError> {
    let mut changes = Vec::new();
    let mut offset = tail.offset;
    loop {
        let position = changes.len() as u64;
        let sequence = tail.sequence + position;
        let Some((header, key, _)) = reader.record(offset).await? else { return Ok(None) };
        let expected = header.sequence == sequence && u64::from(header.position) == position;
        if !expected || header.epoch < epoch {
            return Ok(None);
        }
        if header.epoch > superblock.epoch {
            return Err(ReplayError::StaleSuperblock);
        }
        epoch = header.epoch;
        let place = Place { offset, sequence, value_len: header.value_len };
        changes.push((Rc::from(key), (header.kind == Kind::Put).then_some(place)));
        offset += header.record_bytes() as u64;
        if header.ends_batch {
            return Ok(Some(WholeBatch { changes, end: offset, epoch }));
        }
    }
}

/// Looks behind the end of the log for a batch that follows the one that is missing there. There
/// was only ever one batch in flight, so that one had been made durable.
async fn refuse_damage(
    reader: &mut Reader,
    superblock: &Superblock,
    tail: Tail,
    epoch: u64,
) -> Result<(), ReplayError> {
    let block_bytes = u64::from(superblock.block_bytes);
    let end = (tail.offset + BATCH_BYTES_MAX as u64).min(superblock.region_bytes);
    let mut offset = tail.offset + block_bytes;
    while offset <= end {
        let header = Header::parse(reader.bytes(offset, RECORD_HEADER_BYTES).await?);
        let follows = header.is_some_and(|header| {
            header.position == 0 && header.sequence > tail.sequence && header.epoch >= epoch.max(1)
        });
        if follows && reader.record(offset).await?.is_some() {
            return Err(ReplayError::Damaged { offset: tail.offset });
        }
        offset += block_bytes;
    }
    Ok(())
}
