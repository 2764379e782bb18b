//! The virtio network card (virtio 1.2 §5.1) as a smoltcp device.
//!
//! Every receive buffer is posted at start and posted again as soon as smoltcp has looked at it;
//! smoltcp builds a frame in the very buffer that is sent. Nothing is copied in between. Sent
//! frames are reclaimed when the next one needs a buffer: their completion never ends a wait,
//! except while the stack has more to send than the queue holds.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::RefCell;

use abi::DeviceEntry;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

use crate::dma::{DmaBuffer, QueueMemory};
use crate::virtio::{Part, Queue};

const VIRTIO_NET_F_MTU: u64 = 1 << 3;
/// `struct virtio_net_config` (virtio 1.2 §5.1.4): MAC, status, queue pairs, MTU.
const CONFIG_MAC: usize = 0;
const CONFIG_MTU: usize = 10;
/// `struct virtio_net_hdr` with VIRTIO_F_VERSION_1: 12 bytes, all zero without offloads.
const HEADER_BYTES: usize = 12;
const ETHERNET_HEADER_BYTES: usize = 14;
const MTU_DEFAULT: usize = 1500;
/// The least that IPv6 demands (RFC 8200 §5) and the most that smoltcp's buffers are tried with.
const MTU_RANGE: core::ops::RangeInclusive<usize> = 1280..=9216;

/// A network card: queue 0 receives, queue 1 transmits.
pub struct Nic {
    mac: EthernetAddress,
    frame_bytes_max: usize,
    receive: RefCell<ReceiveSide>,
    transmit: RefCell<TransmitSide>,
    /// The stack wanted to send and there was no buffer.
    exhausted: bool,
}

struct ReceiveSide {
    queue: Queue<(), 1>,
    /// Filled buffers and how many bytes the device wrote, in the order of their arrival.
    arrived: VecDeque<(DmaBuffer, usize)>,
}

struct TransmitSide {
    queue: Queue<(), 1>,
    free: Vec<DmaBuffer>,
    allocated: usize,
    buffer_bytes: usize,
}

impl Nic {
    /// Takes over a device of the boot page with its receive and transmit queue, and posts a
    /// buffer for every descriptor of the former.
    #[must_use]
    pub fn new(device: &DeviceEntry, receive: QueueMemory, transmit: QueueMemory) -> Self {
        let mtu = match device.features & VIRTIO_NET_F_MTU {
            0 => MTU_DEFAULT,
            _ => config_u16(device, CONFIG_MTU).map_or(MTU_DEFAULT, usize::from),
        };
        let frame_bytes_max =
            mtu.clamp(*MTU_RANGE.start(), *MTU_RANGE.end()) + ETHERNET_HEADER_BYTES;
        let buffer_bytes = HEADER_BYTES + frame_bytes_max;
        let mac = device.config.get(CONFIG_MAC..CONFIG_MAC + 6).unwrap_or(&[2, 0, 0, 0, 0, 1]);

        let mut receive = ReceiveSide {
            queue: Queue::new("virtio-net receive", receive),
            arrived: VecDeque::new(),
        };
        for _ in 0..receive.queue.size() {
            receive.post(DmaBuffer::zeroed(buffer_bytes));
        }
        let mut queue = Queue::new("virtio-net transmit", transmit);
        queue.set_wakes(false);
        Self {
            mac: EthernetAddress::from_bytes(mac),
            frame_bytes_max,
            receive: RefCell::new(receive),
            transmit: RefCell::new(TransmitSide {
                queue,
                free: Vec::new(),
                allocated: 0,
                buffer_bytes,
            }),
            exhausted: false,
        }
    }

    /// The card's hardware address.
    #[must_use]
    pub fn mac(&self) -> EthernetAddress {
        self.mac
    }

    /// Before smoltcp polls: takes what arrived and was sent.
    pub fn begin(&mut self) {
        self.receive.get_mut().reap();
        let transmit = self.transmit.get_mut();
        transmit.reap();
        if core::mem::take(&mut self.exhausted) {
            transmit.queue.set_wakes(false);
        }
    }

    /// After smoltcp has polled: if it had more to send than there were buffers, the next wait has
    /// to end when frames have gone out.
    pub fn end(&mut self) {
        if self.exhausted {
            self.transmit.get_mut().queue.set_wakes(true);
        }
    }

    fn has_transmit_room(&mut self) -> bool {
        let room = self.transmit.get_mut().has_room();
        if !room {
            self.exhausted = true;
        }
        room
    }
}

impl ReceiveSide {
    fn post(&mut self, buffer: DmaBuffer) {
        let part = Part { buffer: 0, range: 0..buffer.len(), device_writes: true };
        let posted = self.queue.submit([buffer], &[part], ());
        assert!(posted.is_ok(), "there is one receive buffer per descriptor");
    }

    fn reap(&mut self) {
        while let Some(used) = self.queue.pop_used() {
            let [buffer] = used.buffers;
            self.arrived.push_back((buffer, used.len));
        }
    }
}

impl TransmitSide {
    fn reap(&mut self) {
        while let Some(used) = self.queue.pop_used() {
            let [buffer] = used.buffers;
            self.free.push(buffer);
        }
    }

    /// Whether there is a buffer, and so a descriptor, for one more frame.
    fn has_room(&mut self) -> bool {
        if self.free.is_empty() {
            self.reap();
        }
        !self.free.is_empty() || self.allocated < usize::from(self.queue.size())
    }

    fn take(&mut self) -> DmaBuffer {
        assert!(self.has_room(), "a transmit token is given only if there is room");
        self.free.pop().unwrap_or_else(|| {
            self.allocated += 1;
            DmaBuffer::zeroed(self.buffer_bytes)
        })
    }

    fn send(&mut self, buffer: DmaBuffer, frame_bytes: usize) {
        let part = Part { buffer: 0, range: 0..HEADER_BYTES + frame_bytes, device_writes: false };
        let posted = self.queue.submit([buffer], &[part], ());
        assert!(posted.is_ok(), "there are no more transmit buffers than descriptors");
    }
}

impl phy::Device for Nic {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if self.receive.get_mut().arrived.is_empty() {
            return None;
        }
        // Without a buffer for the answer the frame has to wait.
        if !self.has_transmit_room() {
            return None;
        }
        let arrived = self.receive.get_mut().arrived.pop_front();
        let receive = RxToken { side: &self.receive, arrived };
        Some((receive, TxToken { side: &self.transmit }))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<TxToken<'_>> {
        self.has_transmit_room().then_some(TxToken { side: &self.transmit })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.frame_bytes_max;
        capabilities
    }
}

/// A received frame. Its buffer is posted again when this is dropped.
pub struct RxToken<'a> {
    side: &'a RefCell<ReceiveSide>,
    arrived: Option<(DmaBuffer, usize)>,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let frame = self.arrived.as_ref().and_then(|(b, len)| b.get(HEADER_BYTES..*len));
        // smoltcp ignores an empty frame, which is what one without a whole header becomes.
        f(frame.unwrap_or(&[]))
    }
}

impl Drop for RxToken<'_> {
    fn drop(&mut self) {
        if let Some((buffer, _)) = self.arrived.take() {
            self.side.borrow_mut().post(buffer);
        }
    }
}

/// The right to send one frame, given only if there is room for it.
pub struct TxToken<'a> {
    side: &'a RefCell<TransmitSide>,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut buffer = self.side.borrow_mut().take();
        let Some(frame) = buffer.get_mut(HEADER_BYTES..HEADER_BYTES + len) else {
            panic!("a frame of {len} bytes is longer than the card's MTU allows");
        };
        let result = f(frame);
        self.side.borrow_mut().send(buffer, len);
        result
    }
}

fn config_u16(device: &DeviceEntry, offset: usize) -> Option<u16> {
    let config = device.config.get(..(device.config_len as usize).min(device.config.len()))?;
    let bytes = config.get(offset..offset + 2)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}
