//! Long random runs in virtual time: openers that come, hold, stall and die, an administrator who
//! keeps changing the acceptors, nodes that crash and lose their disks, a network that delays,
//! loses, repeats and reorders. Clocks differ by up to 1 % and start anywhere.
//!
//! Checked all the time: each version is committed with one content only, each epoch has one opener,
//! nothing goes back behind what was committed when it began, and of all openers at most one
//! believes that its lease holds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use storage_vdev::node::{NodeError, NodeIndex, RegisterRequest, RegisterResponse};
use storage_vdev::register::{
    ChangeError, Committed, Edit, Lease, Proposer, Refusal, Step, Timing, VolumeRecord, Watch,
};

use crate::cluster::{LEASE_NS, Node, REGISTER, create, holder, run, volume_key};

const NODES: [NodeIndex; 5] = [0, 1, 2, 3, 4];
const OPENERS: usize = 3;
/// The one that changes the acceptors.
const ADMINISTRATOR: usize = OPENERS;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Request { client: usize, life: u64, message: u64, node: NodeIndex, bytes: Vec<u8> },
    Answer { client: usize, life: u64, message: u64, answer: u64 },
    Wake { client: usize, wake: u64 },
    NodeBack { node: NodeIndex },
}

struct Client {
    proposer: Proposer,
    life: u64,
    /// Names the one wake-up that counts.
    wake: u64,
    /// Its clock's rate in percent of real time, and where it started.
    clock: (u64, u64),
    watch: Option<Watch>,
    lease: Option<(u64, Lease)>,
    /// The administrator's record that was committed with two sets.
    joint: Option<VolumeRecord>,
    floor: u64,
}

struct World {
    now_ns: u64,
    random: Random,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// Messages under way are named by number, because answers have no order.
    requests: Vec<RegisterRequest>,
    answers: Vec<Result<RegisterResponse, NodeError>>,
    sequence: u64,
    committed: BTreeMap<u64, VolumeRecord>,
    epochs: BTreeMap<u64, [u8; 16]>,
    wiped: Option<[u8; 32]>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    commits: u64,
    take_overs: u64,
    acceptor_changes: u64,
    wipes: u64,
    failures: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let nodes = (0..NODES.len()).map(|_| Node::new(seed_bytes(&mut random))).collect();
        let mut world = Self {
            now_ns: 0,
            random,
            nodes,
            clients: vec![],
            events: BinaryHeap::new(),
            requests: vec![],
            answers: vec![],
            sequence: 0,
            committed: BTreeMap::new(),
            epochs: BTreeMap::new(),
            wiped: None,
            counts: Counts::default(),
        };
        let mut founder = world.client(0).proposer;
        let founded = run(&mut world.nodes, &mut founder, create(&[0, 1, 2])).unwrap();
        world.note(0, &founded.record);
        for _ in 0..=ADMINISTRATOR {
            let client = world.client(0);
            world.clients.push(client);
            let at = world.random.below(LEASE_NS);
            let client = world.clients.len() - 1;
            world.schedule(at, Event::Wake { client, wake: 0 });
        }
        world
    }

    fn client(&mut self, life: u64) -> Client {
        let timing = Timing { answer_ns: LEASE_NS / 8, backoff_ns: LEASE_NS / 50, attempts: 6 };
        let random = [seed_bytes(&mut self.random), seed_bytes(&mut self.random)].concat();
        let random = *random.first_chunk().unwrap();
        let clock = (9_900 + self.random.below(201), self.random.below(1 << 40));
        Client {
            proposer: Proposer::new(REGISTER, &volume_key(), NODES.to_vec(), random, timing),
            life,
            wake: 0,
            clock,
            watch: None,
            lease: None,
            joint: None,
            floor: 0,
        }
    }

    fn schedule(&mut self, after_ns: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now_ns + after_ns, self.sequence, event)));
    }

    /// How long a message takes: mostly little, sometimes longer than anybody waits.
    fn delay(&mut self) -> u64 {
        let scale = if self.random.one_in(20) { LEASE_NS } else { LEASE_NS / 100 };
        1 + self.random.below(scale)
    }

    fn step(&mut self) {
        let Reverse((at, _, event)) = self.events.pop().unwrap();
        self.now_ns = at;
        match event {
            Event::Request { client, life, message, node, bytes } => {
                let number = u64::from_le_bytes(*bytes.first_chunk().unwrap());
                let request = self.requests[number as usize].clone();
                let answer = self.nodes[usize::from(node)].handle(&request);
                if !self.random.one_in(12) {
                    self.answers.push(answer);
                    let answer = self.answers.len() as u64 - 1;
                    let delay = self.delay();
                    self.schedule(delay, Event::Answer { client, life, message, answer });
                }
            }
            Event::Answer { client, life, message, answer } => {
                let now = self.local(client);
                let answer = self.answers[answer as usize].clone();
                if self.clients[client].life == life {
                    self.clients[client].proposer.answer(message, answer, now);
                    self.drive(client);
                }
            }
            Event::Wake { client, wake } => {
                if self.clients[client].wake == wake {
                    self.drive(client);
                }
            }
            Event::NodeBack { node } => self.nodes[usize::from(node)].alive = true,
        }
        self.disturb();
        self.assert_one_holder();
    }

    fn local(&self, client: usize) -> u64 {
        let (rate, start) = self.clients[client].clock;
        start + self.now_ns * rate / 10_000
    }

    fn drive(&mut self, client: usize) {
        loop {
            let now = self.local(client);
            match self.clients[client].proposer.poll(now) {
                Step::Send { message, node, request } => self.send(client, message, node, request),
                Step::Wait { until_ns } => break self.wake(client, until_ns),
                Step::Done(result) => self.take(client, *result),
                Step::Idle => match self.next_edit(client) {
                    Ok(edit) => {
                        self.clients[client].floor = self.committed.keys().last().copied().unwrap();
                        self.clients[client].proposer.start(edit, now).unwrap();
                    }
                    Err(until_ns) => break self.wake(client, until_ns),
                },
            }
        }
    }

    fn wake(&mut self, client: usize, until_ns: u64) {
        let after = until_ns.saturating_sub(self.local(client)) * 10_200 / 10_000 + 1;
        self.sequence += 1;
        self.clients[client].wake = self.sequence;
        self.schedule(after, Event::Wake { client, wake: self.sequence });
    }

    fn send(&mut self, client: usize, message: u64, node: NodeIndex, request: RegisterRequest) {
        self.requests.push(request);
        let bytes = (self.requests.len() as u64 - 1).to_le_bytes().to_vec();
        let life = self.clients[client].life;
        let event = Event::Request { client, life, message, node, bytes };
        // Lost, once, or twice.
        let copies = [1, 1, 1, 1, 1, 1, 1, 1, 0, 2][self.random.below(10) as usize];
        for _ in 0..copies {
            let delay = self.delay();
            self.schedule(delay, event.clone());
        }
    }

    /// What a client wants to do next, or until when it waits.
    fn next_edit(&mut self, index: usize) -> Result<Edit, u64> {
        let now = self.local(index);
        if index == ADMINISTRATOR {
            if self.clients[index].joint.is_none() && !self.random.one_in(4) {
                return Err(now + self.random.below(LEASE_NS));
            }
            return Ok(self.next_acceptors());
        }
        let random = self.random.next();
        let client = &mut self.clients[index];
        if let Some((epoch, lease)) = client.lease {
            if !lease.holds(now) {
                client.lease = None;
                return Ok(Edit::Read);
            }
            if now < lease.renew_at_ns() {
                return Err(lease.renew_at_ns());
            }
            if !random.is_multiple_of(8) {
                return Ok(Edit::Renew { epoch });
            }
            // It stops first: the answer may get lost, and the next opener needn't wait.
            client.lease = None;
            return Ok(Edit::Release { epoch, superblock: None });
        }
        match client.watch {
            Some(watch) if now >= watch.take_at_ns() => {
                client.watch = None;
                let expected_version = watch.version();
                let holder = holder(index as u8 + 1);
                Ok(Edit::TakeOver { expected_version, holder, lease_ns: LEASE_NS })
            }
            // Look again a few times before the time is up.
            Some(watch) if !random.is_multiple_of(4) => {
                Err(watch.take_at_ns().min(now + LEASE_NS / 4))
            }
            _ => Ok(Edit::Read),
        }
    }

    fn next_acceptors(&mut self) -> Edit {
        if let Some(joint) = self.clients[ADMINISTRATOR].joint.take() {
            return Edit::SettleAcceptors { committed: Box::new(joint) };
        }
        if self.random.one_in(3) {
            return Edit::Read;
        }
        let first = self.random.below(5) as u8;
        let acceptors = (0..3).map(|offset| (first + offset) % 5).collect();
        Edit::BeginAcceptors { acceptors }
    }

    fn take(&mut self, index: usize, result: Result<Committed, ChangeError>) {
        let now = self.local(index);
        match result {
            Ok(committed) => self.take_commit(index, &committed),
            Err(ChangeError::Refused(refusal)) => {
                let client = &mut self.clients[index];
                match refusal {
                    Refusal::NotHolder(_) => client.lease = None,
                    Refusal::Changed(_) | Refusal::Moving(_) => {}
                    other => panic!("{other}"),
                }
            }
            Err(ChangeError::Unreachable { .. } | ChangeError::Contended { .. }) => {
                self.counts.failures += 1;
            }
            Err(other) => panic!("{other}"),
        }
        let client = &self.clients[index];
        assert!(client.lease.is_none_or(|(_, lease)| lease.ends_ns() <= now + LEASE_NS));
    }

    fn take_commit(&mut self, index: usize, committed: &Committed) {
        let now = self.local(index);
        let record = &committed.record;
        self.note(index, record);
        let client = &mut self.clients[index];
        if index == ADMINISTRATOR {
            self.counts.acceptor_changes += u64::from(committed.changed_ns.is_some());
            client.joint = (!record.members.next.is_empty()).then(|| record.clone());
        } else if record.opener == client.proposer.id() && !record.released {
            if let Some(sent_ns) = committed.changed_ns {
                let is_new = client.lease.is_none_or(|(epoch, _)| epoch != record.epoch);
                self.counts.take_overs += u64::from(is_new);
                let lease =
                    client.lease.get_or_insert((record.epoch, Lease::new(LEASE_NS, sent_ns)));
                lease.0 = record.epoch;
                lease.1.renewed(sent_ns);
            }
        } else {
            client.lease = None;
            match &mut client.watch {
                Some(watch) => _ = watch.observe(record, now, None),
                None => client.watch = Some(Watch::new(record, now, None)),
            }
        }
    }

    fn note(&mut self, index: usize, record: &VolumeRecord) {
        self.counts.commits += 1;
        if let Some(client) = self.clients.get(index) {
            assert!(record.version >= client.floor, "went back behind version {}", client.floor);
        }
        let known = self.committed.entry(record.version).or_insert_with(|| record.clone());
        assert_eq!(known, record, "one version, two contents");
        let opener = self.epochs.entry(record.epoch).or_insert(record.opener);
        assert_eq!(*opener, record.opener, "one epoch, two openers");
        let epochs: Vec<u64> = self.committed.values().map(|record| record.epoch).collect();
        assert!(epochs.is_sorted(), "{epochs:?}");
        let lost = self.wiped.is_some_and(|id| record.members.contains(&id));
        let newest = self.committed.keys().last() == Some(&record.version);
        if newest && !lost {
            self.wiped = None;
        }
    }

    fn assert_one_holder(&self) {
        let holds = |client: &usize| {
            self.clients[*client].lease.is_some_and(|(_, lease)| lease.holds(self.local(*client)))
        };
        let holders: Vec<usize> = (0..OPENERS).filter(holds).collect();
        assert!(holders.len() <= 1, "at {} openers {holders:?} hold", self.now_ns);
    }

    /// Crashes, lost disks and stalls.
    fn disturb(&mut self) {
        if self.random.one_in(200) {
            let node = self.random.below(5) as NodeIndex;
            self.nodes[usize::from(node)].alive = false;
            let pause = self.random.below(LEASE_NS);
            self.schedule(pause, Event::NodeBack { node });
        }
        if self.random.one_in(400) {
            let client = self.random.below(OPENERS as u64) as usize;
            let life = self.clients[client].life + 1;
            self.clients[client] = self.client(life);
            let pause = self.random.below(2 * LEASE_NS);
            self.sequence += 1;
            self.clients[client].wake = self.sequence;
            self.schedule(pause, Event::Wake { client, wake: self.sequence });
        }
        let node = self.random.below(5) as usize;
        let newest = self.committed.values().last().unwrap();
        // One acceptor at a time, and the next when the acceptors have been changed.
        if self.wiped.is_none() && newest.members.next.is_empty() && self.random.one_in(500) {
            self.counts.wipes += 1;
            self.wiped = Some(self.nodes[node].id());
            let alive = self.nodes[node].alive;
            self.nodes[node] = Node::new(seed_bytes(&mut self.random));
            self.nodes[node].alive = alive;
        }
    }
}

fn seed_bytes(random: &mut Random) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes()));
    bytes
}

fn simulate(seed: u64, events: u64) -> Counts {
    // Shown by the harness when a check fails.
    println!("seed {seed}");
    let mut world = World::new(seed);
    for _ in 0..events {
        world.step();
    }
    world.counts
}

fn simulate_many(seeds: std::ops::Range<u64>, events: u64) {
    let mut total = Counts::default();
    for seed in seeds.clone() {
        let counts = simulate(seed, events);
        total.commits += counts.commits;
        total.take_overs += counts.take_overs;
        total.acceptor_changes += counts.acceptor_changes;
        total.wipes += counts.wipes;
        total.failures += counts.failures;
    }
    println!("seeds {seeds:?}, {events} events each: {total:?}");
    let seeds = seeds.end - seeds.start;
    let went_on = total.commits > 20 * seeds && total.take_overs > seeds;
    assert!(went_on && total.acceptor_changes > seeds && total.wipes > 0, "{total:?}");
}

#[test]
fn random_runs_keep_one_history_and_one_holder() {
    simulate_many(0..20, 4_000);
}

#[test]
#[ignore = "minutes: cargo test --release -p storage-vdev --test register -- --ignored --nocapture"]
fn many_random_runs_keep_one_history_and_one_holder() {
    simulate_many(1_000..3_000, 20_000);
}
