//! Super-frames of a guest, and packets of peers that are merged for it.
//!
//! The input is a list of frames, each with its virtio header. Whatever they say, cutting ends, stays
//! within its buffer, and loses no byte of payload; and if what came out is merged and cut again,
//! the same packets come out.

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
    let mut packets = Vec::new();
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
        let cut = cut(&header, &frame, packet_bytes_max);
        was_cut |= cut.len() > 1;
        packets.extend(cut);
        clamp(frame, packet_bytes_max);
    }
    let (frames, merged) = merge(&packets);
    let mut again: Vec<Vec<u8>> =
        frames.iter().flat_map(|(header, frame)| cut(header, frame, usize::MAX)).collect();
    // Flows pass each other; within one they don't, which other tests look at.
    again.iter_mut().chain(&mut packets).for_each(mask);
    again.sort();
    packets.sort();
    assert!(again == packets, "merging and cutting again is not the identity");
    was_cut && merged
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

fn cut(header: &VirtioNetHeader, frame: &[u8], packet_bytes_max: usize) -> Vec<Vec<u8>> {
    let layout = Layout { headroom: ROOM, tailroom: ROOM, packet_bytes_max };
    let mut packets = Vec::new();
    let Ok(mut segmenter) = Segmenter::new(header, frame, layout) else { return packets };
    let largest = segmenter.packet_bytes();
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
            packets.push(packet.to_vec());
        }
        assert!(bytes <= frame.len() * 101, "more bytes than one header for each byte of payload");
    }
    packets
}

fn merge(packets: &[Vec<u8>]) -> (Vec<(VirtioNetHeader, Vec<u8>)>, bool) {
    let mut coalescer = Coalescer::new(Accepts { tcp_v4: true, tcp_v6: true, udp: true });
    let mut frames = Vec::new();
    let mut emit = |header: &VirtioNetHeader, frame: &[u8]| {
        let [first @ .., _, _] = header.bytes(1);
        assert_eq!(VirtioNetHeader::parse(&first), Ok(*header), "a header that we would refuse");
        frames.push((*header, frame.to_vec()));
    };
    for packet in packets {
        coalescer.push(&VirtioNetHeader::default(), packet, &mut emit);
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
