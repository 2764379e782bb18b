//! What farms claim, and the cap that holds whatever is posted.

use hypha_chain::U256;
use hypha_chain::contracts::{Capacity, GridToken, Rewards};

use crate::grid::{Content, EMISSION, Grid, Posted, TOKEN, WINDOW, key, tokens, verdict};

pub(crate) fn of(posted: &Posted) -> Rewards::Epoch {
    Rewards::Epoch {
        epoch: posted.epoch,
        postedAt: posted.postedAt,
        openDemands: posted.openDemands,
        aggregator: posted.aggregator,
        verdictRoot: posted.verdictRoot,
        rewardRoot: posted.rewardRoot,
    }
}

fn claim(posted: &Posted, content: &Content, farm: u32, cumulative: u128) -> Rewards::claimCall {
    Rewards::claimCall {
        farm,
        cumulative,
        posted: of(posted),
        count: content.rewards.count(),
        path: content.rewards.path(u64::from(farm) - 1).unwrap(),
    }
}

fn grid() -> Grid {
    let mut grid = Grid::new();
    for owner in [1, 4, 5] {
        grid.farm(&key(owner));
    }
    grid.aggregator(&key(2));
    grid
}

#[test]
fn each_farm_claims_what_its_leaf_adds_once() {
    let mut grid = grid();
    let rewards = grid.suite.rewards;
    let sums = [300 * TOKEN, 20 * TOKEN, 5];
    let content = Content::new([verdict(1, 1)], &sums);
    let posted = grid.post(&key(2), 0, &content);
    grid.refuses(&key(9), rewards, claim(&posted, &content, 1, sums[0]), "NotFinal");
    grid.advance(WINDOW);
    for (farm, owner) in [(1, 1), (2, 4), (3, 5)] {
        let sum = sums[farm as usize - 1];
        let before = grid.balance(key(owner).address());
        let more = claim(&posted, &content, farm, sum + 1);
        grid.refuses(&key(9), rewards, more, "NotInEpoch");
        grid.must(&key(9), rewards, claim(&posted, &content, farm, sum));
        assert_eq!(grid.balance(key(owner).address()), before + U256::from(sum));
        let again = claim(&posted, &content, farm, sum);
        grid.refuses(&key(9), rewards, again, "NothingNew");
    }
    let minted = grid.view(grid.suite.token, GridToken::totalMintedCall {});
    assert_eq!(minted, U256::from(sums.iter().sum::<u128>()));
}

#[test]
fn no_root_mints_beyond_the_hours_so_far() {
    let mut grid = grid();
    let rewards = grid.suite.rewards;
    // Everything that was ever to be emitted, in the first hour, for one farm.
    let content = Content::new([verdict(1, 1)], &[u128::MAX, 9 * EMISSION, EMISSION]);
    let posted = grid.post(&key(2), 0, &content);
    grid.advance(WINDOW);
    for (farm, sum) in [(1, u128::MAX), (2, 9 * EMISSION)] {
        assert!(grid.send(&key(9), rewards, claim(&posted, &content, farm, sum)).is_err());
    }
    grid.must(&key(9), rewards, claim(&posted, &content, 3, EMISSION));
    assert_eq!(grid.view(rewards, Rewards::claimedCall(1)), U256::ZERO);
    // Hours later there is room for nine more, but never for all.
    grid.advance(4 * 3600);
    grid.must(&key(9), rewards, claim(&posted, &content, 2, 9 * EMISSION));
    assert!(grid.send(&key(9), rewards, claim(&posted, &content, 1, u128::MAX)).is_err());
}

#[test]
fn the_cap_ends_emission_for_good() {
    let mut grid = grid();
    let rewards = grid.suite.rewards;
    assert_eq!(grid.view(rewards, Rewards::budgetCall {}), U256::ZERO);
    // 1000 tokens an hour: the million is reached after 1000 hours.
    grid.advance(999 * 3600);
    assert_eq!(grid.view(rewards, Rewards::budgetCall {}), tokens(999_000));
    grid.advance(10_000 * 3600);
    assert_eq!(grid.view(rewards, Rewards::budgetCall {}), tokens(1_000_000));
}

#[test]
fn rewards_of_a_void_epoch_cannot_be_claimed() {
    let mut grid = grid();
    grid.fund(&key(6), tokens(10));
    let content = Content::new([verdict(1, 1)], &[5]);
    let posted = grid.post(&key(2), 0, &content);
    let call = Capacity::demandCall { posted, tree: 1, index: 0 };
    let receipt = grid.must(&key(6), grid.suite.capacity, call);
    let demanded = crate::grid::event::<Capacity::Demanded>(&receipt);
    grid.advance(3601);
    let call = Capacity::voidWithheldCall { it: demanded.demand, posted: demanded.posted.clone() };
    grid.must(&key(6), grid.suite.capacity, call);
    grid.advance(WINDOW);
    let call = claim(&demanded.posted, &content, 1, 5);
    grid.refuses(&key(9), grid.suite.rewards, call, "UnknownEpoch");
}
