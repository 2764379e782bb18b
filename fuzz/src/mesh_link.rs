//! What a node reads before it knows anybody: a datagram on the local network, a connection in place
//! of UDP, and messages on the socket of a VM's network card in both directions.
//!
//! What is read is written as the same bytes, nothing is made of what was not there, and a connection
//! gives the same datagrams however its bytes arrive.

use mesh_node::{discovery, framing};
use net_vdev::uplink::{self, Down, HEADER_BYTES, Up};
use net_vdev::wire::FRAME_BYTES_MAX;

use crate::bytes::Input;

/// True if something was read.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    match input.byte() % 4 {
        0 => {
            let Some((port, announcement)) = discovery::parse(input.0) else { return false };
            assert_eq!(discovery::datagram(port, &announcement), input.0);
            true
        }
        1 => check_connection(input),
        2 => check_up(input.0),
        _ => check_down(input.0),
    }
}

/// The datagrams of a connection whose bytes arrive in pieces, and whether it ended in anything else.
fn datagrams(bytes: &[u8], pieces: &mut dyn FnMut() -> usize) -> (Vec<Vec<u8>>, bool) {
    let mut framing = framing::Framing::default();
    let (mut read, mut buffer) = (Vec::new(), vec![0; 4 * FRAME_BYTES_MAX]);
    let mut rest = bytes;
    loop {
        loop {
            match framing.next_batch(&mut buffer) {
                Ok(None) => break,
                Ok(Some((len, stride))) => {
                    let batch = buffer.get(..len).unwrap_or_default();
                    assert!(!batch.is_empty() && (1..=FRAME_BYTES_MAX).contains(&stride));
                    read.extend(batch.chunks(stride).map(<[u8]>::to_vec));
                }
                Err(_) => return (read, true),
            }
        }
        if rest.is_empty() {
            return (read, false);
        }
        assert!(framing.has_room(), "half a datagram fills it");
        let (piece, more) = rest.split_at(pieces().clamp(1, rest.len()));
        framing.push(piece);
        rest = more;
    }
}

fn check_connection(mut input: Input<'_>) -> bool {
    let step = usize::from(input.u16());
    let whole = datagrams(input.0, &mut || usize::MAX);
    assert_eq!(datagrams(input.0, &mut || step), whole, "in pieces of {step} bytes");
    let mut written = Vec::new();
    for datagram in &whole.0 {
        assert!(framing::write(&mut written, datagram, datagram.len()));
    }
    assert_eq!(input.0.get(..written.len()), Some(&written[..]), "read as something else");
    !whole.0.is_empty()
}

fn check_up(bytes: &[u8]) -> bool {
    let mut message = bytes.to_vec();
    match Up::parse(&mut message) {
        None => return false,
        Some(Up::Frames { stride, frames }) => {
            let written = [&uplink::frames_header(stride)[..], frames].concat();
            assert_eq!(written, bytes);
        }
        Some(Up::Local(local)) => check_local(local.packet, bytes),
        Some(Up::Join) => assert_eq!(bytes.len(), HEADER_BYTES),
        Some(Up::Attach(_) | Up::Resolve(_)) => {}
    }
    true
}

fn check_down(bytes: &[u8]) -> bool {
    let mut message = bytes.to_vec();
    match Down::parse(&mut message) {
        None => return false,
        Some(Down::Frames { stride, frames }) => {
            let written = [&uplink::frames_header(stride)[..], frames].concat();
            assert_eq!(written, bytes);
        }
        Some(Down::Local(local)) => check_local(local.packet, bytes),
        Some(Down::Attached(addresses)) => {
            assert!(addresses.len() <= uplink::HOST_ADDRESSES_MAX);
            assert_eq!(bytes.len(), HEADER_BYTES + 16 * addresses.len());
        }
        Some(Down::Challenge(challenge)) => {
            // The stride of a message without frames says nothing.
            assert_eq!(challenge.message().get(HEADER_BYTES..), bytes.get(HEADER_BYTES..));
        }
        Some(Down::Resolved(_) | Down::Unknown(_) | Down::Here(_) | Down::Gone(_)) => {}
        Some(Down::Alias(certificate)) => assert!(bytes.ends_with(certificate)),
    }
    true
}

fn check_local(packet: &[u8], bytes: &[u8]) {
    assert!(!packet.is_empty() && bytes.get(uplink::LOCAL_BYTES..) == Some(packet));
}
