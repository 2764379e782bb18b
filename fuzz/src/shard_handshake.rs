//! Both ends of the shard protocol's handshake against a changed other end.
//!
//! The input changes a true hello and a true answer. A hello or an answer that is not the true one,
//! byte for byte, never makes a session.

use storage_vdev::wire::handshake::{self, HELLO_BYTES, HelloReader, NodeKey, Verdict};

use crate::bytes::Input;

/// Changes: 0 as it is, 1 a byte (where (2), exclusive-or with (1)), 2 cut (where (2)), 3 other
/// bytes (length (1), the bytes).
fn change(input: &mut Input<'_>, truth: &[u8]) -> Vec<u8> {
    let mut bytes = truth.to_vec();
    match input.byte() % 4 {
        1 => {
            let (at, mask) = (usize::from(input.u16()) % bytes.len().max(1), input.byte());
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
        }
        2 => bytes.truncate(usize::from(input.u16())),
        3 => {
            let len = usize::from(input.byte());
            bytes = input.bytes(len).to_vec();
        }
        _ => {}
    }
    bytes
}

/// Delivers bytes in two pieces, as a stream may; the Noise message, if it is whole.
fn read(bytes: &[u8], cut: u8) -> Option<Vec<u8>> {
    let mut reader = HelloReader::default();
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    reader.push(first);
    // What fails early must not come right later.
    let failed = reader.message().is_err();
    reader.push(second);
    let message = reader.message().ok().flatten().map(<[u8]>::to_vec);
    message.filter(|_| !failed)
}

/// A change of the hello, one of the answer, and where each is cut (1 each). True if a session came
/// to stand.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (client, node) = (NodeKey::new([1; 32]), NodeKey::new([2; 32]));
    let started = handshake::initiate(&client, &node.public(), "disk0", [3; 32]);
    let Ok((pending, hello)) = started else { panic!("the keys are good") };
    let arrived = change(&mut input, &hello);
    let Some(message) = read(&arrived, input.byte()) else { return false };
    let Ok(received) = handshake::receive(&node, &message, [4; 32]) else { return false };
    assert_eq!(arrived, hello, "another hello verifies");
    assert_eq!((received.peer, received.store.as_str()), (client.public(), "disk0"));
    let Ok((answer, node_keys)) = received.answer(Verdict::Welcome) else {
        panic!("the keys are good")
    };
    let arrived = change(&mut input, &answer);
    let Some(message) = read(&arrived, input.byte()) else { return false };
    let Ok(keys) = pending.finish(&message) else { return false };
    assert_eq!(arrived, answer, "another answer verifies");
    assert_eq!(keys.binding, node_keys.binding);
    assert_eq!(keys.send, node_keys.receive);
    assert!(arrived.len() > HELLO_BYTES);
    true
}
