//! Wrong answers, and what exactly the verifier says of each. Whole cheaters, and what they earn, are in
//! `proofs/sim`.

use hypha_chain::tree::ExtentKind;
use hypha_chain::{B256, keccak256};
use hypha_proofs::cpu::{Chain, ChainRun, SegmentError, segment_end, segment_start};
use hypha_proofs::disk::DiskError;
use hypha_proofs::label::{FILLER_LAYERS, LABEL_BYTES, TABLE_LAYERS, fill};
use hypha_proofs::prover::{ProverError, sign_answer};
use hypha_proofs::ram::{StepError, Table, Walk, drawn_label, next_state};
use hypha_proofs::regenerate::{RegenerateError, Regeneration};
use hypha_proofs::store::{ExtentTree, OpenError, Store};
use hypha_proofs::verifier::{Fault, Refusal, Verifier};
use hypha_proofs::wire::Opening;

use crate::node::{Node, RULES, SECOND, binding, challenge, filler, judge, key, salt, store_of};

/// The node's answer with the checkpoints of its chains replaced, opened as a liar signs it.
fn lie_about_chains(node: &Node, lie: impl Fn(u16) -> Vec<B256>, draw: B256) -> Vec<Fault> {
    let outcome = outcome_of_lie(node, lie, draw);
    outcome.faults
}

fn outcome_of_lie(
    node: &Node,
    lie: impl Fn(u16) -> Vec<B256>,
    draw: B256,
) -> hypha_proofs::verifier::Outcome {
    let pulse = node.binding.pulse(&challenge(1));
    let honest = node.answer(&challenge(1));
    let chains: Vec<Chain> =
        (0..node.threads).map(|thread| Chain::of(lie(thread)).unwrap()).collect();
    let mut signed = honest.commitment(&key());
    signed.commitment.threads = chains.iter().map(Chain::root).collect();
    signed.signature = sign_answer(&node.binding, &signed.commitment, &key());
    let mut verifier = Verifier::new(RULES, node.claim(), challenge(1), 0);
    let draw = verifier.on_commitment(&signed.encode(), SECOND, draw).unwrap();
    let mut opening = honest.open(&draw, &key()).unwrap();
    let places = hypha_proofs::cpu::drawn(&draw, &RULES, node.threads);
    for ((thread, index), shown) in places.into_iter().zip(&mut opening.segments) {
        let segment = chains[usize::from(thread)].open(index).unwrap_or(shown.0.clone());
        let claim =
            hypha_proofs::prover::run_claim(&node.binding, &pulse, (thread, index), &segment);
        let domain = hypha_chain::message::Reader::Disputes
            .domain(node.binding.chain_id, node.binding.disputes);
        *shown = (segment, hypha_chain::message::sign(&claim, &domain, &key()));
    }
    verifier.on_opening(&opening.encode(), 2 * SECOND).unwrap()
}

/// A chain's true checkpoints.
fn states(pulse: &B256, thread: u16, segments: u64) -> Vec<B256> {
    let mut states = vec![*pulse];
    for index in 0..segments {
        let state = *states.last().unwrap();
        states.push(segment_end(&segment_start(pulse, thread, index, &state)));
    }
    states
}

#[test]
fn a_core_that_does_half_of_each_chain_is_caught_and_has_signed_the_evidence() {
    let node = Node::honest(7);
    let pulse = node.binding.pulse(&challenge(1));
    let half = |thread| {
        let mut states = states(&pulse, thread, RULES.segments / 2);
        let missing = RULES.segments / 2;
        states.extend((0..missing).map(|at| keccak256(at.to_be_bytes())));
        states
    };
    let outcome = outcome_of_lie(&node, half, keccak256("draw"));
    assert!(matches!(outcome.faults[..], [Fault::Cpu(SegmentError::False { .. })]));
    assert_eq!(outcome.verdict.threads, 0);
    let (claim, _) = outcome.evidence.first().unwrap();
    assert_ne!(segment_end(&claim.start), claim.end, "Disputes judges as the witness does");
}

#[test]
fn a_chain_that_was_computed_before_the_pulse_is_caught_in_every_segment() {
    let node = Node::honest(7);
    let before = node.binding.pulse(&challenge(0));
    let old = |thread| states(&before, thread, RULES.segments);
    let outcome = outcome_of_lie(&node, old, keccak256("draw"));
    assert!(matches!(outcome.faults[..], [Fault::Cpu(SegmentError::False { .. })]));
    assert_eq!(outcome.evidence.len(), RULES.cpu_draws as usize);
}

#[test]
fn one_chain_shown_for_all_threads_is_caught() {
    let node = Node::honest(7);
    let pulse = node.binding.pulse(&challenge(1));
    let faults = lie_about_chains(&node, |_| states(&pulse, 0, RULES.segments), keccak256("draw"));
    assert!(matches!(faults[..], [Fault::Cpu(SegmentError::False { thread: 1.., .. })]));
}

#[test]
fn a_truncated_chain_is_not_in_a_tree_of_the_asked_size() {
    let node = Node::honest(7);
    let pulse = node.binding.pulse(&challenge(1));
    for length in [1, RULES.segments / 2, RULES.segments - 1] {
        let faults =
            lie_about_chains(&node, |thread| states(&pulse, thread, length), keccak256("draw"));
        assert!(matches!(faults[..], [Fault::Cpu(SegmentError::NotCommitted { .. })]), "{length}");
    }
}

#[test]
fn an_unfinished_chain_or_walk_is_no_answer() {
    let node = Node::honest(7);
    let prover = node.prover();
    let work = prover.begin(&challenge(1)).unwrap();
    let groups = node.groups(&work);
    let refused = prover.commit(&challenge(1), work, &groups).err();
    assert_eq!(refused, Some(ProverError::Unfinished("a chain")));
    assert!(ChainRun::new(B256::ZERO, 0, 1).finish().is_none());
}

#[test]
fn an_old_pulses_answer_is_refused_and_its_work_proves_nothing_in_a_new_one() {
    let node = Node::honest(7);
    let old = node.answer(&challenge(1));
    let mut verifier = Verifier::new(RULES, node.claim(), challenge(2), 0);
    let bytes = old.commitment(&key()).encode();
    let refused = verifier.on_commitment(&bytes, 1, B256::ZERO);
    assert_eq!(refused, Err(Refusal::Other { node: 7, pulse: 1 }));
    // The old work under the new number.
    let mut signed = old.commitment(&key());
    signed.commitment.pulse = 2;
    signed.signature = sign_answer(&node.binding, &signed.commitment, &key());
    verifier.on_commitment(&signed.encode(), 1, keccak256("draw")).unwrap();
    let opening = old.open(&keccak256("draw"), &key()).unwrap();
    let outcome = verifier.on_opening(&opening.encode(), 2).unwrap();
    assert_eq!(outcome.faults.len(), 3, "{:?}", outcome.faults);
    assert_eq!(
        (outcome.verdict.threads, outcome.verdict.memMiB, outcome.verdict.diskMiB),
        (0, 0, 0)
    );
}

#[test]
fn work_for_another_beacons_value_proves_nothing() {
    let node = Node::honest(7);
    let mut guessed = challenge(1);
    guessed.seed = keccak256("a guess");
    let outcome = judge(node.claim(), challenge(1), &node.answer(&guessed), keccak256("draw"));
    assert_eq!(outcome.faults.len(), 3, "{:?}", outcome.faults);
}

#[test]
fn two_identities_cannot_answer_with_one_nodes_work() {
    let (one, two) = (Node::honest(7), Node::honest(8));
    let answer = one.answer(&challenge(1));
    let mut signed = answer.commitment(&key());
    signed.commitment.node = 8;
    signed.signature = sign_answer(&two.binding, &signed.commitment, &key());
    let mut verifier = Verifier::new(RULES, two.claim(), challenge(1), 0);
    verifier.on_commitment(&signed.encode(), 1, keccak256("draw")).unwrap();
    let opening = answer.open(&keccak256("draw"), &key()).unwrap();
    let outcome = verifier.on_opening(&opening.encode(), 2).unwrap();
    assert_eq!(outcome.faults.len(), 3, "{:?}", outcome.faults);
}

#[test]
fn a_disk_that_lost_a_drawn_group_says_so_instead_of_lying() {
    let node = Node::honest(7);
    let prover = node.prover();
    let mut work = prover.begin(&challenge(1)).unwrap();
    for chain in &mut work.chains {
        chain.advance(u64::MAX);
    }
    work.walk.as_mut().unwrap().advance(&node.table, u64::MAX);
    let mut groups = node.groups(&work);
    let offset = work.reads[3].offset;
    groups[3].fill(0);
    let refused = prover.commit(&challenge(1), work, &groups).err();
    assert_eq!(refused, Some(ProverError::Read(OpenError::Changed(offset))));
}

#[test]
fn leaves_that_were_not_read_before_the_commitment_prove_nothing() {
    let node = Node::honest(7);
    let answer = node.answer(&challenge(1));
    let mut signed = answer.commitment(&key());
    signed.commitment.disk = Some(keccak256("to be read later"));
    signed.signature = sign_answer(&node.binding, &signed.commitment, &key());
    let outcome =
        crate::node::judge_as(node.claim(), challenge(1), &signed, &answer, keccak256("draw"));
    assert_eq!(outcome.faults, [Fault::Disk(DiskError::Digest)]);
    assert_eq!((outcome.verdict.threads, outcome.verdict.diskMiB), (4, 0));
}

#[test]
fn another_leaf_in_the_place_of_a_drawn_one_proves_nothing() {
    let node = Node::honest(7);
    let answer = node.answer(&challenge(1));
    let draw = keccak256("draw");
    let mut opening = answer.open(&draw, &key()).unwrap();
    opening.leaves[5] = opening.leaves[6].clone();
    let bytes = opening.leaves.iter().map(|leaf| leaf.leaf.bytes.as_slice());
    let mut signed = answer.commitment(&key());
    signed.commitment.disk = Some(hypha_proofs::disk::digest(bytes));
    signed.signature = sign_answer(&node.binding, &signed.commitment, &key());
    let mut verifier = Verifier::new(RULES, node.claim(), challenge(1), 0);
    verifier.on_commitment(&signed.encode(), 1, draw).unwrap();
    let outcome = verifier.on_opening(&opening.encode(), 2).unwrap();
    assert!(matches!(outcome.faults[..], [Fault::Disk(DiskError::Leaf(_))]));
}

#[test]
fn a_walk_over_a_table_that_is_not_there_is_caught() {
    let node = Node::honest(7);
    let pulse = node.binding.pulse(&challenge(1));
    let labels = node.table.record().bytes_len / LABEL_BYTES as u64;
    // Half of the table is in memory; of the rest zeros are taken.
    let block = fill(node.binding.table(1, 0, &salt()), 2, 2048).unwrap();
    let (mut state, mut states) = (pulse, pulse.to_vec());
    for step in 0..RULES.walk_steps {
        let at = drawn_label(&state, labels) as usize * LABEL_BYTES;
        let label = block.get(at..at + LABEL_BYTES).unwrap_or(&[0; LABEL_BYTES]);
        state = next_state(&pulse, step, &state, label);
        states.extend_from_slice(&state[..]);
    }
    let walk = Walk::of(states);
    let answer = node.answer(&challenge(1));
    let mut signed = answer.commitment(&key());
    signed.commitment.walk = Some(walk.root());
    signed.signature = sign_answer(&node.binding, &signed.commitment, &key());
    let mut verifier = Verifier::new(RULES, node.claim(), challenge(1), 0);
    let draw = verifier.on_commitment(&signed.encode(), 1, keccak256("draw")).unwrap();
    let mut opening: Opening = answer.open(&draw, &key()).unwrap();
    let drawn = hypha_proofs::ram::drawn(&draw, &RULES);
    opening.steps = drawn.into_iter().map(|step| walk.open(&node.table, step).unwrap()).collect();
    let outcome = verifier.on_opening(&opening.encode(), 2).unwrap();
    assert!(
        matches!(outcome.faults[..], [Fault::Ram(StepError::False(_))]),
        "{:?}",
        outcome.faults
    );
    assert_eq!((outcome.verdict.threads, outcome.verdict.memMiB), (4, 0));
}

#[test]
fn filler_that_is_cheap_to_make_passes_pulses_and_fails_when_it_is_made_again() {
    let mut node = Node::honest(7);
    // Not the node's own filler, but another's: as good as any bytes.
    node.extents = filler(&binding(8), 3);
    node.extents.push(vec![1; 5000]);
    node.store = store_of(&node.extents);
    let outcome = judge(node.claim(), challenge(1), &node.answer(&challenge(1)), keccak256("draw"));
    assert_eq!(outcome.faults, [], "a pulse does not look at what the bytes are");
    for (of, expected) in [(7, false), (8, true)] {
        let way = node.store.way(0).unwrap();
        let record = node.store.record();
        let mut again = Regeneration::of_filler(&binding(of), &salt(), &record, 0, &way).unwrap();
        while again.advance(1000) > 0 {}
        assert_eq!(again.finish(), Some(expected), "made again as node {of}'s");
    }
    let shard = node.store.record().bytes_len - 1;
    let way = node.store.way(shard).unwrap();
    assert_eq!(way.extent.kind, ExtentKind::User);
    let refused =
        Regeneration::of_filler(&binding(7), &salt(), &node.store.record(), shard, &way).err();
    assert_eq!(refused, Some(RegenerateError::User));
}

#[test]
fn a_block_of_a_table_is_made_again_under_its_day_alone() {
    let node = Node::honest(7);
    let record = node.table.record();
    let way = node.table.way(70_000).unwrap();
    for (day, expected) in [(1, true), (2, false)] {
        let when = (day, &salt());
        let mut again = Regeneration::of_table(&node.binding, when, &record, 70_000, &way).unwrap();
        again.advance(u64::MAX);
        assert_eq!(again.finish(), Some(expected), "day {day}");
    }
}

/// The node's answer over other extents or blocks than it must have.
fn faults_of(node: &Node) -> Vec<Fault> {
    judge(node.claim(), challenge(1), &node.answer(&challenge(1)), keccak256("draw")).faults
}

#[test]
fn filler_in_extents_so_short_that_they_are_made_out_of_nothing_proves_nothing() {
    let mut node = Node::honest(7);
    let short = |extent| fill(node.binding.filler(0, extent, &salt()), FILLER_LAYERS, 32).unwrap();
    node.extents = (0..400).map(short).collect();
    node.store = store_of(&node.extents);
    assert!(matches!(
        faults_of(&node)[..],
        [Fault::Disk(DiskError::Short { bytes_len: 1024, .. })]
    ));
}

#[test]
fn an_extent_that_is_kept_once_and_counted_often_proves_nothing() {
    let mut node = Node::honest(7);
    let extents = [0, 1, 1, 2].map(|id| (ExtentKind::Filler, id, &node.extents[id as usize]));
    let trees = extents.map(|(kind, id, bytes)| (kind, id, ExtentTree::of(bytes)));
    node.store = Store::new(trees.into()).unwrap();
    node.extents = [0, 1, 1, 2].map(|id: usize| node.extents[id].clone()).into();
    assert!(matches!(faults_of(&node)[..], [Fault::Disk(DiskError::Twice(1))]));
}

#[test]
fn a_table_of_blocks_so_short_that_they_are_made_out_of_nothing_proves_nothing() {
    let mut node = Node::honest(7);
    let crumb = |id| fill(node.binding.table(1, id, &salt()), TABLE_LAYERS, 32).unwrap();
    node.table = Table::new((0..200).map(crumb).collect()).unwrap();
    assert!(matches!(faults_of(&node)[..], [Fault::Ram(StepError::Block(_))]));
}

#[test]
fn a_block_that_is_kept_once_and_counted_often_is_not_the_one_of_its_place() {
    let mut node = Node::honest(7);
    let block = fill(node.binding.table(1, 0, &salt()), TABLE_LAYERS, 2048).unwrap();
    node.table = Table::new(vec![block; 4]).unwrap();
    assert_eq!(faults_of(&node), [], "a pulse does not look at what the bytes are");
    let (record, way) = (node.table.record(), node.table.way(70_000).unwrap());
    let when = (1, &salt());
    let mut again = Regeneration::of_table(&node.binding, when, &record, 70_000, &way).unwrap();
    again.advance(u64::MAX);
    assert_eq!(again.finish(), Some(false));
}
