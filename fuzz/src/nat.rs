//! Packets of guests and members on their way out of the mesh and back.
//!
//! What a card translates to IPv6 and back is what it was; NAT64 opens no socket to where nobody may
//! go, and what it tells a member is for that member, from outside, and right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_egress::address::{embed, extract};
use mesh_egress::limits::{Limits, NatConfig};
use mesh_egress::sockets::Kind;
use mesh_egress::{Egress, EgressConfig};
use net_vdev::PublicKey;
use net_vdev::firewall::Packet;
use net_vdev::nic::ipv4::{Ends, GUEST, ROUTER, to_ipv4, to_ipv6};
use net_vdev::offload::{Layout, Segmenter, TUN_HEADER_BYTES, VirtioNetHeader};

use crate::bytes::Input;
use crate::packets::{Outside, has_right_checksums, packet};

const MEMBER: PublicKey = PublicKey([7; 32]);
const EXIT: PublicKey = PublicKey([8; 32]);
const SECOND_NS: u64 = 1_000_000_000;
const FLOWS_MAX: usize = 8;
/// Where members go: two servers, the host itself, and what is forbidden.
const PLACES: [[u8; 4]; 4] = [[192, 0, 2, 1], [192, 0, 2, 2], [198, 51, 100, 1], [127, 0, 0, 1]];

/// The first byte says whether the rest is for a card or for NAT64. True if a packet came through the
/// card and back, or bytes reached a server's connection.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    if input.byte() % 2 == 0 { card(&mut input) } else { nat64(&mut input) }
}

/// Where to (1), protocol (1), and a transport; or any bytes.
fn card(input: &mut Input<'_>) -> bool {
    let (member, exit) = (MEMBER.address(), EXIT.address());
    let ends = Ends { guest: GUEST, member, router: ROUTER, exit };
    let (place, protocol) = (input.byte(), input.byte());
    let (mut there, mut back) = (Vec::new(), Vec::new());
    let header = VirtioNetHeader::default();
    let Some(protocol) = [1, 6, 17].get(usize::from(protocol) % 4) else {
        let raw = input.0;
        if to_ipv6(&ends, &header, raw, &mut there).is_some() {
            assert!(there.len() <= raw.len() + 20);
            assert_eq!(there.first().map(|first| first >> 4), Some(6));
        }
        if to_ipv4(&ends, raw, &mut back).is_some() {
            assert!(back.len() < raw.len());
        }
        return false;
    };
    let to = Ipv4Addr::from([192, 0, 2, place.max(3)]);
    let original = packet(GUEST.into(), to.into(), *protocol, input.0);
    if Packet::parse(&original).is_err() || !has_right_checksums(&original) {
        return false;
    }
    let Some(_) = to_ipv6(&ends, &header, &original, &mut there) else { return false };
    assert!(has_right_checksums(&there));
    let is_error = there.get(6) == Some(&58) && there.get(40).is_some_and(|kind| *kind < 128);
    assert_eq!(to_ipv4(&ends, &there, &mut back), Some(()), "there and not back");
    assert!(has_right_checksums(&back));
    // Some errors of one family are the same in the other; an empty checksum of UDP was filled in.
    let is_filled_in = *protocol == 17 && original.get(26..28) == Some(&[0, 0]);
    if !is_error && !is_filled_in {
        assert_eq!(back, original, "there and back");
    }
    true
}

/// The member's end of the one connection whose numbers are followed.
#[derive(Default)]
struct Stream {
    next: u32,
    heard: u32,
}

/// A list of what a member and servers do.
fn nat64(input: &mut Input<'_>) -> bool {
    let limits = Limits { flows_max: FLOWS_MAX, opens_per_s: 1000, ..Limits::default() };
    let nat = NatConfig { limits, ..NatConfig::default() };
    let config = EgressConfig { nat: Some(nat), ..EgressConfig::default() };
    let mut egress = Egress::new(config, Outside::default(), [3; 32]);
    let (mut now_ns, mut stream) = (SECOND_NS, Stream::default());
    input.actions(|input| {
        let default = VirtioNetHeader::default();
        match input.byte() % 6 {
            0 => {
                let len = usize::from(input.u16());
                egress.receive(now_ns, (&MEMBER, None), &default, input.bytes(len));
            }
            1 => {
                let segment = segment(input, &mut stream);
                egress.receive(now_ns, (&MEMBER, None), &default, &segment);
            }
            2 => {
                let header = input.bytes(TUN_HEADER_BYTES).first_chunk().copied();
                let header = header.and_then(|bytes| VirtioNetHeader::parse(&bytes).ok());
                let segment = segment(input, &mut stream);
                egress.receive(now_ns, (&MEMBER, None), &header.unwrap_or(default), &segment);
            }
            3 => {
                let datagram = datagram(input);
                egress.receive(now_ns, (&MEMBER, None), &default, &datagram);
            }
            4 => {
                let (place, len) = (usize::from(input.byte()), usize::from(input.u16()));
                egress.sockets_mut().says(place, input.bytes(len));
            }
            _ => now_ns += u64::from(input.u16()) * SECOND_NS / 100,
        }
        for _ in 0..3 {
            egress.handle_deadline(now_ns);
            egress.flush(now_ns, &mut |member, header, frame| {
                assert_eq!(*member, MEMBER);
                check_frame(header, frame, &mut stream);
            });
        }
        let (flows, _) = egress.occupancy();
        assert!(flows <= FLOWS_MAX && egress.sockets().open.len() <= FLOWS_MAX, "{flows} flows");
    });
    egress.sockets().sent.iter().any(|(kind, bytes)| *kind == Kind::Tcp && !bytes.is_empty())
}

fn place(input: &mut Input<'_>) -> Ipv6Addr {
    let [one, ..] = PLACES;
    let place = PLACES.get(usize::from(input.byte()) % 4).copied().unwrap_or(one);
    embed(Ipv4Addr::from(place))
}

/// A segment: where to (1), flags (1), how far from where it should be (1), how many bytes (1).
fn segment(input: &mut Input<'_>, stream: &mut Stream) -> Vec<u8> {
    let (to, flags) = (place(input), input.byte());
    let (off, len) = (i32::from(input.byte() as i8), usize::from(input.byte()));
    let sequence = stream.next.wrapping_add_signed(off);
    let mut transport = vec![0x13, 0x88, 0, 80];
    transport.extend_from_slice(&sequence.to_be_bytes());
    transport.extend_from_slice(&stream.heard.to_be_bytes());
    transport.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    transport.extend_from_slice(&vec![7; len]);
    let counted = len as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
    stream.next = sequence.wrapping_add(counted);
    packet(MEMBER.address().into(), to.into(), 6, &transport)
}

/// A datagram or an echo: where to (1), port (2), how many bytes (1).
fn datagram(input: &mut Input<'_>) -> Vec<u8> {
    let (to, port, len) = (place(input), input.u16(), usize::from(input.byte()));
    let payload = vec![9; len];
    let [high, low] = port.to_be_bytes();
    let source = MEMBER.address().into();
    if port % 2 == 0 {
        let transport = [&[128, 0, 0, 0, high, low, 0, 1][..], &payload].concat();
        return packet(source, to.into(), 58, &transport);
    }
    let [len_0, len_1] = (8 + len as u16).to_be_bytes();
    let transport = [&[0x13, 0x88, high, low, len_0, len_1, 0, 0][..], &payload].concat();
    packet(source, to.into(), 17, &transport)
}

/// Checks what a member is told, and follows its connection.
fn check_frame(header: &VirtioNetHeader, frame: &[u8], stream: &mut Stream) {
    let layout = Layout { headroom: 0, tailroom: 0, packet_bytes_max: 1400 };
    let Ok(mut segmenter) = Segmenter::new(header, frame, layout) else { panic!("no frame") };
    let mut buffer = vec![0; 1 << 17];
    while let Ok(Some(batch)) = segmenter.fill(&mut buffer) {
        let packets = buffer.get(..batch.len).unwrap_or_default();
        for bytes in packets.chunks(batch.stride.max(1)) {
            assert!(bytes.len() <= 1400 && has_right_checksums(bytes), "a wrong packet");
            let Ok(packet) = Packet::parse(bytes) else { panic!("no packet") };
            assert_eq!(packet.destination, IpAddr::V6(MEMBER.address()));
            let IpAddr::V6(source) = packet.source else { panic!("{}", packet.source) };
            assert!(extract(&source).is_some(), "{source} is not outside");
            follow(bytes, stream);
        }
    }
}

fn follow(bytes: &[u8], stream: &mut Stream) {
    let (Some(6), Some(transport)) = (bytes.get(6), bytes.get(40..)) else { return };
    let sequence = transport.get(4..).and_then(<[u8]>::first_chunk).copied();
    let header_bytes = usize::from(transport.get(12).copied().unwrap_or(0) >> 4) * 4;
    let flags = transport.get(13).copied().unwrap_or(0);
    let len = transport.len().saturating_sub(header_bytes) as u32;
    let counted = len + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
    stream.heard = u32::from_be_bytes(sequence.unwrap_or_default()).wrapping_add(counted);
}
