//! What kind of KVM this host has, kept per host boot so that a start pays nothing for it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use abi::layout::{PAGE_BYTES, RAM_BASE};
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use crate::elf::{ElfImage, Segment};
use crate::kvm::{self, Exit, KvmError, Machine};
use crate::memory::{Memory, MemoryError};
use crate::{paging, trampoline};

/// The two kinds of KVM that Hypha runs on (`docs/ARCHITECTURE.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvmKind {
    /// VMX or SVM: guest code runs natively at both privilege levels.
    Hardware,
    /// No virtualisation in the CPU: CPL 0 is emulated, CPL 3 is native, `syscall` stays at CPL 3.
    Software,
}

impl KvmKind {
    /// `hardware` or `software`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
        }
    }
}

/// What a start needs to know of the host; constant while the host is up.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// The kind of KVM.
    pub kind: KvmKind,
    /// The ticks of a guest's TSC per millisecond.
    pub tsc_khz: u32,
    /// The CPUID table for guests.
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

/// Why the host can't be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The probe's guest did something that no known KVM does.
    #[error("this KVM is of no known kind: the probe left the guest with {0:?}")]
    Unknown(Exit),
}

impl Host {
    /// Reads the answer from `cache` if it is of this host boot, else probes and keeps it there.
    ///
    /// # Errors
    /// The probe fails. A cache that can't be read or written is only slow.
    pub fn load(kvm: &Kvm, cache: Option<&Path>) -> Result<Self, ProbeError> {
        let boot_id = boot_id();
        let cached = cache.and_then(read_cache).and_then(|bytes| Self::decode(&bytes, &boot_id));
        if let Some(host) = cached {
            return Ok(host);
        }
        let host = Self::probe(kvm)?;
        if let Some(cache) = cache.filter(|_| !boot_id.is_empty()) {
            // A host without a place for it probes at every start.
            write_cache(cache, &host.encode(&boot_id)).ok();
        }
        Ok(host)
    }

    /// Runs one `syscall` instruction on a throw-away vCPU whose stub is a supervisor page: on
    /// hardware it arrives there, on software KVM it faults, as it stays at CPL 3.
    ///
    /// # Errors
    /// No KVM, or one that behaves like neither kind.
    pub fn probe(kvm: &Kvm) -> Result<Self, ProbeError> {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        let cpuid = kvm::supported_cpuid(kvm)?;
        let text = Segment { address: RAM_BASE, len: PAGE_BYTES, execute: true, write: false };
        let image = ElfImage {
            entry: RAM_BASE,
            segments: vec![text],
            writable_start: text.page_end(),
            end: text.page_end(),
        };
        let ram_len = 4 * PAGE_BYTES;
        let memory = Memory::new(ram_len, image.writable_start)?;
        trampoline::write(&memory.system);
        let ram_end = RAM_BASE + ram_len;
        paging::build(&memory.system, &image, image.end, ram_end, KvmKind::Hardware)
            .map_err(|_| ProbeError::Unknown(Exit::Shutdown))?;
        let written = memory.image.write_slice(&SYSCALL, GuestAddress(RAM_BASE));
        assert!(written.is_ok(), "the probe's text lies in its RAM");
        let mut machine = Machine::new(kvm, &memory)?;
        let tsc_khz = machine.tsc_khz()?;
        // Neither SMEP nor SMAP yet: the answer decides whether they may be set.
        machine.set_up(&cpuid, KvmKind::Software, RAM_BASE, ram_end, 0)?;
        let kind = match machine.run()? {
            Exit::Syscall => KvmKind::Hardware,
            Exit::Exception(14) => KvmKind::Software,
            other => return Err(ProbeError::Unknown(other)),
        };
        Ok(Self { kind, tsc_khz, cpuid })
    }

    /// Magic, version, boot id, kind, TSC, CPUID entries of ten 32-bit words, CRC-free: it is read
    /// only from a file that nobody else could write, of this very boot.
    fn encode(&self, boot_id: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.cpuid.len() * ENTRY_LEN);
        bytes.extend_from_slice(CACHE_MAGIC);
        bytes.extend_from_slice(boot_id.as_bytes());
        bytes.push(u8::from(self.kind == KvmKind::Hardware));
        bytes.extend_from_slice(&self.tsc_khz.to_le_bytes());
        for entry in &self.cpuid {
            for word in [
                entry.function,
                entry.index,
                entry.flags,
                entry.eax,
                entry.ebx,
                entry.ecx,
                entry.edx,
            ] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        bytes
    }

    fn decode(bytes: &[u8], boot_id: &str) -> Option<Self> {
        let rest = bytes.strip_prefix(CACHE_MAGIC)?.strip_prefix(boot_id.as_bytes())?;
        if boot_id.len() != BOOT_ID_LEN {
            return None;
        }
        let (kind, rest) = rest.split_first()?;
        let kind = match kind {
            0 => KvmKind::Software,
            1 => KvmKind::Hardware,
            _ => return None,
        };
        let (tsc_khz, entries) = rest.split_first_chunk::<4>()?;
        if entries.is_empty() || !entries.len().is_multiple_of(ENTRY_LEN) {
            return None;
        }
        let cpuid = entries
            .chunks_exact(ENTRY_LEN)
            .map(|entry| {
                let mut words =
                    entry.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_le_bytes));
                let mut next = || words.next().unwrap_or(0);
                kvm_cpuid_entry2 {
                    function: next(),
                    index: next(),
                    flags: next(),
                    eax: next(),
                    ebx: next(),
                    ecx: next(),
                    edx: next(),
                    ..Default::default()
                }
            })
            .collect();
        Some(Self { kind, tsc_khz: u32::from_le_bytes(*tsc_khz), cpuid })
    }
}

const CACHE_MAGIC: &[u8; 8] = b"HYPHOST1";
const BOOT_ID_LEN: usize = 36;
const HEADER_LEN: usize = 8 + BOOT_ID_LEN + 1 + 4;
const ENTRY_LEN: usize = 7 * 4;
const CACHE_BYTES_MAX: u64 = 64 << 10;

/// Where the answer is kept by default: in Hypha's state.
#[must_use]
pub fn default_cache() -> Option<PathBuf> {
    let state = match std::env::var_os("HYPHA_STATE") {
        Some(state) => PathBuf::from(state),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".local/share/hypha"),
    };
    Some(state.join("cache").join("host-v1"))
}

fn boot_id() -> String {
    let mut text = String::new();
    // Without it nothing is cached: the answer must not outlive a kernel.
    match File::open("/proc/sys/kernel/random/boot_id")
        .and_then(|mut f| f.read_to_string(&mut text))
    {
        Ok(_) => text.trim_end().to_owned(),
        Err(_) => String::new(),
    }
}

/// The bytes of the cache, if nobody but us could have written them.
fn read_cache(path: &Path) -> Option<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if !metadata.is_file() || !ours || metadata.mode() & 0o022 != 0 {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(CACHE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Writes beside it and renames, so that a reader sees all or nothing.
fn write_cache(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let draft = path.with_extension(format!("{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&draft)?;
    file.write_all(bytes)?;
    std::fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        let entry = |function| kvm_cpuid_entry2 { function, eax: 7, edx: 9, ..Default::default() };
        Host { kind: KvmKind::Hardware, tsc_khz: 2_300_000, cpuid: vec![entry(0), entry(1)] }
    }

    #[test]
    fn the_cache_is_believed_only_for_the_same_boot() {
        let boot_id = "3d9a8a2e-6f3e-4a07-9a44-0f3c0f6b7f11";
        let bytes = host().encode(boot_id);
        assert_eq!(Host::decode(&bytes, boot_id), Some(host()));
        assert_eq!(Host::decode(&bytes, "3d9a8a2e-6f3e-4a07-9a44-0f3c0f6b7f12"), None);
        assert_eq!(Host::decode(&bytes, ""), None);
        for len in 0..bytes.len() {
            if !(len > HEADER_LEN && (len - HEADER_LEN).is_multiple_of(ENTRY_LEN)) {
                assert_eq!(Host::decode(&bytes[..len], boot_id), None, "{len} bytes");
            }
        }
    }

    #[test]
    fn a_cache_that_others_may_write_is_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("hypha-host-{}", std::process::id()));
        let path = folder.join("cache/host-v1");
        write_cache(&path, b"bytes").unwrap();
        assert_eq!(read_cache(&path), Some(b"bytes".to_vec()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(read_cache(&path), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
