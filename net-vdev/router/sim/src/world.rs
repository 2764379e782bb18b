//! Nodes, wires and the order of events.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::Ipv6Addr;

use mesh_router::message;
use mesh_router::{Config, Event, LinkId, NextHop, Router};
use net_vdev::PublicKey;
use net_vdev::announcement::{Announcement, Role};

use crate::identity::{self, Identity};
use crate::liar::Liar;
use crate::rng::Rng;
use crate::wire::{Direction, Wire};

/// A millisecond in ns.
pub const MS: u64 = 1_000_000;
/// A second in ns.
pub const S: u64 = 1_000_000_000;
/// What the world's clock says when the simulation starts.
const UNIX_START_S: u64 = 1_700_000_000;

/// A port of a node: one end of a wire.
#[derive(Debug)]
pub struct Port {
    /// The wire, and which end of it this is.
    pub wire: usize,
    /// 0 or 1.
    pub end: usize,
    /// The link, while the node runs.
    pub link: Option<LinkId>,
    /// The incarnation of the node at the other end that the session is with: a session is lost with
    /// either end, and made anew by the next message.
    session_with: u32,
}

/// A workload: a key that is attached to one node at a time.
#[derive(Debug)]
pub struct Workload {
    /// Its key.
    pub identity: Identity,
    /// Its address.
    pub address: Ipv6Addr,
    /// The node that it is attached to.
    pub node: usize,
    sequence: u64,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its key.
    pub identity: Identity,
    /// The address of the key.
    pub address: Ipv6Addr,
    /// Its zone.
    pub zone: u16,
    /// The router, while the node runs.
    pub router: Option<Box<Router>>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// What it does to its messages, if it lies.
    pub liar: Option<Liar>,
    /// Bytes of control messages that it sent.
    pub sent_bytes: u64,
    /// Survives restarts.
    sequence: u64,
    incarnation: u32,
    due_ns: u64,
    port_of_slot: Vec<usize>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Due { node: usize },
    Arrive { node: usize, port: usize, session: (u32, u32), bytes: Vec<u8> },
}

/// Where a walk along the routes ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Walk {
    /// At the destination, after so long, over so many hops.
    Arrived {
        /// The sum of delays, in ns.
        delay_ns: u64,
        /// Hops.
        hops: usize,
    },
    /// At a node that has no route.
    NoRoute(usize),
    /// On a wire that is cut, at a node that is dead, or one that doesn't take it.
    Lost,
    /// At a node where it was before. All nodes on the way.
    Loop(Vec<usize>),
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// The seed.
    pub seed: u64,
    /// Now.
    pub now_ns: u64,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The wires.
    pub wires: Vec<Wire>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// Random numbers for all but the routers.
    pub rng: Rng,
    /// What happened so far, hashed.
    trace: blake3::Hasher,
    /// Events handled so far.
    pub events: u64,
    /// The node that had the last event.
    pub last: usize,
    /// Destinations that a router's table holds; smaller ones test what happens when it is full.
    pub destinations_max: u32,
    queue: BinaryHeap<Reverse<(u64, u64, What)>>,
    order: u64,
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            now_ns: S,
            nodes: Vec::new(),
            wires: Vec::new(),
            workloads: Vec::new(),
            rng: Rng::new(seed ^ 0x5eed),
            trace: blake3::Hasher::new(),
            events: 0,
            last: 0,
            destinations_max: 8192,
            queue: BinaryHeap::new(),
            order: 0,
        }
    }

    /// Adds a node that does not run yet. Every hundredth has a real key.
    pub fn add_node(&mut self, zone: u16) -> usize {
        let number = self.nodes.len();
        let identity = Identity::new(self.seed, number as u64, number % 100 == 7);
        let address = identity.key().address();
        self.nodes.push(Node {
            identity,
            address,
            zone,
            router: None,
            ports: Vec::new(),
            liar: None,
            sent_bytes: 0,
            sequence: 0,
            incarnation: 0,
            due_ns: u64::MAX,
            port_of_slot: Vec::new(),
        });
        number
    }

    /// Connects two nodes.
    pub fn connect(&mut self, a: usize, b: usize, delay_ns: u64) -> usize {
        let wire = self.wires.len();
        let ports = [self.nodes[a].ports.len(), self.nodes[b].ports.len()];
        let directions = [Direction::new(delay_ns); 2];
        self.wires.push(Wire { ends: [a, b], ports, directions });
        for (end, node) in [a, b].into_iter().enumerate() {
            let port = Port { wire, end, link: None, session_with: 0 };
            self.nodes[node].ports.push(port);
            if self.nodes[node].router.is_some() {
                self.port_up(node, ports[end]);
                self.after(node);
            }
        }
        wire
    }

    /// Adds a workload attached to a node.
    pub fn add_workload(&mut self, node: usize) -> usize {
        let number = self.workloads.len() as u64 + (1 << 32);
        let identity = Identity::new(self.seed, number, number % 100 == 7);
        let address = identity.key().address();
        self.workloads.push(Workload { identity, address, node, sequence: 0 });
        let workload = self.workloads.len() - 1;
        self.attach(workload, node);
        workload
    }

    /// Moves a workload to another node.
    pub fn attach(&mut self, workload: usize, node: usize) {
        let (key, before) =
            (self.workloads[workload].identity.key(), self.workloads[workload].node);
        let now_ns = self.now_ns;
        if before != node
            && let Some(router) = &mut self.nodes[before].router
        {
            router.withdraw(now_ns, &key);
            self.after(before);
        }
        self.workloads[workload].node = node;
        self.announce_workload(workload);
    }

    /// Starts a node, or starts it again: nothing but its sequence number survives.
    pub fn start(&mut self, node: usize) {
        let config = Config {
            verify: identity::verify,
            unix_time_at_zero_ns: UNIX_START_S * S,
            destinations_max: self.destinations_max,
            ..Config::new(self.nodes[node].identity.key(), self.nodes[node].zone)
        };
        let seed = self.rng.u64();
        let it = &mut self.nodes[node];
        it.incarnation += 1;
        it.router = Some(Box::new(Router::new(config, seed)));
        it.due_ns = u64::MAX;
        self.announce(node);
        for workload in 0..self.workloads.len() {
            if self.workloads[workload].node == node {
                self.announce_workload(workload);
            }
        }
        for port in 0..self.nodes[node].ports.len() {
            self.port_up(node, port);
        }
        self.after(node);
    }

    /// Kills a node. Its neighbours aren't told.
    pub fn stop(&mut self, node: usize) {
        self.nodes[node].router = None;
    }

    fn port_up(&mut self, node: usize, port: usize) {
        let neighbour = self.neighbour(node, port).0;
        let key = self.nodes[neighbour].identity.key();
        let now_ns = self.now_ns;
        let Some(router) = &mut self.nodes[node].router else { return };
        let link = router.link_up(now_ns, key, 0).unwrap_or_else(|error| {
            panic!("seed {}: a world has no such links: {error}", self.seed)
        });
        let it = &mut self.nodes[node];
        it.ports[port].link = Some(link);
        if it.port_of_slot.len() <= link.index() {
            it.port_of_slot.resize(link.index() + 1, 0);
        }
        it.port_of_slot[link.index()] = port;
    }

    /// A node's interface goes down and comes back, and the node notices at once.
    pub fn bounce_port(&mut self, node: usize, port: usize) {
        let now_ns = self.now_ns;
        let Some(link) = self.nodes[node].ports[port].link else { return };
        let Some(router) = &mut self.nodes[node].router else { return };
        router.link_down(now_ns, link);
        self.port_up(node, port);
        self.after(node);
    }

    /// The node and the port at the other end.
    #[must_use]
    pub fn neighbour(&self, node: usize, port: usize) -> (usize, usize) {
        let port = &self.nodes[node].ports[port];
        let wire = &self.wires[port.wire];
        (wire.ends[1 - port.end], wire.ports[1 - port.end])
    }

    fn announcement(&self, key: PublicKey, sequence: u64, role: Role) -> Announcement {
        let expires_unix_s = UNIX_START_S + self.now_ns / S + 3600;
        Announcement { key, sequence, expires_unix_s, role }
    }

    /// A node announces itself under its next number.
    fn announce(&mut self, node: usize) {
        self.nodes[node].sequence += 1;
        let it = &self.nodes[node];
        let role = Role::Node { zone: it.zone };
        let announcement = self.announcement(it.identity.key(), it.sequence, role);
        let signed = it.identity.sign(announcement);
        self.originate(node, signed);
    }

    fn announce_workload(&mut self, workload: usize) {
        self.workloads[workload].sequence += 1;
        let it = &self.workloads[workload];
        let announcement = self.announcement(it.identity.key(), it.sequence, Role::Workload);
        let (node, signed) = (it.node, it.identity.sign(announcement));
        self.originate(node, signed);
        self.after(node);
    }

    fn originate(&mut self, node: usize, signed: net_vdev::announcement::SignedAnnouncement) {
        let (now_ns, seed) = (self.now_ns, self.seed);
        if let Some(router) = &mut self.nodes[node].router {
            // A full table may refuse a workload; a node's own key never is.
            if let Err(error) = router.originate(now_ns, signed) {
                let is_full = error == mesh_router::OriginateError::TooMany;
                assert!(is_full, "seed {seed}: node {node} at {now_ns}: {error}");
            }
        }
    }

    /// Runs until `end_ns`. `check` is called after every event that may change a route: not after
    /// a probe, which is only answered.
    pub fn run(&mut self, end_ns: u64, mut check: impl FnMut(&mut World)) {
        while let Some(Reverse((at_ns, ..))) = self.queue.peek() {
            if *at_ns > end_ns {
                break;
            }
            if let Some(Reverse((at_ns, _, what))) = self.queue.pop() {
                self.now_ns = at_ns;
                if self.happen(what) {
                    check(self);
                }
            }
        }
        self.now_ns = end_ns;
    }

    fn happen(&mut self, what: What) -> bool {
        let now_ns = self.now_ns;
        match what {
            What::Due { node } => {
                let it = &mut self.nodes[node];
                if it.due_ns != now_ns {
                    return false;
                }
                it.due_ns = u64::MAX;
                let Some(router) = &mut it.router else { return false };
                router.handle_deadline(now_ns);
                self.note(node, &[]);
                self.after(node);
            }
            What::Arrive { node, port, session, bytes } => {
                let neighbour = self.neighbour(node, port).0;
                let now = (self.nodes[neighbour].incarnation, self.nodes[node].incarnation);
                if session != now {
                    return false;
                }
                let it = &mut self.nodes[node];
                it.ports[port].session_with = session.0;
                let (Some(router), Some(link)) = (&mut it.router, it.ports[port].link) else {
                    return false;
                };
                router.receive(now_ns, link, &bytes);
                self.note(node, &bytes);
                self.after(node);
                return !matches!(message::parse(&bytes), Ok((_, message::Body::Probe { .. })));
            }
        }
        true
    }

    fn note(&mut self, node: usize, bytes: &[u8]) {
        self.events += 1;
        self.last = node;
        self.trace.update(&self.now_ns.to_le_bytes());
        self.trace.update(&(node as u64).to_le_bytes());
        self.trace.update(bytes);
    }

    /// The hash of all events so far.
    #[must_use]
    pub fn trace(&self) -> String {
        self.trace.finalize().to_hex().to_string()
    }

    /// Takes what a node has to say, and notes when it is due.
    pub fn after(&mut self, node: usize) {
        while let Some(event) =
            self.nodes[node].router.as_mut().and_then(|router| router.poll_event())
        {
            self.react(node, event);
        }
        loop {
            let it = &mut self.nodes[node];
            let Some((link, bytes)) = it.router.as_mut().and_then(|it| it.poll_transmit()) else {
                break;
            };
            let port = it.port_of_slot[link.index()];
            self.transmit(node, port, bytes);
        }
        let Some(router) = &self.nodes[node].router else { return };
        let due_ns = router.next_deadline().max(self.now_ns + 1);
        if due_ns < self.nodes[node].due_ns {
            self.nodes[node].due_ns = due_ns;
            self.push(due_ns, What::Due { node });
        }
    }

    fn react(&mut self, node: usize, event: Event) {
        let (Event::SequenceWanted { key, sequence } | Event::Superseded { key, sequence }) = event
        else {
            return;
        };
        if key == self.nodes[node].identity.key() {
            // One announcement may have answered several requests.
            if self.nodes[node].sequence <= sequence {
                self.nodes[node].sequence = self.nodes[node].sequence.max(sequence - 1);
                self.announce(node);
            }
            return;
        }
        let is_it = |it: &Workload| it.identity.key() == key && it.node == node;
        if let Some(workload) = self.workloads.iter().position(is_it)
            && self.workloads[workload].sequence < sequence
        {
            self.announce_workload(workload);
        }
    }

    fn transmit(&mut self, node: usize, port: usize, bytes: Vec<u8>) {
        self.nodes[node].sent_bytes += bytes.len() as u64;
        let Some(mut liar) = self.nodes[node].liar.take() else {
            return self.put_on_wire(node, port, bytes);
        };
        for bytes in liar.twist(bytes, &mut self.rng) {
            self.put_on_wire(node, port, bytes);
        }
        self.nodes[node].liar = Some(liar);
    }

    fn put_on_wire(&mut self, node: usize, port: usize, bytes: Vec<u8>) {
        let (neighbour, far_port) = self.neighbour(node, port);
        let session = (self.nodes[node].incarnation, self.nodes[neighbour].incarnation);
        let at = &self.nodes[node].ports[port];
        let direction = &mut self.wires[at.wire].directions[at.end];
        if let Some(at_ns) = direction.carry(self.now_ns, bytes.len(), &mut self.rng) {
            self.push(at_ns, What::Arrive { node: neighbour, port: far_port, session, bytes });
        }
    }

    fn push(&mut self, at_ns: u64, what: What) {
        self.order += 1;
        self.queue.push(Reverse((at_ns, self.order, what)));
    }

    /// The node at the other end of a link.
    #[must_use]
    pub fn across(&self, node: usize, link: LinkId) -> usize {
        self.neighbour(node, self.nodes[node].port_of_slot[link.index()]).0
    }

    /// The node that has an address, or that its workload is attached to.
    #[must_use]
    pub fn holder(&self, address: &Ipv6Addr) -> usize {
        let workload = self.workloads.iter().find(|it| it.address == *address);
        let node = self.nodes.iter().position(|it| it.address == *address);
        workload.map(|it| it.node).or(node).unwrap_or(0)
    }

    /// Follows the routes from `from` to `address`, as a packet would that takes no time.
    #[must_use]
    pub fn walk(&self, from: usize, address: &Ipv6Addr, alternate: bool) -> Walk {
        let mut way = vec![from];
        let (mut at, mut delay_ns) = (from, 0);
        loop {
            let Some(router) = &self.nodes[at].router else { return Walk::Lost };
            let link = match router.route_to(address, alternate && at == from) {
                NextHop::Local(_) => return Walk::Arrived { delay_ns, hops: way.len() - 1 },
                NextHop::Link(link) => link,
                NextHop::Pending | NextHop::Unreachable => return Walk::NoRoute(at),
            };
            let port = self.nodes[at].port_of_slot[link.index()];
            let (next, far_port) = self.neighbour(at, port);
            let port = &self.nodes[at].ports[port];
            let direction = &self.wires[port.wire].directions[port.end];
            let far_link = self.nodes[next].ports[far_port].link;
            let accepts = self.nodes[next].router.as_ref().zip(far_link);
            if !accepts.is_some_and(|(router, link)| router.accepts(link)) {
                return Walk::Lost;
            }
            let has_been_here = way.contains(&next);
            way.push(next);
            if has_been_here {
                return Walk::Loop(way);
            }
            if direction.is_cut {
                return Walk::Lost;
            }
            delay_ns += direction.delay_ns;
            at = next;
        }
    }
}
