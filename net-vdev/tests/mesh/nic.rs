//! The card as a guest's driver sees it: two of them on real loopback sockets, and hostile rings.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use net_vdev::nic::{BACKLOG_MAX, HEADERS_BYTES, ROUTER_MAC};
use net_vdev::offload::{ChecksumField, Segmentation, SegmentationKind, VirtioNetHeader};
use net_vdev::{Config, DropReason, NetDevice, Peer, PrivateKey, Protocol, Rule};
use proptest::prelude::*;
use vdev::driver::{Buffer, Driver};
use vdev::{Device, DeviceError, DeviceQueue, GuestRam, QueueLayout};
use vm_memory::{Bytes, GuestAddress};

use crate::packets::{ACK, SYN, tcp, udp};
use crate::world::PORT;

const RAM_BYTES: usize = 2 << 20;
const RECEIVE_QUEUE: u64 = 0;
const TRANSMIT_QUEUE: u64 = 0x4000;
const RECEIVE_BUFFERS: u64 = 0x1_0000;
const TRANSMIT_BUFFER: u64 = 0x10_0000;
const BUFFER_BYTES: u32 = 1526;

/// A guest: RAM, two queues, their driver, and the card.
pub(crate) struct Guest {
    ram: GuestRam,
    queues: [DeviceQueue; 2],
    drivers: [Driver; 2],
    pub(crate) card: NetDevice,
    now_ns: u64,
    posted: u64,
}

impl Guest {
    pub(crate) fn new(card: NetDevice) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
        let layouts = [RECEIVE_QUEUE, TRANSMIT_QUEUE].map(|base| QueueLayout::at(base, 256));
        let [first, second] = layouts;
        let queues =
            [DeviceQueue::new(0, first, &ram).unwrap(), DeviceQueue::new(1, second, &ram).unwrap()];
        let drivers = layouts.map(Driver::new);
        Self { ram, queues, drivers, card, now_ns: 1, posted: 0 }
    }

    pub(crate) fn post_receive_buffers(&mut self, count: u64) {
        for _ in 0..count {
            let address = RECEIVE_BUFFERS + self.posted % 256 * 2048;
            self.posted += 1;
            let buffer = Buffer { address, len: BUFFER_BYTES, device_writes: true };
            self.drivers[0].add(&self.ram, &[buffer]).unwrap();
        }
    }

    /// Puts a frame (without its virtio header) into the transmit queue, header and rest in two
    /// buffers, and lets the card work.
    fn send_frame(&mut self, frame: &[u8]) {
        self.send_with([0; 12], frame);
    }

    /// The same behind a virtio header that asks for offloads.
    fn send_with(&mut self, header: [u8; 12], frame: &[u8]) {
        let bytes = [&header[..], frame].concat();
        self.ram.write_slice(&bytes, GuestAddress(TRANSMIT_BUFFER)).unwrap();
        let buffers = [(0, 12), (12, frame.len() as u32)].map(|(offset, len)| Buffer {
            address: TRANSMIT_BUFFER + offset,
            len,
            device_writes: false,
        });
        self.drivers[1].add(&self.ram, &buffers).unwrap();
        let progress = self.process().unwrap();
        assert_eq!(progress.used_queues & 2, 2);
        assert!(self.drivers[1].take_used(&self.ram).unwrap().is_some_and(|(_, len)| len == 0));
    }

    fn send(&mut self, packet: &[u8]) {
        let ethertype = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        self.send_frame(&ethernet(ethertype, packet));
    }

    pub(crate) fn process(&mut self) -> Result<vdev::Progress, DeviceError> {
        self.now_ns += 1000;
        self.card.process(&mut self.queues, &self.ram, self.now_ns)
    }

    /// The frames that the card has put into receive buffers, each in as many as it says, with their
    /// virtio headers.
    pub(crate) fn take_merged(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut rest = 0;
        while let Some((head, len)) = self.drivers[0].take_used(&self.ram).unwrap() {
            let mut bytes = vec![0; len as usize];
            let address = RECEIVE_BUFFERS + u64::from(head) * 2048;
            self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            if rest == 0 {
                rest = u16::from_le_bytes([bytes[10], bytes[11]]);
                frames.push(bytes);
            } else {
                frames.last_mut().unwrap().extend(bytes);
            }
            rest -= 1;
        }
        assert_eq!(rest, 0, "a frame comes whole");
        frames
    }

    /// The frames that the card has put into receive buffers, without virtio headers.
    fn take_frames(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some((head, len)) = self.drivers[0].take_used(&self.ram).unwrap() {
            let mut bytes = vec![0; len as usize];
            let address = RECEIVE_BUFFERS + u64::from(head) * 2048;
            self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            if len > 0 {
                assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
                frames.push(bytes.split_off(12));
            }
        }
        frames
    }
}

fn ethernet(ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&ROUTER_MAC[..], &[2, 0, 0, 0, 0, 1], &ethertype, payload].concat()
}

pub(crate) const PRIVATE: [[u8; 32]; 2] = [[1; 32], [2; 32]];
const IPV4: [[u8; 4]; 2] = [[10, 9, 0, 1], [10, 9, 0, 2]];

pub(crate) fn config(member: usize, endpoint: Option<SocketAddr>) -> Config {
    let key = PrivateKey::new(PRIVATE[1 - member]).public();
    let open = |protocol| Rule { who: key.into(), protocol, port: None };
    Config {
        addresses: vec![IPV4[member].into()],
        peers: vec![Peer { key, endpoint, addresses: vec![IPV4[1 - member].into()] }],
        rules: vec![open(Protocol::Udp), open(Protocol::Tcp), open(Protocol::Icmp)],
        ..Config::new(PrivateKey::new(PRIVATE[member]), 1_700_000_000_000_000_000)
    }
}

fn guests_on(addresses: [&str; 2]) -> [Guest; 2] {
    let sockets = addresses.map(|address| UdpSocket::bind(address).unwrap());
    let places = [0, 1].map(|member| sockets[member].local_addr().unwrap());
    let mut member = 0;
    sockets.map(|socket| {
        let mut peer = places[1 - member];
        if peer.ip().is_unspecified() {
            peer.set_ip("127.0.0.1".parse().unwrap());
        }
        let seed = [u8::try_from(member).unwrap() + 100; 32];
        let card = NetDevice::new(config(member, Some(peer)), socket, None, seed).unwrap();
        member += 1;
        Guest::new(card)
    })
}

fn guests() -> [Guest; 2] {
    guests_on(["127.0.0.1:0", "127.0.0.1:0"])
}

pub(crate) fn addresses(member: usize) -> [IpAddr; 2] {
    let key = PrivateKey::new(PRIVATE[member]).public();
    [key.address().into(), IPV4[member].into()]
}

/// Lets both cards work until one of the guests has got a frame.
fn exchange(guests: &mut [Guest; 2]) -> [Vec<Vec<u8>>; 2] {
    for _ in 0..2000 {
        for guest in guests.iter_mut() {
            guest.process().unwrap();
        }
        let frames = [0, 1].map(|member| guests[member].take_frames());
        if frames.iter().any(|frames| !frames.is_empty()) {
            return frames;
        }
        std::thread::yield_now();
    }
    panic!("no frame came through")
}

#[test]
fn the_card_describes_itself_as_virtio_says() {
    let [guest, _] = guests();
    let card = &guest.card;
    assert_eq!((card.device_id(), card.queue_sizes()), (1, &[256, 256][..]));
    // CSUM, GUEST_CSUM; MTU, MAC; GUEST_TSO4, GUEST_TSO6, MRG_RXBUF; HOST_TSO4, HOST_TSO6, HOST_ECN; STATUS; VERSION_1, IN_ORDER; HOST_USO.
    let bits = [0, 1, 3, 5, 7, 8, 15, 11, 12, 13, 16, 32, 35, 56];
    assert_eq!(card.features(), bits.into_iter().fold(0, |features, bit| features | 1 << bit));
    let space = card.config_space();
    assert_eq!(space[..6], card.mac());
    assert_eq!(space[6..], [1, 0, 1, 0, 0x78, 0x05]);
    assert_eq!(space[0] & 3, 2, "a locally administered address of one card");
    let mut fds = 0;
    card.ready_fds(&mut |_| fds += 1);
    assert_eq!(fds, 1, "one socket without an uplink");
}

#[test]
fn two_guests_exchange_packets_of_both_families_over_real_sockets() {
    let mut pair = guests();
    pair.iter_mut().for_each(|guest| guest.post_receive_buffers(256));
    for family in 0..2 {
        let [one, two] = [0, 1].map(|member| addresses(member)[family]);
        let request = udp((one, 1000), (two, PORT), b"request");
        pair[0].send(&request);
        let [_, frames] = exchange(&mut pair);
        let mac = pair[1].card.mac();
        assert_eq!(frames.len(), 1);
        assert_eq!((&frames[0][..6], &frames[0][6..12]), (&mac[..], &ROUTER_MAC[..]));
        assert_eq!(frames[0][14..], request);
        let answer = udp((two, PORT), (one, 1000), b"answer");
        pair[1].send(&answer);
        let [frames, _] = exchange(&mut pair);
        assert_eq!(frames[0][14..], answer);
    }
    assert_eq!(pair[0].card.mesh_counters().handshakes, 1);
    assert_eq!(pair[0].card.counters(), net_vdev::nic::NicCounters::default());
    pair.iter_mut().for_each(|guest| guest.card.close().unwrap());
}

#[test]
fn a_dual_stack_socket_and_an_ipv4_socket_understand_each_other() {
    for first in 0..2 {
        let mut pair = guests_on(["[::]:0", "127.0.0.1:0"]);
        pair.iter_mut().for_each(|guest| guest.post_receive_buffers(16));
        for from in [first, 1 - first] {
            let [ours, theirs] = [from, 1 - from].map(|member| addresses(member)[0]);
            pair[from].send(&udp((ours, PORT), (theirs, PORT), b"x"));
            assert_eq!(exchange(&mut pair)[1 - from].len(), 1);
        }
        // An IPv4 address has one name, whatever socket it came through.
        assert!(pair.iter().all(|guest| guest.card.mesh_counters().roamed == 0));
    }
}

#[test]
fn frames_wait_for_receive_buffers_up_to_a_bound() {
    let mut pair = guests();
    pair[0].post_receive_buffers(8);
    let [one, two] = [0, 1].map(|member| addresses(member)[0]);
    // Guest 1 has posted nothing: its first frame waits.
    pair[0].send(&udp((one, 1), (two, PORT), &0u64.to_be_bytes()));
    for _ in 0..2000 {
        for guest in &mut pair {
            guest.process().unwrap();
        }
        if pair[1].card.mesh_counters().packets_received == 1 {
            break;
        }
        std::thread::yield_now();
    }
    for number in 1..BACKLOG_MAX as u64 + 36 {
        pair[0].send(&udp((one, 1), (two, PORT), &number.to_be_bytes()));
        pair[1].process().unwrap();
    }
    assert!(pair[1].take_frames().is_empty());
    pair[1].post_receive_buffers(256);
    pair[1].process().unwrap();
    let frames = pair[1].take_frames();
    assert_eq!(frames.len(), BACKLOG_MAX);
    assert_eq!(pair[1].card.counters().backlog_full, 36);
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!(frame[frame.len() - 8..], (number as u64).to_be_bytes(), "in order");
    }
}

#[test]
fn a_receive_buffer_that_is_too_small_loses_its_frame_only() {
    let mut pair = guests();
    let small = Buffer { address: RECEIVE_BUFFERS, len: 40, device_writes: true };
    pair[1].drivers[0].add(&pair[1].ram, &[small]).unwrap();
    pair[1].posted += 1;
    pair[1].post_receive_buffers(1);
    let [one, two] = [0, 1].map(|member| addresses(member)[0]);
    pair[0].send(&udp((one, 1), (two, PORT), b"lost"));
    pair[0].send(&udp((one, 1), (two, PORT), b"kept"));
    let [_, frames] = exchange(&mut pair);
    assert_eq!(pair[1].card.counters().buffer_small, 1);
    let kept = if frames.is_empty() { exchange(&mut pair)[1].clone() } else { frames };
    assert!(kept[0].ends_with(b"kept"));
}

/// The header of a super-frame of UDP datagrams of 1,000 bytes, and such a frame.
fn super_frame(member: usize, payload: &[u8]) -> ([u8; 12], Vec<u8>) {
    let [from, to] = [member, 1 - member].map(|member| addresses(member)[0]);
    let packet = udp((from, 1), (to, PORT), payload);
    let segmentation = Segmentation {
        kind: SegmentationKind::Udp,
        ecn: false,
        payload_bytes: 1000,
        headers_bytes: 48,
    };
    let header = VirtioNetHeader {
        checksum: Some(ChecksumField { start: 40, offset: 6 }),
        segmentation: Some(segmentation),
    };
    (header.with_link(14).bytes(0), ethernet([0x86, 0xdd], &packet))
}

#[test]
fn a_super_frame_of_the_guest_arrives_as_packets() {
    let mut pair = guests();
    pair.iter_mut().for_each(|guest| guest.post_receive_buffers(128));
    let [one, two] = [0, 1].map(|member| addresses(member)[0]);
    let payload: Vec<u8> = (0..20_500).map(|at| (at % 251) as u8).collect();
    let (header, frame) = super_frame(0, &payload);
    pair[0].send(&udp((one, 1), (two, PORT), b"first"));
    exchange(&mut pair);
    pair[0].send_with(header, &frame);
    let mut received = Vec::new();
    while received.len() < 21 {
        received.extend(exchange(&mut pair)[1].clone());
    }
    let payloads: Vec<&[u8]> = received.iter().map(|frame| &frame[14 + 48..]).collect();
    assert_eq!(payloads.concat(), payload);
    assert_eq!(pair[0].card.mesh_counters().packets_sent, 1 + 21);
    // One by one they are the packets that the guest would have sent itself, checksum and all.
    let alone = udp((one, 1), (two, PORT), &payload[..1000]);
    assert_eq!(received[0][14..60], alone[..46]);
    assert_ne!(received[0][60..62], [0, 0]);
}

#[test]
fn a_super_frame_without_a_session_waits_for_it_as_packets_do() {
    let mut pair = guests();
    pair.iter_mut().for_each(|guest| guest.post_receive_buffers(128));
    let (header, frame) = super_frame(0, &[7; 3000]);
    pair[0].send_with(header, &frame);
    let mut received = Vec::new();
    while received.len() < 3 {
        received.extend(exchange(&mut pair)[1].clone());
    }
    assert!(received.iter().all(|frame| frame.ends_with(&[7; 1000])));
}

/// GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, MRG_RXBUF.
pub(crate) const ACCEPTED: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 15;

#[test]
fn packets_that_came_together_are_one_frame_for_a_guest_that_takes_it() {
    let mut pair = guests();
    pair.iter_mut().for_each(|guest| guest.post_receive_buffers(128));
    pair[1].card.accept(ACCEPTED);
    let [one, two] = [0, 1].map(|member| addresses(member)[0]);
    pair[0].send(&tcp((one, 1), (two, PORT), SYN));
    exchange(&mut pair);
    let payload: Vec<u8> = (0..20_000u32).map(|at| (at % 251) as u8).collect();
    let mut packet = tcp((one, 1), (two, PORT), ACK);
    packet.extend_from_slice(&payload);
    packet[4..6].copy_from_slice(&(20 + 20_000u16).to_be_bytes());
    // NEEDS_CSUM, TCPV6, 74 bytes of headers, 1,300 of payload, a checksum 16 behind 54.
    let header = [1, 4, 74, 0, 0x14, 5, 54, 0, 16, 0, 0, 0];
    pair[0].send_with(header, &ethernet([0x86, 0xdd], &packet));
    let (mut frames, mut got) = (Vec::new(), Vec::new());
    while got.len() < payload.len() {
        pair.iter_mut().for_each(|guest| assert!(guest.process().is_ok()));
        for frame in pair[1].take_merged() {
            got.extend_from_slice(&frame[12 + 14 + 60..]);
            frames.push(frame);
        }
    }
    assert_eq!(got, payload);
    // The batch came in one piece, or in few if the kernel cut it.
    assert!(frames.len() <= 4, "{} frames", frames.len());
    let first = &frames[0];
    assert_eq!((first[0], first[1]), (1, 4), "NEEDS_CSUM, TCPV6");
    assert_eq!(usize::from(first[10]), first.len().div_ceil(BUFFER_BYTES as usize));
}

#[test]
fn a_frame_waits_for_buffers_and_one_that_no_queue_holds_is_dropped() {
    let mut pair = guests();
    pair[0].post_receive_buffers(8);
    pair[1].card.accept(ACCEPTED);
    let [one, two] = [0, 1].map(|member| addresses(member)[0]);
    pair[0].send(&tcp((one, 1), (two, PORT), SYN));
    let mut packet = tcp((one, 1), (two, PORT), ACK);
    packet.resize(packet.len() + 6000, 9);
    packet[4..6].copy_from_slice(&(20 + 6000u16).to_be_bytes());
    let header = [1, 4, 74, 0, 0x14, 5, 54, 0, 16, 0, 0, 0];
    pair[0].send_with(header, &ethernet([0x86, 0xdd], &packet));
    for posted in [1, 2, 1, 1, 1, 1, 1] {
        for _ in 0..200 {
            pair.iter_mut().for_each(|guest| assert!(guest.process().is_ok()));
        }
        pair[1].post_receive_buffers(posted);
    }
    let mut frames = Vec::new();
    for _ in 0..200 {
        pair.iter_mut().for_each(|guest| assert!(guest.process().is_ok()));
        frames.extend(pair[1].take_merged());
    }
    let payload: usize = frames.iter().map(|frame| frame.len() - 12 - 14 - 60).sum();
    assert_eq!(payload, 6000, "{} frames", frames.len());
}

#[test]
fn offloads_that_contradict_the_frame_are_dropped() {
    let [mut guest, _] = guests();
    let (header, frame) = super_frame(0, &[7; 3000]);
    // No NEEDS_CSUM, UFO, segments of nothing, a checksum in the Ethernet header.
    for (at, value) in [(0, 0), (1, 3), (5, 0), (6, 3)] {
        let mut odd = header;
        odd[at] = value;
        odd[4] = if at == 5 { 0 } else { odd[4] };
        guest.send_with(odd, &frame);
    }
    assert_eq!(guest.card.counters().frames_odd, 4);
    // TCP, and a checksum elsewhere: for the packet to tell.
    for (at, value) in [(1, 4), (6, 55), (8, 16)] {
        let mut odd = header;
        odd[at] = value;
        guest.send_with(odd, &frame);
    }
    let counters = guest.card.mesh_counters();
    assert_eq!(counters.dropped(DropReason::OutboundMalformed), 3);
    assert_eq!(counters.packets_sent, 0);
}

#[test]
fn the_router_answers_for_every_address() {
    let [mut guest, _] = guests();
    guest.post_receive_buffers(8);
    let mac = guest.card.mac();
    let request =
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &IPV4[0], &[0; 6], &[10, 9, 0, 77]].concat();
    guest.send_frame(&ethernet([0x08, 0x06], &request));
    let frames = guest.take_frames();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0][..14], [&mac[..], &ROUTER_MAC, &[0x08, 0x06]].concat());
    assert_eq!(
        frames[0][14..],
        [&[0, 1, 8, 0, 6, 4, 0, 2][..], &ROUTER_MAC, &[10, 9, 0, 77], &mac, &IPV4[0],].concat()
    );
}

#[test]
fn odd_frames_are_counted_and_dropped() {
    let [mut guest, _] = guests();
    let [one, two] = [0, 1].map(|member| addresses(member)[0]);
    let packet = udp((one, 1), (two, PORT), b"x");
    for frame in [
        vec![],
        vec![0; 13],
        ethernet([0x86, 0xdd], &[]),
        ethernet([0x08, 0x00], &packet),
        ethernet([0x81, 0x00], &packet),
        ethernet([0x86, 0xdd], &vec![0x60; 1401]),
        ethernet([0x86, 0xdd], &vec![0x60; 9000]),
    ] {
        guest.send_frame(&frame);
    }
    assert_eq!(guest.card.counters().frames_odd, 7);
    // An offload that was not offered.
    let ufo = [1, 3, 48, 0, 1, 1, 54, 0, 6, 0, 0, 0];
    let bytes = [&ufo[..], &ethernet([0x86, 0xdd], &packet)].concat();
    guest.ram.write_slice(&bytes, GuestAddress(TRANSMIT_BUFFER)).unwrap();
    let len = bytes.len() as u32;
    let buffer = Buffer { address: TRANSMIT_BUFFER, len, device_writes: false };
    guest.drivers[1].add(&guest.ram, &[buffer]).unwrap();
    guest.process().unwrap();
    assert_eq!(guest.card.counters().frames_odd, 8);
    assert_eq!(guest.card.mesh_counters().packets_sent, 0);
}

#[test]
fn an_unreachable_network_is_a_drop_and_not_an_error() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // A loopback socket can't send to a public address; port 1 of loopback refuses.
    for place in ["192.0.2.1:9", "127.0.0.1:1", "[2001:db8::1]:9"] {
        let socket = socket.try_clone().unwrap();
        let config = config(0, Some(place.parse().unwrap()));
        let mut guest = Guest::new(NetDevice::new(config, socket, None, [5; 32]).unwrap());
        let [one, two] = [0, 1].map(|member| addresses(member)[0]);
        for _ in 0..3 {
            guest.send(&udp((one, 1), (two, PORT), b"x"));
        }
        assert!(guest.process().is_ok(), "{place}");
    }
}

#[test]
fn a_broken_ring_ends_the_card_with_its_queue_s_name() {
    let [mut guest, _] = guests();
    let outside = Buffer { address: RAM_BYTES as u64, len: 100, device_writes: false };
    guest.drivers[1].add(&guest.ram, &[outside]).unwrap();
    let error = guest.process().unwrap_err();
    assert!(error.is_guest_fault() && error.to_string().starts_with("queue 1: "), "{error}");
    let [mut guest, _] = guests();
    guest.drivers[0].write_avail_index(&guest.ram, 257).unwrap();
    // The receive ring is looked at when there is a frame for it.
    let mac = guest.card.mac();
    let kind = [0, 1, 8, 0, 6, 4, 0, 1];
    let request = [&kind[..], &mac, &IPV4[0], &[0; 6], &[10, 9, 0, 9]].concat();
    let frame = [&[0; 12][..], &ethernet([0x08, 0x06], &request)].concat();
    guest.ram.write_slice(&frame, GuestAddress(TRANSMIT_BUFFER)).unwrap();
    let len = frame.len() as u32;
    let buffer = Buffer { address: TRANSMIT_BUFFER, len, device_writes: false };
    guest.drivers[1].add(&guest.ram, &[buffer]).unwrap();
    let error = guest.process().unwrap_err();
    assert!(error.to_string().starts_with("queue 0: "), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Descriptors of any shape and frames of any bytes: the card either goes on or reports the
    /// ring, and never panics.
    #[test]
    fn any_chain_and_any_frame_are_survived(
        chains in prop::collection::vec(
            prop::collection::vec((0u64..0x21_0000, 0u32..4000, any::<bool>()), 1..5), 1..20),
        frame in prop::collection::vec(any::<u8>(), 0..1600),
    ) {
        let [mut guest, _] = guests();
        guest.ram.write_slice(&frame, GuestAddress(TRANSMIT_BUFFER + HEADERS_BYTES as u64)).unwrap();
        for (number, chain) in chains.iter().enumerate() {
            let buffers: Vec<_> = chain
                .iter()
                .map(|&(address, len, device_writes)| Buffer { address, len, device_writes })
                .collect();
            guest.drivers[number % 2].add(&guest.ram, &buffers).unwrap();
            if guest.process().is_err() {
                return Ok(());
            }
        }
    }

    #[test]
    fn any_ip_packet_of_a_guest_is_survived(
        payload in prop::collection::vec(any::<u8>(), 1..1400),
        version in prop::sample::select(vec![0x45u8, 0x60]),
    ) {
        let [mut guest, _] = guests();
        guest.post_receive_buffers(4);
        let mut payload = payload;
        payload[0] = version;
        if let Some(next_header) = payload.get_mut(6) {
            *next_header = 58;
        }
        guest.send(&payload);
    }
}
