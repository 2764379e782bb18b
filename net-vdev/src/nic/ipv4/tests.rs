use proptest::prelude::*;

use super::translate::{IPV6_BYTES, UDP};
use super::*;
use crate::offload::{ChecksumField, Segmentation, SegmentationKind, pseudo_header};

const TCP: u8 = 6;
const ICMPV6: u8 = 58;
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 33);

fn ends() -> Ends {
    let (member, exit) = (PublicKey([7; 32]).address(), PublicKey([9; 32]).address());
    Ends { guest: GUEST, member, router: ROUTER, exit }
}

fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    }
}

fn has_right_checksums(packet: &[u8]) -> bool {
    let (ip_bytes, protocol, addresses) =
        if is_ipv6(packet) { (40, packet[6], 8..40) } else { (20, packet[9], 12..20) };
    let transport = &packet[ip_bytes..];
    let sum = Sum::of(transport);
    let pseudo = pseudo_header(&packet[addresses], protocol, transport.len());
    let sum = if protocol == ICMP { sum } else { sum.plus(pseudo) };
    sum.is_right() && (ip_bytes == 40 || Sum::of(&packet[..20]).is_right())
}

/// A packet of IPv4 with right checksums.
fn packet(protocol: u8, (from, to): (Ipv4Addr, Ipv4Addr), transport: &[u8]) -> Vec<u8> {
    let len = (20 + transport.len()) as u16;
    let mut packet = vec![0x45, 0x28, 0, 0, 0, 0, 0x40, 0, 61, protocol, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let field = Sum::of(&packet).field();
    packet[10..12].copy_from_slice(&field);
    packet.extend_from_slice(transport);
    let at = 20 + checksum_at(protocol);
    packet[at..at + 2].fill(0);
    let sum = Sum::of(&packet[20..]);
    let pseudo = pseudo_header(&packet[12..20], protocol, transport.len());
    let field = if protocol == ICMP { sum } else { sum.plus(pseudo) }.field();
    let field = if protocol == UDP && field == [0, 0] { [0xff; 2] } else { field };
    packet[at..at + 2].copy_from_slice(&field);
    packet
}

/// Transports of each protocol that is translated.
fn transport() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let bytes = prop::collection::vec(any::<u8>(), 0..1000);
    (0..4_u8, any::<[u8; 4]>(), bytes).prop_map(|(kind, ports, payload)| match kind {
        0 => (TCP, [&ports, &[0; 8][..], &[0x50, 0x10, 0, 0, 0, 0, 0, 0], &payload].concat()),
        1 => {
            let [high, low] = (8 + payload.len() as u16).to_be_bytes();
            (UDP, [&ports, &[high, low, 0, 0][..], &payload].concat())
        }
        2 => (ICMP, [&[8, 0, 0, 0][..], &ports, &payload].concat()),
        _ => (ICMP, [&[0, 0, 0, 0][..], &ports, &payload].concat()),
    })
}

/// The bytes of an ICMP error of IPv4 about a packet of the guest's.
fn error(kind: u8, code: u8, value: [u8; 4], about: &[u8]) -> Vec<u8> {
    let quoted = &about[..about.len().min(548)];
    packet(ICMP, (OUTSIDE, GUEST), &[&[kind, code, 0, 0][..], &value, quoted].concat())
}

proptest! {
    #[test]
    fn there_and_back_changes_nothing(
        (protocol, transport) in transport(),
        to in any::<u32>().prop_map(Ipv4Addr::from_bits),
        leaves in any::<bool>(),
    ) {
        prop_assume!(to != GUEST && to != ROUTER);
        let (mut there, mut back) = (Vec::new(), Vec::new());
        let addresses = if leaves { (GUEST, to) } else { (to, GUEST) };
        let original = packet(protocol, addresses, &transport);
        let header = VirtioNetHeader::default();
        prop_assert_eq!(to_ipv6(&ends(), &header, &original, &mut there), Some(header));
        prop_assert!(has_right_checksums(&there));
        prop_assert_eq!(there.len(), original.len() + LONGER_BYTES);
        prop_assert!(Packet::parse(&there).is_ok());
        prop_assert_eq!(to_ipv4(&ends(), &there, &mut back), Some(()));
        prop_assert_eq!(back, original);
    }

    #[test]
    fn a_wrong_checksum_stays_wrong(
        (protocol, transport) in transport(),
        at in any::<prop::sample::Index>(),
        change in 1..=u8::MAX,
    ) {
        let mut original = packet(protocol, (GUEST, OUTSIDE), &transport);
        // Not the type of ICMP, which decides what the message is.
        let at = 24 + at.index(original.len() - 24);
        original[at] ^= change;
        let is_empty_field = protocol == UDP && original[26..28] == [0, 0];
        let was_right = has_right_checksums(&original);
        prop_assume!(!is_empty_field && !was_right);
        let mut there = Vec::new();
        if to_ipv6(&ends(), &VirtioNetHeader::default(), &original, &mut there).is_some() {
            prop_assert!(!has_right_checksums(&there));
        }
    }

    #[test]
    fn an_error_is_about_what_the_other_side_sent((protocol, transport) in transport()) {
        let about = packet(protocol, (GUEST, OUTSIDE), &transport);
        for (kind, code, value) in
            [(3, 1, [0; 4]), (3, 2, [0; 4]), (3, 3, [0; 4]), (3, 10, [0; 4]), (11, 0, [0; 4])]
        {
            let original = error(kind, code, value, &about);
            let (mut there, mut back) = (Vec::new(), Vec::new());
            let header = VirtioNetHeader::default();
            let done = to_ipv6(&ends(), &header, &original, &mut there);
            prop_assert_eq!(done, Some(header));
            prop_assert!(has_right_checksums(&there));
            let read = Packet::parse(&there).unwrap();
            let Transport::Error(quoted) = read.transport else { panic!("{read:?}") };
            // A reply to an echo is nobody's flow.
            let is_reply = (protocol, transport[0]) == (ICMP, 0);
            let source = quoted.map(|quoted| quoted.source);
            prop_assert_eq!(source, (!is_reply).then_some(IpAddr::V6(ends().member)));
            prop_assert_eq!(to_ipv4(&ends(), &there, &mut back), Some(()));
            prop_assert!(has_right_checksums(&back));
            // 3.1 and 3.10 stand for several codes, of which these are the ones to come back as.
            prop_assert_eq!(back, original);
        }
    }

    #[test]
    fn any_bytes_are_translated_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut into = Vec::new();
        for first in [0x45, 0x60] {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let header = VirtioNetHeader::default();
            if to_ipv6(&ends(), &header, &bytes, &mut into).is_some() {
                prop_assert!(is_ipv6(&into) && into.len() >= IPV6_BYTES);
            }
            if to_ipv4(&ends(), &bytes, &mut into).is_some() {
                prop_assert!(Sum::of(&into[..20]).is_right());
            }
            let _answer = answer_dhcp(&bytes, &lease(&ends()));
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_gets_one() {
    let mut original = packet(UDP, (GUEST, OUTSIDE), &[0, 9, 0, 53, 0, 11, 0, 0, 1, 2, 3]);
    original[26..28].fill(0);
    let mut there = Vec::new();
    assert!(to_ipv6(&ends(), &VirtioNetHeader::default(), &original, &mut there).is_some());
    assert!(has_right_checksums(&there));
}

#[test]
fn a_packet_too_big_is_told_in_the_other_familys_terms() {
    let about = packet(UDP, (GUEST, OUTSIDE), &[0, 9, 0, 53, 0, 8, 0, 0]);
    let (mut there, mut back) = (Vec::new(), Vec::new());
    let original = error(3, 4, [0, 0, 0x05, 0x50], &about);
    assert!(to_ipv6(&ends(), &VirtioNetHeader::default(), &original, &mut there).is_some());
    assert_eq!((there[40], &there[44..48]), (2, &[0, 0, 0x05, 0x64][..]));
    assert_eq!(to_ipv4(&ends(), &there, &mut back), Some(()));
    assert_eq!(back, original);
}

#[test]
fn a_super_frame_stays_one() {
    let segment =
        [&[0, 9, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0][..], &[7; 9000]];
    let mut original = packet(TCP, (GUEST, OUTSIDE), &segment.concat());
    let partial = pseudo_header(&original[12..20], TCP, original.len() - 20).partial();
    original[36..38].copy_from_slice(&partial);
    let frame = |kind, ip_bytes: u16| VirtioNetHeader {
        checksum: Some(ChecksumField { start: ip_bytes, offset: 16 }),
        segmentation: Some(Segmentation {
            kind,
            ecn: false,
            payload_bytes: 1300,
            headers_bytes: ip_bytes + 20,
        }),
    };
    let mut there = Vec::new();
    let header = to_ipv6(&ends(), &frame(SegmentationKind::TcpV4, 20), &original, &mut there);
    assert_eq!(header, Some(frame(SegmentationKind::TcpV6, 40)));
    assert_eq!(there[56..58], pseudo_header(&there[8..40], TCP, there.len() - 40).partial());
    assert_eq!(there[60..], original[40..]);
}

#[test]
fn fragments_options_and_other_protocols_are_refused() {
    let mut into = Vec::new();
    let plain = packet(UDP, (GUEST, OUTSIDE), &[0, 9, 0, 53, 0, 8, 0, 0]);
    for (at, byte) in [(0, 0x46), (6, 0x20), (7, 1), (9, 50), (9, ICMPV6)] {
        let mut odd = plain.clone();
        odd[at] = byte;
        assert_eq!(to_ipv6(&ends(), &VirtioNetHeader::default(), &odd, &mut into), None, "{at}");
    }
}

#[test]
fn the_routers_and_the_guests_addresses_have_one_spelling() {
    let ends = ends();
    for address in [GUEST, ROUTER, OUTSIDE] {
        assert_eq!(ends.ipv4(ends.ipv6(address)), Some(address));
    }
    assert_eq!(ends.ipv4("64:ff9b::192.0.0.2".parse().unwrap()), None);
    assert_eq!(ends.ipv4(PublicKey([1; 32]).address()), None);
}

/// A client's message with these options.
fn client(options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&[1, 2, 3, 4]);
    message[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    message.extend_from_slice(&[99, 130, 83, 99]);
    message.extend_from_slice(options);
    message
}

/// The answer's own address field and type.
fn answered(options: &[u8], lease: &Lease) -> Option<(Ipv4Addr, u8)> {
    let packet = answer_dhcp(&client(options), lease)?;
    assert!(has_right_checksums(&packet));
    assert_eq!(packet[28..36], [2, 1, 6, 0, 1, 2, 3, 4]);
    assert_eq!(packet[56..62], [2, 0, 0, 0, 0, 9]);
    assert_eq!(packet[268..271], [53, 1, packet[270]]);
    Some((<[u8; 4]>::try_from(&packet[44..48]).unwrap().into(), packet[270]))
}

#[test]
fn the_guests_address_is_offered_and_given_and_no_other() {
    let lease = lease(&ends());
    assert_eq!(answered(&[53, 1, 1, 255], &lease), Some((GUEST, 2)));
    let request = |address: Ipv4Addr, server: Ipv4Addr| {
        let (a, s) = (address.octets(), server.octets());
        [&[53, 1, 3, 50, 4][..], &a, &[54, 4], &s, &[255]].concat()
    };
    assert_eq!(answered(&request(GUEST, ROUTER), &lease), Some((GUEST, 5)));
    assert_eq!(answered(&request(OUTSIDE, ROUTER), &lease), Some((Ipv4Addr::UNSPECIFIED, 6)));
    assert_eq!(answered(&request(GUEST, OUTSIDE), &lease), None, "another server's");
    assert_eq!(answered(&[53, 1, 8, 255], &lease), Some((Ipv4Addr::UNSPECIFIED, 5)));
    for silent in [&[53, 1, 7, 255][..], &[53, 1, 4, 255], &[255], &[53, 9, 1], &[54, 3, 1, 2, 3]] {
        assert_eq!(answered(silent, &lease), None, "{silent:?}");
    }
}

#[test]
fn who_gives_its_name_is_answered_by_it() {
    let lease = Lease { prefix_bits: 32, ..lease(&ends()) };
    let message = client(&[53, 1, 1, 61, 3, 1, 2, 3, 255]);
    let packet = answer_dhcp(&message, &lease).unwrap();
    let has = |option: &[u8]| packet.windows(option.len()).any(|window| window == option);
    assert!(has(&[61, 3, 1, 2, 3]));
    // The router is not in a network of one address: how to reach it is said.
    assert!(has(&[121, 14, 32, 192, 0, 0, 1, 0, 0, 0, 0, 0, 192, 0, 0, 1]));
    assert!(has(&[26, 2, 0x05, 0x64]), "1,380 bytes");
}

/// A member with an exit, and its card's translator.
fn card() -> (Endpoint, Ipv4) {
    let exits = crate::endpoint::Exits { through: Some(PublicKey([9; 32])), ..Default::default() };
    let config = crate::Config { exits, ..crate::Config::new(crate::PrivateKey::new([1; 32]), 0) };
    (Endpoint::new(config, [2; 32]).unwrap(), Ipv4::new())
}

#[test]
fn an_answer_comes_in_the_family_in_which_the_guest_spoke() {
    let (endpoint, mut card) = card();
    let datagram = [0, 9, 0, 53, 0, 8, 0, 0];
    let question = packet(UDP, (GUEST, OUTSIDE), &datagram);
    let header = VirtioNetHeader::default();
    let Leaving::As(_, there) = card.leave(&endpoint, &header, &question) else { panic!("stays") };
    let there = there.to_vec();
    // The answer is the question with its ends exchanged, which changes no checksum.
    let mut answer = there.clone();
    answer[8..24].copy_from_slice(&there[24..40]);
    answer[24..40].copy_from_slice(&there[8..24]);
    answer[40..42].copy_from_slice(&there[42..44]);
    answer[42..44].copy_from_slice(&there[40..42]);
    let arrived = card.arrive(&answer).unwrap();
    assert_eq!(arrived, packet(UDP, (OUTSIDE, GUEST), &[0, 53, 0, 9, 0, 8, 0, 0]));
    assert!(matches!(card.leave(&endpoint, &header, &there), Leaving::AsItIs));
    assert_eq!(card.arrive(&answer), None, "the guest went on in IPv6");
}

#[test]
fn what_is_too_large_for_the_mesh_is_told_so() {
    let (endpoint, mut card) = card();
    let len = u16::try_from(1381 - 20).unwrap().to_be_bytes();
    let datagram = [&[0, 9, 0, 53][..], &len, &[0; 2 + 1381 - 28]].concat();
    let question = packet(UDP, (GUEST, OUTSIDE), &datagram);
    let left = card.leave(&endpoint, &VirtioNetHeader::default(), &question);
    let Leaving::Here(Some(error)) = left else { panic!("no error") };
    assert!(has_right_checksums(&error));
    assert_eq!((&error[20..22], &error[26..28]), (&[3, 4][..], &[0x05, 0x64][..]));
}

#[test]
fn a_card_without_an_exit_leaves_ipv4_alone() {
    let (mut endpoint, mut card) = card();
    endpoint.set_exits(crate::endpoint::Exits::default());
    let discover = packet(
        UDP,
        (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST),
        &[&[0, 68, 0, 67, 0, 252, 0, 0][..], &client(&[53, 1, 1, 255])].concat(),
    );
    let header = VirtioNetHeader::default();
    assert!(matches!(card.leave(&endpoint, &header, &discover), Leaving::AsItIs));
    endpoint.set_exits(crate::endpoint::Exits {
        through: Some(PublicKey([9; 32])),
        ..Default::default()
    });
    assert!(matches!(card.leave(&endpoint, &header, &discover), Leaving::Here(Some(_))));
}

#[test]
fn a_message_of_zeros_has_the_other_zero_for_its_checksum() {
    // An echo reply whose identifier, number and payload are zero: 0 would be wrong (RFC 1624 §3).
    let original = packet(ICMP, (GUEST, OUTSIDE), &[0; 10]);
    let (mut there, mut back) = (Vec::new(), Vec::new());
    assert!(to_ipv6(&ends(), &VirtioNetHeader::default(), &original, &mut there).is_some());
    assert!(has_right_checksums(&there));
    assert_eq!(to_ipv4(&ends(), &there, &mut back), Some(()));
    assert_eq!(back, original);
}
