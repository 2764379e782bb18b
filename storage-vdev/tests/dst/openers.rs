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

/// Each node in turn is replaced by a blank one. Its acceptor has lost its promises with its name, so
/// it counts no more; the opener brings the new one in, or the register would soon have no majority.
#[test]
fn acceptors_that_lost_their_state_are_replaced_by_the_opener() {
    for seed in 0..10 {
        let (world, mut rng) = start(seed);
        let _report = Report::new(&world, format!("seed {seed}: acceptors are replaced"));
        let mut oracle = Oracle::new(24 * 8);
        drop(must_open(&world, 1, true, &mut rng));
        for node in 0..2 * SHAPE.nodes() {
            world.borrow_mut().forget(node % SHAPE.nodes());
            let mut host = must_open(&world, 1, false, &mut rng);
            burst(&mut host, &mut oracle, &mut rng);
            let until_ns = world.borrow().now_ns() + 20_000_000_000;
            host.run(&mut oracle, &mut Fair, Some(until_ns)).unwrap();
            assert_eq!(host.status().segments_degraded, 0, "seed {seed}, node {node}");
            host.close(&mut oracle, &mut Fair).unwrap();
            let mut host = must_open(&world, 2, false, &mut rng);
            let content = host.content(&mut Fair).unwrap();
            oracle.check_crash(&content).unwrap_or_else(|error| panic!("{error}"));
            host.close(&mut oracle, &mut Fair).unwrap();
        }
    }
}

/// Most acceptors go back to an earlier time under their names, and what they say then fits together:
/// they would give an epoch out again. The nodes that did not go back remember that it was there.
#[test]
fn a_register_that_went_back_is_refused_whatever_part_of_the_nodes_remembers() {
    for (seed, newer) in [(1, 0), (2, 1), (3, 2)] {
        let (world, mut rng) = start(seed);
        let mut oracle = Oracle::new(24 * 8);
        let mut host = must_open(&world, 1, true, &mut rng);
        burst(&mut host, &mut oracle, &mut rng);
        host.close(&mut oracle, &mut Fair).unwrap();
        let images: Vec<_> =
            (0..SHAPE.nodes()).map(|node| world.borrow().image(node).unwrap()).collect();
        for _ in 0..2 {
            let mut host = must_open(&world, 1, false, &mut rng);
            burst(&mut host, &mut oracle, &mut rng);
            host.close(&mut oracle, &mut Fair).unwrap();
        }
        for (node, image) in images.iter().enumerate().filter(|(node, _)| *node != newer) {
            world.borrow_mut().roll_back(node, image, false);
        }
        for attempt in 0..3 {
            let opened = open(&world, SHAPE.options(2, false), &mut rng, &mut Fair).unwrap();
            // The register may have its newest record after all; then what is gone is an error.
            let lost = |host: &mut Host| host.content(&mut Fair).is_err();
            let (refused, error) = match opened {
                Ok(mut host) => (lost(&mut host), None),
                Err(error) => {
                    let known = matches!(
                        error,
                        OpenError::RegisterRolledBack { .. }
                            | OpenError::RegisterForgot { .. }
                            | OpenError::Forgotten { .. }
                            | OpenError::MapLost { .. }
                            | OpenError::InUse { .. }
                    );
                    (known, Some(error))
                }
            };
            assert!(refused, "only node {newer} remembers, attempt {attempt}: {error:?}");
        }
    }
}

/// A volume that is handed over in good order is served again within a second, by somebody who was
/// waiting for it.
#[test]
fn a_hand_over_takes_less_than_a_second_and_a_forced_one_a_lease() {
    for seed in 0..20 {
        let (world, mut rng) = start(seed);
        let mut oracle = Oracle::new(24 * 8);
        let mut old = must_open(&world, 1, true, &mut rng);
        burst(&mut old, &mut oracle, &mut rng);
        old.run(&mut oracle, &mut Fair, None).unwrap();
        let mut opening =
            Volume::open(SimNodes::new(&world), SHAPE.options(2, false), random(&mut rng));
        let mut closed_ns = None;
        let close_ns = world.borrow().now_ns() + 2_000_000_000;
        old.volume.submit_flush(1_000_000);
        let taken_ns = loop {
            let now_ns = world.borrow().now_ns();
            if now_ns >= close_ns && closed_ns.is_none() {
                closed_ns = Some(now_ns);
                old.volume.submit_close(1_000_001);
            }
            while old.volume.poll(now_ns).is_some() {}
            if let Some(result) = opening.poll(now_ns) {
                result.unwrap();
                break now_ns;
            }
            let deadline_ns = opening.deadline_ns().unwrap();
            let deadline_ns = deadline_ns.min(old.volume.deadline_ns().unwrap_or(u64::MAX));
            world.borrow_mut().run_until(deadline_ns.max(now_ns + 1).min(now_ns + 10_000_000));
        };
        let took_ns = taken_ns - closed_ns.expect("not before it was closed");
        assert!(took_ns < 1_000_000_000, "seed {seed}: {took_ns} ns of virtual time");
    }
}
