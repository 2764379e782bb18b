//! What the engine's tests share: opening, requests run to their end, and a clock that jumps.

use storage_vdev::engine::{
    Create, Holder, Limits, NodeInfo, OpenError, OpenOptions, Output, Policy, Randomness,
    RequestError, RequestId, TakeOver, Volume,
};
use storage_vdev::{BLOCK_BYTES, VolumeKey};

use crate::nodes::{MemoryNodes, Rng, Shared};

pub(crate) const BLOCK: usize = BLOCK_BYTES;
pub(crate) const UUID: [u8; 16] = [7; 16];

/// A volume, and the time.
pub(crate) struct Bench {
    pub(crate) volume: Volume<MemoryNodes>,
    pub(crate) now_ns: u64,
    next_id: RequestId,
}

pub(crate) fn create(k: u8, m: u8, blocks: usize) -> Create {
    Create {
        data_shards: k,
        parity_shards: m,
        size_bytes: (blocks * BLOCK) as u64,
        policy: Policy::Quorum,
        allow_degraded: false,
        shared_domains: false,
        journal_bytes: 256 << 10,
        lease_ns: 10_000_000_000,
    }
}

pub(crate) fn limits() -> Limits {
    Limits {
        cache_bytes: 4 * BLOCK,
        unsealed_bytes: 64 * BLOCK,
        segment_blocks: 16,
        map_bytes: 64 << 10,
        repair_bytes_per_second: 0,
    }
}

pub(crate) fn node_infos(count: usize) -> Vec<NodeInfo> {
    let info = |node: usize| NodeInfo {
        id: [node as u8 + 1; 16],
        name: format!("node {node}"),
        domain: format!("domain {node}"),
        objects: true,
        journal: true,
        register: true,
        local: node == 0,
    };
    (0..count).map(info).collect()
}

pub(crate) fn options(nodes: usize, create: Option<Create>) -> OpenOptions {
    OpenOptions {
        uuid: UUID,
        key: VolumeKey::new(&[0x42; 32]),
        nodes: node_infos(nodes),
        create,
        base: None,
        must_be_new: false,
        holder: Holder { id: [1; 16], name: "test".to_owned() },
        register: false,
        take_over: TakeOver::Refuse,
        accept_loss: false,
        limits: limits(),
    }
}

pub(crate) fn random(rng: &mut Rng) -> Randomness {
    let mut random = Randomness { salt: [0; 32], proposer: [0; 24] };
    rng.fill(&mut random.salt);
    rng.fill(&mut random.proposer);
    random
}

/// Opens; `None` if the nodes crashed meanwhile.
pub(crate) fn try_open(
    world: &Shared,
    options: OpenOptions,
    now_ns: u64,
) -> Option<Result<Bench, OpenError>> {
    let random = random(&mut world.borrow_mut().rng);
    let mut opening = Volume::open(MemoryNodes::new(world), options, random);
    let mut now_ns = now_ns;
    for _ in 0..100_000 {
        if let Some(result) = opening.poll(now_ns) {
            return Some(result.map(|volume| Bench { volume, now_ns, next_id: 1 }));
        }
        now_ns = opening.deadline_ns()?.max(now_ns + 1);
        if crashed(world) {
            return None;
        }
    }
    panic!("opening never ends");
}

pub(crate) fn crashed(world: &Shared) -> bool {
    let world = world.borrow();
    world.crash_at.is_some_and(|at| world.operations >= at)
}

pub(crate) fn open(world: &Shared, options: OpenOptions) -> Bench {
    match try_open(world, options, 0) {
        Some(Ok(bench)) => bench,
        Some(Err(error)) => panic!("{error}"),
        None => panic!("crashed"),
    }
}

impl Bench {
    /// Runs one request to its end; `None` if the nodes crashed meanwhile.
    pub(crate) fn run(
        &mut self,
        world: &Shared,
        submit: impl FnOnce(&mut Volume<MemoryNodes>, RequestId),
    ) -> Option<(Result<Output, RequestError>, Vec<u8>)> {
        let id = self.next_id;
        self.next_id += 1;
        submit(&mut self.volume, id);
        for _ in 0..100_000 {
            while let Some(done) = self.volume.poll(self.now_ns) {
                if done.id == id {
                    return Some((done.result, done.buffer));
                }
            }
            if crashed(world) {
                return None;
            }
            let Some(deadline) = self.volume.deadline_ns() else {
                panic!("something is always to come");
            };
            self.now_ns = deadline.max(self.now_ns + 1);
        }
        panic!("request {id} never ends");
    }

    pub(crate) fn write(
        &mut self,
        world: &Shared,
        offset: usize,
        data: &[u8],
    ) -> Option<Result<Output, RequestError>> {
        let done = self.run(world, |volume, id| volume.submit_write(id, offset as u64, data));
        done.map(|done| done.0)
    }

    pub(crate) fn zero(
        &mut self,
        world: &Shared,
        offset: usize,
        len: usize,
    ) -> Option<Result<Output, RequestError>> {
        let done = self.run(world, |volume, id| {
            volume.submit_write_zeroes(id, offset as u64, len as u64);
        });
        done.map(|done| done.0)
    }

    pub(crate) fn flush(&mut self, world: &Shared) -> Option<Result<Output, RequestError>> {
        self.run(world, |volume, id| volume.submit_flush(id)).map(|done| done.0)
    }

    pub(crate) fn close(&mut self, world: &Shared) -> Option<Result<Output, RequestError>> {
        self.run(world, |volume, id| volume.submit_close(id)).map(|done| done.0)
    }

    pub(crate) fn read(
        &mut self,
        world: &Shared,
        offset: usize,
        len: usize,
    ) -> Option<Result<Vec<u8>, RequestError>> {
        let done = self.run(world, |volume, id| {
            volume.submit_read(id, offset as u64, vec![0xaa; len]);
        });
        done.map(|(result, buffer)| result.map(|_| buffer))
    }

    pub(crate) fn read_all(&mut self, world: &Shared) -> Option<Result<Vec<u8>, RequestError>> {
        let len = usize::try_from(self.volume.size_bytes()).unwrap();
        self.read(world, 0, len)
    }

    /// Lets time pass.
    pub(crate) fn idle(&mut self, ns: u64) {
        let until = self.now_ns + ns;
        for _ in 0..100_000 {
            assert_eq!(self.volume.poll(self.now_ns), None);
            match self.volume.deadline_ns() {
                Some(deadline) if deadline <= until => {
                    self.now_ns = deadline.max(self.now_ns + 1);
                }
                _ => break,
            }
        }
        self.now_ns = until;
    }
}
