//! The device side of a split virtqueue (virtio 1.2 §2.7), strict about what a driver may do.
//!
//! `virtio-queue` keeps the ring indices; this module walks descriptor chains itself, because a
//! hostile chain must be told from one that merely ends: every descriptor is read once, checked
//! against guest RAM and the chain's bounds, and copied out before any use.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::GuestRam;

/// The most bytes that the buffers of one chain may hold together.
pub const CHAIN_BYTES_MAX: u64 = 16 << 20;

/// Where the three parts of a split virtqueue lie in guest RAM (virtio 1.2 §2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    /// How many descriptors the queue has; a power of two.
    pub size: u16,
    /// The guest-physical address of the descriptor table, 16-byte aligned.
    pub descriptor_table: u64,
    /// The guest-physical address of the available ring, 2-byte aligned.
    pub avail_ring: u64,
    /// The guest-physical address of the used ring, 4-byte aligned.
    pub used_ring: u64,
}

impl QueueLayout {
    /// Lays a queue of `size` descriptors out from `address` (16-byte aligned) upwards.
    #[must_use]
    pub fn at(address: u64, size: u16) -> Self {
        let descriptor_table = address;
        let avail_ring = descriptor_table + 16 * u64::from(size);
        let used_ring = (avail_ring + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Self { size, descriptor_table, avail_ring, used_ring }
    }

    /// The first address behind the queue.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.used_ring + 6 + 8 * u64::from(self.size)
    }
}

/// A rule of the virtqueue that the driver broke. It ends the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The queue's own parts are misaligned or outside RAM.
    #[error("the rings at {0:?} are misaligned or outside guest RAM")]
    Layout(QueueLayout),
    /// The available index ran ahead of the ring.
    #[error("the available index is more than {size} ahead of the last chain taken")]
    AvailIndex {
        /// The queue's size.
        size: u16,
    },
    /// A descriptor index is not in the table.
    #[error("descriptor index {index} in a queue of {size}")]
    DescriptorIndex {
        /// The index that the driver wrote.
        index: u16,
        /// The queue's size.
        size: u16,
    },
    /// A chain has more descriptors than the queue: it loops.
    #[error("the chain at descriptor {head} loops")]
    Loop {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer is not wholly inside device-reachable guest RAM.
    #[error("buffer {address:#x}+{len:#x} is not in guest RAM that a device may reach")]
    Buffer {
        /// The guest-physical address.
        address: u64,
        /// The length in bytes.
        len: u32,
    },
    /// The chain's buffers are longer than [`CHAIN_BYTES_MAX`] together.
    #[error("the chain at descriptor {head} is longer than {CHAIN_BYTES_MAX} bytes")]
    TooLong {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A device-readable buffer follows a device-writable one (virtio 1.2 §2.7.4.2).
    #[error("the chain at descriptor {head} has a readable buffer after a writable one")]
    Order {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect descriptor, which no device here offers.
    #[error("the chain at descriptor {head} uses an indirect table that was not negotiated")]
    Indirect {
        /// The chain's first descriptor.
        head: u16,
    },
    /// The chain's shape can't be answered at all (for instance no room for a status byte).
    #[error("the chain at descriptor {head} is malformed: {reason}")]
    Malformed {
        /// The chain's first descriptor.
        head: u16,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// One buffer of a chain: bytes of guest RAM, already checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    address: u64,
    len: u32,
}

/// A descriptor chain that was checked once and copied out of the guest's hands.
///
/// Its buffers' *contents* still belong to the guest and may change at any time: read them once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Chain {
    /// The index of the chain's first descriptor: its name until it is used.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The bytes that the device may read.
    #[must_use]
    pub fn readable_len(&self) -> usize {
        self.readable.iter().map(|segment| segment.len as usize).sum()
    }

    /// The bytes that the device may write.
    #[must_use]
    pub fn writable_len(&self) -> usize {
        self.writable.iter().map(|segment| segment.len as usize).sum()
    }

    /// Copies device-readable bytes from `offset` on into `buffer`; returns how many there were.
    pub fn read_at(&self, ram: &GuestRam, offset: usize, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for_each_piece(&self.readable, offset, buffer.len(), |address, start, len| {
            let Some(target) = buffer.get_mut(start..start + len) else { return false };
            let copied = ram.read_slice(target, GuestAddress(address)).is_ok();
            done += if copied { len } else { 0 };
            copied
        });
        done
    }

    /// Copies `bytes` to the device-writable part from `offset` on; returns how many fitted.
    pub fn write_at(&self, ram: &GuestRam, offset: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        for_each_piece(&self.writable, offset, bytes.len(), |address, start, len| {
            let Some(source) = bytes.get(start..start + len) else { return false };
            let copied = ram.write_slice(source, GuestAddress(address)).is_ok();
            done += if copied { len } else { 0 };
            copied
        });
        done
    }
}

/// Calls `piece(guest address, position in the caller's buffer, length)` for each contiguous part
/// of `len` bytes at `offset` into `segments`, until it returns false.
fn for_each_piece(
    segments: &[Segment],
    offset: usize,
    len: usize,
    mut piece: impl FnMut(u64, usize, usize) -> bool,
) {
    let mut skip = offset;
    let mut position = 0;
    for segment in segments {
        let segment_len = segment.len as usize;
        if skip >= segment_len {
            skip -= segment_len;
            continue;
        }
        let take = (segment_len - skip).min(len - position);
        if take == 0 || !piece(segment.address + skip as u64, position, take) {
            return;
        }
        position += take;
        skip = 0;
    }
}

/// The device side of one split virtqueue.
#[derive(Debug)]
pub struct DeviceQueue {
    queue: Queue,
    index: usize,
}

impl DeviceQueue {
    /// Takes a queue that lies at `layout` and is number `index` of its device.
    ///
    /// # Errors
    /// [`RingError::Layout`] if a part is misaligned, outside `ram`, or the size is no power of two.
    pub fn new(index: usize, layout: QueueLayout, ram: &GuestRam) -> Result<Self, RingError> {
        let refuse = |_| RingError::Layout(layout);
        let mut queue = Queue::new(layout.size).map_err(refuse)?;
        queue.try_set_size(layout.size).map_err(refuse)?;
        queue.try_set_desc_table_address(GuestAddress(layout.descriptor_table)).map_err(refuse)?;
        queue.try_set_avail_ring_address(GuestAddress(layout.avail_ring)).map_err(refuse)?;
        queue.try_set_used_ring_address(GuestAddress(layout.used_ring)).map_err(refuse)?;
        queue.set_ready(true);
        if queue.is_valid(ram) { Ok(Self { queue, index }) } else { Err(RingError::Layout(layout)) }
    }

    /// The queue's number within its device.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The queue's size in descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// How many chains the driver made available that were not taken yet: at most the queue's size.
    ///
    /// A request may be answered into the ring itself and so bring the next one: a device that takes
    /// no more than there were when it began always comes to an end.
    ///
    /// # Errors
    /// [`RingError::AvailIndex`] if the driver's index is out of range.
    pub fn available(&self, ram: &GuestRam) -> Result<u16, RingError> {
        let size = self.queue.size();
        let error = RingError::AvailIndex { size };
        let avail = self.queue.avail_idx(ram, Ordering::Acquire).map_err(|_| error)?;
        let pending = (avail - Wrapping(self.queue.next_avail())).0;
        if pending > size { Err(error) } else { Ok(pending) }
    }

    /// Takes the next chain that the driver made available, or `None` if there is none.
    ///
    /// # Errors
    /// A [`RingError`] if the ring or the chain breaks a rule.
    pub fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, RingError> {
        if self.available(ram)? == 0 {
            return Ok(None);
        }
        let size = self.queue.size();
        let next = Wrapping(self.queue.next_avail());
        let slot = u64::from(next.0 % size);
        let entry = GuestAddress(self.queue.avail_ring() + 4 + 2 * slot);
        let head =
            u16::from_le(ram.read_obj::<u16>(entry).map_err(|_| RingError::AvailIndex { size })?);
        let chain = self.walk(ram, head)?;
        self.queue.set_next_avail((next + Wrapping(1)).0);
        Ok(Some(chain))
    }

    /// Whether the driver wants to hear of used entries: VIRTQ_AVAIL_F_NO_INTERRUPT is clear
    /// (virtio 1.2 §2.7.7). A driver that only reclaims buffers sets it, and so isn't woken.
    #[must_use]
    pub fn wants_used_events(&self, ram: &GuestRam) -> bool {
        // The ring was checked to lie in RAM; were it not, waking the guest does no harm.
        let flags = ram.read_obj::<u16>(GuestAddress(self.queue.avail_ring())).unwrap_or(0);
        u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0
    }

    /// Gives a chain back to the driver with `len` bytes written.
    ///
    /// # Errors
    /// [`RingError::DescriptorIndex`] if the chain is not of this queue.
    pub fn push_used(&mut self, ram: &GuestRam, head: u16, len: u32) -> Result<(), RingError> {
        let size = self.queue.size();
        self.queue
            .add_used(ram, head, len)
            .map_err(|_| RingError::DescriptorIndex { index: head, size })
    }

    fn walk(&self, ram: &GuestRam, head: u16) -> Result<Chain, RingError> {
        let size = self.queue.size();
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut index = head;
        let mut bytes = 0u64;
        for _ in 0..size {
            let descriptor = self.descriptor(ram, index)?;
            let flags = u32::from(descriptor.flags());
            if flags & VRING_DESC_F_INDIRECT != 0 {
                return Err(RingError::Indirect { head });
            }
            let segment = Segment { address: descriptor.addr().0, len: descriptor.len() };
            check_segment(ram, segment)?;
            bytes += u64::from(segment.len);
            if bytes > CHAIN_BYTES_MAX {
                return Err(RingError::TooLong { head });
            }
            if flags & VRING_DESC_F_WRITE != 0 {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(RingError::Order { head });
            }
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next();
        }
        Err(RingError::Loop { head })
    }

    fn descriptor(&self, ram: &GuestRam, index: u16) -> Result<Descriptor, RingError> {
        let size = self.queue.size();
        let error = RingError::DescriptorIndex { index, size };
        if index >= size {
            return Err(error);
        }
        let address = GuestAddress(self.queue.desc_table() + 16 * u64::from(index));
        ram.read_obj::<Descriptor>(address).map_err(|_| error)
    }
}

fn check_segment(ram: &GuestRam, segment: Segment) -> Result<(), RingError> {
    let Segment { address, len } = segment;
    // An empty buffer touches nothing, wherever it claims to be.
    let inside = len == 0
        || (address.checked_add(u64::from(len)).is_some()
            && ram.check_range(GuestAddress(address), len as usize, Permissions::ReadWrite));
    if inside { Ok(()) } else { Err(RingError::Buffer { address, len }) }
}
