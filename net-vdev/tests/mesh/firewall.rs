//! The firewall's table: default deny, rules by whole keys, flows and what is related to them.

use std::net::IpAddr;

use net_vdev::PublicKey;
use net_vdev::firewall::{
    FLOWS_MAX, Firewall, Packet, PacketError, Party, Policy, Protocol, Rule, Verdict,
};
use proptest::prelude::*;

use crate::packets::{ACK, FIN, RST, SYN, echo_reply, echo_request, icmp, ip, tcp, too_big, udp};

const SECOND: u64 = 1_000_000_000;
const PEER: PublicKey = PublicKey([7; 32]);
const OTHER: PublicKey = PublicKey([8; 32]);

const OUTSIDE: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x402, 0, 0, 0, 0, 0, 0, 9));

/// This side's and the peer's address, in both families.
fn families() -> [(IpAddr, IpAddr); 2] {
    let address = |text: &str| text.parse().unwrap();
    [(address("10.0.0.1"), address("10.0.0.2")), (address("401::1"), address("401::2"))]
}

fn firewall(rules: &[Rule]) -> Firewall {
    let policy = Policy { ingress: rules.to_vec(), ..Policy::default() };
    Firewall::new(&policy, [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345])
}

fn rule(protocol: Protocol, port: Option<u16>) -> Rule {
    Rule { who: PEER.into(), protocol, port }
}

fn comes_in(wall: &mut Firewall, now_ns: u64, from: &PublicKey, packet: &[u8]) -> bool {
    wall.inbound(now_ns, Party { key: from, labels: &[] }, &Packet::parse(packet).unwrap())
        == Verdict::Pass
}

fn goes_out(wall: &mut Firewall, now_ns: u64, packet: &[u8]) -> bool {
    goes_out_to(wall, now_ns, &PEER, packet)
}

fn goes_out_to(wall: &mut Firewall, now_ns: u64, to: &PublicKey, packet: &[u8]) -> bool {
    wall.outbound(now_ns, Party { key: to, labels: &[] }, &Packet::parse(packet).unwrap())
        == Verdict::Pass
}

#[test]
fn without_rules_nothing_comes_in() {
    for (us, them) in families() {
        let mut wall = firewall(&[]);
        for packet in [
            tcp((them, 5000), (us, 80), SYN),
            tcp((them, 5000), (us, 80), ACK),
            tcp((them, 5000), (us, 80), SYN | ACK),
            udp((them, 53), (us, 53), b"x"),
            echo_request(them, us, 1),
            echo_reply(them, us, 1),
            too_big(them, us, &udp((us, 1), (them, 2), b"x")),
            icmp(them, us, (5, 137), &[0; 40]),
            icmp(them, us, (13, 135), &[0; 40]),
        ] {
            assert!(!comes_in(&mut wall, 0, &PEER, &packet), "{packet:02x?}");
        }
    }
}

#[test]
fn a_rule_opens_its_protocol_and_port_for_its_key_only() {
    for (us, them) in families() {
        let mut wall = firewall(&[rule(Protocol::Tcp, Some(80)), rule(Protocol::Icmp, Some(9))]);
        assert!(comes_in(&mut wall, 0, &PEER, &tcp((them, 5000), (us, 80), SYN)));
        assert!(comes_in(&mut wall, 0, &PEER, &echo_request(them, us, 1)));
        assert!(!comes_in(&mut wall, 0, &PEER, &tcp((them, 5000), (us, 81), SYN)));
        assert!(!comes_in(&mut wall, 0, &PEER, &udp((them, 5000), (us, 80), b"")));
        assert!(!comes_in(&mut wall, 0, &OTHER, &tcp((them, 5000), (us, 80), SYN)));
        assert!(!comes_in(&mut wall, 0, &OTHER, &tcp((them, 5000), (us, 80), ACK)));
    }
}

#[test]
fn a_key_that_differs_in_one_bit_anywhere_is_another_key() {
    let (us, them) = families()[1];
    for bit in 0..256 {
        let mut similar = PEER;
        similar.0[bit / 8] ^= 1 << (bit % 8);
        let mut wall = firewall(&[rule(Protocol::Udp, None)]);
        assert!(!comes_in(&mut wall, 0, &similar, &udp((them, 1), (us, 2), b"")), "bit {bit}");
        // Nor does it share the flows.
        assert!(goes_out(&mut wall, 0, &tcp((us, 1), (them, 2), SYN)));
        let answer = tcp((them, 2), (us, 1), SYN | ACK);
        assert!(!comes_in(&mut wall, 0, &similar, &answer), "bit {bit}");
        assert!(comes_in(&mut wall, 0, &PEER, &answer));
    }
}

#[test]
fn answers_to_what_went_out_come_in_and_nothing_beside_them() {
    for (us, them) in families() {
        let mut wall = firewall(&[]);
        assert!(goes_out(&mut wall, 0, &udp((us, 1000), (them, 53), b"?")));
        assert!(comes_in(&mut wall, 1, &PEER, &udp((them, 53), (us, 1000), b"!")));
        assert!(!comes_in(&mut wall, 1, &PEER, &udp((them, 54), (us, 1000), b"!")));
        assert!(!comes_in(&mut wall, 1, &PEER, &udp((them, 53), (us, 1001), b"!")));
        assert!(!comes_in(&mut wall, 1, &PEER, &tcp((them, 53), (us, 1000), ACK)));
        assert!(goes_out(&mut wall, 0, &echo_request(us, them, 77)));
        assert!(comes_in(&mut wall, 1, &PEER, &echo_reply(them, us, 77)));
        assert!(!comes_in(&mut wall, 1, &PEER, &echo_reply(them, us, 78)));
        assert!(!comes_in(&mut wall, 1, &PEER, &echo_request(them, us, 77)));
    }
}

#[test]
fn errors_about_a_flow_come_in_from_its_peer_and_others_do_not() {
    for (us, them) in families() {
        let mut wall = firewall(&[]);
        for sent in [
            tcp((us, 1000), (them, 80), SYN),
            udp((us, 1000), (them, 53), b"?"),
            echo_request(us, them, 5),
        ] {
            assert!(!comes_in(&mut wall, 0, &PEER, &too_big(them, us, &sent)), "not sent yet");
            assert!(goes_out(&mut wall, 0, &sent));
            assert!(comes_in(&mut wall, 1, &PEER, &too_big(them, us, &sent)));
            assert!(!comes_in(&mut wall, 1, &OTHER, &too_big(them, us, &sent)), "of another");
        }
        let quoted = udp((us, 1000), (them, 53), b"?");
        let elsewhere = if us.is_ipv4() { "10.0.0.9" } else { "401::9" };
        let astray = too_big(them, elsewhere.parse().unwrap(), &quoted);
        assert!(!comes_in(&mut wall, 1, &PEER, &astray), "to another address of this side");
        let never_sent = udp((us, 1000), (them, 54), b"?");
        assert!(!comes_in(&mut wall, 1, &PEER, &too_big(them, us, &never_sent)));
        let reversed = udp((them, 53), (us, 1000), b"?");
        assert!(!comes_in(&mut wall, 1, &PEER, &too_big(them, us, &reversed)));
    }
}

#[test]
fn with_outbound_rules_replies_and_errors_go_out_only_about_what_came_in() {
    for (us, them) in families() {
        let mut policy = Policy {
            ingress: vec![rule(Protocol::Icmp, None), rule(Protocol::Udp, Some(7))],
            egress: Some(Vec::new()),
            ..Policy::default()
        };
        let mut wall = Firewall::new(&policy, [1, 2]);
        let ask = |port| udp((them, port), (us, 7), b"?");
        // Nobody asked: this would carry anything to anybody.
        assert!(!goes_out(&mut wall, 0, &echo_reply(us, them, 5)));
        assert!(!goes_out(&mut wall, 0, &too_big(us, them, &ask(9))));
        assert!(!goes_out(&mut wall, 0, &too_big(us, them, &[])));
        assert!(comes_in(&mut wall, 0, &PEER, &echo_request(them, us, 5)));
        assert!(goes_out(&mut wall, 1, &echo_reply(us, them, 5)));
        assert!(!goes_out(&mut wall, 1, &echo_reply(us, them, 6)));
        assert!(!goes_out_to(&mut wall, 1, &OTHER, &echo_reply(us, them, 5)));
        assert!(!goes_out(&mut wall, 1, &echo_request(us, them, 5)), "a question of its own");
        assert!(comes_in(&mut wall, 1, &PEER, &ask(9)));
        assert!(goes_out(&mut wall, 2, &too_big(us, them, &ask(9))));
        assert!(!goes_out(&mut wall, 2, &too_big(us, them, &ask(10))));
        assert!(!goes_out_to(&mut wall, 2, &OTHER, &too_big(us, them, &ask(9))));
        assert!(!goes_out(&mut wall, 62 * SECOND, &echo_reply(us, them, 5)), "long ago");
        // Who may send echoes may send these.
        policy.egress = Some(vec![rule(Protocol::Icmp, None)]);
        let mut wall = Firewall::new(&policy, [1, 2]);
        assert!(goes_out(&mut wall, 0, &echo_reply(us, them, 5)));
        assert!(goes_out(&mut wall, 0, &too_big(us, them, &ask(9))));
        assert!(!goes_out_to(&mut wall, 0, &OTHER, &echo_reply(us, them, 5)));
        assert!(goes_out(&mut wall, 0, &echo_request(us, them, 5)));
        assert!(comes_in(&mut wall, 0, &PEER, &echo_request(them, us, 5)), "with the same number");
        assert!(comes_in(&mut wall, 0, &PEER, &echo_reply(them, us, 5)));
    }
}

#[test]
fn a_peer_can_t_open_a_connection_on_a_flow_that_this_side_opened() {
    let (us, them) = families()[1];
    let mut wall = firewall(&[]);
    assert!(goes_out(&mut wall, 0, &tcp((us, 1000), (them, 80), SYN)));
    assert!(comes_in(&mut wall, 0, &PEER, &tcp((them, 80), (us, 1000), SYN | ACK)));
    assert!(!comes_in(&mut wall, 0, &PEER, &tcp((them, 80), (us, 1000), SYN)));
}

#[test]
fn flows_expire_and_closed_ones_sooner() {
    let (us, them) = families()[1];
    let syn = tcp((us, 1000), (them, 80), SYN);
    let answer = |flags| tcp((them, 80), (us, 1000), flags);
    let mut wall = firewall(&[]);
    assert!(goes_out(&mut wall, 0, &syn));
    assert!(!comes_in(&mut wall, 240 * SECOND, &PEER, &answer(SYN | ACK)), "half-open");
    assert!(goes_out(&mut wall, 300 * SECOND, &syn));
    assert!(comes_in(&mut wall, 301 * SECOND, &PEER, &answer(SYN | ACK)));
    assert!(comes_in(&mut wall, 7000 * SECOND, &PEER, &answer(ACK)), "established");
    assert!(comes_in(&mut wall, 7000 * SECOND, &PEER, &answer(FIN | ACK)));
    assert!(goes_out(&mut wall, 7000 * SECOND, &tcp((us, 1000), (them, 80), FIN | ACK)));
    assert!(comes_in(&mut wall, 7119 * SECOND, &PEER, &answer(ACK)), "closing");
    assert!(!comes_in(&mut wall, 7240 * SECOND, &PEER, &answer(ACK)), "closed");
    assert!(goes_out(&mut wall, 8000 * SECOND, &syn));
    assert!(comes_in(&mut wall, 8000 * SECOND, &PEER, &answer(RST | ACK)));
    assert!(!comes_in(&mut wall, 8120 * SECOND, &PEER, &answer(ACK)), "reset");
}

#[test]
fn the_table_is_bounded_and_the_guest_s_own_connections_outlive_a_peer_s_flood() {
    let (us, them) = families()[1];
    let mut wall = firewall(&[rule(Protocol::Udp, Some(9))]);
    let connections: Vec<u16> = (1..=64).collect();
    for &port in &connections {
        assert!(goes_out(&mut wall, 0, &udp((us, port), (OUTSIDE, 53), b"?")));
        assert!(goes_out(&mut wall, 0, &tcp((us, port), (them, 80), SYN)));
        assert!(comes_in(&mut wall, 0, &PEER, &tcp((them, 80), (us, port), SYN | ACK)));
    }
    for number in 0..4 * u32::try_from(FLOWS_MAX).unwrap() {
        let from = IpAddr::V6((u128::from(number) << 64).into());
        let flood = udp((from, 9), (us, 9), b"");
        assert!(comes_in(&mut wall, 1, &PEER, &flood), "a rule lets it in, flow or not");
    }
    assert_eq!(wall.flow_capacity(), FLOWS_MAX);
    assert!(wall.evictions() > 0);
    for port in connections {
        assert!(comes_in(&mut wall, 2, &PEER, &tcp((them, 80), (us, port), ACK)), "port {port}");
        let answer = udp((OUTSIDE, 53), (us, port), b"!");
        assert!(comes_in(&mut wall, 2, &PEER, &answer), "port {port}");
    }
}

#[test]
fn a_peer_s_flood_that_the_guest_answers_leaves_the_idle_flows_of_other_peers() {
    let (us, them) = families()[1];
    let mut wall = firewall(&[rule(Protocol::Udp, Some(9))]);
    // The guest asked another member long ago, and each of these answers is still to come.
    let asked: Vec<u16> = (1000..1100).collect();
    for &port in &asked {
        let question = udp((us, port), (OUTSIDE, 53), b"?");
        assert!(goes_out_to(&mut wall, 0, &OTHER, &question));
    }
    let flows = 4 * u32::try_from(FLOWS_MAX).unwrap();
    let from = |number: u32| IpAddr::V6((0x402 << 112 | u128::from(number)).into());
    for number in 0..flows {
        assert!(comes_in(&mut wall, 1, &PEER, &udp((from(number), 9), (us, 9), b"")));
    }
    // The answers come when most of these flows are forgotten, and open them anew from this side.
    for number in 0..flows {
        assert!(goes_out(&mut wall, 2, &udp((us, 9), (from(number), 9), b"")));
    }
    assert_eq!(wall.flow_capacity(), FLOWS_MAX);
    assert!(wall.evictions() > 0);
    for port in asked {
        let answer = udp((OUTSIDE, 53), (us, port), b"!");
        assert!(comes_in(&mut wall, 3, &OTHER, &answer), "port {port}");
    }
    // Nor is a newcomer kept out by a table that one peer fills.
    assert!(goes_out_to(&mut wall, 4, &OTHER, &tcp((us, 1), (them, 80), SYN)));
    assert!(comes_in(&mut wall, 4, &OTHER, &tcp((them, 80), (us, 1), SYN | ACK)));
}

#[test]
fn a_small_number_of_flows_takes_a_small_table() {
    let (us, them) = families()[1];
    let mut wall = firewall(&[]);
    for round in 0..1000u64 {
        // Each round's flows have expired before the next.
        for port in 0..20 {
            assert!(goes_out(&mut wall, round * 301 * SECOND, &udp((us, port), (them, 53), b"")));
        }
    }
    assert!(wall.flow_capacity() <= 256, "{}", wall.flow_capacity());
}

#[test]
fn what_hides_its_ports_is_refused() {
    let [(us4, them4), (us6, them6)] = families();
    let plain = udp((them4, 1), (us4, 2), b"x");
    let refused = |packet: &[u8], error| assert_eq!(Packet::parse(packet), Err(error));
    for (byte, value) in [(6, 0x20), (6, 0x01), (7, 1)] {
        let mut fragment = plain.clone();
        fragment[byte] |= value;
        refused(&fragment, PacketError::Fragment);
    }
    let mut options = plain.clone();
    options[0] = 0x46;
    refused(&options, PacketError::Extension);
    for (next_header, error) in [
        (0, PacketError::Extension),
        (43, PacketError::Extension),
        (44, PacketError::Fragment),
        (60, PacketError::Extension),
        (50, PacketError::Extension),
        (59, PacketError::Protocol),
        (132, PacketError::Protocol),
        (1, PacketError::Protocol),
    ] {
        refused(&ip(them6, us6, next_header, &[0; 40]), error);
    }
    let mut ipv4 = plain.clone();
    ipv4[9] = 58;
    refused(&ipv4, PacketError::Protocol);
    refused(&[0x50; 60], PacketError::Version);
}

#[test]
fn every_cut_of_every_packet_is_refused_and_padding_is_cut_off() {
    for (us, them) in families() {
        for packet in [
            tcp((us, 1), (them, 2), SYN),
            udp((us, 1), (them, 2), b"payload"),
            echo_request(us, them, 3),
        ] {
            for len in 0..packet.len() {
                assert_eq!(Packet::parse(&packet[..len]), Err(PacketError::Truncated));
            }
            let mut padded = packet.clone();
            padded.extend_from_slice(&[0; 30]);
            assert_eq!(Packet::parse(&padded).unwrap().len, packet.len());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut wall = firewall(&[rule(Protocol::Tcp, None)]);
        for version in [0x40, 0x45, 0x60] {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.len <= bytes.len());
                wall.outbound(0, Party { key: &PEER, labels: &[] }, &packet);
                wall.inbound(0, Party { key: &PEER, labels: &[] }, &packet);
            }
        }
    }

    /// Against a model without limits or expiry: within a second and a few flows, a UDP packet
    /// comes in exactly if its reverse went out or a rule names it.
    #[test]
    fn it_agrees_with_a_set_of_flows(
        steps in prop::collection::vec((any::<bool>(), 0u16..6, 0u16..6), 1..200),
    ) {
        let (us, them) = families()[1];
        let mut wall = firewall(&[rule(Protocol::Udp, Some(3))]);
        let mut sent = std::collections::BTreeSet::new();
        for (out, ours, theirs) in steps {
            if out {
                prop_assert!(goes_out(&mut wall, 0, &udp((us, ours), (them, theirs), b"")));
                sent.insert((ours, theirs));
            } else {
                let came = comes_in(&mut wall, 0, &PEER, &udp((them, theirs), (us, ours), b""));
                prop_assert_eq!(came, ours == 3 || sent.contains(&(ours, theirs)));
            }
        }
    }
}
