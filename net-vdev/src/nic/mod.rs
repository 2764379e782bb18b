//! A virtio network card (virtio 1.2 §5.1) whose link is the mesh.
//!
//! The guest sees Ethernet with one neighbour, a router that has every address but the guest's own.
//! The card answers ARP and neighbour solicitations itself; IP packets lose their Ethernet header
//! and go to the [`Endpoint`]; other frames are dropped and counted. A frame that is merely odd
//! never ends the VM; a broken ring does.
//!
//! The driver may hand over super-frames and leave checksums to the card (CSUM, HOST_TSO4, HOST_TSO6,
//! HOST_USO): nothing is demanded of one that doesn't. Frames for the guest are plain packets, unless
//! its driver accepts more (GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, MRG_RXBUF): then packets of a flow
//! that came together are one super-frame in as many buffers as it takes, and its checksum is left
//! undone; that of each packet in it was right, or left open by its sender's card.
//!
//! After construction the card makes two system calls, `sendmsg` and `recvmmsg`, each for a batch of
//! datagrams, on one socket that never blocks (and `close` when it is dropped). With an uplink to its
//! node's router it also makes `recvfrom`. An error of either is
//! a counted drop: it says something about the network, not about this VM.

pub mod ipv4;
mod link;
mod neighbour;
mod outbox;
mod uplink;

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use link::{BACKLOG_MAX, Link, Outgoing, ROUTER_MAC};
pub use neighbour::{Discovery, answer_arp, discover};
use vdev::{Chain, Device, DeviceError, DeviceQueue, GuestRam, Progress, RingError};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use self::uplink::Uplink;
use crate::endpoint::{Config, ConfigError, Counters, Endpoint, Path};
use crate::gather::Gather;
use crate::offload::{Accepts, PACKET_BYTES_MAX};
use crate::socket::{RECEIVE_BYTES, Socket};
use crate::wire::MTU;

pub use crate::offload::VIRTIO_HEADER_BYTES;
/// The bytes of an Ethernet header.
const ETHERNET_BYTES: usize = 14;
/// The bytes in front of a packet in a buffer of either queue: virtio and Ethernet headers.
pub const HEADERS_BYTES: usize = VIRTIO_HEADER_BYTES + ETHERNET_BYTES;

const QUEUE_SIZES: [u16; 2] = [256, 256];
/// How many chains and batches of datagrams one call takes at most, so that it ends.
const BUDGET: usize = 256;
/// How many frames of the guest are sealed before they are sent: small ones share a system call.
const SENT_TOGETHER: usize = 32;
/// One byte more than any frame may have: a longer one is cut to this, and refused.
const FRAME_BYTES: usize = HEADERS_BYTES + PACKET_BYTES_MAX + 1;

/// Why a card can't be made.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The member's configuration is contradictory.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The socket can't be used.
    #[error("the mesh socket can't be used: {0}")]
    Socket(#[source] io::Error),
}

/// The VMM gave the card another number of queues than it has.
#[derive(Debug, thiserror::Error)]
#[error("a network card has 2 queues, not {0}")]
struct QueueCount(usize);

/// What a card has dropped, besides what its [`Endpoint`] counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NicCounters {
    /// Frames of the guest that are too short or long, ask for offloads that were not offered, or
    /// carry neither ARP nor IP.
    pub frames_odd: u64,
    /// ARP and neighbour discovery that needed no answer.
    pub discoveries_ignored: u64,
    /// Frames for which the guest had no receive buffer in time.
    pub backlog_full: u64,
    /// Frames dropped because the guest has been slow to take them for too long (CoDel).
    pub backlog_stale: u64,
    /// Frames larger than the receive buffer that the guest had posted.
    pub buffer_small: u64,
    /// Batches of datagrams that the socket did not take.
    pub send_failed: u64,
    /// Messages of the router of the card's node that are none of this version.
    pub uplink_odd: u64,
    /// Errors of the socket when receiving.
    pub receive_failed: u64,
}

/// A virtio network card on the mesh. Queue 0 receives, queue 1 transmits.
pub struct NetDevice {
    link: Link,
    socket: Socket,
    uplink: Option<Uplink>,
    gather: Gather<Path>,
    /// Whether a frame for the guest may take several of its buffers.
    merges_buffers: bool,
    /// Buffers of the guest that wait for a frame, and a frame that waits for more of them.
    buffers: VecDeque<Chain>,
    held: Option<Outgoing>,
    /// Room for a frame of the guest.
    frame: Box<[u8]>,
    /// Room for a batch of datagrams of the network, or a message of the uplink.
    received: Box<[u8]>,
}

impl NetDevice {
    /// A card for the member of `config`, whose sessions run on the bound UDP `socket`. `seed` is
    /// fresh random bytes (see [`Endpoint::new`]). With an `uplink`, a connected `SOCK_SEQPACKET`
    /// socket to its node's router, it also reaches members through that, and the configuration
    /// should say that it is routed.
    ///
    /// # Errors
    /// [`NicError`] if the configuration is contradictory or the socket refuses.
    pub fn new(
        config: Config,
        socket: UdpSocket,
        uplink: Option<OwnedFd>,
        seed: [u8; 32],
    ) -> Result<Self, NicError> {
        let endpoint = Endpoint::new(config, seed)?;
        let socket = Socket::new(socket).map_err(NicError::Socket)?;
        let listening = socket.local_addr().map_err(NicError::Socket)?;
        let uplink = uplink.map(|uplink| Uplink::new(uplink, listening));
        let room = if uplink.is_some() { uplink::ROOM_BYTES } else { 0 };
        Ok(Self {
            link: Link::new(endpoint),
            socket,
            uplink,
            gather: Gather::new(),
            merges_buffers: false,
            buffers: VecDeque::new(),
            held: None,
            frame: vec![0; FRAME_BYTES].into_boxed_slice(),
            received: vec![0; RECEIVE_BYTES.max(room)].into_boxed_slice(),
        })
    }

    /// The card's MAC address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.link.mac()
    }

    /// The certificates of labels that the card's member shows from now on; returns how many count.
    pub fn set_certificates(&mut self, now_ns: u64, certificates: &[Vec<u8>]) -> usize {
        self.link.endpoint.set_certificates(now_ns, certificates)
    }

    /// What the card has dropped.
    #[must_use]
    pub fn counters(&self) -> NicCounters {
        self.link.counters
    }

    /// What the card's member of the mesh has done.
    #[must_use]
    pub fn mesh_counters(&self) -> Counters {
        self.link.endpoint.counters()
    }

    /// Sends the frames of the transmit queue; returns how many chains there were.
    fn drain_transmit_queue(
        &mut self,
        queue: &mut DeviceQueue,
        ram: &GuestRam,
        now_ns: u64,
    ) -> Result<usize, RingError> {
        for taken in 0..BUDGET {
            let Some(chain) = queue.pop(ram)? else {
                self.flush();
                return Ok(taken);
            };
            // The guest may change the frame at any time: it is copied once and only then read.
            let len = chain.read_at(ram, 0, &mut self.frame);
            self.link.send(now_ns, self.frame.get(..len).unwrap_or_default());
            queue.push_used(ram, chain.head(), 0)?;
            if taken % SENT_TOGETHER == SENT_TOGETHER - 1 {
                self.flush();
            }
        }
        Ok(BUDGET)
    }

    /// Takes what the socket has; returns how many batches there were, and whether the guest has
    /// got any frame.
    fn drain_socket(
        &mut self,
        queue: &mut DeviceQueue,
        ram: &GuestRam,
        now_ns: u64,
    ) -> Result<(usize, bool), RingError> {
        let mut used = false;
        for taken in 0..BUDGET {
            match self.socket.receive_batch(&mut self.received) {
                Ok(Some(batch)) => {
                    let datagrams = self.received.get_mut(..batch.len).unwrap_or_default();
                    let from = Path::Direct(batch.from);
                    self.link.receive(now_ns, from, datagrams, batch.stride);
                    self.link.flush_merged(now_ns);
                    used |= self.fill_receive_queue(queue, ram, now_ns)?;
                    self.flush();
                }
                Ok(None) => return Ok((taken, used)),
                // An ICMP error about an earlier datagram, or memory pressure: not for this VM.
                Err(_) => self.link.counters.receive_failed += 1,
            }
        }
        Ok((BUDGET, used))
    }

    /// Takes what the router of the node has, as [`NetDevice::drain_socket`] does.
    fn drain_uplink(
        &mut self,
        queue: &mut DeviceQueue,
        ram: &GuestRam,
        now_ns: u64,
    ) -> Result<(usize, bool), RingError> {
        let mut used = false;
        for taken in 0..BUDGET {
            let Some(uplink) = &mut self.uplink else { return Ok((taken, used)) };
            if !uplink.receive(now_ns, &mut self.link, &mut self.received) {
                return Ok((taken, used));
            }
            self.link.flush_merged(now_ns);
            used |= self.fill_receive_queue(queue, ram, now_ns)?;
            self.flush();
        }
        Ok((BUDGET, used))
    }

    /// Puts frames into the receive queue as long as there are both; returns whether any was used.
    fn fill_receive_queue(
        &mut self,
        queue: &mut DeviceQueue,
        ram: &GuestRam,
        now_ns: u64,
    ) -> Result<bool, RingError> {
        let mut used = false;
        loop {
            if self.buffers.is_empty() && queue.available(ram)? == 0 {
                return Ok(used);
            }
            let held = self.held.take();
            let Some(frame) = held.or_else(|| self.link.take(now_ns)) else { return Ok(used) };
            let need = frame.headers.len() + frame.payload.len();
            let mut room: usize = self.buffers.iter().map(Chain::writable_len).sum();
            let most = if self.merges_buffers { usize::from(queue.size()) } else { 1 };
            while room < need && self.buffers.len() < most {
                let Some(chain) = queue.pop(ram)? else { break };
                room += chain.writable_len();
                self.buffers.push_back(chain);
            }
            if room < need && self.buffers.len() < most {
                self.held = Some(frame);
                return Ok(used);
            }
            self.put(queue, ram, frame)?;
            used = true;
        }
    }

    /// Puts a frame into the first of the buffers that wait; one that they have no room for goes,
    /// and the first comes back empty.
    fn put(
        &mut self,
        queue: &mut DeviceQueue,
        ram: &GuestRam,
        mut frame: Outgoing,
    ) -> Result<(), RingError> {
        let need = frame.headers.len() + frame.payload.len();
        let mut room = 0;
        let fits = |chain: &Chain| {
            room += chain.writable_len();
            room >= need
        };
        let Some(last) = self.buffers.iter().position(fits) else {
            self.link.counters.buffer_small += 1;
            return match self.buffers.pop_front() {
                Some(chain) => queue.push_used(ram, chain.head(), 0),
                None => Ok(()),
            };
        };
        frame.set_buffer_count(last + 1);
        let mut rest = [&frame.headers[..], &frame.payload];
        for chain in self.buffers.drain(..=last) {
            let mut at = 0;
            for part in &mut rest {
                let written = chain.write_at(ram, at, part);
                *part = part.get(written..).unwrap_or_default();
                at += written;
            }
            queue.push_used(ram, chain.head(), u32::try_from(at).unwrap_or(0))?;
        }
        Ok(())
    }

    /// Hands the socket what the endpoint has to send.
    fn flush(&mut self) {
        uplink::ask(&mut self.link, self.uplink.as_mut());
        outbox::flush(&mut self.gather, &mut self.link, &mut self.socket, self.uplink.as_mut());
    }
}

impl Device for NetDevice {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_F_VERSION_1,
            VIRTIO_F_IN_ORDER,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_USO,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_STATUS,
        ]
        .into_iter()
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn accept(&mut self, features: u64) {
        let has = |bit: u32| features >> bit & 1 == 1;
        // A super-frame's checksum is never done, and it may be longer than any buffer.
        let merges = has(VIRTIO_NET_F_GUEST_CSUM) && has(VIRTIO_NET_F_MRG_RXBUF);
        self.merges_buffers = merges;
        self.link.set_accepts(Accepts {
            tcp_v4: merges && has(VIRTIO_NET_F_GUEST_TSO4),
            tcp_v6: merges && has(VIRTIO_NET_F_GUEST_TSO6),
            udp: false,
        });
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `struct virtio_net_config` (virtio 1.2 §5.1.4): mac, status, max_virtqueue_pairs, mtu.
    fn config_space(&self) -> Vec<u8> {
        let mut bytes = self.mac().to_vec();
        let status = u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or(1);
        let mtu = u16::try_from(MTU).unwrap_or(1280);
        for field in [status, 1, mtu] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn process(
        &mut self,
        queues: &mut [DeviceQueue],
        ram: &GuestRam,
        now_ns: u64,
    ) -> Result<Progress, DeviceError> {
        let count = queues.len();
        let [receive, transmit] = queues else {
            return Err(DeviceError::Backend(Box::new(QueueCount(count))));
        };
        let ring = |queue| move |source| DeviceError::Ring { queue, source };
        self.link.endpoint.handle_deadline(now_ns);
        self.flush();
        let sent = self.drain_transmit_queue(transmit, ram, now_ns).map_err(ring(1))?;
        // First what waited for buffers and what the card itself answered, then the network.
        let answered = self.fill_receive_queue(receive, ram, now_ns).map_err(ring(0))?;
        let (datagrams, received) = self.drain_socket(receive, ram, now_ns).map_err(ring(0))?;
        let (messages, passed_on) = self.drain_uplink(receive, ram, now_ns).map_err(ring(0))?;
        // Whatever the budget left over is for the next call, which is due at once.
        let is_cut_short = [sent, datagrams, messages].contains(&BUDGET);
        let deadline_ns = self.link.endpoint.next_deadline();
        Ok(Progress {
            used_queues: u32::from(answered || received || passed_on) | u32::from(sent > 0) << 1,
            deadline_ns: if is_cut_short { Some(now_ns) } else { deadline_ns },
        })
    }

    fn ready_fds<'a>(&'a self, watch: &mut dyn FnMut(BorrowedFd<'a>)) {
        watch(self.socket.as_fd());
        self.uplink.as_ref().and_then(Uplink::ready_fd).into_iter().for_each(watch);
    }

    fn close(&mut self) -> Result<(), DeviceError> {
        tracing::debug!(mesh = ?self.mesh_counters(), card = ?self.counters(), "card closed");
        Ok(())
    }
}
