//! Rules about labels, outbound rules and caps: in the firewall, and between members that show each
//! other certificates.

use std::net::IpAddr;
use std::num::NonZeroU64;

use net_vdev::certificate::{Label, LabelCertificate};
use net_vdev::firewall::{Firewall, Packet, Party, Policy, Verdict};
use net_vdev::{Caps, DropReason, Endpoint, PrivateKey, Protocol, PublicKey, Rule};

use crate::packets::{ACK, SYN, echo_reply, echo_request, tcp, udp};
use crate::world::{ONE_WAY_NS, SECOND, World};

const PEER: PublicKey = PublicKey([7; 32]);
const UNIX_S: u64 = crate::world::UNIX_NS / SECOND;

fn group() -> PrivateKey {
    PrivateKey::new([77; 32])
}

fn label(name: &str) -> Label {
    Label { group: group().public(), name: name.parse().unwrap() }
}

fn ends() -> (IpAddr, IpAddr) {
    ("401::1".parse().unwrap(), "401::2".parse().unwrap())
}

fn tcp_rule(who: impl Into<net_vdev::Who>, port: u16) -> Rule {
    Rule { who: who.into(), protocol: Protocol::Tcp, port: Some(port) }
}

struct Wall(Firewall);

impl Wall {
    fn new(policy: &Policy) -> Self {
        Self(Firewall::new(policy, [1, 2]))
    }

    fn comes_in(&mut self, labels: &[Label], packet: &[u8]) -> bool {
        let party = Party { key: &PEER, labels };
        self.0.inbound(0, party, &Packet::parse(packet).unwrap()) == Verdict::Pass
    }

    fn goes_out(&mut self, labels: &[Label], packet: &[u8]) -> bool {
        let party = Party { key: &PEER, labels };
        self.0.outbound(0, party, &Packet::parse(packet).unwrap()) == Verdict::Pass
    }
}

#[test]
fn a_rule_about_a_label_opens_for_who_has_that_very_label() {
    let (us, them) = ends();
    let packet = tcp((them, 5000), (us, 80), SYN);
    let other_group = Label { group: PublicKey([9; 32]), ..label("web") };
    let cases = [
        (vec![], false),
        (vec![label("webs")], false),
        (vec![other_group], false),
        (vec![label("web")], true),
        (vec![label("db"), label("web")], true),
    ];
    for (labels, passes) in cases {
        let policy = Policy { ingress: vec![tcp_rule(label("web"), 80)], ..Policy::default() };
        assert_eq!(Wall::new(&policy).comes_in(&labels, &packet), passes, "{labels:?}");
        let mut wall = Wall::new(&policy);
        assert!(!wall.comes_in(&labels, &tcp((them, 5000), (us, 81), SYN)));
    }
}

#[test]
fn a_flow_that_only_a_label_allowed_stops_in_both_directions_when_the_label_goes() {
    let (us, them) = ends();
    let policy = Policy {
        ingress: vec![tcp_rule(label("web"), 80), tcp_rule(PEER, 81)],
        ..Policy::default()
    };
    let mut wall = Wall::new(&policy);
    let held = [label("web")];
    for port in [80, 81] {
        assert!(wall.comes_in(&held, &tcp((them, 5000), (us, port), SYN)));
        assert!(wall.goes_out(&held, &tcp((us, port), (them, 5000), SYN | ACK)));
    }
    assert!(wall.goes_out(&held, &tcp((us, 4000), (them, 443), SYN)));
    wall.0.relabel(Party { key: &PEER, labels: &[] });
    let (in_80, out_80) = (tcp((them, 5000), (us, 80), ACK), tcp((us, 80), (them, 5000), ACK));
    for _ in 0..3 {
        assert!(!wall.goes_out(&[], &out_80), "this side's packets don't open it again");
        assert!(!wall.comes_in(&[], &in_80));
    }
    assert!(wall.comes_in(&[], &tcp((them, 5000), (us, 81), ACK)), "the key's own rule stays");
    assert!(wall.comes_in(&[], &tcp((them, 443), (us, 4000), SYN | ACK)), "as does our flow");
    wall.0.relabel(Party { key: &PEER, labels: &held });
    assert!(wall.comes_in(&held, &in_80) && wall.goes_out(&held, &out_80), "it came back");
}

#[test]
fn without_outbound_rules_everything_goes_out_and_with_them_what_they_name() {
    let (us, them) = ends();
    let packet = tcp((us, 4000), (them, 443), SYN);
    assert!(Wall::new(&Policy::default()).goes_out(&[], &packet));
    let with =
        |rules: &[Rule]| Wall::new(&Policy { egress: Some(rules.to_vec()), ..Policy::default() });
    assert!(!with(&[]).goes_out(&[], &packet));
    assert!(!with(&[]).goes_out(&[], &udp((us, 1), (them, 53), b"?")));
    assert!(!with(&[]).goes_out(&[], &echo_request(us, them, 1)));
    assert!(with(&[tcp_rule(PEER, 443)]).goes_out(&[], &packet));
    assert!(!with(&[tcp_rule(PEER, 444)]).goes_out(&[], &packet));
    assert!(!with(&[tcp_rule(label("web"), 443)]).goes_out(&[], &packet));
    let mut wall = with(&[tcp_rule(label("web"), 443)]);
    assert!(wall.goes_out(&[label("web")], &packet));
    wall.0.relabel(Party { key: &PEER, labels: &[] });
    assert!(!wall.goes_out(&[], &tcp((us, 4000), (them, 443), ACK)));
    assert!(!wall.comes_in(&[], &tcp((them, 443), (us, 4000), ACK)));
}

#[test]
fn answers_go_out_whatever_the_outbound_rules_say() {
    let (us, them) = ends();
    let mut wall = Wall::new(&Policy {
        ingress: vec![
            tcp_rule(PEER, 80),
            Rule { who: PEER.into(), protocol: Protocol::Icmp, port: None },
        ],
        egress: Some(Vec::new()),
        ..Policy::default()
    });
    assert!(wall.comes_in(&[], &tcp((them, 5000), (us, 80), SYN)));
    assert!(wall.goes_out(&[], &tcp((us, 80), (them, 5000), SYN | ACK)));
    assert!(wall.comes_in(&[], &echo_request(them, us, 3)));
    assert!(wall.goes_out(&[], &echo_reply(us, them, 3)));
    assert!(!wall.goes_out(&[], &tcp((us, 80), (them, 5001), ACK)), "nobody asked from there");
    assert!(!wall.goes_out(&[], &tcp((us, 80), (them, 5000), SYN)), "that is no answer");
}

#[test]
fn caps_count_what_passes_in_each_direction_and_nothing_that_is_denied() {
    let (us, them) = ends();
    let caps = Caps { packets_per_s: NonZeroU64::new(10), bytes_per_s: None };
    let ingress = vec![Rule { who: PEER.into(), protocol: Protocol::Udp, port: Some(7) }];
    let mut wall = Firewall::new(&Policy { ingress, egress: None, caps }, [1, 2]);
    let party = Party { key: &PEER, labels: &[] };
    let packet = |bytes: Vec<u8>| Packet::parse(&bytes).unwrap();
    let (allowed, denied, out) = (
        packet(udp((them, 1), (us, 7), b"")),
        packet(udp((them, 1), (us, 8), b"")),
        packet(udp((us, 9), (them, 9), b"")),
    );
    assert!((0..1000).all(|_| wall.inbound(0, party, &denied) == Verdict::Deny));
    let passed = (0..1000).filter(|_| wall.inbound(0, party, &allowed) == Verdict::Pass).count();
    assert_eq!(passed, 128, "what may pass at once");
    assert_eq!(wall.inbound(0, party, &allowed), Verdict::Cap);
    assert_eq!(wall.outbound(0, party, &out), Verdict::Pass, "counted apart");
    let later = (0..1000).filter(|_| wall.inbound(SECOND, party, &allowed) == Verdict::Pass);
    assert_eq!(later.count(), 10);
}

/// Two members: 1 lets UDP port 7 in from whoever has the label, and knows no key.
fn labelled_world(seed: u64) -> World {
    let mut world = World::new(2, seed);
    let mut config = world.members[1].config.clone();
    config.rules = vec![Rule { who: label("web").into(), protocol: Protocol::Udp, port: Some(7) }];
    world.members[1].endpoint = Endpoint::new(config, [8; 32]).unwrap();
    world
}

fn certificate(world: &World, name: &str, member: usize, seconds: u64) -> Vec<u8> {
    let member = world.members[member].key();
    let expires_unix_s = UNIX_S + world.now_ns / SECOND + seconds;
    let certificate = LabelCertificate { label: label(name), member, expires_unix_s };
    certificate.sign(&group(), &[4; 64]).unwrap()
}

fn show(world: &mut World, member: usize, certificates: &[Vec<u8>]) -> usize {
    let now_ns = world.now_ns;
    let count = world.members[member].endpoint.set_certificates(now_ns, certificates);
    world.settle(member);
    count
}

#[test]
fn a_member_that_shows_its_label_is_let_in_from_its_first_packet_on() {
    let mut world = labelled_world(61);
    let denied = world.send(0, 1);
    world.run(SECOND);
    assert!(!world.got_once(1, &denied));
    assert_eq!(world.members[1].endpoint.counters().dropped(DropReason::InboundDenied), 1);

    let mut world = labelled_world(61);
    let certificates = [certificate(&world, "web", 0, 60)];
    assert_eq!(show(&mut world, 0, &certificates), 1);
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &packet));
    let (now_ns, key) = (world.now_ns, world.members[0].key());
    assert_eq!(world.members[1].endpoint.labels(now_ns, &key), [label("web")]);
}

#[test]
fn a_certificate_of_another_member_or_group_or_time_lets_nobody_in() {
    let mut world = labelled_world(62);
    let stolen = certificate(&world, "web", 1, 60);
    let ended = certificate(&world, "web", 0, 0);
    let mut changed = certificate(&world, "web", 0, 60);
    changed[70] ^= 1;
    assert_eq!(show(&mut world, 0, &[stolen, ended, changed]), 0);
    let other = LabelCertificate {
        label: Label { group: PrivateKey::new([78; 32]).public(), ..label("web") },
        member: world.members[0].key(),
        expires_unix_s: UNIX_S + 60,
    };
    let other = other.sign(&PrivateKey::new([78; 32]), &[4; 64]).unwrap();
    assert_eq!(show(&mut world, 0, &[other]), 1);
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(!world.got_once(1, &packet));
}

#[test]
fn a_label_that_ends_stops_what_it_allowed_and_a_renewed_one_lets_it_on() {
    let mut world = labelled_world(63);
    let certificates = [certificate(&world, "web", 0, 5)];
    show(&mut world, 0, &certificates);
    let first = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &first));
    world.run(5 * SECOND);
    let late = world.send(0, 1);
    world.run(SECOND);
    assert!(!world.got_once(1, &late), "the flow was open, and ended with the label");
    let certificates = [certificate(&world, "web", 0, 60)];
    show(&mut world, 0, &certificates);
    world.run(ONE_WAY_NS);
    let renewed = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &renewed));
}

#[test]
fn a_lost_message_of_certificates_is_made_up_for_by_the_next_packets() {
    let mut world = labelled_world(64);
    let certificates = [certificate(&world, "web", 0, 600)];
    show(&mut world, 0, &certificates);
    // The session comes up while everything longer than a small packet is lost on the way.
    world.send(0, 1);
    world.run(2 * ONE_WAY_NS);
    world.faults.lose_kind = Some(3);
    world.run(2 * ONE_WAY_NS);
    world.faults.lose_kind = None;
    let mut got = false;
    for _ in 0..20 {
        let packet = world.send(0, 1);
        world.run(SECOND / 2);
        got |= world.got_once(1, &packet);
    }
    assert!(got, "shown again");
}

#[test]
fn an_outbound_rule_about_a_label_waits_for_the_peer_to_show_it() {
    let mut world = World::new(2, 65);
    let mut config = world.members[0].config.clone();
    config.egress =
        Some(vec![Rule { who: label("web").into(), protocol: Protocol::Udp, port: Some(7) }]);
    world.members[0].endpoint = Endpoint::new(config, [8; 32]).unwrap();
    let first = world.send(0, 1);
    world.run(SECOND);
    let second = world.send(0, 1);
    world.run(SECOND);
    assert!(!world.got_once(1, &first) && !world.got_once(1, &second), "it has no such label");
    assert_eq!(world.members[0].endpoint.counters().dropped(DropReason::OutboundDenied), 2);
    let certificates = [certificate(&world, "web", 1, 60)];
    assert_eq!(show(&mut world, 1, &certificates), 1);
    world.run(SECOND);
    let third = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &third));
}

#[test]
fn a_flood_of_certificates_costs_a_bounded_number_of_signatures_and_little_memory() {
    let mut world = labelled_world(66);
    world.send(0, 1);
    world.run(SECOND);
    let before = world.members[1].endpoint.counters().dropped(DropReason::InboundControl);
    for number in 0..100u64 {
        let certificates = [certificate(&world, "web", 0, 60 + number)];
        show(&mut world, 0, &certificates);
        world.run(ONE_WAY_NS);
    }
    let dropped = world.members[1].endpoint.counters().dropped(DropReason::InboundControl);
    assert!((90..100).contains(&(dropped - before)), "{dropped}");
}
