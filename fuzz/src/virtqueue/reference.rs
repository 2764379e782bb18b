//! What a virtqueue's device side must do, written for reading and not for speed
//! (virtio 1.2 §2.7): over its own copy of the memory, with every rule that a chain breaks listed.

use vdev::queue::CHAIN_BYTES_MAX;
use vdev::{QueueLayout, RingError};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

/// A copy of guest memory.
#[derive(Debug, Clone)]
pub struct Memory(Vec<(u64, Vec<u8>)>);

impl Memory {
    /// Memory that consists of these ranges (address, bytes), all zero.
    #[must_use]
    pub fn zeroed(ranges: &[(u64, usize)]) -> Self {
        Self(ranges.iter().map(|&(start, len)| (start, vec![0; len])).collect())
    }

    /// Each range: where it starts and what is in it.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.0.iter().map(|(start, bytes)| (*start, bytes.as_slice()))
    }

    /// The `len` bytes at `address`, if all of them are there.
    #[must_use]
    pub fn get(&self, address: u64, len: usize) -> Option<&[u8]> {
        self.0.iter().find_map(|(start, bytes)| {
            let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
            bytes.get(offset..offset.checked_add(len)?)
        })
    }

    /// Writes bytes if all of them are inside; returns whether they are.
    pub fn write(&mut self, address: u64, new: &[u8]) -> bool {
        let place = self.0.iter_mut().find_map(|(start, bytes)| {
            let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
            bytes.get_mut(offset..offset.checked_add(new.len())?)
        });
        let found = place.is_some();
        if let Some(place) = place {
            place.copy_from_slice(new);
        }
        found
    }

    fn number(&self, address: u64, len: usize) -> u64 {
        let bytes = self.get(address, len).unwrap_or_default();
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn u16(&self, address: u64) -> u16 {
        u16::try_from(self.number(address, 2)).unwrap_or(0)
    }
}

/// A chain as the rules read it: buffers of address and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The first descriptor.
    pub head: u16,
    readable: Vec<(u64, usize)>,
    writable: Vec<(u64, usize)>,
}

impl Chain {
    /// The bytes that the device may read.
    #[must_use]
    pub fn readable_len(&self) -> usize {
        self.readable.iter().map(|(_, len)| len).sum()
    }

    /// The bytes that the device may write.
    #[must_use]
    pub fn writable_len(&self) -> usize {
        self.writable.iter().map(|(_, len)| len).sum()
    }

    /// Where each readable buffer starts within the readable part, and the end of the last.
    pub fn readable_boundaries(&self) -> impl Iterator<Item = usize> {
        boundaries(&self.readable)
    }

    /// Where each writable buffer starts within the writable part, and the end of the last.
    pub fn writable_boundaries(&self) -> impl Iterator<Item = usize> {
        boundaries(&self.writable)
    }
}

fn boundaries(buffers: &[(u64, usize)]) -> impl Iterator<Item = usize> {
    let ends = buffers.iter().scan(0, |end, (_, len)| {
        *end += len;
        Some(*end)
    });
    std::iter::once(0).chain(ends)
}

/// What a pop must come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// There is nothing available.
    Nothing,
    /// This chain, and never again for this publication.
    Chain(Chain),
    /// An error that names one of these broken rules.
    Broken(Vec<RingError>),
}

/// The device's side of one queue.
#[derive(Debug, Clone)]
pub struct Reference {
    layout: QueueLayout,
    /// Guest memory.
    pub memory: Memory,
    next_avail: u16,
    next_used: u16,
}

impl Reference {
    /// A queue at `layout` of which nothing was used yet.
    #[must_use]
    pub fn new(layout: QueueLayout, memory: Memory) -> Self {
        Self { layout, memory, next_avail: 0, next_used: 0 }
    }

    /// The available index as the driver wrote it.
    #[must_use]
    pub fn avail_index(&self) -> u16 {
        self.memory.u16(self.layout.avail_ring + 2)
    }

    /// How many chains were taken and given back, modulo 2^16.
    #[must_use]
    pub fn progress(&self) -> (u16, u16) {
        (self.next_avail, self.next_used)
    }

    /// Takes the next chain.
    pub fn pop(&mut self) -> Expected {
        let size = self.layout.size;
        match self.avail_index().wrapping_sub(self.next_avail) {
            0 => Expected::Nothing,
            ahead if ahead > size => Expected::Broken(vec![RingError::AvailIndex { size }]),
            _ => {
                let slot = u64::from(self.next_avail % size);
                let head = self.memory.u16(self.layout.avail_ring + 4 + 2 * slot);
                let expected = self.walk(head);
                if matches!(expected, Expected::Chain(_)) {
                    self.next_avail = self.next_avail.wrapping_add(1);
                }
                expected
            }
        }
    }

    /// Gives a chain back; false if there is no such descriptor.
    pub fn push_used(&mut self, head: u16, len: u32) -> bool {
        if head >= self.layout.size {
            return false;
        }
        let slot = u64::from(self.next_used % self.layout.size);
        let element = self.layout.used_ring + 4 + 8 * slot;
        self.memory.write(element, &u32::from(head).to_le_bytes());
        self.memory.write(element + 4, &len.to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
        self.memory.write(self.layout.used_ring + 2, &self.next_used.to_le_bytes());
        true
    }

    /// What the device reads of a chain.
    #[must_use]
    pub fn read_chain(&self, chain: &Chain) -> Vec<u8> {
        let buffers = chain.readable.iter();
        buffers
            .flat_map(|&(at, len)| self.memory.get(at, len).unwrap_or_default())
            .copied()
            .collect()
    }

    /// The device writes the whole writable part.
    pub fn fill_chain(&mut self, chain: &Chain, value: u8) {
        for &(address, len) in &chain.writable {
            self.memory.write(address, &vec![value; len]);
        }
    }

    fn walk(&self, head: u16) -> Expected {
        let size = self.layout.size;
        let mut broken = Vec::new();
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut index = head;
        let mut ends = false;
        for _ in 0..size {
            if index >= size {
                broken.push(RingError::DescriptorIndex { index, size });
                ends = true;
                break;
            }
            let at = self.layout.descriptor_table + 16 * u64::from(index);
            let address = self.memory.number(at, 8);
            let len = u32::try_from(self.memory.number(at + 8, 4)).unwrap_or(0);
            let flags = u32::from(self.memory.u16(at + 12));
            if flags & VRING_DESC_F_INDIRECT != 0 {
                broken.push(RingError::Indirect { head });
            }
            if len > 0 && self.memory.get(address, len as usize).is_none() {
                broken.push(RingError::Buffer { address, len });
            }
            if flags & VRING_DESC_F_WRITE != 0 {
                chain.writable.push((address, len as usize));
            } else if chain.writable.is_empty() {
                chain.readable.push((address, len as usize));
            } else {
                broken.push(RingError::Order { head });
            }
            if flags & VRING_DESC_F_NEXT == 0 {
                ends = true;
                break;
            }
            index = self.memory.u16(at + 14);
        }
        if !ends {
            broken.push(RingError::Loop { head });
        }
        if (chain.readable_len() + chain.writable_len()) as u64 > CHAIN_BYTES_MAX {
            broken.push(RingError::TooLong { head });
        }
        if broken.is_empty() { Expected::Chain(chain) } else { Expected::Broken(broken) }
    }
}
