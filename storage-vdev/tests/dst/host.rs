//! A host with a volume open: requests in, completions checked against the oracle.

use std::collections::BTreeMap;

use storage_vdev::engine::{
    Command, Completion, Create, Holder, Limits, NodeInfo, OpenError, OpenOptions, Output, Policy,
    Randomness, RequestError, RequestId, Status, TakeOver, Volume,
};
use storage_vdev::files::sim::Rng;
use storage_vdev::register::ACCEPTORS_MAX;
use storage_vdev::sim_nodes::{Shared, SimNodes};
use storage_vdev::{BLOCK_BYTES, VolumeKey};

use crate::oracle::{Oracle, ReadView, SECTOR};

pub(crate) const UUID: [u8; 16] = [7; 16];
/// In virtual time: what takes longer never ends.
const PATIENCE_NS: u64 = 3_600_000_000_000;
const STEPS_MAX: u64 = 2_000_000;

/// What a request was.
#[derive(Debug)]
pub(crate) enum Pending {
    Read { view: ReadView },
    Change { change: usize, fua: bool },
    Flush { covers: usize },
    Other,
}

/// The shape of a system under test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) k: u8,
    pub(crate) m: u8,
    pub(crate) spares: u8,
    pub(crate) blocks: usize,
    pub(crate) policy: Policy,
    pub(crate) register: bool,
}

impl Shape {
    pub(crate) fn nodes(&self) -> usize {
        usize::from(self.k + self.m + self.spares)
    }

    pub(crate) fn create(&self) -> Create {
        Create {
            data_shards: self.k,
            parity_shards: self.m,
            size_bytes: (self.blocks * BLOCK_BYTES) as u64,
            policy: self.policy,
            allow_degraded: true,
            shared_domains: false,
            journal_bytes: 256 << 10,
            lease_ns: 10_000_000_000,
        }
    }

    pub(crate) fn options(&self, holder: u8, create: bool) -> OpenOptions {
        let info = |node: usize| NodeInfo {
            id: [node as u8 + 1; 16],
            name: format!("node {node}"),
            domain: format!("domain {node}"),
            objects: true,
            journal: true,
            register: self.register && node < ACCEPTORS_MAX,
            local: node == 0,
        };
        OpenOptions {
            uuid: UUID,
            key: VolumeKey::new(&[0x42; 32]),
            nodes: (0..self.nodes()).map(info).collect(),
            create: create.then(|| self.create()),
            must_be_new: false,
            holder: Holder { id: [holder; 16], name: format!("host {holder}") },
            register: self.register,
            take_over: TakeOver::Wait,
            accept_loss: false,
            base: None,
            limits: Limits {
                cache_bytes: 4 * BLOCK_BYTES,
                unsealed_bytes: 48 * BLOCK_BYTES,
                segment_blocks: 12,
                map_bytes: 64 << 10,
                repair_bytes_per_second: 0,
            },
        }
    }
}

pub(crate) fn random(rng: &mut Rng) -> Randomness {
    let mut random = Randomness { salt: [0; 32], proposer: [0; 24] };
    rng.fill(&mut random.salt);
    rng.fill(&mut random.proposer);
    random
}

/// Something that runs beside the host: faults. It is asked after every event.
pub(crate) trait Weather {
    /// `false`: the host crashes now.
    fn step(&mut self, world: &Shared, writer: usize) -> bool;
}

/// Nothing happens.
pub(crate) struct Fair;

impl Weather for Fair {
    fn step(&mut self, _: &Shared, _: usize) -> bool {
        true
    }
}

/// Opens a volume; `None` if the host crashes meanwhile.
pub(crate) fn open(
    world: &Shared,
    options: OpenOptions,
    rng: &mut Rng,
    weather: &mut impl Weather,
) -> Option<Result<Host, OpenError>> {
    let nodes = SimNodes::new(world);
    let writer = nodes.writer();
    let mut opening = Volume::open(nodes, options, random(rng));
    let until_ns = world.borrow().now_ns() + PATIENCE_NS;
    for _ in 0..STEPS_MAX {
        let now_ns = world.borrow().now_ns();
        if let Some(result) = opening.poll(now_ns) {
            return Some(result.map(|volume| Host::of(volume, world)));
        }
        if !weather.step(world, writer) {
            return None;
        }
        let deadline_ns = opening.deadline_ns().expect("something is always to come");
        assert!(now_ns < until_ns, "opening takes more than an hour");
        world.borrow_mut().run_until(deadline_ns.max(now_ns + 1));
    }
    panic!("opening never ends");
}

/// A host that has the volume open.
pub(crate) struct Host {
    pub(crate) volume: Volume<SimNodes>,
    world: Shared,
    pub(crate) writer: usize,
    next_id: RequestId,
    pub(crate) pending: BTreeMap<RequestId, Pending>,
}

/// Why a host came to its end before its requests did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It crashed.
    Crashed,
    /// A request failed.
    Failed(RequestError),
}

impl Host {
    /// A host with an open volume.
    pub(crate) fn of(volume: Volume<SimNodes>, world: &Shared) -> Self {
        let writer = volume.nodes().writer();
        let (world, pending) = (world.clone(), BTreeMap::new());
        Self { volume, world, writer, next_id: 1, pending }
    }

    fn id(&mut self, pending: Pending) -> RequestId {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, pending);
        id
    }

    pub(crate) fn read(&mut self, oracle: &Oracle, first: usize, count: usize) {
        let id = self.id(Pending::Read { view: oracle.begin_read(first, count) });
        self.volume.submit_read(id, (first * SECTOR) as u64, vec![0xaa; count * SECTOR]);
    }

    pub(crate) fn write(&mut self, oracle: &mut Oracle, (first, count): (usize, usize), fua: bool) {
        let (change, data) = oracle.write(first, count);
        let id = self.id(Pending::Change { change, fua });
        let offset = (first * SECTOR) as u64;
        match fua {
            true => self.volume.submit_write_fua(id, offset, &data),
            false => self.volume.submit_write(id, offset, &data),
        }
    }

    pub(crate) fn zero(&mut self, oracle: &mut Oracle, (first, count): (usize, usize)) {
        let change = oracle.zero(first, count);
        let id = self.id(Pending::Change { change, fua: false });
        let (offset, len) = ((first * SECTOR) as u64, (count * SECTOR) as u64);
        match change % 2 {
            0 => self.volume.submit_discard(id, offset, len),
            _ => self.volume.submit_write_zeroes(id, offset, len),
        }
    }

    pub(crate) fn flush(&mut self, oracle: &Oracle) {
        let id = self.id(Pending::Flush { covers: oracle.submitted() });
        self.volume.submit_flush(id);
    }

    /// Takes what is complete, and checks it.
    fn take(&mut self, oracle: &mut Oracle, done: Completion) -> Result<Output, RequestError> {
        let Completion { id, result, buffer } = done;
        let pending = self.pending.remove(&id).expect("a request completes once");
        if let Err(error) = &result {
            self.world.borrow_mut().note(&format!("request {id} failed: {error}: {pending:?}"));
            if let Pending::Change { change, .. } = &pending {
                oracle.refused(*change);
            }
        }
        let output = result?;
        if let Output::Report(report) = &output {
            self.world.borrow_mut().note(&format!("{report:?}"));
        }
        match pending {
            Pending::Read { view } => {
                oracle.check_read(&view, &buffer).unwrap_or_else(|error| panic!("{error}"));
            }
            Pending::Change { change, fua } => {
                oracle.done(change);
                if fua {
                    oracle.flushed(change + 1);
                }
            }
            Pending::Flush { covers } => {
                self.world.borrow_mut().note(&format!("flushed: the first {covers} changes"));
                oracle.flushed(covers);
            }
            Pending::Other => {}
        }
        Ok(output)
    }

    /// Takes what is complete by now; the last output if it was of request `wanted`.
    pub(crate) fn poll(&mut self, oracle: &mut Oracle) -> Result<(), RequestError> {
        let now_ns = self.world.borrow().now_ns();
        while let Some(done) = self.volume.poll(now_ns) {
            self.take(oracle, done)?;
        }
        Ok(())
    }

    /// Lets time pass until nothing is pending, or until `until_ns` if that is given.
    pub(crate) fn run(
        &mut self,
        oracle: &mut Oracle,
        weather: &mut impl Weather,
        until_ns: Option<u64>,
    ) -> Result<(), Ended> {
        let give_up_ns = self.world.borrow().now_ns() + PATIENCE_NS;
        for _ in 0..STEPS_MAX {
            self.poll(oracle).map_err(Ended::Failed)?;
            let now_ns = self.world.borrow().now_ns();
            let over = until_ns.is_none_or(|until_ns| now_ns >= until_ns);
            if self.pending.is_empty() && over {
                return Ok(());
            }
            assert!(now_ns < give_up_ns, "never answered: {:?}", self.pending);
            if !weather.step(&self.world, self.writer) {
                return Err(Ended::Crashed);
            }
            let deadline_ns = self.volume.deadline_ns().unwrap_or(u64::MAX);
            let limit_ns = until_ns.filter(|until_ns| *until_ns > now_ns).unwrap_or(u64::MAX);
            let next_ns = deadline_ns.max(now_ns + 1).min(limit_ns);
            assert!(next_ns < u64::MAX, "nothing is to come, and waiting: {:?}", self.pending);
            self.world.borrow_mut().run_until(next_ns);
        }
        panic!("never answered: {:?}, {:?}", self.pending, self.volume.status());
    }

    pub(crate) fn command(
        &mut self,
        oracle: &mut Oracle,
        weather: &mut impl Weather,
        command: Command,
    ) -> Result<(), Ended> {
        let id = self.id(Pending::Other);
        self.volume.submit_command(id, command);
        self.run(oracle, weather, None)
    }

    pub(crate) fn close(
        &mut self,
        oracle: &mut Oracle,
        weather: &mut impl Weather,
    ) -> Result<(), Ended> {
        let covers = oracle.submitted();
        let id = self.id(Pending::Flush { covers });
        self.volume.submit_close(id);
        self.run(oracle, weather, None)
    }

    /// The whole volume.
    pub(crate) fn content(&mut self, weather: &mut impl Weather) -> Result<Vec<u8>, Ended> {
        let size = usize::try_from(self.volume.size_bytes()).unwrap();
        self.bytes(0, size, weather)
    }

    /// Bytes of the volume, whatever they are. Nothing else may be pending.
    pub(crate) fn bytes(
        &mut self,
        offset: u64,
        len: usize,
        weather: &mut impl Weather,
    ) -> Result<Vec<u8>, Ended> {
        let id = self.next_id;
        self.next_id += 1;
        self.volume.submit_read(id, offset, vec![0xaa; len]);
        for _ in 0..STEPS_MAX {
            let now_ns = self.world.borrow().now_ns();
            while let Some(done) = self.volume.poll(now_ns) {
                if done.id == id {
                    return done.result.map(|_| done.buffer).map_err(Ended::Failed);
                }
            }
            if !weather.step(&self.world, self.writer) {
                return Err(Ended::Crashed);
            }
            let deadline_ns = self.volume.deadline_ns().expect("the read is under way");
            self.world.borrow_mut().run_until(deadline_ns.max(now_ns + 1));
        }
        panic!("a read never ends");
    }

    pub(crate) fn status(&self) -> Status {
        self.volume.status()
    }
}
