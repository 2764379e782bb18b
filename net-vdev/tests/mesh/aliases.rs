//! Aliases: a workload is reached by an address that a node certified, under its own key and address.

use std::net::{IpAddr, Ipv6Addr};

use net_vdev::certificate::Alias;
use net_vdev::endpoint::{ALIASES_MAX, Event};
use net_vdev::offload::{ChecksumField, Segmentation, SegmentationKind, VirtioNetHeader};
use net_vdev::{Config, DropReason, PrivateKey, PublicKey};

use crate::packets::{ACK, FIN, SYN, echo_reply, echo_request, tcp, too_big, udp};
use crate::world::{MS, Member, PORT, SECOND, UNIX_NS, World};

const NOW_S: u64 = UNIX_NS / SECOND;

fn node() -> PrivateKey {
    PrivateKey::new([0x77; 32])
}

/// The alias of a workload, certified from a minute ago for so many seconds more.
fn alias_of(workload: PublicKey, for_s: u64) -> Alias {
    let alias = Alias::new(node().public(), workload, NOW_S - 60..NOW_S + for_s);
    let certificate = alias.sign(&node(), &[5; 64]).unwrap();
    Alias::verify(&certificate, NOW_S).unwrap()
}

/// The addresses of members 0 and 1 of a world, and the alias of the second.
struct Ends {
    asker: IpAddr,
    workload: IpAddr,
    alias: IpAddr,
}

/// Member 0 has sent to the alias of member 1, which let it in.
fn world(for_s: u64) -> (World, Ends, Alias) {
    let mut world = World::routed(3, 4);
    let alias = alias_of(world.members[1].key(), for_s);
    let [asker, workload] = [0, 1].map(|index| world.members[index].address());
    let ends = Ends { asker, workload, alias: alias.address.into() };
    world.send_packet(0, &udp((asker, 4000), (ends.alias, PORT), b"first"));
    assert_eq!(asked(&mut world), [alias.address]);
    world.members[0].endpoint.learn_alias(world.now_ns, &alias);
    world.settle(0);
    world.run(SECOND);
    let arrived = udp((asker, 4000), (workload, PORT), b"first");
    assert!(world.got_once(1, &arrived), "at the workload's own address");
    (world, ends, alias)
}

/// How many of three packets reach an alias by a clock of member 0 that is so many seconds ahead, and
/// how often it asked whose that is.
fn reached_by_a_clock_off_by(ahead_s: i64) -> (usize, usize) {
    let mut world = World::routed(3, 4);
    let alias = alias_of(world.members[1].key(), 200);
    let Member { config, place, .. } = &world.members[0];
    let unix_time_at_zero_ns = UNIX_NS.saturating_add_signed(ahead_s * SECOND as i64);
    let config = Config { unix_time_at_zero_ns, ..config.clone() };
    world.members[0] = Member::new(config, *place, [8; 32]);
    let [asker, workload] = [0, 1].map(|index| world.members[index].address());
    let ask = |to| udp((asker, 4000), (to, PORT), b"?");
    world.send_packet(0, &ask(alias.address.into()));
    world.members[0].endpoint.learn_alias(world.now_ns, &alias);
    world.settle(0);
    for _ in 0..2 {
        world.send_packet(0, &ask(alias.address.into()));
        world.run(SECOND);
    }
    let arrived = world.members[1].got.iter().filter(|got| **got == ask(workload)).count();
    (arrived, asked(&mut world).len())
}

#[test]
fn an_alias_counts_by_a_clock_that_is_minutes_off_and_is_not_asked_for_with_each_packet() {
    for ahead_s in [-350, 0, 490] {
        assert_eq!(reached_by_a_clock_off_by(ahead_s), (3, 1), "{ahead_s} s ahead");
    }
    assert_eq!(reached_by_a_clock_off_by(510), (0, 2), "it does not count, and is asked for again");
}

/// Which addresses member 0 asked about.
fn asked(world: &mut World) -> Vec<Ipv6Addr> {
    let events = std::mem::take(&mut world.members[0].events).into_iter();
    events
        .filter_map(|event| if let Event::Resolve(it) = event { Some(it) } else { None })
        .collect()
}

/// `from` sends, and whoever it is for has got exactly this.
fn passes(world: &mut World, (from, sent): (usize, &[u8]), (to, got): (usize, &[u8])) {
    world.members[to].got.clear();
    world.send_packet(from, sent);
    world.run(SECOND / 2);
    assert_eq!(world.members[to].got, [got]);
}

#[test]
fn what_answers_an_alias_comes_from_it_and_all_else_from_the_workload_s_own_address() {
    let (mut world, Ends { asker, workload, alias }, _) = world(300);
    for (own, other) in [(alias, workload), (workload, workload)] {
        let port = if own == alias { 4000 } else { 4001 };
        let ask = |to| udp((asker, port), (to, PORT), b"?");
        passes(&mut world, (0, &ask(own)), (1, &ask(other)));
        let answer = |from| udp((from, PORT), (asker, port), b"!");
        passes(&mut world, (1, &answer(workload)), (0, &answer(own)));
    }
    passes(&mut world, (0, &echo_request(asker, alias, 9)), (1, &echo_request(asker, workload, 9)));
    passes(&mut world, (1, &echo_reply(workload, asker, 9)), (0, &echo_reply(alias, asker, 9)));
    // What the workload begins is from where it is.
    let fresh = udp((workload, 5000), (asker, PORT), b"fresh");
    passes(&mut world, (1, &fresh), (0, &fresh));
}

#[test]
fn errors_about_packets_for_an_alias_quote_it() {
    let (mut world, Ends { asker, workload, alias }, _) = world(300);
    let sent = |to| udp((asker, 4000), (to, PORT), &[7; 60]);
    passes(&mut world, (0, &sent(alias)), (1, &sent(workload)));
    let told = too_big(workload, asker, &sent(workload));
    let heard = too_big(alias, asker, &sent(alias));
    passes(&mut world, (1, &told), (0, &heard));
    // And the asker's about an answer quote the workload's own address.
    let answer = |from| udp((from, PORT), (asker, 4000), &[8; 60]);
    passes(&mut world, (1, &answer(workload)), (0, &answer(alias)));
    let told = too_big(asker, alias, &answer(alias));
    let heard = too_big(asker, workload, &answer(workload));
    let sent_first = udp((workload, PORT), (asker, 4000), b"so that a flow is expected");
    world.send_packet(1, &sent_first);
    passes(&mut world, (0, &told), (1, &heard));
}

#[test]
fn a_flow_by_alias_and_one_without_on_the_same_ports_are_not_confused() {
    let (mut world, Ends { asker, workload, alias }, _) = world(300);
    let answer = |from| udp((from, PORT), (asker, 4000), b"!");
    passes(&mut world, (1, &answer(workload)), (0, &answer(alias)));
    let direct = udp((asker, 4000), (workload, PORT), b"?");
    passes(&mut world, (0, &direct), (1, &direct));
    passes(&mut world, (1, &answer(workload)), (0, &answer(workload)));
}

#[test]
fn a_peer_can_t_speak_from_an_alias_or_be_let_in_by_one() {
    let (mut world, Ends { asker, alias, workload }, _) = world(300);
    let before = world.members[0].endpoint.counters().dropped(DropReason::InboundSource);
    // The workload itself, and somebody else; a sender that checks nothing.
    for from in [1, 2] {
        let config = world.members[from].config.clone();
        let addresses = vec![alias];
        let seed = world.dice.seed();
        let place = world.members[from].place;
        world.members[from] = Member::new(Config { addresses, ..config }, place, seed);
        world.send_packet(from, &udp((alias, PORT), (asker, 4000), b"forged"));
        world.resolve();
        world.run(SECOND);
    }
    assert!(world.members[0].got.is_empty());
    let dropped = world.members[0].endpoint.counters().dropped(DropReason::InboundSource);
    assert_eq!(dropped, before + 2);
    // A flow to the alias lets in what answers it, from the workload's ports and nowhere else.
    let denied = udp((workload, 99), (asker, 4000), b"another port");
    world.send_packet(1, &denied);
    world.run(SECOND);
    assert!(world.members[0].got.is_empty());
}

#[test]
fn an_alias_stops_at_its_end_in_both_directions_and_is_asked_for_before() {
    let (mut world, Ends { asker, workload, alias }, known) = world(150);
    let ask = udp((asker, 4000), (alias, PORT), b"?");
    assert!(asked(&mut world).is_empty(), "it holds for longer");
    world.run(50 * SECOND);
    passes(&mut world, (0, &ask), (1, &udp((asker, 4000), (workload, PORT), b"?")));
    assert_eq!(asked(&mut world), [known.address], "less than 100 s are left");
    world.send_packet(0, &ask);
    assert!(asked(&mut world).is_empty(), "not with every packet");
    // A newer one is taken, so that nothing is noticed.
    let newer = alias_of(world.members[1].key(), 160);
    world.members[0].endpoint.learn_alias(world.now_ns, &newer);
    world.run(200 * SECOND);
    passes(&mut world, (0, &ask), (1, &udp((asker, 4000), (workload, PORT), b"?")));
    let answer = udp((workload, PORT), (asker, 4000), b"late");
    world.run(100 * SECOND);
    assert_eq!(world.members[0].endpoint.aliases(world.now_ns).count(), 1);
    // The firewall's flow (300 s) lives on; the alias does not, five minutes after it expired.
    world.run(110 * SECOND);
    asked(&mut world);
    world.members[0].got.clear();
    world.members[1].got.clear();
    world.send_packet(1, &answer);
    world.send_packet(0, &ask);
    world.run(SECOND);
    assert!(world.members[0].got.is_empty() && world.members[1].got.is_empty());
    assert_eq!(asked(&mut world), [known.address], "it is as one that was never known");
    assert_eq!(world.members[0].endpoint.aliases(world.now_ns).count(), 0);
}

#[test]
fn an_alias_that_is_nobody_s_any_more_stops_at_once() {
    let (mut world, Ends { asker, alias, .. }, known) = world(300);
    world.members[0].endpoint.give_up(&known.address);
    world.members[1].got.clear();
    world.send_packet(0, &udp((asker, 4000), (alias, PORT), b"?"));
    world.run(SECOND);
    assert!(world.members[1].got.is_empty());
    assert_eq!(asked(&mut world), [known.address]);
}

#[test]
fn aliases_that_nobody_waits_for_are_not_kept_and_those_that_are_have_a_bound() {
    let mut world = World::routed(1, 5);
    let asker = world.members[0].address();
    let now_ns = world.now_ns;
    let workload = |number: usize| PublicKey(blake3::hash(&number.to_be_bytes()).into());
    let endpoint = &mut world.members[0].endpoint;
    endpoint.learn_alias(now_ns, &alias_of(workload(0), 300));
    assert_eq!(endpoint.aliases(now_ns).count(), 0);
    // More than there are places for peers, and several of one workload.
    for number in 0..2 * ALIASES_MAX {
        let alias = alias_of(workload(number), 300);
        endpoint.send_packet(now_ns, &udp((asker, 4000), (alias.address.into(), PORT), b"?"));
        endpoint.learn_alias(now_ns, &alias);
    }
    assert!((1..=ALIASES_MAX).contains(&endpoint.aliases(now_ns).count()));
    for number in 0..10 {
        let node = PrivateKey::new([number; 32]);
        let alias = Alias::new(node.public(), workload(0), NOW_S..NOW_S + 300);
        endpoint.send_packet(now_ns, &udp((asker, 4000), (alias.address.into(), PORT), b"?"));
        endpoint.learn_alias(now_ns, &alias);
    }
    let key = workload(0);
    assert_eq!(endpoint.aliases(now_ns).filter(|(_, of)| *of == key).count(), 4);
}

/// Whether the TCP checksum of an IPv6 packet is right.
fn is_right(packet: &[u8]) -> bool {
    let word = |it: &[u8]| u32::from(it[0]) << 8 | u32::from(*it.get(1).unwrap_or(&0));
    let words: u32 = packet[8..].chunks(2).map(word).sum();
    let sum = words + 6 + u32::try_from(packet.len() - 40).unwrap();
    sum.is_multiple_of(0xffff)
}

#[test]
fn super_frames_for_an_alias_are_cut_and_their_checksums_are_right() {
    let (mut world, Ends { asker, workload, alias }, _) = world(300);
    // The rules open UDP: the workload's side of the flow is one that it began.
    world.send_packet(1, &tcp((workload, PORT), (asker, 4000), SYN));
    world.run(10 * MS);
    let mut packet = tcp((asker, 4000), (alias, PORT), ACK);
    packet.resize(packet.len() + 5000, 0x55);
    let len = u16::try_from(packet.len() - 40).unwrap();
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    // As the host leaves it: the sum of the pseudo header, the alias included.
    let addresses = packet[8..40].chunks(2).map(|it| u32::from(it[0]) << 8 | u32::from(it[1]));
    let pseudo = (addresses.sum::<u32>() + 6 + u32::from(len)) % 0xffff;
    packet[56..58].copy_from_slice(&u16::try_from(pseudo).unwrap().to_be_bytes());
    let header = VirtioNetHeader {
        checksum: Some(ChecksumField { start: 40, offset: 16 }),
        segmentation: Some(Segmentation {
            kind: SegmentationKind::TcpV6,
            ecn: false,
            payload_bytes: 1200,
            headers_bytes: 60,
        }),
    };
    world.members[1].got.clear();
    world.members[0].endpoint.send_frame(world.now_ns, &header, &packet);
    world.settle(0);
    world.run(SECOND);
    let got = &world.members[1].got;
    assert_eq!(got.len(), 5, "5,000 bytes in packets of 1,200 at most");
    assert!(got.iter().all(|packet| is_right(packet)));
    let IpAddr::V6(workload) = workload else { panic!("members have IPv6") };
    assert!(got.iter().all(|packet| packet[24..40] == workload.octets()));
    let payload: usize = got.iter().map(|packet| packet.len() - 60).sum();
    assert_eq!(payload, 5000);
}

#[test]
fn an_alias_leads_to_a_member_that_is_attached_to_the_same_node_too() {
    let (mut world, Ends { asker, workload, alias }, _) = world(300);
    for (index, other) in [(0, 1), (1, 0)] {
        let key = world.members[other].key();
        world.members[index].endpoint.set_here(&key, true);
    }
    let before = world.passed_on;
    let ask = |to| udp((asker, 4000), (to, PORT), b"?");
    passes(&mut world, (0, &ask(alias)), (1, &ask(workload)));
    let answer = |from| udp((from, PORT), (asker, 4000), b"!");
    passes(&mut world, (1, &answer(workload)), (0, &answer(alias)));
    assert_eq!(world.passed_on, before + 2);
    // A connection from its first segment to its last.
    for (number, flags) in [SYN, ACK, FIN | ACK].into_iter().enumerate() {
        let segment = |to| tcp((asker, 4002), (to, PORT), flags);
        world.send_packet(0, &segment(alias));
        assert_eq!(world.passed_on, before + 3 + number, "the workload's rules refuse TCP");
    }
    assert!(world.members[1].endpoint.counters().dropped(DropReason::InboundDenied) >= 3);
}
