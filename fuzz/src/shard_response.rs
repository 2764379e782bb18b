//! A volume's end of a session against whatever a node says.
//!
//! The node has done its handshake; then it says what the input says. Each request completes once,
//! with an answer that is one to it or with an error; when the session ends, all are complete.

use std::sync::Arc;

use storage_vdev::node::{
    Ballot, NodeError, ObjectKey, RegisterRequest, Request, Response, TRANSFER_BYTES_MAX,
};
use storage_vdev::wire::channel::{Channel, ChannelError};
use storage_vdev::wire::handshake::{self, HELLO_BYTES, NodeKey, Verdict};
use storage_vdev::wire::{Client, ClientConfig};

use crate::bytes::Input;

const VOLUME: [u8; 16] = [7; 16];

fn requests() -> Vec<Request> {
    let key = ObjectKey { volume: VOLUME, epoch: 1, sequence: 2, shard: 3 };
    let ballot = Ballot { counter: 1, proposer: [5; 16] };
    let register = |message| Request::Register { register: VOLUME, message };
    vec![
        Request::Put { key, parts: vec!["shard".into()] },
        Request::Get { key, offset: 0, len: 8 },
        Request::Get { key, offset: 0, len: u32::MAX },
        Request::List { volume: VOLUME, after: Some(key), limit: 3 },
        Request::JournalState { volume: VOLUME },
        Request::JournalRead { volume: VOLUME, position: 0, len: 16 },
        Request::Fence { volume: VOLUME, epoch: 3, evidence: Vec::new() },
        register(RegisterRequest::Prepare { ballot }),
        register(RegisterRequest::Accept { ballot, value: "value".into() }),
        Request::Capacity,
    ]
}

fn session() -> (Client, Channel) {
    let node = NodeKey::new([2; 32]);
    let config = ClientConfig {
        node: node.public(),
        store: "disk0".to_owned(),
        identity: NodeKey::new([1; 32]),
        credentials: Vec::new(),
        timeout_ns: 1_000,
        ping_after_ns: 10_000,
    };
    let Ok(mut client) = Client::new(Arc::new(config), [3; 32]) else { panic!("a good key") };
    let hello = client.outgoing().to_vec();
    client.sent(hello.len());
    let message = hello.get(HELLO_BYTES..).unwrap_or_default();
    let received = handshake::receive(&node, message, [4; 32]);
    let Ok((welcome, keys)) = received.and_then(|received| received.answer(Verdict::Welcome))
    else {
        panic!("the hello is true")
    };
    client.read_buffer().extend_from_slice(&welcome);
    client.receive();
    assert!(client.is_open());
    let Some(channel) = Channel::new(&keys) else { panic!("keys have 32 bytes") };
    (client, channel)
}

/// Answers: the length of each message (2), its bytes. True if a request got a good answer.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let (mut client, mut node) = session();
    let requests = requests();
    for (tag, request) in requests.iter().enumerate() {
        client.submit(tag as u64, request.clone());
    }
    let mut done: Vec<Option<bool>> = vec![None; requests.len()];
    let mut input = Input(data);
    while !input.is_empty() && client.error().is_none() {
        let len = usize::from(input.u16());
        let message = input.bytes(len);
        let sent = node.send(message.len(), |out| {
            out.extend_from_slice(message);
            Ok::<_, ChannelError>(())
        });
        assert_eq!(sent, Ok(()));
        client.read_buffer().extend_from_slice(node.outgoing());
        node.sent(node.outgoing().len());
        client.receive();
        gather(&mut client, &requests, &mut done);
    }
    client.close();
    gather(&mut client, &requests, &mut done);
    assert!(done.iter().all(Option::is_some), "a request never completes");
    done.contains(&Some(true))
}

fn gather(client: &mut Client, requests: &[Request], done: &mut [Option<bool>]) {
    while let Some(completion) = client.poll() {
        let place = completion.tag as usize;
        let (Some(request), Some(slot)) = (requests.get(place), done.get_mut(place)) else {
            panic!("nobody asked: {completion:?}")
        };
        assert_eq!(*slot, None, "completed twice: {completion:?}");
        if let Ok(response) = &completion.result {
            assert!(is_answer(request, response), "{response:?} to {request:?}");
        }
        *slot = Some(!matches!(completion.result, Err(NodeError::Unavailable)));
    }
}

fn is_answer(request: &Request, response: &Response) -> bool {
    match (request, response) {
        (Request::Put { .. }, Response::Done)
        | (Request::JournalState { .. }, Response::Journal { .. })
        | (Request::Fence { .. }, Response::Fenced { .. })
        | (Request::Register { .. }, Response::Register(_))
        | (Request::Capacity, Response::Capacity { .. }) => true,
        (Request::Get { len: u32::MAX, .. }, Response::Bytes(bytes)) => {
            bytes.len() <= TRANSFER_BYTES_MAX
        }
        (Request::Get { len, .. }, Response::Bytes(bytes)) => bytes.len() == *len as usize,
        (Request::JournalRead { len, .. }, Response::Bytes(bytes)) => bytes.len() <= *len as usize,
        (Request::List { after, limit, .. }, Response::Keys(keys)) => {
            keys.len() <= usize::from(*limit)
                && keys.is_sorted_by(|a, b| a < b)
                && keys.iter().all(|key| key.volume == VOLUME && Some(key) > after.as_ref())
        }
        _ => false,
    }
}
