//! Datagrams that come in one batch are judged as if each had come by itself.

use std::net::IpAddr;
use std::num::NonZeroU64;

use net_vdev::endpoint::Exits;
use net_vdev::{Caps, Config, Counters, Path, Protocol, Rule};
use proptest::prelude::*;

use crate::packets::{ACK, FIN, RST, SYN, tcp, udp};
use crate::world::{Member, PORT, SECOND, World, whole};

const OPEN: u16 = 80;
const PSH: u8 = 0x08;

/// Two members with a session. The second takes connections at one port, and so many packets a
/// second; the first may call itself outside.
fn world(packets_per_s: Option<NonZeroU64>) -> World {
    let mut world = World::new(2, 1);
    let who = world.members[0].key().into();
    let Member { config, place, .. } = &world.members[1];
    let config = Config {
        rules: vec![
            Rule { who, protocol: Protocol::Tcp, port: Some(OPEN) },
            Rule { who, protocol: Protocol::Udp, port: Some(PORT) },
        ],
        caps: Caps { packets_per_s, bytes_per_s: None },
        ..config.clone()
    };
    let place = *place;
    world.members[1] = Member::new(config, place, [9; 32]);
    world.send(0, 1);
    world.run(SECOND);
    assert_eq!(world.members[1].got.len(), 1, "there is a session");
    let exit = Exits { is_exit: true, ..Exits::default() };
    world.members[0].endpoint.set_exits(exit);
    world
}

/// A packet of 60 bytes: its source's port and whether its source is false, its target's port, and
/// its flags, or `None` for UDP.
type Plan = (u16, bool, u16, Option<u8>);

fn packet(world: &World, &(source, is_false, target, flags): &Plan) -> Vec<u8> {
    let outside: IpAddr = "64:ff9b::198.51.100.7".parse().unwrap();
    let from = if is_false { outside } else { world.members[0].address() };
    let (from, to) = ((from, source), (world.members[1].address(), target));
    flags.map_or_else(|| udp(from, to, &[0; 12]), |flags| tcp(from, to, flags))
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let flags = prop_oneof![
        8 => Just(Some(ACK)),
        4 => Just(Some(ACK | PSH)),
        1 => Just(Some(SYN)),
        1 => Just(Some(FIN | ACK)),
        1 => Just(Some(RST)),
        1 => Just(None),
    ];
    let port = prop_oneof![6 => Just(OPEN), 1 => Just(81), 1 => Just(PORT)];
    prop::collection::vec((1_u16..4, prop::bool::weighted(0.05), port, flags), 0..300)
}

/// What the second member got of these packets, in batches of so many datagrams, and what it counted.
fn outcome(
    plans: &[Plan],
    at_once: usize,
    packets_per_s: Option<NonZeroU64>,
) -> (Vec<Vec<u8>>, Counters) {
    let mut world = world(packets_per_s);
    let from = Path::Direct(world.members[0].place);
    for plans in plans.chunks(at_once) {
        let mut batch = Vec::new();
        let mut stride = 1;
        for plan in plans {
            let packet = packet(&world, plan);
            let sender = &mut world.members[0].endpoint;
            sender.send_packet(world.now_ns, &packet);
            while let Some(transmit) = sender.poll_transmit() {
                stride = transmit.bytes.len();
                batch.extend_from_slice(&transmit.bytes);
            }
        }
        let Member { endpoint, got, .. } = &mut world.members[1];
        let deliver = &mut |header: &_, packet: &[u8]| got.extend(whole(header, packet));
        endpoint.receive(world.now_ns, from, &mut batch, stride, deliver);
    }
    (world.members[1].got.clone(), world.members[1].endpoint.counters())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_batch_is_judged_as_its_datagrams_one_by_one_are(
        plans in plans(),
        at_once in 2_usize..65,
        packets_per_s in prop_oneof![Just(None), Just(NonZeroU64::new(100))],
    ) {
        let alone = outcome(&plans, 1, packets_per_s);
        prop_assert_eq!(outcome(&plans, at_once, packets_per_s), alone);
    }
}

#[test]
fn a_batch_lets_in_what_is_let_in_and_stops_at_the_caps() {
    let plain: Vec<Plan> = (0..200).map(|_| (1, false, OPEN, Some(ACK))).collect();
    let (got, counters) = outcome(&plain, 64, None);
    assert_eq!(got.len(), 1 + plain.len());
    assert_eq!(counters.packets_received, 1 + plain.len() as u64);
    let (got, _) = outcome(&plain, 64, NonZeroU64::new(100));
    assert_eq!(got.len(), 1 + 128, "what may pass at once, and the packet that made the session");
}
