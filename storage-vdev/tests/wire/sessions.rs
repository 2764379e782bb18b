//! Both ends together, and each against an other end that lies.

use bytes::Bytes;
use storage_vdev::node::{NodeCompletion, NodeError, ObjectKey, Request, Response};
use storage_vdev::service::{Grants, Rights};
use storage_vdev::wire::channel::{Channel, ChannelError};
use storage_vdev::wire::client::{ClientError, PATIENCE};
use storage_vdev::wire::handshake::{HandshakeError, Verdict, hello};
use storage_vdev::wire::message::{ServerMessage, encode_server};
use storage_vdev::wire::server::{Event, STRANGER_MESSAGE_BYTES_MAX, SessionError};
use storage_vdev::wire::{Client, ServerSession};

use crate::world::{
    Pair, TODAY, VOLUME, config, owner, receive_hello, take_from_client, to_client,
};

const KEY: ObjectKey = ObjectKey { volume: VOLUME, epoch: 1, sequence: 2, shard: 3 };

fn get(len: u32) -> Request {
    Request::Get { key: KEY, offset: 0, len }
}

fn put(bytes: usize) -> Request {
    Request::Put { key: KEY, parts: vec![Bytes::from(vec![5; bytes])] }
}

fn completions(client: &mut Client) -> Vec<NodeCompletion> {
    std::iter::from_fn(|| client.poll()).collect()
}

const UNAVAILABLE: Result<Response, NodeError> = Err(NodeError::Unavailable);

#[test]
fn what_is_submitted_before_the_session_stands_is_sent_behind_the_credentials() {
    let mut client = Client::new(config(vec![owner()]), [1; 32]).unwrap();
    client.submit(11, put(1 << 20));
    client.submit(12, get(10));
    let hello = take_from_client(&mut client);
    let (server, welcome) = ServerSession::welcome(receive_hello(&hello)).unwrap();
    to_client(&mut client, &welcome);
    let mut pair = Pair { client, server };
    let events = pair.carry_up();
    assert!(
        matches!(
            events[..],
            [
                Event::Authorised { volume: VOLUME, .. },
                Event::Request { id: 1, request: Request::Put { .. } },
                Event::Request { id: 2, request: Request::Get { .. } }
            ]
        ),
        "{events:?}"
    );
}

#[test]
fn answers_reach_their_requests_in_any_order() {
    let mut pair = Pair::open(1);
    pair.client.submit(100, get(3));
    pair.client.submit(200, put(10));
    pair.client.submit(300, get(4));
    assert_eq!(pair.carry_up().len(), 3);
    pair.server.answer(3, Err(NodeError::NotFound)).unwrap();
    pair.server.answer(1, Ok(Response::Bytes(Bytes::from_static(b"abc")))).unwrap();
    pair.carry_down();
    let abc = Ok(Response::Bytes(Bytes::from_static(b"abc")));
    let expected = [
        NodeCompletion { tag: 300, result: Err(NodeError::NotFound) },
        NodeCompletion { tag: 100, result: abc },
    ];
    assert_eq!(completions(&mut pair.client), expected);
    pair.client.close();
    let rest = [NodeCompletion { tag: 200, result: UNAVAILABLE }];
    assert_eq!(completions(&mut pair.client), rest);
}

#[test]
fn a_request_that_breaks_a_bound_ends_no_session() {
    let mut pair = Pair::open(1);
    pair.client.submit(1, put((4 << 20) + 1));
    pair.client.submit(2, get(1));
    let unsupported = NodeCompletion { tag: 1, result: Err(NodeError::Unsupported) };
    assert_eq!(completions(&mut pair.client), [unsupported]);
    assert!(matches!(pair.carry_up()[..], [Event::Request { id: 1, .. }]));
}

#[test]
fn the_largest_object_passes() {
    let mut pair = Pair::open(1);
    pair.client.submit(1, put(4 << 20));
    let events = pair.carry_up();
    let [Event::Request { request: Request::Put { parts, .. }, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(parts[0].len(), 4 << 20);
}

#[test]
fn little_is_sealed_ahead_of_the_socket_and_nothing_is_lost_when_it_never_takes_it() {
    let mut pair = Pair::open(1);
    for tag in 0..100 {
        pair.client.submit(tag, put(1 << 20));
    }
    assert!(pair.client.outgoing().len() < 2 << 20);
    pair.client.tick(0);
    pair.client.tick(1_000);
    assert_eq!(pair.client.error(), Some(ClientError::Silent));
    let mut tags: Vec<u64> = completions(&mut pair.client).iter().map(|done| done.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..100).collect::<Vec<u64>>());
}

#[test]
fn a_session_goes_on_after_it_gave_its_buffers_back() {
    let mut pair = Pair::open(1);
    for tag in 0..3 {
        pair.client.submit(tag, put(200_000));
        assert_eq!(pair.carry_up().len(), 1);
        pair.server.answer(tag + 1, Ok(Response::Done)).unwrap();
        pair.carry_down();
        pair.server.shrink();
        assert_eq!(
            completions(&mut pair.client),
            [NodeCompletion { tag, result: Ok(Response::Done) }]
        );
    }
}

#[test]
fn a_stranger_may_send_little() {
    let mut pair = Pair::silent(Vec::new(), 1);
    pair.client.submit(1, put(STRANGER_MESSAGE_BYTES_MAX));
    let bytes = take_from_client(&mut pair.client);
    pair.server.read_buffer().extend_from_slice(&bytes[..4]);
    let ended = pair.server.receive(TODAY, |event| panic!("{event:?}"));
    assert!(matches!(ended, Err(SessionError::Channel(ChannelError::Length(_)))), "{ended:?}");
    assert_eq!(pair.server.grants(TODAY), &Grants::none());
}

#[test]
fn rights_are_those_of_the_capability() {
    let mut pair = Pair::open(1);
    let mut all = Grants::none();
    let writer = crate::world::signer(VOLUME).public();
    all.set(VOLUME, storage_vdev::service::Grant { writer, rights: Rights::ALL });
    assert_eq!(pair.server.grants(TODAY), &all);
}

/// A node that has done the handshake rightly, and then says what it likes.
struct Liar {
    client: Client,
    channel: Channel,
}

impl Liar {
    fn new() -> Self {
        let mut client = Client::new(config(Vec::new()), [1; 32]).unwrap();
        let hello = take_from_client(&mut client);
        let (welcome, keys) = receive_hello(&hello).answer(Verdict::Welcome).unwrap();
        to_client(&mut client, &welcome);
        Self { client, channel: Channel::new(&keys).unwrap() }
    }

    fn says(&mut self, id: u64, message: &ServerMessage) {
        self.channel
            .send(100, |out| {
                encode_server(id, message, out).unwrap();
                Ok::<_, ChannelError>(())
            })
            .unwrap();
        let bytes = self.channel.outgoing().to_vec();
        self.channel.sent(bytes.len());
        to_client(&mut self.client, &bytes);
    }

    fn answers(&mut self, id: u64, response: Response) {
        self.says(id, &ServerMessage::Answer(Ok(response)));
    }
}

#[test]
fn an_answer_that_does_not_fit_ends_the_session_and_completes_everything() {
    let other = ObjectKey { volume: [8; 16], ..KEY };
    let list = |limit| Request::List { volume: VOLUME, after: Some(KEY), limit };
    let later = |sequence| ObjectKey { sequence, ..KEY };
    let bytes = |len| Response::Bytes(Bytes::from(vec![0; len]));
    let lies = [
        (get(10), bytes(9)),
        (get(10), bytes(11)),
        (get(10), Response::Done),
        (put(10), bytes(0)),
        (Request::JournalRead { volume: VOLUME, position: 0, len: 5 }, bytes(6)),
        (list(9), Response::Keys(vec![other])),
        (list(9), Response::Keys(vec![KEY])),
        (list(9), Response::Keys(vec![later(5), later(4)])),
        (list(1), Response::Keys(vec![later(5), later(6)])),
        (Request::Capacity, Response::Fenced { previous: 1 }),
    ];
    for (request, lie) in lies {
        let mut liar = Liar::new();
        liar.client.submit(1, request);
        liar.client.submit(2, get(1));
        liar.answers(0, lie.clone());
        assert_eq!(liar.client.error(), Some(ClientError::Misfit), "{lie:?}");
        let done = completions(&mut liar.client);
        let unavailable = |tag| NodeCompletion { tag, result: UNAVAILABLE };
        assert_eq!(done, [unavailable(1), unavailable(2)], "{lie:?}");
        assert_eq!(liar.client.deadline_ns(), None);
        liar.client.submit(3, get(1));
        assert_eq!(completions(&mut liar.client), [unavailable(3)]);
    }
}

#[test]
fn an_answer_to_nothing_or_to_something_twice_ends_the_session() {
    let mut liar = Liar::new();
    liar.answers(0, Response::Done);
    assert_eq!(liar.client.error(), Some(ClientError::Misfit));

    let mut liar = Liar::new();
    liar.client.submit(1, put(1));
    liar.answers(0, Response::Done);
    liar.answers(0, Response::Done);
    assert_eq!(liar.client.error(), Some(ClientError::Misfit));
    let done = [NodeCompletion { tag: 1, result: Ok(Response::Done) }];
    assert_eq!(completions(&mut liar.client), done);
}

#[test]
fn a_pong_is_no_answer() {
    let mut liar = Liar::new();
    liar.client.submit(1, put(1));
    liar.says(0, &ServerMessage::Pong);
    assert_eq!(liar.client.error(), Some(ClientError::Misfit));
    assert_eq!(completions(&mut liar.client), [NodeCompletion { tag: 1, result: UNAVAILABLE }]);
}

#[test]
fn a_node_that_is_not_the_pinned_one_gets_nothing() {
    let mut client = Client::new(config(vec![owner()]), [1; 32]).unwrap();
    client.submit(1, put(10));
    let hello_bytes = take_from_client(&mut client);
    let impostor = storage_vdev::wire::NodeKey::new([66; 32]);
    let mut reader = storage_vdev::wire::handshake::HelloReader::default();
    reader.push(&hello_bytes);
    let message = reader.message().unwrap().unwrap();
    assert!(storage_vdev::wire::handshake::receive(&impostor, message, [1; 32]).is_err());
    to_client(&mut client, &[&hello(64)[..], &[9; 64]].concat());
    assert_eq!(client.error(), Some(ClientError::Handshake(HandshakeError::Forged)));
    assert_eq!(completions(&mut client), [NodeCompletion { tag: 1, result: UNAVAILABLE }]);
    assert!(client.outgoing().is_empty());
}

#[test]
fn a_silent_node_is_given_up_after_the_timeout() {
    let mut pair = Pair::open(1);
    pair.client.tick(5_000);
    pair.client.submit(1, get(1));
    pair.carry_up();
    pair.client.tick(5_100);
    assert_eq!(pair.client.deadline_ns(), Some(6_100));
    pair.client.tick(6_099);
    assert_eq!(pair.client.error(), None);
    pair.client.tick(6_100);
    assert_eq!(pair.client.error(), Some(ClientError::Silent));
    assert_eq!(completions(&mut pair.client), [NodeCompletion { tag: 1, result: UNAVAILABLE }]);
}

#[test]
fn a_long_idle_session_gives_its_first_request_the_whole_time() {
    let mut pair = Pair::open(1);
    pair.client.tick(5_000);
    pair.client.submit(1, get(1));
    // Nobody looked at the clock for long: the request is as old as the next look.
    pair.client.tick(90_000);
    assert_eq!(pair.client.error(), None);
    assert_eq!(pair.client.deadline_ns(), Some(91_000));
}

#[test]
fn one_request_that_is_never_answered_ends_a_busy_session() {
    let mut pair = Pair::open(1);
    pair.client.tick(0);
    pair.client.submit(1, get(1));
    pair.carry_up();
    pair.client.tick(0);
    let mut now_ns = 0;
    for id in 2.. {
        now_ns += 500;
        pair.client.submit(id, put(1));
        pair.carry_up();
        pair.server.answer(id, Ok(Response::Done)).unwrap();
        pair.carry_down();
        pair.client.tick(now_ns);
        if pair.client.error().is_some() {
            break;
        }
        assert!(now_ns < 1_000 * PATIENCE, "still waiting");
    }
    assert_eq!(now_ns, 1_000 * PATIENCE);
    assert_eq!(pair.client.error(), Some(ClientError::Silent));
}

#[test]
fn an_idle_client_asks_whether_the_node_is_there() {
    let mut pair = Pair::open(1);
    pair.client.tick(0);
    assert_eq!(pair.client.deadline_ns(), Some(100_000));
    pair.client.tick(100_000);
    assert!(!pair.client.outgoing().is_empty());
    assert!(pair.carry_up().is_empty(), "a ping is the session's own business");
    pair.client.tick(100_001);
    pair.carry_down();
    pair.client.tick(100_002);
    assert_eq!(pair.client.deadline_ns(), Some(200_002));
    assert_eq!(pair.client.error(), None);
    assert!(completions(&mut pair.client).is_empty());
}

#[test]
fn a_node_that_is_gone_is_found_out_while_idle() {
    let mut pair = Pair::open(1);
    pair.client.tick(0);
    pair.client.tick(100_000);
    take_from_client(&mut pair.client);
    pair.client.tick(100_000);
    pair.client.tick(101_000);
    assert_eq!(pair.client.error(), Some(ClientError::Silent));
}
