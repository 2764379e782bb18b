//! The TUN against this host's kernel, in a network namespace of its own.
//!
//! Each test runs itself again inside a namespace (`unshare`); where that, or /dev/net/tun, is not to
//! be had it prints SKIPPED.
#![expect(clippy::unwrap_used, reason = "a helper that fails ends its test")]

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use mesh_node::tun::{Tun, TunConfig, TunError};
use net_vdev::offload::{Accepts, Coalescer, Layout, PACKET_BYTES_MAX, Segmenter, VirtioNetHeader};
use net_vdev::socket::{RECEIVE_BYTES, Socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

const OURS: Ipv6Addr = Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 1);
const THEIRS: Ipv6Addr = Ipv6Addr::new(0x401, 0, 0, 0, 0, 0, 0, 2);
const INSIDE: &str = "HYPHA_TEST_IN_NAMESPACE";
const LAYOUT: Layout = Layout { headroom: 0, tailroom: 0, packet_bytes_max: 1400 };

/// Whether this is the inner run; if not, makes it, and fails if it fails.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let works = |flags: &str| {
        let probe = format!("test -r /dev/net/tun -a -w /dev/net/tun && unshare {flags} true");
        Command::new("sh").args(["-c", &probe]).status().is_ok_and(|status| status.success())
    };
    let Some(flags) = ["-n", "-rn"].into_iter().find(|flags| works(flags)) else {
        println!("SKIPPED: no network namespace or no /dev/net/tun for this user");
        return false;
    };
    let status = Command::new("unshare")
        .arg(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(status.unwrap().success(), "{test} failed inside its namespace");
    false
}

fn config() -> TunConfig {
    TunConfig {
        name: "hyphatest".to_owned(),
        mtu: 1400,
        addresses: vec![(OURS, 7)],
        routes: Vec::new(),
        segments_max: 45,
    }
}

/// A card, and a socket at its address that packets of the other side reach: the kernel puts the
/// route for that in place a moment after the card is up.
fn card_and_socket() -> (Tun, Socket) {
    let tun = Tun::open(&config()).unwrap();
    let mut socket = Socket::new(UdpSocket::bind((OURS, 0)).unwrap()).unwrap();
    socket.send_batch((THEIRS, 7).into(), b"ready?", 6).unwrap();
    let (header, frame) = next_frame(&tun);
    let packet = turned(&cut(&header, &frame)[0]);
    for _ in 0..1000 {
        tun.write(&VirtioNetHeader::default(), &packet).unwrap();
        if socket.receive_batch(&mut [0; RECEIVE_BYTES]).unwrap().is_some() {
            return (tun, socket);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no packet reaches {OURS}");
}

/// The next frame that goes to the other side; the kernel's own chatter is passed over.
fn next_frame(tun: &Tun) -> (VirtioNetHeader, Vec<u8>) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        if let Some((header, len)) = tun.read(&mut packet).unwrap() {
            let frame = packet[..len].to_vec();
            if frame.get(24..40) == Some(&THEIRS.octets()[..]) {
                return (header, frame);
            }
            continue;
        }
        wait(tun);
    }
}

fn wait(fd: impl std::os::fd::AsFd) {
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&patience)).unwrap(), 1);
}

fn cut(header: &VirtioNetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 70_000];
    let mut packets = Vec::new();
    let mut segmenter = Segmenter::new(header, frame, LAYOUT).unwrap();
    while let Some(batch) = segmenter.fill(&mut buffer).unwrap() {
        packets.extend(buffer[..batch.len].chunks(batch.stride).map(<[u8]>::to_vec));
    }
    packets
}

/// The packet as if the other side had sent it: addresses and ports swapped, which no checksum
/// notices.
fn turned(packet: &[u8]) -> Vec<u8> {
    let mut turned = packet.to_vec();
    turned[8..24].copy_from_slice(&packet[24..40]);
    turned[24..40].copy_from_slice(&packet[8..24]);
    turned[40..42].copy_from_slice(&packet[42..44]);
    turned[42..44].copy_from_slice(&packet[40..42]);
    turned
}

#[test]
fn batches_pass_both_ways_as_the_kernel_takes_them() {
    if !is_inside("batches_pass_both_ways_as_the_kernel_takes_them") {
        return;
    }
    let (tun, mut socket) = card_and_socket();
    assert_eq!(tun.name(), "hyphatest");
    assert!(tun.accepts().tcp_v4 && tun.accepts().tcp_v6);
    let peer = SocketAddr::from((THEIRS, 7));
    let payload: Vec<u8> = (0..20_000).map(|at| (at % 253) as u8).collect();
    socket.send_batch(peer, &payload, 1000).unwrap();
    // One super-frame where the kernel has USO, else twenty packets: the same to the mesh.
    let mut packets = Vec::new();
    let mut frames = 0;
    while packets.len() < 20 {
        let (header, frame) = next_frame(&tun);
        packets.extend(cut(&header, &frame));
        frames += 1;
    }
    if tun.accepts().udp {
        assert_eq!(frames, 1, "a TUN with USO hands over the batch as it was sent");
    }
    let sent: Vec<u8> = packets.iter().flat_map(|packet| packet[48..].to_vec()).collect();
    assert_eq!(sent, payload);
    // And back, merged as far as the TUN takes it.
    for accepts in [tun.accepts(), Accepts::default()] {
        let mut coalescer = Coalescer::new(accepts);
        let mut written = 0;
        let mut emit = |header: &VirtioNetHeader, frame: &[u8]| {
            tun.write(header, frame).unwrap();
            written += 1;
        };
        for packet in &packets {
            coalescer.push(&VirtioNetHeader::default(), &turned(packet), &mut emit);
        }
        coalescer.flush(&mut emit);
        assert_eq!(written, if accepts.udp { 1 } else { 20 });
        assert_eq!(receive(&socket, payload.len(), peer), payload);
    }
}

fn receive(socket: &Socket, len: usize, peer: SocketAddr) -> Vec<u8> {
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut received = Vec::new();
    while received.len() < len {
        match socket.receive_batch(&mut buffer).unwrap() {
            Some(batch) => {
                assert_eq!(batch.from, peer);
                received.extend_from_slice(&buffer[..batch.len]);
            }
            None => wait(socket),
        }
    }
    received
}

#[test]
fn a_frame_that_the_kernel_refuses_hurts_nothing() {
    if !is_inside("a_frame_that_the_kernel_refuses_hurts_nothing") {
        return;
    }
    let (tun, mut socket) = card_and_socket();
    let plain = VirtioNetHeader::default();
    assert_eq!(tun.write(&plain, &[0x20; 40]), Err(Errno::INVAL), "neither IPv4 nor IPv6");
    // What looks like IPv6 is taken and dropped further in.
    for frame in [&[0x60][..], &[0x60; 39], &[0x60; 1400]] {
        assert_eq!(tun.write(&plain, frame), Ok(()));
    }
    let peer = SocketAddr::from((THEIRS, 7));
    socket.send_batch(peer, b"still here", 10).unwrap();
    let (header, frame) = next_frame(&tun);
    let [packet] = &cut(&header, &frame)[..] else { panic!("one packet was sent") };
    tun.write(&plain, &turned(packet)).unwrap();
    assert_eq!(receive(&socket, 10, peer), b"still here");
}

#[test]
fn what_keeps_a_card_from_being_made_is_said() {
    if !is_inside("what_keeps_a_card_from_being_made_is_said") {
        return;
    }
    for name in ["", "sixteen-bytes-no", "a/b", "a b", "..", "t%d", "nul\0"] {
        let error = Tun::open(&TunConfig { name: name.to_owned(), ..config() }).unwrap_err();
        assert!(matches!(&error, TunError::Name { name: told } if told == name), "{error}");
    }
    let _first = Tun::open(&config()).unwrap();
    let error = Tun::open(&config()).unwrap_err();
    assert!(matches!(error, TunError::Busy { .. }), "{error}");
    let lo = Tun::open(&TunConfig { name: "lo".to_owned(), ..config() }).unwrap_err();
    assert!(lo.to_string().contains("the network interface lo "), "{lo}");
    let error = Tun::open(&TunConfig { name: "second".to_owned(), mtu: 10, ..config() });
    assert!(matches!(error.unwrap_err(), TunError::Refused { .. }));
}
