//! Stores in directories: `shard` and, on m + 1 of them, `journal`.
//!
//! A directory is locked (flock on the directory itself) as long as its store exists. All names are
//! used while the volume is opened; afterwards there are only two descriptors per store.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::store::{Store, StoreFile};
use crate::volume::{OpenError, Options, Randomness, Volume};

/// Why directories can't be the stores of a volume. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// Another process (or another volume of this one) has it open.
    #[error("the volume in {} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The same directory was given twice: losing it would lose two shards.
    #[error("{} and {} are the same directory", first.display(), second.display())]
    Same {
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

/// Opens the volume in `directories` (one for each shard, in shard order), or makes it.
///
/// Missing directories are made. Call it before the process confines itself.
///
/// # Errors
/// [`OpenError`], with [`OpenError::Directory`] if the directories themselves are refused.
pub fn open_directories(
    directories: &[PathBuf],
    options: &Options,
    random: &Randomness,
) -> Result<Volume<DirStore>, OpenError> {
    let stores = DirStore::open_all(directories)?;
    Volume::open_or_create(stores, options, random)
}

/// A store in a directory.
#[derive(Debug)]
pub struct DirStore {
    path: PathBuf,
    state: DirState,
    shard: Option<File>,
    journal: Option<File>,
}

#[derive(Debug)]
enum DirState {
    /// Open and locked.
    Open(OwnedFd),
    /// It doesn't exist (yet).
    Missing,
    /// It exists and can't be used.
    Broken(Errno),
}

impl DirStore {
    /// Opens and locks the directories that exist, and changes nothing.
    ///
    /// # Errors
    /// [`DirError`] if one is in use or given twice. One that can't be opened is lost, not an
    /// error.
    pub fn open_all(directories: &[PathBuf]) -> Result<Vec<Self>, DirError> {
        let mut identities: Vec<(PathBuf, PathBuf)> = Vec::new();
        for path in directories {
            let real = real_path(path);
            if let Some((first, _)) = identities.iter().find(|(_, other)| *other == real) {
                return Err(DirError::Same { first: first.clone(), second: path.clone() });
            }
            identities.push((path.clone(), real));
        }
        let mut stores: Vec<Self> = Vec::new();
        let mut inodes: Vec<(PathBuf, u64, u64)> = Vec::new();
        for path in directories {
            let state = open_directory(path);
            if let DirState::Open(directory) = &state
                && let Ok(stat) = rustix::fs::fstat(directory)
            {
                let same = |(_, device, inode): &&(PathBuf, u64, u64)| {
                    (*device, *inode) == (stat.st_dev, stat.st_ino)
                };
                if let Some((first, ..)) = inodes.iter().find(same) {
                    return Err(DirError::Same { first: first.clone(), second: path.clone() });
                }
                inodes.push((path.clone(), stat.st_dev, stat.st_ino));
                lock(directory).map_err(|_| DirError::InUse { path: path.clone() })?;
            }
            let mut store = Self { path: path.clone(), state, shard: None, journal: None };
            store.open_files();
            stores.push(store);
        }
        Ok(stores)
    }

    fn open_files(&mut self) {
        let DirState::Open(directory) = &self.state else { return };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        for file in [StoreFile::Shard, StoreFile::Journal] {
            match rustix::fs::openat(directory, name(file), flags, Mode::empty()) {
                Ok(descriptor) => match file {
                    StoreFile::Shard => self.shard = Some(File::from(descriptor)),
                    StoreFile::Journal => self.journal = Some(File::from(descriptor)),
                },
                Err(Errno::NOENT) => {}
                Err(error) => {
                    self.state = DirState::Broken(error);
                    return;
                }
            }
        }
    }

    fn file(&self, file: StoreFile) -> io::Result<&File> {
        let file = match file {
            StoreFile::Shard => self.shard.as_ref(),
            StoreFile::Journal => self.journal.as_ref(),
        };
        file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn directory(&mut self) -> io::Result<&OwnedFd> {
        if let DirState::Missing = self.state {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
            if let Some(parent) = self.path.parent().filter(|path| !path.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
            self.state = open_directory(&self.path);
            if let DirState::Open(directory) = &self.state {
                lock(directory)?;
            }
        }
        match &self.state {
            DirState::Open(directory) => Ok(directory),
            DirState::Missing => Err(io::Error::from(io::ErrorKind::NotFound)),
            DirState::Broken(error) => Err((*error).into()),
        }
    }
}

impl Store for DirStore {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self, file: StoreFile) -> io::Result<Option<u64>> {
        if let DirState::Broken(error) = self.state {
            return Err(error.into());
        }
        match self.file(file) {
            Ok(file) => Ok(Some(file.metadata()?.len())),
            Err(_) => Ok(None),
        }
    }

    fn create(&mut self, file: StoreFile, len: u64, head: &[u8]) -> io::Result<()> {
        let name = name(file);
        let temporary = format!("{name}.new");
        let directory = self.directory()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let descriptor = rustix::fs::openat(directory, &temporary, flags | OFlags::NOFOLLOW, mode)?;
        let made = File::from(descriptor);
        made.set_len(len)?;
        made.write_all_at(head, 0)?;
        made.sync_all()?;
        rustix::fs::renameat(directory, &temporary, directory, name)?;
        rustix::fs::fsync(directory)?;
        match file {
            StoreFile::Shard => self.shard = Some(made),
            StoreFile::Journal => self.journal = Some(made),
        }
        Ok(())
    }

    fn set_aside(&mut self) -> io::Result<()> {
        const TRIES: u32 = 1000;
        self.shard = None;
        self.journal = None;
        let directory = self.directory()?;
        for number in 0..TRIES {
            let aside = |file| format!("{}.set-aside-{number}", name(file));
            let taken = [StoreFile::Shard, StoreFile::Journal]
                .map(|file| rustix::fs::statat(directory, aside(file), AtFlags::SYMLINK_NOFOLLOW))
                .iter()
                .any(Result::is_ok);
            if taken {
                continue;
            }
            for file in [StoreFile::Shard, StoreFile::Journal] {
                match rustix::fs::renameat(directory, name(file), directory, aside(file)) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            return Ok(());
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }

    fn read_at(&self, file: StoreFile, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file(file)?.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, file: StoreFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(file)?.write_all_at(bytes, offset)
    }

    fn sync(&mut self, file: StoreFile) -> io::Result<()> {
        self.file(file)?.sync_data()
    }

    fn punch(&mut self, file: StoreFile, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(self.file(file)?, flags, offset, len)?)
    }
}

fn name(file: StoreFile) -> &'static str {
    match file {
        StoreFile::Shard => "shard",
        StoreFile::Journal => "journal",
    }
}

fn open_directory(path: &Path) -> DirState {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(directory) => DirState::Open(directory),
        Err(Errno::NOENT) => DirState::Missing,
        Err(error) => DirState::Broken(error),
    }
}

fn lock(directory: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive)?)
}

/// The path without links, as far as it exists: two names of a directory that is still to be made
/// must be told to be the same, too.
fn real_path(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
            real_path(parent).join(name)
        }
        (_, Some(name)) => std::env::current_dir().unwrap_or_default().join(name),
        _ => path.to_path_buf(),
    }
}
