//! The driver side of a split virtqueue, for tests of devices and for the fuzz targets.
//!
//! It writes rings and descriptors straight into guest RAM, so that a test can also write what no
//! honest driver would.

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::{GuestRam, QueueLayout};

/// One buffer that the driver hands to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Its guest-physical address.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device writes it (as opposed to reads it).
    pub device_writes: bool,
}

/// A driver that owns one queue and hands out its descriptors in ring order.
#[derive(Debug)]
pub struct Driver {
    layout: QueueLayout,
    next_descriptor: u16,
    avail_index: u16,
    used_index: u16,
}

impl Driver {
    /// A driver for the (zeroed) queue at `layout`.
    #[must_use]
    pub fn new(layout: QueueLayout) -> Self {
        Self { layout, next_descriptor: 0, avail_index: 0, used_index: 0 }
    }

    /// Writes a chain of `buffers` and makes it available; returns its head.
    ///
    /// Descriptors are taken round robin: no more chains may be in flight than fit the table.
    ///
    /// # Errors
    /// The queue lies outside `ram`.
    pub fn add(&mut self, ram: &GuestRam, buffers: &[Buffer]) -> Result<u16, GuestMemoryError> {
        let size = self.layout.size;
        let head = self.next_descriptor % size;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor % size;
            self.next_descriptor = (index + 1) % size;
            let mut flags = if buffer.device_writes { VRING_DESC_F_WRITE } else { 0 };
            if position + 1 < buffers.len() {
                flags |= VRING_DESC_F_NEXT;
            }
            let flags = u16::try_from(flags).unwrap_or(u16::MAX);
            self.write_descriptor(ram, index, buffer, flags, self.next_descriptor)?;
        }
        self.publish(ram, head)?;
        Ok(head)
    }

    /// Writes one descriptor as it is, honest or not.
    ///
    /// # Errors
    /// The queue lies outside `ram`.
    pub fn write_descriptor(
        &self,
        ram: &GuestRam,
        index: u16,
        buffer: &Buffer,
        flags: u16,
        next: u16,
    ) -> Result<(), GuestMemoryError> {
        let descriptor = Descriptor::new(buffer.address, buffer.len, flags, next);
        let address = self.layout.descriptor_table + 16 * u64::from(index);
        ram.write_obj(descriptor, GuestAddress(address))
    }

    /// Puts `head` into the next slot of the available ring and advances the index.
    ///
    /// # Errors
    /// The queue lies outside `ram`.
    pub fn publish(&mut self, ram: &GuestRam, head: u16) -> Result<(), GuestMemoryError> {
        let slot = u64::from(self.avail_index % self.layout.size);
        ram.write_obj(head.to_le(), GuestAddress(self.layout.avail_ring + 4 + 2 * slot))?;
        self.avail_index = self.avail_index.wrapping_add(1);
        self.write_avail_index(ram, self.avail_index)
    }

    /// Writes the available index as it is, honest or not.
    ///
    /// # Errors
    /// The queue lies outside `ram`.
    pub fn write_avail_index(&self, ram: &GuestRam, index: u16) -> Result<(), GuestMemoryError> {
        ram.write_obj(index.to_le(), GuestAddress(self.layout.avail_ring + 2))
    }

    /// The next used element (head, bytes written), if the device has given one back.
    ///
    /// # Errors
    /// The queue lies outside `ram`.
    pub fn take_used(&mut self, ram: &GuestRam) -> Result<Option<(u16, u32)>, GuestMemoryError> {
        let index = u16::from_le(ram.read_obj(GuestAddress(self.layout.used_ring + 2))?);
        if index == self.used_index {
            return Ok(None);
        }
        let slot = u64::from(self.used_index % self.layout.size);
        let address = self.layout.used_ring + 4 + 8 * slot;
        let id = u32::from_le(ram.read_obj(GuestAddress(address))?);
        let len = u32::from_le(ram.read_obj(GuestAddress(address + 4))?);
        self.used_index = self.used_index.wrapping_add(1);
        Ok(Some((u16::try_from(id).unwrap_or(u16::MAX), len)))
    }
}
