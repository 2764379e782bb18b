//! The virtio network card (virtio 1.2 §5.1) as a smoltcp device.
//!
//! Every receive buffer is posted at start and posted again as soon as smoltcp has looked at it;
//! smoltcp builds a frame in the very buffer that is sent. Nothing is copied in between. Sent
//! frames are reclaimed when the next one needs a buffer: their completion never ends a wait,
//! except while the stack has more to send than the queue holds.
//!
//! A card that offers it cuts super-frames of TCP and computes checksums. What it hands over in several
//! buffers is put together here.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::num::{NonZeroU16, NonZeroUsize};

use abi::{DeviceEntry, virtio};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

use super::offload::{self, HEADER_BYTES};
use crate::dma::{DmaBuffer, QueueMemory};
use crate::virtio::{Part, Queue};

const VIRTIO_NET_F_MTU: u64 = 1 << 3;
/// `struct virtio_net_config` (virtio 1.2 §5.1.4): MAC, status, queue pairs, MTU.
const CONFIG_MAC: usize = 0;
const CONFIG_MTU: usize = 10;
const ETHERNET_HEADER_BYTES: usize = 14;
const MTU_DEFAULT: usize = 1500;
/// The least that IPv6 demands (RFC 8200 §5) and the most that smoltcp's buffers are tried with.
const MTU_RANGE: core::ops::RangeInclusive<usize> = 1280..=9216;

/// A super-frame to send, Ethernet header included: the largest IP packet.
const SUPER_FRAME_BYTES: usize = 65_535 + ETHERNET_HEADER_BYTES;
/// How many super-frames are in flight at most, which bounds the memory for them.
const SUPER_FRAMES_MAX: usize = 8;
/// What this driver takes. Not merged packets (GUEST_TSO4, GUEST_TSO6), though it could: smoltcp's Reno
/// grows its window per acknowledgement and not per byte, so a peer that is acknowledged once per
/// super-frame stays slow (values of 64 KiB: 355 GETs per second instead of 1,150).
const ACCEPTED: u64 = virtio::NET_F_GUEST_CSUM | virtio::NET_F_MRG_RXBUF;
/// How large queues have to be for super-frames in both directions.
const QUEUE_SIZE_FOR_OFFLOADS: u16 = 64;
/// What the card has to offer before any offload is used: in both directions, for both families.
const OFFLOADS: u64 =
    virtio::OPT_IN | virtio::NET_F_CSUM | virtio::NET_F_HOST_TSO4 | virtio::NET_F_HOST_TSO6;

/// A network card: queue 0 receives, queue 1 transmits.
pub struct Nic {
    mac: EthernetAddress,
    frame_bytes_max: usize,
    offloads: bool,
    receive: RefCell<ReceiveSide>,
    transmit: RefCell<TransmitSide>,
    /// The stack wanted to send and there was no buffer.
    exhausted: bool,
}

struct ReceiveSide {
    queue: Queue<(), 1>,
    /// Frames in the order of their arrival.
    arrived: VecDeque<Arrived>,
    /// Whether a frame may lie in several buffers, and its checksum be left undone.
    offloads: bool,
}

/// A received frame with its virtio header.
enum Arrived {
    /// In a buffer, of which the device wrote so many bytes.
    Whole(DmaBuffer, usize),
    /// Put together from several.
    Merged(Vec<u8>),
}

struct TransmitSide {
    queue: Queue<(), 1>,
    small: Pool,
    /// For super-frames; empty without the offload.
    large: Pool,
}

/// Buffers of one size, allocated as they are needed.
struct Pool {
    free: Vec<DmaBuffer>,
    allocated: usize,
    most: usize,
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

        // A super-frame takes up to 47 receive buffers.
        let has_room = receive.size().min(transmit.size()) >= QUEUE_SIZE_FOR_OFFLOADS;
        let offloads = device.features & OFFLOADS == OFFLOADS && has_room;
        let mut receive = ReceiveSide {
            queue: Queue::new("virtio-net receive", receive),
            arrived: VecDeque::new(),
            offloads,
        };
        for _ in 0..receive.queue.size() {
            receive.post(DmaBuffer::zeroed(buffer_bytes));
        }
        let mut queue = Queue::new("virtio-net transmit", transmit);
        queue.set_wakes(false);
        let super_frames = if offloads { SUPER_FRAMES_MAX } else { 0 };
        Self {
            mac: EthernetAddress::from_bytes(mac),
            frame_bytes_max,
            offloads,
            receive: RefCell::new(receive),
            transmit: RefCell::new(TransmitSide {
                small: Pool::new(
                    usize::from(queue.size()).saturating_sub(super_frames),
                    buffer_bytes,
                ),
                large: Pool::new(super_frames, HEADER_BYTES + SUPER_FRAME_BYTES),
                queue,
            }),
            exhausted: false,
        }
    }

    /// The card's hardware address.
    #[must_use]
    pub fn mac(&self) -> EthernetAddress {
        self.mac
    }

    /// The features of [`virtio::OPT_IN`] that this driver takes: its owner tells the device.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        if self.offloads { ACCEPTED } else { 0 }
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

    fn token(&self) -> TxToken<'_> {
        let (frame_bytes_max, offloads) = (self.frame_bytes_max, self.offloads);
        TxToken { side: &self.transmit, frame_bytes_max, offloads, segment_bytes: None }
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
            let count = if self.offloads { offload::buffer_count(&buffer) } else { 1 };
            let arrived = if count == 1 {
                Arrived::Whole(buffer, used.len)
            } else {
                let mut bytes = buffer.get(..used.len).unwrap_or_default().to_vec();
                self.post(buffer);
                self.gather(count - 1, &mut bytes);
                Arrived::Merged(bytes)
            };
            if !self.offloads || arrived.is_intact() {
                self.arrived.push_back(arrived);
            } else if let Arrived::Whole(buffer, _) = arrived {
                self.post(buffer);
            }
        }
    }

    /// Appends the next `count` buffers of a frame, which came with the first.
    fn gather(&mut self, count: usize, bytes: &mut Vec<u8>) {
        for _ in 0..count {
            let Some(used) = self.queue.pop_used() else {
                panic!("virtio-net receive: a frame lacks some of its buffers");
            };
            let [buffer] = used.buffers;
            bytes.extend_from_slice(buffer.get(..used.len).unwrap_or_default());
            self.post(buffer);
        }
    }
}

impl Arrived {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(buffer, len) => buffer.get(..*len).unwrap_or_default(),
            Self::Merged(bytes) => bytes,
        }
    }

    fn frame(&self) -> &[u8] {
        self.bytes().get(HEADER_BYTES..).unwrap_or_default()
    }

    fn is_intact(&self) -> bool {
        offload::is_intact(self.bytes(), self.frame())
    }
}

impl Pool {
    fn new(most: usize, buffer_bytes: usize) -> Self {
        Self { free: Vec::new(), allocated: 0, most, buffer_bytes }
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty() || self.allocated < self.most
    }

    fn take(&mut self) -> DmaBuffer {
        assert!(self.has_room(), "a transmit token is given only if there is room");
        self.free.pop().unwrap_or_else(|| {
            self.allocated += 1;
            DmaBuffer::zeroed(self.buffer_bytes)
        })
    }
}

impl TransmitSide {
    fn reap(&mut self) {
        while let Some(used) = self.queue.pop_used() {
            let [buffer] = used.buffers;
            let is_small = buffer.len() == self.small.buffer_bytes;
            let pool = if is_small { &mut self.small } else { &mut self.large };
            pool.free.push(buffer);
        }
    }

    /// Whether there is a buffer, and so a descriptor, for one more frame of either size.
    fn has_room(&mut self) -> bool {
        let has_room =
            |side: &Self| side.small.has_room() && (side.large.most == 0 || side.large.has_room());
        if !has_room(self) {
            self.reap();
        }
        has_room(self)
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
        Some((receive, self.token()))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<TxToken<'_>> {
        self.has_transmit_room().then(|| self.token())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.frame_bytes_max;
        if self.offloads {
            // What arrives is checked where it is taken from the queue.
            capabilities.checksum.tcp = Checksum::None;
            capabilities.checksum.udp = Checksum::None;
            // smoltcp 0.14 drops super-frames of IPv6, whatever the card can do
            // (`iface::Interface::dispatch_ip`): those it cuts itself.
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(SUPER_FRAME_BYTES);
        }
        capabilities
    }
}

/// A received frame. Its buffer is posted again when this is dropped.
pub struct RxToken<'a> {
    side: &'a RefCell<ReceiveSide>,
    arrived: Option<Arrived>,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        // smoltcp ignores an empty frame, which is what one without a whole header becomes.
        f(self.arrived.as_ref().map_or(&[], Arrived::frame))
    }
}

impl Drop for RxToken<'_> {
    fn drop(&mut self) {
        if let Some(Arrived::Whole(buffer, _)) = self.arrived.take() {
            self.side.borrow_mut().post(buffer);
        }
    }
}

/// The right to send one frame, given only if there is room for it.
pub struct TxToken<'a> {
    side: &'a RefCell<TransmitSide>,
    frame_bytes_max: usize,
    offloads: bool,
    /// How the frame is to be cut, if it is a super-frame.
    segment_bytes: Option<u16>,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut buffer = {
            let side = &mut *self.side.borrow_mut();
            let is_small = len <= self.frame_bytes_max;
            if is_small { side.small.take() } else { side.large.take() }
        };
        let Some(bytes) = buffer.get_mut(..HEADER_BYTES + len) else {
            panic!("a frame of {len} bytes is longer than the card's MTU allows");
        };
        let (header, frame) = bytes.split_at_mut(HEADER_BYTES);
        let result = f(frame);
        if self.offloads {
            header.copy_from_slice(&offload::header(frame, self.segment_bytes));
        }
        self.side.borrow_mut().send(buffer, len);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_bytes = meta.segmentation_offload_size.map(NonZeroU16::get);
    }
}

fn config_u16(device: &DeviceEntry, offset: usize) -> Option<u16> {
    let config = device.config.get(..(device.config_len as usize).min(device.config.len()))?;
    let bytes = config.get(offset..offset + 2)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}
