//! Juries over epochs, whose seats are drawn by stake and its age; witnesses that say two things.

use alloy_sol_types::sol;
use hypha_chain::contracts::{Capacity, Registry};
use hypha_chain::key::Key;
use hypha_chain::message::{Reader, sign};
use hypha_chain::{Bytes, U256};

use crate::grid::{CHAIN_ID, Content, Grid, Posted, WINDOW, event, key, tokens, verdict};

sol! {
    struct PulseVerdict {
        uint32 node; uint64 pulse; uint16 threads; uint32 memMiB; uint64 diskMiB; uint16 fillerDraws;
    }
}

pub(crate) const AGGREGATOR: u8 = 2;
pub(crate) const APPELLANT: u8 = 3;

pub(crate) fn signer(node: u32) -> Key {
    key(100 + node as u8)
}

/// Four nodes with 1000 tokens each, and a posted epoch.
pub(crate) fn grid() -> (Grid, Posted) {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    for node in 1..=4 {
        assert_eq!(grid.node(&key(1), 1, &signer(node)), node);
    }
    grid.aggregator(&key(AGGREGATOR));
    grid.fund(&key(APPELLANT), tokens(500));
    let content = Content::new((1..=4).map(|node| verdict(node, 5)), &[0]);
    let posted = grid.post(&key(AGGREGATOR), 0, &content);
    (grid, posted)
}

/// An appeal whose jury is seated.
pub(crate) fn appeal(grid: &mut Grid, posted: &Posted) -> Capacity::Demanded {
    let call = Capacity::appealCall { posted: posted.clone() };
    let appeal = event(&grid.must(&key(APPELLANT), grid.suite.capacity, call));
    grid.must(&key(9), grid.suite.capacity, seat(&appeal));
    appeal
}

fn seat(appeal: &Capacity::Demanded) -> Capacity::seatCall {
    Capacity::seatCall {
        it: appeal.demand.clone(),
        postedAt: appeal.posted.postedAt,
        aggregator: appeal.posted.aggregator,
    }
}

fn vote(appeal: &Capacity::Demanded, node: u32, is_true: bool) -> Capacity::voteCall {
    Capacity::voteCall {
        it: appeal.demand.clone(),
        postedAt: appeal.posted.postedAt,
        aggregator: appeal.posted.aggregator,
        node,
        isTrue: is_true,
    }
}

fn decide(appeal: &Capacity::Demanded) -> Capacity::decideCall {
    Capacity::decideCall { it: appeal.demand.clone(), posted: appeal.posted.clone() }
}

pub(crate) fn seats(grid: &Grid, appeal: &Capacity::Demanded, node: u32) -> u128 {
    let call = Capacity::seatsOfCall { it: appeal.demand.clone(), node };
    grid.view(grid.suite.capacity, call).to()
}

fn votes(grid: &Grid, appeal: &Capacity::Demanded) -> (u128, u128) {
    let votes = grid.view(grid.suite.capacity, Capacity::votesCall(appeal.demand.id));
    (votes.upheld, votes.rejected)
}

#[test]
fn an_epoch_that_more_seats_are_against_is_void() {
    let (mut grid, posted) = grid();
    let capacity = grid.suite.capacity;
    let before = grid.balance(key(APPELLANT).address());
    let appeal = appeal(&mut grid, &posted);
    assert_eq!(grid.balance(key(APPELLANT).address()), before - tokens(100));
    // Three nodes of four are against it, each with all its seats at once.
    let mut cast = [0, 0];
    for node in 1..=4 {
        let seats = seats(&grid, &appeal, node);
        assert!((63..=65).contains(&seats), "a fourth of 256, not {seats}");
        let receipt = grid.must(&signer(node), capacity, vote(&appeal, node, node == 3));
        let voted = event::<Capacity::Voted>(&receipt);
        assert_eq!((voted.node, voted.isTrue, voted.seats), (node, node == 3, seats));
        cast[usize::from(node == 3)] += seats;
    }
    assert_eq!(votes(&grid, &appeal), (cast[1], cast[0]));
    grid.refuses(&key(9), capacity, decide(&appeal), "TooEarly");
    grid.advance(3601);
    grid.must(&key(9), capacity, decide(&appeal));
    // Its own back, and a tenth of the aggregator's.
    assert_eq!(grid.balance(key(APPELLANT).address()), before + tokens(100));
    grid.refuses(&key(9), capacity, decide(&appeal), "Unknown");
    let said = Capacity::requireFinalCall { posted: appeal.posted.clone() };
    let said = grid.try_call(key(9).address(), capacity, &said).unwrap_err();
    assert!(said.contains("UnknownEpoch"), "{said}");
}

#[test]
fn an_epoch_that_is_upheld_stands_and_the_appeal_costs_its_bond() {
    // Also one that nobody votes on, and a tie.
    for voters in [3, 2, 0] {
        let (mut grid, posted) = grid();
        let capacity = grid.suite.capacity;
        let before = grid.balance(key(AGGREGATOR).address());
        let appeal = appeal(&mut grid, &posted);
        // Two that have as many seats.
        let has = |node| seats(&grid, &appeal, node);
        let pairs = [(1, 2), (2, 3), (3, 4), (1, 3), (2, 4), (1, 4)];
        let (one, other) = pairs.into_iter().find(|(a, b)| has(*a) == has(*b)).unwrap();
        let third = (1..=4).find(|node| ![one, other].contains(node)).unwrap();
        for (node, is_true) in [(one, true), (other, false), (third, true)].into_iter().take(voters)
        {
            grid.must(&signer(node), capacity, vote(&appeal, node, is_true));
        }
        let (upheld, rejected) = votes(&grid, &appeal);
        assert_eq!((upheld > rejected, upheld == rejected), (voters == 3, voters < 3));
        grid.advance(WINDOW);
        let open = Capacity::requireFinalCall { posted: appeal.posted.clone() };
        let said = grid.try_call(key(9).address(), capacity, &open).unwrap_err();
        assert!(said.contains("NotFinal"), "an appeal is open: {said}");
        let receipt = grid.must(&key(9), capacity, decide(&appeal));
        assert_eq!(grid.balance(key(AGGREGATOR).address()), before + tokens(100));
        let answered = event::<Capacity::DemandAnswered>(&receipt);
        assert_eq!(answered.posted, posted);
        grid.must(&key(9), capacity, Capacity::requireFinalCall { posted });
    }
}

#[test]
fn only_who_has_seats_votes_once_in_time() {
    let (mut grid, posted) = grid();
    let capacity = grid.suite.capacity;
    let appeal = appeal(&mut grid, &posted);
    grid.refuses(&signer(2), capacity, vote(&appeal, 1, true), "NotTheNode");
    let mut wrong = vote(&appeal, 1, true);
    wrong.it.index ^= 1 << 40;
    grid.refuses(&signer(1), capacity, wrong, "Unknown");
    grid.must(&signer(1), capacity, vote(&appeal, 1, true));
    grid.refuses(&signer(1), capacity, vote(&appeal, 1, false), "HasVoted");
    // Who came after the epoch has no seat, nor who was never there.
    let late = grid.node(&key(1), 1, &signer(5));
    assert_eq!(seats(&grid, &appeal, late), 0);
    grid.refuses(&signer(5), capacity, vote(&appeal, late, true), "NoSeat");
    grid.refuses(&signer(6), capacity, vote(&appeal, 6, true), "NotTheNode");
    // Nor who has ended, nor under a key that was replaced.
    grid.must(&key(1), grid.suite.registry, Registry::retireCall { node: 2 });
    grid.refuses(&signer(2), capacity, vote(&appeal, 2, true), "NoSeat");
    // A demand that somebody opens meanwhile stops no vote.
    let call = Capacity::demandCall { posted: appeal.posted.clone(), tree: 0, index: 0 };
    let demanded = event::<Capacity::Demanded>(&grid.must(&key(APPELLANT), capacity, call));
    grid.must(&signer(3), capacity, vote(&appeal, 3, true));
    grid.advance(3600);
    grid.refuses(&signer(4), capacity, vote(&appeal, 4, true), "TooLate");
    // The unanswered demand voids; the appeal's bond comes back.
    let call = Capacity::voidWithheldCall { it: demanded.demand, posted: demanded.posted.clone() };
    grid.must(&key(9), capacity, call);
    let before = grid.balance(key(APPELLANT).address());
    let call = Capacity::reclaimDemandCall {
        it: appeal.demand.clone(),
        postedAt: posted.postedAt,
        aggregator: posted.aggregator,
    };
    grid.must(&key(9), capacity, call);
    assert_eq!(grid.balance(key(APPELLANT).address()), before + tokens(100));
}

#[test]
fn a_jury_is_drawn_once_by_a_later_seed_and_in_time_for_the_vote() {
    let (mut grid, posted) = grid();
    let capacity = grid.suite.capacity;
    let call = Capacity::appealCall { posted: posted.clone() };
    let first: Capacity::Demanded = event(&grid.must(&key(APPELLANT), capacity, call));
    grid.refuses(&signer(1), capacity, vote(&first, 1, true), "NotSeated");
    let seated: Capacity::Seated = event(&grid.must(&key(9), capacity, seat(&first)));
    let total = Registry::totalWeightCall { instant: U256::from(grid.start() + 3600) };
    assert_eq!(grid.view(grid.suite.registry, total), U256::from(seated.weight.to::<u128>()));
    let drawn = [1, 2, 3, 4].map(|node| seats(&grid, &first, node));
    // Whoever does not like it can't draw again.
    grid.must(&key(APPELLANT), capacity, seat(&first));
    let jury = grid.view(capacity, Capacity::juryCall(first.demand.id));
    assert_eq!((jury.seed, jury.weight), (seated.seed, seated.weight));
    assert_eq!([1, 2, 3, 4].map(|node| seats(&grid, &first, node)), drawn);
    let mut false_round = seat(&first);
    false_round.it.index -= 1;
    grid.refuses(&key(9), capacity, false_round, "Unknown");
    // A jury that comes late would have no time; without votes the epoch is upheld.
    let call = Capacity::appealCall { posted: first.posted.clone() };
    let second: Capacity::Demanded = event(&grid.must(&key(APPELLANT), capacity, call));
    grid.advance(600);
    grid.refuses(&key(APPELLANT), capacity, seat(&second), "TooLate");
    grid.advance(3001);
    let before = grid.balance(key(AGGREGATOR).address());
    grid.must(&key(9), capacity, decide(&second));
    assert_eq!(grid.balance(key(AGGREGATOR).address()), before + tokens(100));
}

#[test]
fn an_appeal_is_neither_answered_by_a_leaf_nor_a_demand_by_votes() {
    let (mut grid, posted) = grid();
    let capacity = grid.suite.capacity;
    let call = Capacity::demandCall { posted: posted.clone(), tree: 2, index: 0 };
    grid.refuses(&key(APPELLANT), capacity, call, "WrongAnswer");
    let appeal = appeal(&mut grid, &posted);
    let content = Content::new((1..=4).map(|node| verdict(node, 5)), &[0]);
    let answer = Capacity::answerDemandCall {
        it: appeal.demand.clone(),
        posted: appeal.posted.clone(),
        count: 1,
        leaf: crate::grid::reward_leaf(1, 0).into(),
        path: content.rewards.path(0).unwrap(),
    };
    grid.refuses(&key(9), capacity, answer, "WrongAnswer");
    let call = Capacity::demandCall { posted: appeal.posted.clone(), tree: 0, index: 0 };
    let demanded = event::<Capacity::Demanded>(&grid.must(&key(APPELLANT), capacity, call));
    let mut as_demand = vote(&appeal, 1, false);
    as_demand.it = demanded.demand.clone();
    grid.refuses(&signer(1), capacity, as_demand, "Unknown");
    grid.advance(3601);
    let silence =
        Capacity::voidWithheldCall { it: appeal.demand.clone(), posted: demanded.posted.clone() };
    grid.refuses(&key(9), capacity, silence, "WrongAnswer");
    let call = Capacity::decideCall { it: demanded.demand, posted: demanded.posted };
    grid.refuses(&key(9), capacity, call, "WrongAnswer");
}

#[test]
fn two_verdicts_of_one_witness_on_one_pulse_cost_all_its_stake() {
    let (mut grid, _) = grid();
    let capacity = grid.suite.capacity;
    let domain = Reader::Capacity.domain(CHAIN_ID, capacity);
    let found = |threads: u16| Capacity::Found { threads, memMiB: 2, diskMiB: 3, fillerDraws: 4 };
    let signed = |by: &Key, pulse: u64, threads: u16| -> Bytes {
        let verdict =
            PulseVerdict { node: 4, pulse, threads, memMiB: 2, diskMiB: 3, fillerDraws: 4 };
        sign(&verdict, &domain, by).to_bytes().into()
    };
    let call = |found: [Capacity::Found; 2], first: Bytes, second: Bytes| {
        Capacity::falseWitnessCall { witness: 1, node: 4, pulse: 9, found, first, second }
    };
    let (one, two) = (signed(&signer(1), 9, 1), signed(&signer(1), 9, 2));
    let same = call([found(1), found(1)], one.clone(), one.clone());
    grid.refuses(&key(9), capacity, same, "NoContradiction");
    let others = call([found(1), found(2)], one.clone(), signed(&signer(2), 9, 2));
    grid.refuses(&key(9), capacity, others, "NotTheNode");
    let elsewhere = call([found(1), found(2)], one.clone(), signed(&signer(1), 8, 2));
    grid.refuses(&key(9), capacity, elsewhere, "NotTheNode");
    grid.must(&key(9), capacity, call([found(1), found(2)], one.clone(), two.clone()));
    assert_eq!(grid.view(grid.suite.registry, Registry::stakeOfCall { node: 1 }), U256::ZERO);
    assert_eq!(grid.balance(key(9).address()), tokens(100));
    let again = call([found(1), found(2)], one, two);
    grid.refuses(&key(9), capacity, again, "NoContradiction");
}

/// Gas of an appeal, of seating its jury, of one vote and of the decision.
pub(crate) fn gas() -> [u64; 4] {
    let (mut grid, posted) = grid();
    let capacity = grid.suite.capacity;
    let call = Capacity::appealCall { posted };
    let receipt = grid.must(&key(APPELLANT), capacity, call);
    let appeal: Capacity::Demanded = event(&receipt);
    let seated = grid.must(&key(9), capacity, seat(&appeal)).gas_used;
    grid.must(&signer(1), capacity, vote(&appeal, 1, true));
    let vote = grid.must(&signer(2), capacity, vote(&appeal, 2, true)).gas_used;
    grid.advance(3601);
    let decision = grid.must(&key(9), capacity, decide(&appeal)).gas_used;
    [receipt.gas_used, seated, vote, decision]
}
