//! Golden vectors of `docs/proofs.md`, made by an independent program of 40 lines.

use hypha_chain::{Address, B256};
use hypha_proofs::Challenge;
use hypha_proofs::binding::Binding;
use hypha_proofs::cpu::{segment_end, segment_start};
use hypha_proofs::disk::digest;
use hypha_proofs::label::{FILLER_LAYERS, LABEL_BYTES, TABLE_LAYERS, fill};
use hypha_proofs::ram::{drawn_label, next_state};
use hypha_proofs::store::ExtentTree;

const SALT: B256 = B256::repeat_byte(0x22);

fn binding() -> Binding {
    let contract = Address::repeat_byte(1);
    Binding { chain_id: 31337, registry: contract, capacity: contract, disputes: contract, node: 7 }
}

fn pulse() -> B256 {
    binding().pulse(&Challenge { pulse: 5, seed: SALT })
}

#[track_caller]
fn is(found: B256, recorded: &str) {
    assert_eq!(format!("{found:x}"), recorded);
}

#[test]
fn contexts_are_the_recorded_ones() {
    is(
        binding().filler(1, 2, &SALT),
        "b01af21a9d90550f3dc33fc6e2c56cd278fb2ed96d67ef1409c54c397a786452",
    );
    is(
        binding().table(3, 4, &SALT),
        "0d6d8e43ced2e3c2bcf44d783117c7879d969ebb7670666b9cc9686ab5c12735",
    );
    is(pulse(), "5634f5cf9acf480a4dac80e7b4a3794b57b6a80296e7d6eb7f46ae3e9254c6f5");
}

#[test]
fn filler_and_tables_are_the_recorded_ones() {
    let filler = fill(binding().filler(1, 2, &SALT), FILLER_LAYERS, 100).unwrap();
    is(
        B256::from_slice(&filler[99 * LABEL_BYTES..]),
        "4f18c18b4fb7830c84f1f858e81276635c512a785c76bba43c159ff4619deb9c",
    );
    is(
        ExtentTree::of(&filler).root(),
        "a5c36433044ef4d02b0ce7b2e9857685d49fb158b6628522cbcd32fd394008ba",
    );
    let table = fill(binding().table(3, 4, &SALT), TABLE_LAYERS, 100).unwrap();
    is(
        ExtentTree::of(&table).root(),
        "d55ab45b64eb1bd800037e7a23f6e6da1ce7f2aa0929b5abb06abcaae145e09a",
    );
}

#[test]
fn chains_walks_and_digests_are_the_recorded_ones() {
    let pulse = pulse();
    let chain =
        (0..3).fold(pulse, |state, index| segment_end(&segment_start(&pulse, 9, index, &state)));
    is(chain, "6710d8c8231fb90160d31cc2cd466178d04e246a3debc409f591ecf37f5250e9");
    let table = fill(binding().table(3, 4, &SALT), TABLE_LAYERS, 100).unwrap();
    let walk = (0..10).fold(pulse, |state, step| {
        let at = drawn_label(&state, 100) as usize * LABEL_BYTES;
        next_state(&pulse, step, &state, &table[at..at + LABEL_BYTES])
    });
    is(walk, "d2ccf80d883e8efe734f5fcb4896722f2f247dd42184e3f4ffdd47e12ce2b8ee");
    is(
        digest([b"a".as_slice(), b"bc"]),
        "fa19a6c0df56998a0e234d9f4e324b43cd2b6101f7df6b8ecb0a162af63270a0",
    );
}
