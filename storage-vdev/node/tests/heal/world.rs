//! Nodes in memory with a volume of a few segments, and time that passes by hand.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use storage_node::heal::{Healer, Manifest, ManifestNode, Policy, Report, run};
use storage_vdev::codec::Codec;
use storage_vdev::extent_map::Root;
use storage_vdev::files::sim::Rng;
use storage_vdev::node::{
    NodeCompletion, NodeError, NodeIndex, Nodes, ObjectKey, Request, Response, SUPERBLOCK_SHARD,
    Tag,
};
use storage_vdev::segment::{HEAD_BYTES, Link, SegmentBuilder, Shape, Shard};
use storage_vdev::{BLOCK_BYTES, Opening, SegmentKeys, Uuid, VolumeKey};

pub(crate) const VOLUME: Uuid = [7; 16];
pub(crate) const EPOCH: u64 = 3;
pub(crate) const VERSION: u64 = 40;
pub(crate) const LEASE_NS: u64 = 10_000_000_000;

/// What a superblock in the tests says.
#[derive(Clone)]
pub(crate) struct Sketch {
    pub(crate) version: u64,
    pub(crate) epoch: u64,
    pub(crate) frontier: u64,
    pub(crate) deletes: Vec<(u64, u64)>,
    /// First sequence and epoch of each opening.
    pub(crate) openings: Vec<(u64, u64)>,
}

/// What happens when a request reaches a node: may change the world.
type Hook = Box<dyn FnMut(&mut Stores, NodeIndex, &Request)>;

/// What the nodes have.
pub(crate) struct Stores {
    pub(crate) objects: Vec<BTreeMap<ObjectKey, Bytes>>,
    /// Objects whose node finds them damaged: it says so, and takes them anew.
    pub(crate) rotten: BTreeSet<(NodeIndex, ObjectKey)>,
    /// Nodes that don't answer.
    pub(crate) down: BTreeSet<NodeIndex>,
    /// Nodes that take nothing.
    pub(crate) full: BTreeSet<NodeIndex>,
    /// The least epoch that may write.
    pub(crate) fence: u64,
    /// What was stored during passes.
    pub(crate) stored: Vec<(NodeIndex, ObjectKey)>,
    pub(crate) clock: Rc<Cell<u64>>,
}

pub(crate) struct World {
    pub(crate) shape: Shape,
    pub(crate) stores: Stores,
    pub(crate) originals: BTreeMap<(u64, u8), Bytes>,
    pub(crate) spares: u8,
    pub(crate) hook: Option<Hook>,
    /// Chooses which answer comes next.
    pub(crate) rng: Rng,
    /// How far the clock goes with each request.
    pub(crate) tick_ns: u64,
    answers: VecDeque<NodeCompletion>,
    link: Link,
}

impl World {
    /// A volume with segments 1 … `segments`, all whole, on k + m nodes and `spares` more.
    pub(crate) fn new((data, parity): (u8, u8), segments: u64, spares: u8) -> Self {
        let shape = Shape::new(data, parity).unwrap();
        let count = usize::from(shape.shards() + spares);
        let stores = Stores {
            objects: vec![BTreeMap::new(); count],
            rotten: BTreeSet::new(),
            down: BTreeSet::new(),
            full: BTreeSet::new(),
            fence: EPOCH,
            stored: Vec::new(),
            clock: Rc::new(Cell::new(1_000_000_000)),
        };
        let mut world = Self {
            shape,
            stores,
            originals: BTreeMap::new(),
            spares,
            hook: None,
            rng: Rng::new(1),
            tick_ns: 1000,
            answers: VecDeque::new(),
            link: Link::default(),
        };
        for sequence in 1..=segments {
            world.write_segment(sequence, EPOCH);
        }
        world.write_superblock(&Sketch::new(segments));
        world
    }

    /// Seals a segment of a few blocks, linked to the one before, and puts it on its nodes.
    pub(crate) fn write_segment(&mut self, sequence: u64, epoch: u64) {
        let opening = Opening { epoch, salt: [9; 32] };
        let keys = Arc::new(SegmentKeys::derive(&VolumeKey::new(&[5; 32]), VOLUME, opening));
        let codec = Arc::new(Codec::new(self.shape.data_shards(), self.shape.parity_shards()));
        let blocks = 3 + (sequence % 4) as u16 * 2 * u16::from(self.shape.data_shards());
        let mut builder = SegmentBuilder::new(&keys, &codec, self.shape, sequence, blocks).unwrap();
        let mut rng = Rng::new(sequence);
        for index in 0..blocks {
            let mut block = vec![0; BLOCK_BYTES];
            rng.fill(&mut block);
            builder.push_block(index.into(), &block).unwrap();
        }
        let sealed = builder.seal(self.link, (sequence * 10, sequence * 10 + 9));
        self.link = sealed.header.link();
        for (shard, parts) in (0..).zip(&sealed.shards) {
            let object = Bytes::from(parts.concat());
            let node = self.shape.slot_of(sequence, shard);
            let key = ObjectKey { volume: VOLUME, epoch, sequence, shard };
            self.originals.insert((sequence, shard), object.clone());
            self.stores.objects[usize::from(node)].insert(key, object);
        }
    }

    /// From now on segments link to this one.
    pub(crate) fn link_to(&mut self, sequence: u64) {
        self.link = Link { sequence, tag: [1; 16] };
    }

    pub(crate) fn write_superblock(&mut self, sketch: &Sketch) {
        let (key, bytes) = (sketch.key(), sketch.encode(self.shape, self.spares));
        for node in 0..self.shape.shards() {
            self.stores.objects[usize::from(node)].insert(key, bytes.clone());
        }
    }

    pub(crate) fn manifest(&self) -> Manifest {
        let shards = self.shape.shards();
        let nodes = (0..shards + self.spares)
            .map(|node| ManifestNode { id: [node; 16], address: format!("node {node}") });
        Manifest {
            volume: VOLUME,
            shape: self.shape,
            nodes: nodes.collect(),
            slots: (0..shards).collect(),
            spares: (shards..shards + self.spares).collect(),
            delegation: vec![1, 2, 3],
            superblock: (1, 1),
        }
    }

    /// A pass.
    pub(crate) fn heal(&mut self, policy: Policy) -> Report {
        let mut healer = Healer::new(self.manifest(), policy, self.stores.clock.get());
        self.run(&mut healer)
    }

    pub(crate) fn run(&mut self, healer: &mut Healer) -> Report {
        let clock = Rc::clone(&self.stores.clock);
        let mut waits = 0;
        let report = run(
            healer,
            self,
            || clock.get(),
            |world, deadline| {
                waits += 1;
                let clock = &world.stores.clock;
                clock.set(deadline.unwrap_or(0).max(clock.get() + 1));
                waits < 100_000
            },
        );
        report.unwrap()
    }

    pub(crate) fn key(&self, sequence: u64, shard: u8) -> ObjectKey {
        ObjectKey { volume: VOLUME, epoch: EPOCH, sequence, shard }
    }

    /// The node whose slot has the shard.
    pub(crate) fn home(&self, sequence: u64, shard: u8) -> NodeIndex {
        self.shape.slot_of(sequence, shard)
    }

    pub(crate) fn object(&self, sequence: u64, shard: u8) -> Option<&Bytes> {
        let node = usize::from(self.home(sequence, shard));
        self.stores.objects[node].get(&self.key(sequence, shard))
    }

    /// Forgets a shard.
    pub(crate) fn lose(&mut self, sequence: u64, shard: u8) {
        let (node, key) = (usize::from(self.home(sequence, shard)), self.key(sequence, shard));
        self.stores.objects[node].remove(&key);
    }

    /// Puts other bytes in a shard's place.
    pub(crate) fn replace(&mut self, sequence: u64, shard: u8, bytes: Vec<u8>) {
        let (node, key) = (usize::from(self.home(sequence, shard)), self.key(sequence, shard));
        self.stores.objects[node].insert(key, Bytes::from(bytes));
    }

    /// Whether the shard is as it was written, but for what repair changes in its own head.
    pub(crate) fn is_back(&self, sequence: u64, shard: u8) -> bool {
        self.object(sequence, shard)
            .is_some_and(|object| is_same(object, &self.originals[&(sequence, shard)]))
    }

    pub(crate) fn is_whole(&self, sequence: u64) -> bool {
        (0..self.shape.shards()).all(|shard| self.is_back(sequence, shard))
    }
}

/// Whether two shards are the same but for generation and what follows from it.
pub(crate) fn is_same(a: &Bytes, b: &Bytes) -> bool {
    let (Ok(a_shard), Ok(b_shard)) = (Shard::parse(a.clone()), Shard::parse(b.clone())) else {
        return false;
    };
    let heads = (a_shard.head(), b_shard.head());
    a_shard.check().is_ok()
        && (heads.0.shard, heads.0.slot) == (heads.1.shard, heads.1.slot)
        && a[..256] == b[..256]
        && a[HEAD_BYTES..] == b[HEAD_BYTES..]
}

impl Sketch {
    pub(crate) fn new(frontier: u64) -> Self {
        let openings = vec![(1, EPOCH)];
        Self { version: VERSION, epoch: EPOCH, frontier, deletes: Vec::new(), openings }
    }

    pub(crate) fn key(&self) -> ObjectKey {
        let sequence = (1 << 63) + self.version;
        ObjectKey { volume: VOLUME, epoch: self.epoch, sequence, shard: SUPERBLOCK_SHARD }
    }

    /// A superblock as the format's text draws it; nobody looks at its MAC here.
    pub(crate) fn encode(&self, shape: Shape, spares: u8) -> Bytes {
        let mut out = b"HYPHASUP\x02\x00\x01".to_vec();
        let nodes = shape.shards() + spares;
        let number = |out: &mut Vec<u8>, number: u64| out.extend(number.to_le_bytes());
        let count = |out: &mut Vec<u8>, count: usize| out.extend((count as u32).to_le_bytes());
        out.extend([shape.data_shards(), shape.parity_shards(), 1, 0, 0]);
        out.extend(VOLUME);
        number(&mut out, self.version);
        number(&mut out, self.epoch);
        out.extend([9; 32]);
        number(&mut out, self.frontier);
        out.extend([1; 16]);
        for value in [self.frontier * 10 + 9, 1 << 30, 1 << 20, LEASE_NS] {
            number(&mut out, value);
        }
        out.extend(Root::empty(1 << 18).to_bytes());
        out.extend([0; 32]);
        count(&mut out, 0);
        count(&mut out, nodes.into());
        for node in 0..nodes {
            out.extend([node; 16]);
            out.extend([1, 0, 0]);
        }
        count(&mut out, shape.shards().into());
        out.extend(0..shape.shards());
        count(&mut out, self.openings.len());
        for (first, epoch) in &self.openings {
            number(&mut out, *first);
            out.extend(VOLUME);
            number(&mut out, *epoch);
            out.extend([9; 32]);
        }
        count(&mut out, 0);
        count(&mut out, self.deletes.len());
        for (sequence, epoch) in &self.deletes {
            number(&mut out, *sequence);
            number(&mut out, *epoch);
        }
        count(&mut out, 0);
        out.extend([0; 32]);
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        Bytes::from(out)
    }
}

impl Stores {
    fn answer(&mut self, node: NodeIndex, request: Request) -> Result<Response, NodeError> {
        if self.down.contains(&node) {
            return Err(NodeError::Unavailable);
        }
        let objects = &mut self.objects[usize::from(node)];
        match request {
            Request::List { volume, after, limit } => {
                let keys = objects.keys().filter(|key| key.volume == volume);
                let keys = keys.filter(|key| after.is_none_or(|after| **key > after));
                Ok(Response::Keys(keys.take(limit.into()).copied().collect()))
            }
            Request::Get { key, offset, len } => {
                let object = objects.get(&key).ok_or(NodeError::NotFound)?;
                // As a disk does: a part has no checksum of its own.
                if self.rotten.contains(&(node, key)) && len == u32::MAX {
                    return Err(NodeError::Corrupt);
                }
                let end = if len == u32::MAX { object.len() } else { (offset + len) as usize };
                if end > object.len() {
                    return Err(NodeError::Range);
                }
                Ok(Response::Bytes(object.slice(offset as usize..end)))
            }
            Request::Restore { epoch, key, parts } => {
                if epoch < self.fence {
                    return Err(NodeError::EpochStale { current: self.fence });
                }
                if self.full.contains(&node) {
                    return Err(NodeError::NoSpace);
                }
                assert!(key.epoch <= epoch);
                let bytes = Bytes::from(parts.concat());
                let rotten = self.rotten.remove(&(node, key));
                match objects.get(&key) {
                    Some(old) if *old != bytes && !rotten => return Err(NodeError::Exists),
                    _ => {}
                }
                objects.insert(key, bytes);
                self.stored.push((node, key));
                Ok(Response::Done)
            }
            other => panic!("a healer doesn't ask for {other:?}"),
        }
    }
}

impl Nodes for World {
    fn count(&self) -> usize {
        self.stores.objects.len()
    }

    fn name(&self, node: NodeIndex) -> String {
        format!("node {node}")
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        self.stores.clock.set(self.stores.clock.get() + self.tick_ns);
        if let Some(mut hook) = self.hook.take() {
            hook(&mut self.stores, node, &request);
            self.hook = Some(hook);
        }
        let result = self.stores.answer(node, request);
        self.answers.push_back(NodeCompletion { tag, result });
    }

    fn poll(&mut self, _now_ns: u64) -> Option<NodeCompletion> {
        let at = self.rng.below(self.answers.len().max(1) as u64) as usize;
        self.answers.swap_remove_back(at)
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }
}
