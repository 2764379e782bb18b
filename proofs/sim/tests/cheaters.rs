//! Each cheater before the real verifiers, and before the real contracts.

use hypha_proofs::Rules;
use hypha_proofs::regenerate::Regeneration;
use proof_sim::arena::{Faults, Record, Share, caught_by_formula, play};
use proof_sim::court;
use proof_sim::hardware::Hardware;
use proof_sim::machine::{Claims, Filling, Machine, binding, salt};
use proof_sim::strategy::Strategy;
use proof_sim::study::{convicted, failed, false_faults};
use proof_sim::world::{World, players};

const SEEDS: [u64; 3] = [1, 41, 20_261_121];
/// Machines and lines without faults: what fails is the strategy.
const CALM: Faults = Faults { down: 0, hears_ns: 1, slow: 0 };

fn record(strategy: Strategy, pulses: u64, seed: u64) -> Record {
    play(strategy, &CALM, pulses, seed)
}

/// How many pulses failed of so many.
#[track_caller]
fn fails(strategy: Strategy, pulses: u64, expected: std::ops::RangeInclusive<usize>) {
    for seed in SEEDS {
        let (failed, all) = failed(&record(strategy, pulses, seed));
        assert!(expected.contains(&failed), "{}: {failed} of {all}, seed {seed}", strategy.name());
    }
}

#[test]
fn an_honest_node_proves_all_that_it_has() {
    fails(Strategy::Honest(Claims::ALL), 1, 0..=0);
    for claims in [Claims::CPU, Claims::MEM, Claims::DISK] {
        fails(Strategy::Honest(claims), 2, 0..=0);
    }
}

#[test]
fn a_lost_sector_costs_the_disks_part_of_a_pulse_and_nothing_else() {
    let record = record(Strategy::LostSector, 2, 1);
    for pulse in record.all() {
        assert!(pulse.proven(|seen| seen.cpu && seen.mem));
        assert_eq!(pulse.evidence, 0);
    }
}

#[test]
fn a_slow_line_and_late_blocks_make_no_honest_node_guilty() {
    let faults = Faults { down: 500, slow: 1000, ..Faults::USUAL };
    for seed in SEEDS {
        let record = play(Strategy::Honest(Claims::MEM), &faults, 20, seed);
        assert_eq!(false_faults(&record).0, 0, "seed {seed}");
        assert_eq!(convicted(&record).0, 0, "seed {seed}");
    }
}

#[test]
fn two_identities_on_one_box_prove_one_box() {
    let record = record(Strategy::Sybils(2), 1, 1);
    let proven: Vec<bool> =
        record.pulses.iter().map(|of| of.iter().all(|it| record.whole(it))).collect();
    assert_eq!(proven, [true, false]);
}

#[test]
fn a_core_that_leaves_half_of_its_segments_out_convicts_itself() {
    for strategy in [Strategy::Skipping(30), Strategy::Precomputed] {
        let record = record(strategy, 2, 1);
        assert_eq!(failed(&record), (2, 2));
        assert_eq!(convicted(&record), (2, 2), "{}", strategy.name());
    }
}

#[test]
fn an_answer_that_is_sent_again_proves_nothing() {
    fails(Strategy::Replayed, 1, 1..=1);
}

#[test]
fn twice_the_units_that_are_proposed_are_late_however_fast_a_core_is() {
    for hardware in [Hardware::USUAL, Hardware::FAST] {
        fails(Strategy::Claiming(0, hardware), 1, 0..=0);
        fails(Strategy::Claiming(100, hardware), 1, 1..=1);
    }
    // A core is a unit of hashing: the faster machine claims more.
    assert_eq!((Hardware::USUAL.units(0), Hardware::FAST.units(0)), (23, 39));
    assert_eq!(Hardware::USUAL.units(1), 22, "a walk takes its time as well");
}

#[test]
fn a_machine_that_is_rented_at_the_pulse_is_late() {
    fails(Strategy::Rented, 1, 1..=1);
}

#[test]
fn a_table_on_flash_is_too_slow_and_one_that_is_not_there_is_seen() {
    fails(Strategy::OnFlash(20), 2, 2..=2);
    // A witness's eight steps are all true with 0.43; five of seven witnesses must see that.
    fails(Strategy::ShortTable(100), 20, 12..=20);
    fails(Strategy::ShortTable(500), 5, 5..=5);
}

#[test]
fn a_missing_hundredth_of_a_disk_is_found_within_a_day_but_for_one_in_a_thousand() {
    let rules = Rules::STANDARD;
    let formula = caught_by_formula(0.01, &rules);
    assert!(1.0 - (1.0 - formula).powi(24) > 0.999);
    for seed in SEEDS {
        let (hits, trials) = failed(&record(Strategy::Missing(10), 150, seed));
        let share = Share::of(hits, trials);
        // Four deviations of what the formula says.
        let off = (share.mean - formula).abs() / (formula * (1.0 - formula) / trials as f64).sqrt();
        assert!(off < 4.0, "{share:?}, formula {formula}, seed {seed}");
        assert!(share.once_in(24).low > 0.999, "{share:?}, seed {seed}");
    }
}

#[test]
fn a_missing_tenth_fails_nearly_every_pulse() {
    fails(Strategy::Missing(100), 20, 19..=20);
}

#[test]
fn what_is_dropped_is_not_made_again_in_time_on_any_number_of_cores() {
    let strategy = |work, depth| Strategy::Rebuilding {
        dropped: 100,
        work,
        depth,
        hardware: Hardware { cores: 100_000, ..Hardware::FAST },
        real: true,
    };
    // As the graph's model has it: two and a half extents of labels one after the other.
    fails(strategy(2.9, 2.5), 10, 9..=10);
    // Without the nearby labels it was one twentieth.
    fails(strategy(1.8, 0.05), 10, 0..=0);
}

#[test]
fn what_passes_all_pulses_without_being_there_is_found_when_it_is_made_again() {
    for (filling, expected) in
        [(Filling::Own, true), (Filling::Of(8), false), (Filling::Cheap, false)]
    {
        let machine = Machine::new(7, Claims::DISK, filling);
        let (record, way) = (machine.store.record(), machine.store.way(0).unwrap());
        let mut again = Regeneration::of_filler(&binding(7), &salt(), &record, 0, &way).unwrap();
        while again.advance(10_000) > 0 {}
        assert_eq!(again.finish(), Some(expected), "{filling:?}");
    }
    fails(Strategy::SharedDisk, 2, 0..=0);
    fails(Strategy::CheapFiller, 2, 0..=0);
}

#[test]
fn a_users_data_that_is_cheap_bytes_counts_as_no_filler() {
    let record = record(Strategy::SelfDealing, 2, 1);
    assert!(record.all().flat_map(|pulse| &pulse.seen).all(|seen| seen.filler == 0 && seen.disk));
}

#[test]
fn who_knows_a_pulse_beforehand_answers_for_as_many_machines_as_he_likes() {
    fails(Strategy::Foreseeing(2), 1, 0..=0);
    let drand = record(Strategy::Drand(3), 1, 1);
    let whole = drand.pulses.iter().filter(|of| of.iter().all(|it| drand.whole(it))).count();
    assert_eq!(whole, 1, "who learns of a round with all others has one machine");
}

#[test]
fn the_contracts_take_what_they_say_of_liars_and_of_a_thief_whom_somebody_appeals_against() {
    let court = court::hold(1).unwrap();
    assert!((court.lost_for_segment - 62.0).abs() < 1e-9);
    // What is left of two balances of many tokens.
    assert!((court.reporter - 6.2).abs() < 1e-6, "{}", court.reporter);
    assert!((court.lost_for_leaf - 3.1).abs() < 1e-9);
    assert!((court.lost_for_withholding - 1000.0).abs() < 1e-9);
    // No contract recomputes rewards: whoever wants them right must appeal.
    assert!(court.stolen > 100.0 * court.lost_for_withholding, "{}", court.stolen);
    assert!(court.stolen_after_appeal.abs() < 1e-9, "{}", court.stolen_after_appeal);
    let (honest, swamp) = court.seats;
    assert!(honest > 4 * swamp && swamp > 0, "{honest} against {swamp} of 100 times as many nodes");
    let gas = court.gas_of_node_and_day(100_000);
    assert!(gas < 350.0, "{gas} gas per node and day");
}

#[test]
fn among_real_participants_the_honest_are_proven_and_cheaters_are_not() {
    let mut strategies = vec![Strategy::Honest(Claims::ALL); 9];
    strategies[3] = Strategy::Skipping(30);
    strategies[6] = Strategy::Missing(200);
    strategies[7] = Strategy::Replayed;
    let players = players(&strategies, 1);
    let story = World::play(&players, &CALM, 1, 1).unwrap();
    let found = story.pulses.first().unwrap();
    for (node, strategy) in (1..).zip(&strategies) {
        let claims = strategy.claims();
        let of_node = found.iter().filter(|it| it.node == node);
        let whole = of_node.clone().filter(|it| it.proven == claims).count();
        let honest = matches!(strategy, Strategy::Honest(_));
        assert_eq!(whole >= 5, honest, "node {node}: {:?}", of_node.collect::<Vec<_>>());
    }
    let guilty: Vec<u32> = story.evidence.keys().copied().collect();
    assert_eq!(guilty, [4], "who skipped segments, and nobody else");
    assert!(story.made_again.iter().all(|(_, is_true)| *is_true));
}
