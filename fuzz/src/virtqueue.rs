//! The device side of a virtqueue against any driver at all.
//!
//! The input is a list of actions of driver and device (see [`check`]). Each runs on the real
//! [`vdev::DeviceQueue`] and on a plain [reference](mod@reference) over a copy of the memory. After each, both
//! must agree: on the chain or the kind of error, and on every byte of guest memory, so that a
//! read or write at a wrong place is seen.

pub mod reference;

use vdev::driver::{Buffer, Driver};
use vdev::{Chain, DeviceQueue, GuestRam, QueueLayout, RingError};
use vm_memory::{Bytes, GuestAddress};

use crate::bytes::Input;
use reference::{Expected, Memory, Reference};

/// What the device writes into a chain's writable part.
pub const PATTERN: u8 = 0xa5;

/// A real queue and its reference, kept in step.
#[derive(Debug)]
pub struct Pair {
    ram: GuestRam,
    layout: QueueLayout,
    device: DeviceQueue,
    reference: Reference,
}

impl Pair {
    /// A zeroed queue at `layout` in memory that consists of `ranges` (address, bytes).
    ///
    /// # Panics
    /// The layout is not inside the memory, or the memory can't be had.
    #[must_use]
    pub fn new(layout: QueueLayout, ranges: &[(u64, usize)]) -> Self {
        let regions: Vec<_> =
            ranges.iter().map(|&(start, len)| (GuestAddress(start), len)).collect();
        let ram = match GuestRam::from_ranges(&regions) {
            Ok(ram) => ram,
            Err(error) => panic!("guest memory: {error}"),
        };
        let device = match DeviceQueue::new(0, layout, &ram) {
            Ok(device) => device,
            Err(error) => panic!("the layout was chosen to be right: {error}"),
        };
        Self { ram, layout, device, reference: Reference::new(layout, Memory::zeroed(ranges)) }
    }

    /// The queue and its memory as they were at first. The memory is shared: no more use of `self`.
    ///
    /// # Panics
    /// The memory can't be written.
    #[must_use]
    pub fn restarted(&self) -> Self {
        let zeroed = |(start, bytes): (u64, &[u8])| (start, vec![0; bytes.len()]);
        let ranges: Vec<_> = self.reference.memory.ranges().map(zeroed).collect();
        for (start, bytes) in &ranges {
            assert!(self.ram.write_slice(bytes, GuestAddress(*start)).is_ok());
        }
        let sizes: Vec<_> = ranges.iter().map(|(start, bytes)| (*start, bytes.len())).collect();
        let device = match DeviceQueue::new(0, self.layout, &self.ram) {
            Ok(device) => device,
            Err(error) => panic!("the same layout was right before: {error}"),
        };
        let reference = Reference::new(self.layout, Memory::zeroed(&sizes));
        Self { ram: self.ram.clone(), layout: self.layout, device, reference }
    }

    /// The reference.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The driver writes bytes, if they lie inside the memory.
    ///
    /// # Panics
    /// A promise is broken.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let written = self.ram.write_slice(bytes, GuestAddress(address)).is_ok();
        assert_eq!(self.reference.memory.write(address, bytes), written);
    }

    /// The driver writes a descriptor.
    ///
    /// # Panics
    /// A promise is broken.
    pub fn write_descriptor(&mut self, index: u16, buffer: &Buffer, flags: u16, next: u16) {
        if index >= self.layout.size {
            return;
        }
        let driver = Driver::new(self.layout);
        let written = driver.write_descriptor(&self.ram, index, buffer, flags, next).is_ok();
        assert!(written, "the table lies inside the memory");
        let mut bytes = [0; 16];
        let fields = [
            &buffer.address.to_le_bytes()[..],
            &buffer.len.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ];
        for (target, source) in bytes.iter_mut().zip(fields.concat()) {
            *target = source;
        }
        self.reference.memory.write(self.layout.descriptor_table + 16 * u64::from(index), &bytes);
    }

    /// The driver makes `head` available.
    ///
    /// # Panics
    /// A promise is broken.
    pub fn publish(&mut self, head: u16) {
        let index = self.reference.avail_index();
        let slot = u64::from(index % self.layout.size);
        self.write(self.layout.avail_ring + 4 + 2 * slot, &head.to_le_bytes());
        self.write_avail_index(index.wrapping_add(1));
    }

    /// The driver writes the available index.
    ///
    /// # Panics
    /// A promise is broken.
    pub fn write_avail_index(&mut self, index: u16) {
        self.write(self.layout.avail_ring + 2, &index.to_le_bytes());
    }

    /// The device takes a chain, reads all of it and writes all of it.
    ///
    /// # Panics
    /// A promise is broken.
    pub fn pop(&mut self) -> Option<u16> {
        let expected = self.reference.pop();
        let popped = self.device.pop(&self.ram);
        let head = match (expected, popped) {
            (Expected::Nothing, Ok(None)) => None,
            (Expected::Broken(rules), Err(error)) => {
                assert!(rules.contains(&error), "{error:?} is not one of {rules:?}");
                None
            }
            (Expected::Chain(expected), Ok(Some(chain))) => {
                self.use_chain(&expected, &chain);
                Some(chain.head())
            }
            (expected, popped) => panic!("expected {expected:?}, the device says {popped:?}"),
        };
        self.compare_memory();
        head
    }

    /// The device gives a chain back.
    ///
    /// # Panics
    /// A promise is broken.
    pub fn push_used(&mut self, head: u16, len: u32) {
        let pushed = self.device.push_used(&self.ram, head, len);
        if self.reference.push_used(head, len) {
            assert_eq!(pushed, Ok(()));
        } else {
            let size = self.layout.size;
            assert_eq!(pushed, Err(RingError::DescriptorIndex { index: head, size }));
        }
        self.compare_memory();
    }

    fn use_chain(&mut self, expected: &reference::Chain, chain: &Chain) {
        assert_eq!(chain.head(), expected.head);
        assert_eq!(chain.readable_len(), expected.readable_len());
        assert_eq!(chain.writable_len(), expected.writable_len());
        let wanted = self.reference.read_chain(expected);
        // From the start, from each boundary between buffers, and from within a buffer.
        for start in expected.readable_boundaries().flat_map(|at| [at, at.saturating_sub(1)]) {
            let mut bytes = vec![0; wanted.len() + 1];
            let count = chain.read_at(&self.ram, start, &mut bytes);
            bytes.truncate(count);
            assert_eq!(Some(bytes.as_slice()), wanted.get(start..));
        }
        let mut start = 0;
        for end in expected.writable_boundaries() {
            let count = chain.write_at(&self.ram, start, &vec![PATTERN; end - start]);
            assert_eq!(count, end - start);
            start = end;
        }
        assert_eq!(start, expected.writable_len());
        self.reference.fill_chain(expected, PATTERN);
        // Past the end there is nothing, wherever the end is.
        assert_eq!(chain.read_at(&self.ram, expected.readable_len(), &mut [0; 4]), 0);
        assert_eq!(chain.write_at(&self.ram, expected.writable_len(), &[0; 4]), 0);
    }

    fn compare_memory(&self) {
        for (start, bytes) in self.reference.memory.ranges() {
            let mut real = vec![0; bytes.len()];
            assert!(self.ram.read_slice(&mut real, GuestAddress(start)).is_ok());
            if real != bytes {
                let differs = real.iter().zip(bytes).position(|(real, copy)| real != copy);
                panic!("memory from {start:#x} differs at offset {differs:?}");
            }
        }
    }
}

const RAM_BASE: u64 = 0x20_0000;
const HALF: usize = 0x2000;
/// Memory with a hole in the middle.
const RANGES: [(u64, usize); 2] = [(RAM_BASE, HALF), (RAM_BASE + 2 * HALF as u64, HALF)];

/// Runs a list of actions.
///
/// Byte 0: the queue's size as a power of two. Then, as long as there is input, actions: a byte
/// that names it (modulo 6), then what it needs, numbers little-endian.
///
/// 0. descriptor: index (1), address (3, see `address`), length (2), flags (1), next (1)
/// 1. publish: head (1)
/// 2. write the available index: value (2)
/// 3. write a byte: address (3), value (1)
/// 4. pop
/// 5. give back: head (1), length (2)
///
/// True if the device took a chain.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let size = 1 << (input.byte() % 6);
    let mut pair = Pair::new(QueueLayout::at(RAM_BASE, size), &RANGES);
    let mut took = false;
    // A run of any length finds no more than a short one.
    for _ in 0..256 {
        if input.is_empty() {
            break;
        }
        match input.byte() % 6 {
            0 => {
                let index = u16::from(input.byte());
                let address = address(&mut input);
                let buffer = Buffer { address, len: u32::from(input.u16()), device_writes: false };
                let (flags, next) = (u16::from(input.byte()), u16::from(input.byte()));
                pair.write_descriptor(index % size, &buffer, flags, next);
            }
            1 => pair.publish(u16::from(input.byte())),
            2 => pair.write_avail_index(input.u16()),
            3 => {
                let address = address(&mut input);
                pair.write(address, &[input.byte()]);
            }
            4 => took |= pair.pop().is_some(),
            _ => {
                let head = u16::from(input.byte());
                pair.push_used(head, u32::from(input.u16()));
            }
        }
    }
    took
}

/// An address: a byte that says from where to count (modulo 5), then an offset of two bytes.
fn address(input: &mut Input<'_>) -> u64 {
    let selector = input.byte() % 5;
    let offset = u64::from(input.u16());
    match selector {
        0 => RAM_BASE + offset % (4 * HALF as u64),
        1 => RAM_BASE + HALF as u64 - offset % 64,
        2 => RAM_BASE + 3 * HALF as u64 - offset % 64,
        3 => u64::MAX - offset,
        _ => offset,
    }
}
