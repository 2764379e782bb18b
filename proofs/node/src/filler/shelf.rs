//! One folder of filler: an extent is a file, and beside it lies the file with its hashes.
//!
//! ```text
//! FOLDER/device             the number that its extents have in their ids
//!       /0000000012         an extent: its labels and nothing else
//!       /0000000012.tree    its hashes over 64 KiB, and whom it was made for
//!       /0000000012.part    one that was being written when the process ended; removed
//! ```
//!
//! An extent is there when both files are: the bytes are synced before the hashes are renamed into
//! place, so a kill at any instant leaves whole extents and rubbish that is known as such.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hypha_chain::B256;
use hypha_chain::tree::{Extent, ExtentKind};
use hypha_proofs::binding::Binding;
use hypha_proofs::label::{COUNT_MAX, LABEL_BYTES};
use hypha_proofs::store::{ExtentTree, GROUP_BYTES};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::format::{FormatError, decode_tree, encode_tree, tree_bytes_max};

/// The most extents of one folder.
pub const EXTENTS_MAX: u32 = 1 << 20;
const DEVICE_FILE: &str = "device";
const DEVICE_MAGIC: &str = "hypha filler 1";

/// Why a folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A file or the folder itself.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file that says its number.
    #[error("{0} does not say which device this is: restore it, or remove the whole folder")]
    Device(PathBuf),
    /// Another process.
    #[error("{0} is used by another process")]
    Busy(PathBuf),
}

/// What was wrong with a folder when it was opened; the extents are gone and will be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotten {
    /// The extent.
    pub number: u32,
    /// Why its hashes are of no use; `None` if its bytes have another length.
    pub reason: Option<FormatError>,
}

/// An extent that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The root of the audit tree over its bytes.
    pub root: B256,
    /// Its bytes.
    pub bytes_len: u64,
}

/// Where the files of a folder are, and for whom they are made. Reading and writing them takes no lock.
#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
    binding: Binding,
    salt: B256,
    device: u32,
}

/// A folder of filler, for one node and salt. It is locked for as long as this value lives.
#[derive(Debug)]
pub struct Shelf {
    files: Files,
    extents: BTreeMap<u32, Kept>,
    _lock: File,
}

impl Shelf {
    /// Opens a folder, or makes it. `device` is the number that a new one gets: a drawn one, so that no
    /// two folders of a node have the same. Files that are of no use are removed.
    ///
    /// # Errors
    /// [`ShelfError`].
    pub fn open(
        folder: &Path,
        binding: &Binding,
        salt: &B256,
        device: u32,
    ) -> Result<(Self, Vec<Rotten>), ShelfError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| ShelfError::Io { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
        let lock = lock(folder).map_err(at(folder))?;
        let lock = lock.ok_or_else(|| ShelfError::Busy(folder.to_owned()))?;
        let path = folder.join(DEVICE_FILE);
        let device = match fs::read_to_string(&path) {
            Ok(text) => parse_device(&text).ok_or(ShelfError::Device(path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_whole(&path, format!("{DEVICE_MAGIC}\n{device}\n").as_bytes())
                    .map_err(at(&path))?;
                device
            }
            Err(error) => return Err(at(&path)(error)),
        };
        let files = Files { folder: folder.to_owned(), binding: *binding, salt: *salt, device };
        let mut shelf = Self { files, extents: BTreeMap::new(), _lock: lock };
        let rotten = shelf.look().map_err(at(folder))?;
        Ok((shelf, rotten))
    }

    /// Its files.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// What is there, by number.
    #[must_use]
    pub fn extents(&self) -> &BTreeMap<u32, Kept> {
        &self.extents
    }

    /// Bytes of all extents.
    #[must_use]
    pub fn bytes_len(&self) -> u64 {
        self.extents.values().map(|kept| kept.bytes_len).sum()
    }

    /// The extents as a plot lists them.
    pub fn listed(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter().map(|(number, kept)| Extent {
            kind: ExtentKind::Filler,
            id: self.files.id(*number),
            bytes_len: kept.bytes_len,
            root: kept.root,
        })
    }

    /// The lowest number that no extent has and `taken` does not name; `None` if the folder is full.
    #[must_use]
    pub fn vacant(&self, taken: impl Fn(u32) -> bool) -> Option<u32> {
        (0..EXTENTS_MAX).find(|number| !self.extents.contains_key(number) && !taken(*number))
    }

    /// Bytes that others may still take on this file system.
    ///
    /// # Errors
    /// The system doesn't tell.
    pub fn free(&self) -> io::Result<u64> {
        let space = rustix::fs::statvfs(&self.files.folder)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// Counts an extent that [`Files::write`] has written.
    pub fn insert(&mut self, number: u32, kept: Kept) {
        self.extents.insert(number, kept);
    }

    /// Frees the room of an extent.
    ///
    /// # Errors
    /// The disk. The extent is not counted any more in any case.
    pub fn remove(&mut self, number: u32) -> io::Result<()> {
        self.extents.remove(&number);
        // First the hashes: bytes without them are rubbish, hashes without bytes would be a loss.
        remove_if_there(&self.files.tree_path(number))?;
        remove_if_there(&self.files.path(number))
    }

    /// Finds what is there, and removes what is of no use.
    fn look(&mut self) -> io::Result<Vec<Rotten>> {
        let mut rotten = Vec::new();
        let mut trees = BTreeMap::new();
        let mut bytes = BTreeMap::new();
        for entry in fs::read_dir(&self.files.folder)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let (stem, kind) = name.split_once('.').unwrap_or((&name, ""));
            let Some(number) = parse_number(stem) else { continue };
            match kind {
                "" => _ = bytes.insert(number, entry.metadata()?.len()),
                "tree" => _ = trees.insert(number, ()),
                // Written when a process ended.
                "part" | "tree.part" => fs::remove_file(entry.path())?,
                _ => {}
            }
        }
        for (number, len) in bytes {
            // Synced and not yet described: the process ended between the two.
            if trees.remove(&number).is_none() {
                fs::remove_file(self.files.path(number))?;
                continue;
            }
            match self.described(number, len) {
                Ok(kept) => _ = self.extents.insert(number, kept),
                Err(reason) => {
                    rotten.push(Rotten { number, reason });
                    self.remove(number)?;
                }
            }
        }
        for number in trees.into_keys() {
            rotten.push(Rotten { number, reason: None });
            self.remove(number)?;
        }
        Ok(rotten)
    }

    fn described(&self, number: u32, len: u64) -> Result<Kept, Option<FormatError>> {
        if len > COUNT_MAX * LABEL_BYTES as u64 {
            return Err(None);
        }
        let bytes = read_at_most(&self.files.tree_path(number), tree_bytes_max(len));
        let bytes = bytes.map_err(|_| Some(FormatError::Length))?;
        let tree = decode_tree(&self.files.context(number), &bytes).map_err(Some)?;
        if tree.bytes_len() != len {
            return Err(None);
        }
        Ok(Kept { root: tree.root(), bytes_len: len })
    }
}

impl Files {
    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The number that its extents have in the upper half of their ids.
    #[must_use]
    pub fn device(&self) -> u32 {
        self.device
    }

    /// An extent's id in a plot.
    #[must_use]
    pub fn id(&self, number: u32) -> u64 {
        u64::from(self.device) << 32 | u64::from(number)
    }

    /// The context of an extent's labels.
    #[must_use]
    pub fn context(&self, number: u32) -> B256 {
        self.binding.filler(self.device, number, &self.salt)
    }

    /// The file of an extent's bytes.
    #[must_use]
    pub fn path(&self, number: u32) -> PathBuf {
        self.folder.join(format!("{number:010}"))
    }

    fn tree_path(&self, number: u32) -> PathBuf {
        self.folder.join(format!("{number:010}.tree"))
    }

    /// Writes an extent. When this returns, it is there after a power loss too.
    ///
    /// # Errors
    /// The disk; then nothing of it is there.
    pub fn write(&self, number: u32, bytes: &[u8], tree: &ExtentTree) -> io::Result<Kept> {
        let (path, part) = (self.path(number), self.folder.join(format!("{number:010}.part")));
        let written = write_synced(&part, bytes).and_then(|()| fs::rename(&part, &path));
        if let Err(error) = written {
            // What is left of it takes room that somebody may need; if it can't be removed either, the
            // next opening tries again.
            _ = fs::remove_file(&part);
            return Err(error);
        }
        write_whole(&self.tree_path(number), &encode_tree(&self.context(number), tree))?;
        Ok(Kept { root: tree.root(), bytes_len: tree.bytes_len() })
    }

    /// The hashes of an extent of so many bytes, from the disk.
    ///
    /// # Errors
    /// The disk, or what it has lost.
    pub fn tree(&self, number: u32, bytes_len: u64) -> io::Result<ExtentTree> {
        let bytes = read_at_most(&self.tree_path(number), tree_bytes_max(bytes_len))?;
        let tree = decode_tree(&self.context(number), &bytes);
        tree.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Reads a range of an extent's bytes.
    ///
    /// # Errors
    /// The disk, or the extent is shorter.
    pub fn read(&self, number: u32, range: Range<u64>) -> io::Result<Vec<u8>> {
        read_range(&File::open(self.path(number))?, range)
    }

    /// Whether an extent's bytes are those that its hashes are over: all of them, or one 64 KiB.
    ///
    /// # Errors
    /// There is no such extent.
    pub fn is_whole(&self, number: u32, kept: &Kept, group: Option<usize>) -> io::Result<bool> {
        let tree = match self.tree(number, kept.bytes_len) {
            Ok(tree) if tree.root() == kept.root => tree,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(false),
        };
        let groups = tree.groups().len();
        let range = group.map_or(0..groups, |group| group % groups..group % groups + 1);
        let file = File::open(self.path(number))?;
        for group in range {
            let start = (group * GROUP_BYTES) as u64;
            let end = (start + GROUP_BYTES as u64).min(tree.bytes_len());
            // A sector that can't be read, or an end that came too early, is as good as changed.
            if !read_range(&file, start..end).is_ok_and(|bytes| tree.has_group(group, &bytes)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn read_range(file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// Writes a file so that it is there whole or not at all.
///
/// # Errors
/// The disk.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!("{name}.part"));
    write_synced(&part, bytes)?;
    fs::rename(&part, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Locks a folder for as long as the value lives; `None` if another process has it.
///
/// # Errors
/// The disk, or there is no such folder.
pub(crate) fn lock(folder: &Path) -> io::Result<Option<File>> {
    let lock = File::open(folder)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads a file that has so many bytes at most.
///
/// # Errors
/// The disk, or it is longer.
pub(crate) fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other("longer than such a file can be"));
    }
    Ok(bytes)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn parse_number(text: &str) -> Option<u32> {
    let is_number = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && *number < EXTENTS_MAX)
}

fn parse_device(text: &str) -> Option<u32> {
    let (magic, rest) = text.split_once('\n')?;
    rest.trim_end_matches('\n').parse().ok().filter(|_| magic == DEVICE_MAGIC)
}
