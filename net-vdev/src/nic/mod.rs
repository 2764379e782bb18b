//! A virtio network card (virtio 1.2 §5.1) whose link is the mesh.
//!
//! The guest sees Ethernet with one neighbour, a router that has every address but the guest's own.
//! The card answers ARP and neighbour solicitations itself; IP packets lose their Ethernet header
//! and go to the [`Endpoint`]; other frames are dropped and counted. A frame that is merely odd
//! never ends the VM; a broken ring does.
//!
//! After construction the card makes two system calls, `sendto` and `recvfrom`, on one socket that
//! never blocks (and `close` when it is dropped). An error of either is a counted drop: it says
//! something about the network, not about this VM.

mod link;
mod neighbour;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

pub use link::{BACKLOG_MAX, Link, ROUTER_MAC};
pub use neighbour::{Discovery, answer_arp, discover};
use vdev::{Device, DeviceError, DeviceQueue, GuestRam, Progress, RingError};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::endpoint::{Config, ConfigError, Counters, Endpoint, Path, Transmit};
use crate::wire::{DATAGRAM_BYTES_MAX, MTU};

/// The bytes of `virtio_net_hdr` (virtio 1.2 §5.1.6, with VIRTIO_F_VERSION_1).
pub const VIRTIO_HEADER_BYTES: usize = 12;
/// The bytes in front of a packet in a buffer of either queue: virtio and Ethernet headers.
pub const HEADERS_BYTES: usize = VIRTIO_HEADER_BYTES + 14;

const QUEUE_SIZES: [u16; 2] = [256, 256];
/// How many chains and datagrams one call takes at most, so that it ends.
const BUDGET: usize = 256;
/// One byte more than any datagram may have: a longer one is cut to this, and refused.
const RECEIVE_BYTES: usize = DATAGRAM_BYTES_MAX + 1;
/// One byte more than any frame may have, for the same reason.
const FRAME_BYTES: usize = HEADERS_BYTES + MTU + 1;

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
    /// Frames larger than the receive buffer that the guest had posted.
    pub buffer_small: u64,
    /// Datagrams that the socket did not take.
    pub send_failed: u64,
    /// Errors of the socket when receiving.
    pub receive_failed: u64,
}

/// A virtio network card on the mesh. Queue 0 receives, queue 1 transmits.
pub struct NetDevice {
    link: Link,
    socket: UdpSocket,
    socket_is_ipv6: bool,
    /// Room for a frame of the guest.
    frame: Box<[u8; FRAME_BYTES]>,
    /// Room for a datagram of the network.
    datagram: Box<[u8; RECEIVE_BYTES]>,
}

impl NetDevice {
    /// A card for the member of `config`, whose sessions run on the bound UDP `socket`. `seed` is
    /// fresh random bytes (see [`Endpoint::new`]).
    ///
    /// # Errors
    /// [`NicError`] if the configuration is contradictory or the socket refuses.
    pub fn new(config: Config, socket: UdpSocket, seed: [u8; 32]) -> Result<Self, NicError> {
        let endpoint = Endpoint::new(config, seed)?;
        socket.set_nonblocking(true).map_err(NicError::Socket)?;
        let socket_is_ipv6 = socket.local_addr().map_err(NicError::Socket)?.is_ipv6();
        Ok(Self {
            link: Link::new(endpoint),
            socket,
            socket_is_ipv6,
            frame: Box::new([0; FRAME_BYTES]),
            datagram: Box::new([0; RECEIVE_BYTES]),
        })
    }

    /// The card's MAC address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.link.mac()
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
            let Some(chain) = queue.pop(ram)? else { return Ok(taken) };
            // The guest may change the frame at any time: it is copied once and only then read.
            let len = chain.read_at(ram, 0, self.frame.as_mut_slice());
            self.link.send(now_ns, self.frame.get(..len).unwrap_or_default());
            queue.push_used(ram, chain.head(), 0)?;
            self.flush();
        }
        Ok(BUDGET)
    }

    /// Takes what the socket has; returns how many datagrams there were, and whether the guest has
    /// got any frame.
    fn drain_socket(
        &mut self,
        queue: &mut DeviceQueue,
        ram: &GuestRam,
        now_ns: u64,
    ) -> Result<(usize, bool), RingError> {
        let mut used = false;
        for taken in 0..BUDGET {
            match self.socket.recv_from(self.datagram.as_mut_slice()) {
                Ok((len, from)) => {
                    let datagram = self.datagram.get_mut(..len).unwrap_or_default();
                    self.link.receive(now_ns, Path::Direct(canonical(from)), datagram);
                    used |= self.fill_receive_queue(queue, ram)?;
                    self.flush();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((taken, used));
                }
                // An ICMP error about an earlier datagram, or memory pressure: not for this VM.
                Err(_) => self.link.counters.receive_failed += 1,
            }
        }
        Ok((BUDGET, used))
    }

    /// Puts frames into the receive queue as long as there are both; returns whether any was used.
    fn fill_receive_queue(
        &mut self,
        queue: &mut DeviceQueue,
        ram: &GuestRam,
    ) -> Result<bool, RingError> {
        let mut used = false;
        while let Some((headers, payload)) = self.link.front() {
            let Some(chain) = queue.pop(ram)? else { break };
            let len = headers.len() + payload.len();
            // A buffer that is too small goes back as empty.
            let written = chain.write_at(ram, 0, &headers) == headers.len()
                && chain.write_at(ram, headers.len(), payload) == payload.len();
            let len = if written { u32::try_from(len).unwrap_or(0) } else { 0 };
            queue.push_used(ram, chain.head(), len)?;
            self.link.counters.buffer_small += u64::from(!written);
            self.link.pop();
            used = true;
        }
        Ok(used)
    }

    /// Hands the socket what the endpoint has to send.
    fn flush(&mut self) {
        while let Some(Transmit { to, bytes, .. }) = self.link.endpoint.poll_transmit() {
            let sent = match to {
                Path::Direct(to) => {
                    let to = if self.socket_is_ipv6 { mapped(to) } else { to };
                    self.socket.send_to(&bytes, to).is_ok()
                }
                // The card has neither streams nor a router.
                Path::Stream(_) | Path::Relayed { .. } => false,
            };
            self.link.counters.send_failed += u64::from(!sent);
            self.link.endpoint.recycle(bytes);
        }
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
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_STATUS,
        ]
        .into_iter()
        .fold(0, |features, bit| features | 1 << bit)
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
        let answered = self.fill_receive_queue(receive, ram).map_err(ring(0))?;
        let (datagrams, received) = self.drain_socket(receive, ram, now_ns).map_err(ring(0))?;
        // Whatever the budget left over is for the next call, which is due at once.
        let is_cut_short = sent == BUDGET || datagrams == BUDGET;
        let deadline_ns = self.link.endpoint.next_deadline();
        Ok(Progress {
            used_queues: u32::from(answered || received) | u32::from(sent > 0) << 1,
            deadline_ns: if is_cut_short { Some(now_ns) } else { deadline_ns },
        })
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn close(&mut self) -> Result<(), DeviceError> {
        tracing::debug!(mesh = ?self.mesh_counters(), card = ?self.counters(), "card closed");
        Ok(())
    }
}

/// An IPv4 address as an IPv6 socket knows it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::from((ip.to_ipv6_mapped(), address.port())),
        IpAddr::V6(_) => address,
    }
}

/// One name per endpoint, whatever the socket's family: an IPv4-mapped address is IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    let mapped = |ip: Ipv6Addr| ip.to_ipv4_mapped();
    match address {
        SocketAddr::V6(v6) => match mapped(*v6.ip()) {
            Some(ip) => SocketAddr::from((ip, v6.port())),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
