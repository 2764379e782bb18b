//! The virtio block device (virtio 1.2 §5.2) in front of a [`Volume`].
//!
//! One queue, used in order. Requests go to the volume in the order in which they were made
//! available and all flushes of one [`Device::process`] share one commit: a driver makes a write
//! durable with one batch of write and flush, and one doorbell.
//!
//! One call is bounded: it takes no more requests than were there when it began (a read into the
//! ring itself can bring the next request), and no more than so many bytes. What is left is for the
//! next call, which is due at once.
//!
//! Background work (checkpoint, rebuild) is done a step at a time when the guest has been idle for
//! a moment, or now and then when it is never idle; when nothing is left there is no deadline.

mod request;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use vdev::{Chain, Device, DeviceError, DeviceQueue, GuestRam, Progress, RingError};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::fields::Writer;
use crate::geometry::{BLOCK_BYTES, SECTOR_BYTES};
use crate::store::Store;
use crate::volume::{Completion, RequestId, Step, Volume};
use request::{HEADER_BYTES, Refusal, Request, ZERO_SECTORS_MAX, ZERO_SEGMENTS_MAX, parse};

const QUEUE_SIZE: u16 = 128;
/// Header and status take two descriptors of a chain.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const CONFIG_BYTES: usize = 60;
/// How many bytes of requests one call serves (and the rest of the last one).
const CALL_BYTES_MAX: usize = 32 << 20;
/// How many zeroed bytes cost as much as one that is read or written.
const ZEROED_PER_BYTE: u64 = 8;
/// How many bytes of finished reads may wait for a flush before them.
const HELD_BYTES_MAX: usize = 4 << 20;
/// The largest buffer that is kept between requests.
const BUFFER_KEPT_MAX: usize = 1 << 20;
/// How long the guest is idle before background work starts.
const IDLE_NS: u64 = 100_000_000;
/// How long after one step of background work the next may come, to an idle and to a busy guest.
const STEP_NS: u64 = 1_000_000;
const BUSY_STEP_NS: u64 = 10_000_000;

/// A volume as a virtio block device.
#[derive(Debug)]
pub struct BlockDevice<S> {
    volume: Volume<S>,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    read_only: bool,
    /// Requests in the order in which they were made available.
    in_flight: VecDeque<InFlight>,
    /// The id of the first of them.
    first_id: RequestId,
    held_bytes: usize,
    /// Buffers of finished requests, for later ones.
    spare: Vec<u8>,
    /// Whether the volume may have been opened with work left to do, which nobody asked for yet.
    fresh: bool,
    background_at_ns: Option<u64>,
}

/// What one call did with the queue.
struct Taken {
    any: bool,
    /// The driver has made more available.
    more: bool,
}

/// A request that has not been given back to the driver yet.
#[derive(Debug)]
struct InFlight {
    chain: Chain,
    /// How many parts of it are still with the volume.
    parts: usize,
    status: u8,
    answer: Vec<u8>,
}

impl<S: Store> BlockDevice<S> {
    /// The device of `volume`. `name` is what GET_ID answers (its first 20 bytes).
    #[must_use]
    pub fn new(volume: Volume<S>, name: &str, read_only: bool) -> Self {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        id.iter_mut().zip(name.bytes()).for_each(|(target, byte)| *target = byte);
        Self {
            volume,
            id,
            read_only,
            in_flight: VecDeque::new(),
            first_id: 0,
            held_bytes: 0,
            spare: Vec::new(),
            fresh: true,
            background_at_ns: None,
        }
    }

    /// The volume, for its status.
    #[must_use]
    pub fn volume(&self) -> &Volume<S> {
        &self.volume
    }

    fn take_requests(
        &mut self,
        queue: &mut DeviceQueue,
        ram: &GuestRam,
    ) -> Result<Taken, RingError> {
        let mut bytes_left = CALL_BYTES_MAX;
        let mut any = false;
        for _ in 0..queue.available(ram)? {
            if bytes_left == 0 {
                break;
            }
            let Some(chain) = queue.pop(ram)? else { break };
            let request = parse(&chain, ram)?;
            bytes_left = bytes_left.saturating_sub(cost(&chain, &request));
            self.start(chain, request, ram);
            any = true;
            if self.held_bytes > HELD_BYTES_MAX {
                self.finish(queue, ram)?;
            }
        }
        self.finish(queue, ram)?;
        Ok(Taken { any, more: queue.available(ram)? > 0 })
    }

    fn start(&mut self, chain: Chain, request: Result<Request, Refusal>, ram: &GuestRam) {
        let id = self.first_id + self.in_flight.len() as u64;
        let mut entry =
            InFlight { chain, parts: 1, status: VIRTIO_BLK_S_OK as u8, answer: Vec::new() };
        match request {
            Ok(Request::Write { .. } | Request::Zero { .. }) if self.read_only => {
                entry.refuse(Refusal::IoError);
            }
            Ok(Request::Read { offset, len }) if self.is_inside(offset, len as u64) => {
                self.held_bytes += len;
                let buffer = self.buffer(len);
                self.volume.submit_read(id, offset, buffer);
            }
            Ok(Request::Write { offset, len }) if self.is_inside(offset, len as u64) => {
                let mut buffer = self.buffer(len);
                // The guest may change its buffer at any time: it is read once.
                if entry.chain.read_at(ram, HEADER_BYTES, &mut buffer) == len {
                    self.volume.submit_write(id, offset, &buffer);
                } else {
                    entry.refuse(Refusal::IoError);
                }
                self.keep(buffer);
            }
            Ok(Request::Flush) => self.volume.submit_flush(id),
            Ok(Request::Zero { ranges })
                if ranges.iter().all(|(offset, len)| self.is_inside(*offset, *len)) =>
            {
                entry.parts = ranges.len();
                for (offset, len) in ranges {
                    self.volume.submit_write_zeroes(id, offset, len);
                }
            }
            Ok(Request::GetId) => {
                entry.parts = 0;
                entry.answer = self.id.to_vec();
            }
            Ok(Request::Read { .. } | Request::Write { .. } | Request::Zero { .. }) => {
                entry.refuse(Refusal::IoError);
            }
            Err(refusal) => entry.refuse(refusal),
        }
        self.in_flight.push_back(entry);
    }

    /// Polls the volume and gives finished requests back, in order.
    fn finish(&mut self, queue: &mut DeviceQueue, ram: &GuestRam) -> Result<(), RingError> {
        while let Some(Completion { id, result, buffer }) = self.volume.poll() {
            let position = id.checked_sub(self.first_id).map(|position| position as usize);
            let entry = position.and_then(|position| self.in_flight.get_mut(position));
            let Some(entry) = entry else { continue };
            entry.parts = entry.parts.saturating_sub(1);
            match result {
                Ok(()) => entry.answer = buffer,
                Err(error) => {
                    // Not louder: the guest decides how often it asks.
                    tracing::debug!(%error, "block request failed");
                    self.held_bytes -= buffer.len().min(self.held_bytes);
                    entry.status = VIRTIO_BLK_S_IOERR as u8;
                }
            }
            self.give_back(queue, ram)?;
        }
        self.give_back(queue, ram)
    }

    fn give_back(&mut self, queue: &mut DeviceQueue, ram: &GuestRam) -> Result<(), RingError> {
        while let Some(entry) = self.in_flight.pop_front_if(|entry| entry.parts == 0) {
            self.first_id += 1;
            let InFlight { chain, status, answer, .. } = entry;
            self.held_bytes -= answer.len().min(self.held_bytes);
            // The used length counts from the first byte, so a failed read gets zeroes.
            let data_len = chain.writable_len() - 1;
            let copied = chain.write_at(ram, 0, answer.get(..data_len).unwrap_or(&answer));
            fill_zero(&chain, ram, copied, data_len);
            chain.write_at(ram, data_len, &[status]);
            let used = u32::try_from(chain.writable_len()).unwrap_or(u32::MAX);
            queue.push_used(ram, chain.head(), used)?;
            self.keep(answer);
        }
        Ok(())
    }

    fn is_inside(&self, offset: u64, len: u64) -> bool {
        let end = offset.checked_add(len);
        end.is_some_and(|end| end <= self.volume.geometry().size_bytes())
    }

    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.spare);
        buffer.resize(len, 0);
        buffer
    }

    fn keep(&mut self, buffer: Vec<u8>) {
        if (self.spare.capacity()..=BUFFER_KEPT_MAX).contains(&buffer.capacity()) {
            self.spare = buffer;
        }
    }

    /// Does a step of background work if it is due.
    fn background(&mut self, busy: bool, now_ns: u64) {
        let due = self.background_at_ns.is_some_and(|at| at <= now_ns);
        if due {
            let pause_ns = if busy { BUSY_STEP_NS } else { STEP_NS };
            self.background_at_ns = match self.volume.repair_step() {
                Step::More => Some(now_ns.saturating_add(pause_ns)),
                Step::Done => None,
            };
        }
        if busy || std::mem::take(&mut self.fresh) {
            // Wait until the guest is idle, but not for ever while there is something to rebuild.
            let idle_at = now_ns.saturating_add(IDLE_NS);
            let rebuilding = self.volume.needs_repair();
            self.background_at_ns = match self.background_at_ns {
                Some(at) if rebuilding => Some(at.min(idle_at)),
                _ => Some(idle_at),
            };
        }
    }
}

impl InFlight {
    fn refuse(&mut self, refusal: Refusal) {
        self.parts = 0;
        self.status = refusal.status();
    }
}

impl<S: Store> Device for BlockDevice<S> {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_F_IN_ORDER,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
        ];
        if self.read_only {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        bits.into_iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// `struct virtio_blk_config` up to `write_zeroes_may_unmap` (virtio 1.2 §5.2.4).
    fn config_space(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_BYTES];
        let block_sectors = (BLOCK_BYTES as u64 / SECTOR_BYTES) as u32;
        Writer::new(&mut config)
            .put(&(self.volume.geometry().size_bytes() / SECTOR_BYTES).to_le_bytes())
            .put(&0u32.to_le_bytes()) // size_max
            .put(&SEG_MAX.to_le_bytes())
            .put(&[0; 4]) // geometry
            .put(&(BLOCK_BYTES as u32).to_le_bytes()) // blk_size
            .put(&[0; 8]) // topology
            .put(&[0; 4]) // writeback, unused0, num_queues
            .put(&ZERO_SECTORS_MAX.to_le_bytes()) // max_discard_sectors
            .put(&ZERO_SEGMENTS_MAX.to_le_bytes()) // max_discard_seg
            .put(&block_sectors.to_le_bytes()) // discard_sector_alignment
            .put(&ZERO_SECTORS_MAX.to_le_bytes()) // max_write_zeroes_sectors
            .put(&ZERO_SEGMENTS_MAX.to_le_bytes()) // max_write_zeroes_seg
            .put(&[1, 0, 0, 0]); // write_zeroes_may_unmap, unused1
        config
    }

    fn process(
        &mut self,
        queues: &mut [DeviceQueue],
        ram: &GuestRam,
        now_ns: u64,
    ) -> Result<Progress, DeviceError> {
        let mut taken = Taken { any: false, more: false };
        if let Some(queue) = queues.first_mut() {
            taken = self
                .take_requests(queue, ram)
                .map_err(|source| DeviceError::Ring { queue: 0, source })?;
        }
        self.background(taken.any, now_ns);
        let deadline_ns = if taken.more { Some(now_ns) } else { self.background_at_ns };
        Ok(Progress { used_queues: u32::from(taken.any), deadline_ns })
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn close(&mut self) -> Result<(), DeviceError> {
        self.volume.close().map_err(|error| DeviceError::Backend(Box::new(error)))
    }
}

/// What serving a request costs, in bytes.
fn cost(chain: &Chain, request: &Result<Request, Refusal>) -> usize {
    let zeroed = match request {
        Ok(Request::Zero { ranges }) => ranges.iter().map(|(_, len)| len / ZEROED_PER_BYTE).sum(),
        _ => 0,
    };
    let zeroed = usize::try_from(zeroed).unwrap_or(usize::MAX);
    zeroed.saturating_add(chain.readable_len()).saturating_add(chain.writable_len())
}

fn fill_zero(chain: &Chain, ram: &GuestRam, from: usize, to: usize) {
    const ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let mut at = from;
    while at < to {
        let zeroes = ZEROES.get(..(to - at).min(BLOCK_BYTES)).unwrap_or(&ZEROES);
        if chain.write_at(ram, at, zeroes) == 0 {
            return;
        }
        at += zeroes.len();
    }
}
