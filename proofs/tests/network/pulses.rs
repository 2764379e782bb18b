//! Pulses in a network: who answers, who says what, and what reaches everybody.

use fastrand::Rng;
use hypha_chain::B256;
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::ledger::{Closing, Ledger, Terms, Weights};
use hypha_proofs::network::participant::Evidence;
use hypha_proofs::network::roster::Roster;
use hypha_proofs::network::schedule::Pulse;
use hypha_proofs::network::statement::Content;
use hypha_proofs::network::witness::{Duty, WITNESSES, drawn};
use hypha_proofs::verifier::PulseVerdict;

use crate::world::{Manner, RULES, SECOND, START, TOKEN, World, pulse, settings};

/// All that a node's pool of epoch 0 says about another node.
fn verdicts(world: &World, node: u32, about: u32) -> Vec<PulseVerdict> {
    let pool = world.peers[&node].participant.pool(0).unwrap();
    let verdicts = pool.clear().filter_map(|it| match &it.content {
        Content::Verdict(verdict) if verdict.node == about => Some(verdict.clone()),
        _ => None,
    });
    verdicts.collect()
}

fn is_whole(verdict: &PulseVerdict) -> bool {
    (verdict.threads, verdict.memMiB, verdict.diskMiB) == (2, 1, 2)
}

/// What a node makes of epoch 0.
fn close(world: &World, node: u32, roster: &Roster) -> EpochData {
    let participant = &world.peers[&node].participant;
    let terms = Terms {
        emission: 1000 * TOKEN,
        cap: 1_000_000 * TOKEN,
        disk_draws: RULES.disk_draws,
        measured_per_mille: settings().measured_per_mille,
        weights: Weights::STANDARD,
    };
    let count = roster.members().len() as u32;
    let closing = Closing {
        epoch: 0,
        ends_secs: START + 3600,
        counts: (count, count),
        roster,
        pulses: participant.pulses(0),
        pool: participant.pool(0).unwrap(),
    };
    Ledger::default().close(&terms, &closing).unwrap()
}

#[test]
fn each_node_has_seven_verdicts_and_everybody_has_all_of_them() {
    let mut world = World::new(12, 1);
    let roster = world.roster(|node| node);
    world.epoch(0, &roster);
    world.pulse(&pulse(0, 0));
    world.run(25 * SECOND);
    for (node, peer) in &world.peers {
        for about in world.peers.keys() {
            let verdicts = verdicts(&world, *node, *about);
            assert_eq!(verdicts.len(), WITNESSES, "seed {}: {node} of {about}", world.seed);
            assert!(verdicts.iter().all(is_whole), "seed {}: {verdicts:?}", world.seed);
        }
        assert_eq!(peer.evidence.len(), 0);
    }
}

#[test]
fn each_behaviour_costs_who_behaves_so_and_nobody_else() {
    for seed in [2, 3] {
        let mut world = World::new(16, seed);
        world.lost_per_mille = 50;
        let manners = [Manner::Idle, Manner::Silent, Manner::Late, Manner::Forgetful];
        for (node, manner) in [3, 6, 9, 12].into_iter().zip(manners) {
            world.peers.get_mut(&node).unwrap().manner = manner;
        }
        let roster = world.roster(|node| node);
        world.epoch(0, &roster);
        world.pulse(&pulse(0, 0));
        world.run(40 * SECOND);
        let first = close(&world, 1, &roster);
        for node in world.nodes().into_iter().filter(|node| *node != 6) {
            let data = close(&world, node, &roster);
            assert_eq!(data, first, "seed {seed}: node {node} has other statements");
        }
        for leaf in &first.verdicts {
            // All that a node can prove comes from five others: with one of sixteen silent, all do.
            let answered = u16::from(![3, 6, 9].contains(&leaf.node));
            assert_eq!((leaf.pulses, leaf.answered), (1, answered), "seed {seed}: {leaf:?}");
            let memory = u32::from(answered == 1 && leaf.node != 12);
            assert_eq!(leaf.caps.mem_mib, memory, "seed {seed}: {leaf:?}");
        }
        let sums: Vec<u128> = first.rewards.iter().map(|it| it.cumulative).collect();
        assert_eq!((sums[2], sums[5], sums[8]), (0, 0, 0), "seed {seed}");
        assert!(0 < sums[11] && sums[11] < sums[0], "seed {seed}: {sums:?}");
        assert_eq!(sums.iter().sum::<u128>() + first.ledger.carry, 1000 * TOKEN);
        let evidence: Vec<&Evidence> = world.peers.values().flat_map(|it| &it.evidence).collect();
        assert!(evidence.is_empty(), "seed {seed}: {evidence:?}");
    }
}

#[test]
fn statements_reach_everybody_though_a_third_of_all_messages_is_lost() {
    for seed in [10, 11] {
        let mut world = World::new(30, seed);
        let roster = world.roster(|node| node);
        world.epoch(0, &roster);
        world.pulse(&pulse(0, 0));
        // The answers come; what is said of them does not.
        world.run(4 * SECOND);
        world.lost_per_mille = 333;
        world.run(60 * SECOND);
        let pool = |node: u32| world.peers[&node].participant.pool(0).unwrap();
        assert!(pool(1).len() > 30 * 5, "seed {seed}: {} statements", pool(1).len());
        for node in world.nodes() {
            assert_eq!(pool(node).digest(), pool(1).digest(), "seed {seed}: node {node}");
        }
    }
}

#[test]
fn who_was_away_for_the_whole_pulse_gets_all_that_was_said() {
    let mut world = World::new(12, 5);
    world.peers.get_mut(&4).unwrap().manner = Manner::Silent;
    let roster = world.roster(|node| node);
    world.epoch(0, &roster);
    let pulse = pulse(0, 0);
    world.pulse(&pulse);
    world.run(30 * SECOND);
    world.restart(4, &roster);
    world.peers.get_mut(&4).unwrap().participant.on_past_pulse(&pulse);
    world.run(20 * SECOND);
    let pool = |node: u32| world.peers[&node].participant.pool(0).unwrap();
    assert!(pool(1).len() >= 11 * 5);
    assert_eq!(pool(4).digest(), pool(1).digest());
    assert_eq!(close(&world, 4, &roster), close(&world, 1, &roster));
}

#[test]
fn a_witness_that_says_two_things_is_found_out_by_all_and_counts_for_nothing() {
    let mut world = World::new(12, 6);
    let roster = world.roster(|node| node);
    world.epoch(0, &roster);
    let pulse = pulse(0, 0);
    world.pulse(&pulse);
    world.run(25 * SECOND);
    let liar = drawn(&roster, &pulse.challenge, Duty::Witness, 1)[0];
    // It tells one node that another has more.
    let mut verdict = verdicts(&world, 1, 1).remove(0);
    verdict.diskMiB += 1000;
    world.say(liar, 5, Content::Verdict(verdict));
    world.run(20 * SECOND);
    for node in world.nodes().into_iter().filter(|node| *node != liar) {
        let pool = world.peers[&node].participant.pool(0).unwrap();
        let (a, b) = pool.contradictions().next().unwrap();
        assert_eq!((a.author, b.author, pool.contradictions().count()), (liar, liar, 1));
        assert_eq!(verdicts(&world, node, 1).len(), WITNESSES - 1);
        let evidence = &world.peers[&node].evidence;
        assert!(matches!(evidence.as_slice(), [Evidence::Statements(_)]), "node {node}");
    }
    assert_eq!(close(&world, 2, &roster).verdicts[0].answered, 1, "six are left");
}

#[test]
fn nobody_speaks_for_another_and_nobody_speaks_undrawn() {
    let mut world = World::new(20, 7);
    let roster = world.roster(|node| node);
    world.epoch(0, &roster);
    let pulse = pulse(0, 0);
    world.pulse(&pulse);
    world.run(25 * SECOND);
    let before = world.peers[&5].participant.pool(0).unwrap().digest();
    let verdict = PulseVerdict {
        node: 1,
        pulse: pulse.challenge.pulse,
        threads: 9,
        memMiB: 9,
        diskMiB: 9,
        fillerDraws: 9,
    };
    let witnesses = drawn(&roster, &pulse.challenge, Duty::Witness, 1);
    let outsider = (2..=20).find(|node| !witnesses.contains(node)).unwrap();
    // Undrawn; drawn but signed by another; about a pulse that never was; about nobody.
    world.say(outsider, 5, Content::Verdict(verdict.clone()));
    world.forge(witnesses[0], outsider, 5, Content::Verdict(verdict.clone()));
    world.say(witnesses[0], 5, Content::Verdict(PulseVerdict { pulse: 77, ..verdict.clone() }));
    world.say(witnesses[0], 5, Content::Verdict(PulseVerdict { node: 99, ..verdict }));
    world.run(10 * SECOND);
    assert_eq!(world.peers[&5].participant.pool(0).unwrap().digest(), before);
}

#[test]
fn lines_are_measured_and_a_slow_one_is_found_slow() {
    let mut world = World::new(14, 8);
    world.settings.measured_per_mille = 1000;
    world.rebuild();
    // A fifth of what it claims.
    world.slow = Some((3, 5));
    let roster = world.roster(|node| node);
    world.epoch(0, &roster);
    world.pulse(&pulse(0, 0));
    world.run(45 * SECOND);
    let terms = Terms {
        emission: 1000 * TOKEN,
        cap: 1_000_000 * TOKEN,
        disk_draws: RULES.disk_draws,
        measured_per_mille: 1000,
        weights: Weights::STANDARD,
    };
    let participant = &world.peers[&1].participant;
    let closing = Closing {
        epoch: 0,
        ends_secs: START + 3600,
        counts: (14, 14),
        roster: &roster,
        pulses: participant.pulses(0),
        pool: participant.pool(0).unwrap(),
    };
    let data = Ledger::default().close(&terms, &closing).unwrap();
    for leaf in &data.verdicts {
        // All measure each other at once here, so lines are busy; never is one found faster.
        let range = if leaf.node == 3 { 12..=20 } else { 50..=100 };
        assert!(range.contains(&leaf.caps.mbps), "{leaf:?}");
    }
}

#[test]
fn garbage_and_replays_change_nothing_and_are_paid_for() {
    let mut world = World::new(10, 9);
    let roster = world.roster(|node| node);
    world.epoch(0, &roster);
    world.record = true;
    world.pulse(&pulse(0, 0));
    world.run(25 * SECOND);
    let digest = |world: &World| world.peers[&2].participant.pool(0).unwrap().digest();
    let before = (digest(&world), world.peers[&2].sent_bytes);
    let recorded = std::mem::take(&mut world.recorded);
    world.record = false;
    let mut rng = Rng::with_seed(9);
    for _ in 0..5_000 {
        let mut bytes = rng.choice(&recorded).unwrap().clone();
        if rng.bool() {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(..8);
        }
        world.send(7, 2, bytes);
    }
    world.run(2 * SECOND);
    assert_eq!(digest(&world), before.0);
    let sent = world.peers[&2].sent_bytes - before.1;
    assert!(sent < 10 << 20, "{sent} bytes were got out of it");
    assert!(world.peers[&2].evidence.is_empty());
}

#[test]
fn a_second_commitment_to_one_pulse_is_evidence() {
    let mut world = World::new(10, 12);
    let roster = world.roster(|node| node);
    world.epoch(0, &roster);
    let pulse = pulse(0, 0);
    world.pulse(&pulse);
    world.run(6 * SECOND);
    let witness = drawn(&roster, &pulse.challenge, Duty::Witness, 4)[0];
    world.commit_again(4, witness, &pulse, B256::repeat_byte(1));
    world.run(SECOND);
    let evidence = &world.peers[&witness].evidence;
    let [Evidence::Answers(both)] = evidence.as_slice() else { panic!("{evidence:?}") };
    assert_ne!(both[0].commitment, both[1].commitment);
    assert!(both.iter().all(|it| it.commitment.node == 4));
}

#[test]
fn the_same_seed_is_the_same_network() {
    let run = |seed: u64| {
        let mut world = World::new(10, seed);
        world.lost_per_mille = 100;
        let roster = world.roster(|node| node);
        world.epoch(0, &roster);
        let pulses: Vec<Pulse> = (0..2).map(|number| pulse(0, number)).collect();
        for pulse in &pulses {
            world.pulse(pulse);
            world.run(30 * SECOND);
        }
        let sent: Vec<u64> = world.peers.values().map(|peer| peer.sent_bytes).collect();
        (close(&world, 1, &roster).encode(), sent)
    };
    assert_eq!(run(13), run(13));
    assert_ne!(run(13).1, run(14).1);
}

#[test]
fn cheap_filler_is_found_by_one_and_counts_nothing_for_a_month() {
    let mut world = World::new(10, 15);
    world.settings.regenerate_ns = SECOND;
    world.plot(&[4]);
    world.rebuild();
    let roster = world.roster(|node| node);
    world.epoch(0, &roster);
    // Found in a pulse, inspected in the next.
    for number in 0..6 {
        world.pulse(&pulse(0, number));
        world.run(40 * SECOND);
    }
    let said = |content: fn(&Content) -> bool| {
        let pool = world.peers[&1].participant.pool(0).unwrap();
        pool.clear().filter(|it| content(&it.content)).count()
    };
    let findings = said(|it| matches!(it, Content::False(finding) if finding.node == 4));
    let others = said(|it| matches!(it, Content::False(finding) if finding.node != 4));
    let agree = said(|it| matches!(it, Content::Inspected(it) if it.node == 4 && !it.isTrue));
    let disagree = said(|it| matches!(it, Content::Inspected(it) if it.isTrue));
    assert!(findings > 0 && others == 0 && disagree == 0, "seed {}", world.seed);
    assert!(agree >= 7, "seed {}: {agree} of nine inspectors", world.seed);
    let data = close(&world, 1, &roster);
    for leaf in &data.verdicts {
        let disk = if leaf.node == 4 { 0 } else { 2 };
        assert_eq!((leaf.answered, leaf.caps.hdd_mib), (6, disk), "{leaf:?}");
    }
    let next = data.ledger;
    assert_eq!(EpochData { ledger: next, ..close(&world, 7, &roster) }, close(&world, 1, &roster));
}

#[test]
fn who_says_that_true_filler_is_false_is_not_believed() {
    let mut world = World::new(10, 16);
    world.settings.regenerate_ns = SECOND;
    world.plot(&[]);
    world.rebuild();
    world.slanderers = vec![2, 7];
    let roster = world.roster(|node| node);
    world.epoch(0, &roster);
    for number in 0..3 {
        world.pulse(&pulse(0, number));
        world.run(60 * SECOND);
    }
    let pool = world.peers[&1].participant.pool(0).unwrap();
    let findings = pool.clear().filter(|it| matches!(it.content, Content::False(_)));
    let authors: Vec<u32> = findings.map(|it| it.author).collect();
    assert!(!authors.is_empty() && authors.iter().all(|it| [2, 7].contains(it)), "{authors:?}");
    let data = close(&world, 1, &roster);
    assert!(data.verdicts.iter().all(|leaf| leaf.caps.hdd_mib == 2), "{:?}", data.verdicts);
}
