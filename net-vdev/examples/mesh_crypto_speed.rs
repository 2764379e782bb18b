//! What the mesh's cryptography costs on one core, besides sealing packets (`mesh_speed`):
//! `cargo run --release -p net-vdev --example mesh_crypto_speed`.
//!
//! A handshake of both sides with and without its post-quantum half, a signature and its check, and
//! the tag of a relayed frame's header. CPU time of the thread, medians of 15 rounds.

use std::hint::black_box;

use net_vdev::session::handshake::{
    Cipher, HandshakeError, Keys, NOISE_NAME, Offer, PROLOGUE, Timestamp, initiate, receive,
};
use net_vdev::session::{CipherSupport, PostQuantum, Session};
use net_vdev::signature::{Purpose, sign, verify};
use net_vdev::{PrivateKey, PublicKey};
use noise_ring::Primitives;
use rustix::time::{ClockId, clock_gettime};
use snow::{Builder, HandshakeState};

const ROUNDS: usize = 15;
const PURPOSE: Purpose = Purpose::new("Hypha mesh 1: speed");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (one, two) = (PrivateKey::new([1; 32]), PrivateKey::new([2; 32]));
    println!("| what | µs |");
    println!("|---|---|");
    let hybrid = nanoseconds(100, |round| hybrid(&one, &two, round).is_ok());
    println!("| handshake with ML-KEM-768, both sides | {:.0} |", hybrid / 1e3);
    let classical = nanoseconds(100, |round| classical(&two.public(), round).is_ok());
    println!("| handshake without, both sides | {:.0} |", classical / 1e3);
    let message = [7; 120];
    let signed = nanoseconds(300, |round| {
        black_box(sign(&one, PURPOSE, &message, &[round as u8; 64]));
        true
    });
    println!("| signature (XEdDSA, 120 bytes) | {:.1} |", signed / 1e3);
    let signature = sign(&one, PURPOSE, &message, &[0; 64]);
    let key = one.public();
    let verified = nanoseconds(300, |_| verify(black_box(&key), PURPOSE, &message, &signature));
    println!("| its check | {:.1} |", verified / 1e3);

    println!("\n| hop tag | write, ns | check, ns |");
    println!("|---|---|---|");
    for (name, aes_256_gcm) in [("AES-256-GCM", true), ("ChaCha20-Poly1305", false)] {
        let (sender, reader) = ends(&one, &two, aes_256_gcm)?;
        let (write_ns, check_ns) = hop_tags(sender, reader);
        println!("| {name} | {write_ns:.0} | {check_ns:.0} |");
    }
    Ok(())
}

fn offer(aes_256_gcm: bool) -> Offer {
    let ciphers = CipherSupport { aes_256_gcm };
    let timestamp = Timestamp::from_unix_ns(1);
    Offer { ciphers, open_checksums: true, index: 7, timestamp }
}

/// The keys of the initiator and of the responder.
fn keys(
    one: &PrivateKey,
    two: &PrivateKey,
    (aes_256_gcm, seed): (bool, u8),
) -> Result<(Keys, Keys), HandshakeError> {
    let offer = offer(aes_256_gcm);
    let required = PostQuantum::Required;
    let (mut pending, first) = initiate(one, &two.public(), offer, required, [seed; 32])?;
    let accepted = receive(two, &first, [!seed; 32])?.accept(offer.ciphers, required, 9)?;
    let finished = pending.finish(accepted.ciphertext.as_deref(), &accepted.message)?;
    Ok((finished, accepted.keys))
}

fn hybrid(one: &PrivateKey, two: &PrivateKey, round: usize) -> Result<(), HandshakeError> {
    let (initiator, responder) = keys(one, two, (true, round as u8))?;
    black_box((Session::new(&initiator, 7, 0), Session::new(&responder, 9, 0)));
    Ok(())
}

/// The same Noise messages with the smallest payloads of version 1.
fn classical(two: &PublicKey, round: usize) -> Result<(), snow::Error> {
    let mut initiator = builder([round as u8; 32])?
        .local_private_key(&[1; 32])?
        .remote_public_key(&two.0)?
        .build_initiator()?;
    let mut responder =
        builder([!(round as u8); 32])?.local_private_key(&[2; 32])?.build_responder()?;
    pass(&mut initiator, &mut responder, &[0; 20])?;
    pass(&mut responder, &mut initiator, &[0; 8])?;
    let (first, second) = initiator.dangerously_get_raw_split();
    let key = |bytes: [u8; 32]| {
        let unbound = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, &bytes);
        unbound.map(ring::aead::LessSafeKey::new).ok()
    };
    black_box([key(first), key(second), key(first), key(second)]);
    Ok(())
}

fn builder<'a>(seed: [u8; 32]) -> Result<Builder<'a>, snow::Error> {
    Builder::with_resolver(NOISE_NAME.parse()?, Box::new(Primitives::new(seed)))
        .psk(2, &[0; 32])?
        .prologue(PROLOGUE)
}

fn pass(
    from: &mut HandshakeState,
    to: &mut HandshakeState,
    payload: &[u8],
) -> Result<(), snow::Error> {
    let (mut message, mut read) = ([0; 200], [0; 200]);
    let len = from.write_message(payload, &mut message)?;
    to.read_message(message.get(..len).unwrap_or_default(), &mut read)?;
    Ok(())
}

fn ends(
    one: &PrivateKey,
    two: &PrivateKey,
    aes_256_gcm: bool,
) -> Result<(Session, Session), Box<dyn std::error::Error>> {
    let (initiator, responder) = keys(one, two, (aes_256_gcm, 1))?;
    let expected = if aes_256_gcm { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
    assert_eq!(initiator.cipher, expected);
    let sessions = (Session::new(&initiator, 7, 0), Session::new(&responder, 9, 0));
    let (Some(sender), Some(reader)) = sessions else { return Err("ring refused a key".into()) };
    Ok((sender, reader))
}

fn hop_tags(mut sender: Session, mut reader: Session) -> (f64, f64) {
    const BATCH: usize = 1000;
    let mut headers = vec![[6; 64]; BATCH];
    let (mut writes, mut checks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 20 {
        let start = cpu_ns();
        let written = headers.iter_mut().all(|header| sender.seal_hop(header));
        let middle = cpu_ns();
        let checked = headers.iter().all(|header| reader.open_hop(header).is_ok());
        checks.push((cpu_ns() - middle) as f64 / BATCH as f64);
        writes.push((middle - start) as f64 / BATCH as f64);
        assert!(written && checked, "every header passes");
    }
    (median(writes), median(checks))
}

/// The CPU time of one of `count` calls.
fn nanoseconds(count: usize, call: impl Fn(usize) -> bool) -> f64 {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = cpu_ns();
        let succeeded = (0..count).all(&call);
        times.push((cpu_ns() - start) as f64 / count as f64);
        assert!(succeeded, "what is measured succeeds");
    }
    median(times)
}

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
