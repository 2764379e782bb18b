//! A node's answer to a pulse, from a node that may be anybody.
//!
//! The first byte says what the rest is: 0 a commitment, 1 an opening as it travels; otherwise changes
//! to a true opening. Nothing but the true opening proves all that is claimed, and nothing that a node
//! has not signed is evidence against it.

use std::sync::LazyLock;

use hypha_chain::key::Key;
use hypha_chain::tree::ExtentKind;
use hypha_chain::{Address, B256};
use hypha_proofs::binding::Binding;
use hypha_proofs::prover::Prover;
use hypha_proofs::ram::Table;
use hypha_proofs::store::{ExtentTree, Store};
use hypha_proofs::verifier::{Claim, Verifier};
use hypha_proofs::wire::{Opening, SignedCommitment};
use hypha_proofs::{Challenge, Rules};

use crate::bytes::Input;

const RULES: Rules = Rules {
    segments: 3,
    walk_steps: 100,
    cpu_draws: 2,
    walk_draws: 2,
    disk_draws: 3,
    ..Rules::STANDARD
};
const DRAW: B256 = B256::repeat_byte(7);
const CHALLENGE: Challenge = Challenge { pulse: 5, seed: B256::repeat_byte(6) };

/// A claim, and the messages that prove it.
struct Honest {
    claim: Claim,
    commitment: Vec<u8>,
    opening: Vec<u8>,
}

static HONEST: LazyLock<Honest> = LazyLock::new(|| {
    let Some(honest) = honest() else { panic!("an honest node can answer") };
    honest
});

fn honest() -> Option<Honest> {
    let address = Address::repeat_byte(1);
    let binding =
        Binding { chain_id: 1, registry: address, capacity: address, disputes: address, node: 7 };
    let key = Key::from_bytes(&[5; 32]).ok()?;
    let extent = vec![3; 5000];
    let table = Table::new(vec![vec![1; 4096], vec![2; 4096]])?;
    let store = Store::new(vec![(ExtentKind::User, 1, ExtentTree::of(&extent))])?;
    let prover =
        Prover { binding, rules: RULES, threads: 2, table: Some(&table), store: Some(&store) };
    let mut work = prover.begin(&CHALLENGE).ok()?;
    work.chains.iter_mut().for_each(|chain| {
        chain.advance(u64::MAX);
    });
    work.walk.as_mut()?.advance(&table, u64::MAX);
    let groups: Vec<Vec<u8>> = work.reads.iter().map(|_| extent.clone()).collect();
    let answer = prover.commit(&CHALLENGE, work, &groups).ok()?;
    let (table, plot) = (Some(table.record()), Some(store.record()));
    Some(Honest {
        claim: Claim { binding, signer: key.address(), threads: 2, table, plot },
        commitment: answer.commitment(&key).encode(),
        opening: answer.open(&DRAW, &key)?.encode(),
    })
}

/// True if an opening was judged.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    match input.byte() {
        0 => commitment(input.0),
        1 => {
            if let Ok(read) = Opening::decode(input.0) {
                assert_eq!(Opening::decode(&read.encode()).as_ref(), Ok(&read));
            }
            judge(input.0)
        }
        _ => {
            let mut opening = HONEST.opening.clone();
            while !input.0.is_empty() {
                let at = usize::from(input.u16()) % opening.len();
                if let Some(byte) = opening.get_mut(at) {
                    *byte ^= input.byte();
                }
            }
            judge(&opening)
        }
    }
}

fn commitment(bytes: &[u8]) -> bool {
    if let Ok(read) = SignedCommitment::decode(bytes) {
        assert_eq!(read.encode(), bytes);
    }
    let mut verifier = Verifier::new(RULES, HONEST.claim, CHALLENGE, 0);
    let taken = verifier.on_commitment(bytes, 1, DRAW).is_ok();
    assert!(!taken || bytes == HONEST.commitment, "a commitment that the node never signed");
    taken
}

fn judge(bytes: &[u8]) -> bool {
    let mut verifier = Verifier::new(RULES, HONEST.claim, CHALLENGE, 0);
    assert!(verifier.on_commitment(&HONEST.commitment, 1, DRAW).is_ok());
    let Ok(outcome) = verifier.on_opening(bytes, 2) else { return false };
    assert!(outcome.evidence.is_empty(), "an honest node is convicted");
    if outcome.faults.is_empty() {
        assert_eq!(Opening::decode(bytes), Opening::decode(&HONEST.opening), "a forgery passes");
    }
    true
}
