//! A node against whatever a client says.
//!
//! The client has done its handshake, so that its frames open; it has no capability. Whatever
//! messages it sends, the node takes each for what its bytes say and for nothing else, and the
//! client gets no rights.

use storage_vdev::service::Grants;
use storage_vdev::wire::ServerSession;
use storage_vdev::wire::channel::{Channel, ChannelError};
use storage_vdev::wire::handshake::{self, HELLO_BYTES, NodeKey};
use storage_vdev::wire::message::{ClientMessage, decode_client, encode_client};
use storage_vdev::wire::server::Event;

use crate::bytes::Input;

const UNIX_SECONDS: u64 = 1_800_000_000;

/// The two ends after the handshake.
fn session() -> (Channel, ServerSession) {
    let (client, node) = (NodeKey::new([1; 32]), NodeKey::new([2; 32]));
    let started = handshake::initiate(&client, &node.public(), "disk0", [3; 32]);
    let Ok((pending, hello)) = started else { panic!("the keys are good") };
    let message = hello.get(HELLO_BYTES..).unwrap_or_default();
    let Ok(received) = handshake::receive(&node, message, [4; 32]) else {
        panic!("the hello is true")
    };
    let Ok((session, welcome)) = ServerSession::welcome(received) else {
        panic!("the keys are good")
    };
    let Ok(keys) = pending.finish(welcome.get(HELLO_BYTES..).unwrap_or_default()) else {
        panic!("the answer is true")
    };
    let Some(channel) = Channel::new(&keys) else { panic!("keys have 32 bytes") };
    (channel, session)
}

/// Sends messages: the length of each (2), its bytes. True if the node took a request.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let (mut channel, mut session) = session();
    let (mut input, mut taken) = (Input(data), false);
    while !input.is_empty() {
        let len = usize::from(input.u16());
        let message = input.bytes(len);
        let sent = channel.send(message.len(), |out| {
            out.extend_from_slice(message);
            Ok::<_, ChannelError>(())
        });
        assert_eq!(sent, Ok(()));
        let mut events = Vec::new();
        while !channel.outgoing().is_empty() {
            session.read_buffer().extend_from_slice(channel.outgoing());
            channel.sent(channel.outgoing().len());
        }
        let received = session.receive(UNIX_SECONDS, |event| events.push(event));
        assert!(events.len() <= 1, "one message is at most one request");
        if let Some(Event::Request { id, request }) = events.first() {
            let mut again = Vec::new();
            let request = ClientMessage::Request(request.clone());
            assert_eq!(encode_client(*id, &request, &mut again), Ok(()));
            assert_eq!(again, message, "two encodings of one request");
            taken = true;
        }
        assert!(!matches!(events.first(), Some(Event::Authorised { .. })), "a forged capability");
        assert_eq!(session.grants(UNIX_SECONDS), &Grants::none());
        assert!(session.outgoing_bytes() < 1 << 20);
        if received.is_err() {
            assert!(decode_client(&bytes_of(message)).is_err() || message.len() > 8192);
            break;
        }
        let waiting = session.outgoing_bytes();
        session.sent(waiting);
    }
    taken
}

fn bytes_of(message: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(message)
}
