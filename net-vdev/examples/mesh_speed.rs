//! How fast the mesh is on one core: `cargo run --release -p net-vdev --example mesh_speed`.
//!
//! Two endpoints in one thread, no sockets: nanoseconds per packet of 1400 bytes on the sending and
//! the receiving side with each cipher, microseconds per handshake, and `ring` alone for comparison.
//! CPU time of the thread, medians of 9 rounds.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};

use net_vdev::{
    CipherSupport, Config, ConfigError, Endpoint, Path, Peer, PrivateKey, Protocol, PublicKey,
    Rule, Transmit,
};
use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 9;
const PACKETS: usize = 20_000;
/// How many packets are sent before they are received; they fit the caches.
const BATCH: usize = 200;
const HANDSHAKES: u8 = 40;

fn main() -> Result<(), ConfigError> {
    println!(
        "| cipher | send ns | receive ns | ring alone: seal ns | both ends, Gbit/s per core |"
    );
    println!("|---|---|---|---|---|");
    for (name, algorithm, aes_256_gcm) in [
        ("AES-256-GCM", &aead::AES_256_GCM, true),
        ("ChaCha20-Poly1305", &aead::CHACHA20_POLY1305, false),
    ] {
        let (send_ns, receive_ns) = packets(aes_256_gcm)?;
        let ring_ns = ring_alone(algorithm);
        let gbit_per_s = 1400.0 * 8.0 / (send_ns + receive_ns);
        println!("| {name} | {send_ns:.0} | {receive_ns:.0} | {ring_ns:.0} | {gbit_per_s:.1} |");
    }
    println!("handshake, both sides: {:.0} us", handshakes()?);
    Ok(())
}

fn place(member: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, member], 1000))
}

fn member(number: u8, other: u8, aes_256_gcm: bool) -> Result<Endpoint, ConfigError> {
    let key = PrivateKey::new([other; 32]).public();
    let config = Config {
        peers: vec![Peer { key, endpoint: Some(place(other)), addresses: Vec::new() }],
        rules: vec![Rule { who: key.into(), protocol: Protocol::Udp, port: None }],
        ciphers: CipherSupport { aes_256_gcm },
        ..Config::new(PrivateKey::new([number; 32]), 1_700_000_000_000_000_000)
    };
    Endpoint::new(config, [number; 32])
}

fn packet(from: &PublicKey, to: &PublicKey) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0x05, 0x50, 17, 64];
    for key in [from, to] {
        let IpAddr::V6(address) = IpAddr::from(key.address()) else { continue };
        packet.extend_from_slice(&address.octets());
    }
    packet.extend_from_slice(&[0, 7, 0, 7, 0x05, 0x50, 0, 0]);
    packet.resize(1400, 0xaa);
    packet
}

/// Passes everything that is queued between the two until nothing is left; returns how many packets
/// arrived.
fn settle(one: &mut Endpoint, two: &mut Endpoint) -> usize {
    let mut arrived = 0;
    for _ in 0..4 {
        for from in [place(1), place(2)] {
            while let Some(Transmit { mut bytes, .. }) = one.poll_transmit() {
                let stride = bytes.len();
                two.receive(1, Path::Direct(from), &mut bytes, stride, &mut |_, _| arrived += 1);
                one.recycle(bytes);
            }
            std::mem::swap(one, two);
        }
    }
    arrived
}

fn packets(aes_256_gcm: bool) -> Result<(f64, f64), ConfigError> {
    let (mut one, mut two) = (member(1, 2, aes_256_gcm)?, member(2, 1, aes_256_gcm)?);
    let bytes = packet(&one.key(), &two.key());
    one.send_packet(1, &bytes);
    settle(&mut one, &mut two);
    let mut datagrams = vec![[0; 1432]; BATCH];
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (mut send_ns, mut receive_ns) = (0, 0);
        for _ in 0..PACKETS / BATCH {
            let start = cpu_ns();
            for datagram in &mut datagrams {
                one.send_packet(1, black_box(&bytes));
                if let Some(Transmit { bytes: sealed, .. }) = one.poll_transmit() {
                    datagram.copy_from_slice(&sealed);
                    one.recycle(sealed);
                }
            }
            let middle = cpu_ns();
            for datagram in &mut datagrams {
                let stride = datagram.len();
                two.receive(1, Path::Direct(place(1)), datagram, stride, &mut |_, packet| {
                    black_box(packet);
                });
            }
            send_ns += middle - start;
            receive_ns += cpu_ns() - middle;
        }
        sends.push(send_ns as f64 / PACKETS as f64);
        receives.push(receive_ns as f64 / PACKETS as f64);
    }
    assert_eq!(two.counters().dropped_total(), 0, "every packet came through");
    assert_eq!(two.counters().packets_received, 1 + (ROUNDS * PACKETS) as u64);
    Ok((median(sends), median(receives)))
}

fn handshakes() -> Result<f64, ConfigError> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut total_us = 0.0;
        for _ in 0..HANDSHAKES {
            let (mut one, mut two) = (member(1, 2, true)?, member(2, 1, true)?);
            let bytes = packet(&one.key(), &two.key());
            let start = cpu_ns();
            one.send_packet(1, &bytes);
            let arrived = settle(&mut one, &mut two);
            total_us += (cpu_ns() - start) as f64 / 1e3;
            assert_eq!(arrived, 1, "the handshake completed");
        }
        times.push(total_us / f64::from(HANDSHAKES));
    }
    Ok(median(times))
}

/// Nanoseconds to seal 1400 bytes in place, and nothing else.
fn ring_alone(algorithm: &'static aead::Algorithm) -> f64 {
    let Ok(key) = UnboundKey::new(algorithm, &[1; 32]).map(LessSafeKey::new) else {
        return f64::NAN;
    };
    let mut packet = [0; 1400];
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = cpu_ns();
        for number in 0..PACKETS {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&number.to_be_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            black_box(key.seal_in_place_separate_tag(nonce, Aad::from([0; 16]), &mut packet).ok());
        }
        times.push((cpu_ns() - start) as f64 / PACKETS as f64);
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
