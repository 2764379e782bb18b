//! Handshakes and sealed frames on a hostile network.

use bytes::Bytes;
use proptest::prelude::*;
use storage_vdev::wire::NodeKey;
use storage_vdev::wire::channel::{
    Channel, ChannelError, FRAME_OVERHEAD, LENGTH_BYTES, REKEY_FRAMES,
};
use storage_vdev::wire::handshake::{
    self, HELLO_BYTES, HandshakeError, HelloReader, Verdict, hello, initiate, parse_hello, receive,
};

use crate::world::{STORE, client_key, node_key};

const LIMIT: usize = 1 << 20;

/// The two ends of a session, and its binding as both see it.
fn channels(seed: u8) -> (Channel, Channel, [[u8; 32]; 2]) {
    let (pending, message) =
        initiate(&client_key(), &node_key().public(), STORE, [seed; 32]).unwrap();
    let received = receive(&node_key(), &message[HELLO_BYTES..], [seed + 1; 32]).unwrap();
    assert_eq!((received.peer, received.store.as_str()), (client_key().public(), STORE));
    let (answer, node) = received.answer(Verdict::Welcome).unwrap();
    let client = pending.finish(&answer[HELLO_BYTES..]).unwrap();
    let bindings = [client.binding, node.binding];
    (Channel::new(&client).unwrap(), Channel::new(&node).unwrap(), bindings)
}

fn send(channel: &mut Channel, message: &[u8]) -> Vec<u8> {
    channel
        .send(message.len(), |out| {
            out.extend_from_slice(message);
            Ok::<_, ChannelError>(())
        })
        .unwrap();
    take(channel)
}

fn take(channel: &mut Channel) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !channel.outgoing().is_empty() {
        let count = channel.outgoing().len();
        bytes.extend_from_slice(channel.outgoing());
        channel.sent(count);
    }
    assert_eq!(channel.outgoing_bytes(), 0);
    bytes
}

fn receive_all(channel: &mut Channel, bytes: &[u8]) -> (Vec<Bytes>, Result<(), ChannelError>) {
    let mut messages = Vec::new();
    channel.read_buffer().extend_from_slice(bytes);
    let result = channel.receive(LIMIT, |message| messages.push(message));
    (messages, result)
}

#[test]
fn both_ends_know_the_same_binding_and_no_other_session_has_it() {
    let (_, _, [client, node]) = channels(1);
    assert_eq!(client, node);
    assert_ne!(channels(2).2[0], client);
}

#[test]
fn a_hello_for_another_node_is_refused() {
    let (_, message) = initiate(&client_key(), &node_key().public(), STORE, [1; 32]).unwrap();
    let other = NodeKey::new([6; 32]);
    let refused = receive(&other, &message[HELLO_BYTES..], [2; 32]);
    assert_eq!(refused.err(), Some(HandshakeError::Forged));
}

#[test]
fn an_answer_of_another_node_or_another_session_is_refused() {
    let begin = |seed| initiate(&client_key(), &node_key().public(), STORE, [seed; 32]).unwrap();
    let (_, first) = begin(1);
    let (pending, _) = begin(2);
    let received = receive(&node_key(), &first[HELLO_BYTES..], [3; 32]).unwrap();
    let (answer, _) = received.answer(Verdict::Welcome).unwrap();
    let refused = pending.finish(&answer[HELLO_BYTES..]);
    assert_eq!(refused.err(), Some(HandshakeError::Forged));
}

#[test]
fn any_changed_or_cut_handshake_is_refused() {
    let (_, message) = initiate(&client_key(), &node_key().public(), STORE, [1; 32]).unwrap();
    let noise = &message[HELLO_BYTES..];
    for at in 0..noise.len() {
        let mut changed = noise.to_vec();
        changed[at] ^= 0x10;
        assert!(receive(&node_key(), &changed, [2; 32]).is_err(), "byte {at}");
        assert!(receive(&node_key(), &noise[..at], [2; 32]).is_err(), "cut at {at}");
    }
}

#[test]
fn a_node_key_of_small_order_is_refused() {
    for key in [[0; 32], std::array::from_fn(|i| u8::from(i == 0))] {
        let public = handshake::NodePublicKey(key);
        assert!(initiate(&client_key(), &public, STORE, [1; 32]).is_err());
    }
}

#[test]
fn verdicts_reach_the_client() {
    for (verdict, error) in
        [(Verdict::NoSuchStore, HandshakeError::NoSuchStore), (Verdict::Busy, HandshakeError::Busy)]
    {
        let (pending, message) =
            initiate(&client_key(), &node_key().public(), STORE, [1; 32]).unwrap();
        let received = receive(&node_key(), &message[HELLO_BYTES..], [2; 32]).unwrap();
        let (answer, _) = received.answer(verdict).unwrap();
        assert_eq!(pending.finish(&answer[HELLO_BYTES..]).err(), Some(error));
    }
}

#[test]
fn a_hello_of_another_protocol_or_version_says_so() {
    assert_eq!(parse_hello(*b"GET / HT"), Err(HandshakeError::NotShards));
    let mut newer = hello(96);
    newer[4] = 2;
    assert_eq!(parse_hello(newer), Err(HandshakeError::Version(2)));
    assert_eq!(parse_hello(hello(0)), Err(HandshakeError::Malformed));
    assert_eq!(parse_hello(hello(257)), Err(HandshakeError::Malformed));
    let mut reader = HelloReader::default();
    reader.push(b"HYS");
    assert_eq!(reader.message(), Ok(None));
    reader.push(b"x");
    assert_eq!(reader.message(), Err(HandshakeError::NotShards), "known after four bytes");
}

#[test]
fn nothing_may_follow_a_hello() {
    let (_, mut message) = initiate(&client_key(), &node_key().public(), STORE, [1; 32]).unwrap();
    message.push(0);
    let mut reader = HelloReader::default();
    reader.push(&message);
    assert_eq!(reader.message(), Err(HandshakeError::Malformed));
}

#[test]
fn a_repeated_frame_ends_the_session() {
    let (mut client, mut node, _) = channels(1);
    let frame = send(&mut client, b"once");
    assert_eq!(receive_all(&mut node, &frame).0, [&b"once"[..]]);
    assert_eq!(receive_all(&mut node, &frame), (vec![], Err(ChannelError::Forged)));
    let next = send(&mut client, b"next");
    assert_eq!(receive_all(&mut node, &next), (vec![], Err(ChannelError::Ended)));
}

#[test]
fn frames_out_of_order_end_the_session() {
    let (mut client, mut node, _) = channels(1);
    let (first, second) = (send(&mut client, b"first"), send(&mut client, b"second"));
    let swapped = [second, first].concat();
    assert_eq!(receive_all(&mut node, &swapped), (vec![], Err(ChannelError::Forged)));
}

#[test]
fn a_frame_sent_back_ends_the_session() {
    let (mut client, _, _) = channels(1);
    let frame = send(&mut client, b"mine");
    assert_eq!(receive_all(&mut client, &frame), (vec![], Err(ChannelError::Forged)));
}

#[test]
fn a_frame_of_another_session_ends_this_one() {
    let (mut stranger, _, _) = channels(2);
    let (_, mut node, _) = channels(1);
    let frame = send(&mut stranger, b"stray");
    assert_eq!(receive_all(&mut node, &frame), (vec![], Err(ChannelError::Forged)));
}

#[test]
fn no_byte_of_a_frame_can_be_changed() {
    let frame_bytes = send(&mut channels(1).0, b"message").len();
    for at in 0..frame_bytes {
        let (mut client, mut node, _) = channels(1);
        let mut frame = send(&mut client, b"message");
        frame[at] ^= 1;
        // A length that became larger waits for bytes that complete a frame which then fails.
        frame.extend_from_slice(&[0; 1 << 16]);
        let (messages, result) = receive_all(&mut node, &frame);
        assert!(messages.is_empty() && result.is_err(), "byte {at}: {messages:?} {result:?}");
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_length_alone() {
    let (_, mut node, _) = channels(1);
    for length in [LIMIT + 17, u32::MAX as usize, 15, 0] {
        let bytes = u32::try_from(length).unwrap().to_le_bytes();
        let (messages, result) = receive_all(&mut node, &bytes);
        assert_eq!((messages, result), (vec![], Err(ChannelError::Length(length))));
        assert!(node.read_buffer().capacity() < 8 << 20, "memory for a claim");
        (_, node, _) = channels(1);
    }
}

#[test]
fn both_ends_replace_a_worn_key_at_the_same_frame() {
    let (mut client, mut node, _) = channels(1);
    let mut bytes = 0;
    for number in 0..REKEY_FRAMES + 10 {
        let number = number.to_le_bytes();
        client
            .send(number.len(), |out| {
                out.extend_from_slice(&number);
                Ok::<_, ChannelError>(())
            })
            .unwrap();
        bytes += client.outgoing().len();
        node.read_buffer().extend_from_slice(client.outgoing());
        let sent = client.outgoing().len();
        client.sent(sent);
        let mut arrived = None;
        node.receive(LIMIT, |message| arrived = Some(message)).unwrap();
        assert_eq!(arrived.unwrap(), number[..]);
    }
    assert_eq!(bytes as u64, (REKEY_FRAMES + 10) * (8 + FRAME_OVERHEAD as u64));
}

#[test]
fn messages_in_front_of_a_bad_frame_count() {
    let (mut client, mut node, _) = channels(1);
    let mut bytes = send(&mut client, b"good");
    let good = bytes.len();
    bytes.extend_from_slice(&send(&mut client, b"bad"));
    bytes[good + LENGTH_BYTES] ^= 1;
    let (messages, result) = receive_all(&mut node, &bytes);
    assert_eq!(messages, [&b"good"[..]]);
    assert_eq!(result, Err(ChannelError::Forged));
}

#[test]
fn a_message_that_is_not_written_leaves_nothing_behind() {
    let (mut client, mut node, _) = channels(1);
    for size in [10, 1 << 20] {
        let failed = client.send(size, |out| {
            out.extend_from_slice(b"half");
            Err(ChannelError::Ended)
        });
        assert_eq!(failed, Err(ChannelError::Ended));
    }
    let frames = [send(&mut client, b"small"), send(&mut client, &[7; 1 << 17])].concat();
    let (messages, result) = receive_all(&mut node, &frames);
    assert_eq!(result, Ok(()));
    assert_eq!(messages, [&b"small"[..], &[7; 1 << 17][..]]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// However the stream is cut into reads and writes, the messages come out as they went in.
    #[test]
    fn any_cut_of_the_stream_gives_the_same_messages(
        lengths in proptest::collection::vec(prop_oneof![0..100_usize, 0..200_000_usize], 1..12),
        cuts in proptest::collection::vec(1..150_000_usize, 1..40),
    ) {
        let (mut client, mut node, _) = channels(1);
        let messages: Vec<Vec<u8>> =
            lengths.iter().enumerate().map(|(i, len)| vec![i as u8; *len]).collect();
        for message in &messages {
            client.send(message.len(), |out| {
                out.extend_from_slice(message);
                Ok::<_, ChannelError>(())
            }).unwrap();
        }
        let waiting: usize = lengths.iter().map(|len| len + FRAME_OVERHEAD).sum();
        prop_assert_eq!(client.outgoing_bytes(), waiting);
        let mut arrived = Vec::new();
        let mut cuts = cuts.into_iter().cycle();
        while !client.outgoing().is_empty() {
            let cut = cuts.next().unwrap();
            let buffer = node.read_buffer();
            let room = buffer.capacity() - buffer.len();
            prop_assert!(room > 0);
            let count = client.outgoing().len().min(cut).min(room);
            buffer.extend_from_slice(&client.outgoing()[..count]);
            client.sent(count);
            node.receive(LIMIT, |message| arrived.push(message)).unwrap();
        }
        prop_assert_eq!(arrived, messages);
    }
}
