//! What the provers make, judged by the contracts' own bytecode on an embedded chain.

use alloy_sol_types::SolValue;
use hypha_chain::contracts::{DagLabel, HashSegment, MerkleLeaf};
use hypha_chain::embedded::{Call, Chain, Parameters};
use hypha_chain::key::Key;
use hypha_chain::transaction::Transaction;
use hypha_chain::{Address, B256, Bytes, SolCall, TxKind, U256, keccak256};
use hypha_proofs::cpu::{segment_end, segment_start};
use hypha_proofs::label::{FILLER_LAYERS, LABEL_BYTES, drawn_places, fill};
use hypha_proofs::prover::run_claim;
use ring::digest::{SHA256, digest};

use crate::node::{Node, RULES, challenge, key};

const GENESIS: u64 = 1_800_000_000;

/// A chain with one contract on it.
struct Judge {
    chain: Chain,
    contract: Address,
}

impl Judge {
    fn new(bytecode: &Bytes) -> Self {
        let parameters = Parameters {
            chain_id: 31337,
            timestamp: GENESIS,
            cadence_secs: 1,
            balances: Vec::new(),
        };
        let mut chain = Chain::in_memory(parameters, [3; 32]).unwrap();
        let deployer = Key::from_bytes(&[1; 32]).unwrap();
        let transaction = Transaction {
            chain_id: 31337,
            nonce: 0,
            max_priority_fee: 0,
            max_fee: 0,
            gas_limit: 16_000_000,
            to: TxKind::Create,
            value: U256::ZERO,
            data: bytecode.clone(),
            access_list: Default::default(),
        };
        chain.submit(transaction.sign(&deployer).raw()).unwrap();
        chain.tick(GENESIS + 1).unwrap();
        Self { chain, contract: deployer.address().create(0) }
    }

    fn says<C: SolCall>(&mut self, call: &C) -> C::Return {
        let call =
            Call { to: Some(self.contract), data: call.abi_encode().into(), ..Call::default() };
        let outcome = self.chain.call(&call).unwrap().unwrap();
        C::abi_decode_returns(&outcome.output).unwrap()
    }
}

#[test]
fn an_opened_segment_is_what_the_contract_computes() {
    let mut judge = Judge::new(&HashSegment::BYTECODE);
    let node = Node::honest(7);
    let pulse = node.binding.pulse(&challenge(1));
    let answer = node.answer(&challenge(1));
    let draw = keccak256("draw");
    let opening = answer.open(&draw, &key()).unwrap();
    let places = hypha_proofs::cpu::drawn(&draw, &RULES, node.threads);
    for (place, (segment, _)) in places.into_iter().zip(opening.segments).take(3) {
        let claim = run_claim(&node.binding, &pulse, place, &segment);
        let mut call =
            HashSegment::verifyCall { from: claim.start, to: claim.end, _2: Bytes::new() };
        assert!(judge.says(&call));
        assert_eq!(
            segment_end(&segment_start(&pulse, place.0, place.1, &segment.states[0])),
            claim.end
        );
        call.to = B256::ZERO;
        assert!(!judge.says(&call));
    }
}

#[test]
fn labels_and_the_places_that_they_draw_are_what_the_contract_computes() {
    let mut judge = Judge::new(&DagLabel::BYTECODE);
    let (context, count) = (keccak256("context"), 64);
    let layers: Vec<Vec<u8>> =
        (1..=FILLER_LAYERS).map(|layers| fill(context, layers, count).unwrap()).collect();
    let label = |layer: u8, at: u64| {
        B256::from_slice(&layers[usize::from(layer)][at as usize * LABEL_BYTES..][..LABEL_BYTES])
    };
    for layer in 0..FILLER_LAYERS {
        for index in [1, 2, 40, 63] {
            let previous = label(layer, index - 1);
            let places = drawn_places(layer, index, count, &previous).unwrap();
            let call = DagLabel::parentsCall { layer, index, count, previous };
            assert_eq!(judge.says(&call), places);
            let below = layer.saturating_sub(1);
            let [near, b, c] = places;
            let drawn = [label(layer, near), label(below, b), label(below, c)];
            let proof = DagLabel::Proof { layer, index, count, previous, drawn };
            let proof = Bytes::from(proof.abi_encode());
            let mut call = DagLabel::verifyCall { from: context, to: label(layer, index), proof };
            assert!(judge.says(&call), "label {index} of layer {layer}");
            call.to = label(layer, 0);
            assert!(!judge.says(&call));
        }
    }
}

#[test]
fn shown_leaves_of_filler_and_of_shards_are_taken_by_the_contract() {
    let mut judge = Judge::new(&MerkleLeaf::BYTECODE);
    let node = Node::honest(7);
    let opening = node.answer(&challenge(1)).open(&keccak256("draw"), &key()).unwrap();
    let pulse = node.binding.pulse(&challenge(1));
    let offsets = hypha_proofs::disk::offsets(&pulse, &RULES, node.store.record().bytes_len);
    for (shown, offset) in opening.leaves.iter().zip(offsets) {
        let extent = &shown.way.extent;
        let proof = MerkleLeaf::Proof {
            len: extent.bytes_len,
            index: (offset - shown.way.start) / 1024,
            leaf: shown.leaf.bytes.clone().into(),
            path: shown.leaf.path.iter().map(B256::from).collect(),
        };
        let to = B256::from_slice(digest(&SHA256, &shown.leaf.bytes).as_ref());
        let proof = Bytes::from(proof.abi_encode());
        let mut call = MerkleLeaf::verifyCall { from: extent.root, to, proof };
        assert!(judge.says(&call));
        call.to = B256::ZERO;
        assert!(!judge.says(&call));
    }
}
