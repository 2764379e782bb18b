//! Honest nodes, deadlines, and messages that are none.

use hypha_chain::keccak256;
use hypha_chain::key::Key;
use hypha_proofs::Rules;
use hypha_proofs::verifier::{Fault, Refusal, Verifier, witness_of};
use hypha_proofs::wire::{Opening, SignedCommitment, WireError};

use crate::node::{Node, RULES, SECOND, challenge, judge, key};

#[test]
fn an_honest_node_proves_all_that_it_claims_to_any_witness() {
    let node = Node::honest(7);
    let answer = node.answer(&challenge(1));
    for witness in 0..7_u8 {
        let outcome = judge(node.claim(), challenge(1), &answer, keccak256([witness]));
        assert_eq!(outcome.faults, []);
        assert_eq!(outcome.evidence, []);
        assert_eq!((outcome.verdict.node, outcome.verdict.pulse), (7, 1));
        assert_eq!(outcome.verdict.threads, 4);
        assert!(outcome.verdict.fillerDraws > 30 && outcome.verdict.fillerDraws < 64);
    }
}

#[test]
fn a_verdict_is_its_witnesss() {
    let node = Node::honest(7);
    let outcome = judge(node.claim(), challenge(1), &node.answer(&challenge(1)), keccak256("a"));
    let witness = Key::from_bytes(&[8; 32]).unwrap();
    let signature = outcome.sign(&node.binding, &witness);
    let mut verdict = outcome.verdict;
    assert_eq!(witness_of(&verdict, &node.binding, &signature), Some(witness.address()));
    verdict.threads += 1;
    assert_ne!(witness_of(&verdict, &node.binding, &signature), Some(witness.address()));
}

#[test]
fn a_node_that_claims_nothing_proves_nothing_and_has_no_fault() {
    let node = Node::honest(7);
    let mut prover = node.prover();
    (prover.threads, prover.table, prover.store) = (0, None, None);
    let work = prover.begin(&challenge(1)).unwrap();
    let answer = prover.commit(&challenge(1), work, &[]).unwrap();
    let mut claim = node.claim();
    (claim.threads, claim.table, claim.plot) = (0, None, None);
    let outcome = judge(claim, challenge(1), &answer, keccak256("a"));
    assert_eq!(outcome.faults, []);
    assert_eq!(
        (outcome.verdict.threads, outcome.verdict.memMiB, outcome.verdict.diskMiB),
        (0, 0, 0)
    );
}

#[test]
fn what_comes_after_its_deadline_is_a_missed_pulse() {
    let node = Node::honest(7);
    let answer = node.answer(&challenge(1));
    let commitment = answer.commitment(&key()).encode();
    let draw = keccak256("draw");
    let mut verifier = Verifier::new(RULES, node.claim(), challenge(1), SECOND);
    let late = verifier.on_commitment(&commitment, 6 * SECOND + 1, draw);
    assert_eq!(late, Err(Refusal::Late(1)));
    assert!(verifier.on_time(6 * SECOND).is_none());
    let outcome = verifier.on_time(6 * SECOND + 1).unwrap();
    assert_eq!(outcome.faults, [Fault::Missed]);
    assert_eq!(outcome.verdict.threads, 0);
    assert!(verifier.on_time(7 * SECOND).is_none(), "a pulse has one outcome");

    let mut verifier = Verifier::new(RULES, node.claim(), challenge(1), SECOND);
    verifier.on_commitment(&commitment, 2 * SECOND, draw).unwrap();
    let opening = answer.open(&draw, &key()).unwrap().encode();
    assert_eq!(verifier.on_opening(&opening, 12 * SECOND + 5), Err(Refusal::Late(5)));
    assert_eq!(verifier.on_time(12 * SECOND + 5).unwrap().faults, [Fault::Missed]);
}

#[test]
fn timed_work_counts_less_in_the_last_fifth_of_the_time_and_disks_do_not() {
    let node = Node::honest(7);
    let answer = node.answer(&challenge(1));
    let (commitment, draw) = (answer.commitment(&key()).encode(), keccak256("draw"));
    let opening = answer.open(&draw, &key()).unwrap().encode();
    let proven = |took_ns: u64| {
        let mut verifier = Verifier::new(RULES, node.claim(), challenge(1), SECOND);
        verifier.on_commitment(&commitment, SECOND + took_ns, draw).unwrap();
        let outcome = verifier.on_opening(&opening, SECOND + took_ns).unwrap();
        assert_eq!(outcome.faults, []);
        (outcome.verdict.threads, outcome.verdict.diskMiB)
    };
    let disk = proven(0).1;
    for (took_ms, threads) in [(0, 4), (4000, 4), (4100, 4), (4300, 3), (4500, 2), (4999, 1)] {
        assert_eq!(proven(took_ms * 1_000_000), (threads, disk), "{took_ms} ms");
    }
    assert_eq!(proven(5 * SECOND), (0, disk));
    let memory = [4000, 4001, 4250, 4999, 5000, 9000];
    let memory = memory.map(|took_ms| Rules::STANDARD.timely(took_ms * 1_000_000, 1 << 20));
    assert_eq!(memory, [1 << 20, 1_047_528, 786_432, 1049, 0, 0]);
}

#[test]
fn noise_does_not_end_a_pulse() {
    let node = Node::honest(7);
    let answer = node.answer(&challenge(1));
    let commitment = answer.commitment(&key());
    let draw = keccak256("draw");
    let mut verifier = Verifier::new(RULES, node.claim(), challenge(1), 0);
    assert_eq!(verifier.on_opening(&[1], 1), Err(Refusal::NotAwaited));
    assert_eq!(verifier.on_commitment(&[], 1, draw), Err(Refusal::Wire(WireError::Length)));
    assert_eq!(verifier.on_commitment(&[9], 1, draw), Err(Refusal::Wire(WireError::Version(9))));
    let stranger = Key::from_bytes(&[8; 32]).unwrap();
    let forged = answer.commitment(&stranger).encode();
    assert_eq!(verifier.on_commitment(&forged, 1, draw), Err(Refusal::Signature));
    let other = Node::honest(8).answer(&challenge(1)).commitment(&key()).encode();
    let refused = verifier.on_commitment(&other, 1, draw);
    assert_eq!(refused, Err(Refusal::Other { node: 8, pulse: 1 }));
    verifier.on_commitment(&commitment.encode(), 1, draw).unwrap();
    assert_eq!(verifier.on_commitment(&commitment.encode(), 1, draw), Err(Refusal::NotAwaited));
    assert_eq!(verifier.on_opening(&[1, 0], 2), Err(Refusal::Wire(WireError::Length)));
    let opening = answer.open(&draw, &key()).unwrap().encode();
    assert_eq!(verifier.on_opening(&opening, 2).unwrap().faults, []);
}

#[test]
fn messages_are_read_as_they_were_written_and_no_prefix_is_one() {
    let answer_of = Node::honest(7);
    let answer = answer_of.answer(&challenge(1));
    let commitment = answer.commitment(&key());
    let bytes = commitment.encode();
    assert_eq!(SignedCommitment::decode(&bytes).as_ref(), Ok(&commitment));
    for len in 0..bytes.len() {
        assert!(SignedCommitment::decode(&bytes[..len]).is_err());
    }
    let opening = answer.open(&keccak256("draw"), &key()).unwrap();
    let bytes = opening.encode();
    assert_eq!(Opening::decode(&bytes).as_ref(), Ok(&opening));
    for len in (0..bytes.len()).step_by(13) {
        assert!(Opening::decode(&bytes[..len]).is_err());
    }
    assert!(Opening::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn an_answer_with_any_byte_changed_never_proves_all_and_never_convicts() {
    let node = Node::honest(7);
    let answer = node.answer(&challenge(1));
    let draw = keccak256("draw");
    let bytes = answer.open(&draw, &key()).unwrap().encode();
    let seed = 20_261_121;
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..100 {
        let mut changed = bytes.clone();
        let at = rng.usize(..changed.len());
        changed[at] ^= 1 << rng.u8(..8);
        let mut verifier = Verifier::new(RULES, node.claim(), challenge(1), 0);
        verifier.on_commitment(&answer.commitment(&key()).encode(), 1, draw).unwrap();
        if let Ok(outcome) = verifier.on_opening(&changed, 2) {
            assert_eq!(outcome.evidence, [], "seed {seed} round {round} byte {at}");
            // Where the ways of two neighbours are cut is the only thing with two spellings.
            let same = Opening::decode(&changed) == Opening::decode(&bytes);
            assert!(same || !outcome.faults.is_empty(), "seed {seed} round {round} byte {at}");
        }
    }
}
