//! The codec under any splits and any bytes.

use mesh_edge::wire::{Control, Data, Packet, Prefix, RouterId, Stream, WireError, parse};
use net_vdev::PublicKey;
use proptest::prelude::*;

/// A packet that owns its body.
#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Data(u8, u128, u128, Vec<u8>),
    Control(Control),
    Unreadable,
}

fn own(packet: Packet<'_>) -> Owned {
    match packet {
        Packet::Data(data) => Owned::Data(
            data.hop_limit,
            data.source.to_bits(),
            data.destination.to_bits(),
            data.body.to_vec(),
        ),
        Packet::Control(control) => Owned::Control(control),
        Packet::Unreadable => Owned::Unreadable,
    }
}

fn write(packet: &Owned, out: &mut Vec<u8>) {
    match packet {
        Owned::Data(hop_limit, source, destination, body) => {
            let (source, destination) = ((*source).into(), (*destination).into());
            let data = Data { hop_limit: *hop_limit, source, destination, body };
            data.write(out).unwrap();
        }
        Owned::Control(control) => control.write(out),
        Owned::Unreadable => out.extend([1, 1, 0, 0, 42, 3, 0, 2, 77, 0]),
    }
}

fn prefixes() -> impl Strategy<Value = Prefix> {
    (any::<u128>(), 0..=128u8).prop_map(|(bits, length)| Prefix::of(bits.into(), length))
}

fn routers() -> impl Strategy<Value = RouterId> {
    let parts = (any::<[u8; 32]>(), any::<u16>(), any::<[u8; 6]>());
    parts.prop_map(|(key, zone, incarnation)| RouterId { key: PublicKey(key), zone, incarnation })
}

fn controls() -> impl Strategy<Value = Control> {
    let number = any::<u16>;
    prop_oneof![
        (any::<bool>(), number(), number()).prop_map(|(unicast, seqno, interval)| Control::Hello {
            unicast,
            seqno,
            interval
        }),
        (number(), number()).prop_map(|(rxcost, interval)| Control::Ihu { rxcost, interval }),
        (number(), number(), number(), prefixes(), routers()).prop_map(
            |(interval, seqno, metric, prefix, router)| Control::Update {
                interval,
                seqno,
                metric,
                prefix,
                router
            }
        ),
        (any::<u8>(), proptest::option::of(prefixes()))
            .prop_map(|(generation, prefix)| Control::RouteRequest { generation, prefix }),
        (number(), 1..=255u8, routers(), prefixes()).prop_map(|(seqno, hops, router, prefix)| {
            Control::SeqnoRequest { seqno, hops, router, prefix }
        }),
    ]
}

fn packets() -> impl Strategy<Value = Owned> {
    let body = proptest::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        (any::<u8>(), any::<u128>(), any::<u128>(), body)
            .prop_map(|(hops, from, to, body)| Owned::Data(hops, from, to, body)),
        controls().prop_map(Owned::Control),
        Just(Owned::Unreadable),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packets_arrive_whole_however_tcp_splits_them(
        sent in proptest::collection::vec(packets(), 1..12),
        sizes in proptest::collection::vec(1..200usize, 1..20),
    ) {
        let mut bytes = Vec::new();
        sent.iter().for_each(|packet| write(packet, &mut bytes));
        let (mut stream, mut arrived, mut rest) = (Stream::default(), Vec::new(), &bytes[..]);
        for size in sizes.iter().cycle() {
            let (piece, more) = rest.split_at((*size).min(rest.len()));
            stream.push(piece);
            while let Some(packet) = stream.next_packet().unwrap() {
                arrived.push(own(packet));
            }
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(arrived, sent);
    }

    #[test]
    fn what_is_read_from_any_bytes_is_written_as_the_same_bytes(
        header in prop_oneof![
            Just(vec![]), Just(vec![1, 0, 0, 0, 0, 0]), Just(vec![1, 1, 0, 0, 42, 3, 0])
        ],
        noise in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [header, noise].concat();
        if let Ok(Some((packet, taken))) = parse(&bytes) {
            prop_assert!(taken <= bytes.len());
            let packet = own(packet);
            if packet != Owned::Unreadable {
                let mut written = Vec::new();
                write(&packet, &mut written);
                prop_assert_eq!(&written[..], &bytes[..taken]);
            }
        }
    }

    #[test]
    fn a_message_with_one_bit_changed_is_another_one_or_none(
        control in controls(), at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let mut bytes = Vec::new();
        control.write(&mut bytes);
        *at.get_mut(&mut bytes) ^= 1 << bit;
        if let Ok(Some((packet, _))) = parse(&bytes) {
            prop_assert_ne!(own(packet), Owned::Control(control));
        }
    }
}

#[test]
fn a_stream_that_is_no_mycelium_ends_at_its_first_wrong_bytes() {
    let mut stream = Stream::default();
    stream.push(b"GET / HTTP/1.1\r\n");
    assert_eq!(stream.next_packet(), Err(WireError::Header(*b"GET ")));
    assert_eq!(stream.next_packet(), Err(WireError::Header(*b"GET ")));
    assert_eq!(
        parse(&[1, 1, 0, 0, 42, 2, 0, 8]),
        Err(WireError::ControlHeader([42, 2])),
        "RFC 8966 is another protocol"
    );
    assert_eq!(parse(&[1, 1, 0, 0, 42, 3, 1, 2]), Err(WireError::ControlLength(258)));
    assert_eq!(parse(&[1, 1, 0, 0, 42, 3, 0, 1]), Err(WireError::ControlLength(1)));
    assert_eq!(parse(&[1, 0, 0, 0, 1, 0, 0, 64]), Err(WireError::DataLength(65_536)));
}

#[test]
fn two_messages_in_one_control_packet_are_not_read() {
    let hello = [4, 6, 0x80, 0, 0, 0, 7, 0xd0];
    let bytes = [&[1, 1, 0, 0, 42, 3, 0, 16][..], &hello, &hello].concat();
    assert_eq!(parse(&bytes), Ok(Some((Packet::Unreadable, bytes.len()))));
}

#[test]
fn a_body_over_65535_bytes_is_not_written() {
    let (source, destination) = (1u128.into(), 2u128.into());
    let body = vec![0; 65_536];
    let mut out = Vec::new();
    let data = Data { hop_limit: 1, source, destination, body: &body };
    assert_eq!(data.write(&mut out), Err(WireError::DataLength(65_536)));
    assert!(out.is_empty());
}
