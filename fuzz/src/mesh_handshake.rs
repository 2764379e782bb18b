//! The mesh's handshake against a network that changes its messages, and against a true peer that
//! says anything in them.
//!
//! No message but the true one makes a session; both ends get the same keys, or none; and a member
//! that requires the post-quantum half has no session without it, whatever the peer offers.

use net_vdev::session::handshake::{
    Accepted, NOISE_NAME, Offer, PROLOGUE, Timestamp, initiate, receive,
};
use net_vdev::session::{CipherSupport, PostQuantum};
use net_vdev::wire::{self, Datagram, MacKey};
use net_vdev::{PrivateKey, PublicKey};
use noise_ring::Primitives;

use crate::bytes::Input;

const ALL: CipherSupport = CipherSupport { aes_256_gcm: true };

/// The bytes in front of an offer's encapsulation key: its fields, the extension's type and length.
const BEFORE_KEY: usize = 24;

/// The first byte says who is hostile and what both ends ask for: bit 0 the initiator requires the
/// post-quantum half, bit 1 the responder does, bit 2 the peer is hostile instead of the network.
/// True if a session came to stand.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let flags = input.byte();
    let mode = |bit: u8| {
        if flags & bit == 0 { PostQuantum::Upgrade } else { PostQuantum::Required }
    };
    if flags & 4 == 0 {
        between(&mut input, mode(1), mode(2))
    } else {
        hostile_peer(&mut input, mode(2))
    }
}

fn keys() -> (PrivateKey, PrivateKey, PublicKey) {
    let (one, two) = (PrivateKey::new([1; 32]), PrivateKey::new([2; 32]));
    let public = two.public();
    (one, two, public)
}

/// A message as the network passes it on: 0 as it is, 1 a byte changed (where (2), exclusive-or with
/// (1)), 2 cut (where (2)), 3 other bytes (length (1), the bytes).
fn change(input: &mut Input<'_>, truth: &[u8]) -> Vec<u8> {
    let mut bytes = truth.to_vec();
    match input.byte() % 4 {
        1 => {
            let (at, mask) = (usize::from(input.u16()) % bytes.len().max(1), input.byte());
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
        }
        2 => bytes.truncate(usize::from(input.u16())),
        3 => {
            let len = usize::from(input.byte());
            bytes = input.bytes(len).to_vec();
        }
        _ => {}
    }
    bytes
}

/// Two honest members and a network that may change message 1 and the response.
fn between(input: &mut Input<'_>, one: PostQuantum, two: PostQuantum) -> bool {
    let (initiator, responder, public) = keys();
    let offer = Offer {
        ciphers: ALL,
        open_checksums: true,
        index: 7,
        timestamp: Timestamp::from_unix_ns(1),
    };
    let Ok((mut pending, first)) = initiate(&initiator, &public, offer, one, [3; 32]) else {
        panic!("the keys are good")
    };
    let arrived = change(input, &first);
    let Ok(received) = receive(&responder, &arrived, [4; 32]) else { return false };
    assert_eq!(arrived, first, "another message 1 verifies");
    let Ok(Accepted { ciphertext, message, keys }) = received.accept(ALL, two, 9) else {
        panic!("the offer has everything")
    };
    assert!(keys.post_quantum, "both ends can");
    let mac = MacKey::of(&initiator.public());
    let mut response = Vec::new();
    wire::write_response(&mut response, 7, ciphertext.as_deref(), &message, &mac);
    let arrived = change(input, &response);
    let Ok(Datagram::Response { ciphertext, handshake, .. }) = wire::parse(&arrived) else {
        return false;
    };
    let covered = response.len() - wire::TRAILER_BYTES;
    let Ok(finished) = pending.finish(ciphertext, handshake.noise) else { return false };
    // The header's index and the trailer are outside of what Noise covers.
    assert_eq!(arrived.get(8..covered), response.get(8..covered), "another response verifies");
    assert!(finished.post_quantum, "a downgrade");
    assert_eq!((&finished.send, &finished.receive), (&keys.receive, &keys.send));
    true
}

/// An initiator that holds its key and writes into its offer what it likes: (1) where in a true
/// offer its own bytes begin, (1) how many bytes, the bytes, (1) how many bytes of the end to leave
/// out.
fn hostile_peer(input: &mut Input<'_>, required: PostQuantum) -> bool {
    let (_, responder, public) = keys();
    let mut payload = vec![1, 0b110, 0, 0, 0, 0, 0, 7];
    payload.extend_from_slice(&[0x40, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0x04, 0xa0]);
    // All coefficients 0: FIPS 203 takes it for a key.
    payload.resize(BEFORE_KEY + 1184, 0);
    let (at, len) = (usize::from(input.byte()), usize::from(input.byte()));
    let bytes = input.bytes(len);
    payload.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    let cut = usize::from(input.u16()).min(payload.len());
    payload.truncate(payload.len() - cut);
    let Some(first) = first_message(&payload, &public) else { panic!("the keys are good") };
    let Ok(received) = receive(&responder, &first, [4; 32]) else { return false };
    let Ok(accepted) = received.accept(ALL, required, 9) else { return false };
    assert_eq!(accepted.ciphertext.is_some(), accepted.keys.post_quantum);
    assert!(accepted.keys.post_quantum || required == PostQuantum::Upgrade, "a downgrade");
    assert!(!accepted.keys.post_quantum || payload.len() >= BEFORE_KEY + 1184);
    true
}

fn first_message(payload: &[u8], responder: &PublicKey) -> Option<Vec<u8>> {
    let primitives = Box::new(Primitives::new([3; 32]));
    let mut state = snow::Builder::with_resolver(NOISE_NAME.parse().ok()?, primitives)
        .psk(2, &[0; 32])
        .and_then(|builder| builder.prologue(PROLOGUE))
        .and_then(|builder| builder.local_private_key(&[1; 32]))
        .and_then(|builder| builder.remote_public_key(&responder.0))
        .and_then(snow::Builder::build_initiator)
        .ok()?;
    let mut message = vec![0; 32 + 48 + payload.len() + 16];
    let len = state.write_message(payload, &mut message).ok()?;
    message.truncate(len);
    Some(message)
}
