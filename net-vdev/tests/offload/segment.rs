//! Cutting: what comes out, and what is refused.

use net_vdev::offload::{
    Accepts, ChecksumField, Coalescer, Layout, SegmentError, SegmentationKind, Segmenter,
    VirtioNetHeader, each_packet,
};
use proptest::prelude::*;

use crate::frames::{
    ACK, CWR, ECE, FIN, Flow, MESH, PSH, RST, SYN, any_flow, cut, payload, verified,
};

proptest! {
    #[test]
    fn a_super_frame_is_cut_as_the_reference_does(
        flow in any_flow(),
        cwr in any::<bool>(),
        len in 1_usize..65_000,
        segment_bytes in 1_u16..3000,
        packet_bytes_max in 600_usize..1500,
        buffer_bytes in 4_000_usize..70_000,
    ) {
        let mut flow = flow;
        if cwr {
            flow.flags |= CWR | ECE;
        }
        let room = packet_bytes_max - flow.headers_bytes();
        let size = usize::from(segment_bytes).min(if flow.is_tcp { room } else { usize::MAX });
        // Small segments are as good in short frames, and quicker.
        let payload = payload(len.min(200 * size).min(65_535 - flow.headers_bytes()));
        let (header, frame) = flow.super_frame(&payload, segment_bytes);
        let layout = Layout { headroom: 16, tailroom: 16, packet_bytes_max };
        let packets = cut(&header, &frame, layout, buffer_bytes);
        prop_assert_eq!(&packets, &flow.expected(&payload, size));
        let parts: Vec<u8> = packets.iter().flat_map(|packet| verified(packet)).collect();
        prop_assert_eq!(parts, payload);
    }

    #[test]
    fn checksums_that_were_left_open_are_completed_or_merged_by_the_reader(
        flow in any_flow(),
        len in 1_usize..20_000,
        segment_bytes in 100_u16..1300,
    ) {
        let payload = payload(len);
        let (header, frame) = flow.super_frame(&payload, segment_bytes);
        let mut segmenter = Segmenter::new(&header, &frame, MESH).unwrap();
        prop_assert!(segmenter.leave_checksums());
        let open = VirtioNetHeader { segmentation: None, ..header };
        let (mut whole, mut frames) = (Vec::new(), Vec::new());
        let mut coalescer = Coalescer::new(Accepts { tcp_v4: true, tcp_v6: true, udp: true });
        let mut emit = |header: &VirtioNetHeader, frame: &[u8]| frames.push((*header, frame.to_vec()));
        let mut buffer = vec![0; 70_000];
        while let Some(batch) = segmenter.fill(&mut buffer).unwrap() {
            for place in buffer[..batch.len].chunks(batch.stride) {
                let packet = &place[MESH.headroom..place.len() - MESH.tailroom];
                each_packet(&open, packet, 1500, &mut Vec::new(), |packet| whole.push(packet.to_vec()));
                coalescer.push(&open, packet, &mut emit);
            }
        }
        coalescer.flush(&mut emit);
        let expected = flow.expected(&payload, usize::from(segment_bytes));
        prop_assert_eq!(&whole, &expected);
        let merged = frames.iter().flat_map(|(header, frame)| cut(header, frame, MESH, 70_000));
        let parts = merged.flat_map(|packet| verified(&packet)).collect::<Vec<u8>>();
        prop_assert_eq!(parts, payload);
        prop_assert!(frames.len() <= expected.len().div_ceil(2).max(2), "they are merged");
    }

    #[test]
    fn a_checksum_alone_is_completed(flow in any_flow(), len in 0_usize..1300) {
        let payload = payload(len);
        let (mut header, frame) = flow.super_frame(&payload, 1);
        header.segmentation = None;
        prop_assert_eq!(cut(&header, &frame, MESH, 2000), vec![flow.packet(&payload)]);
    }

    #[test]
    fn a_packet_without_offloads_passes_as_it_is(frame in prop::collection::vec(any::<u8>(), 1..1400)) {
        prop_assert_eq!(cut(&VirtioNetHeader::default(), &frame, MESH, 2000), vec![frame]);
    }

    #[test]
    fn any_frame_is_refused_or_cut_within_bounds(
        header in any::<[u8; 10]>(),
        flow in any_flow(),
        len in 0_usize..5000,
        cut_to in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let (right, mut frame) = flow.super_frame(&payload(len), 500);
        for (at, value) in damage {
            let at = at.index(flow.headers_bytes());
            frame[at] = value;
        }
        frame.truncate(1 + cut_to.index(frame.len()));
        for header in [Some(right), VirtioNetHeader::parse(&header).ok()].into_iter().flatten() {
            let Ok(mut segmenter) = Segmenter::new(&header, &frame, MESH) else { continue };
            let mut buffer = vec![0; 9000];
            let mut bytes = 0;
            while let Ok(Some(batch)) = segmenter.fill(&mut buffer) {
                prop_assert!(batch.len <= buffer.len() && batch.len <= batch.stride * batch.count);
                bytes += batch.len - batch.count * 32;
                prop_assert!(bytes <= (1 + frame.len()) * 61, "no end");
            }
        }
    }
}

#[test]
fn flags_are_said_once() {
    for is_ipv6 in [false, true] {
        let mut flow = Flow::tcp(is_ipv6);
        flow.flags = ACK | PSH | FIN | CWR | ECE;
        let (header, frame) = flow.super_frame(&payload(2500), 1000);
        let at = flow.ip_bytes() + 13;
        let flags: Vec<u8> =
            cut(&header, &frame, MESH, 70_000).iter().map(|packet| packet[at]).collect();
        assert_eq!(flags, [ACK | ECE | CWR, ACK | ECE, ACK | ECE | PSH | FIN]);
    }
}

#[test]
fn sequence_and_identification_wrap() {
    let mut flow = Flow::tcp(false);
    flow.sequence = u32::MAX - 1500;
    flow.identification = u16::MAX - 1;
    let (header, frame) = flow.super_frame(&payload(4000), 1000);
    assert_eq!(cut(&header, &frame, MESH, 70_000), flow.expected(&payload(4000), 1000));
}

#[test]
fn batches_are_even_and_the_packets_in_them_of_one_size() {
    let (header, frame) = Flow::tcp(true).super_frame(&payload(65_000), 1296);
    let mut segmenter = Segmenter::new(&header, &frame, MESH).unwrap();
    let mut buffer = vec![0; 65_507];
    let mut batches = Vec::new();
    while let Some(batch) = segmenter.fill(&mut buffer).unwrap() {
        batches.push((batch.stride, batch.count, batch.len));
    }
    // 51 packets of 60 + 1,296 + 32 bytes; 47 would fit at a time.
    assert_eq!(batches, [(1388, 26, 26 * 1388), (1388, 25, 24 * 1388 + 92 + 200)]);
}

#[test]
fn a_path_that_carries_less_gets_smaller_segments_of_tcp_only() {
    let small = Layout { packet_bytes_max: 1000, ..MESH };
    for is_ipv6 in [false, true] {
        let flow = Flow::tcp(is_ipv6);
        let (header, frame) = flow.super_frame(&payload(9000), 1300);
        let expected = flow.expected(&payload(9000), 1000 - flow.headers_bytes());
        assert_eq!(cut(&header, &frame, small, 70_000), expected);
        let flow = Flow::udp(is_ipv6);
        let (header, frame) = flow.super_frame(&payload(9000), 1300);
        assert_eq!(cut(&header, &frame, small, 70_000), flow.expected(&payload(9000), 1300));
    }
}

#[test]
fn padding_of_a_link_is_cut_off() {
    let flow = Flow::tcp(false);
    let (mut header, mut frame) = flow.super_frame(&payload(3), 1000);
    frame.resize(60, 0x77);
    header.segmentation = None;
    assert_eq!(cut(&header, &frame, MESH, 2000), [flow.packet(&payload(3))]);
}

#[test]
fn what_header_and_packet_disagree_on_is_refused() {
    let refused =
        |header: &VirtioNetHeader, frame: &[u8]| Segmenter::new(header, frame, MESH).err().unwrap();
    let (right, frame) = Flow::tcp(true).super_frame(&payload(3000), 1000);
    for kind in [SegmentationKind::TcpV4, SegmentationKind::Udp] {
        let mut header = right;
        header.segmentation.as_mut().unwrap().kind = kind;
        assert_eq!(refused(&header, &frame), SegmentError::Protocol);
    }
    for field in [(0, 16), (40, 6), (40, 0), (41, 15), (u16::MAX, u16::MAX)] {
        let mut header = right;
        header.checksum = Some(ChecksumField { start: field.0, offset: field.1 });
        assert_eq!(refused(&header, &frame), SegmentError::Checksum, "{field:?}");
    }
    for flags in [SYN, RST | ACK] {
        let flow = Flow { flags, ..Flow::tcp(true) };
        let (header, frame) = flow.super_frame(&payload(3000), 1000);
        assert_eq!(refused(&header, &frame), SegmentError::Flags);
    }
    assert_eq!(refused(&right, &[]), SegmentError::Length(0));
    assert_eq!(refused(&right, &[0x60; 65_536]), SegmentError::Length(65_536));
    assert_eq!(refused(&right, &frame[..59]), SegmentError::Headers);
    let tiny = Layout { packet_bytes_max: 60, ..MESH };
    assert_eq!(Segmenter::new(&right, &frame, tiny).err(), Some(SegmentError::Room));
    let mut segmenter = Segmenter::new(&right, &frame, MESH).unwrap();
    assert_eq!(segmenter.fill(&mut [0; 1000]), Err(SegmentError::Room));
}

#[test]
fn fragments_options_and_other_protocols_are_not_cut() {
    let (header, frame) = Flow::tcp(false).super_frame(&payload(3000), 1000);
    for (at, value) in [(0, 0x46), (0, 0x55), (6, 0x20), (7, 1), (9, 1), (32, 0x40), (32, 0xf0)] {
        let mut frame = frame.clone();
        frame[at] = value;
        frame.truncate(if at == 32 && value == 0xf0 { 60 } else { frame.len() });
        let error = Segmenter::new(&header, &frame, MESH).err();
        assert_eq!(error, Some(SegmentError::Headers), "byte {at} = {value:#x}");
    }
}
