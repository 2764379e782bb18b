//! Merging: a stream stays what it is, and what can't be merged passes.

use net_vdev::offload::{
    Accepts, Coalescer, FLOWS_MAX, Segmentation, SegmentationKind, VirtioNetHeader,
};
use proptest::prelude::*;

use crate::frames::{
    ACK, CWR, ECE, FIN, Flow, MESH, PSH, RST, SYN, any_flow, cut, payload, verified,
};

const ALL: Accepts = Accepts { tcp_v4: true, tcp_v6: true, udp: true };

type Frames = Vec<(VirtioNetHeader, Vec<u8>)>;

fn merge_with(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Frames {
    let mut frames = Frames::new();
    let mut emit = |header: &VirtioNetHeader, frame: &[u8]| frames.push((*header, frame.to_vec()));
    for packet in packets {
        coalescer.push(&VirtioNetHeader::default(), packet, &mut emit);
    }
    coalescer.flush(&mut emit);
    frames
}

fn merge(packets: &[Vec<u8>]) -> Frames {
    merge_with(&mut Coalescer::new(ALL), packets)
}

/// The packets of all frames, cut again.
fn cut_all(frames: &Frames) -> Vec<Vec<u8>> {
    let layout = net_vdev::offload::Layout { packet_bytes_max: 70_000, ..MESH };
    frames.iter().flat_map(|(header, frame)| cut(header, frame, layout, 70_000)).collect()
}

proptest! {
    #[test]
    fn a_stream_that_was_cut_is_merged_to_what_it_was(
        flow in any_flow(),
        len in 1_usize..60_000,
        segment_bytes in 300_u16..1400,
    ) {
        let payload = payload(len);
        let (header, frame) = flow.super_frame(&payload, segment_bytes);
        let layout = net_vdev::offload::Layout { packet_bytes_max: 70_000, ..MESH };
        let packets = cut(&header, &frame, layout, 70_000);
        let frames = merge(&packets);
        let is_merged = packets.len() > 1 && (flow.is_tcp || packets.len() <= 64);
        if is_merged {
            let [(merged_header, merged)] = &frames[..] else { panic!("{} frames", frames.len()) };
            prop_assert_eq!(merged_header, &header);
            // All but the checksum, which is the pseudo-header's, as Linux expects it.
            let field = flow.ip_bytes() + if flow.is_tcp { 16 } else { 6 };
            prop_assert_eq!(&merged[..field], &frame[..field]);
            prop_assert_eq!(&merged[field + 2..], &frame[field + 2..]);
        }
        prop_assert_eq!(cut_all(&frames), packets);
    }

    /// Packets of several flows in any order, with gaps, repeats, damage and other sizes: per flow,
    /// what comes out is what went in.
    #[test]
    fn the_packets_of_each_flow_keep_their_order_and_bytes(
        flows in prop::collection::vec(any_flow(), 1..12),
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..4, 0_u8..24), 1..200),
    ) {
        let mut flows = flows;
        for (number, flow) in flows.iter_mut().enumerate() {
            flow.ports.1 = 80 + number as u16;
        }
        let mut packets: Vec<Vec<u8>> = Vec::new();
        for (which, size, event) in steps {
            let which = which.index(flows.len());
            let flow = &mut flows[which];
            let len = [0, 100, 700, 700][size];
            let mut now = flow.clone();
            match event {
                0 => now.flags |= CWR,
                1 => now.flags = SYN,
                2 => now.flags |= RST,
                3 => now.service ^= 1,
                4 => now.sequence = now.sequence.wrapping_add(9),
                5 => now.identification = now.identification.wrapping_add(3),
                6 => now.flags ^= ECE,
                7 => now.options = vec![1; 8],
                _ => {}
            }
            let mut packet = now.packet(&payload(len));
            if event == 8 && len > 0 {
                *packet.last_mut().unwrap() ^= 1;
            }
            packets.push(packet);
            flow.sequence = flow.sequence.wrapping_add(len as u32);
            flow.identification = flow.identification.wrapping_add(1);
        }
        let out = cut_all(&merge(&packets));
        prop_assert_eq!(out.len(), packets.len());
        for flow in &flows {
            let mine = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                packets.iter().filter(|packet| is_of(flow, packet)).map(|it| masked(it)).collect()
            };
            prop_assert_eq!(mine(&out), mine(&packets));
        }
    }

    #[test]
    fn any_bytes_are_survived(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)) {
        let frames = merge(&packets);
        prop_assert!(frames.len() <= packets.len());
    }
}

fn is_of(flow: &Flow, packet: &[u8]) -> bool {
    let is_ipv6 = packet[0] >> 4 == 6;
    let is_tcp = packet[if is_ipv6 { 6 } else { 9 }] == 6;
    let at = flow.ip_bytes();
    is_ipv6 == flow.is_ipv6
        && is_tcp == flow.is_tcp
        && packet[at..at + 2] == flow.ports.0.to_be_bytes()
        && packet[at + 2..at + 4] == flow.ports.1.to_be_bytes()
}

/// Without the identification of a packet that must not be fragmented, and the checksum over it.
fn masked(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn stream(flow: &Flow, sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut flow = flow.clone();
    let each = |size: &usize| {
        let packet = flow.packet(&payload(*size));
        flow.sequence = flow.sequence.wrapping_add(*size as u32);
        flow.identification = flow.identification.wrapping_add(1);
        packet
    };
    sizes.iter().map(each).collect()
}

fn sizes(frames: &Frames) -> Vec<usize> {
    frames.iter().map(|(_, frame)| frame.len()).collect()
}

#[test]
fn a_short_packet_ends_a_frame_and_a_longer_one_begins_another() {
    for flow in [Flow::tcp(false), Flow::tcp(true), Flow::udp(false), Flow::udp(true)] {
        let headers = flow.headers_bytes();
        let frames = merge(&stream(&flow, &[500, 500, 200, 500, 600, 600]));
        assert_eq!(sizes(&frames), [headers + 1200, headers + 500, headers + 1200]);
        let (first, _) = frames[0];
        let segmentation = Segmentation {
            kind: match (flow.is_tcp, flow.is_ipv6) {
                (true, false) => SegmentationKind::TcpV4,
                (true, true) => SegmentationKind::TcpV6,
                (false, _) => SegmentationKind::Udp,
            },
            ecn: false,
            payload_bytes: 500,
            headers_bytes: headers as u16,
        };
        assert_eq!(first.segmentation, Some(segmentation));
        assert_eq!(frames[1].0, VirtioNetHeader::default());
    }
}

#[test]
fn a_frame_never_grows_beyond_an_ip_packet() {
    let frames = merge(&stream(&Flow::tcp(true), &[1296; 120]));
    let full = 60 + 1296 * ((65_535 - 60) / 1296);
    assert_eq!(sizes(&frames), [full, full, 60 + 20 * 1296]);
    let frames = merge(&stream(&Flow::udp(true), &[100; 130]));
    assert_eq!(sizes(&frames), [48 + 6400, 48 + 6400, 48 + 200]);
}

#[test]
fn push_and_fin_end_a_frame_and_syn_and_rst_stand_alone() {
    let mut packets = stream(&Flow::tcp(true), &[100; 6]);
    for (at, flags) in [(2, ACK | PSH), (4, ACK | FIN)] {
        let mut flow = Flow::tcp(true);
        flow.flags = flags;
        flow.sequence += 100 * at as u32;
        packets[at] = flow.packet(&payload(100));
    }
    let frames = merge(&packets);
    assert_eq!(sizes(&frames), [360, 260, 160]);
    assert_eq!((frames[0].1[53], frames[1].1[53]), (ACK | PSH, ACK | FIN));
    for flags in [SYN, RST | ACK, ACK | CWR, 0] {
        let flow = Flow { flags, ..Flow::tcp(true) };
        assert_eq!(merge(&stream(&flow, &[100, 100])).len(), 2, "{flags:#x}");
    }
}

#[test]
fn a_packet_with_a_wrong_checksum_passes_as_it_is() {
    for flow in [Flow::tcp(false), Flow::tcp(true), Flow::udp(true)] {
        let mut packets = stream(&flow, &[100; 5]);
        *packets[2].last_mut().unwrap() ^= 4;
        let frames = merge(&packets);
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1], (VirtioNetHeader::default(), packets[2].clone()));
    }
    let mut packets = stream(&Flow::tcp(false), &[100; 2]);
    packets[1][10] ^= 1;
    assert_eq!(merge(&packets).len(), 2, "an IPv4 header with a wrong checksum");
}

#[test]
fn flows_that_differ_in_any_address_or_port_are_apart() {
    let one = stream(&Flow::tcp(true), &[100; 4]);
    let mut other = Flow::tcp(true);
    other.ports.0 += 1;
    let other = stream(&other, &[100; 4]);
    let packets: Vec<Vec<u8>> =
        one.iter().zip(&other).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let frames = merge(&packets);
    assert_eq!(sizes(&frames), [460, 460]);
    assert_eq!(cut_all(&frames), [one, other].concat());
}

#[test]
fn one_flow_more_than_there_are_places_for_passes_the_oldest_on() {
    let mut packets = Vec::new();
    for round in 0..2 {
        for port in 0..=FLOWS_MAX {
            let mut flow = Flow::tcp(true);
            flow.ports.0 = 1000 + port as u16;
            flow.sequence += 100 * round;
            packets.push(flow.packet(&payload(100)));
        }
    }
    let frames = merge(&packets);
    // Each flow comes back just after it was passed on: nothing is merged, nothing lost.
    assert_eq!(frames.len(), packets.len());
    assert_eq!(cut_all(&frames), packets);
}

#[test]
fn only_what_the_receiver_takes_is_merged() {
    let none = Accepts::default();
    for (flow, accepts) in [
        (Flow::tcp(false), Accepts { tcp_v4: true, ..none }),
        (Flow::tcp(true), Accepts { tcp_v6: true, ..none }),
        (Flow::udp(false), Accepts { udp: true, ..none }),
    ] {
        let packets = stream(&flow, &[100; 3]);
        assert_eq!(merge_with(&mut Coalescer::new(accepts), &packets).len(), 1);
        assert_eq!(merge_with(&mut Coalescer::new(none), &packets).len(), 3);
    }
}

#[test]
fn a_datagram_without_a_checksum_is_not_given_one() {
    let mut packets = stream(&Flow::udp(false), &[100; 3]);
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    let frames = merge(&packets);
    assert_eq!(frames.len(), 3);
    assert_eq!(cut_all(&frames), packets);
    assert_eq!(verified(&packets[0]).len(), 100, "smoltcp takes it too");
}
