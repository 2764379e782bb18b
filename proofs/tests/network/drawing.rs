//! Who is drawn: by weight, apart from each other, and the same for everybody.

use fastrand::Rng;
use hypha_chain::{U256, keccak256};
use hypha_proofs::Challenge;
use hypha_proofs::network::roster::{Member, Place, Roster};
use hypha_proofs::network::witness::{CHALLENGERS, Duty, WITNESSES, drawn, is_measured, quorum};

use crate::world::{START, TOKEN, member};

fn challenge(number: u64) -> Challenge {
    Challenge { pulse: number, seed: keccak256(number.to_be_bytes()) }
}

fn roster(members: Vec<Member>) -> Roster {
    Roster::new(members, START).unwrap()
}

fn network(rng: &mut Rng, nodes: u32, farms: u32) -> Vec<Member> {
    (1..=nodes)
        .map(|node| {
            let mut it = member(node, rng.u32(1..=farms), None);
            it.stake = U256::from(u128::from(rng.u32(..2000)) * TOKEN);
            it.since_secs = START - rng.u64(..86_400 * 400);
            let address = std::net::Ipv4Addr::new(10, 0, rng.u8(..60), rng.u8(..)).into();
            let asn = rng.bool().then(|| rng.u32(1..30));
            it.place = (rng.u8(..4) > 0).then_some(Place { address, asn });
            it
        })
        .collect()
}

#[test]
fn witnesses_are_apart_from_the_node_and_from_each_other_in_any_network() {
    let seed = 20_261_121;
    let mut rng = Rng::with_seed(seed);
    for round in 0..300 {
        let (nodes, farms) = (rng.u32(1..120), rng.u32(1..40));
        let roster = roster(network(&mut rng, nodes, farms));
        let node = rng.u32(1..=nodes);
        let watched = roster.member(node).unwrap();
        for duty in [Duty::Witness, Duty::Challenger] {
            let found = drawn(&roster, &challenge(round), duty, node);
            assert!(found.len() <= if duty == Duty::Witness { WITNESSES } else { CHALLENGERS });
            let found: Vec<&Member> = found.iter().map(|it| roster.member(*it).unwrap()).collect();
            let network = |it: &Member| {
                it.place.map(|place| match place.address {
                    std::net::IpAddr::V4(address) => address.octets()[2],
                    std::net::IpAddr::V6(_) => unreachable!("there are none"),
                })
            };
            let apart = |a: &Member, b: &Member| {
                a.farm != b.farm && (network(a).is_none() || network(a) != network(b))
            };
            for (at, one) in found.iter().enumerate() {
                let system = |it: &Member| it.place.and_then(|place| place.asn);
                assert!(apart(one, watched), "seed {seed} round {round}");
                assert!(system(one).is_none() || system(one) != system(watched));
                assert!(one.weight(START) > 0, "seed {seed} round {round}");
                assert!(found.iter().skip(at + 1).all(|other| apart(one, other)));
            }
            // In so small a network all are looked at: whoever is missing could not be added.
            if found.len() < WITNESSES {
                let system = |it: &Member| it.place.and_then(|place| place.asn);
                let left = roster.members().iter().filter(|it| {
                    it.weight(START) > 0
                        && apart(it, watched)
                        && (system(it).is_none() || system(it) != system(watched))
                        && found.iter().all(|other| apart(it, other))
                });
                assert_eq!(left.count(), 0, "seed {seed} round {round}");
            }
        }
    }
}

#[test]
fn who_has_more_stake_and_is_older_watches_oftener_in_that_proportion() {
    let mut members: Vec<Member> = (1..=400).map(|node| member(node, node, None)).collect();
    members[10].stake = U256::from(4000 * TOKEN);
    members[20].since_secs = START - 86_400 * 123;
    members[30].stake = U256::from(TOKEN / 2);
    let roster = roster(members);
    assert_eq!(roster.members()[0].weight(START), 31_000);
    assert_eq!(roster.members()[10].weight(START), 124_000);
    assert_eq!(roster.members()[20].weight(START), 124_000);
    let mut counts = vec![0_u32; 401];
    let pulses = 20_000;
    for pulse in 0..pulses {
        for node in drawn(&roster, &challenge(pulse), Duty::Witness, 1 + pulse as u32 % 10) {
            counts[node as usize] += 1;
        }
    }
    let total: u64 = roster.members().iter().map(|it| it.weight(START)).sum();
    let expected = |node: usize| {
        let weight = roster.members()[node - 1].weight(START) as f64;
        pulses as f64 * WITNESSES as f64 * weight / total as f64
    };
    for node in [11, 21, 50, 100, 200, 400] {
        let (found, expected) = (f64::from(counts[node]), expected(node));
        // No one is drawn twice for one node: the heaviest lose a little of their share.
        assert!((found - expected).abs() < 4.5 * expected.sqrt(), "{node}: {found}, {expected}");
    }
    assert_eq!(counts[31], 0, "half a token is none");
}

#[test]
fn a_draw_ends_whatever_weighs_most() {
    // One farm has all weight but a ten-thousandth: the others are found by looking at all.
    let mut members: Vec<Member> = (1..=20).map(|node| member(node, node, None)).collect();
    members[0].stake = U256::from(100_000_000 * TOKEN);
    let few = roster(members.clone());
    assert_eq!(drawn(&few, &challenge(1), Duty::Witness, 5).len(), WITNESSES);
    // In a large network, draws end and fewer are found.
    members.extend((21..=1000).map(|node| member(node, node, None)));
    members[0].stake = U256::from(4_000_000_000 * TOKEN);
    let many = roster(members);
    let found = drawn(&many, &challenge(1), Duty::Witness, 5);
    assert!(found.contains(&1) && found.len() < WITNESSES, "{found:?}");
}

#[test]
fn few_nodes_have_few_witnesses_and_those_must_agree() {
    let three = roster((1..=3).map(|node| member(node, node, None)).collect());
    for node in 1..=3 {
        let mut found = drawn(&three, &challenge(1), Duty::Witness, node);
        found.sort_unstable();
        let others: Vec<u32> = (1..=3).filter(|other| *other != node).collect();
        assert_eq!(found, others);
    }
    assert!(drawn(&three, &challenge(1), Duty::Witness, 4).is_empty(), "it is not there");
    let one_farm = roster((1..=30).map(|node| member(node, 1, None)).collect());
    assert!(drawn(&one_farm, &challenge(1), Duty::Witness, 4).is_empty());
    let quorums: Vec<Option<usize>> = (0..=10).map(quorum).collect();
    let expected = [0, 1, 2, 3, 3, 4, 5, 5, 6, 7, 8];
    assert_eq!(quorums[1..], expected.map(Some)[1..]);
    assert_eq!(quorums[0], None, "nobody can vouch");
}

#[test]
fn drawing_is_the_recorded_one() {
    let roster = roster((1..=100).map(|node| member(node, node, None)).collect());
    let witnesses = drawn(&roster, &challenge(1), Duty::Witness, 7);
    let challengers = drawn(&roster, &challenge(1), Duty::Challenger, 7);
    assert_eq!(witnesses, [89, 26, 96, 94, 41, 24, 67]);
    assert_eq!(challengers, [9, 52, 87, 24, 41, 17, 83, 43, 79, 16]);
}

#[test]
fn so_many_lines_are_measured_as_are_said() {
    let measured = (0..100_000_u32).filter(|node| is_measured(&challenge(3), *node, 20)).count();
    assert!((1800..2200).contains(&measured), "{measured}");
    assert!((0..1000).all(|node| is_measured(&challenge(3), node, 1000)));
    assert!(!(0..1000).any(|node| is_measured(&challenge(3), node, 0)));
}
