//! Disks: which device a folder is on, of which kind it is, and how much of it is free.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disk_speed::DiskSpeed;
use super::sources::Sources;

/// What moves in a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskClass {
    /// Nothing.
    Ssd,
    /// Heads and platters.
    Hdd,
}

/// The disk that a folder is on.
#[derive(Debug, Clone, PartialEq)]
pub struct Disk {
    /// The folder.
    pub folder: PathBuf,
    /// The whole device, such as `sda`; `None` for a file system without one (memory, network).
    pub device: Option<String>,
    /// What the device calls itself.
    pub model: Option<String>,
    /// What the kernel takes it for. Behind a hypervisor or a RAID card this is often wrong: the
    /// measured seek time says more.
    pub class: Option<DiskClass>,
    /// The whole device, in bytes.
    pub device_bytes: Option<u64>,
    /// The file system, in bytes.
    pub bytes: u64,
    /// What of that a user without privileges can still take.
    pub free: u64,
    /// The file system's kind, such as `ext4`.
    pub kind: Option<String>,
    /// What was measured, if it was.
    pub speed: Option<DiskSpeed>,
}

impl Disk {
    /// Looks at the disk that `folder` is on. Measures nothing.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn of(folder: &Path, sources: &Sources) -> io::Result<Self> {
        let folder = fs::canonicalize(folder)?;
        let numbers = fs::metadata(&folder)?.dev();
        let numbers = (rustix::fs::major(numbers), rustix::fs::minor(numbers));
        let space = rustix::fs::statvfs(&folder)?;
        let mounts = sources.text("proc/self/mountinfo").unwrap_or_default();
        let mount = mount_of(&mounts, &folder);
        // btrfs and overlays give their files numbers that no device has.
        let place = device_of(sources, numbers)
            .or_else(|| device_of(sources, mount.as_ref().and_then(|mount| mount.numbers)?));
        let in_device =
            |what: &str| place.as_ref().map(|device| format!("sys/block/{device}/{what}"));
        let number = |what| in_device(what).and_then(|path| sources.number(&path));
        let sectors = number("size").and_then(|sectors| u64::try_from(sectors).ok());
        let class = match number("queue/rotational") {
            Some(0) => Some(DiskClass::Ssd),
            Some(1) => Some(DiskClass::Hdd),
            _ => None,
        };
        Ok(Self {
            model: in_device("device/model").and_then(|path| sources.text(&path)),
            device_bytes: sectors.and_then(|sectors| sectors.checked_mul(512)),
            class,
            bytes: space.f_blocks.saturating_mul(space.f_frsize),
            free: space.f_bavail.saturating_mul(space.f_frsize),
            kind: mount.map(|mount| mount.kind),
            device: place,
            folder,
            speed: None,
        })
    }
}

/// The whole device of these numbers: of a partition, the disk that it is a part of.
fn device_of(sources: &Sources, numbers: (u32, u32)) -> Option<String> {
    let wanted = format!("{}:{}", numbers.0, numbers.1);
    for disk in sources.names("sys/block") {
        let folder = format!("sys/block/{disk}");
        if sources.text(&format!("{folder}/dev")).as_deref() == Some(&wanted) {
            return Some(disk);
        }
        // Partitions are folders whose names begin with the disk's.
        for part in sources.names(&folder).iter().filter(|part| part.starts_with(&disk)) {
            if sources.text(&format!("{folder}/{part}/dev")).as_deref() == Some(&wanted) {
                return Some(disk);
            }
        }
    }
    None
}

/// A line of `mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    numbers: Option<(u32, u32)>,
    kind: String,
}

/// The mount that a path is in: the last of those with the longest mount point.
fn mount_of(mounts: &str, path: &Path) -> Option<Mount> {
    let mut best: Option<(usize, Mount)> = None;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut left = left.split(' ').skip(2);
        let (Some(numbers), Some(point)) = (left.next(), left.nth(1)) else { continue };
        let point = unescaped(point);
        if !path.starts_with(&point) || best.as_ref().is_some_and(|(len, _)| *len > point.len()) {
            continue;
        }
        let numbers = numbers.split_once(':');
        let numbers = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let kind = right.split(' ').next().unwrap_or_default().to_owned();
        best = Some((point.len(), Mount { numbers, kind }));
    }
    best.map(|(_, mount)| mount)
}

/// Spaces, tabs, line ends and backslashes are in octal there.
fn unescaped(text: &str) -> String {
    let mut out = text.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_in_the_innermost_mount() {
        let mounts = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 27 8:17 / /data/a\\040b rw,noatime shared:3 - xfs /dev/sdb1 rw\n\
            nonsense\n31 27 0:44 / /data rw - btrfs /dev/sdc rw";
        let of = |path: &str| mount_of(mounts, Path::new(path)).unwrap();
        assert_eq!(of("/data/a b/c"), Mount { numbers: Some((8, 17)), kind: "xfs".to_owned() });
        assert_eq!(of("/data/a"), Mount { numbers: Some((0, 44)), kind: "btrfs".to_owned() });
        assert_eq!(of("/database").kind, "ext4");
        assert_eq!(mount_of("", Path::new("/")), None);
    }
}
