//! Sessions that last: keys are replaced, subscriptions and announcements lapse, and no packet is lost.

use net_vdev::PrivateKey;

use crate::attached::{carry, run, send, vm};
use crate::world::{MS, SECOND, World};

/// Two hosts send each other a packet now and then over wires that lose nothing; which were lost.
fn lost(mut world: World, pair: (usize, usize), pause_ns: u64, packets: usize) -> Vec<String> {
    world.run(SECOND);
    let mut lost = Vec::new();
    for number in 0..packets {
        let (from, to) = if number % 3 == 0 { (pair.1, pair.0) } else { pair };
        let sent_ns = world.now_ns;
        let payload = world.send(from, to);
        world.run(pause_ns.max(500 * MS));
        if !world.got_once(to, &payload) {
            lost.push(format!("{number}, {from} to {to}, at {} ms", sent_ns / MS));
        }
        world.nodes.iter_mut().for_each(|node| node.wire.delivered.clear());
    }
    lost
}

#[test]
fn nothing_is_lost_while_keys_and_subscriptions_are_replaced() {
    let line = [(0, 1), (2, 1)];
    let diamond = [(0, 1), (0, 2), (1, 3), (2, 3)];
    let mut failures = Vec::new();
    for seed in 0..2 {
        // Often, so that no moment is missed, and so seldom that a session is old at each packet.
        for pause_ms in [501u64, 7000, 59_999, 61_000, 89_999, 125_000, 179_999] {
            let packets = 560_000 / pause_ms as usize + 8;
            let pause_ns = pause_ms * MS;
            for (name, world, pair) in [
                ("direct", World::new(2, &line[..1], seed), (0, 1)),
                ("line", World::new(3, &line, seed), (0, 2)),
                ("diamond", World::new(4, &diamond, seed), (0, 3)),
            ] {
                for it in lost(world, pair, pause_ns, packets) {
                    failures.push(format!("{name}, every {pause_ms} ms, seed {seed}: {it}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn nothing_is_lost_between_members_of_other_nodes_either() {
    let mut failures = Vec::new();
    for pause_ms in [500u64, 61_000, 125_000, 179_999] {
        let mut world = World::new(3, &[(0, 1), (2, 1)], 5);
        world.run(SECOND);
        let keys = [1u8, 2].map(|number| PrivateKey::new([number; 32]).public());
        let mut vms = [vm(&mut world, 0, 1, &keys), vm(&mut world, 2, 2, &keys)];
        for number in 0..400_000 / pause_ms + 4 {
            let (from, to) = if number % 3 == 0 { (1, 0) } else { (0, 1) };
            let sent_ns = world.now_ns;
            let packet = send(&world, &mut vms[from], keys[to].address(), &number.to_be_bytes());
            run(&mut world, &mut vms, 100 * MS);
            let end_ns = sent_ns + pause_ms * MS;
            while world.now_ns < end_ns {
                carry(&mut world, &mut vms);
                world.run((end_ns - world.now_ns).min(100 * MS));
            }
            if vms[to].got != [packet] {
                failures.push(format!("{number}, every {pause_ms} ms, at {} ms", sent_ns / MS));
            }
            vms.iter_mut().for_each(|vm| vm.got.clear());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
