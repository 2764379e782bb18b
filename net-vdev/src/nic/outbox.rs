//! What a card sends: datagrams of one size for one place share a system call.

use super::link::Link;
use super::uplink::Uplink;
use crate::endpoint::{Path, Transmit};
use crate::socket::{BATCH_BYTES_MAX, BATCH_COUNT_MAX, Socket};

/// Datagrams for one place, all of `stride` bytes but the last, which may be shorter.
pub(super) struct Outbox {
    to: Option<Path>,
    datagrams: Vec<u8>,
    stride: usize,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { to: None, datagrams: Vec::with_capacity(BATCH_BYTES_MAX), stride: 0 }
    }

    /// Sends all that the link's endpoint has to send.
    pub(super) fn flush(
        &mut self,
        link: &mut Link,
        socket: &mut Socket,
        uplink: Option<&mut Uplink>,
    ) {
        let mut uplink = uplink;
        let mut failed = 0;
        while let Some(Transmit { to, bytes, stride }) = link.endpoint.poll_transmit() {
            if let Path::Local(_) = to {
                // A message by itself; what waits was made before it.
                failed += u64::from(!self.send(socket, uplink.as_deref_mut()));
                let sent = uplink.as_deref_mut().is_some_and(|uplink| uplink.send(&[&bytes]));
                failed += u64::from(!sent);
            } else {
                if !self.takes(to, &bytes, stride) {
                    failed += u64::from(!self.send(socket, uplink.as_deref_mut()));
                    self.to = Some(to);
                    self.stride = stride;
                }
                self.datagrams.extend_from_slice(&bytes);
            }
            link.endpoint.recycle(bytes);
        }
        failed += u64::from(!self.send(socket, uplink));
        link.counters.send_failed += failed;
    }

    /// Whether these datagrams may follow those that wait.
    fn takes(&self, to: Path, bytes: &[u8], stride: usize) -> bool {
        let len = self.datagrams.len();
        let count = (len + bytes.len()).div_ceil(self.stride.max(1));
        self.to == Some(to)
            && len > 0
            && len.is_multiple_of(self.stride.max(1))
            && stride <= self.stride
            && (stride == self.stride || bytes.len() == stride)
            && len + bytes.len() <= BATCH_BYTES_MAX
            && count <= BATCH_COUNT_MAX
    }

    /// Sends what waits; whether it was taken.
    fn send(&mut self, socket: &mut Socket, uplink: Option<&mut Uplink>) -> bool {
        let Some(to) = self.to.take() else { return true };
        let (datagrams, stride) = (self.datagrams.as_slice(), self.stride);
        let sent = match to {
            Path::Direct(to) => socket.send_batch(to, datagrams, stride).is_ok(),
            Path::Relayed { .. } => {
                uplink.is_some_and(|uplink| uplink.send_frames(datagrams, stride))
            }
            // A card has no streams, and local packets don't wait.
            Path::Stream(_) | Path::Local(_) => false,
        };
        self.datagrams.clear();
        sent
    }
}
