//! What a node has promised holds over restarts, and damage to it is never taken for freedom.

use storage_vdev::disk::DiskError;
use storage_vdev::files::sim::{Rng, SimDisk, Which};
use storage_vdev::node::{
    Ballot, NodeError, ObjectKey, RegisterRequest, RegisterResponse, Request, Response,
};
use storage_vdev::service::{Handled, MetaError, NodeOpenError};

use super::harness::{
    JOURNAL, Node, VOLUME, append, ask, bytes, get_all, journal_open, key, open, put, record,
};

fn fence(epoch: u64) -> Request {
    Request::Fence { volume: VOLUME, epoch, evidence: Vec::new() }
}

#[test]
fn a_stale_epoch_is_refused_everywhere_after_a_restart() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, put(key(1), b"of epoch 1")).unwrap();
    ask(&mut node, journal_open(JOURNAL)).unwrap();
    assert_eq!(ask(&mut node, fence(5)), Ok(Response::Fenced { previous: 0 }));
    assert_eq!(ask(&mut node, fence(5)), Ok(Response::Fenced { previous: 5 }));
    disk.crash(&mut Rng::new(0));
    let (mut node, _) = open(&disk).unwrap();
    let stale = Err(NodeError::EpochStale { current: 5 });
    let (volume, epoch) = (VOLUME, 4);
    let parts = || vec![bytes(1, 10).into()];
    assert_eq!(ask(&mut node, fence(epoch)), stale);
    let old = ObjectKey { epoch, ..key(2) };
    assert_eq!(ask(&mut node, put(old, b"late")), stale);
    assert_eq!(ask(&mut node, Request::Restore { epoch, key: old, parts: parts() }), stale);
    assert_eq!(ask(&mut node, Request::Delete { epoch, keys: vec![key(1)] }), stale);
    let open_it = Request::JournalOpen { volume, epoch, capacity: JOURNAL };
    assert_eq!(ask(&mut node, open_it), stale);
    let late = Request::JournalAppend { volume, epoch, position: 0, parts: parts() };
    assert_eq!(ask(&mut node, late), stale);
    assert_eq!(ask(&mut node, Request::JournalTrim { volume, epoch, start: 1 }), stale);
    assert_eq!(get_all(&mut node, key(1)).unwrap(), &b"of epoch 1"[..], "reading is not writing");
    assert_eq!(ask(&mut node, fence(4)), stale);
}

#[test]
fn who_took_over_restores_objects_of_earlier_epochs_and_nobody_later_ones() {
    let (mut node, _) = open(&SimDisk::new(1)).unwrap();
    ask(&mut node, fence(5)).unwrap();
    let restore = |epoch, key| Request::Restore { epoch, key, parts: vec![bytes(1, 10).into()] };
    assert_eq!(ask(&mut node, restore(5, key(1))), Ok(Response::Done));
    assert_eq!(get_all(&mut node, key(1)).unwrap(), bytes(1, 10));
    let later = ObjectKey { epoch: 6, ..key(1) };
    assert_eq!(ask(&mut node, restore(5, later)), Err(NodeError::Unsupported));
}

#[test]
fn journals_and_promises_need_not_wait_for_shards_but_a_fence_does() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, journal_open(JOURNAL)).unwrap();
    let all = storage_vdev::service::Grants::all();
    let tickets =
        [put(key(1), &bytes(1, 9000)), append(0, b"a record"), fence(2)].map(|request| match node
            .handle(&all, request)
        {
            Handled::AfterSync(ticket) => ticket,
            done => panic!("{done:?}"),
        });
    let quick = node.sync_journals();
    assert_eq!(quick, [(tickets[1], Ok(Response::Done))]);
    let rest: Vec<_> = node.sync().into_iter().map(|(ticket, _)| ticket).collect();
    assert_eq!(rest, [tickets[0], tickets[2]]);
}

#[test]
fn a_fence_covers_what_was_written_before_it() {
    // An object that nobody synced, then a fence: whoever is told of the fence sees the object.
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (mut node, _) = open(&disk).unwrap();
        node.handle(&storage_vdev::service::Grants::all(), put(key(1), &bytes(1, 9000)));
        ask(&mut node, fence(2)).unwrap();
        assert_eq!(get_all(&mut node, key(1)).unwrap(), bytes(1, 9000));
        disk.crash(&mut Rng::new(seed));
        let (mut node, _) = open(&disk).unwrap();
        assert_eq!(get_all(&mut node, key(1)).unwrap(), bytes(1, 9000), "seed {seed}");
    }
}

fn register(node: &mut Node, message: RegisterRequest) -> RegisterResponse {
    match ask(node, Request::Register { register: VOLUME, message }) {
        Ok(Response::Register(response)) => response,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ballots_and_values_outlive_a_crash_under_the_same_name() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let ballot = |counter| Ballot { counter, proposer: [4; 16] };
    let value = record(1, ballot(3));
    register(&mut node, RegisterRequest::Prepare { ballot: ballot(3) });
    let accept = RegisterRequest::Accept { ballot: ballot(3), value: value.clone() };
    assert!(matches!(register(&mut node, accept), RegisterResponse::Accepted { .. }));
    register(&mut node, RegisterRequest::Prepare { ballot: ballot(9) });
    let name = node.acceptor_id();
    disk.crash(&mut Rng::new(0));
    let (mut node, _) = open(&disk).unwrap();
    assert_eq!(node.acceptor_id(), name);
    let rejected = RegisterResponse::Rejected { promised: ballot(9) };
    assert_eq!(register(&mut node, RegisterRequest::Prepare { ballot: ballot(8) }), rejected);
    let promised = register(&mut node, RegisterRequest::Prepare { ballot: ballot(10) });
    let accepted = Some((ballot(3), value));
    assert_eq!(promised, RegisterResponse::Promised { acceptor: name, accepted });
}

#[test]
fn one_rotten_copy_of_a_promise_forgets_nothing() {
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let (mut node, _) = open(&disk).unwrap();
        for epoch in 1..=3 + seed % 2 {
            ask(&mut node, fence(epoch)).unwrap();
        }
        disk.rot(Which::Meta, &mut Rng::new(seed)).unwrap();
        let (mut node, _) = open(&disk).unwrap();
        let current = 3 + seed % 2;
        assert_eq!(ask(&mut node, fence(1)), Err(NodeError::EpochStale { current }), "{seed}");
    }
}

#[test]
fn a_node_that_lost_a_promise_refuses_volumes_that_it_does_not_know() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, fence(3)).unwrap();
    let other = [1; 16];
    ask(&mut node, Request::Fence { volume: other, epoch: 7, evidence: Vec::new() }).unwrap();
    // All four copies of the first volume's entry.
    for copy in 0..4 {
        disk.set_bytes(Which::Meta, 8192 + copy * 8192 + 20, &[0xee; 8]);
    }
    let (mut node, _) = open(&disk).unwrap();
    assert_eq!(ask(&mut node, fence(4)), Err(NodeError::Corrupt));
    assert_eq!(ask(&mut node, put(key(1), b"x")), Err(NodeError::Corrupt));
    let stale = Request::Fence { volume: other, epoch: 6, evidence: Vec::new() };
    assert_eq!(ask(&mut node, stale), Err(NodeError::EpochStale { current: 7 }));
}

#[test]
fn a_node_whose_files_do_not_belong_together_is_refused() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, fence(3)).unwrap();
    ask(&mut node, put(ObjectKey { epoch: 3, ..key(1) }, b"x")).unwrap();
    drop(node);
    // Promises lost, objects there.
    let forgetful = disk.copy();
    let len = forgetful.len(Which::Meta) as usize;
    forgetful.set_bytes(Which::Meta, 0, &vec![0; len]);
    assert!(matches!(open(&forgetful).err(), Some(NodeOpenError::Meta(MetaError::Missing))));
    // Objects lost, promises there.
    let emptied = disk.copy();
    emptied.set_bytes(Which::Objects, 0, &[0; 512]);
    assert!(matches!(open(&emptied).err(), Some(NodeOpenError::Objects(DiskError::Missing))));
    // A header that is half there.
    let damaged = disk.copy();
    damaged.set_bytes(Which::Meta, 0, &[1; 512]);
    drop(open(&damaged).expect("the other copy of the header is there"));
    damaged.set_bytes(Which::Meta, 4096, &[1; 512]);
    assert!(matches!(open(&damaged).err(), Some(NodeOpenError::Meta(MetaError::Damaged))));
}

#[test]
fn a_node_that_was_made_only_half_is_made_again() {
    let whole = SimDisk::new(1);
    drop(open(&whole).unwrap());
    for at in 0..whole.operations() {
        for seed in 0..4 {
            let disk = SimDisk::new(1);
            disk.crash_at(Some(at));
            drop(open(&disk));
            disk.crash(&mut Rng::new(seed));
            let (mut node, _) = open(&disk).unwrap_or_else(|error| panic!("at {at}: {error}"));
            ask(&mut node, put(key(1), b"x")).unwrap();
        }
    }
}
