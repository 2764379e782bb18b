//! The virtio block device (virtio 1.2 §5.2) in front of a [`Volume`].
//!
//! One queue, used in order. Requests go to the volume in the order in which they were made
//! available, so a flush covers every write before it; all flushes of one [`Device::process`] share
//! one append to the journal: a driver makes a write durable with one batch of write and flush, and
//! one doorbell.
//!
//! One call is bounded: it takes no more requests than were there when it began (a read into the
//! ring itself can bring the next request), no more than so many bytes, and none that the volume
//! would have to keep a copy of. What is left is for the next call.

mod request;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vdev::{Chain, Device, DeviceError, DeviceQueue, GuestRam, Progress, RingError};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::engine::{Completion, RequestError, RequestId, Volume};
use crate::fields::Writer;
use crate::geometry::{BLOCK_BYTES, SECTOR_BYTES};
use crate::node::Nodes;
use request::{HEADER_BYTES, Refusal, Request, ZERO_SECTORS_MAX, ZERO_SEGMENTS_MAX, parse};

const QUEUE_SIZE: u16 = 128;
/// Header and status take two descriptors of a chain.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const CONFIG_BYTES: usize = 60;
/// How many bytes of requests one call serves (and the rest of the last one).
const CALL_BYTES_MAX: usize = 32 << 20;
/// How many zeroed bytes cost as much as one that is read or written.
const ZEROED_PER_BYTE: u64 = 8;
/// A write is begun if the volume has room for so many bytes; what doesn't fit waits in a copy.
const WRITE_BYTES: u64 = 64 << 10;
/// How many bytes of finished reads may wait for a flush before them.
const HELD_BYTES_MAX: usize = 4 << 20;
/// The largest buffer that is kept between requests.
const BUFFER_KEPT_MAX: usize = 1 << 20;
/// While the guest computes, shard servers are attended to so often: far more often than a lease is
/// renewed, and too seldom to cost the guest anything.
const ATTEND_NS: u64 = 100_000_000;
/// The id of the volume's closing: no request of the guest has it.
const CLOSE_ID: RequestId = RequestId::MAX;
/// How often closing waits for something. Nodes that need more are given up.
const CLOSE_WAITS_MAX: u32 = 10_000;
/// How long it waits at most each time.
const CLOSE_WAIT_NS: u64 = 1_000_000_000;

/// A volume as a virtio block device.
pub struct BlockDevice<N> {
    volume: Volume<N>,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    read_only: bool,
    /// Requests in the order in which they were made available.
    in_flight: VecDeque<InFlight>,
    /// The id of the first of them.
    first_id: RequestId,
    held_bytes: usize,
    /// Buffers of finished requests, for later ones.
    spare: Vec<u8>,
    /// The time of the last call.
    now_ns: u64,
    /// Whether this call gave a request back.
    used: bool,
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

impl<N: Nodes> BlockDevice<N> {
    /// The device of `volume`. `name` is what GET_ID answers (its first 20 bytes).
    #[must_use]
    pub fn new(volume: Volume<N>, name: &str, read_only: bool) -> Self {
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
            now_ns: 0,
            used: false,
        }
    }

    /// The volume, for its status.
    #[must_use]
    pub fn volume(&self) -> &Volume<N> {
        &self.volume
    }

    /// Serves the queue; returns whether the driver has made more available.
    fn take_requests(
        &mut self,
        queue: &mut DeviceQueue,
        ram: &GuestRam,
    ) -> Result<bool, RingError> {
        let mut bytes_left = CALL_BYTES_MAX;
        for _ in 0..queue.available(ram)? {
            if bytes_left == 0 || !self.has_room(queue, ram)? {
                break;
            }
            let Some(chain) = queue.pop(ram)? else { break };
            let request = parse(&chain, ram)?;
            bytes_left = bytes_left.saturating_sub(cost(&chain, &request));
            self.start(chain, request, ram);
            if self.held_bytes > HELD_BYTES_MAX {
                self.finish(queue, ram)?;
            }
        }
        self.finish(queue, ram)?;
        Ok(queue.available(ram)? > 0)
    }

    /// Whether the volume takes a write at once, after what is done has been given back.
    fn has_room(&mut self, queue: &mut DeviceQueue, ram: &GuestRam) -> Result<bool, RingError> {
        if !self.volume.takes_write(WRITE_BYTES) {
            self.finish(queue, ram)?;
        }
        Ok(self.volume.takes_write(WRITE_BYTES))
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
        while let Some(Completion { id, result, buffer }) = self.volume.poll(self.now_ns) {
            let position = id.checked_sub(self.first_id).map(|position| position as usize);
            let entry = position.and_then(|position| self.in_flight.get_mut(position));
            let Some(entry) = entry else { continue };
            entry.parts = entry.parts.saturating_sub(1);
            match result {
                Ok(_) => entry.answer = buffer,
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
            self.used = true;
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
        end.is_some_and(|end| end <= self.volume.size_bytes())
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
}

impl InFlight {
    fn refuse(&mut self, refusal: Refusal) {
        self.parts = 0;
        self.status = refusal.status();
    }
}

impl<N: Nodes> Device for BlockDevice<N> {
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
            .put(&(self.volume.size_bytes() / SECTOR_BYTES).to_le_bytes())
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
        self.now_ns = now_ns;
        self.used = false;
        let mut more = false;
        if let Some(queue) = queues.first_mut() {
            more = self
                .take_requests(queue, ram)
                .map_err(|source| DeviceError::Ring { queue: 0, source })?;
        }
        let waits = self.volume.deadline_ns();
        // What doesn't fit the volume goes on when a node has answered.
        let deadline_ns =
            if more && self.volume.takes_write(WRITE_BYTES) { Some(now_ns) } else { waits };
        Ok(Progress { used_queues: u32::from(self.used), deadline_ns })
    }

    fn attend(&mut self, now_ns: u64) -> Option<u64> {
        // Directories do everything at once and wait for nobody.
        self.volume.ready_fd()?;
        self.volume.advance(now_ns);
        Some(now_ns.saturating_add(ATTEND_NS))
    }

    fn ready_fds<'a>(&'a self, watch: &mut dyn FnMut(BorrowedFd<'a>)) {
        self.volume.ready_fd().into_iter().for_each(watch);
    }

    fn close(&mut self) -> Result<(), DeviceError> {
        self.volume.submit_close(CLOSE_ID);
        let failed = |error: RequestError| DeviceError::Backend(Box::new(error));
        for _ in 0..CLOSE_WAITS_MAX {
            while let Some(Completion { id, result, .. }) = self.volume.poll(self.now_ns) {
                if id == CLOSE_ID {
                    return result.map(|_| ()).map_err(failed);
                }
            }
            self.wait();
        }
        Err(failed(RequestError::Unavailable))
    }
}

impl<N: Nodes> BlockDevice<N> {
    /// Waits until the volume has something to do. Without a clock of its own, it takes the time
    /// that it was to wait for as the time that has passed.
    fn wait(&mut self) {
        let until_ns = self.volume.deadline_ns().unwrap_or(u64::MAX);
        let pause_ns = until_ns.saturating_sub(self.now_ns).min(CLOSE_WAIT_NS);
        if let Some(fd) = self.volume.ready_fd() {
            let timeout = Timespec { tv_sec: 0, tv_nsec: pause_ns.min(999_999_999) as i64 };
            let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
            if ready.is_ok_and(|ready| ready > 0) {
                return;
            }
        }
        self.now_ns = self.now_ns.saturating_add(pause_ns.max(1));
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
