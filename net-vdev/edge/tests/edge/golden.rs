//! Bytes captured from mycelium 0.7.10 with throw-away keys, read and written.

use std::net::Ipv6Addr;

use mesh_edge::wire::{Control, Data, Packet, Prefix, RouterId, parse};
use mesh_edge::{EdgeKey, Event, Link};
use net_vdev::PublicKey;

const PRIVATE_A: &str = "1c49a05cc4bc622ee7e3395734197a7d89d891f356cbf45cd43dfc18487a79b4";
const PRIVATE_B: &str = "4e001f686c732fc9b1265ab0aaeb5cda35c08e7624d364c6efb760d3d05c02b0";
const PUBLIC_A: &str = "d2f9ea6dc0923d1389baa43d3ce778c4bcda099cd0d8023d6644cb8506696c1b";
const ADDRESS_A: &str = "4f2:9859:15f6:316f:1b20:b7a3:edea:defa";
const ADDRESS_B: &str = "507:1c99:5898:8adf:93e0:8cc4:dcc4:3478";
/// The first bytes after the connection was made: A's route.
const UPDATE: &str = "010100002a03003c083a0200400075300000000004f2985915f6316fd2f9ea6dc0923d1389baa\
    43d3ce778c4bcda099cd0d8023d6644cb8506696c1b0000c1be95d99872";
/// An ICMPv6 echo from A to B.
const DATA: &str = "010000000000883f04f2985915f6316f1b20b7a3edeadefa05071c9958988adf93e08cc4dcc4347\
    86222b5e342874e7aa7eb1f381e5fc7206ec040a410da1ea7d49ae7809b46035aad1ef2f12a2240928cfb84b38e322f\
    08f6eb2013c2acffcd3066e9088f0956db330e4955a97496e7757d090239339a72321c93dbb3e71beaec7e9ef4812ec\
    b8b12350319cf3544592d3e1781ed233ef7f84cbd8d74b469796e521b482381c0e415618c4717273eb5";
const HELLO: &str = "010100002a03000804068000000007d0";
const IHU: &str = "010100002a0300080506000003f71770";
const INCARNATION: [u8; 6] = [0xc1, 0xbe, 0x95, 0xd9, 0x98, 0x72];

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).unwrap().to_le_bytes()[0]).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn key(hex: &str) -> EdgeKey {
    EdgeKey::new(bytes(hex).try_into().unwrap())
}

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn captured_control(hex: &str) -> Control {
    let captured = bytes(hex);
    let (packet, taken) = parse(&captured).unwrap().unwrap();
    assert_eq!(taken, captured.len());
    let Packet::Control(control) = packet else { panic!("{packet:?}") };
    let mut written = Vec::new();
    control.write(&mut written);
    assert_eq!(written, captured, "written otherwise than mycelium did");
    control
}

/// The one's complement sum of an ICMPv6 packet with its pseudo header: 0xffff if it is intact.
fn icmp_sum(packet: &[u8]) -> u64 {
    let words = packet[8..].chunks(2).map(|it| u64::from(it[0]) << 8 | u64::from(it[1]));
    let length = u64::try_from(packet.len() - 40).unwrap();
    let mut sum = words.sum::<u64>() + length + 58;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum
}

#[test]
fn the_captured_routing_messages_are_read_and_written_byte_by_byte() {
    let router = RouterId {
        key: PublicKey(bytes(PUBLIC_A).try_into().unwrap()),
        zone: 0,
        incarnation: INCARNATION,
    };
    let prefix = Prefix::of(address(ADDRESS_A), 64);
    let update = Control::Update { interval: 30_000, seqno: 0, metric: 0, prefix, router };
    assert_eq!(captured_control(UPDATE), update);
    let hello = Control::Hello { unicast: true, seqno: 0, interval: 2000 };
    assert_eq!(captured_control(HELLO), hello);
    assert_eq!(captured_control(IHU), Control::Ihu { rxcost: 1015, interval: 6000 });
}

#[test]
fn the_captured_packet_opens_and_seals_to_the_same_bytes_on_both_sides() {
    let captured = bytes(DATA);
    let (packet, taken) = parse(&captured).unwrap().unwrap();
    assert_eq!(taken, captured.len());
    let Packet::Data(data) = packet else { panic!("{packet:?}") };
    assert_eq!((data.source, data.destination), (address(ADDRESS_A), address(ADDRESS_B)));
    assert_eq!(data.hop_limit, 63);
    let (a, b) = (key(PRIVATE_A), key(PRIVATE_B));
    assert_eq!((a.public().address(), b.public().address()), (data.source, data.destination));
    let inner = b.agree(&a.public()).unwrap().open(data.body).unwrap();
    assert_eq!(inner.len(), 104);
    assert_eq!(inner[..8], [0x60, 0x09, 0x79, 0x25, 0x00, 0x40, 0x3a, 0x40]);
    assert_eq!(inner[40..44], [0x80, 0x00, 0xe5, 0x57], "an echo request and its checksum");
    assert_eq!(icmp_sum(&inner), 0xffff, "the kernel that sent it had summed just these bytes");
    let nonce = *data.body.last_chunk().unwrap();
    let body = a.agree(&b.public()).unwrap().seal(&inner, nonce).unwrap();
    let mut written = Vec::new();
    Data { body: &body, ..data }.write(&mut written).unwrap();
    assert_eq!(written, captured);
}

#[test]
fn a_link_says_what_mycelium_said_and_delivers_what_mycelium_sent() {
    let mut a = Link::new(0, key(PRIVATE_A), INCARNATION);
    let mut b = Link::new(0, key(PRIVATE_B), [7; 6]);
    assert_eq!(a.poll_transmit().unwrap(), bytes(UPDATE));
    assert_eq!(a.poll_transmit().unwrap(), bytes(HELLO));
    assert_eq!(a.poll_transmit(), None);

    b.receive(1, &bytes(UPDATE)).unwrap();
    b.receive(1, &bytes(DATA)).unwrap();
    let Some(Event::Packet(external)) = b.poll_event() else { panic!("nothing was delivered") };
    assert_eq!(external.from, key(PRIVATE_A).public());

    let announcement: Vec<u8> = b.poll_transmit().unwrap();
    a.receive(1, &announcement).unwrap();
    let nonce = *bytes(DATA).last_chunk().unwrap();
    a.send(2, &external.packet, nonce).unwrap();
    assert_eq!(a.poll_transmit().unwrap(), bytes(DATA));
}
