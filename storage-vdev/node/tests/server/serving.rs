//! An honest server and honest clients.

use bytes::Bytes;
use storage_node::server::{Limits, load_key};
use storage_vdev::node::{
    Ballot, NodeError, Nodes, ObjectKey, RegisterRequest, RegisterResponse, Request, Response,
};
use storage_vdev::register::{
    AcceptorKey, AcceptorState, Holder, Members, RegisterKey, SuperblockRef, VolumeRecord,
};
use storage_vdev::service::Rights;
use storage_vdev::wire::Credential;
use storage_vdev::wire::client::ClientError;
use storage_vdev::wire::handshake::HandshakeError;
use storage_vdev::wire::sockets::NodeState;

use crate::world::{
    VOLUME, Volume, client_key, config, content, get, key, node_key, owner, put, serve, signer,
    unix_seconds,
};

#[test]
fn objects_of_every_size_come_back_over_both_kinds_of_socket() {
    let served = serve(Limits::default());
    let tcp = config("disk0", node_key().public(), vec![owner()]);
    let mut volumes = [served.volume(vec![owner()]), Volume::new(served.tcp().into(), tcp)];
    for (index, len) in [0, 1, 4112, 70_000, 1 << 20, 4 << 20].into_iter().enumerate() {
        let sequence = index as u64;
        let bytes = content(sequence, len);
        assert_eq!(volumes[index % 2].ask(put(sequence, &bytes)), Ok(Response::Done));
        for volume in &mut volumes {
            assert_eq!(volume.ask(get(sequence)), Ok(Response::Bytes(bytes.clone().into())));
        }
    }
    let keys = (0..6).map(key).collect();
    let list = Request::List { volume: VOLUME, after: None, limit: 100 };
    assert_eq!(volumes[0].ask(list), Ok(Response::Keys(keys)));
}

#[test]
fn every_kind_of_request_reaches_the_node() {
    let served = serve(Limits::default());
    let mut volume = served.volume(vec![owner()]);
    let open = Request::JournalOpen { volume: VOLUME, epoch: 1, capacity: 1 << 20 };
    let Ok(Response::Journal { end, .. }) = volume.ask(open) else { panic!("no journal") };
    let parts = vec![Bytes::from(vec![1; 4096]), Bytes::from(vec![2; 4096])];
    let append = Request::JournalAppend { volume: VOLUME, epoch: 1, position: end, parts };
    assert_eq!(volume.ask(append.clone()), Ok(Response::Done));
    assert_eq!(volume.ask(append), Err(NodeError::Conflict { end: end + 8192 }));
    let read = Request::JournalRead { volume: VOLUME, position: end + 4096, len: 4096 };
    assert_eq!(volume.ask(read), Ok(Response::Bytes(vec![2; 4096].into())));
    assert_eq!(volume.ask(put(1, b"one")), Ok(Response::Done));
    assert_eq!(volume.ask(put(1, b"two")), Err(NodeError::Exists));
    assert_eq!(volume.ask(get(2)), Err(NodeError::NotFound));
    let range = Request::Get { key: key(1), offset: 1, len: 2 };
    assert_eq!(volume.ask(range), Ok(Response::Bytes("ne".into())));
    let fence = Request::Fence { volume: VOLUME, epoch: 2, evidence: Vec::new() };
    assert_eq!(volume.ask(fence), Ok(Response::Fenced { previous: 0 }));
    assert_eq!(volume.ask(put(3, b"late")), Err(NodeError::EpochStale { current: 2 }));
    let restore = Request::Restore { epoch: 2, key: key(3), parts: vec!["late".into()] };
    assert_eq!(volume.ask(restore), Ok(Response::Done));
    let ballot = Ballot { counter: 1, proposer: [1; 16] };
    let message = RegisterRequest::Prepare { ballot };
    let promised = volume.ask(Request::Register { register: VOLUME, message });
    let Ok(Response::Register(RegisterResponse::Promised { accepted: None, .. })) = promised else {
        panic!("{promised:?}")
    };
    let delete = Request::Delete { epoch: 2, keys: vec![key(1), key(9)] };
    assert_eq!(volume.ask(delete), Ok(Response::Done));
    assert_eq!(volume.ask(get(1)), Err(NodeError::NotFound));
    assert!(matches!(volume.ask(Request::Capacity), Ok(Response::Capacity { .. })));
}

#[test]
fn requests_of_many_sessions_share_syncs() {
    let served = serve(Limits::default());
    let mut volumes: Vec<Volume> = (0..4).map(|_| served.volume(vec![owner()])).collect();
    for (session, volume) in volumes.iter_mut().enumerate() {
        for sequence in 0..64 {
            let sequence = session as u64 * 64 + sequence;
            volume.submit(put(sequence, &content(sequence, 5000)));
        }
        // Sends them.
        assert_eq!(volume.nodes.poll(crate::world::now_ns()), None);
    }
    for volume in &mut volumes {
        for _ in 0..64 {
            assert_eq!(volume.wait().1, Ok(Response::Done));
        }
    }
    for sequence in 0..256 {
        let bytes = content(sequence, 5000);
        assert_eq!(volumes[0].ask(get(sequence)), Ok(Response::Bytes(bytes.into())));
    }
    let syncs = served.metric("hypha_shard_syncs_total{store=\"disk0\"}");
    assert!(syncs < 256, "{syncs} syncs for 256 objects");
    let puts = served.metric("hypha_shard_requests_total{store=\"disk0\",kind=\"put\"}");
    assert_eq!(puts, 256);
    let durable = "hypha_shard_request_seconds_count{store=\"disk0\",class=\"durable\"}";
    assert_eq!(served.metric(durable), 256);
}

#[test]
fn a_session_without_a_capability_may_only_ask_how_full_the_node_is() {
    let served = serve(Limits::default());
    assert_eq!(served.volume(vec![owner()]).ask(put(1, b"mine")), Ok(Response::Done));
    let mut stranger = served.volume(Vec::new());
    assert_eq!(stranger.ask(get(1)), Err(NodeError::Denied));
    assert_eq!(stranger.ask(put(2, b"theirs")), Err(NodeError::Denied));
    let fence = Request::Fence { volume: VOLUME, epoch: 9, evidence: Vec::new() };
    assert_eq!(stranger.ask(fence), Err(NodeError::Denied));
    assert!(matches!(stranger.ask(Request::Capacity), Ok(Response::Capacity { .. })));
}

#[test]
fn a_capability_for_one_volume_is_none_for_another() {
    let served = serve(Limits::default());
    let mut volume = served.volume(vec![owner()]);
    let other = ObjectKey { volume: [8; 16], ..key(1) };
    let put = Request::Put { key: other, parts: vec!["x".into()] };
    assert_eq!(volume.ask(put), Err(NodeError::Denied));
}

#[test]
fn the_writer_key_that_came_first_is_the_volumes() {
    let served = serve(Limits::default());
    assert_eq!(served.volume(vec![owner()]).ask(put(1, b"mine")), Ok(Response::Done));
    // Another volume key for the same uuid: its capability is genuine, under another writer key.
    let key = storage_vdev::VolumeKey::new(&[66; 32]);
    let signer = std::sync::Arc::new(storage_vdev::wire::VolumeSigner::derive(&key, VOLUME));
    let thief = Credential::Signer { signer, rights: Rights::ALL };
    let mut thief = served.volume(vec![thief]);
    assert_eq!(thief.ask(get(1)), Err(NodeError::Denied));
    assert_eq!(thief.ask(put(2, b"theirs")), Err(NodeError::Denied));
}

#[test]
fn a_delegate_heals_and_does_nothing_else() {
    let served = serve(Limits::default());
    let mut volume = served.volume(vec![owner()]);
    assert_eq!(volume.ask(put(1, b"mine")), Ok(Response::Done));
    let heal = Rights { heal: true, ..Rights::default() };
    let (holder, end) = (client_key().public(), unix_seconds() + 600);
    let delegation = signer(VOLUME).delegate(heal, holder, end);
    let mut healer = served.volume(vec![Credential::Delegation(delegation)]);
    assert_eq!(healer.ask(get(1)), Ok(Response::Bytes("mine".into())));
    let restore = Request::Restore { epoch: 1, key: key(2), parts: vec!["again".into()] };
    assert_eq!(healer.ask(restore), Ok(Response::Done));
    let delete = Request::Delete { epoch: 1, keys: vec![key(1)] };
    assert_eq!(healer.ask(delete), Err(NodeError::Denied));
    assert_eq!(healer.ask(put(3, b"new")), Err(NodeError::Denied));
    let over = signer(VOLUME).delegate(heal, holder, unix_seconds() - 1);
    let mut late = served.volume(vec![Credential::Delegation(over)]);
    assert_eq!(late.ask(get(1)), Err(NodeError::Denied));
    assert_eq!(late.nodes.state(0), NodeState::Denied);
}

/// That the register of the volume reached `epoch`: its record, which names `acceptors`, and the
/// receipt of the first of them.
fn evidence(epoch: u64, acceptors: &[AcceptorKey]) -> Vec<Bytes> {
    let ballot = Ballot { counter: epoch, proposer: [1; 16] };
    let record = VolumeRecord {
        register: VOLUME,
        version: epoch,
        epoch,
        change: ballot,
        opener: [1; 16],
        holder: Holder::default(),
        lease_ns: 1,
        released: false,
        superblock: SuperblockRef::default(),
        members: Members {
            current: acceptors.iter().map(AcceptorKey::id).collect(),
            next: Vec::new(),
        },
    };
    let key = RegisterKey::new(&storage_vdev::VolumeKey::new(&[9; 32]), VOLUME);
    let value = Bytes::from(record.encode(&key, ballot));
    let accept = RegisterRequest::Accept { ballot, value: value.clone() };
    let stepped = AcceptorState::default().step(&acceptors[0], &VOLUME, &accept).unwrap();
    let RegisterResponse::Accepted { receipt, .. } = stepped.response else { panic!("accepted") };
    vec![value, receipt]
}

#[test]
fn from_its_first_proven_fence_on_a_node_asks_for_the_registers_evidence() {
    let served = serve(Limits::default());
    let acceptor = AcceptorKey::signing(&[77; 32]).unwrap();
    let fence = |epoch, evidence| Request::Fence { volume: VOLUME, epoch, evidence };
    let mut volume = served.volume(vec![owner()]);
    let proven = fence(1, evidence(1, std::slice::from_ref(&acceptor)));
    assert_eq!(volume.ask(proven), Ok(Response::Fenced { previous: 0 }));
    // Whoever has the writer key, in this session or a later one, with the evidence of others.
    assert_eq!(volume.ask(fence(2, Vec::new())), Err(NodeError::Denied));
    let mut other = served.volume(vec![owner()]);
    assert_eq!(other.ask(fence(2, Vec::new())), Err(NodeError::Denied));
    let strangers = AcceptorKey::signing(&[78; 32]).unwrap();
    assert_eq!(other.ask(fence(2, evidence(2, &[strangers]))), Err(NodeError::Denied));
    let proven = fence(2, evidence(2, &[acceptor]));
    assert_eq!(other.ask(proven), Ok(Response::Fenced { previous: 1 }));
}

#[test]
fn acceptors_that_do_not_sign_are_not_asked_for_receipts() {
    let served = serve(Limits::default());
    let fence = |epoch, evidence| Request::Fence { volume: VOLUME, epoch, evidence };
    let mut volume = served.volume(vec![owner()]);
    let signing = AcceptorKey::signing(&[77; 32]).unwrap();
    let silent = [[5; 32], [6; 32]].map(AcceptorKey::silent);
    let [one, two] = silent;
    let half = evidence(1, &[signing, one, two]);
    assert_eq!(volume.ask(fence(1, half)), Ok(Response::Fenced { previous: 0 }));
    assert_eq!(volume.ask(fence(2, Vec::new())), Ok(Response::Fenced { previous: 1 }));
}

#[test]
fn stores_of_one_server_are_apart() {
    let served = serve(Limits::default());
    assert_eq!(served.volume(vec![owner()]).ask(put(1, b"mine")), Ok(Response::Done));
    let other = config("disk1", node_key().public(), vec![owner()]);
    let mut other = Volume::new(served.unix().into(), other);
    assert_eq!(other.ask(get(1)), Err(NodeError::NotFound));
}

#[test]
fn a_store_that_is_not_there_is_named_so() {
    let served = serve(Limits::default());
    let config = config("disk9", node_key().public(), vec![owner()]);
    let mut volume = Volume::new(served.unix().into(), config);
    assert_eq!(volume.ask(get(1)), Err(NodeError::Unavailable));
    let error = ClientError::Handshake(HandshakeError::NoSuchStore);
    assert_eq!(volume.nodes.state(0), NodeState::Down(Some(error)));
}

#[test]
fn what_was_acknowledged_is_there_after_a_graceful_stop() {
    let mut served = serve(Limits::default());
    let mut volume = served.volume(vec![owner()]);
    assert_eq!(volume.ask(put(1, b"kept")), Ok(Response::Done));
    served.stop();
    assert_eq!(volume.ask(get(1)), Err(NodeError::Unavailable));
    served.start(Limits::default());
    let mut volume = served.volume(vec![owner()]);
    assert_eq!(volume.ask(get(1)), Ok(Response::Bytes("kept".into())));
}

#[test]
fn a_node_that_comes_back_is_used_again_when_the_owner_has_a_socket() {
    use storage_vdev::wire::{SocketNode, SocketNodes};
    let mut served = serve(Limits::default());
    let path = served.folder.path().join("socket");
    let reconnect = {
        let path = path.clone();
        move |_| std::os::unix::net::UnixStream::connect(&path).ok().map(Into::into)
    };
    let config = std::sync::Arc::new(config("disk0", node_key().public(), vec![owner()]));
    let socket = Some(served.unix().into());
    let node = SocketNode { name: "a node".into(), config, socket };
    let mut nodes = SocketNodes::new(vec![node], Box::new(reconnect), &[5; 32]).unwrap();
    let ask = |nodes: &mut SocketNodes, tag, request| {
        nodes.submit(0, tag, request);
        let until = crate::world::now_ns() + 20_000_000_000;
        loop {
            let now_ns = crate::world::now_ns();
            if let Some(completion) = nodes.poll(now_ns) {
                assert_eq!(completion.tag, tag);
                return completion.result;
            }
            assert!(now_ns < until, "no completion");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    assert_eq!(ask(&mut nodes, 1, put(1, b"kept")), Ok(Response::Done));
    served.stop();
    assert_eq!(ask(&mut nodes, 2, get(1)), Err(NodeError::Unavailable));
    served.start(Limits::default());
    let kept = Ok(Response::Bytes("kept".into()));
    let came_back = (3..2_000).any(|tag| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        ask(&mut nodes, tag, get(1)) == kept
    });
    assert!(came_back);
}

#[test]
fn a_key_file_is_made_once_and_refused_if_others_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let made = load_key(&path).unwrap().public();
    assert_eq!(load_key(&path).unwrap().public(), made);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(load_key(&path).unwrap_err().to_string().contains("chmod 600"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, [1; 33]).unwrap();
    assert!(load_key(&path).is_err());
}
