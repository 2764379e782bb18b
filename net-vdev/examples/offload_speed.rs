//! What offloads cost on one core: `cargo run --release -p net-vdev --example offload_speed`.
//!
//! Nanoseconds per packet: a super-frame of 47 packets is cut into a batch buffer (copied, with
//! complete headers and checksums), and the batch merged to a super-frame again (checksums verified,
//! copied); a copy alone and AES-256-GCM alone for comparison. CPU time of the thread, medians of 9
//! rounds.

use std::error::Error;
use std::hint::black_box;

use net_vdev::offload::{
    Accepts, Batch, ChecksumField, Coalescer, Layout, Segmentation, SegmentationKind, Segmenter,
    VirtioNetHeader,
};
use net_vdev::socket::BATCH_BYTES_MAX;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 9;
const FRAMES: usize = 1000;
const PACKETS: usize = 47;
const LAYOUT: Layout = Layout { headroom: 16, tailroom: 16, packet_bytes_max: 1356 };

fn main() -> Result<(), Box<dyn Error>> {
    println!("| | bytes of a packet | cut ns | merge ns | copy ns | seal ns |");
    println!("|---|---|---|---|---|---|");
    for is_ipv6 in [true, false] {
        let (header, frame) = super_frame(is_ipv6);
        let mut buffer = vec![0; BATCH_BYTES_MAX];
        let mut copy = vec![0; BATCH_BYTES_MAX];
        let batch = cut(&header, &frame, &mut buffer)?;
        let cut_ns = time(|| {
            black_box(cut(black_box(&header), black_box(&frame), &mut buffer).is_ok());
        });
        let mut coalescer = Coalescer::new(Accepts { tcp_v4: true, tcp_v6: true, udp: true });
        let mut frames = 0;
        let merge_ns = time(|| frames += merge(&mut coalescer, black_box(&buffer), batch));
        assert_eq!(frames, (ROUNDS * FRAMES) as u64, "all were merged");
        let copy_ns = time(|| copy.copy_from_slice(black_box(&buffer)));
        let seal_ns = seal(&mut buffer, batch)?;
        let name = if is_ipv6 { "TCP over IPv6" } else { "TCP over IPv4" };
        println!("| {name} | 1356 | {cut_ns:.0} | {merge_ns:.0} | {copy_ns:.0} | {seal_ns:.0} |");
    }
    Ok(())
}

fn cut(header: &VirtioNetHeader, frame: &[u8], buffer: &mut [u8]) -> Result<Batch, Box<dyn Error>> {
    let batch = Segmenter::new(header, frame, LAYOUT)?.fill(buffer)?.ok_or("no packets")?;
    if batch.count == PACKETS { Ok(batch) } else { Err("not all in one batch".into()) }
}

fn merge(coalescer: &mut Coalescer, buffer: &[u8], batch: Batch) -> u64 {
    let mut frames = 0;
    let mut emit = |_: &VirtioNetHeader, frame: &[u8]| {
        black_box(frame);
        frames += 1;
    };
    for place in buffer.get(..batch.len).unwrap_or_default().chunks(batch.stride) {
        let packet = place.get(16..place.len() - 16).unwrap_or_default();
        coalescer.push(&VirtioNetHeader::default(), packet, &mut emit);
    }
    coalescer.flush(&mut emit);
    frames
}

fn seal(buffer: &mut [u8], batch: Batch) -> Result<f64, Box<dyn Error>> {
    let key = UnboundKey::new(&AES_256_GCM, &[1; 32]).map_err(|_| "no key")?;
    let key = LessSafeKey::new(key);
    Ok(time(|| {
        for place in buffer.get_mut(..batch.len).unwrap_or_default().chunks_mut(batch.stride) {
            let end = place.len() - 16;
            let nonce = Nonce::assume_unique_for_key([7; 12]);
            let packet = place.get_mut(16..end).unwrap_or_default();
            black_box(key.seal_in_place_separate_tag(nonce, Aad::from([0; 16]), packet).is_ok());
        }
    }))
}

/// A full super-frame of a Linux guest: TCP with time stamps.
fn super_frame(is_ipv6: bool) -> (VirtioNetHeader, Vec<u8>) {
    let ip_bytes: u16 = if is_ipv6 { 40 } else { 20 };
    let headers_bytes = ip_bytes + 32;
    let payload_bytes = 1356 - headers_bytes;
    let len = headers_bytes + 47 * payload_bytes;
    let mut frame = if is_ipv6 {
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend((len - 40).to_be_bytes());
        ip.extend([6, 64]);
        ip.resize(40, 4);
        ip
    } else {
        let mut ip = vec![0x45, 0];
        ip.extend(len.to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        ip.resize(20, 10);
        ip
    };
    frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 2, 0, 0, 0, 0, 0]);
    frame.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    frame.resize(usize::from(len), 0x5a);
    let kind = if is_ipv6 { SegmentationKind::TcpV6 } else { SegmentationKind::TcpV4 };
    let header = VirtioNetHeader {
        checksum: Some(ChecksumField { start: ip_bytes, offset: 16 }),
        segmentation: Some(Segmentation { kind, ecn: false, payload_bytes, headers_bytes }),
    };
    (header, frame)
}

/// The median of nanoseconds per packet.
fn time(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = cpu_ns();
            (0..FRAMES).for_each(|_| work());
            (cpu_ns() - start) as f64 / (FRAMES * PACKETS) as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times.get(ROUNDS / 2).copied().unwrap_or(f64::NAN)
}

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
