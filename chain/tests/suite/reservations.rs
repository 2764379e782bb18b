//! Offers and reservations: every second is paid for once, to the right one, and nothing else is.

use hypha_chain::contracts::{Capacity, Registry, Reservations};
use hypha_chain::message::{Permit, Reader, sign};
use hypha_chain::{Address, U256};

use crate::grid::{
    BOND, CHAIN_ID, Content, Grid, RATE, STORAGE_RATE, WINDOW, event, key, no_permit, reserve_call,
    tokens, verdict,
};

/// A farm with a node and an offer, a user with so many tokens, an aggregator.
pub(crate) fn market(user_has: u128) -> Grid {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    grid.offer(&key(1), 1);
    grid.aggregator(&key(2));
    grid.fund(&key(4), tokens(user_has));
    grid
}

fn grid() -> Grid {
    market(10_000)
}

pub(crate) fn deposit(seconds: u128) -> U256 {
    U256::from(BOND + RATE * seconds)
}

fn reservation(grid: &Grid, id: u64) -> Reservations::Reservation {
    grid.view(grid.suite.reservations, Reservations::reservationAtCall { id })
}

fn earned(grid: &Grid) -> U256 {
    grid.view(grid.suite.reservations, Reservations::earnedCall { _0: 1, _1: 0 })
}

/// What of a payment a farm gets.
fn farms_part(paid: u128) -> U256 {
    U256::from(paid - paid.div_ceil(10))
}

#[test]
fn time_is_paid_for_until_the_node_was_last_proven_and_no_further() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    let id = grid.reserve(&key(4), 1, deposit(1_000_000));
    let start = grid.now;
    let owed = Reservations::owedCall { id };
    grid.advance(100_000);
    assert_eq!(grid.view(contract, owed.clone()), U256::ZERO);
    let epoch = ((grid.now - grid.start()) / 3600) as u32;
    grid.prove(&key(2), epoch, 1);
    let proven = grid.view(grid.suite.capacity, Capacity::provenUntilCall(1));
    let seconds = u128::from(proven - start);
    assert_eq!(grid.view(contract, owed), U256::from(seconds * RATE));
    let supply = grid.supply();
    let receipt = grid.must(&key(9), contract, Reservations::settleCall { id });
    let settled = event::<Reservations::Settled>(&receipt);
    assert_eq!(settled.toFarm, farms_part(seconds * RATE));
    assert_eq!(settled.toFarm + settled.burned, U256::from(seconds * RATE));
    assert_eq!(grid.supply(), supply - settled.burned);
    assert_eq!(earned(&grid), settled.toFarm);
    assert_eq!(u64::from(reservation(&grid, id).paidTo), proven);
}

#[test]
fn a_balance_that_runs_out_pauses_then_keeps_storage_then_ends() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    let id = grid.reserve(&key(4), 1, deposit(7200));
    let start = grid.now;
    let ends = grid.view(contract, Reservations::depletesAtCall { id });
    assert_eq!(ends.pause, U256::from(start + 7200));
    assert_eq!(ends.over, U256::from(start + 7200 + 24 * 3600));
    let reclaim = Reservations::reclaimCall { id };
    grid.advance_to(start + 7200 + 24 * 3600 - 100);
    grid.refuses(&key(1), contract, reclaim.clone(), "NotDepleted");
    grid.advance(200);
    grid.must(&key(1), contract, reclaim.clone());
    let used = grid.view(contract, Reservations::usedOfCall { node: 1 });
    assert_eq!(used.cores, 0);
    grid.refuses(&key(1), contract, reclaim.clone(), "AwaitsProof");
    let epoch = ((grid.now - grid.start()) / 3600) as u32;
    grid.prove(&key(2), epoch, 1);
    let before = grid.balance(key(4).address());
    grid.must(&key(1), contract, reclaim);
    assert_eq!(earned(&grid), farms_part(7200 * RATE + BOND));
    assert_eq!(grid.balance(key(4).address()), before);
    assert_eq!(reservation(&grid, id).user, Address::ZERO);
}

#[test]
fn the_user_gets_everything_back_that_was_not_proven() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    let before = grid.balance(key(4).address());
    let id = grid.reserve(&key(4), 1, deposit(100_000));
    grid.refuses(&key(5), contract, Reservations::closeCall { id }, "NotTheUser");
    grid.advance(5000);
    grid.must(&key(4), contract, Reservations::closeCall { id });
    grid.refuses(&key(4), contract, Reservations::closeCall { id }, "NotOpen");
    let reclaim = Reservations::reclaimCall { id };
    grid.refuses(&key(4), contract, reclaim.clone(), "AwaitsProof");
    grid.advance(48 * 3600);
    grid.must(&key(5), contract, reclaim.clone());
    assert_eq!(grid.balance(key(4).address()), before);
    assert_eq!(earned(&grid), U256::ZERO);
    grid.refuses(&key(5), contract, reclaim, "NotOpen");
}

#[test]
fn a_closed_reservation_pays_until_its_end_once_that_is_proven() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    let before = grid.balance(key(4).address());
    let id = grid.reserve(&key(4), 1, deposit(100_000));
    let start = grid.now;
    grid.advance(5000);
    grid.must(&key(4), contract, Reservations::closeCall { id });
    let seconds = u128::from(grid.now - start);
    let epoch = ((grid.now - grid.start()) / 3600) as u32;
    grid.prove(&key(2), epoch, 1);
    grid.must(&key(9), contract, Reservations::reclaimCall { id });
    assert_eq!(earned(&grid), farms_part(seconds * RATE));
    assert_eq!(grid.balance(key(4).address()), before - U256::from(seconds * RATE));
}

#[test]
fn who_resumes_a_paused_machine_pays_for_the_pause_at_the_storage_rate() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    let id = grid.reserve(&key(4), 1, deposit(3600));
    let start = grid.now;
    grid.fund(&key(5), tokens(100));
    let top_up = |seconds: u128| Reservations::topUpCall {
        id,
        amount: U256::from(RATE * seconds),
        permit: no_permit(),
    };
    // Before it runs out anyone may add.
    grid.must(&key(5), contract, top_up(100));
    grid.advance_to(start + 3700 + 999);
    grid.refuses(&key(5), contract, top_up(5000), "NotTheUser");
    grid.refuses(&key(4), contract, top_up(0), "DepositTooSmall");
    grid.must(&key(4), contract, top_up(5000));
    let it = reservation(&grid, id);
    let pause = u128::from(u64::from(it.paidTo) - start - 3700) * STORAGE_RATE;
    assert_eq!(earned(&grid), farms_part(3700 * RATE + pause));
    assert_eq!(u128::from(it.bond.to::<u64>()), BOND);
    assert_eq!(it.balance.to::<u128>(), 5000 * RATE - pause);
    assert_eq!(u64::from(it.paidTo), grid.now);
    grid.advance(40 * 3600);
    grid.refuses(&key(4), contract, top_up(5000), "NotOpen");
}

#[test]
fn an_offer_is_reserved_as_often_as_the_node_has_room() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    for _ in 0..4 {
        grid.reserve(&key(4), 1, deposit(3600));
    }
    grid.refuses(&key(4), contract, reserve_call(1, deposit(3600)), "NoRoom");
    grid.must(&key(4), contract, Reservations::closeCall { id: 2 });
    grid.reserve(&key(4), 1, deposit(3600));
    grid.refuses(&key(4), contract, Reservations::endOfferCall { id: 1 }, "NotFarmOwner");
    grid.must(&key(1), contract, Reservations::endOfferCall { id: 1 });
    grid.refuses(&key(4), contract, reserve_call(1, deposit(3600)), "NoOffer");
    grid.refuses(&key(4), contract, reserve_call(9, deposit(3600)), "NoOffer");
}

#[test]
fn a_deposit_is_at_least_an_hour_and_the_bond() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    let short = deposit(3600) - U256::from(1);
    grid.refuses(&key(4), contract, reserve_call(1, short), "DepositTooSmall");
    let poor = reserve_call(1, deposit(3600));
    grid.refuses(&key(7), contract, poor, "TransferFailed");
}

#[test]
fn only_the_farms_owner_offers_and_only_what_makes_sense() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    let terms = grid.view(contract, Reservations::offerAtCall { id: 1 });
    let call = |change: fn(&mut Reservations::Offer)| {
        let mut terms = terms.clone();
        change(&mut terms);
        Reservations::offerCall { terms }
    };
    grid.refuses(&key(4), contract, call(|_| ()), "NotFarmOwner");
    grid.refuses(&key(1), contract, call(|it| it.node = 5), "NotFarmOwner");
    grid.refuses(&key(1), contract, call(|it| it.token = 1), "NoSuchToken");
    grid.refuses(&key(1), contract, call(|it| it.rate = Default::default()), "RateOutOfRange");
    grid.refuses(
        &key(1),
        contract,
        call(|it| it.storageRate = it.rate * it.rate),
        "RateOutOfRange",
    );
    grid.must(&key(1), grid.suite.registry, Registry::retireCall { node: 1 });
    grid.refuses(&key(1), contract, call(|_| ()), "NodeNotActive");
    grid.refuses(&key(4), contract, reserve_call(1, deposit(3600)), "NodeNotActive");
}

#[test]
fn an_hour_of_silence_is_credited_twice_from_the_stake_and_once_only() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    let id = grid.reserve(&key(4), 1, deposit(1_000_000));
    let end = grid.start() + 2 * 3600;
    let mut silent = verdict(1, 0);
    silent.answered = 0;
    let content = Content::new([silent], &[0]);
    // The epoch in which it began does not count; the next one does.
    let first = grid.post(&key(2), 0, &content);
    let posted = grid.post(&key(2), 1, &content);
    let answered = Content::new([verdict(1, end + 3600)], &[0]);
    let third = grid.post(&key(2), 2, &answered);
    grid.advance(WINDOW);
    let credit = |content: &Content, posted| Reservations::slaCreditCall {
        id,
        proof: convert(&content.proof(posted, 1)),
    };
    grid.refuses(&key(4), contract, credit(&content, &first), "NoOutage");
    grid.refuses(&key(4), contract, credit(&answered, &third), "NoOutage");
    let (before, supply) = (grid.balance(key(4).address()), grid.supply());
    grid.must(&key(9), contract, credit(&content, &posted));
    let credited = U256::from(2 * 3600 * RATE);
    assert_eq!(grid.balance(key(4).address()), before + credited);
    assert_eq!(grid.supply(), supply - credited, "as much again is burned");
    let stake = grid.view(grid.suite.registry, Registry::stakeOfCall { node: 1 });
    assert_eq!(stake, tokens(1000) - credited - credited);
    grid.refuses(&key(4), contract, credit(&content, &posted), "NoOutage");
}

pub(crate) fn convert(path: &Capacity::VerdictPath) -> Reservations::VerdictPath {
    let caps = &path.verdict.caps;
    Reservations::VerdictPath {
        posted: Reservations::Epoch {
            epoch: path.posted.epoch,
            postedAt: path.posted.postedAt,
            openDemands: path.posted.openDemands,
            aggregator: path.posted.aggregator,
            verdictRoot: path.posted.verdictRoot,
            rewardRoot: path.posted.rewardRoot,
        },
        verdict: Reservations::Verdict {
            node: path.verdict.node,
            provenUntil: path.verdict.provenUntil,
            pulses: path.verdict.pulses,
            answered: path.verdict.answered,
            caps: Reservations::Caps {
                cores: caps.cores,
                memMiB: caps.memMiB,
                ssdMiB: caps.ssdMiB,
                hddMiB: caps.hddMiB,
                mbps: caps.mbps,
            },
        },
        count: path.count,
        path: path.path.clone(),
    }
}

#[test]
fn a_permit_saves_the_approval_and_one_that_was_used_already_does_no_harm() {
    let mut grid = grid();
    let (contract, token) = (grid.suite.reservations, grid.suite.token);
    let user = key(8);
    grid.must(
        &crate::grid::holder(),
        token,
        hypha_chain::contracts::GridToken::transferCall {
            to: user.address(),
            amount: tokens(1000),
        },
    );
    for nonce in 0..2_u64 {
        let deadline = U256::from(grid.now + 1000);
        let message = Permit {
            owner: user.address(),
            spender: contract,
            value: deposit(3600),
            nonce: U256::from(nonce),
            deadline,
        };
        let signature = sign(&message, &Reader::Token.domain(CHAIN_ID, token), &user);
        let v = 27 + u8::from(signature.y_is_odd);
        let (r, s) = (signature.r, signature.s);
        if nonce == 1 {
            // Somebody who saw it uses it first.
            let call = hypha_chain::contracts::GridToken::permitCall {
                owner: user.address(),
                spender: contract,
                value: deposit(3600),
                deadline,
                v,
                r,
                s,
            };
            grid.must(&key(9), token, call);
        }
        let mut call = reserve_call(1, deposit(3600));
        call.permit = Reservations::Permit { deadline, v, r, s };
        grid.must(&user, contract, call);
    }
    assert_eq!(grid.view(contract, Reservations::usedOfCall { node: 1 }).cores, 8);
}

#[test]
fn a_farms_income_goes_to_its_payout_whoever_asks() {
    let mut grid = grid();
    let contract = grid.suite.reservations;
    let withdraw = Reservations::withdrawCall { farm: 1, token: 0 };
    grid.refuses(&key(9), contract, withdraw.clone(), "NothingToWithdraw");
    let id = grid.reserve(&key(4), 1, deposit(1_000_000));
    grid.prove(&key(2), 3, 1);
    grid.must(&key(9), contract, Reservations::settleCall { id });
    let income = earned(&grid);
    let before = grid.balance(key(1).address());
    grid.must(&key(9), contract, withdraw.clone());
    assert_eq!(grid.balance(key(1).address()), before + income);
    grid.refuses(&key(9), contract, withdraw, "NothingToWithdraw");
}
