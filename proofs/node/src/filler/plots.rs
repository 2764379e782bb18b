//! The plots that were committed to: each a list of extents, kept for as long as somebody may ask for
//! bytes of it.
//!
//! A challenge names the plot's root of when it was drawn, and has an hour to be answered. An extent
//! of filler that was given up meanwhile is made again from its context: nothing but its place is needed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hypha_chain::B256;
use hypha_chain::tree::{Extent, Plot};

use super::format::{decode_plot, encode_plot};
use super::shelf::{read_at_most, write_whole};

/// How many plots are kept: with one in ten minutes those of half a day, and with one a minute, when
/// shards go, those of more than the hour that a challenge has.
const PLOTS_MAX: usize = 72;
/// The longest list that is read.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// The lists, oldest first.
#[derive(Debug)]
pub struct Plots {
    folder: PathBuf,
    known: Vec<(u64, B256)>,
}

impl Plots {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// The disk.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut known = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_name().to_str().and_then(parse_name) {
                Some(named) => known.push(named),
                // Written when the process ended, or not ours; the latter stays.
                None if entry.path().extension().is_some_and(|it| it == "part") => {
                    fs::remove_file(entry.path())?;
                }
                None => {}
            }
        }
        known.sort_unstable();
        Ok(Self { folder: folder.to_owned(), known })
    }

    /// Keeps a plot; to be done before it is committed to. Returns its root; `None` without an extent.
    ///
    /// # Errors
    /// The disk.
    pub fn keep(&mut self, extents: &[Extent]) -> io::Result<Option<B256>> {
        let Some(root) = Plot::new(extents.to_vec()).map(|plot| plot.root()) else {
            return Ok(None);
        };
        if self.known.last().is_some_and(|(_, last)| *last == root) {
            return Ok(Some(root));
        }
        let number = self.known.last().map_or(0, |(number, _)| number + 1);
        write_whole(&self.path(number, &root), &encode_plot(extents))?;
        self.known.push((number, root));
        while self.known.len() > PLOTS_MAX {
            let (number, root) = self.known.remove(0);
            fs::remove_file(self.path(number, &root))?;
        }
        Ok(Some(root))
    }

    /// The extents that were kept as a plot's; `None` if it is not known here, or its file is damaged.
    /// Whoever makes a plot of them compares its root.
    #[must_use]
    pub fn extents(&self, root: &B256) -> Option<Vec<Extent>> {
        let (number, _) = self.known.iter().rev().find(|(_, known)| known == root)?;
        let bytes = read_at_most(&self.path(*number, root), LIST_BYTES_MAX).ok()?;
        decode_plot(&bytes).ok()
    }

    fn path(&self, number: u64, root: &B256) -> PathBuf {
        self.folder.join(format!("{number:010}-{root:x}"))
    }
}

fn parse_name(name: &str) -> Option<(u64, B256)> {
    let (number, root) = name.split_once('-')?;
    Some((number.parse().ok()?, root.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use hypha_chain::tree::ExtentKind;

    use super::*;

    fn extent(id: u64) -> Extent {
        Extent { kind: ExtentKind::Filler, id, bytes_len: 5, root: B256::repeat_byte(id as u8) }
    }

    #[test]
    fn plots_are_found_again_by_their_roots_and_the_oldest_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let mut plots = Plots::open(folder.path()).unwrap();
        assert_eq!(plots.keep(&[]).unwrap(), None);
        let roots: Vec<B256> = (0..PLOTS_MAX as u64 + 3)
            .map(|count| plots.keep(&(0..=count).map(extent).collect::<Vec<_>>()).unwrap().unwrap())
            .collect();
        let again = Plots::open(folder.path()).unwrap();
        assert_eq!(again.extents(&roots[2]), None);
        assert_eq!(again.extents(&roots[3]).unwrap().len(), 4);
        assert_eq!(again.extents(roots.last().unwrap()).unwrap().len(), PLOTS_MAX + 3);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), PLOTS_MAX);
    }

    #[test]
    fn a_damaged_list_is_no_plot() {
        let folder = tempfile::tempdir().unwrap();
        let mut plots = Plots::open(folder.path()).unwrap();
        let root = plots.keep(&[extent(1)]).unwrap().unwrap();
        let path = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(plots.extents(&root), None);
    }
}
