//! The number of a node's announcements: persisted before it is used, so that it never recurs.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::daemon::NodeError;

/// The last number that was given out.
pub(crate) struct Sequence {
    file: PathBuf,
    last: u64,
}

impl Sequence {
    /// Reads the number from `file`; a node's first is 0.
    pub(crate) fn open(file: &Path) -> Result<Self, NodeError> {
        let failed = |source| NodeError::State { path: file.to_owned(), source };
        let last = match fs::read_to_string(file) {
            Ok(text) => text.trim().parse().map_err(|_| {
                let reason = format!("{:?} is not a number of announcements", text.trim());
                failed(io::Error::new(io::ErrorKind::InvalidData, reason))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { file: file.to_owned(), last })
    }

    /// The next number, at least `wanted`. It is on disk when this returns.
    pub(crate) fn next(&mut self, wanted: u64) -> Result<u64, NodeError> {
        let next = self.last.saturating_add(1).max(wanted);
        let failed = |source| NodeError::State { path: self.file.clone(), source };
        write_whole(&self.file, next.to_string().as_bytes()).map_err(failed)?;
        self.last = next;
        Ok(next)
    }
}

/// Replaces a file so that it has the old content or the new one, whatever happens.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_never_recurs_not_even_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sequence");
        let mut sequence = Sequence::open(&file).unwrap();
        assert_eq!((sequence.next(0).unwrap(), sequence.next(0).unwrap()), (1, 2));
        assert_eq!(sequence.next(10).unwrap(), 10);
        let mut sequence = Sequence::open(&file).unwrap();
        assert_eq!((sequence.next(5).unwrap(), sequence.next(0).unwrap()), (11, 12));
        fs::write(&file, "eleven").unwrap();
        assert!(Sequence::open(&file).is_err(), "a damaged file is not taken for a fresh one");
    }
}
