//! Rounds that drand's quicknet published.

use alloy_primitives::{b256, bytes};
use hypha_chain::contracts::DrandBeacon;
use hypha_chain::deploy::BeaconKind;
use hypha_chain::{B256, Bytes};

use crate::grid::{Grid, key};

/// Round, signature (uncompressed: x and y of 64 bytes), randomness as published.
fn recorded() -> [(u64, Bytes, B256); 2] {
    [
        (
            1000,
            bytes!(
                "00000000000000000000000000000000144679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b1957"
                "6350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e3900000000000000000000000000000000"
                "11f92e4521ef54f047b64b85fa98db2d46f0f44add1f60b93f8a0dbddd63b34f238657c2d93aed18"
                "b90bddd60a01b6d2"
            ),
            b256!("fe290beca10872ef2fb164d2aa4442de4566183ec51c56ff3cd603d930e54fdd"),
        ),
        (
            123,
            bytes!(
                "00000000000000000000000000000000175c69d0b72a5d906e854e808ba7e2accb1542ac355ae486"
                "d591aa9d43765482e26cd02df835d3546d23c4b13e0dfc9200000000000000000000000000000000"
                "0f3894d8ccd4bb5edc3fca0f1f67f658559b86a360dd0128c3b64c12141372bb22276f0a00720b51"
                "125a9996b722b23f"
            ),
            b256!("fb8f7bc29bf24db51871ec8c79f3a1e4bd0557bc0dfcee9ed1d924e69d1c60dc"),
        ),
    ]
}

#[test]
fn recorded_rounds_verify_and_give_the_published_randomness() {
    let mut grid = Grid::with_beacon(BeaconKind::Drand);
    let beacon = grid.suite.beacon;
    let mut rounds = recorded();
    rounds.reverse();
    for (round, point, randomness) in rounds {
        let call = DrandBeacon::verifyCall { round, point: point.clone() };
        assert_eq!(grid.view(beacon, call), randomness);
        let receipt = grid.must(&key(1), beacon, DrandBeacon::pushCall { round, point });
        assert!(receipt.gas_used < 240_000, "a round costs {} gas", receipt.gas_used);
    }
    let newest = grid.view(beacon, DrandBeacon::currentCall {});
    assert_eq!(newest.round, 1000);
    let seed = grid.view(beacon, DrandBeacon::seedCall { round: 1000 });
    assert_eq!(seed, newest.seed_);
    assert_ne!(seed, grid.view(beacon, DrandBeacon::seedCall { round: 123 }));
    // 256 are kept, each at its place: one that is older would take a newer one's, the newest in the end.
    let [_, (round, point, _)] = recorded();
    grid.refuses(&key(1), beacon, DrandBeacon::pushCall { round, point }, "NotKept");
    let missing = DrandBeacon::seedCall { round: 124 };
    let said = grid.try_call(key(1).address(), beacon, &missing).unwrap_err();
    assert!(said.contains("NotKept"), "{said}");
}

#[test]
fn another_rounds_signature_and_any_changed_one_are_refused() {
    let mut grid = Grid::with_beacon(BeaconKind::Drand);
    let beacon = grid.suite.beacon;
    let [(round, point, _), (other, ..)] = recorded();
    let push = |round, point: &Bytes| DrandBeacon::pushCall { round, point: point.clone() };
    grid.refuses(&key(1), beacon, push(other, &point), "NotSignedByNetwork");
    grid.refuses(&key(1), beacon, push(round + 1, &point), "NotSignedByNetwork");
    for at in [16, 63, 80, 127] {
        let mut changed = point.to_vec();
        changed[at] ^= 1;
        let call = push(round, &changed.into());
        grid.refuses(&key(1), beacon, call, "PrecompileFailed");
    }
    let short = push(round, &point.slice(..96));
    grid.refuses(&key(1), beacon, short, "BadPoint");
}
