//! A cpio archive in the "newc" format, which the kernel unpacks as its first file system
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::path::Path;

use crate::failure::Failure;

/// An archive under construction. Folders above an entry are made as needed.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive {
    /// Adds an empty folder.
    pub(crate) fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for end in ends {
            let Some(prefix) = path.get(..end).filter(|prefix| !prefix.is_empty()) else {
                continue;
            };
            if self.folders.insert(prefix.to_owned()) {
                self.entry(prefix, FOLDER, (0, 0), &[]);
            }
        }
    }

    /// Adds a file, executable for all.
    pub(crate) fn file(&mut self, path: &str, contents: &[u8]) {
        let path = path.trim_matches('/');
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.entry(path, FILE, (0, 0), contents);
    }

    /// Adds a copy of a file of this machine.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> Result<(), Failure> {
        let contents = std::fs::read(from).map_err(Failure::file(from))?;
        self.file(path, &contents);
        Ok(())
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, path: &str, number: (u32, u32)) {
        if let Some((folder, _)) = path.trim_matches('/').rsplit_once('/') {
            self.folder(folder);
        }
        self.entry(path.trim_matches('/'), CHARACTER_DEVICE, number, &[]);
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let (major, minor) = device;
        // inode, mode, uid, gid, links, time, size, device, special device, name length, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, major, minor, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("a", b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("070701"), "{text}");
        assert_eq!(text.get(54..62), Some("00000005"), "the size");
        assert_eq!(text.get(94..102), Some("00000002"), "the name with its NUL");
        assert_eq!(bytes.get(110..112), Some(b"a\0".as_slice()));
        assert_eq!(bytes.get(112..117), Some(b"hello".as_slice()));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_folders_above_a_file_come_first_and_once() {
        let mut archive = Archive::default();
        archive.file("/x/y/1", b"");
        archive.file("/x/y/2", b"");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 5);
        assert!(text.find("x/y\0").unwrap() < text.find("x/y/1\0").unwrap());
    }
}
