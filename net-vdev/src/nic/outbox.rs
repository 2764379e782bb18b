//! What a card sends: small datagrams of one size for one place share a system call.

use super::link::Link;
use super::uplink::Uplink;
use crate::endpoint::{Path, Transmit};
use crate::gather::Gather;
use crate::socket::Socket;

/// Sends all that the link's endpoint has to send. Nothing waits in `gather` before or after.
pub(super) fn flush(
    gather: &mut Gather<Path>,
    link: &mut Link,
    socket: &mut Socket,
    mut uplink: Option<&mut Uplink>,
) {
    let mut failed = 0;
    let mut send = |to: Path, datagrams: &[u8], stride: usize| {
        let uplink = uplink.as_deref_mut();
        let sent = match to {
            Path::Direct(to) => socket.send_batch(to, datagrams, stride).is_ok(),
            Path::Relayed { .. } => {
                uplink.is_some_and(|uplink| uplink.send_frames(datagrams, stride))
            }
            // A message by itself.
            Path::Local(_) => uplink.is_some_and(|uplink| uplink.send(&[datagrams])),
            // A card has no streams.
            Path::Stream(_) => false,
        };
        failed += u64::from(!sent);
    };
    while let Some(Transmit { to, bytes, stride }) = link.endpoint.poll_transmit() {
        if let Path::Local(_) = to {
            // What waits was made before it.
            gather.flush(&mut send);
            send(to, &bytes, stride);
        } else {
            gather.add(to, &bytes, stride, &mut send);
        }
        link.endpoint.recycle(bytes);
    }
    gather.flush(&mut send);
    link.counters.send_failed += failed;
}
