//! The contract between a guest and its VMM, version 1. `docs/guest-abi.md` draws it byte by byte.
//!
//! A guest runs wholly at CPL 3. It starts at its ELF entry point with `rdi` = [`layout::BOOT_PAGE`]
//! and `rsp` = the top of its stack. There are no interrupts and no I/O at CPL 3: the one way out
//! is `int $4` with a [`Call`] in `eax` and its arguments in the [`DoorbellPage`]; every register
//! is preserved. All integers are little-endian.
//!
//! **The record/replay rule.** In record mode ([`BOOT_FLAG_RECORD`]) the VMM writes guest memory
//! (used rings, buffers, [`DoorbellPage::events`]) only while the vCPU is stopped in a call, so the
//! sequence of (call ordinal, what was written) is the whole input of a run. Version 1 always does
//! so; a fast mode that publishes at any time needs a new flag.
#![no_std]
#![forbid(unsafe_code)]

pub mod layout;

use core::mem::{offset_of, size_of};

/// The first eight bytes of the boot page: `HYPHAVM1`.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"HYPHAVM1");

/// The version of this contract. A guest refuses to start on any other.
pub const ABI_VERSION: u32 = 1;

/// [`BootPage::flags`]: memory is published only while the vCPU is stopped in a call.
pub const BOOT_FLAG_RECORD: u32 = 1;

/// How many devices the boot page has room for.
pub const DEVICES_MAX: usize = 8;

/// How many queues the boot page has room for; queue *i* is bit *i* of [`DoorbellPage::events`].
pub const QUEUES_MAX: usize = 32;

/// How many bytes of device configuration space a device entry has room for.
pub const DEVICE_CONFIG_MAX: usize = 64;

/// What a guest asks of its VMM: the value of `eax` at `int $4`. Every call also drains the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// Serves all queues, sets [`DoorbellPage::events`], and returns at once.
    Ring = 1,
    /// Serves all queues and returns when an event is pending or
    /// [`DoorbellPage::timeout_ns`] has passed.
    Wait = 2,
    /// Drains the log and does nothing else.
    Log = 3,
    /// Ends the VM with [`DoorbellPage::status`].
    Exit = 4,
    /// Ends the VM as crashed; the log holds the panic message. Registers tell where.
    Panic = 5,
    /// Arms the timer of the upcall: [`UpcallArea::timer_ns`] from now, 0 disarms it.
    ArmUpcall = 6,
}

impl Call {
    /// The call with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Ring),
            2 => Some(Self::Wait),
            3 => Some(Self::Log),
            4 => Some(Self::Exit),
            5 => Some(Self::Panic),
            6 => Some(Self::ArmUpcall),
            _ => None,
        }
    }
}

/// [`DoorbellPage::timeout_ns`]: no deadline.
pub const WAIT_FOREVER: u64 = u64::MAX;

/// The process exit codes of `vmm` and `hypha run`; 0 to 123 are the workload's own.
pub mod exit_code {
    /// The highest exit code that a workload may choose.
    pub const WORKLOAD_MAX: i32 = 123;
    /// The spec or the command line is wrong; nothing was started.
    pub const BAD_SPEC: i32 = 2;
    /// This host can't: no KVM, no memory, or the sandbox was refused.
    pub const HOST_CANNOT: i32 = 125;
    /// The guest crashed: a panic or a fault.
    pub const GUEST_CRASHED: i32 = 126;
    /// The guest broke the device contract.
    pub const CONTRACT_BROKEN: i32 = 127;
}

/// What the VMM tells the guest at start. Read-only for the guest; written once, before the first
/// instruction. Lies at [`layout::BOOT_PAGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct BootPage {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`].
    pub abi_version: u32,
    /// `BOOT_FLAG_*`.
    pub flags: u32,
    /// The first byte of guest RAM; the image lies at its start.
    pub ram_base: u64,
    /// The bytes of guest RAM.
    pub ram_len: u64,
    /// The first byte of RAM that nothing else uses: the heap, readable and writable.
    pub heap_base: u64,
    /// The bytes of the heap.
    pub heap_len: u64,
    /// Ticks of `rdtsc` per millisecond; constant while the VM runs.
    pub tsc_khz: u64,
    /// CLOCK_REALTIME when the vCPU was started, nanoseconds since 1970 (UTC).
    pub wall_clock_ns: u64,
    /// Fresh random bytes, never used for another VM or start.
    pub random_seed: [u8; 32],
    /// The arguments, NUL-terminated one after the other; the program's own name is not there.
    pub args_address: u64,
    /// The environment, NUL-terminated `NAME=value` one after the other.
    pub env_address: u64,
    /// The bytes at `args_address`.
    pub args_len: u32,
    /// The bytes at `env_address`.
    pub env_len: u32,
    /// The read-only root file system image, mapped; 0 if there is none.
    pub root_image_base: u64,
    /// The bytes of the root image.
    pub root_image_len: u64,
    /// How many entries of `devices` are set.
    pub device_count: u32,
    /// How many entries of `queues` are set.
    pub queue_count: u32,
    /// The devices.
    pub devices: [DeviceEntry; DEVICES_MAX],
    /// The queues of all devices, those of one device next to each other.
    pub queues: [QueueEntry; QUEUES_MAX],
}

/// A virtio device in the boot page: nothing is probed or negotiated at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct DeviceEntry {
    /// The virtio device ID (virtio 1.2 §5).
    pub device_id: u32,
    /// The index in [`BootPage::queues`] of the device's queue 0.
    pub first_queue: u32,
    /// How many queues the device has.
    pub queue_count: u32,
    /// How many bytes of `config` are the device's.
    pub config_len: u32,
    /// The features, already chosen; those of [`virtio::OPT_IN`] only once the driver has written
    /// them to [`DoorbellPage::accepted`].
    pub features: u64,
    /// The device configuration structure (virtio 1.2 §5.x.4).
    pub config: [u8; DEVICE_CONFIG_MAX],
}

/// A split virtqueue (virtio 1.2 §2.7), laid out and zeroed in guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct QueueEntry {
    /// The address of the descriptor table.
    pub descriptor_table: u64,
    /// The address of the available ring.
    pub avail_ring: u64,
    /// The address of the used ring.
    pub used_ring: u64,
    /// How many descriptors the queue has.
    pub size: u32,
    /// Always 0.
    pub reserved: u32,
}

/// The arguments and results of calls. Guest-writable; lies at [`layout::DOORBELL_PAGE`]. The VMM
/// reads each field once per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct DoorbellPage {
    /// Guest to VMM, [`Call::Wait`]: how long to wait at most; [`WAIT_FOREVER`] for no limit.
    pub timeout_ns: u64,
    /// VMM to guest: bit *i* is set if queue *i* may have new used entries since the last call.
    pub events: u64,
    /// VMM to guest: how often the vCPU has left the guest so far (this call included).
    pub exits: u64,
    /// Guest to VMM: how many bytes of the log area are to be written out; the VMM sets it to 0.
    pub log_len: u32,
    /// Guest to VMM, [`Call::Exit`]: 0 to 123.
    pub status: u32,
    /// Guest to VMM: by the device's place in [`BootPage::devices`], which features of
    /// [`virtio::OPT_IN`] its driver takes. Read at each [`Call::Wait`] and [`Call::Ring`].
    pub accepted: [u64; DEVICES_MAX],
}

/// Where the VMM saves an interrupted guest before it sends it to [`UpcallArea::entry`].
/// Guest-writable; lies at [`layout::UPCALL_AREA`].
///
/// An upcall is delivered only while [`UpcallArea::entry`] is not 0 and [`UpcallArea::pending`] is
/// 0: the guest handles one at a time. The VMM stores the registers, sets `pending` to the cause
/// and continues at `entry` with `rsp` lowered below the red zone (128 bytes, System V ABI) and
/// aligned to 16. The guest resumes with its own `iretq` at CPL 3 and sets `pending` to 0 first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct UpcallArea {
    /// Guest to VMM: where an upcall enters; 0 for none.
    pub entry: u64,
    /// VMM to guest: why ([`UPCALL_TIMER`]); guest to VMM: 0 when it can take another.
    pub pending: u64,
    /// Guest to VMM, [`Call::ArmUpcall`]: nanoseconds until the upcall.
    pub timer_ns: u64,
    /// Always 0.
    pub reserved: u64,
    /// VMM to guest: the interrupted registers.
    pub saved: SavedRegisters,
}

/// [`UpcallArea::pending`]: the armed timer ran out.
pub const UPCALL_TIMER: u64 = 1;

/// The general registers of an interrupted guest, in the order of `struct kvm_regs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
#[expect(missing_docs, reason = "each field is the register of its name")]
pub struct SavedRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// virtio-net features and device IDs that both sides name.
pub mod virtio {
    /// The device ID of a network card (virtio 1.2 §5.1).
    pub const DEVICE_ID_NET: u32 = 1;
    /// The device ID of a block device (virtio 1.2 §5.2).
    pub const DEVICE_ID_BLOCK: u32 = 2;
    /// VIRTIO_NET_F_CSUM: the driver may leave TCP's and UDP's checksum to the device.
    pub const NET_F_CSUM: u64 = 1 << 0;
    /// VIRTIO_NET_F_GUEST_CSUM: the driver takes packets whose checksum is left to it.
    pub const NET_F_GUEST_CSUM: u64 = 1 << 1;
    /// VIRTIO_NET_F_GUEST_TSO4: the driver takes super-frames of TCP over IPv4.
    pub const NET_F_GUEST_TSO4: u64 = 1 << 7;
    /// VIRTIO_NET_F_GUEST_TSO6: the driver takes super-frames of TCP over IPv6.
    pub const NET_F_GUEST_TSO6: u64 = 1 << 8;
    /// VIRTIO_NET_F_HOST_TSO4: the driver may send super-frames of TCP over IPv4.
    pub const NET_F_HOST_TSO4: u64 = 1 << 11;
    /// VIRTIO_NET_F_HOST_TSO6: the driver may send super-frames of TCP over IPv6.
    pub const NET_F_HOST_TSO6: u64 = 1 << 12;
    /// VIRTIO_NET_F_MRG_RXBUF: a frame for the driver may take several receive buffers.
    pub const NET_F_MRG_RXBUF: u64 = 1 << 15;
    /// The features of a network card that change what its driver gets: offered to every driver,
    /// and used for those that accept them.
    pub const OPT_IN: u64 =
        NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_MRG_RXBUF;
    /// VIRTIO_F_VERSION_1.
    pub const F_VERSION_1: u64 = 1 << 32;
    /// VIRTIO_F_IN_ORDER: buffers are used in the order in which they were made available. A
    /// block device that offers it also promises that a FLUSH covers every write that was made
    /// available before it, so a durable write is one batch.
    pub const F_IN_ORDER: u64 = 1 << 35;
}

const _: () = {
    assert!(size_of::<DeviceEntry>() == 88);
    assert!(size_of::<QueueEntry>() == 32);
    assert!(offset_of!(BootPage, random_seed) == 0x40);
    assert!(offset_of!(BootPage, args_address) == 0x60);
    assert!(offset_of!(BootPage, device_count) == 0x88);
    assert!(offset_of!(BootPage, devices) == 0x90);
    assert!(offset_of!(BootPage, queues) == 0x350);
    assert!(size_of::<BootPage>() == 0x750);
    assert!(size_of::<BootPage>() <= layout::PAGE_BYTES as usize);
    assert!(offset_of!(DoorbellPage, accepted) == 32);
    assert!(size_of::<DoorbellPage>() == 32 + 8 * DEVICES_MAX);
    assert!(size_of::<UpcallArea>() == 32 + 18 * 8);
};
