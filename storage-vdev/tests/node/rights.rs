//! Who may do what, to which volume, and how much.

use std::collections::BTreeMap;

use storage_vdev::Uuid;
use storage_vdev::files::sim::{Rng, SimDisk};
use storage_vdev::node::{
    AUDIT_ROOT, Ballot, NodeError, ObjectKey, RegisterRequest, Request, Response,
};
use storage_vdev::register::{AcceptorKey, AcceptorState};
use storage_vdev::service::{Grant, Grants, Rights, WriterKey};

use super::harness::{JOURNAL, VOLUME, ask, ask_as, bytes, key, open, put, record};

const WRITER: WriterKey = [21; 32];

fn grants(writer: WriterKey, rights: Rights) -> Grants {
    let mut grants = Grants::none();
    grants.set(VOLUME, Grant { writer, rights });
    grants
}

/// One request of each kind, with the right that it needs.
fn requests() -> Vec<(Request, Rights)> {
    let none = Rights::default();
    let (volume, epoch) = (VOLUME, 1);
    let parts = || vec![bytes(1, 10).into()];
    let prepare = RegisterRequest::Prepare { ballot: Ballot { counter: 1, proposer: [1; 16] } };
    vec![
        (put(key(1), b"x"), Rights { write: true, ..none }),
        (Request::Restore { epoch, key: key(2), parts: parts() }, Rights { heal: true, ..none }),
        (Request::Get { key: key(1), offset: 0, len: 1 }, Rights { read: true, ..none }),
        (Request::List { volume, after: None, limit: 9 }, Rights { read: true, ..none }),
        (Request::Delete { epoch, keys: vec![key(2)] }, Rights { delete: true, ..none }),
        (Request::JournalOpen { volume, epoch, capacity: JOURNAL }, Rights { write: true, ..none }),
        (
            Request::JournalAppend { volume, epoch, position: 0, parts: parts() },
            Rights { write: true, ..none },
        ),
        (Request::JournalRead { volume, position: 0, len: 9 }, Rights { read: true, ..none }),
        (Request::JournalState { volume }, Rights { read: true, ..none }),
        (Request::JournalTrim { volume, epoch, start: 1 }, Rights { write: true, ..none }),
        (Request::Fence { volume, epoch, evidence: Vec::new() }, Rights { fence: true, ..none }),
        (Request::Register { register: volume, message: prepare }, Rights { fence: true, ..none }),
        (
            Request::Audit { key: key(1), leaf: 0, challenge: [0; 32] },
            Rights { audit: true, ..none },
        ),
    ]
}

#[test]
fn each_request_needs_its_right_to_its_volume() {
    let (mut node, _) = open(&SimDisk::new(1)).unwrap();
    for (request, rights) in requests() {
        let mut other = Rights::ALL;
        for (right, needed) in [
            (&mut other.read, rights.read || rights.heal),
            (&mut other.write, rights.write || rights.heal),
            (&mut other.delete, rights.delete),
            (&mut other.fence, rights.fence),
            (&mut other.heal, rights.heal || rights.read),
            (&mut other.audit, rights.audit),
        ] {
            *right &= !needed;
        }
        let denied = Err(NodeError::Denied);
        let mut elsewhere = Grants::none();
        elsewhere.set([99; 16], Grant { writer: WRITER, rights: Rights::ALL });
        assert_eq!(ask_as(&mut node, &Grants::none(), request.clone()), denied);
        assert_eq!(ask_as(&mut node, &elsewhere, request.clone()), denied);
        assert_eq!(ask_as(&mut node, &grants(WRITER, other), request.clone()), denied);
        let done = ask_as(&mut node, &grants(WRITER, rights), request.clone());
        assert!(done.is_ok(), "{request:?}: {done:?}");
    }
    assert!(ask_as(&mut node, &Grants::none(), Request::Capacity).is_ok());
}

#[test]
fn the_first_writer_key_of_a_volume_is_pinned_for_good() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let mine = grants(WRITER, Rights::ALL);
    let others = grants([22; 32], Rights::ALL);
    ask_as(&mut node, &mine, put(key(1), b"x")).unwrap();
    disk.crash(&mut Rng::new(1));
    let (mut node, _) = open(&disk).unwrap();
    for (request, _) in requests() {
        assert_eq!(ask_as(&mut node, &others, request), Err(NodeError::Denied));
    }
    assert_eq!(node.introduce(&VOLUME, [22; 32], &[]), Err(NodeError::Denied));
    assert!(ask_as(&mut node, &mine, Request::Get { key: key(1), offset: 0, len: 1 }).is_ok());
}

#[test]
fn a_delete_of_two_volumes_at_once_is_refused_whole() {
    let (mut node, _) = open(&SimDisk::new(1)).unwrap();
    let foreign = ObjectKey { volume: [1; 16], ..key(1) };
    ask(&mut node, put(key(1), b"x")).unwrap();
    ask(&mut node, put(foreign, b"x")).unwrap();
    let both = Request::Delete { epoch: 1, keys: vec![key(1), foreign] };
    let mine = grants(WRITER, Rights::ALL);
    assert_eq!(ask_as(&mut node, &mine, both), Err(NodeError::Unsupported));
    assert!(ask(&mut node, Request::Get { key: foreign, offset: 0, len: 1 }).is_ok());
    assert!(ask(&mut node, Request::Get { key: key(1), offset: 0, len: 1 }).is_ok());
}

#[test]
fn a_tenant_stays_within_its_quota_and_others_within_theirs() {
    let (mut node, _) = open(&SimDisk::new(1)).unwrap();
    let mine = grants(WRITER, Rights::ALL);
    node.set_quotas(BTreeMap::from([(WRITER, 300_000)]), Some(0));
    let open_it = Request::JournalOpen { volume: VOLUME, epoch: 1, capacity: JOURNAL };
    assert!(ask_as(&mut node, &mine, open_it).is_ok(), "196,608 bytes with its table");
    assert!(ask_as(&mut node, &mine, put(key(1), &bytes(1, 90_000))).is_ok());
    assert_eq!(ask_as(&mut node, &mine, put(key(2), &bytes(2, 20_000))), Err(NodeError::Quota));
    let larger = Request::JournalOpen { volume: VOLUME, epoch: 1, capacity: 2 * JOURNAL };
    assert_eq!(ask_as(&mut node, &mine, larger), Err(NodeError::Quota));
    ask_as(&mut node, &mine, Request::Delete { epoch: 1, keys: vec![key(1)] }).unwrap();
    assert!(ask_as(&mut node, &mine, put(key(2), &bytes(2, 20_000))).is_ok());
    let mut others = Grants::none();
    others.set([1; 16], Grant { writer: [22; 32], rights: Rights::ALL });
    let foreign = ObjectKey { volume: [1; 16], ..key(1) };
    assert_eq!(ask_as(&mut node, &others, put(foreign, b"x")), Err(NodeError::Quota));
    assert!(ask(&mut node, put(ObjectKey { volume: [2; 16], ..foreign }, b"x")).is_ok());
}

#[test]
fn where_acceptors_are_known_a_fence_needs_their_receipts() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let mine = grants(WRITER, Rights::ALL);
    // The value's record names one acceptor, whose key is the card's.
    let acceptor = AcceptorKey::signing(&[77; 32]).unwrap();
    node.introduce(&VOLUME, WRITER, &[acceptor.id()]).unwrap();
    node.sync();
    let ballot = Ballot { counter: 1, proposer: [1; 16] };
    let value = record(4, ballot);
    let accept = RegisterRequest::Accept { ballot, value: value.clone() };
    let response = AcceptorState::default().step(&acceptor, &VOLUME, &accept).unwrap().response;
    let storage_vdev::node::RegisterResponse::Accepted { receipt, .. } = response else {
        panic!("accepted");
    };
    let fence = |epoch, evidence| Request::Fence { volume: VOLUME, epoch, evidence };
    assert_eq!(ask_as(&mut node, &mine, fence(4, Vec::new())), Err(NodeError::Denied));
    let evidence = vec![value, receipt];
    assert_eq!(ask_as(&mut node, &mine, fence(5, evidence.clone())), Err(NodeError::Denied));
    let fenced = Ok(Response::Fenced { previous: 0 });
    assert_eq!(ask_as(&mut node, &mine, fence(4, evidence)), fenced);
    disk.crash(&mut Rng::new(1));
    let (mut node, _) = open(&disk).unwrap();
    let again = Ok(Response::Fenced { previous: 4 });
    assert_eq!(ask_as(&mut node, &mine, fence(4, Vec::new())), again, "it stands already");
    assert_eq!(ask_as(&mut node, &mine, fence(9, Vec::new())), Err(NodeError::Denied));
}

#[test]
fn an_audit_shows_a_leaf_of_what_is_stored() {
    let (mut node, _) = open(&SimDisk::new(1)).unwrap();
    let content = bytes(1, 10_000);
    ask(&mut node, put(key(1), &content)).unwrap();
    let audit = |leaf| Request::Audit { key: key(1), leaf, challenge: [0; 32] };
    let Ok(Response::Bytes(answer)) = ask(&mut node, audit(9)) else { panic!("bytes") };
    let (head, rest) = answer.split_at(16);
    assert_eq!(
        head,
        [&10_000_u64.to_le_bytes()[..], &784_u32.to_le_bytes(), &2_u32.to_le_bytes()].concat()
    );
    let (leaf, path) = rest.split_at(784);
    assert_eq!(leaf, &content[9216..]);
    let path = path.chunks(32).map(|hash| hash.try_into().unwrap()).collect();
    let proof = storage_vdev::audit::LeafProof { bytes: leaf.to_vec(), path };
    let root = storage_vdev::audit::AuditTree::of(&content).root();
    storage_vdev::audit::verify(&root, 10_000, 9, &proof).unwrap();
    assert_eq!(ask(&mut node, audit(10)), Err(NodeError::NotFound));
    let Ok(Response::Bytes(answer)) = ask(&mut node, audit(AUDIT_ROOT)) else { panic!("bytes") };
    assert_eq!(answer, [&10_000_u64.to_le_bytes()[..], &root[..]].concat());
}

#[test]
fn the_owner_of_a_node_pins_nothing() {
    let (mut node, _) = open(&SimDisk::new(1)).unwrap();
    let volume: Uuid = VOLUME;
    ask(&mut node, put(key(1), b"x")).unwrap();
    let mine = grants(WRITER, Rights::ALL);
    assert!(ask_as(&mut node, &mine, Request::List { volume, after: None, limit: 1 }).is_ok());
}
