//! Farms, nodes, keys, claims, stakes, maintenance.

use hypha_chain::contracts::{Capacity, Registry};
use hypha_chain::message::{Reader, RotateKey, sign};
use hypha_chain::{Address, B256, U256};

use crate::grid::{CHAIN_ID, Content, Grid, caps, key, tokens, verdict};

fn grid() -> Grid {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    grid
}

fn node(grid: &Grid) -> Registry::Node {
    grid.view(grid.suite.registry, Registry::nodeAtCall { node: 1 })
}

#[test]
fn a_node_is_bound_to_the_key_that_signed_for_it() {
    let grid = grid();
    let it = node(&grid);
    assert_eq!((it.signer, it.farm, it.state), (key(10).address(), 1, 1));
    let of_key = Registry::nodeOfCall(key(10).address());
    assert_eq!(grid.view(grid.suite.registry, of_key), 1);
}

#[test]
fn a_key_is_bound_once_and_only_by_the_farms_owner() {
    let mut grid = grid();
    let registry = grid.suite.registry;
    let again = grid.add_node_call(1, &key(10));
    grid.refuses(&key(1), registry, again, "KeyInUse");
    let call = grid.add_node_call(1, &key(11));
    grid.refuses(&key(2), registry, call.clone(), "NotFarmOwner");
    // A signature for another farm is of nobody known: it recovers another key.
    let mut other = call.clone();
    other.stake = tokens(1);
    grid.refuses(&key(1), registry, other, "StakeTooSmall");
    let mut broken = call;
    broken.signature = broken.signature.slice(..64);
    grid.refuses(&key(1), registry, broken, "BadSignature");
}

#[test]
fn a_key_that_was_replaced_stays_bound() {
    let mut grid = grid();
    let registry = grid.suite.registry;
    let domain = Reader::Registry.domain(CHAIN_ID, registry);
    let rotate = |signer: u8| {
        let message = RotateKey { node: 1, meshKey: B256::repeat_byte(9) };
        Registry::rotateKeyCall {
            node: 1,
            mesh: Registry::MeshKey {
                key: B256::repeat_byte(9),
                signatureR: B256::ZERO,
                signatureS: B256::ZERO,
            },
            signature: sign(&message, &domain, &key(signer)).to_bytes().into(),
        }
    };
    grid.refuses(&key(2), registry, rotate(11), "NotFarmOwner");
    grid.must(&key(1), registry, rotate(11));
    grid.refuses(&key(1), registry, rotate(10), "KeyInUse");
    assert_eq!(node(&grid).signer, key(11).address());
    assert_eq!(grid.view(registry, Registry::nodeOfCall(key(10).address())), 1);
}

#[test]
fn a_claim_goes_down_at_once_and_up_as_far_as_it_is_proven() {
    let mut grid = grid();
    let registry = grid.suite.registry;
    let mut less = caps();
    less.cores = 4;
    grid.must(&key(1), registry, Registry::setCapsCall { node: 1, caps: less });
    let up = Registry::setCapsCall { node: 1, caps: caps() };
    grid.refuses(&key(1), registry, up, "ClaimsMore");
    grid.aggregator(&key(2));
    let mut leaf = verdict(1, grid.start() + 3600);
    leaf.caps.cores = 8;
    let content = Content::new([leaf], &[0]);
    let posted = grid.post(&key(2), 0, &content);
    grid.advance(crate::grid::WINDOW);
    let path = content.proof(&posted, 1);
    let raise = |cores| {
        let mut wanted = caps();
        wanted.cores = cores;
        Registry::raiseCapsCall { node: 1, caps: wanted, proof: convert(&path) }
    };
    grid.refuses(&key(1), registry, raise(9), "NotProven");
    // 4 cores need 55 tokens, 8 need 59. What is on its way out is no stake for more.
    grid.must(&key(1), registry, Registry::unstakeCall { node: 1, amount: tokens(942) });
    grid.refuses(&key(1), registry, raise(8), "StakeTooSmall");
    grid.must(&key(1), registry, Registry::unstakeCall { node: 1, amount: tokens(941) });
    grid.must(&key(1), registry, raise(8));
    assert_eq!(node(&grid).caps.cores, 8);
}

fn convert(path: &Capacity::VerdictPath) -> Registry::VerdictPath {
    let caps = &path.verdict.caps;
    Registry::VerdictPath {
        posted: Registry::Epoch {
            epoch: path.posted.epoch,
            postedAt: path.posted.postedAt,
            openDemands: path.posted.openDemands,
            aggregator: path.posted.aggregator,
            verdictRoot: path.posted.verdictRoot,
            rewardRoot: path.posted.rewardRoot,
        },
        verdict: Registry::Verdict {
            node: path.verdict.node,
            provenUntil: path.verdict.provenUntil,
            pulses: path.verdict.pulses,
            answered: path.verdict.answered,
            caps: Registry::Caps {
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
fn stake_leaves_after_two_weeks_and_can_be_slashed_until_then() {
    let mut grid = grid();
    let registry = grid.suite.registry;
    let unstake = |amount| Registry::unstakeCall { node: 1, amount };
    // The claim needs 10 + 16 + 16 + 25 tokens.
    grid.refuses(&key(1), registry, unstake(tokens(934)), "StakeTooSmall");
    grid.must(&key(1), registry, unstake(tokens(933)));
    grid.advance(14 * 24 * 3600 - 60);
    let withdraw = Registry::withdrawStakeCall { node: 1 };
    grid.refuses(&key(1), registry, withdraw.clone(), "TooEarly");
    let slash = Registry::slashCall {
        node: 1,
        amount: U256::MAX,
        beneficiary: key(3).address(),
        shareBps: U256::ZERO,
    };
    grid.refuses(&key(1), registry, slash, "NotSlasher");
    grid.advance(60);
    let before = grid.balance(key(1).address());
    grid.must(&key(1), registry, withdraw.clone());
    assert_eq!(grid.balance(key(1).address()), before + tokens(933));
    grid.refuses(&key(1), registry, withdraw, "NotLeaving");
    // What a slashing took is not paid out.
    grid.must(&key(1), registry, Registry::retireCall { node: 1 });
    crate::disputes::Run::with_a_lie(16, 2).report(&mut grid, &key(3), 1, &key(10)).unwrap();
    grid.advance(14 * 24 * 3600);
    grid.refuses(&key(1), registry, Registry::withdrawStakeCall { node: 1 }, "NotLeaving");
}

#[test]
fn maintenance_is_announced_ahead_and_takes_eight_hours_of_a_month() {
    let mut grid = grid();
    let registry = grid.suite.registry;
    let month = 30 * 24 * 3600;
    // The first epoch of the next month.
    let start = grid.start();
    let first = start + ((grid.now / month + 1) * month - start).div_ceil(3600) * 3600;
    grid.advance_to(first - 7200);
    let announce = |from, to| Registry::announceMaintenanceCall { node: 1, from, to };
    let soon = announce(grid.now + 60, grid.now + 120);
    grid.refuses(&key(1), registry, soon, "BadPeriod");
    let long = announce(first, first + 8 * 3600 + 1);
    grid.refuses(&key(1), registry, long, "MaintenanceUsedUp");
    grid.must(&key(1), registry, announce(first, first + 5 * 3600));
    let touches = |from, to| Registry::inMaintenanceCall {
        node: 1,
        from: U256::from(from),
        to: U256::from(to),
    };
    assert!(grid.view(registry, touches(first + 100, first + 200)));
    assert!(!grid.view(registry, touches(first - 100, first)));
    assert!(!grid.view(registry, touches(first + 5 * 3600, first + 6 * 3600)));
    // It cannot be replaced by another one while it is to come.
    let other = announce(first + 60 * 3600, first + 61 * 3600);
    grid.refuses(&key(1), registry, other.clone(), "TooEarly");
    // Nor afterwards, while somebody may still ask whether an epoch was in it.
    grid.advance_to(first + 53 * 3600 - 60);
    grid.refuses(&key(1), registry, other, "TooEarly");
    grid.advance_to(first + 53 * 3600);
    let more = announce(first + 60 * 3600, first + 64 * 3600);
    grid.refuses(&key(1), registry, more, "MaintenanceUsedUp");
    grid.must(&key(1), registry, announce(first + 60 * 3600, first + 63 * 3600));
    grid.advance_to(first + 120 * 3600);
    grid.must(&key(1), registry, announce(first + month, first + month + 8 * 3600));
}

/// Two seconds around the end of an epoch keep anyone from a credit for both hours.
#[test]
fn maintenance_costs_each_epoch_that_it_touches() {
    let mut grid = grid();
    let registry = grid.suite.registry;
    let month = 30 * 24 * 3600;
    let start = grid.start();
    let mut from = start + ((grid.now / month + 1) * month - start).div_ceil(3600) * 3600;
    let announce = |from, to| Registry::announceMaintenanceCall { node: 1, from, to };
    for round in 0..5 {
        grid.advance_to(from + 1 + 2 * 24 * 3600);
        from += 3 * 24 * 3600;
        let call = announce(from - 1, from + 1);
        if round < 4 {
            grid.must(&key(1), registry, call);
            let used = grid.view(registry, Registry::maintenanceCall(1)).used;
            assert_eq!(used, (round + 1) * 2 * 3600);
        } else {
            grid.refuses(&key(1), registry, call, "MaintenanceUsedUp");
        }
    }
}

#[test]
fn a_node_that_is_silent_for_a_week_is_parked_by_anyone_and_back_by_its_owner() {
    let mut grid = grid();
    let registry = grid.suite.registry;
    let park = Registry::parkCall { node: 1 };
    grid.refuses(&key(5), registry, park.clone(), "NotSilent");
    grid.advance(7 * 24 * 3600 + 1);
    grid.must(&key(5), registry, park.clone());
    grid.refuses(&key(5), registry, park.clone(), "NotActive");
    grid.refuses(&key(5), registry, Registry::unparkCall { node: 1 }, "NotFarmOwner");
    grid.must(&key(1), registry, Registry::unparkCall { node: 1 });
    grid.refuses(&key(5), registry, park, "NotSilent");
}

#[test]
fn a_node_that_has_lost_its_stake_is_parked_by_anyone_and_comes_back_with_another() {
    let mut grid = grid();
    let registry = grid.suite.registry;
    grid.must(&key(1), registry, Registry::unstakeCall { node: 1, amount: tokens(933) });
    let park = Registry::parkCall { node: 1 };
    grid.refuses(&key(5), registry, park.clone(), "NotSilent");
    crate::disputes::Run::with_a_lie(16, 2).report(&mut grid, &key(3), 1, &key(10)).unwrap();
    grid.must(&key(5), registry, park);
    let unpark = Registry::unparkCall { node: 1 };
    grid.refuses(&key(1), registry, unpark.clone(), "StakeTooSmall");
    grid.must(&key(1), registry, Registry::addStakeCall { node: 1, amount: tokens(67) });
    grid.must(&key(1), registry, unpark);
    assert_eq!(node(&grid).state, 1);
}

#[test]
fn a_farm_is_changed_by_its_owner_and_always_has_a_payout() {
    let mut grid = grid();
    let registry = grid.suite.registry;
    let change =
        |owner, payout| Registry::changeFarmCall { farm: 1, owner, payout, meta: B256::ZERO };
    let (a, b) = (key(1).address(), key(2).address());
    grid.refuses(&key(2), registry, change(b, b), "NotFarmOwner");
    grid.refuses(&key(1), registry, change(a, Address::ZERO), "NoPayout");
    let none = Registry::addFarmCall { payout: Address::ZERO, meta: B256::ZERO };
    grid.refuses(&key(1), registry, none, "NoPayout");
    grid.must(&key(1), registry, change(b, a));
    grid.refuses(&key(1), registry, change(a, a), "NotFarmOwner");
    assert_eq!(grid.view(registry, Registry::payoutOfCall { farm: 1 }), a);
}
