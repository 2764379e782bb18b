//! The guest's memory map. Guest-virtual and guest-physical addresses are the same.
//!
//! ```text
//! 0x00_0000  absent (a null pointer faults)
//! 0x10_0000  system slot, 1 MiB, in no device's memory map
//!            boot page, strings        user, read-only
//!            doorbell, upcall, log     user, read/write, no-execute
//!            gates, their stack, GDT,  supervisor only
//!            IDT, TSS
//!            syscall stub, its stack   user or supervisor, as the kind of KVM needs
//!            page tables               not mapped at all
//! 0x20_0000  RAM: image (text r-x, constants r--, data rw-), guard page, stack, queues, heap
//! ```

/// The bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

/// The bytes of a large page.
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// The first byte of the system slot.
pub const SYSTEM_BASE: u64 = 0x10_0000;
/// The bytes of the system slot.
pub const SYSTEM_BYTES: u64 = 0x10_0000;

/// The boot page ([`crate::BootPage`]).
pub const BOOT_PAGE: u64 = SYSTEM_BASE;
/// Arguments and environment.
pub const STRINGS: u64 = SYSTEM_BASE + 0x1000;
/// The bytes for arguments and environment together.
pub const STRINGS_BYTES: u64 = 0x7000;
/// The doorbell page ([`crate::DoorbellPage`]).
pub const DOORBELL_PAGE: u64 = SYSTEM_BASE + 0x8000;
/// The upcall area ([`crate::UpcallArea`]).
pub const UPCALL_AREA: u64 = SYSTEM_BASE + 0x9000;
/// The log area: bytes that the next call writes out.
pub const LOG_AREA: u64 = SYSTEM_BASE + 0xa000;
/// The bytes of the log area.
pub const LOG_BYTES: u64 = 0x2000;

/// The gates page: exception entries and the `int $4` gate. Supervisor, read/execute.
pub const GATES_PAGE: u64 = SYSTEM_BASE + 0x1_0000;
/// The stack of the gates (TSS.RSP0 is its end). Supervisor, between two absent pages.
pub const GATE_STACK: u64 = SYSTEM_BASE + 0x1_2000;
/// The global descriptor table.
pub const GDT: u64 = SYSTEM_BASE + 0x1_4000;
/// The interrupt descriptor table.
pub const IDT: u64 = SYSTEM_BASE + 0x1_5000;
/// The task state segment.
pub const TSS: u64 = SYSTEM_BASE + 0x1_6000;
/// The `syscall` stub page (LSTAR).
pub const SYSCALL_STUB: u64 = SYSTEM_BASE + 0x1_8000;
/// The stack of the `syscall` stub, between two absent pages.
pub const SYSCALL_STACK: u64 = SYSTEM_BASE + 0x1_a000;
/// The page tables, the root first. Mapped nowhere.
pub const PAGE_TABLES: u64 = SYSTEM_BASE + 0x2_0000;
/// The end of the room for page tables.
pub const PAGE_TABLES_END: u64 = SYSTEM_BASE + SYSTEM_BYTES;

/// The first byte of RAM, and the address that images are linked at.
pub const RAM_BASE: u64 = 0x20_0000;
/// The least RAM that a VM may have.
pub const RAM_BYTES_MIN: u64 = 2 << 20;
/// The most RAM that a VM may have (what the room for page tables can map).
pub const RAM_BYTES_MAX: u64 = 128 << 30;
/// The bytes of the guest's first stack; an absent page lies below it.
pub const STACK_BYTES: u64 = 256 << 10;
