//! What holds after any sequence of calls at any times: a model that follows each call, and sums.

use std::collections::BTreeMap;

use hypha_chain::contracts::{Capacity, GridToken, Reservations};
use hypha_chain::key::Key;
use hypha_chain::{Address, U256};

use crate::grid::{BOND, Grid, RATE, SUPPLY, key, no_permit, reserve_call, tokens};

const STEPS: usize = 120;

/// Everyone who has tokens, or may have.
fn accounts(grid: &Grid) -> Vec<Address> {
    let suite = grid.suite;
    let people = (0..16).map(|number| key(number).address());
    people.chain([suite.registry, suite.capacity, suite.disputes, suite.reservations]).collect()
}

fn sum_of_balances(grid: &Grid) -> U256 {
    accounts(grid).iter().map(|account| grid.balance(*account)).sum()
}

/// What the reservations' contract owes to anybody.
fn owed_by_escrow(grid: &Grid) -> U256 {
    let contract = grid.suite.reservations;
    let count = grid.view(contract, Reservations::reservationCountCall {});
    let mut sum = U256::ZERO;
    for id in 1..=count {
        let it = grid.view(contract, Reservations::reservationAtCall { id });
        sum += U256::from(it.balance.to::<u128>()) + U256::from(it.bond.to::<u128>());
    }
    for farm in 1..=2 {
        sum += grid.view(contract, Reservations::earnedCall { _0: farm, _1: 0 });
    }
    sum
}

/// Who gave how much to reservations, and what they got out.
#[derive(Default)]
struct Ledger {
    paid_in: BTreeMap<u64, (u8, u128)>,
}

struct Run {
    grid: Grid,
    random: fastrand::Rng,
    ledger: Ledger,
    log: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut grid = Grid::new();
        for (owner, signer) in [(1, 10), (2, 11)] {
            let farm = grid.farm(&key(owner));
            let node = grid.node(&key(owner), farm, &key(signer));
            grid.offer(&key(owner), node);
        }
        grid.aggregator(&key(3));
        for user in 4..7 {
            grid.fund(&key(user), tokens(100_000));
        }
        let random = fastrand::Rng::with_seed(seed);
        Self { grid, random, ledger: Ledger::default(), log: Vec::new() }
    }

    fn step(&mut self) {
        let contract = self.grid.suite.reservations;
        let user = self.random.u8(4..7);
        let id = self.random.u64(1..=self.ledger.paid_in.len() as u64 + 1);
        match self.random.u8(0..10) {
            0 | 1 => {
                let amount =
                    BOND + RATE * self.random.u128(3600..100_000) + self.random.u128(0..RATE);
                let call = reserve_call(self.random.u32(1..3), U256::from(amount));
                if self.attempt(user, "reserve", contract, call) {
                    let id = self.ledger.paid_in.len() as u64 + 1;
                    self.ledger.paid_in.insert(id, (user, amount));
                }
            }
            2 => {
                let amount = RATE * self.random.u128(0..50_000);
                let permit = no_permit();
                let call = Reservations::topUpCall { id, amount: U256::from(amount), permit };
                if self.attempt(user, "topUp", contract, call) {
                    self.ledger.paid_in.get_mut(&id).unwrap().1 += amount;
                }
            }
            3 | 4 => {
                self.attempt(user, "settle", contract, Reservations::settleCall { id });
            }
            5 => {
                self.attempt(user, "close", contract, Reservations::closeCall { id });
            }
            6 => {
                self.attempt(user, "reclaim", contract, Reservations::reclaimCall { id });
            }
            7 => {
                let farm = self.random.u32(1..3);
                let call = Reservations::withdrawCall { farm, token: 0 };
                self.attempt(user, "withdraw", contract, call);
            }
            8 => {
                let secs = 1 + self.random.u64(0..40_000);
                self.log.push(format!("advance {secs}"));
                self.grid.advance(secs);
            }
            _ => self.prove(),
        }
    }

    fn prove(&mut self) {
        let epoch = ((self.grid.now - self.grid.start()) / 3600) as u32;
        self.log.push(format!("prove {epoch}"));
        self.grid.prove(&key(3), epoch, 2);
    }

    fn attempt<C: alloy_sol_types::SolCall>(
        &mut self,
        user: u8,
        name: &str,
        to: Address,
        call: C,
    ) -> bool {
        let sender: Key = key(user);
        let done = self.grid.send(&sender, to, call);
        self.log.push(format!("{name} by {user}: {:?}", done.as_ref().err()));
        done.is_ok()
    }

    fn check(&self, seed: u64) {
        let grid = &self.grid;
        let escrow = grid.balance(grid.suite.reservations);
        assert_eq!(escrow, owed_by_escrow(grid), "escrow, seed {seed}: {:#?}", self.log);
        assert_eq!(sum_of_balances(grid), grid.supply(), "sum, seed {seed}: {:#?}", self.log);
    }
}

#[test]
fn escrow_holds_exactly_what_it_owes_after_any_calls_at_any_times() {
    let fresh = std::env::var("HYPHA_SEEDS").ok().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    for seed in fresh.unwrap_or(1..9_u64) {
        let mut run = Run::new(seed);
        for _ in 0..STEPS {
            run.step();
            run.check(seed);
        }
        wind_up(&mut run, seed);
    }
}

/// Everybody leaves: then the contract is empty to the last unit, and nobody got more than they put in.
fn wind_up(run: &mut Run, seed: u64) {
    let contract = run.grid.suite.reservations;
    let ids: Vec<(u64, u8)> =
        run.ledger.paid_in.iter().map(|(id, (user, _))| (*id, *user)).collect();
    for (id, user) in &ids {
        run.attempt(*user, "close", contract, Reservations::closeCall { id: *id });
    }
    run.grid.advance(49 * 3600);
    for (id, user) in &ids {
        run.attempt(*user, "reclaim", contract, Reservations::reclaimCall { id: *id });
    }
    for farm in 1..3 {
        run.attempt(9, "withdraw", contract, Reservations::withdrawCall { farm, token: 0 });
    }
    run.check(seed);
    assert_eq!(run.grid.balance(contract), U256::ZERO, "seed {seed}: {:#?}", run.log);
    for node in 1..3 {
        let used = run.grid.view(contract, Reservations::usedOfCall { node });
        assert_eq!((used.cores, used.ssdMiB), (0, 0), "seed {seed}: {:#?}", run.log);
    }
    for user in 4..7 {
        let has = run.grid.balance(key(user).address());
        assert!(has <= tokens(100_000), "seed {seed}: user {user} gained: {:#?}", run.log);
    }
    let minted = run.grid.view(run.grid.suite.token, GridToken::totalMintedCall {});
    assert_eq!(minted, U256::ZERO);
    assert!(run.grid.supply() <= U256::from(SUPPLY));
}

#[test]
fn accrual_never_exceeds_the_balance_and_stops_at_the_last_proven_epoch() {
    for seed in 100..104 {
        let mut run = Run::new(seed);
        let contract = run.grid.suite.reservations;
        for _ in 0..60 {
            run.step();
            let proven =
                |node| run.grid.view(run.grid.suite.capacity, Capacity::provenUntilCall(node));
            for id in 1..=run.ledger.paid_in.len() as u64 {
                let it = run.grid.view(contract, Reservations::reservationAtCall { id });
                if it.user == Address::ZERO {
                    continue;
                }
                let owed = run.grid.view(contract, Reservations::owedCall { id });
                let has = U256::from(it.balance.to::<u128>() + it.bond.to::<u128>());
                assert!(owed <= has, "seed {seed}: {:#?}", run.log);
                let until = proven(it.offer).saturating_sub(u64::from(it.paidTo));
                let most = U256::from(u128::from(until) * RATE);
                assert!(owed <= most, "seed {seed}: {:#?}", run.log);
            }
        }
    }
}
