//! A member's way into the mesh through the router of the node on its host (`net_vdev::uplink`).

use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path as FilePath;

use mesh_node::uplinks::{CardEnds, Handover};
use net_vdev::offload::each_packet;
use net_vdev::uplink::{self, MESSAGE_BYTES_MAX};
use net_vdev::wire::MTU;
use net_vdev::{Endpoint, Path, Transmit};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

const FLAGS: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// A connected socket.
pub(crate) struct Uplink {
    ends: CardEnds,
    /// The connection that the node's end went over, and that stands as long as the node does.
    _handover: Handover,
    buffer: Vec<u8>,
    cut: Vec<u8>,
}

impl Uplink {
    /// Hands a socket to the node that listens at `path`; it asks the member who it is by that.
    pub(crate) fn open(path: &FilePath) -> io::Result<Self> {
        let ends = CardEnds::new(None)?;
        let mut handover = Handover::new(path.to_owned());
        if !handover.serve(0, [&ends].into_iter()) {
            let reason = format!("the node does not answer at {}", path.display());
            return Err(io::Error::new(io::ErrorKind::NotConnected, reason));
        }
        let buffer = vec![0; MESSAGE_BYTES_MAX];
        Ok(Self { ends, _handover: handover, buffer, cut: Vec::new() })
    }

    /// Takes one message of the node's: frames go to the member, whose packets `deliver` gets.
    pub(crate) fn receive(
        &mut self,
        now_ns: u64,
        endpoint: &mut Endpoint,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let len = match recv(&self.ends.card, &mut self.buffer[..], RecvFlags::DONTWAIT)? {
            (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (len, _) => len,
        };
        let message = self.buffer.get_mut(..len).unwrap_or_default();
        let cut = &mut self.cut;
        let answer = endpoint.receive_from_router(now_ns, message, None, &mut |header, packet| {
            each_packet(header, packet, MTU, cut, &mut *deliver);
        });
        if let Some(answer) = answer.map_err(io::Error::other)? {
            send(&self.ends.card, &answer, FLAGS)?;
        }
        Ok(())
    }

    /// Hands datagrams to the node's router.
    pub(crate) fn send(&self, transmit: &Transmit) -> io::Result<()> {
        if let Path::Local(_) = transmit.to {
            send(&self.ends.card, &transmit.bytes, FLAGS)?;
            return Ok(());
        }
        let stride = transmit.stride.max(1);
        let most = (MESSAGE_BYTES_MAX - uplink::HEADER_BYTES) / stride;
        for frames in transmit.bytes.chunks((most * stride).max(1)) {
            let header = uplink::frames_header(stride);
            let parts = [IoSlice::new(&header), IoSlice::new(frames)];
            sendmsg(&self.ends.card, &parts, &mut SendAncillaryBuffer::default(), FLAGS)?;
        }
        Ok(())
    }

    /// Asks whose address this is. If the node has no room for the question, a packet of later
    /// asks again.
    pub(crate) fn resolve(&self, address: &Ipv6Addr) {
        if let Err(error) = send(&self.ends.card, &uplink::resolve(address), FLAGS) {
            tracing::debug!(%error, "a question to the node");
        }
    }
}

impl AsFd for Uplink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.card.as_fd()
    }
}
