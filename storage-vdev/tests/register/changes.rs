//! Edits against acceptors that come and go.

use bytes::Bytes;
use storage_vdev::VolumeKey;
use storage_vdev::node::{Ballot, NodeError, RegisterRequest, RegisterResponse};
use storage_vdev::register::{
    AcceptorState, ChangeError, Edit, Proposer, RecordError, Refusal, Step, SuperblockRef, Timing,
    VolumeRecord,
};

use crate::cluster::{Node, REGISTER, create, nodes, proposer, run, take_over};

const THREE: [u8; 3] = [0, 1, 2];

fn created() -> (Vec<Node>, Proposer) {
    let mut nodes = nodes(3);
    let mut holder = proposer(1, &THREE);
    run(&mut nodes, &mut holder, create(&THREE)).unwrap();
    (nodes, holder)
}

fn superblock(version: u64) -> SuperblockRef {
    SuperblockRef { version, epoch: 1, sha256: [version as u8; 32] }
}

fn refusal(result: Result<storage_vdev::register::Committed, ChangeError>) -> Refusal {
    match result {
        Err(ChangeError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_new_register_has_version_and_epoch_one() {
    let mut nodes = nodes(3);
    let committed = run(&mut nodes, &mut proposer(1, &THREE), create(&THREE)).unwrap();
    assert_eq!((committed.record.version, committed.record.epoch), (1, 1));
    let ids: Vec<_> = nodes.iter().map(Node::id).collect();
    assert_eq!(committed.record.members.current, ids);
    assert_eq!(committed.changed_ns, Some(0));
}

#[test]
fn a_register_is_made_once() {
    let (mut nodes, _) = created();
    let again = run(&mut nodes, &mut proposer(2, &THREE), create(&THREE));
    assert_eq!(refusal(again), Refusal::Exists);
}

#[test]
fn a_register_that_is_not_there_is_not_found_when_all_nodes_say_so() {
    let mut nodes = nodes(3);
    let read = run(&mut nodes, &mut proposer(1, &THREE), Edit::Read);
    assert_eq!(refusal(read), Refusal::NotFound);
    nodes[2].alive = false;
    let read = run(&mut nodes, &mut proposer(2, &THREE), Edit::Read);
    let expected = ChangeError::Unreachable { answered: 2, asked: 3, in_doubt: false };
    assert_eq!(read, Err(expected));
}

#[test]
fn a_register_is_made_only_with_all_of_its_acceptors() {
    let mut nodes = nodes(3);
    nodes[1].alive = false;
    let result = run(&mut nodes, &mut proposer(1, &THREE), create(&THREE));
    assert!(matches!(result, Err(ChangeError::Unreachable { in_doubt: false, .. })), "{result:?}");
}

#[test]
fn one_dead_acceptor_of_three_is_not_missed_and_two_are() {
    let (mut nodes, mut holder) = created();
    nodes[0].alive = false;
    run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 }).unwrap();
    nodes[1].alive = false;
    let result = run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 });
    assert!(matches!(result, Err(ChangeError::Unreachable { answered: 1, asked: 3, .. })));
    nodes[0].alive = true;
    let read = run(&mut nodes, &mut proposer(2, &THREE), Edit::Read).unwrap();
    assert_eq!(read.record.version, 2);
}

#[test]
fn a_take_over_raises_the_epoch_and_turns_the_old_holder_away() {
    let (mut nodes, mut old) = created();
    let taken = run(&mut nodes, &mut proposer(2, &THREE), take_over(2, 1)).unwrap();
    assert_eq!((taken.record.version, taken.record.epoch), (2, 2));
    for edit in [
        Edit::Renew { epoch: 1 },
        Edit::Renew { epoch: 2 },
        Edit::Superblock { epoch: 1, superblock: superblock(1) },
        Edit::Release { epoch: 1, superblock: None },
    ] {
        let refusal = refusal(run(&mut nodes, &mut old, edit));
        assert!(refusal.to_string().starts_with("EPOCH_STALE: host 2"), "{refusal}");
    }
}

#[test]
fn a_take_over_of_a_version_that_has_passed_is_refused() {
    let (mut nodes, mut holder) = created();
    run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 }).unwrap();
    let late = run(&mut nodes, &mut proposer(2, &THREE), take_over(2, 1));
    assert!(matches!(refusal(late), Refusal::Changed(record) if record.version == 2));
}

#[test]
fn a_superblock_only_ever_becomes_newer() {
    let (mut nodes, mut holder) = created();
    let edit = |version| Edit::Superblock { epoch: 1, superblock: superblock(version) };
    let written = run(&mut nodes, &mut holder, edit(5)).unwrap();
    assert_eq!(written.record.superblock, superblock(5));
    let same = run(&mut nodes, &mut holder, edit(5)).unwrap();
    assert_eq!((same.record.version, same.changed_ns), (2, None), "no renewal either");
    let older = refusal(run(&mut nodes, &mut holder, edit(4)));
    assert_eq!(older, Refusal::OldSuperblock { offered: 4, newest: 5 });
}

#[test]
fn a_released_volume_is_no_longer_held() {
    let (mut nodes, mut holder) = created();
    let release = Edit::Release { epoch: 1, superblock: Some(superblock(2)) };
    let released = run(&mut nodes, &mut holder, release).unwrap();
    assert!(released.record.released && released.record.superblock == superblock(2));
    let late = run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 });
    assert!(matches!(refusal(late), Refusal::NotHolder(_)));
}

/// Runs an edit of which only the messages that `arrives` allows reach their node.
fn run_lossy(
    nodes: &mut [Node],
    proposer: &mut Proposer,
    edit: Edit,
    arrives: impl Fn(u8, &RegisterRequest) -> (bool, bool),
) -> Result<storage_vdev::register::Committed, ChangeError> {
    let mut now_ns = 0;
    proposer.start(edit, now_ns).unwrap();
    loop {
        match proposer.poll(now_ns) {
            Step::Send { message, node, request } => {
                let (there, back) = arrives(node, &request);
                if there {
                    let result = nodes[usize::from(node)].handle(&request);
                    if back {
                        proposer.answer(message, result, now_ns);
                    }
                }
            }
            Step::Wait { until_ns } => now_ns = until_ns,
            Step::Done(result) => return *result,
            Step::Idle => panic!("an edit went missing"),
        }
    }
}

#[test]
fn a_change_whose_answers_are_lost_is_in_doubt_and_happens_once() {
    let (mut nodes, _) = created();
    let mut taker = proposer(2, &THREE);
    let deaf = |_: u8, request: &RegisterRequest| {
        (true, matches!(request, RegisterRequest::Prepare { .. }))
    };
    let result = run_lossy(&mut nodes, &mut taker, take_over(2, 1), deaf);
    assert!(matches!(result, Err(ChangeError::Unreachable { in_doubt: true, .. })), "{result:?}");
    // The same opener asks again: it has the volume already, with one epoch more and not four.
    let again = run(&mut nodes, &mut taker, take_over(2, 1)).unwrap();
    assert_eq!((again.record.epoch, again.record.version), (2, 2));
    assert_eq!(again.record.opener, taker.id());
}

#[test]
fn a_change_that_one_acceptor_saw_is_finished_or_overruled_but_never_both() {
    let (mut nodes, _) = created();
    let mut first = proposer(2, &THREE);
    let to_node_0 = |node: u8, request: &RegisterRequest| {
        let arrives = matches!(request, RegisterRequest::Prepare { .. }) || node == 0;
        (arrives, arrives)
    };
    let result = run_lossy(&mut nodes, &mut first, take_over(2, 1), to_node_0);
    assert!(matches!(result, Err(ChangeError::Unreachable { in_doubt: true, .. })));
    // Without node 0 nobody knows of it.
    nodes[0].alive = false;
    let third = run(&mut nodes, &mut proposer(3, &THREE), take_over(3, 1)).unwrap();
    assert_eq!(third.record.holder.name, "host 3");
    nodes[0].alive = true;
    let read = run(&mut nodes, &mut proposer(4, &THREE), Edit::Read).unwrap();
    assert_eq!(read.record, third.record);
    let refusal = refusal(run(&mut nodes, &mut first, take_over(2, 1)));
    assert!(matches!(refusal, Refusal::Changed(record) if record.holder.name == "host 3"));
}

#[test]
fn an_acceptor_that_lost_its_state_no_longer_counts() {
    let (mut nodes, mut holder) = created();
    nodes[2].alive = false;
    let renewed = run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 }).unwrap();
    // Node 1 comes back empty, under another name; node 2 has only ever seen version 1.
    nodes[1] = Node::new([77; 32]);
    nodes[2].alive = true;
    nodes[0].alive = false;
    let mut reader = proposer(2, &THREE);
    let result = run(&mut nodes, &mut reader, Edit::Read);
    assert!(matches!(result, Err(ChangeError::Unreachable { answered: 2, asked: 3, .. })));
    nodes[0].alive = true;
    let read = run(&mut nodes, &mut reader, Edit::Read).unwrap();
    assert_eq!(read.record, renewed.record);
    // It is taken in again as a new acceptor.
    let begin = Edit::BeginAcceptors { acceptors: THREE.to_vec() };
    let begun = run(&mut nodes, &mut reader, begin).unwrap();
    let settle = Edit::SettleAcceptors { committed: Box::new(begun.record) };
    let settled = run(&mut nodes, &mut reader, settle).unwrap();
    assert!(settled.record.members.current.contains(&nodes[1].id()));
    nodes[2].alive = false;
    assert_eq!(run(&mut nodes, &mut reader, Edit::Read).unwrap().record, settled.record);
}

#[test]
fn an_acceptor_that_loses_its_state_between_the_phases_is_not_counted() {
    let (mut nodes, _) = created();
    let mut taker = proposer(2, &THREE);
    taker.start(take_over(2, 1), 0).unwrap();
    let mut accepts = vec![];
    loop {
        match taker.poll(0) {
            Step::Send { message, node, request: request @ RegisterRequest::Accept { .. } } => {
                accepts.push((message, node, request));
            }
            Step::Send { message, node, request } => {
                taker.answer(message, nodes[usize::from(node)].handle(&request), 0);
            }
            Step::Wait { .. } => break,
            step => panic!("{step:?}"),
        }
    }
    nodes[1] = Node::new([77; 32]);
    nodes[2].alive = false;
    for (message, node, request) in accepts {
        taker.answer(message, nodes[usize::from(node)].handle(&request), 0);
    }
    assert!(
        matches!(taker.poll(0), Step::Wait { .. }),
        "one acceptor and a stranger are no majority"
    );
}

#[test]
fn two_nodes_with_one_acceptor_are_found_out() {
    let (mut nodes, mut holder) = created();
    nodes[2].key = Node::new([1; 32]).key;
    nodes[2].stored = nodes[0].stored.clone();
    nodes[1].alive = false;
    let result = run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 });
    assert_eq!(result, Err(ChangeError::Duplicate { nodes: (0, 2) }));
}

#[test]
fn the_wrong_key_is_named_as_the_reason() {
    let (mut nodes, _) = created();
    let timing = Timing { answer_ns: 10, backoff_ns: 1, attempts: 4 };
    let key = VolumeKey::new(&[99; 32]);
    let mut stranger = Proposer::new(REGISTER, &key, THREE.to_vec(), [5; 24], timing);
    let result = run(&mut nodes, &mut stranger, Edit::Read);
    assert_eq!(result, Err(ChangeError::Record(RecordError::Forged)));
}

#[test]
fn an_acceptor_with_a_forged_value_is_outvoted() {
    let (mut nodes, mut holder) = created();
    let key = storage_vdev::register::RegisterKey::new(&VolumeKey::new(&[99; 32]), REGISTER);
    let mut record = run(&mut nodes, &mut holder, Edit::Read).unwrap().record;
    record.version = 40;
    let ballot = Ballot { counter: 90, proposer: [1; 16] };
    let value = Bytes::from(record.encode(&key, ballot));
    nodes[0].handle(&RegisterRequest::Accept { ballot, value }).unwrap();
    let read = run(&mut nodes, &mut holder, Edit::Read).unwrap();
    assert_eq!(read.record.version, 1);
}

#[test]
fn a_ballot_out_of_all_proportion_is_refused_on_both_sides() {
    let (mut nodes, mut holder) = created();
    let huge = Ballot { counter: u64::MAX, proposer: [9; 16] };
    let prepare = RegisterRequest::Prepare { ballot: huge };
    assert_eq!(nodes[0].handle(&prepare), Err(NodeError::Unsupported));
    let zero = RegisterRequest::Prepare { ballot: Ballot::default() };
    assert_eq!(nodes[0].handle(&zero), Err(NodeError::Unsupported));
    // An acceptor that claims to have promised it is not believed: the proposer's ballots stay low.
    holder.start(Edit::Read, 0).unwrap();
    let mut highest = 0;
    let mut now_ns = 0;
    loop {
        match holder.poll(now_ns) {
            Step::Send { message, request, .. } => {
                let (RegisterRequest::Prepare { ballot } | RegisterRequest::Accept { ballot, .. }) =
                    request;
                highest = highest.max(ballot.counter);
                holder.answer(message, Ok(RegisterResponse::Rejected { promised: huge }), now_ns);
            }
            Step::Wait { until_ns } => now_ns = until_ns,
            Step::Done(result) => break assert!(result.is_err()),
            Step::Idle => panic!("an edit went missing"),
        }
    }
    assert!(highest < 100, "{highest}");
}

#[test]
fn an_acceptor_refuses_what_is_no_record_of_its_register() {
    let (mut nodes, mut holder) = created();
    let ballot = Ballot { counter: 50, proposer: [1; 16] };
    let accept = |value: Vec<u8>| RegisterRequest::Accept { ballot, value: value.into() };
    assert_eq!(nodes[0].handle(&accept(vec![0; 4096])), Err(NodeError::Unsupported));
    let record = run(&mut nodes, &mut holder, Edit::Read).unwrap().record;
    let key = storage_vdev::register::RegisterKey::new(&VolumeKey::new(&[3; 32]), REGISTER);
    let other = VolumeRecord { register: [8; 16], ..record.clone() };
    assert_eq!(nodes[0].handle(&accept(other.encode(&key, ballot))), Err(NodeError::Unsupported));
    // And a second value for a ballot.
    assert!(nodes[0].handle(&accept(record.encode(&key, ballot))).is_ok());
    let second = VolumeRecord { version: 7, ..record };
    assert_eq!(nodes[0].handle(&accept(second.encode(&key, ballot))), Err(NodeError::Unsupported));
}

#[test]
fn a_message_that_comes_twice_changes_nothing_and_gets_the_same_answer() {
    let (mut nodes, _) = created();
    let ballot = Ballot { counter: 9, proposer: [1; 16] };
    let prepare = RegisterRequest::Prepare { ballot };
    let first = nodes[0].handle(&prepare);
    let stored = nodes[0].stored.clone();
    assert_eq!(nodes[0].handle(&prepare), first);
    assert_eq!(nodes[0].stored, stored);
}

#[test]
fn acceptors_change_while_the_holder_goes_on() {
    let mut nodes = nodes(5);
    let all = [0, 1, 2, 3, 4];
    let mut holder = proposer(1, &all);
    run(&mut nodes, &mut holder, create(&[0, 1, 2])).unwrap();
    let mut admin = proposer(2, &all);
    let begin = Edit::BeginAcceptors { acceptors: vec![2, 3, 4] };
    let begun = run(&mut nodes, &mut admin, begin.clone()).unwrap().record;
    let twice = run(&mut nodes, &mut proposer(3, &all), begin);
    assert!(matches!(refusal(twice), Refusal::Moving(_)));
    // The holder renews under both sets, so the record that was committed is no longer the newest.
    let renewed = run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 }).unwrap().record;
    let stale = Edit::SettleAcceptors { committed: Box::new(begun) };
    assert!(matches!(refusal(run(&mut nodes, &mut admin, stale)), Refusal::Changed(_)));
    let settle = Edit::SettleAcceptors { committed: Box::new(renewed) };
    run(&mut nodes, &mut admin, settle).unwrap();
    // The old ones are gone, and nobody misses them.
    nodes[0].alive = false;
    nodes[1].alive = false;
    run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 }).unwrap();
}

#[test]
fn during_a_change_of_acceptors_both_majorities_are_needed() {
    let mut nodes = nodes(6);
    let all = [0, 1, 2, 3, 4, 5];
    let mut holder = proposer(1, &all);
    run(&mut nodes, &mut holder, create(&[0, 1, 2])).unwrap();
    let begin = Edit::BeginAcceptors { acceptors: vec![3, 4, 5] };
    run(&mut nodes, &mut proposer(2, &all), begin).unwrap();
    for dead in [[0, 1], [4, 5]] {
        dead.iter().for_each(|index| nodes[*index].alive = false);
        let result = run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 });
        assert!(matches!(result, Err(ChangeError::Unreachable { .. })), "{dead:?}: {result:?}");
        dead.iter().for_each(|index| nodes[*index].alive = true);
    }
    run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 }).unwrap();
}

#[test]
fn acceptors_that_do_not_answer_are_not_brought_in() {
    let mut nodes = nodes(4);
    let all = [0, 1, 2, 3];
    run(&mut nodes, &mut proposer(1, &all), create(&[0, 1, 2])).unwrap();
    nodes[3].alive = false;
    let begin = Edit::BeginAcceptors { acceptors: vec![1, 2, 3] };
    let result = run(&mut nodes, &mut proposer(2, &all), begin);
    assert!(matches!(result, Err(ChangeError::Unreachable { in_doubt: false, .. })), "{result:?}");
    let read = run(&mut nodes, &mut proposer(3, &all), Edit::Read).unwrap();
    assert!(read.record.members.next.is_empty());
}

#[test]
fn no_acceptor_twice_and_none_at_all_are_refused() {
    let mut nodes = nodes(3);
    for acceptors in [&[0, 0, 1][..], &[][..]] {
        let result = run(&mut nodes, &mut proposer(1, &THREE), create(acceptors));
        assert!(
            matches!(result, Err(ChangeError::Refused(Refusal::Acceptors | Refusal::NotFound))),
            "{acceptors:?}: {result:?}"
        );
    }
    assert_eq!(nodes[0].state().accepted(), AcceptorState::default().accepted());
}

#[test]
fn a_proposer_does_one_thing_at_a_time() {
    let mut proposer = proposer(1, &THREE);
    proposer.start(Edit::Read, 0).unwrap();
    assert!(proposer.start(Edit::Read, 0).is_err());
}

#[test]
fn settling_acceptors_that_were_not_committed_would_fork_the_history() {
    let mut nodes = nodes(6);
    let all = [0, 1, 2, 3, 4, 5];
    let mut holder = proposer(1, &all);
    run(&mut nodes, &mut holder, create(&[0, 1, 2])).unwrap();
    let accepted_by = |only: u8| {
        move |node: u8, request: &RegisterRequest| {
            let arrives = matches!(request, RegisterRequest::Prepare { .. }) || node == only;
            (arrives, arrives)
        }
    };
    // The two sets reach node 2 alone; nobody has committed them.
    let begin = Edit::BeginAcceptors { acceptors: vec![3, 4, 5] };
    let begun = run_lossy(&mut nodes, &mut proposer(2, &all), begin, accepted_by(2));
    assert!(matches!(begun, Err(ChangeError::Unreachable { in_doubt: true, .. })), "{begun:?}");
    let state = nodes[2].state();
    let (found, _) = VolumeRecord::parse(state.accepted().unwrap().1).unwrap();
    assert!(!found.members.next.is_empty());
    // Against the rule: the new set is settled on what one acceptor has. It reaches node 3 alone.
    let settle = Edit::SettleAcceptors { committed: Box::new(found) };
    let mut careless = proposer(3, &[0, 2, 3, 4, 5]);
    let settled = run_lossy(&mut nodes, &mut careless, settle, accepted_by(3));
    assert!(matches!(settled, Err(ChangeError::Unreachable { in_doubt: true, .. })));
    // The old set goes on without knowing, and the new one has another history.
    holder.set_nodes(vec![0, 1]);
    let old = run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 }).unwrap().record;
    let new = run(&mut nodes, &mut proposer(4, &[3, 4, 5]), Edit::Read).unwrap().record;
    assert!(old.members.current != new.members.current && new.change != old.change);
    let again = run(&mut nodes, &mut holder, Edit::Read).unwrap().record;
    assert_eq!(again, old, "so the rule is needed");
}

#[test]
fn an_acceptor_that_shows_an_old_record_under_a_new_ballot_is_not_believed() {
    let (mut nodes, mut holder) = created();
    let old = nodes[0].state().accepted().unwrap().1.clone();
    let taken = run(&mut nodes, &mut proposer(2, &THREE), take_over(2, 1)).unwrap();
    let mut reader = proposer(3, &THREE);
    reader.start(Edit::Read, 0).unwrap();
    let mut now_ns = 0;
    let read = loop {
        match reader.poll(now_ns) {
            Step::Send { message, node: 0, request: RegisterRequest::Prepare { ballot } } => {
                // The highest ballot that could be: it would win.
                let accepted = Some((ballot, old.clone()));
                let lie = RegisterResponse::Promised { acceptor: nodes[0].id(), accepted };
                reader.answer(message, Ok(lie), now_ns);
            }
            Step::Send { message, node, request } => {
                reader.answer(message, nodes[usize::from(node)].handle(&request), now_ns);
            }
            Step::Wait { until_ns } => now_ns = until_ns,
            Step::Done(result) => break result.unwrap(),
            Step::Idle => panic!("an edit went missing"),
        }
    };
    assert_eq!(read.record, taken.record);
    let mut late = proposer(4, &THREE);
    assert!(matches!(refusal(run(&mut nodes, &mut late, take_over(4, 1))), Refusal::Changed(_)));
    assert!(run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 }).is_err());
}
