//! Reads that go past the page cache, where the file system lets them: what is read once takes nobody's
//! place there.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_setfl};

/// What direct reads must be aligned to, in the file and in memory.
pub(crate) const ALIGNMENT: usize = 4096;

/// Reads a file directly, or through the page cache if it must.
pub(crate) struct DirectReader<'a> {
    file: &'a File,
    is_direct: bool,
    memory: Vec<u8>,
}

impl<'a> DirectReader<'a> {
    /// Turns all further reads of this open file into direct ones, if its file system has such.
    pub(crate) fn new(file: &'a File) -> Self {
        let is_direct = fcntl_setfl(file, OFlags::DIRECT).is_ok();
        Self { file, is_direct, memory: Vec::new() }
    }

    /// Appends a range of the file to `out`.
    ///
    /// # Errors
    /// The disk, or the file ends before it. Then `out` is as it was.
    pub(crate) fn append(&mut self, range: Range<u64>, out: &mut Vec<u8>) -> io::Result<()> {
        let start = range.start / ALIGNMENT as u64 * ALIGNMENT as u64;
        let skip = (range.start - start) as usize;
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let len = usize::try_from(range.end.saturating_sub(range.start)).map_err(too_long)?;
        let whole = (skip + len).next_multiple_of(ALIGNMENT);
        self.memory.resize(self.memory.len().max(whole + ALIGNMENT), 0);
        let buffer = aligned(&mut self.memory, whole);
        match self.file.read_exact_at(buffer, start) {
            Err(error) if self.is_direct && error.kind() == io::ErrorKind::InvalidInput => {
                // A file system that takes the flag and not the read.
                self.is_direct = false;
                fcntl_setfl(self.file, OFlags::empty())?;
                self.file.read_exact_at(buffer, start)?;
            }
            result => result?,
        }
        out.extend(buffer.get(skip..skip + len).unwrap_or_default());
        Ok(())
    }
}

/// The part of `memory` that direct reads can write to.
pub(crate) fn aligned(memory: &mut [u8], len: usize) -> &mut [u8] {
    let skip = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    memory.get_mut(skip..skip + len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_read_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..40_960_u32).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        let mut reader = DirectReader::new(&file);
        for range in [0..0, 0..1, 4095..4097, 8192..40_960, 5..40_000] {
            let mut out = vec![9];
            reader.append(range.clone(), &mut out).unwrap();
            assert_eq!(out.split_off(1), bytes[range.start as usize..range.end as usize]);
        }
        let mut out = Vec::new();
        assert!(reader.append(40_000..50_000, &mut out).is_err());
        assert!(out.is_empty());
    }
}
