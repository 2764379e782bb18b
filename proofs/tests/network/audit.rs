//! Posted epochs, judged by the statements that are shown with them.

use hypha_proofs::network::audit::{JURY, Jury, Known, Objection, Posted};
use hypha_proofs::network::epoch::{Difference, EpochData};
use hypha_proofs::network::ledger::{CloseError, Ledger};
use hypha_proofs::network::pool::Pool;
use hypha_proofs::network::roster::Roster;
use hypha_proofs::network::schedule::Pulse;
use hypha_proofs::network::statement::Content;
use hypha_proofs::network::witness::{Duty, drawn};

use crate::ledger::{Sayings, closing, found, members, roster, terms};
use crate::world::pulse;

/// All that is said of an epoch's one pulse, but what some witnesses say of node 1.
fn pool(roster: &Roster, pulse: &Pulse, of_node_1: usize) -> Pool {
    let mut sayings = Sayings::new();
    for node in 2..=12 {
        sayings.verdicts(roster, pulse, &found(node, pulse, 2), 7);
    }
    sayings.verdicts(roster, pulse, &found(1, pulse, 2), of_node_1);
    sayings.pool
}

fn posted(data: &EpochData) -> Posted {
    let post = data.post().unwrap();
    Posted { verdict_root: post.verdictRoot, reward_root: post.rewardRoot, data: post.data }
}

/// What a judge with `ours` objects to data made of `shown` and then changed.
fn judged(
    roster: &Roster,
    (ours, known): (&Pool, &Known),
    shown: &Pool,
    change: impl Fn(&mut EpochData),
) -> Vec<Objection> {
    let pulses = [pulse(0, 0)];
    let closing = closing(0, roster, &pulses, shown);
    let mut data = Ledger::default().close(&terms(), &closing).unwrap();
    change(&mut data);
    let posted = posted(&data);
    Ledger::default().objections(&terms(), &closing, (&posted, &data), (ours, known))
}

#[test]
fn nothing_is_wrong_with_what_follows_from_all_that_was_known_in_time() {
    let roster = roster(members(12));
    let few = pool(&roster, &pulse(0, 0), 4);
    let all = pool(&roster, &pulse(0, 0), 7);
    let known = Known::at(&few);
    // What the judge had late, the aggregator may have or not.
    assert_eq!(judged(&roster, (&all, &known), &few, |_| {}), []);
    assert_eq!(judged(&roster, (&all, &known), &all, |_| {}), []);
    // Nor does it matter what the judge never had.
    assert_eq!(judged(&roster, (&few, &known), &all, |_| {}), []);
}

#[test]
fn whoever_pays_itself_more_is_found_by_the_leaf() {
    let roster = roster(members(12));
    let all = pool(&roster, &pulse(0, 0), 7);
    let known = Known::at(&all);
    let found = judged(&roster, (&all, &known), &all, |data| data.rewards[4].cumulative += 5);
    let [Objection::Differs(Difference::Reward { ours, theirs })] = found[..] else {
        panic!("{found:?}")
    };
    assert_eq!((ours.farm, theirs.cumulative - ours.cumulative), (5, 5));
    let found = judged(&roster, (&all, &known), &all, |data| data.verdicts[2].answered = 0);
    assert!(matches!(
        found[..],
        [Objection::Differs(Difference::Verdict { ours, .. })] if ours.node == 3
    ));
}

#[test]
fn who_leaves_out_what_was_known_in_time_is_found() {
    let roster = roster(members(12));
    let all = pool(&roster, &pulse(0, 0), 7);
    let few = pool(&roster, &pulse(0, 0), 4);
    let known = Known::at(&all);
    let found = judged(&roster, (&all, &known), &few, |_| {});
    let [Objection::LeftOut(id)] = found[..] else { panic!("{found:?}") };
    assert_eq!(all.get(id).unwrap().content.node(), 1);
    // Half of a contradiction, too.
    let pulse = pulse(0, 0);
    let liar = drawn(&roster, &pulse.challenge, Duty::Witness, 2)[0];
    let mut sayings = Sayings::new();
    sayings.say(liar, Content::Verdict(found_again(&pulse)));
    let mut both = all.clone();
    for statement in sayings.pool.clear() {
        both.add(statement.clone());
    }
    assert_eq!(both.contradictions().count(), 1);
    let known = Known::at(&both);
    let found = judged(&roster, (&both, &known), &all, |_| {});
    assert!(matches!(found[..], [Objection::LeftOut(_)]), "{found:?}");
}

fn found_again(pulse: &Pulse) -> hypha_proofs::verifier::PulseVerdict {
    found(2, pulse, 1)
}

#[test]
fn data_that_are_not_the_posted_ones_are_refused() {
    let roster = roster(members(12));
    let all = pool(&roster, &pulse(0, 0), 7);
    let known = Known::at(&all);
    let pulses = [pulse(0, 0)];
    let closing = closing(0, &roster, &pulses, &all);
    let data = Ledger::default().close(&terms(), &closing).unwrap();
    let mut other = posted(&data);
    other.reward_root = other.verdict_root;
    let found = Ledger::default().objections(&terms(), &closing, (&other, &data), (&all, &known));
    assert_eq!(found, [Objection::OtherData]);
    // Statements that the data don't name.
    let found = judged(&roster, (&all, &known), &all, |data| data.statements.0[0] ^= 1);
    assert!(found.contains(&Objection::OtherStatements), "{found:?}");
    // A judge who is behind says so and nothing else.
    let found = data.ledger.objections(&terms(), &closing, (&posted(&data), &data), (&all, &known));
    let behind = CloseError::Order { next: 1, given: 0 };
    assert_eq!(found, [Objection::Unclosed(behind)]);
}

fn seats(jury: &Jury, weights: impl IntoIterator<Item = u128>) -> u128 {
    (1..).zip(weights).map(|(node, weight)| jury.seats_of(node, weight)).sum()
}

#[test]
fn a_jurys_seats_are_shared_by_weight() {
    let jury = Jury { id: 3, seed: [0xde; 20], weight: 1000 };
    // Whole seats are not drawn, of broken ones each is drawn or not.
    assert_eq!(jury.seats_of(1, 1000), JURY.into());
    assert_eq!(jury.seats_of(2, 500), u128::from(JURY / 2));
    assert_eq!(jury.seats_of(2, 0), 0);
    for node in 0..100 {
        assert!((128..=129).contains(&jury.seats_of(node, 501)), "128.256");
    }
    assert_eq!(Jury { weight: 0, ..jury }.seats_of(1, 5), 0);
    // Who weighs more than all, because the sum was taken later, has more than all seats.
    assert_eq!(jury.seats_of(1, 3000), 3 * u128::from(JURY));
    assert_eq!(Jury { weight: 1, ..jury }.seats_of(1, u128::MAX), u128::MAX);
}

/// Made by an independent program, which has its own keccak-256. The test of the contracts' numbers is in
/// `chain.rs`.
#[test]
fn seats_are_those_that_were_recorded() {
    let jury = Jury { id: 3, seed: [0xde; 20], weight: 1_000_003 };
    let seats: Vec<u128> =
        (1..=12).map(|node| jury.seats_of(node, u128::from(node) * 7001)).collect();
    assert_eq!(seats, [2, 4, 6, 7, 9, 10, 12, 14, 16, 18, 20, 21]);
}

#[test]
fn a_stake_that_is_divided_among_many_nodes_has_no_more_seats() {
    // A third of all weight, in 1 to 100,000 nodes: 85.3 seats in the mean of juries.
    let (weight, juries) = (300_000_000_u128, 50);
    for parts in [1, 10, 1000, 100_000_u128] {
        let of_juries = (0..juries).map(|id| {
            let jury = Jury { id, seed: [7; 20], weight };
            seats(&jury, (0..parts).map(|_| weight / 3 / parts))
        });
        let sum: u128 = of_juries.sum();
        let mean = sum as f64 / juries as f64;
        // Of single drawn seats the mean of 50 sums scatters by the root of 85.3 / 50.
        assert!((mean - 85.33).abs() < 4.0, "{mean} seats with {parts} nodes");
    }
}
