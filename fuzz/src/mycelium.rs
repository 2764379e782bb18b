//! An edge link with a hostile mycelium on the other end of its connection.
//!
//! The input is a list of what the peer sends: any bytes, routes of keys that it has, packets that
//! such a key truly sealed with anything inside. What is delivered comes from the address of the
//! key that sealed it; what the link sends is its own; what is read is written as the same bytes.

use std::net::Ipv6Addr;

use mesh_edge::wire::{self, Control, Data, Packet, Prefix, RouterId, Stream};
use mesh_edge::{EdgeKey, Event, Link};

use crate::bytes::Input;

const OPERATIONS_MAX: usize = 64;
const SECOND_NS: u64 = 1_000_000_000;
const EDGE: u8 = 1;

fn key(number: u8) -> EdgeKey {
    EdgeKey::new([number; 32])
}

/// One of the edge, two peers and somebody that nobody announced.
fn address(number: u8) -> Ipv6Addr {
    key(number % 4 + EDGE).public().address()
}

/// True if a packet was delivered.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let mut link = Link::new(0, key(EDGE), [7; 6]);
    let (mut now_ns, mut delivered) = (0, false);
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        let is_alive = match input.byte() % 5 {
            0 => {
                let length = usize::from(input.u16());
                let bytes = input.bytes(length);
                check_codec(bytes);
                link.receive(now_ns, bytes).is_ok()
            }
            1 => link.receive(now_ns, &announcement(&mut input)).is_ok(),
            2 => link.receive(now_ns, &sealed(&mut input)).is_ok(),
            3 => {
                now_ns += u64::from(input.u16()) * SECOND_NS / 100;
                link.handle_deadline(now_ns).is_ok()
            }
            _ => {
                let packet = packet(address(input.byte()), address(input.byte()), input.byte());
                let was_ours = link.send(now_ns, &packet, [9; 12]).is_ok();
                assert!(!was_ours || packet.get(8..24) == Some(&link.address().octets()));
                true
            }
        };
        delivered |= check_events(&mut link);
        check_output(&mut link);
        assert!(link.routes() <= 1024, "{} routes", link.routes());
        if !is_alive {
            break;
        }
    }
    delivered
}

fn announcement(input: &mut Input<'_>) -> Vec<u8> {
    let key = key(input.byte() % 4 + EDGE).public();
    let prefix = Prefix::of(key.address(), input.byte());
    let (interval, metric) = (input.u16(), input.u16());
    let router = RouterId { key, zone: 0, incarnation: [0; 6] };
    let mut bytes = Vec::new();
    Control::Update { interval, seqno: 0, metric, prefix, router }.write(&mut bytes);
    bytes
}

/// Sealed by a peer's key for the edge; all addresses are as the input says.
fn sealed(input: &mut Input<'_>) -> Vec<u8> {
    let sealer = key(input.byte() % 3 + EDGE + 1);
    let outer = (address(input.byte()), address(input.byte()));
    let inner = packet(address(input.byte()), address(input.byte()), input.byte());
    let Ok(secret) = sealer.agree(&key(EDGE).public()) else { panic!("no weak keys here") };
    let Ok(body) = secret.seal(&inner, [3; 12]) else { panic!("{} bytes", inner.len()) };
    let mut bytes = Vec::new();
    let data = Data { hop_limit: 9, source: outer.0, destination: outer.1, body: &body };
    assert!(data.write(&mut bytes).is_ok());
    bytes
}

fn packet(source: Ipv6Addr, destination: Ipv6Addr, payload: u8) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0, 0, payload, 17, 64];
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.resize(40 + usize::from(payload), 0xab);
    bytes
}

fn check_codec(bytes: &[u8]) {
    let Ok(Some((packet, taken))) = wire::parse(bytes) else { return };
    let mut written = Vec::new();
    match packet {
        Packet::Data(data) => assert!(data.write(&mut written).is_ok()),
        Packet::Control(control) => control.write(&mut written),
        Packet::Unreadable => return,
    }
    assert_eq!(Some(&written[..]), bytes.get(..taken), "read as something else");
}

fn check_events(link: &mut Link) -> bool {
    let mut delivered = false;
    while let Some(event) = link.poll_event() {
        let Event::Packet(external) = event else { continue };
        let addresses = external.packet.get(8..40);
        let wanted = [external.from.address().octets(), link.address().octets()].concat();
        assert_eq!(addresses, Some(&wanted[..]), "delivered under a false name");
        delivered = true;
    }
    delivered
}

/// The edge tells of no route but its own and sends no data but its own.
fn check_output(link: &mut Link) {
    let mut stream = Stream::default();
    while let Some(bytes) = link.poll_transmit() {
        stream.push(&bytes);
    }
    loop {
        match stream.next_packet() {
            Ok(None) => return,
            Ok(Some(Packet::Data(data))) => assert_eq!(data.source, link.address()),
            Ok(Some(Packet::Control(Control::Update { prefix, router, .. }))) => {
                assert_eq!(prefix, Prefix::of(link.address(), 64));
                assert_eq!(router.key, key(EDGE).public());
            }
            Ok(Some(Packet::Control(_))) => {}
            other => panic!("the link sent {other:?}"),
        }
    }
}
