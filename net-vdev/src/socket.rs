//! The UDP socket of a member: a batch of equal datagrams for one system call, both ways.
//!
//! A batch is one buffer of datagrams of `stride` bytes each, the last perhaps shorter. Sending it is
//! one `sendmsg` with UDP_SEGMENT; what a `recvmmsg` with UDP_GRO brings is of the same shape. Where
//! the kernel or a device refuses segmentation the datagrams go one by one, from then on for this
//! socket.
//!
//! The socket never blocks. IPv4 fragmentation is forbidden and the kernel's guess of a path's MTU is
//! not believed (IP_PMTUDISC_PROBE): a datagram too large for the local link is
//! [`SendError::TooLarge`], one too large for a link further on is lost without a sign; the owner
//! finds out with probes. No error is about more than the datagrams at hand.
//!
//! After [`Socket::new`] it makes two system calls: `sendmsg` and `recvmmsg` (and `close`), and a
//! third, `recvmsg`, for an owner that asks for ICMP errors ([`Socket::hear_errors`]). The kernel then
//! also reports each of them once as the outcome of whatever send comes next, wherever that goes: so
//! a send that fails is tried once more before its failure is believed.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

/// How many bytes a batch has at most. UDP takes 65,507; but with its headers, down to the link's, the
/// batch must stay below a device's `gso_max_size` of 65,536, or the kernel cuts it in software
/// before the device, at three times the cost.
pub const BATCH_BYTES_MAX: usize = 65_300;
/// How many datagrams a batch has at most.
pub const BATCH_COUNT_MAX: usize = 64;
/// The room that [`Socket::receive_batch`] needs to never cut what arrives.
pub const RECEIVE_BYTES: usize = 65_536;

/// What the kernel is asked to hold of datagrams in either direction, in bytes: some milliseconds at
/// 10 Gbit/s. Without CAP_NET_ADMIN it gives what `net.core.rmem_max` and `wmem_max` allow.
const BUFFER_BYTES: usize = 4 << 20;

/// A UDP socket that sends and receives batches.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    is_ipv6: bool,
    /// Whether the kernel cuts batches for us.
    segments: bool,
    hears_errors: bool,
}

/// What came in: `len` bytes of the buffer in datagrams of `stride` bytes, the last perhaps shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Who sent it; an IPv4-mapped address is written as IPv4.
    pub from: SocketAddr,
    /// The bytes of all datagrams.
    pub len: usize,
    /// The bytes of each datagram but the last; not 0.
    pub stride: usize,
}

/// Why a batch, or the rest of one, was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The socket's queue is full: it can be written again when `poll` says so.
    #[error("the socket's queue is full")]
    Full {
        /// The bytes at the start of the batch that were sent.
        sent: usize,
    },
    /// The datagrams are larger than the local link carries to that place.
    #[error("datagrams of {bytes} bytes are too large for the link")]
    TooLarge {
        /// The bytes of one datagram.
        bytes: usize,
    },
    /// Any other error of this destination: no route, no permission, no memory.
    #[error("the datagrams were not sent: {0}")]
    Refused(#[source] io::Error),
}

impl Socket {
    /// Takes a bound socket and asks for large buffers, segmentation and their reverse.
    ///
    /// # Errors
    /// The socket is not one of UDP.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        let is_ipv6 = socket.local_addr()?.is_ipv6();
        let state = UdpSocketState::new((&socket).into())?;
        enlarge_buffers(&socket);
        let segments = state.max_gso_segments() > 1;
        Ok(Self { socket, state, is_ipv6, segments, hears_errors: false })
    }

    /// Keeps what hosts and routers say about datagrams that they did not take, for
    /// [`Socket::take_error`]. While there is any, `poll` says POLLERR.
    ///
    /// # Errors
    /// The kernel's: it has no error queue.
    pub fn hear_errors(&mut self) -> io::Result<()> {
        self.state.enable_transport_errors((&self.socket).into())?;
        self.hears_errors = true;
        Ok(())
    }

    /// Where a datagram went that somebody says it did not take. Nothing proves it: whoever knows the
    /// addresses can send such an error. `None` if there is none now.
    pub fn take_error(&self) -> Option<SocketAddr> {
        let mut start = [0; 8];
        // The errors are in a control message, which is not looked at: all are mere hints.
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut start)],
            &mut RecvAncillaryBuffer::new(&mut []),
            RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT,
        );
        let address = SocketAddr::try_from(received.ok()?.address?).ok()?;
        Some(canonical(address))
    }

    /// Whether it is bound to an IPv6 address, and so can send to addresses of both families.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.is_ipv6
    }

    /// Whether batches still go out with one system call.
    #[must_use]
    pub fn segments(&self) -> bool {
        self.segments
    }

    /// From now on sends datagrams one by one, as if the kernel had refused segmentation.
    pub fn stop_segmenting(&mut self) {
        self.segments = false;
    }

    /// The bound address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr().map(canonical)
    }

    /// Sends `datagrams`, of `stride` bytes each but the last, which may be shorter. More than
    /// [`BATCH_BYTES_MAX`] bytes or [`BATCH_COUNT_MAX`] datagrams take more than one system call.
    ///
    /// # Errors
    /// [`SendError`]; what was not sent is the caller's to drop or to try again.
    pub fn send_batch(
        &mut self,
        to: SocketAddr,
        datagrams: &[u8],
        stride: usize,
    ) -> Result<(), SendError> {
        let to = if self.is_ipv6 { mapped(to) } else { to };
        let stride = stride.max(1);
        let batch_count = (BATCH_BYTES_MAX / stride).clamp(1, BATCH_COUNT_MAX);
        let mut sent = 0;
        for batch in datagrams.chunks(batch_count * stride) {
            self.send_one_batch(to, batch, stride).map_err(|error| match error {
                SendError::Full { sent: more } => SendError::Full { sent: sent + more },
                error => error,
            })?;
            sent += batch.len();
        }
        Ok(())
    }

    fn send_one_batch(
        &mut self,
        to: SocketAddr,
        batch: &[u8],
        stride: usize,
    ) -> Result<(), SendError> {
        if self.segments && batch.len() > stride {
            match self.send(to, batch, Some(stride)) {
                Ok(()) => return Ok(()),
                // A device that can't, or datagrams too large for the link, which some kernels
                // report as EINVAL: the first datagram alone will tell.
                Err(error) if is_about_segmentation(&error) => {}
                Err(error) => return Err(classify(error, 0, stride)),
            }
        }
        let mut sent = 0;
        for datagram in batch.chunks(stride) {
            let outcome = self.send(to, datagram, None);
            outcome.map_err(|error| classify(error, sent, datagram.len()))?;
            if sent == 0 && batch.len() > stride {
                // The datagram was fine, so it was the segmentation.
                self.segments = false;
            }
            sent += datagram.len();
        }
        Ok(())
    }

    fn send(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let transmit =
            Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
        let outcome = self.state.try_send((&self.socket).into(), &transmit);
        match outcome {
            Err(error) if self.hears_errors && error.kind() != io::ErrorKind::WouldBlock => {
                self.state.try_send((&self.socket).into(), &transmit)
            }
            outcome => outcome,
        }
    }

    /// Receives one batch into the start of `buffer` ([`RECEIVE_BYTES`] long); `None` if there is
    /// nothing to receive now.
    ///
    /// # Errors
    /// The kernel's, about an earlier datagram or for want of memory: the next call may do better.
    pub fn receive_batch(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let capacity = buffer.len();
        let mut metas = [RecvMeta::default()];
        let mut buffers = [IoSliceMut::new(buffer)];
        match self.state.recv((&self.socket).into(), &mut buffers, &mut metas) {
            Ok(_) => {
                let [meta] = metas;
                let len = meta.len.min(capacity);
                // An empty datagram has no stride.
                let stride = meta.stride.clamp(1, len.max(1));
                Ok(Some(Received { from: canonical(meta.addr), len, stride }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for [`BUFFER_BYTES`] both ways: beyond the system's limit if we may, else up to it. A
/// smaller buffer is no error: datagrams are lost sooner in a burst.
fn enlarge_buffers(socket: &UdpSocket) {
    use rustix::net::sockopt::{
        set_socket_recv_buffer_size, set_socket_recv_buffer_size_force,
        set_socket_send_buffer_size, set_socket_send_buffer_size_force,
    };
    let receives = set_socket_recv_buffer_size_force(socket, BUFFER_BYTES)
        .or_else(|_| set_socket_recv_buffer_size(socket, BUFFER_BYTES));
    let sends = set_socket_send_buffer_size_force(socket, BUFFER_BYTES)
        .or_else(|_| set_socket_send_buffer_size(socket, BUFFER_BYTES));
    if let Err(error) = receives.and(sends) {
        tracing::debug!(%error, "the socket keeps small buffers");
    }
}

fn is_about_segmentation(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(code, Some(rustix::io::Errno::IO | rustix::io::Errno::INVAL))
}

fn classify(error: io::Error, sent: usize, bytes: usize) -> SendError {
    if error.kind() == io::ErrorKind::WouldBlock {
        SendError::Full { sent }
    } else if quinn_udp::is_msg_size_err(&error) {
        SendError::TooLarge { bytes }
    } else {
        SendError::Refused(error)
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
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::from((ip, v6.port())),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
