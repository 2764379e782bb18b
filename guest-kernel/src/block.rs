//! The virtio block device (virtio 1.2 §5.2): asynchronous, as many requests in flight as the
//! queue has room for.
//!
//! Nothing here exits: a request is queued, and the wait that its task's sleep leads to submits it.
//! Requests are safe to cancel: the buffer of a dropped future stays with the queue until the
//! device has used it. A dropped write may or may not have happened, as after a crash.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use abi::DeviceEntry;

use crate::dma::{DmaBuffer, QueueMemory};
use crate::runtime::Driver;
use crate::virtio::{Part, Queue, Used};

/// The unit in which virtio-blk counts (virtio 1.2 §5.2.4), whatever the device's block size.
pub const SECTOR_BYTES: u64 = 512;

const VIRTIO_BLK_F_RO: u64 = 1 << 5;
const VIRTIO_BLK_F_BLK_SIZE: u64 = 1 << 6;
const VIRTIO_BLK_F_FLUSH: u64 = 1 << 9;
const VIRTIO_BLK_T_IN: u32 = 0;
const VIRTIO_BLK_T_OUT: u32 = 1;
const VIRTIO_BLK_T_FLUSH: u32 = 4;
const VIRTIO_BLK_S_OK: u8 = 0;
const VIRTIO_BLK_S_UNSUPP: u8 = 2;
/// `struct virtio_blk_config` (virtio 1.2 §5.2.4): capacity, and the block size behind it.
const CONFIG_CAPACITY: usize = 0;
const CONFIG_BLK_SIZE: usize = 20;

/// The request header (type, reserved, sector) and behind it the status byte.
const HEADER_BYTES: usize = 16;
const CONTROL_BYTES: usize = HEADER_BYTES + 1;

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockError {
    /// The device reported an I/O error: the back end could not do it.
    Io,
    /// The device doesn't know this kind of request.
    Unsupported,
    /// The device is read-only.
    ReadOnly,
    /// Offset or length isn't a multiple of [`SECTOR_BYTES`], or the end lies outside the device.
    Range {
        /// The offset in bytes.
        offset: u64,
        /// The length in bytes.
        len: usize,
    },
}

impl core::fmt::Display for BlockError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Io => f.write_str("the disk reports an I/O error"),
            Self::Unsupported => f.write_str("the disk doesn't support this request"),
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::Range { offset, len } => {
                write!(f, "{len} bytes at {offset} are not whole sectors of the disk")
            }
        }
    }
}

impl core::error::Error for BlockError {}

/// A block device. Clones are handles of the same device.
#[derive(Clone)]
pub struct Block {
    inner: Rc<RefCell<Inner>>,
    capacity_bytes: u64,
    block_bytes: u64,
    features: u64,
}

struct Inner {
    queue: Queue<usize, 2>,
    /// By slot, the token of the queue.
    requests: Vec<Slot>,
    /// Control buffers (header and status) that are not in use.
    control: Vec<DmaBuffer>,
    /// Who waits for room in the queue.
    waiting: VecDeque<Waker>,
}

enum Slot {
    Free,
    /// In flight; the waker of the future that waits, if it has been polled.
    Pending(Option<Waker>),
    /// In flight, and the future is gone.
    Abandoned,
    Done(Result<DmaBuffer, BlockError>),
}

impl Block {
    /// Takes over a device of the boot page and its only queue.
    #[must_use]
    pub fn new(device: &DeviceEntry, memory: QueueMemory) -> Self {
        let queue = Queue::new("virtio-blk", memory);
        let sectors = config_bytes(device, CONFIG_CAPACITY).map_or(0, u64::from_le_bytes);
        let block_bytes = match device.features & VIRTIO_BLK_F_BLK_SIZE {
            0 => None,
            _ => config_bytes(device, CONFIG_BLK_SIZE).map(u32::from_le_bytes),
        };
        let block_bytes = block_bytes
            .map(u64::from)
            .filter(|size| size.is_power_of_two() && *size >= SECTOR_BYTES)
            .unwrap_or(SECTOR_BYTES);
        Self {
            inner: Rc::new(RefCell::new(Inner {
                queue,
                requests: Vec::new(),
                control: Vec::new(),
                waiting: VecDeque::new(),
            })),
            capacity_bytes: sectors.saturating_mul(SECTOR_BYTES),
            block_bytes,
            features: device.features,
        }
    }

    /// The device's size.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// The size and alignment of writes that touch nothing beside them; at least [`SECTOR_BYTES`].
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Whether the device refuses writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.features & VIRTIO_BLK_F_RO != 0
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub async fn read(&self, offset: u64, len: usize) -> Result<DmaBuffer, BlockError> {
        self.check(offset, len)?;
        self.start(VIRTIO_BLK_T_IN, offset, DmaBuffer::zeroed(len)).await.await
    }

    /// Writes `data` at `offset` and gives it back. Durable only after a flush.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub async fn write(&self, offset: u64, data: DmaBuffer) -> Result<DmaBuffer, BlockError> {
        self.check_write(offset, &data)?;
        self.start(VIRTIO_BLK_T_OUT, offset, data).await.await
    }

    /// Makes every write that has ended before durable.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub async fn flush(&self) -> Result<(), BlockError> {
        if self.features & VIRTIO_BLK_F_FLUSH == 0 {
            // Without the feature the device is write-through (virtio 1.2 §5.2.6.2).
            return Ok(());
        }
        self.start(VIRTIO_BLK_T_FLUSH, 0, DmaBuffer::empty()).await.await.map(drop)
    }

    /// Writes all of `writes` (offset, data) and makes them durable. Where the device promises
    /// that a flush covers the writes before it ([`abi::virtio::F_IN_ORDER`]), all of it is one
    /// batch: one exit.
    ///
    /// # Errors
    /// See [`BlockError`]; any part may have been written then.
    pub async fn write_durable(&self, writes: Vec<(u64, DmaBuffer)>) -> Result<(), BlockError> {
        for (offset, data) in &writes {
            self.check_write(*offset, data)?;
        }
        let one_batch = self.features & abi::virtio::F_IN_ORDER != 0;
        let mut requests = Vec::with_capacity(writes.len() + 1);
        for (offset, data) in writes {
            requests.push(self.start(VIRTIO_BLK_T_OUT, offset, data).await);
        }
        if one_batch && self.features & VIRTIO_BLK_F_FLUSH != 0 {
            requests.push(self.start(VIRTIO_BLK_T_FLUSH, 0, DmaBuffer::empty()).await);
        }
        // All are awaited even if one failed: afterwards none of them is in flight.
        let mut result = Ok(());
        for request in requests {
            result = result.and(request.await.map(drop));
        }
        if one_batch { result } else { result.and(self.flush().await) }
    }

    fn check_write(&self, offset: u64, data: &DmaBuffer) -> Result<(), BlockError> {
        if self.is_read_only() {
            return Err(BlockError::ReadOnly);
        }
        self.check(offset, data.len())
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), BlockError> {
        let end = offset.checked_add(len as u64);
        let aligned = (offset | len as u64).is_multiple_of(SECTOR_BYTES);
        if len != 0 && aligned && end.is_some_and(|end| end <= self.capacity_bytes) {
            Ok(())
        } else {
            Err(BlockError::Range { offset, len })
        }
    }

    /// Queues a request, once there is room; what comes back waits for its end.
    async fn start(&self, kind: u32, offset: u64, data: DmaBuffer) -> Request {
        let mut data = Some(data);
        poll_fn(|context| {
            let mut inner = self.inner.borrow_mut();
            let Some(buffer) = data.take() else { return Poll::Pending };
            match inner.submit(kind, offset, buffer) {
                Ok(slot) => {
                    Poll::Ready(Request { inner: Rc::clone(&self.inner), slot, taken: false })
                }
                Err(buffer) => {
                    data = Some(buffer);
                    inner.waiting.push_back(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Driver for Block {
    fn poll(&self, _now_ns: u64) {
        let mut inner = self.inner.borrow_mut();
        let mut any = false;
        while let Some(used) = inner.queue.pop_used() {
            inner.finish(used);
            any = true;
        }
        if any {
            for waker in inner.waiting.drain(..) {
                waker.wake();
            }
        }
    }

    fn deadline_ns(&self, _now_ns: u64) -> Option<u64> {
        None
    }
}

impl Inner {
    fn submit(&mut self, kind: u32, offset: u64, data: DmaBuffer) -> Result<usize, DmaBuffer> {
        let mut control = self.control.pop().unwrap_or_else(|| DmaBuffer::zeroed(CONTROL_BYTES));
        let sector = offset / SECTOR_BYTES;
        for (target, value) in control.iter_mut().zip(
            kind.to_le_bytes()
                .into_iter()
                .chain(0u32.to_le_bytes())
                .chain(sector.to_le_bytes())
                // A status that no device writes: one that writes none is told from one that does.
                .chain([u8::MAX]),
        ) {
            *target = value;
        }
        let slot = match self.requests.iter().position(|slot| matches!(slot, Slot::Free)) {
            Some(slot) => slot,
            None => {
                self.requests.push(Slot::Free);
                self.requests.len() - 1
            }
        };
        let parts = [
            Part { buffer: 0, range: 0..HEADER_BYTES, device_writes: false },
            Part { buffer: 1, range: 0..data.len(), device_writes: kind == VIRTIO_BLK_T_IN },
            Part { buffer: 0, range: HEADER_BYTES..CONTROL_BYTES, device_writes: true },
        ];
        match self.queue.submit([control, data], &parts, slot) {
            Ok(()) => {
                self.set(slot, Slot::Pending(None));
                Ok(slot)
            }
            Err(rejected) => {
                let [control, data] = rejected.buffers;
                self.control.push(control);
                Err(data)
            }
        }
    }

    fn finish(&mut self, used: Used<usize, 2>) {
        let [control, data] = used.buffers;
        let result = match control.get(HEADER_BYTES).copied() {
            Some(VIRTIO_BLK_S_OK) => Ok(data),
            Some(VIRTIO_BLK_S_UNSUPP) => Err(BlockError::Unsupported),
            _ => Err(BlockError::Io),
        };
        self.control.push(control);
        match self.take(used.token) {
            Slot::Pending(waker) => {
                self.set(used.token, Slot::Done(result));
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            // The slot is free now, and the buffer goes with the result.
            Slot::Abandoned | Slot::Free | Slot::Done(_) => {}
        }
    }

    fn set(&mut self, slot: usize, state: Slot) {
        if let Some(entry) = self.requests.get_mut(slot) {
            *entry = state;
        }
    }

    fn take(&mut self, slot: usize) -> Slot {
        self.requests
            .get_mut(slot)
            .map_or(Slot::Free, |entry| core::mem::replace(entry, Slot::Free))
    }
}

/// A request in flight.
struct Request {
    inner: Rc<RefCell<Inner>>,
    slot: usize,
    taken: bool,
}

impl Future for Request {
    type Output = Result<DmaBuffer, BlockError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let slot = self.slot;
        let state = self.inner.borrow_mut().take(slot);
        if let Slot::Done(result) = state {
            self.taken = true;
            return Poll::Ready(result);
        }
        self.inner.borrow_mut().set(slot, Slot::Pending(Some(context.waker().clone())));
        Poll::Pending
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut inner = self.inner.borrow_mut();
        if let Slot::Pending(_) = inner.take(self.slot) {
            inner.set(self.slot, Slot::Abandoned);
        }
    }
}

fn config_bytes<const N: usize>(device: &DeviceEntry, offset: usize) -> Option<[u8; N]> {
    let config = device.config.get(..(device.config_len as usize).min(device.config.len()))?;
    config.get(offset..offset.checked_add(N)?)?.try_into().ok()
}
