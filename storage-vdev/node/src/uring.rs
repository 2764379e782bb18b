//! A node's file over io_uring: whole pages go to the disk past the page cache while the node goes
//! on; a sync waits for them first.
//!
//! Parts of pages (slots of the index) go through the page cache as in [`RealFile`]. Where io_uring
//! or direct I/O is denied, everything does.
//!
//! Memory: the pages of writes on their way, at most [`FLYING_BYTES_MAX`], and a buffer as
//! large as a shard for the next one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::{Mode, OFlags};
use storage_vdev::files::{NodeFile, NodeFiles, RealFile};

/// What direct I/O is aligned to, and the least write that goes past the page cache.
const PAGE: usize = 4096;
/// Writes are kept until there are so many bytes of them (or somebody waits): the kernel joins
/// neighbours that are handed over together.
const SUBMIT_BYTES: usize = 256 << 10;
const ENTRIES: u32 = 64;
/// The most bytes of buffers that are kept for later writes, enough for one shard: fresh memory
/// costs a page fault for every page.
const SPARE_BYTES_MAX: usize = 5 << 18;
/// Smaller ones are not.
const SPARE_BYTES_MIN: usize = 32 << 10;
/// The most bytes of writes on their way.
pub const FLYING_BYTES_MAX: usize = 4 << 20;

/// A write on its way.
#[derive(Debug)]
struct Flying {
    offset: u64,
    len: usize,
    /// The bytes, from a multiple of a page on. The kernel reads them until the write completes:
    /// they are neither moved nor freed before.
    buffer: Vec<u8>,
}

/// The ring and what it carries.
struct Direct {
    ring: IoUring,
    /// The file, opened for direct I/O.
    file: OwnedFd,
    flying: BTreeMap<u64, Flying>,
    flying_bytes: usize,
    /// Buffers of writes that have completed, and the sum of their capacities.
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
    /// Bytes of writes that the kernel doesn't know of yet.
    kept_bytes: usize,
    next: u64,
    /// A write that failed after the node was told that it was taken: the next sync says so.
    failed: Option<io::Error>,
}

/// A file over io_uring.
pub struct UringFile {
    file: RealFile,
    direct: Option<Direct>,
}

impl std::fmt::Debug for UringFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flying = self.direct.as_ref().map(|direct| direct.flying.len());
        f.debug_struct("UringFile").field("file", &self.file).field("flying", &flying).finish()
    }
}

impl UringFile {
    /// The file with a ring of its own, or without one where that is denied.
    #[must_use]
    pub fn new(file: RealFile) -> Self {
        let direct = Direct::new(file.file().as_raw_fd())
            .inspect_err(|error| tracing::debug!(%error, "no io_uring: files are written in turn"))
            .ok();
        Self { file, direct }
    }

    /// A node's files: objects over io_uring; journals and promises, whose writes are small and
    /// waited for at once, as they are.
    #[must_use]
    pub fn of_node(files: NodeFiles<RealFile>) -> NodeFiles<Self> {
        let plain = |file| Self { file, direct: None };
        NodeFiles {
            objects: Self::new(files.objects),
            journal: plain(files.journal),
            meta: plain(files.meta),
        }
    }

    /// Whether it writes past the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }
}

impl Direct {
    fn new(file: RawFd) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = rustix::fs::open(format!("/proc/self/fd/{file}"), flags, Mode::empty())?;
        Ok(Self {
            ring: IoUring::new(ENTRIES)?,
            file,
            flying: BTreeMap::new(),
            flying_bytes: 0,
            spare: Vec::new(),
            spare_bytes: 0,
            kept_bytes: 0,
            next: 1,
            failed: None,
        })
    }

    /// Hands a write over.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        while self.flying.len() + 1 > ENTRIES as usize
            || (self.flying_bytes + bytes.len() > FLYING_BYTES_MAX && !self.flying.is_empty())
        {
            self.wait_for_one()?;
        }
        let mut buffer = self.buffer(bytes.len() + PAGE);
        let start = buffer.as_ptr().align_offset(PAGE);
        if start >= PAGE {
            return Err(io::Error::other("a buffer can't be aligned"));
        }
        buffer.resize(start, 0);
        buffer.extend_from_slice(bytes);
        let aligned = buffer.get(start..).unwrap_or_default();
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let number = self.next;
        let write = opcode::Write::new(types::Fd(self.file.as_raw_fd()), aligned.as_ptr(), len)
            .offset(offset)
            .build()
            .user_data(number);
        self.next += 1;
        self.flying_bytes += bytes.len();
        self.kept_bytes += bytes.len();
        // From here on the ring may hold its address: it stays until the write has completed.
        self.flying.insert(number, Flying { offset, len: bytes.len(), buffer });
        if let Err(error) = self.push(&write) {
            self.flying.remove(&number);
            self.flying_bytes -= bytes.len();
            return Err(error);
        }
        if self.kept_bytes >= SUBMIT_BYTES {
            self.kept_bytes = 0;
            self.ring.submit()?;
        }
        Ok(())
    }

    /// An empty buffer with room for `len` bytes.
    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let Some(place) = self.spare.iter().rposition(|one| one.capacity() >= len) else {
            return Vec::with_capacity(len);
        };
        let mut buffer = self.spare.swap_remove(place);
        self.spare_bytes -= buffer.capacity();
        buffer.clear();
        buffer
    }

    /// Puts an entry into the submission queue.
    #[expect(unsafe_code, reason = "the kernel reads the buffer that an entry names")]
    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        let mut queue = self.ring.submission();
        // SAFETY: the buffer of a write lies on the heap in a `Vec` that `self.flying` owns and
        // nobody touches until its completion is reaped (or `drop` has waited for it), so its
        // address is valid for as long as the kernel may read it. The descriptor is open as long as
        // the ring: `self` owns both.
        let pushed = unsafe { queue.push(entry) };
        pushed.map_err(io::Error::other)
    }

    /// Waits until at least one of the entries on their way has completed.
    fn wait_for_one(&mut self) -> io::Result<()> {
        self.kept_bytes = 0;
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.reap();
        Ok(())
    }

    fn reap(&mut self) {
        let Self { ring, flying, flying_bytes, spare, spare_bytes, failed, .. } = self;
        for done in ring.completion() {
            let result = done.result();
            let Some(write) = flying.remove(&done.user_data()) else { continue };
            *flying_bytes -= write.len;
            let room = SPARE_BYTES_MAX - *spare_bytes;
            if (SPARE_BYTES_MIN..=room).contains(&write.buffer.capacity()) {
                *spare_bytes += write.buffer.capacity();
                spare.push(write.buffer);
            }
            if result < 0 {
                failed.get_or_insert_with(|| io::Error::from_raw_os_error(-result));
            } else if usize::try_from(result) != Ok(write.len) {
                failed.get_or_insert_with(|| io::ErrorKind::WriteZero.into());
            }
        }
    }

    /// Waits for the writes on their way that touch a range.
    fn settle(&mut self, offset: u64, len: usize) -> io::Result<()> {
        let end = offset + len as u64;
        while self
            .flying
            .values()
            .any(|write| write.offset < end && offset < write.offset + write.len as u64)
        {
            self.wait_for_one()?;
        }
        Ok(())
    }

    /// Syncs behind all writes on their way. The sync is a call of its own: the ring would have a
    /// thread of the kernel's wait for it, and that one would have to be woken, and wake this one.
    fn sync(&mut self) -> io::Result<()> {
        while !self.flying.is_empty() {
            self.wait_for_one()?;
        }
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok(rustix::fs::fdatasync(&self.file)?),
        }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        while !self.flying.is_empty() {
            if let Err(error) = self.wait_for_one() {
                // The kernel may still read the buffers: they stay for good.
                tracing::error!(%error, "writes on their way can't be waited for");
                std::mem::forget(std::mem::take(&mut self.flying));
            }
        }
    }
}

impl NodeFile for UringFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if let Some(direct) = &mut self.direct {
            direct.settle(offset, buffer.len())?;
        }
        self.file.read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let whole = offset.is_multiple_of(PAGE as u64) && bytes.len().is_multiple_of(PAGE);
        match &mut self.direct {
            None => self.file.write_at(offset, bytes),
            Some(_) if bytes.is_empty() => Ok(()),
            Some(direct) => {
                direct.settle(offset, bytes.len())?;
                if whole { direct.write(offset, bytes) } else { self.file.write_at(offset, bytes) }
            }
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        match &mut self.direct {
            Some(direct) => direct.sync(),
            None => self.file.sync(),
        }
    }

    fn allocate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if let Some(direct) = &mut self.direct {
            direct.settle(offset, usize::try_from(len).unwrap_or(usize::MAX))?;
        }
        self.file.punch(offset, len)
    }
}
