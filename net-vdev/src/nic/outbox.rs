//! What a card sends: datagrams of one size for one place share a system call.

use std::net::SocketAddr;

use super::link::Link;
use crate::endpoint::{Path, Transmit};
use crate::socket::{BATCH_BYTES_MAX, BATCH_COUNT_MAX, Socket};

/// Datagrams for one place, all of `stride` bytes but the last, which may be shorter.
pub(super) struct Outbox {
    to: Option<SocketAddr>,
    datagrams: Vec<u8>,
    stride: usize,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { to: None, datagrams: Vec::with_capacity(BATCH_BYTES_MAX), stride: 0 }
    }

    /// Sends all that the link's endpoint has to send.
    pub(super) fn flush(&mut self, link: &mut Link, socket: &mut Socket) {
        let mut failed = 0;
        while let Some(Transmit { to, bytes, stride }) = link.endpoint.poll_transmit() {
            match to {
                Path::Direct(to) => {
                    if !self.takes(to, &bytes, stride) {
                        failed += u64::from(!self.send(socket));
                        self.to = Some(to);
                        self.stride = stride;
                    }
                    self.datagrams.extend_from_slice(&bytes);
                }
                // The card has neither streams nor a router.
                Path::Stream(_) | Path::Relayed { .. } => failed += 1,
            }
            link.endpoint.recycle(bytes);
        }
        failed += u64::from(!self.send(socket));
        link.counters.send_failed += failed;
    }

    /// Whether these datagrams may follow those that wait.
    fn takes(&self, to: SocketAddr, bytes: &[u8], stride: usize) -> bool {
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

    /// Sends what waits; whether the socket took it.
    fn send(&mut self, socket: &mut Socket) -> bool {
        let Some(to) = self.to.take() else { return true };
        let sent = socket.send_batch(to, &self.datagrams, self.stride);
        self.datagrams.clear();
        sent.is_ok()
    }
}
