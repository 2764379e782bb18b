//! Super-frames on their way out: one look-up, one judgement of the firewall and one buffer for up
//! to 64 KiB of packets of a flow, cut and sealed in place.

use super::local::packets_of;
use super::transmit::{headroom, whole_blocks};
use super::{DropReason, Endpoint, Path, Transmit};
use crate::firewall::Packet;
use crate::offload::{Batch, Layout, PACKET_BYTES_MAX, Segmenter, VirtioNetHeader, clamp_mss};
use crate::wire::{DATA_HEADER_BYTES, MTU, OPEN_CHECKSUM, TAG_BYTES};

/// The room for a batch, in bytes: what a UDP socket takes at once.
const BATCH_BYTES: usize = crate::socket::BATCH_BYTES_MAX;

impl Endpoint {
    /// Sends what this member's driver queued: a packet, or a super-frame that its header says how
    /// to cut. What may not or can't be sent is dropped and counted.
    pub fn send_frame(&mut self, now_ns: u64, header: &VirtioNetHeader, packet: &[u8]) {
        if let Err(reason) = self.try_send_frame(now_ns, header, packet) {
            self.counters.drop(reason);
        }
    }

    fn try_send_frame(
        &mut self,
        now_ns: u64,
        header: &VirtioNetHeader,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let packet = Packet::parse(frame).map_err(|_| DropReason::OutboundMalformed)?;
        self.use_alias(now_ns, &packet.destination);
        let bytes = &*self.without_alias(&packet, frame);
        let index = self.routes.get(&self.through(packet.destination)).copied();
        let packets = packets_of(header, packet.len);
        if let Some(index) = index.filter(|index| self.takes_local(*index, packets)) {
            return self.send_frame_local(now_ns, index, header, (bytes, &packet));
        }
        let session = index.and_then(|index| {
            self.drop_dead_sessions(now_ns, index);
            let peer = self.peers.get(index)?;
            let session = peer.current.as_ref()?;
            Some((index, peer.paths.current()?, session.open_checksums))
        });
        let is_large = header.segmentation.is_some();
        let Some((index, path, open_checksums)) = session.filter(|_| is_large) else {
            return self.send_each(now_ns, header, frame);
        };
        if !self.has(&packet.source) {
            return Err(DropReason::OutboundSource);
        }
        let layout = Layout {
            headroom: headroom(&path),
            tailroom: TAG_BYTES,
            packet_bytes_max: whole_blocks(self.room(index, &path)),
        };
        let mut segmenter =
            Segmenter::new(header, bytes, layout).map_err(|_| DropReason::OutboundMalformed)?;
        if segmenter.packet_bytes() > layout.packet_bytes_max {
            // Datagrams that the path can't carry whole: each goes in two halves.
            return self.send_each(now_ns, header, frame);
        }
        let is_open = open_checksums && segmenter.leave_checksums();
        // The headers that each packet repeats make a few more of them than this.
        let packets = packet.len.div_ceil(segmenter.packet_bytes().max(1));
        self.ask_to_send(now_ns, index, &packet, packets)?;
        self.wake(now_ns, index);
        loop {
            if self.transmits.is_full() {
                return Err(DropReason::OutboundQueue);
            }
            let mut buffer = self.transmits.batch_buffer();
            buffer.resize(BATCH_BYTES, 0);
            let batch = segmenter.fill(&mut buffer).map_err(|_| DropReason::OutboundMalformed)?;
            let Some(batch) = batch else {
                self.recycle(buffer);
                break;
            };
            if is_open {
                mark_open(&mut buffer, batch, headroom(&path));
            }
            self.seal_batch(now_ns, index, path, batch, buffer)?;
        }
        self.after_sending(now_ns, index);
        Ok(())
    }

    /// Sends a frame to a peer that is attached to the same router, whole.
    fn send_frame_local(
        &mut self,
        now_ns: u64,
        index: usize,
        header: &VirtioNetHeader,
        (bytes, packet): (&[u8], &Packet),
    ) -> Result<(), DropReason> {
        if header.segmentation.is_none() && packet.len > MTU {
            return Err(DropReason::OutboundOversize);
        }
        if !self.has(&packet.source) {
            return Err(DropReason::OutboundSource);
        }
        self.ask_to_send(now_ns, index, packet, packets_of(header, packet.len))?;
        self.send_local(now_ns, index, header, bytes.get(..packet.len).unwrap_or_default())
    }

    /// Sends each packet of a frame by itself.
    fn send_each(
        &mut self,
        now_ns: u64,
        header: &VirtioNetHeader,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let layout = Layout { headroom: 0, tailroom: 0, packet_bytes_max: self.packet_bytes_max() };
        let mut segmenter =
            Segmenter::new(header, frame, layout).map_err(|_| DropReason::OutboundMalformed)?;
        let mut buffer = self.transmits.batch_buffer();
        buffer.resize(PACKET_BYTES_MAX, 0);
        while let Some(batch) =
            segmenter.fill(&mut buffer).map_err(|_| DropReason::OutboundMalformed)?
        {
            let packets = buffer.get_mut(..batch.len).unwrap_or_default();
            for packet in packets.chunks_mut(batch.stride.max(1)) {
                if self.is_routed {
                    clamp_mss(packet, self.packet_bytes_max());
                }
                self.send_packet(now_ns, packet);
            }
        }
        self.recycle(buffer);
        Ok(())
    }

    /// Seals the packets of a batch where they are, and queues them as one buffer.
    fn seal_batch(
        &mut self,
        now_ns: u64,
        index: usize,
        path: Path,
        batch: Batch,
        mut bytes: Vec<u8>,
    ) -> Result<(), DropReason> {
        bytes.truncate(batch.len);
        let relay_header = self.relay_header(&path);
        let relay_bytes = headroom(&path) - DATA_HEADER_BYTES;
        let peer = self.peers.get_mut(index);
        let Some((peer, session)) = peer.and_then(|peer| {
            let session = peer.current.as_mut()?;
            Some(((&mut peer.bytes_sent, &mut peer.sent_ns), session))
        }) else {
            self.recycle(bytes);
            return Err(DropReason::OutboundUnanswered);
        };
        for place in bytes.chunks_mut(batch.stride.max(1)) {
            let (front, datagram) = place.split_at_mut_checked(relay_bytes).unwrap_or_default();
            if let Some(header) = &relay_header {
                front.copy_from_slice(header);
            }
            if !session.seal(datagram) {
                self.recycle(bytes);
                return Err(DropReason::OutboundUnanswered);
            }
        }
        let packets_bytes = batch.len - batch.count * (headroom(&path) + TAG_BYTES);
        *peer.0 += packets_bytes as u64;
        *peer.1 = now_ns;
        self.counters.packets_sent += batch.count as u64;
        self.counters.bytes_sent += packets_bytes as u64;
        self.queue(Transmit { to: path, bytes, stride: batch.stride });
        Ok(())
    }
}

/// Says of each packet of a batch that its checksum is open.
fn mark_open(buffer: &mut [u8], batch: Batch, headroom: usize) {
    for place in buffer.chunks_mut(batch.stride.max(1)).take(batch.count) {
        if let Some(first) = place.get_mut(headroom) {
            *first |= OPEN_CHECKSUM;
        }
    }
}
