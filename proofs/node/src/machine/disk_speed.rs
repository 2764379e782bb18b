//! How fast a folder's disk is: direct reads of a file whose name is removed as soon as it is open, so
//! that nothing stays behind if this process is killed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use ring::digest::{SHA256, digest};
use rustix::fs::{Advice, OFlags, fadvise};

use crate::clock::{monotonic_ns, random_u64};
use crate::direct::{ALIGNMENT, aligned};

/// The file that is read: more than a small cache of a device holds.
pub const FILE_BYTES_MAX: u64 = 256 << 20;
/// No more than this share of what is free is written.
const SHARE_OF_FREE: u64 = 20;
/// Bytes of one read: what a pulse reads to open a leaf.
const READ_BYTES: usize = 64 << 10;
/// Bytes of one read in a row.
const ROW_BYTES: usize = 1 << 20;
/// Reads at drawn places: as many as a pulse does.
const SEEKS: usize = 64;
/// Each of the two measurements ends after this time, with what it has.
const TIME_NS_MAX: u64 = 3_000_000_000;

/// What was measured of a disk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiskSpeed {
    /// The median time of 64 KiB read at a drawn place, in nanoseconds.
    pub seek_ns: u64,
    /// The longest of them.
    pub seek_ns_max: u64,
    /// Bytes in a second, read in a row.
    pub read_per_s: u64,
    /// Bytes in a second, written in a row and synced.
    pub write_per_s: u64,
    /// Whether the page cache was gone round. Some file systems can't; what is measured there may be
    /// memory.
    pub direct: bool,
}

impl DiskSpeed {
    /// Measures in `folder`, of which `free` bytes are free; `None` if that is too little for it.
    ///
    /// # Errors
    /// The folder can't be written to, or read from.
    pub fn measure(folder: &Path, free: u64) -> io::Result<Option<Self>> {
        let len = (free / SHARE_OF_FREE).min(FILE_BYTES_MAX) / ROW_BYTES as u64 * ROW_BYTES as u64;
        if len == 0 {
            return Ok(None);
        }
        let path = folder.join(format!(".measure-{:016x}", random_u64()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(&path);
        let reader = match direct {
            Ok(file) => Ok((file, true)),
            Err(_) => File::open(&path).map(|file| (file, false)),
        };
        std::fs::remove_file(&path)?;
        let (reader, direct) = reader?;
        let (written, write_per_s) = write(&file, len)?;
        // Without direct reads, this is what can be done against the cache.
        fadvise(&reader, 0, None, Advice::DontNeed)?;
        let mut seeks = seeks(&reader, written)?;
        seeks.sort_unstable();
        let median = seeks.get(seeks.len() / 2).copied().unwrap_or_default();
        let seek_ns_max = seeks.last().copied().unwrap_or_default();
        let read_per_s = row(&reader, written)?;
        Ok(Some(Self { seek_ns: median, seek_ns_max, read_per_s, write_per_s, direct }))
    }
}

/// Writes bytes that can't be compressed. Returns how many, and how many in a second.
fn write(mut file: &File, len: u64) -> io::Result<(u64, u64)> {
    let start = monotonic_ns();
    let mut block = vec![0; ROW_BYTES];
    let mut written = 0;
    while written < len && (written == 0 || monotonic_ns() - start < TIME_NS_MAX) {
        for (to, number) in block.chunks_mut(32).zip(written..) {
            let hash = digest(&SHA256, &number.to_be_bytes());
            to.copy_from_slice(hash.as_ref().get(..to.len()).unwrap_or_default());
        }
        file.write_all(&block)?;
        written += ROW_BYTES as u64;
    }
    file.sync_all()?;
    Ok((written, per_second(written, monotonic_ns() - start)))
}

fn seeks(file: &File, len: u64) -> io::Result<Vec<u64>> {
    let places = (len / READ_BYTES as u64).max(1);
    let start = monotonic_ns();
    let mut memory = vec![0; READ_BYTES + ALIGNMENT];
    let buffer = aligned(&mut memory, READ_BYTES);
    let mut times = Vec::with_capacity(SEEKS);
    while times.len() < SEEKS {
        let before = monotonic_ns();
        file.read_exact_at(buffer, random_u64() % places * READ_BYTES as u64)?;
        times.push(monotonic_ns() - before);
        if monotonic_ns() - start > TIME_NS_MAX {
            break;
        }
    }
    Ok(times)
}

fn row(file: &File, len: u64) -> io::Result<u64> {
    let start = monotonic_ns();
    let mut memory = vec![0; ROW_BYTES + ALIGNMENT];
    let buffer = aligned(&mut memory, ROW_BYTES);
    let mut read = 0;
    while read < len && monotonic_ns() - start < TIME_NS_MAX {
        file.read_exact_at(buffer, read)?;
        read += ROW_BYTES as u64;
    }
    Ok(per_second(read, monotonic_ns() - start))
}

fn per_second(bytes: u64, time_ns: u64) -> u64 {
    let per_second = u128::from(bytes) * 1_000_000_000 / u128::from(time_ns.max(1));
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_a_disk_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let speed = DiskSpeed::measure(folder.path(), 64 << 20).unwrap().unwrap();
        assert!(speed.read_per_s > 0 && speed.write_per_s > 0 && speed.seek_ns_max > 0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(DiskSpeed::measure(folder.path(), 1 << 20).unwrap(), None);
    }
}
