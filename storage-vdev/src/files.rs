//! The seam below a node: three files that are opened once and then only read, written, synced,
//! allocated and punched.
//!
//! [`RealFile`] is a file of a directory of this host; [`sim::SimDisk`] keeps the three in memory
//! and forgets at a crash what was not synced; `storage-node` has one over io_uring.
//!
//! After [`open_directory`] the only system calls are `pread64`, `pwrite64`, `fdatasync` and
//! `fallocate` on descriptors that are open by then, so that a confined VMM can go on using them;
//! [`NodeFile::read_cached`], which no VMM calls, adds `preadv2`.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

pub mod sim;

/// The unit in which files are written where it matters for speed: a page of the page cache.
pub(crate) const PAGE: usize = 4096;

/// A file of a node. It has a fixed place, and is as long as it was ever written or allocated.
pub trait NodeFile {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The file can't be used.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`. What was written before is seen, synced or not.
    ///
    /// # Errors
    /// The bytes could not all be read; behind the end there is nothing to read.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Like [`NodeFile::read_at`] if that need not wait for a disk; whether it has read. If not,
    /// what is in `buffer` means nothing.
    fn read_cached(&mut self, _offset: u64, _buffer: &mut [u8]) -> bool {
        false
    }

    /// Writes `bytes` at `offset`. Not durable before [`NodeFile::sync`].
    ///
    /// # Errors
    /// The bytes could not all be written: any of their sectors may be old, new or torn.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// What was written may be lost, and another call would not tell (fsync reports an error
    /// once): the caller gives the file up until it is opened again.
    fn sync(&mut self) -> io::Result<()>;

    /// Reserves the space of a range. What was never written reads as zeroes.
    ///
    /// # Errors
    /// There is no room ([`io::ErrorKind::StorageFull`]), or the file can't be used.
    fn allocate(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// Gives the space of a range back; it reads as zeroes or as before. A hint.
    ///
    /// # Errors
    /// The file can't, which harms nothing.
    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

/// The files of one node.
#[derive(Debug)]
pub struct NodeFiles<F> {
    /// Shards: superblock, index and extents, so that one sync makes an object durable.
    pub objects: F,
    /// The rings of journal heads.
    pub journal: F,
    /// What the node has promised: fences, ballots, the keys that it pinned.
    pub meta: F,
}

/// Whether an error says that there is no room, as opposed to a disk that fails.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why a directory can't be a node. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process (or another volume of this one) has it open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// There is no such directory, or it is no node, and none was to be made.
    #[error("{} is not a storage node", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// It can't be used.
    #[error("can't use {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A file of a directory, locked with it.
#[derive(Debug)]
pub struct RealFile {
    file: File,
    /// The directory, whose lock holds as long as one of its files is open.
    _directory: std::sync::Arc<OwnedFd>,
}

impl RealFile {
    /// The open file, for a way of reading and writing of one's own.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl NodeFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn read_cached(&mut self, offset: u64, buffer: &mut [u8]) -> bool {
        let len = buffer.len();
        let mut parts = [io::IoSliceMut::new(buffer)];
        // An error is for the read that may wait: it meets it again and says so.
        let read = preadv2(&self.file, &mut parts, offset, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|read| read == len)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len) {
            // A file system that can't reserve finds out when it is written to.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, len)?)
    }
}

/// The names of a node's files in its directory, in the order of [`NodeFiles`].
pub const FILE_NAMES: [&str; 3] = ["objects", "journal", "meta"];

/// Opens and locks a node's directory, and with `create` makes it (0700) and its files (0600) where
/// they are missing. Nothing in it is followed if it is a link.
///
/// What the page cache holds of the files is written and dropped: after a failed sync it may differ
/// from what the disk has, and recovery must judge by the disk.
///
/// # Errors
/// [`DirectoryError`].
pub fn open_directory(path: &Path, create: bool) -> Result<NodeFiles<RealFile>, DirectoryError> {
    let failed = |source: io::Error| DirectoryError::Io { path: path.to_path_buf(), source };
    let missing = || DirectoryError::Missing { path: path.to_path_buf() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) if create => {
            make_directory(path).map_err(failed)?;
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?
        }
        Err(Errno::NOENT) => return Err(missing()),
        opened => opened.map_err(|error| failed(error.into()))?,
    };
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(DirectoryError::InUse { path: path.to_path_buf() }),
        Err(error) => return Err(failed(error.into())),
    }
    let directory = std::sync::Arc::new(directory);
    let open = |name: &str| match open_file(&directory, name, create) {
        Ok(file) => Ok(RealFile { file, _directory: directory.clone() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
        Err(error) => Err(failed(error)),
    };
    let [objects, journal, meta] = FILE_NAMES;
    let files = NodeFiles { objects: open(objects)?, journal: open(journal)?, meta: open(meta)? };
    if create {
        rustix::fs::fsync(&*directory).map_err(|error| failed(error.into()))?;
    }
    Ok(files)
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    match path.parent().filter(|path| !path.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

fn open_file(directory: &OwnedFd, name: &str, create: bool) -> io::Result<File> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if create {
        flags |= OFlags::CREATE;
    }
    let mode = Mode::RUSR | Mode::WUSR;
    let file = File::from(rustix::fs::openat(directory, name, flags, mode)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{name} is not a file")));
    }
    file.sync_data()?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(file)
}
