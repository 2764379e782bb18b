//! What passes between a member and the router of the node that it is attached to: who the member
//! is, and packets for members that are attached to the same one (see [`crate::uplink`]).
//!
//! A peer that is *here* has a session like any other: it proves who it is and shows its
//! certificates, probes say whether the router lives, and data takes the session again as soon as
//! something is amiss. As long as all is well, packets and super-frames pass as they are, since the
//! host that passes them could read both members' memory. The firewall judges them at both ends.

use std::borrow::Cow;
use std::net::SocketAddr;

use super::aliases::restored;
use super::{DropReason, Endpoint, Path, Transmit};
use crate::announcement::{Announcement, Role, SignedAnnouncement};
use crate::certificate::Alias;
use crate::firewall::Packet;
use crate::identity::PublicKey;
use crate::offload::{Layout, PACKET_BYTES_MAX, Segmenter, VirtioNetHeader};
use crate::signature::RANDOM_BYTES;
use crate::uplink::{Challenge, Down, Local, local_header};
use crate::wire::{MTU, RELAY_HEADER_BYTES, RelayHeader};

/// How long a member's announcement holds.
const ANNOUNCED_S: u64 = 3600;

/// How many packets a super-frame may stand for. One of 64 KiB in packets of a byte each would keep its
/// receiver busy for longer than its sender.
const PACKETS_MAX: usize = 128;

/// How many packets a frame of so many bytes stands for, at least.
pub(super) fn packets_of(header: &VirtioNetHeader, bytes: usize) -> usize {
    let payload = header.segmentation.map_or(bytes, |it| usize::from(it.payload_bytes));
    bytes.div_ceil(payload.max(1))
}

/// A router's message that means nothing to this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of the router that means nothing here")]
pub struct OddMessage;

/// The packet itself, for a check of it against its header.
const AS_IT_IS: Layout = Layout { headroom: 0, tailroom: 0, packet_bytes_max: PACKET_BYTES_MAX };

impl Endpoint {
    /// Answers a router's challenge: announces this member under a number larger than all before,
    /// and signs both. The message for the router.
    ///
    /// The number is the time in milliseconds, or more if the router says that it has seen more. So
    /// it needs no place on a disk, and grows when the member moves to another host.
    pub fn answer_challenge(&mut self, now_ns: u64, challenge: &Challenge) -> Vec<u8> {
        let unix_ns = self.unix_time_at_zero_ns.saturating_add(now_ns);
        let next = self.announced.saturating_add(1);
        self.announced = next.max(challenge.sequence).max(unix_ns / 1_000_000);
        let announcement = Announcement {
            key: self.key,
            sequence: self.announced,
            expires_unix_s: unix_ns / 1_000_000_000 + ANNOUNCED_S,
            role: Role::Workload,
        };
        let mut random = [0; RANDOM_BYTES];
        self.random.fill(&mut random);
        let signed = SignedAnnouncement::sign(announcement, &self.identity, &random);
        self.random.fill(&mut random);
        challenge.answer(&signed, &self.identity, &random)
    }

    /// Takes a message of the router that this member is attached to; `deliver` gets each packet or
    /// super-frame for this member. `port` is that of the member's UDP socket, if other hosts reach
    /// it. The message to answer with, if any.
    ///
    /// # Errors
    /// [`OddMessage`] if it is none of this version, or brings frames for somebody else.
    pub fn receive_from_router(
        &mut self,
        now_ns: u64,
        message: &mut [u8],
        port: Option<u16>,
        deliver: &mut dyn FnMut(&VirtioNetHeader, &[u8]),
    ) -> Result<Option<Vec<u8>>, OddMessage> {
        match Down::parse(message).ok_or(OddMessage)? {
            Down::Challenge(challenge) => {
                // Perhaps it is another router, or another process of this one.
                self.peers.iter_mut().for_each(|(_, peer)| peer.is_here = false);
                return Ok(Some(self.answer_challenge(now_ns, &challenge)));
            }
            Down::Attached(addresses) => {
                let at =
                    |port| addresses.iter().map(move |ip| SocketAddr::new(*ip, port)).collect();
                self.set_candidates(port.map_or_else(Vec::new, at));
                self.ask_again();
            }
            Down::Frames { stride, frames } => {
                self.begin_batch();
                for frame in frames.chunks_mut(stride) {
                    let header = RelayHeader::parse(frame).map_err(|_| OddMessage)?;
                    let datagram = frame.get_mut(RELAY_HEADER_BYTES..);
                    let datagram = datagram.filter(|_| header.destination == self.address);
                    let (member, is_alternate) = (header.source, header.is_alternate);
                    let from = Path::Relayed { member, is_alternate };
                    let datagram = datagram.ok_or(OddMessage)?;
                    self.receive_next(now_ns, from, datagram, deliver);
                }
            }
            Down::Resolved(key) => {
                self.learn(now_ns, &key, &[]);
            }
            Down::Unknown(address) => self.give_up(&address),
            Down::Alias(certificate) => {
                let alias = Alias::verify(certificate, self.unix_s(now_ns));
                self.learn_alias(now_ns, &alias.map_err(|_| OddMessage)?);
            }
            Down::Local(local) => self.receive_local(now_ns, &local, deliver),
            Down::Here(key) => self.set_here(&key, true),
            Down::Gone(key) => self.set_here(&key, false),
        }
        Ok(None)
    }

    /// The router says that a peer is attached to it too, or not any more.
    pub fn set_here(&mut self, peer: &PublicKey, is_here: bool) {
        let index = self.by_key.get(peer).copied();
        if let Some(peer) = index.and_then(|index| self.peers.get_mut(index)) {
            peer.is_here = is_here;
        }
    }

    /// Whether a frame that stands for so many packets may go to a peer as it is.
    pub(super) fn takes_local(&self, index: usize, packets: usize) -> bool {
        packets <= PACKETS_MAX && self.is_here(index)
    }

    fn is_here(&self, index: usize) -> bool {
        self.peers.get(index).is_some_and(|peer| peer.is_here && peer.current.is_some())
    }

    /// Sends a packet or super-frame that the firewall let pass to a peer that is here.
    pub(super) fn send_local(
        &mut self,
        now_ns: u64,
        index: usize,
        header: &VirtioNetHeader,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        if self.transmits.is_full() {
            return Err(DropReason::OutboundQueue);
        }
        // Its ways are probed as if they were used: a router that died is noticed.
        self.wake(now_ns, index);
        let Some(peer) = self.peers.get_mut(index) else { return Ok(()) };
        peer.sent_ns = now_ns;
        peer.bytes_sent += bytes.len() as u64;
        let key = peer.key;
        self.counters.packets_local += 1;
        self.counters.packets_sent += 1;
        self.counters.bytes_sent += bytes.len() as u64;
        let is_small = bytes.len() <= MTU;
        let buffers = &mut self.transmits;
        let mut message = if is_small { buffers.buffer() } else { buffers.batch_buffer() };
        message.clear();
        message.extend_from_slice(&local_header(&key, header));
        message.extend_from_slice(bytes);
        let stride = message.len();
        self.queue(Transmit { to: Path::Local(key), bytes: message, stride });
        self.renew_if_old(now_ns, index);
        Ok(())
    }

    /// Takes a packet or super-frame that the router passed on from a peer that is here; `deliver`
    /// gets it if it is for this member. What is not let in is dropped and counted.
    pub fn receive_local(
        &mut self,
        now_ns: u64,
        local: &Local<'_>,
        deliver: &mut dyn FnMut(&VirtioNetHeader, &[u8]),
    ) {
        match self.admit_local(now_ns, local) {
            Ok((header, packet)) => deliver(&header, &packet),
            Err(reason) => self.counters.drop(reason),
        }
    }

    /// The header and the packet for whoever takes it: nothing in them is the sender's word alone.
    fn admit_local<'a>(
        &mut self,
        now_ns: u64,
        local: &'a Local<'_>,
    ) -> Result<(VirtioNetHeader, Cow<'a, [u8]>), DropReason> {
        let index = self.by_key.get(&local.member).copied().ok_or(DropReason::LocalStranger)?;
        self.drop_dead_sessions(now_ns, index);
        if self.peers.get(index).is_none_or(|peer| peer.current.is_none()) {
            return Err(DropReason::LocalStranger);
        }
        let packet = Packet::parse(local.packet).map_err(|_| DropReason::InboundMalformed)?;
        let is_whole = local.header.segmentation.is_some() || packet.len <= MTU;
        let segmenter = Segmenter::new(&local.header, local.packet, AS_IT_IS)
            .map_err(|_| DropReason::InboundMalformed)?;
        let packets = packets_of(&local.header, packet.len);
        if !is_whole || packet.len != local.packet.len() || packets > PACKETS_MAX {
            return Err(DropReason::InboundMalformed);
        }
        let aliased = self.with_alias(now_ns, index, &packet)?;
        self.check_inbound(now_ns, index, &aliased.unwrap_or(packet), packets)?;
        if let Some(peer) = self.peers.get_mut(index) {
            peer.heard_ns = now_ns;
        }
        let bytes = aliased.map_or(Cow::Borrowed(&*local.packet), |aliased| {
            Cow::Owned(restored(&packet, &aliased, local.packet))
        });
        Ok((segmenter.true_header(&local.header), bytes))
    }
}
