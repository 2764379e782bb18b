//! Address resolution as the card's router answers it: whatever address the guest asks for, it
//! lies behind the one MAC address of the router. The card is a link of two, guest and router.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ROUTER_MAC;
use crate::offload::{Sum, pseudo_header, put};

const ICMPV6: u8 = 58;
/// The bytes of an ARP packet for IPv4 over Ethernet (RFC 826).
const ARP_BYTES: usize = 28;
/// Ethernet, IPv4, address lengths 6 and 4.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// The answer to an ARP request, or `None` if it is not one to answer: a probe or an announcement
/// of the guest's own address, or no request at all. `is_own` tells the guest's addresses.
#[must_use]
pub fn answer_arp(request: &[u8], is_own: impl Fn(Ipv4Addr) -> bool) -> Option<Vec<u8>> {
    let fields = request.first_chunk::<ARP_BYTES>()?;
    let (kind, rest) = fields.split_first_chunk::<6>()?;
    let (operation, rest) = rest.split_first_chunk::<2>()?;
    let (sender_mac, rest) = rest.split_first_chunk::<6>()?;
    let (sender, rest) = rest.split_first_chunk::<4>()?;
    let target = rest.last_chunk::<4>()?;
    let (sender, target) = (Ipv4Addr::from(*sender), Ipv4Addr::from(*target));
    let answers = *kind == ARP_ETHERNET_IPV4
        && *operation == [0, 1]
        && !sender.is_unspecified()
        && sender != target
        && !is_own(target)
        && !(target.is_unspecified() || target.is_multicast() || target.is_broadcast());
    answers.then(|| {
        let mut reply = Vec::with_capacity(ARP_BYTES);
        reply.extend_from_slice(&ARP_ETHERNET_IPV4);
        reply.extend_from_slice(&[0, 2]);
        reply.extend_from_slice(&ROUTER_MAC);
        reply.extend_from_slice(&target.octets());
        reply.extend_from_slice(sender_mac);
        reply.extend_from_slice(&sender.octets());
        reply
    })
}

/// What an IPv6 packet from the guest is to the link.
#[derive(Debug, PartialEq, Eq)]
pub enum Discovery {
    /// Nothing: it goes into the mesh.
    Elsewhere,
    /// A neighbour solicitation, and the packet that answers it.
    Answer(Vec<u8>),
    /// Neighbour discovery that needs no answer.
    Silence,
}

/// Handles neighbour discovery (RFC 4861): types 133 to 137 never leave the link.
#[must_use]
pub fn discover(packet: &[u8], is_own: impl Fn(Ipv6Addr) -> bool) -> Discovery {
    let Some((header, message)) = packet.split_first_chunk::<40>() else {
        return Discovery::Elsewhere;
    };
    let [_, _, _, _, _, _, next_header, _, ..] = *header;
    if next_header != ICMPV6 || !matches!(message.first(), Some(133..=137)) {
        return Discovery::Elsewhere;
    }
    answer_solicitation(header, message, is_own).map_or(Discovery::Silence, Discovery::Answer)
}

/// The advertisement that answers a valid solicitation (RFC 4861 §7.1.1, §4.4).
fn answer_solicitation(
    header: &[u8; 40],
    message: &[u8],
    is_own: impl Fn(Ipv6Addr) -> bool,
) -> Option<Vec<u8>> {
    let &[_, _, _, _, len_high, len_low, _, hop_limit, ref addresses @ ..] = header;
    let message = message.get(..usize::from(u16::from_be_bytes([len_high, len_low])))?;
    let source = addresses.first_chunk::<16>()?;
    let &[kind, code, ..] = message.first_chunk::<24>()?;
    let target = Ipv6Addr::from(*message.get(8..)?.first_chunk::<16>()?);
    let asker = Ipv6Addr::from(*source);
    let is_valid = kind == 135
        && code == 0
        && hop_limit == 255
        && sum(addresses, message).is_right()
        // From the unspecified address the guest asks whether its own address is free.
        && !asker.is_unspecified()
        && !(target.is_multicast() || target.is_unspecified() || is_own(target));
    is_valid.then(|| advertisement(target, asker))
}

fn advertisement(target: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    // Router, solicited, override; then the option "target link-layer address", 8 bytes.
    let mut message = vec![136, 0, 0, 0, 0xe0, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&ROUTER_MAC);
    let addresses = [target.octets(), to.octets()].concat();
    let field = sum(&addresses, &message).field();
    put(&mut message, 2, &field);
    let mut packet = vec![0x60, 0, 0, 0, 0, 32, ICMPV6, 255];
    packet.extend_from_slice(&addresses);
    packet.extend_from_slice(&message);
    packet
}

/// The sum of an ICMPv6 message with its pseudo-header (RFC 8200 §8.1).
fn sum(addresses: &[u8], message: &[u8]) -> Sum {
    pseudo_header(addresses, ICMPV6, message.len()).plus(Sum::of(message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Ipv6Addr = Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 1);
    const OTHER: Ipv6Addr = Ipv6Addr::new(0x401, 0, 0, 0, 0, 0, 0, 2);

    fn solicitation(source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&target.octets());
        let field = sum(&[source.octets(), group.octets()].concat(), &message).field();
        message[2..4].copy_from_slice(&field);
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
        packet.extend_from_slice(&source.octets());
        packet.extend_from_slice(&group.octets());
        packet.extend_from_slice(&message);
        packet
    }

    #[test]
    fn a_solicitation_for_any_foreign_address_is_answered_with_the_router() {
        let Discovery::Answer(reply) = discover(&solicitation(OWN, OTHER), |it| it == OWN) else {
            panic!("not answered")
        };
        assert_eq!(reply.len(), 72);
        assert_eq!(reply[8..24], OTHER.octets());
        assert_eq!(reply[24..40], OWN.octets());
        assert_eq!(reply[40..42], [136, 0]);
        assert_eq!(reply[66..], ROUTER_MAC);
        assert!(sum(&reply[8..40], &reply[40..]).is_right());
    }

    #[test]
    fn duplicate_address_detection_and_damage_are_met_with_silence() {
        let is_own = |it| it == OWN;
        assert_eq!(discover(&solicitation(OWN, OWN), is_own), Discovery::Silence);
        let probe = solicitation(Ipv6Addr::UNSPECIFIED, OTHER);
        assert_eq!(discover(&probe, is_own), Discovery::Silence);
        for bit in (7 * 8..8 * 8).chain(40 * 8..64 * 8) {
            let mut damaged = solicitation(OWN, OTHER);
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(discover(&damaged, is_own), Discovery::Answer(_)), "bit {bit}");
        }
    }

    #[test]
    fn an_arp_request_is_answered_unless_it_is_a_probe() {
        let request = |sender: [u8; 4], target: [u8; 4]| {
            let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2];
            bytes.extend_from_slice(&sender);
            bytes.extend_from_slice(&[0; 6]);
            bytes.extend_from_slice(&target);
            bytes
        };
        let is_own = |it: Ipv4Addr| it == Ipv4Addr::new(10, 0, 0, 1);
        let reply = answer_arp(&request([10, 0, 0, 1], [10, 0, 0, 9]), is_own).unwrap();
        let mut expected = vec![0, 1, 8, 0, 6, 4, 0, 2];
        expected.extend_from_slice(&ROUTER_MAC);
        expected.extend_from_slice(&[10, 0, 0, 9, 2, 2, 2, 2, 2, 2, 10, 0, 0, 1]);
        assert_eq!(reply, expected);
        for (sender, target) in [
            ([0, 0, 0, 0], [10, 0, 0, 9]),
            ([10, 0, 0, 1], [10, 0, 0, 1]),
            ([10, 0, 0, 2], [10, 0, 0, 1]),
            ([10, 0, 0, 1], [255, 255, 255, 255]),
        ] {
            assert_eq!(answer_arp(&request(sender, target), is_own), None, "{sender:?}");
        }
        let full = request([10, 0, 0, 1], [10, 0, 0, 9]);
        assert!((0..28).all(|len| answer_arp(&full[..len], is_own).is_none()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _arp = answer_arp(&bytes, |_| false);
            let _discovery = discover(&bytes, |_| false);
        }
    }
}
