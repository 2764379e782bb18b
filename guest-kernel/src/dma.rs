//! Memory that a device reads and writes: buffers, and the rings of a virtqueue.
//!
//! A device gets at memory by address, behind the compiler's back. Two rules make that sound, and
//! all that needs `unsafe` for them is in this file:
//!
//! - A [`DmaBuffer`] is owned by exactly one side. [`crate::virtio::Queue`] takes it by value when
//!   it's posted and gives it back when the device has used it; in between nobody can name it, so
//!   no reference to it exists while the device writes. It never frees what is still in flight.
//! - Rings ([`QueueMemory`]) are shared by nature. They're only touched by volatile or atomic
//!   accesses through raw pointers, at indices that are reduced to the queue's size first.
#![expect(unsafe_code, reason = "memory that a device accesses by address")]

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering};

use abi::QueueEntry;

/// The alignment of every buffer: a cache line.
const BUFFER_ALIGN: usize = 64;
/// The alignment of the parts of a queue (virtio 1.2 §2.7: 16, 2 and 4).
const QUEUE_ALIGN: usize = 16;

/// Bytes on the heap that a device can be told the address of. Never moves.
#[derive(Debug)]
pub struct DmaBuffer {
    start: NonNull<u8>,
    /// How many bytes the buffer shows.
    len: usize,
    /// How many bytes were allocated; 0 for [`DmaBuffer::empty`], which owns nothing.
    capacity: usize,
}

impl DmaBuffer {
    /// A buffer of no bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self { start: NonNull::dangling(), len: 0, capacity: 0 }
    }

    /// A buffer of `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::empty();
        }
        Self { start: allocate(len, BUFFER_ALIGN), len, capacity: len }
    }

    /// A buffer that holds a copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// The address that a device is told.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }

    /// Shows only the first `len` bytes from now on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for DmaBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated and initialised; whoever owns `self` is the only side
        // that accesses them (module doc). With `len` 0 a dangling pointer is allowed.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for DmaBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        if self.capacity != 0 {
            // SAFETY: allocated in `zeroed` with this very layout, and owned.
            unsafe { dealloc(self.start.as_ptr(), layout(self.capacity, BUFFER_ALIGN)) };
        }
    }
}

fn layout(len: usize, align: usize) -> Layout {
    assert!(len != 0, "an empty buffer is never allocated");
    match Layout::from_size_align(len, align) {
        Ok(layout) => layout,
        Err(_) => panic!("a DMA buffer of {len} bytes is larger than the address space"),
    }
}

fn allocate(len: usize, align: usize) -> NonNull<u8> {
    let layout = layout(len, align);
    // SAFETY: the layout's size is not 0.
    let start = unsafe { alloc_zeroed(layout) };
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}

/// One entry of a descriptor table (virtio 1.2 §2.7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Descriptor {
    /// The buffer's address.
    pub address: u64,
    /// The buffer's length in bytes.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// The next descriptor of the chain, if the flags say that there is one.
    pub next: u16,
}

/// The driver's hands on the memory of one split virtqueue (virtio 1.2 §2.7).
///
/// Indices are free-running; each method reduces them to the queue's size, so none reaches outside.
#[derive(Debug)]
pub struct QueueMemory {
    descriptor_table: NonNull<Descriptor>,
    avail_ring: NonNull<u16>,
    used_ring: NonNull<u16>,
    size: u16,
}

impl QueueMemory {
    /// A queue of `size` descriptors (a power of two) in memory of its own, zeroed. It's never
    /// freed: a device that was told its address may write to it at any time.
    #[must_use]
    pub fn allocate(size: u16) -> Self {
        assert!(size.is_power_of_two(), "a queue's size is a power of two, not {size}");
        let entries = usize::from(size);
        Self {
            descriptor_table: allocate(16 * entries, QUEUE_ALIGN).cast(),
            avail_ring: allocate(6 + 2 * entries, QUEUE_ALIGN).cast(),
            used_ring: allocate(6 + 8 * entries, QUEUE_ALIGN).cast(),
            size,
        }
    }

    /// Queue `index` of the boot page. Each can be taken once.
    #[cfg(all(feature = "image", not(test)))]
    pub(crate) fn from_boot_page(index: usize) -> Option<Self> {
        use core::sync::atomic::AtomicU32;
        static TAKEN: AtomicU32 = AtomicU32::new(0);

        let boot = crate::entry::boot_page();
        let count = (boot.queue_count as usize).min(boot.queues.len());
        let entry = boot.queues.get(..count)?.get(index)?;
        if TAKEN.fetch_or(1 << index, Ordering::Relaxed) & 1 << index != 0 {
            return None;
        }
        let size = u16::try_from(entry.size).ok().filter(|size| size.is_power_of_two())?;
        let at = |address: u64| core::ptr::with_exposed_provenance_mut::<u8>(address as usize);
        Some(Self {
            descriptor_table: NonNull::new(at(entry.descriptor_table))?.cast(),
            avail_ring: NonNull::new(at(entry.avail_ring))?.cast(),
            used_ring: NonNull::new(at(entry.used_ring))?.cast(),
            size,
        })
    }

    /// Where the queue lies, as the device is told.
    #[must_use]
    pub fn entry(&self) -> QueueEntry {
        QueueEntry {
            descriptor_table: self.descriptor_table.as_ptr().expose_provenance() as u64,
            avail_ring: self.avail_ring.as_ptr().expose_provenance() as u64,
            used_ring: self.used_ring.as_ptr().expose_provenance() as u64,
            size: u32::from(self.size),
            reserved: 0,
        }
    }

    /// How many descriptors the queue has; a power of two.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Writes descriptor `index`.
    pub fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        let Descriptor { address, len, flags, next } = descriptor;
        let descriptor = Descriptor {
            address: address.to_le(),
            len: len.to_le(),
            flags: flags.to_le(),
            next: next.to_le(),
        };
        // SAFETY: the slot is below `size`, inside the table; aligned to 16 (virtio 1.2 §2.7).
        unsafe { self.descriptor_table.as_ptr().add(self.slot(index)).write_volatile(descriptor) };
    }

    /// Writes the head of a chain into the slot of `avail_index`.
    pub fn write_avail(&mut self, avail_index: u16, head: u16) {
        // SAFETY: behind flags and index (two u16) follow `size` slots; this is one of them.
        unsafe {
            self.avail_ring.as_ptr().add(2 + self.slot(avail_index)).write_volatile(head.to_le());
        }
    }

    /// Makes all chains before `avail_index` available: everything written before is visible to
    /// whoever reads the index.
    pub fn publish_avail_index(&mut self, avail_index: u16) {
        // SAFETY: the index is the ring's second u16, aligned; both sides access it atomically.
        let index = unsafe { AtomicU16::from_ptr(self.avail_ring.as_ptr().add(1)) };
        index.store(avail_index.to_le(), Ordering::Release);
    }

    /// Tells the device whether to report used buffers (VIRTQ_AVAIL_F_NO_INTERRUPT).
    pub fn write_avail_flags(&mut self, flags: u16) {
        // SAFETY: the flags are the ring's first u16.
        unsafe { self.avail_ring.as_ptr().write_volatile(flags.to_le()) };
    }

    /// How many chains the device has used so far, modulo 2^16: all that it wrote for them is
    /// visible afterwards.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        // SAFETY: the index is the ring's second u16, aligned; both sides access it atomically.
        let index = unsafe { AtomicU16::from_ptr(self.used_ring.as_ptr().add(1)) };
        u16::from_le(index.load(Ordering::Acquire))
    }

    /// The element (id, bytes written) in the slot of `used_index`, whatever the device put there.
    #[must_use]
    pub fn read_used(&self, used_index: u16) -> (u32, u32) {
        // SAFETY: behind flags and index follow `size` elements of two u32; this is one of them,
        // and the ring is aligned to 4 (virtio 1.2 §2.7).
        unsafe {
            let element = self.used_ring.as_ptr().add(2).cast::<u32>();
            let element = element.add(2 * self.slot(used_index));
            (u32::from_le(element.read_volatile()), u32::from_le(element.add(1).read_volatile()))
        }
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index % self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_shows_what_was_copied_in_and_can_be_shortened() {
        let mut buffer = DmaBuffer::copy_of(b"hypervisor");
        assert_eq!(&buffer[..], b"hypervisor");
        assert_eq!(buffer.address() % BUFFER_ALIGN as u64, 0);
        buffer.truncate(5);
        assert_eq!(&buffer[..], b"hyper");
        assert!(DmaBuffer::empty().is_empty());
        assert!(DmaBuffer::zeroed(0).is_empty());
    }

    #[test]
    fn the_rings_read_back_what_the_other_side_wrote() {
        let memory = QueueMemory::allocate(4);
        let entry = memory.entry();
        assert_eq!((entry.size, memory.used_index()), (4, 0));
        let used = core::ptr::with_exposed_provenance_mut::<u16>(entry.used_ring as usize);
        // SAFETY: the test plays the device in memory that it has just allocated.
        unsafe {
            used.add(1).write_volatile(5);
            used.add(2).cast::<u32>().write_volatile(3);
            used.add(2).cast::<u32>().add(1).write_volatile(77);
        }
        assert_eq!(memory.used_index(), 5);
        assert_eq!(memory.read_used(4), (3, 77), "index 4 is slot 0");
    }
}
