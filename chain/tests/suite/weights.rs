//! What nodes weigh in votes, the sum of it, and the seats that come of both: whatever is done at any time,
//! nothing makes a node weigh more at an instant that has passed, and seats are in proportion to weight.

use std::collections::BTreeMap;

use hypha_chain::contracts::{Capacity, Registry};
use hypha_chain::{Address, U256};

use crate::appeals::{self, APPELLANT, signer};
use crate::capacity::{Disk, commit};
use crate::grid::{Content, GENESIS, Grid, event, holder, key, tokens, verdict};

const DAY: u64 = 86_400;
const YEAR: u64 = 365 * DAY;

fn weight(grid: &Grid, node: u32, instant: u64) -> u128 {
    let call = Registry::weightOfCall { node, instant: U256::from(instant) };
    grid.view(grid.suite.registry, call).to()
}

fn total(grid: &Grid, instant: u64) -> u128 {
    let call = Registry::totalWeightCall { instant: U256::from(instant) };
    grid.view(grid.suite.registry, call).to()
}

/// What is in the sum beyond what single nodes weigh.
fn excess(grid: &Grid, instant: u64) -> i128 {
    let nodes = grid.view(grid.suite.registry, Registry::nodeCountCall {});
    let sum: u128 = (1..=nodes).map(|node| weight(grid, node, instant)).sum();
    total(grid, instant).cast_signed() - sum.cast_signed()
}

/// A node that claims nothing, with a stake in tokens.
fn small(grid: &mut Grid, signed: u8, stake: u128) -> u32 {
    let mut call = grid.add_node_call(1, &key(signed));
    call.caps = Registry::Caps { cores: 0, memMiB: 0, ssdMiB: 0, hddMiB: 0, mbps: 0 };
    call.stake = tokens(stake);
    let receipt = grid.must(&key(1), grid.suite.registry, call);
    event::<Registry::NodeAdded>(&receipt).node
}

#[test]
fn stake_weighs_by_its_age_up_to_a_year() {
    let (mut grid, posted) = appeals::grid();
    let registry = grid.suite.registry;
    let start = grid.view(registry, Registry::nodeAtCall { node: 1 }).since.to::<u64>();
    assert_eq!(weight(&grid, 1, start - 1), 0);
    assert_eq!(weight(&grid, 1, start), 0);
    assert_eq!(weight(&grid, 1, start + 5), 5000);
    assert_eq!(weight(&grid, 1, start + 5000 * DAY), 1000 * u128::from(YEAR));
    assert_eq!(total(&grid, start - 3600), 0);
    assert_eq!(excess(&grid, grid.now), 0);
    // After a hundred days, nine times as much is added: it has no age.
    grid.advance_to(start + DAY * 100 - 1);
    let amount = tokens(9000);
    grid.must(&key(1), registry, Registry::addStakeCall { node: 1, amount });
    assert_eq!(weight(&grid, 1, start + DAY * 100), 1000 * 100 * u128::from(DAY));
    assert_eq!(weight(&grid, 1, start + DAY * 110), 10_000 * 20 * u128::from(DAY));
    assert_eq!(weight(&grid, 1, start + DAY * 50), 0);
    assert_eq!(excess(&grid, grid.now), 0);
    // What is leaving doesn't weigh. What then stays after all has lost its age.
    grid.must(&key(1), registry, Registry::unstakeCall { node: 1, amount: tokens(9000) });
    assert_eq!(weight(&grid, 1, start + DAY * 110), 1000 * 20 * u128::from(DAY));
    grid.must(&key(1), registry, Registry::unstakeCall { node: 1, amount: tokens(4000) });
    let left = weight(&grid, 1, start + DAY * 110);
    let expected = 1000 * 20 * u128::from(DAY) + 5000 * 10 * u128::from(DAY);
    assert!(expected.abs_diff(left) < 5000 * 10, "but for seconds: {left}");
    // A node that has ended doesn't weigh; who comes after an epoch has nothing to say in it.
    grid.must(&key(1), registry, Registry::retireCall { node: 2 });
    assert_eq!(weight(&grid, 2, grid.now), 0);
    let late = grid.node(&key(1), 1, &signer(5));
    assert_eq!(weight(&grid, late, posted.postedAt), 0);
    assert_eq!(excess(&grid, grid.now), 0);
}

#[test]
fn age_beyond_a_year_gives_none_to_stake_that_is_added() {
    let (mut grid, _) = appeals::grid();
    let instant = grid.now + 5 * YEAR;
    grid.advance_to(instant);
    let before = weight(&grid, 1, instant);
    assert_eq!(before, 1000 * u128::from(YEAR));
    let call = Registry::addStakeCall { node: 1, amount: tokens(100_000) };
    grid.must(&key(1), grid.suite.registry, call);
    let after = weight(&grid, 1, instant);
    assert!(before - 102_000 * 2 < after && after < before, "{after} of {before}");
}

/// The cohort of which some nodes have reached a year, and others not.
fn in_between(grid: &Grid, instant: u64) -> u128 {
    let number = instant.checked_sub(YEAR + GENESIS).map(|age| age / (30 * DAY));
    // The contracts are deployed some seconds later: one before it may be it as well.
    let near = number.into_iter().flat_map(|number| [number.saturating_sub(1), number]);
    let tokens: u128 = near
        .map(|number| {
            let call = Registry::cohortsCall(U256::from(number));
            // The low 96 bits.
            let cohort: U256 = grid.view(grid.suite.registry, call);
            (cohort << 160_usize >> 160_usize).to::<u128>()
        })
        .sum();
    tokens * u128::from(YEAR)
}

/// Any calls at any times, from a seed.
struct Fuzz {
    grid: Grid,
    random: fastrand::Rng,
    log: Vec<String>,
    /// What each node weighed at instants that have passed, when last looked at.
    past: BTreeMap<(u64, u32), u128>,
    instants: Vec<u64>,
}

impl Fuzz {
    fn new(seed: u64) -> Self {
        let mut grid = Grid::new();
        grid.farm(&key(1));
        for node in 1..=2 {
            grid.node(&key(1), 1, &signer(node));
        }
        grid.fund(&key(5), tokens(1_000_000));
        commit(&mut grid, &signer(1), 1, &Disk::new(1, 1024));
        let random = fastrand::Rng::with_seed(seed);
        Self { grid, random, log: Vec::new(), past: BTreeMap::new(), instants: Vec::new() }
    }

    fn step(&mut self) {
        let registry = self.grid.suite.registry;
        let nodes = self.grid.view(registry, Registry::nodeCountCall {});
        let node = self.random.u32(1..=nodes);
        let amount = tokens(self.random.u128(0..3000)) + U256::from(self.random.u128(..) >> 66);
        match self.random.u8(0..10) {
            0 if nodes < 8 => {
                let call = self.grid.add_node_call(1, &signer(nodes + 1));
                self.attempt(1, registry, call);
            }
            0..=2 => self.attempt(5, registry, Registry::addStakeCall { node, amount }),
            3 | 4 => self.attempt(1, registry, Registry::unstakeCall { node, amount }),
            5 => self.attempt(1, registry, Registry::withdrawStakeCall { node }),
            6 => self.attempt(5, registry, Registry::parkCall { node }),
            7 => self.attempt(1, registry, Registry::unparkCall { node }),
            8 => self.slash(),
            _ if self.random.u8(0..8) == 0 => {
                self.attempt(1, registry, Registry::retireCall { node });
            }
            _ => {
                let longest = *self.random.choice(&[60, DAY, 40 * DAY]).unwrap();
                let secs = self.random.u64(1..=longest);
                self.log.push(format!("advance {secs}"));
                self.grid.advance(secs);
            }
        }
        if self.random.u8(0..4) == 0 {
            self.instants.push(self.grid.now - self.random.u64(0..3));
        }
    }

    /// The node that has a plot doesn't answer for it.
    fn slash(&mut self) {
        let capacity = self.grid.suite.capacity;
        let receipt = self.grid.must(&key(5), capacity, Capacity::challengeCall { node: 1 });
        let it = event::<Capacity::Challenged>(&receipt).challenge;
        self.grid.advance(3601);
        self.attempt(5, capacity, Capacity::expireCall { it });
    }

    fn attempt<C: alloy_sol_types::SolCall>(&mut self, by: u8, to: Address, call: C) {
        let done = self.grid.send(&key(by), to, call);
        self.log.push(format!("{}: {:?}", C::SIGNATURE, done.err()));
    }

    fn check(&mut self, seed: u64) {
        let (grid, now) = (&self.grid, self.grid.now);
        let excess = excess(grid, now);
        let most = in_between(grid, now).cast_signed() / 48;
        assert!(0 <= excess && excess <= most, "{excess} of {most}, seed {seed}: {:#?}", self.log);
        let nodes = grid.view(grid.suite.registry, Registry::nodeCountCall {});
        for instant in &self.instants {
            for node in 1..=nodes {
                let weight = weight(grid, node, *instant);
                let before = self.past.insert((*instant, node), weight);
                // Who is new then has had none.
                let before = before.unwrap_or(if *instant < now - 10 { 0 } else { weight });
                assert!(weight <= before, "node {node} at {instant}, seed {seed}: {:#?}", self.log);
            }
        }
        let from = self.instants.len().saturating_sub(4);
        self.instants.drain(..from);
    }
}

#[test]
fn nothing_makes_a_node_weigh_more_at_a_past_instant_and_the_sum_is_all_that_nodes_weigh() {
    let fresh = std::env::var("HYPHA_SEEDS").ok().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    for seed in fresh.unwrap_or(1..7_u64) {
        let mut fuzz = Fuzz::new(seed);
        for _ in 0..80 {
            fuzz.step();
            fuzz.check(seed);
        }
    }
}

/// Nodes with stakes in tokens, a month, a posted epoch, and its appeal with a jury.
fn trial(stakes: &[u128], between: impl Fn(&mut Grid)) -> (Grid, Capacity::Demanded) {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    for (at, stake) in (100..).zip(stakes) {
        small(&mut grid, at, *stake);
    }
    grid.aggregator(&key(appeals::AGGREGATOR));
    grid.fund(&key(APPELLANT), tokens(500));
    let content = Content::new([verdict(1, 5)], &[0]);
    let posted = grid.post(&key(appeals::AGGREGATOR), 30 * 24, &content);
    between(&mut grid);
    let appeal = appeals::appeal(&mut grid, &posted);
    (grid, appeal)
}

#[test]
fn a_jurys_seats_are_in_proportion_to_stake_however_it_is_divided() {
    // One node with 400 tokens, ten with 40, and forty with 10.
    let stakes: Vec<u128> = [vec![400], vec![40; 10], vec![10; 40]].concat();
    let (mut grid, appeal) = trial(&stakes, |_| {});
    let of = |range: std::ops::RangeInclusive<u32>| -> u128 {
        range.map(|node| appeals::seats(&grid, &appeal, node)).sum()
    };
    let [one, ten, forty] = [of(1..=1), of(2..=11), of(12..=51)];
    // A third of 256 is 85.3; of broken seats each is drawn or not.
    assert!((85..=86).contains(&one), "{one}");
    assert!(ten.abs_diff(85) <= 10, "{ten}");
    assert!(forty.abs_diff(85) <= 40, "{forty}");
    for node in 12..=51 {
        let has = appeals::seats(&grid, &appeal, node);
        assert!((2..=3).contains(&has), "2.13 seats are drawn as {has}");
    }
    // A hundred new nodes for each old one: whatever they are, they have no seat that counts.
    let (before, registry) = (one + ten + forty, grid.suite.registry);
    for node in 1..=60 {
        small(&mut grid, 150 + node, 10);
    }
    assert_eq!((1..=111).map(|node| appeals::seats(&grid, &appeal, node)).sum::<u128>(), before);
    assert_eq!(grid.view(registry, Registry::nodeCountCall {}), 111);
}

#[test]
fn swamping_with_nodes_that_are_new_when_the_epoch_ends_takes_no_seats() {
    // Ten of 100 tokens and a month, and 100 of 10 tokens and some minutes.
    let mut grid = Grid::new();
    grid.farm(&key(1));
    for node in 100..110 {
        small(&mut grid, node, 100);
    }
    grid.aggregator(&key(appeals::AGGREGATOR));
    grid.fund(&key(APPELLANT), tokens(500));
    grid.advance(30 * DAY - 600);
    for node in 110..210 {
        small(&mut grid, node, 10);
    }
    let content = Content::new([verdict(1, 5)], &[0]);
    let posted = grid.post(&key(appeals::AGGREGATOR), 30 * 24 - 1, &content);
    let appeal = appeals::appeal(&mut grid, &posted);
    let of_old: u128 = (1..=10).map(|node| appeals::seats(&grid, &appeal, node)).sum();
    let of_new: u128 = (11..=110).map(|node| appeals::seats(&grid, &appeal, node)).sum();
    assert!(of_old >= 246 && of_new <= 3, "{of_old} and {of_new}");
}

#[test]
fn who_adds_stake_before_the_jury_is_drawn_gains_nothing_by_it() {
    // A network of a month, in which somebody adds a thousand times all stake once the epoch is posted, to
    // a node of his and to a new one: the sum becomes less, so all have more seats, he too, in proportion.
    let usual = trial(&[100, 100, 100], |_| {});
    let swelled = trial(&[100, 100, 100], |grid| {
        let (amount, registry) = (tokens(300_000), grid.suite.registry);
        grid.must(&key(1), registry, Registry::addStakeCall { node: 3, amount });
        small(grid, 140, 100_000);
    });
    let of = |(grid, appeal): &(Grid, Capacity::Demanded)| {
        [1, 2, 3, 4].map(|node| appeals::seats(grid, appeal, node))
    };
    let (usual, swelled) = (of(&usual), of(&swelled));
    assert!(usual[..3].iter().all(|seats| (85..=86).contains(seats)), "{usual:?}");
    assert!(swelled[0].abs_diff(swelled[1]) <= 1 && swelled[0] >= usual[0], "{swelled:?}");
    assert!(swelled[2] <= swelled[0] + 1, "{swelled:?}");
    assert_eq!((usual[3], swelled[3]), (0, 0));
}

#[test]
fn a_sum_that_late_stake_brings_to_nothing_prevents_no_vote() {
    // An hour after all began, ten thousand times all stake is added: what the others weighed is less.
    let (mut grid, posted) = appeals::grid();
    let holder = holder();
    let (registry, capacity) = (grid.suite.registry, grid.suite.capacity);
    grid.fund(&holder, tokens(1));
    let amount = tokens(40_000_000);
    grid.must(&holder, registry, Registry::addStakeCall { node: 4, amount });
    let appeal = appeals::appeal(&mut grid, &posted);
    let jury = grid.view(capacity, Capacity::juryCall(appeal.demand.id));
    assert_eq!(jury.weight.to::<u128>(), 1);
    let of = [1, 2, 3, 4].map(|node| appeals::seats(&grid, &appeal, node));
    let instant = grid.start() + 3600;
    assert_eq!(of[0], 256 * weight(&grid, 1, instant));
    assert!(of[..3].iter().all(|seats| *seats > 0) && of[3] == 0, "{of:?}");
    let call = Capacity::voteCall {
        it: appeal.demand.clone(),
        postedAt: posted.postedAt,
        aggregator: posted.aggregator,
        node: 1,
        isTrue: false,
    };
    grid.must(&signer(1), capacity, call);
    grid.advance(3601);
    let call = Capacity::decideCall { it: appeal.demand, posted: appeal.posted };
    event::<Capacity::EpochVoided>(&grid.must(&key(9), capacity, call));
}

#[test]
fn a_node_that_is_parked_and_taken_back_begins_anew() {
    let (mut grid, _) = appeals::grid();
    let registry = grid.suite.registry;
    grid.advance(10 * DAY);
    let instant = grid.now;
    assert!(weight(&grid, 1, instant) > 0);
    grid.must(&key(9), registry, Registry::parkCall { node: 1 });
    assert_eq!((weight(&grid, 1, grid.now), excess(&grid, grid.now)), (0, 0));
    grid.must(&key(1), registry, Registry::unparkCall { node: 1 });
    assert_eq!(weight(&grid, 1, instant), 0);
    assert_eq!(weight(&grid, 1, grid.now + 10), 10_000);
    assert_eq!(excess(&grid, grid.now), 0);
}
