//! Packets of which a peer says that their checksum is open: what is one arrives so, at a host as at a
//! guest; what only says so is dropped, whatever the peer sealed.

use std::net::{IpAddr, UdpSocket};

use net_vdev::endpoint::Control;
use net_vdev::offload::{ChecksumField, Sum, VirtioNetHeader, pseudo_header};
use net_vdev::session::Session;
use net_vdev::wire::OPEN_CHECKSUM;
use net_vdev::{Config, DropReason, NetDevice, Path, PrivateKey, Protocol, Rule};
use vdev::Device;

use crate::by_hand::{sealed, session};
use crate::nic::{ACCEPTED, Guest, PRIVATE, addresses, config};
use crate::packets::{ACK, echo_reply, echo_request, ip, tcp, too_big, udp};
use crate::world::{Member, PORT, World};

/// What a member got: packets and their headers.
type Got = Vec<(VirtioNetHeader, Vec<u8>)>;

/// Member 1, and member 0 with its addresses in both families, driven by hand.
struct Pair {
    world: World,
    session: Session,
    ends: [(IpAddr, IpAddr); 2],
}

impl Pair {
    fn new(open_checksums: bool) -> Self {
        let mut world = World::new(2, 61);
        let [peer, own] = [0, 1].map(|index| world.members[index].place);
        let who = world.members[0].key();
        let ipv4: [IpAddr; 2] = [[10, 9, 0, 1].into(), [10, 9, 0, 2].into()];
        let mut config = world.members[1].config.clone();
        config.addresses.push(ipv4[1]);
        config.peers[0].addresses.push(ipv4[0]);
        config.rules.push(Rule { who: who.into(), protocol: Protocol::Tcp, port: Some(PORT) });
        world.members[1] = Member::new(config, own, [9; 32]);
        let private = world.members[0].config.private_key.clone();
        let mut session =
            session(&private, &world.members[1].key(), open_checksums, |initiation| {
                world.inject(peer, own, initiation);
                world.seen.last().unwrap().2.clone()
            });
        let confirmation = sealed(&mut session, &[]);
        world.inject(peer, own, confirmation);
        assert!(world.members[1].endpoint.is_connected(&who));
        let ipv6 = [0, 1].map(|index| world.members[index].address());
        Self { world, session, ends: [(ipv6[0], ipv6[1]), (ipv4[0], ipv4[1])] }
    }

    /// The peer says these bytes; what member 1 takes.
    fn say(&mut self, content: &[u8]) -> Got {
        let mut datagram = sealed(&mut self.session, content);
        let (stride, mut got) = (datagram.len(), Got::new());
        let from = Path::Direct(self.world.members[0].place);
        let deliver = &mut |header: &_, packet: &[u8]| got.push((*header, packet.to_vec()));
        let endpoint = &mut self.world.members[1].endpoint;
        endpoint.receive(self.world.now_ns, from, &mut datagram, stride, deliver);
        got
    }

    fn malformed(&self) -> u64 {
        self.world.members[1].endpoint.counters().dropped(DropReason::InboundMalformed)
    }

    /// The peer says what is to be dropped for its form alone.
    fn is_refused(&mut self, content: &[u8], what: &str) {
        let before = self.malformed();
        assert!(self.say(content).is_empty(), "{what}: {content:02x?}");
        assert_eq!(self.malformed(), before + 1, "{what}: {content:02x?}");
    }
}

/// The same, saying that its checksum is open.
fn open(packet: &[u8]) -> Vec<u8> {
    let mut marked = packet.to_vec();
    marked[0] |= OPEN_CHECKSUM;
    marked
}

fn with(mut packet: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    packet[at] = byte;
    packet
}

/// A segment and a datagram, where their checksums are.
fn plain((from, to): (IpAddr, IpAddr)) -> [(Vec<u8>, ChecksumField); 2] {
    let start = if from.is_ipv6() { 40 } else { 20 };
    let mut segment = tcp((from, 4000), (to, PORT), ACK);
    segment.extend_from_slice(b"payload");
    let len_at = if from.is_ipv6() { 5 } else { 3 };
    segment[len_at] += 7;
    let datagram = udp((from, 4000), (to, PORT), b"payload");
    [(segment, ChecksumField { start, offset: 16 }), (datagram, ChecksumField { start, offset: 6 })]
}

#[test]
fn segments_and_datagrams_arrive_with_their_checksums_open() {
    let mut pair = Pair::new(true);
    for ends in pair.ends {
        for (packet, field) in plain(ends) {
            let header = VirtioNetHeader { checksum: Some(field), segmentation: None };
            assert_eq!(pair.say(&open(&packet)), [(header, packet.clone())]);
            assert_eq!(pair.say(&packet), [(VirtioNetHeader::default(), packet)]);
        }
    }
    assert_eq!(pair.malformed(), 0);
}

#[test]
fn what_has_no_checksum_to_leave_open_is_dropped_however_it_says_so() {
    let mut pair = Pair::new(true);
    for (from, to) in pair.ends {
        let [(segment, _), (datagram, _)] = plain((from, to));
        for packet in
            [echo_request(from, to, 1), echo_reply(from, to, 1), too_big(from, to, &datagram)]
        {
            pair.is_refused(&open(&packet), "ICMP");
        }
        for protocol in [0, 43, 44, 50, 51, 59, 60, 132, 135, 255] {
            pair.is_refused(&open(&ip(from, to, protocol, &[0; 40])), "another protocol");
        }
        for packet in [&segment, &datagram] {
            for len in 1..packet.len() {
                pair.is_refused(&open(&packet[..len]), "cut");
            }
            let family = packet[0] & 0x0f;
            for version in (0..16).filter(|version| ![4, 6, 12, 14].contains(version)) {
                let odd = with(packet.clone(), 0, version << 4 | family);
                pair.is_refused(&open(&odd), "another version, or a control message");
            }
        }
        // Data offsets that end in front of the header, or behind the packet.
        let start = segment.len() - 27;
        for offset in [0x00, 0x40, 0x70, 0xf0] {
            pair.is_refused(&open(&with(segment.clone(), start + 12, offset)), "data offset");
        }
        // A datagram that ends before its packet does, and one that goes on behind it.
        for len in [0, 7, 8, 14, 16, 255] {
            pair.is_refused(&open(&with(datagram.clone(), start + 5, len)), "datagram's length");
        }
        // Another family's header in front of this one's.
        let other = if from.is_ipv6() { 0x45 } else { 0x60 };
        pair.is_refused(&open(&with(segment.clone(), 0, other)), "another family");
    }
    let (from, to) = pair.ends[1];
    let [(segment, _), _] = plain((from, to));
    for (at, byte) in [(6, 0x20), (6, 0x01), (7, 1), (0, 0x46), (0, 0x44)] {
        pair.is_refused(&open(&with(segment.clone(), at, byte)), "a fragment, or options");
    }
    for (packet, _) in plain((from, to)) {
        assert_eq!(pair.say(&packet).len(), 1, "the session goes on");
    }
}

#[test]
fn nothing_is_open_in_a_session_that_did_not_agree_on_it() {
    let mut pair = Pair::new(false);
    for ends in pair.ends {
        for (packet, _) in plain(ends) {
            pair.is_refused(&open(&packet), "not agreed on");
            assert_eq!(pair.say(&packet), [(VirtioNetHeader::default(), packet)]);
        }
    }
}

#[test]
fn halves_of_a_packet_join_to_no_open_one() {
    let mut pair = Pair::new(true);
    let [(segment, _), _] = plain(pair.ends[0]);
    let before = pair.malformed();
    for (identity, whole, count) in [(1, open(&segment), 0), (2, segment, 1)] {
        let (front, back) = whole.split_at(whole.len() / 2);
        let offset = u16::try_from(front.len()).unwrap();
        let mut got = 0;
        for (is_last, offset, bytes) in [(false, 0, front), (true, offset, back)] {
            let mut half = Vec::new();
            Control::Fragment { identity, is_last, offset, bytes }.write(&mut half);
            got += pair.say(&half).len();
        }
        assert_eq!(got, count);
    }
    assert_eq!(pair.malformed(), before + 1);
}

#[test]
fn an_open_checksum_opens_no_port_and_is_no_other_s_address() {
    let mut pair = Pair::new(true);
    let (from, to) = pair.ends[0];
    let stranger: IpAddr = "402::9".parse().unwrap();
    for (packet, reason) in [
        (tcp((from, 4000), (to, PORT + 1), ACK), DropReason::InboundDenied),
        (udp((from, 4000), (to, PORT + 1), b"?"), DropReason::InboundDenied),
        (udp((stranger, 4000), (to, PORT), b"?"), DropReason::InboundSource),
        (udp((from, 4000), (stranger, PORT), b"?"), DropReason::InboundDestination),
    ] {
        let before = pair.world.members[1].endpoint.counters().dropped(reason);
        assert!(pair.say(&open(&packet)).is_empty());
        assert_eq!(pair.world.members[1].endpoint.counters().dropped(reason), before + 1);
    }
}

/// The card of member 1 of [`crate::nic`], whose driver accepts these features, and its peer.
fn card(features: u64) -> (Guest, UdpSocket, Session) {
    let [peer, own] = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let place = own.local_addr().unwrap();
    let config: Config = config(1, Some(peer.local_addr().unwrap()));
    let key = config.private_key.public();
    let mut guest = Guest::new(NetDevice::new(config, own, None, [9; 32]).unwrap());
    guest.card.accept(features);
    guest.post_receive_buffers(256);
    peer.connect(place).unwrap();
    peer.set_nonblocking(true).unwrap();
    let session = session(&PrivateKey::new(PRIVATE[0]), &key, true, |initiation| {
        peer.send(&initiation).unwrap();
        let mut buffer = [0; 1500];
        for _ in 0..100_000 {
            guest.process().unwrap();
            if let Ok(len) = peer.recv(&mut buffer) {
                return buffer[..len].to_vec();
            }
            std::thread::yield_now();
        }
        panic!("no response")
    });
    (guest, peer, session)
}

/// What of these packets reaches the guest, with virtio headers and without Ethernet ones.
fn reach(features: u64, contents: &[Vec<u8>]) -> Vec<([u8; 12], Vec<u8>)> {
    let (mut guest, peer, mut session) = card(features);
    let [from, to] = [0, 1].map(|member| addresses(member)[0]);
    let last = udp((from, 9), (to, 9), b"the last one");
    let mut to_send = contents.iter().chain([&last]);
    let mut got = Vec::new();
    for _ in 0..100_000 {
        // Not so many at once that the kernel would lose some.
        for content in to_send.by_ref().take(16) {
            peer.send(&sealed(&mut session, content)).unwrap();
        }
        guest.process().unwrap();
        let frames = guest.take_merged().into_iter();
        got.extend(frames.map(|frame| {
            let (header, frame) = frame.split_first_chunk::<12>().unwrap();
            (*header, frame[14..].to_vec())
        }));
        if got.pop_if(|(_, packet)| *packet == last).is_some() {
            return got;
        }
        std::thread::yield_now();
    }
    panic!("the last packet did not arrive")
}

/// Whether the transport's checksum of an IPv6 packet is right.
fn is_whole(packet: &[u8]) -> bool {
    let (ip, transport) = packet.split_at(40);
    pseudo_header(&ip[8..], ip[6], transport.len()).plus(Sum::of(transport)).is_right()
}

#[test]
fn a_guest_gets_whole_checksums_unless_its_driver_takes_open_ones() {
    let [from, to] = [0, 1].map(|member| addresses(member)[0]);
    let fields = plain((from, to));
    let contents: Vec<_> = fields.iter().map(|(packet, _)| open(packet)).collect();
    let whole = reach(0, &contents);
    assert_eq!(whole.len(), 2);
    for ((header, got), (sent, field)) in whole.iter().zip(&fields) {
        assert_eq!(header, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let at = usize::from(field.start + field.offset);
        assert!(is_whole(got), "{got:02x?}");
        assert_eq!((&got[..at], &got[at + 2..]), (&sent[..at], &sent[at + 2..]));
    }
    for ((header, got), (sent, field)) in reach(ACCEPTED, &contents).iter().zip(&fields) {
        let [start, offset] = [field.start + 14, field.offset].map(|it| u8::try_from(it).unwrap());
        assert_eq!(header, &[1, 0, 0, 0, 0, 0, start, 0, offset, 0, 1, 0], "NEEDS_CSUM");
        assert_eq!(got, sent);
    }
}

#[test]
fn what_only_says_that_it_is_open_reaches_no_guest() {
    let [from, to] = [0, 1].map(|member| addresses(member)[0]);
    let [(segment, _), (datagram, _)] = plain((from, to));
    let mut contents: Vec<_> = (1..segment.len()).map(|len| open(&segment[..len])).collect();
    contents.extend((1..datagram.len()).map(|len| open(&datagram[..len])));
    contents.push(open(&echo_request(from, to, 1)));
    contents.push(open(&ip(from, to, 44, &[6; 40])));
    contents.push(open(&with(datagram, 45, 8)));
    contents.push(open(&with(segment, 52, 0xf0)));
    for features in [0, ACCEPTED] {
        assert_eq!(reach(features, &contents), []);
    }
}
