//! Credits for hours without service: for whom, for which hours, and how much of a stake they take.

use hypha_chain::U256;
use hypha_chain::contracts::{Capacity, Registry, Reservations};
use hypha_chain::key::Key;

use crate::grid::{
    Content, Grid, Posted, RATE, WINDOW, event, key, no_permit, reserve_call, tokens, verdict,
};
use crate::reservations::{convert, deposit, market};

const HOUR: u64 = 3600;
const PERIOD: u64 = 30 * 24 * HOUR;

fn grid() -> Grid {
    market(100_000)
}

fn stake(grid: &Grid) -> U256 {
    grid.view(grid.suite.registry, Registry::stakeOfCall { node: 1 })
}

/// An offer of one core of node 1 at so many units a second, none of it for storage.
fn offer_at(grid: &mut Grid, rate: u128) -> u32 {
    let mut terms = grid.view(grid.suite.reservations, Reservations::offerAtCall { id: 1 });
    terms.rate = rate.to_string().parse().unwrap();
    terms.storageRate = Default::default();
    terms.caps.cores = 1;
    (terms.caps.memMiB, terms.caps.ssdMiB, terms.caps.mbps) = (0, 0, 0);
    let call = Reservations::offerCall { terms };
    event::<Reservations::Offered>(&grid.must(&key(1), grid.suite.reservations, call)).offer
}

/// An epoch that was posted, in which node 1 was silent or not.
struct Hour {
    posted: Posted,
    content: Content,
    is_silent: bool,
}

impl Hour {
    fn post(grid: &mut Grid, epoch: u32, is_silent: bool) -> Self {
        let end = grid.start() + (u64::from(epoch) + 1) * HOUR;
        let mut leaf = verdict(1, if is_silent { 0 } else { end });
        leaf.answered = u16::from(!is_silent);
        let content = Content::new([leaf], &[0]);
        let posted = grid.post(&key(2), epoch, &content);
        Self { posted, content, is_silent }
    }

    fn credit(&self, id: u64) -> Reservations::slaCreditCall {
        Reservations::slaCreditCall { id, proof: convert(&self.content.proof(&self.posted, 1)) }
    }

    fn ends(&self, grid: &Grid) -> u64 {
        grid.start() + (u64::from(self.posted.epoch) + 1) * HOUR
    }
}

fn silent(grid: &mut Grid, epochs: std::ops::Range<u32>) -> Vec<Hour> {
    epochs.map(|epoch| Hour::post(grid, epoch, true)).collect()
}

#[test]
fn an_owner_who_is_his_own_user_gets_a_twentieth_of_the_stake_out_and_burns_as_much() {
    let mut grid = grid();
    let (contract, owner) = (grid.suite.reservations, key(1));
    // An hour of this costs more than the stake, and comes back: it is never proven.
    let dear = offer_at(&mut grid, tokens(1).to::<u128>());
    let id = grid.reserve(&owner, dear, tokens(40 * HOUR as u128));
    let hours = silent(&mut grid, 1..4);
    grid.advance(WINDOW);
    let (before, supply) = (grid.balance(owner.address()), grid.supply());
    let receipt = grid.must(&owner, contract, hours[0].credit(id));
    let credited = event::<Reservations::Credited>(&receipt);
    assert_eq!((credited.toUser, credited.burned), (tokens(50), tokens(50)));
    assert_eq!(stake(&grid), tokens(900));
    assert_eq!(grid.balance(owner.address()), before + tokens(50));
    assert_eq!(grid.supply(), supply - tokens(50));
    grid.refuses(&owner, contract, hours[1].credit(id), "CreditsUsedUp");
    // What is left of the stake is there for evidence: of what is added, the same share can leave.
    let add = Registry::addStakeCall { node: 1, amount: tokens(100) };
    grid.must(&owner, grid.suite.registry, add);
    grid.must(&owner, contract, hours[1].credit(id));
    assert_eq!(stake(&grid), tokens(990));
    grid.refuses(&owner, contract, hours[2].credit(id), "CreditsUsedUp");
}

#[test]
fn a_tenth_can_be_credited_again_after_thirty_days() {
    let mut grid = grid();
    let (contract, user) = (grid.suite.reservations, key(4));
    let dear = offer_at(&mut grid, tokens(1).to::<u128>());
    grid.fund(&user, tokens(4_000_000));
    let id = grid.reserve(&user, dear, tokens(1000 * HOUR as u128));
    let hours = silent(&mut grid, 1..2);
    grid.advance(WINDOW);
    grid.must(&user, contract, hours[0].credit(id));
    let first = grid.now;
    let late = ((first + PERIOD - 8 * HOUR - grid.start()) / HOUR) as u32;
    let hours = silent(&mut grid, late..late + 1);
    grid.advance(WINDOW);
    grid.refuses(&user, contract, hours[0].credit(id), "CreditsUsedUp");
    grid.advance_to(first + PERIOD);
    grid.must(&user, contract, hours[0].credit(id));
    assert_eq!(stake(&grid), tokens(810));
}

#[test]
fn hours_in_which_the_machine_was_paused_give_no_credit_however_they_were_settled() {
    for (is_settled, is_resumed) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut grid = grid();
        let (contract, user) = (grid.suite.reservations, key(4));
        let id = grid.reserve(&user, 1, deposit(3 * u128::from(HOUR)));
        // It runs in the epochs 1 and 2, is paused in the middle of 3, and stays so.
        grid.advance_to(grid.start() + 3 * HOUR - 1);
        let top_up =
            Reservations::topUpCall { id, amount: U256::from(RATE * 1800), permit: no_permit() };
        grid.must(&user, contract, top_up);
        let mut hours = silent(&mut grid, 1..8);
        if is_settled {
            // The last of these the node has answered again: time is settled until its end.
            let answered = Hour::post(&mut grid, 8, false);
            grid.advance(WINDOW + 1);
            let proof = answered.content.proof(&answered.posted, 1);
            grid.must(&key(2), grid.suite.capacity, Capacity::proveCall { proof });
            grid.must(&key(9), contract, Reservations::settleCall { id });
        } else {
            grid.advance(WINDOW + HOUR);
        }
        if is_resumed {
            let amount = U256::from(RATE * 100_000);
            let call = Reservations::topUpCall { id, amount, permit: no_permit() };
            grid.must(&user, contract, call);
            let now = ((grid.now - grid.start()) / HOUR) as u32;
            hours.extend(silent(&mut grid, now + 1..now + 2));
            grid.advance(WINDOW);
        }
        let credited: Vec<u32> = hours
            .iter()
            .filter(|hour| grid.send(&user, contract, hour.credit(id)).is_ok())
            .map(|hour| hour.posted.epoch)
            .collect();
        // Who resumes a machine accepts the time until then as served.
        let wanted = if is_resumed { vec![hours[7].posted.epoch] } else { vec![1, 2] };
        assert_eq!(credited, wanted, "settled {is_settled}, resumed {is_resumed}");
    }
}

/// What a reservation has been, by calls that were made: from when on it runs, until when it can, and
/// which hours were credited.
struct Made {
    id: u64,
    user: u8,
    rate: u128,
    runs: (u64, u64),
    ended: Option<u64>,
    credited_to: u64,
}

/// Random calls, and what credits may have followed from them.
struct Run {
    grid: Grid,
    random: fastrand::Rng,
    offers: Vec<(u32, u128)>,
    made: Vec<Made>,
    hours: Vec<Hour>,
    /// When, and how much of the stake.
    taken: Vec<(u64, U256)>,
    log: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut grid = grid();
        let prices = [RATE / 50, RATE / 2, 5 * RATE];
        let offers = prices.map(|rate| (offer_at(&mut grid, rate), rate)).to_vec();
        let random = fastrand::Rng::with_seed(seed);
        let (made, hours, taken, log) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { grid, random, offers, made, hours, taken, log }
    }

    /// A key: 1 is the node's owner, who is his own user now and then.
    fn user(&mut self) -> u8 {
        if self.random.bool() { 1 } else { 4 }
    }

    fn step(&mut self) {
        let contract = self.grid.suite.reservations;
        match self.random.u8(0..12) {
            0 => self.reserve(),
            1 => self.top_up(),
            2 => {
                if let Some(at) = self.any_made() {
                    let call = Reservations::settleCall { id: self.made[at].id };
                    _ = self.grid.send(&key(9), contract, call);
                }
            }
            3 if self.random.u8(0..4) == 0 => self.close(),
            4 | 5 => self.hour(),
            6 => self.prove(),
            _ => self.credit(),
        }
    }

    fn any_made(&mut self) -> Option<usize> {
        (!self.made.is_empty()).then(|| self.random.usize(0..self.made.len()))
    }

    fn reserve(&mut self) {
        let user = self.user();
        let (offer, rate) = self.offers[self.random.usize(0..self.offers.len())];
        let amount = rate * self.random.u128(3600..30_000);
        let call = reserve_call(offer, U256::from(amount));
        let Ok(receipt) = self.grid.send(&key(user), self.grid.suite.reservations, call) else {
            return;
        };
        let id = event::<Reservations::Reserved>(&receipt).id;
        let runs = (self.grid.now, self.pause(id));
        self.log.push(format!("{id} by {user} at {rate} runs {runs:?}"));
        self.made.push(Made { id, user, rate, runs, ended: None, credited_to: 0 });
    }

    /// When a machine is paused, if the chain is asked before anything is settled beyond that.
    fn pause(&self, id: u64) -> u64 {
        let call = Reservations::depletesAtCall { id };
        self.grid.view(self.grid.suite.reservations, call).pause.to()
    }

    fn top_up(&mut self) {
        let Some(at) = self.any_made() else { return };
        let (id, user, rate) = (self.made[at].id, self.made[at].user, self.made[at].rate);
        let amount = U256::from(rate * self.random.u128(600..20_000));
        let call = Reservations::topUpCall { id, amount, permit: no_permit() };
        if self.grid.send(&key(user), self.grid.suite.reservations, call).is_err() {
            return;
        }
        let (now, pause) = (self.grid.now, self.pause(id));
        let runs = &mut self.made[at].runs;
        *runs = (if now >= runs.1 { now } else { runs.0 }, pause);
        self.log.push(format!("{id} is topped up and runs {:?}", self.made[at].runs));
    }

    fn close(&mut self) {
        let Some(at) = self.any_made() else { return };
        let call = Reservations::closeCall { id: self.made[at].id };
        let by = key(self.made[at].user);
        if self.grid.send(&by, self.grid.suite.reservations, call).is_ok() {
            self.made[at].ended = Some(self.grid.now);
            self.log.push(format!("{} is closed at {}", self.made[at].id, self.grid.now));
        }
    }

    fn hour(&mut self) {
        let epoch = ((self.grid.now - self.grid.start()) / HOUR) as u32;
        let is_silent = self.random.u8(0..4) > 0;
        self.log.push(format!("epoch {epoch}, silent: {is_silent}"));
        self.hours.push(Hour::post(&mut self.grid, epoch, is_silent));
    }

    fn prove(&mut self) {
        let last = self.hours.iter().rev().find(|hour| !hour.is_silent);
        let Some(hour) = last else { return };
        let proof = hour.content.proof(&hour.posted, 1);
        _ = self.grid.send(&key(2), self.grid.suite.capacity, Capacity::proveCall { proof });
    }

    fn credit(&mut self) {
        let (Some(at), count) = (self.any_made(), self.hours.len()) else { return };
        if count == 0 {
            return;
        }
        // Some too new, some too old.
        let back = self.random.usize(0..count.min(20));
        let hour = &self.hours[count - 1 - back];
        let (made, contract) = (&self.made[at], self.grid.suite.reservations);
        let ends = hour.ends(&self.grid);
        let deserves = deserves(made, hour.is_silent, ends);
        let holder = Reservations::holderOfCall { id: made.id };
        let is_there = self.grid.view(contract, holder).user != hypha_chain::Address::ZERO;
        let by: Key = key(made.user);
        let (has, held) = (self.grid.balance(by.address()), stake(&self.grid));
        let done = self.grid.send(&by, contract, hour.credit(made.id));
        let said = done.as_ref().err().cloned().unwrap_or_default();
        self.log.push(format!("credit of {} for {ends}: {said}", made.id));
        let excused = ["UnknownEpoch", "NotFinal", "CreditsUsedUp"];
        let is_excused = excused.iter().any(|it| said.contains(it));
        let wanted = deserves && is_there && !is_excused;
        assert_eq!(done.is_ok(), wanted, "{:#?}", self.log);
        let Ok(receipt) = done else { return };
        let it = event::<Reservations::Credited>(&receipt);
        assert!(it.burned >= it.toUser, "{:#?}", self.log);
        assert_eq!(held - stake(&self.grid), it.burned + it.toUser, "{:#?}", self.log);
        assert_eq!(self.grid.balance(by.address()) - has, it.toUser, "{:#?}", self.log);
        let twice = U256::from(made.rate) * U256::from(2 * HOUR);
        assert!(it.toUser <= twice, "{:#?}", self.log);
        self.made[at].credited_to = ends;
        self.taken.push((self.grid.now, it.burned + it.toUser));
    }

    /// In no thirty days more than what two periods allow, and in no period more than one does.
    fn check(&self) {
        for (from, _) in &self.taken {
            let sum = |secs: u64| -> U256 {
                let within = |at: &u64| (*from..*from + secs).contains(at);
                self.taken.iter().filter(|(at, _)| within(at)).map(|(_, taken)| *taken).sum()
            };
            assert!(sum(PERIOD) <= tokens(200), "{:#?}", self.log);
        }
        let first_period = self.taken.first().map_or(0, |(at, _)| at + PERIOD);
        let first: U256 =
            self.taken.iter().filter(|(at, _)| *at < first_period).map(|(_, it)| *it).sum();
        assert!(first <= tokens(100), "{:#?}", self.log);
    }
}

/// Whether a whole hour is one in which this ran since it was made or resumed, and was not credited.
fn deserves(made: &Made, is_silent: bool, ends: u64) -> bool {
    let from = ends - HOUR;
    let until = made.ended.unwrap_or(u64::MAX).min(made.runs.1);
    is_silent && made.runs.0 <= from && made.credited_to <= from && ends <= until
}

#[test]
fn credits_are_for_hours_that_ran_once_each_and_bounded_after_any_calls_at_any_times() {
    let (mut credited, mut used_up) = (0, 0);
    for seed in 1..11_u64 {
        let mut run = Run::new(seed);
        run.log.push(format!("seed {seed}"));
        for _ in 0..250 {
            run.step();
        }
        run.check();
        credited += run.taken.len();
        used_up += run.log.iter().filter(|line| line.contains("CreditsUsedUp")).count();
    }
    assert!(credited > 40 && used_up > 5, "{credited} credits, {used_up} beyond the tenth");
}
