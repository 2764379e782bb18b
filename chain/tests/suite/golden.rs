//! Golden vectors: Rust and Solidity agree on every tree and every signed message.

use alloy_primitives::{address, b256};
use alloy_sol_types::{SolStruct, SolValue};
use hypha_chain::contracts::{
    Capacity, DagLabel, Disputes, GridToken, HashSegment, MerkleLeaf, Registry,
};
use hypha_chain::message::{
    Checkpoints, NodeKey, Permit, PulseAnswer, Reader, RotateKey, RunClaim, digest,
};
use hypha_chain::tree::{Extent, ExtentKind, Plot, Tree};
use hypha_chain::{B256, Bytes, U256, keccak256};
use ring::digest::{SHA256, digest as sha_digest};

use crate::capacity::{Disk, answer_to};
use crate::disputes::segment;
use crate::grid::{CHAIN_ID, Content, Grid, verdict, verdict_leaf};

fn sha(bytes: &[u8]) -> B256 {
    B256::from_slice(sha_digest(&SHA256, bytes).as_ref())
}

#[test]
fn the_domains_are_those_that_the_contracts_compute() {
    let grid = Grid::new();
    let suite = grid.suite;
    let theirs = [
        (Reader::Token, suite.token, grid.view(suite.token, GridToken::DOMAIN_SEPARATORCall {})),
        (
            Reader::Registry,
            suite.registry,
            grid.view(suite.registry, Registry::DOMAIN_SEPARATORCall {}),
        ),
        (
            Reader::Capacity,
            suite.capacity,
            grid.view(suite.capacity, Capacity::DOMAIN_SEPARATORCall {}),
        ),
        (
            Reader::Disputes,
            suite.disputes,
            grid.view(suite.disputes, Disputes::DOMAIN_SEPARATORCall {}),
        ),
    ];
    for (reader, contract, separator) in theirs {
        assert_eq!(reader.domain(CHAIN_ID, contract).separator(), separator, "{reader:?}");
    }
}

#[test]
fn the_types_of_messages_are_those_that_solidity_hashes() {
    let types = [
        (NodeKey::eip712_root_type(), "NodeKey(uint32 farm,bytes32 meshKey)"),
        (RotateKey::eip712_root_type(), "RotateKey(uint32 node,bytes32 meshKey)"),
        (PulseAnswer::eip712_root_type(), "PulseAnswer(uint32 node,uint64 pulse,bytes32 answer)"),
        (
            Checkpoints::eip712_root_type(),
            "Checkpoints(uint32 node,uint64 pulse,uint16 thread,uint64 count,bytes32 root)",
        ),
        (
            RunClaim::eip712_root_type(),
            "RunClaim(uint32 node,uint8 verifier,uint64 segments,bytes32 start,bytes32 end)",
        ),
        (
            Permit::eip712_root_type(),
            "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)",
        ),
    ];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let sources: String = ["Registry", "Capacity", "Disputes", "GridToken"]
        .map(|name| {
            std::fs::read_to_string(folder.join(format!("contracts/src/{name}.sol"))).unwrap()
        })
        .concat();
    for (ours, written) in types {
        assert_eq!(ours, written);
        assert!(sources.contains(&format!("\"{written}\"")), "{written}");
    }
}

#[test]
fn a_messages_digest_is_the_recorded_one() {
    let contract = address!("1111111111111111111111111111111111111111");
    let message = PulseAnswer { node: 7, pulse: 99, answer: B256::repeat_byte(0xab) };
    let found = digest(&message, &Reader::Capacity.domain(31337, contract));
    // By hand, from EIP-712's definition.
    let type_hash = keccak256("PulseAnswer(uint32 node,uint64 pulse,bytes32 answer)");
    let body = (type_hash, U256::from(7), U256::from(99), B256::repeat_byte(0xab)).abi_encode();
    let domain_type = keccak256(
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
    );
    let domain =
        (domain_type, keccak256("Hypha Capacity"), keccak256("1"), U256::from(31337), contract);
    let text = [&[0x19, 1], &keccak256(domain.abi_encode())[..], &keccak256(body)[..]].concat();
    assert_eq!(found, keccak256(text));
    assert_eq!(found, b256!("ff1946968734f83e56088ce439db6d2c9ad3844f80cf3ec811610fb923b7d511"));
}

/// Made by an independent program of 20 lines.
#[test]
fn trees_have_the_recorded_roots() {
    let leaves: Vec<[u8; 4]> = (0_u32..5).map(u32::to_be_bytes).collect();
    let tree = Tree::new(leaves.iter().map(<[u8; 4]>::as_slice)).unwrap();
    assert_eq!(
        tree.root(),
        b256!("c7524730ec25504feeb8d43da0d08b3354f15a1d14a111506aa5f2ff0e64b083")
    );
    let content = Content::new((1..=3).map(|node| verdict(node, 1_800_003_600)), &[1, 2]);
    assert_eq!(verdict_leaf(&content.leaves[0]).len(), 42);
    assert_eq!(
        content.verdicts.root(),
        b256!("fd1798371e964f681c0f876fa9c1281903386fb268fcf3f71ef5698b82e985d5")
    );
    assert_eq!(
        content.rewards.root(),
        b256!("ca7b266a4c3bead51739dc85a6c50caba12817d6896d9472c52412cf3655f97f")
    );
}

#[test]
fn a_plot_has_the_recorded_root() {
    let extent =
        |kind, id, bytes_len, root| Extent { kind, id, bytes_len, root: B256::repeat_byte(root) };
    let plot = Plot::new(vec![
        extent(ExtentKind::Filler, 5, 100, 1),
        extent(ExtentKind::User, 6, 50, 2),
        extent(ExtentKind::Filler, 7, 1, 3),
    ]);
    assert_eq!(
        plot.unwrap().root(),
        b256!("011cea3b6ddcc36ce48ab3440fad2fe7e256483c2e71173b36ac85da16813e7d")
    );
}

#[test]
fn a_segment_is_the_same_a_thousand_hashes_on_both_sides() {
    let grid = Grid::new();
    let verifier = grid.suite.verifiers[0];
    let from = keccak256("from");
    let verify = |to| HashSegment::verifyCall { from, to, _2: Bytes::new() };
    assert!(grid.view(verifier, verify(segment(from))));
    assert!(!grid.view(verifier, verify(from)));
}

#[test]
fn leaves_of_audit_trees_of_all_shapes_verify_on_chain() {
    let grid = Grid::new();
    let verifier = grid.suite.verifiers[1];
    for len in [1, 1023, 1024, 1025, 3000, 5 * 1024, 7 * 1024 + 1, 70_000] {
        let disk = Disk::new(1, len);
        for index in 0..len.div_ceil(1024) {
            let shown = answer_to(&disk, index * 1024);
            let mut proof = MerkleLeaf::Proof { len, index, leaf: shown.leaf, path: shown.path };
            let to = sha(&proof.leaf);
            let verify = |proof: &MerkleLeaf::Proof, to| MerkleLeaf::verifyCall {
                from: disk.extent_root(),
                to,
                proof: proof.abi_encode().into(),
            };
            assert!(grid.view(verifier, verify(&proof, to)), "leaf {index} of {len} bytes");
            assert!(!grid.view(verifier, verify(&proof, B256::ZERO)));
            proof.len += 1024;
            let call = verify(&proof, to);
            let other = grid.try_call(hypha_chain::Address::ZERO, verifier, &call);
            assert_ne!(other.ok(), Some(true), "leaf {index} of {len} bytes, length changed");
        }
    }
}

#[test]
fn labels_follow_from_their_parents_on_both_sides() {
    let grid = Grid::new();
    let verifier = grid.suite.verifiers[2];
    let context = keccak256("context");
    let proof = DagLabel::Proof {
        layer: 2,
        index: 70_000,
        count: 1 << 25,
        previous: keccak256("previous"),
        drawn: [keccak256("a"), keccak256("b"), keccak256("c")],
    };
    let mut text = context.to_vec();
    text.push(2);
    text.extend(70_000_u64.to_be_bytes());
    for parent in [&proof.previous].into_iter().chain(&proof.drawn) {
        text.extend(parent);
    }
    let label = sha(&text);
    let verify = |proof: &DagLabel::Proof| DagLabel::verifyCall {
        from: context,
        to: label,
        proof: proof.abi_encode().into(),
    };
    assert!(grid.view(verifier, verify(&proof)));
    for change in 0..3 {
        let mut other = proof.clone();
        match change {
            0 => other.layer = 3,
            1 => other.index += 1,
            _ => other.drawn[1] = B256::ZERO,
        }
        assert!(!grid.view(verifier, verify(&other)));
    }
    // Words of 8 bytes of the previous label: the last says how near the first place is, the second
    // and third are places in the layer below.
    let call =
        DagLabel::parentsCall { layer: 2, index: 70_000, count: 1 << 25, previous: proof.previous };
    let places = grid.view(verifier, call);
    let (words, _) = proof.previous.as_chunks::<8>();
    let word = |at: usize| u64::from_be_bytes(words[at]);
    let near = 2 + word(0) % (1 << (1 + word(3) % 16));
    assert_eq!(places, [70_000 - near.min(70_000), word(1) % (1 << 25), word(2) % (1 << 25)]);
}
