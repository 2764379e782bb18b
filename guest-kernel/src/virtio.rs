//! The driver side of a split virtqueue (virtio 1.2 §2.7) that lies in the boot page.
//!
//! Nothing is notified: a chain is made available here, and the next wait of the guest submits all
//! queues at once. The device is not trusted with the driver's memory safety: the driver keeps its
//! own copy of every chain, reads from the used ring only an id and a length, and a used id that is
//! not in flight is a panic that names the queue.

use alloc::vec::Vec;
use core::ops::Range;

use crate::dma::{Descriptor, DmaBuffer, QueueMemory};

const VIRTQ_DESC_F_NEXT: u16 = 1;
const VIRTQ_DESC_F_WRITE: u16 = 2;
const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;

/// One descriptor of a chain: a range of one of the chain's buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which of the chain's buffers.
    pub buffer: usize,
    /// Which of its bytes.
    pub range: Range<usize>,
    /// Whether the device writes them (as opposed to reads them).
    pub device_writes: bool,
}

/// A chain that the device has used: its buffers are the driver's again.
#[derive(Debug)]
pub struct Used<T, const N: usize> {
    /// The buffers that were posted.
    pub buffers: [DmaBuffer; N],
    /// What the chain was posted with.
    pub token: T,
    /// How many bytes the device says it wrote, at most the writable length of the chain.
    pub len: usize,
}

/// A chain that didn't fit: too few free descriptors.
#[derive(Debug)]
pub struct Rejected<T, const N: usize> {
    /// The buffers, unposted.
    pub buffers: [DmaBuffer; N],
    /// The token that came with them.
    pub token: T,
}

#[derive(Debug)]
struct InFlight<T, const N: usize> {
    buffers: [DmaBuffer; N],
    token: T,
    descriptors: u16,
    writable_len: usize,
}

/// A split virtqueue whose chains have *N* buffers each and carry a token of the driver.
#[derive(Debug)]
pub struct Queue<T, const N: usize> {
    name: &'static str,
    memory: QueueMemory,
    /// Free descriptors, the next to be taken last.
    free: Vec<u16>,
    /// `next[d]` follows descriptor *d* in its chain. The table in shared memory is write-only.
    next: Vec<u16>,
    /// By head descriptor.
    in_flight: Vec<Option<InFlight<T, N>>>,
    avail_index: u16,
    used_index: u16,
}

impl<T, const N: usize> Queue<T, N> {
    /// Takes over a zeroed queue; `name` is for messages.
    #[must_use]
    pub fn new(name: &'static str, memory: QueueMemory) -> Self {
        let size = memory.size();
        Self {
            name,
            free: (0..size).rev().collect(),
            next: (0..size).collect(),
            in_flight: (0..size).map(|_| None).collect(),
            memory,
            avail_index: 0,
            used_index: 0,
        }
    }

    /// How many descriptors the queue has.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.memory.size()
    }

    /// How many descriptors are free.
    #[must_use]
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Whether the device should end a wait because it has used chains of this queue.
    pub fn set_wakes(&mut self, wakes: bool) {
        self.memory.write_avail_flags(if wakes { 0 } else { VIRTQ_AVAIL_F_NO_INTERRUPT });
    }

    /// Makes a chain available; the next wait submits it. An empty part is left out.
    ///
    /// # Errors
    /// Gives everything back if there are too few free descriptors.
    ///
    /// # Panics
    /// If a part is not a range of its buffer, or the chain has no bytes at all.
    pub fn submit(
        &mut self,
        buffers: [DmaBuffer; N],
        parts: &[Part],
        token: T,
    ) -> Result<(), Rejected<T, N>> {
        let count = parts.iter().filter(|part| !part.range.is_empty()).count();
        assert!(count > 0, "{}: a chain has at least one byte", self.name);
        if count > self.free.len() {
            return Err(Rejected { buffers, token });
        }
        let mut writable_len = 0;
        let mut head = None;
        let mut previous: Option<(u16, Descriptor)> = None;
        for part in parts.iter().filter(|part| !part.range.is_empty()) {
            let inside = buffers.get(part.buffer).is_some_and(|b| part.range.end <= b.len());
            let (Some(index), Some(buffer), true) =
                (self.free.pop(), buffers.get(part.buffer), inside)
            else {
                panic!("{}: part {part:?} lies outside its buffer", self.name);
            };
            if part.device_writes {
                writable_len += part.range.len();
            }
            if let Some((at, descriptor)) = previous {
                self.link(at, descriptor, index);
            }
            head = head.or(Some(index));
            previous = Some((index, self.descriptor(buffer, part)));
        }
        if let (Some((at, descriptor)), Some(head)) = (previous, head) {
            self.memory.write_descriptor(at, descriptor);
            let descriptors = count as u16;
            let chain = InFlight { buffers, token, descriptors, writable_len };
            self.publish(head, chain);
        }
        Ok(())
    }

    /// Takes back the next chain that the device has used.
    ///
    /// # Panics
    /// If the device names a chain that is not in flight.
    pub fn pop_used(&mut self) -> Option<Used<T, N>> {
        if self.memory.used_index() == self.used_index {
            return None;
        }
        let (id, len) = self.memory.read_used(self.used_index);
        let chain = usize::try_from(id).ok().and_then(|id| self.in_flight.get_mut(id)?.take());
        let Some(chain) = chain else {
            panic!("{}: the device used descriptor {id}, which is not in flight", self.name);
        };
        self.used_index = self.used_index.wrapping_add(1);
        let mut index = id as u16;
        for _ in 0..chain.descriptors {
            self.free.push(index);
            index = self.next.get(usize::from(index)).copied().unwrap_or(0);
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(chain.writable_len);
        Some(Used { buffers: chain.buffers, token: chain.token, len })
    }

    fn descriptor(&self, buffer: &DmaBuffer, part: &Part) -> Descriptor {
        let Ok(len) = u32::try_from(part.range.len()) else {
            panic!("{}: part {part:?} is longer than a descriptor can say", self.name);
        };
        Descriptor {
            address: buffer.address() + part.range.start as u64,
            len,
            flags: if part.device_writes { VIRTQ_DESC_F_WRITE } else { 0 },
            next: 0,
        }
    }

    fn link(&mut self, index: u16, descriptor: Descriptor, next: u16) {
        let flags = descriptor.flags | VIRTQ_DESC_F_NEXT;
        self.memory.write_descriptor(index, Descriptor { flags, next, ..descriptor });
        if let Some(slot) = self.next.get_mut(usize::from(index)) {
            *slot = next;
        }
    }

    fn publish(&mut self, head: u16, chain: InFlight<T, N>) {
        if let Some(slot) = self.in_flight.get_mut(usize::from(head)) {
            *slot = Some(chain);
        }
        self.memory.write_avail(self.avail_index, head);
        self.avail_index = self.avail_index.wrapping_add(1);
        self.memory.publish_avail_index(self.avail_index);
    }
}

impl<T, const N: usize> Drop for Queue<T, N> {
    /// The device may still write to what is in flight, so it's never freed.
    fn drop(&mut self) {
        for chain in self.in_flight.drain(..).flatten() {
            core::mem::forget(chain.buffers);
        }
    }
}
