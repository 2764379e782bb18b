//! The socket on loopback: batches arrive whole, with and without the kernel's segmentation.
#![expect(clippy::unwrap_used, reason = "a helper that fails ends its test")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use net_vdev::socket::{BATCH_COUNT_MAX, RECEIVE_BYTES, SendError, Socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn v4() -> Socket {
    Socket::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap()
}

/// A socket of both families, as nodes have them.
fn dual() -> Socket {
    Socket::new(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap()).unwrap()
}

fn v4_address_of(socket: &Socket) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, socket.local_addr().unwrap().port()).into()
}

/// Receives datagrams until there are `count`; returns them, and how many calls it took.
fn receive(socket: &Socket, count: usize, from: SocketAddr) -> (Vec<Vec<u8>>, usize) {
    let mut buffer = vec![0; RECEIVE_BYTES];
    let (mut datagrams, mut calls) = (Vec::new(), 0);
    while datagrams.len() < count {
        let Some(batch) = socket.receive_batch(&mut buffer).unwrap() else {
            let mut fds = [PollFd::new(socket, PollFlags::IN)];
            let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
            assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "datagrams are missing");
            continue;
        };
        assert_eq!(batch.from, from);
        datagrams.extend(buffer[..batch.len].chunks(batch.stride).map(<[u8]>::to_vec));
        calls += 1;
    }
    (datagrams, calls)
}

fn batch(count: usize, stride: usize, last: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let bytes: Vec<u8> =
        (0..(count - 1) * stride + last).map(|at| (at / stride + at) as u8).collect();
    let datagrams = bytes.chunks(stride).map(<[u8]>::to_vec).collect();
    (bytes, datagrams)
}

#[test]
fn a_batch_arrives_whole_and_in_few_calls() {
    for (mut sender, receiver) in [(v4(), v4()), (dual(), v4()), (v4(), dual())] {
        let from = v4_address_of(&sender);
        let to = v4_address_of(&receiver);
        for (count, stride, last) in [(1, 100, 100), (40, 1432, 17), (44, 1432, 1432), (2, 9, 9)] {
            let (bytes, datagrams) = batch(count, stride, last);
            sender.send_batch(to, &bytes, stride).unwrap();
            let (received, calls) = receive(&receiver, count, from);
            assert_eq!(received, datagrams);
            if sender.segments() {
                assert_eq!(calls, 1, "the kernel has UDP_SEGMENT and UDP_GRO");
            }
        }
    }
}

#[test]
fn more_than_one_call_takes_is_sent_in_several() {
    let (mut sender, receiver) = (v4(), v4());
    let (bytes, datagrams) = batch(3 * BATCH_COUNT_MAX - 5, 1000, 1);
    sender.send_batch(v4_address_of(&receiver), &bytes, 1000).unwrap();
    let (received, _) = receive(&receiver, datagrams.len(), v4_address_of(&sender));
    assert_eq!(received, datagrams);
}

#[test]
fn without_segmentation_the_same_datagrams_arrive() {
    let (mut sender, receiver) = (dual(), dual());
    sender.stop_segmenting();
    let (bytes, datagrams) = batch(30, 1200, 5);
    sender.send_batch(v4_address_of(&receiver), &bytes, 1200).unwrap();
    assert!(!sender.segments());
    let (received, _) = receive(&receiver, datagrams.len(), v4_address_of(&sender));
    assert_eq!(received, datagrams);
}

#[test]
fn an_oversize_datagram_is_reported_and_hurts_nothing() {
    let (mut sender, receiver) = (v4(), v4());
    let to = v4_address_of(&receiver);
    let error = sender.send_batch(to, &vec![0; 65_530], 65_530).unwrap_err();
    assert!(matches!(error, SendError::TooLarge { bytes: 65_530 }), "{error}");
    let error = sender.send_batch(to, &vec![0; 3 * 65_530], 65_530).unwrap_err();
    assert!(matches!(error, SendError::TooLarge { bytes: 65_530 }), "{error}");
    assert!(sender.segments() || !v4().segments(), "the size is no reason to stop segmenting");
    let (bytes, datagrams) = batch(10, 1400, 1400);
    sender.send_batch(to, &bytes, 1400).unwrap();
    assert_eq!(receive(&receiver, 10, v4_address_of(&sender)).0, datagrams);
}

#[test]
fn a_place_without_a_route_is_refused_and_hurts_nothing() {
    let (mut sender, receiver) = (v4(), v4());
    // A socket of IPv4 alone reaches no IPv6.
    let error = sender.send_batch((Ipv6Addr::LOCALHOST, 9).into(), &[1; 20], 10).unwrap_err();
    assert!(matches!(error, SendError::Refused(_)), "{error}");
    sender.send_batch(v4_address_of(&receiver), &[1; 20], 10).unwrap();
    assert_eq!(receive(&receiver, 2, v4_address_of(&sender)).0, [[1; 10], [1; 10]]);
}

#[test]
fn sending_never_blocks_when_nobody_reads() {
    let mut sender = v4();
    let receiver = v4();
    let to = v4_address_of(&receiver);
    let (bytes, _) = batch(BATCH_COUNT_MAX, 1000, 1000);
    for _ in 0..500 {
        match sender.send_batch(to, &bytes, 1000) {
            Ok(()) => {}
            Err(SendError::Full { sent }) => assert_eq!(sent % 1000, 0),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn nothing_to_receive_is_no_error() {
    assert_eq!(v4().receive_batch(&mut [0; 100]).unwrap(), None);
}

#[test]
fn an_empty_datagram_is_received_as_such() {
    let (sender, receiver) = (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), v4());
    sender.send_to(&[], v4_address_of(&receiver)).unwrap();
    sender.send_to(&[7], v4_address_of(&receiver)).unwrap();
    let mut buffer = vec![0; RECEIVE_BYTES];
    let first = receiver.receive_batch(&mut buffer).unwrap().unwrap();
    assert_eq!((first.len, first.stride), (0, 1));
    let second = receiver.receive_batch(&mut buffer).unwrap().unwrap();
    assert_eq!((second.len, second.stride), (1, 1));
}
