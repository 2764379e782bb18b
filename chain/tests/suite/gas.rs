//! What each operation costs, against the prototype's table (docs/chain.md, "Gas").

use hypha_chain::contracts::{Capacity, Registry, Reservations, Rewards};
use hypha_chain::{B256, U256};

use crate::capacity::{Disk, answer_to, commit};
use crate::disputes::{self, Run};
use crate::grid::{BOND, Content, Grid, RATE, WINDOW, event, key, reserve_call, tokens, verdict};

/// Name, gas measured when this was written, gas of the prototype (0: it had none).
const TABLE: [(&str, u64, u64); 23] = [
    ("add farm", 96_440, 90_179),
    ("add node", 159_204, 147_933),
    ("post epoch, next", 35_442, 40_230),
    ("prove node, next", 48_917, 0),
    ("commit plot, next", 39_710, 0),
    ("challenge", 97_606, 100_756),
    ("answer, 1 KiB leaf, 30 levels", 102_520, 102_180),
    ("expire and slash", 76_505, 52_541),
    ("segment fraud, two paths of 20, 1000 steps", 350_638, 318_000),
    ("reserve", 120_037, 117_362),
    ("settle one", 77_260, 75_423),
    ("settle four", 144_420, 162_425),
    ("reclaim a closed one", 78_417, 78_658),
    ("claim rewards, 17 levels", 75_961, 60_780),
    ("dispute: open", 123_284, 159_893),
    ("dispute: bisect in 16", 55_930, 36_276),
    ("dispute: pick", 48_680, 36_458),
    ("false segment, 1000 steps", 304_813, 0),
    ("withdraw income", 49_938, 0),
    ("appeal", 102_736, 0),
    ("seat", 62_723, 0),
    ("vote", 72_700, 0),
    ("decide", 55_941, 0),
];

#[test]
fn no_operation_costs_more_than_the_table_says() {
    let mut measured: Vec<(&str, u64)> = Vec::new();
    nodes_and_epochs(&mut measured);
    disks(&mut measured);
    reservations(&mut measured);
    runs(&mut measured);
    measured.extend(["appeal", "seat", "vote", "decide"].into_iter().zip(crate::appeals::gas()));
    println!("{:<45} {:>9} {:>9} {:>9}", "operation", "gas", "pinned", "prototype");
    let mut wrong = Vec::new();
    for (name, pinned, prototype) in TABLE {
        let gas = measured.iter().find(|(it, _)| *it == name).map(|(_, gas)| *gas).unwrap();
        println!("{name:<45} {gas:>9} {pinned:>9} {prototype:>9}");
        // Which bytes of an answer are zero, and cheaper, depends on which byte was drawn.
        let tolerance = if name.starts_with("answer") { pinned / 50 } else { 0 };
        if gas.abs_diff(pinned) > tolerance {
            wrong.push(format!("{name}: {gas}, the table says {pinned}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_is_within_a_tenth_of_the_prototypes() {
    let over: Vec<String> = TABLE
        .iter()
        .filter(|(name, gas, prototype)| {
            *prototype != 0 && *gas * 10 > prototype * 11 && !OVER.contains(name)
        })
        .map(|(name, gas, prototype)| format!("{name}: {gas} against {prototype}"))
        .collect();
    assert!(over.is_empty(), "{}", over.join("\n"));
}

/// What does more than its prototype did, and costs more: docs/chain.md, "Gas", says what.
const OVER: [&str; 5] = [
    "expire and slash",
    "segment fraud, two paths of 20, 1000 steps",
    "claim rewards, 17 levels",
    "dispute: bisect in 16",
    "dispute: pick",
];

#[test]
fn a_whole_dispute_costs_less_than_half_of_one_that_is_halved_each_round() {
    let of = |wanted: &str| TABLE.iter().find(|(name, ..)| *name == wanted).copied().unwrap();
    let (open, bisect, pick) =
        (of("dispute: open"), of("dispute: bisect in 16"), of("dispute: pick"));
    // 2^20 segments: 5 rounds of sixteenths, 20 of halves.
    let ours = open.1 + 5 * (bisect.1 + pick.1);
    let halved = open.2 + 20 * (bisect.2 + pick.2);
    assert!(ours * 2 < halved, "{ours} against {halved}");
}

#[test]
fn a_node_costs_at_most_350_gas_a_day_in_a_network_of_100_000() {
    let of = |wanted: &str| TABLE.iter().find(|(name, ..)| *name == wanted).unwrap().1 as f64;
    let nodes = 100_000.0;
    let posts = 24.0 * of("post epoch, next") / nodes;
    // One node in a thousand is challenged each day; a farm of 20 nodes claims once a month.
    let challenges = (of("challenge") + of("answer, 1 KiB leaf, 30 levels")) / 1000.0;
    let claims = of("claim rewards, 17 levels") / 20.0 / 30.0;
    let day = posts + challenges + claims;
    println!("gas per node and day: {posts:.0} + {challenges:.0} + {claims:.0} = {day:.0}");
    assert!(day <= 350.0, "{day}");
}

fn nodes_and_epochs(measured: &mut Vec<(&'static str, u64)>) {
    let mut grid = Grid::new();
    let (registry, capacity, owner) = (grid.suite.registry, grid.suite.capacity, key(1));
    grid.farm(&owner);
    let call = Registry::addFarmCall { payout: owner.address(), meta: B256::repeat_byte(7) };
    measured.push(("add farm", grid.must(&owner, registry, call).gas_used));
    grid.node(&owner, 1, &key(10));
    let call = grid.add_node_call(1, &key(11));
    measured.push(("add node", grid.must(&owner, registry, call).gas_used));

    let poster = key(2);
    grid.aggregator(&poster);
    // A tree of 17 levels: 131,072 farms.
    let mut rewards = vec![1; 1 << 17];
    rewards[0] = 5;
    let mut last = 0;
    for epoch in 0..25 {
        let end = grid.start() + (u64::from(epoch) + 1) * 3600;
        grid.advance_to(end);
        let call = Capacity::postEpochCall {
            epoch,
            verdictRoot: B256::repeat_byte(1),
            rewardRoot: B256::repeat_byte(2),
            data: B256::repeat_byte(9),
        };
        last = grid.must(&poster, capacity, call).gas_used;
    }
    measured.push(("post epoch, next", last));
    let mut gas = (0, 0);
    for epoch in [25, 40] {
        let end = grid.start() + (u64::from(epoch) + 1) * 3600;
        let content = Content::new((1..=1000).map(|node| verdict(node, end)), &rewards);
        let posted = grid.post(&poster, epoch, &content);
        grid.advance(WINDOW);
        let call = Capacity::proveCall { proof: content.proof(&posted, 2) };
        gas.0 = grid.must(&poster, capacity, call).gas_used;
        let call = Rewards::claimCall {
            farm: 1,
            cumulative: rewards[0],
            posted: crate::rewards::of(&posted),
            count: content.rewards.count(),
            path: content.rewards.path(0).unwrap(),
        };
        gas.1 = grid.must(&poster, grid.suite.rewards, call).gas_used;
        rewards[0] += 7;
    }
    measured.push(("prove node, next", gas.0));
    measured.push(("claim rewards, 17 levels", gas.1));
}

fn disks(measured: &mut Vec<(&'static str, u64)>) {
    let mut grid = Grid::new();
    let (capacity, owner) = (grid.suite.capacity, key(1));
    grid.farm(&owner);
    grid.node(&owner, 1, &key(10));
    // 20 levels in the extent and 10 above it: a plot of 1 TiB in extents of 1 GiB.
    let disk = Disk::of_a_tebibyte();
    commit(&mut grid, &key(10), 1, &disk);
    let again = commit(&mut grid, &key(10), 1, &disk);
    measured.push(("commit plot, next", again.gas_used));
    let challenger = key(3);
    grid.fund(&challenger, tokens(100));
    for round in 0..2 {
        let call = Capacity::challengeCall { node: 1 };
        let receipt = grid.must(&challenger, capacity, call);
        let it = event::<Capacity::Challenged>(&receipt).challenge;
        let call = Capacity::answerCall { shown: answer_to(&disk, it.offset), it };
        let answered = grid.must(&key(10), capacity, call);
        if round == 1 {
            measured.push(("challenge", receipt.gas_used));
            measured.push(("answer, 1 KiB leaf, 30 levels", answered.gas_used));
        }
    }
    let receipt = grid.must(&challenger, capacity, Capacity::challengeCall { node: 1 });
    let it = event::<Capacity::Challenged>(&receipt).challenge;
    grid.advance(3601);
    let expired = grid.must(&key(3), capacity, Capacity::expireCall { it });
    measured.push(("expire and slash", expired.gas_used));
}

fn reservations(measured: &mut Vec<(&'static str, u64)>) {
    let mut grid = Grid::new();
    let (contract, owner, user, poster) = (grid.suite.reservations, key(1), key(4), key(2));
    grid.farm(&owner);
    grid.node(&owner, 1, &key(10));
    let offer = grid.offer(&owner, 1);
    grid.aggregator(&poster);
    grid.fund(&user, tokens(1_000_000));
    let deposit = U256::from(BOND + RATE * 3600 * 24 * 10);
    grid.reserve(&user, offer, deposit);
    let receipt = grid.must(&user, contract, reserve_call(offer, deposit));
    measured.push(("reserve", receipt.gas_used));
    grid.reserve(&user, offer, deposit);
    grid.reserve(&user, offer, deposit);
    grid.prove(&poster, 0, 1);
    grid.must(&user, contract, Reservations::settleManyCall { ids: vec![1, 2, 3, 4] });
    grid.prove(&poster, 8, 1);
    let call = Reservations::settleManyCall { ids: vec![1, 2, 3, 4] };
    measured.push(("settle four", grid.must(&user, contract, call).gas_used));
    grid.prove(&poster, 16, 1);
    let receipt = grid.must(&user, contract, Reservations::settleCall { id: 1 });
    measured.push(("settle one", receipt.gas_used));
    grid.must(&user, contract, Reservations::closeCall { id: 2 });
    grid.prove(&poster, 24, 1);
    grid.prove(&poster, 32, 1);
    let receipt = grid.must(&user, contract, Reservations::reclaimCall { id: 2 });
    measured.push(("reclaim a closed one", receipt.gas_used));
    let call = Reservations::withdrawCall { farm: 1, token: 0 };
    grid.must(&owner, contract, call.clone());
    grid.must(&user, contract, Reservations::settleCall { id: 3 });
    measured.push(("withdraw income", grid.must(&owner, contract, call).gas_used));
}

fn runs(measured: &mut Vec<(&'static str, u64)>) {
    let mut grid = Grid::new();
    let owner = key(1);
    grid.farm(&owner);
    grid.node(&owner, 1, &key(10));
    grid.node(&owner, 1, &key(11));
    let reporter = key(3);
    grid.fund(&reporter, tokens(100));
    let run = Run::with_a_lie(1 << 20, 77_777);
    let receipt = run.report(&mut grid, &reporter, 1, &key(10)).unwrap();
    measured.push(("segment fraud, two paths of 20, 1000 steps", receipt.gas_used));
    disputes::measure(&mut grid, &reporter, measured);
}
