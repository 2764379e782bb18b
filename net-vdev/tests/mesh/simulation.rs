//! Members on a bad network with a hostile neighbour, by seed: whatever happens, nobody gets a
//! packet that was not sent to them or gets one twice; and when it is over, everybody can talk.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::world::{Faults, MS, SECOND, World};

const MEMBERS: u8 = 4;
const ROUNDS: u64 = 400;

const BAD_NETWORK: Faults =
    Faults { lose: 120, repeat: 80, delay: 300, flip: 20, lose_kind: None, lose_longer: None };

/// What was sent, as (to, packet).
type Sent = BTreeSet<(usize, Vec<u8>)>;

fn pick(world: &mut World) -> usize {
    world.dice.below(u64::from(MEMBERS)) as usize
}

fn somewhere(world: &mut World) -> SocketAddr {
    let byte = world.dice.below(200) as u8;
    SocketAddr::from(([203, 0, 113, byte], 9))
}

/// Something that honest members do, or that happens to them.
fn live(world: &mut World, sent: &mut Sent) {
    let from = pick(world);
    let to = (from + 1 + world.dice.below(u64::from(MEMBERS) - 1) as usize) % MEMBERS as usize;
    match world.dice.below(100) {
        0 => world.restart(from),
        1 => world.members[from].place = somewhere(world),
        _ => {
            let packet = world.send(from, to);
            sent.insert((to, packet));
        }
    }
}

/// Something that somebody does who sees every datagram and sends whatever it likes from anywhere,
/// but has no member's key.
fn attack(world: &mut World) {
    if world.seen.is_empty() {
        return;
    }
    let recent = world.seen.len().saturating_sub(200);
    let any = recent + world.dice.below((world.seen.len() - recent) as u64) as usize;
    let (from, to, mut bytes) = world.seen[any].clone();
    let other = pick(world);
    let from = if world.dice.in_1000(500) { from } else { somewhere(world) };
    let to = if world.dice.in_1000(800) { to } else { world.members[other].place };
    match world.dice.below(6) {
        0 => bytes.truncate(world.dice.below(bytes.len() as u64) as usize),
        1 => {
            let bit = world.dice.below(8 * bytes.len() as u64) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        // A notice about a datagram that was really sent, back to its sender.
        2 if bytes.len() >= 16 && bytes[1] == 3 => {
            bytes.truncate(16);
            bytes[1] = 5;
            return world.inject(to, from, bytes);
        }
        3 => bytes = world.dice.seed().to_vec(),
        _ => {}
    }
    world.inject(from, to, bytes);
}

fn simulate(seed: u64) -> u64 {
    let mut world = World::new(MEMBERS, seed);
    let homes: Vec<_> = world.members.iter().map(|member| member.place).collect();
    let mut sent = Sent::new();
    world.faults = BAD_NETWORK;
    for _ in 0..ROUNDS {
        live(&mut world, &mut sent);
        for _ in 0..world.dice.below(4) {
            attack(&mut world);
        }
        let pause_ns = world.dice.below(100 * MS);
        world.run(pause_ns);
    }
    for (member, state) in world.members.iter().enumerate() {
        let mut got = BTreeSet::new();
        for packet in &state.got {
            assert!(sent.contains(&(member, packet.clone())), "seed {seed}: not sent to {member}");
            assert!(got.insert(packet), "seed {seed}: member {member} got a packet twice");
        }
        let held = state.endpoint.occupancy();
        let peers = usize::from(MEMBERS) - 1;
        assert!(held.indices <= 4 * peers && held.timers <= peers, "seed {seed}: {held:?}");
        assert!(held.waiting <= 8 * peers, "seed {seed}: {held:?}");
    }
    let received: usize = world.members.iter().map(|member| member.got.len()).sum();
    assert!(5 * received > sent.len(), "seed {seed}: {received} of {} came through", sent.len());
    // Everybody goes home, and the network is good again.
    world.faults = Faults::default();
    for (member, home) in world.members.iter_mut().zip(homes) {
        member.place = home;
    }
    for _ in 0..25 {
        everybody_sends(&mut world);
        world.run(SECOND);
    }
    let last = everybody_sends(&mut world);
    world.run(SECOND);
    for (from, to, packet) in last {
        assert!(world.got_once(to, &packet), "seed {seed}: {from} can't reach {to}");
    }
    trace(&world)
}

fn everybody_sends(world: &mut World) -> Vec<(usize, usize, Vec<u8>)> {
    let members = usize::from(MEMBERS);
    let pairs = (0..members).flat_map(|from| (0..members).map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| from != to)
        .map(|(from, to)| (from, to, world.send(from, to)))
        .collect()
}

/// A number that differs if anything that was ever sent does.
fn trace(world: &World) -> u64 {
    let bytes = world.seen.iter().flat_map(|(_, _, bytes)| bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[test]
fn a_hostile_network_forges_nothing_and_everybody_recovers() {
    for seed in 100..112 {
        simulate(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_run_to_the_byte() {
    assert_eq!(simulate(77), simulate(77));
    assert_ne!(simulate(77), simulate(78));
}
