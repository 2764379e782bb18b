//! A node under random requests, with a model of what it may say after a crash.

use std::collections::BTreeMap;

use bytes::Bytes;
use storage_vdev::disk::{DiskStore, Recovery};
use storage_vdev::files::NodeFile;
use storage_vdev::files::sim::{Rng, SimDisk, SimFile};
use storage_vdev::node::{
    Ballot, NodeError, ObjectKey, RegisterRequest, RegisterResponse, Request, Response,
};
use storage_vdev::register::{Holder, Members, RegisterKey, SuperblockRef, VolumeRecord};
use storage_vdev::service::{
    Grants, Handled, NodeIdentity, NodeOpenError, NodeOptions, NodeService,
};
use storage_vdev::{Uuid, VolumeKey};

pub(crate) const VOLUME: Uuid = [7; 16];
/// Keys that scripts use.
const KEYS: u64 = 6;
/// What the scripts' journals hold: the least that a node gives.
pub(crate) const JOURNAL: u64 = 64 << 10;

pub(crate) type Node = NodeService<DiskStore<SimFile>, SimFile>;

pub(crate) fn identity() -> NodeIdentity {
    NodeIdentity { node: [9; 16], acceptor_seed: [5; 32].into() }
}

pub(crate) fn options() -> NodeOptions {
    NodeOptions { capacity_bytes: 4 << 20, create: Some(identity()) }
}

pub(crate) fn open(disk: &SimDisk) -> Result<(Node, Recovery), NodeOpenError> {
    NodeService::open(disk.files(), &options())
}

pub(crate) fn key(sequence: u64) -> ObjectKey {
    ObjectKey { volume: VOLUME, epoch: 1, sequence, shard: 0 }
}

pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut content = vec![0; len];
    Rng::new(seed).fill(&mut content);
    content
}

/// Asks as the owner and syncs if the answer needs it.
pub(crate) fn ask<F: NodeFile>(
    node: &mut NodeService<DiskStore<F>, F>,
    request: Request,
) -> Result<Response, NodeError> {
    ask_as(node, &Grants::all(), request)
}

/// The same with some rights.
pub(crate) fn ask_as<F: NodeFile>(
    node: &mut NodeService<DiskStore<F>, F>,
    grants: &Grants,
    request: Request,
) -> Result<Response, NodeError> {
    match node.handle(grants, request) {
        Handled::Done(result) => result,
        Handled::AfterSync(ticket) => {
            let answers = node.sync();
            let mine = answers.into_iter().find(|(answered, _)| *answered == ticket);
            mine.expect("each ticket is answered by the next sync").1
        }
    }
}

pub(crate) fn put(key: ObjectKey, content: &[u8]) -> Request {
    // In two parts, cut where no page ends.
    let (first, second) = content.split_at(content.len().min(100));
    let parts = [first, second].map(Bytes::copy_from_slice).to_vec();
    Request::Put { key, parts }
}

pub(crate) fn get_all(node: &mut Node, key: ObjectKey) -> Result<Bytes, NodeError> {
    match ask(node, Request::Get { key, offset: 0, len: u32::MAX })? {
        Response::Bytes(bytes) => Ok(bytes),
        other => panic!("bytes, not {other:?}"),
    }
}

pub(crate) fn append(position: u64, content: &[u8]) -> Request {
    let parts = vec![Bytes::copy_from_slice(content)];
    Request::JournalAppend { volume: VOLUME, epoch: u64::MAX, position, parts }
}

pub(crate) fn journal_open(capacity: u64) -> Request {
    Request::JournalOpen { volume: VOLUME, epoch: u64::MAX, capacity }
}

pub(crate) fn journal_state(node: &mut Node) -> Result<(u64, u64), NodeError> {
    match ask(node, Request::JournalState { volume: VOLUME })? {
        Response::Journal { start, end, .. } => Ok((start, end)),
        other => panic!("a journal's extent, not {other:?}"),
    }
}

pub(crate) fn journal_read(node: &mut Node, position: u64, len: u32) -> Result<Bytes, NodeError> {
    match ask(node, Request::JournalRead { volume: VOLUME, position, len })? {
        Response::Bytes(bytes) => Ok(bytes),
        other => panic!("bytes, not {other:?}"),
    }
}

/// A record that may be accepted under `ballot`.
pub(crate) fn record(version: u64, ballot: Ballot) -> Bytes {
    let record = VolumeRecord {
        register: VOLUME,
        version,
        epoch: version,
        change: Ballot { counter: version, proposer: [1; 16] },
        opener: [1; 16],
        holder: Holder::default(),
        lease_ns: 1,
        released: false,
        superblock: SuperblockRef::default(),
        // So many that a node's copy of it takes several sectors.
        members: Members { current: (1..=15).map(|id| [id; 32]).collect(), next: Vec::new() },
    };
    let key = RegisterKey::new(&VolumeKey::new(&[3; 32]), VOLUME);
    Bytes::from(record.encode(&key, ballot))
}

/// A journal as the model knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JournalModel {
    /// No start that is returned lies before it.
    floor: u64,
    start: u64,
    /// From position 0 on.
    content: Vec<u8>,
}

/// What a node holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    objects: BTreeMap<u64, Vec<u8>>,
    journal: Option<JournalModel>,
    fence: u64,
    promised: Ballot,
    accepted: Option<(Ballot, Bytes)>,
}

/// What a script may do.
#[derive(Debug, Clone)]
enum Op {
    Put(u64, Vec<u8>),
    Delete(u64),
    Open(u64),
    Append(Vec<u8>),
    Trim(u64),
    Fence(u64),
    Prepare(Ballot),
    Accept(Ballot, Bytes),
    Sync,
}

/// A node, its disk, and what it may remember.
pub(crate) struct Run {
    pub(crate) disk: SimDisk,
    node: Node,
    rng: Rng,
    now: State,
    /// Whatever a crash may bring back: the state at the last sync, and all states since.
    possible: Vec<State>,
    /// Makes each content another one.
    count: u64,
    name: String,
}

impl Run {
    /// A fresh node. `name` is printed when something is wrong.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let disk = SimDisk::new(seed);
        let (node, _) = open(&disk).expect("a fresh disk becomes a node");
        let now = State::default();
        let possible = vec![now.clone()];
        let name = format!("{name}, seed {seed}");
        Self { disk, node, rng: Rng::new(seed), now, possible, count: 0, name }
    }

    fn draw(&mut self) -> Op {
        self.count += 1;
        let key = self.rng.below(KEYS);
        let ballot = Ballot { counter: 1 + self.rng.below(1 << 20), proposer: [1; 16] };
        let journal = self.now.journal.as_ref();
        let end = journal.map_or(0, |journal| journal.content.len() as u64);
        match self.rng.below(20) {
            0..6 => {
                let len = [0, 1, 4096, 4112, 9000, 70_000][self.rng.below(6) as usize];
                Op::Put(key, bytes(self.count, len))
            }
            6..8 => Op::Delete(key),
            8 => Op::Open(JOURNAL << self.rng.below(2)),
            9..13 if journal.is_some() => {
                let len = 1 + self.rng.below(20_000) as usize;
                Op::Append(bytes(self.count, len))
            }
            13 if self.rng.below(4) == 0 => Op::Trim(end + 1 + self.rng.below(5000)),
            13 | 14 => Op::Trim(end - self.rng.below(end.min(9000) + 1)),
            15 => Op::Fence(self.now.fence + self.rng.below(3)),
            16 => Op::Prepare(ballot),
            17 => Op::Accept(ballot, record(self.count, ballot)),
            _ => Op::Sync,
        }
    }

    /// The state after an operation, if it is allowed now.
    fn predict(&self, op: &Op) -> Option<State> {
        let mut next = self.now.clone();
        match op {
            Op::Put(key, content) => {
                if next.objects.contains_key(key) {
                    return None;
                }
                next.objects.insert(*key, content.clone());
            }
            Op::Delete(key) => {
                next.objects.remove(key);
            }
            Op::Open(_) => {
                let new = JournalModel { floor: 0, start: 0, content: Vec::new() };
                next.journal.get_or_insert(new);
            }
            Op::Append(content) => {
                let journal = next.journal.as_mut()?;
                journal.content.extend(content);
                let live = journal.content.len() as u64 - journal.start;
                if live > JOURNAL {
                    return None;
                }
            }
            Op::Trim(start) => {
                let journal = next.journal.as_mut()?;
                if *start > journal.content.len() as u64 {
                    journal.content.resize(*start as usize, 0);
                    journal.floor = *start;
                }
                journal.start = journal.start.max(*start);
            }
            Op::Fence(epoch) => next.fence = *epoch,
            Op::Prepare(ballot) => next.promised = next.promised.max(*ballot),
            Op::Accept(ballot, value) => {
                if *ballot < next.promised {
                    return None;
                }
                if next.accepted.as_ref().is_some_and(|(at, _)| at == ballot) {
                    return None;
                }
                next.promised = *ballot;
                next.accepted = Some((*ballot, value.clone()));
            }
            Op::Sync => {}
        }
        Some(next)
    }

    fn request(&self, op: &Op) -> Option<Request> {
        let end = self.now.journal.as_ref().map_or(0, |journal| journal.content.len() as u64);
        Some(match op {
            Op::Put(sequence, content) => {
                put(ObjectKey { epoch: u64::MAX, ..key(*sequence) }, content)
            }
            Op::Delete(sequence) => {
                let key = ObjectKey { epoch: u64::MAX, ..key(*sequence) };
                Request::Delete { epoch: u64::MAX, keys: vec![key] }
            }
            Op::Open(capacity) => journal_open(*capacity),
            Op::Append(content) => append(end, content),
            Op::Trim(start) => {
                Request::JournalTrim { volume: VOLUME, epoch: u64::MAX, start: *start }
            }
            Op::Fence(epoch) => {
                Request::Fence { volume: VOLUME, epoch: *epoch, evidence: Vec::new() }
            }
            Op::Prepare(ballot) => Request::Register {
                register: VOLUME,
                message: RegisterRequest::Prepare { ballot: *ballot },
            },
            Op::Accept(ballot, value) => Request::Register {
                register: VOLUME,
                message: RegisterRequest::Accept { ballot: *ballot, value: value.clone() },
            },
            Op::Sync => return None,
        })
    }

    /// Does `steps` random things, until the machine stops. False if it stopped.
    pub(crate) fn go(&mut self, steps: u32) -> bool {
        let failed = self.go_on(steps);
        if self.disk.has_crashed() {
            return false;
        }
        assert_eq!(failed, None, "{}", self.name);
        true
    }

    /// Does `steps` random things, until one fails. Says which and why.
    pub(crate) fn go_on(&mut self, steps: u32) -> Option<String> {
        for _ in 0..steps {
            let op = self.draw();
            let Some(next) = self.predict(&op) else { continue };
            // From the moment it is asked for it may be there after a crash.
            self.possible.push(next.clone());
            let result = match self.request(&op) {
                None => self.sync(),
                Some(request) => match self.node.handle(&Grants::all(), request) {
                    Handled::Done(result) => result.map(drop),
                    Handled::AfterSync(_) => Ok(()),
                },
            };
            if result.is_err() || self.disk.has_crashed() {
                return Some(format!("{result:?} to {op:?}"));
            }
            self.now = next;
            if matches!(op, Op::Sync) {
                self.possible = vec![self.now.clone()];
            }
        }
        None
    }

    /// Stops the machine, and again `after` operations later, while the node starts.
    pub(crate) fn crash_in_recovery(&mut self, after: u64) {
        self.disk.crash(&mut self.rng);
        self.disk.crash_at(Some(self.disk.operations() + after));
        drop(open(&self.disk));
    }

    fn sync(&mut self) -> Result<(), NodeError> {
        self.node.sync().into_iter().try_for_each(|(_, result)| result.map(drop))
    }

    /// Stops the machine, starts the node again and checks what it remembers.
    pub(crate) fn crash(&mut self) {
        self.disk.crash(&mut self.rng);
        let (node, recovery) = open(&self.disk)
            .unwrap_or_else(|error| panic!("{}: after a crash: {error}", self.name));
        assert_eq!(
            (recovery.damaged_slots, recovery.superseded),
            (0, 0),
            "{}: a crash leaves nothing that looks like rot",
            self.name
        );
        self.node = node;
        let found = self.observe();
        self.now = found.clone();
        self.possible = vec![found];
    }

    fn observe(&mut self) -> State {
        let mut found = State::default();
        for sequence in 0..KEYS {
            let key = ObjectKey { epoch: u64::MAX, ..key(sequence) };
            match get_all(&mut self.node, key) {
                Ok(content) => drop(found.objects.insert(sequence, content.to_vec())),
                Err(NodeError::NotFound) => {}
                Err(error) => panic!("{}: object {sequence}: {error}", self.name),
            }
            let content = found.objects.get(&sequence);
            let known = self.possible.iter().any(|state| state.objects.get(&sequence) == content);
            assert!(known, "{}: object {sequence} is what it never was", self.name);
        }
        found.journal = self.observe_journal();
        let fence = Request::Fence { volume: VOLUME, epoch: 0, evidence: Vec::new() };
        found.fence = match ask(&mut self.node, fence) {
            Ok(Response::Fenced { previous: 0 }) => 0,
            Err(NodeError::EpochStale { current }) => current,
            other => panic!("{}: {other:?}", self.name),
        };
        let known = self.possible.iter().any(|state| state.fence == found.fence);
        assert!(known, "{}: the fence is {}, which it never was", self.name, found.fence);
        self.observe_register(&mut found);
        found
    }

    fn observe_journal(&mut self) -> Option<JournalModel> {
        let (start, end) = match journal_state(&mut self.node) {
            Ok(extent) => extent,
            Err(NodeError::NotFound) => {
                let known = self.possible.iter().any(|state| state.journal.is_none());
                assert!(known, "{}: the journal is gone", self.name);
                return None;
            }
            Err(error) => panic!("{}: the journal: {error}", self.name),
        };
        let content = journal_read(&mut self.node, start, u32::MAX)
            .unwrap_or_else(|error| panic!("{}: the journal: {error}", self.name));
        let fits = |model: &&JournalModel| {
            model.content.len() as u64 == end
                && (model.floor..=model.start).contains(&start)
                && model.content[start as usize..] == content
        };
        let found = self.possible.iter().filter_map(|state| state.journal.as_ref()).find(fits);
        let Some(model) = found else {
            panic!("{}: the journal {start}..{end} is what it never was", self.name);
        };
        Some(JournalModel { start, floor: start, content: model.content.clone() })
    }

    fn observe_register(&mut self, found: &mut State) {
        let lowest = Ballot { counter: 1, proposer: [0; 16] };
        let message = RegisterRequest::Prepare { ballot: lowest };
        match ask(&mut self.node, Request::Register { register: VOLUME, message }) {
            Ok(Response::Register(RegisterResponse::Rejected { promised })) => {
                found.promised = promised;
            }
            Ok(Response::Register(RegisterResponse::Promised { accepted: None, .. })) => {
                let known = self.possible.iter().any(|state| state.promised == Ballot::default());
                // An earlier look may have left its own ballot.
                let looked = self.possible.iter().any(|state| state.promised == lowest);
                assert!(known || looked, "{}: a promise is forgotten", self.name);
                found.promised = lowest;
                return;
            }
            other => panic!("{}: {other:?}", self.name),
        }
        let promised = found.promised;
        let message = RegisterRequest::Prepare { ballot: promised };
        match ask(&mut self.node, Request::Register { register: VOLUME, message }) {
            Ok(Response::Register(RegisterResponse::Promised { accepted, .. })) => {
                found.accepted = accepted;
            }
            other => panic!("{}: {other:?}", self.name),
        }
        let known = self
            .possible
            .iter()
            .any(|state| state.promised == promised && state.accepted == found.accepted);
        assert!(known, "{}: the register is what it never was", self.name);
    }
}
