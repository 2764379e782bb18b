//! A store seen from the side: what its index says, while a server may be using it.
//!
//! Nothing is locked or changed. What is said may be over as soon as it is said, and an object that is
//! being put may be named before its bytes are all there: who reads bytes compares them with
//! [`Seen::crc`], or with a hash of its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::open::{DiskError, fits, newest};
use super::slot::{Place, SLOT_BYTES, Slot};
use super::superblock::{self, Superblock, copy_at};
use super::{INDEX_STEP, block_at, slot_at};
use crate::fields::is_blank;
use crate::files::FILE_NAMES;
use crate::keys::Uuid;
use crate::node::ObjectKey;

/// Slots that [`Look::step`] reads at once.
pub const LOOK_SLOTS: u32 = INDEX_STEP;

/// An object, as a slot names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub key: ObjectKey,
    /// Its first block: [`Seen::offset_of`] says where that is.
    pub block: u32,
    /// Its length in bytes.
    pub len: u32,
    /// The CRC-32C of its bytes.
    pub crc: u32,
}

impl Seen {
    /// Where a block begins in the file `objects`: a multiple of 4096. An object is in one piece.
    #[must_use]
    pub fn offset_of(block: u32) -> u64 {
        block_at(block)
    }
}

/// A store's file of objects, open for reading.
#[derive(Debug)]
pub struct Look {
    file: File,
    superblock: Superblock,
}

impl Look {
    /// Opens the store in a server's directory. The file of objects must be a file and no link.
    ///
    /// # Errors
    /// [`DiskError::Missing`] if it is no such directory, and why it can't be used otherwise.
    pub fn open(directory: &Path) -> Result<Self, DiskError> {
        let missing = |error: Errno| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => DiskError::Missing,
            error => DiskError::Io(error.into()),
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags | OFlags::DIRECTORY, Mode::empty());
        let directory = directory.map_err(missing)?;
        // A pipe of that name must not be waited for.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let [objects, ..] = FILE_NAMES;
        let file = rustix::fs::openat(&directory, objects, flags, Mode::empty());
        let file = File::from(file.map_err(missing)?);
        if !file.metadata()?.is_file() {
            return Err(DiskError::Missing);
        }
        let found = [copy(&file, 0)?, copy(&file, 1)?];
        let superblock = newest(&found)?.ok_or(DiskError::Missing)?;
        Ok(Self { file, superblock })
    }

    /// The node that the store belongs to.
    #[must_use]
    pub fn node(&self) -> Uuid {
        self.superblock.node
    }

    /// The file of objects.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the [`LOOK_SLOTS`] slots from `first` on name, which is a multiple of it; `None` behind the
    /// last one that was ever used. A slot that looks damaged is read again: it may have been written to
    /// at that moment.
    ///
    /// # Errors
    /// The disk.
    pub fn step(&self, first: u32) -> io::Result<Option<Vec<Option<Seen>>>> {
        let mut step = vec![0; INDEX_STEP as usize * SLOT_BYTES];
        let end = slot_at(first) + step.len() as u64;
        let is_inside = u64::from(first) < self.superblock.blocks;
        if !is_inside || end > self.file.metadata()?.len() {
            return Ok(None);
        }
        self.file.read_exact_at(&mut step, slot_at(first))?;
        if is_blank(&step) {
            return Ok(None);
        }
        let mut seen = Vec::with_capacity(INDEX_STEP as usize);
        for (number, bytes) in (first..).zip(step.as_chunks::<SLOT_BYTES>().0) {
            let mut slot = Slot::decode(bytes, &self.superblock.node, number);
            if slot == Slot::Damaged {
                let mut again = [0; SLOT_BYTES];
                self.file.read_exact_at(&mut again, slot_at(number))?;
                slot = Slot::decode(&again, &self.superblock.node, number);
            }
            seen.push(self.object(&slot));
        }
        Ok(Some(seen))
    }

    fn object(&self, slot: &Slot) -> Option<Seen> {
        let Slot::Object { key, place, .. } = slot else { return None };
        let Place { start: block, len, crc } = *place;
        fits(place, self.superblock.blocks).then_some(Seen { key: *key, block, len, crc })
    }
}

fn copy(file: &File, number: u64) -> io::Result<superblock::Found> {
    let mut bytes = [0; superblock::BYTES];
    if file.metadata()?.len() < copy_at(number) + bytes.len() as u64 {
        return Ok(superblock::Found::Blank);
    }
    file.read_exact_at(&mut bytes, copy_at(number))?;
    Ok(Superblock::parse(&bytes))
}
