//! Datagrams on their way out: how they are built, and the queue that they wait in.

use std::collections::VecDeque;

use super::control::Control;
use super::fragments::split;
use super::{DropReason, Endpoint, Path};
use crate::wire::{
    DATA_HEADER_BYTES, DATA_OVERHEAD_BYTES, FRAME_BYTES_MAX, HOP_LIMIT, MTU, RELAY_HEADER_BYTES,
    RelayHeader, TAG_BYTES,
};

/// How many buffers of datagrams wait for [`Endpoint::poll_transmit`] at most.
pub const TRANSMITS_MAX: usize = 256;
/// How many empty buffers are kept for reuse.
const BUFFERS_MAX: usize = 16;
/// What UDP and IPv6 headers take of a path's 1500 bytes.
const UDP_IPV6_BYTES: usize = 48;
/// The largest packet inside a datagram straight to its peer over a path of 1500 bytes.
pub(super) const DIRECT_ROOM: usize = MTU;
/// The same through routers.
pub(super) const RELAYED_ROOM: usize =
    1500 - UDP_IPV6_BYTES - RELAY_HEADER_BYTES - DATA_OVERHEAD_BYTES;
/// What a path has less if only IPv6's smallest MTU gets through.
const NARROW_LESS: usize = 1500 - 1280;

const _: () = assert!(DIRECT_ROOM + DATA_OVERHEAD_BYTES + UDP_IPV6_BYTES <= 1500);

/// Datagrams for one place.
#[derive(Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to. For [`Path::Relayed`] the datagrams are relayed frames, whose link fields and tag
    /// are zero. For [`Path::Local`] it is one message for the uplink.
    pub to: Path,
    /// The datagrams, one after the other.
    pub bytes: Vec<u8>,
    /// The length of each but the last, which may be shorter.
    pub stride: usize,
}

/// The queue of what is to be sent, and buffers for reuse.
#[derive(Default)]
pub(super) struct Transmits {
    queue: VecDeque<Transmit>,
    buffers: Vec<Vec<u8>>,
    /// Large ones, whose old content is left in them: to clear them would cost as much as to use
    /// them.
    batches: Vec<Vec<u8>>,
}

impl Transmits {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= TRANSMITS_MAX
    }

    pub(super) fn pop(&mut self) -> Option<Transmit> {
        self.queue.pop_front()
    }

    pub(super) fn buffer(&mut self) -> Vec<u8> {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.clear();
        buffer.reserve(FRAME_BYTES_MAX);
        buffer
    }

    pub(super) fn batch_buffer(&mut self) -> Vec<u8> {
        self.batches.pop().unwrap_or_default()
    }

    pub(super) fn recycle(&mut self, buffer: Vec<u8>) {
        let is_small = buffer.capacity() < 8 * FRAME_BYTES_MAX;
        let pool = if is_small { &mut self.buffers } else { &mut self.batches };
        if pool.len() < BUFFERS_MAX {
            pool.push(buffer);
        }
    }
}

/// So much of `room` as whole blocks of AES take: a part of one costs a tenth of a packet's sealing.
pub(super) fn whole_blocks(room: usize) -> usize {
    const BLOCK_BYTES: usize = 16;
    room / BLOCK_BYTES * BLOCK_BYTES
}

/// The bytes in front of the sealed part of a datagram that takes this path.
pub(super) fn headroom(path: &Path) -> usize {
    DATA_HEADER_BYTES + if path.is_direct() { 0 } else { RELAY_HEADER_BYTES }
}

impl Endpoint {
    /// Queues a datagram; a full queue drops it, as the network might. On a relayed path it gets
    /// the frame around it, unless it has room for that in front.
    pub(super) fn transmit(&mut self, to: Path, datagram: Vec<u8>) {
        let bytes = match to {
            Path::Direct(_) | Path::Stream(_) | Path::Local(_) => datagram,
            Path::Relayed { .. } => {
                let mut frame = self.transmits.buffer();
                let header = self.relay_header(&to);
                frame.extend_from_slice(header.as_ref().map_or(&[], |header| header.as_slice()));
                frame.extend_from_slice(&datagram);
                self.recycle(datagram);
                frame
            }
        };
        let stride = bytes.len();
        self.queue(Transmit { to, bytes, stride });
    }

    pub(super) fn queue(&mut self, transmit: Transmit) {
        if self.transmits.is_full() {
            self.counters.drop(DropReason::OutboundQueue);
            self.recycle(transmit.bytes);
        } else {
            self.transmits.queue.push_back(transmit);
        }
    }

    /// The header of a frame of this member's, if the path needs one.
    pub(super) fn relay_header(&self, path: &Path) -> Option<[u8; RELAY_HEADER_BYTES]> {
        let Path::Relayed { member, is_alternate } = *path else { return None };
        let header = RelayHeader {
            hop_limit: HOP_LIMIT,
            is_alternate,
            receiver: 0,
            counter: 0,
            destination: member,
            source: self.address,
        };
        Some(header.to_bytes())
    }

    /// The largest packet that a datagram on this path to peer `index` can carry.
    pub(super) fn room(&self, index: usize, path: &Path) -> usize {
        let room = if path.is_direct() { DIRECT_ROOM } else { RELAYED_ROOM };
        let is_wide = self.peers.get(index).is_none_or(|peer| peer.paths.is_wide(path));
        if is_wide { room } else { room - NARROW_LESS }
    }

    /// The largest packet that TCP should make: what every path can carry whole.
    pub(super) fn packet_bytes_max(&self) -> usize {
        whole_blocks(if self.is_routed { RELAYED_ROOM } else { DIRECT_ROOM })
    }

    /// Seals a packet for peer `index` and queues it; in two halves if the path is too narrow.
    pub(super) fn seal_packet(
        &mut self,
        now_ns: u64,
        index: usize,
        path: Path,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let room = self.room(index, &path);
        if packet.len() <= room {
            self.seal(index, path, |bytes| bytes.extend_from_slice(packet))?;
        } else {
            let Some(peer) = self.peers.get_mut(index) else { return Ok(()) };
            peer.next_fragment = peer.next_fragment.wrapping_add(1);
            let halves = split(packet, room, peer.next_fragment);
            for half in halves.ok_or(DropReason::OutboundOversize)? {
                self.seal(index, path, |bytes| half.write(bytes))?;
            }
            self.counters.packets_split += 1;
        }
        if !packet.is_empty() {
            self.counters.packets_sent += 1;
            self.counters.bytes_sent += packet.len() as u64;
            if let Some(peer) = self.peers.get_mut(index) {
                peer.bytes_sent += packet.len() as u64;
                peer.sent_ns = now_ns;
            }
        }
        Ok(())
    }

    /// Seals a control message for peer `index` and queues it on this path.
    pub(super) fn seal_control(
        &mut self,
        index: usize,
        path: Path,
        message: &Control<'_>,
    ) -> Result<(), DropReason> {
        self.seal(index, path, |bytes| message.write(bytes))
    }

    /// Seals what `write` appends with the session of peer `index`, and queues it.
    pub(super) fn seal(
        &mut self,
        index: usize,
        path: Path,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), DropReason> {
        if self.transmits.is_full() {
            return Err(DropReason::OutboundQueue);
        }
        let header = self.relay_header(&path);
        let mut bytes = self.transmits.buffer();
        bytes.extend_from_slice(header.as_ref().map_or(&[], |header| header.as_slice()));
        bytes.resize(headroom(&path), 0);
        write(&mut bytes);
        bytes.resize(bytes.len() + TAG_BYTES, 0);
        let session = self.peers.get_mut(index).and_then(|peer| peer.current.as_mut());
        let datagram = bytes.get_mut(headroom(&path) - DATA_HEADER_BYTES..).unwrap_or_default();
        if !session.is_some_and(|session| session.seal(datagram)) {
            self.recycle(bytes);
            return Err(DropReason::OutboundUnanswered);
        }
        let stride = bytes.len();
        self.queue(Transmit { to: path, bytes, stride });
        Ok(())
    }
}
