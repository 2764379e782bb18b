//! The seam below a volume: one store per shard, with a shard file and perhaps a journal file.
//!
//! Everything that needs a name (making, replacing, locking files) happens while the volume is
//! opened; afterwards only `read_at`, `write_at`, `sync` and `punch` are called.

use std::io;

/// Which file of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoreFile {
    /// Superblocks, slot headers and slots.
    Shard,
    /// A copy of the journal.
    Journal,
}

/// Where one shard lies.
pub trait Store {
    /// How to name the store to a person: a path.
    fn name(&self) -> String;

    /// The file's length, or `None` if there is no such file.
    ///
    /// # Errors
    /// The store can't be used.
    fn len(&self, file: StoreFile) -> io::Result<Option<u64>>;

    /// Makes a file of `len` bytes that starts with `head` and is zero behind it, and replaces an
    /// old one by it. Durable when it returns; after a crash there is the old or the whole new one.
    ///
    /// # Errors
    /// The file could not be made.
    fn create(&mut self, file: StoreFile, len: u64, head: &[u8]) -> io::Result<()>;

    /// Keeps the files of another volume under another name, so that [`Store::create`] destroys
    /// nothing.
    ///
    /// # Errors
    /// The files could not be renamed.
    fn set_aside(&mut self) -> io::Result<()>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The bytes could not all be read.
    fn read_at(&self, file: StoreFile, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` at `offset`. Not durable before [`Store::sync`].
    ///
    /// # Errors
    /// The bytes could not all be written.
    fn write_at(&mut self, file: StoreFile, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// What was written may be lost, and another call would not tell (fsync reports an error
    /// once): the caller stops using the store.
    fn sync(&mut self, file: StoreFile) -> io::Result<()>;

    /// Gives the space of a range back; it may read as zeroes afterwards. A hint.
    ///
    /// # Errors
    /// The store can't, which harms nothing.
    fn punch(&mut self, file: StoreFile, offset: u64, len: u64) -> io::Result<()>;
}
