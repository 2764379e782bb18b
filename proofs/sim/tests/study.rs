//! The whole study in small, and that no cheater's income is more than an honest one's.

use proof_sim::arena::{Faults, Record, play};
use proof_sim::graph::{Graph, Keeper, Shape};
use proof_sim::hardware::Hardware;
use proof_sim::machine::Claims;
use proof_sim::network::{Conduct, Group, Network};
use proof_sim::report::{plot, rows, rows_of, summary, table};
use proof_sim::strategy::Strategy;
use proof_sim::study::{Scale, run, strategies};

const TINY: Scale = Scale {
    pulses: [1, 2, 4],
    boxes: 2,
    honest: 30,
    hours: (12, 8),
    large: 200,
    large_hours: 2,
    label_bits: 10,
    challenges: 1,
    juries: 2,
    lines: 1,
    story: 1,
};

#[test]
fn one_seed_has_one_trace() {
    let (study, again) = (run(&TINY, 1).unwrap(), run(&TINY, 1).unwrap());
    assert_eq!(study, again);
    let rows = rows(&study, 8.0 / 24.0);
    assert_eq!(rows.len(), study.records.len());
    // What an honest node earns is what the others are measured by.
    for row in rows.iter().take(4) {
        assert!(!row.pays() && row.lost == 0.0, "{row:?}");
    }
    let (table, plot) = (table(&rows), plot(&rows));
    for row in &rows {
        assert!(table.contains(&row.strategy.name()) && plot.contains(&row.strategy.name()));
    }
    assert!(summary(&study, 1.0).contains("Trace"));
}

/// What once paid, or nearly.
fn tempting() -> Vec<Strategy> {
    let honest = [Claims::ALL, Claims::CPU, Claims::MEM, Claims::DISK].map(Strategy::Honest);
    let mut all = honest.to_vec();
    all.push(Strategy::Sybils(2));
    all.extend([0, 2, 5, 10, 20, 100].map(|more| Strategy::Claiming(more, Hardware::FAST)));
    all.extend([5, 7, 10].map(Strategy::OnFlash));
    all.extend([Strategy::SharedDisk, Strategy::CheapFiller, Strategy::SelfDealing]);
    all.extend([Strategy::Drand(3), Strategy::Foreseeing(3)]);
    all
}

#[test]
fn nothing_pays_at_the_default_stake_but_to_foresee_pulses() {
    let seed = 41;
    let records: Vec<Record> =
        tempting().into_iter().map(|it| play(it, &Faults::USUAL, 20, seed)).collect();
    let boxes = |strategy: Strategy| if strategy == Strategy::Honest(Claims::ALL) { 40 } else { 3 };
    let group = |it| Group { conduct: Conduct::Seen(it), boxes: boxes(it.strategy) };
    let (groups, epochs) = (records.iter().map(group).collect(), 360);
    // All hours, so that what is earned before somebody looks counts.
    let outcome = Network { seed, groups, epochs, counted: epochs }.run().unwrap();
    for row in rows_of(&records, &outcome.incomes, 15.0) {
        let expected = matches!(row.strategy, Strategy::Foreseeing(_));
        assert_eq!(row.pays(), expected, "{}: {row:?}, seed {seed}", row.strategy.name());
    }
}

#[test]
fn with_nearby_labels_no_ladder_cuts_the_graph() {
    for seed in [1, 41] {
        for (every, dropped) in [(16, 100), (64, 100), (256, 10)] {
            let ladder = Keeper::Ladder { every, dropped };
            let [real, plain] = [Shape::Real, Shape::Plain]
                .map(|shape| Graph::new(shape, 4, 1 << 13).cost(ladder, seed, 4));
            assert!(real.depth > 1.5 && real.work > 2.5, "{ladder:?}: {real:?}, seed {seed}");
            assert!(plain.depth < real.depth / 2.0, "{ladder:?}: {plain:?}, seed {seed}");
        }
    }
}

#[test]
fn one_layer_is_no_filler_and_four_are() {
    for seed in [1, 41] {
        let cost = |layers| {
            Graph::new(Shape::Real, layers, 1 << 12).cost(Keeper::Scattered(900), seed, 8).work
        };
        assert!(cost(1) < 0.01 && cost(4) > 2.0, "{} and {}, seed {seed}", cost(1), cost(4));
    }
}

#[test]
fn the_document_has_every_strategy() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");
    let document = std::fs::read_to_string(format!("{folder}/proofs-simulation.md")).unwrap();
    let plot = std::fs::read_to_string(format!("{folder}/proofs-simulation.svg")).unwrap();
    let cost = Graph::new(Shape::Real, 4, 1 << 8).cost(Keeper::Leaves(100), 1, 1);
    for strategy in strategies([cost, proof_sim::graph::Cost { work: 0.0, ..cost }]) {
        let name = strategy.name();
        assert!(document.contains(&name) && plot.contains(&name), "{name}");
    }
    let pays: Vec<&str> = document.lines().filter(|line| line.contains("**yes**")).collect();
    assert!(matches!(pays[..], [line] if line.contains("without drand")), "{pays:?}");
}
