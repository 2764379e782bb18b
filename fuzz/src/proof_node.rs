//! What a node that proves reads: a peer's greeting and frames, and its own files, which a disk may have
//! changed.

use hypha_chain::{Address, B256};
use proof_node::filler::format::{
    decode_plot, decode_tree, encode_plot, encode_tree, sealed, tree_bytes_max,
};
use proof_node::kept;
use proof_node::peers::link::{self, HELLO_BYTES, Identity};
use proof_node::shards::format::{Bundle, FILE_BYTES_MAX};

/// The first byte says what the rest is. True if it can be read.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let Some((kind, rest)) = data.split_first() else { return false };
    match kind % 7 {
        0 => greeting(rest),
        1 => frames(rest),
        2 => tree(rest),
        3 => plot(rest),
        4 => bundle(rest),
        5 => epoch(rest),
        _ => known(rest),
    }
}

/// A greeting of this network is that of its node and its nonce.
fn greeting(bytes: &[u8]) -> bool {
    let identity = Identity { chain_id: 7, registry: Address::repeat_byte(3), node: 1 };
    let Some(hello) = bytes.first_chunk::<HELLO_BYTES>() else { return false };
    let Some((node, nonce)) = identity.read(hello) else { return false };
    assert_eq!(Identity { node, ..identity }.hello(&nonce), hello);
    true
}

/// What was read as frames is the same bytes when it is written again.
fn frames(bytes: &[u8]) -> bool {
    let (mut left, mut again) = (bytes, Vec::new());
    while let Ok(message) = link::read(&mut left) {
        link::write(&mut again, &message).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(bytes.starts_with(&again));
    !again.is_empty()
}

/// The hashes beside an extent, with a checksum that is right whatever they are.
fn tree(bytes: &[u8]) -> bool {
    let Some((context, _)) = bytes.get(16..).and_then(|rest| rest.split_first_chunk::<32>()) else {
        return false;
    };
    let file = sealed(bytes.to_vec());
    let context = B256::new(*context);
    let Ok(tree) = decode_tree(&context, &file) else { return false };
    assert_eq!(encode_tree(&context, &tree), file);
    assert!(file.len() as u64 <= tree_bytes_max(tree.bytes_len()));
    assert!(decode_tree(&!context, &file).is_err());
    true
}

/// The list of a plot, likewise.
fn plot(bytes: &[u8]) -> bool {
    let file = sealed(bytes.to_vec());
    let Ok(extents) = decode_plot(&file) else { return false };
    assert_eq!(encode_plot(&extents), file);
    !extents.is_empty()
}

/// The data of an epoch that is kept, likewise.
fn epoch(bytes: &[u8]) -> bool {
    let file = sealed(bytes.to_vec());
    let Some(closed) = kept::decode(&file) else { return false };
    assert_eq!(kept::encode(&closed), file);
    assert!(closed.blobs().len() <= 2);
    true
}

/// What was known of an epoch in time, likewise.
fn known(bytes: &[u8]) -> bool {
    let file = sealed(bytes.to_vec());
    let Some((epoch, known)) = kept::decode_known(&file) else { return false };
    assert_eq!(kept::encode_known(epoch, &known), file);
    assert!(kept::decode(&file).is_none());
    true
}

/// The hashes over a bundle of shards, likewise: each range of its bytes has its place.
fn bundle(bytes: &[u8]) -> bool {
    let file = sealed(bytes.to_vec());
    let Ok(bundle) = Bundle::decode(&file) else { return false };
    assert_eq!(bundle.encode(), file);
    assert!(file.len() as u64 <= FILE_BYTES_MAX);
    let len = bundle.tree.bytes_len();
    let places = bundle.places(&(len / 3..len));
    let sum: u64 = places.iter().map(|place| place.end - place.start).sum();
    assert_eq!(sum, len - len / 3);
    true
}
