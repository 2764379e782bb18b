//! What a node that is no acceptor believes.

use bytes::Bytes;
use storage_vdev::node::AcceptorId;
use storage_vdev::register::{Edit, EvidenceError, Members, Receipt, verify_evidence};

use crate::cluster::{Node, REGISTER, create, nodes, proposer, run, take_over};

fn members(nodes: &[Node], indexes: &[usize]) -> Members {
    let current: Vec<AcceptorId> = indexes.iter().map(|index| nodes[*index].id()).collect();
    Members { current, next: vec![] }
}

/// Three acceptors, and the evidence that epoch 2 was reached.
fn epoch_two() -> (Vec<Node>, Vec<Bytes>) {
    let mut nodes = nodes(3);
    run(&mut nodes, &mut proposer(1, &[0, 1, 2]), create(&[0, 1, 2])).unwrap();
    let taken = run(&mut nodes, &mut proposer(2, &[0, 1, 2]), take_over(2, 1)).unwrap();
    (nodes, taken.evidence)
}

#[test]
fn a_majority_of_receipts_proves_an_epoch() {
    let (nodes, evidence) = epoch_two();
    let known = members(&nodes, &[0, 1, 2]);
    assert_eq!(verify_evidence(&REGISTER, 2, &known, &evidence), Ok(known));
}

#[test]
fn evidence_of_one_epoch_proves_no_other() {
    let (nodes, evidence) = epoch_two();
    let known = members(&nodes, &[0, 1, 2]);
    for epoch in [0, 1, 3, u64::MAX] {
        let verdict = verify_evidence(&REGISTER, epoch, &known, &evidence);
        assert_eq!(verdict, Err(EvidenceError::OtherEpoch));
    }
    let verdict = verify_evidence(&[8; 16], 2, &known, &evidence);
    assert_eq!(verdict, Err(EvidenceError::OtherEpoch));
}

#[test]
fn too_few_receipts_prove_nothing() {
    let (nodes, evidence) = epoch_two();
    let known = members(&nodes, &[0, 1, 2]);
    let few = |evidence: &[Bytes]| verify_evidence(&REGISTER, 2, &known, evidence);
    assert_eq!(few(&evidence[..2]), Err(EvidenceError::TooFew));
    assert_eq!(few(&evidence[..1]), Err(EvidenceError::TooFew));
    assert_eq!(few(&[]), Err(EvidenceError::Malformed));
    // The same acceptor twice is one acceptor.
    let twice = [evidence[0].clone(), evidence[1].clone(), evidence[1].clone()];
    assert_eq!(few(&twice), Err(EvidenceError::TooFew));
    // And strangers don't count.
    let strangers = members(&crate::cluster::nodes(6), &[3, 4, 5]);
    let verdict = verify_evidence(&REGISTER, 2, &strangers, &evidence);
    assert_eq!(verdict, Err(EvidenceError::TooFew));
    let nobody = verify_evidence(&REGISTER, 2, &Members::default(), &evidence);
    assert_eq!(nobody, Err(EvidenceError::TooFew));
}

#[test]
fn a_receipt_with_any_byte_changed_proves_nothing() {
    let (nodes, evidence) = epoch_two();
    let known = members(&nodes, &[0, 1, 2]);
    for index in 0..evidence.len() {
        for at in 0..evidence[index].len() {
            let mut forged = evidence.clone();
            let mut bytes = forged[index].to_vec();
            bytes[at] ^= 1;
            forged[index] = Bytes::from(bytes);
            assert!(verify_evidence(&REGISTER, 2, &known, &forged).is_err(), "{index}, byte {at}");
        }
    }
}

#[test]
fn receipts_for_different_ballots_are_not_added_up() {
    let mut nodes = nodes(3);
    run(&mut nodes, &mut proposer(1, &[0, 1, 2]), create(&[0, 1, 2])).unwrap();
    let mut taker = proposer(2, &[0, 1, 2]);
    let first = run(&mut nodes, &mut taker, take_over(2, 1)).unwrap().evidence;
    let second = run(&mut nodes, &mut taker, Edit::Read).unwrap().evidence;
    assert_ne!(first[0], second[0], "the ballot is part of the bytes");
    let mixed = [first[0].clone(), first[1].clone(), second[2].clone()];
    let known = members(&nodes, &[0, 1, 2]);
    let verdict = verify_evidence(&REGISTER, 2, &known, &mixed);
    assert_eq!(verdict, Err(EvidenceError::OtherEpoch));
}

#[test]
fn evidence_hands_the_set_of_acceptors_on() {
    let mut nodes = nodes(6);
    let all = [0, 1, 2, 3, 4, 5];
    run(&mut nodes, &mut proposer(1, &all), create(&[0, 1, 2])).unwrap();
    let mut admin = proposer(2, &all);
    let begin = Edit::BeginAcceptors { acceptors: vec![3, 4, 5] };
    let begun = run(&mut nodes, &mut admin, begin).unwrap();
    let settle = Edit::SettleAcceptors { committed: Box::new(begun.record) };
    let settled = run(&mut nodes, &mut admin, settle).unwrap();
    let (old, new) = (members(&nodes, &[0, 1, 2]), members(&nodes, &[3, 4, 5]));
    assert_eq!(verify_evidence(&REGISTER, 1, &old, &settled.evidence), Ok(new.clone()));
    let taken = run(&mut nodes, &mut proposer(3, &all), take_over(3, 3)).unwrap();
    assert_eq!(verify_evidence(&REGISTER, 2, &new, &taken.evidence), Ok(new));
    let verdict = verify_evidence(&REGISTER, 2, &old, &taken.evidence);
    assert_eq!(verdict, Err(EvidenceError::TooFew));
}

#[test]
fn a_receipt_says_what_was_accepted() {
    let (nodes, evidence) = epoch_two();
    let receipt = Receipt::verify(&evidence[1]).unwrap();
    assert!(nodes.iter().any(|node| node.id() == receipt.acceptor));
    assert_eq!((receipt.register, receipt.epoch), (REGISTER, 2));
    assert_eq!(Receipt::verify(&evidence[1][1..]), Err(EvidenceError::Malformed));
}
