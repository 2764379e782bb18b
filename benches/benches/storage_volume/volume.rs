//! A volume that is driven from one thread, as hard as it goes.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use storage_node::served;
use storage_vdev::VolumeKey;
use storage_vdev::engine::{
    Completion, Create, Holder, Limits, NodeInfo, OpenOptions, Policy, Randomness, TakeOver, Volume,
};
use storage_vdev::files::sim::Rng;
use storage_vdev::node::Nodes;

/// The code of all volumes here.
pub(crate) const DATA: u8 = 4;
pub(crate) const PARITY: u8 = 2;
pub(crate) const NODES: u8 = DATA + PARITY;
pub(crate) const UUID: [u8; 16] = [7; 16];
pub(crate) const KEY: [u8; 32] = [9; 32];

pub(crate) struct Driven<N> {
    pub(crate) volume: Volume<N>,
}

/// The nodes' ids, where no node is ever replaced.
pub(crate) const IDS: [[u8; 16]; NODES as usize] =
    [[1; 16], [2; 16], [3; 16], [4; 16], [5; 16], [6; 16]];

/// How a volume over the nodes `ids` is opened, or made.
pub(crate) fn options(
    (size_bytes, policy): (u64, Policy),
    ids: &[[u8; 16]],
    local: bool,
    cache: usize,
) -> OpenOptions {
    let node = |(node, id): (u8, &[u8; 16])| NodeInfo {
        id: *id,
        name: format!("node {node}"),
        domain: format!("domain {node}"),
        objects: true,
        journal: true,
        register: false,
        local,
    };
    let create = Create {
        data_shards: DATA,
        parity_shards: PARITY,
        size_bytes,
        policy,
        allow_degraded: false,
        shared_domains: false,
        journal_bytes: 64 << 20,
        lease_ns: 10_000_000_000,
    };
    OpenOptions {
        uuid: UUID,
        key: VolumeKey::new(&KEY),
        nodes: (0..NODES).zip(ids).map(node).collect(),
        create: Some(create),
        base: None,
        must_be_new: false,
        holder: Holder { id: random(), name: "a benchmark".into() },
        register: false,
        take_over: TakeOver::Refuse,
        accept_loss: false,
        limits: Limits { cache_bytes: cache, ..Limits::LARGE },
    }
}

impl<N: Nodes> Driven<N> {
    pub(crate) fn open(nodes: N, options: OpenOptions) -> Self {
        let random = Randomness { salt: random(), proposer: random() };
        let volume = served::open(Volume::open(nodes, options, random)).unwrap().unwrap();
        Self { volume }
    }

    /// The next completion, which must be a success.
    pub(crate) fn wait(&mut self) -> Completion {
        loop {
            let now_ns = now_ns();
            if let Some(completion) = self.volume.poll(now_ns) {
                completion.result.as_ref().unwrap();
                return completion;
            }
            let left = self.volume.deadline_ns().map(|at| at.saturating_sub(now_ns));
            let timeout = left.map(|ns| Timespec {
                tv_sec: (ns / 1_000_000_000).min(3600) as i64,
                tv_nsec: (ns % 1_000_000_000) as i64,
            });
            let fd = self.volume.ready_fd();
            let mut sources: Vec<_> = fd.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            poll(&mut sources, timeout.as_ref()).unwrap();
        }
    }

    /// Keeps `depth` requests under way until `count` are done; the seconds that took. `submit`
    /// starts a request by its number, `done` gets what was read.
    pub(crate) fn keep(
        &mut self,
        (count, depth): (u64, u64),
        mut submit: impl FnMut(&mut Volume<N>, u64, Vec<u8>),
        mut done: impl FnMut(u64, &[u8]),
    ) -> f64 {
        let start = Instant::now();
        let (mut sent, mut spare) = (0, Vec::new());
        for finished in 0..count {
            while sent < count && sent - finished < depth {
                submit(&mut self.volume, sent, spare.pop().unwrap_or_default());
                sent += 1;
            }
            let completion = self.wait();
            done(completion.id, &completion.buffer);
            spare.push(completion.buffer);
        }
        start.elapsed().as_secs_f64()
    }

    pub(crate) fn flush(&mut self) {
        self.volume.submit_flush(u64::MAX);
        self.wait();
    }

    pub(crate) fn close(mut self) {
        self.volume.submit_close(u64::MAX);
        self.wait();
    }
}

/// Bytes that are the same nowhere: noise, each 4 KiB with a number of its own.
pub(crate) struct Unique {
    noise: Vec<u8>,
}

impl Unique {
    pub(crate) fn new(bytes: usize) -> Self {
        let mut noise = vec![0; bytes];
        Rng::new(1).fill(&mut noise);
        Self { noise }
    }

    /// The piece with this number.
    pub(crate) fn piece(&mut self, number: u64) -> &[u8] {
        let blocks = (self.noise.len() / 4096) as u64;
        for (block, nth) in self.noise.chunks_exact_mut(4096).zip(0..) {
            block[..8].copy_from_slice(&(number * blocks + nth).to_le_bytes());
        }
        &self.noise
    }

    /// Fails if `bytes` are not that piece: each block's number is looked at, and of every
    /// sixteenth piece every byte.
    pub(crate) fn check(&mut self, number: u64, bytes: &[u8]) {
        let blocks = (self.noise.len() / 4096) as u64;
        assert_eq!(bytes.len(), self.noise.len());
        for (block, nth) in bytes.chunks_exact(4096).zip(0..) {
            assert_eq!(block[..8], (number * blocks + nth).to_le_bytes(), "piece {number}");
        }
        assert!(!number.is_multiple_of(16) || bytes == self.piece(number), "piece {number}");
    }
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut bytes)
        .unwrap();
    bytes
}

/// CLOCK_BOOTTIME.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
