//! A member's way into the mesh through the router of the node on its host (`net_vdev::uplink`).

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path as FilePath;
use std::time::Duration;

use net_vdev::announcement::SignedAnnouncement;
use net_vdev::uplink::{self, Down, MESSAGE_BYTES_MAX};
use net_vdev::wire::{RELAY_HEADER_BYTES, RelayHeader};
use net_vdev::{Endpoint, Path, Transmit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

/// How long a node may take to answer, which has a thread that never waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connected socket.
pub(crate) struct Uplink {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Uplink {
    /// Attaches the member of `signed` to the node that listens at `path`.
    pub(crate) fn attach(path: &FilePath, signed: &SignedAnnouncement) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        send(&socket, &uplink::attach(signed), SendFlags::NOSIGNAL)?;
        let mut uplink = Self { socket, buffer: vec![0; MESSAGE_BYTES_MAX] };
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&uplink.socket, PollFlags::IN)];
        poll(&mut fds, Some(&patience))?;
        match Down::parse(uplink.next()?) {
            Some(Down::Attached(_)) => Ok(uplink),
            _ => Err(io::Error::other("the node did not attach this member")),
        }
    }

    /// The next message.
    fn next(&mut self) -> io::Result<&mut [u8]> {
        match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())? {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (len, _) => Ok(self.buffer.get_mut(..len).unwrap_or_default()),
        }
    }

    /// Takes one message of the node's: frames go to the member, whose packets `deliver` gets.
    pub(crate) fn receive(
        &mut self,
        now_ns: u64,
        endpoint: &mut Endpoint,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        match Down::parse(self.next()?) {
            Some(Down::Frames { stride, frames }) => {
                for frame in frames.chunks_mut(stride) {
                    let Ok(header) = RelayHeader::parse(frame) else { continue };
                    let (member, is_alternate) = (header.source, header.is_alternate);
                    let datagram = frame.get_mut(RELAY_HEADER_BYTES..).unwrap_or_default();
                    let path = Path::Relayed { member, is_alternate };
                    endpoint.receive(now_ns, path, datagram, &mut |packet| deliver(packet));
                }
            }
            Some(Down::Resolved(key)) => {
                endpoint.learn(now_ns, &key, &[]);
            }
            Some(Down::Unknown(address)) => endpoint.give_up(&address),
            Some(Down::Attached(_)) | None => {}
        }
        Ok(())
    }

    /// Hands frames to the node's router.
    pub(crate) fn send(&self, transmit: &Transmit) -> io::Result<()> {
        let stride = transmit.stride.max(1);
        let most = (MESSAGE_BYTES_MAX - uplink::HEADER_BYTES) / stride;
        for frames in transmit.bytes.chunks((most * stride).max(1)) {
            let message = [uplink::frames_header(stride).as_slice(), frames].concat();
            send(&self.socket, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        }
        Ok(())
    }

    /// Asks whose address this is. If the node has no room for the question, a packet of later
    /// asks again.
    pub(crate) fn resolve(&self, address: &Ipv6Addr) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let Err(error) = send(&self.socket, &uplink::resolve(address), flags) {
            tracing::debug!(%error, "a question to the node");
        }
    }
}

impl AsFd for Uplink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
