//! Every message: there and back, cut, changed.

use bytes::Bytes;
use proptest::prelude::*;
use storage_vdev::node::{
    Ballot, NodeError, OBJECT_BYTES_MAX, ObjectKey, RegisterRequest, RegisterResponse, Request,
    Response,
};
use storage_vdev::service::Rights;
use storage_vdev::wire::message::{
    ClientMessage, KEYS_MAX, MessageError, ServerMessage, decode_client, decode_server,
    encode_client, encode_request, encode_server,
};

use crate::world::{VOLUME, client_key, signer};

fn key() -> impl Strategy<Value = ObjectKey> {
    (any::<[u8; 16]>(), any::<u64>(), any::<u64>(), any::<u8>())
        .prop_map(|(volume, epoch, sequence, shard)| ObjectKey { volume, epoch, sequence, shard })
}

fn payload(most: usize) -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

fn parts() -> impl Strategy<Value = Vec<Bytes>> {
    // One part: what arrives is one, however many were sent.
    payload(3000).prop_map(|bytes| vec![bytes])
}

fn ballot() -> impl Strategy<Value = Ballot> {
    (any::<u64>(), any::<[u8; 16]>()).prop_map(|(counter, proposer)| Ballot { counter, proposer })
}

fn object_request() -> impl Strategy<Value = Request> {
    let delete = (any::<u64>(), any::<[u8; 16]>(), proptest::collection::vec(key(), 0..9));
    prop_oneof![
        (key(), parts()).prop_map(|(key, parts)| Request::Put { key, parts }),
        (any::<u64>(), key(), parts()).prop_map(|(epoch, key, parts)| Request::Restore {
            epoch,
            key,
            parts
        }),
        (key(), any::<u32>(), prop_oneof![Just(u32::MAX), 0..=4_u32 << 20])
            .prop_map(|(key, offset, len)| Request::Get { key, offset, len }),
        (any::<[u8; 16]>(), proptest::option::of(key()), any::<u16>())
            .prop_map(|(volume, after, limit)| Request::List { volume, after, limit }),
        delete.prop_map(|(epoch, volume, mut keys)| {
            keys.iter_mut().for_each(|key| key.volume = volume);
            Request::Delete { epoch, keys }
        }),
        (key(), any::<u32>(), any::<[u8; 32]>())
            .prop_map(|(key, leaf, challenge)| Request::Audit { key, leaf, challenge }),
        Just(Request::Capacity),
    ]
}

fn volume_request() -> impl Strategy<Value = Request> {
    let volume = any::<[u8; 16]>;
    let numbers = || (any::<[u8; 16]>(), any::<u64>(), any::<u64>());
    prop_oneof![
        numbers().prop_map(|(volume, epoch, capacity)| Request::JournalOpen {
            volume,
            epoch,
            capacity
        }),
        (numbers(), parts()).prop_map(|((volume, epoch, position), parts)| {
            Request::JournalAppend { volume, epoch, position, parts }
        }),
        (volume(), any::<u64>(), 0..=4_u32 << 20)
            .prop_map(|(volume, position, len)| Request::JournalRead { volume, position, len }),
        volume().prop_map(|volume| Request::JournalState { volume }),
        numbers().prop_map(|(volume, epoch, start)| Request::JournalTrim { volume, epoch, start }),
        (volume(), any::<u64>(), proptest::collection::vec(payload(200), 0..5))
            .prop_map(|(volume, epoch, evidence)| Request::Fence { volume, epoch, evidence }),
        (volume(), ballot()).prop_map(|(register, ballot)| {
            Request::Register { register, message: RegisterRequest::Prepare { ballot } }
        }),
        (volume(), ballot(), payload(500)).prop_map(|(register, ballot, value)| {
            Request::Register { register, message: RegisterRequest::Accept { ballot, value } }
        }),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    let register = prop_oneof![
        (any::<[u8; 32]>(), proptest::option::of((ballot(), payload(500))))
            .prop_map(|(acceptor, accepted)| RegisterResponse::Promised { acceptor, accepted }),
        (any::<[u8; 32]>(), payload(200))
            .prop_map(|(acceptor, receipt)| RegisterResponse::Accepted { acceptor, receipt }),
        ballot().prop_map(|promised| RegisterResponse::Rejected { promised }),
    ];
    prop_oneof![
        Just(Response::Done),
        payload(3000).prop_map(Response::Bytes),
        proptest::collection::vec(key(), 0..9).prop_map(Response::Keys),
        (any::<u64>(), any::<u64>(), any::<u64>())
            .prop_map(|(start, end, epoch)| Response::Journal { start, end, epoch }),
        any::<u64>().prop_map(|previous| Response::Fenced { previous }),
        register.prop_map(Response::Register),
        (any::<u64>(), any::<u64>())
            .prop_map(|(total_bytes, free_bytes)| Response::Capacity { total_bytes, free_bytes }),
    ]
}

fn error() -> impl Strategy<Value = NodeError> {
    prop_oneof![
        any::<u64>().prop_map(|current| NodeError::EpochStale { current }),
        any::<u64>().prop_map(|end| NodeError::Conflict { end }),
        proptest::sample::select(vec![
            NodeError::Exists,
            NodeError::NotFound,
            NodeError::Range,
            NodeError::NoSpace,
            NodeError::Quota,
            NodeError::Corrupt,
            NodeError::Denied,
            NodeError::Unsupported,
            NodeError::Unavailable,
            NodeError::Failed,
        ]),
    ]
}

fn client_message() -> impl Strategy<Value = ClientMessage> {
    let card = proptest::collection::vec(any::<[u8; 32]>(), 1..6);
    let authorise = (0..64_u8, any::<[u8; 32]>(), proptest::option::of(card)).prop_map(
        |(rights, binding, acceptors)| {
            let rights = storage_vdev::wire::authorise::rights_from_bits(rights).unwrap();
            let signer = signer(VOLUME);
            let mut authorise = signer.capability(rights, &binding);
            authorise.card = acceptors.map(|keys| signer.card(&keys));
            ClientMessage::Authorise(Box::new(authorise))
        },
    );
    let delegated = (any::<u64>()).prop_map(|end| {
        let delegation = signer(VOLUME).delegate(Rights::ALL, client_key().public(), end);
        ClientMessage::Authorise(Box::new(delegation.authorise()))
    });
    prop_oneof![
        4 => object_request().prop_map(ClientMessage::Request),
        4 => volume_request().prop_map(ClientMessage::Request),
        1 => authorise,
        1 => delegated,
        1 => Just(ClientMessage::Ping),
    ]
}

fn server_message() -> impl Strategy<Value = ServerMessage> {
    prop_oneof![
        4 => response().prop_map(|response| ServerMessage::Answer(Ok(response))),
        2 => error().prop_map(|error| ServerMessage::Answer(Err(error))),
        1 => Just(ServerMessage::Pong),
    ]
}

fn client_bytes(id: u64, message: &ClientMessage) -> Bytes {
    let mut out = Vec::new();
    encode_client(id, message, &mut out).unwrap();
    Bytes::from(out)
}

fn server_bytes(id: u64, message: &ServerMessage) -> Bytes {
    let mut out = Vec::new();
    encode_server(id, message, &mut out).unwrap();
    Bytes::from(out)
}

proptest! {
    #[test]
    fn a_clients_message_comes_back_as_it_was(id in any::<u64>(), message in client_message()) {
        prop_assert_eq!(decode_client(&client_bytes(id, &message)), Ok((id, message)));
    }

    #[test]
    fn a_nodes_message_comes_back_as_it_was(id in any::<u64>(), message in server_message()) {
        prop_assert_eq!(decode_server(&server_bytes(id, &message)), Ok((id, message)));
    }

    /// Whatever is read is what its writer wrote: a changed message is refused or is another
    /// message with exactly those bytes, never one of two encodings of the same.
    #[test]
    fn changed_bytes_are_refused_or_mean_themselves(
        client in client_message(),
        server in server_message(),
        at in any::<prop::sample::Index>(),
        mask in 1..=255_u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let change = |bytes: Bytes| {
            let mut changed = bytes.to_vec();
            let place = at.index(changed.len());
            changed[place] ^= mask;
            let cut = bytes.slice(..cut.index(bytes.len()));
            [Bytes::from(changed), cut]
        };
        for bytes in change(client_bytes(1, &client)) {
            if let Ok((id, message)) = decode_client(&bytes) {
                prop_assert_eq!(client_bytes(id, &message), bytes);
            }
        }
        for bytes in change(server_bytes(1, &server)) {
            if let Ok((id, message)) = decode_server(&bytes) {
                prop_assert_eq!(server_bytes(id, &message), bytes);
            }
        }
    }

    #[test]
    fn random_bytes_are_no_surprise(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        if let Ok((id, message)) = decode_client(&bytes) {
            prop_assert_eq!(client_bytes(id, &message), bytes.clone());
        }
        if let Ok((id, message)) = decode_server(&bytes) {
            prop_assert_eq!(server_bytes(id, &message), bytes);
        }
    }
}

#[test]
fn the_parts_of_an_object_follow_each_other() {
    let key = ObjectKey { volume: VOLUME, epoch: 1, sequence: 2, shard: 3 };
    let (head, units) = (Bytes::from_static(b"head"), Bytes::from_static(b"units"));
    let put = Request::Put { key, parts: vec![head, units] };
    let (_, message) = decode_client(&client_bytes(5, &ClientMessage::Request(put))).unwrap();
    let parts = vec![Bytes::from_static(b"headunits")];
    assert_eq!(message, ClientMessage::Request(Request::Put { key, parts }));
}

#[test]
fn a_payload_is_a_slice_of_the_frame() {
    let key = ObjectKey { volume: VOLUME, epoch: 1, sequence: 2, shard: 3 };
    let put = Request::Put { key, parts: vec![Bytes::from(vec![5; 5000])] };
    let frame = client_bytes(5, &ClientMessage::Request(put));
    let Ok((_, ClientMessage::Request(Request::Put { parts, .. }))) = decode_client(&frame) else {
        panic!("no put");
    };
    assert!(frame.as_ptr_range().contains(&parts[0].as_ptr()));
}

#[test]
fn what_breaks_a_bound_is_not_sent() {
    let key = ObjectKey { volume: VOLUME, epoch: 1, sequence: 2, shard: 3 };
    let half = Bytes::from(vec![0; OBJECT_BYTES_MAX / 2 + 1]);
    let other = ObjectKey { volume: [8; 16], ..key };
    let too_much = [
        Request::Put { key, parts: vec![half.clone(), half] },
        Request::Get { key, offset: 0, len: u32::MAX - 1 },
        Request::JournalRead { volume: VOLUME, position: 0, len: u32::MAX },
        Request::Delete { epoch: 1, keys: vec![key; KEYS_MAX + 1] },
        Request::Delete { epoch: 1, keys: vec![key, other] },
        Request::Fence { volume: VOLUME, epoch: 1, evidence: vec![Bytes::from(vec![0; 9000])] },
        Request::Fence { volume: VOLUME, epoch: 1, evidence: vec![Bytes::new(); 65] },
    ];
    for request in too_much {
        let mut out = vec![1, 2, 3];
        assert_eq!(encode_request(1, &request, &mut out), Err(MessageError::Range), "{request:?}");
        assert_eq!(out, [1, 2, 3], "nothing is left behind");
    }
}

#[test]
fn a_list_that_claims_more_than_it_has_costs_no_memory() {
    let mut frame = vec![66, 0, 0, 0];
    frame.extend_from_slice(&65_535_u32.to_le_bytes());
    frame.extend_from_slice(&[0; 8]);
    assert_eq!(decode_server(&Bytes::from(frame.clone())), Err(MessageError::Truncated));
    frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode_server(&Bytes::from(frame)), Err(MessageError::Range));
}

#[test]
fn a_frame_of_a_get_is_what_the_document_draws() {
    let key = ObjectKey { volume: VOLUME, epoch: 0x0102, sequence: 0x0304, shard: 5 };
    let get = ClientMessage::Request(Request::Get { key, offset: 6, len: 4112 });
    let mut drawn = vec![2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    drawn.extend_from_slice(&VOLUME);
    drawn.extend_from_slice(&[2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]);
    drawn.extend_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0x10, 0x10, 0, 0]);
    assert_eq!(client_bytes(9, &get), drawn);
}
