//! How long packets are lost after something fails silently, as a table and a plot.
//!
//! Two nodes talk in both directions. Something on their path fails: a wire in both directions, a
//! wire in one, or a router. The outage ends when packets arrive again, both ways, and is exact: after
//! every event both paths are walked.

use std::net::Ipv6Addr;

use crate::rng::Rng;
use crate::topology;
use crate::world::{MS, S, Walk, World};

/// After so long without a repair, the outage counts as this.
const GIVE_UP_NS: u64 = 5 * S;
const TICK_NS: u64 = 20 * MS;

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A wire, in both directions.
    Wire,
    /// A wire, in one direction.
    Direction,
    /// A router.
    Router,
}

/// Where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Two paths of two hops, 2 ms each.
    Diamond,
    /// 50 nodes with about five wires of 0.1 to 60 ms each.
    Graph,
}

/// The outages of one kind, in ns, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outages {
    /// Where.
    pub place: Place,
    /// What.
    pub failure: Failure,
    /// How long, in ns.
    pub ns: Vec<u64>,
}

impl Outages {
    /// The outage that `percent` of them don't exceed, in ms.
    #[must_use]
    pub fn percentile_ms(&self, percent: usize) -> u64 {
        let at = (self.ns.len().saturating_sub(1)) * percent / 100;
        self.ns.get(at).copied().unwrap_or_default() / MS
    }
}

/// Measures `count` failures of each kind.
#[must_use]
pub fn measure(seed: u64, count: usize) -> Vec<Outages> {
    let mut all = Vec::new();
    for place in [Place::Diamond, Place::Graph] {
        for failure in [Failure::Wire, Failure::Direction, Failure::Router] {
            let mut ns = Vec::new();
            let mut rng = Rng::new(seed);
            while ns.len() < count {
                ns.extend(trials(place, failure, rng.u64(), count - ns.len()));
            }
            ns.sort_unstable();
            all.push(Outages { place, failure, ns });
        }
    }
    all
}

/// Up to ten failures in one world, one after the other.
fn trials(place: Place, failure: Failure, seed: u64, count: usize) -> Vec<u64> {
    let mut world = World::new(seed);
    match place {
        Place::Diamond => topology::diamond(&mut world, 2 * MS),
        Place::Graph => topology::random_zone(&mut world, 1, 50, 5),
    }
    (0..world.nodes.len()).for_each(|node| world.start(node));
    let end_ns = world.now_ns + 3 * S;
    world.run(end_ns, |_| {});
    let mut outages = Vec::new();
    for _ in 0..count.min(10) {
        let ends = match place {
            Place::Diamond => [0, 3],
            Place::Graph => [world.rng.index(50), world.rng.index(50)],
        };
        let warm_up_ns = 3 * S + world.rng.range(0, S);
        talk(&mut world, ends, warm_up_ns, false);
        outages.extend(fail_once(&mut world, ends, failure));
        for direction in world.wires.iter_mut().flat_map(|it| &mut it.directions) {
            direction.is_cut = false;
        }
        let dead: Vec<usize> =
            (0..world.nodes.len()).filter(|node| world.nodes[*node].router.is_none()).collect();
        dead.into_iter().for_each(|node| world.start(node));
        let end_ns = world.now_ns + 6 * S;
        world.run(end_ns, |_| {});
    }
    outages
}

/// Breaks something on the path and measures, if there is another path.
fn fail_once(world: &mut World, ends: [usize; 2], failure: Failure) -> Option<u64> {
    let [from, to] = ends;
    let way = way(world, from, &world.nodes[to].address.clone())?;
    let routers = way.len().saturating_sub(2);
    let hop = world.rng.index(way.len() - 1);
    let (a, b) = (way[hop], way[hop + 1]);
    let wire = world.wires.iter().position(|it| it.ends == [a, b] || it.ends == [b, a])?;
    match failure {
        Failure::Wire => world.wires[wire].directions.iter_mut().for_each(|it| it.is_cut = true),
        Failure::Direction => {
            let end = world.rng.index(2);
            world.wires[wire].directions[end].is_cut = true;
        }
        Failure::Router if routers > 0 => {
            let router = way[1 + world.rng.index(routers)];
            world.stop(router);
        }
        Failure::Router => return None,
    }
    if !is_connected(world, from, to) {
        return None;
    }
    let start_ns = world.now_ns;
    talk(world, ends, GIVE_UP_NS, true);
    Some(world.now_ns - start_ns)
}

fn way(world: &World, from: usize, address: &Ipv6Addr) -> Option<Vec<usize>> {
    let mut way = vec![from];
    for _ in 0..world.nodes.len() {
        let at = *way.last()?;
        match world.nodes[at].router.as_ref()?.route_to(address, false) {
            mesh_router::NextHop::Link(link) => way.push(world.across(at, link)),
            mesh_router::NextHop::Local(_) if way.len() > 1 => return Some(way),
            _ => return None,
        }
    }
    None
}

fn is_connected(world: &World, from: usize, to: usize) -> bool {
    let mut seen = vec![false; world.nodes.len()];
    let mut list = vec![from];
    while let Some(at) = list.pop() {
        if std::mem::replace(&mut seen[at], true) || world.nodes[at].router.is_none() {
            continue;
        }
        let ports = world.nodes[at].ports.iter().enumerate();
        let whole = ports.filter(|(_, port)| world.wires[port.wire].is_whole());
        list.extend(whole.map(|(number, _)| world.neighbour(at, number).0));
    }
    seen[to]
}

/// Sends both ways for `time_ns`, or until packets arrive both ways.
fn talk(world: &mut World, ends: [usize; 2], time_ns: u64, until_repaired: bool) {
    let end_ns = world.now_ns + time_ns;
    let addresses = ends.map(|end| world.nodes[end].address);
    let arrives = |world: &World| {
        let there = world.walk(ends[0], &addresses[1], false);
        let back = world.walk(ends[1], &addresses[0], false);
        matches!((there, back), (Walk::Arrived { .. }, Walk::Arrived { .. }))
    };
    while world.now_ns < end_ns {
        for (from, to) in [(ends[0], &addresses[1]), (ends[1], &addresses[0])] {
            let now_ns = world.now_ns;
            let mut at = from;
            for _ in 0..world.nodes.len() {
                let Some(router) = &mut world.nodes[at].router else { break };
                let hop = router.next_hop(now_ns, to, false);
                let mesh_router::NextHop::Link(link) = hop else { break };
                router.sent(now_ns, link);
                world.after(at);
                let next = world.across(at, link);
                let port = world.nodes[at].ports.iter().find(|it| it.link == Some(link));
                if port.is_some_and(|it| world.wires[it.wire].directions[it.end].is_cut) {
                    break;
                }
                at = next;
            }
        }
        let mut repaired_ns =
            until_repaired.then(|| arrives(world).then_some(world.now_ns)).flatten();
        let step_ns = end_ns.min(world.now_ns + TICK_NS);
        world.run(step_ns, |world| {
            if until_repaired && repaired_ns.is_none() && arrives(world) {
                repaired_ns = Some(world.now_ns);
            }
        });
        if let Some(repaired_ns) = repaired_ns {
            world.now_ns = repaired_ns.max(step_ns - TICK_NS);
            return;
        }
    }
}

/// The outages as a table in Markdown.
#[must_use]
pub fn table(all: &[Outages]) -> String {
    let mut text = String::from(
        "| where | what fails silently | failures | p50 | p90 | p99 | max |\n|---|---|---|---|---|---|---|\n",
    );
    for outages in all {
        let [p50, p90, p99, max] = [50, 90, 99, 100].map(|percent| outages.percentile_ms(percent));
        text.push_str(&format!(
            "| {} | {} | {} | {p50} ms | {p90} ms | {p99} ms | {max} ms |\n",
            name_of_place(outages.place),
            name_of_failure(outages.failure),
            outages.ns.len(),
        ));
    }
    text
}

fn name_of_place(place: Place) -> &'static str {
    match place {
        Place::Diamond => "diamond",
        Place::Graph => "random graph of 50",
    }
}

fn name_of_failure(failure: Failure) -> &'static str {
    match failure {
        Failure::Wire => "a link",
        Failure::Direction => "one direction of a link",
        Failure::Router => "a router",
    }
}

const BIN_MS: u64 = 20;
const BINS: usize = 40;
const PANEL: (u32, u32) = (460, 150);

/// The outages as histograms, one panel each; the last bar holds all that lasted longer.
#[must_use]
pub fn plot(all: &[Outages]) -> String {
    let (width, height) = PANEL;
    let rows = u32::try_from(all.len().div_ceil(2)).unwrap_or_default();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n",
        2 * width + 40,
        rows * (height + 60) + 20,
    );
    for (number, outages) in all.iter().enumerate() {
        // Columns are places, rows are failures.
        let (column, row) = (number / all.len().div_ceil(2), number % all.len().div_ceil(2));
        let x = 20 + u32::try_from(column).unwrap_or_default() * (width + 10);
        let y = 30 + u32::try_from(row).unwrap_or_default() * (height + 60);
        panel(&mut svg, outages, x, y);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, outages: &Outages, x: u32, y: u32) {
    let (width, height) = PANEL;
    let mut bins = [0u32; BINS];
    for ns in &outages.ns {
        let bin = usize::try_from(ns / (BIN_MS * MS)).unwrap_or(BINS).min(BINS - 1);
        bins[bin] += 1;
    }
    let highest = bins.iter().copied().max().unwrap_or_default().max(1);
    let bar = width / BINS as u32;
    svg.push_str(&format!("<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{}: {} fails (p50 {} ms, p99 {} ms, max {} ms)</text>\n",
        y - 6,
        name_of_place(outages.place),
        name_of_failure(outages.failure),
        outages.percentile_ms(50),
        outages.percentile_ms(99),
        outages.percentile_ms(100),
    ));
    for (at, count) in bins.iter().enumerate() {
        let tall = count * height / highest;
        let left = x + u32::try_from(at).unwrap_or_default() * bar;
        svg.push_str(&format!(
            "<rect x=\"{left}\" y=\"{}\" width=\"{}\" height=\"{tall}\" fill=\"#2a6f97\"/>\n",
            y + height - tall,
            bar - 1,
        ));
    }
    svg.push_str(&format!(
        "<line x1=\"{x}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\" stroke=\"black\"/>\n",
        y + height,
        x + bar * BINS as u32,
    ));
    for tick in (0..=BINS as u32).step_by(5) {
        svg.push_str(&format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            x + tick * bar,
            y + height + 14,
            u64::from(tick) * BIN_MS,
        ));
    }
    svg.push_str(&format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">outage in ms</text>\n",
        x + bar * BINS as u32,
        y + height + 28,
    ));
}
