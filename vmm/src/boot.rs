//! What lies in guest memory before the first instruction: the image, the queues, the boot page.

use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use abi::layout::{BOOT_PAGE, PAGE_BYTES, RAM_BASE, STACK_BYTES, STRINGS, STRINGS_BYTES};
use abi::{
    ABI_VERSION, BOOT_FLAG_RECORD, BOOT_MAGIC, BootPage, DEVICE_CONFIG_MAX, DEVICES_MAX,
    DeviceEntry, QUEUES_MAX, QueueEntry,
};
use linux_loader::loader::{KernelLoader, elf::Elf};
use vdev::{GuestRam, QueueLayout};
use vm_memory::{Bytes, GuestAddress};

use crate::elf::{ElfError, ElfImage, HEADERS_MAX};

/// Why a guest can't be laid out.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The image can't be read.
    #[error("cannot read the image: {0}")]
    Read(#[from] std::io::Error),
    /// The image breaks a rule.
    #[error("the image is no guest: {0}")]
    Elf(#[from] ElfError),
    /// The loader refuses it.
    #[error("the image cannot be loaded: {0}")]
    Load(#[from] linux_loader::loader::Error),
    /// RAM is too small for image, stack and queues.
    #[error("{ram_len} bytes of memory are too few: image, stack and queues alone need {needed}")]
    TooSmall {
        /// The bytes of RAM.
        ram_len: u64,
        /// The bytes needed.
        needed: u64,
    },
    /// Arguments and environment are too long.
    #[error("arguments and environment take {len} bytes, of at most {STRINGS_BYTES}")]
    Strings {
        /// Their bytes.
        len: usize,
    },
    /// An argument or variable holds a NUL byte.
    #[error("an argument or environment variable holds a NUL byte")]
    Nul,
    /// More devices or queues than the boot page has room for.
    #[error("{0} is more than a guest can have ({DEVICES_MAX} devices, {QUEUES_MAX} queues)")]
    Devices(String),
}

/// An image file with its checked headers.
#[derive(Debug)]
pub struct Image {
    /// The open file.
    pub file: File,
    /// Its headers.
    pub elf: ElfImage,
}

impl Image {
    /// Reads and checks the headers of `file` for RAM of `ram_len` bytes.
    ///
    /// # Errors
    /// The file can't be read or is no guest.
    pub fn read(file: File, ram_len: u64) -> Result<Self, BootError> {
        let file_len = file.metadata()?.len();
        let mut headers = [0; HEADERS_MAX];
        let wanted = usize::try_from(file_len).unwrap_or(HEADERS_MAX).min(HEADERS_MAX);
        let (headers, _) = headers.split_at_mut(wanted);
        file.read_exact_at(headers, 0)?;
        let elf = ElfImage::parse(headers, file_len, ram_len)?;
        Ok(Self { file, elf })
    }

    /// Copies the segments to `memory` (text and RAM).
    ///
    /// # Errors
    /// The file changed or can't be read.
    pub fn load(&mut self, memory: &GuestRam) -> Result<(), BootError> {
        Elf::load(memory, None, &mut self.file, Some(GuestAddress(RAM_BASE)))?;
        Ok(())
    }
}

/// Where things lie in RAM behind the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamPlan {
    /// The absent page below the stack.
    pub stack_guard: u64,
    /// The stack pointer at start.
    pub stack_top: u64,
    /// The queues of all devices, in order.
    pub queues: Vec<QueueLayout>,
    /// The first byte of the heap.
    pub heap_base: u64,
    /// The end of RAM.
    pub ram_end: u64,
}

impl RamPlan {
    /// Plans RAM of `ram_len` bytes for `image` and queues of these sizes.
    ///
    /// # Errors
    /// [`BootError::TooSmall`].
    pub fn new(
        image: &ElfImage,
        ram_len: u64,
        queue_sizes: impl IntoIterator<Item = u16>,
    ) -> Result<Self, BootError> {
        let stack_guard = image.end;
        let stack_top = stack_guard + PAGE_BYTES + STACK_BYTES;
        let mut next = stack_top;
        let mut queues = Vec::new();
        for size in queue_sizes {
            let layout = QueueLayout::at(next, size);
            next = layout.end().next_multiple_of(64);
            queues.push(layout);
        }
        let heap_base = next.next_multiple_of(PAGE_BYTES);
        let ram_end = RAM_BASE + ram_len;
        if heap_base > ram_end {
            return Err(BootError::TooSmall { ram_len, needed: heap_base - RAM_BASE });
        }
        Ok(Self { stack_guard, stack_top, queues, heap_base, ram_end })
    }
}

/// One device as the boot page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootDevice {
    /// The virtio device ID.
    pub device_id: u32,
    /// The features, already chosen.
    pub features: u64,
    /// The device configuration structure.
    pub config: Vec<u8>,
    /// How many queues it has.
    pub queue_count: usize,
}

/// What else the boot page says.
#[derive(Debug, Clone)]
pub struct BootInfo<'a> {
    /// Ticks of the guest's TSC per millisecond.
    pub tsc_khz: u32,
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub wall_clock_ns: u64,
    /// Fresh random bytes.
    pub random_seed: [u8; 32],
    /// The arguments.
    pub args: &'a [String],
    /// The environment.
    pub env: &'a [(String, String)],
    /// The devices.
    pub devices: &'a [BootDevice],
}

/// Writes boot page, arguments and environment to the system slot.
///
/// # Errors
/// Something doesn't fit.
pub fn write_boot_page(
    system: &GuestRam,
    plan: &RamPlan,
    info: &BootInfo<'_>,
) -> Result<(), BootError> {
    let args = joined(info.args.iter().map(String::as_str))?;
    let env: Vec<String> = info.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let env = joined(env.iter().map(String::as_str))?;
    let strings_len = args.len() + env.len();
    if strings_len as u64 > STRINGS_BYTES {
        return Err(BootError::Strings { len: strings_len });
    }
    if info.devices.len() > DEVICES_MAX || plan.queues.len() > QUEUES_MAX {
        let (devices, queues) = (info.devices.len(), plan.queues.len());
        return Err(BootError::Devices(format!("{devices} devices with {queues} queues")));
    }
    let mut page = Page { bytes: [0; PAGE_BYTES as usize] };
    page.u64(offset_of!(BootPage, magic), BOOT_MAGIC);
    page.u32(offset_of!(BootPage, abi_version), ABI_VERSION);
    page.u32(offset_of!(BootPage, flags), BOOT_FLAG_RECORD);
    page.u64(offset_of!(BootPage, ram_base), RAM_BASE);
    page.u64(offset_of!(BootPage, ram_len), plan.ram_end - RAM_BASE);
    page.u64(offset_of!(BootPage, heap_base), plan.heap_base);
    page.u64(offset_of!(BootPage, heap_len), plan.ram_end - plan.heap_base);
    page.u64(offset_of!(BootPage, tsc_khz), u64::from(info.tsc_khz));
    page.u64(offset_of!(BootPage, wall_clock_ns), info.wall_clock_ns);
    page.put(offset_of!(BootPage, random_seed), &info.random_seed);
    page.u64(offset_of!(BootPage, args_address), STRINGS);
    page.u64(offset_of!(BootPage, env_address), STRINGS + args.len() as u64);
    page.u32(offset_of!(BootPage, args_len), args.len() as u32);
    page.u32(offset_of!(BootPage, env_len), env.len() as u32);
    page.u32(offset_of!(BootPage, device_count), info.devices.len() as u32);
    page.u32(offset_of!(BootPage, queue_count), plan.queues.len() as u32);
    let mut first_queue = 0;
    for (number, device) in info.devices.iter().enumerate() {
        page.device(number, device, first_queue)?;
        first_queue += device.queue_count as u32;
    }
    for (number, queue) in plan.queues.iter().enumerate() {
        page.queue(number, queue);
    }
    let mut strings = args;
    strings.extend_from_slice(&env);
    let written = system
        .write_slice(&page.bytes, GuestAddress(BOOT_PAGE))
        .and_then(|()| system.write_slice(&strings, GuestAddress(STRINGS)));
    assert!(written.is_ok(), "boot page and strings lie within the system slot");
    Ok(())
}

/// The strings, NUL-terminated one after the other.
fn joined<'a>(strings: impl Iterator<Item = &'a str>) -> Result<Vec<u8>, BootError> {
    let mut bytes = Vec::new();
    for string in strings {
        if string.contains('\0') {
            return Err(BootError::Nul);
        }
        bytes.extend_from_slice(string.as_bytes());
        bytes.push(0);
    }
    Ok(bytes)
}

/// A page under construction. Every offset is a constant of `abi`, whose sizes are asserted there.
struct Page {
    bytes: [u8; PAGE_BYTES as usize],
}

impl Page {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn device(
        &mut self,
        number: usize,
        device: &BootDevice,
        first_queue: u32,
    ) -> Result<(), BootError> {
        let at = offset_of!(BootPage, devices) + number * size_of::<DeviceEntry>();
        let config_len = device.config.len();
        if config_len > DEVICE_CONFIG_MAX {
            return Err(BootError::Devices(format!("{config_len} bytes of device configuration")));
        }
        self.u32(at + offset_of!(DeviceEntry, device_id), device.device_id);
        self.u32(at + offset_of!(DeviceEntry, first_queue), first_queue);
        self.u32(at + offset_of!(DeviceEntry, queue_count), device.queue_count as u32);
        self.u32(at + offset_of!(DeviceEntry, config_len), config_len as u32);
        self.u64(at + offset_of!(DeviceEntry, features), device.features);
        self.put(at + offset_of!(DeviceEntry, config), &device.config);
        Ok(())
    }

    fn queue(&mut self, number: usize, queue: &QueueLayout) {
        let at = offset_of!(BootPage, queues) + number * size_of::<QueueEntry>();
        self.u64(at + offset_of!(QueueEntry, descriptor_table), queue.descriptor_table);
        self.u64(at + offset_of!(QueueEntry, avail_ring), queue.avail_ring);
        self.u64(at + offset_of!(QueueEntry, used_ring), queue.used_ring);
        self.u32(at + offset_of!(QueueEntry, size), u32::from(queue.size));
    }
}
