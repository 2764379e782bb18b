//! Crashes at every operation: what was acknowledged is there, the rest whole or absent.

use storage_vdev::files::sim::Faults;

use super::harness::Run;

const SEEDS: u64 = 20;
const STEPS: u32 = 40;

#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged_and_halves_nothing() {
    let mut crashes = 0;
    for seed in 0..SEEDS {
        let mut whole = Run::new(seed, "whole run");
        let first = whole.disk.operations();
        assert!(whole.go(STEPS));
        let end = whole.disk.operations();
        for at in first..=end {
            let mut run = Run::new(seed, &format!("crash at {at}"));
            run.disk.crash_at(Some(at));
            run.go(STEPS);
            run.crash();
            // Once more while nothing happens: recovery itself has settled everything.
            run.crash();
            // And on from there.
            assert!(run.go(STEPS / 4));
            run.crash();
            crashes += 1;
        }
    }
    println!("{crashes} crashes");
    assert!(crashes > 1000, "{crashes} crashes are too few to mean anything");
}

#[test]
fn a_crash_during_recovery_is_as_harmless_as_one_before_it() {
    for seed in 100..100 + SEEDS {
        let mut run = Run::new(seed, "crashes in recovery");
        for _ in 0..6 {
            let at = run.disk.operations() + 20 + seed;
            run.disk.crash_at(Some(at));
            run.go(STEPS);
            for after in 1..4 {
                run.crash_in_recovery(after);
            }
            run.crash();
        }
    }
}

#[test]
fn failed_syncs_lose_nothing_acknowledged() {
    for seed in 200..210 {
        for after in 0..12 {
            let mut run = Run::new(seed, &format!("sync error {after}"));
            run.disk.sync_error_at(Some(run.disk.operations() + after * 5));
            run.go_on(STEPS);
            run.disk.sync_error_at(None);
            run.crash();
            assert!(run.go(STEPS));
            run.crash();
        }
    }
}

#[test]
fn write_errors_lose_nothing_acknowledged() {
    for seed in 300..300 + SEEDS {
        let mut run = Run::new(seed, "write errors");
        for _ in 0..8 {
            run.disk.set_faults(Faults { write_error: 20_000, ..Faults::default() });
            run.go_on(STEPS);
            run.disk.set_faults(Faults::default());
            run.crash();
        }
    }
}
