//! TCP through NAT64, with smoltcp as the member's stack.

use mesh_egress::counters::DropReason;
use mesh_egress::limits::Limits;
use net_vdev::firewall::{Packet, Transport};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use crate::guest::{Guest, Path};
use crate::world::{SECOND_NS, Server, World, outside, pattern};

const SITE: [u8; 4] = [198, 51, 100, 7];

fn guest(server: Server, path: Path, seed: u64) -> (Guest, SocketHandle) {
    let mut guest = Guest::new(World::new(&[(80, server)]), path, seed);
    let handle = guest.connect(outside(SITE, 80), 5000);
    (guest, handle)
}

/// Reads so many bytes of the pattern.
fn read_pattern(guest: &mut Guest, handle: SocketHandle, all: usize, milliseconds: u64) {
    let mut at = 0;
    guest.until(milliseconds, "all bytes read", |guest| {
        let socket = guest.socket(handle);
        while socket.can_recv() {
            at += socket
                .recv(|bytes| {
                    let right = bytes.iter().enumerate().all(|(i, byte)| *byte == pattern(at + i));
                    assert!(right, "other bytes than were sent, from {at}");
                    (bytes.len(), bytes.len())
                })
                .unwrap();
        }
        at == all
    });
}

#[test]
fn bytes_are_echoed_and_both_ends_close() {
    let (mut guest, handle) = guest(Server::Echoes, Path::default(), 1);
    guest.until(100, "connected", |guest| guest.socket(handle).may_send());
    guest.socket(handle).send_slice(b"hello").unwrap();
    guest.until(100, "answered", |guest| guest.socket(handle).can_recv());
    let mut bytes = [0; 9];
    assert_eq!(guest.socket(handle).recv_slice(&mut bytes), Ok(5));
    guest.socket(handle).close();
    guest.until(100, "closed", |guest| guest.socket(handle).state() == State::TimeWait);
    (0..20).for_each(|_| guest.step());
    guest.world.now_ns += 11 * SECOND_NS;
    guest.world.turns(2);
    assert_eq!(guest.world.egress.occupancy(), (0, 0));
    assert_eq!(guest.world.outside().sockets.len(), 0);
}

#[test]
fn a_download_arrives_whole_whatever_the_path_does() {
    for seed in 1..=12 {
        let path = Path { lost: 10 * (seed % 4), reordered: 20 * (seed % 3), duplicated: 10 };
        let (mut guest, handle) = guest(Server::Sends(600_000), path, seed);
        read_pattern(&mut guest, handle, 600_000, 60_000);
        guest.socket(handle).close();
        guest.until(20_000, "closed", |guest| {
            matches!(guest.socket(handle).state(), State::TimeWait | State::Closed)
        });
    }
}

#[test]
fn an_upload_arrives_whole_whatever_the_path_does() {
    for seed in 1..=12 {
        let path = Path { lost: 10 * (seed % 4), reordered: 20 * (seed % 3), duplicated: 10 };
        let (mut guest, handle) = guest(Server::Takes, path, seed);
        let (all, mut sent) = (300_000, 0);
        guest.until(120_000, "all bytes sent", |guest| {
            let socket = guest.socket(handle);
            while sent < all && socket.can_send() {
                let room = (all - sent).min(socket.send_capacity() - socket.send_queue());
                let bytes: Vec<u8> = (sent..sent + room).map(pattern).collect();
                sent += socket.send_slice(&bytes).unwrap();
            }
            if sent == all {
                socket.close();
            }
            matches!(socket.state(), State::TimeWait | State::Closed)
        });
        let outside = guest.world.outside();
        let socket = outside.sockets.values().chain(&outside.closed).next().unwrap();
        let expected: Vec<u8> = (0..all).map(pattern).collect();
        assert!(socket.received == expected, "seed {seed}: {} bytes", socket.received.len());
        assert!(socket.is_finished, "seed {seed}");
    }
}

#[test]
fn a_member_hears_reset_when_the_server_refuses_or_breaks() {
    let (mut refused, handle) = guest(Server::Refuses, Path::default(), 1);
    refused.until(50, "refused", |guest| guest.socket(handle).state() == State::Closed);
    assert_eq!(refused.world.dropped(DropReason::Refused), 1);
    let (mut broken, handle) = guest(Server::Breaks, Path::default(), 1);
    broken.until(50, "connected", |guest| guest.socket(handle).may_send());
    broken.socket(handle).send_slice(b"hello").unwrap();
    broken.until(50, "reset", |guest| guest.socket(handle).state() == State::Closed);
    for guest in [&mut refused, &mut broken] {
        assert_eq!(guest.world.egress.occupancy(), (0, 0));
        assert!(guest.world.outside().sockets.is_empty());
    }
}

#[test]
fn a_member_hears_that_there_is_no_way() {
    let (mut guest, handle) = guest(Server::Unreachable, Path::default(), 1);
    let mut notices = Vec::new();
    for _ in 0..20 {
        guest.step();
        notices.extend(guest.take_icmp());
    }
    assert_eq!(notices[0][40..42], [1, 3]);
    let original = Packet::parse(&notices[0]).unwrap().transport;
    let Transport::Error(Some(original)) = original else { panic!("{original:?}") };
    assert_eq!((original.ports.source, original.ports.destination), (5000, 80));
    assert_eq!(guest.world.egress.occupancy(), (0, 0));
    guest.socket(handle).abort();
}

#[test]
fn a_server_that_takes_nothing_holds_no_more_than_the_window() {
    let (mut guest, handle) = guest(Server::Stuck, Path::default(), 1);
    for _ in 0..3000 {
        let socket = guest.socket(handle);
        if socket.can_send() {
            socket.send_slice(&[1; 10_000]).unwrap();
        }
        guest.step();
    }
    let queued = guest.socket(handle).send_queue();
    assert!(queued > 100_000, "the member's window never closed: {queued}");
    let (flows, bytes) = guest.world.egress.occupancy();
    assert_eq!((flows, bytes), (1, 128 * 1024));
}

#[test]
fn a_member_has_so_many_connections_and_no_more() {
    let limits = Limits { connections_max: 3, ..Limits::default() };
    let mut guest = Guest::new(World::with(&[(80, Server::Echoes)], limits), Path::default(), 1);
    let handles: Vec<_> = (0..5).map(|at| guest.connect(outside(SITE, 80), 6000 + at)).collect();
    (0..100).for_each(|_| guest.step());
    let open = handles.iter().filter(|handle| guest.socket(**handle).may_send()).count();
    assert_eq!(open, 3);
    assert!(guest.world.dropped(DropReason::TooMany) >= 2);
}

#[test]
fn a_cap_on_bytes_slows_a_member_down() {
    let limits = Limits { bytes_per_s: Some(100_000), ..Limits::default() };
    let world = World::with(&[(80, Server::Sends(300_000))], limits);
    let mut guest = Guest::new(world, Path::default(), 3);
    let handle = guest.connect(outside(SITE, 80), 5000);
    let start_ns = guest.world.now_ns;
    read_pattern(&mut guest, handle, 300_000, 60_000);
    let seconds = (guest.world.now_ns - start_ns) / SECOND_NS;
    assert!((2..30).contains(&seconds), "{seconds} s");
    assert!(guest.world.dropped(DropReason::OverCap) > 0);
}
