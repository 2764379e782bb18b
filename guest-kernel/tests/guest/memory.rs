//! The device's side of a virtqueue, by address, as a real device has it.
#![expect(unsafe_code, reason = "a device reaches the driver's memory by address")]

use abi::QueueEntry;

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    address: u64,
    pub(crate) len: usize,
    pub(crate) writable: bool,
}

impl Segment {
    pub(crate) fn read(&self) -> Vec<u8> {
        // SAFETY: the driver under test posted these bytes and leaves them alone until used.
        unsafe { std::slice::from_raw_parts(pointer(self.address), self.len).to_vec() }
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        assert!(self.writable && bytes.len() <= self.len);
        // SAFETY: as in `read`, and the driver marked them for writing.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer(self.address), bytes.len());
        };
    }
}

fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// The device side of one queue.
pub(crate) struct DeviceQueue {
    entry: QueueEntry,
    avail_index: u16,
    used_index: u16,
}

impl DeviceQueue {
    pub(crate) fn new(entry: QueueEntry) -> Self {
        Self { entry, avail_index: 0, used_index: 0 }
    }

    /// The next available chain: its head and its buffers.
    pub(crate) fn pop(&mut self) -> Option<(u16, Vec<Segment>)> {
        if self.read_u16(self.entry.avail_ring + 2) == self.avail_index {
            return None;
        }
        let slot = u64::from(self.avail_index) % u64::from(self.entry.size);
        let head = self.read_u16(self.entry.avail_ring + 4 + 2 * slot);
        self.avail_index = self.avail_index.wrapping_add(1);
        let mut segments = Vec::new();
        let mut index = head;
        loop {
            assert!(u32::from(index) < self.entry.size, "a descriptor outside the table");
            assert!(segments.len() < self.entry.size as usize, "a chain that loops");
            let at = self.entry.descriptor_table + 16 * u64::from(index);
            // SAFETY: the table of the queue under test.
            let (address, len) = unsafe {
                (
                    pointer(at).cast::<u64>().read_volatile(),
                    pointer(at + 8).cast::<u32>().read_volatile(),
                )
            };
            let flags = self.read_u16(at + 12);
            let writable = flags & DESC_F_WRITE != 0;
            segments.push(Segment { address, len: len as usize, writable });
            if flags & DESC_F_NEXT == 0 {
                return Some((head, segments));
            }
            index = self.read_u16(at + 14);
        }
    }

    /// How many chains wait.
    pub(crate) fn available(&self) -> usize {
        let published = self.read_u16(self.entry.avail_ring + 2);
        usize::from(published.wrapping_sub(self.avail_index))
    }

    /// Gives a chain back; any id and length, honest or not.
    pub(crate) fn push_used(&mut self, id: u32, len: u32) {
        let slot = u64::from(self.used_index) % u64::from(self.entry.size);
        let at = self.entry.used_ring + 4 + 8 * slot;
        self.used_index = self.used_index.wrapping_add(1);
        // SAFETY: the used ring of the queue under test, aligned to 4.
        unsafe {
            pointer(at).cast::<u32>().write_volatile(id);
            pointer(at + 4).cast::<u32>().write_volatile(len);
            pointer(self.entry.used_ring + 2).cast::<u16>().write_volatile(self.used_index);
        }
    }

    /// Whether the driver wants to be woken for this queue.
    pub(crate) fn wakes(&self) -> bool {
        self.read_u16(self.entry.avail_ring) & 1 == 0
    }

    fn read_u16(&self, address: u64) -> u16 {
        // SAFETY: called with addresses inside the rings of the queue under test.
        unsafe { pointer(address).cast::<u16>().read_volatile() }
    }
}
