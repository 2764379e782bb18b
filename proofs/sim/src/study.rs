//! The whole study: every strategy in the arena, in networks of two sizes, coalitions, the chain, the
//! filler's graph. One seed decides all of it but what the hardware's speeds are said to be.

use std::sync::Mutex;

use hypha_chain::{B256, keccak256};
use hypha_proofs::network::roster::RosterError;

use crate::arena::{Faults, Pulse, Record, Seen, play};
use crate::contracts::GridError;
use crate::court::{self, Court};
use crate::graph::{Cost, Graph, Keeper, Shape};
use crate::hardware::Hardware;
use crate::jury::{self, Trial};
use crate::line::{self, Conduct as Line};
use crate::machine::Claims;
use crate::network::{Conduct, Group, Network, NetworkError, Outcome};
use crate::strategy::Strategy;
use crate::world::{Story, World, players};

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Pulses of a strategy that claims processors; of one that claims memory; of one with disks.
    pub pulses: [u64; 3],
    /// Boxes of each strategy in the network that is watched for days.
    pub boxes: u32,
    /// Honest boxes in it.
    pub honest: u32,
    /// Its hours, and how many of the last are counted. Filler waits for a week and ramps for another.
    pub hours: (u32, u32),
    /// Nodes of the large network; 0 for none.
    pub large: u32,
    /// Its hours.
    pub large_hours: u32,
    /// Labels of an extent in the graph's model, as a power of two.
    pub label_bits: u32,
    /// Challenges on the chain.
    pub challenges: u32,
    /// Juries of each kind.
    pub juries: u32,
    /// Measurements of a line of each kind.
    pub lines: u64,
    /// Pulses of the network of real participants.
    pub story: u64,
}

impl Scale {
    /// Seconds, for tests.
    pub const QUICK: Self = Self {
        pulses: [6, 20, 40],
        boxes: 6,
        honest: 150,
        hours: (360, 24),
        large: 0,
        large_hours: 0,
        label_bits: 12,
        challenges: 2,
        juries: 10,
        lines: 1,
        story: 1,
    };
    /// Minutes: what `docs/proofs.md` shows. All hours are counted, so that what is earned before somebody
    /// is found out counts too.
    pub const FULL: Self = Self {
        pulses: [60, 100, 300],
        boxes: 6,
        honest: 300,
        hours: (408, 408),
        large: 100_000,
        large_hours: 8,
        label_bits: 16,
        challenges: 12,
        juries: 1000,
        lines: 10,
        story: 2,
    };
}

/// What coalitions came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Coalition {
    /// Of 1000 parts of all stake, so many.
    pub per_mille: u32,
    /// Whether they say nothing of others.
    pub denies: bool,
    /// What one of them earns of what an honest node earns without them.
    pub income: f64,
    /// What an honest node earns of that.
    pub honest: f64,
    /// Of the pulses, those that counted.
    pub counted: f64,
}

/// All of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Study {
    /// In the order of [`strategies`].
    pub records: Vec<Record>,
    /// The network that is watched for days, groups in the same order.
    pub days: Outcome,
    /// The large one.
    pub large: Option<Outcome>,
    /// Coalitions.
    pub coalitions: Vec<Coalition>,
    /// The chain.
    pub court: Court,
    /// Juries.
    pub trials: Vec<Trial>,
    /// What is measured of a line, by conduct.
    pub lines: Vec<(Line, f64)>,
    /// Labels that must be made for one, by graph, layers and what is kept.
    pub costs: Vec<(Shape, u8, Keeper, Cost)>,
    /// Real participants: honest ones.
    pub story: Story,
    /// How many they were.
    pub story_nodes: u32,
    /// Over everything: the same seed has the same.
    pub trace: B256,
}

/// Why there is no study.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// A network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The chain.
    #[error(transparent)]
    Grid(#[from] GridError),
    /// A roster.
    #[error(transparent)]
    Roster(#[from] RosterError),
}

/// The honest, in the order in which others are compared with them: all, processors, memory, disks.
const HONEST: [Claims; 4] = [Claims::ALL, Claims::CPU, Claims::MEM, Claims::DISK];

/// All that are played. `rebuilt` is what it costs to make a leaf again: with the real graph, and with
/// that of the design.
#[must_use]
pub fn strategies(rebuilt: [Cost; 2]) -> Vec<Strategy> {
    let mut all: Vec<Strategy> = HONEST.map(Strategy::Honest).to_vec();
    let again = |cost: Cost, hardware| Strategy::Rebuilding {
        dropped: 100,
        work: cost.work,
        depth: cost.depth,
        hardware,
        real: cost == rebuilt[0],
    };
    all.extend([
        Strategy::Sybils(2),
        Strategy::Claiming(5, Hardware::USUAL),
        Strategy::Claiming(100, Hardware::USUAL),
        Strategy::Claiming(0, Hardware::FAST),
        Strategy::Claiming(2, Hardware::FAST),
        Strategy::Claiming(5, Hardware::FAST),
        Strategy::Claiming(10, Hardware::FAST),
        Strategy::Claiming(20, Hardware::FAST),
        Strategy::Claiming(100, Hardware::FAST),
        Strategy::Skipping(1),
        Strategy::Skipping(30),
        Strategy::Precomputed,
        Strategy::Replayed,
        Strategy::OnFlash(5),
        Strategy::OnFlash(7),
        Strategy::OnFlash(10),
        Strategy::OnFlash(20),
        Strategy::ShortTable(5),
        Strategy::ShortTable(20),
        Strategy::ShortTable(100),
        Strategy::Missing(1),
        Strategy::Missing(10),
        Strategy::Missing(50),
        Strategy::Missing(100),
        again(rebuilt[0], Hardware::USUAL),
        again(rebuilt[0], Hardware::SERVER),
        again(rebuilt[1], Hardware::SERVER),
        Strategy::SharedDisk,
        Strategy::CheapFiller,
        Strategy::SelfDealing,
        Strategy::Rented,
        Strategy::Foreseeing(3),
        Strategy::Drand(3),
    ]);
    all
}

/// Which of the records is of an honest node with the same claims, and the same hardware.
#[must_use]
pub fn honest_like(records: &[Record], strategy: &Strategy) -> usize {
    if let Strategy::Claiming(_, hardware) = strategy {
        let same = |it: &Record| it.strategy == Strategy::Claiming(0, *hardware);
        if let Some(place) = records.iter().position(same) {
            return place;
        }
    }
    let honest = Strategy::Honest(strategy.claims());
    records.iter().position(|it| it.strategy == honest).unwrap_or(0)
}

/// Does all of it.
///
/// # Errors
/// [`StudyError`]: something did not even begin.
pub fn run(scale: &Scale, seed: u64) -> Result<Study, StudyError> {
    let costs = costs(scale, seed);
    let cost = |wanted: Shape| {
        let ladder = |it: &&(Shape, u8, Keeper, Cost)| (it.0, it.1, it.2) == (wanted, 4, LADDER);
        costs.iter().find(ladder).map_or(NO_COST, |it| it.3)
    };
    let strategies = strategies([cost(Shape::Real), cost(Shape::Plain)]);
    let records = records(&strategies, scale, seed);
    let (all, large) = std::thread::scope(|scope| {
        let large = scope.spawn(|| large(&records, scale, seed));
        let all = networks(&records, scale, seed);
        (all, large.join())
    });
    let (days, coalitions) = all?;
    let large = large.unwrap_or(Ok(None))?;
    let court = court::hold(scale.challenges)?;
    let trials = jury::trials(scale.juries, seed);
    let lines = Line::all()
        .into_iter()
        .map(|conduct| Ok((conduct, line::measured(conduct, scale.lines, seed)?)));
    let lines = lines.collect::<Result<Vec<_>, RosterError>>()?;
    let nodes = 16;
    let players = players(&vec![Strategy::Honest(Claims::ALL); nodes], seed);
    let story = World::play(&players, &Faults::USUAL, scale.story, seed)?;
    let mut trace = keccak256([days.trace, story.trace].concat());
    let others = format!("{coalitions:?} {court:?} {trials:?} {lines:?}");
    for part in [format!("{records:?}"), others] {
        trace = keccak256([&trace[..], part.as_bytes()].concat());
    }
    trace = keccak256([trace, large.as_ref().map(|it| it.trace).unwrap_or_default()].concat());
    let story_nodes = nodes as u32;
    Ok(Study {
        records,
        days,
        large,
        coalitions,
        court,
        trials,
        lines,
        costs,
        story,
        story_nodes,
        trace,
    })
}

const NO_COST: Cost = Cost { kept: 1.0, work: 4.0, depth: 4.0 };
/// The best that was found against the design's graph.
const LADDER: Keeper = Keeper::Ladder { every: 64, dropped: 100 };

/// What it takes to make one label again, for what cheaters may keep.
fn costs(scale: &Scale, seed: u64) -> Vec<(Shape, u8, Keeper, Cost)> {
    let keepers = [
        Keeper::Scattered(500),
        Keeper::Scattered(900),
        Keeper::Spread(900),
        Keeper::Front(900),
        Keeper::Leaves(100),
        Keeper::Leaves(10),
        Keeper::Ladder { every: 16, dropped: 100 },
        LADDER,
        Keeper::Ladder { every: 1024, dropped: 100 },
        Keeper::Ladder { every: 4, dropped: 900 },
        Keeper::Hubs { part: 50, dropped: 100 },
    ];
    let graphs = [(Shape::Plain, 4), (Shape::Real, 1), (Shape::Real, 2), (Shape::Real, 4)];
    let mut all = Vec::new();
    for (shape, layers) in graphs {
        let graph = Graph::new(shape, layers, 1 << scale.label_bits);
        for keeper in keepers {
            all.push((shape, layers, keeper, graph.cost(keeper, seed, 4)));
        }
    }
    all
}

/// Every strategy in the arena, on two threads; which one plays what makes no difference.
fn records(strategies: &[Strategy], scale: &Scale, seed: u64) -> Vec<Record> {
    let next = Mutex::new(0..strategies.len());
    let done = Mutex::new(vec![None; strategies.len()]);
    let take = || next.lock().ok().and_then(|mut range| range.next());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(number) = take() {
                    let Some(strategy) = strategies.get(number) else { break };
                    let claims = strategy.claims();
                    let [cpu, mem, disk] = scale.pulses;
                    let count = if claims.cpu {
                        cpu
                    } else if claims.mem {
                        mem
                    } else {
                        disk
                    };
                    let record = play(*strategy, &Faults::USUAL, count, seed);
                    if let Some(place) = done.lock().ok().as_mut().and_then(|it| it.get_mut(number))
                    {
                        *place = Some(record);
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_default().into_iter().flatten().collect()
}

fn groups(records: &[Record], boxes: u32, honest: u32) -> Vec<Group<'_>> {
    let count = |number: usize| if number == 0 { honest } else { boxes };
    let all = records.iter().enumerate();
    all.map(|(number, it)| Group { conduct: Conduct::Seen(it), boxes: count(number) }).collect()
}

/// The network of some days, and coalitions.
fn networks(
    records: &[Record],
    scale: &Scale,
    seed: u64,
) -> Result<(Outcome, Vec<Coalition>), NetworkError> {
    let (epochs, counted) = scale.hours;
    let groups = groups(records, scale.boxes, scale.honest);
    let days = Network { seed, groups, epochs, counted }.run()?;
    Ok((days, coalitions(records, scale, seed)?))
}

fn large(records: &[Record], scale: &Scale, seed: u64) -> Result<Option<Outcome>, NetworkError> {
    if scale.large == 0 {
        return Ok(None);
    }
    // A fifth of all cheats, as many of each kind.
    let identities: u32 = records.iter().skip(1).map(|it| it.strategy.identities()).sum();
    let boxes = scale.large / 5 / identities.max(1);
    let honest = scale.large - boxes * identities;
    let epochs = scale.large_hours;
    let groups = groups(records, boxes, honest);
    let network = Network { seed, groups, epochs, counted: epochs };
    Ok(Some(network.run()?))
}

/// Nodes that have nothing and swear for each other, among honest ones.
fn coalitions(
    records: &[Record],
    scale: &Scale,
    seed: u64,
) -> Result<Vec<Coalition>, NetworkError> {
    let Some(honest) = records.first() else { return Ok(Vec::new()) };
    let (all, epochs) = (scale.honest / 2, 48);
    let network = |colluding: u32, conduct| {
        let of_honest = Group { conduct: Conduct::Seen(honest), boxes: all - colluding };
        let groups = vec![of_honest, Group { conduct, boxes: colluding }];
        Network { seed, groups, epochs, counted: epochs }.run()
    };
    let alone = network(0, Conduct::Colluding)?;
    let usual = alone.incomes.first().map_or(1.0, |income| income.earned).max(f64::MIN_POSITIVE);
    let mut found = Vec::new();
    for per_mille in [100, 200, 333, 500] {
        for (denies, conduct) in [(false, Conduct::Colluding), (true, Conduct::Denying)] {
            let outcome = network(all * per_mille / 1000, conduct)?;
            let earned =
                |group: usize| outcome.incomes.get(group).map_or(0.0, |it| it.earned / usual);
            let (drawn, counted) = outcome.pulses;
            let counted = f64::from(counted) / f64::from(drawn.max(1));
            let (income, honest) = (earned(1), earned(0));
            found.push(Coalition { per_mille, denies, income, honest, counted });
        }
    }
    Ok(found)
}

/// Of all pulses, those of which not all was proven that was claimed.
#[must_use]
pub fn failed(record: &Record) -> (usize, usize) {
    (record.all().filter(|pulse| !record.whole(pulse)).count(), record.all().count())
}

/// Of all pulses, those in which something was proven that is not there.
#[must_use]
pub fn convicted(record: &Record) -> (usize, usize) {
    (record.all().filter(|pulse| pulse.evidence > 0).count(), record.all().count())
}

/// Of all witnesses of an honest node, those that saw a fault where there was none.
#[must_use]
pub fn false_faults(record: &Record) -> (usize, usize) {
    let claims = record.strategy.claims();
    let is_wrong = |seen: &&Seen| {
        seen.spoke && (seen.cpu != claims.cpu || seen.mem != claims.mem || seen.disk != claims.disk)
    };
    let seen = || record.all().flat_map(|pulse: &Pulse| &pulse.seen);
    (seen().filter(is_wrong).count(), seen().count())
}
