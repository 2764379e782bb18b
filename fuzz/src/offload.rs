//! Super-frames of a guest, and packets of peers that are merged for it.
//!
//! The input is a list of frames, each with its virtio header. Whatever they say, cutting ends, stays
//! within its buffer, and loses no byte of payload; and if what came out is merged and cut again,
//! the same packets come out. So they do if their checksums stayed open on the way.

use net_vdev::offload::{
    Accepts, Coalescer, Layout, Segmenter, TUN_HEADER_BYTES, VirtioNetHeader, clamp_mss,
};

use crate::bytes::Input;

const FRAMES_MAX: usize = 12;
/// Longer payloads say nothing new, and take longer.
const FRAME_BYTES_MAX: u16 = 9000;
const BUFFER_BYTES: usize = 20_000;
/// Bytes around each packet that nobody may touch.
const ROOM: usize = 16;
const ROOM_BYTE: u8 = 0xd7;

/// Panics if a promise is broken; whether a frame was cut, merged, and cut again.
pub fn check(input: &[u8]) -> bool {
    let mut input = Input(input);
    let (mut packets, mut open) = (Vec::new(), Vec::new());
    let mut was_cut = false;
    for _ in 0..FRAMES_MAX {
        if input.is_empty() {
            break;
        }
        let Ok(header) = <[u8; TUN_HEADER_BYTES]>::try_from(input.bytes(TUN_HEADER_BYTES)) else {
            break;
        };
        let packet_bytes_max = usize::from(input.u16());
        let frame = frame(&mut input);
        let Ok(header) = VirtioNetHeader::parse(&header) else { continue };
        open.extend(cut(&header, &frame, packet_bytes_max, true));
        let cut = cut(&header, &frame, packet_bytes_max, false);
        was_cut |= cut.len() > 1;
        packets.extend(cut);
        clamp(frame, packet_bytes_max);
    }
    let (once, merged) = merged_and_cut(&packets);
    let (left_open, open_merged) = merged_and_cut(&open);
    let expected = sorted(packets);
    assert!(once == expected, "merging and cutting again is not the identity");
    assert!(left_open == expected, "nor is it with checksums that stayed open");
    was_cut && merged && open_merged
}

/// A packet and the header that it comes with.
type Framed = (VirtioNetHeader, Vec<u8>);

/// What these packets are when they were merged and cut again, and whether any were merged.
fn merged_and_cut(packets: &[Framed]) -> (Vec<Vec<u8>>, bool) {
    let (frames, merged) = merge(packets);
    let cut = |(header, frame): &Framed| cut(header, frame, usize::MAX, false);
    (sorted(frames.iter().flat_map(cut).collect()), merged)
}

/// Flows pass each other; within one they don't, which other tests look at.
fn sorted(packets: Vec<Framed>) -> Vec<Vec<u8>> {
    let mut packets: Vec<_> = packets.into_iter().map(|(_, packet)| packet).collect();
    packets.iter_mut().for_each(mask);
    packets.sort();
    packets
}

/// A frame: how long it is, how long its given start is, and that start; the rest repeats.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let len = usize::from(input.u16() % FRAME_BYTES_MAX);
    let given = input.byte();
    let mut frame = input.bytes(usize::from(given)).to_vec();
    frame.truncate(len.max(1));
    let filling = (0..len.saturating_sub(frame.len())).map(|at| (at % 251) as u8);
    frame.extend(filling);
    frame
}

fn cut(
    header: &VirtioNetHeader,
    frame: &[u8],
    packet_bytes_max: usize,
    leaves_open: bool,
) -> Vec<Framed> {
    let layout = Layout { headroom: ROOM, tailroom: ROOM, packet_bytes_max };
    let mut packets = Vec::new();
    let Ok(mut segmenter) = Segmenter::new(header, frame, layout) else { return packets };
    let largest = segmenter.packet_bytes();
    let is_open = leaves_open && segmenter.leave_checksums();
    let checksum = header.checksum.filter(|_| is_open);
    let header = VirtioNetHeader { checksum, segmentation: None };
    let mut bytes = 0;
    loop {
        let mut buffer = vec![ROOM_BYTE; BUFFER_BYTES];
        let Ok(Some(batch)) = segmenter.fill(&mut buffer) else { break };
        let (used, rest) = buffer.split_at(batch.len);
        assert!(rest.iter().all(|byte| *byte == ROOM_BYTE), "written behind the batch");
        assert_eq!(used.chunks(batch.stride).len(), batch.count);
        for place in used.chunks(batch.stride) {
            let (front, place) = place.split_at(ROOM);
            let (packet, back) = place.split_at(place.len() - ROOM);
            assert!(front.iter().chain(back).all(|byte| *byte == ROOM_BYTE), "no room left");
            assert!(packet.len() <= largest, "a packet larger than was said");
            bytes += packet.len();
            packets.push((header, packet.to_vec()));
        }
        assert!(bytes <= frame.len() * 101, "more bytes than one header for each byte of payload");
    }
    packets
}

fn merge(packets: &[Framed]) -> (Vec<Framed>, bool) {
    let mut coalescer = Coalescer::new(Accepts { tcp_v4: true, tcp_v6: true, udp: true });
    let mut frames = Vec::new();
    let mut emit = |header: &VirtioNetHeader, frame: &[u8]| {
        let [first @ .., _, _] = header.bytes(1);
        assert_eq!(VirtioNetHeader::parse(&first), Ok(*header), "a header that we would refuse");
        frames.push((*header, frame.to_vec()));
    };
    for (header, packet) in packets {
        coalescer.push(header, packet, &mut emit);
    }
    coalescer.flush(&mut emit);
    let merged = frames.iter().any(|(header, _)| header.segmentation.is_some());
    (frames, merged)
}

/// Clamping twice is clamping once.
fn clamp(mut packet: Vec<u8>, packet_bytes_max: usize) {
    let len = packet.len();
    clamp_mss(&mut packet, packet_bytes_max);
    assert_eq!(packet.len(), len);
    assert!(!clamp_mss(&mut packet, packet_bytes_max), "clamped, and still too large");
}

/// Takes out what may differ: padding behind the packet, the identification of one that must not be
/// fragmented with the checksum over it, and which zero a checksum is.
fn mask(packet: &mut Vec<u8>) {
    let word = |packet: &[u8], at: usize| match packet.get(at..at + 2) {
        Some([high, low]) => usize::from(*high) << 8 | usize::from(*low),
        _ => 0,
    };
    let set = |packet: &mut [u8], at: usize, to: u8| {
        packet.iter_mut().skip(at).take(2).for_each(|byte| *byte = to);
    };
    let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let (ip_bytes, len) = if is_ipv6 { (40, 40 + word(packet, 4)) } else { (20, word(packet, 2)) };
    packet.truncate(len.max(1));
    let protocol = packet.get(if is_ipv6 { 6 } else { 9 }).copied().unwrap_or(0);
    if !is_ipv6 && word(packet, 6) & 0x4000 != 0 {
        set(packet, 4, 0);
        set(packet, 10, 0);
    }
    let field = ip_bytes + if protocol == 6 { 16 } else { 6 };
    for at in [10, field] {
        if word(packet, at) == 0xffff {
            set(packet, at, 0);
        }
    }
}
