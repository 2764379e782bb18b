//! The audit tree: known roots, every leaf of small objects, and proofs that somebody made up.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use proptest::prelude::*;
use storage_vdev::audit::{
    AuditTree, AuditTreeBuilder, Hash, LEAF_BYTES, LeafProof, OpenLeafError, ProofError,
    leaf_count, verify,
};

/// The object of the golden vectors in docs/audit-tree.md.
fn golden(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn leaf(object: &[u8], index: u64) -> &[u8] {
    let rest = &object[index as usize * LEAF_BYTES..];
    &rest[..rest.len().min(LEAF_BYTES)]
}

fn hash(hex: &str) -> Hash {
    std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
}

#[test]
fn the_roots_are_those_of_the_specification() {
    let roots = [
        (0, "0b6e11694279c0ec1d54a473485e1b51eafe264c9b15a81ffc0f281ba22ffcb8"),
        (1, "99e09deac47fb72f9aae0992409026cdef4550a6537b69ec305ce1f175392a24"),
        (1024, "4b1112ff6d92b37ca74ba12fffff7021706a7883004888f141a4dc5510250aa4"),
        (1025, "3053944ee2cd17f8b05a80d464751d15ea37afa7918b04609d9045b2e6599c01"),
        (5000, "1ed5d60cdc8c5160add39029a97a33aebca1c15779d54afd41714d7ede3f3033"),
        (70_000, "80abd6cb28f3ac325e6ae13bcf291703879b27add0607f50589c89fbcbc78f0a"),
        (1 << 20, "faaeb9b712641be3777bea2a9c88c93c80e5080088aaa6f04bc32129a03db58b"),
    ];
    for (len, root) in roots {
        assert_eq!(AuditTree::of(&golden(len)).root(), hash(root), "{len} bytes");
    }
}

#[test]
fn the_paths_are_those_of_the_specification() {
    let object = golden(5000);
    let tree = AuditTree::of(&object);
    let path = [
        "0e7f816801520714105baa8a786c7a5ad092bdfbd675e49188c9269418a17b2e",
        "a02d94adc3552565695405b65f70b518bced9d01ac52638eb95b9dd89eb75fb7",
        "e64ab7329d0ddb10cf5977a45095e9fb646d7e4d48097ff2ec5f53dcb8b29db9",
    ];
    assert_eq!(tree.open(1, leaf(&object, 1)).unwrap().path, path.map(hash));
    let path = ["e01b868bfb4edebcc8d100aed47a2fcde63cbd4ad748e2280a4951d629bb6116"];
    let last = tree.open(4, leaf(&object, 4)).unwrap();
    assert_eq!(last, LeafProof { bytes: object[4096..].to_vec(), path: path.map(hash).to_vec() });
}

#[test]
fn every_leaf_of_every_width_can_be_shown_and_is_shown_for_no_other_place() {
    for leaves in 1..=37_u64 {
        for len in [(leaves - 1) * 1024 + 1, leaves * 1024] {
            let object = golden(len as usize);
            let tree = AuditTree::of(&object);
            let root = tree.root();
            assert_eq!((tree.len(), leaf_count(len)), (len, leaves));
            for index in 0..leaves {
                let proof = tree.open(index, leaf(&object, index)).unwrap();
                assert_eq!(verify(&root, len, index, &proof), Ok(()), "{index} of {len} bytes");
                for other in (0..leaves + 2).filter(|other| *other != index) {
                    assert!(verify(&root, len, other, &proof).is_err(), "{index} as {other}");
                }
                for other in [len - 1, len + 1, len + 1024, u64::MAX] {
                    assert!(verify(&root, other, index, &proof).is_err(), "{len} as {other}");
                }
            }
        }
    }
}

#[test]
fn an_empty_object_has_one_empty_leaf() {
    let tree = AuditTree::of(&[]);
    let proof = tree.open(0, &[]).unwrap();
    assert_eq!(verify(&tree.root(), 0, 0, &proof), Ok(()));
    assert_eq!(tree.open(1, &[]), Err(OpenLeafError::Range { leaf: 1, leaves: 1 }));
}

#[test]
fn bytes_that_changed_after_the_tree_was_built_are_not_shown() {
    let object = golden(3000);
    let tree = AuditTree::of(&object);
    let mut rotten = leaf(&object, 1).to_vec();
    rotten[1000] ^= 1;
    assert_eq!(tree.open(1, &rotten), Err(OpenLeafError::Changed { leaf: 1 }));
    assert_eq!(tree.open(1, leaf(&object, 0)), Err(OpenLeafError::Changed { leaf: 1 }));
}

#[test]
fn each_way_to_be_no_proof_has_its_error() {
    let object = golden(5000);
    let tree = AuditTree::of(&object);
    let (root, proof) = (tree.root(), tree.open(4, leaf(&object, 4)).unwrap());
    let check = |index: u64, proof: &LeafProof| verify(&root, 5000, index, proof).unwrap_err();
    assert_eq!(check(5, &proof), ProofError::Range { leaf: 5, leaves: 5 });
    assert_eq!(check(u64::MAX, &proof), ProofError::Range { leaf: u64::MAX, leaves: 5 });
    assert_eq!(check(3, &proof), ProofError::LeafLength { leaf: 3, found: 904, needed: 1024 });
    let long = LeafProof { path: vec![[0; 32]; 100_000], ..proof.clone() };
    assert_eq!(check(4, &long), ProofError::PathLength { found: 100_000, needed: 1 });
    let short = LeafProof { path: Vec::new(), ..proof.clone() };
    assert_eq!(check(4, &short), ProofError::PathLength { found: 0, needed: 1 });
    let huge = LeafProof { bytes: vec![0; 1 << 20], ..proof.clone() };
    assert_eq!(check(4, &huge), ProofError::LeafLength { leaf: 4, found: 1 << 20, needed: 904 });
    let other = LeafProof { bytes: vec![0; 904], ..proof };
    assert_eq!(check(4, &other), ProofError::Root);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn pieces_give_the_tree_of_the_whole(
        len in 0usize..60_000, cuts in prop::collection::vec(0usize..60_000, 0..6),
    ) {
        let object = golden(len);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(len)).collect();
        cuts.push(len);
        cuts.sort_unstable();
        let mut builder = AuditTreeBuilder::new();
        let mut at = 0;
        for cut in cuts {
            builder.update(&object[at..cut]);
            at = cut;
        }
        prop_assert_eq!(builder.finish(), AuditTree::of(&object));
    }

    #[test]
    fn a_proof_with_any_bit_turned_shows_nothing(len in 1u64..40_000, at: prop::sample::Index) {
        let object = golden(len as usize);
        let tree = AuditTree::of(&object);
        let index = at.index(leaf_count(len) as usize) as u64;
        let mut proof = tree.open(index, leaf(&object, index)).unwrap();
        let bit = at.index(8 * (proof.bytes.len() + 32 * proof.path.len()));
        match (bit / 8).checked_sub(proof.bytes.len()) {
            None => proof.bytes[bit / 8] ^= 1 << (bit % 8),
            Some(byte) => proof.path[byte / 32][byte % 32] ^= 1 << (bit % 8),
        }
        prop_assert_eq!(verify(&tree.root(), len, index, &proof), Err(ProofError::Root));
    }
}
