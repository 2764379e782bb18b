//! Whole systems in virtual time: real nodes over simulated disks, and a network between them and
//! any number of writers, all driven by one seed.
//!
//! A [`World`] has the nodes ([`NodeService`] over [`SimDisk`]) and the messages that are under way;
//! [`SimNodes`] is one writer's connection to all of them. Time is what the caller says. The network
//! delays each message by itself, keeps the order on a connection, and loses connections: a writer
//! hears [`NodeError::Unavailable`] then, and what it had sent may have been lost, or carried out,
//! or is still to be carried out, after what it sends on the next connection. The same seed and the
//! same calls give the same run; [`World::trace`] is a number that says whether two runs were alike.
//!
//! A [`Ledger`] sees every object and every journal record that reaches a node, and knows if a key
//! and a nonce were ever used for two contents.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use crate::disk::DiskStore;
use crate::files::sim::{Rng, SimDisk, SimFile};
use crate::node::{NodeCompletion, NodeError, NodeIndex, Nodes, Request, Response, Tag};
use crate::service::{Grants, Handled, NodeOptions, NodeService, Ticket};

mod damage;
mod ledger;

pub use ledger::{Ledger, Reuse};

type Service = NodeService<DiskStore<SimFile>, SimFile>;

/// After how long a connection that carries nothing is given up.
const SILENCE_NS: u64 = 5_000_000_000;

/// For how long what was sent on a lost connection may linger on its way, now and then.
const LINGER_NS: u64 = 1_000_000_000;

/// How the network and the nodes behave. Chances are in a million for each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The least time that a message takes.
    pub delay_ns: u64,
    /// How much longer it may take, uniformly.
    pub jitter_ns: u64,
    /// How often a message takes very much longer.
    pub late: u32,
    /// How much longer then, at the most.
    pub late_ns: u64,
    /// How often the connection is lost when a message is sent.
    pub reset: u32,
    /// How long a node's sync takes at the most.
    pub sync_ns: u64,
}

impl Network {
    /// One rack: tenths of milliseconds, and nothing is ever lost.
    pub const CALM: Self = Self {
        delay_ns: 20_000,
        jitter_ns: 200_000,
        late: 0,
        late_ns: 0,
        reset: 0,
        sync_ns: 500_000,
    };
    /// Messages that are late by up to 0.3 s now and then, which no node should be given up for.
    pub const ROUGH: Self =
        Self { jitter_ns: 2_000_000, late: 2_000, late_ns: 300_000_000, ..Self::CALM };
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy)]
struct Reply {
    writer: usize,
    node: usize,
    connection: u64,
    tag: Tag,
}

enum Event {
    Arrive {
        reply: Reply,
        life: u64,
        request: Request,
    },
    Sync {
        node: usize,
        life: u64,
    },
    Answer {
        reply: Reply,
        result: Result<Response, NodeError>,
    },
    /// The writer notices that its connection is gone.
    Lost {
        writer: usize,
        node: usize,
        connection: u64,
    },
    Restart {
        node: usize,
        life: u64,
    },
}

struct Node {
    disk: SimDisk,
    options: NodeOptions,
    /// `None`: the machine is down, or can't use its disk.
    service: Option<Service>,
    /// Counts the crashes.
    life: u64,
    waiting: Vec<(Ticket, Reply)>,
    syncing: bool,
    /// Each of its answers takes so much longer.
    slow_ns: u64,
}

/// One writer's side of a connection to a node.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    connection: u64,
    /// When the last message on it arrives; the next one comes after.
    last_ns: u64,
    cut: bool,
}

struct Writer {
    links: Vec<Link>,
    outstanding: BTreeMap<Tag, (usize, u64)>,
    inbox: VecDeque<NodeCompletion>,
    gone: bool,
}

/// What all writers share: time, nodes, and the messages that are under way.
pub struct World {
    now_ns: u64,
    rng: Rng,
    network: Network,
    nodes: Vec<Node>,
    writers: Vec<Writer>,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    trace: u64,
    ledger: Ledger,
    log: Vec<String>,
}

/// A world with its writers.
pub type Shared = Rc<RefCell<World>>;

/// A world of `nodes` blank nodes that hold `capacity_bytes` of objects each.
#[must_use]
pub fn world(seed: u64, nodes: usize, capacity_bytes: u64, network: Network) -> Shared {
    let mut world = World {
        now_ns: 1_000_000_000,
        rng: Rng::new(seed),
        network,
        nodes: Vec::new(),
        writers: Vec::new(),
        events: BTreeMap::new(),
        next_event: 0,
        trace: seed,
        ledger: Ledger::default(),
        log: Vec::new(),
    };
    for _ in 0..nodes {
        let disk = SimDisk::new(world.rng.next_u64());
        let options = NodeOptions { capacity_bytes, create: None };
        world.nodes.push(Node {
            disk,
            options,
            service: None,
            life: 0,
            waiting: Vec::new(),
            syncing: false,
            slow_ns: 0,
        });
        world.forget(world.nodes.len() - 1);
    }
    world.log.clear();
    Rc::new(RefCell::new(world))
}

impl World {
    /// The time.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// How many nodes there are.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// A number made of everything that has happened.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// What became of keys and nonces.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What was done to the nodes, for a person.
    #[must_use]
    pub fn log(&self) -> &[String] {
        &self.log
    }

    /// Adds a line to the log.
    pub fn note(&mut self, line: &str) {
        self.log.push(format!("{:>12} us  {line}", self.now_ns / 1000));
    }

    /// The network behaves differently from now on.
    pub fn set_network(&mut self, network: Network) {
        self.network = network;
    }

    /// When something happens next.
    #[must_use]
    pub fn next_event_ns(&self) -> Option<u64> {
        self.events.first_key_value().map(|((at_ns, _), _)| *at_ns)
    }

    /// Has everything happen that happens until `until_ns`.
    pub fn run_until(&mut self, until_ns: u64) {
        while let Some(first) = self.events.first_entry() {
            if first.key().0 > until_ns {
                break;
            }
            let ((at_ns, number), event) = first.remove_entry();
            self.now_ns = self.now_ns.max(at_ns);
            self.mix(at_ns ^ number.rotate_left(32));
            self.happen(event);
        }
        self.now_ns = self.now_ns.max(until_ns);
    }

    fn mix(&mut self, value: u64) {
        self.trace = (self.trace ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    fn schedule(&mut self, at_ns: u64, event: Event) {
        self.events.insert((at_ns, self.next_event), event);
        self.next_event += 1;
    }

    fn delay(&mut self) -> u64 {
        let network = self.network;
        let mut delay = network.delay_ns + self.rng.below(network.jitter_ns + 1);
        if self.rng.chance(network.late) {
            delay += self.rng.below(network.late_ns + 1);
        }
        delay
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { reply, life, request } => self.arrive(reply, life, request),
            Event::Sync { node, life } => self.sync(node, life),
            Event::Answer { reply, result } => self.deliver(reply, result),
            Event::Lost { writer, node, connection } => self.lose(writer, node, connection),
            Event::Restart { node, life } => {
                if self.nodes.get(node).is_some_and(|one| one.life == life) {
                    self.start(node);
                }
            }
        }
    }

    fn link(&mut self, writer: usize, node: usize) -> Option<&mut Link> {
        self.writers.get_mut(writer)?.links.get_mut(node)
    }

    /// A writer sends a request.
    fn send(&mut self, writer: usize, node: usize, tag: Tag, request: Request) {
        let (delay, reset) = (self.delay(), self.rng.chance(self.network.reset));
        let now_ns = self.now_ns;
        let life = self.nodes.get(node).map_or(0, |node| node.life);
        let Some(link) = self.link(writer, node) else { return };
        let arrive_ns = (now_ns + delay).max(link.last_ns + 1);
        link.last_ns = arrive_ns;
        let connection = link.connection;
        if let Some(writer) = self.writers.get_mut(writer) {
            writer.outstanding.insert(tag, (node, connection));
        }
        let reply = Reply { writer, node, connection, tag };
        self.schedule(arrive_ns, Event::Arrive { reply, life, request });
        if reset {
            let at_ns = now_ns + self.rng.below(2 * delay);
            self.schedule(at_ns, Event::Lost { writer, node, connection });
        }
    }

    /// A request comes to its node, if nothing keeps it from that.
    fn arrive(&mut self, reply: Reply, life: u64, request: Request) {
        let Reply { writer, node, connection, .. } = reply;
        let Some(link) = self.link(writer, node).copied() else { return };
        if link.cut {
            let at_ns = self.now_ns + SILENCE_NS;
            return self.schedule(at_ns, Event::Lost { writer, node, connection });
        }
        let here = self.nodes.get(node).filter(|here| here.service.is_some());
        if here.filter(|here| here.life == life).is_none() {
            let at_ns = self.now_ns + self.network.delay_ns;
            return self.schedule(at_ns, Event::Lost { writer, node, connection });
        }
        // What was still in the buffers of a lost connection is not read, or now, or later still.
        if link.connection != connection {
            match self.rng.below(3) {
                0 => return,
                1 => {
                    let at_ns = self.now_ns + 1 + self.rng.below(LINGER_NS);
                    return self.schedule(at_ns, Event::Arrive { reply, life, request });
                }
                _ => {}
            }
        }
        self.ledger.see(&request);
        self.mix(node as u64 + 1);
        let Some(here) = self.nodes.get_mut(node) else { return };
        let Some(service) = &mut here.service else { return };
        let handled = service.handle(&Grants::all(), request);
        if here.disk.has_crashed() {
            return self.crash(node);
        }
        match handled {
            Handled::Done(result) => self.answer(reply, result),
            Handled::AfterSync(ticket) => {
                here.waiting.push((ticket, reply));
                if !std::mem::replace(&mut here.syncing, true) {
                    let at_ns = self.now_ns + 1 + self.rng.below(self.network.sync_ns + 1);
                    self.schedule(at_ns, Event::Sync { node, life });
                }
            }
        }
    }

    /// A node makes durable what waits for it.
    fn sync(&mut self, node: usize, life: u64) {
        let quick = self.rng.below(2) == 0;
        let Some(here) = self.nodes.get_mut(node).filter(|here| here.life == life) else { return };
        let Some(service) = &mut here.service else { return };
        let answers = if quick { service.sync_journals() } else { service.sync() };
        if here.disk.has_crashed() {
            return self.crash(node);
        }
        here.syncing = service.is_waiting();
        let syncing = here.syncing;
        let mut waiting: BTreeMap<Ticket, Reply> =
            std::mem::take(&mut here.waiting).into_iter().collect();
        let mut ready = Vec::new();
        for (ticket, result) in answers {
            ready.extend(waiting.remove(&ticket).map(|reply| (reply, result)));
        }
        here.waiting = waiting.into_iter().collect();
        for (reply, result) in ready {
            self.answer(reply, result);
        }
        if syncing {
            let at_ns = self.now_ns + 1 + self.rng.below(self.network.sync_ns + 1);
            self.schedule(at_ns, Event::Sync { node, life });
        }
    }

    fn answer(&mut self, reply: Reply, result: Result<Response, NodeError>) {
        if let Err(error) = &result
            && !matches!(error, NodeError::NotFound)
        {
            self.note(&format!("node {} tells writer {}: {error}", reply.node, reply.writer));
        }
        let slow_ns = self.nodes.get(reply.node).map_or(0, |node| node.slow_ns);
        let at_ns = self.now_ns + self.delay() + slow_ns;
        self.schedule(at_ns, Event::Answer { reply, result });
    }

    fn deliver(&mut self, reply: Reply, result: Result<Response, NodeError>) {
        let Reply { writer, node, connection, tag } = reply;
        let Some(link) = self.link(writer, node).copied() else { return };
        if link.cut {
            let at_ns = self.now_ns + SILENCE_NS;
            return self.schedule(at_ns, Event::Lost { writer, node, connection });
        }
        let Some(writer) = self.writers.get_mut(writer).filter(|writer| !writer.gone) else {
            return;
        };
        if writer.outstanding.get(&tag) == Some(&(node, connection)) {
            writer.outstanding.remove(&tag);
            writer.inbox.push_back(NodeCompletion { tag, result });
        }
    }

    /// A connection is lost: whatever was asked on it is answered `Unavailable`.
    fn lose(&mut self, writer: usize, node: usize, connection: u64) {
        let Some(writer) = self.writers.get_mut(writer) else { return };
        let Some(link) = writer.links.get_mut(node).filter(|one| one.connection == connection)
        else {
            return;
        };
        link.connection += 1;
        let lost = |_: &Tag, at: &mut (usize, u64)| *at == (node, connection);
        let tags: Vec<Tag> = writer.outstanding.extract_if(.., lost).map(|(tag, _)| tag).collect();
        let result = Err(NodeError::Unavailable);
        let completions =
            tags.into_iter().map(|tag| NodeCompletion { tag, result: result.clone() });
        writer.inbox.extend(completions);
    }
}

/// One writer's nodes. Dropping it leaves what it has sent on its way.
pub struct SimNodes {
    world: Shared,
    writer: usize,
}

impl SimNodes {
    /// Another writer in the world, connected to all nodes.
    #[must_use]
    pub fn new(world: &Shared) -> Self {
        let mut inside = world.borrow_mut();
        let writer = inside.writers.len();
        let links = vec![Link::default(); inside.nodes.len()];
        inside.writers.push(Writer {
            links,
            outstanding: BTreeMap::new(),
            inbox: VecDeque::new(),
            gone: false,
        });
        drop(inside);
        Self { world: Rc::clone(world), writer }
    }

    /// Which writer of the world it is.
    #[must_use]
    pub fn writer(&self) -> usize {
        self.writer
    }
}

impl Drop for SimNodes {
    fn drop(&mut self) {
        let mut world = self.world.borrow_mut();
        if let Some(writer) = world.writers.get_mut(self.writer) {
            writer.gone = true;
            writer.outstanding.clear();
            writer.inbox.clear();
        }
    }
}

impl Nodes for SimNodes {
    fn count(&self) -> usize {
        self.world.borrow().nodes.len()
    }

    fn name(&self, node: NodeIndex) -> String {
        format!("node {node}")
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        self.world.borrow_mut().send(self.writer, usize::from(node), tag, request);
    }

    fn poll(&mut self, now_ns: u64) -> Option<NodeCompletion> {
        let mut world = self.world.borrow_mut();
        world.run_until(now_ns);
        world.writers.get_mut(self.writer)?.inbox.pop_front()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline_ns(&self) -> Option<u64> {
        let world = self.world.borrow();
        let waiting = world.writers.get(self.writer).is_some_and(|one| !one.inbox.is_empty());
        if waiting { Some(world.now_ns) } else { world.next_event_ns() }
    }
}
