//! Linux in a virtual machine of QEMU makes a file system on an empty volume, fills it, trims it and
//! has it checked: once over NBD and once over vhost-user-blk.
//!
//! Debian's kernel and busybox are unpacked, not installed; `cargo xtask check` fetches them into
//! the target folder (`HYPHA_DEBIAN` names another one). QEMU emulates the CPU: hardware is not
//! needed, and a software KVM would be slower.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::{Server, folder, has};

const GUEST_BYTES: u64 = 256 << 20;

/// The kernel's modules for the disk, in the order of loading.
const MODULES: [&str; 6] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];

/// What the guest does. It ends with the word that the test waits for, or without it.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/sbin:/bin
fail() { echo "GUEST-FAILED: $1"; busybox poweroff -f; busybox sleep 1000; }
busybox mkdir -p /proc /sys /dev /mnt /tmp /etc
busybox mount -t proc proc /proc
busybox --install -s /bin || fail busybox
mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; ln -s /proc/mounts /etc/mtab
for module in /modules/*; do insmod $module || fail $module; done
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] || sleep 0.2; done
cd /sys/block/vda/queue
echo "queue: logical $(cat logical_block_size) physical $(cat physical_block_size)" \
    "discard $(cat discard_max_bytes) zeroes $(cat write_zeroes_max_bytes) cache $(cat write_cache)"
[ "$(cat discard_max_bytes)" != 0 ] || fail "no discard"
[ "$(cat write_zeroes_max_bytes)" != 0 ] || fail "no write zeroes"
[ "$(cat write_cache)" = "write back" ] || fail "no flush"
cd /
/sbin/mke2fs -t ext4 -F -q -E discard,lazy_itable_init=0 /dev/vda || fail mkfs
/sbin/e2fsck -f -n /dev/vda || fail "e2fsck of the new file system"
mount -t ext4 -o discard /dev/vda /mnt || fail mount
for n in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/mnt/$n bs=256k count=16 2>/dev/null || fail dd; done
mkdir /mnt/many; for n in $(seq 200); do echo "file $n" > /mnt/many/$n; done
sync
sha256sum /mnt/[1-8] /mnt/many/* > /tmp/before
rm /mnt/2 /mnt/4; grep -v '/mnt/[24]$' /tmp/before > /tmp/kept
fstrim -v /mnt || fail fstrim
umount /mnt || fail umount
/sbin/e2fsck -f -n /dev/vda || fail "e2fsck after use"
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt || fail "second mount"
sha256sum -c -s /tmp/kept || fail "the files changed"
fallocate -l 8M /mnt/zeroes && rm /mnt/zeroes || fail fallocate
umount /mnt || fail "second umount"
/sbin/e2fsck -f -n /dev/vda || fail "e2fsck in the end"
echo GUEST-PASSED
poweroff -f
"#;

/// An archive in the "newc" cpio format, which the kernel unpacks as its first file system.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<PathBuf>,
}

impl Archive {
    fn file(&mut self, path: &str, content: &[u8]) {
        let parent = Path::new(path).parent().unwrap();
        for folder in parent.ancestors().collect::<Vec<_>>().into_iter().rev() {
            let new = !folder.as_os_str().is_empty() && self.folders.insert(folder.to_owned());
            if new {
                self.entry(&folder.to_string_lossy(), 0o040_755, &[]);
            }
        }
        self.entry(path, 0o100_755, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let name_len = path.len() as u32 + 1;
        let fields =
            [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finished(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// The first file below `folder` whose name starts with `prefix`.
fn find(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let named = |path: &&PathBuf| {
        path.is_file() && path.file_name().unwrap().to_string_lossy().starts_with(prefix)
    };
    let folders = entries.iter().filter(|path| path.is_dir() && !path.is_symlink());
    entries
        .iter()
        .find(named)
        .cloned()
        .or_else(|| folders.map(|path| find(path, prefix)).find(Option::is_some)?)
}

/// Kernel and first file system, or `None` (and a word about it) if something is missing.
fn machine(into: &Path) -> Option<(PathBuf, PathBuf)> {
    let tools = ["qemu-system-x86_64", "mke2fs", "e2fsck"];
    if !tools.into_iter().all(has) {
        return None;
    }
    let debian = std::env::var_os("HYPHA_DEBIAN").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("xtask/debian"),
        PathBuf::from,
    );
    let kernel = find(&debian.join("kernel"), "vmlinuz-");
    let busybox = find(&debian.join("busybox/bin"), "busybox");
    let (Some(kernel), Some(busybox)) = (kernel, busybox) else {
        println!("SKIPPED: no kernel in {} (cargo xtask check fetches it)", debian.display());
        return None;
    };
    let mut archive = Archive::default();
    archive.file("init", INIT.as_bytes());
    archive.file("bin/busybox", &fs::read(busybox).unwrap());
    for (place, name) in MODULES.iter().enumerate() {
        let module = find(&debian.join("kernel"), &format!("{name}.ko"))?;
        // The kernel unpacks compressed ones by itself, if it is of a release that has them.
        archive.file(&format!("modules/{place}-{name}.ko"), &fs::read(module).unwrap());
    }
    for tool in ["mke2fs", "e2fsck"] {
        let path = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|folder| folder.join(tool))
            .find(|path| path.is_file())?;
        archive.file(&format!("sbin/{tool}"), &fs::read(&path).unwrap());
        for library in libraries(&path) {
            let place = library.strip_prefix('/').unwrap();
            if archive.folders.insert(PathBuf::from(format!("have {place}"))) {
                archive.file(place, &fs::read(&library).unwrap());
            }
        }
    }
    let initial = into.join("initramfs");
    fs::write(&initial, archive.finished()).unwrap();
    Some((kernel, initial))
}

/// What a dynamically linked program needs, by `ldd`.
fn libraries(program: &Path) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let path =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    lines.lines().filter_map(path).collect()
}

/// Runs the guest with more arguments for its disk. What it said.
fn boot(machine: &(PathBuf, PathBuf), disk: &[&str]) -> String {
    let (kernel, initial) = machine;
    let command_line = "console=ttyS0 quiet panic=-1 rdinit=/init no_timer_check";
    let output = Command::new("timeout")
        .args(["300", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "512"])
        .args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initial)
        .args(["-append", command_line])
        .args(disk)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    let passed = said.contains("GUEST-PASSED") && !said.contains("GUEST-FAILED");
    assert!(passed, "{said}\n{told}");
    println!("{said}");
    said.into_owned()
}

#[test]
fn a_linux_guest_makes_and_checks_a_file_system_over_nbd() {
    let folder = folder();
    let Some(machine) = machine(folder.path()) else { return };
    let server = Server::start("nbd_volume", folder.path(), GUEST_BYTES, &[]);
    let drive = format!(
        "driver=nbd,node-name=disk,server.type=unix,server.path={},discard=unmap,\
         detect-zeroes=unmap",
        server.socket().display()
    );
    boot(&machine, &["-blockdev", &drive, "-device", "virtio-blk-pci,drive=disk"]);
    server.end();
}

#[test]
fn a_linux_guest_makes_and_checks_a_file_system_over_vhost_user() {
    let folder = folder();
    let Some(machine) = machine(folder.path()) else { return };
    let server = Server::start("vhost_user_volume", folder.path(), GUEST_BYTES, &[]);
    let socket = format!("socket,id=disk,path={}", server.socket().display());
    let arguments = [
        "-smp",
        "2",
        "-object",
        "memory-backend-memfd,id=ram,size=512M,share=on",
        "-numa",
        "node,memdev=ram",
        "-chardev",
        &socket,
        "-device",
        "vhost-user-blk-pci,chardev=disk,num-queues=2",
    ];
    let first = boot(&machine, &arguments);
    assert!(!first.contains("contains a ext4 file system"), "the volume was not empty");
    // The next front-end finds the file system that the last one left.
    let second = boot(&machine, &arguments);
    assert!(second.contains("contains a ext4 file system"), "{second}");
    server.end();
}
