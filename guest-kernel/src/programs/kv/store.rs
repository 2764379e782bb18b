//! The store: what is answered is durable, and what was answered is never lost.
//!
//! One task ([`Store::run`]) writes; everybody else asks it. Changes that arrive while a batch is
//! being written become the next batch: one write and one flush for all of them (group commit).
//! Reads go to the index and, if the cache doesn't have the value, to the disk.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use super::format::{KEY_BYTES_MAX, SLOT_BYTES, SLOTS, Slot, Superblock, VALUE_BYTES_MAX};
use super::index::Index;
use super::recover::{Reader, ReplayError, Tail, replay};
use crate::block::{Block, BlockError};
use crate::dma::DmaBuffer;
use crate::task::Signal;

/// How much memory the store may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For keys and their places: a put of a new key beyond it is refused as [`StoreError::Full`].
    pub index_bytes_max: usize,
    /// For cached values.
    pub cache_bytes_max: usize,
}

/// Why a change or a look-up failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// There is no room for the value; nothing was changed.
    Full,
    /// The disk failed. A change may or may not have happened.
    Disk(BlockError),
    /// The record on the disk doesn't match its checksum.
    Corrupt,
}

impl core::fmt::Display for StoreError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Full => f.write_str("the store is full"),
            Self::Disk(error) => write!(f, "{error}"),
            Self::Corrupt => f.write_str("the record on the disk is damaged"),
        }
    }
}

impl core::error::Error for StoreError {}

impl From<BlockError> for StoreError {
    fn from(error: BlockError) -> Self {
        Self::Disk(error)
    }
}

/// Why a disk can't be opened as a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// The disk can't hold two regions of [`super::format::REGION_BYTES_MIN`].
    TooSmall {
        /// The disk's size.
        capacity_bytes: u64,
    },
    /// The disk holds something else. It's left untouched.
    NotAStore,
    /// The store was written by another version of this program.
    Version(u32),
    /// Both superblocks are damaged.
    NoSuperblock,
    /// The store doesn't fit this disk: it's larger, or was made for smaller blocks.
    Geometry,
    /// The disk is read-only.
    ReadOnly,
    /// The log can't be replayed without losing what was acknowledged.
    Replay(ReplayError),
}

impl core::fmt::Display for OpenError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooSmall { capacity_bytes } => {
                write!(f, "a disk of {capacity_bytes} bytes is too small for a store")
            }
            Self::NotAStore => f.write_str("the disk holds something that is not a store"),
            Self::Version(version) => {
                write!(f, "the store has format version {version}, this program writes 1")
            }
            Self::NoSuperblock => f.write_str("both superblocks are damaged"),
            Self::Geometry => f.write_str("the store was made for another disk"),
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::Replay(ReplayError::Disk(error)) => write!(f, "{error}"),
            Self::Replay(ReplayError::Damaged { offset }) => {
                write!(f, "the log is damaged at byte {offset}, and later records exist")
            }
            Self::Replay(ReplayError::StaleSuperblock) => {
                f.write_str("the log is newer than the superblock")
            }
        }
    }
}

impl core::error::Error for OpenError {}

impl From<BlockError> for OpenError {
    fn from(error: BlockError) -> Self {
        Self::Replay(ReplayError::Disk(error))
    }
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The key is new.
    Created,
    /// The key had another value.
    Replaced,
    /// The key is gone.
    Deleted,
    /// There was no such key.
    Absent,
}

/// What a store has in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// How many keys there are.
    pub keys: usize,
    /// The bytes of their records.
    pub live_bytes: u64,
    /// The bytes that records may have altogether.
    pub live_bytes_max: u64,
}

/// A store on a block device. Clones are handles of the same one.
#[derive(Clone)]
pub struct Store {
    pub(super) shared: Rc<Shared>,
}

pub(super) struct Shared {
    pub(super) disk: Block,
    pub(super) limits: Limits,
    pub(super) state: RefCell<State>,
    /// Changes that wait for the next batch.
    pub(super) pending: RefCell<VecDeque<Operation>>,
    pub(super) work: Signal,
}

pub(super) struct State {
    /// As it lies on the disk.
    pub(super) superblock: Superblock,
    pub(super) tail: Tail,
    pub(super) index: Index,
    /// A write failed: what lies behind the tail is unknown until a new epoch begins.
    pub(super) uncertain: bool,
}

pub(super) struct Operation {
    pub(super) key: Rc<[u8]>,
    /// No value: a deletion.
    pub(super) value: Option<Rc<[u8]>>,
    pub(super) reply: Rc<Reply>,
}

#[derive(Default)]
pub(super) struct Reply {
    pub(super) result: Cell<Option<Result<Change, StoreError>>>,
    pub(super) done: Signal,
}

impl Store {
    /// Opens the store on `disk`; formats it if it's blank, with `store_id` (a random number).
    ///
    /// # Errors
    /// See [`OpenError`]. A disk that isn't blank and isn't a store is left untouched.
    pub async fn open(disk: Block, limits: Limits, store_id: u64) -> Result<Self, OpenError> {
        if disk.is_read_only() {
            return Err(OpenError::ReadOnly);
        }
        let capacity_bytes = disk.capacity_bytes();
        let block_bytes = u32::try_from(disk.block_bytes()).unwrap_or(u32::MAX);
        if u64::from(block_bytes) > SLOT_BYTES {
            return Err(OpenError::Geometry);
        }
        let fresh = Superblock::for_disk(capacity_bytes, block_bytes, store_id)
            .ok_or(OpenError::TooSmall { capacity_bytes })?;
        let slots = disk.read(0, (SLOTS * SLOT_BYTES) as usize).await?;
        let (first, second) = slots.split_at(SLOT_BYTES as usize);
        let mut superblock = choose(Superblock::parse(first), Superblock::parse(second), fresh)?;
        drop(slots);
        let end = superblock.region_offset(1) + superblock.region_bytes;
        if end > capacity_bytes || superblock.block_bytes < block_bytes {
            return Err(OpenError::Geometry);
        }

        let mut index = Index::new(limits.cache_bytes_max);
        let tail = replay(&disk, &superblock, &mut index).await.map_err(OpenError::Replay)?;
        superblock.generation += 1;
        superblock.epoch += 1;
        write_superblock(&disk, &superblock).await?;
        let state = State { superblock, tail, index, uncertain: false };
        Ok(Self {
            shared: Rc::new(Shared {
                disk,
                limits,
                state: RefCell::new(state),
                pending: RefCell::new(VecDeque::new()),
                work: Signal::default(),
            }),
        })
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`StoreError::Disk`] or [`StoreError::Corrupt`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Rc<[u8]>>, StoreError> {
        loop {
            let (place, superblock) = {
                let mut state = self.shared.state.borrow_mut();
                if let Some(value) = state.index.cached(key) {
                    return Ok(Some(value));
                }
                let Some(place) = state.index.place(key) else { return Ok(None) };
                (place, state.superblock)
            };
            let mut reader = Reader::exact(self.shared.disk.clone(), &superblock);
            let value = reader.record_at(place, key).await?.map(Rc::from);
            let mut state = self.shared.state.borrow_mut();
            match value {
                Some(value) => {
                    state.index.cache(&Rc::from(key), place, &value);
                    return Ok(Some(value));
                }
                // It was overwritten and its region reused while the disk was being read.
                None if state.index.place(key) != Some(place) => {}
                None => return Err(StoreError::Corrupt),
            }
        }
    }

    /// Sets the value of `key`. When this returns, it's durable.
    ///
    /// # Errors
    /// See [`StoreError`]; a key or value that is too long is [`StoreError::Full`].
    pub async fn put(&self, key: Rc<[u8]>, value: Rc<[u8]>) -> Result<Change, StoreError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(StoreError::Full);
        }
        self.change(key, Some(value)).await
    }

    /// Removes `key`. When this returns, that is durable.
    ///
    /// # Errors
    /// [`StoreError::Disk`] or [`StoreError::Corrupt`].
    pub async fn delete(&self, key: Rc<[u8]>) -> Result<Change, StoreError> {
        self.change(key, None).await
    }

    /// Up to `limit` keys that begin with `prefix` and come after `after`, in order.
    #[must_use]
    pub fn list(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<Rc<[u8]>> {
        self.shared.state.borrow().index.list(prefix, after, limit)
    }

    /// What the store has in it.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.shared.state.borrow();
        Usage {
            keys: state.index.len(),
            live_bytes: state.index.live_bytes(),
            live_bytes_max: state.live_bytes_max(),
        }
    }

    async fn change(&self, key: Rc<[u8]>, value: Option<Rc<[u8]>>) -> Result<Change, StoreError> {
        let reply = Rc::new(Reply::default());
        let operation = Operation { key, value, reply: Rc::clone(&reply) };
        self.shared.pending.borrow_mut().push_back(operation);
        self.shared.work.notify();
        loop {
            reply.done.notified().await;
            if let Some(result) = reply.result.take() {
                return result;
            }
        }
    }
}

/// The superblock that counts, or a fresh one for a disk on which formatting never ended.
fn choose(first: Slot, second: Slot, fresh: Superblock) -> Result<Superblock, OpenError> {
    match (first, second) {
        (Slot::Version(version), _) | (_, Slot::Version(version)) => {
            Err(OpenError::Version(version))
        }
        (Slot::Valid(first), Slot::Valid(second)) => {
            Ok(if first.generation >= second.generation { first } else { second })
        }
        (Slot::Valid(valid), _) | (_, Slot::Valid(valid)) => Ok(valid),
        // The second slot is first written when the first is whole, and no data before both are.
        (Slot::Blank | Slot::Torn, Slot::Blank) => Ok(fresh),
        (Slot::Foreign, _) | (_, Slot::Foreign) => Err(OpenError::NotAStore),
        _ => Err(OpenError::NoSuperblock),
    }
}

/// Writes both slots, the second when the first is durable: one is always whole.
pub(super) async fn write_superblock(
    disk: &Block,
    superblock: &Superblock,
) -> Result<(), BlockError> {
    let bytes = superblock.encode();
    for slot in 0..SLOTS {
        let write = (slot * SLOT_BYTES, DmaBuffer::copy_of(&bytes));
        disk.write_durable(alloc::vec![write]).await?;
    }
    Ok(())
}
