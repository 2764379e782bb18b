//! One seed: a world, faults, and what must hold after every event and in the end.

use std::collections::VecDeque;
use std::net::Ipv6Addr;

use crate::liar::{Liar, Lie};
use crate::topology;
use crate::world::{MS, S, Walk, World};

/// How long after the last fault every destination that can be reached is reached. An idle link's
/// death takes 1.5 s to be noticed, a link that flapped is trusted again after up to 4 s, and what
/// was told is forgotten 3 to 5 s after the last route was lost.
const BOUND_NS: u64 = 10 * S;
/// Within how many tenths of a second a route comes back that links lost which die without end.
const STORM_TRIES: u32 = 20;
/// How often the flows send.
const TICK_NS: u64 = 20 * MS;
/// What a node may send per port and second, on average over a quiet second: probes of ten per
/// second, their replies, renewed subscriptions, and what losses make it repeat.
const QUIET_BYTES_PER_PORT: u64 = 6 * 1024;
/// The same where some wires lose most of what they carry: those links die and come back without end,
/// and each time the whole table is told.
const STORMY_BYTES_PER_PORT: u64 = 32 * 1024;
/// What a node may send per port in any second: the rate of updates and its burst, replies, requests.
const BUSY_BYTES_PER_PORT: u64 = 1024 * 1024;

/// What a campaign does to its worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Cuts of one direction or both, heals, partitions, interfaces that go down.
    Cuts,
    /// Nodes die, start again, move their workloads, in worlds of several zones.
    Churn,
    /// Wires that lose much or carry little, and change.
    Weather,
    /// All of it, with up to a tenth of the nodes lying.
    Liars,
}

/// What happened in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Nodes.
    pub nodes: usize,
    /// Events.
    pub events: u64,
    /// Faults.
    pub faults: u64,
    /// Walks that were checked for loops.
    pub walks: u64,
    /// Pairs that had to be connected in the end, and were.
    pub pairs: u64,
    /// Tenths of a second that were waited for pairs that were not connected just then.
    pub late: u64,
    /// The most bytes that a node sent per port in a second, after the first five.
    pub busiest: u64,
    /// Bytes of memory for each known destination, the largest of all nodes.
    pub bytes_per_destination: usize,
    /// How often a destination had no route left and a new number was asked for.
    pub starved: u64,
    /// The hash of all events.
    pub trace: String,
}

struct Run {
    kind: Kind,
    world: World,
    flows: Vec<(usize, Ipv6Addr)>,
    summary: Summary,
    /// What was done, for the message of a failure.
    log: Vec<String>,
    sent: Vec<u64>,
    second_ns: u64,
}

/// Runs one seed.
///
/// # Panics
/// Something did not hold; the message has the seed and the faults.
#[must_use]
pub fn run(kind: Kind, seed: u64, nodes_max: usize) -> Summary {
    let mut run = Run::new(kind, seed, nodes_max);
    run.go(3 * S);
    for _ in 0..3 {
        for _ in 0..run.world.rng.range(1, 6) {
            run.fault();
            let pause_ns = run.world.rng.range(10 * MS, 1500 * MS);
            run.go(pause_ns);
        }
        run.settle();
    }
    run.summary.trace = run.world.trace();
    run.summary.events = run.world.events;
    run.summary
}

impl Run {
    fn new(kind: Kind, seed: u64, nodes_max: usize) -> Self {
        let mut world = World::new(seed);
        let nodes = world.rng.range(4, nodes_max as u64 + 1) as usize;
        let degree = world.rng.range(3, 7) as usize;
        if kind == Kind::Churn || world.rng.chance_ppm(200_000) {
            let zones = world.rng.range(2, 4) as u16;
            topology::zones(&mut world, zones, nodes.div_ceil(usize::from(zones)), degree, 3);
        } else {
            topology::random_zone(&mut world, 1, nodes, degree);
        }
        let count = world.nodes.len();
        if kind == Kind::Liars {
            let lies = [Lie::Metrics, Lie::Forge, Lie::Replay, Lie::Flood];
            for _ in 0..(count / 10).max(1) {
                let (liar, lie) = (world.rng.index(count), world.rng.index(lies.len()));
                world.nodes[liar].liar = Some(Liar::new(lies[lie]));
                world.destinations_max = 256;
            }
        }
        let summary = Summary { nodes: count, ..Summary::default() };
        let mut run = Self {
            kind,
            world,
            flows: Vec::new(),
            summary,
            log: Vec::new(),
            sent: vec![0; count],
            second_ns: S,
        };
        if kind == Kind::Weather {
            (0..run.world.wires.len()).for_each(|wire| run.weather(wire));
        }
        for node in 0..count {
            run.world.start(node);
            if run.world.rng.chance_ppm(100_000) {
                run.go(20 * MS);
            }
        }
        for _ in 0..run.world.rng.index(6) {
            let node = run.world.rng.index(count);
            run.world.add_workload(node);
        }
        for _ in 0..8 {
            run.new_flow();
        }
        run
    }

    /// A flow to a node or a workload from anywhere.
    fn new_flow(&mut self) {
        let world = &mut self.world;
        let from = world.rng.index(world.nodes.len());
        let to = world.rng.index(world.nodes.len() + world.workloads.len());
        let address = match to.checked_sub(world.nodes.len()) {
            None => world.nodes[to].address,
            Some(workload) => world.workloads[workload].address,
        };
        self.flows.push((from, address));
        if self.flows.len() > 8 {
            self.flows.remove(0);
        }
    }

    fn fail(&self, what: &str) -> ! {
        panic!(
            "{:?}, seed {} at {} ms: {what}\nfaults:\n{}",
            self.kind,
            self.world.seed,
            self.world.now_ns / MS,
            self.log.join("\n")
        );
    }

    /// Lets time pass: events are checked one by one, and flows keep their links busy.
    fn go(&mut self, time_ns: u64) {
        let end_ns = self.world.now_ns + time_ns;
        while self.world.now_ns < end_ns {
            self.send_flows();
            let step_ns = end_ns.min(self.world.now_ns + TICK_NS);
            let (mut walks, mut broken) = (0, None);
            self.world.run(step_ns, |world| {
                walks += 1;
                broken = broken.take().or_else(|| find_loop(world));
            });
            self.summary.walks += walks;
            if let Some(what) = broken {
                self.fail(&what);
            }
            self.check_busy();
        }
    }

    fn send_flows(&mut self) {
        let world = &mut self.world;
        for (from, address) in &self.flows {
            let now_ns = world.now_ns;
            let mut at = *from;
            // As far as the packet gets, links are busy.
            for _ in 0..world.nodes.len() {
                let Some(router) = &mut world.nodes[at].router else { break };
                let hop = router.next_hop(now_ns, address, false);
                let mesh_router::NextHop::Link(link) = hop else {
                    world.after(at);
                    break;
                };
                router.sent(now_ns, link);
                world.after(at);
                at = world.across(at, link);
            }
        }
    }

    fn check_busy(&mut self) {
        if self.world.now_ns < self.second_ns + S {
            return;
        }
        let passed = self.world.now_ns - self.second_ns;
        self.second_ns = self.world.now_ns;
        for node in 0..self.world.nodes.len() {
            let it = &self.world.nodes[node];
            if it.liar.is_some() || it.ports.is_empty() {
                continue;
            }
            let bytes = (it.sent_bytes - self.sent[node]) * S / passed / it.ports.len() as u64;
            if bytes > BUSY_BYTES_PER_PORT {
                self.fail(&format!("node {node} sent {bytes} bytes per port and second"));
            }
            if self.world.now_ns > 6 * S {
                self.summary.busiest = self.summary.busiest.max(bytes);
            }
        }
        self.sent = self.world.nodes.iter().map(|it| it.sent_bytes).collect();
    }

    /// No more faults: in the end everybody reaches everybody, little is sent, and memory is bounded.
    fn settle(&mut self) {
        self.go(BOUND_NS);
        let before: Vec<u64> = self.world.nodes.iter().map(|it| it.sent_bytes).collect();
        self.go(2 * S);
        for (node, before) in before.iter().enumerate() {
            let it = &self.world.nodes[node];
            let per_port = (it.sent_bytes - before) / 2 / (it.ports.len() as u64).max(1);
            let is_stormy = self.kind == Kind::Weather;
            let bound = if is_stormy { STORMY_BYTES_PER_PORT } else { QUIET_BYTES_PER_PORT };
            if per_port > bound && self.kind != Kind::Liars {
                self.fail(&format!("node {node} sends {per_port} bytes per port in quiet times"));
            }
        }
        self.check_memory();
        self.check_paths();
    }

    fn check_memory(&mut self) {
        let mut starved = 0;
        for (node, it) in self.world.nodes.iter().enumerate() {
            let Some(router) = &it.router else { continue };
            let full = router.occupancy();
            let max = self.world.destinations_max as usize;
            if full.destinations > max + max / 4 || full.requests > 1024 {
                self.fail(&format!("node {node} holds {full:?}"));
            }
            if full.destinations >= 16 {
                let per = full.bytes_per_destination();
                self.summary.bytes_per_destination = self.summary.bytes_per_destination.max(per);
            }
            starved += router.counters().starved;
        }
        self.summary.starved = starved;
    }

    /// Every pair that is connected over wires that carry something, and must know each other.
    fn check_paths(&mut self) {
        let flows = self.flows.clone();
        for (from, address) in flows {
            let to = self.world.holder(&address);
            self.check_path(from, to, &address, false);
        }
        for _ in 0..100 {
            let count = self.world.nodes.len();
            let (from, to) = (self.world.rng.index(count), self.world.rng.index(count));
            if self.world.nodes[from].zone == self.world.nodes[to].zone {
                let address = self.world.nodes[to].address;
                self.check_path(from, to, &address, true);
            }
        }
    }

    fn check_path(&mut self, from: usize, to: usize, address: &Ipv6Addr, in_zone: bool) {
        let is_honest = |node: usize| self.world.nodes[node].liar.is_none();
        if !is_honest(from) || !is_honest(to) || !self.is_connected(from, to, in_zone) {
            return;
        }
        // A liar on the way may swallow it; then nothing is promised without probes end to end.
        let mut walk = self.world.walk(from, address, false);
        // Where links die and come back without end, a route may be lost just now, but not for long.
        for _ in 0..STORM_TRIES {
            if self.kind == Kind::Weather && !matches!(walk, Walk::Arrived { .. }) {
                self.summary.late += 1;
                self.go(100 * MS);
                walk = self.world.walk(from, address, false);
            }
        }
        let is_there = matches!(walk, Walk::Arrived { .. });
        if !is_there && self.kind != Kind::Liars {
            let [there, here] = [from, to].map(|node| self.links_of(node));
            self.fail(&format!("{from} does not reach {to}: {walk:?}\n{there}{here}"));
        }
        self.summary.pairs += u64::from(is_there);
        let key = self.world.nodes[from].router.as_ref().and_then(|it| it.resolve(address));
        if key.is_some_and(|key| key.address() != *address) {
            self.fail(&format!("{from} takes {address} for {key:?}"));
        }
    }

    /// The links of a node, for the message of a failure.
    fn links_of(&self, node: usize) -> String {
        let it = &self.world.nodes[node];
        let views = it.router.iter().flat_map(|router| router.neighbours());
        let lines = views.map(|view| {
            let wire = it.ports.iter().find(|port| port.link == Some(view.link));
            let directions = wire.map(|port| &self.world.wires[port.wire].directions);
            format!(
                "node {node} to {}: {view:?}\n  {directions:?}\n",
                self.world.across(node, view.link)
            )
        });
        lines.collect()
    }

    /// Whether good wires between living honest nodes connect them.
    fn is_connected(&self, from: usize, to: usize, in_zone: bool) -> bool {
        let world = &self.world;
        let zone = world.nodes[from].zone;
        let lives = |node: usize| {
            let it = &world.nodes[node];
            it.router.is_some() && it.liar.is_none() && (!in_zone || it.zone == zone)
        };
        if !lives(from) || !lives(to) {
            return false;
        }
        let mut seen = vec![false; world.nodes.len()];
        let mut queue = VecDeque::from([from]);
        seen[from] = true;
        while let Some(at) = queue.pop_front() {
            if at == to {
                return true;
            }
            for (number, port) in world.nodes[at].ports.iter().enumerate() {
                let wire = &world.wires[port.wire];
                let is_good = wire.directions.iter().all(|direction| {
                    let is_narrow = direction.bytes_per_s != 0 && direction.bytes_per_s < 50_000;
                    !direction.is_cut && direction.loss_ppm <= 50_000 && !is_narrow
                });
                let next = world.neighbour(at, number).0;
                if is_good && !seen[next] && lives(next) {
                    seen[next] = true;
                    queue.push_back(next);
                }
            }
        }
        false
    }

    /// Changes what a wire loses and carries.
    fn weather(&mut self, wire: usize) {
        let world = &mut self.world;
        for end in 0..2 {
            let loss_ppm = match world.rng.range(0, 10) {
                0..=4 => 0,
                5..=7 => world.rng.range(0, 30_000) as u32,
                8 => world.rng.range(30_000, 200_000) as u32,
                _ => world.rng.range(200_000, 900_000) as u32,
            };
            let bytes_per_s = match world.rng.range(0, 10) {
                0..=5 => 0,
                6..=8 => world.rng.range(100_000, 10_000_000),
                _ => world.rng.range(4_000, 100_000),
            };
            let direction = &mut world.wires[wire].directions[end];
            (direction.loss_ppm, direction.bytes_per_s) = (loss_ppm, bytes_per_s);
        }
    }

    fn fault(&mut self) {
        self.summary.faults += 1;
        let what = match (self.kind, self.world.rng.range(0, 10)) {
            (Kind::Churn, 0..=6) | (Kind::Liars, 7..=8) => self.churn(),
            (Kind::Weather, 0..=6) => {
                let wire = self.world.rng.index(self.world.wires.len());
                self.weather(wire);
                let directions =
                    self.world.wires[wire].directions.map(|it| (it.loss_ppm, it.bytes_per_s));
                format!("wire {wire}: loss and bandwidth {directions:?}")
            }
            (_, 9) => {
                self.new_flow();
                format!("flow {:?}", self.flows.last())
            }
            _ => self.cut_or_heal(),
        };
        self.log.push(format!("{:>6} ms: {what}", self.world.now_ns / MS));
    }

    fn cut_or_heal(&mut self) -> String {
        let world = &mut self.world;
        let wire = world.rng.index(world.wires.len());
        match world.rng.range(0, 9) {
            0 | 1 => {
                world.wires[wire].directions.iter_mut().for_each(|it| it.is_cut = true);
                format!("wire {wire} {:?} is cut", world.wires[wire].ends)
            }
            2 | 3 => {
                let end = world.rng.index(2);
                world.wires[wire].directions[end].is_cut = true;
                format!("wire {wire} {:?} is cut from end {end}", world.wires[wire].ends)
            }
            4 => {
                for direction in world.wires.iter_mut().flat_map(|it| &mut it.directions) {
                    direction.is_cut = false;
                }
                "all wires heal".to_owned()
            }
            5 => {
                // Half of the nodes, by a bit of their keys, against the other half.
                let bit = 1 << world.rng.range(0, 8);
                let side = |world: &World, node: usize| world.nodes[node].address.octets()[9] & bit;
                for wire in 0..world.wires.len() {
                    let [a, b] = world.wires[wire].ends;
                    if side(world, a) != side(world, b) {
                        world.wires[wire].directions.iter_mut().for_each(|it| it.is_cut = true);
                    }
                }
                format!("partition by bit {bit}")
            }
            6 => {
                let [node, _] = world.wires[wire].ends;
                let [port, _] = world.wires[wire].ports;
                world.bounce_port(node, port);
                format!("node {node} takes wire {wire} down and up")
            }
            7 => {
                let delay_ns = world.rng.range(MS / 10, 150 * MS);
                world.wires[wire].directions.iter_mut().for_each(|it| it.delay_ns = delay_ns);
                format!("wire {wire} takes {} us", delay_ns / 1000)
            }
            _ => {
                let (a, b) = world.wires[wire].ends.into();
                let other = world.rng.index(world.nodes.len());
                topology::connect_if_new(world, if a == other { b } else { a }, other);
                format!("node {other} gets a wire")
            }
        }
    }

    fn churn(&mut self) -> String {
        let world = &mut self.world;
        let node = world.rng.index(world.nodes.len());
        match (world.rng.range(0, 4), world.nodes[node].router.is_some()) {
            (_, false) => {
                world.start(node);
                format!("node {node} starts")
            }
            (0 | 1, true) => {
                world.stop(node);
                format!("node {node} dies")
            }
            (2, true) => {
                world.stop(node);
                world.start(node);
                format!("node {node} starts again")
            }
            _ if world.workloads.is_empty() => {
                world.add_workload(node);
                format!("node {node} gets a workload")
            }
            _ => {
                let workload = world.rng.index(world.workloads.len());
                world.attach(workload, node);
                format!("workload {workload} moves to node {node}")
            }
        }
    }
}

/// A loop among honest nodes, from the node that just changed something, to a random destination.
/// The first router's second choice is as good as its first.
fn find_loop(world: &mut World) -> Option<String> {
    let from = world.last;
    let to = world.rng.index(world.nodes.len() + world.workloads.len());
    let address = match to.checked_sub(world.nodes.len()) {
        None => world.nodes[to].address,
        Some(workload) => world.workloads[workload].address,
    };
    let alternate = world.rng.chance_ppm(300_000);
    let Walk::Loop(way) = world.walk(from, &address, alternate) else { return None };
    let last = *way.last()?;
    let start = way.iter().position(|node| *node == last)?;
    let is_honest = way.iter().skip(start).all(|node| world.nodes[*node].liar.is_none());
    is_honest.then(|| format!("a loop on the way to {to}: {way:?}"))
}
