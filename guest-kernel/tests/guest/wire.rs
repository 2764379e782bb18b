//! Two virtio network cards and what lies between them: one hardware address that answers for
//! every other address, as the host's side does, and that forwards by destination.

use std::collections::VecDeque;

use abi::{DEVICE_CONFIG_MAX, DeviceEntry, QueueEntry, virtio};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet,
    Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
};

use crate::memory::DeviceQueue;
use crate::random::Random;

const HOST_MAC: EthernetAddress = EthernetAddress([2, 0xff, 0, 0, 0, 1]);
const HEADER_BYTES: usize = 12;
/// What a receive buffer of the driver holds, for an MTU of 1400.
const BUFFER_BYTES: usize = HEADER_BYTES + 14 + 1400;
const OFFLOADS: u64 =
    virtio::OPT_IN | virtio::NET_F_CSUM | virtio::NET_F_HOST_TSO4 | virtio::NET_F_HOST_TSO6;
const NET_F_MAC: u64 = 1 << 5;
const NET_F_MTU: u64 = 1 << 3;

/// The device side of one card.
pub(crate) struct Card {
    pub(crate) mac: EthernetAddress,
    pub(crate) addresses: Vec<IpAddress>,
    receive: DeviceQueue,
    transmit: DeviceQueue,
    /// Whether it cuts, merges and computes checksums.
    offloads: bool,
    /// Super-frames that it took.
    pub(crate) super_frames: usize,
    /// Frames on their way to the guest, with their virtio headers.
    inbox: VecDeque<Vec<u8>>,
}

impl Card {
    pub(crate) fn new(
        number: u8,
        addresses: &[IpAddress],
        queues: [QueueEntry; 2],
        offloads: bool,
    ) -> Self {
        let [receive, transmit] = queues.map(DeviceQueue::new);
        let mac = EthernetAddress([2, 0, 0, 0, 0, number]);
        Self {
            mac,
            addresses: addresses.to_vec(),
            receive,
            transmit,
            offloads,
            super_frames: 0,
            inbox: VecDeque::new(),
        }
    }

    pub(crate) fn device_entry(number: u8, mtu: u16, offloads: bool) -> DeviceEntry {
        let mut config = [0; DEVICE_CONFIG_MAX];
        config[..6].copy_from_slice(&[2, 0, 0, 0, 0, number]);
        config[10..12].copy_from_slice(&mtu.to_le_bytes());
        DeviceEntry {
            device_id: virtio::DEVICE_ID_NET,
            first_queue: 0,
            queue_count: 2,
            config_len: 12,
            features: virtio::F_VERSION_1
                | NET_F_MAC
                | NET_F_MTU
                | if offloads { OFFLOADS } else { 0 },
            config,
        }
    }

    /// Takes up to `count` frames that the guest sends. Returns them, and whether the guest wants
    /// to be woken for it.
    pub(crate) fn take_sent(&mut self, count: usize) -> (Vec<Vec<u8>>, bool) {
        let mut frames = Vec::new();
        while frames.len() < count {
            let Some((head, segments)) = self.transmit.pop() else { break };
            let bytes: Vec<u8> = segments.iter().flat_map(|segment| segment.read()).collect();
            if !self.offloads {
                assert_eq!(bytes[..HEADER_BYTES], [0; HEADER_BYTES], "no offload was negotiated");
            }
            self.super_frames += usize::from(bytes[1] != 0);
            frames.push(bytes);
            self.transmit.push_used(u32::from(head), 0);
        }
        let wakes = !frames.is_empty() && self.transmit.wakes();
        (frames, wakes)
    }

    /// Gives the guest what is in its inbox; returns whether there was anything.
    pub(crate) fn deliver(&mut self) -> bool {
        let mut any = false;
        while !self.inbox.is_empty() {
            let mut bytes = self.inbox[0].clone();
            let count = bytes.len().div_ceil(BUFFER_BYTES);
            // A driver posts more than one frame ever takes; the rest waits for it to come back.
            if self.receive.available() < count {
                return any;
            }
            self.inbox.pop_front();
            bytes[10..12].copy_from_slice(&(count as u16).to_le_bytes());
            for part in bytes.chunks(BUFFER_BYTES) {
                let (head, segments) = self.receive.pop().unwrap();
                segments[0].write(part);
                self.receive.push_used(u32::from(head), part.len() as u32);
            }
            any = true;
        }
        any
    }
}

/// Carries `frames` of card `from`: answers them or puts them into another card's inbox. One in
/// `lose_one_in` is lost (0: none).
pub(crate) fn carry(
    cards: &mut [&mut Card],
    from: usize,
    frames: Vec<Vec<u8>>,
    lose_one_in: usize,
    random: &mut Random,
) {
    for mut bytes in frames {
        if lose_one_in != 0 && random.one_in(lose_one_in) {
            continue;
        }
        if let Some(answer) = answer(&bytes[HEADER_BYTES..]) {
            cards[from].inbox.push_back([&[0; HEADER_BYTES][..], &answer].concat());
            continue;
        }
        let Some(destination) = destination(&bytes[HEADER_BYTES..]) else { continue };
        let to = cards.iter().position(|card| card.addresses.contains(&destination));
        if let Some(to) = to {
            let mut frame = EthernetFrame::new_unchecked(&mut bytes[HEADER_BYTES..]);
            frame.set_src_addr(HOST_MAC);
            frame.set_dst_addr(cards[to].mac);
            cards[to].inbox.push_back(bytes);
        }
    }
}

fn destination(bytes: &[u8]) -> Option<IpAddress> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    match frame.ethertype() {
        EthernetProtocol::Ipv6 => {
            Some(Ipv6Packet::new_checked(frame.payload()).ok()?.dst_addr().into())
        }
        EthernetProtocol::Ipv4 => {
            Some(Ipv4Packet::new_checked(frame.payload()).ok()?.dst_addr().into())
        }
        _ => None,
    }
}

/// The host's answer to a neighbour solicitation or an ARP request, whatever address it's for.
fn answer(bytes: &[u8]) -> Option<Vec<u8>> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    match frame.ethertype() {
        EthernetProtocol::Arp => {
            let request = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok()?;
            let ArpRepr::EthernetIpv4 {
                source_hardware_addr,
                source_protocol_addr,
                target_protocol_addr,
                ..
            } = request
            else {
                return None;
            };
            let reply = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: HOST_MAC,
                source_protocol_addr: target_protocol_addr,
                target_hardware_addr: source_hardware_addr,
                target_protocol_addr: source_protocol_addr,
            };
            Some(ethernet(source_hardware_addr, EthernetProtocol::Arp, reply.buffer_len(), |b| {
                reply.emit(&mut ArpPacket::new_unchecked(b));
            }))
        }
        EthernetProtocol::Ipv6 => advert(frame.src_addr(), frame.payload()),
        _ => None,
    }
}

fn advert(to: EthernetAddress, payload: &[u8]) -> Option<Vec<u8>> {
    let packet = Ipv6Packet::new_checked(payload).ok()?;
    let ip = Ipv6Repr::parse(&packet).ok()?;
    if ip.next_header != IpProtocol::Icmpv6 {
        return None;
    }
    let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    let checksums = ChecksumCapabilities::default();
    let solicit = Icmpv6Repr::parse(&ip.src_addr, &ip.dst_addr, &icmp, &checksums).ok()?;
    let Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. }) = solicit else {
        return None;
    };
    let advert = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::SOLICITED,
        target_addr,
        lladdr: Some(HOST_MAC.into()),
    });
    let reply = Ipv6Repr {
        src_addr: target_addr,
        dst_addr: ip.src_addr,
        next_header: IpProtocol::Icmpv6,
        payload_len: advert.buffer_len(),
        hop_limit: 255,
    };
    let len = reply.buffer_len() + advert.buffer_len();
    Some(ethernet(to, EthernetProtocol::Ipv6, len, |bytes| {
        let mut packet = Ipv6Packet::new_unchecked(bytes);
        reply.emit(&mut packet);
        let mut icmp = Icmpv6Packet::new_unchecked(packet.payload_mut());
        advert.emit(&reply.src_addr, &reply.dst_addr, &mut icmp, &checksums);
    }))
}

fn ethernet(
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    len: usize,
    payload: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = EthernetRepr { src_addr: HOST_MAC, dst_addr: to, ethertype };
    let mut bytes = vec![0; repr.buffer_len() + len];
    repr.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    payload(&mut bytes[repr.buffer_len()..]);
    bytes
}
