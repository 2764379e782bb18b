//! Nodes in memory: what they have answered is durable, and they fail as they are told to.
//!
//! A [`World`] is what outlives a crash. Each [`MemoryNodes`] over it carries out requests one at a
//! time inside `poll`, in the order of their submission for each node, and in an order that the
//! seed decides across nodes.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use storage_vdev::Uuid;
use storage_vdev::node::{
    NodeCompletion, NodeError, NodeIndex, Nodes, ObjectKey, RegisterRequest, Request, Response, Tag,
};
use storage_vdev::register::{AcceptorKey, AcceptorState};

/// Pseudo-random numbers (SplitMix64): a seed names a run.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[derive(Debug, Clone, Default)]
struct JournalHead {
    bytes: Vec<u8>,
    start: u64,
    capacity: u64,
    epoch: u64,
}

impl JournalHead {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// What one node keeps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) objects: BTreeMap<ObjectKey, Bytes>,
    journals: BTreeMap<Uuid, JournalHead>,
    fences: BTreeMap<Uuid, u64>,
    pub(crate) registers: BTreeMap<Uuid, AcceptorState>,
    /// Bytes that fit; 0: any number.
    pub(crate) capacity: u64,
}

/// How a node behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Fine,
    /// Nothing reaches it.
    Gone,
    /// It takes requests and never answers.
    Silent,
    /// Its disk fails.
    Broken,
    /// It answers so many nanoseconds late.
    Slow(u64),
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Kept>,
    pub(crate) moods: Vec<Mood>,
    /// Requests carried out so far.
    pub(crate) operations: u64,
    /// Nothing is carried out any more after so many.
    pub(crate) crash_at: Option<u64>,
    /// Every request that was carried out, if anybody wants to know.
    pub(crate) trace: Option<Vec<(NodeIndex, Request)>>,
    pub(crate) rng: Rng,
}

pub(crate) type Shared = Rc<RefCell<World>>;

pub(crate) fn world(nodes: usize, seed: u64) -> Shared {
    Rc::new(RefCell::new(World {
        nodes: vec![Kept::default(); nodes],
        moods: vec![Mood::Fine; nodes],
        operations: 0,
        crash_at: None,
        trace: None,
        rng: Rng(seed),
    }))
}

pub(crate) struct MemoryNodes {
    world: Shared,
    queues: Vec<VecDeque<(Tag, Request)>>,
    /// Answers that are due later.
    late: BTreeMap<(u64, Tag), Result<Response, NodeError>>,
}

impl MemoryNodes {
    pub(crate) fn new(world: &Shared) -> Self {
        let count = world.borrow().nodes.len();
        let queues = (0..count).map(|_| VecDeque::new()).collect();
        Self { world: Rc::clone(world), queues, late: BTreeMap::new() }
    }

    /// Carries out one queued request, if there is one that the node answers.
    fn step(&mut self, now_ns: u64) -> Option<NodeCompletion> {
        let mut world = self.world.borrow_mut();
        let busy: Vec<usize> = (0..self.queues.len())
            .filter(|node| !self.queues[*node].is_empty() && world.moods[*node] != Mood::Silent)
            .collect();
        if busy.is_empty() || world.crash_at.is_some_and(|at| world.operations >= at) {
            return None;
        }
        let node = busy[world.rng.below(busy.len() as u64) as usize];
        let (tag, request) = self.queues[node].pop_front()?;
        world.operations += 1;
        let mood = world.moods[node];
        let result = match mood {
            Mood::Gone => Err(NodeError::Unavailable),
            Mood::Broken => Err(NodeError::Failed),
            _ => carry_out(&mut world, node, request),
        };
        match mood {
            Mood::Slow(ns) => {
                self.late.insert((now_ns + ns, tag), result);
                None
            }
            _ => Some(NodeCompletion { tag, result }),
        }
    }
}

fn carry_out(
    world: &mut RefMut<'_, World>,
    node: usize,
    request: Request,
) -> Result<Response, NodeError> {
    if let Some(trace) = &mut world.trace {
        trace.push((node as NodeIndex, request.clone()));
    }
    world.nodes[node].handle(node as u8, request)
}

impl Kept {
    fn check(&self, volume: &Uuid, epoch: u64) -> Result<(), NodeError> {
        let current = self.fences.get(volume).copied().unwrap_or(0);
        if epoch < current { Err(NodeError::EpochStale { current }) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        self.objects.values().map(|bytes| bytes.len() as u64).sum()
    }

    fn put(&mut self, key: ObjectKey, parts: &[Bytes]) -> Result<Response, NodeError> {
        let bytes = concat(parts);
        match self.objects.get(&key) {
            Some(other) if *other == bytes => return Ok(Response::Done),
            Some(_) => return Err(NodeError::Exists),
            None => {}
        }
        if self.capacity > 0 && self.used() + bytes.len() as u64 > self.capacity {
            return Err(NodeError::NoSpace);
        }
        self.objects.insert(key, bytes);
        Ok(Response::Done)
    }

    fn handle(&mut self, name: u8, request: Request) -> Result<Response, NodeError> {
        match request {
            Request::Put { key, parts } => {
                self.check(&key.volume, key.epoch)?;
                self.put(key, &parts)
            }
            Request::Restore { epoch, key, parts } => {
                self.check(&key.volume, epoch)?;
                self.put(key, &parts)
            }
            Request::Get { key, offset, len } => {
                let bytes = self.objects.get(&key).ok_or(NodeError::NotFound)?;
                let end = if len == u32::MAX { bytes.len() } else { (offset + len) as usize };
                if end > bytes.len() || offset as usize > end {
                    return Err(NodeError::Range);
                }
                Ok(Response::Bytes(bytes.slice(offset as usize..end)))
            }
            Request::List { volume, after, limit } => {
                let keys = self.objects.keys().filter(|key| key.volume == volume);
                let keys = keys.filter(|key| after.is_none_or(|after| **key > after));
                Ok(Response::Keys(keys.take(limit.into()).copied().collect()))
            }
            Request::Delete { epoch, keys } => {
                for key in keys {
                    self.check(&key.volume, epoch)?;
                    self.objects.remove(&key);
                }
                Ok(Response::Done)
            }
            Request::Fence { volume, epoch, .. } => {
                self.check(&volume, epoch)?;
                let previous = self.fences.insert(volume, epoch).unwrap_or(0);
                Ok(Response::Fenced { previous })
            }
            Request::Register { register, message } => self.register(name, register, &message),
            Request::Capacity => {
                let total_bytes = if self.capacity == 0 { 1 << 40 } else { self.capacity };
                let free_bytes = total_bytes.saturating_sub(self.used());
                Ok(Response::Capacity { total_bytes, free_bytes })
            }
            Request::Audit { .. } => Err(NodeError::Unsupported),
            journal => self.journal(journal),
        }
    }

    fn register(
        &mut self,
        name: u8,
        register: Uuid,
        message: &RegisterRequest,
    ) -> Result<Response, NodeError> {
        let state = self.registers.entry(register).or_default();
        let transition = state.step(&AcceptorKey::silent([name; 32]), &register, message)?;
        if let Some(next) = transition.next {
            *state = next;
        }
        Ok(Response::Register(transition.response))
    }

    fn journal(&mut self, request: Request) -> Result<Response, NodeError> {
        let state = |head: &JournalHead| Response::Journal {
            start: head.start,
            end: head.end(),
            epoch: head.epoch,
        };
        match request {
            Request::JournalOpen { volume, epoch, capacity } => {
                self.check(&volume, epoch)?;
                let head = self.journals.entry(volume).or_default();
                head.capacity = capacity;
                head.epoch = epoch;
                Ok(state(head))
            }
            Request::JournalState { volume } => {
                self.journals.get(&volume).map(state).ok_or(NodeError::NotFound)
            }
            Request::JournalAppend { volume, epoch, position, parts } => {
                self.check(&volume, epoch)?;
                let head = self.journals.get_mut(&volume).ok_or(NodeError::NotFound)?;
                if position != head.end() {
                    return Err(NodeError::Conflict { end: head.end() });
                }
                let bytes = concat(&parts);
                if head.bytes.len() + bytes.len() > head.capacity as usize {
                    return Err(NodeError::NoSpace);
                }
                head.bytes.extend_from_slice(&bytes);
                Ok(Response::Done)
            }
            Request::JournalRead { volume, position, len } => {
                let head = self.journals.get(&volume).ok_or(NodeError::NotFound)?;
                let from = position.checked_sub(head.start).ok_or(NodeError::Range)? as usize;
                let rest = head.bytes.get(from..).ok_or(NodeError::Range)?;
                Ok(Response::Bytes(Bytes::copy_from_slice(&rest[..rest.len().min(len as usize)])))
            }
            Request::JournalTrim { volume, epoch, start } => {
                self.check(&volume, epoch)?;
                let head = self.journals.get_mut(&volume).ok_or(NodeError::NotFound)?;
                if start > head.start {
                    let gone = (start - head.start).min(head.bytes.len() as u64) as usize;
                    head.bytes.drain(..gone);
                    head.start = start;
                }
                Ok(Response::Done)
            }
            _ => Err(NodeError::Unsupported),
        }
    }
}

fn concat(parts: &[Bytes]) -> Bytes {
    let mut all = BytesMut::new();
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all.freeze()
}

impl Nodes for MemoryNodes {
    fn count(&self) -> usize {
        self.queues.len()
    }

    fn name(&self, node: NodeIndex) -> String {
        format!("node {node}")
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        self.queues[usize::from(node)].push_back((tag, request));
    }

    fn poll(&mut self, now_ns: u64) -> Option<NodeCompletion> {
        if let Some(first) = self.late.first_entry()
            && first.key().0 <= now_ns
        {
            let tag = first.key().1;
            return Some(NodeCompletion { tag, result: first.remove() });
        }
        let requests: usize = self.queues.iter().map(VecDeque::len).sum();
        (0..requests).find_map(|_| self.step(now_ns))
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.late.first_key_value().map(|((at, _), _)| *at)
    }
}
