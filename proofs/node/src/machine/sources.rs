//! Where facts are read: `/proc` and `/sys`, or a folder with a recording of them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The most bytes of one file: `/proc/cpuinfo` of a thousand threads has about 1.5 MiB.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// The most entries of one folder.
const NAMES_MAX: usize = 4096;

/// A tree with `proc` and `sys` in it.
#[derive(Debug, Clone)]
pub struct Sources {
    root: PathBuf,
}

impl Sources {
    /// This machine's.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self::recorded(Path::new("/"))
    }

    /// A recording that lies under `root`.
    #[must_use]
    pub fn recorded(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// A file's text without the white space at its ends; `None` if it is not there, empty, no text, or
    /// longer than any such file is.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let file = File::open(self.root.join(path)).ok()?;
        let mut text = String::new();
        // Files of /proc and /sys have no length before they are read.
        file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text).ok()?;
        let is_whole = text.len() as u64 <= TEXT_BYTES_MAX && !text.trim().is_empty();
        is_whole.then(|| text.trim().to_owned())
    }

    /// A file that holds one number.
    pub(super) fn number(&self, path: &str) -> Option<i64> {
        self.text(path)?.parse().ok()
    }

    /// Whether something is there.
    pub(super) fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// The entries of a folder, sorted.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join(path)) else { return Vec::new() };
        let names =
            entries.take(NAMES_MAX).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}
