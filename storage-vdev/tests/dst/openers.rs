//! Two hosts that want the same volume: leases, takeovers, and an old writer that lives on.

use storage_vdev::engine::{OpenError, Policy, TakeOver, Volume};
use storage_vdev::files::sim::Rng;
use storage_vdev::sim_nodes::{Network, Shared, SimNodes, world};

use crate::host::{Ended, Fair, Host, Shape, open, random};
use crate::oracle::Oracle;
use crate::run::Report;

const SHAPE: Shape =
    Shape { k: 2, m: 1, spares: 0, blocks: 24, policy: Policy::Quorum, register: true };

fn start(seed: u64) -> (Shared, Rng) {
    (world(seed, SHAPE.nodes(), 64 << 20, Network::CALM), Rng::new(seed))
}

fn must_open(world: &Shared, holder: u8, create: bool, rng: &mut Rng) -> Host {
    let opened = open(world, SHAPE.options(holder, create), rng, &mut Fair).unwrap();
    opened.unwrap_or_else(|error| panic!("host {holder}: {error}"))
}

fn burst(host: &mut Host, oracle: &mut Oracle, rng: &mut Rng) {
    for _ in 0..1 + rng.below(5) {
        let first = rng.below(24) as usize;
        let count = 1 + rng.below((24 - first as u64).min(3)) as usize;
        match rng.below(4) {
            0 => host.flush(oracle),
            1 => host.write(oracle, (first * 8, count * 8), true),
            _ => host.write(oracle, (first * 8, count * 8), false),
        }
    }
}

/// The old host is cut off from every node (or from all but one) while it writes; the new one waits
/// the lease out and takes over; then the old one is heard again and goes on.
fn take_over(seed: u64) {
    let (world, mut rng) = start(seed);
    let _report = Report::new(&world, format!("seed {seed}: a take-over"));
    let mut oracle = Oracle::new(24 * 8);
    let mut old = must_open(&world, 1, true, &mut rng);
    for _ in 0..rng.below(6) {
        burst(&mut old, &mut oracle, &mut rng);
        old.run(&mut oracle, &mut Fair, None).unwrap();
    }
    burst(&mut old, &mut oracle, &mut rng);
    let reachable = rng.below(2 * SHAPE.nodes() as u64) as usize;
    for node in (0..SHAPE.nodes()).filter(|node| *node != reachable) {
        world.borrow_mut().cut(old.writer, node, true);
    }
    let some = rng.below(3_000_000);
    let until_ns = world.borrow().now_ns() + some;
    world.borrow_mut().run_until(until_ns);
    old.poll(&mut oracle).ok();

    // Both live on: the old one is polled at each event of the new one's.
    let nodes = SimNodes::new(&world);
    let mut opening = Volume::open(nodes, SHAPE.options(2, false), random(&mut rng));
    let heal_ns = world.borrow().now_ns() + rng.below(30_000_000_000);
    let dies_ns = heal_ns + 40_000_000_000;
    let (mut taken, mut healed, mut dead) = (None, false, false);
    for _ in 0..1_000_000 {
        let now_ns = world.borrow().now_ns();
        if now_ns >= heal_ns && !healed {
            healed = true;
            let mut world = world.borrow_mut();
            world.note("everybody reaches every node again");
            world.heal_all();
        }
        if now_ns >= dies_ns && !dead {
            dead = true;
            // It was in time, and renews its lease for ever: now it is cut off for good.
            for node in 0..SHAPE.nodes() {
                world.borrow_mut().cut(old.writer, node, true);
            }
        }
        if let Some(result) = opening.poll(now_ns) {
            taken = Some(result);
            break;
        }
        // What it acknowledges before the other has taken over counts.
        if now_ns < dies_ns {
            old.poll(&mut oracle).ok();
        }
        let deadline_ns = opening.deadline_ns().unwrap();
        world.borrow_mut().run_until(deadline_ns.max(now_ns + 1));
    }
    world.borrow_mut().note("the other host has taken over");
    let volume = taken.expect("the lease runs out").unwrap_or_else(|error| panic!("{error}"));
    let mut new = Host::of(volume, &world);
    world.borrow_mut().heal_all();
    let content = new.content(&mut Fair).unwrap();
    oracle.check_crash(&content).unwrap_or_else(|error| panic!("{error}"));
    // The old one may think what it likes: nothing of it is acknowledged any more.
    let mut other = oracle.clone();
    old.pending.clear();
    old.write(&mut other, (0, 8), true);
    let ended = old.run(&mut other, &mut Fair, None);
    assert!(matches!(ended, Err(Ended::Failed(_))), "a stale host got an acknowledgement");
    for _ in 0..4 {
        burst(&mut new, &mut oracle, &mut rng);
        new.run(&mut oracle, &mut Fair, None).unwrap();
    }
    new.close(&mut oracle, &mut Fair).unwrap();
    let mut again = must_open(&world, 1, false, &mut rng);
    let content = again.content(&mut Fair).unwrap();
    oracle.check_crash(&content).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(world.borrow().ledger().reuse(), None, "a key and a nonce were used twice");
}

#[test]
fn a_host_that_was_taken_over_gets_no_acknowledgement_and_spoils_nothing() {
    crate::campaign::campaign("take-overs", crate::campaign::seeds(150), |seed| {
        take_over(seed);
        crate::run::Outcome::default()
    });
}

#[test]
fn a_volume_in_use_is_refused_and_the_holder_is_named() {
    let (world, mut rng) = start(1);
    let _held = must_open(&world, 1, true, &mut rng);
    let mut options = SHAPE.options(2, false);
    options.take_over = TakeOver::Refuse;
    let refused = open(&world, options, &mut rng, &mut Fair).unwrap().err();
    assert_eq!(refused, Some(OpenError::InUse { holder: "host 1".to_owned(), epoch: 1 }));
}
