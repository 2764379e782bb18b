//! A host with three nodes inside, which stops as a whole when one of its disks stops.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use storage_vdev::VolumeKey;
use storage_vdev::dir_nodes::LocalNode;
use storage_vdev::engine::{
    Command, Completion, Create, Holder, Limits, NodeInfo, OpenError, OpenOptions, Output, Policy,
    Randomness, RequestError, TakeOver, Volume,
};
use storage_vdev::files::sim::{Rng, SimDisk, SimFile};
use storage_vdev::node::{NodeCompletion, NodeIndex, Nodes, Request, Tag};
use storage_vdev::service::{NodeIdentity, NodeOptions};

pub(crate) const NODES: usize = 3;
pub(crate) const BLOCKS: usize = 4;
const STEPS_MAX: usize = 100_000;

pub(crate) struct Machine {
    disks: Vec<SimDisk>,
    nodes: Vec<LocalNode<SimFile>>,
    busy: Vec<usize>,
    done: VecDeque<NodeCompletion>,
    stopped: Rc<Cell<bool>>,
}

impl Machine {
    /// Starts the nodes. `None`: a disk stopped meanwhile.
    fn start(disks: &[SimDisk], stopped: &Rc<Cell<bool>>) -> Option<Self> {
        let mut nodes = Vec::new();
        for (index, disk) in disks.iter().enumerate() {
            let seed = [index as u8 + 1; 32];
            let create = NodeIdentity { node: [index as u8 + 1; 16], acceptor_seed: seed.into() };
            let options = NodeOptions { capacity_bytes: 16 << 20, create: Some(create) };
            let opened = LocalNode::open(format!("node {index}"), disk.files(), &options);
            if disk.has_crashed() {
                stopped.set(true);
                return None;
            }
            nodes.push(opened.unwrap_or_else(|error| panic!("node {index}: {error}")));
        }
        let (disks, stopped) = (disks.to_vec(), Rc::clone(stopped));
        Some(Self { disks, nodes, busy: Vec::new(), done: VecDeque::new(), stopped })
    }
}

impl Nodes for Machine {
    fn count(&self) -> usize {
        NODES
    }

    fn name(&self, node: NodeIndex) -> String {
        format!("node {node}")
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        let node = usize::from(node);
        self.nodes[node].submit(tag, request);
        if !self.busy.contains(&node) {
            self.busy.push(node);
        }
    }

    fn poll(&mut self, _: u64) -> Option<NodeCompletion> {
        while self.done.is_empty() && !self.busy.is_empty() && !self.stopped.get() {
            let node = self.busy.remove(0);
            let done = &mut self.done;
            self.nodes[node].run(|completion| done.push_back(completion));
            if self.disks[node].has_crashed() {
                // What it said is not heard any more.
                self.stopped.set(true);
            }
        }
        if self.stopped.get() {
            self.done.clear();
        }
        self.done.pop_front()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }
}

fn options(policy: Policy) -> OpenOptions {
    let info = |node: usize| NodeInfo {
        id: [node as u8 + 1; 16],
        name: format!("node {node}"),
        domain: format!("domain {node}"),
        objects: true,
        journal: true,
        register: false,
        local: node == 0,
    };
    OpenOptions {
        uuid: [7; 16],
        key: VolumeKey::new(&[0x42; 32]),
        nodes: (0..NODES).map(info).collect(),
        create: Some(Create {
            data_shards: 2,
            parity_shards: 1,
            size_bytes: (BLOCKS * 4096) as u64,
            policy,
            allow_degraded: false,
            shared_domains: false,
            journal_bytes: 256 << 10,
            lease_ns: 10_000_000_000,
        }),
        must_be_new: false,
        holder: Holder { id: [1; 16], name: "host".to_owned() },
        register: false,
        take_over: TakeOver::Refuse,
        accept_loss: false,
        base: None,
        limits: Limits {
            cache_bytes: 0,
            unsealed_bytes: 16 * 4096,
            segment_blocks: 2,
            map_bytes: 64 << 10,
            repair_bytes_per_second: 0,
        },
    }
}

/// A volume that is open on a machine.
pub(crate) struct Open {
    volume: Volume<Machine>,
    stopped: Rc<Cell<bool>>,
    now_ns: u64,
}

/// Starts the machine and opens the volume, made if it isn't there. `None`: a disk stopped.
pub(crate) fn open(
    disks: &[SimDisk],
    policy: Policy,
    salt: u64,
) -> Option<Result<Open, OpenError>> {
    let stopped = Rc::new(Cell::new(false));
    let machine = Machine::start(disks, &stopped)?;
    let mut random = Randomness { salt: [0; 32], proposer: [0; 24] };
    Rng::new(salt).fill(&mut random.salt);
    let mut opening = Volume::open(machine, options(policy), random);
    let mut now_ns = 1;
    for _ in 0..STEPS_MAX {
        let opened = opening.poll(now_ns);
        if stopped.get() {
            return None;
        }
        if let Some(result) = opened {
            return Some(result.map(|volume| Open { volume, stopped, now_ns }));
        }
        now_ns = opening.deadline_ns().map_or(now_ns, |at| at.max(now_ns)) + 1;
    }
    panic!("opening never ends");
}

impl Open {
    /// Runs until request 1 is complete. `None`: a disk stopped.
    fn finish(&mut self) -> Option<Completion> {
        for _ in 0..STEPS_MAX {
            let done = self.volume.poll(self.now_ns);
            if self.stopped.get() {
                return None;
            }
            if done.is_some() {
                return done;
            }
            let deadline_ns = self.volume.deadline_ns().unwrap_or(self.now_ns);
            self.now_ns = deadline_ns.max(self.now_ns) + 1;
        }
        panic!("a request never ends");
    }

    /// Runs one request; `None`: a disk stopped before it was answered.
    pub(crate) fn request(
        &mut self,
        submit: impl FnOnce(&mut Volume<Machine>),
    ) -> Option<Result<(Output, Vec<u8>), RequestError>> {
        submit(&mut self.volume);
        let Completion { result, buffer, .. } = self.finish()?;
        Some(result.map(|output| (output, buffer)))
    }

    pub(crate) fn command(&mut self, command: Command) -> Option<Result<Output, RequestError>> {
        let done = self.request(|volume| volume.submit_command(1, command))?;
        Some(done.map(|(output, _)| output))
    }

    pub(crate) fn content(&mut self) -> Option<Result<Vec<u8>, RequestError>> {
        let len = usize::try_from(self.volume.size_bytes()).unwrap();
        let done = self.request(|volume| volume.submit_read(1, 0, vec![0xaa; len]))?;
        Some(done.map(|(_, buffer)| buffer))
    }

    /// Lets everything happen that happens by itself. `None`: a disk stopped.
    pub(crate) fn settle(&mut self) -> Option<()> {
        for _ in 0..20 {
            assert!(self.volume.poll(self.now_ns).is_none(), "nothing was asked");
            if self.stopped.get() {
                return None;
            }
            self.now_ns += 1;
        }
        Some(())
    }
}
