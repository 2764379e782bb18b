//! Campaigns over many seeds. `HYPHA_SEEDS=from..to` chooses others, `HYPHA_SEED=n` one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use mesh_sim::campaign::{Kind, Summary, run};

/// The most nodes of a world.
const NODES_MAX: usize = 100;

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |text: &str| text.parse::<u64>().ok();
    if let Some(seed) = std::env::var("HYPHA_SEED").ok().and_then(|text| number(&text)) {
        return seed..seed + 1;
    }
    let range = std::env::var("HYPHA_SEEDS").ok();
    let range = range.and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(number(from)?..number(to)?)
    });
    range.unwrap_or(0..count)
}

fn campaign(kind: Kind, count: u64) {
    let seeds = seeds(count);
    let (mut all, mut failed) = (Vec::new(), Vec::new());
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| run(kind, seed, NODES_MAX))) {
            Ok(summary) => all.push(summary),
            Err(_) => failed.push(seed),
        }
    }
    let sum = |of: fn(&Summary) -> u64| all.iter().map(of).sum::<u64>();
    let max = |of: fn(&Summary) -> u64| all.iter().map(of).max().unwrap_or_default();
    println!(
        "{kind:?}: {} seeds, {} nodes, {} events, {} faults, {} walks, {} pairs in the end ({} tenths of a second late), starved \
         {} times, at most {} bytes per port and second and {} bytes per destination",
        all.len(),
        sum(|it| it.nodes as u64),
        sum(|it| it.events),
        sum(|it| it.faults),
        sum(|it| it.walks),
        sum(|it| it.pairs),
        sum(|it| it.late),
        sum(|it| it.starved),
        max(|it| it.busiest),
        max(|it| it.bytes_per_destination as u64),
    );
    assert!(failed.is_empty(), "{kind:?}: HYPHA_SEED={failed:?} failed (of {seeds:?})");
}

#[test]
fn cuts_make_no_loop_and_are_repaired() {
    campaign(Kind::Cuts, 350);
}

#[test]
fn churn_makes_no_loop_and_everybody_is_found_again() {
    campaign(Kind::Churn, 350);
}

#[test]
fn lossy_and_slow_links_make_no_loop_and_good_paths_are_found() {
    campaign(Kind::Weather, 200);
}

#[test]
fn liars_make_no_loop_among_the_honest_and_nobody_takes_their_word_for_a_key() {
    campaign(Kind::Liars, 100);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in seeds(4) {
        for kind in [Kind::Cuts, Kind::Churn, Kind::Weather, Kind::Liars] {
            let (one, two) = (run(kind, seed, 40), run(kind, seed, 40));
            assert_eq!(one, two, "{kind:?}, seed {seed}");
            assert_ne!(one.trace, run(kind, seed + 1, 40).trace, "{kind:?}, seed {seed}");
        }
    }
}
