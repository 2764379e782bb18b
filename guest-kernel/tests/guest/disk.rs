//! A virtio-blk device in memory that keeps what was flushed apart from what was only written, so
//! that a crash can lose, tear and reorder the latter.

use abi::{DEVICE_CONFIG_MAX, DeviceEntry, QueueEntry, virtio};

use crate::memory::{DeviceQueue, Segment};
use crate::random::Random;

pub(crate) const SECTOR: usize = 512;

const BLK_F_BLK_SIZE: u64 = 1 << 6;
const BLK_F_FLUSH: u64 = 1 << 9;

/// The platters: survive a crash.
#[derive(Clone)]
pub(crate) struct Platters {
    durable: Vec<u8>,
    /// Writes since the last flush, in order: offset and bytes.
    volatile: Vec<(usize, Vec<u8>)>,
}

impl Platters {
    pub(crate) fn blank(bytes: usize) -> Self {
        Self { durable: vec![0; bytes], volatile: Vec::new() }
    }

    pub(crate) fn holding(bytes: Vec<u8>) -> Self {
        Self { durable: bytes, volatile: Vec::new() }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.volatile.push((offset, bytes.to_vec()));
    }

    fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = self.durable[offset..offset + len].to_vec();
        for (at, written) in &self.volatile {
            let (from, to) = ((*at).max(offset), (at + written.len()).min(offset + len));
            if from < to {
                bytes[from - offset..to - offset].copy_from_slice(&written[from - at..to - at]);
            }
        }
        bytes
    }

    pub(crate) fn flush(&mut self) {
        for (at, written) in std::mem::take(&mut self.volatile) {
            self.durable[at..at + written.len()].copy_from_slice(&written);
        }
    }

    /// Loses power: of the unflushed writes each sector reached the platters or not, in any order,
    /// and one in a while is torn in the middle.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        let mut sectors: Vec<(usize, Vec<u8>)> = Vec::new();
        for (at, written) in std::mem::take(&mut self.volatile) {
            assert!(at.is_multiple_of(SECTOR) && written.len().is_multiple_of(SECTOR));
            for (i, sector) in written.chunks(SECTOR).enumerate() {
                sectors.push((at + i * SECTOR, sector.to_vec()));
            }
        }
        // Whole writes tend to make it or not; half of the crashes are of that kind.
        let keep_one_in = [1, 2, 2, 8, 1000][random.below(5)];
        for i in (1..sectors.len()).rev() {
            sectors.swap(i, random.below(i + 1));
        }
        for (at, sector) in sectors {
            if !random.one_in(keep_one_in) {
                continue;
            }
            let (from, to) = match random.below(16) {
                0 => (0, random.below(SECTOR)),
                1 => (random.below(SECTOR), SECTOR),
                _ => (0, SECTOR),
            };
            self.durable[at + from..at + to].copy_from_slice(&sector[from..to]);
        }
    }

    /// Loses power; of the unflushed writes exactly those sectors survive that `keeps` names by
    /// their offset.
    pub(crate) fn crash_keeping(&mut self, keeps: impl Fn(usize) -> bool) {
        for (at, written) in std::mem::take(&mut self.volatile) {
            for (i, sector) in written.chunks(SECTOR).enumerate() {
                let at = at + i * SECTOR;
                if keeps(at) {
                    self.durable[at..at + SECTOR].copy_from_slice(sector);
                }
            }
        }
    }

    /// The bytes as a reader finds them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.read(0, self.durable.len())
    }

    pub(crate) fn len(&self) -> usize {
        self.durable.len()
    }
}

/// What goes wrong while the device runs.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// One in so many writes or flushes fails (0: none); what it wrote is anybody's guess.
    pub(crate) error_one_in: usize,
    /// What a failed write wrote is all of it.
    pub(crate) errors_lie: bool,
}

/// The device: platters behind a queue.
pub(crate) struct Disk {
    pub(crate) platters: Platters,
    pub(crate) faults: Faults,
    pub(crate) requests: usize,
    queue: DeviceQueue,
}

impl Disk {
    pub(crate) fn new(platters: Platters, entry: QueueEntry) -> Self {
        let queue = DeviceQueue::new(entry);
        Self { platters, faults: Faults::default(), requests: 0, queue }
    }

    /// The device's entry in the boot page.
    pub(crate) fn device_entry(capacity_bytes: usize, block_bytes: u32) -> DeviceEntry {
        let mut config = [0; DEVICE_CONFIG_MAX];
        config[..8].copy_from_slice(&((capacity_bytes / SECTOR) as u64).to_le_bytes());
        config[20..24].copy_from_slice(&block_bytes.to_le_bytes());
        DeviceEntry {
            device_id: virtio::DEVICE_ID_BLOCK,
            first_queue: 0,
            queue_count: 1,
            config_len: 24,
            features: virtio::F_VERSION_1 | virtio::F_IN_ORDER | BLK_F_FLUSH | BLK_F_BLK_SIZE,
            config,
        }
    }

    /// Serves up to `count` requests; returns how many there were.
    pub(crate) fn serve(&mut self, count: usize, random: &mut Random) -> usize {
        for served in 0..count {
            let Some((head, segments)) = self.queue.pop() else { return served };
            self.requests += 1;
            let (status, written) = self.request(&segments, random);
            segments[segments.len() - 1].write(&[status]);
            self.queue.push_used(u32::from(head), written as u32 + 1);
        }
        count
    }

    fn request(&mut self, segments: &[Segment], random: &mut Random) -> (u8, usize) {
        let header = segments[0].read();
        assert_eq!(header.len(), 16);
        let (kind, _) = header.split_first_chunk().expect("a header");
        let kind = u32::from_le_bytes(*kind);
        let (_, sector) = header.split_last_chunk().expect("a header");
        let offset = u64::from_le_bytes(*sector) as usize * SECTOR;
        let data = &segments[1..segments.len() - 1];
        let len: usize = data.iter().map(|segment| segment.len).sum();
        assert!(offset + len <= self.platters.len(), "a request outside the disk");
        let fails = self.faults.error_one_in != 0 && random.one_in(self.faults.error_one_in);
        match kind {
            0 => {
                let bytes = self.platters.read(offset, len);
                let mut at = 0;
                for segment in data {
                    segment.write(&bytes[at..at + segment.len]);
                    at += segment.len;
                }
                (0, len)
            }
            1 => {
                let mut bytes: Vec<u8> = data.iter().flat_map(Segment::read).collect();
                if fails && !self.faults.errors_lie {
                    bytes.truncate(random.below(bytes.len() / SECTOR + 1) * SECTOR);
                }
                self.platters.write(offset, &bytes);
                (u8::from(fails), 0)
            }
            4 if fails => (1, 0),
            4 => {
                self.platters.flush();
                (0, 0)
            }
            _ => (2, 0),
        }
    }
}
